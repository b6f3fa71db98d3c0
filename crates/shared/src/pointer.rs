//! The pointer: the message that says what was appended and where. Pure.
//!
//! A pointer is never believed. It only says that there may be something to look at, so a lost, repeated,
//! reordered or forged one costs a look at the archive and never data.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::object::{Metadata, Sequence, Sha256, StreamName};

/// The highest pointer version that this build can read and the one that it writes.
const VERSION: u32 = 1;

/// What stands in the message. Unknown fields are ignored when it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    version: u32,
    /// Whose archive.
    pub stream: StreamName,
    /// The object's number: the end of the archive, as far as the sender knew.
    pub sequence: Sequence,
    /// The object's key, for people and for readers that are not ours.
    pub key: String,
    /// The digest of the object.
    pub sha256: Sha256,
    /// The observation that the object holds.
    pub observation: Uuid,
}

/// Why a message is no pointer of this stream.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum PointerError {
    /// Not a pointer at all.
    #[error("the message is no pointer")]
    Unreadable(#[source] serde_json::Error),
    /// Written by a later release.
    #[error("the message has version {found}, and this program reads up to {VERSION}")]
    NewerVersion { found: u32 },
    /// Of another stream.
    #[error("the message is of stream {found}")]
    OtherStream { found: StreamName },
    /// The key is not the one that stream and sequence give.
    #[error("the message names the key {found} for sequence {sequence}")]
    OtherKey { found: String, sequence: Sequence },
}

impl Pointer {
    /// The pointer to an archived object.
    pub fn new(stream: &StreamName, sequence: Sequence, metadata: &Metadata) -> Self {
        Self {
            version: VERSION,
            stream: stream.clone(),
            sequence,
            key: sequence.key(stream),
            sha256: metadata.sha256,
            observation: metadata.observation,
        }
    }

    /// A pointer that tries the queue and says nothing: beyond every end, so that whoever receives it finds it strange.
    pub fn to_nothing(stream: &StreamName) -> Self {
        let (sequence, sha256) = (Sequence::LAST, Sha256([0; 32]));
        let key = sequence.key(stream);
        Self { version: VERSION, stream: stream.clone(), sequence, key, sha256, observation: Uuid::nil() }
    }

    /// The message body.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("a pointer holds nothing that JSON cannot")
    }

    /// Reads a message body as one for `stream`.
    pub fn decode(body: &str, stream: &StreamName) -> Result<Self, PointerError> {
        /// Read first and alone: a later version may have changed everything else.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }

        let Version { version: found } = serde_json::from_str(body).map_err(PointerError::Unreadable)?;
        if found > VERSION {
            return Err(PointerError::NewerVersion { found });
        }
        let pointer: Self = serde_json::from_str(body).map_err(PointerError::Unreadable)?;
        if pointer.stream != *stream {
            return Err(PointerError::OtherStream { found: pointer.stream });
        }
        if pointer.key != pointer.sequence.key(stream) {
            return Err(PointerError::OtherKey { found: pointer.key, sequence: pointer.sequence });
        }
        Ok(pointer)
    }

    /// Two pointers to one object are one message within SQS's five minutes.
    pub fn deduplication_id(&self) -> String {
        format!("{}-{}", self.stream, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posts() -> StreamName {
        "posts".parse().unwrap()
    }

    fn body(field: &str, value: &serde_json::Value) -> String {
        let mut body = serde_json::json!({
            "version": 1, "stream": "posts", "sequence": 42, "key": "raw/posts/000/000/000/042.json",
            "sha256": "07".repeat(32), "observation": Uuid::from_u128(2),
        });
        body[field] = value.clone();
        body.to_string()
    }

    #[test]
    fn a_pointer_comes_back_as_it_went() {
        let pointer = Pointer::decode(&body("colour", &"blue".into()), &posts()).unwrap();
        assert_eq!(Pointer::decode(&pointer.encode(), &posts()).unwrap(), pointer);
        assert_eq!(pointer.deduplication_id(), "posts-42");
    }

    #[test]
    fn a_strange_message_is_told_what_is_wrong_with_it() {
        for (body, said) in [
            ("ding".to_owned(), "the message is no pointer"),
            ("[1]".to_owned(), "the message is no pointer"),
            (body("version", &2.into()), "the message has version 2, and this program reads up to 1"),
            (body("stream", &"other".into()), "the message is of stream other"),
            (body("sequence", &0.into()), "the message is no pointer"),
            (body("sequence", &43.into()), "the message names the key raw/posts/000/000/000/042.json for sequence 43"),
            (body("key", &"../x".into()), "the message names the key ../x for sequence 42"),
        ] {
            assert_eq!(Pointer::decode(&body, &posts()).unwrap_err().to_string(), said, "{body}");
        }
    }
}
