//! Promise 8: `kill -9` at any instruction is safe, and SIGTERM drains.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result};
use sandbox::{Setup, Signal};
use support::{
    SOON, assert_whole,
    faulty_api::{Answer, FaultyApi},
    logged, retitle, start, start_nothing,
};
use tokio::process::Command;

#[tokio::test]
async fn both_daemons_killed_again_and_again_lose_and_repeat_nothing() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    let mut events = sandbox.events().subscribe();
    let (mut kills, mut round) = (0, 0);
    // The moments differ: after a step of theirs, and while they start.
    while kills < 40 {
        round += 1;
        retitle(&sandbox, round % 100 + 1, &format!("round {round}"));
        let daemon = if round % 2 == 0 { &sandbox.importer } else { &sandbox.transformer };
        loop {
            let event = events.recv().await?;
            if event.who == daemon.name() && round % 3 != 0 || event.who == "sandbox" {
                break;
            }
        }
        kills += usize::from(daemon.kill().is_some());
    }
    assert_whole(&sandbox).await?;
    assert!(sandbox.importer.restarts() + sandbox.transformer.restarts() >= 30);
    let doubled: i64 = support::select(&sandbox, "SELECT count(*) - count(DISTINCT observation) FROM objects").await?;
    assert_eq!(doubled, 0);
    Ok(())
}

#[tokio::test]
async fn a_killed_importer_announces_what_it_archived() -> Result<()> {
    // The idle look is an hour away, so that only a message can tell.
    let sandbox = start(Setup { settings: vec![("CATCH_UP_INTERVAL", "1h")], ..Setup::default() }).await?;
    sandbox.settled(SOON).await?;
    let mut events = sandbox.events().subscribe();
    retitle(&sandbox, 1, "archived, and perhaps not announced");
    while events.recv().await?.message != "appended" {}
    sandbox.importer.kill();
    assert_whole(&sandbox).await
}

#[tokio::test]
async fn sighup_drains_as_sigterm_does() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).context("Linux says it")?;
    if ignored.ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f']) {
        support::skipped("SIGHUP is ignored here, as under nohup, and so it is by the daemons");
        return Ok(());
    }
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    let mut events = sandbox.events().subscribe();
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        daemon.signal(Signal::HUP).context("it runs")?;
        let event = logged(&mut events, daemon.name(), "draining").await?;
        assert_eq!(event.text("signal").as_deref(), Some("SIGHUP"));
    }
    Ok(())
}

#[tokio::test]
async fn under_nohup_a_daemon_goes_on() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok("[]")]).await?;
    let sandbox = start_nothing().await?;
    let mut settings = sandbox.settings().clone();
    settings.set(&[("SOURCE_URL", &api.url()), ("POLL_INTERVAL", "50ms")]);
    let mut ignoring = sandbox.world().program("/bin/sh".as_ref(), &settings);
    ignoring.args(["-c", "trap '' HUP; exec \"$0\""]).arg(&sandbox.world().programs().importer);
    let mut importer = Command::from(ignoring).kill_on_drop(true).spawn()?;
    let asked = async |times: usize| Ok(api.seen().len() >= times);
    sandbox.wait_until("the API is asked", SOON, async || asked(1).await).await?;
    let pid = importer.id().context("it runs")?.to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().await?.success());
    let so_far = api.seen().len();
    sandbox.wait_until("the API is asked again", SOON, async || asked(so_far + 2).await).await?;
    assert!(importer.try_wait()?.is_none());
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_a_daemon_at_once_when_nothing_is_in_hand() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        let status = daemon.terminate().await?.expect("it was running");
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", daemon.name());
        let log = tokio::fs::read_to_string(daemon.log()).await?;
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains(&format!("{} ends", daemon.name())), "{last}");
    }
    Ok(())
}
