//! What an answer without data says of the next request: whether it may succeed, when, and what is the matter. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use reqwest::{StatusCode, header::HeaderMap};

/// No server silences an importer for longer, whatever it says.
pub const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// A larger number is a moment in seconds since 1970, and no wait.
const EPOCH_SECONDS: f64 = 1e8;
/// A larger one is a moment in milliseconds.
const EPOCH_MILLIS: f64 = 1e11;

/// An answer without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whether the same request may succeed later.
    pub may_pass: bool,
    /// The API has had more requests than it allows, so waiting helps.
    pub is_limit: bool,
    /// How long the API that limits requests asks to wait, an hour at most.
    pub wait: Option<Duration>,
    /// What usually is the matter, for whoever set this up: the rest of a sentence, or nothing.
    pub hint: &'static str,
}

/// Reads the status, `Retry-After` (RFC 9110, section 10.2.3), the `RateLimit` fields of the IETF's drafts
/// (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>), and what APIs called them before.
pub fn read(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Refusal {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let named = |names: &[&str]| names.iter().find_map(|name| text(name));
    // Moments are those of the server's clock.
    let now = text("date").and_then(moment).unwrap_or(now);
    let after = text("retry-after").and_then(|value| wait(value, now));
    let in_millis = named(&["retry-after-ms", "x-ms-retry-after-ms"]).and_then(|value| value.parse().ok());
    let after = after.or(in_millis.map(Duration::from_millis));
    let field = policy(text("ratelimit").unwrap_or_default());
    let remaining = named(&["x-ratelimit-remaining", "ratelimit-remaining", "x-rate-limit-remaining"]);
    let remaining = remaining.or_else(|| member(field, ["r", "remaining"])).and_then(|left| left.parse::<f64>().ok());
    let is_used_up = remaining.is_some_and(|left| left < 1.0);
    let reset = named(&["x-ratelimit-reset-after", "x-ratelimit-reset", "ratelimit-reset", "x-rate-limit-reset"]);
    let reset = reset.or_else(|| member(field, ["t", "reset"]));
    let reset = reset.filter(|_| is_used_up || status == StatusCode::TOO_MANY_REQUESTS);
    // Some send 0 beside the time that counts.
    let reset = reset.and_then(|reset| wait(reset, now));
    let wait = after.filter(|after| !after.is_zero()).or(reset).or(after).map(|wait| wait.min(LONGEST_ASKED));
    let is_limit = match status {
        StatusCode::TOO_MANY_REQUESTS => true,
        // Some APIs have no other status for it.
        StatusCode::FORBIDDEN | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => is_used_up || after.is_some(),
        status => status.is_server_error() && (is_used_up || after.is_some()),
    };
    let is_passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY) || status.is_server_error();
    let wait = wait.filter(|_| is_limit);
    Refusal { may_pass: is_limit || is_passing, is_limit, wait, hint: hint(status, is_limit) }
}

fn hint(status: StatusCode, is_limit: bool) -> &'static str {
    match status {
        _ if is_limit => ", since it limits requests: raise POLL_INTERVAL",
        StatusCode::UNAUTHORIZED => ": put the API's key or token into SOURCE_HEADER_FILE",
        StatusCode::FORBIDDEN => {
            ": put the API's key or token into SOURCE_HEADER_FILE, or raise POLL_INTERVAL if the API limits requests"
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => ": correct SOURCE_URL",
        StatusCode::PARTIAL_CONTENT => {
            ": the server sends part of what it has where nothing asks for a part; take `Range` and `Prefer` out of SOURCE_HEADER_FILE"
        }
        StatusCode::NOT_MODIFIED => ", though nobody asked whether anything changed: see to the cache in between",
        _ => "",
    }
}

/// Of the policies in a structured field, as in `"default";r=0;t=30`, the one that is used up, or the first. An older draft has one alone, as in
/// `limit=100, remaining=0, reset=30`.
fn policy(field: &str) -> &str {
    if field.contains("remaining") {
        return field;
    }
    let mut policies = field.split(',');
    let first = policies.next().unwrap_or_default();
    let is_used_up = |policy: &&str| member(policy, ["r", "remaining"]) == Some("0");
    if is_used_up(&first) { first } else { policies.find(is_used_up).unwrap_or(first) }
}

fn member<'a>(policy: &'a str, names: [&str; 2]) -> Option<&'a str> {
    let pairs = policy.split([',', ';']).filter_map(|pair| pair.split_once('='));
    let mut found = pairs.filter(|(name, _)| names.iter().any(|known| known.eq_ignore_ascii_case(name.trim())));
    found.next().map(|(_, value)| value.trim())
}

