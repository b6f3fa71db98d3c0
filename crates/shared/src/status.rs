//! Whether a daemon does its work, how far it has come, and when it last gave a sign of life.

use std::{
    fmt::{self, Write},
    mem,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::{IntCounterVec, IntGaugeVec};
use tracing::{error, info, warn};

use crate::{metrics, object::Sequence};

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

fn since_start() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// The age of the last sign of life; 0 during a wait that was announced.
pub(crate) fn silence() -> Duration {
    since_start().saturating_sub(Duration::from_millis(ALIVE_AT.load(Ordering::Relaxed)))
}

/// Whether the work makes progress, or waits no longer than it said it would.
pub(crate) fn is_alive() -> bool {
    silence() < STUCK_AFTER
}

/// How far the work has come and how far there is to go, as numbers of objects; 0 while nobody knows. One a process, like the beat.
static POSITION: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

#[allow(clippy::cast_precision_loss, reason = "sequences end below 2^53")]
static ARCHIVE_END: LazyLock<()> = LazyLock::new(|| {
    metrics::looked_up(
        "pipeline_archive_end",
        "Sequence of the newest object in the archive; 0 while none is known",
        || end() as f64,
    );
});
static STATE: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges("pipeline_state", "1 for the state that the daemon is in", "state", &State::LABELS)
});
static HOLD: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges("pipeline_hold", "1 for the reason why a person is needed", "reason", &Reason::LABELS)
});
static RETRIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters(
        "pipeline_retries_total",
        "Faults of a dependency, after each of which it was or will be asked again",
        "dependency",
        &Dependency::LABELS,
    )
});

/// Notes the last object that was applied. It is in the archive, whatever the last look saw.
pub fn note_position(sequence: Option<Sequence>) {
    let position = sequence.map_or(0, Sequence::get);
    POSITION.store(position, Ordering::Relaxed);
    END.fetch_max(position, Ordering::Relaxed);
}

/// Notes the last object that is in the archive, as far as this process has looked.
pub fn note_end(sequence: Option<Sequence>) {
    END.store(sequence.map_or(0, Sequence::get), Ordering::Relaxed);
}

/// Notes an object that is in the archive, which may have more.
pub fn note_object(sequence: Sequence) {
    END.fetch_max(sequence.get(), Ordering::Relaxed);
}

/// The last object that was applied, as far as this process knows; 0 for none.
pub fn position() -> u64 {
    POSITION.load(Ordering::Relaxed)
}

/// The last object in the archive, as far as this process knows; 0 for none.
pub fn end() -> u64 {
    END.load(Ordering::Relaxed)
}

/// Counts a call that failed and will be made again.
pub fn note_retry(of: Dependency) {
    RETRIES.with_label_values(&[of.label()]).inc();
}

/// What the daemons depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// The source.
    Api,
    /// Where bodies wait for their append.
    Disk,
    /// S3.
    Archive,
    /// SQS.
    Queue,
    /// Postgres.
    Database,
}

impl Dependency {
    const LABELS: [&str; 5] = ["api", "disk", "archive", "queue", "database"];

    /// The name in logs and metrics.
    pub fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// Why a person is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the daemons' own errors say what each means and what to do")]
pub enum Reason {
    AnotherArchive,
    ObjectRewritten,
    ArchiveForked,
    EndBelowPosition,
    ObjectMissing,
    ObjectForeign,
    RowsAbsent,
    BucketMissing,
    BucketUnfit,
    AccessRefused,
    Database,
}

impl Reason {
    /// The names of all, in their order.
    pub const LABELS: [&str; 11] = [
        "another_archive",
        "object_rewritten",
        "archive_forked",
        "end_below_position",
        "object_missing",
        "object_foreign",
        "rows_absent",
        "bucket_missing",
        "bucket_unfit",
        "access_refused",
        "database",
    ];

    /// The name in logs and metrics.
    pub fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }

    fn dependency(self) -> Dependency {
        if self == Self::Database { Dependency::Database } else { Dependency::Archive }
    }
}

