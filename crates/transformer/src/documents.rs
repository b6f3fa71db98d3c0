//! Documents of every kind, for the tests of whoever reads them.

use std::iter;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Documents that are JSON, written as people and machines write it.
pub(crate) const GOOD: &[&[u8]] = &[
    b"[]",
    b" [ ] ",
    b"[[]   ]",
    b"[\"\"]",
    b"[false]",
    b"[null, 1, \"1\", {}]",
    b"[1\x0a]",
    b" [1]",
    b"[1,null,null,null,2]",
    b"[2] ",
    b"[123e65]",
    b"[0e+1]",
    b"[ 4]",
    b"[-0]",
    b"[-123]",
    b"[20e1]",
    b"[1E22]",
    b"[1E-2]",
    b"[123.456e78]",
    b"{\"asd\":\"sdf\"}",
    b"{\"a\":\"b\",\"a\":\"c\"}",
    b"{}",
    b"{\"\":0}",
    b"{\"foo\\u0000bar\": 42}",
    b"{\"a\":[]}",
    b"[\"\\u0060\\u012a\\u12AB\"]",
    b"[\"\\uD801\\udc37\"]",
    b"[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"]",
    b"[\"\\u0000\"]",
    b"[\"\xe2\x80\xa8\"]",
    b"[\"\xd0\x94\"]",
    b"[true]\x0a",
];

/// Documents that are not, by one slip each.
pub(crate) const BROKEN: &[&[u8]] = &[
    b"[1 true]",
    b"[\"\": 1]",
    b"[\"\"],",
    b"[,1]",
    b"[1,,2]",
    b"[\"x\",,]",
    b"[\"x\"]]",
    b"[\"\",]",
    b"[\"x\"",
    b"[x",
    b"[3[4]]",
    b"[,]",
    b"[-]",
    b"[   , \"\"]",
    b"[1,]",
    b"[*]",
    b"[\"\"",
    b"[1,\x0a1\x0a,1",
    b"[{}",
    b"[fals]",
    b"[nul]",
    b"[tru]",
    b"[++1234]",
    b"[+1]",
    b"[+Inf]",
    b"[-01]",
    b"[-1.0.]",
    b"[-2.]",
    b"[-NaN]",
    b"[.-1]",
    b"[.2e-3]",
    b"[0.1.2]",
    b"[0.3e]",
    b"[0E+]",
    b"[1.0e]",
    b"[1 000.0]",
    b"[1eE2]",
    b"[2.e+3]",
    b"[9.e+]",
    b"[Inf]",
    b"[NaN]",
    b"[0x1]",
    b"[1+2]",
    b"[012]",
    b"[1a]",
    b"{\"x\", null}",
    b"{\"x\"::\"b\"}",
    b"{\"a\":\"a\" 123}",
    b"{key: 'value'}",
    b"{\"a\" b}",
    b"{:\"b\"}",
    b"{\"a\" \"b\"}",
    b"{\"a\":",
    b"{\"a\"",
    b"{1:1}",
    b"{\"id\":0,}",
    b"{'a':0}",
    b"{\"a\":\"b\"}/**/",
    b"{\"a\":\"b\"}#{}",
    b"{\"a\":\"b\",,\"c\":\"d\"}",
    b"{a: \"b\"}",
    b"{ \"foo\" : \"bar\", \"a\" }",
    b"{\"a\":\"b\"}#",
    b" ",
    b"",
    b"[\"\\x00\"]",
    b"[\"\\\\\\\"]",
    b"[\"\\a\"]",
    b"[\"\\u00A\"]",
    b"['single quote']",
    b"[\"a\x0ab\"]",
    b"[\"\x09\"]",
    b"[\"new\x0dline\"]",
    b"<null>",
    b"[<null>]",
    b"[1]x",
    b"[][]",
    b"]",
    b"2@",
    b"{}}",
    b"{\"\":",
    b"{\"a\":/*comment*/\"b\"}",
    b"[a",
    b"nul",
    b"[\x0c]",
    b"abc",
    b"{]",
    b"[}",
    b"[\"\xff\"]",
    b"[\"\xe0\x80\"]",
    b"[\xff]",
    b"\xef\xbb",
    b"\xef\xbb\xbf",
    b"\xff\xfe[\x00]\x00",
];

/// Any JSON value, with all that a string may hold.
pub(crate) fn any_value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // serde_json reads those that end soon without an error in the last digit.
        any::<i32>().prop_map(|number| Value::from(f64::from(number) / 8.0)),
        any::<String>().prop_map(Value::from),
        "[a-z\\u{0}\\\\\"é\u{1f600}]{0,5}".prop_map(Value::from),
    ];
    scalar.prop_recursive(4, 32, 6, |inner| {
        let fields = prop::collection::vec((".{0,4}", inner.clone()), 0..6);
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(Value::from),
            fields.prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

/// Something that is more or less a post.
pub(crate) fn any_record() -> impl Strategy<Value = Value> {
    let post = (0..50_i64, any::<i64>(), any::<String>(), ".{0,20}")
        .prop_map(|(id, user, title, body)| json!({ "id": id, "userId": user, "title": title, "body": body }));
    let mended = (
        post,
        prop::option::of((
            prop_oneof![Just("id"), Just("userId"), Just("title"), Just("body"), Just("x")],
            any_value(),
        )),
    );
    let nearly = mended.prop_map(|(mut post, change)| {
        if let Some((name, value)) = change {
            post[name] = value;
        }
        post
    });
    prop_oneof![4 => nearly, 1 => any_value()]
}

/// The text of a document of these records, as one API or another would write it.
pub(crate) fn any_document() -> impl Strategy<Value = (Vec<Value>, Vec<u8>)> {
    let styles = (any::<bool>(), any::<bool>());
    (prop::collection::vec(any_record(), 0..30), styles).prop_map(|(records, (is_pretty, has_mark))| {
        let text = if is_pretty { serde_json::to_vec_pretty(&records) } else { serde_json::to_vec(&records) }.unwrap();
        let mark: &[u8] = if has_mark { b"\xef\xbb\xbf" } else { b"" };
        (records, [mark, &text].concat())
    })
}

/// Bytes that come in chunks of these sizes, over and over.
pub(crate) struct Chunks<'a> {
    pub bytes: &'a [u8],
    pub sizes: iter::Cycle<std::vec::IntoIter<usize>>,
}

impl<'a> Chunks<'a> {
    /// All bytes, in these chunks.
    pub(crate) fn new(bytes: &'a [u8], sizes: Vec<usize>) -> Self {
        Self { bytes, sizes: sizes.into_iter().cycle() }
    }
}

impl std::io::Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let size = self.sizes.next().unwrap_or(1).min(buffer.len()).min(self.bytes.len());
        let (chunk, rest) = self.bytes.split_at(size);
        buffer[..size].copy_from_slice(chunk);
        self.bytes = rest;
        Ok(size)
    }
}

/// Sizes of chunks, most of them small.
pub(crate) fn any_chunking() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![4 => 1..8_usize, 1 => 1..5_000_usize], 1..8)
}
