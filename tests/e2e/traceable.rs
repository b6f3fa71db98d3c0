//! Promise 9: a row leads to its object, and the observation's id stands everywhere.

use anyhow::Result;
use sandbox::Setup;
use support::{SOON, metadata, retitle, select, start};

#[tokio::test]
async fn one_observation_is_found_in_logs_metadata_and_ledger() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    retitle(&sandbox, 7, "another title");
    sandbox.settled(SOON).await?;

    let metadata = metadata(&sandbox, 2).await?;
    let found: String = select(
        &sandbox,
        "SELECT concat_ws(' ', key, encode(sha256, 'hex'), observation) FROM posts JOIN objects USING (sequence) WHERE id = 7",
    )
    .await?;
    let key = "raw/posts/000/000/000/002.json";
    assert_eq!(found, format!("{key} {} {}", metadata.sha256, metadata.observation));
    for (daemon, messages) in
        [(&sandbox.importer, ["appended", "announced"]), (&sandbox.transformer, ["heard", "applied"])]
    {
        let log = tokio::fs::read_to_string(daemon.log()).await?;
        for message in messages {
            let is_it = |line: &&str| line.contains(message) && line.contains(&metadata.observation.to_string());
            assert!(log.lines().any(|line| is_it(&line)), "{} says `{message}` of it", daemon.name());
        }
    }
    Ok(())
}

#[tokio::test]
async fn no_log_line_holds_a_secret() -> Result<()> {
    let sandbox = start(Setup { settings: vec![("RUST_LOG", "trace")], ..Setup::default() }).await?;
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        daemon.restart_with(&[("RUST_LOG", "trace"), ("AWS_SECRET_ACCESS_KEY", "very-secret-key")]).await?;
    }
    sandbox.settled(SOON).await?;
    retitle(&sandbox, 7, "another title");
    sandbox.settled(SOON).await?;
    let password = url::Url::parse(sandbox.database_url())?.password().expect("the database has one").to_owned();
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        let log = tokio::fs::read_to_string(daemon.log()).await?;
        assert!(log.lines().count() > 100, "the log is a full one");
        for secret in [password.as_str(), "very-secret-key"] {
            let line = log.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{} keeps secrets", daemon.name());
        }
    }
    Ok(())
}
