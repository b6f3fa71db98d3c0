//! The figures: what was done to the pipeline, how long it took to recover, and what its daemons used.

use std::{
    collections::BTreeMap,
    fmt, fs,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::interval,
};
use uuid::Uuid;

use super::{
    rig::Rig,
    schedule::{Fault, Moment},
};
use crate::{bench::memory, daemon::Daemon, event::Event};

/// How often the daemons' memory is read; the kernel keeps the peak, so this only has to come before a process ends.
const MEASURE_EVERY: Duration = Duration::from_millis(250);

/// What is counted, by whoever does or sees it.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Figures>);

#[derive(Debug, Default)]
struct Figures {
    /// How often each kind of fault was done.
    faults: BTreeMap<&'static str, u64>,
    kills: u64,
    kills_at_upload: u64,
    kills_in_transaction: u64,
    /// Faults that have ended and after which nothing has moved yet.
    open: Vec<Ended>,
    recoveries: BTreeMap<&'static str, Vec<Duration>>,
    /// The transformer that applied the last object.
    active: Option<&'static str>,
    acknowledged: Vec<(u64, Uuid)>,
    peaks: BTreeMap<&'static str, u64>,
    samples: Vec<Sample>,
    /// Log lines that call a person.
    errors: u64,
    /// Daemons that ended though nobody killed them.
    crashes: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    kind: &'static str,
    is_importers: bool,
    at: Instant,
}

/// What the daemons of the second host, which nobody kills, hold open while all is at rest.
#[derive(Clone, Copy, Debug)]
struct Sample {
    files: usize,
    sockets: usize,
    sessions: i64,
    resident_bytes: u64,
}

