//! Bytes become records: each element of the document as a raw slice with its index. Pure, but for the reader it is given.
//!
//! A document is a JSON array of records or a single record, with or without a byte order mark; `null` and `[]` are empty.

use std::{
    fmt,
    io::{self, BufRead},
};

use serde::{
    Deserialize,
    de::{Deserializer, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use thiserror::Error;

const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// One element of a document.
#[derive(Debug)]
pub struct Record {
    /// Its place in the document, from 0.
    pub index: u64,
    /// Its bytes as they stand there: valid JSON, of any type.
    pub raw: Box<RawValue>,
}

/// Why a document gives no further records.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// The bytes are not to be had, which says nothing about the document.
    #[error("the body could not be read to its end")]
    Read(#[source] io::Error),
    /// The bytes are no document; the cause says where they stop being one.
    #[error("the document is broken")]
    Broken(#[source] serde_json::Error),
    /// It begins like neither array nor object nor null.
    #[error("the document is no collection: it begins with {0:?}")]
    NoCollection(char),
    /// Nothing but white space.
    #[error("the document is empty")]
    Empty,
}

/// Hands each record to `take` as it is read. Memory stays at the largest single record.
pub fn read_records(mut reader: impl BufRead, take: impl FnMut(Record)) -> Result<(), DocumentError> {
    let first = skip_to_content(&mut reader).map_err(DocumentError::Read)?;
    let mut document = serde_json::Deserializer::from_reader(reader);
    let read = match first {
        Some(b'[') => document.deserialize_seq(Elements { take }),
        Some(b'{' | b'n') => single_record(&mut document, take),
        Some(other) => return Err(DocumentError::NoCollection(char::from(other))),
        None => return Err(DocumentError::Empty),
    };
    read.and_then(|()| document.end())
        .map_err(|error| if error.is_io() { DocumentError::Read(error.into()) } else { DocumentError::Broken(error) })
}

/// Skips a byte order mark and white space; the byte after them stays in the reader. Part of a mark is none.
fn skip_to_content(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    for expected in BYTE_ORDER_MARK {
        match reader.fill_buf()?.first() {
            Some(byte) if *byte == expected => reader.consume(1),
            Some(_) if expected == BYTE_ORDER_MARK[0] => break,
            byte => return Ok(byte.map(|_| BYTE_ORDER_MARK[0])),
        }
    }
    loop {
        match reader.fill_buf()?.first() {
            // JSON's own, which has no form feed.
            Some(b' ' | b'\t' | b'\r' | b'\n') => reader.consume(1),
            byte => return Ok(byte.copied()),
        }
    }
}

fn single_record<'de>(
    document: impl Deserializer<'de, Error = serde_json::Error>,
    mut take: impl FnMut(Record),
) -> Result<(), serde_json::Error> {
    let raw = Box::<RawValue>::deserialize(document)?;
    if raw.get() != "null" {
        take(Record { index: 0, raw });
    }
    Ok(())
}

/// Takes the elements of an array one by one, so that the array is never in memory.
struct Elements<F> {
    take: F,
}

impl<'de, F: FnMut(Record)> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        let mut index = 0;
        while let Some(raw) = elements.next_element()? {
            (self.take)(Record { index, raw });
            index += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{
        documents::{Chunks, any_chunking, any_document},
        post::Post,
    };

    fn records(document: &str) -> Result<Vec<String>, String> {
        let mut records = Vec::new();
        let read = read_records(document.as_bytes(), |record| {
            assert_eq!(record.index, records.len() as u64);
            records.push(record.raw.get().to_owned());
        });
        read.map(|()| records).map_err(|error| shared::telemetry::chain(&error))
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
            ("[1,2", "the document is broken: EOF while parsing a list at line 1 column 4"),
            ("[1,,2]", "the document is broken: expected value at line 1 column 4"),
            ("[1] x", "the document is broken: trailing characters at line 1 column 5"),
            ("nul", "the document is broken: EOF while parsing a value at line 1 column 3"),
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
    fn read(reader: impl BufRead) -> (Vec<String>, Option<String>) {
        let mut records = Vec::new();
        let read = read_records(reader, |record| records.push(record.raw.get().to_owned()));
        (records, read.err().map(|error| shared::telemetry::chain(&error)))
    }

    #[test]
    fn what_never_ends_is_refused_however_deep_it_is() {
        for deep in ["[", "[{\"\":"] {
            assert!(read(deep.repeat(100_000).as_bytes()).1.is_some());
        }
    }

    proptest! {
        #[test]
        fn any_document_gives_its_elements_however_it_is_cut((elements, document) in any_document(), sizes in any_chunking(), capacity in 1..300_usize) {
            let (records, broken) = read(BufReader::with_capacity(capacity, Chunks::new(&document, sizes)));
            prop_assert_eq!(broken, None);
            let records: Vec<Value> = records.iter().map(|record| serde_json::from_str(record).unwrap()).collect();
            prop_assert_eq!(records, elements);
        }

        #[test]
        fn a_document_that_breaks_off_breaks_the_same_however_it_is_cut((_, document) in any_document(), sizes in any_chunking(), at in any::<prop::sample::Index>()) {
            let document = &document[..at.index(document.len())];
            let (records, broken) = read(document);
            prop_assert!(broken.is_some());
            prop_assert_eq!(read(BufReader::with_capacity(7, Chunks::new(document, sizes))), (records, broken));
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
        let _ = read_records(document, |record| drop(Post::from_record(&record)));
    }
}
