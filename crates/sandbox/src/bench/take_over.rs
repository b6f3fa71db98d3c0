//! Two transformers on a stream, and the one at work is killed: how long until the other has applied what it had in hand.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use super::{
    Bench, posts,
    report::{Goal, Report},
    small,
};
use crate::proxy::{Proxy, Way};

/// Several batches, so that the transaction is open while the later ones are on their way.
const POSTS: u64 = 20_000;

/// Slow enough for the object to be on its way for ten seconds, if nobody is killed.
const BYTES_A_SECOND: u64 = 400_000;

const DEADLINE: Duration = Duration::from_secs(30);

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let name = "killed at work, until the stand-by has applied the object";
    for number in 1..=bench.settings.rounds {
        report.begin("take-over", number);
        report.sample(name, take_over(bench, &format!("take_over_{number}")).await?.as_secs_f64());
    }
    report.figure(name, "s", None, Some(Goal::AtMost(5.0)));
    Ok(())
}

async fn take_over(bench: &Bench, stream: &str) -> Result<Duration> {
    let wire = Proxy::start(bench.store.endpoint()).await?;
    let mut program = bench.transformer(stream, stream).await?;
    program.settings.set(&[("AWS_ENDPOINT_URL_S3", &wire.url())]);
    let queue_url = program.settings.get("QUEUE_URL").context("it has a queue")?.to_owned();
    let at_work = bench.daemon("transformer", program).await?;
    wire.set(Way::Rate(BYTES_A_SECOND));
    let pointers = bench.store.archive(stream, [posts(POSTS).await?])?;
    small::send(bench, &queue_url, &pointers).await?;
    let is_locked = format!(
        "SELECT count(*) > 0 FROM pg_locks WHERE relation = '{stream}.stream'::regclass AND mode = 'RowShareLock'"
    );
    let is_at_work = async || Ok(bench.sandbox.query::<(bool,)>(&is_locked).await? == [(true,)]);
    bench.sandbox.wait_until("the transaction is open", DEADLINE, is_at_work).await?;
    // It says that it is ready when it has just found the other at work: it will not look again for as long as it ever waits.
    let stand_by = bench.daemon("stand-by", bench.transformer(stream, stream).await?).await?;
    let killed = Instant::now();
    at_work.stop().await?;
    let is_applied = format!("SELECT position = 1 FROM {stream}.stream");
    let is_applied = async || Ok(bench.sandbox.query::<(bool,)>(&is_applied).await? == [(true,)]);
    bench.sandbox.wait_until("the other has taken over", DEADLINE, is_applied).await?;
    let took = killed.elapsed();
    stand_by.terminate().await?;
    Ok(took)
}
