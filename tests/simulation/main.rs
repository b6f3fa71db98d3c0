//! The real loops of both daemons on doubles of the doors, under a seed that decides every fault: calls that fail before or after they
//! were done, answers that come too late for anybody, daemons dropped at any await or frozen and thawed, locks that outlive their
//! holders, messages lost, repeated and reordered, databases restored, objects deleted and brought back.
//!
//! The clock is paused, so an hour takes milliseconds. `SEED=42 cargo test -p tests --test simulation` runs one seed again,
//! `SEEDS=1000000` many.

#![allow(unreachable_pub, reason = "a binary of its own")]

mod doors;
mod world;

use std::{
    env,
    future::{Future, poll_fn},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Poll,
    thread,
    time::Duration,
};

use importer::run::{Importer, PaceSettings as ImporterPace};
use indicatif::ProgressBar;
use shared::{shutdown::Shutdown, status::Status};
use tokio::{
    runtime::Builder,
    select,
    sync::watch,
    task::{LocalSet, spawn_local},
    time::{Instant, sleep, sleep_until},
};
use transformer::{
    follow::Follower,
    run::{PaceSettings as TransformerPace, Transformer},
    skip::Skip,
};

use crate::{
    doors::Door,
    world::{Figures, Shared, World},
};

/// How often things go wrong for a while and then do not; after each storm all must be well within this time.
const STORMS: u32 = 8;
const CALM: Duration = Duration::from_mins(5);

const SEEDS: u64 = 1_000;

#[test]
fn the_table_is_a_function_of_the_archive_whatever_happens() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, seeds) = number("SEED").map_or((0, number("SEEDS").unwrap_or(SEEDS)), |seed| (seed, 1));
    let next = AtomicU64::new(first);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let all = thread::scope(|scope| {
        let work = || {
            let mut all = Figures::default();
            loop {
                let seed = next.fetch_add(1, Relaxed);
                if seed >= first + seeds {
                    return all;
                }
                all.add(&simulate(seed));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Figures::default();
        for worker in workers {
            all.add(&worker.join().expect("a seed failed"));
        }
        all
    });
    let Figures { calls, faults, crashes, restores, objects, simulated } = all;
    let hours = simulated.as_secs() / 3600;
    eprintln!(
        "{seeds} seeds: {hours} simulated hours, {calls} calls, {faults} faults, {crashes} crashes, {restores} restores, {objects} objects"
    );
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..5 {
        assert_eq!(simulate(seed), simulate(seed), "{seed}");
    }
}

/// Runs one seed to its end.
fn simulate(seed: u64) -> Figures {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let world = World::new(seed);
        for host in 0..2 {
            spawn_local(supervise(world.clone(), host, run_importer));
            spawn_local(supervise(world.clone(), host + 2, run_transformer));
        }
        for _ in 0..STORMS {
            {
                let mut world = world.borrow_mut();
                world.is_calm = false;
                world.is_down = [false; 4];
            }
            let accidents = spawn_local(accidents(world.clone()));
            let wait = world.borrow_mut().millis(0..300_000);
            sleep(wait).await;
            accidents.abort();
            calm_down(&world);
            let deadline = Instant::now() + CALM;
            while let Err(why) = check(&world) {
                let figures = world.borrow().figures;
                let again = format!("run it again: SEED={seed} cargo test -p tests --test simulation");
                assert!(Instant::now() < deadline, "{why}\n{again}\n{figures:?}");
                sleep(Duration::from_secs(1)).await;
            }
        }
        let mut world = world.borrow_mut();
        world.figures.simulated = world.began.elapsed();
        world.figures
    })
}

/// Nothing goes wrong any more, from a moment in which any of the daemons die, one of each two perhaps for good.
fn calm_down(world: &Shared) {
    let mut world = world.borrow_mut();
    world.is_calm = true;
    if std::mem::take(&mut world.api.is_broken) {
        world.api.version += 1;
    }
    let deleted = std::mem::take(&mut world.deleted);
    world.archive.extend(deleted);
    for host in 0..4 {
        if world.dice.bool() {
            world.ends[host].notify_waiters();
            world.is_down[host] = world.dice.bool() && !world.is_down[host ^ 1];
        }
    }
}

/// What happens to the world while the daemons work.
async fn accidents(world: Shared) {
    loop {
        let wait = world.borrow_mut().millis(100..20_000);
        sleep(wait).await;
        let mut world = world.borrow_mut();
        match world.dice.u8(..20) {
            0..12 => {
                let (id, title) = (world.dice.i64(1..6), world.dice.u8(..4).to_string());
                let before = world.api.posts.clone();
                if world.dice.u8(..3) == 0 {
                    // As it was before the last change.
                    world.api.posts = std::mem::take(&mut world.api.posts_before);
                } else {
                    world.api.posts.insert(id, title);
                }
                world.api.posts_before = before;
                world.api.version += 1;
                world.api.is_broken = world.dice.u8(..10) == 0;
            }
            12..14 => {
                // A backup of no long ago, and the sessions end.
                let backups = world.backups.len();
                let at = backups - 1 - world.dice.usize(..backups.min(6));
                world.table = world.backups[at].clone();
                world.lock = None;
                world.figures.restores += 1;
            }
            14..16 => world.queue.clear(),
            16 => {
                let (end, at) = (world.archive.len() as u64, world.dice.u64(1..200));
                // Not the end: whoever deletes that makes the importer write the number anew.
                if at < end
                    && let Some(stored) = world.archive.remove(&at)
                {
                    world.deleted.insert(at, stored);
                }
            }
            _ => {
                let deleted = std::mem::take(&mut world.deleted);
                world.archive.extend(deleted);
            }
        }
    }
}

