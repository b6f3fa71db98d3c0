//! What a poll came to, what that means to the people who run the daemon, and when to poll next. Pure, but for the dice it is given.

use std::time::Duration;

use jiff::Timestamp;
use shared::{
    archive::ArchiveError,
    status::{Dependency, Reason, State},
    telemetry::chain,
};
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    body::SpoolError,
    http::HttpError,
    queue::QueueError,
    retry::{FIRST_PAUSE, LONGEST_PAUSE, is_transient, jittered, limit_wait},
    source::PollError,
};

/// What a poll came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variant says what its fields are")]
pub enum Outcome {
    /// New objects are archived, of these bytes together.
    Appended { bytes: u64 },
    /// The archive ends with what the API says.
    Unchanged,
    /// The daemon was told to end while it asked.
    Drained,
}

/// Why a poll came to nothing.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The archive's side.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The API's side.
    #[error(transparent)]
    Poll(#[from] PollError),
    /// The queue's side. What was fetched is archived all the same.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Another importer appended, or objects were deleted. The answer is thrown away and the API asked again, one interval later.
    #[error("the archive no longer ends where it did when the fetch began")]
    EndMoved,
}

/// What a poll counts as, and whether the API's answer is in the archive; `None` for one that was cut short by the daemon's end.
pub fn result(outcome: &Result<Outcome, ImportError>) -> Option<(&'static str, bool)> {
    match outcome {
        Ok(Outcome::Drained) => None,
        Ok(Outcome::Appended { .. }) => Some(("appended", true)),
        Ok(Outcome::Unchanged) => Some(("unchanged", true)),
        Err(ImportError::EndMoved) => Some(("overtaken", false)),
        Err(ImportError::Poll(
            PollError::Http(HttpError::NotTheData { .. } | HttpError::Endless { .. }) | PollError::Page(_),
        )) => Some(("rejected", false)),
        Err(ImportError::Poll(_) | ImportError::Archive(_)) => Some(("failed", false)),
        // That the queue was not told is another matter.
        Err(ImportError::Queue(_)) => Some(("failed", true)),
    }
}

/// What a fault means to the people who run the daemon. The next poll comes `then`.
pub fn state_after(fault: &ImportError, then: Timestamp) -> State {
    let why = chain(fault);
    match fault {
        ImportError::Poll(PollError::Http(error)) if limit_wait(error).is_some() => {
            State::Waiting(Dependency::Api, format!("{why}; the importer asks again at {then:.0}"))
        }
        ImportError::Archive(ArchiveError::Refused { .. }) => State::Holding(Reason::AccessRefused, why),
        ImportError::Archive(ArchiveError::NoBucket { .. }) => State::Holding(Reason::BucketMissing, why),
        ImportError::Archive(ArchiveError::Unfit { .. }) => State::Holding(Reason::BucketUnfit, why),
        ImportError::Archive(ArchiveError::Foreign { .. }) => State::Holding(Reason::ObjectForeign, why),
        ImportError::Archive(ArchiveError::Failed { .. } | ArchiveError::BrokeOff { .. }) => {
            State::Waiting(Dependency::Archive, why)
        }
        ImportError::Poll(
            PollError::Spool(_) | PollError::Http(HttpError::Body { source: SpoolError::Disk { .. }, .. }),
        ) => State::Waiting(Dependency::Disk, why),
        ImportError::Poll(_) => State::Waiting(Dependency::Api, why),
        ImportError::Queue(_) => State::Waiting(Dependency::Queue, why),
        ImportError::EndMoved => State::StandingBy,
    }
}

/// When polls are due.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From poll to poll.
    pub interval: Duration,
    /// What time it is.
    pub now: Instant,
    /// When the next poll would be without a fault.
    pub regular: Instant,
}

/// When to poll again after a poll that failed, as the `faults`th in a row.
pub fn next_poll(fault: &ImportError, faults: u32, pace: Pace, dice: &mut fastrand::Rng) -> Instant {
    let Pace { interval, now, regular } = pace;
    let grown = FIRST_PAUSE.saturating_mul(1 << faults.min(16));
    match fault {
        // The API did its part, and is not asked again because the queue does not.
        ImportError::Queue(_) => regular,
        // Whoever was faster has the newer answer, and may be in the middle of its pages.
        ImportError::EndMoved => now + jittered(interval, dice),
        ImportError::Poll(PollError::Http(error)) if is_transient(error) => {
            let pause = jittered(grown.min(interval.max(LONGEST_PAUSE)), dice);
            now + pause.max(limit_wait(error).unwrap_or_default())
        }
        // Not sooner: a page that is not there costs its server as much as one that is, or one that the archive does not take.
        ImportError::Poll(_)
        | ImportError::Archive(ArchiveError::Refused { operation: "PutObject", .. } | ArchiveError::Unfit { .. }) => {
            regular.max(now + jittered(grown.min(LONGEST_PAUSE), dice))
        }
        // Nothing was asked of the API yet.
        ImportError::Archive(_) => now + jittered(grown.min(LONGEST_PAUSE), dice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::tests::status;

    #[test]
    fn a_fault_makes_polls_rarer_and_what_may_pass_is_tried_before_a_long_interval_is_over() {
        let mut dice = fastrand::Rng::with_seed(1);
        let (short, long) = (Duration::from_millis(200), Duration::from_hours(1));
        let poll = |error| ImportError::Poll(PollError::Http(error));
        let archive = || ImportError::Archive(ArchiveError::NoBucket { bucket: String::new() });
        let refused_append = || {
            let (bucket, key, source) = (String::new(), String::new(), "AccessDenied".into());
            ImportError::Archive(ArchiveError::Refused { operation: "PutObject", bucket, key, source })
        };
        for (fault, interval, faults, seconds) in [
            (poll(status(500, None)), short, 1, 1.0),
            (poll(status(500, None)), short, 100, 15.0),
            (poll(status(500, None)), long, 1, 1.0),
            (poll(status(500, None)), long, 100, 3600.0),
            (poll(status(429, Some(600))), short, 1, 600.0),
            (poll(status(404, None)), short, 1, 1.0),
            (poll(status(404, None)), short, 100, 15.0),
            (poll(status(404, None)), long, 1, 3600.0),
            (refused_append(), short, 100, 15.0),
            (refused_append(), long, 1, 3600.0),
            (archive(), short, 100, 15.0),
            (archive(), long, 1, 1.0),
            (archive(), long, 100, 15.0),
            (ImportError::EndMoved, short, 100, 0.2),
            (ImportError::EndMoved, long, 1, 3600.0),
        ] {
            let now = Instant::now();
            let next = next_poll(&fault, faults, Pace { interval, now, regular: now + interval }, &mut dice) - now;
            let off = next.as_secs_f64() / seconds;
            assert!((0.9..=1.1).contains(&off), "{fault} after {faults} faults every {interval:?}: {next:?}");
        }
    }
}
