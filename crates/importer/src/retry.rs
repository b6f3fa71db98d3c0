//! When to ask the API again, and after how long. Pure, but for the dice it is given.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use reqwest::StatusCode;

use tokio::time::Instant;

use crate::{exchange::ExchangeError, poll::PollError, run::ImportError, spool::SpoolError};

/// Within one poll; after that the poll has failed, and the next one begins afresh.
const TRIES: u32 = 5;

/// The first pause is at most this long, each further one at most twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A server that asks for a longer pause is not waited for: the poll has failed, and the next one comes later.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// From poll to poll the pauses grow to this, so that the end of a fault is noticed soon; where it is the API that fails, to the
/// interval if that is longer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// No server silences an importer for longer, whatever it says.
const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// How long to wait before trying again, `None` when that is of no use. `tries` have been made.
pub fn pause_after(error: &ExchangeError, tries: u32, dice: &mut fastrand::Rng) -> Option<Duration> {
    if tries >= TRIES || !is_transient(error) {
        return None;
    }
    let asked = asked_pause(error).unwrap_or_default();
    // Full jitter: importers that failed together do not come back together.
    let most = FIRST_PAUSE.saturating_mul(1 << tries.saturating_sub(1));
    let pause = most.mul_f64(dice.f64()).max(asked);
    (asked <= LONGEST_WAIT).then_some(pause)
}

/// When to poll again after a poll that failed, as the `faults`th in a row; without a fault it would be at `regular`.
pub fn next_poll(
    fault: &ImportError,
    faults: u32,
    interval: Duration,
    (now, regular): (Instant, Instant),
    dice: &mut fastrand::Rng,
) -> Instant {
    let grown = FIRST_PAUSE.saturating_mul(1 << faults.min(16));
    match fault {
        // The API did its part, and is not asked again because the queue does not.
        ImportError::Bell(_) => regular,
        // Whoever was faster has the newer answer, and may be in the middle of its pages.
        ImportError::EndMoved => now + jittered(interval, dice),
        ImportError::Poll(PollError::Exchange(error)) if is_transient(error) => {
            let pause = jittered(grown.min(interval.max(LONGEST_PAUSE)), dice);
            now + pause.max(asked_pause(error).unwrap_or_default())
        }
        // Not sooner: a page that is not there costs its server as much as one that is.
        ImportError::Poll(_) => regular.max(now + jittered(grown.min(LONGEST_PAUSE), dice)),
        // Nothing was asked of the API yet.
        ImportError::Archive(_) => now + jittered(grown.min(LONGEST_PAUSE), dice),
    }
}

/// A tenth earlier or later, so that importers that were started together do not poll together.
pub fn jittered(interval: Duration, dice: &mut fastrand::Rng) -> Duration {
    interval.mul_f64(0.9 + 0.2 * dice.f64())
}

/// What the server asked for with `Retry-After`.
fn asked_pause(error: &ExchangeError) -> Option<Duration> {
    match error {
        ExchangeError::Status { retry_after, .. } => *retry_after,
        _ => None,
    }
}

/// Whether the same request may succeed a moment later.
fn is_transient(error: &ExchangeError) -> bool {
    match error {
        ExchangeError::NoAnswer { .. } | ExchangeError::Body { source: SpoolError::Broken { .. }, .. } => true,
        ExchangeError::Status { status, .. } => {
            matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS)
                || status.is_server_error()
        }
        ExchangeError::Body {
            source: SpoolError::TooLong { .. } | SpoolError::Disk { .. } | SpoolError::Unreadable { .. },
            ..
        }
        | ExchangeError::NotTheData { .. }
        | ExchangeError::Redirected { .. }
        | ExchangeError::Encoded { .. }
        | ExchangeError::HeaderFile { .. } => false,
    }
}

