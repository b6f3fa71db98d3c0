//! A record becomes a post, or the reason why not. Pure.
//!
//! What passes here is what the columns of `posts` can hold; what Postgres would refuse is refused here, with words.

use std::{borrow::Cow, collections::BTreeMap, fmt, iter};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::record::Record;

/// How much of a wrong record is kept beside its reason; the object holds it whole.
const RAW_LIMIT_BYTES: usize = 64 * 1024;

/// A reason may quote the value, and that may be long.
const REASON_LIMIT_CHARS: usize = 500;

/// A row of `posts`, as the observation gives it. Its texts are borrowed, from a record without escapes or from a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post<'a> {
    /// Its place in the document, from 0.
    pub index: u64,
    /// `id`, a 64-bit integer.
    pub id: i64,
    /// `userId`, a 64-bit integer.
    pub user_id: i64,
    /// `title`, any text without U+0000.
    pub title: Cow<'a, str>,
    /// `body`, any text without U+0000.
    pub body: Cow<'a, str>,
    /// All other fields as one JSON object, sorted by name; `None` when there are none.
    pub extra: Option<Cow<'a, str>>,
}

/// A record that is not a post.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongRecord {
    /// Its place in the document, from 0.
    pub index: u64,
    /// Its id, if that much can be read.
    pub id: Option<i64>,
    /// Why it is no post, for a person.
    pub reason: String,
    /// Its bytes, at most 64 KiB of them.
    pub raw: Vec<u8>,
}

impl<'a> Post<'a> {
    /// Reads a record.
    pub fn from_record(record: Record<'a>) -> Result<Self, WrongRecord> {
        if !record.is_whole {
            return Err(WrongRecord::new(record, "it is longer than 16 MiB"));
        }
        match serde_json::from_slice(record.raw) {
            Ok(Fields(post)) => Ok(Self { index: record.index, ..post }),
            Err(error) => Err(WrongRecord::new(record, &without_place(&error.to_string()))),
        }
    }
}

impl WrongRecord {
    /// Sets a record aside.
    pub fn new(record: Record<'_>, reason: &str) -> Self {
        let Record { index, raw, .. } = record;
        Self {
            index,
            // A derived struct takes an array too.
            id: raw.starts_with(b"{").then(|| serde_json::from_slice(raw).ok().map(|Id { id }| id)).flatten(),
            reason: reason.chars().take(REASON_LIMIT_CHARS).collect(),
            raw: raw[..raw.len().min(RAW_LIMIT_BYTES)].to_owned(),
        }
    }
}

/// The place inside a record that has no line breaks of its own helps nobody.
fn without_place(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |(message, _)| message).to_owned()
}

/// All that is wanted of a record that is otherwise wrong.
#[derive(Deserialize)]
struct Id {
    id: i64,
}

/// A post that does not know its place yet.
struct Fields<'a>(Post<'a>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not derived: a derived struct takes an array too, and `flatten` loses the raw text of numbers.
        deserializer.deserialize_map(PostVisitor).map(Self)
    }
}

/// A string, which is copied only if it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct PostVisitor;

impl<'de> Visitor<'de> for PostVisitor {
    type Value = Post<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Post<'de>, A::Error> {
        let (mut id, mut user_id, mut title, mut body) = (None, None, None, None);
        let mut extra = BTreeMap::<String, Box<RawValue>>::new();
        while let Some(Text(name)) = fields.next_key()? {
            let is_repeated = match &*name {
                "id" => id.replace(value(&name, &mut fields)?).is_some(),
                "userId" => user_id.replace(value(&name, &mut fields)?).is_some(),
                "title" => title.replace(text(&name, &mut fields)?).is_some(),
                "body" => body.replace(text(&name, &mut fields)?).is_some(),
                _ => {
                    let value = storable(&name, fields.next_value()?)?;
                    extra.insert(name.to_string(), value).is_some()
                }
            };
            if is_repeated {
                return Err(A::Error::custom(format!("`{}` stands there twice", name.escape_debug())));
            }
        }
        let missing = |name| A::Error::custom(format!("`{name}` is missing"));
        Ok(Post {
            index: 0,
            id: id.ok_or_else(|| missing("id"))?,
            user_id: user_id.ok_or_else(|| missing("userId"))?,
            title: title.ok_or_else(|| missing("title"))?,
            body: body.ok_or_else(|| missing("body"))?,
            extra: (!extra.is_empty())
                .then(|| serde_json::to_string(&extra).map(Cow::Owned))
                .transpose()
                .map_err(A::Error::custom)?,
        })
    }
}

