//! Bytes become records: each element of a document as a raw slice with its index. Pure, but for the reader that it is given.
//!
//! A document is a JSON array of records, a single record, or a record a line (NDJSON), with or without a byte order mark; `null` and `[]` are
//! empty. It may have them in a member of an object: then all of it must be JSON, and what is not on the way is passed.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use thiserror::Error;

use crate::{
    json_pointer::{JsonPointer, JsonPointerError},
    json_scan::{Document, DocumentError, Element, Place, broken},
};

/// A longer record is not held in memory.
const RECORD_LIMIT_BYTES: usize = 16 << 20;

/// A longer RECORDS_AT would not fit into an object's metadata beside everything else.
const RECORDS_AT_LIMIT_BYTES: usize = 200;

/// Where the records are in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordsAt {
    /// In the array to which this leads. A single object there is one record.
    Array(JsonPointer),
    /// The document is one record.
    Document,
}

/// The text does not say where records are.
#[derive(Debug, Error)]
pub enum RecordsAtError {
    /// It is neither a dot nor a pointer.
    #[error(transparent)]
    Pointer(#[from] JsonPointerError),
    /// It is too long.
    #[error(
        "RECORDS_AT may have {RECORDS_AT_LIMIT_BYTES} bytes, where a letter outside ASCII counts three for each of its bytes"
    )]
    TooLong,
}

impl Default for RecordsAt {
    fn default() -> Self {
        Self::Array(JsonPointer::default())
    }
}

impl FromStr for RecordsAt {
    type Err = RecordsAtError;

    fn from_str(text: &str) -> Result<Self, RecordsAtError> {
        // As it is encoded in metadata.
        let bytes = text.bytes().map(|byte| if (b' '..=b'~').contains(&byte) && byte != b'%' { 1 } else { 3 });
        match text {
            _ if bytes.sum::<usize>() > RECORDS_AT_LIMIT_BYTES => Err(RecordsAtError::TooLong),
            "." => Ok(Self::Document),
            pointer => Ok(Self::Array(pointer.parse()?)),
        }
    }
}

impl RecordsAt {
    /// Whether nothing stands around the records.
    pub fn is_root(&self) -> bool {
        matches!(self, Self::Document) || *self == Self::default()
    }

    /// For a person.
    fn shown(&self) -> String {
        if *self == Self::default() { "not set".to_owned() } else { self.to_string() }
    }
}

impl fmt::Display for RecordsAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Array(pointer) => pointer.fmt(f),
            Self::Document => f.write_str("."),
        }
    }
}

/// One element of a document.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its place in the document, from 0.
    pub index: u64,
    /// Its bytes as they stand there; the first of them if it is longer than 16 MiB.
    pub raw: &'a [u8],
    /// Whether these are all.
    pub is_whole: bool,
}

/// What stood where the records should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An array.
    Array,
    /// Several lines.
    Lines,
    /// One object.
    Object,
    /// `null`, or the document is `{}`.
    Nothing,
}

/// Why a document gives no further records.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum RecordsError {
    /// It cannot be read further.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// It begins like neither array nor object nor null.
    #[error("the document is no collection: it begins with {0:?}")]
    NoCollection(char),
    /// They are not where they should be.
    #[error(
        "{found}, and RECORDS_AT, which is {}, must lead to an array of records: set it to where they are, or to a dot if the answer is one \
         record",
        at.shown()
    )]
    Elsewhere { at: RecordsAt, found: String },
    /// They are no records.
    #[error(
        "at RECORDS_AT, which is {}, stand arrays, and a record is an object: rows below a header row, and records beside something else \
         in one array, are not taken; have the API send objects",
        at.shown()
    )]
    Arrays { at: RecordsAt },
}

impl From<io::Error> for RecordsError {
    fn from(error: io::Error) -> Self {
        DocumentError::from(error).into()
    }
}

