//! The units, run by a real systemd: it is told when the daemons are up, how they are and that they live; it starts again what is stuck
//! or killed, and a stop drains.
//!
//! It boots where the tests run as root, with systemd installed and namespaces allowed; elsewhere the test says that it was skipped.
//! What a daemon tells is shown everywhere, with this test in systemd's place.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use sandbox::{Row, Sandbox, Settings, Setup};
use support::{
    SOON,
    programs::path_of,
    retitle, start,
    systemd::{DAEMONS, Systemd, write_units},
};
use tempfile::TempDir;
use tokio::{net::UnixDatagram, process::Command, time::timeout};

/// For the test only: a watchdog that need not be waited for, and logs without a journal. The daemons feed it every second.
const DROP_IN: &str = "[Service]\nWatchdogSec=5s\nStandardError=append:/run/test/%p.log\n";

/// What the units set by themselves, or what is a credential.
const NOT_IN_THE_FILE: [&str; 3] = ["STREAM", "SPOOL_DIR", "DATABASE_URL"];

#[tokio::test]
async fn the_units_run_are_watched_and_drain() -> Result<()> {
    if let Some(missing) = Systemd::missing()? {
        support::skipped(missing);
        return Ok(());
    }
    let sandbox = start(Setup { importer: false, transformer: false, ..Setup::default() }).await?;
    let folder = tempfile::tempdir()?;
    write_etc(&folder.path().join("etc"), &sandbox)?;
    let systemd = Systemd::boot(folder.path(), &path_of("")?).await?;
    let units = Units { sandbox: &sandbox, systemd: &systemd, folder: &folder };

    units.wait("both are up", |unit| Ok(units.is(unit, "ActiveState", "active"))).await?;
    let environment = systemd.show(UNITS[0], "Environment")?;
    ensure!(environment.contains("SOURCE_HEADER_FILE=/var/cache/posts-pipeline/importer-posts/token"), "{environment}");
    units.all_is_loaded().await?;
    let end = sandbox.end().await?;
    let lines = [format!("the archive ends with {end}, ready"), format!("position {end}")];
    for (unit, line) in UNITS.iter().zip(&lines) {
        let tells = |_: &str| Ok(systemd.systemctl(&["status", unit])?.contains(&format!("Status: \"{line}")));
        units.wait(&format!("{unit} tells {line}"), tells).await?;
    }

    // A process that is stopped is as stuck as can be, and does not even notice.
    for (signal, restarts) in [("STOP", "1"), ("KILL", "2")] {
        for unit in UNITS {
            let process = systemd.show(unit, "MainPID")?;
            systemd.run(&["sh", "-c", &format!("kill -{signal} {process}")])?;
        }
        let is_back = |unit: &str| Ok(units.is(unit, "NRestarts", restarts) && units.is(unit, "SubState", "running"));
        units.wait(&format!("both are back after SIG{signal}"), is_back).await?;
        retitle(&sandbox, 7, &format!("after SIG{signal}"));
        units.all_is_loaded().await?;
    }
    let log = systemd.log()?;
    for unit in UNITS {
        ensure!(log.contains(&format!("{unit}: Watchdog timeout")), "nobody missed {unit}:\n{log}");
    }

    systemd.systemctl(&["stop", UNITS[0], UNITS[1]])?;
    for (unit, daemon) in UNITS.iter().zip(DAEMONS) {
        for (property, value) in [("ActiveState", "inactive"), ("Result", "success"), ("ExecMainStatus", "0")] {
            assert_eq!(systemd.show(unit, property)?, value, "{unit}: {property}");
        }
        let log = units.log(daemon)?;
        ensure!(log.contains("\"draining\"") && log.contains(&format!("\"{daemon} ends\"")), "{unit}: {log}");
    }
    Ok(())
}

const UNITS: [&str; 2] = ["importer@posts.service", "transformer@posts.service"];

