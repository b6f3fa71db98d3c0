//! Bytes become records and rows: what serde_json says of the whole is what the streaming reader says of it, however it is cut, and a row
//! is what a plainer reading of its record says.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Read},
    marker::PhantomData,
    sync::LazyLock,
};

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::{
    columns::bigint,
    object::Sequence,
    record::{NoRow, RecordReader},
    records::{RecordsAt, read_records},
    row::{Fields, Origin, Row},
    table_definition::Columns,
};

static POSTS: LazyLock<RecordReader> = LazyLock::new(|| RecordReader::new(Columns::default()));
static DOCUMENTS: LazyLock<RecordReader> =
    LazyLock::new(|| RecordReader::new("id text, doc jsonb .".parse().expect("columns")));

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const WHITE_SPACE: &[u8] = b" \t\r\n";

/// Whatever the bytes are.
pub fn hold(document: &[u8]) {
    hold_of_root(document);
    for at in ["/data", "/a/b", "/", "/id", "/x"] {
        hold_at(document, at);
        // Around the same bytes.
        let wrapped = |head: &str, tail: &str| [head.as_bytes(), document, tail.as_bytes()].concat();
        hold_at(&wrapped("{\"x\":1,\"data\":", "}"), at);
        hold_at(&wrapped("{\"a\":{\"b\":[],\"y\":", "}}"), at);
    }
}

/// What serde_json finds there is what is read, and where it finds nothing, or no document, it is refused.
fn hold_at(document: &[u8], at: &str) {
    let pointer: RecordsAt = at.parse().expect("a pointer");
    let (records, broken) = read(document, &pointer);
    match whole_at(&legible(document), at) {
        Some(expected) => {
            assert_eq!(broken, None, "{at}");
            let texts = records.iter().map(|raw| legible(raw));
            assert!(texts.eq(expected.iter().map(|raw| raw.get())), "{at}: {records:?} instead of {expected:?}");
        }
        None => assert!(
            broken.is_some() || records.iter().any(|raw| !is_json(raw)),
            "{at}: {records:?} of a document that serde_json refuses"
        ),
    }
    let size = 1 + document.len() % 7;
    assert_eq!(read(Cut { bytes: document, size }, &pointer), (records, broken), "{at}, in pieces of {size}");
}

/// The records there; `None` where there are none, or a member on the way is repeated.
fn whole_at(document: &str, at: &str) -> Option<Vec<Box<RawValue>>> {
    let text = document.strip_prefix('\u{feff}').unwrap_or(document);
    let mut value: Box<RawValue> = serde_json::from_str(text).ok()?;
    if !at.is_empty() && members(value.get()).is_some_and(|members| members.is_empty()) {
        return Some(Vec::new());
    }
    for name in at.split('/').skip(1) {
        let mut named = members(value.get())?.into_iter().filter(|(known, _)| known.as_deref() == Some(name));
        let (_, inner) = named.next()?;
        if named.next().is_some() {
            return None;
        }
        value = inner;
    }
    match value.get() {
        array if array.starts_with('[') => serde_json::from_str(array).ok(),
        object if object.starts_with('{') => Some(vec![value]),
        null => serde_json::from_str(null).ok().map(|()| Vec::new()),
    }
}

/// The members of an object, with those names that are text.
fn members(json: &str) -> Option<Vec<(Option<String>, Box<RawValue>)>> {
    pairs::<Box<RawValue>>(json)
        .map(|pairs| pairs.into_iter().map(|(name, value)| (serde_json::from_str(name.get()).ok(), value)).collect())
}

fn hold_of_root(document: &[u8]) {
    let root = RecordsAt::default();
    let (records, broken) = read(document, &root);
    let text = legible(document);
    match whole(&text) {
        Some(expected) => {
            assert_eq!(broken, None);
            let texts = records.iter().map(|raw| legible(raw));
            assert!(texts.eq(expected.iter().map(|raw| raw.get())), "{records:?} instead of {expected:?}");
            assert_in_place(document, &records);
        }
        None if broken.is_none() => {
            assert!(records.iter().any(|raw| !is_json(raw)), "{records:?} of a document that serde_json refuses");
            assert_in_place(document, &records);
        }
        None => {}
    }
    let size = 1 + document.len() % 7;
    let cut = read(Cut { bytes: document, size }, &root);
    assert_eq!(cut, (records.clone(), broken), "in pieces of {size}");
    for record in &records {
        judge(record);
        judge_as_document(record);
    }
}

fn read(reader: impl Read, at: &RecordsAt) -> (Vec<Vec<u8>>, Option<String>) {
    let mut records = Vec::new();
    let read = read_records(reader, at, |record| {
        assert!(record.is_whole && record.index == records.len() as u64);
        records.push(record.raw.to_owned());
        Post::of(record.raw).is_ok()
    });
    // The words and the cause, which says where.
    (records, read.err().map(|error| format!("{error:?}")))
}

