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

/// The first page is waited for this long. Then the poll fails, and the next one comes when the server allows it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Where a server limits requests and does not say for how long, the pauses grow from the first to the second.
const LIMIT_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// From poll to poll the pauses grow to this, so that the end of a fault is noticed soon; where it is the API that fails, to the
/// interval if that is longer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The tries of one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    /// Whether pages of the walk are in hand.
    is_in_walk: bool,
    faults: u32,
    limits: u32,
    /// How long the API was waited for because it limits requests.
    waited: Duration,
    has_renewed: bool,
}

impl Tries {
    /// None was made. `is_in_walk` says whether pages of the walk are in hand.
    pub fn new(is_in_walk: bool) -> Self {
        Self { is_in_walk, ..Self::default() }
    }

    /// How long to wait after an error before trying again, `None` when that is of no use.
    pub fn pause_after(&mut self, error: &HttpError, dice: &mut fastrand::Rng) -> Option<Duration> {
        let Asked { is_limit, wait } = asked_by(error);
        if is_limit {
            let (first, most) = LIMIT_PAUSES;
            let grown = first.saturating_mul(1 << self.limits.min(16)).min(most);
            // Importers that wait for the same moment do not come back together.
            let pause = wait.filter(|wait| !wait.is_zero()).unwrap_or(grown) + first.mul_f64(dice.f64());
            self.limits += 1;
            self.waited += pause;
            let longest = if self.is_in_walk { LONGEST_ASKED } else { LONGEST_WAIT };
            return (self.waited <= longest + first).then_some(pause);
        }
        let is_refused = matches!(error, HttpError::Status { status: StatusCode::UNAUTHORIZED, .. });
        if is_refused && self.is_in_walk && !self.has_renewed {
            // A token may have expired on the way, and its file is read for each request.
            self.has_renewed = true;
            return Some(Duration::ZERO);
        }
        self.faults += 1;
        // Full jitter: importers that failed together do not come back together.
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.faults - 1).min(16)).mul_f64(dice.f64());
        (self.faults < TRIES && is_transient(error)).then_some(pause)
    }
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
            let pause = Tries::default().pause_after(&status(code, None), &mut dice);
            assert_eq!(pause.is_some(), expected, "{code}");
        }
    }

    #[test]
    fn pauses_are_spread_from_nothing_to_a_limit_that_doubles() {
        let mut dice = fastrand::Rng::with_seed(1);
        let all: Vec<_> = (0..1000)
            .map(|_| {
                let mut tries = Tries::default();
                let pauses = (0..).map_while(|_| tries.pause_after(&status(500, None), &mut dice));
                pauses.map(|pause| pause.as_millis()).collect::<Vec<_>>()
            })
            .collect();
        assert!(all.iter().all(|pauses| pauses.len() == TRIES as usize - 1));
        for number in 0..TRIES as usize - 1 {
            let (most, pauses) = (500 << number, all.iter().map(|pauses| pauses[number]));
            assert!(pauses.clone().all(|pause| pause <= most));
            assert!(pauses.clone().any(|pause| pause < most / 10) && pauses.clone().any(|pause| pause > most * 9 / 10));
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
        let (first_page, in_walk) = (Tries::new(false), Tries::new(true));
        for (tries, waits, pauses) in [
            (first_page, &[Some(20), Some(20)][..], &[20][..]),
            (first_page, &[Some(31)], &[]),
            (first_page, &[None, Some(0), None, None, None], &[1, 2, 4, 8]),
            (in_walk, &[Some(1800), Some(1799), Some(9)], &[1800, 1799]),
            (in_walk, &[Some(3600), None], &[3600]),
        ] {
            let mut tries = tries;
            let mut pause = |wait: &Option<u64>| tries.pause_after(&status(429, *wait), &mut dice);
            let waited: Vec<_> = waits.iter().map_while(&mut pause).map(|pause| pause.as_secs()).collect();
            assert_eq!(waited, pauses, "{waits:?}");
        }
        assert_eq!(asked_by(&status(429, Some(3600))).wait, Some(Duration::from_hours(1)));
    }

    #[test]
    fn a_token_is_read_again_once_in_a_walk_and_limits_take_no_try_from_faults() {
        let mut dice = fastrand::Rng::with_seed(1);
        let mut pauses = |tries: Tries, codes: &[u16]| {
            let mut tries = tries;
            codes.iter().take_while(|code| tries.pause_after(&status(**code, None), &mut dice).is_some()).count()
        };
        let in_walk = Tries::new(true);
        for (tries, codes, expected) in [
            (in_walk, &[401, 401][..], 1),
            (Tries::new(false), &[401], 0),
            (in_walk, &[429, 429, 429, 429, 429, 502, 401, 502, 502, 502, 502], 10),
        ] {
            assert_eq!(pauses(tries, codes), expected, "{codes:?}");
        }
    }
}
