//! One large object: into an empty table, unchanged, and with every post changed.

use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Bytes;
use sqlx::PgConnection;

use super::{
    Bench,
    peers::{self, Peers},
    program::Program,
    report::{Goal, Report, mib, per_second},
    sql,
};

pub(super) const STREAM: &str = "load";
pub(super) const COPY: &str = "straight binary COPY";
const BEST_SQL: &str = "the better of these two";

/// The plain ways that the change of every post is measured beside.
const PLAIN: [(&str, &str); 2] = [
    ("COPY to a temporary table, INSERT … ON CONFLICT", sql::UPSERT),
    ("COPY to a temporary table, UPDATE … FROM", sql::UPDATE),
];

/// What the transformer does with objects 1 to 3.
pub(super) const LOADS: [&str; 3] = ["first load", "unchanged", "all changed"];

/// The rows as COPY takes them, before and after the change.
struct Rows {
    old: Vec<u8>,
    new: Vec<u8>,
}

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.store.archive(STREAM, [bench.posts.clone(), bench.posts.clone(), change(&bench.posts)?])?;
    let peers = if bench.settings.peers { Some(Peers::install(bench).await?) } else { None };
    let mut connection = bench.sandbox.connect().await?;
    let mut rows = None;
    for number in 0..=bench.settings.rounds {
        report.begin("load", number);
        let schema = format!("load_{number}");
        rows = Some(round(bench, report, &mut connection, &schema, rows).await?);
        // Python has no cold caches but those that Postgres has warm by now.
        if let Some(peers) = peers.as_ref().filter(|_| number > 0) {
            peers.round(bench, report, &mut connection, &schema).await?;
        }
        sql::run(&mut connection, format!("DROP SCHEMA {schema} CASCADE")).await?;
    }
    summarize(report);
    if bench.settings.peers {
        peers::summarize(report);
    }
    Ok(())
}

async fn round(
    bench: &Bench,
    report: &mut Report,
    connection: &mut PgConnection,
    schema: &str,
    rows: Option<Rows>,
) -> Result<Rows> {
    let posts = bench.settings.posts;
    let transformer = bench.transformer(STREAM, schema).await?;
    let mut made = Vec::new();
    for (name, to) in LOADS.into_iter().zip(1..) {
        once(&transformer, report, connection, &format!("{schema}.posts"), (name, to)).await?;
        if rows.is_none() {
            made.push(sql::ready_made_rows(connection, &format!("{schema}.posts"), "id").await?);
        }
    }
    // The first time, which is not counted, shows what the rows are.
    let rows = match rows {
        Some(rows) => rows,
        None => Rows { new: made.pop().context("three were made")?, old: made.swap_remove(0) },
    };
    let took = sql::straight_copy(connection, schema, "posts", &rows.old).await?;
    report.sample(COPY, per_second(posts, took));
    let mut best = 0_f64;
    for (name, merge) in PLAIN {
        let took = sql::staged(connection, schema, (&rows.old, &rows.new), merge).await?;
        let rate = per_second(posts, took);
        report.sample(name, rate);
        best = best.max(rate);
    }
    report.sample(BEST_SQL, best);
    Ok(rows)
}

/// Applies the next object to that table, and takes from the log line how long that took from the answer to its GET to its COMMIT.
pub(super) async fn once(
    transformer: &Program<'_>,
    report: &mut Report,
    connection: &mut PgConnection,
    table: &str,
    (name, to): (&str, u64),
) -> Result<()> {
    sql::settle(connection, table).await?;
    let before = sql::wal_bytes(connection).await?;
    let ran = transformer.run(&["once", "--to", &to.to_string()]).await?;
    let wal = sql::wal_bytes(connection).await? - before;
    let applied = ran.logged("applied")?;
    let number = |field: &str| applied[field].as_u64().with_context(|| format!("`applied` has no {field}"));
    report.sample(name, per_second(number("records")?, Duration::from_millis(number("elapsed_ms")?)));
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    report.sample(&format!("{name}, WAL"), wal as f64 / 1e6);
    if let Some(usage) = ran.usage {
        report.sample(&format!("{name}, peak memory"), mib(usage.peak_bytes));
    }
    Ok(())
}

fn summarize(report: &mut Report) {
    report.figure(COPY, "rows/s", None, None);
    report.figure(LOADS[0], "rows/s", Some(COPY), Some(Goal::AtLeast(0.85)));
    report.figure(LOADS[1], "rows/s", Some(COPY), Some(Goal::AtLeast(0.9)));
    for (name, _) in PLAIN {
        report.figure(name, "rows/s", Some(COPY), None);
    }
    report.figure(LOADS[2], "rows/s", Some(BEST_SQL), Some(Goal::AtLeast(0.95)));
    report.figure("unchanged, WAL", "MB", None, Some(Goal::AtMost(2.0)));
    report.figure("all changed, WAL", "MB", Some("first load, WAL"), None);
    for name in LOADS {
        report.figure(&format!("{name}, peak memory"), "MiB", None, Some(Goal::AtMost(64.0)));
    }
}

/// The same posts with other titles.
pub(super) fn change(posts: &Bytes) -> Result<Bytes> {
    Ok(String::from_utf8(posts.to_vec())?.replace("\"title\":\"", "\"title\":\"new ").into())
}
