//! The programs themselves, for tests that start them as a person does.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, anyhow, ensure};
use sandbox::Place;

/// The path of a program of the workspace, built with this test's profile. A world builds the daemons too; cargo lets one wait.
pub fn path_of(program: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    folder.as_ref().map(|folder| folder.join(program)).map_err(|error| anyhow!("{error}"))
}

/// The same packages as elsewhere, because with fewer cargo would build what they share anew.
fn build() -> Result<PathBuf> {
    let Place { target, profile } = Place::find()?;
    let profile = profile.context("tests run in a checkout")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The folder of the development profile is called otherwise than the profile.
    cargo.args(["build", "--quiet", "--workspace", "--profile", if profile == "debug" { "dev" } else { &profile }]);
    cargo.args(["--bin", "importer", "--bin", "transformer", "--bin", "sandbox"]);
    cargo.arg("--manifest-path").arg(root.join("Cargo.toml")).arg("--target-dir").arg(&target);
    ensure!(cargo.status()?.success(), "cargo cannot build the programs");
    Ok(target.join(profile))
}
