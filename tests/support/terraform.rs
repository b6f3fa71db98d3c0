//! Terraform in a copy of the configuration, and where it finds its provider.
//!
//! The provider is taken from a folder of the machine where there is one, and is downloaded by terraform otherwise.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// Names the folder that `terraform init -plugin-dir` wants, for a machine that keeps it elsewhere.
const PLUGIN_FOLDER: &str = "TERRAFORM_PLUGIN_DIR";

/// What the provider's file is called, before its version; packed, it has none of the `v`.
const PROVIDER: &str = "terraform-provider-aws_v";

/// What daemons are told otherwise than by their settings file: the unit gives it, or it is a credential of the unit.
pub const NOT_IN_THE_FILE: [&str; 2] = ["STREAM", "DATABASE_URL"];

/// `HOST/OWNER/NAME/VERSION/PLATFORM/FILE`: that many steps above the provider's file is the folder.
const STEPS_TO_PROVIDER: usize = 6;

/// Terraform in a copy of `deploy/terraform`, since it writes beside what it reads.
#[derive(Debug)]
pub struct Terraform {
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Terraform {
    /// Where there is none on the machine this says that the test is skipped.
    pub fn find() -> Option<Self> {
        let is_there = Command::new("terraform").arg("version").output().is_ok_and(|output| output.status.success());
        if !is_there {
            crate::skipped("there is no terraform on this machine to try deploy/terraform with");
            return None;
        }
        let folder = TempDir::new().expect("a temporary folder");
        copy(&root().join("deploy/terraform"), folder.path()).expect("a copy of deploy/terraform");
        Some(Self { folder, environment: Vec::new() })
    }

    /// Adds a file to the copy.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        fs::write(self.folder.path().join(name), content).with_context(|| format!("cannot write {name}"))
    }

    /// Sets a variable of Terraform's environment.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    /// Gets the provider.
    pub fn init(&self) -> Result<()> {
        let folder = plugin_folder().map(|folder| format!("-plugin-dir={}", folder.display()));
        let mut arguments = vec!["init", "-backend=false", "-input=false"];
        arguments.extend(folder.as_deref());
        self.run(&arguments).map(|_| ())
    }

    /// Runs the configuration's own tests, and answers with the runs that made something, each with the state that it ended with.
    pub fn test(&self, arguments: &[&str]) -> Result<Vec<(String, Value)>> {
        let told = self.run(&[&["test", "-json", "-verbose"], arguments].concat())?;
        let mut states = Vec::new();
        for line in told.lines().filter(|line| line.starts_with('{')) {
            let mut event: Value = serde_json::from_str(line).with_context(|| format!("terraform says {line}"))?;
            if event["type"] == "test_state" {
                let run = event["@testrun"].as_str().context("a run has a name")?.to_owned();
                states.push((run, event["test_state"].take()));
            }
        }
        Ok(states)
    }

    /// What it says on its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("terraform");
        command.args(arguments).current_dir(self.folder.path());
        // For a machine: no colours, no hints, and no settings and keys of whoever works with Terraform here.
        command.env("TF_IN_AUTOMATION", "1").env("TF_CLI_ARGS", "-no-color");
        let is_somebodys =
            |name: &str| name.starts_with("TF_VAR_") || name.starts_with("AWS_") || name == "TF_WORKSPACE";
        for (name, _) in env::vars().filter(|(name, _)| is_somebodys(name)) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.output().context("cannot start terraform")?;
        let [told, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        ensure!(output.status.success(), "terraform {arguments:?}:\n{told}{errors}");
        Ok(told)
    }
}

/// The settings of a daemon, by stream, in what `terraform test` and `terraform output` say of all outputs.
pub fn environments(outputs: &Value, daemon: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let output = &outputs[format!("{daemon}_environment")]["value"];
    serde_json::from_value(output.clone()).with_context(|| format!("what the {daemon}s are told is {output}"))
}

/// What the host of a daemon finds in the bucket, in a state: the streams, each with its files.
pub fn settings(state: &Value, daemon: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    Ok(serde_json::from_str(text_of(state, &format!("aws_s3_object.settings[\"{daemon}\"]"), "content")?)?)
}

/// What the host of a daemon runs at its first boot, in a state.
pub fn user_data(state: &Value, daemon: &str) -> Result<String> {
    text_of(state, &format!("aws_instance.host[\"{daemon}\"]"), "user_data").map(str::to_owned)
}

fn text_of<'a>(state: &'a Value, address: &str, attribute: &str) -> Result<&'a str> {
    let resources = state["root_module"]["resources"].as_array().context("a state has resources")?;
    let found = resources.iter().find(|resource| resource["address"] == *address);
    let resource = found.with_context(|| format!("there is no {address}"))?;
    resource["values"][attribute].as_str().with_context(|| format!("{address} has no {attribute}"))
}

/// Files that belong to the configuration, and not what another Terraform left beside them.
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
