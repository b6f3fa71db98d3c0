//! LocalStack: S3 and SQS on loopback, from PyPI, without Docker.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{guard::Guard, port::free_port, progress::Progress, tail, venv::Venv};

/// The release and everything that it needs for S3 and SQS; newer releases of some of these break it.
const REQUIREMENTS: &str = include_str!("../localstack-requirements.txt");

/// It takes about five seconds; the very first start compiles Python's files, and a test machine may be busy.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// How many ports to try, in case another process takes the one that was free a moment ago.
const PORTS: u32 = 3;

/// A running LocalStack. Its process ends with the guard; nothing in it is worth a slower end.
#[derive(Debug)]
pub struct LocalStack {
    process: Mutex<Child>,
    endpoint: String,
}

/// Installs LocalStack into `folder` unless it is there; answers with the Python that runs it.
pub(crate) async fn install(folder: &Path, guard: &Guard, progress: &Progress) -> Result<PathBuf> {
    Venv { folder, requirements: REQUIREMENTS, step: "installing LocalStack" }.install(guard, progress).await
}

impl LocalStack {
    /// Starts it and waits until both services answer; `folder` is for its data and its log.
    pub(crate) async fn start(python: &Path, folder: &Path, guard: &Guard, progress: &Progress) -> Result<Self> {
        let _step = progress.step("starting LocalStack");
        let mut tries = 1;
        loop {
            match try_start(python, folder, guard).await {
                Ok(localstack) => return Ok(localstack),
                Err(error) if tries < PORTS && error.to_string().contains("ddress already in use") => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Where S3 and SQS answer: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// Ends it.
    pub(crate) fn stop(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // Both fail only if it has ended already.
        let _ = process.kill();
        let _ = process.wait();
    }

    fn ended(&self) -> std::io::Result<Option<ExitStatus>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).try_wait()
    }
}

async fn try_start(python: &Path, folder: &Path, guard: &Guard) -> Result<LocalStack> {
    fs::create_dir_all(folder)?;
    let log_path = folder.join("localstack.log");
    let log = File::create(&log_path)?;
    let address = format!("127.0.0.1:{}", free_port());
    // Nothing of the host's settings: AWS_*, LocalStack's own, or a proxy would all change what it does.
    let mut localstack = guard.command(python);
    localstack.args(["-c", include_str!("localstack.py")]).current_dir(folder).env_clear();
    localstack.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for variable in ["HOME", "TMPDIR", "XDG_CACHE_HOME", "LOCALSTACK_VOLUME_DIR", "FILESYSTEM_ROOT"] {
        localstack.env(variable, folder);
    }
    localstack.envs([
        ("SERVICES", "s3,sqs,sts"),
        ("EAGER_SERVICE_LOADING", "1"),
        ("GATEWAY_LISTEN", &address),
        // Queue URLs with an address that needs no name server, because older SDKs send their requests there.
        ("SQS_ENDPOINT_STRATEGY", "path"),
        ("LOCALSTACK_HOST", &address),
        // Inside a container it would take itself for the only thing there: folders outside its own, every interface.
        ("OVERRIDE_IN_DOCKER", "0"),
        // Neither of these two may reach out of the machine.
        ("SKIP_SSL_CERT_DOWNLOAD", "1"),
        ("DISABLE_EVENTS", "1"),
    ]);
    let process = localstack.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start LocalStack")?;
    let localstack = LocalStack { process: Mutex::new(process), endpoint: format!("http://{address}") };
    match until_healthy(&localstack, &log_path).await {
        Ok(()) => Ok(localstack),
        Err(error) => {
            localstack.stop();
            Err(error)
        }
    }
}

async fn until_healthy(localstack: &LocalStack, log: &Path) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let url = format!("{}/_localstack/health", localstack.endpoint);
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        if let Some(status) = localstack.ended()? {
            bail!("LocalStack ended with {status} while it started:\n{}", tail::of_file(log));
        }
        if let Ok(answer) = client.get(&url).send().await
            && let Ok(health) = answer.json::<Value>().await
            && ["s3", "sqs"]
                .iter()
                .all(|name| matches!(health["services"][name].as_str(), Some("available" | "running")))
        {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("LocalStack did not become healthy in {} s:\n{}", START_DEADLINE.as_secs(), tail::of_file(log));
}
