//! A message is a pointer of the stream, or strange: what decodes is what stands there, and comes back as it went.

use uuid::Uuid;

use crate::{
    metadata::Bytes,
    object::{Sequence, Sha256, StreamName},
    pointer::{Pointer, PointerError},
    reading::{fields, single},
};

/// Whatever the bytes are.
pub fn hold(message: &[u8]) {
    written(message);
    // SQS takes text alone.
    let Ok(message) = str::from_utf8(message) else { return };
    let stream: StreamName = "posts".parse().expect("a name");
    let decoded = Pointer::decode(message, &stream);
    assert_eq!(decoded.is_ok(), is_pointer(message, &stream), "{message}: {decoded:?}");
    if let Ok(pointer) = decoded {
        comes_back(&pointer, &stream);
    }
}

/// A message that is made of these bytes is read as what it is, by its own stream alone.
fn written(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let stream = bytes.stream();
    let pointer = Pointer::new(&stream, bytes.sequence(), &bytes.metadata());
    comes_back(&pointer, &stream);
    let other: StreamName = format!("x{stream}").parse().unwrap_or_else(|_| "x".parse().expect("a name"));
    let read = Pointer::decode(&pointer.encode(), &other);
    assert!(matches!(&read, Err(PointerError::OtherStream { found }) if *found == stream), "{read:?}");
}

fn comes_back(pointer: &Pointer, stream: &StreamName) {
    assert_eq!(pointer.stream, *stream);
    assert_eq!(pointer.key, pointer.sequence.key(stream));
    assert_eq!(Sequence::from_key(&pointer.key, stream), Some(pointer.sequence));
    assert_eq!(Pointer::decode(&pointer.encode(), stream).expect("we wrote it"), *pointer);
    // SQS takes 128 characters (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html).
    assert!(pointer.deduplication_id().len() <= 128);
}

/// Whether the message is one for the stream, read field by field.
fn is_pointer(message: &str, stream: &StreamName) -> bool {
    let Some(fields) = fields(message) else { return false };
    let sequence = single(&fields, "sequence").and_then(|number: u64| Sequence::try_from(number).ok());
    let sha256 = single(&fields, "sha256").and_then(|text: String| text.parse::<Sha256>().ok());
    single(&fields, "version").is_some_and(|version: u32| version <= 1)
        && single(&fields, "stream").is_some_and(|name: String| name == stream.to_string())
        && sequence.is_some_and(|sequence| single(&fields, "key") == Some(sequence.key(stream)))
        && sha256.is_some()
        && single::<Uuid>(&fields, "observation").is_some()
}
