//! What a daemon says of itself: log lines on stderr, its state, and the admin endpoint that shows it.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, routing::get};
use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::object::Sequence;

/// A daemon that shows no sign of life for this long is stuck: twice the longest wait on any one answer.
const STUCK_AFTER: Duration = Duration::from_mins(3);

/// The last sign of life, in milliseconds since the first. One a process, so that any step can give it.
static ALIVE_AT: AtomicU64 = AtomicU64::new(0);

/// Says that the work makes progress: a chunk, a batch, an answer.
pub fn beat() {
    beat_after(Duration::ZERO);
}

/// Says that the next sign of life will come after a wait that is meant.
pub fn beat_after(wait: Duration) {
    let at = since_start().saturating_add(wait);
    ALIVE_AT.store(u64::try_from(at.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// How far the work has come and how far there is to go, as numbers of objects; 0 while nobody knows. One a process, like the beat.
static POSITION: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Notes the last object that was applied.
pub fn note_position(sequence: Option<Sequence>) {
    POSITION.store(sequence.map_or(0, Sequence::get), Ordering::Relaxed);
}

/// Notes the last object that is in the archive, as far as this process has looked.
pub fn note_end(sequence: Option<Sequence>) {
    END.store(sequence.map_or(0, Sequence::get), Ordering::Relaxed);
}

fn since_start() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Logs and admin endpoint.
#[derive(Args, Clone, Debug)]
pub struct TelemetrySettings {
    /// Where to serve /healthz and /readyz, as host:port; port 0 takes a free one and logs it. Nothing is served by default
    #[arg(long, env = "ADMIN_ADDR", value_name = "ADDR")]
    pub admin_addr: Option<SocketAddr>,
    /// Form of the log lines [default: text on a terminal, json otherwise]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Which log lines to write: error, warn, info, debug or trace, also per module, as in `info,importer=debug`
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info", value_parser = parse_filter)]
    pub rust_log: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

fn parse_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Sends log lines to stderr from here on. Once a process.
pub fn log_to_stderr(settings: &TelemetrySettings) {
    let is_terminal = io::stderr().is_terminal();
    let format = settings.log_format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
    let color = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let filter = EnvFilter::new(&settings.rust_log);
    let stderr = move || {
        let mut stderr = io::stderr();
        if is_terminal {
            // A progress bar may stand in this line; it is drawn again below.
            let _ = stderr.write_all(b"\r\x1b[2K");
        }
        stderr
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(color);
    match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
        LogFormat::Text => lines.with_target(false).init(),
    }
}

/// An error and its causes in one line, for the one place that logs it. Some libraries repeat the cause in their own text.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

/// Whether a daemon does its work, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing has succeeded or failed yet.
    Starting,
    /// The last piece of work succeeded.
    Ready,
    /// Another process does the work of this stream, and this one watches.
    StandingBy,
    /// A dependency fails; it is tried again with back-off, for ever.
    Waiting(String),
    /// A person is needed; it is looked at again every minute.
    Holding(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Ready => f.write_str("ready"),
            Self::StandingBy => f.write_str("standing by"),
            Self::Waiting(why) => write!(f, "waiting: {why}"),
            Self::Holding(why) => write!(f, "holding: {why}"),
        }
    }
}

/// The state of the daemon, shared by the loop that sets it and the endpoint that shows it.
#[derive(Clone, Debug)]
pub struct Status(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    state: State,
    /// How often the loop came to the same state without a change.
    repeats: u64,
}

impl Default for Status {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Inner { state: State::Starting, repeats: 0 })))
    }
}

