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
    /// The number by which the answer says how it went, as in `"code": 0`: which one is good shows only beside another page.
    pub code: Option<String>,
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
        let named = ["total", "pagination", "continuation", "next", "page-token"];
        if !name.contains("ratelimit") && (name.starts_with("x-") || named.iter().any(|part| name.contains(part))) {
            let bare = name.trim_start_matches("x-").trim_start_matches("pagination-");
            self.classify(name, bare, &serde_json::Value::from(value).to_string(), LEVELS);
            // `X-Pagination: {"TotalCount":57}`, as ASP.NET says it.
            if !members(value).is_empty() {
                self.read_object(name, value, &[], 0);
            }
        }
    }

    /// The members of an object and those some levels down, and the same for each object on the way to the records.
    fn read_object(&mut self, at: &str, object: &str, path: &[String], levels: u8) {
        let read = serde_json::from_str::<BTreeMap<String, &RawValue>>(object);
        if read.is_err() && object.starts_with('{') {
            self.more.push(format!("`{at}` has a member whose name is no text"));
        }
        let members = read.unwrap_or_default();
        // `"paging": {"start": 0, "count": 10}` repeats what was asked for, as LinkedIn has it.
        let is_of_a_page =
            members.contains_key("start") && !["limit", "size", "rows"].iter().any(|name| members.contains_key(*name));
        for (name, value) in members {
            if name == "count" && is_of_a_page {
                continue;
            }
            let there = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
            if path.first() != Some(&name) {
                self.classify(&there, &name, value.get(), levels);
                if levels > 0 {
                    self.read_object(&there, value.get(), &[], levels - 1);
                }
            } else if path.len() > 1 {
                self.read_failure(value.get());
                self.read_object(&there, value.get(), &path[1..], LEVELS);
            }
        }
    }

    /// An answer that is a failure, whatever its status says.
    fn read_failure(&mut self, object: &str) {
        for (name, value) in members(object) {
            let (word, said) = (letters(&name), value.get().trim_matches('"').to_ascii_lowercase());
            let is_failure = match word.as_str() {
                "error" | "errors" | "errormessage" => !is_one_of(&said, "null false 0 [] {}") && !said.is_empty(),
                "ok" | "success" | "issuccess" => is_one_of(&said, "false 0"),
                "haserror" | "haserrors" => is_one_of(&said, "true 1"),
                "status" | "result" => is_one_of(&said, "error fail failed failure timeout"),
                "errcode" | "errno" | "errorcode" | "retcode" => said.parse().is_ok_and(|code: i64| code != 0),
                _ => false,
            };
            if is_one_of(&word, "code statuscode") && said.parse::<i64>().is_ok() {
                self.code.get_or_insert(format!("`{name}` is {said}"));
            }
            if is_failure {
                self.failure.get_or_insert(format!("`{name}` is {}", quoted(value.get())));
            }
        }
    }

    fn classify(&mut self, at: &str, name: &str, json: &str, levels: u8) {
        let word = letters(name);
        // Numbers and words for true and false are written as text, too.
        let plain = json.trim_matches('"');
        let number = plain.parse::<u64>().ok().or_else(|| plain.strip_suffix(".0")?.parse().ok());
        let is_true = match plain.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            // `has_more: 1`; but `last: 1` is a number.
            "1" | "0" if is_more_word(&word) => Some(plain == "1"),
            _ => None,
        };
        match (is_true, number) {
            // Far from the records they are of something else.
            (Some(is_true), _) if levels > 0 && (is_end_word(&word) || is_more_word(&word)) => {
                if is_end_word(&word) == is_true {
                    self.is_end |= is_clear_word(&word);
                } else {
                    self.more.push(format!("`{at}` is {plain}"));
                }
            }
            (_, Some(pages)) if is_count_of_pages(&word) => self.pages.push((at.to_owned(), pages)),
            (_, Some(total)) if is_total_word(&word) => self.totals.push((at.to_owned(), total)),
            // `"total": {"value": 57, "relation": "eq"}`, as Elasticsearch says it; `gte` means that there are more.
            (_, None) if json.starts_with('{') && is_total_word(&word) => {
                let total = members(json);
                let value = total.get("value").and_then(|value| value.get().parse::<u64>().ok());
                let is_least = total.get("relation").is_some_and(|relation| relation.get().contains("gte"));
                self.totals.extend(value.map(|value| (at.to_owned(), value.saturating_add(u64::from(is_least)))));
            }
            (_, None) if json.starts_with('[') && is_one_of(&word, "link links") => {
                let next = linked(json, "next").map(|value| Next { at: format!("{at}/next"), value });
                self.next.extend(next);
            }
            _ if is_next_word(&word) || is_cursor_word(&word) || is_more_word(&word) && json.starts_with('"') => {
                let next = first_filled(at, json, LEVELS);
                // A number is a place only where its name says so. An object that is next may have members that are, too.
                let next = next.filter(|next| {
                    is_next_word(&word)
                        || word == "cursor" && next.at == at
                        || word == "lastevaluatedkey"
                        || next.value.starts_with('"')
                });
                self.next.extend(next.filter(|next| !self.next.contains(next)));
            }
            _ => {}
        }
    }
}

