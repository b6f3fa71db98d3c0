//! A Postgres cluster of the sandbox's own: real server, temporary folder, one database a stream.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, postgres::PgConnectOptions};
use tempfile::TempPath;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    command,
    guard::Guard,
    port::free_port,
    postgres_programs::{Owner, PostgresPrograms},
    progress::Progress,
    tail,
};

/// It takes about a second; a busy test machine gets its time.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// How many ports to try, in case another process takes the one that was free a moment ago.
const PORTS: u32 = 3;

/// A fast shutdown writes a checkpoint; the guard's patience is not shorter.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Room for a few dozen tests side by side, each with two programs and connections of its own.
const MAX_CONNECTIONS: &str = "200";

/// In the cluster's folder.
const LOG: &str = "postgres.log";

/// SQLSTATE of a database that has connections.
const OBJECT_IN_USE: &str = "55006";

/// Each takes up to the five seconds that Postgres waits for sessions to go.
const SWAP_TRIES: u32 = 5;

/// A running cluster. Its processes end with the guard.
#[derive(Debug)]
pub struct Postgres {
    process: Mutex<Child>,
    programs: PostgresPrograms,
    folder: PathBuf,
    password: String,
    port: AtomicU16,
}

/// A database as it was, in a file that goes with the last clone of this.
#[derive(Clone, Debug)]
pub struct Backup {
    file: Arc<TempPath>,
}