fn is_json(record: &[u8]) -> bool {
    serde_json::from_str::<IgnoredAny>(&legible(record)).is_ok()
}

/// As text of the same length: what is not UTF-8 costs its record, and no more.
fn legible(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    text
}

/// The records of the whole document, as serde_json reads it at once; `None` of one that is refused.
fn whole(document: &str) -> Option<Vec<Box<RawValue>>> {
    let text = document.strip_prefix('\u{feff}').unwrap_or(document);
    match trim(text.as_bytes()).first()? {
        b'[' => serde_json::from_str(text).ok(),
        b'{' => lines(text),
        _ => serde_json::from_str(text).ok().map(|()| Vec::new()),
    }
}

/// Objects, one a line at least.
fn lines(text: &str) -> Option<Vec<Box<RawValue>>> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Box<RawValue>>();
    let (mut records, mut end) = (Vec::new(), 0);
    while let Some(value) = values.next() {
        let value = value.ok()?;
        let between = &text[end..values.byte_offset() - value.get().len()];
        if !value.get().starts_with('{') || !records.is_empty() && !between.contains('\n') {
            return None;
        }
        end = values.byte_offset();
        records.push(value);
    }
    Some(records)
}

fn trim(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| WHITE_SPACE.contains(byte)).count()..]
}

/// The records, one after the other, with what JSON has between them, are the document.
fn assert_in_place(document: &[u8], records: &[Vec<u8>]) {
    let text = trim(document.strip_prefix(BYTE_ORDER_MARK).unwrap_or(document));
    let is_array = text[0] == b'[';
    let mut rest = text;
    let mut separator: &[u8] = b"[";
    for record in records {
        if is_array {
            rest = trim(trim(rest).strip_prefix(separator).expect("a record begins after a bracket or comma"));
            separator = b",";
        } else {
            rest = trim(rest);
        }
        rest = rest.strip_prefix(record.as_slice()).expect("the record stands there");
    }
    let end: String = rest.iter().filter(|byte| !WHITE_SPACE.contains(byte)).map(|byte| char::from(*byte)).collect();
    match (is_array, records) {
        (true, []) => assert_eq!(end, "[]"),
        (true, _) => assert_eq!(end, "]"),
        (false, []) => assert_eq!(end, "null"),
        (false, _) => assert_eq!(end, ""),
    }
}

/// Bytes that come in pieces of this size.
struct Cut<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl Read for Cut<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.size.min(buffer.len());
        (&mut self.bytes).take(size as u64).read(buffer)
    }
}

/// A record is a post with all its fields, or said to be none.
fn judge(record: &[u8]) {
    let Ok(raw) = str::from_utf8(record) else { return assert!(Post::of(record).is_err()) };
    let fields = fields(raw);
    let expected = is_post(fields.as_deref());
    match Post::of(record) {
        Ok(post) => {
            assert_ne!(expected, Some(false), "{raw}");
            assert_says(&post, raw, &fields.expect("a post is an object"));
        }
        Err(NoRow { key, reason }) => {
            assert_ne!(expected, Some(true), "{raw}: {reason}");
            let last = fields.and_then(|fields| fields.into_iter().rfind(|(name, _)| name == "id"));
            let expected = last.and_then(|(_, value)| Some(bigint(value.get())?.to_be_bytes().to_vec()));
            assert_eq!(key, expected, "{raw}");
            assert!(!reason.is_empty() && !reason.contains('\0'));
        }
    }
}

/// A document says what its record says, and is written as it would be written again; or it is said to be none.
fn judge_as_document(record: &[u8]) {
    let Ok(doc) = document_of(record) else { return };
    assert_eq!(document_of(&doc).as_ref(), Ok(&doc), "{doc:?}");
    if let Ok(expected) = serde_json::from_slice::<Value>(record) {
        assert_eq!(serde_json::from_slice::<Value>(&doc).expect("it is JSON"), expected);
    }
}

fn document_of(record: &[u8]) -> Result<Vec<u8>, NoRow> {
    let [_, doc] = &*row_of(&DOCUMENTS, record)? else { panic!("it has two columns") };
    Ok(doc.as_deref().expect("it has a document")[1..].to_owned())
}

/// The fields of a row, `None` for NULL.
fn row_of(reader: &RecordReader, record: &[u8]) -> Result<Vec<Option<Vec<u8>>>, NoRow> {
    let mut bytes = Vec::new();
    let read = reader.read(record, &mut Fields(&mut bytes));
    read.inspect_err(|NoRow { reason, .. }| assert!(!reason.is_empty() && !reason.contains('\0')))?;
    let origin = Origin { sequence: Sequence::FIRST, fetched_at: Timestamp::UNIX_EPOCH };
    let row = Row::new(origin, 0, reader.key(), &bytes);
    Ok(row.values().map(|value| value.map(<[u8]>::to_owned)).collect())
}

/// A row of the default table.
struct Post {
    id: i64,
    user_id: i64,
    title: String,
    body: String,
    extra: Option<String>,
}

