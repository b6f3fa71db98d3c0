//! The wall clock of a host steps by a day while the daemons run: order, pace and freshness do not hang on it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use support::{
    SOON,
    faulty_api::{Answer, FaultyApi},
    metadata, start_nothing, transformer,
};

/// Debian's package `faketime`, for programs with several threads.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.filter_map(|folder| Some(folder.ok()?.path()));
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

/// By rename: whoever reads it reads a whole one.
fn set(clock: &Path, offset: &str) -> Result<()> {
    let new = clock.with_extension("new");
    fs::write(&new, offset)?;
    Ok(fs::rename(new, clock)?)
}

#[tokio::test]
async fn a_clock_that_steps_by_a_day_changes_neither_order_nor_pace() -> Result<()> {
    let Some(library) = library() else {
        support::skipped("there is no libfaketime on this machine (package faketime)");
        return Ok(());
    };
    let (library, sandbox) = (library.to_str().context("its path is text")?, start_nothing().await?);
    let clock = sandbox.logs().join("clock");
    let clock_path = clock.to_str().context("its path is text")?;
    set(&clock, "+0")?;
    let api = FaultyApi::saying([Answer::ok("[]")]).await?;
    let settings = [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", clock_path),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("SOURCE_URL", &api.url()),
    ];
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        daemon.restart_with(&settings).await?;
    }
    sandbox.wait_until("the first object", SOON, async || Ok(sandbox.position().await? == 1)).await?;
    let steps = [("+0", 0), ("+1d", 1), ("-1d", -1), ("+0", 0)];
    for (sequence, (offset, days)) in (2..).zip(steps) {
        set(&clock, offset)?;
        let (begun, polls) = (Instant::now(), api.seen().len());
        // A poll that began before the step may still be on its way.
        sandbox.wait_until("two polls", SOON, async || Ok(api.seen().len() >= polls + 2)).await?;
        api.say([Answer::ok(format!(r#"[{{"id":{sequence},"userId":1,"title":"{offset}","body":""}}]"#))]);
        let is_applied = async || Ok(sandbox.position().await? == sequence);
        sandbox.wait_until(format!("object {sequence} is applied"), SOON, is_applied).await?;
        sandbox.wait_until("five polls", SOON, async || Ok(api.seen().len() >= polls + 5)).await?;
        // An interval is 200 ms, give or take a tenth; the first poll and the last may each be late by themselves.
        let most = begun.elapsed().as_millis() / 180 + 2;
        let polls = api.seen().len() - polls;
        assert!(polls as u128 <= most, "{polls} polls at {offset} in {:?}", begun.elapsed());
        let fetched_at = metadata(&sandbox, sequence).await?.fetched_at;
        let off = fetched_at.duration_since(Timestamp::now()) - SignedDuration::from_hours(24 * days);
        assert!(
            off.abs() < SignedDuration::from_mins(10),
            "the object was fetched at {fetched_at}, by the stepped clock"
        );
    }
    let titles: Vec<(String, bool)> = {
        let mut connection = sandbox.connect().await?;
        let rows = sqlx::query_as("SELECT title, updated_at > now() + interval '12 hours' FROM posts ORDER BY id");
        rows.fetch_all(&mut connection).await?
    };
    assert_eq!(titles, [("+0", false), ("+1d", true), ("-1d", false), ("+0", false)].map(|(t, b)| (t.to_owned(), b)));
    let audit = transformer(&sandbox, &[], &["audit"]).await?;
    assert_eq!(audit.status.code(), Some(0), "{}", String::from_utf8_lossy(&audit.stdout));
    Ok(())
}
