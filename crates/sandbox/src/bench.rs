//! How fast the pipeline is, as ratios: each thing is measured beside the limit or the usual way of doing it, in the same run.
//!
//! The daemons are the real programs, as built for release. Rounds are interleaved and medians are shown, so that a machine that drifts does
//! not decide. What is measured in which order is said here; each measurement has a file of its own.

// What is measured.
mod load;

// With what.
mod program;
mod report;
mod sql;
mod store;
mod memory_s3;

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use axum::body::Bytes;
use clap::Args;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

pub(crate) use self::program::memory;
use self::{program::Program, report::Report, store::Store};
use crate::{
    posts::Posts,
    progress::Progress,
    sandbox::{Sandbox, Setup, create_queue},
    world::World,
};

/// What to measure.
#[derive(Args, Clone, Copy, Debug)]
pub struct BenchSettings {
    /// How many posts a large object has
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    posts: u64,
    /// How many rounds, after one that is not counted
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,
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
        "{} posts in a large object, {} rounds, medians; S3 is in memory",
        settings.posts, settings.rounds
    ));
    load::measure(&bench, &mut report).await?;
    Ok(report)
}

/// So many posts as the API says them.
async fn posts(number: u64) -> Result<Bytes> {
    // A million take a few seconds to write.
    let written =
        tokio::task::spawn_blocking(move || serde_json::to_vec(&Posts::lorem_ipsum(number).iter().collect::<Vec<_>>()));
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

    async fn program<'a>(&'a self, path: &'a Path, stream: &str, schema: &str) -> Result<Program<'a>> {
        let queue_url = create_queue(self.sandbox.sqs(), &format!("{stream}.fifo")).await?;
        let mut settings = self.sandbox.settings().clone();
        settings.set(&[("STREAM", stream), ("DATABASE_SCHEMA", schema), ("QUEUE_URL", &queue_url)]);
        settings.set(&[("AWS_ENDPOINT_URL_S3", self.store.endpoint()), ("LOG_FORMAT", "json")]);
        Ok(Program { world: self.sandbox.world(), path, settings })
    }
}

/// Ends what a round has made.
async fn drop_schema(connection: &mut PgConnection, schema: &str) -> Result<()> {
    let dropped = connection.execute(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).await;
    dropped.map(|_| ()).with_context(|| format!("cannot drop the schema {schema}"))
}
