//! The end of a daemon: a signal, no new work, a deadline for the work in hand, the exit code.

use std::{
    fs,
    future::{Future, pending},
    time::Duration,
};

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time,
};
use tracing::{info, warn};

use crate::systemd;

/// How long the work in hand may take after SIGTERM. Shorter than the 10 seconds after which Docker kills, the most
/// impatient supervisor in use; what is not finished by then is rolled back, which is always safe.
const DRAIN_DEADLINE: Duration = Duration::from_secs(8);

/// Runs a program on one thread, and does not wait for what then still blocks another one: a name server that does not answer or a
/// disk that hangs would keep a daemon past its drain deadline.
pub fn block_on<T>(program: impl Future<Output = T>) -> T {
    #[cfg(feature = "failpoints")]
    let _armed = crate::crash::arm();
    let runtime =
        runtime::Builder::new_current_thread().enable_all().build().expect("the system has room for a runtime");
    let done = runtime.block_on(program);
    runtime.shutdown_background();
    done
}

/// Says whether the daemon drains. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// One that comes when the sender says so: for tests and simulations.
    pub fn new(draining: watch::Receiver<bool>) -> Self {
        Self(draining)
    }

    /// Whether to stop taking work.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for `wait` or until the daemon drains, for which nothing may be in hand. `None` when it drains.
    ///
    /// Drop safety: `wait` is dropped when the signal comes, so it must be a receive or a sleep, never a step.
    pub async fn race<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            // Dropped when `wait` is done: only a watch on a flag.
            _ = self.0.wait_for(|draining| *draining) => None,
            done = wait => Some(done),
        }
    }
}

/// Whether SIGHUP was ignored when the process began, as under `nohup`.
fn is_hangup_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    // The signal's number is 1.
    ignored.is_some_and(|signals| signals & 1 == 1)
}

/// Runs the daemon until it ends by itself, or until SIGTERM, SIGINT or SIGHUP, which is ignored under `nohup`, and then at most 8 seconds
/// longer.
///
/// `None` when the deadline cut it off: its future is dropped, its connections close, and what was open is rolled back.
pub async fn run_until_drained<F: Future>(daemon: impl FnOnce(Shutdown) -> F) -> Option<F::Output> {
    let (drain, draining) = watch::channel(false);
    // Before the daemon says that it runs: a signal that came between would end it at once.
    let mut terminate = signal(SignalKind::terminate()).expect("the runtime handles signals");
    let mut interrupt = signal(SignalKind::interrupt()).expect("the runtime handles signals");
    let mut hangup = (!is_hangup_ignored()).then(|| signal(SignalKind::hangup()).expect("the runtime handles signals"));
    let hung_up = async move {
        match &mut hangup {
            Some(hangup) => hangup.recv().await,
            None => pending().await,
        }
    };
    let deadline = async move {
        let signal = tokio::select! {
            _ = hung_up => "SIGHUP",
            // Both only watch; which one is dropped does not matter.
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal, drain_deadline_seconds = DRAIN_DEADLINE.as_secs(), "draining");
        systemd::stopping();
        // The daemon may have ended at the same moment.
        let _ = drain.send(true);
        time::sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        // The deadline has nothing in hand.
        done = daemon(Shutdown(draining)) => Some(done),
        // The daemon is cut off in the middle of a step, as by `kill -9`, which every step survives.
        () = deadline => {
            warn!("the drain deadline has passed: what was in hand is rolled back");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_blocks_a_thread_does_not_keep_a_program_from_ending() {
        let (_never, wait) = mpsc::channel::<()>();
        block_on(async {
            let (started, has_started) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                started.send(()).unwrap();
                wait.recv()
            });
            has_started.await.unwrap();
        });
    }
}
