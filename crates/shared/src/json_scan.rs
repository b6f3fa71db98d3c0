//! A JSON document of which a part is in memory: where its elements end, and the way to one of its members. Pure, but for the reader that
//! it is given.
//!
//! Only where an element ends is found here, by brackets and quotes. Whoever understands the element finds out whether it is JSON, so that
//! each byte is parsed once.

use std::{
    io::{self, Read},
    ops::Range,
};

use serde::de::IgnoredAny;
use thiserror::Error;
use wide::u8x32;

use crate::json_pointer::JsonPointer;

/// How much of an element that is too long is held.
const HEAD_BYTES: usize = 64 * 1024;

/// What one read may bring.
const BUFFER_BYTES: usize = 256 * 1024;

/// What the first may bring: many documents are small, and glibc tidies all of its free memory up when 64 KiB are given back.
const FIRST_BUFFER_BYTES: usize = 32 * 1024;

/// How many bytes are looked through at once.
const BLOCK_BYTES: usize = 32;

/// Brackets in brackets beyond this are no JSON to us: each costs a byte.
const DEPTH_LIMIT: usize = 16 << 20;

/// What stands around the value that was looked for is kept member by member, but for longer texts and arrays: no cursor is so long.
const AROUND_MEMBER_BYTES: usize = 64 * 1024;

/// What stands for one that is longer.
const LONG: &[u8] = br#"{"too long":1}"#;

/// All members that are kept together. No answer of an API comes near it.
const AROUND_BYTES: usize = 1 << 20;

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

