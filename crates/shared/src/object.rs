//! What an archived object is called and what it says of itself. Pure.
//!
//! An object is one observation of the API: its body byte for byte, its number in the key and the rest in
//! S3 user metadata, which is enough for the next poll and for whoever applies it.

use std::{collections::HashMap, fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize, de};
use sha2::Digest;
use thiserror::Error;
use uuid::Uuid;

use crate::records::RecordsAt;

/// The highest metadata version that this build can read and the one that it writes.
pub const VERSION: u32 = 1;

/// S3 stores at most this much user metadata, keys and values together
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>).
const METADATA_LIMIT_BYTES: usize = 2048;

/// A validator longer than this is left out of the metadata, never cut: a cut one would match nothing, or the wrong thing.
const VALIDATOR_LIMIT_BYTES: usize = 256;

/// A longer source URL loses its query, which is all that a reader can do without; a longer path is refused with the object.
const SOURCE_URL_LIMIT_BYTES: usize = 512;

/// Outside printable ASCII a header value means different things to different servers; `%` itself must survive the way back.
const FOREIGN: &AsciiSet = &CONTROLS.add(b'%');

/// The name of a stream: `[a-z0-9][a-z0-9_-]{0,62}`, so that it fits a key, a queue name and a message group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct StreamName(String);

/// The text is not a stream name.
#[derive(Debug, Error)]
#[error("a stream name is 1 to 63 characters of a-z, 0-9, _ and -, and begins with a letter or digit")]
pub struct StreamNameError;

impl FromStr for StreamName {
    type Err = StreamNameError;

    fn from_str(text: &str) -> Result<Self, StreamNameError> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if starts_well && text.len() <= 63 && text.chars().all(is_allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(StreamNameError)
        }
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StreamName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The number of an object in its archive, 1 to 999,999,999,999: twelve digits are what a key has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Sequence(u64);

/// The number is no sequence.
#[derive(Debug, Error)]
#[error("{0} is not a sequence: they go from 1 to 999999999999")]
pub struct SequenceError(u64);

impl Sequence {
    /// The first object of every archive.
    pub const FIRST: Self = Self(1);
    /// The number that no archive reaches: an object a second for thirty thousand years.
    pub const LAST: Self = Self(999_999_999_999);

    /// The number as an integer, for SQL and logs.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The number after this one. An archive that polls every second reaches the last number after 31,000 years.
    #[must_use]
    pub fn next(self) -> Self {
        assert!(self < Self::LAST, "the archive is full");
        Self(self.0 + 1)
    }

    /// `raw/<stream>/000/000/000/042.json`: a folder holds at most a thousand entries, so that the end of an archive
    /// of any size is found with four listings.
    pub fn key(self, stream: &StreamName) -> String {
        let [a, b, c, d] = self.groups();
        format!("{}{a:03}/{b:03}/{c:03}/{d:03}.json", prefix(stream))
    }

    /// The three-digit groups of the number, the highest first.
    fn groups(self) -> [u64; 4] {
        [self.0 / 1_000_000_000, self.0 / 1_000_000 % 1000, self.0 / 1000 % 1000, self.0 % 1000]
    }

    /// The inverse of [`Sequence::key`]; `None` for a key that no sequence of this stream has.
    pub fn from_key(key: &str, stream: &StreamName) -> Option<Self> {
        let digits = key.strip_prefix(&prefix(stream))?.strip_suffix(".json")?.replace('/', "");
        let sequence = Self::try_from(digits.parse::<u64>().ok()?).ok()?;
        (sequence.key(stream) == key).then_some(sequence)
    }
}

/// Where the objects of a stream live in the bucket, with a closing slash.
pub fn prefix(stream: &StreamName) -> String {
    format!("raw/{stream}/")
}

impl TryFrom<u64> for Sequence {
    type Error = SequenceError;

    fn try_from(number: u64) -> Result<Self, SequenceError> {
        if (1..=Self::LAST.0).contains(&number) { Ok(Self(number)) } else { Err(SequenceError(number)) }
    }
}

impl From<Sequence> for u64 {
    fn from(sequence: Sequence) -> Self {
        sequence.0
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SHA-256 digest; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; 32]);

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Error)]
#[error("a SHA-256 is 64 hexadecimal digits")]
pub struct Sha256Error;

