//! Bodies become spans of a temporary file, with hash, length and records, because the archive wants these before the first byte.
//!
//! The file has no name from its first moment, so a killed importer leaves nothing behind. Memory stays at a few chunks and the largest
//! single record.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use clap::Args;
use crc_fast::CrcAlgorithm;
use futures_util::{Stream, StreamExt, stream};
use sha2::Digest;
use shared::{
    archive::Upload,
    crash_point,
    json_scan::DocumentError,
    object::Sha256,
    records::{Found, RecordsAt, RecordsError, read_page},
    status,
};
use thiserror::Error;
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::signs::Signs;

/// How much of a body is looked into to say what it begins with, and how much of that is shown.
const BEGINNING_BYTES: u64 = 4096;
const SHOWN_CHARS: usize = 80;

/// Chunks that may wait for each of the two threads; hyper makes none longer than its read buffer, 408 KiB.
const CHUNKS_AHEAD: usize = 2;

/// Records are hashed in pieces of this size: most records alone are too short for the hashes to be quick.
const HASHED_BYTES: usize = 16 * 1024;

/// Where answers wait, and how long they may be.
#[derive(Args, Clone, Debug)]
pub struct SpoolSettings {
    /// Folder for one answer on its way to S3: a disk with room for it, not a tmpfs [default: the system's temporary folder]
    #[arg(long, env = "SPOOL_DIR", value_name = "DIR")]
    spool_dir: Option<PathBuf>,
    /// The longest answer that is taken, all its pages together, in bytes, compressed and not; S3 takes 5 GiB in one piece
    #[arg(long, env = "MAX_BODY", value_name = "BYTES", default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1..=5 << 30))]
    pub max_body: u64,
}

impl SpoolSettings {
    /// The folder of the settings, or the system's.
    pub fn dir(&self) -> PathBuf {
        self.spool_dir.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// A whole body on disk.
#[derive(Debug)]
pub struct Body {
    /// Where in the file it is.
    pub upload: Upload,
    /// The digest of the body.
    pub sha256: Sha256,
    /// What is in it.
    pub records: Records,
}

/// The records of a body, and what stands around them.
#[derive(Clone, Debug)]
pub struct Records {
    /// How many there are.
    pub count: u64,
    /// Equal ones are the same records in the same order: CRC-64/NVME over each with its length before it, and with what the hasher lacks.
    pub digest: u64,
    /// The last of them, if it is wanted.
    pub last: Option<Vec<u8>>,
    /// A hash of each record, if they are wanted and all of them are held.
    pub hashes: Option<Vec<u64>>,
    /// Whether each is a line, so that nothing in the body shows its end.
    pub are_lines: bool,
    /// The body with `null` in their place, and a mark for texts and arrays longer than 64 KiB; the body itself if it is the record.
    pub around: String,
    /// Has seen the records of the pages before and of this one, each with its length before it.
    hasher: sha2::Sha256,
    /// Whether the hasher lacks something: what follows the beginning of a record that was too long to be held, or all.
    lacks_some: bool,
}

impl Records {
    /// What the hasher lacks counts, too: with it, all of the body.
    fn with_body(mut self, sha256: Sha256) -> Self {
        if self.lacks_some {
            self.hasher.update(sha256.0);
            self.digest ^= u64::from_be_bytes(sha256.0[..8].try_into().expect("a digest has 32 bytes"));
        }
        self
    }
}

/// Where the records of a body are, and what is wanted of them.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Where they are.
    pub records_at: RecordsAt,
    /// Whether the last one is kept.
    pub keeps_last: bool,
    /// Whether further pages follow in a way that headers do not show.
    pub is_paged: bool,
    /// Whether each record is hashed by itself, to be found again.
    pub hashes_each: bool,
}

/// What the headers of an answer show of its body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown {
    /// Whether further pages follow.
    pub has_next: bool,
    /// Whether it is a record a line, so that an object alone is one of them.
    pub is_lines: bool,
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
    /// It is whole, and no collection.
    #[error("it begins with {beginning}")]
    NoRecords { beginning: String, upload: Upload, source: Box<RecordsError> },
    /// Our side.
    #[error("cannot write to SPOOL_DIR {}: it must exist, be writable, and have room for one answer of the API", dir.display())]
    Disk { dir: PathBuf, source: io::Error },
}

