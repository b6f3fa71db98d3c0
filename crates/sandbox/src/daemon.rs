//! A daemon as a supervised child: its log lines become events, and when it dies it is started again.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use crate::{event::Events, port::free_port, settings::Settings, world::World};

/// A daemon that dies is started again after this long: short enough for an impatient person, long enough for a broken one not to spin.
const RESTART_AFTER: Duration = Duration::from_millis(300);

/// A process is there a few milliseconds after the pause, unless the machine is very busy.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// The daemons promise to drain within 8 seconds.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(12);

/// How an end looks that nobody has to care about.
pub(crate) const CLEAN_END: &str = "with exit code 0";

/// And one that comes again each time, because the settings are wrong.
pub(crate) const REFUSED: &str = "with exit code 2";

/// One of the two daemons. When this is dropped the process ends.
#[derive(Debug)]
pub struct Daemon {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    name: &'static str,
    program: PathBuf,
    world: Arc<World>,
    log: PathBuf,
    events: Events,
    /// Picked once, so that the address in the env file stays right over restarts.
    admin_address: String,
    settings: Mutex<Settings>,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Whether the supervisor is at work.
    is_supervised: bool,
    /// Whether a process that ends is to be started again.
    is_wanted: bool,
    /// The process, from its start until its stderr is closed. It is not reaped before, so the id cannot be another process's.
    pid: Option<Pid>,
    starts: u32,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// The daemon that `program` is, not started yet. Its log goes to `logs`/NAME.log.
    pub fn new(
        name: &'static str,
        program: &Path,
        settings: Settings,
        logs: &Path,
        events: Events,
        world: Arc<World>,
    ) -> Self {
        let shared = Shared {
            name,
            program: program.to_owned(),
            world,
            log: logs.join(format!("{name}.log")),
            events,
            admin_address: format!("127.0.0.1:{}", free_port()),
            settings: Mutex::new(settings),
            state: watch::Sender::default(),
        };
        Self { shared: Arc::new(shared), supervisor: Mutex::default() }
    }

    /// Starts it, unless it runs; from here on it is started again when it dies.
    pub fn start(&self) {
        let mut is_new = false;
        self.shared.state.send_modify(|state| {
            is_new = !state.is_supervised;
            state.is_supervised = true;
            state.is_wanted = true;
        });
        if is_new {
            *lock(&self.supervisor) = Some(tokio::spawn(supervise(self.shared.clone())));
        }
    }

    /// Sends a signal to the process; answers with its id, or `None` if there is no process right now.
    pub fn signal(&self, signal: Signal) -> Option<u32> {
        let pid = self.shared.state.borrow().pid?;
        kill_process(pid, signal).ok()?;
        Some(as_number(pid))
    }

    /// Kills it with SIGKILL; it is started again.
    pub fn kill(&self) -> Option<u32> {
        self.signal(Signal::KILL)
    }

    /// Kills it with SIGKILL, and waits for the process that is started in its place; answers with the id of that.
    pub async fn kill_and_wait(&self) -> Result<u32> {
        let killed = self.kill().with_context(|| format!("the {} does not run", self.name()))?;
        let is_another = |state: &State| state.pid.is_some_and(|pid| as_number(pid) != killed);
        let mut watch = self.shared.state.subscribe();
        let state =
            *timeout(START_DEADLINE, watch.wait_for(is_another)).await.context("it was not started again")??;
        state.pid.map(as_number).context("there is a process")
    }

