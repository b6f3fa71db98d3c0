//! What an answer shows of further pages, beside its records: what APIs call it, in headers and around the records. Pure.
//!
//! Names are compared by their letters alone, so `has_more`, `hasMore` and `X-Has-More` are one word.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use shared::{json_pointer::JsonPointer, records::RecordsAt};

/// How far down objects are looked into.
const LEVELS: u8 = 2;

/// A quoted value is no longer.
const QUOTE_CHARS: usize = 80;

/// What an answer shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Words that say that more follows, for a person, as in "`/has_more` is true".
    pub more: Vec<String>,
    /// Cursors and addresses of something next.
    pub next: Vec<Next>,
    /// Whether a clear word says that nothing follows, as `has_more: false` does.
    pub is_end: bool,
    /// Counts that may be those of the whole collection, by where they stand.
    pub totals: Vec<(String, u64)>,
    /// Counts of pages, by where they stand.
    pub pages: Vec<(String, u64)>,
    /// The answer says of itself that it failed, for a person.
    pub failure: Option<String>,
}

/// A cursor or an address of something next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// Where it stands.
    pub at: String,
    /// As it stands there: JSON, or the value of a header.
    pub value: String,
}

impl Signs {
    /// Reads headers, and the answer around its records.
    pub fn read(headers: &[(String, String)], around: &str, records_at: &RecordsAt) -> Self {
        let mut signs = Self::default();
        for (name, value) in headers {
            signs.read_header(name, value);
        }
        signs.read_failure(around);
        // The members of a record are its own.
        if let RecordsAt::Array(pointer) = records_at {
            signs.read_object("", around, pointer.names(), LEVELS);
        }
        signs
    }

    fn read_header(&mut self, name: &str, value: &str) {
        if name == "content-range" {
            // `items 0-9/57`, as PostgREST and others say it.
            let total = value.rsplit_once('/').and_then(|(_, total)| total.parse().ok());
            self.totals.extend(total.map(|total| (name.to_owned(), total)));
        }
        let is_candidate = name.starts_with("x-") || name.contains("total") || name.contains("pagination");
        if is_candidate && !name.contains("ratelimit") {
            let is_json = matches!(value, "true" | "false") || value.parse::<u64>().is_ok();
            let json = if is_json { value.to_owned() } else { serde_json::Value::from(value).to_string() };
            self.classify(name, name.trim_start_matches("x-"), &json);
        }
    }

    /// An answer that is a failure, whatever its status says.
    fn read_failure(&mut self, around: &str) {
        for (name, value) in members(around) {
            let is_failure = match name.as_str() {
                "error" | "errors" => !is_one_of(value.get(), "null false 0 \"\" [] {}"),
                "ok" | "success" => value.get() == "false",
                _ => false,
            };
            if is_failure {
                self.failure.get_or_insert(format!("`{name}` is {}", quoted(value.get())));
            }
        }
    }

    /// The members of an object and those some levels down, and the same for each object on the way to the records.
    fn read_object(&mut self, at: &str, object: &str, path: &[String], levels: u8) {
        for (name, value) in members(object) {
            let there = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
            match path.split_first() {
                Some((first, [])) if *first == name => {}
                Some((first, rest)) if *first == name => self.read_object(&there, value.get(), rest, LEVELS),
                _ => {
                    self.classify(&there, &name, value.get());
                    if levels > 0 {
                        self.read_object(&there, value.get(), &[], levels - 1);
                    }
                }
            }
        }
    }

