//! The archive: numbered objects in S3, and with `download.rs` the only file that talks to S3.
//!
//! It promises one order without overwrites and without gaps, whoever writes: S3 itself refuses a number that is
//! taken (`If-None-Match: *`). (Delta Lake's commit log works this way.)

use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt, sync::Arc, time::Duration};

use aws_sdk_s3::{
    Client,
    config::timeout::TimeoutConfig,
    error::{ProvideErrorMetadata, SdkError},
    primitives::{ByteStream, SdkBody},
};
use aws_smithy_types::base64;
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use http_body::Frame;
use http_body_util::StreamBody;
use sha2::Digest;
use thiserror::Error;
use tokio::sync::OnceCell;

use crate::{
    aws,
    download::{Source, download},
    object::{Metadata, MetadataError, Sequence, StreamName, prefix},
    status,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The groups of three digits in a key: three folders, and the object.
const GROUPS: u8 = 4;

/// What the role must be allowed.
pub(crate) const RIGHTS: &str = "s3:ListBucket, s3:GetObject and, to append, s3:PutObject";

const PUT: &str = "PutObject";

/// What stands in the object that is only there to be refused.
const PROOF: &[u8] = b"The importer tries to overwrite this object. The server must refuse: importers rely on it.\n";

/// How the loops see the archive: the first of the three doors to the world. Calls are safe to drop at any await.
#[allow(async_fn_in_trait, reason = "the loops run on the main task, so nothing has to be Send")]
pub trait Archive {
    /// The number of the newest object, `None` for an empty archive.
    async fn end(&self) -> Result<Option<Sequence>, ArchiveError>;

    /// What the object says of itself, `None` where there is none.
    async fn head(&self, sequence: Sequence) -> Result<Option<Head>, ArchiveError>;

    /// The object, `None` where there is none.
    async fn get(&self, sequence: Sequence) -> Result<Option<Object>, ArchiveError>;

    /// Writes the object unless the number is taken. After an error nobody knows whether it was written: the same call
    /// again ends in [`Append::Done`] or, if it was, in [`Append::Taken`].
    async fn append(&self, sequence: Sequence, metadata: &Metadata, body: &Upload) -> Result<Append, ArchiveError>;
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    /// The object is there, and it is this one.
    Done,
    /// The number was taken, by another writer or by an earlier try of ours whose answer was lost.
    Taken,
}

/// A body that waits on disk; each attempt reads it from its start.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Read by position, so that an attempt given up cannot move another one's place.
    pub file: Arc<File>,
    /// Where in the file the body begins.
    pub offset: u64,
    /// The length of the body.
    pub bytes: u64,
}

/// An object without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it says of itself.
    pub metadata: Metadata,
    /// Its length.
    pub bytes: u64,
}

/// An object on its way from S3.
pub struct Object {
    /// What it says of itself.
    pub metadata: Metadata,
    /// The length that S3 announced.
    pub bytes: u64,
    /// The body. It can break off or be wrong: verify the digest.
    pub body: Body,
}

/// Bytes as they come.
pub type Body = BoxStream<'static, io::Result<Bytes>>;

/// Why the archive did not do what was asked.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum ArchiveError {
    /// 403. Never taken for absence: without `s3:ListBucket` a missing key reads 403 too.
    #[error("{operation} s3://{bucket}/{key} was refused")]
    Refused { operation: &'static str, bucket: String, key: String, source: BoxError },
    /// There is no such bucket.
    #[error("there is no bucket `{bucket}`: create it, or correct ARCHIVE_BUCKET or AWS_REGION")]
    NoBucket { bucket: String },
    /// The server would let one importer overwrite what another one appended.
    #[error(
        "bucket `{bucket}` cannot hold an archive, since its server {why}: use one that refuses to overwrite, as S3 does"
    )]
    Unfit { bucket: String, why: String },
    /// The object is not one of ours, or of a later release.
    #[error("s3://{bucket}/{key} cannot be followed (if another program put it there, move it elsewhere)")]
    Foreign { bucket: String, key: String, source: MetadataError },
    /// A small object's body stopped on its way.
    #[error("an object's body broke off on its way from S3")]
    BrokeOff { source: io::Error },
    /// Anything else: no answer, or an answer that says to try again.
    #[error("{operation} s3://{bucket}/{key} failed")]
    Failed { operation: &'static str, bucket: String, key: String, source: BoxError },
}

/// The archive of one stream in an S3 bucket.
#[derive(Clone, Debug)]
pub struct S3Archive {
    client: Client,
    bucket: String,
    stream: StreamName,
    /// Set once the server has refused to overwrite.
    proven: Arc<OnceCell<()>>,
}

impl S3Archive {
    /// The archive of `stream` in `bucket`. Nothing is asked of S3 yet.
    pub fn new(client: Client, bucket: String, stream: StreamName) -> Self {
        Self { client, bucket, stream, proven: Arc::default() }
    }