/// `/etc` as an administrator writes it.
fn write_etc(etc: &Path, sandbox: &Sandbox) -> Result<()> {
    write_units(etc, DROP_IN, &format!("Wants={} {} posts-token.timer\n", UNITS[0], UNITS[1]))?;
    let settings = etc.join("posts-pipeline");
    fs::create_dir(&settings)?;
    let told = sandbox.settings().iter().filter(|(name, _)| !NOT_IN_THE_FILE.contains(name));
    let mut file = Settings::new();
    file.set(&told.collect::<Vec<_>>());
    for daemon in DAEMONS {
        fs::write(settings.join(format!("{daemon}-posts.env")), file.to_shell())?;
    }
    write_token_units(etc)?;
    let credential = settings.join("transformer-posts.database-url");
    fs::write(&credential, sandbox.database_url())?;
    fs::set_permissions(credential, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// The units and the script by which README renews an API's token, with a server of tokens that answers the second time.
fn write_token_units(etc: &Path) -> Result<()> {
    let readme = include_str!("../../deploy/README.md");
    let block = |after: &str| {
        let (_, block) = readme.split_once(after).with_context(|| format!("README has no {after}"))?;
        let lines = block.lines().skip(2).take_while(|line| line.starts_with("    "));
        anyhow::Ok(lines.flat_map(|line| [&line[4..], "\n"]).collect::<String>())
    };
    let units = etc.join("systemd/system");
    fs::create_dir(units.join("importer@posts.service.d"))?;
    fs::write(units.join("importer@posts.service.d/token.conf"), block("edit importer@posts` writes it:")?)?;
    fs::write(units.join("posts-token.timer"), block("posts-token.timer`:")?)?;
    let service = block("posts-token.service`:")?.replace("RestartSec=30s", "RestartSec=100ms");
    fs::write(units.join("posts-token.service"), service)?;
    let curl = "curl() { cat >/dev/null; if mkdir ../asked; then return 22; fi; echo '{\"access_token\":\"new\"}'; }
command -v jq >/dev/null || jq() { sed 's/.*:\"\\(.*\\)\".*/\\1/'; }\n";
    let settings = etc.join("posts-pipeline");
    fs::write(settings.join("importer-posts.renew"), format!("{curl}{}", block("with `curl` and `jq`:")?))?;
    fs::write(settings.join("importer-posts.client-secret"), "secret\n")?;
    Ok(())
}

/// Both daemons under systemd.
struct Units<'a> {
    sandbox: &'a Sandbox,
    systemd: &'a Systemd,
    folder: &'a TempDir,
}

impl Units<'_> {
    fn is(&self, unit: &str, property: &str, value: &str) -> bool {
        self.systemd.show(unit, property).is_ok_and(|found| found == value)
    }

    /// Waits until something is so of both.
    async fn wait(&self, what: &str, is_so: impl Fn(&str) -> Result<bool>) -> Result<()> {
        let wait = self.sandbox.wait_until(what, SOON, async || Ok(is_so(UNITS[0])? && is_so(UNITS[1])?));
        self.with_logs(wait.await)
    }

    /// Waits until the table has the API's hundred posts, as they are now.
    async fn all_is_loaded(&self) -> Result<()> {
        let posts: Vec<_> = self.sandbox.api.posts().iter().filter_map(Row::of).collect();
        assert_eq!(posts.len(), 100);
        let loaded = async || Ok(self.sandbox.rows().await? == posts);
        self.with_logs(self.sandbox.wait_until("the table equals the API", SOON, loaded).await)
    }

    fn with_logs(&self, result: Result<()>) -> Result<()> {
        result.with_context(|| {
            let logs = [self.systemd.log(), self.log("importer"), self.log("transformer")];
            logs.map(|log| log.unwrap_or_else(|error| error.to_string())).join("\n---\n")
        })
    }

    fn log(&self, daemon: &str) -> Result<String> {
        Ok(fs::read_to_string(self.folder.path().join(format!("{daemon}.log")))?)
    }
}

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:1";

#[tokio::test]
async fn a_daemon_says_that_it_is_up_how_it_is_that_it_lives_and_that_it_ends() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for daemon in DAEMONS {
        let socket = folder.path().join(daemon);
        let systemd = UnixDatagram::bind(&socket)?;
        let mut command = Command::new(path_of(daemon)?);
        command.env_clear().env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "30000");
        command
            .env("SOURCE_URL", NOBODY)
            .env("ARCHIVE_BUCKET", "none")
            .env("QUEUE_URL", format!("{NOBODY}/1/none.fifo"));
        command.env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none").env("AWS_ENDPOINT_URL", NOBODY);
        for name in ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            command.env(name, "none");
        }
        let mut process = command.stderr(Stdio::null()).kill_on_drop(true).spawn()?;

        let mut told = Vec::new();
        // In this order, and whatever is said between.
        for expected in ["READY=1\n", "STATUS=waiting: ", "WATCHDOG=1\n", "STOPPING=1\n"] {
            if expected.starts_with("STOPPING") {
                let process = process.id().context("it runs")?.to_string();
                ensure!(Command::new("kill").arg(process).status().await?.success());
            }
            let heard = async {
                let mut message = [0; 4096];
                loop {
                    let length = systemd.recv(&mut message).await?;
                    told.push(String::from_utf8_lossy(&message[..length]).into_owned());
                    if told.last().is_some_and(|message| message.starts_with(expected)) {
                        return anyhow::Ok(());
                    }
                }
            };
            let heard = timeout(SOON, heard).await.map_err(anyhow::Error::from).flatten();
            heard.with_context(|| format!("{daemon} never says {expected:?}, but {told:?}"))?;
        }
        ensure!(timeout(SOON, process.wait()).await??.success());
    }
    Ok(())
}
