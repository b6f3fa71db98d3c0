//! Near the database's own speed: which plans Postgres takes, what is copied and what updated, and that nothing new writes nothing.
//!
//! Each test has a cluster of its own, whose log and WAL nobody else writes to.

use anyhow::{Context, Result};
use sandbox::{Sandbox, Setup};
use support::{
    SOON, applied,
    author::{Author, document},
    cluster::Cluster,
    execute, select, start, world,
};

/// A stream in a cluster with these settings, with its transformer at work.
async fn follow(settings: &[&str]) -> Result<(Cluster, Sandbox)> {
    let cluster = Cluster::start(&world().await, settings, &[]).await?;
    let settings = vec![("DATABASE_URL", cluster.url("postgres").leak() as &str)];
    let sandbox = start(Setup { posts: 0, importer: false, settings, ..Setup::default() }).await?;
    Ok((cluster, sandbox))
}

/// The same, with each plan in the log; `None` where Postgres cannot do that.
async fn follow_explained() -> Result<Option<(Cluster, Sandbox)>> {
    let explain =
        ["session_preload_libraries=auto_explain", "auto_explain.log_min_duration=0", "auto_explain.log_analyze=on"];
    match follow(&explain).await {
        Ok(followed) => Ok(Some(followed)),
        Err(why) if format!("{why:#}").contains("auto_explain") => {
            support::skipped(format!("this Postgres has no auto_explain: {why:#}"));
            Ok(None)
        }
        Err(why) => Err(why),
    }
}

async fn apply(sandbox: &Sandbox, author: &mut Author<'_>, body: String) -> Result<u64> {
    let number = author.append(body).await?;
    applied(sandbox, number).await?;
    Ok(number)
}

/// The plans of the statements that look at posts, or write them.
fn plans_of_posts(log: &str) -> impl Iterator<Item = &str> {
    let plans = log.split(" plan:\n").skip(1).filter_map(|plan| plan.split("LOG:").next());
    plans.filter(|plan| plan.contains(" on posts "))
}

