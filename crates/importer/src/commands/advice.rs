//! What a person should know of an API before its records become rows: where the records and their ids are likely to be, and whether there is
//! more than its answers show.

use std::{collections::HashSet, os::unix::fs::FileExt};

use serde_json::Value;
use shared::{archive::Upload, json_pointer::JsonPointer};

use crate::{
    request::{Place, Request},
    retry::is_transient,
    source::{Api, PollError},
};

/// A longer page is not looked into.
const LIMIT_BYTES: u64 = 16 << 20;

/// Members of members of members: what is deeper is no record's id and no page's records.
const DEPTH: usize = 4;

/// A longer text is hardly an id.
const ID_BYTES: usize = 100;

/// What APIs call the number of a page, the number of records to pass, and the record to go on behind. All names of a row go into one request.
/// Only where that does not bring the same records are its groups tried, and then its names.
const USUAL: [&[(Counts, &[&str])]; 3] = [
    &[
        (Counts::Pages, &["page", "_page", "p", "pageNumber", "page_number", "pageNo", "page[number]"]),
        (
            Counts::Records,
            &["offset", "skip", "start", "from", "startAt", "startIndex", "resultOffset", "$offset", "$skip"],
        ),
    ],
    &[(Counts::LastId, &["after", "starting_after"])],
    &[(Counts::LastId, &["before"])],
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    Pages,
    Records,
    /// Nothing: it brings the last record's id.
    LastId,
}

/// What a request with further parameters brings.
#[derive(PartialEq, Eq)]
enum Brings {
    /// What came without them, or part of it.
    TheSame,
    Others,
    NoRecords,
    /// The API refuses it.
    AnError,
}

/// Whether there is more than a page shows.
pub enum Verdict {
    /// These settings bring it.
    More(String),
    /// No usual parameter brings other records.
    Nothing,
    /// It was not tried, for this reason.
    NotTried(&'static str),
}

/// Asks with the usual parameters whether records come that are not on the page, which seems to be all.
pub async fn find_more(api: &Api, page: Option<&Value>, records_at: &str) -> Result<Verdict, PollError> {
    let first = api.first()?;
    let Some(page) = page else { return Ok(Verdict::NotTried("the page is no JSON document of at most 16 MiB")) };
    if first.body.is_some() {
        return Ok(Verdict::NotTried("the requests have a body"));
    }
    let records = records_of(page, records_at);
    let probe = Probe { api, first, records_at, known: texts(records) };
    if probe.known.is_empty() {
        return Ok(Verdict::NotTried("there are no records yet"));
    }
    if probe.ask(&probe.first).await?.is_none_or(|again| again != probe.known) {
        return Ok(Verdict::NotTried("the records change with each request"));
    }
    let id_at = likely_ids(records).into_iter().next().unwrap_or_default();
    let last_id = records.last().and_then(|record| record.pointer(&id_at)).filter(|_| !id_at.is_empty());
    let values = |counts| -> Vec<Value> {
        match counts {
            // The first page may have the number 0.
            Counts::Pages => vec![2.into(), 1.into()],
            Counts::Records => vec![probe.known.len().into()],
            Counts::LastId => last_id.cloned().into_iter().collect(),
        }
    };
    let together = |names: &[&'static str], value: Option<&Value>| -> Vec<(&'static str, Value)> {
        names.iter().zip(value.into_iter().cycle()).map(|(name, value)| (*name, value.clone())).collect()
    };
    for row in USUAL {
        let all: Vec<_> = row.iter().flat_map(|(counts, names)| together(names, values(*counts).first())).collect();
        if all.is_empty() || probe.brings(&all).await? == Brings::TheSame {
            continue;
        }
        for (counts, names) in row {
            for value in values(*counts) {
                if matches!(probe.brings(&together(names, Some(&value))).await?, Brings::TheSame | Brings::NoRecords) {
                    continue;
                }
                // Some APIs refuse all of them for one that they do not know.
                for name in *names {
                    if probe.brings(&[(*name, value.clone())]).await? != Brings::Others {
                        continue;
                    }
                    let advice = match counts {
                        Counts::Records => format!("NEXT_PAGE={name}+records"),
                        Counts::LastId => format!("NEXT_PAGE={name}={records_at}/-1{id_at}"),
                        Counts::Pages => {
                            let begins = u8::from(probe.brings(&[(*name, 1.into())]).await? != Brings::Others);
                            format!("NEXT_PAGE={name}+1, and {name}={begins} in SOURCE_URL")
                        }
                    };
                    return Ok(Verdict::More(format!("with {name}={value} other records come: set {advice}")));
                }
            }
        }
    }
    Ok(Verdict::Nothing)
}

/// Asks for the collection in other ways, and compares.
struct Probe<'a> {
    api: &'a Api,
    first: Request,
    records_at: &'a str,
    known: HashSet<String>,
}

impl Probe<'_> {
    /// The records that come; `None` for what is no JSON.
    async fn ask(&self, request: &Request) -> Result<Option<HashSet<String>>, PollError> {
        let page = read(&self.api.peek(request).await?.upload);
        Ok(page.map(|page| texts(records_of(&page, self.records_at))))
    }

    async fn brings(&self, parameters: &[(&str, Value)]) -> Result<Brings, PollError> {
        let with = |request: Request, (name, value): &(&str, Value)| {
            request.with(&Place::Parameter((*name).to_owned()), value)
        };
        match self.ask(&parameters.iter().fold(self.first.clone(), with)).await {
            Ok(Some(other)) if other.is_empty() => Ok(Brings::NoRecords),
            Ok(Some(other)) if other.is_subset(&self.known) => Ok(Brings::TheSame),
            Ok(Some(_)) => Ok(Brings::Others),
            Err(PollError::Http(error)) if is_transient(&error) => Err(PollError::Http(error)),
            Ok(None) | Err(_) => Ok(Brings::AnError),
        }
    }
}