    fn classify(&mut self, at: &str, name: &str, json: &str) {
        let word: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        match json.as_bytes().first() {
            Some(b't' | b'f') => match (json == "true", is_end_word(&word), is_more_word(&word)) {
                (true, true, _) => self.is_end |= is_clear_word(&word),
                (false, true, _) | (true, false, true) => self.more.push(format!("`{at}` is {json}")),
                (false, _, true) => self.is_end |= is_clear_word(&word),
                _ => {}
            },
            Some(b'0'..=b'9') if is_count_of_pages(&word) => {
                self.pages.extend(json.parse().ok().map(|pages| (at.to_owned(), pages)));
            }
            Some(b'0'..=b'9') if is_total_word(&word) => {
                self.totals.extend(json.parse().ok().map(|total| (at.to_owned(), total)));
            }
            // `"total": {"value": 57}`, as Elasticsearch says it.
            Some(b'{') if is_total_word(&word) => {
                let value = members(json).into_iter().find(|(name, _)| name == "value");
                self.totals.extend(value.and_then(|(_, value)| Some((at.to_owned(), value.get().parse().ok()?))));
            }
            Some(b'[') if matches!(word.as_str(), "link" | "links") => {
                let next = linked(json, "next").map(|value| Next { at: format!("{at}/next"), value });
                self.next.extend(next);
            }
            _ if is_next_word(&word) || (is_cursor_word(&word) && !json.starts_with(|c: char| c.is_ascii_digit())) => {
                // An object that is next may have members that are, too.
                self.next.extend(first_filled(at, json, LEVELS).filter(|next| !self.next.contains(next)));
            }
            _ => {}
        }
    }
}

/// Of a value that is true or false: `hasMore`, `has_next_page`, `more_items_in_collection`, `truncated`, `timed_out`.
fn is_more_word(word: &str) -> bool {
    word.starts_with("hasnext")
        || ["more", "truncated", "incomplete"].iter().any(|part| word.contains(part))
        || is_one_of(word, "timedout partial")
}

/// Of a value that is true or false: it can be nothing else than the end of the collection.
fn is_clear_word(word: &str) -> bool {
    let words = "hasmore more hasmoreitems moreitemsincollection islast islastpage last lastpage done";
    word.starts_with("hasnext") || word.starts_with("hasmore") || word.starts_with("endof") || is_one_of(word, words)
}

/// Of a value that is true or false.
fn is_end_word(word: &str) -> bool {
    let words = "islast islastpage last lastpage done isdone complete iscomplete finished isfinished end isend eof";
    word.starts_with("endof") || word.starts_with("nomore") || is_one_of(word, words)
}

/// `next`, `nextPageToken`, `@odata.nextLink`, but neither `nextRunAt` nor `nextSyncToken`.
fn is_next_word(word: &str) -> bool {
    let kinds = "page cursor token link url uri href offset start marker record result batch key id index request";
    let kind = word.split_once("next").map(|(_, kind)| kind);
    kind.is_some_and(|kind| kind.is_empty() || kinds.split(' ').any(|known| kind.starts_with(known)))
}

fn is_cursor_word(word: &str) -> bool {
    let words = "cursor endcursor aftercursor after continue marker bookmark scrollid offset";
    word.starts_with("continuation") || word.starts_with("resumption") || is_one_of(word, words)
}

fn is_count_of_pages(word: &str) -> bool {
    let words = "pages pagecount nbpages numpages lastpage maxpage";
    word.contains("page") && (word.contains("total") || is_one_of(word, words))
}

fn is_total_word(word: &str) -> bool {
    let words = "count numfound nbhits found recordstotal recordcount resultcount itemcount hitcount rowcount wptotal";
    // What is measured is not counted.
    let measured = ["page", "time", "second", "duration", "amount", "price", "cost", "tax", "bytes"];
    let is_total = word.starts_with("total") && !measured.iter().any(|measured| word.contains(measured));
    is_total || is_one_of(word, words)
}

fn is_one_of(word: &str, words: &str) -> bool {
    words.split(' ').any(|known| known == word)
}

/// The members of an object. There are none of anything else, and of an object with a name that is no text.
pub fn members(json: &str) -> BTreeMap<String, &RawValue> {
    serde_json::from_str(json).unwrap_or_default()
}

/// The elements of an array; none of anything else.
fn elements(json: &str) -> Vec<&RawValue> {
    serde_json::from_str(json).unwrap_or_default()
}

/// Whether it is more than null, false, 0 and what is empty.
pub fn is_filled(json: &str) -> bool {
    match json {
        "null" | "false" | "\"\"" | "0" => false,
        _ if json.starts_with('{') => first_filled("", json, LEVELS).is_some(),
        _ if json.starts_with('[') => !elements(json).is_empty(),
        _ => !json.is_empty(),
    }
}

/// The first text, number or array in it that is filled, some levels down.
fn first_filled(at: &str, json: &str, levels: u8) -> Option<Next> {
    if json.starts_with('{') {
        let mut inside = members(json).into_iter().filter(|_| levels > 0);
        return inside.find_map(|(name, value)| first_filled(&format!("{at}/{name}"), value.get(), levels - 1));
    }
    (json != "true" && is_filled(json)).then(|| Next { at: at.to_owned(), value: json.to_owned() })
}

