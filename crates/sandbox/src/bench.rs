//! How fast the pipeline is, as ratios: each thing is measured beside the limit or the usual way of doing it, in the same run.
//!
//! The daemons are the real programs, as built for release. Rounds are interleaved and medians are shown, so that a machine that drifts does
//! not decide. What is measured in which order is said here; each measurement has a file of its own.

// What is measured, in this order.
mod load;
mod peers;
mod definitions;
mod small;
mod import;
mod start;
mod freshness;
mod take_over;
mod cost;
mod scale;
mod wire;

// With what.
mod program;
mod report;
mod sql;
mod store;
mod memory_s3;
mod emulator;
mod counted;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::body::Bytes;
use clap::Args;
use tokio::time::{sleep, timeout};

pub(crate) use self::program::memory;
use self::{program::Program, report::Report, store::Store};
use crate::{
    daemon::Daemon,
    posts::lorem_ipsum,
    progress::Progress,
    sandbox::{Sandbox, Setup, create_queue},
    tail,
    world::World,
};

/// A daemon that is not ready by then will not be.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// A little more than a post takes as JSON.
const POST_BYTES: usize = 270;

/// What to measure.
#[derive(Args, Clone, Copy, Debug)]
pub struct BenchSettings {
    /// How many posts a large object has
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    posts: u64,
    /// How many rounds, after one that is not counted
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,
    /// Load the large object also with what Python has for it, beside each round; that takes minutes a round
    #[arg(long)]
    peers: bool,
}

/// Measures, prints a table, and writes the same to `target/bench.json`.
pub async fn bench(settings: &BenchSettings) -> Result<()> {
    let world = World::start(&Progress::default()).await?;
    let measured = measure(&world, *settings).await;
    world.stop().await?;
    let report = measured?;
    print!("{report}");
    report.write(&world.place().target.join("bench.json"))
}

async fn measure(world: &Arc<World>, settings: BenchSettings) -> Result<Report> {
    let setup = Setup { posts: 1, importer: false, transformer: false, ..Setup::default() };
    let sandbox = Sandbox::start(world, setup).await?;
    let store = Store::start(&sandbox).await?;
    let bench = Bench { posts: posts(settings.posts).await?, sandbox, store, settings };
    let mut report = Report::new(format!(
        "{} posts in a large object, {} rounds, medians; S3 is in memory, but LocalStack for freshness and requests",
        settings.posts, settings.rounds
    ));
    load::measure(&bench, &mut report).await?;
    definitions::measure(&bench, &mut report).await?;
    small::by_message(&bench, &mut report).await?;
    small::caught_up_with(&bench, &mut report).await?;
    import::measure(&bench, &mut report).await?;
    start::measure(&bench, &mut report).await?;
    freshness::measure(&bench, &mut report).await?;
    take_over::measure(&bench, &mut report).await?;
    cost::measure(&bench, &mut report).await?;
    scale::streams(&bench, &mut report).await?;
    scale::sizes(&bench, &mut report).await?;
    scale::lengths(&bench, &mut report).await?;
    wire::measure(&bench, &mut report).await?;
    Ok(report)
}

/// So many posts as the API says them.
async fn posts(number: u64) -> Result<Bytes> {
    // A million take a few seconds to write. One after the other, because ten million in memory are more than most machines have.
    let written = tokio::task::spawn_blocking(move || {
        let mut body = Vec::with_capacity(usize::try_from(number)? * POST_BYTES);
        body.push(b'[');
        for id in 1..=number {
            if id > 1 {
                body.push(b',');
            }
            serde_json::to_writer(&mut body, &lorem_ipsum(id))?;
        }
        body.push(b']');
        anyhow::Ok(body)
    });
    Ok(written.await??.into())
}

/// What the measurements share.
struct Bench {
    sandbox: Sandbox,
    store: Store,
    /// The large object.
    posts: Bytes,
    settings: BenchSettings,
}

impl Bench {
    /// The transformer on a stream and a queue of its own, with its tables made.
    async fn transformer(&self, stream: &str, schema: &str) -> Result<Program<'_>> {
        let transformer = self.program(&self.sandbox.world().programs().transformer, stream, schema).await?;
        transformer.run(&["migrate"]).await?;
        Ok(transformer)
    }

    /// The importer on a stream and a queue of its own.
    async fn importer(&self, stream: &str) -> Result<Program<'_>> {
        self.program(&self.sandbox.world().programs().importer, stream, "public").await
    }

    async fn program<'a>(&'a self, path: &'a Path, stream: &str, schema: &str) -> Result<Program<'a>> {
        let queue_url = create_queue(self.sandbox.sqs(), &format!("{stream}.fifo")).await?;
        let mut settings = self.sandbox.settings().clone();
        settings.set(&[("STREAM", stream), ("DATABASE_SCHEMA", schema), ("QUEUE_URL", &queue_url)]);
        settings.set(&[("AWS_ENDPOINT_URL_S3", self.store.endpoint()), ("LOG_FORMAT", "json")]);
        Ok(Program { world: self.sandbox.world(), path, settings })
    }

    /// Starts the program as a daemon that does nothing unasked, and waits until it is ready.
    async fn daemon(&self, name: &'static str, program: Program<'_>) -> Result<Daemon> {
        let mut settings = program.settings;
        settings.set(&[("CATCH_UP_INTERVAL", "1h"), ("POLL_INTERVAL", "1h")]);
        let (logs, events, world) = (self.sandbox.logs(), self.sandbox.events().clone(), self.sandbox.world().clone());
        let daemon = Daemon::new(name, program.path, settings, &logs, events, world);
        daemon.start();
        let client = reqwest::Client::builder().no_proxy().build()?;
        let ready = async {
            while !daemon.readiness(&client).await.is_ok_and(|readiness| readiness.is_ready) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(READY_DEADLINE, ready).await.with_context(|| tail::of_file(daemon.log()))?;
        Ok(daemon)
    }
}