impl Postgres {
    /// Makes a cluster in `folder` and starts it.
    pub(crate) async fn start(
        programs: PostgresPrograms,
        folder: &Path,
        guard: &Guard,
        progress: &Progress,
    ) -> Result<Self> {
        let _step = progress.step("starting Postgres");
        fs::create_dir_all(folder)?;
        let password = Uuid::new_v4().simple().to_string();
        init(&programs, folder, &password, guard).await?;
        let mut tries = 1;
        loop {
            match try_start(&programs, folder, &password, guard).await {
                Ok(postgres) => return Ok(postgres),
                Err(error) if tries < PORTS && error.to_string().contains("ddress already in use") => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes an empty database; a name is `[a-z0-9_]+`. Answers with its URL.
    pub(crate) async fn create_database(&self, name: &str) -> Result<String> {
        ensure!(is_name(name), "`{name}` is no database name");
        let mut admin = self.connect("postgres").await?;
        admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        admin.close().await?;
        Ok(self.url(name))
    }

    /// Deletes a database, whoever is connected to it.
    async fn drop_database(&self, name: &str) -> Result<()> {
        let mut admin = self.connect("postgres").await?;
        admin.execute(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))).await?;
        admin.close().await?;
        Ok(())
    }

    /// Writes the database to a file with `pg_dump`, consistent at one instant, while it is in use.
    pub(crate) async fn back_up(&self, name: &str, guard: &Guard) -> Result<Backup> {
        let file = self.folder.with_file_name(format!("{name}-{}.dump", Uuid::new_v4().simple()));
        let file = TempPath::try_from_path(file)?;
        let mut dump = self.client("pg_dump", name, guard);
        dump.arg("--format=custom").arg("--file").arg(&*file);
        command::finish(dump, |_| ()).await?;
        Ok(Backup { file: Arc::new(file) })
    }

    /// Puts the database back to what it was: connections are cut, what happened since is gone.
    pub(crate) async fn restore(&self, name: &str, backup: &Backup, guard: &Guard) -> Result<()> {
        // Restored beside the one in use and then put in its place, as an operator would: nobody ever sees half a database or none.
        let (restored, replaced) = (format!("{name}_restored"), format!("{name}_replaced"));
        self.create_database(&restored).await?;
        let mut restore = self.client("pg_restore", &restored, guard);
        restore.arg("--exit-on-error").arg(&**backup.file);
        command::finish(restore, |_| ()).await?;
        self.swap(name, &restored, &replaced).await?;
        self.drop_database(&replaced).await
    }

    /// `name` becomes `replaced`, and `restored` becomes `name`, at one instant.
    async fn swap(&self, name: &str, restored: &str, replaced: &str) -> Result<()> {
        let mut admin = self.connect("postgres").await?;
        let mut tries = 1;
        loop {
            // A database with sessions cannot be renamed. Daemons come back soon after their session is cut, hence more than one try.
            sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1")
                .bind(name)
                .execute(&mut admin)
                .await?;
            let mut transaction = admin.begin().await?;
            let aside = AssertSqlSafe(format!("ALTER DATABASE {name} RENAME TO {replaced}"));
            match transaction.execute(aside).await {
                Ok(_) => {
                    transaction.execute(AssertSqlSafe(format!("ALTER DATABASE {restored} RENAME TO {name}"))).await?;
                    transaction.commit().await?;
                    return Ok(admin.close().await?);
                }
                Err(sqlx::Error::Database(error))
                    if error.code().as_deref() == Some(OBJECT_IN_USE) && tries < SWAP_TRIES =>
                {
                    transaction.rollback().await?;
                    tries += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends it with a fast shutdown: sessions are cut, data is written.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.end(Signal::INT).await
    }

    /// Ends it: `INT` is a fast shutdown, `QUIT` an immediate one, and `KILL` leaves everything to the next start.
    pub(crate) async fn end(&self, signal: Signal) -> Result<()> {
        self.signal(signal);
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.ended()?.is_none() {
            ensure!(Instant::now() < deadline, "Postgres did not stop in {} s", STOP_DEADLINE.as_secs());
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Starts a server that has ended, at this port, and waits until it answers.
    pub(crate) async fn start_again(&self, port: u16, settings: &[&'static str], guard: &Guard) -> Result<()> {
        self.port.store(port, Ordering::Relaxed);
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let process = serve(&self.programs, &self.folder, port, settings, guard)?;
            *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
            match self.until_it_answers().await {
                // Of one that was killed the sessions may still be there, for a moment.
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
                answered => return answered,
            }
        }
    }

    /// Where the server listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// The port of that.
    pub(crate) fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed)
    }

    /// The folder with the server's programs, for a cluster of one's own.
    pub fn programs(&self) -> &Path {
        &self.programs.folder
    }

    /// "PostgreSQL 15.18".
    pub fn version(&self) -> &str {
        &self.programs.version
    }

    /// TCP on loopback, no parameters.
    fn url(&self, name: &str) -> String {
        format!("postgres://postgres:{}@{}/{name}", self.password, self.address())
    }

    /// The server's main process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// Waits until the server answers; an error if it ends instead.
    async fn until_it_answers(&self) -> Result<()> {
        let log = self.folder.join(LOG);
        let deadline = Instant::now() + START_DEADLINE;
        while let Err(error) = self.connect("postgres").await {
            if let Some(status) = self.ended()? {
                bail!("postgres ended with {status} while it started:\n{}", tail::of_file(&log));
            }
            if Instant::now() > deadline {
                return Err(error.context(format!("Postgres does not answer:\n{}", tail::of_file(&log))));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
            // Fails only if it has ended already, and until then nobody has waited for it, so the id is still its own.
            let _ = kill_process(pid, signal);
        }
    }

    fn ended(&self) -> io::Result<Option<ExitStatus>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).try_wait()
    }

    async fn connect(&self, name: &str) -> Result<PgConnection> {
        let options: PgConnectOptions = self.url(name).parse()?;
        Ok(options.disable_statement_logging().connect().await?)
    }

    fn client(&self, program: &str, name: &str, guard: &Guard) -> Command {
        let mut client = guard.command(self.programs.folder.join(program));
        client.env("PGPASSWORD", &self.password);
        client.args(["--host=127.0.0.1", "--username=postgres", "--no-password"]);
        client.arg(format!("--port={}", self.port())).arg(format!("--dbname={name}"));
        client
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// `initdb`, as a user whom Postgres accepts.
async fn init(programs: &PostgresPrograms, folder: &Path, password: &str, guard: &Guard) -> Result<()> {
    let password_file = folder.join("password");
    fs::write(&password_file, password)?;
    fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600))?;
    if let Some(owner) = programs.owner {
        for path in [folder, &password_file] {
            chown(path, Some(owner.user), Some(owner.group))?;
        }
    }
    let mut initdb = server_command(programs, "initdb", folder, guard);
    initdb.arg("--pgdata").arg(folder.join("data")).arg("--pwfile").arg(&password_file);
    initdb.args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]);
    // The new cluster holds nothing yet that a power cut could take; the running server does sync.
    initdb.arg("--no-sync");
    command::finish(initdb, |_| ()).await?;
    fs::remove_file(&password_file)?;
    Ok(())
}

async fn try_start(programs: &PostgresPrograms, folder: &Path, password: &str, guard: &Guard) -> Result<Postgres> {
    let port = free_port();
    let postgres = Postgres {
        process: Mutex::new(serve(programs, folder, port, &[], guard)?),
        programs: programs.clone(),
        folder: folder.to_owned(),
        password: password.to_owned(),
        port: port.into(),
    };
    postgres.until_it_answers().await?;
    Ok(postgres)
}

/// The server, with these settings on top of the sandbox's.
fn serve(
    programs: &PostgresPrograms,
    folder: &Path,
    port: u16,
    settings: &[&'static str],
    guard: &Guard,
) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(folder.join(LOG))?;
    let mut server = server_command(programs, "postgres", folder, guard);
    server.arg("-D").arg(folder.join("data"));
    // No socket file: its path would be too long or in a folder that others share.
    for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", &format!("port={port}")] {
        server.args(["-c", setting]);
    }
    server.args(["-c", &format!("max_connections={MAX_CONNECTIONS}")]);
    server.args(settings.iter().flat_map(|setting| ["-c", setting]));
    server.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start postgres")
}

/// Without the host's `PG*` settings, in a folder that its user may enter.
fn server_command(programs: &PostgresPrograms, name: &str, folder: &Path, guard: &Guard) -> Command {
    let mut command = guard.command(programs.folder.join(name));
    command
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LC_ALL", "C");
    if let Some(Owner { user, group }) = programs.owner {
        command.uid(user).gid(group);
    }
    command
}