#[tokio::test]
async fn stale_statistics_do_not_change_the_plan() -> Result<()> {
    let Some((cluster, sandbox)) = follow_explained().await? else { return Ok(()) };
    let mut author = Author::of(&sandbox).await?;
    // The statistics are those of an empty table, as after a first load that autovacuum has not come to yet.
    execute(&sandbox, "ALTER TABLE posts SET (autovacuum_enabled = off)").await?;
    execute(&sandbox, "ANALYZE posts").await?;
    apply(&sandbox, &mut author, document(1..=40_000, "first")).await?;
    for title in ["first", "second"] {
        let before = cluster.log()?.len();
        apply(&sandbox, &mut author, document(1..=40_000, title)).await?;
        let log = cluster.log()?.split_off(before);
        let plans: Vec<_> = plans_of_posts(&log).collect();
        let updates = plans.iter().filter(|plan| plan.contains("Update on posts")).count();
        // A batch is eight thousand posts; once all of one are changed, the next is not compared first.
        assert_eq!((plans.len() - updates, updates), if title == "first" { (5, 0) } else { (1, 5) });
        for plan in plans {
            assert!(plan.contains("Index Scan using stream_rows_pkey on posts"), "{plan}");
            for other in ["Seq Scan on posts", "Hash", "Merge Join", "Materialize"] {
                assert!(!plan.contains(other), "{other}: {plan}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_table_that_was_small_when_it_was_analysed_is_not_read_for_each_post() -> Result<()> {
    let Some((cluster, sandbox)) = follow_explained().await? else { return Ok(()) };
    execute(&sandbox, "ALTER TABLE posts SET (autovacuum_enabled = off)").await?;
    let mut author = Author::of(&sandbox).await?;
    apply(&sandbox, &mut author, document(1..=60, "first")).await?;
    execute(&sandbox, "ANALYZE posts").await?;
    // A prepared statement may keep a plan for all values from its sixth run on.
    for round in 1..=8 {
        let before = cluster.log()?.len();
        apply(&sandbox, &mut author, document(1..=60, &format!("round {round}"))).await?;
        let log = cluster.log()?.split_off(before);
        let plans: Vec<_> = plans_of_posts(&log).collect();
        assert_eq!(plans.len(), 1, "{round}: it is merged");
        for plan in plans {
            assert!(
                plan.contains("Scan using stream_rows_pkey on posts") && !plan.contains("Seq Scan on posts"),
                "{round}: {plan}"
            );
        }
        assert!(!log.contains("JIT:"), "{round}: no plan is compiled: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_hundred_thousand_unchanged_posts_write_next_to_nothing() -> Result<()> {
    let (_cluster, sandbox) = follow(&["autovacuum=off", "checkpoint_timeout=1h"]).await?;
    let mut author = Author::of(&sandbox).await?;
    let posts = document(1..=100_000, "a title of the usual length, that is some words");
    apply(&sandbox, &mut author, posts.clone()).await?;
    let written = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
    let before: i64 = select(&sandbox, written).await?;
    apply(&sandbox, &mut author, posts).await?;
    let bytes = select::<i64>(&sandbox, written).await? - before;
    eprintln!("100,000 unchanged posts: {bytes} bytes of WAL");
    assert!(bytes < 200_000, "{bytes} bytes");
    let counts: String =
        select(&sandbox, "SELECT concat_ws(' ', records, inserted, updated) FROM objects WHERE sequence = 2").await?;
    assert_eq!(counts, "100000 0 0");
    assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM posts WHERE sequence = 2").await?, 0);
    Ok(())
}

#[tokio::test]
async fn catching_up_waits_for_the_disk_once_a_run() -> Result<()> {
    const OBJECTS: u64 = 100;
    let (_cluster, sandbox) = follow(&[]).await?;
    if select::<i32>(&sandbox, "SELECT current_setting('server_version_num')::int").await? >= 180_000 {
        support::skipped("this Postgres counts how often it waits for the disk elsewhere");
        return Ok(());
    }
    let mut author = Author::of(&sandbox).await?;
    sandbox.transformer.terminate().await?;
    for number in 1..=OBJECTS {
        author.append(document(1..=1, &format!("title {number}"))).await?;
    }
    // Commits of tests beside it are in other clusters; the server's own writer comes by five times a second.
    let syncs = "SELECT wal_sync FROM pg_stat_wal";
    let before: i64 = select(&sandbox, syncs).await?;
    sandbox.transformer.start();
    sandbox.wait_until("it has caught up", SOON, async || Ok(sandbox.position().await? == OBJECTS)).await?;
    // A session's counts are complete when it has ended.
    sandbox.transformer.terminate().await?;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'transformer'";
    sandbox
        .wait_until("its session has ended", SOON, async || Ok(select::<i64>(&sandbox, sessions).await? == 0))
        .await?;
    let count = select::<i64>(&sandbox, syncs).await? - before;
    assert!(count < 50, "{count} times");
    Ok(())
}

#[tokio::test]
async fn of_many_posts_new_ones_are_copied_changed_ones_updated_and_equal_ones_only_looked_at() -> Result<()> {
    let (cluster, sandbox) = follow(&["log_statement=all"]).await?;
    let mut author = Author::of(&sandbox).await?;
    let mut read = 0;
    // A batch is eight thousand posts, a small one less than five hundred.
    for (what, ids, title, looks, copied, updated, upserted) in [
        ("a first load", (1..=16_000).collect::<Vec<i64>>(), "first", 2, 2, 0, 0),
        ("the same again", (1..=16_000).collect(), "first", 2, 0, 0, 0),
        ("the same with other titles", (1..=16_000).collect(), "title", 1, 0, 2, 0),
        ("old and new ones in batches of their own", (8_001..=24_000).collect(), "title", 2, 1, 0, 0),
        ("old and new ones mixed", (23_000..=26_000).collect(), "title", 1, 1, 0, 0),
        ("changed and new ones mixed", (25_501..=26_500).collect(), "other", 1, 1, 1, 0),
        ("new ones backwards", (40_000..60_000).rev().collect(), "title", 3, 3, 0, 0),
        ("far apart", (-499..0).map(|id| 1_000 * id).chain([i64::MIN, i64::MAX]).collect(), "title", 1, 1, 0, 0),
        ("a few", (1..=499).collect(), "few", 0, 0, 0, 1),
        ("nothing", vec![], "title", 0, 0, 0, 0),
    ] {
        apply(&sandbox, &mut author, document(ids, title)).await?;
        let log = cluster.log()?;
        let new = log.get(read..).context("the log only grows")?;
        read = log.len();
        let count = |statement| new.matches(statement).count();
        // An upsert has an UPDATE of its own.
        let upserts = count("INSERT INTO \"posts\"");
        let updates = count("UPDATE \"posts\" AS old") - upserts;
        let done = (count("SELECT \"id\"::bigint, \"user_id\""), count("COPY \"posts\" ("), updates);
        assert_eq!((done, upserts), ((looks, copied, updated), upserted), "{what}");
    }
    let counts: i64 = select(&sandbox, "SELECT count(*) FROM posts").await?;
    assert_eq!(counts, 26_500 + 20_000 + 501);
    let ledger: String =
        select(&sandbox, "SELECT string_agg(inserted || ' ' || updated, ', ' ORDER BY sequence) FROM objects").await?;
    assert_eq!(ledger, "16000 0, 0 0, 0 16000, 8000 0, 2000 0, 500 500, 20000 0, 501 0, 0 499, 0 0");
    Ok(())
}

#[tokio::test]
async fn documents_are_compared_here_too_however_they_are_written() -> Result<()> {
    let cluster = Cluster::start(&world().await, &["log_statement=all"], &[]).await?;
    let settings = vec![
        ("DATABASE_URL", cluster.url("postgres").leak() as &str),
        ("TABLE", "documents"),
        ("TABLE_COLUMNS", "id text, doc jsonb ."),
    ];
    let sandbox = start(Setup { posts: 0, importer: false, settings, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    let mut read = 0;
    let body = |record: fn(u32) -> String| format!("[{}]", (0..1_000).map(record).collect::<Vec<_>>().join(","));
    for (what, body, done) in [
        ("a first load", body(|id| format!(r#"{{"id":"{id}","x":{{"é":[1.50],"b":"\u00e9\"/"}}}}"#)), (1, 1, 0)),
        (
            "written in another way",
            body(|id| format!(r#"{{"x": {{"b":"é\u0022\/","\u00e9":[ 1.50 ]}}, "id": "{id}"}}"#)),
            (1, 0, 0),
        ),
        ("changed", body(|id| format!(r#"{{"id":"{id}"}}"#)), (1, 0, 1)),
    ] {
        apply(&sandbox, &mut author, body).await?;
        let log = cluster.log()?;
        let new = log.get(read..).context("the log only grows")?;
        read = log.len();
        let count = |statement| new.matches(statement).count();
        let (looks, copied, updated) = (
            count("SELECT \"id\"::text, \"doc\""),
            count("COPY \"documents\" ("),
            count("UPDATE \"documents\" AS old"),
        );
        assert_eq!(((looks, copied, updated), count("INSERT INTO \"documents\"")), (done, 0), "{what}");
    }
    Ok(())
}
