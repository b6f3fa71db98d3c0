//! What is asked for: the whole collection, or only what has changed since a moment. Pure.

use std::{str::FromStr, time::Duration};

use clap::Args;
use jiff::{SignedDuration, Timestamp, fmt::strtime};
use serde_json::Value;
use shared::{
    object::{AsOf, Metadata},
    settings::parse_duration,
};

use crate::request::{Place, Request};

/// How changes are asked for.
#[derive(Args, Clone, Debug)]
pub struct SinceSettings {
    /// Asks only for records that changed since the last poll. PARAMETER=PATTERN: the parameter that filters by the time of change, and how
    /// the API writes a time (strftime, in UTC; %s is seconds since 1970), as in modified_after=%Y-%m-%dT%H:%M:%SZ. A place in
    /// SOURCE_BODY_FILE begins with a slash, as in /filter/after=%s. A filter on the time of creation misses edits [default: the whole collection
    /// at each poll]
    #[arg(long, env = "SINCE", value_name = "FORM")]
    pub since: Option<Since>,
    /// With SINCE: how far before the last poll to ask again, for records that become visible after the time that they bear
    #[arg(long, env = "SINCE_OVERLAP", value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    pub since_overlap: Duration,
    /// With SINCE: how often to ask for the whole collection all the same. Only that shows deletions
    #[arg(long, env = "FULL_REFRESH_INTERVAL", value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    pub full_refresh_interval: Duration,
}

/// Where the time goes, and how it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    place: Place,
    pattern: String,
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((place, pattern)) = text.split_once('=').filter(|(place, _)| !place.is_empty()) else {
            let forms = "it is modified_after=%Y-%m-%dT%H:%M:%SZ for a parameter, or /filter/after=%s for a place in the request's body";
            return Err(forms.to_owned());
        };
        let since = Self { place: place.parse().map_err(|error| format!("{error}"))?, pattern: pattern.to_owned() };
        // Two moments that differ in every field.
        let times = [946_684_800, 1_111_111_111].map(|second| Timestamp::constant(second, 0));
        match times.map(|time| since.written(time)) {
            [Ok(one), Ok(other)] if one != other => Ok(since),
            [Ok(_), Ok(_)] => {
                Err(format!("`{pattern}` holds no time: write %Y, %m, %d and so on where the time stands"))
            }
            [Err(error), _] | [_, Err(error)] => Err(format!("`{pattern}` is not a valid pattern for a time: {error}")),
        }
    }
}

impl Since {
    /// Whether the time stands in the body of the request.
    pub fn is_in_body(&self) -> bool {
        matches!(self.place, Place::Body(_))
    }

    /// Whether a next address leads from changes to the whole collection: it lacks the parameter, and all that it has besides are parameters of
    /// the first request and numbers of a page. What is no number may stand for all that was asked, as a cursor does.
    pub fn is_lost(&self, first: &Request, next: &Request) -> bool {
        let Place::Parameter(since) = &self.place else { return false };
        let has = |request: &Request, name: &str| request.url.query_pairs().any(|(known, _)| known == name);
        let is_page = |value: &str| value.parse::<u32>().is_ok();
        first.url.path() == next.url.path()
            && !has(next, since)
            && next.url.query_pairs().all(|(name, value)| has(first, &name) || is_page(&value))
    }

    fn written(&self, time: Timestamp) -> Result<String, jiff::Error> {
        strtime::format(&self.pattern, time)
    }

    /// The request for what has changed since then. A pattern of nothing but `%s` is a number where a body has one.
    pub fn asked(&self, request: &Request, time: Timestamp) -> Request {
        let text = self.written(time).expect("the pattern was tried");
        let value = match (&self.place, text.parse::<i64>()) {
            (Place::Body(_), Ok(number)) => Value::from(number),
            _ => Value::from(text),
        };
        request.with(&self.place, &value)
    }
}

