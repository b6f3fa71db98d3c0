//! `deploy/terraform` is well formed and valid, keeps what its own tests say of it on a mocked provider, and tells the daemons what
//! they want to be told.
//!
//! Nothing is asked of AWS. Without `terraform` on the machine there is nothing to run it with, and the test says that it was
//! skipped. The provider is taken from a folder of the machine where there is one, and is downloaded by terraform otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use support::programs::path_of;
use tempfile::TempDir;

/// Names the folder that `terraform init -plugin-dir` wants, for a machine that keeps it elsewhere.
const PLUGIN_FOLDER: &str = "TERRAFORM_PLUGIN_DIR";

/// What the provider's file is called, before its version; packed, it has none of the `v`.
const PROVIDER: &str = "terraform-provider-aws_v";

/// `HOST/OWNER/NAME/VERSION/PLATFORM/FILE`: so many steps above the provider's file is the folder.
const STEPS_TO_PROVIDER: usize = 6;

/// The SDK's own setting, which the help names in prose.
const AWS_SETTING: &str = "AWS_REGION";

#[test]
fn the_configuration_is_valid_and_tells_the_daemons_what_they_want() -> Result<()> {
    let Some(terraform) = Terraform::find() else {
        println!("skipped: there is no terraform on this machine");
        return Ok(());
    };
    terraform.run(&["fmt", "-check", "-diff", "-recursive"])?;
    match plugin_folder() {
        Some(folder) => {
            let folder = format!("-plugin-dir={}", folder.display());
            terraform.run(&["init", "-backend=false", "-input=false", &folder])?
        }
        None => terraform.run(&["init", "-backend=false", "-input=false"])?,
    };
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

// ---- Terraform ----

/// Terraform in a copy of the configuration, since it writes beside what it reads.
struct Terraform {
    folder: TempDir,
}

impl Terraform {
    fn find() -> Option<Self> {
        let is_there = Command::new("terraform").arg("version").output().is_ok_and(|output| output.status.success());
        is_there.then(|| {
            let folder = TempDir::new().expect("a temporary folder");
            copy(&root().join("deploy/terraform"), folder.path()).expect("a copy of deploy/terraform");
            Self { folder }
        })
    }

    /// What it says on its standard output.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("terraform");
        command.args(arguments).current_dir(self.folder.path());
        // For a machine: no colours, no hints, and no settings of whoever works with Terraform here.
        command.env("TF_IN_AUTOMATION", "1").env("TF_CLI_ARGS", "-no-color");
        for (name, _) in env::vars().filter(|(name, _)| name.starts_with("TF_VAR_") || name == "TF_WORKSPACE") {
            command.env_remove(name);
        }
        // A mocked provider asks nobody; should one be real by mistake, it finds no keys.
        command.env_remove("AWS_PROFILE").env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        let output = command.output().context("cannot start terraform")?;
        let [told, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        ensure!(output.status.success(), "terraform {arguments:?}:\n{told}{errors}");
        Ok(told)
    }
}

/// Files that belong to the configuration, and not what somebody's Terraform left beside them.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_left_over = name.starts_with('.') || name.contains(".tfstate") || name.contains(".tfvars");
        if is_left_over {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The folder of providers: the one that is named, or the first below the usual ones in which the provider's file lies.
fn plugin_folder() -> Option<PathBuf> {
    if let Some(folder) = env::var_os(PLUGIN_FOLDER) {
        return Some(folder.into());
    }
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".terraform.d"));
    let usual = ["/usr/local/share/terraform", "/usr/share/terraform", "/opt"].map(PathBuf::from);
    let provider = home.into_iter().chain(usual).find_map(|folder| find_provider(&folder, STEPS_TO_PROVIDER + 1))?;
    provider.ancestors().nth(STEPS_TO_PROVIDER).map(Path::to_owned)
}

/// Looks at most `depth` folders down, so that a large folder costs little.
fn find_provider(folder: &Path, depth: usize) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder).ok()?.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.into_iter().find_map(|entry| {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() && depth > 0 {
            find_provider(&entry.path(), depth - 1)
        } else {
            let name = entry.file_name().to_string_lossy().into_owned();
            (kind.is_file() && name.starts_with(PROVIDER)).then(|| entry.path())
        }
    })
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

fn environment(outputs: &Value, name: &str) -> Result<BTreeMap<String, String>> {
    let Some(settings) = outputs[name]["value"].as_object() else { bail!("it is no map: {}", outputs[name]) };
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a setting is a string");
    settings.iter().map(|(name, value)| Ok((name.clone(), text(value)?))).collect()
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
