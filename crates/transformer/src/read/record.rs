//! A record becomes a row by the table's definition. Pure.

use std::{borrow::Cow, collections::HashSet};

use serde_json::value::RawValue;
use shared::records::Record;

use super::{
    jsonb,
    members::Members,
    row::Fields,
    table_definition::{ColumnSource, Columns, Kind},
    values::{self, KEY_LIMIT_BYTES},
};

/// How much of a wrong record is kept beside its reason; the object holds it whole.
const RAW_LIMIT_BYTES: usize = 64 * 1024;

/// A reason may quote the value, and that may be long.
const REASON_LIMIT_CHARS: usize = 500;

/// From this many members on it pays to hash their names.
const MANY_MEMBERS: usize = 32;

/// Why a record is no row.
#[derive(Debug, PartialEq, Eq)]
pub struct NoRow {
    /// Its key as it would be stored, if that much can be read.
    pub key: Option<Vec<u8>>,
    /// Why, for a person.
    pub reason: String,
}

/// A record that is no row.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongRecord {
    /// Its place in the document, from 0.
    pub index: u64,
    /// Its key as it would be stored, if that much can be read.
    pub key: Option<Vec<u8>>,
    /// Why it is no row, for a person; at most 500 characters.
    pub reason: String,
    /// Its bytes, at most 64 KiB of them.
    pub raw: Vec<u8>,
}

impl WrongRecord {
    /// Sets a record aside.
    pub fn new(record: Record<'_>, NoRow { key, reason }: NoRow) -> Self {
        let Record { index, raw, .. } = record;
        let reason = reason.chars().take(REASON_LIMIT_CHARS).collect();
        Self { index, key, reason, raw: raw[..raw.len().min(RAW_LIMIT_BYTES)].to_owned() }
    }
}

/// Reads records by a definition.
#[derive(Debug)]
pub struct RecordReader {
    columns: Columns,
    /// The members that columns take, as a tree.
    taken: Taken,
    has_record: bool,
    has_rest: bool,
}

/// The members of an object that columns take.
#[derive(Debug, Default)]
struct Taken(Vec<Member>);

#[derive(Debug, Default)]
struct Member {
    name: String,
    /// The columns that take it whole.
    columns: Vec<usize>,
    /// What columns take of it, where it is an object.
    inner: Taken,
}

type Found<'a> = Vec<Option<&'a RawValue>>;

impl Taken {
    fn add(&mut self, names: &[String], column: usize) {
        let Some((first, rest)) = names.split_first() else { return };
        let at = self.0.iter().position(|member| member.name == *first).unwrap_or_else(|| {
            self.0.push(Member { name: first.clone(), ..Member::default() });
            self.0.len() - 1
        });
        let member = &mut self.0[at];
        if rest.is_empty() { member.columns.push(column) } else { member.inner.add(rest, column) }
    }

    fn get(&self, name: &str) -> Option<&Member> {
        self.0.iter().find(|member| member.name == name)
    }

    /// Finds what the columns take; of repeated names the last.
    fn find<'a>(&self, members: &Members<'a>, found: &mut Found<'a>) {
        for (name, value) in &members.0 {
            let Some(member) = self.get(name) else { continue };
            for column in &member.columns {
                found[*column] = Some(value);
            }
            if !member.inner.0.is_empty()
                && let Ok(inner) = serde_json::from_str(value.get())
            {
                member.inner.find(&inner, found);
            }
        }
    }

    /// Whether there is something that no column takes.
    fn leaves(&self, members: &Members<'_>) -> bool {
        members.0.iter().any(|(name, value)| match self.get(name) {
            None => true,
            Some(member) if !member.columns.is_empty() => false,
            Some(member) => serde_json::from_str(value.get()).map_or(true, |inner| member.inner.leaves(&inner)),
        })
    }

    /// What the columns do not take, as an object; `None` if that is nothing.
    fn rest(&self, members: &Members<'_>) -> Result<Option<String>, String> {
        let mut left = Vec::new();
        for (name, value) in &members.0 {
            let value = match self.get(name) {
                None => Cow::Borrowed(*value),
                Some(member) if !member.columns.is_empty() => continue,
                Some(member) => match serde_json::from_str(value.get()) {
                    Err(_) => Cow::Borrowed(*value),
                    Ok(inner) => match member.inner.rest(&inner)? {
                        None => continue,
                        Some(rest) => Cow::Owned(RawValue::from_string(rest).map_err(|error| error.to_string())?),
                    },
                },
            };
            left.push((name.clone(), value));
        }
        if left.is_empty() {
            return Ok(None);
        }
        jsonb::object(Members(left.iter().map(|(name, value)| (name.clone(), &**value)).collect()), 0).map(Some)
    }
}