/// A daemon that is killed again and again, at whatever await it is, and sometimes frozen for a while before it goes on.
async fn supervise<F: Future<Output = ()>>(world: Shared, host: usize, daemon: fn(Shared, Shutdown) -> F) {
    loop {
        while world.borrow().is_down[host] {
            sleep(Duration::from_secs(1)).await;
        }
        let (_drain, draining) = watch::channel(false);
        let (freeze, thaw, end) = {
            let mut world = world.borrow_mut();
            let freeze = Instant::now() + world.millis(0..120_000);
            (freeze, freeze + world.millis(0..60_000), world.ends[host].clone())
        };
        let killed = async {
            loop {
                let life = world.borrow_mut().millis(10..180_000);
                sleep(life).await;
                if !world.borrow().is_calm {
                    return;
                }
            }
        };
        let mut daemon = pin!(daemon(world.clone(), Shutdown::new(draining)));
        let mut frozen = pin!(sleep_until(thaw));
        let is_calm = || world.borrow().is_calm;
        let running = poll_fn(|context| {
            let now = Instant::now();
            if now >= freeze && now < thaw && !is_calm() {
                // It wakes up when it thaws.
                let _ = frozen.as_mut().poll(context);
                return Poll::Pending;
            }
            daemon.as_mut().poll(context)
        });
        select! {
            biased;
            () = running => {}
            () = killed => {}
            () = end.notified() => {}
        }
        let pause = {
            let mut world = world.borrow_mut();
            world.figures.crashes += 1;
            world.millis(0..10_000)
        };
        sleep(pause).await;
    }
}

async fn run_importer(world: Shared, shutdown: Shutdown) {
    let stream = world.borrow().stream.clone();
    let dice = world.borrow_mut().dice.fork();
    let door = Door(world);
    let importer = Importer::new(door.clone(), door.clone(), door, stream, Status::default());
    importer.run(ImporterPace { poll_interval: Duration::from_secs(5) }, dice, shutdown).await;
}

async fn run_transformer(world: Shared, shutdown: Shutdown) {
    let stream = world.borrow().stream.clone();
    let door = Door(world);
    let follower = Follower::new(door.clone(), door.clone(), Skip::default(), ProgressBar::hidden());
    let transformer = Transformer::new(follower, door, stream, Status::default());
    transformer.run(TransformerPace { catch_up_interval: Duration::from_secs(30) }, shutdown).await;
}

/// The archive is dense, a chain, in the order of observation, and ends with what the API says; the table is what the archive makes.
fn check(world: &Shared) -> Result<(), String> {
    let world = world.borrow();
    let (mut previous, mut version) = (None, 0);
    let mut posts = std::collections::BTreeMap::new();
    let mut whole = world::Posts::new();
    for ((number, stored), expected) in world.archive.iter().zip(1..) {
        let metadata = &stored.metadata;
        if *number != expected || metadata.previous != previous {
            return Err(format!("object {expected} does not continue the archive"));
        }
        previous = Some(metadata.observation);
        let (seen, page) =
            (world.versions[&metadata.observation], serde_json::from_slice::<world::Posts>(&stored.body).ok());
        if seen < version {
            return Err(format!("object {number} is older than the one before it"));
        }
        version = seen;
        let outcome = if page.is_some() { "loaded" } else { "quarantined" };
        if world.table.ledger.get(number) != Some(&outcome) {
            return Err(format!("object {number} is {:?} in the ledger", world.table.ledger.get(number)));
        }
        if metadata.page == 1 {
            whole.clear();
        }
        for (id, title) in page.unwrap_or_default() {
            whole.insert(id, title.clone());
            let is_new = posts.get(&id).is_none_or(|(known, _)| *known != title);
            if is_new {
                posts.insert(id, (title, *number));
            }
        }
    }
    if whole != world.api.posts || world.archive.values().next_back().is_some_and(|end| !end.metadata.last_page) {
        return Err("the archive does not end with what the API says".to_owned());
    }
    if world.table.ledger.len() != world.archive.len() || world.table.posts != posts {
        return Err("the table is not what the archive makes".to_owned());
    }
    Ok(())
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.restores += other.restores;
        self.objects += other.objects;
        self.simulated += other.simulated;
    }
}