/// Where a pointer leads in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a value, which begins with this byte and is next.
    Value(u8),
    /// To nothing: a member is missing, or what should have it is null.
    Absent {
        /// For a person, as in "`/data` has no member `items`".
        found: String,
        /// Whether the document is `{}`.
        is_bare: bool,
    },
    /// Astray: what should have the member is no object.
    Astray {
        /// For a person, as in "`/data` is a number".
        found: String,
    },
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
    /// The document with `null` for the value that was looked for, if it is wanted.
    around: Option<Vec<u8>>,
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
    /// are held. That takes a buffer of twice the limit, or of 256 KiB if that is more, and a byte for each bracket that is open.
    pub fn new(reader: R, limit_bytes: usize) -> Self {
        let buffer = vec![0; FIRST_BUFFER_BYTES];
        Self { reader, buffer, unread: 0..0, passed: 0, limit_bytes, scan: Scan::default(), around: None }
    }

    /// Keeps what [`Document::descend`] and [`Document::ascend`] pass, for [`Document::into_around`].
    #[must_use]
    pub fn keeping_around(mut self) -> Self {
        self.around = Some(Vec::new());
        self
    }

    /// The document with `null` for the value to which the pointer has led, and `{"too long":1}` for texts and arrays beside it that are
    /// longer than 64 KiB. Nothing is in it unless it was asked for.
    pub fn into_around(self) -> String {
        String::from_utf8_lossy(&self.around.unwrap_or_default()).into_owned()
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

    /// Whether a bracket or a quote of the element that was found last is open at its end.
    pub fn is_open(&self) -> bool {
        self.scan.is_inside()
    }

    /// Refuses a long element whose brackets or quotes do not fit together; the parser judges a whole one.
    pub fn check_brackets(&self, element: &Element) -> Result<(), DocumentError> {
        if element.is_whole() || self.is_balanced() {
            Ok(())
        } else {
            Err(broken(element.at, "its brackets and quotes are no JSON"))
        }
    }

    /// Whether the brackets and quotes of the element that was found last fit together.
    pub fn is_balanced(&self) -> bool {
        self.scan.is_balanced()
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

    /// Goes on behind this number of unread bytes.
    pub fn consume(&mut self, bytes: usize) {
        self.unread.start += bytes;
        self.passed += bytes as u64;
    }

    /// Goes from the beginning to where the pointer leads. What it passes is looked at as far as it is held. Of a member that is repeated
    /// this is the first.
    pub fn descend(&mut self, to: &JsonPointer) -> Result<Place, DocumentError> {
        let mut first = self.skip_to_content()?.ok_or(DocumentError::Empty)?;
        for (depth, name) in to.names().iter().enumerate() {
            match first {
                b'{' => self.consume(1),
                b'n' => {
                    let null = self.find_element::<b'}'>()?;
                    self.check(&null)?;
                    return Ok(Place::Absent { found: format!("{} is null", to.place(depth)), is_bare: false });
                }
                _ => return Ok(Place::Astray { found: to.found(depth, first) }),
            }
            self.keep(b"{");
            let is_bare = depth == 0 && self.skip_white_space()? == Some(b'}');
            if !self.find_member(name, false)? {
                self.keep(b"}");
                return Ok(Place::Absent { found: format!("{} has no member `{name}`", to.place(depth)), is_bare });
            }
            first = self.skip_white_space()?.ok_or_else(|| self.ends_inside())?;
        }
        self.keep(b"null");
        Ok(Place::Value(first))
    }

    /// Goes on from behind the value to which the pointer has led to the end. A member on its way that is there once more is refused: nobody
    /// can say which one counts.
    pub fn ascend(&mut self, from: &JsonPointer) -> Result<(), DocumentError> {
        for (depth, name) in from.names().iter().enumerate().rev() {
            if self.find_member(name, true)? {
                return Err(broken(self.passed, &format!("{} stands there twice", from.place(depth + 1))));
            }
            self.keep(b"}");
        }
        if self.skip_white_space()?.is_some() { Err(broken(self.passed, "more follows it")) } else { Ok(()) }
    }

    /// Goes on in an object, from behind its bracket or one of its values, to the value of the member with this name; `false` behind the
    /// object's end.
    fn find_member(&mut self, name: &str, mut is_behind_value: bool) -> Result<bool, DocumentError> {
        loop {
            let mut next = self.skip_white_space()?;
            if next == Some(b'}') {
                self.consume(1);
                return Ok(false);
            }
            if is_behind_value && next == Some(b',') {
                self.consume(1);
                next = self.skip_white_space()?;
            } else if is_behind_value && next.is_some() {
                return Err(broken(self.passed, "a comma or the object's end is missing"));
            }
            if next.is_some_and(|next| next != b'"') {
                return Err(broken(self.passed, "a member's name is missing"));
            }
            let key = self.find_element::<b':'>()?;
            if key.after.is_none() {
                return Err(self.ends_inside());
            }
            self.check(&key)?;
            if key.after != Some(b':') {
                return Err(broken(key.at, "a member has no value"));
            }
            // A name that is no text is not the one that is looked for.
            let key_text = serde_json::from_slice::<String>(self.raw(&key)).ok();
            let is_found = key_text.as_deref() == Some(name);
            self.consume(key.bytes + 1);
            if is_found {
                self.keep_name(name);
                return Ok(true);
            }
            self.skip_white_space()?;
            let value = self.find_element::<b'}'>()?;
            if value.after.is_none() {
                return Err(self.ends_inside());
            }
            self.check(&value)?;
            if let Some(name) = key_text {
                self.keep_member(&name, &value)?;
            }
            self.consume(value.bytes);
            is_behind_value = true;
        }
    }

    fn keep(&mut self, text: &[u8]) {
        if let Some(around) = &mut self.around {
            around.extend_from_slice(text);
        }
    }

    fn keep_name(&mut self, name: &str) {
        let Some(around) = &mut self.around else { return };
        if around.last() != Some(&b'{') {
            around.push(b',');
        }
        around.extend(serde_json::to_vec(name).expect("a text is JSON"));
        around.push(b':');
    }

    fn keep_member(&mut self, name: &str, value: &Element) -> Result<(), DocumentError> {
        let Some(kept) = self.around.as_ref().map(Vec::len) else { return Ok(()) };
        let raw = self.raw(value);
        let is_object = raw.starts_with(b"{");
        let is_kept = value.is_whole() && (raw.len() <= AROUND_MEMBER_BYTES || is_object);
        // An object may have a cursor among what is long in it.
        if is_object && !is_kept {
            return Err(broken(value.at, "a member beside its records is longer than 16 MiB"));
        }
        let raw = if is_kept { raw.to_owned() } else { LONG.to_vec() };
        if kept + name.len() + raw.len() > AROUND_BYTES {
            return Err(broken(value.at, "more than 1 MiB stands around its records"));
        }
        self.keep_name(name);
        self.keep(&raw);
        Ok(())
    }

    fn ends_inside(&self) -> DocumentError {
        broken(self.passed, "it ends inside an object")
    }

    /// Reads at least one byte; `false` at the end of the document.
    fn read_more(&mut self) -> io::Result<bool> {
        if self.unread.end == self.buffer.len() {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            if self.buffer.len() < BUFFER_BYTES {
                self.buffer.resize(BUFFER_BYTES, 0);
            } else if self.unread.end == self.buffer.len() {
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

impl DocumentError {
    /// Whether the document only ends too soon.
    pub fn is_cut_short(&self) -> bool {
        matches!(self, Self::Broken { why, .. } if why.starts_with("it ends inside") || why.starts_with("EOF while"))
    }
}

/// What is wrong there, in words.
pub fn broken(at: u64, why: &str) -> DocumentError {
    DocumentError::Broken { at, why: why.to_owned() }
}

/// A bit for each quote, backslash and bracket: nothing else matters in a string or between brackets. Twice as fast as a search from one to
/// the next, since names and most values are short.
#[inline]
fn marks(block: &[u8; BLOCK_BYTES]) -> u32 {
    let bytes = u8x32::new(*block);
    let is = |byte| bytes.simd_eq(u8x32::splat(byte));
    // With this bit a square bracket is a curly one.
    let curly = bytes | u8x32::splat(b'{' ^ b'[');
    let brackets = curly.simd_eq(u8x32::splat(b'{')) | curly.simd_eq(u8x32::splat(b'}'));
    (is(b'"') | is(b'\\') | brackets).to_bitmask()
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
        while let Some(&byte) = bytes.get(self.at) {
            if self.is_inside() {
                self.pass_inside(&bytes[self.at..]);
            } else if byte == b',' || byte == CLOSE {
                return Some(self.at);
            } else {
                self.pass(byte);
                self.at += 1;
            }
        }
        None
    }

    #[inline]
    fn is_inside(&self) -> bool {
        self.is_in_string || !self.open.is_empty()
    }

    /// Goes on behind the string and the brackets in which it is, or as far as one block shows.
    #[inline]
    fn pass_inside(&mut self, rest: &[u8]) {
        let mut padded = [0; BLOCK_BYTES];
        let block = rest.first_chunk().unwrap_or_else(|| {
            padded[..rest.len()].copy_from_slice(rest);
            &padded
        });
        let (mut marks, mut passed) = (marks(block), rest.len().min(BLOCK_BYTES));
        while marks != 0 {
            let at = marks.trailing_zeros() as usize;
            marks &= marks - 1;
            match block[at] {
                b'"' => self.is_in_string = !self.is_in_string,
                b'\\' if self.is_in_string => {
                    // Whatever is escaped does not end the string; it may be the first byte to come.
                    marks &= !(2 << at);
                    passed = passed.max(at + 2);
                }
                _ if self.is_in_string => {}
                byte => self.pass(byte),
            }
            if !self.is_inside() {
                passed = at + 1;
                break;
            }
        }
        self.at += passed;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(text: &str) -> JsonPointer {
        text.parse().unwrap()
    }

    /// Where the pointer leads, and how much is left there; or what is wrong.
    fn descend(document: &str, to: &str) -> Result<String, String> {
        let mut read = Document::new(document.as_bytes(), HEAD_BYTES);
        match read.descend(&pointer(to)) {
            Ok(Place::Value(_)) => Ok(document[usize::try_from(read.passed).unwrap()..].to_owned()),
            Ok(Place::Absent { found, .. }) => Err(format!("absent: {found}")),
            Ok(Place::Astray { found }) => Err(format!("astray: {found}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_pointer_leads_to_the_value_however_it_is_written() {
        for (document, to, rest) in [
            (" [1] ", "", "[1] "),
            (r#"{"data":[1]}"#, "/data", "[1]}"),
            ("\u{feff} { \"a\" : {\"data\":1} , \"data\" : null}", "/data", "null}"),
            (r#"{"x":"\"data\":[}","d\u0061ta":"y"}"#, "/data", "\"y\"}"),
            (r#"{"a":{"b":{"c":7}}}"#, "/a/b/c", "7}}}"),
            (r#"{"a":{"b":1},"":{"":2}}"#, "//", "2}}"),
            (r#"{"\ud800":1,"a/b":2}"#, "/a~1b", "2}"),
            (r#"{"a":1,"a":2}"#, "/a", "1,\"a\":2}"),
        ] {
            assert_eq!(descend(document, to).as_deref(), Ok(rest), "{document}");
        }
    }

    #[test]
    fn a_pointer_that_leads_nowhere_is_told_what_is_there() {
        for (document, to, why) in [
            ("[]", "/data", "astray: the document is an array"),
            ("7", "/data", "astray: the document is a number"),
            ("null", "/data", "absent: the document is null"),
            ("{}", "/data", "absent: the document has no member `data`"),
            (r#"{"data":null}"#, "/data/items", "absent: `/data` is null"),
            (r#"{"data":{"x":1}}"#, "/data/items", "absent: `/data` has no member `items`"),
            (r#"{"data":"x"}"#, "/data/items", "astray: `/data` is a text"),
            (r#"{"data":false}"#, "/data/items", "astray: `/data` is true or false"),
            ("", "/data", "the document is empty"),
            ("{", "/data", "the document is broken from byte 1 on: it ends inside an object"),
            (r#"{"data""#, "/data", "the document is broken from byte 1 on: it ends inside an object"),
            (r#"{"data":"#, "/data", "the document is broken from byte 8 on: it ends inside an object"),
            (r#"{"a":1"#, "/data", "the document is broken from byte 5 on: it ends inside an object"),
            (
                r#"{"a":trx,"data":1}"#,
                "/data",
                "the document is broken from byte 5 on: expected ident at line 1 column 3",
            ),
            (r#"{"a":,"data":1}"#, "/data", "the document is broken from byte 5 on: a value is missing"),
            (r#"{"a","data":1}"#, "/data", "the document is broken from byte 1 on: a member has no value"),
            (r#"{"a":1,}"#, "/data", "the document is broken from byte 7 on: a member's name is missing"),
            ("{a:1}", "/data", "the document is broken from byte 1 on: a member's name is missing"),
            (r#"{"a":1]"#, "/data", "the document is broken from byte 5 on: it ends inside an object"),
        ] {
            assert_eq!(descend(document, to), Err(why.to_owned()), "{document}");
        }
    }

    #[test]
    fn what_is_passed_is_not_held() {
        let long = format!(r#"{{"{}":[{}],"next":"a"}}"#, "n".repeat(1 << 20), "{\"id\":1},".repeat(1 << 20));
        let mut read = Document::new(long.as_bytes(), HEAD_BYTES);
        assert_eq!(read.descend(&pointer("/next")).unwrap(), Place::Value(b'"'));
        assert_eq!(read.buffer.len(), BUFFER_BYTES);
    }

    #[test]
    fn what_stands_around_a_value_is_kept_but_for_long_members() {
        for (document, at, around) in [
            ("[1]", "", "null"),
            (r#"{"a":[1]}"#, "/a", r#"{"a":null}"#),
            (
                r#" { "x" : {"y": [2]} , "a" : { "b" : [1] , "n":null} , "z\u0041" : 1.50 }"#,
                "/a/b",
                r#"{"x":{"y": [2]},"a":{"b":null,"n":null},"zA":1.50}"#,
            ),
            (
                &format!(r#"{{"long":"{}","a":[],"b":1}}"#, "x".repeat(AROUND_MEMBER_BYTES)),
                "/a",
                r#"{"long":{"too long":1},"a":null,"b":1}"#,
            ),
        ] {
            let mut read = Document::new(document.as_bytes(), HEAD_BYTES).keeping_around();
            assert!(matches!(read.descend(&pointer(at)), Ok(Place::Value(b'['))), "{document}");
            let value = read.find_element::<b'}'>().unwrap();
            read.consume(value.bytes);
            read.ascend(&pointer(at)).unwrap();
            assert_eq!(read.into_around(), around, "{document}");
        }
        let many = format!("{{{}\"a\":[]}}", format!("\"m\":\"{}\",", "x".repeat(60_000)).repeat(20));
        let refused = Document::new(many.as_bytes(), HEAD_BYTES).keeping_around().descend(&pointer("/a")).unwrap_err();
        assert!(refused.to_string().ends_with("more than 1 MiB stands around its records"), "{refused}");
    }
}