impl Status {
    /// Notes the state and that the loop is alive. A fault is logged when it begins and when it ends, with how often it came.
    pub fn set(&self, state: State) {
        beat();
        let mut inner = self.lock();
        if inner.state == state {
            inner.repeats += 1;
            return;
        }
        let times = inner.repeats + 1;
        match (&inner.state, &state) {
            (_, State::Holding(why)) => error!(why, "holding: a person is needed"),
            (_, State::Waiting(why)) => warn!(why, "waiting for a dependency"),
            (_, State::StandingBy) => info!("standing by"),
            (State::Holding(was) | State::Waiting(was), State::Ready) => info!(was, times, "ready again"),
            (_, State::Ready) => info!("ready"),
            (_, State::Starting) => {}
        }
        inner.state = state;
        inner.repeats = 0;
    }

    /// The state with the numbers, for whoever looks at the process.
    pub(crate) fn summary(&self) -> String {
        summary(&self.lock().state, POSITION.load(Ordering::Relaxed), END.load(Ordering::Relaxed))
    }

    fn is_ready(&self) -> (StatusCode, String) {
        let state = self.lock().state.clone();
        let code = match state {
            State::Ready | State::StandingBy => StatusCode::OK,
            State::Starting | State::Waiting(_) | State::Holding(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, format!("{state}\n"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves a whole value behind: each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn summary(state: &State, position: u64, end: u64) -> String {
    // What is applied after a look may go past the end that was seen then.
    match (position, end) {
        (0, 0) => state.to_string(),
        (0, end) => format!("the archive ends with {end}, {state}"),
        (position, end) if end < position => format!("position {position}, {state}"),
        (position, end) => format!("position {position} of {end}, {state}"),
    }
}

/// The age of the last sign of life; 0 during a wait that was announced.
fn silence() -> Duration {
    since_start().saturating_sub(Duration::from_millis(ALIVE_AT.load(Ordering::Relaxed)))
}

/// Whether the work makes progress, or waits no longer than it said it would.
pub(crate) fn is_alive() -> bool {
    silence() < STUCK_AFTER
}

fn health() -> (StatusCode, String) {
    let silent = silence();
    let code = if silent < STUCK_AFTER { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("the last sign of life is {} seconds old\n", silent.as_secs()))
}

/// Serves the admin endpoint where the settings ask for one: `/healthz` (the work loop makes progress; a dead dependency
/// does not fail it) and `/readyz` (the work gets done). It ends with the process.
pub async fn serve_admin(settings: &TelemetrySettings, status: &Status) -> io::Result<()> {
    let Some(address) = settings.admin_addr else { return Ok(()) };
    let listener = TcpListener::bind(address).await?;
    info!(address = %listener.local_addr()?, "admin endpoint listens");
    let status = status.clone();
    let routes =
        Router::new().route("/healthz", get(async || health())).route("/readyz", get(async move || status.is_ready()));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_ready_while_the_work_gets_done_by_it_or_another() {
        let status = Status::default();
        for (state, code, text) in [
            (State::Starting, 503, "starting\n"),
            (State::Ready, 200, "ready\n"),
            (State::StandingBy, 200, "standing by\n"),
            (State::Waiting("S3".into()), 503, "waiting: S3\n"),
            (State::Holding("another archive".into()), 503, "holding: another archive\n"),
        ] {
            status.set(state);
            let (answered, body) = status.is_ready();
            assert_eq!((answered.as_u16(), body.as_str()), (code, text));
        }
        assert_eq!(health().0, StatusCode::OK);
    }

    #[test]
    fn a_summary_has_the_numbers_that_are_known() {
        for (position, end, line) in [
            (0, 0, "ready"),
            (0, 7, "the archive ends with 7, ready"),
            (3, 7, "position 3 of 7, ready"),
            (8, 7, "position 8, ready"),
        ] {
            assert_eq!(summary(&State::Ready, position, end), line);
        }
    }

    #[test]
    fn an_error_is_told_with_its_causes_once() {
        let cause = io::Error::other("connection refused");
        let error = crate::archive::ArchiveError::Failed {
            operation: "PutObject",
            bucket: "b".into(),
            key: "k".into(),
            source: cause.into(),
        };
        assert_eq!(chain(&error), "PutObject s3://b/k failed: connection refused");
    }
}