/// The value of a field, with the field's name in the error.
fn value<'de, T: Deserialize<'de>, A: MapAccess<'de>>(name: &str, fields: &mut A) -> Result<T, A::Error> {
    fields
        .next_value()
        .map_err(|error| A::Error::custom(format!("`{}`: {}", name.escape_debug(), without_place(&error.to_string()))))
}

fn text<'de, A: MapAccess<'de>>(name: &str, fields: &mut A) -> Result<Cow<'de, str>, A::Error> {
    let Text(text) = value(name, fields)?;
    if text.contains('\0') { Err(nul_error(name)) } else { Ok(text) }
}

/// A field of `extra`. Escapes can spell what jsonb cannot hold: U+0000, or half of a surrogate pair.
fn storable<E: serde::de::Error>(name: &str, raw: Box<RawValue>) -> Result<Box<RawValue>, E> {
    if name.contains('\0') {
        return Err(nul_error("a field's name"));
    }
    for string in strings_with_escapes(raw.get()) {
        let text: String = serde_json::from_str(string)
            .map_err(|error| E::custom(format!("`{}`: {}", name.escape_debug(), without_place(&error.to_string()))))?;
        if text.contains('\0') {
            return Err(nul_error(name));
        }
    }
    Ok(raw)
}

/// The string literals with a `\\u` in valid JSON. Numbers are left to Postgres, which knows greater ones than we do.
fn strings_with_escapes(json: &str) -> impl Iterator<Item = &str> {
    let mut rest = json;
    let strings = iter::from_fn(move || {
        let string = &rest[rest.find('"')?..];
        let mut is_escaped = false;
        let end = string.bytes().enumerate().skip(1).find(|(_, byte)| {
            let is_end = *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            is_end
        });
        let (string, after) = string.split_at(end.map_or(string.len(), |(at, _)| at + 1));
        rest = after;
        Some(string)
    });
    strings.filter(|string| string.contains("\\u"))
}

