//! Whether an API's first page can become documents, and what to ask for instead. Pure.

use std::collections::HashSet;

use serde::de::IgnoredAny;
use serde_json::Value;
use shared::document::{Document, JsonPointer, Place};

/// A page is judged as a whole, and not beyond this.
pub(crate) const LIMIT_BYTES: usize = 16 << 20;

/// Members of members of members: what is deeper is no record's id and no page's records.
const DEPTH: usize = 4;

/// A longer text is hardly an id.
const ID_BYTES: usize = 100;

/// Other places of ids that are named beside the best.
const SHOWN_IDS: usize = 3;

/// Where to look in a page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pointers {
    /// `--records-at`; the page itself unless it is given.
    pub(crate) records: JsonPointer,
    /// `--id-at`
    pub(crate) id: JsonPointer,
    /// `CURSOR_AT`, if it is set.
    pub(crate) cursor: Option<JsonPointer>,
    /// Whether its next page is found in another way.
    pub(crate) is_paged: bool,
}

/// What a person should know of a page from which documents can come, a line each; or why none can, and below that what to try.
pub(crate) fn judge(page: &[u8], at: &Pointers) -> Result<Vec<String>, String> {
    let bare = page.strip_prefix(b"\xef\xbb\xbf").unwrap_or(page);
    let Ok(document) = serde_json::from_slice::<Value>(bare) else {
        // A number or half of a character that is JSON to the transformer costs one record there.
        let json = serde_json::from_slice::<IgnoredAny>(bare).map(|_| Vec::new());
        return json.map_err(|error| format!("it is no JSON: {error}\nname the address that answers with the data"));
    };
    let has_cursor = at.cursor.as_ref().is_some_and(|at| document.pointer(&at.to_string()).is_some());
    let is_paged = at.is_paged || has_cursor;
    let (records_at, id_at) = (at.records.to_string(), at.id.to_string());
    let records = document.pointer(&records_at).map_or(&[][..], as_records);
    let ids: Vec<String> = records.iter().filter_map(|record| id_of(record, &id_at)).collect();
    let why = match Document::new(page, LIMIT_BYTES).descend(&at.records) {
        Ok(Place::Value(b'[' | b'{' | b'n')) if records.is_empty() || !ids.is_empty() => None,
        Ok(Place::Value(b'[' | b'{')) => Some(format!("no record in it has a text or a number at {id_at}")),
        Ok(Place::Value(first)) => Some(at.records.found_there(first)),
        Ok(Place::Absent { found } | Place::Astray { found }) => Some(found),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = why {
        let likely = likely_records(&document, &records_at).filter(|(_, value)| value.is_array());
        let next = likely.and_then(|(at, _)| next_page(&document, &at)).filter(|_| !is_paged);
        let advice = advice(&document, &records_at, &id_at);
        return Err([Some(why), Some(advice), next].into_iter().flatten().collect::<Vec<_>>().join("\n"));
    }
    let mut notes = Vec::new();
    if records.is_empty() {
        notes.push("there are no records yet".to_owned());
    }
    let (all, distinct) = (ids.len(), ids.into_iter().collect::<HashSet<_>>().len());
    if distinct < all {
        let advice = advice(&document, &records_at, "");
        notes.push(format!(
            "{all} records of the first page have {distinct} ids at {id_at}, and the last of each stays: {advice}"
        ));
    }
    if !is_paged && !at.records.is_root() {
        notes.extend(next_page(&document, &records_at));
    }
    Ok(notes)
}

fn as_records(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(records) => records,
        record => std::slice::from_ref(record),
    }
}

fn id_of(record: &Value, at: &str) -> Option<String> {
    match record.pointer(at)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Where the records are likely to be: where they should be, or in the longest array of objects, or the page is one.
fn likely_records<'a>(document: &'a Value, records_at: &str) -> Option<(String, &'a Value)> {
    let there = document.pointer(records_at).map(|value| (records_at.to_owned(), value));
    if there.as_ref().is_some_and(|(_, value)| value.is_array()) {
        return there;
    }
    let has_objects = |value: &Value| value.as_array().is_some_and(|records| records.iter().any(Value::is_object));
    let arrays = inside(document).into_iter().filter(|(_, value)| has_objects(value));
    let longest = arrays.max_by_key(|(_, value)| as_records(value).len());
    longest.or(there.filter(|(_, value)| value.is_object()))
}

/// What would fit the page.
fn advice(document: &Value, records_at: &str, id_at: &str) -> String {
    let Some((at, value)) = likely_records(document, records_at) else {
        return "there is no object and no array of objects in it: name the address that answers with the data"
            .to_owned();
    };
    let records = as_records(value);
    let mut flags = Vec::new();
    if at != records_at {
        flags.push(if at.is_empty() { "without --records-at".to_owned() } else { format!("--records-at {at}") });
    }
    if !records.iter().any(|record| id_of(record, id_at).is_some()) {
        let ids = ids(records);
        let Some((best, others)) = ids.split_first() else {
            return "a document is known by a text or a number that differs from record to record, and these have none"
                .to_owned();
        };
        let others = others.iter().take(SHOWN_IDS).map(|other| format!(" or {other}"));
        flags.push(format!("--id-at {best}{}", others.collect::<String>()));
    }
    format!("try {}", flags.join(" "))
}

