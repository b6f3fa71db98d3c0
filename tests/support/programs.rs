//! The programs themselves, for tests that start them as a person does, and what they say of their settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
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

/// Runs a program of the workspace with these settings and none of this process'.
pub fn run<'a>(
    program: &str,
    arguments: impl IntoIterator<Item = &'a str>,
    settings: &BTreeMap<String, String>,
) -> Result<Output> {
    let output = Command::new(path_of(program)?).args(arguments).env_clear().envs(settings).output();
    output.with_context(|| format!("cannot start {program}"))
}

/// The help of the command that the arguments begin with.
pub fn help_of(program: &str, arguments: &[String]) -> Result<String> {
    let command = arguments.first().map(String::as_str).filter(|word| !word.starts_with('-'));
    let output = run(program, command.into_iter().chain(["--help"]), &BTreeMap::new())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "`{program} {}` is no command", command.unwrap_or_default());
    Ok(said)
}

/// The environment variables in a help: `[env: NAME=]`, or `[env: NAME]` where the value is a secret.
pub fn variables(help: &str) -> BTreeSet<String> {
    let marks = help.split("[env: ").skip(1);
    marks.filter_map(|rest| rest.split(['=', ']']).next()).map(str::to_owned).collect()
}

/// Whether the program takes the settings as they are: none is missing, and none has a wrong value. Nothing is started.
pub fn takes(program: &str, arguments: &[String], settings: &BTreeMap<String, String>) -> Result<()> {
    // With one setting that is wrong the program lists all that are.
    for wrong in ["--log-format=poison", "--admin-addr=poison"] {
        let output = run(program, arguments.iter().map(String::as_str).chain([wrong]), settings)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2) && told.contains(": 1 setting is wrong, nothing was started"),
            "only {wrong} should be wrong:\n{told}"
        );
    }
    Ok(())
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
