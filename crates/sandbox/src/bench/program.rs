//! A program that is run to its end, and what it took of the machine.

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, interval};

use crate::{settings::Settings, tail, world::World};

/// Often enough for the processor time of a process that ends between two looks; the kernel itself keeps the peak.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What Linux counts processor time in, on every architecture that this runs on: `USER_HZ` ticks of 10 ms.
const TICK: Duration = Duration::from_millis(10);

/// A program with settings of its own.
pub(super) struct Program<'a> {
    pub(super) world: &'a World,
    pub(super) path: &'a Path,
    pub(super) settings: Settings,
}

/// How it went.
pub(super) struct Ran {
    /// From its start to its end.
    pub(super) took: Duration,
    /// `None` where there is no /proc.
    pub(super) usage: Option<Usage>,
    pub(super) stdout: String,
    pub(super) log: String,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    /// The most memory that it has had in use.
    pub(super) peak_bytes: u64,
    /// User and system, of all its threads.
    pub(super) processor: Duration,
}

impl Program<'_> {
    /// Runs it to its end, which must be a success.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = self.world.program(self.path, &self.settings);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let pid = child.id().context("it has just started")?;
        let (mut usage, mut ticks) = (None, interval(LOOK_EVERY));
        let ended = child.wait_with_output();
        tokio::pin!(ended);
        let output = loop {
            tokio::select! {
                output = &mut ended => break output?,
                // Only a clock.
                _ = ticks.tick() => usage = Usage::of(pid).or(usage),
            }
        };
        let log = String::from_utf8(output.stderr)?;
        let name = self.path.file_name().unwrap_or_default().display();
        ensure!(output.status.success(), "{name} {arguments:?} ended with {}:\n{}", output.status, tail::of(&log));
        Ok(Ran { took: begun.elapsed(), usage, stdout: String::from_utf8(output.stdout)?, log })
    }
}

impl Ran {
    /// The last JSON line of the log with this message.
    pub(super) fn logged(&self, message: &str) -> Result<Value> {
        let mut lines = self.log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let logged = lines.rfind(|line| line["message"] == message);
        logged.with_context(|| format!("it never logged `{message}`:\n{}", tail::of(&self.log)))
    }

    /// From one line of the log to the other, by their timestamps.
    pub(super) fn between(&self, first: &str, last: &str) -> Result<Duration> {
        let moment = |message| -> Result<Timestamp> {
            let logged = self.logged(message)?;
            Ok(logged["timestamp"].as_str().context("a log line has its time")?.parse()?)
        };
        Ok(moment(last)?.duration_since(moment(first)?).unsigned_abs())
    }
}

impl Usage {
    /// `None` when the process has ended, or where there is no /proc.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { peak_bytes: memory(pid, "VmHWM:")?, processor: processor(&stat)? })
    }
}

/// A line of the process's `/proc` status in bytes: `VmHWM:` is the most memory that it has had in use. `None` when it has ended, or
/// where there is no /proc.
pub(crate) fn memory(pid: u32, line: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|found| found.strip_prefix(line))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// Fields 14 and 15 of `/proc/PID/stat` (proc(5)), counted from behind the name, which may hold spaces and parentheses.
fn processor(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    Some(TICK * ticks.sum::<Result<u32, _>>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 901 0 0 0 123 45 0 0 20 0 4 0 1000 1 2";
        assert_eq!(processor(stat), Some(Duration::from_millis(1680)));
    }
}
