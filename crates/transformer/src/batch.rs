//! An object's body becomes batches of posts, on a thread of its own, so that reading and parsing run ahead of the database.
//!
//! Bounded: one batch being filled, one waiting, one in the database's hands.

use std::{
    collections::HashMap,
    io::{self, Read},
    ops::{Range, RangeInclusive},
    time::Duration,
};

use sha2::Digest;
use shared::{
    archive::Body,
    crash_point,
    document::{DocumentError, JsonPointer},
    object::Sha256,
    telemetry::chain,
};
use tokio::{runtime::Handle, sync::mpsc, task::spawn_blocking, time::timeout};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::{
    post::{Post, WrongRecord},
    record::{RecordsError, read_records},
};

/// A batch is sent when it has this many posts.
const BATCH_POSTS: usize = 8_000;

/// … or takes this much memory: three batches of it are in flight.
const BATCH_BYTES: usize = 4 << 20;

/// Batches that wait for the database.
const BATCHES_WAITING: usize = 1;

/// What the reader sends, in the order of the document.
#[derive(Debug)]
pub struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    /// One that was looked at and not wanted yet.
    seen: Option<Piece>,
}

/// Batches, then one end.
#[derive(Debug)]
pub enum Piece {
    /// Some of the records.
    Batch(Batch),
    /// The body is read.
    End(End),
}

/// Some consecutive records of an object.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<Row>,
    /// Posts whose id comes again, for where Postgres refuses the later one.
    superseded: Vec<Row>,
    /// The texts of all posts, so that they are given from thread to thread, and freed, in one piece.
    text: String,
    /// The records that are no posts.
    pub wrong: Vec<WrongRecord>,
    /// The bytes of the records that the posts were, by index, where they were asked for.
    pub records: HashMap<u64, Vec<u8>>,
}

/// A post without its texts.
#[derive(Clone, Debug)]
struct Row {
    index: u64,
    id: i64,
    user_id: i64,
    /// Where they are: title, body and what there is of extra, one after the other.
    text: Range<usize>,
    title_bytes: usize,
    body_bytes: usize,
}

impl Row {
    fn has_extra(&self) -> bool {
        self.text.len() > self.title_bytes + self.body_bytes
    }
}

impl Pieces {
    /// The next one. Safe to drop: a channel keeps what is not received.
    pub async fn next(&mut self) -> Piece {
        match self.seen.take() {
            Some(piece) => piece,
            None => self.receiver.recv().await.expect("the reader sends an end, or it has panicked"),
        }
    }

    /// The next one if it is there in time and is such a batch.
    pub async fn next_batch_if(&mut self, within: Duration, is_wanted: impl FnOnce(&Batch) -> bool) -> Option<Batch> {
        match timeout(within, self.next()).await {
            Ok(Piece::Batch(batch)) if is_wanted(&batch) => Some(batch),
            piece => {
                self.seen = piece.ok();
                None
            }
        }
    }
}

impl Batch {
    /// The lowest and the highest id; `None` where there is no post.
    pub fn ids(&self) -> Option<RangeInclusive<i64>> {
        Some(self.rows.first()?.id..=self.rows.last()?.id)
    }

    /// Sorted by id, each id once: of two the later one wins, as if they had been applied one after the other.
    pub fn posts(&self) -> Vec<Post<'_>> {
        self.rows.iter().map(|row| self.post(row)).collect()
    }

    /// The last post before this one with the same id.
    pub fn superseded_by(&self, post: &Post<'_>) -> Option<Post<'_>> {
        let rows = self.superseded.iter().filter(|row| row.id == post.id && row.index < post.index);
        rows.max_by_key(|row| row.index).map(|row| self.post(row))
    }

    fn post(&self, row: &Row) -> Post<'_> {
        let (title, rest) = self.text[row.text.clone()].split_at(row.title_bytes);
        let (body, extra) = rest.split_at(row.body_bytes);
        Post {
            index: row.index,
            id: row.id,
            user_id: row.user_id,
            title: title.into(),
            body: body.into(),
            extra: (!extra.is_empty()).then(|| extra.into()),
        }
    }

    fn add(&mut self, post: &Post<'_>) {
        let Post { index, id, user_id, title, body, extra } = post;
        let begin = self.text.len();
        for text in [Some(title), Some(body), extra.as_ref()].into_iter().flatten() {
            self.text.push_str(text);
        }
        let text = begin..self.text.len();
        let (title_bytes, body_bytes) = (title.len(), body.len());
        self.rows.push(Row { index: *index, id: *id, user_id: *user_id, text, title_bytes, body_bytes });
    }
}