/// Whether a daemon does its work, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing has succeeded or failed yet.
    #[default]
    Starting,
    /// The last piece of work succeeded.
    Ready,
    /// Another process does the work of this stream, and this one watches.
    StandingBy,
    /// A dependency fails; it is tried again with back-off, for ever.
    Waiting(Dependency, String),
    /// A person is needed; it is looked at again every minute.
    Holding(Reason, String),
}

impl State {
    const LABELS: [&str; 5] = ["starting", "ready", "standing_by", "waiting", "holding"];

    fn label(&self) -> &'static str {
        let index = match self {
            Self::Starting => 0,
            Self::Ready => 1,
            Self::StandingBy => 2,
            Self::Waiting(..) => 3,
            Self::Holding(..) => 4,
        };
        Self::LABELS[index]
    }

    fn is_ready(&self) -> bool {
        matches!(self, Self::Ready | Self::StandingBy)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Ready => f.write_str("ready"),
            Self::StandingBy => f.write_str("standing by"),
            Self::Waiting(_, why) => write!(f, "waiting: {why}"),
            Self::Holding(_, why) => write!(f, "holding: {why}"),
        }
    }
}

/// The state of the daemon, shared by the loop that sets it and the endpoint that shows it.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    state: State,
    /// How often the loop came to the same state without a change.
    repeats: u64,
    /// What each dependency did when it was last asked, and when that was.
    dependencies: Vec<(Dependency, Option<(&'static str, Instant)>)>,
}

const WORKED: &str = "worked";
const FAILED: &str = "failed";

impl Inner {
    fn note(&mut self, of: Dependency, outcome: &'static str) {
        for (dependency, last) in &mut self.dependencies {
            if *dependency == of {
                *last = Some((outcome, Instant::now()));
            }
        }
    }
}

impl Status {
    /// The status of a daemon with these dependencies. Its numbers are there from here on.
    pub fn new(dependencies: &[Dependency]) -> Self {
        LazyLock::force(&ARCHIVE_END);
        LazyLock::force(&HOLD);
        LazyLock::force(&RETRIES);
        STATE.with_label_values(&[State::Starting.label()]).set(1);
        let dependencies = dependencies.iter().map(|dependency| (*dependency, None)).collect();
        Self(Arc::new(Mutex::new(Inner { dependencies, ..Inner::default() })))
    }

    /// Notes the state and that the loop is alive, and answers with the state before. A fault is logged when it begins and when it ends, with
    /// how often it came.
    pub fn set(&self, state: State) -> State {
        beat();
        let mut inner = self.lock();
        let failing = match &state {
            State::Waiting(dependency, _) => Some(*dependency),
            State::Holding(reason, _) => Some(reason.dependency()),
            State::Starting | State::Ready | State::StandingBy => None,
        };
        if let Some(dependency) = failing {
            note_retry(dependency);
            inner.note(dependency, FAILED);
        }
        let is_repeated = match (&inner.state, &state) {
            // The same need, in whatever words: the archive may have grown.
            (State::Holding(was, _), State::Holding(reason, _)) => was == reason,
            (was, state) => was == state,
        };
        if is_repeated {
            inner.repeats += 1;
            return mem::replace(&mut inner.state, state);
        }
        show(&inner.state, 0);
        show(&state, 1);
        let times = inner.repeats + 1;
        match (&inner.state, &state) {
            (_, State::Holding(reason, why)) => error!(reason = reason.label(), why, "holding: a person is needed"),
            (_, State::Waiting(dependency, why)) => {
                warn!(dependency = dependency.label(), why, "waiting for a dependency");
            }
            (_, State::StandingBy) => info!("standing by"),
            (State::Holding(_, was) | State::Waiting(_, was), State::Ready) => info!(was, times, "ready again"),
            (_, State::Ready) => info!("ready"),
            (_, State::Starting) => {}
        }
        inner.repeats = 0;
        mem::replace(&mut inner.state, state)
    }

    /// Goes back to a state without a word, when one that came in between is over.
    pub fn back_to(&self, state: State) {
        let mut inner = self.lock();
        show(&inner.state, 0);
        show(&state, 1);
        inner.state = state;
    }

    /// Notes that these were asked just now, and worked.
    pub fn worked(&self, dependencies: &[Dependency]) {
        let mut inner = self.lock();
        for dependency in dependencies {
            inner.note(*dependency, WORKED);
        }
    }

    /// The state with the numbers, for whoever looks at the process.
    pub(crate) fn summary(&self) -> String {
        summary(&self.lock().state, position(), end())
    }

    /// Whether the work gets done, and a report: the state, and a line for each dependency with the age of what is known. A dependency
    /// that has failed since nobody asked it is not noticed here: an idle daemon asks at its interval.
    pub(crate) fn readiness(&self, now: Instant) -> (bool, String) {
        let inner = self.lock();
        let mut report = format!("{}\n", inner.state);
        for (dependency, last) in &inner.dependencies {
            let known = match last {
                Some((outcome, at)) => format!("{outcome} {} s ago", now.saturating_duration_since(*at).as_secs()),
                None => "not asked yet".to_owned(),
            };
            let _ = writeln!(report, "{:<8}  {known}", dependency.label());
        }
        (inner.state.is_ready(), report)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves a whole value behind: each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn show(state: &State, value: i64) {
    STATE.with_label_values(&[state.label()]).set(value);
    if let State::Holding(reason, _) = state {
        HOLD.with_label_values(&[reason.label()]).set(value);
    }
}

fn summary(state: &State, position: u64, end: u64) -> String {
    match (position, end) {
        (0, 0) => state.to_string(),
        (0, end) => format!("the archive ends with {end}, {state}"),
        (position, end) => format!("position {position} of {end}, {state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_ready_while_the_work_gets_done_by_it_or_another() {
        let status = Status::new(&[]);
        for (state, is_ready) in [
            (State::Starting, false),
            (State::Waiting(Dependency::Archive, "S3".into()), false),
            (State::Ready, true),
            (State::Holding(Reason::Database, "no tables".into()), false),
            (State::StandingBy, true),
        ] {
            let report = format!("{state}\n");
            status.set(state);
            assert_eq!(status.readiness(Instant::now()), (is_ready, report));
        }
        assert!(is_alive());
    }

    #[test]
    fn the_last_outcome_of_a_dependency_is_its_own() {
        let status = Status::new(&[Dependency::Archive, Dependency::Queue, Dependency::Database]);
        let outcomes = || {
            let outcome = |last: Option<(&'static str, Instant)>| last.map(|(outcome, _)| outcome);
            status.lock().dependencies.iter().map(|(_, last)| outcome(*last)).collect::<Vec<_>>()
        };
        status.worked(&[Dependency::Archive, Dependency::Database]);
        assert_eq!(outcomes(), [Some(WORKED), None, Some(WORKED)]);
        for _ in 0..2 {
            status.set(State::Waiting(Dependency::Database, "cut".into()));
            assert_eq!(outcomes(), [Some(WORKED), None, Some(FAILED)]);
        }
        // The state is the loop's word; of the database only its own answer tells.
        status.set(State::Ready);
        assert_eq!(outcomes(), [Some(WORKED), None, Some(FAILED)]);
        status.worked(&[Dependency::Database]);
        assert_eq!(outcomes(), [Some(WORKED), None, Some(WORKED)]);
    }

    #[test]
    fn a_report_has_the_age_of_what_is_known() {
        let (status, begun) = (Status::default(), Instant::now());
        status.lock().dependencies = vec![
            (Dependency::Archive, Some((WORKED, begun))),
            (Dependency::Queue, None),
            (Dependency::Database, Some((FAILED, begun + Duration::from_secs(58)))),
        ];
        let report = "starting\narchive   worked 61 s ago\nqueue     not asked yet\ndatabase  failed 3 s ago\n";
        assert_eq!(status.readiness(begun + Duration::from_secs(61)), (false, report.to_owned()));
    }

    #[test]
    fn a_summary_has_the_numbers_that_are_known() {
        for (position, end, line) in
            [(0, 0, "ready"), (0, 7, "the archive ends with 7, ready"), (3, 7, "position 3 of 7, ready")]
        {
            assert_eq!(summary(&State::Ready, position, end), line);
        }
    }
}
