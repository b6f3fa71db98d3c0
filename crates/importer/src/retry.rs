//! When to ask the API again, and after how long. Pure, but for the dice it is given.

use std::time::Duration;

use reqwest::StatusCode;

use crate::{
    body::SpoolError,
    http::HttpError,
    refusal::{LONGEST_ASKED, Refusal},
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
        if let Some(Refusal { is_limit: true, wait, .. }) = refusal(error) {
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
        let is_rewritten = self.is_in_walk && matches!(error, HttpError::HeaderFile { .. });
        (self.faults < TRIES && (is_transient(error) || is_rewritten)).then_some(pause)
    }
}

/// A tenth earlier or later, so that importers that were started together do not poll together.
pub fn jittered(interval: Duration, dice: &mut fastrand::Rng) -> Duration {
    interval.mul_f64(0.9 + 0.2 * dice.f64())
}

/// What the API said, if it answered.
pub fn refusal(error: &HttpError) -> Option<Refusal> {
    if let HttpError::Status { refusal, .. } = error { Some(*refusal) } else { None }
}

/// How long an API that limits requests is left alone, be it that it asks for that or not.
pub fn limit_wait(error: &HttpError) -> Option<Duration> {
    refusal(error).filter(|refusal| refusal.is_limit).map(|refusal| refusal.wait.unwrap_or(LIMIT_PAUSES.1))
}

