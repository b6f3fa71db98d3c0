//! The next page's cursor, out of a page's body of any size. Pure, but for the reader it is given.
//!
//! It is read up to the cursor and no further, and not held: whether the body is a whole document is for whoever applies it to say.

use std::io::{self, Read};

use shared::document::{Document, DocumentError, JsonPointer, Place};
use thiserror::Error;

/// A longer cursor is none; no address would take it either.
const LIMIT_BYTES: usize = 64 * 1024;

/// Why a body does not say how to go on.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum CursorError {
    /// It cannot be read that far.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Something else is there.
    #[error(
        "{found}, and CURSOR_AT, which is {at}, must lead to a text, a number or null: set it to where the cursor is"
    )]
    NoCursor { at: JsonPointer, found: String },
}

impl From<io::Error> for CursorError {
    fn from(error: io::Error) -> Self {
        DocumentError::from(error).into()
    }
}

/// The cursor in the body, as it is to be sent; `None` if this is the last page: null, an empty text or nothing is there. Of a member that
/// is repeated the first counts.
pub fn read_cursor(body: impl Read, at: &JsonPointer) -> Result<Option<String>, CursorError> {
    let no_cursor = |found| Err(CursorError::NoCursor { at: at.clone(), found });
    let mut document = Document::new(body, LIMIT_BYTES);
    let first = match document.descend(at)? {
        Place::Value(first @ (b'"' | b'-' | b'0'..=b'9' | b'n')) => first,
        Place::Value(other) => return no_cursor(at.found_there(other)),
        Place::Astray { found } => return no_cursor(found),
        Place::Absent { .. } => return Ok(None),
    };
    let element = document.find_element::<b'}'>()?;
    if !element.is_whole() {
        return no_cursor(format!("{} of more than 64 KiB", at.found_there(first)));
    }
    document.check(&element)?;
    let raw = String::from_utf8_lossy(document.raw(&element));
    let cursor = match first {
        b'n' => String::new(),
        // Half of a surrogate pair is JSON, and no text.
        b'"' => match serde_json::from_str(&raw) {
            Ok(text) => text,
            Err(_) => return no_cursor(format!("{} that is no Unicode", at.found_there(first))),
        },
        _ => raw.into_owned(),
    };
    Ok(Some(cursor).filter(|cursor| !cursor.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(body: &str, at: &str) -> Result<Option<String>, String> {
        read_cursor(body.as_bytes(), &at.parse().unwrap()).map_err(|error| shared::telemetry::chain(&error))
    }

    #[test]
    fn a_cursor_is_a_text_or_a_number_and_the_last_page_has_none() {
        for (body, cursor) in [
            (r#"{"data":[{"next":1}],"meta":{"next":"b\u0026=\"c"}}"#, Some("b&=\"c")),
            (r#"{"meta":{"next":18446744073709551616.50},"#, Some("18446744073709551616.50")),
            (r#"{"meta":{"next":0}}"#, Some("0")),
            (r#"{"meta":{"next":-1 }, and no JSON"#, Some("-1")),
            (r#"{"meta":{"next":"a","next":"b"}}"#, Some("a")),
            (r#"{"meta":{"next":null}}"#, None),
            (r#"{"meta":{"next":""}}"#, None),
            (r#"{"meta":{}}"#, None),
            (r#"{"meta":null}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(read(body, "/meta/next"), Ok(cursor.map(str::to_owned)), "{body}");
        }
    }

    #[test]
    fn anything_else_is_named_with_the_setting() {
        for (body, found) in [
            (
                r#"{"meta":{"next":{"cursor":1}}}"#,
                "`/meta/next` is an object, and CURSOR_AT, which is /meta/next, must lead to",
            ),
            (r#"{"meta":{"next":["a"]}}"#, "`/meta/next` is an array, and"),
            (r#"{"meta":{"next":false}}"#, "`/meta/next` is true or false, and"),
            (r#"{"meta":[{"next":"a"}]}"#, "`/meta` is an array, and"),
            ("[]", "the document is an array, and"),
            (r#"{"meta":{"next":"\ud800"}}"#, "`/meta/next` is a text that is no Unicode, and"),
            (
                &format!(r#"{{"meta":{{"next":"{}"}}}}"#, "a".repeat(300_000)),
                "`/meta/next` is a text of more than 64 KiB, and",
            ),
            (r#"{"meta":{"next":nope}}"#, "the document is broken from byte 16 on"),
            (r#"{"data":[1,2"#, "the document is broken from byte 8 on: it ends inside an object"),
        ] {
            let said = read(body, "/meta/next").unwrap_err();
            assert!(said.starts_with(found), "{said}");
        }
    }

    proptest! {
        #[test]
        fn any_cursor_is_found_whatever_stands_around_it(
            cursor in prop_oneof![any::<String>().prop_map(Value::from), any::<i64>().prop_map(Value::from)],
            names in prop::collection::vec("[^0-9]{0,5}", 1..4),
            around in any::<String>(),
        ) {
            let expected = cursor.as_str().map_or_else(|| cursor.to_string(), str::to_owned);
            let body = names.iter().rev().fold(cursor, |value, name| {
                let mut object = json!({ "0": around.clone(), "zzzzzz": [around.clone(), {}] });
                object[name] = value;
                object
            });
            let names = names.iter().map(|name| name.replace('~', "~0").replace('/', "~1"));
            let at = format!("/{}", names.collect::<Vec<_>>().join("/"));
            let expected = Some(expected).filter(|text| !text.is_empty());
            prop_assert_eq!(read(&body.to_string(), &at), Ok(expected.clone()));
            prop_assert_eq!(read(&serde_json::to_string_pretty(&body).unwrap(), &at), Ok(expected));
        }
    }
}
