//! Documents of every kind, for the tests of whoever reads them.

use std::iter;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

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
