//! The programs themselves, for tests that start them as a person does.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, anyhow, ensure};
use sandbox::{Place, Programs};

/// The path of a program of the workspace, built with this test's profile. A world builds the daemons too; cargo lets one wait.
pub fn path_of(program: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| build(&[]).map_err(|error| format!("{error:#}")));
    folder.as_ref().map(|folder| folder.join(program)).map_err(|error| anyhow!("{error}"))
}

/// The daemons with crash points, in a folder of their own: of what they depend on only `shared` is another.
pub fn with_crash_points() -> Result<Programs> {
    static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(|| build_with_crash_points().map_err(|error| format!("{error:#}")));
    programs.clone().map_err(|error| anyhow!("{error}"))
}

fn build_with_crash_points() -> Result<Programs> {
    let built = build(&["--features", "importer/failpoints,transformer/failpoints"])?;
    let folder = built.join("with-crash-points");
    fs::create_dir_all(&folder)?;
    for program in ["importer", "transformer"] {
        let link = folder.join(program);
        let _ = fs::remove_file(&link);
        fs::hard_link(built.join(program), link)?;
    }
    // Puts the usual ones back in their place; whoever took one of the others meanwhile met no crash point that was armed.
    build(&[])?;
    Ok(Programs { importer: folder.join("importer"), transformer: folder.join("transformer") })
}

/// The same packages as elsewhere, because with fewer cargo would build what they share anew.
fn build(features: &[&str]) -> Result<PathBuf> {
    let Place { target, profile } = Place::find()?;
    let profile = profile.context("tests run in a checkout")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The folder of the development profile is called otherwise than the profile.
    cargo.args(["build", "--quiet", "--workspace", "--profile", if profile == "debug" { "dev" } else { &profile }]);
    cargo.args(["--bin", "importer", "--bin", "transformer", "--bin", "sandbox"]);
    cargo.args(features).arg("--manifest-path").arg(root.join("Cargo.toml")).arg("--target-dir").arg(&target);
    ensure!(cargo.status()?.success(), "cargo cannot build the programs");
    Ok(target.join(profile))
}