    /// What it says of itself at `/readyz`, such as "ready" or "holding: …".
    pub async fn status(&self) -> Result<String> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        Ok(self.readiness(&client).await?.state)
    }

    /// All that it says at `/readyz`; an error while nobody answers.
    pub(crate) async fn readiness(&self, client: &reqwest::Client) -> Result<Readiness> {
        let answer = client.get(format!("{}/readyz", self.admin_url())).send().await?;
        let is_ready = answer.status().is_success();
        Ok(Readiness::read(is_ready, &answer.text().await?))
    }

    /// All its log lines so far; those that are no JSON are left out.
    pub fn log_lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Ends it with SIGTERM, and it stays down. Its exit status, `None` if it has never run.
    pub async fn terminate(&self) -> Result<Option<ExitStatus>> {
        self.end(Signal::TERM).await
    }

    /// Ends it with SIGKILL, and it stays down.
    pub async fn stop(&self) -> Result<()> {
        self.end(Signal::KILL).await.map(|_| ())
    }

    /// Takes settings on top of those it has, for the next start.
    pub(crate) fn set(&self, settings: &[(&'static str, &str)]) {
        lock(&self.shared.settings).set(settings);
    }

    /// Drains it and starts it with other settings on top of those it had.
    pub async fn restart_with(&self, settings: &[(&'static str, &str)]) -> Result<()> {
        self.terminate().await?;
        self.set(settings);
        self.start();
        Ok(())
    }

    /// The id of the process, `None` while there is none.
    pub fn pid(&self) -> Option<u32> {
        self.shared.state.borrow().pid.map(as_number)
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u32 {
        self.shared.state.borrow().starts.saturating_sub(1)
    }

    /// How the last process ended, if one did.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.shared.state.borrow().ended
    }

    /// `importer` or `transformer`.
    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Where its admin endpoint is, while it runs: `http://127.0.0.1:PORT`.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.shared.admin_address)
    }

    /// The file that all its log lines are in.
    pub fn log(&self) -> &Path {
        &self.shared.log
    }

    async fn end(&self, signal: Signal) -> Result<Option<ExitStatus>> {
        let state = &self.shared.state;
        state.send_modify(|state| state.is_wanted = false);
        // Between two processes the supervisor sees for itself that no other is wanted.
        let mut watch = state.subscribe();
        let is_supervised = watch.wait_for(|state| !state.is_supervised || state.pid.is_some()).await?.is_supervised;
        if is_supervised {
            self.signal(signal);
            let ended = timeout(TERMINATE_DEADLINE, watch.wait_for(|state| !state.is_supervised)).await.is_ok();
            if !ended {
                self.signal(Signal::KILL);
                bail!("{} ignored the signal for {} s", self.shared.name, TERMINATE_DEADLINE.as_secs());
            }
        }
        Ok(self.ended())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.shared.state.send_modify(|state| state.is_wanted = false);
        self.signal(Signal::KILL);
        // The supervisor holds the world; the child is killed with it, should it be younger than the signal.
        if let Some(supervisor) = lock(&self.supervisor).take() {
            supervisor.abort();
        }
    }
}

/// What a daemon says at `/readyz`.
#[derive(Debug, PartialEq)]
pub(crate) struct Readiness {
    /// By the status.
    pub(crate) is_ready: bool,
    /// The first line, such as "ready" or "holding: …".
    pub(crate) state: String,
    /// A line each: its name, and what is known of it, as in `worked 4 s ago`, `failed 2 s ago` or `not asked yet`.
    pub(crate) dependencies: Vec<(String, String)>,
}

impl Readiness {
    fn read(is_ready: bool, body: &str) -> Self {
        let mut lines = body.lines();
        let state = lines.next().unwrap_or_default().trim_end().to_owned();
        let dependency = |line: &str| {
            let (name, state) = line.split_once(' ')?;
            Some((name.to_owned(), state.trim().to_owned()))
        };
        Self { is_ready, state, dependencies: lines.filter_map(dependency).collect() }
    }
}

/// One process after the other, until no more is wanted.
async fn supervise(shared: Arc<Shared>) {
    let mut watch = shared.state.subscribe();
    while shared.state.borrow().is_wanted {
        match shared.spawn() {
            Ok(child) => shared.accompany(child).await,
            Err(error) => shared.events.tell(
                "sandbox",
                "a daemon cannot be started",
                &[("daemon", shared.name.into()), ("why", format!("{error:#}").into())],
            ),
        }
        // An error means that it is still wanted after the pause.
        let _ = timeout(RESTART_AFTER, watch.wait_for(|state| !state.is_wanted)).await;
    }
    shared.state.send_modify(|state| state.is_supervised = false);
}

impl Shared {
    fn spawn(&self) -> Result<Child> {
        let mut command = self.world.program(&self.program, &lock(&self.settings));
        command.env("ADMIN_ADDR", &self.admin_address);
        let mut command = tokio::process::Command::from(command);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{}", self.program.display()))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        self.state.send_modify(|state| {
            state.pid = pid;
            state.starts += 1;
        });
        Ok(child)
    }

    async fn accompany(&self, mut child: Child) {
        let (starts, pid) = (self.state.borrow().starts, child.id());
        let message = if starts > 1 { "daemon started again" } else { "daemon started" };
        self.tell(message, &[("pid", pid.into()), ("restarts", (starts - 1).into())]);
        if let Err(error) = self.follow_log(&mut child).await {
            self.tell("a log cannot be kept", &[("why", error.to_string().into())]);
        }
        self.state.send_modify(|state| state.pid = None);
        let ended = child.wait().await.ok();
        self.state.send_modify(|state| state.ended = ended);
        let how = ended.map(describe).unwrap_or_default();
        self.tell("daemon ended", &[("pid", pid.into()), ("how", how.into())]);
    }

    /// Until the process closes its stderr, which it does by ending.
    async fn follow_log(&self, child: &mut Child) -> Result<()> {
        let mut log: File = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut stderr = BufReader::new(child.stderr.take().context("stderr is piped")?);
        let mut line = Vec::new();
        while stderr.read_until(b'\n', &mut line).await? > 0 {
            log.write_all(&line)?;
            self.events.log_line(self.name, String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        Ok(())
    }

    fn tell(&self, message: &str, fields: &[(&str, Value)]) {
        let mut all = vec![("daemon", self.name.into())];
        all.extend_from_slice(fields);
        self.events.tell("sandbox", message, &all);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => CLEAN_END.to_owned(),
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(9)) => "by SIGKILL".to_owned(),
        (None, Some(15)) => "by SIGTERM".to_owned(),
        (None, Some(6)) => "by SIGABRT".to_owned(),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "somehow".to_owned(),
    }
}

fn as_number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is assigned whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_state_and_the_others_are_dependencies() {
        let body = "waiting: the database does not answer\narchive   worked 4 s ago\nqueue     not asked yet\n";
        let readiness = Readiness::read(false, body);
        let dependencies = [("archive", "worked 4 s ago"), ("queue", "not asked yet")];
        let dependencies = dependencies.map(|(name, state)| (name.to_owned(), state.to_owned())).to_vec();
        let state = "waiting: the database does not answer".to_owned();
        assert_eq!(readiness, Readiness { is_ready: false, state, dependencies });
        let alone = Readiness { is_ready: true, state: "ready".to_owned(), dependencies: Vec::new() };
        assert_eq!(Readiness::read(true, "ready\n"), alone);
    }
}
