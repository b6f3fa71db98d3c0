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

/// Skips a byte order mark and white space; the byte after them stays in the reader.
fn skip_to_content(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    let mut may_be_mark = [0xef, 0xbb, 0xbf].into_iter();
    loop {
        let Some(&byte) = reader.fill_buf()?.first() else { return Ok(None) };
        if !byte.is_ascii_whitespace() && may_be_mark.next() != Some(byte) {
            return Ok(Some(byte));
        }
        reader.consume(1);
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
    use super::*;

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
}