/// Where the pointer leads, in the answer around its records. A place in an array is `0` or `-1`, or the relation of a link in it.
pub fn value_at(around: &str, pointer: &[String]) -> Option<String> {
    let Some((first, rest)) = pointer.split_first() else { return Some(around.to_owned()) };
    if around.starts_with('[') {
        let all = elements(around);
        let element = match first.as_str() {
            "-1" => all.last().map(|element| element.get().to_owned()),
            place => match place.parse::<usize>() {
                Ok(place) => all.get(place).map(|element| element.get().to_owned()),
                Err(_) => {
                    return linked(around, place).filter(|_| rest.is_empty()).or_else(|| link(around, place, rest));
                }
            },
        };
        return value_at(&element?, rest);
    }
    value_at(members(around).get(first)?.get(), rest)
}

/// The address of the link with this relation, as in `[{"rel": "next", "href": "…"}]`.
fn linked(links: &str, relation: &str) -> Option<String> {
    ["href", "url", "uri"].iter().find_map(|name| link(links, relation, &[(*name).to_owned()]))
}

fn link(links: &str, relation: &str, rest: &[String]) -> Option<String> {
    let is_wanted = |link: &&RawValue| {
        let link = members(link.get());
        let names = ["rel", "relation"].iter().filter_map(|name| link.get(*name));
        names.into_iter().any(|name| name.get().trim_matches('"') == relation)
    };
    value_at(elements(links).into_iter().find(is_wanted)?.get(), rest)
}

/// For a person.
pub fn quoted(json: &str) -> String {
    match json.char_indices().nth(QUOTE_CHARS) {
        Some((end, _)) => format!("{}…", &json[..end]),
        None => json.to_owned(),
    }
}

