//! How old a change is when it is in the table: both daemons at work, with S3 and SQS of LocalStack.
//!
//! The clock starts when the fetch that brings the change begins, which is the ledger's `fetched_at`: the wait for the poll is the
//! operator's choice. It stops when the COMMIT can be seen: Postgres delivers a notification with it. How long LocalStack itself takes for
//! the same requests is measured beside, since it is not S3, and its time is not the daemons'.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Map, Value};
use sqlx::{Executor, postgres::PgListener};
use tokio::time::timeout;

use super::{
    Bench,
    emulator::{self, Emulator},
    report::{Goal, Report, percentile},
};
use crate::{
    daemon::Daemon,
    sandbox::{Sandbox, Setup},
};

/// In a round, one after the other.
const CHANGES: u64 = 100;

/// A poll, a handful of requests and a small transaction take a tenth of that on any machine.
const DEADLINE: Duration = Duration::from_secs(20);

const TELL: &str = "
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_notify('applied', NEW.position::text); RETURN NULL; END $$;
    CREATE TRIGGER tell AFTER UPDATE ON stream FOR EACH ROW EXECUTE FUNCTION tell()";

const FRESHNESS: &str = "fetch to COMMIT";
const P99: &str = "fetch to COMMIT, 99th percentile";
const BEYOND: &str = "fetch to COMMIT, without LocalStack's own answers";

/// The parts that [`FRESHNESS`] is the sum of, each from one moment in the log to the next.
const PARTS: [&str; 3] = [
    "of it until appended: fetch, HEAD, PUT",
    "of it until received: SEND, RECEIVE",
    "of it until COMMIT: GET, transaction",
];

/// By the daemons' own count: the metric, its stage, and what that is.
const STAGES: [(&str, &str, &str); 6] = [
    ("importer", "fetch", "fetch, mean of all polls"),
    ("importer", "append", "append (PUT), mean"),
    ("importer", "announce", "announce (SEND), mean"),
    ("transformer", "get", "get (GET), mean"),
    ("transformer", "apply", "apply (transaction with COMMIT), mean"),
    ("transformer", "commit", "of it COMMIT, mean"),
];

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    // The idle look helps nobody here: what arrives has come through the queue.
    let settings = vec![("POLL_INTERVAL", "100ms"), ("CATCH_UP_INTERVAL", "1h")];
    let sandbox = Sandbox::start(bench.sandbox.world(), Setup { settings, ..Setup::default() }).await?;
    sandbox.settled(DEADLINE).await?;
    sandbox.connect().await?.execute(TELL).await?;
    let mut applied = PgListener::connect(sandbox.database_url()).await?;
    applied.listen("applied").await?;
    let emulator = Emulator::start(&sandbox).await?;
    for number in 0..=bench.settings.rounds {
        report.begin("freshness", number);
        round(&sandbox, &mut applied, &emulator, report).await?;
    }
    sandbox.stop().await?;
    for (name, goal) in [(FRESHNESS, None), (P99, None), (BEYOND, Some(Goal::AtMost(50.0)))] {
        report.figure(name, "ms", None, goal);
    }
    let stages = STAGES.map(|(.., name)| name);
    for name in PARTS.into_iter().chain(stages).chain(emulator::REQUESTS) {
        report.figure(name, "ms", None, None);
    }
    Ok(())
}

async fn round(
    sandbox: &Sandbox,
    applied: &mut PgListener,
    emulator: &Emulator<'_>,
    report: &mut Report,
) -> Result<()> {
    let before = stages(sandbox).await?;
    let mut committed = Vec::new();
    for change in 1..=CHANGES {
        let title = Value::from(format!("title of {}", Timestamp::now()));
        sandbox
            .api
            .change(|posts| posts.patch(change % 100 + 1, Map::from_iter([("title".to_owned(), title)])).is_some());
        let told = timeout(DEADLINE, applied.recv()).await.context("a change did not arrive")??;
        committed.push((told.payload().to_owned(), Timestamp::now()));
    }
    let after = stages(sandbox).await?;

    let fetched = fetched(sandbox).await?;
    let (appended, received) = (logged(&sandbox.importer, "appended"), logged(&sandbox.transformer, "received"));
    let (mut whole, mut parts) = (Vec::new(), PARTS.map(|_| Vec::new()));
    for (sequence, committed) in &committed {
        let moment = |moments: &HashMap<String, Timestamp>| {
            moments.get(sequence).copied().with_context(|| format!("when was object {sequence} on its way?"))
        };
        let moments = [moment(&fetched)?, moment(&appended)?, moment(&received)?, *committed];
        for (part, pair) in parts.iter_mut().zip(moments.windows(2)) {
            part.push(millis(pair[0], pair[1]));
        }
        whole.push(millis(moments[0], *committed));
    }
    let own = emulator.measure(report).await?;
    let median = percentile(50, whole.iter().copied());
    report.sample(FRESHNESS, median);
    report.sample(P99, percentile(99, whole.into_iter()));
    report.sample(BEYOND, median - own);
    for (name, part) in PARTS.into_iter().zip(parts) {
        report.sample(name, percentile(50, part.into_iter()));
    }
    for (((.., name), before), after) in STAGES.into_iter().zip(before).zip(after) {
        report.sample(name, (after.0 - before.0) / (after.1 - before.1) * 1e3);
    }
    Ok(())
}

/// When the fetch of each object began.
async fn fetched(sandbox: &Sandbox) -> Result<HashMap<String, Timestamp>> {
    let statement = "SELECT sequence::text, (extract(epoch FROM fetched_at) * 1000000)::bigint FROM objects";
    let rows: Vec<(String, i64)> = sandbox.query(statement).await?;
    rows.into_iter().map(|(sequence, micros)| Ok((sequence, Timestamp::from_microsecond(micros)?))).collect()
}

/// When the daemon logged this of each object.
fn logged(daemon: &Daemon, message: &str) -> HashMap<String, Timestamp> {
    let moment = |line: &Value| {
        let text = |name: &str| line[name].as_str();
        Some((text("sequence")?.to_owned(), text("timestamp")?.parse().ok()?))
    };
    daemon.log_lines().iter().filter(|line| line["message"] == message).filter_map(moment).collect()
}

/// Seconds and number of each stage so far.
async fn stages(sandbox: &Sandbox) -> Result<[(f64, f64); STAGES.len()]> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut text = String::new();
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        text += &client.get(format!("{}/metrics", daemon.admin_url())).send().await?.text().await?;
    }
    let number = |name: String| {
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or(f64::NAN)
    };
    Ok(STAGES.map(|(daemon, stage, _)| {
        let of = |what| number(format!("{daemon}_stage_seconds_{what}{{stage=\"{stage}\"}}"));
        (of("sum"), of("count"))
    }))
}

fn millis(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1e3
}
