//! A body becomes a temporary file with hash and length, because S3 wants both before the first byte.
//!
//! The file has no name from its first moment, so a killed importer leaves nothing behind. Memory stays at one chunk.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{Stream, StreamExt};
use sha2::Digest;
use shared::{archive::Upload, object::Sha256};
use thiserror::Error;
use tokio::{fs::File, io::AsyncWriteExt};

/// How much of a body is kept to say what it begins with.
const BEGINNING_BYTES: usize = 200;

/// A whole body on disk.
#[derive(Debug)]
pub struct Spooled {
    /// The file and its length.
    pub upload: Upload,
    /// The digest of the body.
    pub sha256: Sha256,
    /// The first bytes, at most 200.
    pub beginning: Vec<u8>,
}

/// Why a body is not on disk.
#[derive(Debug, Error)]
pub enum SpoolError<E> {
    /// The sender's side.
    #[error("the body broke off after {bytes} bytes")]
    Broken {
        /// How much had come.
        bytes: u64,
        /// What the connection said.
        source: E,
    },
    /// The body is longer than allowed.
    #[error("the body is longer than MAX_BODY ({max_bytes} bytes)")]
    TooLong {
        /// The limit.
        max_bytes: u64,
    },
    /// Our side.
    #[error("cannot write to SPOOL_DIR {}: it must exist, be writable and have room for one answer of the API", dir.display())]
    Disk {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes the body to an unnamed file in `dir`.
pub async fn spool<B, E>(mut body: B, dir: &Path, max_bytes: u64) -> Result<Spooled, SpoolError<E>>
where
    B: Stream<Item = Result<bytes::Bytes, E>> + Unpin,
{
    let disk = |source| SpoolError::Disk { dir: dir.to_owned(), source };
    let mut file = File::from_std(tempfile::tempfile_in(dir).map_err(disk)?);
    let (mut hasher, mut bytes, mut beginning) = (sha2::Sha256::new(), 0, Vec::new());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|source| SpoolError::Broken { bytes, source })?;
        bytes += chunk.len() as u64;
        if bytes > max_bytes {
            return Err(SpoolError::TooLong { max_bytes });
        }
        hasher.update(&chunk);
        beginning.extend(chunk.iter().take(BEGINNING_BYTES - beginning.len()));
        file.write_all(&chunk).await.map_err(disk)?;
    }
    file.flush().await.map_err(disk)?;
    let upload = Upload { file: Arc::new(file.into_std().await), bytes };
    Ok(Spooled { upload, sha256: Sha256::of(hasher), beginning })
}
