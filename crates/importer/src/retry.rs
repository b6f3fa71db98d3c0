//! When to ask the API again, and after how long. Pure, but for the dice it is given.

use std::time::Duration;

use reqwest::StatusCode;

use crate::{
    body::SpoolError,
    http::HttpError,
    limit::{Asked, LONGEST_ASKED},
};

/// Within one poll; after that the poll has failed, and the next one begins afresh.
const TRIES: u32 = 5;

/// The first pause is at most this long, each further one at most twice the one before.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// For a page that is not the first of its walk, a server that limits requests is waited for as long as it asks. For the first one it is waited
/// for so long, and then the poll has failed: nothing is in hand, and the next poll comes when the server has asked for it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Where a server limits requests and does not say for how long, the pauses grow from the first to the second.
const LIMIT_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// From poll to poll the pauses grow to this, so that the end of a fault is noticed soon; where it is the API that fails, to the
/// interval if that is longer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A request that failed.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// How often it was made.
    pub times: u32,
    /// How long its API was waited for, because it limits requests.
    pub waited: Duration,
    /// Whether pages of the walk are in hand.
    pub is_in_walk: bool,
}

/// How long to wait before trying again, `None` when that is of no use.
pub fn pause_after(error: &HttpError, tried: Tried, dice: &mut fastrand::Rng) -> Option<Duration> {
    let Asked { is_limit, wait } = asked_by(error);
    let longest = if tried.is_in_walk { LONGEST_ASKED } else { LONGEST_WAIT };
    let doubled = 1 << tried.times.saturating_sub(1).min(16);
    if is_limit {
        let (first, most) = LIMIT_PAUSES;
        let pause = wait.unwrap_or(first.saturating_mul(doubled).min(most));
        // Importers that wait for the same moment do not come back together.
        let pause = pause + first.mul_f64(dice.f64());
        return (tried.waited + pause <= longest + first).then_some(pause);
    }
    if is_expired(error) && tried.is_in_walk && tried.times == 1 {
        // Whoever renews the token has written it into SOURCE_HEADER_FILE, which is read for each request.
        return Some(Duration::ZERO);
    }
    if tried.times >= TRIES || !is_transient(error) {
        return None;
    }
    let wait = wait.unwrap_or_default();
    // Full jitter: importers that failed together do not come back together.
    let pause = FIRST_PAUSE.saturating_mul(doubled).mul_f64(dice.f64()).max(wait);
    (wait <= longest).then_some(pause)
}

/// A tenth earlier or later, so that importers that were started together do not poll together.
pub fn jittered(interval: Duration, dice: &mut fastrand::Rng) -> Duration {
    interval.mul_f64(0.9 + 0.2 * dice.f64())
}

/// What the server has asked for.
pub fn asked_by(error: &HttpError) -> Asked {
    match error {
        HttpError::Status { asked, .. } => *asked,
        _ => Asked::default(),
    }
}

/// Whether the API refuses what it took for the page before.
fn is_expired(error: &HttpError) -> bool {
    matches!(error, HttpError::Status { status: StatusCode::UNAUTHORIZED, .. })
}

/// Whether the same request may succeed a moment later.
pub fn is_transient(error: &HttpError) -> bool {
    match error {
        HttpError::NoAnswer { .. } | HttpError::Body { source: SpoolError::Broken { .. }, .. } => true,
        HttpError::Status { status, asked, .. } => {
            matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY)
                || asked.is_limit
                || status.is_server_error()
        }
        HttpError::Body {
            source: SpoolError::TooLong { .. } | SpoolError::Disk { .. } | SpoolError::NoRecords { .. },
            ..
        }
        | HttpError::TooSlow { .. }
        | HttpError::NotTheData { .. }
        | HttpError::Redirected { .. }
        | HttpError::Encoded { .. }
        | HttpError::Mislabelled { .. }
        | HttpError::HeaderFile { .. } => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn status(code: u16, retry_after: Option<u64>) -> HttpError {
        HttpError::Status {
            request: "GET http://api/posts".into(),
            status: StatusCode::from_u16(code).unwrap(),
            asked: Asked { is_limit: code == 429, wait: retry_after.map(Duration::from_secs) },
        }
    }

    fn tried(times: u32) -> Tried {
        Tried { times, waited: Duration::ZERO, is_in_walk: false }
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
            assert_eq!(pause_after(&status(code, None), tried(1), &mut dice).is_some(), expected, "{code}");
        }
        assert_eq!(pause_after(&status(500, None), tried(TRIES), &mut dice), None);
    }

    #[test]
    fn pauses_are_spread_from_nothing_to_a_limit_that_doubles() {
        let mut dice = fastrand::Rng::with_seed(1);
        for tries in 1..TRIES {
            let pauses: Vec<_> = (0..1000)
                .filter_map(|_| pause_after(&status(500, None), tried(tries), &mut dice))
                .map(|pause| pause.as_millis())
                .collect();
            let most = 500 << (tries - 1);
            assert!(pauses.iter().all(|pause| *pause <= most));
            assert!(pauses.iter().any(|pause| *pause < most / 10) && pauses.iter().any(|pause| *pause > most * 9 / 10));
        }
    }

    #[test]
    fn a_token_that_has_expired_on_the_way_is_read_again_once() {
        let mut dice = fastrand::Rng::with_seed(1);
        for (times, is_in_walk, expected) in [(1, true, Some(Duration::ZERO)), (2, true, None), (1, false, None)] {
            let tried = Tried { is_in_walk, ..tried(times) };
            assert_eq!(pause_after(&status(401, None), tried, &mut dice), expected, "{tried:?}");
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
    fn a_limit_is_waited_out_for_half_a_minute_and_with_pages_in_hand_for_an_hour() {
        let mut dice = fastrand::Rng::with_seed(1);
        let mut pause = |wait: Option<u64>, tried: Tried| {
            pause_after(&status(429, wait), tried, &mut dice).map(|pause| pause.as_secs())
        };
        let in_walk = |times, minutes| Tried { times, waited: Duration::from_mins(minutes), is_in_walk: true };
        for (wait, tried, expected) in [
            (Some(20), tried(1), Some(20)),
            (Some(31), tried(1), None),
            (Some(3600), in_walk(1, 0), Some(3600)),
            (Some(1800), in_walk(2, 30), Some(1800)),
            (Some(1800), in_walk(3, 31), None),
            (None, tried(1), Some(1)),
            (None, in_walk(3, 0), Some(4)),
            (None, in_walk(99, 58), Some(60)),
            (None, in_walk(99, 60), None),
        ] {
            assert_eq!(pause(wait, tried), expected, "{wait:?} {tried:?}");
        }
        assert_eq!(asked_by(&status(429, Some(3600))).wait, Some(Duration::from_hours(1)));
    }
}
