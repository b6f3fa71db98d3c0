//! Bodies become spans of a temporary file, with hash and length, because S3 wants both before the first byte.
//!
//! The file has no name from its first moment, so a killed importer leaves nothing behind. Memory stays at a few chunks.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use sha2::Digest;
use shared::{archive::Upload, crash_point, object::Sha256, status};
use thiserror::Error;
use tokio::{sync::mpsc, task::spawn_blocking};

/// How much of a body is kept to say what it begins with.
const BEGINNING_BYTES: usize = 200;

/// So many chunks may wait for the disk; hyper makes none longer than its read buffer, 408 KiB.
const CHUNKS_AHEAD: usize = 2;

/// A whole body on disk.
#[derive(Debug)]
pub struct Spooled {
    /// Where in the file it is.
    pub upload: Upload,
    /// The digest of the body.
    pub sha256: Sha256,
    /// The first bytes, at most 200.
    pub beginning: Vec<u8>,
    /// The last byte that is no white space.
    pub ending: Option<u8>,
}

impl Spooled {
    /// Reads the body from its beginning.
    pub fn reader(&self) -> impl Read + use<> {
        let Upload { file, offset, bytes } = self.upload.clone();
        Reader { file, span: offset..offset + bytes }
    }
}

/// Reads by position, so that it moves nobody else's place.
struct Reader {
    file: Arc<File>,
    span: Range<u64>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.span.end - self.span.start).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.span.start)?;
        self.span.start += read as u64;
        Ok(read)
    }
}

/// Why a body is not on disk.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum SpoolError {
    /// The sender's side.
    #[error("the body broke off after {bytes} bytes")]
    Broken { bytes: u64, source: io::Error },
    /// The answer is longer than allowed.
    #[error("it is longer than MAX_BODY ({max_bytes} bytes): raise that, if so much is expected")]
    TooLong { max_bytes: u64 },
    /// Our side.
    #[error("cannot write to SPOOL_DIR {}: it must exist, be writable, and have room for one answer of the API", dir.display())]
    Disk { dir: PathBuf, source: io::Error },
    /// Our side, later.
    #[error("cannot read back what is in SPOOL_DIR")]
    Unreadable { source: io::Error },
}

/// The file of one snapshot.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    dir: PathBuf,
    /// Where the next body begins.
    end: u64,
    max_bytes: u64,
}

impl Spool {
    /// An empty file without a name in `dir`, for bodies of `max_bytes` together.
    pub fn new(dir: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        let file = tempfile::tempfile_in(dir).map_err(|source| SpoolError::Disk { dir: dir.to_owned(), source })?;
        Ok(Self { file: Arc::new(file), dir: dir.to_owned(), end: 0, max_bytes })
    }

    /// Writes a body behind those that are there. One that fails leaves the spool as it was.
    pub async fn keep<B>(&mut self, body: B) -> Result<Spooled, SpoolError>
    where
        B: Stream<Item = io::Result<Bytes>> + Unpin,
    {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (file, offset) = (self.file.clone(), self.end);
        let writing = spawn_blocking(move || write(chunks, file, offset));
        let received = self.receive(body, sender).await;
        // Awaited whatever was received, so that no write of a body that was given up lands in the next one.
        let written = writing.await.expect("writing a file does not panic");
        let spooled = written.map_err(|source| SpoolError::Disk { dir: self.dir.clone(), source })?;
        received?;
        self.end += spooled.upload.bytes;
        Ok(spooled)
    }

    /// Passes the chunks on as they come; whoever writes them says himself why he does not take more.
    async fn receive<B>(&self, mut body: B, writer: mpsc::Sender<Bytes>) -> Result<(), SpoolError>
    where
        B: Stream<Item = io::Result<Bytes>> + Unpin,
    {
        let mut bytes = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|source| fault_of(source, bytes))?;
            status::beat();
            bytes += chunk.len() as u64;
            if self.end + bytes > self.max_bytes {
                return Err(SpoolError::TooLong { max_bytes: self.max_bytes });
            }
            if writer.send(chunk).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Hashes and writes on a thread of its own, while the next chunk is on its way.
fn write(mut chunks: mpsc::Receiver<Bytes>, file: Arc<File>, offset: u64) -> io::Result<Spooled> {
    let mut upload = Upload { file, offset, bytes: 0 };
    let (mut hasher, mut beginning, mut ending) = (sha2::Sha256::new(), Vec::new(), None);
    while let Some(chunk) = chunks.blocking_recv() {
        hasher.update(&chunk);
        beginning.extend(chunk.iter().take(BEGINNING_BYTES - beginning.len()));
        ending = chunk.trim_ascii_end().last().copied().or(ending);
        upload.file.write_all_at(&chunk, upload.offset + upload.bytes)?;
        upload.bytes += chunk.len() as u64;
        crash_point!("spooling");
    }
    Ok(Spooled { upload, sha256: Sha256::of(hasher), beginning, ending })
}

/// The sender counts what comes over the wire, which only he sees, and says so with our own error.
fn fault_of(source: io::Error, bytes: u64) -> SpoolError {
    source.downcast().unwrap_or_else(|source| SpoolError::Broken { bytes, source })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn body(chunks: &[io::Result<&'static str>]) -> impl Stream<Item = io::Result<Bytes>> + Unpin {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| {
                chunk.as_ref().map(|text| Bytes::from(*text)).map_err(|error| io::Error::other(error.to_string()))
            })
            .collect();
        stream::iter(chunks)
    }

    fn text(spooled: &Spooled) -> String {
        io::read_to_string(spooled.reader()).unwrap()
    }

    #[tokio::test]
    async fn bodies_follow_each_other_and_one_that_breaks_off_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path(), 20).unwrap();
        let first = spool.keep(body(&[Ok("[1,"), Ok("2]")])).await.unwrap();
        let broken = spool.keep(body(&[Ok("[3,4,5,6"), Err(io::Error::other("reset"))])).await.unwrap_err();
        assert_eq!(broken.to_string(), "the body broke off after 8 bytes");
        let second = spool.keep(body(&[Ok("[7]")])).await.unwrap();
        assert_eq!((text(&first), text(&second)), ("[1,2]".into(), "[7]".into()));
        assert_eq!(first.sha256, Sha256(sha2::Sha256::digest(b"[1,2]").into()));
        assert_eq!(second.beginning, b"[7]");
        assert!(matches!(spool.keep(body(&[Ok("1234567890123")])).await, Err(SpoolError::TooLong { max_bytes: 20 })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }
}
