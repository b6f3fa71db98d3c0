//! What an object says of itself comes back as it went, but for the losses that are documented, and is otherwise named wrong.

use std::collections::HashMap;

use jiff::Timestamp;
use uuid::Uuid;

use crate::object::{
    AsOf, Metadata, MetadataError, Sequence, Sha256, SnapshotFacts, SnapshotKind, StreamName, VERSION,
};

/// What S3 stores, what a validator may take of it, and from which length on a URL goes without its query.
const METADATA_LIMIT_BYTES: usize = 2048;
const VALIDATOR_LIMIT_BYTES: usize = 256;
const SOURCE_URL_LIMIT_BYTES: usize = 512;

/// Whatever the bytes are: as fields, `name: value` a line, and as something to write.
pub fn hold(bytes: &[u8]) {
    comes_back(&Bytes::new(bytes).metadata());
    let text = String::from_utf8_lossy(bytes);
    let fields = text.lines().filter_map(|line| line.split_once(": "));
    let fields: HashMap<String, String> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    match Metadata::decode(&fields) {
        Ok(metadata) => comes_back(&metadata),
        Err(MetadataError::NewerVersion { found }) => {
            assert!(found > VERSION && fields["version"].parse() == Ok(found), "{fields:?}");
        }
        Err(MetadataError::Missing { field }) => assert!(!fields.contains_key(field), "{field}"),
        Err(MetadataError::Unreadable { field }) => assert!(fields.contains_key(field), "{field}"),
        Err(error @ (MetadataError::Last | MetadataError::TooLong { .. })) => panic!("{error}"),
    }
}

fn comes_back(metadata: &Metadata) {
    let fields = match metadata.encode() {
        Ok(fields) => fields,
        Err(MetadataError::TooLong { bytes }) => return assert!(bytes > METADATA_LIMIT_BYTES),
        Err(error) => panic!("{error}"),
    };
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(bytes <= METADATA_LIMIT_BYTES);
    assert!(fields.values().all(|value| value.bytes().all(|byte| (b' '..=b'~').contains(&byte))), "{fields:?}");
    let expected = with_losses(metadata);
    assert_eq!(Metadata::decode(&fields).as_ref(), Ok(&expected));
    assert_eq!(expected.encode(), Ok(fields));
}

/// A validator that is too long is left out, a URL that is too long loses its query, and nothing else.
fn with_losses(metadata: &Metadata) -> Metadata {
    let Metadata { etag, last_modified, source_url, .. } = metadata.clone();
    let length = |text: &str| {
        let plain = text.bytes().filter(|byte| (b' '..=b'~').contains(byte) && *byte != b'%').count();
        plain + 3 * (text.len() - plain)
    };
    let fits = |text: &String| length(text) <= VALIDATOR_LIMIT_BYTES;
    let query = source_url.find('?').filter(|_| source_url.len() > SOURCE_URL_LIMIT_BYTES);
    Metadata {
        etag: etag.filter(fits),
        last_modified: last_modified.filter(fits),
        source_url: source_url[..query.unwrap_or(source_url.len())].to_owned(),
        ..metadata.clone()
    }
}

/// Values made of bytes, and of zeros when there are none left.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// All of them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let (front, rest) = self.0.split_at(N.min(self.0.len()));
        taken[..front.len()].copy_from_slice(front);
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let length = usize::from(u16::from_le_bytes(self.take()) % 1024).min(self.0.len());
        let (front, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8_lossy(front).into_owned()
    }

    /// A stream.
    pub fn stream(&mut self) -> StreamName {
        let letters = b"abcdefghijklmnopqrstuvwxyz0123456789_-";
        let [length, letter] = self.take();
        let name = format!(
            "s{}",
            char::from(letters[usize::from(letter) % letters.len()]).to_string().repeat(usize::from(length) % 63)
        );
        name.parse().expect("a name")
    }

    /// A sequence.
    pub fn sequence(&mut self) -> Sequence {
        Sequence::try_from(self.number() % Sequence::LAST.get() + 1).expect("it is in range")
    }

    /// Metadata.
    pub fn metadata(&mut self) -> Metadata {
        let [flags, more] = self.take();
        let (has, more) = (|flag: u8| flags & flag != 0, |flag: u8| more & flag != 0);
        let second = i64::try_from(self.number() % Timestamp::MAX.as_second().unsigned_abs()).expect("less");
        let nanosecond = i32::try_from(self.number() % 1_000_000_000).expect("less");
        let fetched_at = Timestamp::new(second, nanosecond).expect("it is in range");
        Metadata {
            archive_id: Uuid::from_bytes(self.take()),
            observation: Uuid::from_bytes(self.take()),
            previous: has(1).then(|| Uuid::from_bytes(self.take())),
            sha256: Sha256(self.take()),
            fetched_at,
            snapshot: self.sequence(),
            page: u32::from_le_bytes(self.take()),
            last_page: has(2),
            snapshot_sha256: Sha256(self.take()),
            facts: SnapshotFacts {
                records_sha256: has(16).then(|| Sha256(self.take())),
                request: has(32).then(|| u16::from_le_bytes(self.take())),
                // Not each text is a place.
                records_at: has(64).then(|| format!("/{}", self.text()).parse().unwrap_or_default()),
                torn: has(128),
                kind: more(1).then_some(if more(2) { SnapshotKind::Whole } else { SnapshotKind::Increment }),
                single: more(4),
                as_of: more(8).then_some(AsOf { api: Timestamp::UNIX_EPOCH, ours: fetched_at }),
                whole_at: more(16).then_some(fetched_at),
                repeat: more(32),
            },
            source_url: self.text(),
            etag: has(4).then(|| self.text()),
            last_modified: has(8).then(|| self.text()),
        }
    }
}