impl Sha256 {
    /// The digest of a hasher that has seen everything.
    pub fn of(hasher: sha2::Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// `snapshot-sha256`: the digest over the pages' digests in their order.
    pub fn of_pages(pages: &[Sha256]) -> Self {
        let mut hasher = sha2::Sha256::new();
        for page in pages {
            hasher.update(page.0);
        }
        Self::of(hasher)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256 {
    type Err = Sha256Error;

    fn from_str(text: &str) -> Result<Self, Sha256Error> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Sha256Error);
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| Sha256Error)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| Sha256Error)?;
        }
        Ok(Self(digest))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What an object says of itself, as S3 user metadata. Unknown fields are ignored when it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The identity of the archive, brought into the world by object 1 and repeated by every other.
    pub archive_id: Uuid,
    /// The identity of this observation (`UUIDv7`).
    pub observation: Uuid,
    /// The observation of the object before this one; `None` for object 1.
    pub previous: Option<Uuid>,
    /// The digest of the body.
    pub sha256: Sha256,
    /// When the fetch began.
    pub fetched_at: Timestamp,
    /// Where it was fetched from, without user, password and secret parameters.
    pub source_url: String,
    /// The API's `ETag`, as it was sent.
    pub etag: Option<String>,
    /// The API's `Last-Modified`, as it was sent.
    pub last_modified: Option<String>,
    /// The snapshot's first page.
    pub snapshot: Sequence,
    /// The page's number in its snapshot, from 1.
    pub page: u32,
    /// Whether the snapshot ends with this object; a cut snapshot has no such object.
    pub last_page: bool,
    /// See [`Sha256::of_pages`].
    pub snapshot_sha256: Sha256,
    /// What the importer knows of the snapshot besides.
    pub facts: SnapshotFacts,
}

/// What an importer says of a snapshot, on each of its objects. Objects that an older release has appended lack all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// The digest over the records of all pages in their order, each with its length before it as eight bytes, the highest first. Equal ones
    /// are the same records, whatever stands around them. Of an only page that is nothing but records it is the digest over its SHA-256.
    pub records_sha256: Option<Sha256>,
    /// 16 bits of a digest over what was asked: two snapshots with another one cannot be compared.
    pub request: Option<u16>,
    /// Where the records are. For S3, which may drop an empty value, `#` stands for the document itself.
    pub records_at: Option<RecordsAt>,
    /// Whether the collection did not hold still: records may be missing or doubled.
    pub torn: bool,
    /// How much of the collection was asked for.
    pub kind: Option<SnapshotKind>,
    /// Whether the first answer showed by itself that it is all.
    pub single: bool,
    /// When the API was asked. Changes since then are asked for next.
    pub as_of: Option<AsOf>,
    /// The `fetched_at` of the first page of the last whole snapshot, which may be this one.
    pub whole_at: Option<Timestamp>,
    /// Whether the records are those of the snapshot before: it is appended so that absence can be judged by two walks.
    pub repeat: bool,
}

/// How much of the collection a snapshot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All of it.
    Whole,
    /// What has changed.
    Increment,
}

impl SnapshotKind {
    const ALL: [Self; 2] = [Self::Whole, Self::Increment];

    /// As it stands in metadata.
    pub fn word(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Increment => "increment",
        }
    }
}

impl FromStr for SnapshotKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.word() == text).ok_or(())
    }
}

/// A moment by two clocks, which may differ by any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsOf {
    /// By the API's.
    pub api: Timestamp,
    /// By the importer's.
    pub ours: Timestamp,
}

impl AsOf {
    /// How far the API's clock is ahead of ours.
    pub fn ahead(self) -> SignedDuration {
        self.api.duration_since(self.ours)
    }
}