/// The file of one snapshot.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    dir: PathBuf,
    /// Where the next body begins.
    end: u64,
    max_bytes: u64,
    wanted: Wanted,
    /// Has seen the records of the pages that belong to the snapshot.
    hasher: sha2::Sha256,
}

impl Spool {
    /// An empty file without a name in `dir`, for bodies of `max_bytes` together.
    pub fn new(dir: &Path, max_bytes: u64, wanted: Wanted) -> Result<Self, SpoolError> {
        let file = tempfile::tempfile_in(dir).map_err(|source| SpoolError::Disk { dir: dir.to_owned(), source })?;
        let hasher = sha2::Sha256::new();
        Ok(Self { file: Arc::new(file), dir: dir.to_owned(), end: 0, max_bytes, wanted, hasher })
    }

    /// Adds the page's records to the digest of the snapshot.
    pub fn add_page(&mut self, records: &Records) {
        self.hasher = records.hasher.clone();
    }

    /// The digest over the records of all pages of the snapshot.
    pub fn records_sha256(&self) -> Sha256 {
        Sha256::of(self.hasher.clone())
    }

    /// Appends a body to the file, while another thread reads its records. One that fails leaves the spool as it was.
    pub async fn keep(
        &mut self,
        body: impl Stream<Item = io::Result<Bytes>> + Unpin,
        headers: Shown,
    ) -> Result<Body, SpoolError> {
        // An only page without anything around its records has no other digest than the body's, which costs nothing more.
        let is_all = self.end == 0 && !headers.has_next && !self.wanted.is_paged;
        let is_hashed = !(is_all && self.wanted.records_at.is_root());
        let (reader, mut chunks) = mpsc::channel(CHUNKS_AHEAD);
        let chunks = stream::poll_fn(move |context| chunks.poll_recv(context).map(|chunk| chunk.map(io::Result::Ok)));
        let chunks = SyncIoBridge::new(StreamReader::new(chunks));
        let (wanted, before) = (self.wanted.clone(), self.hasher.clone());
        let reading = spawn_blocking(move || read_records(chunks, &wanted, headers, before, is_hashed));
        let written = self.write(body, reader).await;
        let read = reading.await.expect("reading does not panic");
        let (upload, sha256) = written?;
        match read {
            Ok(records) => Ok(Body { upload, sha256, records: records.with_body(sha256) }),
            Err(source) => {
                self.end = upload.offset;
                let beginning = shown(&self.beginning_of(&upload)?);
                Err(SpoolError::NoRecords { beginning, upload, source: Box::new(source) })
            }
        }
    }

    fn beginning_of(&self, upload: &Upload) -> Result<Vec<u8>, SpoolError> {
        let bytes = upload.bytes.min(BEGINNING_BYTES);
        let mut beginning = vec![0; usize::try_from(bytes).expect("a few")];
        let read = upload.file.read_exact_at(&mut beginning, upload.offset);
        read.map(|()| beginning).map_err(|source| self.disk(source))
    }

    fn disk(&self, source: io::Error) -> SpoolError {
        SpoolError::Disk { dir: self.dir.clone(), source }
    }

    async fn write(
        &mut self,
        body: impl Stream<Item = io::Result<Bytes>> + Unpin,
        reader: mpsc::Sender<Bytes>,
    ) -> Result<(Upload, Sha256), SpoolError> {
        let (writer, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let upload = Upload { file: self.file.clone(), offset: self.end, bytes: 0 };
        let writing = spawn_blocking(move || write_chunks(chunks, upload));
        let received = self.receive(body, writer, reader).await;
        // Awaited whatever was received, so that no write of a body that was given up lands in the next one.
        let written = writing.await.expect("writing a file does not panic");
        let written = written.map_err(|source| self.disk(source))?;
        received?;
        self.end += written.0.bytes;
        Ok(written)
    }

    /// Passes the chunks on as they come.
    async fn receive(
        &self,
        mut body: impl Stream<Item = io::Result<Bytes>> + Unpin,
        writer: mpsc::Sender<Bytes>,
        reader: mpsc::Sender<Bytes>,
    ) -> Result<(), SpoolError> {
        let mut bytes = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|source| fault_of(source, bytes))?;
            status::beat();
            bytes += chunk.len() as u64;
            if self.end + bytes > self.max_bytes {
                return Err(SpoolError::TooLong { max_bytes: self.max_bytes });
            }
            // The thread that reads needs no more once it knows that this is no collection.
            let _ = reader.send(chunk.clone()).await;
            if writer.send(chunk).await.is_err() {
                // The thread that writes says why it takes no more.
                break;
            }
        }
        Ok(())
    }
}

