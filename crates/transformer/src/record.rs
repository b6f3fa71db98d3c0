//! Bytes become records: each element of the document as a raw slice with its index. Pure, but for the reader it is given.
//!
//! A document is a JSON array of records or a single record, with or without a byte order mark; `null` and `[]` are empty.

use std::io::{self, Read};

use shared::document::{Document, DocumentError, Element, JsonPointer, broken};
use thiserror::Error;

/// A longer record is not held in memory.
const RECORD_LIMIT_BYTES: usize = 16 << 20;

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

/// Why a document gives no further records.
#[derive(Debug, Error)]
pub enum RecordsError {
    /// It cannot be read further.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// It begins like neither array nor object nor null.
    #[error("the document is no collection: it begins with {0:?}")]
    NoCollection(char),
}

impl From<io::Error> for RecordsError {
    fn from(error: io::Error) -> Self {
        DocumentError::from(error).into()
    }
}

/// Hands each record to `take` as it is read, which says whether it understood it: one that it did not must at least be JSON, or the
/// document is broken. Text that is not UTF-8 costs its record. Memory stays at the largest single record, and below 32 MiB.
pub fn read_records(reader: impl Read, mut take: impl FnMut(Record<'_>) -> bool) -> Result<(), RecordsError> {
    let mut document = Document::new(reader, RECORD_LIMIT_BYTES);
    match document.skip_to_content()? {
        Some(b'[') => read_array(&mut document, &mut take)?,
        Some(b'{' | b'n') => read_single(&mut document, &mut take)?,
        Some(other) => return Err(RecordsError::NoCollection(char::from(other))),
        None => return Err(DocumentError::Empty.into()),
    }
    Ok(document.ascend(&JsonPointer::default())?)
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
        hand_over(document, &element, index, take)?;
        index += 1;
        document.consume(element.bytes + 1);
        if after == b']' {
            return Ok(());
        }
    }
}

fn read_single(
    document: &mut Document<impl Read>,
    take: &mut impl FnMut(Record<'_>) -> bool,
) -> Result<(), DocumentError> {
    let element = document.find_element::<b'}'>()?;
    if document.raw(&element) != b"null" {
        hand_over(document, &element, 0, take)?;
    }
    document.consume(element.bytes);
    Ok(())
}

fn hand_over(
    document: &Document<impl Read>,
    element: &Element,
    index: u64,
    take: &mut impl FnMut(Record<'_>) -> bool,
) -> Result<(), DocumentError> {
    let is_whole = element.is_whole();
    document.check_brackets(element)?;
    let is_understood = take(Record { index, raw: document.raw(element), is_whole });
    if is_understood || !is_whole { Ok(()) } else { document.check(element) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{
        documents::{Chunks, any_chunking, any_document},
        post::Post,
    };

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
            ("[1, {\"a\": x}]", "the document is broken from byte 4 on: expected value at line 1 column 7"),
            ("[1, }]", "the document is broken from byte 4 on: expected value at line 1 column 1"),
            ("[1] x", "the document is broken from byte 4 on: more follows it"),
            ("{}, {}", "the document is broken from byte 2 on: more follows it"),
            ("{} {}", "the document is broken from byte 0 on: trailing characters at line 1 column 4"),
            ("nul", "the document is broken from byte 0 on: EOF while parsing a value at line 1 column 3"),
        ] {
            assert_eq!(records(document), Err(reason.to_owned()), "{document}");
        }
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_fails() {
        let deep = format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(records(&deep).unwrap().len(), 1);
    }

    /// Each record and, if the document is broken, its reason.
    fn read(reader: impl Read) -> (Vec<String>, Option<String>) {
        let mut records = Vec::new();
        let read = read_records(reader, |record| {
            assert_eq!(record.index, records.len() as u64);
            records.push(String::from_utf8_lossy(record.raw).into_owned());
            false
        });
        (records, read.err().map(|error| shared::telemetry::chain(&error)))
    }

    #[test]
    fn what_is_no_text_costs_its_record() {
        let (records, broken) = read(&b"[1,{\"a\":\"\xff\"},2]"[..]);
        assert_eq!((records.len(), broken), (3, None));
    }

    #[test]
    fn a_record_that_memory_should_not_hold_is_passed_by_its_beginning() {
        let long = format!("[1,\"{}\\\"]\",3]", "é,".repeat(RECORD_LIMIT_BYTES));
        let mut records = Vec::new();
        let read = read_records(long.as_bytes(), |record| {
            records.push((record.index, record.raw.len(), record.is_whole));
            true
        });
        assert!(read.is_ok());
        assert_eq!(records, [(0, 1, true), (1, 64 * 1024, false), (2, 1, true)]);
    }

    #[test]
    fn a_long_document_that_is_broken_is_no_long_record() {
        let posts = "{\"id\":1},".repeat(2 * RECORD_LIMIT_BYTES / 9);
        for document in [
            posts.replace(',', "\n"),
            format!("{{\"a\":[{posts}"),
            format!("{{\"a\":\"{posts}").replace("\"id\"", "id"),
            format!("[{{\"x\":[1}},{posts}{{\"y\":1]}},{{}}]"),
        ] {
            let broken = read_records(document.as_bytes(), |_| true);
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
        fn garbage_is_refused_and_never_a_panic(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            read_and_type(&garbage);
        }

        #[test]
        fn a_damaged_document_is_never_a_panic((_, mut document) in any_document(), damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            for (at, byte) in damages {
                let at = at.index(document.len());
                document[at] = byte;
            }
            read_and_type(&document);
        }
    }

    fn read_and_type(document: &[u8]) {
        let _ = read_records(document, |record| Post::from_record(record).is_ok());
    }
}