/// Its letters and digits, in lower case.
fn letters(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// Of a value that is true or false: `hasMore`, `has_next_page`, `truncated`, `timed_out`; not of one that leads back.
fn is_more_word(word: &str) -> bool {
    let parts = ["hasnext", "more", "truncated", "incomplete", "exceeded"];
    let leads_back = word.contains("before") || word.contains("prev");
    !leads_back
        && (parts.iter().any(|part| word.contains(part)) || is_one_of(word, "timedout partial"))
        && !is_end_word(word)
}

/// Of a value that is true or false.
fn is_end_word(word: &str) -> bool {
    let words =
        "islast islastpage last lastpage done isdone complete iscomplete finished isfinished end isend eof foundnewest";
    word.starts_with("endof") || word.starts_with("nomore") || is_one_of(word, words)
}

/// Those of the words above that can mean nothing but the end of the collection.
fn is_clear_word(word: &str) -> bool {
    let words = "more hasmore hasmoreitems hasmorepages hasmoreresults moreitemsincollection hasnext hasnextpage islast islastpage last lastpage \
                 done endofstream endofrecords endofresults endoflist nomore";
    is_one_of(word, words)
}

/// `next`, `nextPageToken`, `@odata.nextLink`, but neither `nextRunAt` nor `nextSyncToken`.
fn is_next_word(word: &str) -> bool {
    let kinds =
        "page cursor token link url uri href offset start marker record result batch key id index request range";
    let kind = word.split_once("next").map(|(_, kind)| kind);
    kind.is_some_and(|kind| kind.is_empty() || kinds.split(' ').any(|known| kind.starts_with(known)))
}

fn is_cursor_word(word: &str) -> bool {
    let words = "cursor endcursor aftercursor after continue marker bookmark scrollid offset pagetoken paginationtoken lastevaluatedkey";
    word.contains("continuation") || word.starts_with("resumption") || is_one_of(word, words)
}

fn is_count_of_pages(word: &str) -> bool {
    let words = "pages pagecount nbpages numpages lastpage maxpage";
    word.contains("page") && (word.contains("total") || is_one_of(word, words))
}

fn is_total_word(word: &str) -> bool {
    let words = "count odatacount numfound numresults numbermatched nbhits found recordcount resultcount itemcount hitcount rowcount";
    // What is measured is not counted.
    let measured = ["page", "time", "second", "duration", "amount", "price", "cost", "tax", "bytes"];
    word.contains("total") && !measured.iter().any(|measured| word.contains(measured)) || is_one_of(word, words)
}

fn is_one_of(word: &str, words: &str) -> bool {
    words.split_ascii_whitespace().any(|known| known == word)
}

/// The members of an object; nothing of anything else, and nothing of an object with a name that is no text.
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
        _ if json.starts_with('{') => first_filled("", json, u8::MAX).is_some(),
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
    ["href", "@href", "url", "uri"].iter().find_map(|name| link(links, relation, &[(*name).to_owned()]))
}