/// From when on changes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// By the API's clock.
    pub since: Timestamp,
    /// How far that clock was ahead of ours.
    ahead: SignedDuration,
    /// How much less ahead it may be now.
    tolerance: SignedDuration,
}

impl SinceSettings {
    /// From when on to ask for changes; `None` where the whole collection is to be asked for. `last` is the end of the archive, with the times
    /// of what was asked since, and `request` what is asked now.
    pub fn change(&self, last: Option<&Metadata>, request: u16, now: Timestamp) -> Option<Change> {
        self.since.as_ref()?;
        // What was cut, or asked of something else, says nothing of the collection.
        let last = last.filter(|last| last.last_page && last.facts.request == Some(request))?;
        let (as_of, whole_at) = (last.facts.as_of?, last.facts.whole_at?);
        // One in the future is old.
        let age = Duration::try_from(now.duration_since(whole_at)).ok()?;
        if age >= self.full_refresh_interval {
            return None;
        }
        let overlap = SignedDuration::try_from(self.since_overlap).ok()?;
        // A `Date` has whole seconds.
        let tolerance = (overlap / 3).max(SignedDuration::from_secs(1));
        Some(Change { since: as_of.api.checked_sub(overlap).ok()?, ahead: as_of.ahead(), tolerance })
    }
}

/// What an answer says of the time, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct AnswerTime {
    /// Its `Date`, by the API's clock.
    pub date: Option<Timestamp>,
    /// Its `Age`: how long it lay in a cache.
    pub age: SignedDuration,
    /// When it was asked for, by our clock.
    pub asked: Timestamp,
    /// When it began to arrive, by our clock.
    pub arrived: Timestamp,
}

impl AnswerTime {
    /// When the API was asked, by both clocks; by ours alone where it says no `Date`. Cut to a second, as `Date` is.
    pub fn as_of(&self) -> AsOf {
        let passed = self.age + self.arrived.duration_since(self.asked);
        let api = self.date.and_then(|date| date.checked_sub(passed).ok()).unwrap_or(self.asked);
        AsOf { api: Timestamp::from_second(api.as_second()).unwrap_or(api), ours: self.asked }
    }

    /// Whether the API's clock was set back since it was asked last, so that changes may bear times before those that are asked for.
    pub fn is_behind(&self, change: &Change) -> bool {
        self.date.is_some_and(|date| {
            let ahead = date.duration_since(self.arrived) + self.age;
            date < change.since || ahead < change.ahead - change.tolerance
        })
    }
}