/// Where the pointer leads among the records, behind their place and `-1`; `None` if it leads elsewhere.
pub fn in_last_record<'a>(pointer: &'a JsonPointer, records_at: &RecordsAt) -> Option<&'a [String]> {
    let RecordsAt::Array(records_at) = records_at else { return None };
    let (last, rest) = pointer.names().strip_prefix(records_at.names())?.split_first()?;
    (last == "-1").then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(around: &str, records_at: &str) -> Signs {
        Signs::read(&[], around, &records_at.parse().unwrap())
    }

    #[test]
    fn words_that_say_that_more_follows_are_known_however_they_are_written() {
        for (around, at, more) in [
            (r#"{"data":null,"has_more":true}"#, "/data", "`/has_more` is true"),
            (r#"{"data":null,"isLast":false}"#, "/data", "`/isLast` is false"),
            (r#"{"records":null,"done":false}"#, "/records", "`/done` is false"),
            (r#"{"results":null,"endOfRecords":false}"#, "/results", "`/endOfRecords` is false"),
            (r#"{"content":null,"page":{"last":false}}"#, "/content", "`/page/last` is false"),
            (r#"{"hits":{"hits":null},"timed_out":true}"#, "/hits/hits", "`/timed_out` is true"),
            (
                r#"{"data":{"issues":{"nodes":null,"pageInfo":{"hasNextPage":true}}}}"#,
                "/data/issues/nodes",
                "`/data/issues/pageInfo/hasNextPage` is true",
            ),
        ] {
            assert_eq!(read(around, at).more, [more], "{around}");
        }
        for around in [
            r#"{"data":null,"has_more":false}"#,
            r#"{"data":null,"meta":{"isLast":true}}"#,
            r#"{"data":null,"done":true}"#,
            r#"{"data":null,"end_of_stream":true}"#,
        ] {
            let signs = read(around, "/data");
            assert!(signs.is_end && signs.more.is_empty(), "{around}: {signs:?}");
        }
        for around in
            [r#"{"data":null,"truncated":false,"ok":true}"#, r#"{"data":null,"deep":{"er":{"and":{"has_more":true}}}}"#]
        {
            assert_eq!(read(around, "/data"), Signs::default(), "{around}");
        }
    }

    #[test]
    fn what_is_next_is_found_where_it_is_filled() {
        for (around, at, value) in [
            (r#"{"data":null,"next":"https://api/?page=2"}"#, "/next", r#""https://api/?page=2""#),
            (r#"{"data":null,"nextPageToken":"a"}"#, "/nextPageToken", r#""a""#),
            (r#"{"data":null,"@odata.nextLink":"x"}"#, "/@odata.nextLink", r#""x""#),
            (r#"{"data":null,"paging":{"next":{"after":"7","link":"l"}}}"#, "/paging/next/after", r#""7""#),
            (r#"{"data":null,"links":[{"rel":"self"},{"rel":"next","href":"b"}]}"#, "/links/next", r#""b""#),
            (r#"{"data":null,"next_page":2}"#, "/next_page", "2"),
            (r#"{"data":null,"offset":"itr/rec"}"#, "/offset", r#""itr/rec""#),
            (r#"{"data":null,"pagination":{"cursor":"c"}}"#, "/pagination/cursor", r#""c""#),
        ] {
            assert_eq!(read(around, "/data").next, [Next { at: at.into(), value: value.into() }], "{around}");
        }
        for around in [
            r#"{"data":null,"next":null,"next_cursor":"","links":{"next":{"href":null}},"paging":{}}"#,
            r#"{"data":null,"offset":10,"nextSyncToken":"s","has_next_page":false,"next_page":0}"#,
        ] {
            assert_eq!(read(around, "/data").next, [], "{around}");
        }
    }

    #[test]
    fn totals_are_told_from_other_numbers() {
        for (around, totals) in [
            (r#"{"data":null,"total":57}"#, vec![("/total", 57)]),
            (r#"{"data":null,"meta":{"total_count":57,"total_pages":6}}"#, vec![("/meta/total_count", 57)]),
            (r#"{"data":null,"hits":{"total":{"value":57,"relation":"eq"}}}"#, vec![("/hits/total", 57)]),
            (r#"{"data":null,"count":57,"total_time_ms":99,"size":100,"limit":100}"#, vec![("/count", 57)]),
        ] {
            let expected: Vec<_> = totals.into_iter().map(|(at, total)| (at.to_owned(), total)).collect();
            assert_eq!(read(around, "/data").totals, expected, "{around}");
        }
        assert_eq!(read(r#"{"data":null,"last_page":6}"#, "/data").pages, [("/last_page".to_owned(), 6)]);
        let headers = [
            ("x-wp-total", "57"),
            ("x-wp-totalpages", "6"),
            ("x-next-page", "2"),
            ("x-prev-page", ""),
            ("x-ratelimit-total", "9"),
            ("content-range", "items 0-9/58"),
            ("content-length", "99"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let signs = Signs::read(&headers, "null", &RecordsAt::default());
        assert_eq!(signs.totals, [("x-wp-total".to_owned(), 57), ("content-range".to_owned(), 58)]);
        assert_eq!(signs.pages, [("x-wp-totalpages".to_owned(), 6)]);
        assert_eq!(signs.next, [Next { at: "x-next-page".into(), value: "2".into() }]);
    }

    #[test]
    fn an_answer_that_failed_says_so_itself() {
        for (around, failure) in [
            (r#"{"ok":false,"error":"token_revoked"}"#, Some("`error` is \"token_revoked\"")),
            (r#"{"errors":[{"message":"no"}],"data":null}"#, Some("`errors` is [{\"message\":\"no\"}]")),
            (r#"{"success":false}"#, Some("`success` is false")),
            (r#"{"error":null,"errors":[],"ok":true}"#, None),
        ] {
            assert_eq!(read(around, "/data").failure.as_deref(), failure, "{around}");
        }
    }

    #[test]
    fn a_pointer_leads_through_arrays_by_place_and_by_relation() {
        let around = r#"{"a":[1,{"b":2}],"links":[{"rel":"self","href":"x"},{"rel":"next","href":"y"}]}"#;
        for (pointer, value) in [
            ("/a/0", Some("1")),
            ("/a/-1/b", Some("2")),
            ("/links/next", Some("\"y\"")),
            ("/links/next/href", Some("\"y\"")),
            ("/links/prev", None),
            ("/a/7", None),
            ("/b", None),
        ] {
            let names = JsonPointer::with_places_in_arrays(pointer).unwrap();
            assert_eq!(value_at(around, names.names()).as_deref(), value, "{pointer}");
        }
    }
}
