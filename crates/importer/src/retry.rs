//! When to ask the API again, and after how long. Pure, but for the dice it is given.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use reqwest::StatusCode;

use crate::{body::SpoolError, http::HttpError};

/// Within one poll; after that the poll has failed, and the next one begins afresh.
const TRIES: u32 = 5;

/// The first pause is at most this long, each further one at most twice the one before.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A server that asks for a longer pause is not waited for: the poll has failed, and the next one comes later.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// From poll to poll the pauses grow to this, so that the end of a fault is noticed soon; where it is the API that fails, to the
/// interval if that is longer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// No server silences an importer for longer, whatever it says.
const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// How long to wait before trying again, `None` when that is of no use. `tries` have been made.
pub fn pause_after(error: &HttpError, tries: u32, dice: &mut fastrand::Rng) -> Option<Duration> {
    if tries >= TRIES || !is_transient(error) {
        return None;
    }
    let asked = asked_pause(error).unwrap_or_default();
    // Full jitter: importers that failed together do not come back together.
    let most = FIRST_PAUSE.saturating_mul(1 << tries.saturating_sub(1));
    let pause = most.mul_f64(dice.f64()).max(asked);
    (asked <= LONGEST_WAIT).then_some(pause)
}

/// A tenth earlier or later, so that importers that were started together do not poll together.
pub fn jittered(interval: Duration, dice: &mut fastrand::Rng) -> Duration {
    interval.mul_f64(0.9 + 0.2 * dice.f64())
}

/// What the server asked for with `Retry-After`.
pub fn asked_pause(error: &HttpError) -> Option<Duration> {
    match error {
        HttpError::Status { retry_after, at, .. } => parse_retry_after(retry_after.as_ref()?, *at),
        _ => None,
    }
}

/// Whether the same request may succeed a moment later.
pub fn is_transient(error: &HttpError) -> bool {
    match error {
        HttpError::NoAnswer { .. } | HttpError::Body { source: SpoolError::Broken { .. }, .. } => true,
        HttpError::Status { status, .. } => {
            matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS)
                || status.is_server_error()
        }
        HttpError::Body {
            source: SpoolError::TooLong { .. } | SpoolError::Disk { .. } | SpoolError::NoRecords { .. },
            ..
        }
        | HttpError::NotTheData { .. }
        | HttpError::Redirected { .. }
        | HttpError::Encoded { .. }
        | HttpError::HeaderFile { .. } => false,
    }
}

/// `Retry-After` in both forms: seconds, or a date (RFC 9110, section 10.2.3). A date that has passed is no wait.
fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds).min(LONGEST_ASKED));
    }
    let date = rfc2822::parse(value).ok()?.timestamp();
    let wait: SignedDuration = date.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or_default().min(LONGEST_ASKED))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn status(code: u16, retry_after: Option<u64>) -> HttpError {
        HttpError::Status {
            request: "GET http://api/posts".into(),
            status: StatusCode::from_u16(code).unwrap(),
            retry_after: retry_after.map(|seconds| seconds.to_string()),
            at: Timestamp::UNIX_EPOCH,
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
