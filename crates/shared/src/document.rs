//! A JSON document, of which a part is in memory: where its elements end. Pure, but for the reader it is given.
//!
//! Only where an element ends is found here, by brackets and quotes; that it is JSON is known from whoever understands it, so that each
//! byte is parsed once.

use std::{
    io::{self, Read},
    ops::Range,
};

use memchr::memchr2;
use serde::de::IgnoredAny;
use thiserror::Error;

/// How much of an element that is too long is held.
const HEAD_BYTES: usize = 64 * 1024;

/// What one read may bring.
const BUFFER_BYTES: usize = 256 * 1024;

/// Brackets in brackets beyond this are no JSON to us: each costs a byte.
const DEPTH_LIMIT: usize = 16 << 20;

const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Why a document cannot be read further.
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
    /// Nothing but white space.
    #[error("the document is empty")]
    Empty,
}

/// A document that is read from its beginning to its end.
#[derive(Debug)]
pub struct Document<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Where in the buffer the bytes are that nobody has consumed.
    unread: Range<usize>,
    /// How many were consumed.
    passed: u64,
    /// A longer element is not held.
    limit_bytes: usize,
    /// Kept, so that not each element needs memory for it.
    scan: Scan,
}

/// An element that begins where the unread bytes do.
#[derive(Debug)]
pub struct Element {
    /// Where it begins in the document, from 0.
    pub at: u64,
    /// How many unread bytes belong to it.
    pub bytes: usize,
    /// The byte that ends it; `None` if the document does.
    pub after: Option<u8>,
    /// The beginning of one that is too long; its last bytes alone are unread.
    head: Option<Vec<u8>>,
}

impl Element {
    /// Whether all of its bytes are held.
    pub fn is_whole(&self) -> bool {
        self.head.is_none()
    }
}

impl<R: Read> Document<R> {
    /// A document of which nothing is read yet. Of an element longer than `limit_bytes`, which is 64 KiB or more, only the first 64 KiB
    /// are held; twice the limit is the most memory that this takes.
    pub fn new(reader: R, limit_bytes: usize) -> Self {
        let buffer = vec![0; BUFFER_BYTES];
        Self { reader, buffer, unread: 0..0, passed: 0, limit_bytes, scan: Scan::default() }
    }

    /// Skips a byte order mark and white space, and answers with the byte after them. Part of a mark is none.
    pub fn skip_to_content(&mut self) -> io::Result<Option<u8>> {
        while self.unread.len() < BYTE_ORDER_MARK.len() && self.read_more()? {}
        if self.unread().starts_with(&BYTE_ORDER_MARK) {
            self.consume(BYTE_ORDER_MARK.len());
        }
        self.skip_white_space()
    }

    /// Skips white space, and answers with the byte after it, `None` at the end.
    pub fn skip_white_space(&mut self) -> io::Result<Option<u8>> {
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

    /// Finds the element that begins here and ends before a comma or `CLOSE`.
    pub fn find_element<const CLOSE: u8>(&mut self) -> io::Result<Element> {
        self.scan.begin();
        let (at, mut head) = (self.passed, None);
        loop {
            if let Some(bytes) = self.scan.end_of_element::<CLOSE>(&self.buffer[self.unread.clone()]) {
                return Ok(Element { at, bytes, after: Some(self.unread()[bytes]), head });
            }
            let bytes = self.unread.len();
            if bytes >= self.limit_bytes {
                head.get_or_insert_with(|| self.unread()[..HEAD_BYTES].to_owned());
                self.consume(bytes);
                self.scan.at -= bytes;
            }
            if !self.read_more()? {
                return Ok(Element { at, bytes: self.unread.len(), after: None, head });
            }
        }
    }

    /// The bytes of the element that was found last, without white space behind them; the first of them if it is not whole.
    pub fn raw<'a>(&'a self, element: &'a Element) -> &'a [u8] {
        let raw = element.head.as_deref().unwrap_or(&self.unread()[..element.bytes]);
        let white = raw.iter().rev().take_while(|byte| is_white_space(**byte)).count();
        &raw[..raw.len() - white]
    }

    /// Whether the brackets and quotes of the element that was found last fit together. Of one that is whole the parser says it, with words.
    pub fn check_brackets(&self, element: &Element) -> Result<(), DocumentError> {
        if element.is_whole() || self.scan.is_balanced() {
            Ok(())
        } else {
            Err(broken(element.at, "its brackets and quotes are no JSON"))
        }
    }

    /// Whether the element that was found last is JSON, as far as it is held.
    pub fn check(&self, element: &Element) -> Result<(), DocumentError> {
        if !element.is_whole() {
            return self.check_brackets(element);
        }
        let raw = self.raw(element);
        match serde_json::from_slice::<IgnoredAny>(raw) {
            Ok(_) => Ok(()),
            Err(_) if raw.is_empty() => Err(broken(element.at, "a value is missing")),
            Err(error) => Err(broken(element.at, &error.to_string())),
        }
    }

    /// Goes on behind so many unread bytes.
    pub fn consume(&mut self, bytes: usize) {
        self.unread.start += bytes;
        self.passed += bytes as u64;
    }

    /// There must be nothing more.
    pub fn end(&mut self) -> Result<(), DocumentError> {
        if self.skip_white_space()?.is_some() { Err(broken(self.passed, "more follows it")) } else { Ok(()) }
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
}

/// What is wrong there, in words.
pub fn broken(at: u64, why: &str) -> DocumentError {
    DocumentError::Broken { at, why: why.to_owned() }
}

/// JSON's own, which has no form feed.
fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// How far an element has been looked through.
#[derive(Debug, Default)]
struct Scan {
    at: usize,
    /// The brackets that are open.
    open: Vec<u8>,
    is_in_string: bool,
    /// Whether the outermost bracket was closed, so that nothing may follow.
    is_closed: bool,
    /// Whether a bracket does not fit the others.
    is_wrong: bool,
}

impl Scan {
    #[inline]
    fn begin(&mut self) {
        let mut open = std::mem::take(&mut self.open);
        open.clear();
        *self = Self { open, ..Self::default() };
    }

    /// Where the element ends that begins with `bytes`; `None` if not in them, and then it goes on from here with more of them.
    fn end_of_element<const CLOSE: u8>(&mut self, bytes: &[u8]) -> Option<usize> {
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
                b',' if self.open.is_empty() => return Some(self.at),
                byte if byte == CLOSE && self.open.is_empty() => return Some(self.at),
                byte => self.pass(byte),
            }
            self.at += 1;
        }
        None
    }

    #[inline]
    fn pass(&mut self, byte: u8) {
        self.is_wrong |= self.is_closed && !is_white_space(byte);
        match byte {
            b'"' => self.is_in_string = true,
            b'[' | b'{' if self.open.len() < DEPTH_LIMIT => self.open.push(byte),
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
