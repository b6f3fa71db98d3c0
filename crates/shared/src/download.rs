//! A body on its way from S3: it goes on where it broke off, and the next part of a large one is asked for while one is read.
//!
//! S3 gives a connection 85 to 90 MB/s at most, less than Postgres takes
//! (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html>).

use std::{collections::VecDeque, io, sync::Arc};

use aws_sdk_s3::{Client, primitives::ByteStream};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::archive::Body;

/// Long beside what a connection brings in the time of a round trip, so that asking for the next part costs little.
const PART_BYTES: u64 = 32 << 20;

/// As much of the next part is held in memory.
const AHEAD_BYTES: usize = 16 << 20;

/// More breaks in a part than this are not bad luck; whoever reads begins anew, with back-off.
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

/// The body of which `whole` is the beginning or all. Nothing is read or asked for before its first chunk is.
pub(crate) fn download(source: Source, whole: ByteStream) -> Body {
    let now = Part { end: source.bytes.min(PART_BYTES), source: source.into(), read: 0, resumed: 0, rest: Some(whole) };
    let download = Download { now, held: VecDeque::new(), next: None };
    stream::try_unfold(download, |mut this| async { Ok(this.chunk().await?.map(|chunk| (chunk, this))) }).boxed()
}

struct Download {
    now: Part,
    /// What was read ahead of it.
    held: VecDeque<Bytes>,
    next: Option<AbortOnDropHandle<io::Result<Ahead>>>,
}

/// The next part, without the chunks that are held.
type Ahead = (Part, VecDeque<Bytes>);

impl Download {
    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.next.is_none() {
                let read_ahead = |part: Part| AbortOnDropHandle::new(tokio::spawn(part.read_ahead()));
                self.next = self.now.next().map(read_ahead);
            }
            if let Some(chunk) = self.held.pop_front() {
                return Ok(Some(chunk));
            }
            if let Some(chunk) = self.now.chunk().await? {
                return Ok(Some(chunk));
            }
            let Some(next) = self.next.take() else { return Ok(None) };
            (self.now, self.held) = next.await.map_err(io::Error::other)??;
        }
    }
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
    /// The one after it, if the object goes on.
    fn next(&self) -> Option<Self> {
        let (source, read) = (self.source.clone(), self.end);
        let end = source.bytes.min(read + PART_BYTES);
        (read < end).then_some(Self { source, read, end, resumed: 0, rest: None })
    }

    async fn read_ahead(mut self) -> io::Result<Ahead> {
        let (mut held, mut bytes) = (VecDeque::new(), 0);
        while bytes < AHEAD_BYTES
            && let Some(chunk) = self.chunk().await?
        {
            bytes += chunk.len();
            held.push_back(chunk);
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
                return Err(io::Error::other(why));
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
        self.rest = Some(answer.map_err(io::Error::other)?.body);
        Ok(())
    }
}