/// Why metadata cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum MetadataError {
    /// Written by a later release.
    #[error("its metadata has version {found}, and this program reads up to {VERSION}")]
    NewerVersion { found: u32 },
    /// A field that every object of ours has is not there.
    #[error("its metadata lacks `{field}`")]
    Missing { field: &'static str },
    /// A field holds something else than it should.
    #[error("its metadata field `{field}` cannot be read")]
    Unreadable { field: &'static str },
    /// The number that no archive of ours reaches.
    #[error("it has the last number of all, which another program must have given it")]
    Last,
    /// It does not fit into what S3 stores.
    #[error("its metadata would take {bytes} bytes, and S3 stores {METADATA_LIMIT_BYTES}: shorten SOURCE_URL")]
    TooLong { bytes: usize },
}

impl Metadata {
    /// The fields as S3 takes them: printable ASCII, foreign values percent-encoded, at most 2 KB.
    pub fn encode(&self) -> Result<HashMap<String, String>, MetadataError> {
        let mut fields = HashMap::new();
        let mut put = |field: &str, value: String| fields.insert(field.to_owned(), value);
        put("version", VERSION.to_string());
        put("archive-id", self.archive_id.to_string());
        put("observation", self.observation.to_string());
        if let Some(previous) = self.previous {
            put("previous", previous.to_string());
        }
        put("sha256", self.sha256.to_string());
        put("fetched-at", self.fetched_at.to_string());
        put("source-url", encode_foreign(fitting_url(&self.source_url)));
        for (field, value) in [("etag", &self.etag), ("last-modified", &self.last_modified)] {
            if let Some(value) = value.as_deref().map(encode_foreign).filter(|v| v.len() <= VALIDATOR_LIMIT_BYTES) {
                put(field, value);
            }
        }
        put("snapshot", self.snapshot.to_string());
        put("page", self.page.to_string());
        put("last-page", self.last_page.to_string());
        put("snapshot-sha256", self.snapshot_sha256.to_string());
        let SnapshotFacts { records_sha256, request, records_at, torn, kind, single, as_of, whole_at, repeat } =
            &self.facts;
        if let Some(records_sha256) = records_sha256 {
            put("records-sha256", records_sha256.to_string());
        }
        if let Some(request) = request {
            put("request", format!("{request:04x}"));
        }
        if let Some(at) = records_at.as_ref().map(ToString::to_string) {
            put("records-at", if at.is_empty() { ROOT.to_owned() } else { encode_foreign(&at) });
        }
        for (field, is_so) in [("torn", torn), ("single", single), ("repeat", repeat)] {
            if *is_so {
                put(field, is_so.to_string());
            }
        }
        if let Some(kind) = kind {
            put("kind", kind.word().to_owned());
        }
        for (field, time) in [
            ("as-of", as_of.map(|as_of| as_of.api)),
            ("as-of-fetched-at", as_of.map(|as_of| as_of.ours)),
            ("whole-at", *whole_at),
        ] {
            if let Some(time) = time {
                put(field, time.to_string());
            }
        }

        let bytes = fields.iter().map(|(field, value)| field.len() + value.len()).sum();
        if bytes > METADATA_LIMIT_BYTES { Err(MetadataError::TooLong { bytes }) } else { Ok(fields) }
    }

    /// Reads what [`Metadata::encode`] wrote, or a later release that kept to its version.
    pub fn decode(fields: &HashMap<String, String>) -> Result<Self, MetadataError> {
        let fields = Fields(fields);
        let found = fields.optional("version")?.unwrap_or(1);
        if found > VERSION {
            return Err(MetadataError::NewerVersion { found });
        }
        Ok(Self {
            archive_id: fields.required("archive-id")?,
            observation: fields.required("observation")?,
            previous: fields.optional("previous")?,
            sha256: fields.required("sha256")?,
            // Nothing was fetched before 1970, and not every year before can be written into the ledger.
            fetched_at: Some(fields.required("fetched-at")?)
                .filter(|time| *time >= Timestamp::UNIX_EPOCH)
                .ok_or(MetadataError::Unreadable { field: "fetched-at" })?,
            source_url: fields.foreign("source-url")?.ok_or(MetadataError::Missing { field: "source-url" })?,
            etag: fields.foreign("etag")?,
            last_modified: fields.foreign("last-modified")?,
            snapshot: Sequence::try_from(fields.required::<u64>("snapshot")?)
                .map_err(|_| MetadataError::Unreadable { field: "snapshot" })?,
            page: fields.required("page")?,
            last_page: fields.required("last-page")?,
            snapshot_sha256: fields.required("snapshot-sha256")?,
            facts: SnapshotFacts {
                records_sha256: fields.optional("records-sha256")?,
                request: fields.request()?,
                records_at: fields.records_at()?,
                torn: fields.optional("torn")?.unwrap_or(false),
                kind: fields.optional("kind")?,
                single: fields.optional("single")?.unwrap_or(false),
                as_of: match (fields.optional("as-of")?, fields.optional("as-of-fetched-at")?) {
                    (Some(api), Some(ours)) => Some(AsOf { api, ours }),
                    _ => None,
                },
                whole_at: fields.optional("whole-at")?,
                repeat: fields.optional("repeat")?.unwrap_or(false),
            },
        })
    }
}

fn encode_foreign(value: &str) -> String {
    utf8_percent_encode(value, FOREIGN).to_string()
}

fn fitting_url(url: &str) -> &str {
    if encode_foreign(url).len() > SOURCE_URL_LIMIT_BYTES { url.split('?').next().unwrap_or(url) } else { url }
}

/// Where records are that are the document itself.
const ROOT: &str = "#";

/// Typed access to metadata as S3 gives it back.
struct Fields<'a>(&'a HashMap<String, String>);