    /// Has the server refuse to overwrite an object that is there for nothing else, once a process. Some servers ignore `If-None-Match`, and
    /// importers would overwrite each other's objects without a word.
    pub async fn prove(&self) -> Result<(), ArchiveError> {
        self.proven.get_or_try_init(|| self.be_refused()).await.copied()
    }

    async fn be_refused(&self) -> Result<(), ArchiveError> {
        let key = format!("{}written-once.txt", prefix(&self.stream));
        let checksum = base64::encode(sha2::Sha256::digest(PROOF));
        // The first time it is written, in a new archive.
        for _ in 0..2 {
            let request = self.client.put_object().bucket(&self.bucket).key(&key).if_none_match("*");
            // A bucket with Object Lock takes no object without a checksum.
            let request = request.checksum_sha256(&checksum).content_type("text/plain");
            match request.body(ByteStream::from_static(PROOF)).send().await {
                Ok(_) => {}
                Err(error) if status_of(&error) == Some(412) => return Ok(()),
                Err(error) => return Err(self.error(PUT, &key, &error)),
            }
        }
        Err(ArchiveError::Unfit {
            bucket: self.bucket.clone(),
            why: "ignores `If-None-Match: *`, and overwrites".to_owned(),
        })
    }

    /// The number of the oldest object that is kept, `None` for an empty archive. Four listings, as for the end.
    pub async fn oldest(&self) -> Result<Option<Sequence>, ArchiveError> {
        self.outermost(false).await
    }

    async fn outermost(&self, is_newest: bool) -> Result<Option<Sequence>, ArchiveError> {
        // The groups still to look at, the likeliest last. A folder that a person made in a console holds nothing, and the next is looked at.
        let mut names = vec![(prefix(&self.stream), 0)];
        while let Some((name, depth)) = names.pop() {
            if depth == GROUPS {
                let key = format!("{}.json", name.trim_end_matches('/'));
                match Sequence::from_key(&key, &self.stream) {
                    None => continue,
                    sequence => return Ok(sequence),
                }
            }
            let mut groups = self.groups(&name, depth == GROUPS - 1).await?;
            groups.sort_unstable();
            if !is_newest {
                groups.reverse();
            }
            names.extend(groups.into_iter().map(|group| (format!("{name}{group}/"), depth + 1)));
        }
        Ok(None)
    }

    /// The three-digit folders or objects below `prefix`: other people's files in the bucket are not the archive.
    async fn groups(&self, prefix: &str, is_leaf: bool) -> Result<Vec<String>, ArchiveError> {
        let mut pages =
            self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).delimiter("/").into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.error("ListObjectsV2", prefix, &error))?;
            let folders = page.common_prefixes().iter().filter_map(|folder| folder.prefix());
            let objects = page.contents().iter().filter_map(|object| object.key());
            let folders = folders.filter_map(|folder| folder.get(prefix.len()..)?.strip_suffix('/'));
            let objects = objects.filter_map(|object| object.get(prefix.len()..)?.strip_suffix(".json"));
            // Folders of objects hold no folders, and the others no objects.
            let groups: Vec<_> = if is_leaf { objects.collect() } else { folders.collect() };
            found.extend(groups.into_iter().filter(|group| is_group(group)).map(str::to_owned));
        }
        Ok(found)
    }

    fn error<E>(&self, operation: &'static str, key: &str, error: &SdkError<E>) -> ArchiveError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let (bucket, key, source) = (self.bucket.clone(), key.to_owned(), aws::reason(error, RIGHTS));
        match (error.code(), status_of(error)) {
            (Some("NoSuchBucket"), _) => ArchiveError::NoBucket { bucket },
            (_, Some(403)) => ArchiveError::Refused { operation, bucket, key, source },
            (Some("NotImplemented" | "InvalidArgument"), _) | (_, Some(405 | 501)) if operation == PUT => {
                ArchiveError::Unfit { bucket, why: format!("does not know `If-None-Match: *` ({source})") }
            }
            _ => ArchiveError::Failed { operation, bucket, key, source },
        }
    }

    fn decode(&self, key: &str, fields: Option<&HashMap<String, String>>) -> Result<Metadata, ArchiveError> {
        Metadata::decode(fields.unwrap_or(&HashMap::new())).map_err(|source| self.foreign(key, source))
    }

    fn foreign(&self, key: &str, source: MetadataError) -> ArchiveError {
        ArchiveError::Foreign { bucket: self.bucket.clone(), key: key.to_owned(), source }
    }
}

fn is_group(name: &str) -> bool {
    name.len() == 3 && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// S3 always says how long an object is.
fn length(announced: Option<i64>) -> u64 {
    announced.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0)
}

fn is_missing<E>(error: &SdkError<E>) -> bool
where
    E: ProvideErrorMetadata,
{
    status_of(error) == Some(404) && error.code() != Some("NoSuchBucket")
}

