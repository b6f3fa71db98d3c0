//! What all streams share: LocalStack, Postgres, the daemons' programs and the guard over every process.

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};

use crate::{
    guard::Guard,
    localstack::{self, LocalStack},
    postgres::{Backup, Postgres},
    postgres_programs,
    programs::{self, Place, Programs},
    progress::Progress,
    settings::Settings,
    venv::Venv,
};

/// LocalStack takes any; these are the ones that its documentation uses.
const ACCESS_KEY: &str = "test";
const REGION: &str = "us-east-1";

/// What a daemon may see of the host's environment. `HOME` is not there: the SDK would find the person's own AWS profile.
const INHERITED: [&str; 6] = ["PATH", "TMPDIR", "TZ", "LANG", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

/// The shared world. No task and no child in it belongs to an async runtime, so tests that each have their own can share it.
#[derive(Debug)]
pub struct World {
    guard: Guard,
    folder: PathBuf,
    place: Place,
    programs: Programs,
    localstack: LocalStack,
    postgres: Postgres,
    started_in: StartTimes,
    streams: AtomicU32,
}

/// How long the parts took until they were up.
#[derive(Clone, Copy, Debug)]
pub struct StartTimes {
    /// Building the daemons.
    pub programs: Duration,
    /// LocalStack, with its installation.
    pub localstack: Duration,
    /// Postgres, with its installation.
    pub postgres: Duration,
}

impl World {
    /// Builds, installs and starts everything, side by side.
    pub async fn start(progress: &Progress) -> Result<Arc<Self>> {
        let place = Place::find()?;
        // The guard deletes the folder, so the handle that would do so too is given up.
        let folder = tempfile::Builder::new().prefix("sandbox-").tempdir().context("no temporary folder")?.keep();
        let guard = Guard::start(&folder).context("cannot start the guard, which is a shell")?;
        // Postgres may run as another user, who has to get through to its own folder.
        fs::set_permissions(&folder, Permissions::from_mode(0o711))?;

        let begun = Instant::now();
        let programs = async { Ok((programs::build(&place, &guard, progress).await?, begun.elapsed())) };
        let localstack = async {
            let python = localstack::install(&place.target.join("sandbox-venv"), &guard, progress).await?;
            let localstack = LocalStack::start(&python, &folder.join("localstack"), &guard, progress).await?;
            Ok((localstack, begun.elapsed()))
        };
        let postgres = async {
            let venv = place.target.join("sandbox-venv-postgres");
            let programs = postgres_programs::find(&venv, &folder, &guard, progress).await?;
            let postgres = Postgres::start(programs, &folder.join("postgres"), &guard, progress).await?;
            Ok((postgres, begun.elapsed()))
        };
        let (programs, localstack, postgres) = tokio::try_join!(programs, localstack, postgres)
            .map_err(|error: anyhow::Error| error.context("the sandbox cannot start"))?;

        Ok(Arc::new(Self {
            started_in: StartTimes { programs: programs.1, localstack: localstack.1, postgres: postgres.1 },
            programs: programs.0,
            localstack: localstack.0,
            postgres: postgres.0,
            guard,
            folder,
            place,
            streams: AtomicU32::new(0),
        }))
    }

    /// Ends everything in order and deletes the folder. A world that is just dropped ends too, but nobody waits for it.
    pub async fn stop(&self) -> Result<()> {
        self.localstack.stop();
        let stopped = self.postgres.stop().await;
        self.guard.release();
        stopped
    }

    /// Whom the world's processes end with.
    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// A temporary folder that goes with the world.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The target folder, and what else is known of where this program lies.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The daemons' programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// S3 and SQS.
    pub fn localstack(&self) -> &LocalStack {
        &self.localstack
    }

    /// The database cluster.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// How long the start took.
    pub fn started_in(&self) -> StartTimes {
        self.started_in
    }

    /// The settings that lead an AWS client to this world.
    pub fn aws_settings(&self) -> Settings {
        let mut settings = Settings::new();
        settings.set(&[
            ("AWS_ENDPOINT_URL", self.localstack.endpoint()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", ACCESS_KEY),
        ]);
        settings
    }

    /// The same for clients in this process, whose environment stays as it is.
    pub fn aws_config(&self) -> SdkConfig {
        let credentials = Credentials::new(ACCESS_KEY, ACCESS_KEY, None, None, "sandbox");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::from_static(REGION))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(self.localstack.endpoint())
            .build()
    }

    /// A guarded command with these settings and nothing else of the host's.
    pub fn program(&self, program: &Path, settings: &Settings) -> Command {
        guarded(&self.guard, program, settings, &self.folder)
    }

    /// The Python of an environment in the target folder that holds exactly these packages, `NAME==VERSION` lines; it is installed
    /// unless it is there.
    pub async fn python(&self, name: &str, requirements: &str, step: &'static str) -> Result<PathBuf> {
        let folder = self.place.target.join(name);
        Venv { folder: &folder, requirements, step }.install(&self.guard, &Progress::default()).await
    }

    /// Writes a database to a file.
    pub async fn back_up(&self, database: &str) -> Result<Backup> {
        self.postgres.back_up(database, &self.guard).await
    }

    /// Puts a database back to what it was.
    pub async fn restore(&self, database: &str, backup: &Backup) -> Result<()> {
        self.postgres.restore(database, backup, &self.guard).await
    }

    /// 1 for the first stream in this world, and so on.
    pub(crate) fn next_stream(&self) -> u32 {
        self.streams.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A program that ends with the guard, and sees these settings and what little a program needs besides.
pub(crate) fn guarded(guard: &Guard, program: &Path, settings: &Settings, folder: &Path) -> Command {
    let mut command = guard.command(program);
    command.env_clear().envs(INHERITED.iter().filter_map(|name| Some((name, env::var_os(name)?))));
    command.envs(settings.iter()).current_dir(folder);
    command
}
