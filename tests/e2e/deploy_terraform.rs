//! `deploy/terraform` is well formed and valid, keeps what its own tests say of it on a mocked provider, and tells the daemons what
//! they want to be told.
//!
//! Nothing is asked of AWS. Without `terraform` on the machine there is nothing to run it with, and the test says that it is
//! skipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use support::{
    programs::path_of,
    terraform::{Terraform, environment},
};

/// The SDK's own setting, which the help names in prose.
const AWS_SETTING: &str = "AWS_REGION";

#[test]
fn the_configuration_is_valid_and_tells_the_daemons_what_they_want() -> Result<()> {
    let Some(terraform) = Terraform::find() else { return Ok(()) };
    terraform.run(&["fmt", "-check", "-diff", "-recursive"])?;
    terraform.init()?;
    terraform.run(&["validate"])?;

    let told = terraform.run(&["test", "-json", "-verbose"])?;
    let states = states(&told)?;
    let names: Vec<_> = states.iter().map(|(run, _)| run.as_str()).collect();
    ensure!(names == ["everything", "what_can_be_chosen"], "the runs that make something are {names:?}");
    let programs = path_of("")?;
    for (run, outputs) in states {
        for daemon in ["importer", "transformer"] {
            let name = format!("{daemon}_environment");
            let environment = environment(&outputs, &name).with_context(|| format!("{run}: the output {name}"))?;
            the_daemon_takes(&programs.join(daemon), &environment)
                .with_context(|| format!("{run}: the output {name}"))?;
        }
    }
    Ok(())
}

/// Every setting is one that the daemon has, none is missing, and no value is wrong.
fn the_daemon_takes(daemon: &Path, environment: &BTreeMap<String, String>) -> Result<()> {
    let help = run(daemon, &["--help"], &BTreeMap::new())?;
    let help = String::from_utf8_lossy(&help.stdout);
    let known = variables(&help);
    for name in environment.keys() {
        ensure!(known.contains(name.as_str()) || name == AWS_SETTING, "the daemon does not know {name}");
    }
    // With one setting that is wrong the daemon lists all that are, and starts nothing.
    let output = run(daemon, &["--log-format=poison"], environment)?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && told.contains(": 1 setting is wrong, nothing was started"),
        "only --log-format should be wrong:\n{told}"
    );
    Ok(())
}

/// The runs of `terraform test -json -verbose` that made something, each with the outputs that it ended with.
fn states(told: &str) -> Result<Vec<(String, Value)>> {
    let mut states = Vec::new();
    for line in told.lines().filter(|line| line.starts_with('{')) {
        let event: Value = serde_json::from_str(line).with_context(|| format!("terraform says {line}"))?;
        if event["type"] == "test_state" {
            let run = event["@testrun"].as_str().context("a run has a name")?.to_owned();
            states.push((run, event["test_state"]["outputs"].clone()));
        }
    }
    Ok(states)
}

// ---- The daemons ----

/// Runs a program with these settings and none of this process'.
fn run(program: &Path, arguments: &[&str], settings: &BTreeMap<String, String>) -> Result<Output> {
    let output = Command::new(program).args(arguments).env_clear().envs(settings).output();
    output.with_context(|| format!("cannot start {}", program.display()))
}

/// The environment variables in a help: `[env: NAME=]`, or `[env: NAME]` where the value is a secret.
fn variables(help: &str) -> BTreeSet<&str> {
    let marks = help.split("[env: ").skip(1);
    marks.filter_map(|rest| rest.split(['=', ']']).next()).collect()
}