fn write_chunks(mut chunks: mpsc::Receiver<Bytes>, mut upload: Upload) -> io::Result<(Upload, Sha256)> {
    let mut hasher = sha2::Sha256::new();
    while let Some(chunk) = chunks.blocking_recv() {
        hasher.update(&chunk);
        upload.file.write_all_at(&chunk, upload.offset + upload.bytes)?;
        upload.bytes += chunk.len() as u64;
        crash_point!("spooling");
    }
    Ok((upload, Sha256::of(hasher)))
}

/// What the records of a page are hashed for.
struct Hashes {
    /// To tell a snapshot from the one before.
    of_all: sha2::Sha256,
    /// To tell the page from the others of its walk, for which 64 bits are enough.
    of_page: crc_fast::Digest,
}

impl Write for Hashes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.of_all.update(bytes);
        self.of_page.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// By which a record is found again: 64 bits of its SHA-256.
pub fn record_hash(raw: &[u8]) -> u64 {
    let Sha256(digest) = Sha256::of(sha2::Sha256::new_with_prefix(raw));
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// A hash of each record; `None` where that cannot be said.
pub fn record_hashes(body: &[u8], at: &RecordsAt) -> Option<Vec<u64>> {
    let (mut hashes, mut is_all) = (Vec::new(), true);
    let read = shared::records::read_records(body, at, |record| {
        is_all &= record.is_whole;
        hashes.push(record_hash(record.raw));
        true
    });
    read.is_ok_and(|_| is_all).then_some(hashes)
}

/// Counts the records, and hashes them, while they pass.
fn read_records(
    body: impl Read,
    wanted: &Wanted,
    headers: Shown,
    before: sha2::Sha256,
    is_hashed: bool,
) -> Result<Records, RecordsError> {
    let hashes = Hashes { of_all: before, of_page: crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme) };
    let mut hashes = BufWriter::with_capacity(HASHED_BYTES, hashes);
    let (mut count, mut last, mut lacks_some) = (0, None, !is_hashed);
    let mut each = wanted.hashes_each.then(Vec::new);
    let (mut is_first_an_array, mut is_last_an_array) = (false, false);
    let is_array = wanted.records_at != RecordsAt::Document;
    let read = read_page(body, &wanted.records_at, |record| {
        if is_hashed {
            let length = (record.raw.len() as u64).to_be_bytes();
            for part in [&length, record.raw] {
                hashes.write_all(part).expect("hashing does not fail");
            }
        }
        is_last_an_array = record.raw.starts_with(b"[");
        is_first_an_array |= count == 0 && is_last_an_array;
        count += 1;
        lacks_some |= !record.is_whole;
        each = each.take().filter(|_| record.is_whole);
        if let Some(each) = &mut each {
            each.push(record_hash(record.raw));
        }
        if wanted.keeps_last || headers.is_lines || !is_array {
            let last: &mut Vec<u8> = last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(record.raw);
        }
        // Whether an element is JSON is for the transformer to say, record by record. A document that is no JSON is no answer.
        is_array
    });
    let (found, around) = match read {
        // A collection without a line.
        Err(RecordsError::Document(DocumentError::Empty)) if headers.is_lines => (Found::Nothing, "null".to_owned()),
        read => read?,
    };
    let is_line = headers.is_lines && wanted.records_at.is_root() && last.as_deref().is_some_and(is_no_failure);
    if let (Found::Object, RecordsAt::Array(at), false) = (found, &wanted.records_at, is_line) {
        return Err(RecordsError::Elsewhere { at: wanted.records_at.clone(), found: at.found_there(b'{') });
    }
    // One alone may be a bad record.
    if is_first_an_array && is_last_an_array || count == 2 && (is_first_an_array || is_last_an_array) {
        return Err(RecordsError::Arrays { at: wanted.records_at.clone() });
    }
    let around = match &last {
        Some(record) if !is_array => String::from_utf8_lossy(record).into_owned(),
        _ => around,
    };
    let Hashes { of_all, of_page } = hashes.into_inner().map_err(io::Error::from)?;
    let are_lines = found == Found::Lines || is_line;
    Ok(Records { count, digest: of_page.finalize(), hashes: each, last, are_lines, around, hasher: of_all, lacks_some })
}