impl Tally {
    /// Counts what the daemons log and use, for ever.
    pub(super) async fn follow(&self, rig: &Rig, mut events: Receiver<Event>) {
        let mut due = interval(MEASURE_EVERY);
        loop {
            tokio::select! {
                // Both only wait.
                event = events.recv() => match event {
                    Ok(event) => self.note(&event),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                _ = due.tick() => rig.daemons().for_each(|daemon| self.measure(daemon)),
            }
        }
    }

    fn note(&self, event: &Event) {
        let mut figures = self.figures();
        let text = |name| event.text(name).unwrap_or_default();
        match event.message.as_str() {
            "appended" => {
                if let (Ok(sequence), Ok(observation)) = (text("sequence").parse(), text("observation").parse()) {
                    figures.acknowledged.push((sequence, observation));
                }
                figures.recover(true);
            }
            "applied" => {
                figures.active = Some(event.who);
                figures.recover(false);
            }
            "daemon ended" if !["by SIGKILL", "with exit code 0"].contains(&text("how").as_str()) => {
                figures.crashes.push(format!("{} ended {}", text("daemon"), text("how")));
            }
            _ => {}
        }
        figures.errors += u64::from(event.level == "ERROR");
    }

    /// A fault has ended; from here on it counts until something moves.
    pub(super) fn note_end(&self, fault: &Fault) {
        let mut figures = self.figures();
        let ended = Ended { kind: fault.kind(), is_importers: fault.is_importers(), at: Instant::now() };
        *figures.faults.entry(ended.kind).or_default() += 1;
        figures.open.push(ended);
    }

    /// A daemon was killed, and its moment had come, or not.
    pub(super) fn note_kill(&self, moment: Moment, has_come: bool) {
        let mut figures = self.figures();
        figures.kills += 1;
        match moment {
            Moment::Upload(_) if has_come => figures.kills_at_upload += 1,
            Moment::Transaction(_) | Moment::Commit if has_come => figures.kills_in_transaction += 1,
            _ => {}
        }
    }

    /// Everything is at rest: whatever is still open has ended with that.
    pub(super) async fn note_rest(&self, rig: &Rig) -> Result<()> {
        let mut connection = rig.sandbox.connect().await?;
        let statement =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let sessions = sqlx::query_scalar(statement).fetch_one(&mut connection).await?;
        let survivors = [&rig.hosts[1].importer, &rig.hosts[1].transformer];
        let pids = survivors.iter().filter_map(|daemon| daemon.pid());
        let mut sample = Sample { files: 0, sockets: 0, sessions, resident_bytes: 0 };
        for pid in pids {
            let (files, sockets) = open_files(pid);
            sample.files += files;
            sample.sockets += sockets;
            sample.resident_bytes += memory(pid, "VmRSS:").unwrap_or_default();
        }
        let mut figures = self.figures();
        figures.recover(true);
        figures.recover(false);
        figures.samples.push(sample);
        Ok(())
    }

    /// Notes the most memory that the daemon has had in use.
    pub(super) fn measure(&self, daemon: &Daemon) {
        let Some(bytes) = daemon.pid().and_then(|pid| memory(pid, "VmHWM:")) else { return };
        let mut figures = self.figures();
        let peak = figures.peaks.entry(daemon.name()).or_default();
        *peak = bytes.max(*peak);
    }

    /// Whether it was the last to apply an object.
    pub(super) fn is_active(&self, transformer: &Daemon) -> bool {
        self.figures().active == Some(transformer.name())
    }

    /// What the importers said that they archived.
    pub(super) fn acknowledged(&self) -> Vec<(u64, Uuid)> {
        self.figures().acknowledged.clone()
    }

    /// Daemons that ended by themselves.
    pub(super) fn crashes(&self) -> Vec<String> {
        self.figures().crashes.clone()
    }

    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Figures {
    /// Something moved: the end of the archive, which ends the importers' faults, or the position.
    fn recover(&mut self, is_importers: bool) {
        let recovered = self.open.extract_if(.., |ended| ended.is_importers == is_importers);
        for Ended { kind, at, .. } in recovered {
            self.recoveries.entry(kind).or_default().push(at.elapsed());
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "whole numbers are shown")]
/// The table of the faults, and as its last line all figures.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.figures();
        writeln!(f, "{:<34}{:>7}{:>12}{:>12}", "fault", "count", "recovery", "worst")?;
        for (kind, count) in &figures.faults {
            let (median, worst) = median_and_worst(figures.recoveries.get(kind).into_iter().flatten());
            writeln!(f, "{kind:<34}{count:>7}{median:>10.2} s{worst:>10.2} s")?;
        }
        let (median, worst) = median_and_worst(figures.recoveries.values().flatten());
        let faults: u64 = figures.faults.values().sum();
        let count = |kind| figures.faults.get(kind).copied().unwrap_or_default();
        let Figures { kills, kills_at_upload, kills_in_transaction, errors, .. } = &*figures;
        write!(
            f,
            "kills={kills} kills_at_upload={kills_at_upload} kills_in_transaction={kills_in_transaction} faults={faults} restores={} purges={} recovery_median_s={median:.2} recovery_worst_s={worst:.2} errors={errors}",
            count("Postgres restored"),
            count("queue purged"),
        )?;
        for (name, bytes) in &figures.peaks {
            write!(f, " peak_{}_mib={:.1}", name.replace('-', "_"), mebibytes(*bytes))?;
        }
        if let (Some(first), Some(last)) = (figures.samples.first(), figures.samples.last()) {
            for (name, of) in [
                ("files", (|sample| sample.files as f64) as fn(&Sample) -> f64),
                ("sockets", |sample| sample.sockets as f64),
                ("sessions", |sample| sample.sessions as f64),
                ("resident_mib", |sample| mebibytes(sample.resident_bytes)),
            ] {
                let most = figures.samples.iter().map(of).fold(0.0, f64::max);
                write!(f, " {name}_first={:.0} {name}_last={:.0} {name}_most={most:.0}", of(first), of(last))?;
            }
        }
        Ok(())
    }
}

fn median_and_worst<'a>(durations: impl Iterator<Item = &'a Duration>) -> (f32, f32) {
    let mut sorted: Vec<f32> = durations.map(Duration::as_secs_f32).collect();
    sorted.sort_by(f32::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    (at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
}

/// How many files the process has open, and how many of them are connections.
fn open_files(pid: u32) -> (usize, usize) {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return (0, 0) };
    let targets = files.flatten().map(|file| fs::read_link(file.path()).unwrap_or_default());
    targets.fold((0, 0), |(files, sockets), target| {
        (files + 1, sockets + usize::from(target.to_string_lossy().starts_with("socket:")))
    })
}

#[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