impl RecordReader {
    /// By this definition.
    pub fn new(columns: Columns) -> Self {
        let mut taken = Taken::default();
        for (at, column) in columns.all().iter().enumerate() {
            if let ColumnSource::Pointer(pointer) = &column.source {
                taken.add(pointer.names(), at);
            }
        }
        let has = |source| columns.all().iter().any(|column| column.source == source);
        Self { has_record: has(ColumnSource::Record), has_rest: has(ColumnSource::Rest), taken, columns }
    }

    /// The type of the key.
    pub fn key(&self) -> Kind {
        self.columns.key().kind
    }

    /// Puts a record's fields, in the order of the columns. What Postgres would refuse is refused here, with words, and what was put until then
    /// does not count. Whether it has members that have no column of their own.
    pub fn read(&self, record: &[u8], fields: &mut Fields<'_>) -> Result<bool, NoRow> {
        let members = Members::of(record).map_err(|reason| NoRow { key: None, reason })?;
        let mut found = vec![None; self.columns.all().len()];
        self.taken.find(&members, &mut found);
        self.put(&members, &found, fields).map_err(|reason| NoRow { key: self.key_of(&found), reason })
    }

    fn put(&self, members: &Members<'_>, found: &Found<'_>, fields: &mut Fields<'_>) -> Result<bool, String> {
        if let Some(name) = repeated(members) {
            return Err(format!("`{}` stands there twice", name.escape_debug()));
        }
        // The whole record leaves nothing.
        let rest = if self.has_rest && !self.has_record { self.taken.rest(members)? } else { None };
        for (at, (column, value)) in self.columns.all().iter().zip(found).enumerate() {
            let of_column =
                |why| format!("column `{}` ({} from {}): {why}", column.name, column.kind.words(), column.source);
            let begin = fields.0.len();
            let is_there = match (&column.source, value) {
                (ColumnSource::Record, _) => {
                    fields.put_jsonb(&jsonb::object(members.clone(), 0)?);
                    true
                }
                (ColumnSource::Rest, _) => put_rest(rest.as_deref(), fields),
                (ColumnSource::Pointer(_), Some(value)) => {
                    values::put(column.kind, value, fields).map_err(of_column)?
                }
                (ColumnSource::Pointer(_), None) => {
                    fields.put_null();
                    false
                }
            };
            if column.is_required && !is_there {
                return Err(of_column(if value.is_some() { "it is null" } else { "it is missing" }.to_owned()));
            }
            if at == 0 && fields.0.len() - begin > KEY_LIMIT_BYTES {
                return Err(of_column(format!("it is longer than {KEY_LIMIT_BYTES} bytes, and no key")));
            }
        }
        Ok(rest.is_some() || (!self.has_rest && !self.has_record && self.taken.leaves(members)))
    }

    /// The key of a record, as it would be stored; `None` where it has none that can be read.
    pub fn key_of_record(&self, record: &[u8]) -> Option<Vec<u8>> {
        let members = Members::of(record).ok()?;
        let mut found = vec![None; self.columns.all().len()];
        self.taken.find(&members, &mut found);
        self.key_of(&found)
    }

    /// The key that a person writes, as it would be stored.
    pub fn key_of_text(&self, text: &str) -> Result<Vec<u8>, String> {
        let mut field = Vec::new();
        let text = RawValue::from_string(serde_json::Value::from(text).to_string()).expect("a text is JSON");
        // Each type that a key can have takes a text.
        values::put(self.key(), &text, &mut Fields(&mut field))?;
        Ok(field.split_off(4))
    }

    /// The key of a record that is no row.
    fn key_of(&self, found: &Found<'_>) -> Option<Vec<u8>> {
        let mut field = Vec::new();
        values::put(self.key(), found[0]?, &mut Fields(&mut field)).ok().filter(|is_there| *is_there)?;
        (field.len() <= KEY_LIMIT_BYTES).then(|| field.split_off(4))
    }
}

