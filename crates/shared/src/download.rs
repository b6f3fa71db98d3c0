//! A body on its way from S3: it goes on where it broke off, and the next parts of a large one are asked for while one is read.
//!
//! S3 gives a connection 85 to 90 MB/s at most, less than Postgres takes
//! (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html>).

use std::{collections::VecDeque, io, panic::resume_unwind, sync::Arc};

use aws_sdk_s3::{Client, primitives::ByteStream};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use thiserror::Error;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::{
    archive::{Body, RIGHTS},
    aws,
};

/// A large body comes in parts of this size. With it and the two below a wire of 90 MB/s a connection and 100 ms brings 1.8 times what one
/// GET does; with parts of 8 MiB 1.2 times.
const PART_BYTES: u64 = 14 << 20;

/// As many are on their way behind the one that is read …
const PARTS_AHEAD: usize = 2;

/// … and as much of each is held in memory, so each MiB here is three; the rest waits in the connections' own buffers. With 2 MiB that wire
/// brings 3 % less, with 4 no more.
const AHEAD_BYTES: usize = 3 << 20;

/// More breaks in a part than this are not bad luck; whoever reads begins anew, with back-off. A part that waits for a slow database may be
/// cut off too.
const RESUMED: u32 = 5;

/// An object as it was when its body was first asked for.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) client: Client,
    pub(crate) bucket: String,
    pub(crate) key: String,
    /// Parts of another version do not fit.
    pub(crate) etag: String,
    pub(crate) bytes: u64,
}

/// The body, from the answer with the `whole` of it, of which a large body takes the first part and leaves the rest. Nothing is read or asked
/// for before its first chunk is.
pub(crate) fn download(source: Source, whole: ByteStream) -> Body {
    let now = Part { rest: Some(whole), ..Part::new(&source.into(), 0) };
    let download = Download { unasked: now.end, now, held: VecDeque::new(), ahead: VecDeque::new() };
    stream::try_unfold(download, |mut this| async { Ok(this.chunk().await?.map(|chunk| (chunk, this))) }).boxed()
}

struct Download {
    now: Part,
    /// What was read ahead of it.
    held: VecDeque<Bytes>,
    ahead: VecDeque<AbortOnDropHandle<io::Result<Ahead>>>,
    /// Where the first part begins that is not on its way.
    unasked: u64,
}

/// A part, without the chunks that are held.
type Ahead = (Part, VecDeque<Bytes>);

impl Download {
    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            while self.ahead.len() < PARTS_AHEAD && self.unasked < self.now.source.bytes {
                let part = Part::new(&self.now.source, self.unasked);
                self.unasked = part.end;
                self.ahead.push_back(AbortOnDropHandle::new(tokio::spawn(part.read_ahead())));
            }
            if let Some(chunk) = self.held.pop_front() {
                return Ok(Some(chunk));
            }
            if let Some(chunk) = self.now.chunk().await? {
                return Ok(Some(chunk));
            }
            let Some(next) = self.ahead.pop_front() else { return Ok(None) };
            (self.now, self.held) = match next.await.map_err(JoinError::try_into_panic) {
                Ok(ahead) => ahead?,
                Err(Ok(panic)) => resume_unwind(panic),
                Err(Err(ended)) => return Err(io::Error::other(ended)),
            };
        }
    }
}

/// Why the rest of a part does not come.
#[derive(Debug, Error)]
#[error("could not read {key} from byte {read} on")]
struct Unread {
    key: String,
    read: u64,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// A range of the bytes.
struct Part {
    source: Arc<Source>,
    /// Where in the object reading has come to, and where the part ends.
    read: u64,
    end: u64,
    resumed: u32,
    /// `None` before it is asked for.
    rest: Option<ByteStream>,
}

impl Part {
    fn new(source: &Arc<Source>, read: u64) -> Self {
        let end = source.bytes.min(read + PART_BYTES);
        Self { source: source.clone(), read, end, resumed: 0, rest: None }
    }

    async fn read_ahead(mut self) -> io::Result<Ahead> {
        let (mut held, mut bytes) = (VecDeque::new(), 0);
        while bytes < AHEAD_BYTES
            && let Some(chunk) = self.chunk().await?
        {
            bytes += chunk.len();
            // Copied, since a chunk keeps the whole buffer that it was read into, often much larger: with chunks the transformer took 51 to
            // 59 MiB for an object of 1 GiB, with copies 50 to 53.
            held.push_back(Bytes::copy_from_slice(&chunk));
        }
        Ok((self, held))
    }

    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        while self.read < self.end {
            let why: Box<dyn std::error::Error + Send + Sync> = match &mut self.rest {
                None => {
                    self.ask().await?;
                    continue;
                }
                Some(rest) => match rest.next().await {
                    Some(Ok(mut chunk)) => {
                        // The first answer is for the whole object.
                        chunk.truncate(usize::try_from(self.end - self.read).unwrap_or(usize::MAX));
                        self.read += chunk.len() as u64;
                        return Ok(Some(chunk));
                    }
                    None => "it ended early".into(),
                    Some(Err(error)) => error.into(),
                },
            };
            if self.resumed == RESUMED {
                return Err(self.unread(why));
            }
            self.resumed += 1;
            debug!(key = self.source.key, read = self.read, why = %why, "a body broke off and is resumed");
            self.ask().await?;
        }
        Ok(None)
    }

    async fn ask(&mut self) -> io::Result<()> {
        let Source { client, bucket, key, etag, .. } = &*self.source;
        let request = client.get_object().bucket(bucket).key(key).if_match(etag);
        let answer = request.range(format!("bytes={}-{}", self.read, self.end - 1)).send().await;
        let answer = answer.map_err(|error| self.unread(aws::reason(&error, RIGHTS)))?;
        // A server that does not know ranges answers with the whole.
        let range = answer.content_range().unwrap_or_default();
        if !range.starts_with(&format!("bytes {}-", self.read)) {
            return Err(self.unread(format!("that range was asked for, and `{range}` came").into()));
        }
        self.rest = Some(answer.body);
        Ok(())
    }

    fn unread(&self, source: Box<dyn std::error::Error + Send + Sync>) -> io::Error {
        io::Error::other(Unread { key: self.source.key.clone(), read: self.read, source })
    }
}