#[cfg(test)]
mod tests {
    use shared::object::{Sequence, Sha256, SnapshotFacts};
    use uuid::Uuid;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_time_is_written_as_the_api_has_it() {
        let time = at(1_796_051_045);
        for (form, url, body) in [
            ("modified_after=%Y-%m-%dT%H:%M:%SZ", "http://api/posts?a=1&modified_after=2026-11-30T15%3A04%3A05Z", None),
            ("updated[gte]=%s", "http://api/posts?a=1&updated%5Bgte%5D=1796051045", None),
            (
                "q=SELECT Id FROM Lead WHERE LastModifiedDate >= %Y-%m-%dT%H:%M:%SZ",
                "http://api/posts?a=1&q=SELECT+Id+FROM+Lead+WHERE+LastModifiedDate+%3E%3D+2026-11-30T15%3A04%3A05Z",
                None,
            ),
            ("/filter/after=%s", "http://api/posts?a=1", Some(r#"{"all":[{}],"filter":{"after":1796051045}}"#)),
            ("/since=%d.%m.%Y", "http://api/posts?a=1", Some(r#"{"all":[{}],"filter":{},"since":"30.11.2026"}"#)),
            ("/all/0/value=%s", "http://api/posts?a=1", Some(r#"{"all":[{"value":1796051045}],"filter":{}}"#)),
        ] {
            let since: Since = form.parse().unwrap();
            let request = Request {
                url: "http://api/posts?a=1".parse().unwrap(),
                body: body.map(|_| serde_json::json!({ "filter": {}, "all": [{}] })),
            };
            let asked = since.asked(&request, time);
            assert_eq!((asked.url.as_str(), asked.body.map(|body| body.to_string()).as_deref()), (url, body), "{form}");
        }
        for wrong in ["", "since", "=%s", "since=now", "since=%Q"] {
            assert!(wrong.parse::<Since>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_next_address_that_forgets_the_time_is_known() {
        let since: Since = "since=%s".parse().unwrap();
        let request = |url: &str| Request { url: url.parse().unwrap(), body: None };
        let first = request("http://api/posts?a=1&since=7");
        for (next, is_lost) in [
            ("http://api/posts?a=1&since=7&page=2", false),
            ("http://api/posts?a=1&page=2", true),
            ("http://api/posts?page=2", true),
            ("http://api/posts?cursor=c2luY2U9Nw", false),
            ("http://api/posts/pages/2?page=2", false),
        ] {
            assert_eq!(since.is_lost(&first, &request(next)), is_lost, "{next}");
        }
        assert!(!"/since=%s".parse::<Since>().unwrap().is_lost(&first, &request("http://api/posts?page=2")));
    }

    #[test]
    fn changes_are_asked_for_behind_what_is_sure_and_until_the_whole_is_due() {
        let settings = SinceSettings {
            since: Some("since=%s".parse().unwrap()),
            since_overlap: Duration::from_mins(1),
            full_refresh_interval: Duration::from_secs(1_000),
        };
        let end = Metadata {
            archive_id: Uuid::nil(),
            observation: Uuid::nil(),
            previous: None,
            sha256: Sha256([0; 32]),
            fetched_at: at(0),
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: Sequence::FIRST,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256([0; 32]),
            facts: SnapshotFacts {
                request: Some(7),
                as_of: Some(AsOf { api: at(10_000), ours: at(2_000) }),
                whole_at: Some(at(2_000)),
                ..SnapshotFacts::default()
            },
        };
        let with = |change: fn(&mut Metadata)| {
            let mut end = end.clone();
            change(&mut end);
            end
        };
        let since = |end: &Metadata, now| settings.change(Some(end), 7, at(now)).map(|change| change.since.as_second());
        assert_eq!([2_000, 2_999, 3_000, 1_999].map(|now| since(&end, now)), [Some(9_940), Some(9_940), None, None]);
        assert_eq!(since(&with(|end| end.last_page = false), 2_500), None);
        assert_eq!(since(&with(|end| end.facts.request = Some(8)), 2_500), None);
        assert_eq!(since(&with(|end| end.facts.as_of = None), 2_500), None);
        assert_eq!(settings.change(None, 7, at(2_500)), None);
        let none = SinceSettings { since: None, ..settings.clone() };
        assert_eq!(none.change(Some(&end), 7, at(2_500)), None);

        // The API's clock is 8,000 s ahead, and may be 20 s less.
        let change = settings.change(Some(&end), 7, at(2_500)).unwrap();
        let answer = |date: Option<i64>, age| AnswerTime {
            date: date.map(at),
            age: SignedDuration::from_secs(age),
            asked: at(2_500),
            arrived: at(2_503),
        };
        for (date, age, is_behind) in [
            (Some(10_503), 0, false),
            (Some(10_483), 0, false),
            (Some(10_482), 0, true),
            (Some(10_203), 300, false),
            (Some(9_939), 564, true),
            (None, 0, false),
        ] {
            assert_eq!(answer(date, age).is_behind(&change), is_behind, "{date:?} {age}");
        }
        assert_eq!(answer(Some(10_203), 300).as_of(), AsOf { api: at(9_900), ours: at(2_500) });
        assert_eq!(answer(None, 0).as_of(), AsOf { api: at(2_500), ours: at(2_500) });
    }
}
