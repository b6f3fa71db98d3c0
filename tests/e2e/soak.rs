//! All promises at once, for a minute: `sandbox soak` as a person starts it.

use std::collections::HashMap;

use anyhow::{Context, Result};
use support::{programs::path_of, world};

#[tokio::test]
async fn a_minute_of_storms_loses_and_doubles_nothing() -> Result<()> {
    // The shared world has installed what it needs.
    world().await;
    let mut command = tokio::process::Command::new(path_of("sandbox")?);
    command.args(["soak", "--minutes", "1", "--seed", "1"]).kill_on_drop(true);
    let output = command.output().await?;
    let told = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy);
    assert!(output.status.success(), "{}\n{}", told[0], told[1]);

    let last = told[0].lines().last().context("it says something")?;
    let figures: HashMap<&str, &str> = last.split(' ').filter_map(|figure| figure.split_once('=')).collect();
    let figure = |name| {
        figures.get(name).and_then(|value| value.parse::<u64>().ok()).with_context(|| format!("{name} in {last}"))
    };
    assert!(figure("kills")? >= 20, "{last}");
    // How many of them depends on how busy the machine is.
    assert!(figure("kills_at_upload")? > 0 && figure("kills_in_transaction")? > 0, "{last}");
    assert_eq!((figure("lost")?, figure("doubled")?), (0, 0));
    Ok(())
}
