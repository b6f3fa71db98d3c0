//! The soak: storms of faults over the whole pipeline, and after each a calm in which everything must come to rest and be whole.

mod rig;
mod schedule;
mod tally;
mod verdict;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::Args;
use fastrand::Rng;
use tokio::time::sleep;

use self::{rig::Rig, schedule::Storm, verdict::Fold};
use crate::{progress::Progress, run::Signals, sandbox::Program, world::World};

/// From the end of a storm until everything is at rest. A pause of the daemons is at most 15 s, a silent one is waited for 20 s, and then 40 s.
const REST_DEADLINE: Duration = Duration::from_mins(3);

/// How often to look whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How much of what is wrong is shown.
const SHOWN: usize = 10;

/// How long and how bad.
#[derive(Args, Clone, Copy, Debug)]
pub struct SoakSettings {
    /// How many minutes new storms begin; the last one is seen to its end
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// Decides which faults there are, when and on which wire; without it a random one, which is printed
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// The storm to begin with: that of a failure, to come to it at once
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    first: u32,
}

/// Runs storms until the time is over: exit code 0 only when nothing was lost or doubled.
pub async fn soak(settings: &SoakSettings) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let progress = Progress::default();
    let soak = async {
        let world = World::start(&progress).await?;
        let outcome = run(&world, settings, &progress).await;
        world.stop().await?;
        outcome
    };
    tokio::select! {
        // Dropping the world ends what it has started; the guard sees to the rest.
        () = signals.next() => Ok(ExitCode::from(130)),
        outcome = soak => outcome.map(|()| ExitCode::SUCCESS),
    }
}

async fn run(world: &Arc<World>, settings: &SoakSettings, progress: &Progress) -> Result<()> {
    let seed = settings.seed.unwrap_or_else(|| Rng::new().u64(..1_000_000));
    println!("seed {seed}, {} minutes, on {} and LocalStack", settings.minutes, world.postgres().version());
    let rig = Rig::start(world).await?;
    let mut soak = Soak { rig, fold: Fold::default(), seed, storm: settings.first };
    let events = soak.rig.sandbox.events().subscribe();
    let rig = soak.rig.clone();
    let outcome = tokio::select! {
        () = rig.tally.follow(&rig, events) => bail!("the sandbox holds a sender of events"),
        outcome = soak.storms(settings, progress) => outcome,
    };
    let minutes = settings.minutes;
    if outcome.is_err() {
        println!("{}", Storm::draw(seed, soak.storm).plan());
        println!("The daemons' logs are kept in {}. This storm again:", rig.keep_logs()?.display());
        println!("  cargo run -p sandbox -- soak --minutes 1 --seed {seed} --first {}", soak.storm);
    }
    let Soak { fold, storm, .. } = &soak;
    let verdict = fold.verdict();
    let storms = storm - settings.first;
    println!(
        "{} seed={seed} minutes={minutes} storms={storms} changes={} objects={} rows={} lost={} doubled={}",
        rig.tally,
        rig.changes(),
        fold.end(),
        fold.rows(),
        verdict.lost.len(),
        verdict.doubled.len()
    );
    outcome
}

struct Soak {
    rig: Arc<Rig>,
    fold: Fold,
    seed: u64,
    /// The number of the storm that rages, or comes next.
    storm: u32,
}

impl Soak {
    async fn storms(&mut self, settings: &SoakSettings, progress: &Progress) -> Result<()> {
        let begun = Instant::now();
        self.come_to_rest(progress).await?;
        while begun.elapsed() < Duration::from_mins(settings.minutes) {
            self.rig.back_up().await?;
            let storm = Storm::draw(self.seed, self.storm);
            let mut random = Rng::with_seed(self.seed ^ u64::from(self.storm) << 32);
            let step = progress.step("storm: faults, kills and load");
            self.rig.endure(&storm, &mut random).await?;
            drop(step);
            self.rig.change(&mut random, true);
            let rested = self.come_to_rest(progress).await?;
            println!(
                "storm {:<3} {storm}; at rest after {:.1} s: {} objects, {} rows",
                self.storm,
                rested.as_secs_f32(),
                self.fold.end(),
                self.fold.rows()
            );
            self.storm += 1;
        }
        let _step = progress.step("every object is read again");
        let audit = self.rig.sandbox.run(Program::Transformer, &["audit", "--deep"]).await?;
        ensure!(audit.status.success(), "the audit found something:\n{}", String::from_utf8_lossy(&audit.stdout));
        for daemon in self.rig.daemons() {
            daemon.terminate().await?;
        }
        let crashes = self.rig.tally.crashes();
        ensure!(crashes.is_empty(), "a daemon ended by itself: {}", crashes.join(", "));
        Ok(())
    }

    /// Waits until the archive ends with what the API says and the table stands there; how long that took. Then nothing may be lost or doubled.
    async fn come_to_rest(&mut self, progress: &Progress) -> Result<Duration> {
        let _step = progress.step("calm: everything comes to rest");
        let begun = Instant::now();
        let (rig, fold) = (&self.rig, &mut self.fold);
        loop {
            let objection = match fold.judge(&rig.sandbox, &rig.tally.acknowledged()).await {
                Ok(None) => break,
                Ok(Some(objection)) => objection,
                Err(error) => format!("{error:#}"),
            };
            if !fold.verdict().is_clean() {
                break;
            }
            ensure!(begun.elapsed() < REST_DEADLINE, "not at rest after {REST_DEADLINE:?}: {objection}");
            sleep(LOOK_EVERY).await;
        }
        let rested = begun.elapsed();
        let verdict = fold.verdict();
        let wrong: Vec<_> = verdict.lost.iter().chain(&verdict.doubled).take(SHOWN).cloned().collect();
        ensure!(wrong.is_empty(), "lost or doubled:\n  {}", wrong.join("\n  "));
        rig.tally.note_rest(rig).await?;
        Ok(rested)
    }
}
