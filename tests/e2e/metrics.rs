//! What the admin endpoint tells of the daemons: numbers that agree with the ledger, in a form that Prometheus takes without complaint.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use sandbox::{Daemon, Setup};
use support::{
    SOON, admin, metrics,
    proxy::{Proxy, Way},
    retitle, select, skipped, start,
};
use tokio::net::TcpStream;

#[tokio::test]
async fn the_numbers_of_both_daemons_agree_with_the_ledger() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    // A title that is no text.
    let fields = [("title".to_owned(), 3.into())].into_iter().collect();
    sandbox.api.change(|posts| posts.patch(3, fields).map(|_| ())).expect("the API has the post");
    sandbox
        .wait_until("the record is quarantined", SOON, async || {
            Ok(select::<i64>(&sandbox, "SELECT count(*) FROM quarantined_records").await? == 1)
        })
        .await?;
    retitle(&sandbox, 3, "mended");
    sandbox.settled(SOON).await?;

    let objects: i64 = select(&sandbox, "SELECT count(*) FROM objects").await?;
    let rows: i64 = select(&sandbox, "SELECT sum(inserted + updated)::bigint FROM objects").await?;
    let quarantined: i64 = select(&sandbox, "SELECT count(*) FROM quarantined_records").await?;
    let bytes: i64 = select(&sandbox, "SELECT sum(bytes)::bigint FROM objects").await?;
    ensure!(objects >= 3 && quarantined >= 1, "three objects, one of them with a wrong record");
    let has_counted = async || Ok(metrics(&sandbox.transformer).await?["transformer_position"] == objects.to_string());
    sandbox.wait_until("the last commit is counted", SOON, has_counted).await?;
    let (imported, applied) = (metrics(&sandbox.importer).await?, metrics(&sandbox.transformer).await?);
    for (numbers, name, expected) in [
        (&imported, "importer_appended_objects_total", objects),
        (&imported, "importer_appended_bytes_total", bytes),
        (&imported, "importer_polls_total{result=\"appended\"}", objects),
        (&imported, "importer_stage_seconds_count{stage=\"append\"}", objects),
        (&imported, "pipeline_archive_end", objects),
        (&imported, "pipeline_state{state=\"ready\"}", 1),
        (&imported, "pipeline_state{state=\"waiting\"}", 0),
        (&imported, "pipeline_retries_total{dependency=\"api\"}", 0),
        (&applied, "pipeline_hold{reason=\"object_missing\"}", 0),
        (&applied, "transformer_objects_total{outcome=\"loaded\"}", objects),
        (&applied, "transformer_objects_total{outcome=\"quarantined\"}", 0),
        (&applied, "transformer_records_total{outcome=\"quarantined\"}", quarantined),
        (&applied, "transformer_stage_seconds_count{stage=\"apply\"}", objects),
        (&applied, "transformer_position", objects),
        (&applied, "transformer_lag_objects", 0),
        (&applied, "transformer_messages_total{kind=\"strange\"}", 0),
    ] {
        assert_eq!(numbers.get(name), Some(&expected.to_string()), "{name}");
    }
    let number = |numbers: &HashMap<String, String>, name: &str| numbers[name].parse::<f64>();
    let changed = number(&applied, "transformer_rows_total{change=\"inserted\"}")?
        + number(&applied, "transformer_rows_total{change=\"updated\"}")?;
    assert_eq!(changed.to_string(), rows.to_string());
    assert!(number(&applied, "transformer_lag_seconds")? < SOON.as_secs_f64());
    assert!(number(&applied, "process_resident_memory_bytes")? > 0.0);
    let fetched = number(&imported, "importer_end_fetched_timestamp_seconds")?;
    assert!(number(&imported, "importer_last_success_timestamp_seconds")? >= fetched);
    Ok(())
}