fn put_rest(rest: Option<&str>, fields: &mut Fields<'_>) -> bool {
    match rest {
        Some(rest) => fields.put_jsonb(rest),
        None => fields.put_null(),
    }
    rest.is_some()
}

/// A name that stands in the object twice.
fn repeated<'a>(members: &'a Members<'_>) -> Option<&'a str> {
    let mut names = members.0.iter().map(|(name, _)| &**name);
    if members.0.len() < MANY_MEMBERS {
        return names
            .enumerate()
            .find_map(|(at, name)| members.0[..at].iter().any(|(before, _)| before == name).then_some(name));
    }
    let mut seen = HashSet::with_capacity(members.0.len());
    names.find(|name| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use shared::object::Sequence;

    use super::*;
    use crate::any_document::any_record;
    use crate::read::{
        row::{Origin, Row, text_of},
        table_definition::DEFAULT,
    };

    /// The fields as text, `-` for NULL, and whether there is more.
    fn read(columns: &str, json: &str) -> Result<(Vec<String>, bool), NoRow> {
        let reader = RecordReader::new(columns.parse().unwrap());
        let mut bytes = Vec::new();
        let has_extra = reader.read(json.as_bytes(), &mut Fields(&mut bytes))?;
        let origin = Origin { sequence: Sequence::FIRST, fetched_at: jiff::Timestamp::UNIX_EPOCH };
        let row = Row::new(origin, 0, reader.key(), &bytes);
        let kinds = reader.columns.all().iter().map(|column| column.kind);
        let text = |(kind, value): (Kind, Option<&[u8]>)| match (kind, value) {
            (_, None) => "-".to_owned(),
            (Kind::Jsonb, Some(value)) => String::from_utf8(value[1..].to_vec()).unwrap(),
            (kind, Some(value)) => text_of(kind, value),
        };
        Ok((kinds.zip(row.values()).map(text).collect(), has_extra))
    }

    #[test]
    fn a_record_gives_each_column_what_is_its_own() {
        for (columns, json, expected, has_extra) in [
            (
                DEFAULT,
                r#"{"userId":1, "id":-9223372036854775808,"title":"t\u00e9","body":"","z":1.50,"a":{"b":[1e400]}}"#,
                &["-9223372036854775808", "1", "té", "", r#"{"a": {"b": [1e400]}, "z": 1.50}"#][..],
                true,
            ),
            (DEFAULT, r#"{"userId":1,"id":2,"title":"","body":"b"}"#, &["2", "1", "", "b", "-"], false),
            ("id text /isbn, doc jsonb .", r#"{"x":[1],"isbn":"7"}"#, &["7", r#"{"x": [1], "isbn": "7"}"#], false),
            ("id bigint", r#"{"id":1,"x":2}"#, &["1"], true),
            (
                "id bigint, title text /title/rendered, raw jsonb /title, extra jsonb *",
                r#"{"id":1,"title":{"rendered":"t","protected":false}}"#,
                &["1", "t", r#"{"rendered": "t", "protected": false}"#, "-"],
                false,
            ),
            (
                "id bigint /key/n, a text /a/b/c, again text /a/b/c, extra jsonb *",
                r#"{"key":{"n":1},"a":{"b":{"c":"x","d":2},"e":{}},"f":null}"#,
                &["1", "x", "x", r#"{"a": {"b": {"d": 2}, "e": {}}, "f": null}"#],
                true,
            ),
            ("id bigint, a text /a/b, extra jsonb *", r#"{"id":1,"a":[7]}"#, &["1", "-", r#"{"a": [7]}"#], true),
            ("id bigint, a text /a/b", r#"{"id":1,"a":{"b":"1","b":"2"}}"#, &["1", "2"], false),
            ("id bigint, a text, b jsonb /a", r#"{"id":1,"a":null}"#, &["1", "-", "-"], false),
        ] {
            let expected = expected.iter().map(|&text| text.to_owned()).collect();
            assert_eq!(read(columns, json), Ok((expected, has_extra)), "{json}");
        }
    }

    #[test]
    fn a_wrong_record_says_which_column_cannot_take_it() {
        for (columns, json, id, reason) in [
            (DEFAULT, "7", None, "invalid type: integer `7`, expected an object"),
            (
                DEFAULT,
                r#"{"userId":1,"id":2,"title":"t"}"#,
                Some("2"),
                "column `body` (text from /body): it is missing",
            ),
            (
                DEFAULT,
                r#"{"userId":1,"id":2,"title":null,"body":""}"#,
                Some("2"),
                "column `title` (text from /title): it is null",
            ),
            (
                DEFAULT,
                r#"{"userId":1,"id":2.5,"title":"","body":""}"#,
                None,
                "column `id` (bigint from /id): `2.5` is no bigint",
            ),
            (
                DEFAULT,
                r#"{"userId":"x","id":2,"title":"","body":""}"#,
                Some("2"),
                "column `user_id` (bigint from /userId): `\"x\"` is no bigint",
            ),
            (DEFAULT, r#"{"id":2,"x":1,"x":1,"userId":1,"title":"","body":""}"#, Some("2"), "`x` stands there twice"),
            (
                DEFAULT,
                r#"{"id":2,"userId":1,"title":"a\u0000b","body":""}"#,
                Some("2"),
                "column `title` (text from /title): it holds U+0000, which Postgres cannot store",
            ),
            (
                DEFAULT,
                r#"{"id":2,"userId":1,"title":"","body":"","x":["\u0000"]}"#,
                Some("2"),
                "`x` holds U+0000, which Postgres cannot store",
            ),
            (
                DEFAULT,
                r#"{"id":2,"userId":1,"title":"\ud800","body":""}"#,
                Some("2"),
                "column `title` (text from /title): it is no text: unexpected end of hex escape",
            ),
            ("id text, doc jsonb .", "{}", None, "column `id` (text from /id): it is missing"),
            (
                "id text, doc jsonb .",
                r#"{"id":"a","x":"\u0000"}"#,
                Some("a"),
                "`x` holds U+0000, which Postgres cannot store",
            ),
            ("id uuid", r#"{"id":"x"}"#, None, "column `id` (uuid from /id): `\"x\"` is no uuid"),
        ] {
            let wrong = read(columns, json).unwrap_err();
            let kind = columns.parse::<Columns>().unwrap().key().kind;
            let key = wrong.key.map(|key| text_of(kind, &key));
            assert_eq!((key.as_deref(), wrong.reason.as_str()), (id, reason), "{json}");
        }
        let long = read("id text", &format!(r#"{{"id":"{}"}}"#, "x".repeat(2_601))).unwrap_err();
        assert_eq!(
            (long.key, &*long.reason),
            (None, "column `id` (text from /id): it is longer than 2600 bytes, and no key")
        );
    }

    #[test]
    fn many_members_are_looked_through_for_repetitions() {
        let json = |last: &str| {
            let members: Vec<_> = (0..100).map(|at| format!(r#""m{at}":0"#)).collect();
            format!(r#"{{"id":1,{},"{last}":0}}"#, members.join(","))
        };
        assert!(read("id bigint", &json("other")).is_ok());
        assert_eq!(read("id bigint", &json("m7")).unwrap_err().reason, "`m7` stands there twice");
    }

    proptest! {
        #[test]
        fn any_record_is_a_row_with_all_its_members_or_said_to_be_none(record in any_record()) {
            let json = record.to_string();
            match read(DEFAULT, &json) {
                Ok((fields, _)) => {
                    let mut members: serde_json::Map<String, Value> =
                        if fields[4] == "-" { serde_json::Map::new() } else { serde_json::from_str(&fields[4]).unwrap() };
                    for (name, value) in [
                        ("id", fields[0].parse::<i64>().unwrap().into()),
                        ("userId", fields[1].parse::<i64>().unwrap().into()),
                        ("title", fields[2].clone().into()),
                        ("body", fields[3].clone().into()),
                    ] {
                        prop_assert_eq!(members.insert(name.into(), value), None);
                    }
                    let Value::Object(given) = record else { panic!("{record}") };
                    let is_number = |name: &str| matches!(name, "id" | "userId");
                    for (name, value) in &given {
                        let is_equal = members[name] == *value || (is_number(name) && value.as_str().map(str::to_owned) == Some(members[name].to_string()))
                            || (is_number(name) && value.as_f64() == members[name].as_f64());
                        prop_assert!(is_equal, "{name}: {value} became {}", members[name]);
                    }
                    prop_assert_eq!(members.len(), given.len());
                }
                Err(wrong) => prop_assert!(!wrong.reason.is_empty()),
            }
        }
    }
}