/// Hands each record of those `at` that place to `take` as it is read. `take` says whether it understood the record. One that it did not
/// understand may be no JSON, such as `{"price": NaN}`, as long as its brackets and quotes fit together: that costs the record and not the
/// document, unless the document is the record. Text that is not UTF-8 costs its record, too. Memory stays at twice the largest
/// single record, or member beside them, and below 32 MiB but for a byte for each bracket that is open.
pub fn read_records(
    reader: impl Read,
    at: &RecordsAt,
    take: impl FnMut(Record<'_>) -> bool,
) -> Result<Found, RecordsError> {
    read(&mut Document::new(reader, RECORD_LIMIT_BYTES), at, take)
}

/// The same. It also answers with the document around the records, in which `null` stands for them. More
/// than 1 MiB around them is refused, but for long texts and arrays.
pub fn read_page(
    reader: impl Read,
    at: &RecordsAt,
    take: impl FnMut(Record<'_>) -> bool,
) -> Result<(Found, String), RecordsError> {
    let mut document = Document::new(reader, RECORD_LIMIT_BYTES).keeping_around();
    let found = read(&mut document, at, take)?;
    Ok((found, document.into_around()))
}

fn read(
    document: &mut Document<impl Read>,
    at: &RecordsAt,
    mut take: impl FnMut(Record<'_>) -> bool,
) -> Result<Found, RecordsError> {
    let elsewhere = |found| RecordsError::Elsewhere { at: at.clone(), found };
    let root = JsonPointer::default();
    let (pointer, is_array) = match at {
        RecordsAt::Array(pointer) => (pointer, true),
        RecordsAt::Document => (&root, false),
    };
    let found = match document.descend(pointer)? {
        Place::Value(b'[') if is_array => {
            read_array(document, &mut take)?;
            Found::Array
        }
        Place::Value(b'{') if pointer.is_root() => read_lines(document, is_array, &mut take)?,
        Place::Value(b'{') => {
            let element = document.find_element::<b'}'>()?;
            hand_over(document, &element, 0, is_array, &mut take)?;
            document.consume(element.bytes);
            Found::Object
        }
        Place::Value(b'n') => {
            let null = document.find_element::<b'}'>()?;
            document.check(&null)?;
            document.consume(null.bytes);
            Found::Nothing
        }
        Place::Value(other) if pointer.is_root() && other != b'[' => {
            return Err(RecordsError::NoCollection(char::from(other)));
        }
        Place::Value(other) => return Err(elsewhere(pointer.found_there(other))),
        // Many servers leave out what would be empty.
        Place::Absent { is_bare: true, .. } => {
            document.ascend(&root)?;
            return Ok(Found::Nothing);
        }
        Place::Absent { found, .. } | Place::Astray { found } => return Err(elsewhere(found)),
    };
    document.ascend(pointer)?;
    Ok(found)
}

fn read_array(
    document: &mut Document<impl Read>,
    take: &mut impl FnMut(Record<'_>) -> bool,
) -> Result<(), DocumentError> {
    document.consume(1);
    let mut index = 0;
    loop {
        let first = document.skip_white_space()?;
        if index == 0 && first == Some(b']') {
            document.consume(1);
            return Ok(());
        }
        let element = document.find_element::<b']'>()?;
        let Some(after) = element.after else { return Err(broken(element.at, "it ends inside the array")) };
        hand_over(document, &element, index, true, take)?;
        index += 1;
        document.consume(element.bytes + 1);
        if after == b']' {
            return Ok(());
        }
    }
}

/// One record, or one a line.
fn read_lines(
    document: &mut Document<impl Read>,
    may_be_wrong: bool,
    take: &mut impl FnMut(Record<'_>) -> bool,
) -> Result<Found, DocumentError> {
    let mut index = 0;
    while document.skip_white_space()? == Some(b'{') {
        let line = document.find_element::<b'\n'>()?;
        if line.after.is_none() && document.is_open() {
            return Err(broken(line.at, "it ends inside an object"));
        }
        hand_over(document, &line, index, may_be_wrong, take)?;
        document.consume(line.bytes);
        index += 1;
    }
    Ok(if index == 1 { Found::Object } else { Found::Lines })
}

fn hand_over(
    document: &Document<impl Read>,
    element: &Element,
    index: u64,
    may_be_wrong: bool,
    take: &mut impl FnMut(Record<'_>) -> bool,
) -> Result<(), DocumentError> {
    let (raw, is_whole) = (document.raw(element), element.is_whole());
    document.check_brackets(element)?;
    // Nothing that is understood is empty; but not everybody looks.
    let is_understood = take(Record { index, raw, is_whole }) && !raw.is_empty();
    let is_set_aside = !is_whole || may_be_wrong && !raw.is_empty() && document.is_balanced();
    if is_understood || is_set_aside { Ok(()) } else { document.check(element) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use serde_json::Value;

    use super::*;
    use crate::any_document::{Chunks, any_chunking, any_document, any_value};

    fn records(document: &str) -> Result<Vec<String>, String> {
        let (records, broken) = read(document.as_bytes());
        broken.map_or(Ok(records), Err)
    }

    #[test]
    fn documents_of_every_shape_give_their_records() {
        for (document, expected) in [
            ("[]", vec![]),
            (" null ", vec![]),
            ("\u{feff}\n[ 1 , {\"a\": [2]},\"x\",null ]\n", vec!["1", "{\"a\": [2]}", "\"x\"", "null"]),
            ("{\"id\": 1}", vec!["{\"id\": 1}"]),
            ("{\n\"id\": 1\n}\n", vec!["{\n\"id\": 1\n}"]),
            ("{\"a\":1}\n{\"a\":\"}\"}\r\n\n {\"a\":[3]}", vec!["{\"a\":1}", "{\"a\":\"}\"}", "{\"a\":[3]}"]),
        ] {
            assert_eq!(records(document), Ok(expected.into_iter().map(str::to_owned).collect()), "{document}");
        }
    }

    #[test]
    fn a_broken_document_is_told_where_it_breaks() {
        for (document, reason) in [
            ("", "the document is empty"),
            ("<html>", "the document is no collection: it begins with '<'"),
            ("\u{c}[]", "the document is no collection: it begins with '\\u{c}'"),
            // Two thirds of a byte order mark.
            ("\u{fefe}[]", "the document is no collection: it begins with 'ï'"),
            ("[1,2", "the document is broken from byte 3 on: it ends inside the array"),
            ("[1,,2]", "the document is broken from byte 3 on: a value is missing"),
            ("[1,]", "the document is broken from byte 3 on: a value is missing"),
            ("[1, {\"a\": [}]}]", "the document is broken from byte 4 on: expected value at line 1 column 8"),
            ("[1, }]", "the document is broken from byte 4 on: expected value at line 1 column 1"),
            ("[1] x", "the document is broken from byte 4 on: more follows it"),
            ("{}, {}", "the document is broken from byte 2 on: more follows it"),
            ("{} {}", "the document is broken from byte 0 on: trailing characters at line 1 column 4"),
            ("{}\n[]", "the document is broken from byte 3 on: more follows it"),
            ("{}\n{\"id\":2,\"ti", "the document is broken from byte 3 on: it ends inside an object"),
            ("nul", "the document is broken from byte 0 on: EOF while parsing a value at line 1 column 3"),
        ] {
            assert_eq!(records(document), Err(reason.to_owned()), "{document}");
        }
    }

    fn records_at(at: &str, document: &str) -> Result<Vec<String>, String> {
        let (records, broken) = read_at(document.as_bytes(), &at.parse().unwrap());
        broken.map_or(Ok(records), Err)
    }

    #[test]
    fn records_in_an_object_are_found_and_the_rest_is_passed() {
        for (at, document, expected) in [
            ("/data", r#"{"data":[{"id":1},7]}"#, vec![r#"{"id":1}"#, "7"]),
            ("/data", r#" { "next" : "]}" , "data" : [ 1 , 2 ] , "x":{"data":[3]} } "#, vec!["1", "2"]),
            ("/data", "\u{feff}{\"data\":[]}", vec![]),
            ("/data", r#"{"data":null,"next":null}"#, vec![]),
            ("/data", " { } ", vec![]),
            (".", r#"{"id":1,"data":[2]}"#, vec![r#"{"id":1,"data":[2]}"#]),
            (".", "null", vec![]),
            ("/data", r#"{"data":{"id":1} , "next":null}"#, vec![r#"{"id":1}"#]),
            ("/a/b", r#"{"x":[],"a":{"y":{},"b":[1],"z":0},"w":1}"#, vec!["1"]),
            ("/a~1b", r#"{"a\u002fb":[1]}"#, vec!["1"]),
        ] {
            let expected = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(records_at(at, document), Ok(expected), "{document}");
        }
    }

    #[test]
    fn records_that_are_elsewhere_are_told_with_the_setting() {
        for (document, found) in [
            ("[]", "the document is an array"),
            (r#"{"error":"busy"}"#, "the document has no member `data`"),
            (r#"{"data":{"x":[]}}"#, "`/data` has no member `items`"),
            (r#"{"data":null}"#, "`/data` is null"),
            (r#"{"data":[{"items":[]}]}"#, "`/data` is an array"),
            (r#"{"data":{"items":7}}"#, "`/data/items` is a number"),
            (r#"{"data":{"items":"x"}}"#, "`/data/items` is a text"),
        ] {
            let expected = format!(
                "{found}, and RECORDS_AT, which is /data/items, must lead to an array of records: set it to where they are, or to a dot if \
                 the answer is one record"
            );
            assert_eq!(records_at("/data/items", document), Err(expected), "{document}");
        }
    }

    #[test]
    fn an_array_is_no_single_record() {
        let said = records_at(".", "[1]").unwrap_err();
        assert!(said.starts_with("the document is an array, and RECORDS_AT, which is ., must"), "{said}");
    }

    #[test]
    fn a_place_fits_into_metadata_or_is_refused() {
        for (text, is_taken) in [
            ("/".to_owned() + &"a".repeat(199), true),
            ("/".to_owned() + &"a".repeat(200), false),
            ("/".to_owned() + &"é".repeat(33), true),
            ("/".to_owned() + &"é".repeat(34), false),
            ("data".to_owned(), false),
            ("..".to_owned(), false),
        ] {
            assert_eq!(
                text.parse::<RecordsAt>().map(|at| at.to_string() == text).ok(),
                is_taken.then_some(true),
                "{text}"
            );
        }
    }

    #[test]
    fn a_document_must_be_whole_around_its_records() {
        for (document, reason) in [
            (r#"{"data":[1]"#, "11 on: it ends inside an object"),
            (r#"{"data":[1"#, "9 on: it ends inside the array"),
            (r#"{"data":{"a":1}"#, "15 on: it ends inside an object"),
            (r#"{"data":[1]} x"#, "13 on: more follows it"),
            ("{} x", "3 on: more follows it"),
            (r#"{"data":[1]]"#, "11 on: a comma or the object's end is missing"),
            (r#"{"data":[1],}"#, "12 on: a member's name is missing"),
            (r#"{"data":[1],"x":tru}"#, "16 on: EOF while parsing a value at line 1 column 3"),
            (r#"{"data":[1],"x":[}"#, "16 on: it ends inside an object"),
            (r#"{"data":[1],"data":[2]}"#, "19 on: `/data` stands there twice"),
            (r#"{"data":[1],"d\u0061ta":[2]}"#, "24 on: `/data` stands there twice"),
        ] {
            let said = records_at("/data", document).unwrap_err();
            assert!(said.ends_with(reason), "{document}: {said}");
        }
        assert!(
            records_at("/a/b", r#"{"a":{"b":[1]},"a":{"b":[2]}}"#).unwrap_err().ends_with("`/a` stands there twice")
        );
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_fails() {
        let deep = format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(records(&deep).unwrap().len(), 1);
    }

    /// Each record and, if the document is broken, its reason.
    fn read(reader: impl Read) -> (Vec<String>, Option<String>) {
        read_at(reader, &RecordsAt::default())
    }

    fn read_at(reader: impl Read, at: &RecordsAt) -> (Vec<String>, Option<String>) {
        let mut records = Vec::new();
        let read = read_records(reader, at, |record| {
            assert_eq!(record.index, records.len() as u64);
            records.push(String::from_utf8_lossy(record.raw).into_owned());
            false
        });
        (records, read.err().map(|error| crate::telemetry::chain(&error)))
    }

    #[test]
    fn what_is_no_json_costs_its_record_where_it_ends_as_json_does() {
        for wrong in [r#"{"price":NaN}"#, r#"{"a":"\u{1}"}"#, "-Infinity", "{'a':1}", "no JSON"] {
            assert_eq!(records(&format!("[1,{wrong},2]")).as_deref(), Ok(&["1", wrong, "2"].map(str::to_owned)[..]));
            if wrong.starts_with('{') {
                assert!(records(&format!("{{}}\n{wrong}")).is_ok(), "{wrong}");
                assert!(records_at(".", wrong).is_err(), "the document is the record: {wrong}");
            }
        }
    }

    #[test]
    fn what_is_no_text_costs_its_record() {
        let (records, broken) = read(&b"[1,{\"a\":\"\xff\"},2]"[..]);
        assert_eq!((records.len(), broken), (3, None));
    }

    #[test]
    fn a_record_that_memory_should_not_hold_is_passed_by_its_beginning() {
        let commas = "é,".repeat(RECORD_LIMIT_BYTES);
        for long in [
            format!("\"{commas}\\\"]\""),
            format!("{{\"a\":[\"{commas}\"],\"b\":{{}}}} \n"),
            // Its last quote is the first byte after those that are held.
            format!("\"{}\"", "x".repeat(RECORD_LIMIT_BYTES - 1)),
            // And one that its last backslash escapes.
            format!("\"{}\\\"\"", "x".repeat(RECORD_LIMIT_BYTES - 2)),
        ] {
            for is_understood in [true, false] {
                let mut records = Vec::new();
                let read = read_records(format!("[1,{long},3]").as_bytes(), &RecordsAt::default(), |record| {
                    records.push((record.index, record.raw.len(), record.is_whole));
                    is_understood
                });
                assert!(read.is_ok(), "{read:?} {}", &long[..20]);
                assert_eq!(records, [(0, 1, true), (1, 65_536, false), (2, 1, true)]);
            }
        }
    }

    #[test]
    fn a_record_may_be_as_deep_as_it_may_be_long() {
        for (depth, is_read) in [(RECORD_LIMIT_BYTES, true), (RECORD_LIMIT_BYTES + 1, false)] {
            let deep = format!("[{}{}]", "[".repeat(depth), "]".repeat(depth));
            assert_eq!(read_records(deep.as_bytes(), &RecordsAt::default(), |_| true).is_ok(), is_read, "{depth}");
        }
    }

    #[test]
    fn a_document_of_any_length_takes_the_memory_of_its_longest_record() {
        let document = format!("[{}1]", "{\"id\":1},".repeat(200_000));
        let memory = allocation_counter::measure(|| {
            assert!(read_records(document.as_bytes(), &RecordsAt::default(), |_| true).is_ok());
        });
        assert!(memory.bytes_max < 350_000, "{memory:?}");
    }

    /// Interrupted before each read, and broken off after the bytes.
    struct BadWire<'a>(&'a [u8], bool);

    impl Read for BadWire<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match self.0.read(buffer) {
                Ok(0) => Err(io::ErrorKind::ConnectionReset.into()),
                read => read,
            }
        }
    }

    #[test]
    fn a_reader_that_fails_says_nothing_of_the_document() {
        let mut count = 0;
        let read = read_records(BadWire(b"[1,2,", false), &RecordsAt::default(), |_| {
            count += 1;
            true
        });
        assert!(
            matches!(read, Err(RecordsError::Document(DocumentError::Read(error))) if error.kind() == io::ErrorKind::ConnectionReset)
        );
        assert_eq!(count, 2);
    }

    #[test]
    fn a_long_document_that_is_broken_is_no_long_record() {
        let posts = "{\"id\":1},".repeat(2 * RECORD_LIMIT_BYTES / 9);
        for document in [
            posts.replace(',', " "),
            format!("{{\"a\":[{posts}"),
            format!("{{\"a\":\"{posts}").replace("\"id\"", "id"),
            format!("[{{\"x\":[1}},{posts}{{\"y\":1]}},{{}}]"),
        ] {
            let broken = read_records(document.as_bytes(), &RecordsAt::default(), |_| true);
            assert!(
                matches!(broken, Err(RecordsError::Document(DocumentError::Broken { at: 0 | 1, .. }))),
                "{broken:?} {}",
                &document[..20]
            );
        }
    }

    #[test]
    fn what_never_ends_is_refused_however_deep_it_is() {
        for deep in ["[", "[{\"\":"] {
            assert!(read(deep.repeat(100_000).as_bytes()).1.is_some());
        }
    }

    proptest! {
        #[test]
        fn any_document_gives_its_elements_however_it_is_cut((elements, document) in any_document(), sizes in any_chunking()) {
            let (records, broken) = read(Chunks::new(&document, sizes));
            prop_assert_eq!(broken, None);
            let records: Vec<Value> = records.iter().map(|record| serde_json::from_str(record).unwrap()).collect();
            prop_assert_eq!(records, elements);
        }

        #[test]
        fn a_document_that_breaks_off_breaks_the_same_however_it_is_cut((_, document) in any_document(), sizes in any_chunking(), at in any::<prop::sample::Index>()) {
            let document = &document[..at.index(document.len())];
            let (records, broken) = read(document);
            prop_assert!(broken.is_some());
            prop_assert_eq!(read(Chunks::new(document, sizes)), (records, broken));
        }

        #[test]
        fn a_document_in_objects_gives_what_serde_json_finds_there(
            (elements, document) in any_document(),
            wraps in prop::collection::vec(any_wrap(), 1..4),
            sizes in any_chunking(),
            end in any::<prop::sample::Index>(),
        ) {
            let mark = document.starts_with(b"\xef\xbb\xbf");
            let records = String::from_utf8(document[if mark { 3 } else { 0 }..].to_vec()).unwrap();
            let text = wraps.iter().rev().fold(records, |text, Wrap { before, name, after }| {
                let field = |name: &str, value: &str| format!("{}: {value}", serde_json::to_string(name).unwrap());
                let others = |others: &[(String, Value)]| -> Vec<String> {
                    let others = others.iter().filter(|(other, _)| other != name);
                    others.map(|(name, value)| field(name, &value.to_string())).collect()
                };
                format!("{{{}}}", [others(before), vec![field(name, &text)], others(after)].concat().join(" ,\n"))
            });
            let names = wraps.iter().map(|wrap| wrap.name.replace('~', "~0").replace('/', "~1"));
            let at = format!("/{}", names.collect::<Vec<_>>().join("/"));
            let whole: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(whole.pointer(&at), Some(&Value::from(elements.clone())));

            let pointer: RecordsAt = at.parse().unwrap();
            let document = if mark { format!("\u{feff}{text}") } else { text };
            let (found, broken) = read_at(Chunks::new(document.as_bytes(), sizes.clone()), &pointer);
            prop_assert_eq!(broken, None);
            let found: Vec<Value> = found.iter().map(|record| serde_json::from_str(record).unwrap()).collect();
            prop_assert_eq!(found, elements);

            let cut = &document.as_bytes()[..end.index(document.len())];
            let broken = read_at(cut, &pointer);
            prop_assert!(broken.1.is_some());
            prop_assert_eq!(read_at(Chunks::new(cut, sizes), &pointer), broken);
        }

        #[test]
        fn garbage_is_refused_and_never_a_panic(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            read_any(&garbage);
        }

        #[test]
        fn a_damaged_document_is_never_a_panic((_, mut document) in any_document(), damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            for (at, byte) in damages {
                let at = at.index(document.len());
                document[at] = byte;
            }
            read_any(&document);
        }
    }

    /// An object around the records: the members before, the one that holds them, and the members behind.
    #[derive(Clone, Debug)]
    struct Wrap {
        before: Vec<(String, Value)>,
        name: String,
        after: Vec<(String, Value)>,
    }

    fn any_wrap() -> impl Strategy<Value = Wrap> {
        let members = || prop::collection::vec((".{0,4}", any_value()), 0..4);
        // A number would be a place in an array.
        let name = "[^0-9]{0,4}";
        (members(), name, members()).prop_map(|(before, name, after)| Wrap { before, name, after })
    }

    fn read_any(document: &[u8]) {
        for at in ["", "/data", "/a/b"] {
            let _ = read_records(document, &at.parse().unwrap(), |record| {
                serde_json::from_slice::<IgnoredAny>(record.raw).is_ok()
            });
        }
    }
}