impl Fields<'_> {
    fn optional<T: FromStr>(&self, field: &'static str) -> Result<Option<T>, MetadataError> {
        self.0.get(field).map(|value| value.parse()).transpose().map_err(|_| MetadataError::Unreadable { field })
    }

    fn required<T: FromStr>(&self, field: &'static str) -> Result<T, MetadataError> {
        self.optional(field)?.ok_or(MetadataError::Missing { field })
    }

    fn foreign(&self, field: &'static str) -> Result<Option<String>, MetadataError> {
        let decode = |value: &String| percent_decode_str(value).decode_utf8().map(String::from);
        self.0.get(field).map(decode).transpose().map_err(|_| MetadataError::Unreadable { field })
    }

    fn request(&self) -> Result<Option<u16>, MetadataError> {
        let read = self.0.get("request").map(|digits| u16::from_str_radix(digits, 16)).transpose();
        read.map_err(|_| MetadataError::Unreadable { field: "request" })
    }

    fn records_at(&self) -> Result<Option<RecordsAt>, MetadataError> {
        let at = self.foreign("records-at")?;
        let read = at.map(|at| if at == ROOT { Ok(RecordsAt::default()) } else { at.parse() }).transpose();
        read.map_err(|_| MetadataError::Unreadable { field: "records-at" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posts() -> StreamName {
        "posts".parse().unwrap()
    }

    fn metadata() -> Metadata {
        Metadata {
            archive_id: Uuid::from_u128(1),
            observation: Uuid::from_u128(2),
            previous: Some(Uuid::from_u128(3)),
            sha256: Sha256([7; 32]),
            fetched_at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
            source_url: "https://example.org/posts?q=é".into(),
            etag: Some("W/\"100%\"".into()),
            last_modified: None,
            snapshot: Sequence::FIRST,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256::of_pages(&[Sha256([7; 32])]),
            facts: SnapshotFacts {
                records_sha256: Some(Sha256([8; 32])),
                request: Some(0x00ff),
                records_at: Some(RecordsAt::default()),
                torn: true,
                kind: Some(SnapshotKind::Increment),
                single: true,
                as_of: Some(AsOf {
                    api: "2026-01-02T03:04:05Z".parse().unwrap(),
                    ours: "2026-01-02T03:04:05.678901234Z".parse().unwrap(),
                }),
                whole_at: Some("2026-01-01T03:04:05.678901234Z".parse().unwrap()),
                repeat: true,
            },
        }
    }

    #[test]
    fn a_key_and_its_sequence_name_each_other() {
        for (number, key) in [
            (1, "raw/posts/000/000/000/001.json"),
            (42_999, "raw/posts/000/000/042/999.json"),
            (123_456_789_012, "raw/posts/123/456/789/012.json"),
            (999_999_999_999, "raw/posts/999/999/999/999.json"),
        ] {
            let sequence = Sequence::try_from(number).unwrap();
            assert_eq!(sequence.key(&posts()), key);
            assert_eq!(Sequence::from_key(key, &posts()), Some(sequence));
            assert_eq!(sequence.get(), number);
        }
        assert_eq!(Sequence::FIRST.next().next().get(), 3);
    }

    #[test]
    fn a_key_of_nothing_has_no_sequence() {
        for key in [
            "raw/posts/000/000/000/000.json",
            "raw/posts/000/000/001.json",
            "raw/posts/000/000/0000/01.json",
            "raw/posts/000/000/000/001.csv",
            "raw/other/000/000/000/001.json",
            "raw/posts/+00/000/000/001.json",
        ] {
            assert_eq!(Sequence::from_key(key, &posts()), None, "{key}");
        }
    }

    #[test]
    fn stream_names_fit_keys_and_queues() {
        for good in ["posts", "0", "a-b_c", &"a".repeat(63)] {
            assert!(good.parse::<StreamName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "Posts", "a/b", "a b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<StreamName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_comes_back_as_it_went_and_is_ascii() {
        let fields = metadata().encode().unwrap();
        assert!(fields.values().all(|value| value.bytes().all(|b| (0x20..0x7f).contains(&b))), "{fields:?}");
        assert_eq!(Metadata::decode(&fields), Ok(metadata()));
    }

    #[test]
    fn a_validator_too_long_is_left_out_and_never_cut() {
        let long = Metadata { etag: Some("e".repeat(257)), ..metadata() };
        assert_eq!(Metadata::decode(&long.encode().unwrap()).unwrap().etag, None);
    }

    #[test]
    fn a_source_url_too_long_loses_its_query_and_one_that_is_longer_still_is_refused() {
        let came_back = |url: &str| {
            let fields = Metadata { source_url: url.into(), ..metadata() }.encode()?;
            let bytes = fields.iter().map(|(field, value)| field.len() + value.len()).sum::<usize>();
            Metadata::decode(&fields).map(|metadata| (metadata.source_url, bytes))
        };
        let url = |bytes| format!("{:a<1$}", "https://example.org/posts?q=", bytes);
        assert_eq!(came_back(&url(512)).unwrap().0, url(512));
        assert_eq!(came_back(&url(513)).unwrap().0, "https://example.org/posts");
        let path = |bytes| format!("{:a<1$}", "https://example.org/", bytes);
        let room = METADATA_LIMIT_BYTES - came_back(&path(20)).unwrap().1;
        assert_eq!(came_back(&path(20 + room)), Ok((path(20 + room), METADATA_LIMIT_BYTES)));
        let bytes = METADATA_LIMIT_BYTES + 1;
        assert_eq!(came_back(&path(21 + room)), Err(MetadataError::TooLong { bytes }));
    }

    #[test]
    fn the_longest_of_all_fields_leave_room_for_a_hundred_bytes_more() {
        let text = |bytes: usize| "a".repeat(bytes);
        let mut longest = Metadata {
            fetched_at: "2026-01-02T03:04:05.678901234Z".parse().unwrap(),
            // The longest that a walk follows.
            source_url: text(560),
            etag: Some(text(VALIDATOR_LIMIT_BYTES)),
            last_modified: Some(text(VALIDATOR_LIMIT_BYTES)),
            snapshot: Sequence::LAST,
            page: u32::MAX,
            last_page: false,
            ..metadata()
        };
        longest.facts.records_at = Some(format!("/{}", text(199)).parse().unwrap());
        // One of several pages has no validators, and an address that takes more room the way it is written.
        let of_several = Metadata { source_url: "%00".repeat(186), etag: None, last_modified: None, ..longest.clone() };
        for metadata in [longest, of_several] {
            let fields = metadata.encode().unwrap();
            let bytes = fields.iter().map(|(field, value)| field.len() + value.len()).sum::<usize>();
            assert!(bytes <= METADATA_LIMIT_BYTES - 100, "{bytes}");
        }
    }

    #[test]
    fn metadata_of_a_later_release_is_told_apart_and_its_new_fields_are_ignored() {
        let mut fields = metadata().encode().unwrap();
        fields.insert("colour".into(), "blue".into());
        assert_eq!(Metadata::decode(&fields), Ok(metadata()));
        fields.remove("version");
        assert_eq!(Metadata::decode(&fields), Ok(metadata()));
        fields.insert("version".into(), "2".into());
        assert_eq!(Metadata::decode(&fields), Err(MetadataError::NewerVersion { found: 2 }));
    }

    #[test]
    fn metadata_that_is_not_ours_is_named() {
        assert_eq!(Metadata::decode(&HashMap::new()), Err(MetadataError::Missing { field: "archive-id" }));
        assert!(
            format!("{:?}", metadata()).contains(&"07".repeat(32)),
            "failing tests name digests as everything else does"
        );
        for (field, value) in [
            ("sha256", "00"),
            ("version", "-1"),
            ("snapshot", "0"),
            ("source-url", "%ff"),
            ("fetched-at", "1969-12-31T23:59:59Z"),
            ("fetched-at", "-009999-01-02T03:04:05Z"),
        ] {
            let mut fields = metadata().encode().unwrap();
            fields.insert(field.into(), value.into());
            assert_eq!(Metadata::decode(&fields), Err(MetadataError::Unreadable { field }), "{value}");
        }
    }
}