/// How reading ended.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variant says what its fields are")]
pub enum End {
    /// All bytes were seen: their digest, their number, the records in them, how many of the posts have extra fields, and why they are no
    /// document, if they are none.
    Read { sha256: Sha256, bytes: u64, records: u64, with_extra: u64, broken: Option<String> },
    /// The body broke off on its way.
    BrokeOff(io::Error),
}

/// Starts to read the records `at` that place, and keeps them beside the posts if `keep_records`. Reading ends by itself, and when the
/// receiver is dropped.
pub fn read(body: Body, at: JsonPointer, keep_records: bool) -> Pieces {
    let (pieces, receiver) = mpsc::channel(BATCHES_WAITING);
    let body = SyncIoBridge::new_with_handle(StreamReader::new(body), Handle::current());
    let reader = move || read_body(body, &at, keep_records, &pieces);
    // A panic in it ends the daemon: whoever waits for the end of the pieces misses it.
    spawn_blocking(reader);
    Pieces { receiver, seen: None }
}

fn read_body(body: impl Read, at: &JsonPointer, keep_records: bool, pieces: &mpsc::Sender<Piece>) {
    let mut body = Hashing { body, hasher: sha2::Sha256::new(), bytes: 0, pieces };
    let mut filling = Filling::default();
    let (mut records, mut with_extra) = (0, 0);
    let mut send = |filling: Filling| {
        let batch = filling.into_batch();
        with_extra += batch.rows.iter().filter(|row| row.has_extra()).count() as u64;
        // Nobody listens after a fault in the database; then the next read ends this.
        let _ = pieces.blocking_send(Piece::Batch(batch));
    };
    let document = read_records(&mut body, at, |record| {
        records += 1;
        let post = Post::from_record(record);
        let is_post = post.is_ok();
        match post {
            Ok(post) => {
                // Bytes that only stand between fields count too, and with and without kept records: what is a batch must not depend
                // on how it is written, because of equal ids in one batch only the last is seen.
                filling.bytes += record.raw.len();
                if keep_records {
                    filling.batch.records.insert(record.index, record.raw.to_owned());
                }
                filling.batch.add(&post);
            }
            Err(wrong) => {
                filling.bytes += wrong.raw.len();
                filling.batch.wrong.push(wrong);
            }
        }
        if filling.is_full() {
            send(std::mem::take(&mut filling));
        }
        is_post
    });
    let broken = match document {
        Ok(()) => None,
        Err(RecordsError::Document(DocumentError::Read(error))) => {
            return drop(pieces.blocking_send(Piece::End(End::BrokeOff(error))));
        }
        // Judged only when the digest says that these are the bytes that were archived, so the rest is read too.
        Err(error) => Some(chain(&error)),
    };
    if let Err(error) = io::copy(&mut body, &mut io::sink()) {
        return drop(pieces.blocking_send(Piece::End(End::BrokeOff(error))));
    }
    if !filling.is_empty() {
        send(filling);
    }
    let Hashing { hasher, bytes, .. } = body;
    let _ =
        pieces.blocking_send(Piece::End(End::Read { sha256: Sha256::of(hasher), bytes, records, with_extra, broken }));
}

/// A batch that is not full yet.
#[derive(Default)]
struct Filling {
    batch: Batch,
    bytes: usize,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.batch.rows.len() + self.batch.wrong.len() >= BATCH_POSTS || self.bytes >= BATCH_BYTES
    }

    fn is_empty(&self) -> bool {
        self.batch.rows.is_empty() && self.batch.wrong.is_empty()
    }

    fn into_batch(self) -> Batch {
        let mut batch = self.batch;
        // Stable, so of equal ids the last one in the document is the last one here.
        batch.rows.sort_by_key(|row| row.id);
        batch.rows.reverse();
        batch.rows.dedup_by(|earlier, later| {
            let is_superseded = earlier.id == later.id;
            if is_superseded {
                batch.superseded.push(earlier.clone());
            }
            is_superseded
        });
        batch.rows.reverse();
        batch
    }
}

