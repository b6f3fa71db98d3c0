//! The sandbox itself: it says ready when it is, and leaves nothing running, however it ends.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use sandbox::Setup;
use support::{SOON, execute, programs::path_of, start, world};

/// The sandbox as a person starts it, with an env file of its own.
async fn sandbox(env_file: &Path, arguments: &[&str]) -> Result<Command> {
    // The shared world has installed what it needs.
    world().await;
    let mut command = Command::new(path_of("sandbox")?);
    command.arg("--env-file").arg(env_file).args(arguments).stdout(Stdio::piped());
    Ok(command)
}

#[tokio::test]
async fn once_ends_with_the_rows_in_the_table() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = sandbox(&folder.path().join("env"), &["--once", "--posts", "30"]).await?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("30 rows, equal to the API's posts field by field"), "{text}");
    Ok(())
}

/// As `docker compose run --rm e2e` does.
#[tokio::test]
async fn compare_says_whether_a_table_elsewhere_equals_an_api_elsewhere() -> Result<()> {
    let sandbox = start(Setup { posts: 30, ..Setup::default() }).await?;
    let compare = async || {
        let mut command = tokio::process::Command::new(path_of("sandbox")?);
        command.args(["compare", "--source-url", &sandbox.api.url(), "--database-url", sandbox.database_url()]);
        let output = command.kill_on_drop(true).output().await?;
        let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        anyhow::Ok((output.status.code(), told))
    };
    sandbox.settled(SOON).await?;
    assert_eq!(compare().await?, (Some(0), "30 rows, equal to the API's posts field by field\n".to_owned()));

    execute(&sandbox, "UPDATE posts SET title = 'another' WHERE id = 7; DELETE FROM posts WHERE id = 8").await?;
    let (code, told) = compare().await?;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("\npost 7: the API has ") && told.contains("\npost 8 is not in the table\n"), "{told}");
    Ok(())
}

#[tokio::test]
async fn a_killed_sandbox_leaves_nothing_running() -> Result<()> {
    for signal in ["-KILL", "-TERM"] {
        let folder = tempfile::tempdir()?;
        let env_file = folder.path().join("env");
        let mut sandbox = sandbox(&env_file, &[]).await?.spawn()?;
        wait_for_ready(&mut sandbox)?;
        let env = read_env(&env_file)?;
        let children = processes_with(&env["ARCHIVE_BUCKET"], &env["DATABASE_URL"])?;
        assert!(children.len() >= 2, "the daemons run: {children:?}");
        assert!(answers(&env["SANDBOX_URL"]).await && answers(&env["AWS_ENDPOINT_URL"]).await);

        Command::new("kill").args([signal, &sandbox.id().to_string()]).status()?;
        sandbox.wait()?;
        let deadline = Instant::now() + SOON;
        loop {
            let is_gone = processes_with(&env["ARCHIVE_BUCKET"], &env["DATABASE_URL"])?.is_empty()
                && !answers(&env["AWS_ENDPOINT_URL"]).await
                && !answers(&env["SOURCE_URL"]).await
                && std::net::TcpStream::connect(database_address(&env)?).is_err();
            if is_gone {
                break;
            }
            assert!(Instant::now() < deadline, "something still runs after {signal}");
            thread::yield_now();
        }
    }
    Ok(())
}

/// Reads what it prints until it says that it is ready; the pipe is read to its end by a thread, so that nothing blocks it.
fn wait_for_ready(sandbox: &mut Child) -> Result<()> {
    let mut lines = BufReader::new(sandbox.stdout.take().context("stdout is a pipe")?).lines();
    let mut printed = Vec::new();
    for line in lines.by_ref() {
        printed.push(line?);
        if printed.last().is_some_and(|line| line.contains("ready")) {
            thread::spawn(move || lines.for_each(drop));
            return Ok(());
        }
    }
    anyhow::bail!("it ended before it was ready:\n{}", printed.join("\n"))
}

fn read_env(file: &Path) -> Result<HashMap<String, String>> {
    let text = fs::read_to_string(file)?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect())
}

/// Processes of this world: those that have both in their environment.
fn processes_with(bucket: &str, database_url: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // A process that has just ended has no environment.
        let Ok(environment) = fs::read(path.join("environ")) else { continue };
        let environment = String::from_utf8_lossy(&environment);
        if environment.contains(bucket) && environment.contains(database_url) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

async fn answers(url: &str) -> bool {
    reqwest::get(url).await.is_ok()
}

fn database_address(env: &HashMap<String, String>) -> Result<String> {
    let url: url::Url = env["DATABASE_URL"].parse()?;
    Ok(format!("{}:{}", url.host_str().context("a host")?, url.port().context("a port")?))
}