/// Texts and whole numbers that differ from record to record, the likeliest id first.
fn ids(records: &[Value]) -> Vec<String> {
    let id = |record: &Value, at: &str| {
        let id = id_of(record, at).filter(|id| id.len() <= ID_BYTES);
        id.filter(|_| !record.pointer(at).is_some_and(Value::is_f64))
    };
    let is_id = |at: &str| {
        let mut seen = HashSet::new();
        !at.is_empty() && records.iter().all(|record| id(record, at).is_some_and(|id| seen.insert(id)))
    };
    let found = records.first().map(inside).unwrap_or_default();
    let mut found: Vec<String> = found.into_iter().map(|(at, _)| at).filter(|at| is_id(at)).collect();
    // The order of those that are as likely stays: the outer ones come first.
    found.sort_by_key(|at| {
        let place = ["id", "key", "code", "slug"].iter().position(|word| last_name(at).ends_with(word));
        let has_words = id_of(&records[0], at).is_some_and(|id| id.contains(' '));
        (place.unwrap_or(usize::MAX), has_words)
    });
    found
}

fn last_name(at: &str) -> String {
    at.rsplit('/').next().unwrap_or_default().to_lowercase()
}

/// A page that is named outside the records, and not asked for.
fn next_page(document: &Value, records_at: &str) -> Option<String> {
    let is_next = |at: &str| {
        let name = last_name(at);
        (name.contains("next") || name.contains("cursor")) && !at.starts_with(&format!("{records_at}/"))
    };
    let (at, next) = inside(document).into_iter().find(|(at, value)| {
        is_next(at) && (value.is_number() || value.as_str().is_some_and(|text| !text.is_empty()))
    })?;
    Some(if next.as_str().is_some_and(|next| next.contains('/')) {
        format!(
            "this may be one page of several: the next one's address is at {at}, and only headers, cursors and numbers are followed"
        )
    } else {
        format!(
            "this may be one page of several: the next one's cursor may be at {at}, so try CURSOR_AT={at} in the environment, with \
             CURSOR_PARAMETER unless it goes into `cursor`"
        )
    })
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
    use super::*;

    fn judged(page: &str, records: &str, id: &str) -> Result<Vec<String>, String> {
        let pointers =
            Pointers { records: records.parse().unwrap(), id: id.parse().unwrap(), cursor: None, is_paged: false };
        judge(page.as_bytes(), &pointers)
    }

    #[test]
    fn pages_of_every_shape_can_become_documents() {
        for (page, records, id) in [
            (r#"[{"id":1},{"id":"a"},{"name":"without"}]"#, "", "/id"),
            ("\u{feff} {\"id\":1,\"tags\":[{\"id\":2}]}", "", "/id"),
            (r#"{"data":[{"key":{"id":1.5}}],"meta":{"next":null,"total":7}}"#, "/data", "/key/id"),
            (r#"{"result":{"items":{"id":1,"next_run":"x"}}}"#, "/result/items", "/id"),
            // JSON that the transformer stores, but for the record.
            (r#"[{"id":1,"x":1e999}]"#, "", "/id"),
        ] {
            assert_eq!(judged(page, records, id), Ok(Vec::new()), "{page}");
        }
    }

    #[test]
    fn what_cannot_work_is_told_with_what_to_try() {
        for (page, records, id, why) in [
            (
                "<html>",
                "",
                "/id",
                "it is no JSON: expected value at line 1 column 1\nname the address that answers with the data",
            ),
            (
                "\"text\"",
                "",
                "/id",
                "the document is a text\nthere is no object and no array of objects in it: name the address that answers with the data",
            ),
            (
                r#"{"data":[{"uuid":"a","n":1},{"uuid":"b","n":1}],"meta":{}}"#,
                "",
                "/id",
                "no record in it has a text or a number at /id\ntry --records-at /data --id-at /uuid",
            ),
            (
                r#"{"result":{"items":[{"id":1}]}}"#,
                "/data",
                "/id",
                "the document has no member `data`\ntry --records-at /result/items",
            ),
            (r#"[{"id":1}]"#, "/data", "/id", "the document is an array\ntry without --records-at"),
            (
                r#"{"data":{"a/b":[{"id":1}]}}"#,
                "/data",
                "/id",
                "no record in it has a text or a number at /id\ntry --records-at /data/a~1b",
            ),
            (
                r#"[{"name":"a","key":{"id":7},"price":1.5,"slug":"x"},{"name":"b","key":{"id":8},"price":2.5,"slug":"y"}]"#,
                "",
                "/id",
                "no record in it has a text or a number at /id\ntry --id-at /key/id or /slug or /name",
            ),
            (
                r#"[{"id":null},{"id":true}]"#,
                "",
                "/id",
                "no record in it has a text or a number at /id\na document is known by a text or a number that differs from record to record, and these have none",
            ),
            (
                "[1,2]",
                "",
                "/id",
                "no record in it has a text or a number at /id\na document is known by a text or a number that differs from record to record, and these have none",
            ),
        ] {
            assert_eq!(judged(page, records, id), Err(why.to_owned()), "{page}");
        }
    }

    #[test]
    fn what_works_and_is_likely_not_what_was_meant_is_noted() {
        for (page, records, id, note) in [
            ("[]", "", "/id", "there are no records yet"),
            (
                r#"[{"id":1,"userId":1},{"id":2,"userId":1}]"#,
                "",
                "/userId",
                "2 records of the first page have 1 ids at /userId, and the last of each stays: try --id-at /id",
            ),
            (
                r#"{"data":[{"id":1}],"meta":{"next_cursor":"abc"}}"#,
                "/data",
                "/id",
                "this may be one page of several: the next one's cursor may be at /meta/next_cursor, so try CURSOR_AT=/meta/next_cursor in the \
                 environment, with CURSOR_PARAMETER unless it goes into `cursor`",
            ),
            (
                r#"{"results":[{"id":1}],"next":"https://api/?page=2"}"#,
                "/results",
                "/id",
                "this may be one page of several: the next one's address is at /next, and only headers, cursors and numbers are followed",
            ),
        ] {
            assert_eq!(judged(page, records, id), Ok(vec![note.to_owned()]), "{page}");
        }
    }
}