/// `Retry-After` in both forms: seconds, or a date (RFC 9110, section 10.2.3). A date that has passed is no wait.
pub fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds).min(LONGEST_ASKED));
    }
    let date = rfc2822::parse(value).ok()?.timestamp();
    let wait: SignedDuration = date.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or_default().min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use shared::archive::ArchiveError;

    use super::*;

    fn status(code: u16, retry_after: Option<u64>) -> ExchangeError {
        ExchangeError::Status {
            url: "http://api/posts".into(),
            status: StatusCode::from_u16(code).unwrap(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let mut dice = fastrand::Rng::with_seed(1);
        for (code, expected) in [
            (408, true),
            (425, true),
            (429, true),
            (500, true),
            (503, true),
            (599, true),
            (400, false),
            (401, false),
            (403, false),
            (404, false),
            (410, false),
            (204, false),
        ] {
            assert_eq!(pause_after(&status(code, None), 1, &mut dice).is_some(), expected, "{code}");
        }
        assert_eq!(pause_after(&status(500, None), TRIES, &mut dice), None);
    }

    #[test]
    fn pauses_are_spread_from_nothing_to_a_limit_that_doubles() {
        let mut dice = fastrand::Rng::with_seed(1);
        for tries in 1..TRIES {
            let pauses: Vec<_> = (0..1000)
                .filter_map(|_| pause_after(&status(500, None), tries, &mut dice))
                .map(|pause| pause.as_millis())
                .collect();
            let most = 500 << (tries - 1);
            assert!(pauses.iter().all(|pause| *pause <= most));
            assert!(pauses.iter().any(|pause| *pause < most / 10) && pauses.iter().any(|pause| *pause > most * 9 / 10));
        }
    }

    #[test]
    fn polls_are_spread_by_a_tenth() {
        let mut dice = fastrand::Rng::with_seed(1);
        let waits: Vec<_> = (0..1000).map(|_| jittered(Duration::from_secs(10), &mut dice).as_millis()).collect();
        assert!(waits.iter().all(|wait| (9_000..=11_000).contains(wait)));
        assert!(waits.iter().any(|wait| *wait < 9_200) && waits.iter().any(|wait| *wait > 10_800));
    }

    #[test]
    fn a_fault_makes_polls_rarer_and_what_may_pass_is_tried_before_a_long_interval_is_over() {
        let mut dice = fastrand::Rng::with_seed(1);
        let (short, long) = (Duration::from_millis(200), Duration::from_hours(1));
        let poll = |error| ImportError::Poll(PollError::Exchange(error));
        let archive = || ImportError::Archive(ArchiveError::NoBucket { bucket: String::new() });
        for (fault, interval, faults, seconds) in [
            (poll(status(500, None)), short, 1, 1.0),
            (poll(status(500, None)), short, 100, 15.0),
            (poll(status(500, None)), long, 1, 1.0),
            (poll(status(500, None)), long, 100, 3600.0),
            (poll(status(429, Some(600))), short, 1, 600.0),
            (poll(status(404, None)), short, 1, 1.0),
            (poll(status(404, None)), short, 100, 15.0),
            (poll(status(404, None)), long, 1, 3600.0),
            (archive(), short, 100, 15.0),
            (archive(), long, 1, 1.0),
            (archive(), long, 100, 15.0),
            (ImportError::EndMoved, short, 100, 0.2),
            (ImportError::EndMoved, long, 1, 3600.0),
        ] {
            let now = Instant::now();
            let next = next_poll(&fault, faults, interval, (now, now + interval), &mut dice) - now;
            let off = next.as_secs_f64() / seconds;
            assert!((0.9..=1.1).contains(&off), "{fault} after {faults} faults every {interval:?}: {next:?}");
        }
    }

    #[test]
    fn a_server_that_asks_for_a_pause_gets_it() {
        let mut dice = fastrand::Rng::with_seed(1);
        assert_eq!(pause_after(&status(429, Some(20)), 1, &mut dice), Some(Duration::from_secs(20)));
        assert_eq!(pause_after(&status(429, Some(3600)), 1, &mut dice), None);
        assert_eq!(asked_pause(&status(429, Some(3600))), Some(Duration::from_hours(1)));
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (value, seconds) in [
            ("120", Some(120)),
            ("Thu, 01 Jan 2026 00:01:00 GMT", Some(60)),
            ("Wed, 31 Dec 2025 00:00:00 GMT", Some(0)),
            ("18446744073709551615", Some(3600)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(parse_retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        }
    }
}
