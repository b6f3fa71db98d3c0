//! What the daemons of a simulation share: an API, an archive, a queue and a table, with exact semantics, and the dice.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fs::File,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use shared::object::{Metadata, StreamName};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use transformer::decide::Position;
use uuid::Uuid;

/// The world, as everybody in it holds it. One thread, so nobody is ever in the middle of a borrow at an await.
pub type Shared = Rc<RefCell<World>>;

/// Posts by id.
pub type Posts = BTreeMap<i64, String>;

/// Everything that outlives a daemon.
pub struct World {
    pub dice: fastrand::Rng,
    /// While it is true nothing fails any more, so that what should come to rest does.
    pub is_calm: bool,
    pub began: Instant,
    /// Kills the daemon of a host: two importers, two transformers.
    pub ends: [Rc<Notify>; 4],
    /// Hosts that are not started again before the next storm.
    pub is_down: [bool; 4],
    pub stream: StreamName,
    pub api: Api,
    /// What each observation saw.
    pub versions: HashMap<Uuid, u64>,
    pub archive: BTreeMap<u64, Stored>,
    /// Deleted by somebody, and to be brought back.
    pub deleted: BTreeMap<u64, Stored>,
    pub queue: Vec<Message>,
    /// When a deduplication id was seen first.
    pub sent: HashMap<String, Instant>,
    pub table: Rows,
    /// The table after each commit, for whoever restores a backup.
    pub backups: Vec<Rows>,
    pub lock: Option<Lock>,
    pub next_session: u64,
    /// Where bodies wait; they are written one behind the other.
    pub spool: Arc<File>,
    pub spooled: u64,
    pub figures: Figures,
}

/// The collection, and how often it has changed.
#[derive(Clone, Debug, Default)]
pub struct Api {
    pub version: u64,
    pub posts: Posts,
    pub posts_before: Posts,
    /// The body is no document.
    pub is_broken: bool,
}

/// An object.
#[derive(Clone, Debug)]
pub struct Stored {
    pub metadata: Metadata,
    pub body: Vec<u8>,
}

/// A message in the queue.
#[derive(Clone, Debug)]
pub struct Message {
    pub id: Uuid,
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
    pub objects: u64,
    pub simulated: Duration,
}

impl World {
    pub fn new(seed: u64) -> Shared {
        Rc::new(RefCell::new(Self {
            dice: fastrand::Rng::with_seed(seed),
            is_calm: false,
            began: Instant::now(),
            ends: Default::default(),
            is_down: [false; 4],
            stream: "posts".parse().expect("a name"),
            api: Api::default(),
            versions: HashMap::new(),
            archive: BTreeMap::new(),
            deleted: BTreeMap::new(),
            queue: Vec::new(),
            sent: HashMap::new(),
            table: Rows::default(),
            backups: vec![Rows::default()],
            lock: None,
            next_session: 0,
            spool: Arc::new(tempfile::tempfile().expect("a temporary file")),
            spooled: 0,
            figures: Figures::default(),
        }))
    }

    /// Whether this goes wrong, in so many of a hundred cases.
    pub fn fails(&mut self, percent: u8) -> bool {
        let fails = !self.is_calm && self.dice.u8(..100) < percent;
        self.figures.faults += u64::from(fails);
        fails
    }

    pub fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.dice.u64(range))
    }

    pub fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(self.dice.u128(1..))
    }

    /// The wall clock.
    pub fn time(&self) -> Timestamp {
        let began: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        began + self.began.elapsed()
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