/// The records of a page, at a place that is a JSON pointer.
pub fn records_of<'a>(page: &'a Value, records_at: &str) -> &'a [Value] {
    page.pointer(records_at).map_or(&[], as_records)
}

fn texts(records: &[Value]) -> HashSet<String> {
    records.iter().map(Value::to_string).collect()
}

/// A page as a document; `None` for one that is longer than 16 MiB or no JSON.
pub fn read(page: &Upload) -> Option<Value> {
    let bytes = usize::try_from(page.bytes).ok().filter(|_| page.bytes <= LIMIT_BYTES)?;
    let mut text = vec![0; bytes];
    page.file.read_exact_at(&mut text, page.offset).ok()?;
    serde_json::from_slice(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text)).ok()
}

/// The records that a place holds: an array's elements, or the one that it is.
fn as_records(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(records) => records,
        record => std::slice::from_ref(record),
    }
}

/// The longest array of objects, which is likely to be that of the records, and where it is.
pub fn likely_records(page: &Value) -> Option<(String, &[Value])> {
    let has_objects = |value: &Value| value.as_array().is_some_and(|records| records.iter().any(Value::is_object));
    let arrays = inside(page).into_iter().filter(|(_, value)| has_objects(value));
    arrays.map(|(at, value)| (at, as_records(value))).max_by_key(|(_, records)| records.len())
}

/// Whether it is an object of nothing but objects, as of records by their ids.
pub fn is_map(page: &Value) -> bool {
    page.as_object().is_some_and(|members| members.len() > 1 && members.values().all(Value::is_object))
}

/// Where records may have their ids: texts and whole numbers that differ from record to record, the likeliest first.
pub fn likely_ids(records: &[Value]) -> Vec<String> {
    let is_id = |at: &str| {
        let mut seen = HashSet::new();
        let id = |record: &Value| match record.pointer(at)? {
            Value::String(text) if text.len() <= ID_BYTES => Some(text.clone()),
            Value::Number(number) if !number.is_f64() => Some(number.to_string()),
            _ => None,
        };
        !at.is_empty() && records.iter().all(|record| id(record).is_some_and(|id| seen.insert(id)))
    };
    let found = records.first().map(inside).unwrap_or_default();
    let mut found: Vec<String> = found.into_iter().map(|(at, _)| at).filter(|at| is_id(at)).collect();
    // The order of those that are as likely stays: the outer ones come first.
    found.sort_by_key(|at| {
        let name = at.rsplit('/').next().unwrap_or_default().to_lowercase();
        let place = ["id", "key", "code", "slug"].iter().position(|word| name.ends_with(word));
        let has_words = records[0].pointer(at).and_then(Value::as_str).is_some_and(|id| id.contains(' '));
        (place.unwrap_or(usize::MAX), has_words)
    });
    found
}

/// Everything in objects in objects, the whole included, by pointers that can be given; what is in arrays is left out.
fn inside(value: &Value) -> Vec<(String, &Value)> {
    let (mut found, mut at) = (vec![(String::new(), value)], 0);
    while let Some((pointer, value)) = found.get(at).cloned() {
        let members = value.as_object().filter(|_| pointer.matches('/').count() < DEPTH);
        for (name, member) in members.into_iter().flatten() {
            let pointer = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
            if pointer.parse::<JsonPointer>().is_ok() {
                found.push((pointer, member));
            }
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_are_likely_in_the_longest_array_of_objects() {
        for (page, likely) in [
            (
                json!({ "data": [{ "id": 1 }, { "id": 2 }], "tags": [{ "t": 1 }], "names": ["a", "b", "c"] }),
                Some("/data"),
            ),
            (json!({ "result": { "a/b": [{ "id": 1 }] } }), Some("/result/a~1b")),
            (json!([{ "id": 1 }]), Some("")),
            (json!({ "ok": false }), None),
        ] {
            assert_eq!(likely_records(&page).map(|(at, _)| at).as_deref(), likely, "{page}");
        }
    }

    #[test]
    fn records_by_their_ids_are_known_by_being_objects() {
        assert!(is_map(&json!({ "7": { "title": "a" }, "9": { "title": "b" } })));
        assert!(!is_map(&json!({ "data": { "id": 1 } })) && !is_map(&json!({ "id": 1, "user": { "id": 2 } })));
    }

    #[test]
    fn ids_differ_from_record_to_record_and_the_likeliest_comes_first() {
        let page = json!([
            { "name": "a b", "key": { "id": 7 }, "price": 1.5, "slug": "x", "of": 1, "none": null },
            { "name": "b b", "key": { "id": 8 }, "price": 2.5, "slug": "y", "of": 1, "none": null },
        ]);
        assert_eq!(likely_ids(as_records(&page)), ["/key/id", "/slug", "/name"]);
        assert_eq!(likely_ids(&[json!(1), json!(2)]), Vec::<String>::new());
    }
}
