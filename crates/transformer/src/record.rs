//! Bytes become records: each element of the document as a raw slice with its index. Pure, but for the reader it is given.
//!
//! A document is a JSON array of records or a single record, with or without a byte order mark; `null` and `[]` are empty. Only
//! where an element ends is found here, by brackets and quotes; that it is JSON is known from whoever understands it, so that each byte is
//! parsed once.

use std::{
    io::{self, Read},
    ops::Range,
};

use memchr::memchr2;
use serde::de::IgnoredAny;
use thiserror::Error;

/// A longer record is not held in memory.
const RECORD_LIMIT_BYTES: usize = 16 << 20;

/// How much of a longer record is held.
const HEAD_BYTES: usize = 64 * 1024;

/// What one read may bring.
const BUFFER_BYTES: usize = 256 * 1024;

const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

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
pub enum DocumentError {
    /// The bytes are not to be had, which says nothing about the document.
    #[error("the body could not be read to its end")]
    Read(#[from] io::Error),
    /// The bytes are no document.
    #[error("the document is broken from byte {at} on: {why}")]
    Broken {
        /// From 0.
        at: u64,
        /// For a person.
        why: String,
    },
    /// It begins like neither array nor object nor null.
    #[error("the document is no collection: it begins with {0:?}")]
    NoCollection(char),
    /// Nothing but white space.
    #[error("the document is empty")]
    Empty,
}

/// Hands each record to `take` as it is read, which says whether it understood it: one that it did not must at least be JSON, or the
/// document is broken. Text that is not UTF-8 costs its record. Memory stays at the largest single record, and below 32 MiB.
pub fn read_records(reader: impl Read, take: impl FnMut(Record<'_>) -> bool) -> Result<(), DocumentError> {
    let mut bytes = Bytes { reader, buffer: vec![0; BUFFER_BYTES], unread: 0..0, passed: 0, scan: Scan::default() };
    match bytes.skip_to_content()? {
        Some(b'[') => read_array(bytes, take),
        Some(b'{' | b'n') => read_single(bytes, take),
        Some(other) => Err(DocumentError::NoCollection(char::from(other))),
        None => Err(DocumentError::Empty),
    }
}

fn read_array(mut bytes: Bytes<impl Read>, mut take: impl FnMut(Record<'_>) -> bool) -> Result<(), DocumentError> {
    bytes.consume(1);
    let mut index = 0;
    loop {
        let first = bytes.skip_white_space()?;
        if index == 0 && first == Some(b']') {
            break;
        }
        let element = bytes.find_element()?;
        let Some(after) = element.after else { return Err(broken(element.at, "it ends inside the array")) };
        bytes.hand_over(&element, index, &mut take)?;
        index += 1;
        if after == b']' {
            bytes.consume(element.bytes);
            break;
        }
        bytes.consume(element.bytes + 1);
    }
    bytes.consume(1);
    if bytes.skip_white_space()?.is_some() { Err(broken(bytes.passed, "more follows the array")) } else { Ok(()) }
}

fn read_single(mut bytes: Bytes<impl Read>, mut take: impl FnMut(Record<'_>) -> bool) -> Result<(), DocumentError> {
    let element = bytes.find_element()?;
    if element.after.is_some() {
        return Err(broken(element.at, "more than one value"));
    }
    if bytes.trimmed(&element) == b"null" { Ok(()) } else { bytes.hand_over(&element, 0, &mut take) }
}

/// The document, of which a part is in memory.
struct Bytes<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Where in the buffer the bytes are that nobody has consumed.
    unread: Range<usize>,
    /// How many were consumed.
    passed: u64,
    /// Kept, so that not each element needs memory for it.
    scan: Scan,
}

/// An element that begins where the unread bytes do.
struct Element {
    /// Where it begins in the document.
    at: u64,
    /// How many unread bytes belong to it.
    bytes: usize,
    /// The `,` or `]` after it; `None` if the document ends there.
    after: Option<u8>,
    /// The beginning of one that is too long; its last bytes alone are unread.
    head: Option<Vec<u8>>,
}

impl<R: Read> Bytes<R> {
    /// Skips a byte order mark and white space, and answers with the byte after them. Part of a mark is none.
    fn skip_to_content(&mut self) -> io::Result<Option<u8>> {
        while self.unread.len() < BYTE_ORDER_MARK.len() && self.read_more()? {}
        if self.unread().starts_with(&BYTE_ORDER_MARK) {
            self.consume(BYTE_ORDER_MARK.len());
        }
        self.skip_white_space()
    }

    fn skip_white_space(&mut self) -> io::Result<Option<u8>> {
        loop {
            if let Some(found) = self.unread().iter().position(|byte| !is_white_space(*byte)) {
                self.consume(found);
                return Ok(self.unread().first().copied());
            }
            self.consume(self.unread.len());
            if !self.read_more()? {
                return Ok(None);
            }
        }
    }

    fn find_element(&mut self) -> io::Result<Element> {
        self.scan.begin();
        let (at, mut head) = (self.passed, None);
        loop {
            if let Some(bytes) = self.scan.end_of_element(&self.buffer[self.unread.clone()]) {
                return Ok(Element { at, bytes, after: Some(self.unread()[bytes]), head });
            }
            let bytes = self.unread.len();
            if bytes >= RECORD_LIMIT_BYTES {
                head.get_or_insert_with(|| self.unread()[..HEAD_BYTES].to_owned());
                self.consume(bytes);
                self.scan.at -= bytes;
            }
            if !self.read_more()? {
                return Ok(Element { at, bytes: self.unread.len(), after: None, head });
            }
        }
    }

    fn hand_over(
        &self,
        element: &Element,
        index: u64,
        take: &mut impl FnMut(Record<'_>) -> bool,
    ) -> Result<(), DocumentError> {
        let raw = self.trimmed(element);
        let is_whole = element.head.is_none();
        if !is_whole && !self.scan.is_balanced() {
            return Err(broken(element.at, "its brackets and quotes are no JSON"));
        }
        if take(Record { index, raw, is_whole }) || !is_whole {
            return Ok(());
        }
        match serde_json::from_slice::<IgnoredAny>(raw) {
            Ok(_) => Ok(()),
            Err(_) if raw.is_empty() => Err(broken(element.at, "a record is missing")),
            Err(error) => Err(broken(element.at, &error.to_string())),
        }
    }

    fn trimmed<'a>(&'a self, element: &'a Element) -> &'a [u8] {
        let raw = element.head.as_deref().unwrap_or(&self.unread()[..element.bytes]);
        let white = raw.iter().rev().take_while(|byte| is_white_space(**byte)).count();
        &raw[..raw.len() - white]
    }

    /// Reads at least one byte; `false` at the end of the document.
    fn read_more(&mut self) -> io::Result<bool> {
        if self.unread.end == self.buffer.len() {
            if self.unread.start > 0 {
                self.buffer.copy_within(self.unread.clone(), 0);
                self.unread = 0..self.unread.len();
            } else {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
        }
        let read = loop {
            match self.reader.read(&mut self.buffer[self.unread.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.unread.end += read;
        Ok(read > 0)
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.unread.clone()]
    }

    fn consume(&mut self, bytes: usize) {
        self.unread.start += bytes;
        self.passed += bytes as u64;
    }
}

fn broken(at: u64, why: &str) -> DocumentError {
    DocumentError::Broken { at, why: why.to_owned() }
}

/// JSON's own, which has no form feed.
fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// How far an element has been looked through.
#[derive(Default)]
struct Scan {
    at: usize,
    /// The brackets that are open.
    open: Vec<u8>,
    is_in_string: bool,
    /// Whether the outermost bracket was closed, so that nothing may follow.
    is_closed: bool,
    /// Whether the brackets fit together. Of an element that is held whole the parser says it, with words.
    is_wrong: bool,
}

impl Scan {
    fn begin(&mut self) {
        let mut open = std::mem::take(&mut self.open);
        open.clear();
        *self = Self { open, ..Self::default() };
    }

    /// Where the element ends that begins with `bytes`; `None` if not in them, and then it goes on from here with more of them.
    fn end_of_element(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(rest) = bytes.get(self.at..).filter(|rest| !rest.is_empty()) {
            if self.is_in_string {
                match memchr2(b'"', b'\\', rest) {
                    Some(found) if rest[found] == b'"' => {
                        self.is_in_string = false;
                        self.at += found + 1;
                    }
                    // Whatever is escaped does not end the string; it may be the first byte to come.
                    Some(found) => self.at += found + 2,
                    None => self.at = bytes.len(),
                }
                continue;
            }
            match rest[0] {
                b',' | b']' if self.open.is_empty() => return Some(self.at),
                byte => self.pass(byte),
            }
            self.at += 1;
        }
        None
    }

    fn pass(&mut self, byte: u8) {
        self.is_wrong |= self.is_closed && !is_white_space(byte);
        match byte {
            b'"' => self.is_in_string = true,
            b'[' | b'{' if self.open.len() < RECORD_LIMIT_BYTES => self.open.push(byte),
            b'[' | b'{' => self.is_wrong = true,
            b']' | b'}' => {
                // In ASCII a closing bracket is two after its opening one.
                self.is_wrong |= self.open.pop().is_none_or(|open| open + 2 != byte);
                self.is_closed = self.open.is_empty();
            }
            _ => {}
        }
    }

    fn is_balanced(&self) -> bool {
        self.open.is_empty() && !self.is_in_string && !self.is_wrong
    }
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
            ("[1,,2]", "the document is broken from byte 3 on: a record is missing"),
            ("[1,]", "the document is broken from byte 3 on: a record is missing"),
            ("[1, {\"a\": x}]", "the document is broken from byte 4 on: expected value at line 1 column 7"),
            ("[1, }]", "the document is broken from byte 4 on: expected value at line 1 column 1"),
            ("[1] x", "the document is broken from byte 4 on: more follows the array"),
            ("{}, {}", "the document is broken from byte 0 on: more than one value"),
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
                let read = read_records(format!("[1,{long},3]").as_bytes(), |record| {
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
            assert_eq!(read_records(deep.as_bytes(), |_| true).is_ok(), is_read, "{depth}");
        }
    }

    #[test]
    fn a_document_of_any_length_takes_the_memory_of_its_longest_record() {
        let document = format!("[{}1]", "{\"id\":1},".repeat(200_000));
        let memory = allocation_counter::measure(|| assert!(read_records(document.as_bytes(), |_| true).is_ok()));
        assert!(memory.bytes_max < 300_000, "{memory:?}");
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
        let read = read_records(BadWire(b"[1,2,", false), |_| {
            count += 1;
            true
        });
        assert!(matches!(read, Err(DocumentError::Read(error)) if error.kind() == io::ErrorKind::ConnectionReset));
        assert_eq!(count, 2);
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
            assert!(matches!(broken, Err(DocumentError::Broken { at: 0 | 1, .. })), "{broken:?} {}", &document[..20]);
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