/// Sees every byte once, on its way to the parser.
struct Hashing<'a, R> {
    body: R,
    pieces: &'a mpsc::Sender<Piece>,
    hasher: sha2::Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.pieces.is_closed() {
            return Err(io::Error::other("nobody wants the rest"));
        }
        let read = self.body.read(buffer)?;
        crash_point!("reading");
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::documents::{Chunks, any_chunking, any_document};

    fn pieces(document: impl Read) -> (Vec<Batch>, End) {
        let (sender, mut receiver) = mpsc::channel(100);
        read_body(document, &JsonPointer::default(), false, &sender);
        drop(sender);
        let mut batches = Vec::new();
        while let Some(piece) = receiver.blocking_recv() {
            match piece {
                Piece::Batch(batch) => batches.push(batch),
                Piece::End(end) => return (batches, end),
            }
        }
        panic!("no end");
    }

    fn post(id: i64, title: &str) -> String {
        format!(r#"{{"id":{id},"userId":1,"title":"{title}","body":""}}"#)
    }

    #[test]
    fn a_batch_is_sorted_and_of_two_posts_with_one_id_the_later_one_wins() {
        let document = format!("[{},{},7,{},{}]", post(2, "b"), post(1, "old"), post(3, "c"), post(1, "new"));
        let (batches, end) = pieces(document.as_bytes());
        let [batch] = batches.as_slice() else { panic!("{batches:?}") };
        let posts: Vec<_> = batch.posts().into_iter().map(|post| (post.id, post.title)).collect();
        assert_eq!(posts, [(1, "new".into()), (2, "b".into()), (3, "c".into())]);
        assert_eq!(batch.wrong[0].index, 2);
        let End::Read { bytes, records, with_extra: 0, broken, .. } = end else { panic!("{end:?}") };
        assert_eq!((bytes, records, broken), (document.len() as u64, 5, None));
    }

    #[test]
    fn a_long_document_comes_in_batches() {
        let posts: Vec<_> = (0..20_000).map(|id| post(id, "t")).collect();
        let (batches, _) = pieces(format!("[{}]", posts.join(",")).as_bytes());
        assert_eq!(batches.iter().map(|batch| batch.rows.len()).collect::<Vec<_>>(), [8_000, 8_000, 4_000]);
    }

    #[test]
    fn a_post_costs_no_allocation_but_for_its_escapes() {
        let document =
            |title: &str| format!("[{}]", (0..1_000).map(|id| post(id, title)).collect::<Vec<_>>().join(","));
        let each = |document: String| {
            allocation_counter::measure(|| assert_eq!(pieces(document.as_bytes()).0[0].rows.len(), 1_000)).count_total
                / 1_000
        };
        assert_eq!(each(document("some words")), 0);
        let escaped = each(document("some\\nwords, and more of them"));
        assert!(escaped <= 3, "{escaped}");
    }

    #[test]
    fn a_broken_document_is_hashed_to_its_end() {
        let (_, whole) = pieces(&b"[1,2]"[..]);
        let (_, broken) = pieces(&b"[1,2 and more"[..]);
        let End::Read { bytes: 5, broken: None, .. } = whole else { panic!("{whole:?}") };
        let End::Read { bytes: 13, broken: Some(reason), .. } = broken else { panic!("{broken:?}") };
        assert_eq!(reason, "the document is broken from byte 3 on: it ends inside the array");
    }

    proptest! {
        #[test]
        fn any_document_gives_the_same_batches_however_it_is_cut((_, document) in any_document(), sizes in any_chunking(), end in any::<prop::sample::Index>()) {
            // Whole, and broken off somewhere.
            for document in [&document[..], &document[..end.index(document.len())]] {
                let whole = pieces(document);
                let End::Read { sha256, bytes, .. } = &whole.1 else { panic!("{whole:?}") };
                prop_assert_eq!((*sha256, *bytes), (Sha256(sha2::Sha256::digest(document).into()), document.len() as u64));
                let cut = pieces(Chunks::new(document, sizes.clone()));
                prop_assert_eq!(format!("{cut:?}"), format!("{whole:?}"));
            }
        }
    }
}
