//! What the daemons of a simulation share: an API, an archive, a queue and a table, with exact semantics, and the dice.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::{AddAssign, Range},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use shared::{object::Metadata, settings::Absent};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use transformer::decide::Position;
use uuid::Uuid;

use crate::api::Manner;

/// The world, as everybody in it holds it. One thread, so nobody is ever in the middle of a borrow at an await.
pub type Shared = Rc<RefCell<World>>;

/// Posts by id.
pub type Posts = BTreeMap<i64, String>;

/// Everything that outlives a daemon.
#[derive(Default)]
pub struct World {
    pub dice: fastrand::Rng,
    /// When it began; `None` for never.
    pub began: Option<Instant>,
    /// While it is true nothing fails any more, so that what should come to rest does.
    pub is_calm: bool,
    /// Kills the daemon of a host: two importers, two transformers.
    pub ends: [Rc<Notify>; 4],
    /// Hosts that are not started again before the next storm.
    pub is_down: [bool; 4],
    pub api: Api,
    /// Bodies between their fetch and their append.
    pub bodies: Vec<Bytes>,
    /// The objects in the bucket.
    pub archive: BTreeMap<u64, Stored>,
    /// Deleted by somebody, and to be brought back.
    pub deleted: BTreeMap<u64, Stored>,
    /// The true archive from the object on where the bucket begins to hold another.
    pub away: BTreeMap<u64, Stored>,
    pub queue: Vec<Message>,
    /// Whoever waits for messages.
    pub ears: Rc<Notify>,
    /// When a deduplication id was seen first.
    pub sent: HashMap<String, Instant>,
    pub table: Rows,
    /// What becomes of a row that the API has no more.
    pub absent: Absent,
    /// The objects that may make any number of rows absent, as a person has decided.
    pub allowed: BTreeSet<u64>,
    /// The table after each of the last commits, for whoever restores a backup.
    pub backups: VecDeque<Rows>,
    pub lock: Option<Lock>,
    /// The last number that a message or a session was given.
    pub numbered: u64,
    /// What a daemon did that it must never do.
    pub wrong: Option<String>,
    pub figures: Figures,
}

/// The collection, and how often it has changed.
#[derive(Clone, Debug, Default)]
pub struct Api {
    pub manner: Manner,
    pub version: i64,
    pub posts: Posts,
    pub posts_before: Posts,
    /// How often the whole collection is asked for besides what has changed; `None` where that alone is asked for.
    pub refresh: Option<Duration>,
    /// How far its clock is ahead of ours.
    pub ahead: i64,
    /// Each post as it was asked for last, and the second in which it says that it changed.
    pub stamps: BTreeMap<i64, (String, i64)>,
    /// How many posts those have passed who ask a server that keeps their place.
    pub places: HashMap<u64, u64>,
    /// The body is no document.
    pub is_broken: bool,
}

/// An object.
#[derive(Clone, Debug)]
pub struct Stored {
    pub metadata: Metadata,
    pub body: Bytes,
}

/// A message in the queue.
#[derive(Clone, Debug)]
pub struct Message {
    pub number: u64,
    pub body: String,
    pub visible_at: Instant,
}

/// The database.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub position: Option<Position>,
    /// The outcome of each object.
    pub ledger: BTreeMap<u64, &'static str>,
    /// Title, and the object that wrote it last.
    pub posts: BTreeMap<i64, (String, u64)>,
    /// The rows that are absent, with the object that showed it.
    pub absent: BTreeMap<i64, u64>,
    /// The rows that the last whole snapshot lacked.
    pub missing: BTreeSet<i64>,
}

impl Rows {
    /// The number of the last object, 0 for none.
    pub fn stands_at(&self) -> u64 {
        self.position.map_or(0, |position| position.sequence.get())
    }
}

/// The stream's row, locked by a session.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    pub session: u64,
    /// When the session was last heard.
    pub heard: Instant,
}

/// What a simulation went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub calls: u64,
    pub faults: u64,
    pub crashes: u64,
    pub restores: u64,
    /// How often one archive took the place of another, there and back.
    pub swaps: u64,
    pub objects: u64,
    pub simulated: Duration,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.restores += other.restores;
        self.swaps += other.swaps;
        self.objects += other.objects;
        self.simulated += other.simulated;
    }
}

impl World {
    pub fn new(seed: u64) -> Shared {
        let mut dice = fastrand::Rng::with_seed(seed);
        let manner = Manner::any(&mut dice);
        let refresh = [None, None, Some(100), Some(1_000_000)][dice.usize(..4)].map(Duration::from_secs);
        let ahead = [0, 40, 86_400, -86_400][dice.usize(..4)];
        let absent = [Absent::Keep, Absent::Mark, Absent::Delete][dice.usize(..3)];
        let (api, began) = (Api { manner, refresh, ahead, ..Api::default() }, Some(Instant::now()));
        let backups = [Rows::default()].into();
        Rc::new(RefCell::new(Self { dice, began, api, absent, backups, ..Self::default() }))
    }

    /// Whether this goes wrong, in so many of a hundred cases.
    pub fn fails(&mut self, percent: u8) -> bool {
        let fails = !self.is_calm && self.dice.u8(..100) < percent;
        self.figures.faults += u64::from(fails);
        fails
    }

    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.dice.u64(range))
    }

    /// What a clock shows that is so far ahead.
    pub fn clock(&self, ahead: i64) -> i64 {
        let passed = self.began.map_or(0, |began| began.elapsed().as_secs());
        1_000_000 + passed.cast_signed() + ahead
    }

    pub fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(self.dice.u128(1..))
    }

    pub fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    /// The object in the true archive.
    pub fn true_object(&self, number: u64) -> Option<&Stored> {
        match self.away.keys().next() {
            Some(from) if *from <= number => self.away.get(&number),
            _ => self.archive.get(&number).or(self.deleted.get(&number)),
        }
    }
}

/// The time that a call takes, mostly short. A daemon can be killed in it.
pub async fn latency(world: &Shared) {
    let wait = {
        let mut world = world.borrow_mut();
        world.figures.calls += 1;
        if world.fails(2) { world.millis(1_000..9_000) } else { world.millis(1..40) }
    };
    sleep(wait).await;
}
