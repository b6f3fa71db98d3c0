//! Where the two daemons come from: cargo builds them, or they lie beside this program.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{command, guard::Guard, progress::Progress};

/// The daemons, as files to start.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `importer`.
    pub importer: PathBuf,
    /// `transformer`.
    pub transformer: PathBuf,
}

/// Where this program lies, which says where everything else goes.
#[derive(Clone, Debug)]
pub struct Place {
    /// The target folder of the checkout, or the folder of an installed program.
    pub target: PathBuf,
    /// The folder of the profile in it, such as `debug`; `None` for an installed program.
    pub profile: Option<String>,
}

impl Place {
    /// Found from `target/PROFILE/sandbox` or, in a test, `target/PROFILE/deps/e2e-0123456789abcdef`.
    pub fn find() -> Result<Self> {
        let program = env::current_exe().context("this program does not know its own path")?;
        let mut folder = program.parent().context("a program lies in a folder")?;
        if folder.ends_with("deps") || folder.ends_with("examples") {
            folder = folder.parent().unwrap_or(folder);
        }
        let target = folder.parent().unwrap_or(folder);
        // cargo locks the profile's folder while it writes there. It also marks the target folder so that backups leave it out, but only
        // one that it makes itself, and `.ci/lint` may have been there first.
        let is_in_checkout = folder.join(".cargo-lock").is_file() && manifest().is_file();
        Ok(if is_in_checkout {
            let profile = folder.file_name().map(|name| name.to_string_lossy().into_owned());
            Self { target: target.to_owned(), profile }
        } else {
            Self { target: folder.to_owned(), profile: None }
        })
    }

    /// Where the addresses of a running sandbox are written by default.
    pub fn env_file(&self) -> PathBuf {
        // An installed program lies where the folder `sandbox` would be.
        self.target.join(if self.profile.is_some() { "sandbox/env" } else { "sandbox.env" })
    }
}

fn manifest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml")
}

/// Builds the daemons with the profile of this program. An installed sandbox, outside the checkout that it was built from, takes
/// the ones beside it.
pub(crate) async fn build(place: &Place, guard: &Guard, progress: &Progress) -> Result<Programs> {
    let Some(profile) = place.profile.as_deref() else { return beside(&place.target) };
    let step = progress.step("building importer and transformer");
    let mut cargo = guard.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace as the selection, so that dependencies get the same features as in `cargo test --workspace` and need not be
    // compiled again.
    cargo.args(["build", "--workspace", "--bin", "importer", "--bin", "transformer"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    cargo.arg("--manifest-path").arg(manifest()).arg("--target-dir").arg(&place.target);
    // The folder of the development profile is called otherwise than the profile.
    cargo.args(["--profile", if profile == "debug" { "dev" } else { profile }]);
    let messages = command::finish(cargo, |line| {
        // The other lines are cargo's messages for programs.
        if !line.starts_with('{') {
            step.say(line);
        }
    })
    .await?;
    let program =
        |name| executable(&messages, name).with_context(|| format!("cargo did not say where it put `{name}`"));
    Ok(Programs { importer: program("importer")?, transformer: program("transformer")? })
}

fn beside(folder: &Path) -> Result<Programs> {
    let programs = Programs { importer: folder.join("importer"), transformer: folder.join("transformer") };
    for program in [&programs.importer, &programs.transformer] {
        if !program.is_file() {
            bail!(
                "{} is not there: run the sandbox inside its checkout, or put both daemons beside it",
                program.display()
            );
        }
    }
    Ok(programs)
}

/// The last message about the program names its file, also when it was up to date.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let named = artifacts.filter(|artifact| artifact["target"]["name"] == name);
    named.filter_map(|artifact| artifact["executable"].as_str().map(PathBuf::from)).next_back()
}