/// Whether the same request may succeed a moment later.
pub fn is_transient(error: &HttpError) -> bool {
    match error {
        HttpError::NoAnswer { .. } | HttpError::Body { source: SpoolError::Broken { .. }, .. } => true,
        HttpError::Status { refusal, .. } => refusal.may_pass,
        HttpError::Body {
            source: SpoolError::TooLong { .. } | SpoolError::Disk { .. } | SpoolError::NoRecords { .. },
            ..
        }
        | HttpError::TooSlow { .. }
        | HttpError::Endless { .. }
        | HttpError::NotTheData { .. }
        | HttpError::Redirected { .. }
        | HttpError::Encoded { .. }
        | HttpError::Mislabelled { .. }
        | HttpError::HeaderFile { .. } => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use jiff::Timestamp;
    use reqwest::header::{HeaderMap, RETRY_AFTER};

    use super::*;
    use crate::refusal;

    pub(crate) fn status(code: u16, retry_after: Option<u64>) -> HttpError {
        let headers = retry_after.map(|seconds| (RETRY_AFTER, seconds.into())).into_iter().collect();
        refused(code, &headers)
    }

    fn refused(code: u16, headers: &HeaderMap) -> HttpError {
        let status = StatusCode::from_u16(code).unwrap();
        let refusal = refusal::read(status, headers, Timestamp::UNIX_EPOCH);
        HttpError::Status { request: "GET http://api/posts".into(), status, refusal }
    }

    /// What is done after an answer: how many seconds pass, at least and at most, or the poll fails; and what a person is told.
    #[test]
    fn each_answer_is_asked_for_again_or_fails_the_poll_and_says_why() {
        const KEY: &str = ": put the API's key or token into SOURCE_HEADER_FILE";
        const KEY_OR_LIMIT: &str =
            ": put the API's key or token into SOURCE_HEADER_FILE, or raise POLL_INTERVAL if the API limits requests";
        const LIMIT: &str = ", since it limits requests: raise POLL_INTERVAL";
        const URL: &str = ": correct SOURCE_URL";
        const PART: &str = ": the server sends part of what it has where nothing asks for a part; take `Range` and `Prefer` out of \
                            SOURCE_HEADER_FILE";
        const GIVES_UP: Option<(f64, f64)> = None;
        let (first_page, in_walk) = (Tries::new(false), Tries::new(true));
        let after = |tries: Tries, codes: &[u16]| {
            let mut dice = fastrand::Rng::with_seed(1);
            let mut tries = tries;
            for code in codes {
                let _ = tries.pause_after(&status(*code, None), &mut dice);
            }
            tries
        };
        let (last_try, renewed) = (after(first_page, &[500; 4]), after(in_walk, &[401]));
        let hour_over = after(in_walk, &[429; 70]);
        let budget = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "20")];
        for (tries, code, headers, pause, hint) in [
            (first_page, 500, &[][..], Some((0.0, 0.5)), ""),
            (first_page, 599, &[], Some((0.0, 0.5)), ""),
            (last_try, 500, &[], GIVES_UP, ""),
            (first_page, 408, &[], Some((0.0, 0.5)), ""),
            (first_page, 425, &[], Some((0.0, 0.5)), ""),
            (first_page, 429, &[], Some((1.0, 2.0)), LIMIT),
            (last_try, 429, &[], Some((1.0, 2.0)), LIMIT),
            (first_page, 429, &[("retry-after", "20")], Some((20.0, 21.0)), LIMIT),
            (first_page, 429, &[("retry-after", "60")], GIVES_UP, LIMIT),
            (in_walk, 429, &[("retry-after", "60")], Some((60.0, 61.0)), LIMIT),
            (in_walk, 429, &[("retry-after", "7200")], Some((3600.0, 3601.0)), LIMIT),
            (hour_over, 429, &[], GIVES_UP, LIMIT),
            (first_page, 503, &[("retry-after", "20")], Some((20.0, 21.0)), LIMIT),
            (first_page, 403, &budget, Some((20.0, 21.0)), LIMIT),
            (first_page, 403, &[], GIVES_UP, KEY_OR_LIMIT),
            (in_walk, 403, &[], GIVES_UP, KEY_OR_LIMIT),
            (first_page, 401, &[], GIVES_UP, KEY),
            (in_walk, 401, &[], Some((0.0, 0.0)), KEY),
            (renewed, 401, &[], GIVES_UP, KEY),
            (first_page, 400, &[], GIVES_UP, ""),
            (first_page, 404, &[], GIVES_UP, URL),
            (in_walk, 410, &[("retry-after", "20")], GIVES_UP, URL),
            (first_page, 204, &[], GIVES_UP, ""),
            (in_walk, 206, &[], GIVES_UP, PART),
            (
                first_page,
                304,
                &[],
                GIVES_UP,
                ", though nobody asked whether anything changed: see to the cache in between",
            ),
        ] {
            let mut tries = tries;
            let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            let error = refused(code, &headers);
            let found = tries.pause_after(&error, &mut fastrand::Rng::with_seed(1)).map(|pause| pause.as_secs_f64());
            let is_right = match (found, pause) {
                (Some(found), Some((least, longest))) => (least..=longest).contains(&found),
                (found, pause) => found.is_none() && pause.is_none(),
            };
            assert!(is_right, "{code} {headers:?}: {found:?} instead of {pause:?}");
            assert!(error.to_string().ends_with(&format!("{}{hint}", StatusCode::from_u16(code).unwrap())), "{error}");
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
    fn waits_add_up_to_half_a_minute_and_with_pages_in_hand_to_an_hour() {
        let mut dice = fastrand::Rng::with_seed(1);
        let (first_page, in_walk) = (Tries::new(false), Tries::new(true));
        for (tries, waits, pauses) in [
            (first_page, &[Some(20), Some(20)][..], &[20][..]),
            (first_page, &[None, Some(0), None, None, None], &[1, 2, 4, 8]),
            (in_walk, &[Some(1800), Some(1799), Some(9)], &[1800, 1799]),
            (in_walk, &[Some(3600), None], &[3600]),
        ] {
            let mut tries = tries;
            let mut pause = |wait: &Option<u64>| tries.pause_after(&status(429, *wait), &mut dice);
            let waited: Vec<_> = waits.iter().map_while(&mut pause).map(|pause| pause.as_secs()).collect();
            assert_eq!(waited, pauses, "{waits:?}");
        }
    }

    #[test]
    fn limits_take_no_try_from_faults() {
        let mut dice = fastrand::Rng::with_seed(1);
        let mut tries = Tries::new(true);
        let codes = [429, 429, 429, 429, 429, 502, 401, 502, 502, 502, 502];
        let paused = codes.iter().take_while(|code| tries.pause_after(&status(**code, None), &mut dice).is_some());
        assert_eq!(paused.count(), 10);
    }
}
