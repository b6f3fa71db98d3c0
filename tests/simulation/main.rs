//! The real loops of both daemons on doubles of the doors, under a seed that decides every fault: calls that fail before or after they
//! were done, answers that come too late for anybody, daemons dropped at any await or frozen and thawed, locks that outlive their
//! holders, messages lost, repeated and reordered, databases restored, objects deleted and brought back, archives swapped and forked,
//! collections that change while they are walked, in each way that pages follow, and APIs that are busy and say that there is nothing.
//!
//! The clock is paused, so an hour takes milliseconds. `SEED=42 cargo test -p simulation` runs one seed again,
//! `SEEDS=1000000` many.

#![allow(unreachable_pub, reason = "a binary of its own")]

mod accidents;
mod api;
mod doors;
mod oracle;
mod world;

use std::{
    env,
    future::{Future, poll_fn},
    io::{self, Write},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Poll,
    thread,
    time::Duration,
};

use importer::run::{Importer, PaceSettings as ImporterPace};
use jiff::Timestamp;
use shared::{
    object::{SnapshotKind, StreamName},
    settings::Absent,
    shutdown::Shutdown,
    status::Status,
};
use tokio::{
    runtime::Builder,
    select,
    sync::watch,
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, sleep, sleep_until},
};
use transformer::{
    decide::Sequences,
    follow::Follower,
    run::{PaceSettings as TransformerPace, Transformer},
};

use crate::{
    accidents::{accidents, calm_down},
    doors::Door,
    world::{Figures, Posts, Shared, World},
};

/// How often things go wrong for a while and then do not; after each storm all must be well within this time.
const STORMS: u32 = 5;
const CALM: Duration = Duration::from_mins(5);

/// An importer looks whether the archive is still the one that it knows before it appends, else with each 61st poll.
const UNCHANGED: Duration = Duration::from_secs(POLL_INTERVAL.as_secs() * 70);

const POLL_INTERVAL: Duration = Duration::from_secs(10);

const SEEDS: u64 = 20_000;

#[test]
fn the_table_is_a_function_of_the_archive_whatever_happens() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, seeds) = number("SEED").map_or((0, number("SEEDS").unwrap_or(SEEDS)), |seed| (seed, 1));
    let (next, end) = (AtomicU64::new(first), first + seeds);
    let work = || {
        let mut all = Figures::default();
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= end {
                return Ok(all);
            }
            // One that fails is enough.
            all += simulate(seed).inspect_err(|_| next.store(end, Relaxed))?;
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let all: Vec<Result<Figures, String>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("it returns its faults")).collect()
    });
    let mut sum = Figures::default();
    for figures in all {
        sum += figures.unwrap_or_else(|why| panic!("{why}"));
    }
    let Figures { calls, faults, crashes, restores, swaps, objects, simulated } = sum;
    let (hours, swaps) = (simulated.as_secs() / 3600, swaps / 2);
    // Past the test runner, which keeps what a test prints to itself when it succeeds. Nobody is left to tell when stderr is closed.
    let _ = writeln!(
        io::stderr(),
        "{seeds} seeds: {hours} simulated hours, {calls} calls, {faults} faults, {crashes} crashes, {restores} restores, \
         {swaps} archives swapped, {objects} objects"
    );
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..5 {
        assert_eq!(simulate(seed), simulate(seed), "{seed}");
    }
}