fn nul_error<E: serde::de::Error>(name: &str) -> E {
    E::custom(format!("`{}` holds U+0000, which Postgres cannot store", name.escape_debug()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::documents::any_record;

    fn post(json: &str) -> Result<Post<'_>, WrongRecord> {
        Post::from_record(Record { index: 3, raw: json.as_bytes(), is_whole: true })
    }

    #[test]
    fn a_post_takes_its_columns_and_keeps_what_it_does_not_know() {
        let json = r#"{"userId": 1, "id": -9223372036854775808, "title": "t\u00e9", "body": "", "z": 1.50, "a": {"b": [1e400]}}"#;
        assert_eq!(
            post(json),
            Ok(Post {
                index: 3,
                id: i64::MIN,
                user_id: 1,
                title: "té".into(),
                body: "".into(),
                extra: Some(r#"{"a":{"b": [1e400]},"z":1.50}"#.into()),
            })
        );
        assert_eq!(post(r#"{"userId":1,"id":2,"title":"","body":""}"#).unwrap().extra, None);
        let escaped = r#"{"userId":1,"id":2,"title":"","body":"b","x":["\\","\"","\u00e9","\\u0000","\"\u00e9"]}"#;
        assert!(post(escaped).unwrap().extra.is_some(), "each string ends where it ends, and none holds U+0000");
    }

    #[test]
    fn a_wrong_record_says_what_is_wrong_with_it() {
        for (json, id, reason) in [
            ("7", None, "invalid type: integer `7`, expected an object"),
            ("[1,2,\"t\",\"b\"]", None, "invalid type: sequence, expected an object"),
            (r#"{"userId":1,"id":2,"title":"t"}"#, Some(2), "`body` is missing"),
            (
                r#"{"userId":1,"id":2,"title":null,"body":""}"#,
                Some(2),
                "`title`: invalid type: null, expected a string",
            ),
            (
                r#"{"userId":1,"id":2.5,"title":"","body":""}"#,
                None,
                "`id`: invalid type: floating point `2.5`, expected i64",
            ),
            (
                r#"{"userId":1,"id":9223372036854775808,"title":"","body":""}"#,
                None,
                "`id`: invalid value: integer `9223372036854775808`, expected i64",
            ),
            (
                r#"{"userId":"1","id":2,"title":"","body":""}"#,
                Some(2),
                "`userId`: invalid type: string \"1\", expected i64",
            ),
            (r#"{"id":2,"id":2,"userId":1,"title":"","body":""}"#, None, "`id` stands there twice"),
            (r#"{"id":2,"x":1,"x":1,"userId":1,"title":"","body":""}"#, Some(2), "`x` stands there twice"),
            (
                r#"{"id":2,"userId":1,"title":"a\u0000b","body":""}"#,
                Some(2),
                "`title` holds U+0000, which Postgres cannot store",
            ),
            (
                r#"{"id":2,"userId":1,"title":"","body":"","x":["\u0000"]}"#,
                Some(2),
                "`x` holds U+0000, which Postgres cannot store",
            ),
            (
                r#"{"id":2,"userId":1,"title":"","body":"","x":["a\\","\u0000"]}"#,
                Some(2),
                "`x` holds U+0000, which Postgres cannot store",
            ),
            (
                r#"{"id":2,"userId":1,"title":"","body":"","x":["\"\u0000"]}"#,
                Some(2),
                "`x` holds U+0000, which Postgres cannot store",
            ),
            (r#"{"id":2,"userId":1,"title":"\ud800","body":""}"#, Some(2), "`title`: unexpected end of hex escape"),
            (r#"{"id":2,"userId":1,"title":"","body":"","x":"\ud800"}"#, Some(2), "`x`: unexpected end of hex escape"),
        ] {
            let wrong = post(json).unwrap_err();
            assert_eq!((wrong.index, wrong.id, wrong.reason.as_str()), (3, id, reason), "{json}");
            assert_eq!(wrong.raw, json.as_bytes());
        }
    }

    #[test]
    fn the_bytes_of_a_wrong_record_are_capped() {
        let json = format!("{{\"id\":1,\"title\":\"{}\"}}", "é".repeat(RAW_LIMIT_BYTES));
        assert_eq!(post(&json).unwrap_err().raw.len(), 65_536);
    }

    proptest! {
        #[test]
        fn any_record_is_a_post_with_all_its_fields_or_a_wrong_record_with_all_its_bytes(record in any_record()) {
            let json = record.to_string();
            match post(&json) {
                Ok(Post { id, user_id, title, body, extra, .. }) => {
                    prop_assert!(!title.contains('\0') && !body.contains('\0'));
                    let mut fields: serde_json::Map<String, Value> =
                        extra.map(|extra| serde_json::from_str(&extra).unwrap()).unwrap_or_default();
                    for (name, value) in [("id", id.into()), ("userId", user_id.into()), ("title", title.into()), ("body", body.into())] {
                        prop_assert_eq!(fields.insert(name.into(), value), None);
                    }
                    prop_assert_eq!(Value::Object(fields), record);
                }
                Err(wrong) => {
                    prop_assert!(!wrong.reason.is_empty());
                    prop_assert_eq!(wrong.id, record.get("id").and_then(Value::as_i64));
                    prop_assert_eq!(wrong.raw, json.as_bytes());
                }
            }
        }
    }
}
