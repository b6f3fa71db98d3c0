//! `deploy/terraform` is well formed and valid, keeps what its own tests say of it on a mocked provider, and tells the daemons of each
//! stream what they want to be told.
//!
//! Nothing is asked of AWS. Without `terraform` on the machine there is nothing to run it with, and the test says that it is
//! skipped.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use support::{
    programs::{help_of, takes, variables},
    terraform::{NOT_IN_THE_FILE, Terraform, environments, settings, user_data},
};

type Environment = BTreeMap<String, String>;

/// The SDK's own setting, which the help names in prose.
const AWS_SETTING: &str = "AWS_REGION";

#[test]
fn the_configuration_is_valid_and_tells_the_daemons_what_they_want() -> Result<()> {
    let Some(terraform) = Terraform::find() else { return Ok(()) };
    terraform.run(&["fmt", "-check", "-diff", "-recursive"])?;
    terraform.init()?;
    terraform.run(&["validate"])?;

    let states = terraform.test(&[])?;
    let names: Vec<_> = states.iter().map(|(run, _)| run.as_str()).collect();
    ensure!(
        names == ["everything", "what_can_be_chosen", "twenty_streams"],
        "the runs that make something are {names:?}"
    );
    for daemon in ["importer", "transformer"] {
        can_be_run(&user_data(&states[0].1, daemon)?).with_context(|| format!("user data of the {daemon}s' host"))?;
        let known = variables(&help_of(daemon, &[])?);
        for (run, state) in &states {
            let settings = settings(state, daemon)?;
            for (stream, mut environment) in environments(&state["outputs"], daemon)? {
                let whose = || format!("{run}: the {daemon} of {stream}");
                for name in environment.keys() {
                    ensure!(known.contains(name) || name == AWS_SETTING, "{} does not know {name}", whose());
                }
                takes(daemon, &[], &environment).with_context(whose)?;
                environment.retain(|name, _| !NOT_IN_THE_FILE.contains(&name.as_str()));
                assert_eq!(read_by_a_shell(&settings[&stream]["env"])?, environment, "{}", whose());
            }
        }
    }
    Ok(())
}

/// The script is one to bash, the program in it to Python, and the unit in it to systemd, where there is one.
fn can_be_run(user_data: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let document = |name: &str, begin: &str| -> Result<PathBuf> {
        let (_, rest) = user_data.split_once(begin).with_context(|| format!("no {begin:?}"))?;
        let (text, _) = rest.split_once("\nEND\n").context("an end")?;
        let path = folder.path().join(name);
        // As the shell fills it in.
        fs::write(&path, text.replace("$AWS_REGION", "eu-central-1").replace("$ARCHIVE_BUCKET", "archive"))?;
        Ok(path)
    };
    let program = document("streams.py", "posts-pipeline-streams <<'END'\n")?;
    let unit = document("streams.service", "posts-pipeline-streams.service <<END\n")?;
    let script = folder.path().join("user-data");
    fs::write(&script, user_data)?;
    let judge = |program: &str, arguments: &[&str], path: &Path| -> Result<()> {
        let output =
            Command::new(program).args(arguments).arg(path).output().with_context(|| format!("no {program}"))?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    judge("bash", &["-n"], &script)?;
    judge("python3", &["-m", "py_compile"], &program)?;
    if Command::new("systemd-analyze").arg("--version").output().is_ok() {
        // Where the unit says that the program is, it is only on the host.
        let text = fs::read_to_string(&unit)?.replace("/usr/local/sbin/posts-pipeline-streams", "/bin/true");
        fs::write(&unit, text)?;
        judge("systemd-analyze", &["verify"], &unit)?;
    }
    Ok(())
}

/// What a shell makes of a settings file, as for `transformer check`. What systemd makes of it is seen in `deploy_streams`.
fn read_by_a_shell(file: &str) -> Result<Environment> {
    let script = format!("set -a\n{file}exec env --null");
    let output = Command::new("/bin/sh").args(["-c", &script]).env_clear().output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout)?;
    let pairs = told.split_terminator('\0').filter_map(|pair| pair.split_once('='));
    // The shell's own.
    let pairs = pairs.filter(|(name, _)| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}