/// Runs one seed to its end.
fn simulate(seed: u64) -> Result<Figures, String> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let (world, began) = (World::new(seed), Instant::now());
        let mut daemons = Vec::new();
        for host in 0..2 {
            daemons.push(spawn_local(supervise(world.clone(), host, run_importer)));
            daemons.push(spawn_local(supervise(world.clone(), host + 2, run_transformer)));
        }
        for _ in 0..STORMS {
            let swaps = {
                let mut world = world.borrow_mut();
                world.is_calm = false;
                world.is_down = [false; 4];
                world.figures.swaps
            };
            let accidents = spawn_local(accidents(world.clone()));
            let wait = world.borrow_mut().millis(0..300_000);
            sleep(wait).await;
            accidents.abort();
            calm_down(&world);
            let was_swapped = world.borrow().figures.swaps != swaps;
            let deadline = Instant::now() + CALM + if was_swapped { UNCHANGED } else { Duration::ZERO };
            while let Err(why) = check(&world) {
                let is_over = Instant::now() >= deadline || world.borrow().wrong.is_some();
                if is_over || daemons.iter().any(JoinHandle::is_finished) {
                    let figures = world.borrow().figures;
                    let again = format!("run it again: SEED={seed} cargo test -p simulation");
                    return Err(format!("{why}\n{again}\n{figures:?}"));
                }
                sleep(Duration::from_secs(1)).await;
            }
        }
        let mut figures = world.borrow().figures;
        figures.simulated = began.elapsed();
        Ok(figures)
    })
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
    let dice = world.borrow_mut().dice.fork();
    let door = Door::new(world);
    let importer = Importer::new(door.clone(), door.clone(), door, stream(), Status::default());
    importer.run(ImporterPace { poll_interval: POLL_INTERVAL }, dice, shutdown).await;
}

async fn run_transformer(world: Shared, shutdown: Shutdown) {
    let door = Door::new(world);
    let follower = Follower::new(door.clone(), door.clone(), Sequences::default());
    let transformer = Transformer::new(follower, door, stream(), Status::default());
    transformer.run(TransformerPace { catch_up_interval: Duration::from_secs(30) }, shutdown).await;
}

fn stream() -> StreamName {
    "posts".parse().expect("a name")
}

/// The archive is dense, a chain, in the order of observation, and ends with what the API says; the table is what the archive makes.
fn check(world: &Shared) -> Result<(), String> {
    let world = world.borrow();
    if let Some(wrong) = &world.wrong {
        return Err(wrong.clone());
    }
    let (end, stands_at) = (world.archive.len() as u64, world.table.stands_at());
    if end != stands_at {
        return Err(format!("the table stands at object {stands_at} of {end}"));
    }
    let (mut previous, mut fetched_at) = (None, Timestamp::UNIX_EPOCH);
    let mut whole = Posts::new();
    for ((number, stored), expected) in world.archive.iter().zip(1..) {
        let metadata = &stored.metadata;
        if *number != expected || metadata.previous != previous {
            return Err(format!("object {expected} does not continue the archive"));
        }
        if metadata.fetched_at < fetched_at {
            return Err(format!("object {number} is older than the one before it"));
        }
        (previous, fetched_at) = (Some(metadata.observation), metadata.fetched_at);
        let page = serde_json::from_slice::<Posts>(&stored.body).ok();
        let outcome = world.table.ledger.get(number);
        if outcome != Some(if page.is_some() { &"loaded" } else { &"quarantined" }) {
            return Err(format!("object {number} is {outcome:?} in the ledger"));
        }
        if metadata.page == 1 && metadata.facts.kind != Some(SnapshotKind::Increment) {
            whole.clear();
        }
        whole.extend(page.unwrap_or_default());
    }
    if world.api.refresh.is_some_and(|refresh| refresh > CALM) {
        // Nothing tells of a deleted post but the whole collection, which was not asked for.
        whole.retain(|id, _| world.api.posts.contains_key(id));
    }
    if whole != world.api.posts || world.archive.values().next_back().is_some_and(|end| !end.metadata.last_page) {
        let (posts, manner) = (&world.api.posts, world.api.manner);
        return Err(format!("the archive ends with {whole:?}, and the API says {posts:?} ({manner:?})"));
    }
    let made = oracle::fold(&world)?;
    if world.table.ledger.len() != world.archive.len()
        || (&world.table.posts, &world.table.absent) != (&made.0, &made.1)
    {
        return Err(format!("the table is {:?}, and the archive makes {made:?}", world.table));
    }
    let is_soon_whole = world.api.refresh.is_none_or(|refresh| refresh < CALM);
    let is_present = |id: &i64| !world.table.absent.contains_key(id);
    if world.absent != Absent::Keep
        && is_soon_whole
        && !world.table.posts.keys().filter(|id| is_present(id)).eq(world.api.posts.keys())
    {
        return Err(format!("the table is {:?}, and the API has {:?}", world.table, world.api.posts));
    }
    Ok(())
}