impl Post {
    fn of(record: &[u8]) -> Result<Self, NoRow> {
        let [Some(id), Some(user_id), Some(title), Some(body), extra] = &*row_of(&POSTS, record)? else {
            panic!("a column that is not null is null, or another number of them")
        };
        let number = |bytes: &[u8]| i64::from_be_bytes(bytes.try_into().expect("eight bytes"));
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).expect("text");
        let (title, body, extra) = (text(title), text(body), extra.as_ref().map(|extra| text(&extra[1..])));
        Ok(Self { id: number(id), user_id: number(user_id), title, body, extra })
    }
}

/// A field's name and its value as it is written.
pub type Field = (String, Box<RawValue>);

/// All fields of an object, repeated ones too; `None` of what is no object, or has a name that is no text.
pub fn fields(json: &str) -> Option<Vec<Field>> {
    pairs(json)
}

/// All members of an object, with their names as they are wanted.
fn pairs<N: for<'de> Deserialize<'de>>(json: &str) -> Option<Vec<(N, Box<RawValue>)>> {
    struct Fields<N>(Vec<(N, Box<RawValue>)>);

    impl<'de, N: Deserialize<'de>> Deserialize<'de> for Fields<N> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(FieldsVisitor(PhantomData)).map(Self)
        }
    }

    struct FieldsVisitor<N>(PhantomData<N>);

    impl<'de, N: Deserialize<'de>> Visitor<'de> for FieldsVisitor<N> {
        type Value = Vec<(N, Box<RawValue>)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some(field) = map.next_entry()? {
                fields.push(field);
            }
            Ok(fields)
        }
    }

    serde_json::from_str::<Fields<N>>(json).ok().map(|Fields(fields)| fields)
}

/// The value of a field that is there once and has the type.
pub fn single<T: for<'de> Deserialize<'de>>(fields: &[Field], name: &str) -> Option<T> {
    let mut named = fields.iter().filter(|(known, _)| known == name);
    match (named.next(), named.next()) {
        (Some((_, value)), None) => serde_json::from_str(value.get()).ok(),
        _ => None,
    }
}

/// The same of a whole number, which may be written as a text.
fn single_bigint(fields: &[Field], name: &str) -> Option<i64> {
    bigint(single::<Box<RawValue>>(fields, name)?.get())
}

/// Whether a record of these fields is a post; `None` where serde_json cannot read a value that Postgres perhaps can.
fn is_post(fields: Option<&[Field]>) -> Option<bool> {
    let Some(fields) = fields else { return Some(false) };
    let names: BTreeSet<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    let has_text = |name| single::<String>(fields, name).is_some_and(|text| !text.contains('\0'));
    let has_number = |name| single_bigint(fields, name).is_some();
    let is_well = names.len() == fields.len()
        && !names.iter().any(|name| name.contains('\0'))
        && has_number("id")
        && has_number("userId")
        && has_text("title")
        && has_text("body");
    let mut verdict = Some(is_well);
    for (_, value) in fields {
        match serde_json::from_str::<Value>(value.get()) {
            Ok(value) if holds_nul(&value) => return Some(false),
            Ok(_) => {}
            // It stopped there, and what follows may be wrong or not.
            Err(error)
                if ["number out of range", "recursion limit"].iter().any(|why| error.to_string().contains(why)) =>
            {
                verdict = verdict.filter(|is_well| !is_well);
            }
            Err(_) => return Some(false),
        }
    }
    verdict
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(holds_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The post says what the record says, field by field; numbers that it has no column for, letter by letter.
fn assert_says(post: &Post, raw: &str, all: &[Field]) {
    assert!(!post.title.contains('\0') && !post.body.contains('\0'));
    assert_eq!((Some(post.id), Some(post.user_id)), (single_bigint(all, "id"), single_bigint(all, "userId")));
    let text = |name| single::<String>(all, name);
    assert_eq!((Some(&*post.title), Some(&*post.body)), (text("title").as_deref(), text("body").as_deref()));
    let is_column = |name: &str| ["id", "userId", "title", "body"].contains(&name);
    let names = |fields: &[Field]| fields.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
    let others: BTreeSet<_> = names(all).into_iter().filter(|name| !is_column(name)).collect();
    let extra = post.extra.as_deref().map_or(Vec::new(), |extra| fields(extra).expect("an object"));
    assert_eq!((post.extra.is_some(), names(&extra)), (!others.is_empty(), others));
    for (name, value) in &extra {
        let is_number = value.get().starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
        assert!(!is_number || all.iter().any(|(known, same)| known == name && same.get() == value.get()), "{raw}");
    }
    if let Ok(Value::Object(mut record)) = serde_json::from_str(raw) {
        for name in ["id", "userId", "title", "body"] {
            record.remove(name);
        }
        let extra = post.extra.as_deref().map_or("{}", |extra| extra);
        assert_eq!(serde_json::from_str::<Value>(extra).expect("it is part of the record"), Value::Object(record));
    }
}