fn link(links: &str, relation: &str, rest: &[String]) -> Option<String> {
    let is_wanted = |link: &&RawValue| {
        let link = members(link.get());
        // It may be one of several.
        let named = ["rel", "relation", "@ref"].iter().filter_map(|name| link.get(*name));
        named.into_iter().any(|name| name.get().to_ascii_lowercase().contains(&format!("\"{relation}\"")))
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
            (r#"{"features":null,"exceededTransferLimit":true}"#, "/features", "`/exceededTransferLimit` is true"),
            (r#"{"data":null,"has_more":1}"#, "/data", "`/has_more` is 1"),
            (r#"{"messages":null,"found_newest":false}"#, "/messages", "`/found_newest` is false"),
            (r#"{"data":null,"IsTruncated":"true"}"#, "/data", "`/IsTruncated` is true"),
            (r#"{"data":null,"meta":{"\ud800":1}}"#, "/data", "`/meta` has a member whose name is no text"),
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
        for around in [
            r#"{"data":null,"truncated":false,"ok":true}"#,
            r#"{"data":null,"has_more_before":false,"shards":{"complete":true},"page":{"first":0,"last":1}}"#,
            r#"{"data":null,"deep":{"er":{"and":{"has_more":true}}}}"#,
        ] {
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
            (r#"{"data":null,"links":[{"@ref":"Next","@href":"b"}]}"#, "/links/next", r#""b""#),
            (r#"{"data":null,"cursor":10}"#, "/cursor", "10"),
        ] {
            assert_eq!(read(around, "/data").next, [Next { at: at.into(), value: value.into() }], "{around}");
        }
        for around in [
            r#"{"data":null,"next":null,"next_cursor":"","links":{"next":{"href":null}},"paging":{}}"#,
            r#"{"data":null,"offset":10,"nextSyncToken":"s","has_next_page":false,"next_page":0,"next_update_at":"x"}"#,
            r#"{"data":null,"cursor":{"next":null,"count":7}}"#,
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
            (r#"{"hits":{"total":{"value":57,"relation":"gte"}},"data":null}"#, vec![("/hits/total", 58)]),
            (
                r#"{"data":null,"@odata.count":57,"meta":{"hydra:totalItems":"58"}}"#,
                vec![("/@odata.count", 57), ("/meta/hydra:totalItems", 58)],
            ),
            (r#"{"data":null,"count":57,"total_time_ms":99,"size":100,"limit":100}"#, vec![("/count", 57)]),
            (r#"{"data":null,"paging":{"start":0,"limit":10,"count":57}}"#, vec![("/paging/count", 57)]),
            (r#"{"data":null,"paging":{"start":0,"count":10,"total":57}}"#, vec![("/paging/total", 57)]),
        ] {
            let expected: Vec<_> = totals.into_iter().map(|(at, total)| (at.to_owned(), total)).collect();
            assert_eq!(read(around, "/data").totals, expected, "{around}");
        }
        assert_eq!(read(r#"{"data":null,"last_page":6}"#, "/data").pages, [("/last_page".to_owned(), 6)]);
        let headers = [
            ("x-wp-total", "57"),
            ("x-wp-totalpages", "6"),
            ("x-next-page", "2"),
            ("x-ms-continuationtoken", "a"),
            ("x-prev-page", ""),
            ("x-ratelimit-total", "9"),
            ("x-nextjs-cache", "HIT"),
            ("x-request-info", "{no JSON}"),
            ("x-pagination", r#"{"TotalCount":59}"#),
            ("content-range", "items 0-9/58"),
            ("content-length", "99"),
            ("x-pagination-page-count", "7"),
            ("next-range", "]id 10..; max=10"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let signs = Signs::read(&headers, "null", &RecordsAt::default());
        let totals = [("x-wp-total", 57), ("x-pagination/TotalCount", 59), ("content-range", 58)];
        assert_eq!(signs.totals, totals.map(|(at, total)| (at.to_owned(), total)));
        let pages = [("x-wp-totalpages", 6), ("x-pagination-page-count", 7)];
        assert_eq!(signs.pages, pages.map(|(at, pages)| (at.to_owned(), pages)));
        let next =
            [("x-next-page", "\"2\""), ("x-ms-continuationtoken", "\"a\""), ("next-range", "\"]id 10..; max=10\"")];
        assert_eq!(signs.next, next.map(|(at, value)| Next { at: at.into(), value: value.into() }));
    }

    #[test]
    fn an_answer_that_failed_says_so_itself() {
        for (around, failure) in [
            (r#"{"errcode":40001,"data":null}"#, Some("`errcode` is 40001")),
            (r#"{"ok":false,"error":"token_revoked"}"#, Some("`error` is \"token_revoked\"")),
            (r#"{"errors":[{"message":"no"}],"data":null}"#, Some("`errors` is [{\"message\":\"no\"}]")),
            (r#"{"success":false}"#, Some("`success` is false")),
            (r#"{"status":"error","message":"slow down","data":null}"#, Some("`status` is \"error\"")),
            (r#"{"isSuccess":"false","data":null}"#, Some("`isSuccess` is \"false\"")),
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