#[tokio::test]
async fn a_dependency_that_answers_is_told_from_one_that_fails() -> Result<()> {
    // Nobody listens there.
    let settings = vec![("SOURCE_URL", "http://127.0.0.1:1/posts")];
    let sandbox = start(Setup { transformer: false, settings, ..Setup::default() }).await?;
    let tells = async || {
        let (status, report) = admin(&sandbox.importer, "/readyz").await?;
        Ok(status == 503 && report.contains("\napi       failed ") && report.contains("\narchive   worked "))
    };
    sandbox.wait_until("the API fails and the archive works", SOON, tells).await
}

#[tokio::test]
async fn a_daemon_names_the_dependency_that_fails() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    let database = Proxy::start(sandbox.database_url()).await?;
    let url = sandbox.database_url().replace(&authority(sandbox.database_url())?, &database.address().to_string());
    sandbox.transformer.restart_with(&[("DATABASE_URL", &url)]).await?;
    sandbox.settled(SOON).await?;
    let is_well = async || {
        let (status, report) = admin(&sandbox.transformer, "/readyz").await?;
        let known: Vec<_> =
            report.lines().map(|line| line.trim_end_matches(" s ago").trim_end_matches(char::is_numeric)).collect();
        Ok(status == 200 && known == ["ready", "archive   worked ", "queue     worked ", "database  worked "])
    };
    sandbox.wait_until("the transformer is ready", SOON, is_well).await?;

    database.set(Way::Refuse);
    retitle(&sandbox, 7, "another title");
    let fails = sandbox.wait_until("the transformer says what it waits for", SOON, async || {
        let (status, report) = admin(&sandbox.transformer, "/readyz").await?;
        Ok(status == 503 && report.starts_with("waiting: ") && report.contains("\ndatabase  failed "))
    });
    fails.await?;
    assert_eq!(admin(&sandbox.transformer, "/healthz").await?.0, 200, "a dead database is no dead daemon");
    let numbers = metrics(&sandbox.transformer).await?;
    assert_eq!(numbers["pipeline_state{state=\"waiting\"}"], "1");
    assert_ne!(numbers["pipeline_retries_total{dependency=\"database\"}"], "0");

    database.set(Way::Pass);
    sandbox.wait_until("the transformer is ready again", SOON, is_well).await?;
    assert_eq!(metrics(&sandbox.transformer).await?["pipeline_state{state=\"waiting\"}"], "0");
    Ok(())
}

fn authority(url: &str) -> Result<String> {
    let url = url::Url::parse(url)?;
    Ok(format!("{}:{}", url.host_str().context("a host")?, url.port().context("a port")?))
}

#[tokio::test]
async fn connections_that_say_nothing_take_no_files_from_the_work() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    let address = sandbox.importer.admin_url().trim_start_matches("http://").to_owned();
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(&address).await?);
    }
    retitle(&sandbox, 7, "another title");
    sandbox.settled(SOON).await?;
    let files = fs::read_dir(format!("/proc/{}/fd", sandbox.importer.pid().context("it runs")?))?.count();
    assert!(files < 100, "the importer has {files} open files");
    // One after the other is closed, and whoever asks comes through.
    drop(idle);
    sandbox.wait_until("it answers", SOON, async || Ok(admin(&sandbox.importer, "/healthz").await?.0 == 200)).await
}

#[tokio::test]
async fn prometheus_takes_the_numbers_without_a_complaint() -> Result<()> {
    if Command::new("promtool").arg("--version").output().is_err() {
        skipped("promtool is not there: Debian has it in `prometheus`");
        return Ok(());
    }
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        lint(daemon).await?;
    }
    Ok(())
}

async fn lint(daemon: &Daemon) -> Result<()> {
    let (_, text) = admin(daemon, "/metrics").await?;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let said = promtool.wait_with_output()?;
    let complaints = [said.stdout, said.stderr].concat();
    assert_eq!(String::from_utf8(complaints)?, "", "of the {}", daemon.name());
    Ok(())
}