/// Seconds, a moment in seconds or milliseconds since 1970, or a date. One that has passed is no wait.
fn wait(text: &str, now: Timestamp) -> Option<Duration> {
    let at = match text.parse::<f64>() {
        Ok(number) if !number.is_finite() => return None,
        Ok(number) if number >= EPOCH_SECONDS => {
            let seconds = if number >= EPOCH_MILLIS { number / 1e3 } else { number };
            let since_1970 = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            Timestamp::from_second(i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX)
        }
        // Not below 0.
        Ok(number) => return Duration::try_from_secs_f64(number).ok(),
        Err(_) => moment(text)?,
    };
    let wait: SignedDuration = at.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or_default())
}

/// A date in one of the three forms of RFC 9110, section 5.6.7, or in those of RFC 2822 and RFC 3339, which some servers send.
pub fn moment(text: &str) -> Option<Timestamp> {
    // Years that no timestamp has are far away.
    let http = httpdate::parse_http_date(text).ok().map(|at| Timestamp::try_from(at).unwrap_or(Timestamp::MAX));
    http.or_else(|| Some(rfc2822::parse(text).ok()?.timestamp())).or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn refusal(status: u16, headers: &[(&'static str, &str)]) -> (bool, Option<f64>) {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let now = Timestamp::from_second(NOW).unwrap();
        let Refusal { is_limit, wait, .. } = read(StatusCode::from_u16(status).unwrap(), &headers, now);
        (is_limit, wait.map(|wait| wait.as_secs_f64()))
    }

    #[test]
    fn each_form_of_a_wait_is_understood() {
        for (value, seconds) in [
            ("120", Some(120.0)),
            ("2.0", Some(2.0)),
            ("0.5", Some(0.5)),
            ("Thu, 01 Jan 2026 00:01:00 GMT", Some(60.0)),
            ("Thursday, 01-Jan-26 00:01:00 GMT", Some(60.0)),
            ("Thu Jan  1 00:01:00 2026", Some(60.0)),
            ("Thu, 01 Jan 2026 01:01:00 +0100", Some(60.0)),
            ("2026-01-01T00:01:00Z", Some(60.0)),
            ("Wed, 31 Dec 2025 00:00:00 GMT", Some(0.0)),
            ("1767225630", Some(30.0)),
            ("1767225630500", Some(30.0)),
            ("18446744073709551615", Some(3600.0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3600.0)),
            ("soon", None),
            ("-1", None),
            ("inf", None),
            ("NaN", None),
        ] {
            assert_eq!(refusal(429, &[("retry-after", value)]), (true, seconds), "{value}");
        }
        // By the server's own clock, which is an hour ahead.
        let ahead = [("date", "Thu, 01 Jan 2026 01:00:00 GMT"), ("retry-after", "Thu, 01 Jan 2026 01:00:07 GMT")];
        assert_eq!(refusal(503, &ahead), (true, Some(7.0)));
    }

    #[test]
    fn a_limit_is_known_by_its_status_or_by_a_budget_that_is_used_up() {
        for (status, headers, expected) in [
            (429, &[][..], (true, None)),
            (429, &[("x-ratelimit-reset", "1767225630")], (true, Some(30.0))),
            (429, &[("ratelimit", "\"default\";r=0;t=9")], (true, Some(9.0))),
            (429, &[("ratelimit", "limit=100, remaining=0, reset=9")], (true, Some(9.0))),
            (429, &[("ratelimit", "\"day\";r=50;t=30, \"minute\";r=0;t=9")], (true, Some(9.0))),
            (429, &[("x-ms-retry-after-ms", "1500")], (true, Some(1.5))),
            (429, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset-after", "1.25")], (true, Some(1.25))),
            (403, &[], (false, None)),
            (403, &[("retry-after", "5")], (true, Some(5.0))),
            (403, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1767225660")], (true, Some(60.0))),
            (403, &[("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", "1767225660")], (false, None)),
            (503, &[], (false, None)),
            (429, &[("retry-after", "0"), ("x-ratelimit-reset", "8")], (true, Some(8.0))),
            (503, &[("retry-after", "5")], (true, Some(5.0))),
            (500, &[("retry-after", "5")], (true, Some(5.0))),
            (404, &[("retry-after", "5")], (false, None)),
        ] {
            assert_eq!(refusal(status, headers), expected, "{status} {headers:?}");
        }
    }
}