/// Whether an object does not say of itself that something failed.
fn is_no_failure(object: &[u8]) -> bool {
    Signs::read(&[], &String::from_utf8_lossy(object), &RecordsAt::Document).failure.is_none()
}

impl SpoolError {
    /// Whether the body may only have ended too soon.
    pub fn ends_too_soon(&self) -> bool {
        let Self::NoRecords { source, .. } = self else { return false };
        matches!(&**source, RecordsError::Document(error) if error.is_cut_short())
    }
}

/// The first words of a body, for a person.
fn shown(beginning: &[u8]) -> String {
    let text = String::from_utf8_lossy(beginning).replace(char::is_control, " ");
    match text.trim().char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("`{}…`", &text.trim()[..end]),
        None if text.trim().is_empty() => "nothing".to_owned(),
        None => format!("`{}`", text.trim()),
    }
}

/// [`Http`](crate::http::Http) limits the bytes that come over the wire; its error arrives inside an `io::Error`.
fn fault_of(source: io::Error, bytes: u64) -> SpoolError {
    source.downcast().unwrap_or_else(|source| SpoolError::Broken { bytes, source })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn body(chunks: &[io::Result<&'static str>]) -> impl Stream<Item = io::Result<Bytes>> + Unpin + use<> {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| {
                chunk.as_ref().map(|text| Bytes::from(*text)).map_err(|error| io::Error::other(error.to_string()))
            })
            .collect();
        stream::iter(chunks)
    }

    fn text(body: &Body) -> String {
        let Upload { file, offset, bytes } = &body.upload;
        let mut text = vec![0; usize::try_from(*bytes).unwrap()];
        file.read_exact_at(&mut text, *offset).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn wanted(records_at: &str) -> Wanted {
        Wanted { records_at: records_at.parse().unwrap(), keeps_last: true, is_paged: true, hashes_each: true }
    }

    #[tokio::test]
    async fn bodies_follow_each_other_and_one_that_breaks_off_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path(), 20, wanted("")).unwrap();
        let first = spool.keep(body(&[Ok("[1,"), Ok("2]")]), Shown::default()).await.unwrap();
        let broken = body(&[Ok("[3,4,5,6"), Err(io::Error::other("reset"))]);
        let broken = spool.keep(broken, Shown::default()).await.unwrap_err();
        assert_eq!(broken.to_string(), "the body broke off after 8 bytes");
        let second = spool.keep(body(&[Ok("[7]")]), Shown::default()).await.unwrap();
        assert_eq!((text(&first), text(&second)), ("[1,2]".into(), "[7]".into()));
        assert_eq!(first.sha256, Sha256(sha2::Sha256::digest(b"[1,2]").into()));
        let long = spool.keep(body(&[Ok("[123456789012]")]), Shown::default()).await;
        assert!(matches!(long, Err(SpoolError::TooLong { max_bytes: 20 })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }

    #[tokio::test]
    async fn the_digest_is_that_of_the_records_whatever_stands_around_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut digests = Vec::new();
        for (text, at) in [
            (r#"[{"id":1},{"id":2}]"#, ""),
            (r#" [ {"id":1} , {"id":2} ] "#, ""),
            (r#"{"took":7,"data":[{"id":1},{"id":2}],"next":null}"#, "/data"),
        ] {
            let mut spool = Spool::new(dir.path(), 1000, wanted(at)).unwrap();
            let kept = spool.keep(body(&[Ok(text)]), Shown::default()).await.unwrap();
            assert_eq!((kept.records.count, kept.records.last.as_deref()), (2, Some(&br#"{"id":2}"#[..])));
            digests.push((kept.records.digest, Sha256::of(kept.records.hasher)));
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
        // The pages of a collection, cut elsewhere.
        let mut spool = Spool::new(dir.path(), 1000, wanted("")).unwrap();
        for text in [r#"[{"id":1}]"#, r#"[{"id":2}]"#] {
            let page = spool.keep(body(&[Ok(text)]), Shown::default()).await.unwrap();
            spool.add_page(&page.records);
        }
        assert_eq!(spool.records_sha256(), digests[0].1);
    }

    #[tokio::test]
    async fn an_only_page_that_is_nothing_but_records_is_told_by_its_body() {
        let dir = tempfile::tempdir().unwrap();
        let digests = async |is_paged, has_next, at: &str, text| {
            let wanted = Wanted { records_at: at.parse().unwrap(), keeps_last: false, is_paged, hashes_each: false };
            let mut spool = Spool::new(dir.path(), 1000, wanted).unwrap();
            let kept = spool.keep(body(&[Ok(text)]), Shown { has_next, is_lines: false }).await.unwrap();
            spool.add_page(&kept.records);
            (kept.records.digest, spool.records_sha256())
        };
        for (is_paged, has_next, at, is_by_body) in
            [(false, false, "", true), (true, false, "", false), (false, true, "", false), (false, false, "/a", false)]
        {
            let around = |text: &str| if at.is_empty() { text.to_owned() } else { format!(r#"{{"a":{text}}}"#) };
            let [one, again, spaced, other] = ["[1,2]", "[1,2]", "[1, 2]", "[1,3]"].map(|text| &*around(text).leak());
            let one = digests(is_paged, has_next, at, one).await;
            assert_eq!(digests(is_paged, has_next, at, again).await, one);
            assert_eq!(digests(is_paged, has_next, at, spaced).await != one, is_by_body);
            assert_ne!(digests(is_paged, has_next, at, other).await, one);
        }
    }

    #[tokio::test]
    async fn a_body_without_an_array_of_records_is_told_with_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        for (text, at, why) in [
            (
                r#"{"ok":false}"#,
                "/data",
                "the document has no member `data`, and RECORDS_AT, which is /data, must lead to",
            ),
            (r#"{"data":{}}"#, "/data", "`/data` is an object, and RECORDS_AT"),
            (r#"{"id":1}"#, "", "the document is an object, and RECORDS_AT"),
            (r#"[["id","title"],[1,"a"]]"#, "", "stand arrays, and a record is an object"),
            (r#"[{"page":1,"pages":6},[{"id":1}]]"#, "", "stand arrays, and a record is an object"),
            ("<html>", "", "the document is no collection: it begins with '<'"),
            (" ", "", "the document is empty"),
            ("[1,2", "", "the document is broken from byte 3 on: it ends inside the array"),
        ] {
            let mut spool = Spool::new(dir.path(), 1000, wanted(at)).unwrap();
            let refused = spool.keep(body(&[Ok(text)]), Shown::default()).await.unwrap_err();
            assert_eq!(refused.ends_too_soon(), text == "[1,2", "{text}");
            let said = shared::telemetry::chain(&refused);
            assert!(
                said.contains(why)
                    && said.starts_with(&format!(
                        "it begins with {}",
                        if text == " " { "nothing".into() } else { format!("`{text}`") }
                    )),
                "{said}"
            );
        }
        for (text, why) in [
            (r#"{"id":1"#, "it ends inside an object"),
            (r#"{"id":}"#, "broken from byte 0"),
            ("[1]", "the document is an array"),
        ] {
            let mut spool = Spool::new(dir.path(), 1000, wanted(".")).unwrap();
            let said = shared::telemetry::chain(&spool.keep(body(&[Ok(text)]), Shown::default()).await.unwrap_err());
            assert!(said.contains(why), "{text}: {said}");
        }
        for (text, at) in [("null", ""), ("[]", ""), ("{}", "/data"), (r#"{"data":null}"#, "/data")] {
            let mut spool = Spool::new(dir.path(), 1000, wanted(at)).unwrap();
            let kept = spool.keep(body(&[Ok(text)]), Shown::default()).await.unwrap();
            assert_eq!(kept.records.count, 0, "{text}");
            let around: serde_json::Value = serde_json::from_str(&kept.records.around).expect(text);
            assert!(around.is_null() || around.is_object(), "{text}");
        }
    }
}
