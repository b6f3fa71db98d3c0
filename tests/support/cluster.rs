//! A Postgres cluster of a test's own, for what would disturb the others: settings of the server, a full disk, an idle WAL.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sandbox::World;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};

/// A running cluster that trusts whoever comes from loopback, with one database, `postgres`. It ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    process: Child,
    folder: PathBuf,
    port: u16,
    owner: Option<(u32, u32)>,
}

impl Cluster {
    /// A cluster whose messages are German, an error where this machine cannot have one.
    pub async fn start_in_german(world: &Arc<World>) -> Result<Self> {
        let locales = world.folder().join("locales");
        fs::create_dir_all(&locales)?;
        let mut localedef = Command::new("localedef");
        localedef.args(["-i", "de_DE", "-f", "UTF-8"]).arg(locales.join("de_DE.UTF-8"));
        finish(localedef).await.context("localedef makes no de_DE.UTF-8")?;
        let cluster = Self::start_with(world, &["lc_messages=de_DE.UTF-8"], &[], Some(&locales)).await?;
        let told = cluster.execute("SELECT 1 / 0").await.map_err(|error| error.to_string());
        ensure!(
            told.as_ref().is_err_and(|told| told.contains("Division durch Null")),
            "Postgres speaks no German: {told:?}"
        );
        Ok(cluster)
    }

    /// A cluster with these settings, as in `fsync=off`. `files` are copied beside its data, readable for it alone: name, content.
    pub async fn start(world: &Arc<World>, settings: &[&str], files: &[(&str, &[u8])]) -> Result<Self> {
        Self::start_with(world, settings, files, None).await
    }

    async fn start_with(
        world: &Arc<World>,
        settings: &[&str],
        files: &[(&str, &[u8])],
        locales: Option<&Path>,
    ) -> Result<Self> {
        let shared = fs::metadata(world.folder().join("postgres"))?;
        let is_root = fs::metadata("/proc/self")?.uid() == 0;
        let owner = is_root.then(|| (shared.uid(), shared.gid()));
        let folder = world.folder().join(format!("cluster-{}", uuid::Uuid::new_v4().simple()));
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        fs::create_dir_all(&folder)?;
        give(&folder, owner)?;
        for (name, content) in files {
            let file = folder.join(name);
            fs::write(&file, content)?;
            fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            give(&file, owner)?;
        }
        let programs = world.postgres().programs();
        let program = |name: &str| {
            let mut command = world.program(&programs.join(name), &sandbox::Settings::new());
            command.env("LC_ALL", "C").current_dir(&folder);
            command.envs(locales.map(|locales| ("LOCPATH", locales)));
            if let Some((user, group)) = owner {
                command.uid(user).gid(group);
            }
            command
        };
        let mut initdb = program("initdb");
        initdb.arg("--pgdata").arg(folder.join("data"));
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]);
        finish(initdb).await?;
        let log = File::create(folder.join("postgres.log"))?;
        let mut server = program("postgres");
        server.arg("-D").arg(folder.join("data"));
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", &format!("port={port}")] {
            server.args(["-c", setting]);
        }
        server.args(settings.iter().flat_map(|setting| ["-c", setting]));
        let process = server.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start postgres")?;
        let mut cluster = Self { process, folder, port, owner };
        cluster.answers().await?;
        Ok(cluster)
    }

    async fn answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + crate::SOON;
        while let Err(error) = PgConnection::connect(&self.url("postgres")).await {
            let has_ended = self.process.try_wait()?.is_some();
            if has_ended || Instant::now() > deadline {
                bail!("postgres does not answer: {error}\n{}", self.log()?);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Its database, for this user.
    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/postgres", self.port)
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it and its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// User and group that it runs as, where they are not ours.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// What it logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("postgres.log"))?)
    }

    /// Runs statements as its superuser.
    pub async fn execute(&self, statements: &str) -> Result<()> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The other processes of the cluster see that their parent is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes a file the cluster's.
fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    Ok(chown(path, Some(user), Some(group))?)
}

async fn finish(command: Command) -> Result<()> {
    let output = tokio::process::Command::from(command).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
