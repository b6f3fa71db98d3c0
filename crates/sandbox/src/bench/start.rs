//! What a daemon costs that has nothing to do: until it is ready, in memory, on disk.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

use super::{
    Bench,
    program::memory,
    report::{Goal, Report, mib},
};

/// Long enough for a first poll or look, with all that it allocates.
const IDLE_FOR: Duration = Duration::from_secs(2);

const NAMES: [&str; 2] = ["importer", "transformer"];

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    for number in 0..=bench.settings.rounds {
        report.begin("start", number);
        for name in NAMES {
            start(bench, report, name, &format!("start_{number}")).await?;
        }
    }
    for name in NAMES {
        report.figure(&format!("{name}, start to ready"), "ms", None, Some(Goal::AtMost(300.0)));
    }
    for name in NAMES {
        report.figure(&format!("{name}, peak memory when idle"), "MiB", None, Some(Goal::AtMost(24.0)));
    }
    for name in NAMES {
        report.figure(&format!("{name}, the program"), "MB", None, Some(Goal::AtMost(20.0)));
    }
    Ok(())
}

async fn start(bench: &Bench, report: &mut Report, name: &'static str, stream: &str) -> Result<()> {
    let program =
        if name == "importer" { bench.importer(stream).await? } else { bench.transformer(stream, stream).await? };
    let bytes = fs::metadata(program.path)?.len();
    let begun = Instant::now();
    let daemon = bench.daemon(name, program).await?;
    report.sample(&format!("{name}, start to ready"), begun.elapsed().as_secs_f64() * 1e3);
    sleep(IDLE_FOR).await;
    let pid = daemon.pid().with_context(|| format!("the {name} has ended"))?;
    if let Some(peak_bytes) = memory(pid, "VmHWM:") {
        report.sample(&format!("{name}, peak memory when idle"), mib(peak_bytes));
    }
    report.sample(&format!("{name}, the program"), mib(bytes) * 1.048_576);
    daemon.terminate().await?;
    Ok(())
}