fn status_of<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

impl Archive for S3Archive {
    async fn end(&self) -> Result<Option<Sequence>, ArchiveError> {
        match self.outermost(true).await? {
            Some(Sequence::LAST) => Err(self.foreign(&Sequence::LAST.key(&self.stream), MetadataError::Last)),
            end => Ok(end),
        }
    }

    async fn head(&self, sequence: Sequence) -> Result<Option<Head>, ArchiveError> {
        let key = sequence.key(&self.stream);
        match self.client.head_object().bucket(&self.bucket).key(&key).send().await {
            Ok(head) => {
                let metadata = self.decode(&key, head.metadata())?;
                Ok(Some(Head { metadata, bytes: length(head.content_length()) }))
            }
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.error("HeadObject", &key, &error)),
        }
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Object>, ArchiveError> {
        let key = sequence.key(&self.stream);
        match self.client.get_object().bucket(&self.bucket).key(&key).send().await {
            Ok(object) => {
                let metadata = self.decode(&key, object.metadata())?;
                let bytes = length(object.content_length());
                let etag = object.e_tag.unwrap_or_default();
                let source = Source { client: self.client.clone(), bucket: self.bucket.clone(), key, etag, bytes };
                Ok(Some(Object { metadata, bytes, body: download(source, object.body) }))
            }
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.error("GetObject", &key, &error)),
        }
    }

    async fn append(&self, sequence: Sequence, metadata: &Metadata, body: &Upload) -> Result<Append, ArchiveError> {
        self.prove().await?;
        let key = sequence.key(&self.stream);
        let fields = metadata.encode().map_err(|source| self.foreign(&key, source))?;
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(&key)
            .if_none_match("*")
            .content_type("application/json")
            .content_length(i64::try_from(body.bytes).expect("MAX_BODY is far below 2^63"))
            // S3 refuses a body that was damaged on the way; the transformer checks again what was stored.
            .checksum_sha256(base64::encode(metadata.sha256.0))
            .set_metadata(Some(fields))
            .body(body.stream());
        // The SDK's read timeout runs from the first byte sent, so a large body needs more; a wire that stands still is
        // ended by stalled-stream protection long before.
        let timeout = Duration::from_secs(30 + body.bytes / 1_000_000);
        let timeouts = TimeoutConfig::builder().read_timeout(timeout).operation_attempt_timeout(timeout).build();
        let patient = aws_sdk_s3::Config::builder().timeout_config(timeouts);
        match request.customize().config_override(patient).send().await {
            Ok(_) => Ok(Append::Done),
            Err(error) if status_of(&error) == Some(412) => Ok(Append::Taken),
            Err(error) => Err(self.error(PUT, &key, &error)),
        }
    }
}

impl Object {
    /// One that is in memory.
    pub fn of_bytes(metadata: Metadata, body: Bytes) -> Self {
        Self { metadata, bytes: body.len() as u64, body: stream::once(async { Ok(body) }).boxed() }
    }

    /// The whole body, for one that is known to be small.
    pub async fn into_bytes(self) -> Result<Bytes, ArchiveError> {
        let chunks = self.body.try_collect::<Vec<_>>().await.map_err(|source| ArchiveError::BrokeOff { source })?;
        match <[Bytes; 1]>::try_from(chunks) {
            Ok([chunk]) => Ok(chunk),
            Err(chunks) => Ok(chunks.concat().into()),
        }
    }

    /// The same object with its body read.
    pub async fn into_memory(self) -> Result<Self, ArchiveError> {
        let metadata = self.metadata.clone();
        Ok(Self::of_bytes(metadata, self.into_bytes().await?))
    }
}

impl Upload {
    /// The size of one read from the spool file: large enough that the thread hop is noise, small enough to be nothing in memory.
    const CHUNK_BYTES: u64 = 256 * 1024;

    fn stream(&self) -> ByteStream {
        let upload = self.clone();
        ByteStream::new(SdkBody::retryable(move || {
            let (upload, chunks) = (upload.clone(), upload.bytes.div_ceil(Self::CHUNK_BYTES));
            let chunks = stream::iter(0..chunks).map(move |chunk| upload.clone().chunk(chunk * Self::CHUNK_BYTES));
            // The next is read while one is sent.
            SdkBody::from_body_1_x(StreamBody::new(chunks.buffered(2).map_ok(Frame::data)))
        }))
    }

    async fn chunk(self, sent: u64) -> io::Result<Bytes> {
        status::beat();
        let bytes = usize::try_from((self.bytes - sent).min(Self::CHUNK_BYTES)).expect("a chunk fits into memory");
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; bytes];
            self.file.read_exact_at(&mut chunk, self.offset + sent).map(|()| Bytes::from(chunk))
        });
        crate::crash_point!("uploading");
        read.await.expect("reading a file does not panic")
    }
}
