//! The bodies of a run's objects become batches of rows, on a thread of their own, so that reading and parsing run ahead of the database.
//!
//! Bounded: of one object, one batch being filled, one waiting, one in the database's hands; of several, which are small, sixteen pieces.

use std::{
    collections::HashMap,
    io::{self, Read},
    ops::Range,
    sync::Arc,
};

use sha2::Digest;
use shared::{
    archive::Body,
    crash_point,
    json_scan::DocumentError,
    object::{Metadata, Sequence, Sha256},
    records::{Record, RecordsAt, RecordsError, read_records},
    telemetry::chain,
};
use tokio::{runtime::Handle, sync::mpsc, task::spawn_blocking};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{
    record::{NoRow, RecordReader, WrongRecord},
    row::{Fields, Origin, Row},
    table_definition::Kind,
};

/// A batch is sent when it has this many rows.
const BATCH_ROWS: usize = 8_000;

/// … or their records, or the rows that they become, have this many bytes: three batches of it are in flight.
const BATCH_BYTES: usize = 4 << 20;

/// Why a record is no row that was cut.
pub const TOO_LONG: &str = "it is longer than 16 MiB";

/// Pieces of several small objects that wait for the database: enough that the two threads seldom wait for each other. Of one object, one.
const PIECES_WAITING: usize = 16;

/// What the reader sends, in the order of the objects and of their documents.
#[derive(Debug)]
pub struct Pieces(mpsc::Receiver<Piece>);

/// Of each object batches, then one summary.
#[derive(Debug)]
pub enum Piece {
    /// Some of the records.
    Batch(Batch),
    /// A body is read.
    Summary(Summary),
    /// A body broke off on its way.
    BrokeOff(io::Error),
}

/// Some consecutive records of an object.
#[derive(Debug)]
pub struct Batch {
    origin: Origin,
    /// The type of a key.
    key: Kind,
    rows: Vec<RowAt>,
    /// Rows whose id comes again, for where Postgres refuses the later one.
    superseded: Vec<RowAt>,
    /// The fields of all rows, so that they are given from thread to thread, and freed, in one piece.
    fields: Vec<u8>,
    /// The records that are no rows.
    pub wrong: Vec<WrongRecord>,
    /// The bytes of the records that the rows were, by index, where they were asked for.
    pub records: HashMap<u64, Vec<u8>>,
}

/// Where a row is.
#[derive(Clone, Debug)]
struct RowAt {
    index: u64,
    fields: Range<usize>,
}

impl Pieces {
    /// The next one. Safe to drop: a channel keeps what is not received.
    pub async fn next(&mut self) -> Piece {
        self.0.recv().await.expect("the reader sends an end, or it has panicked")
    }
}

impl Batch {
    fn new(origin: Origin, key: Kind) -> Self {
        let (rows, superseded, fields, wrong) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { origin, key, rows, superseded, fields, wrong, records: HashMap::new() }
    }

    /// The object that its records come from.
    pub fn sequence(&self) -> Sequence {
        self.origin.sequence
    }

    /// The type of their keys.
    pub fn key_kind(&self) -> Kind {
        self.key
    }

    /// How many records are no rows because their id comes again.
    pub fn repeated(&self) -> u64 {
        self.superseded.len() as u64
    }

    /// Sorted by id, each id once: of two the later one wins, as if they had been applied one after the other.
    pub fn rows(&self) -> Vec<Row<'_>> {
        self.rows.iter().map(|place| self.row(place)).collect()
    }

    /// The keys of its records as they are stored, `None` for one that cannot be read.
    pub fn ids(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let of_rows = self.rows.iter().map(|place| Some(self.row(place).key_value()));
        of_rows.chain(self.wrong.iter().map(|record| record.key.as_deref()))
    }

    /// How many records it has, but for those whose id comes again.
    pub fn records(&self) -> usize {
        self.rows.len() + self.wrong.len()
    }

    /// Leaves out rows.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&Row<'_>) -> bool) {
        let mut rows = std::mem::take(&mut self.rows);
        rows.retain(|place| is_kept(&self.row(place)));
        self.rows = rows;
    }

    /// The last row before this one with the same id.
    pub fn superseded_by(&self, row: &Row<'_>) -> Option<Row<'_>> {
        let rows = self.superseded.iter().map(|place| self.row(place));
        rows.filter(|other| other.key == row.key && other.index < row.index).max_by_key(|other| other.index)
    }

    fn row(&self, RowAt { index, fields }: &RowAt) -> Row<'_> {
        Row::new(self.origin, *index, self.key, &self.fields[fields.clone()])
    }

    fn sort(&mut self) {
        let mut rows = std::mem::take(&mut self.rows);
        // Stable, so of equal ids the last one in the document is the last one here.
        rows.sort_by(|one, other| self.row(one).key.cmp(&self.row(other).key));
        let mut superseded = Vec::new();
        rows.reverse();
        rows.dedup_by(|earlier, later| {
            let is_superseded = self.row(earlier).key == self.row(later).key;
            if is_superseded {
                superseded.push(earlier.clone());
            }
            is_superseded
        });
        rows.reverse();
        (self.rows, self.superseded) = (rows, superseded);
    }
}

/// What a body was, of which all bytes were seen.
#[derive(Debug)]
pub struct Summary {
    /// Their digest.
    pub sha256: Sha256,
    /// Their number.
    pub bytes: u64,
    /// How many records are in them.
    pub records: u64,
    /// How many of these have members that no column is there for.
    pub with_extra: u64,
    /// Why they are no document, if they are none.
    pub broken: Option<String>,
}

/// An object that is to be read.
pub struct Unread<B = Body> {
    origin: Origin,
    at: RecordsAt,
    body: B,
}

impl Unread {
    /// An object whose records are where the importer has noted, or at this place if it has noted nothing.
    pub fn new(sequence: Sequence, metadata: &Metadata, at: &RecordsAt, body: Body) -> Self {
        let at = metadata.facts.records_at.as_ref().unwrap_or(at).clone();
        Self { origin: Origin { sequence, fetched_at: metadata.fetched_at }, at, body }
    }
}

/// Starts to read objects, and keeps the records beside the rows if `keep_records`. Reading ends by itself, and when the receiver is dropped.
pub fn read(objects: Vec<Unread>, reader: Arc<RecordReader>, keep_records: bool) -> Pieces {
    let is_several = objects.len() > 1;
    let (pieces, receiver) = mpsc::channel(if is_several { PIECES_WAITING } else { 1 });
    let runtime = Handle::current();
    let mut reading = Reading { reader, keep_records, rows: is_several.then(HashMap::new), bytes: 0 };
    let reader = move || {
        for Unread { origin, at, body } in objects {
            let body = SyncIoBridge::new_with_handle(StreamReader::new(body), runtime.clone());
            // Nobody listens after a fault in the database; then the next read ends this.
            let send = |piece| drop(pieces.blocking_send(piece));
            read_body(Unread { origin, at, body }, &mut reading, || !pieces.is_closed(), send);
        }
    };
    // A panic in it ends the daemon: whoever waits for the end of the pieces misses it.
    spawn_blocking(reader);
    Pieces(receiver)
}

/// The fields of a row, and whether its record has members that no column takes.
type KnownRow = (Vec<u8>, bool);

/// How the records of a run are read.
struct Reading {
    reader: Arc<RecordReader>,
    keep_records: bool,
    /// Of several objects, the rows of records by their bytes. Snapshots of one collection have most records in common.
    rows: Option<HashMap<Vec<u8>, KnownRow>>,
    /// How many bytes are in these.
    bytes: usize,
}

impl Reading {
    /// Puts a record's fields, as [`RecordReader::read`] does.
    fn read(&mut self, record: &Record<'_>, fields: &mut Vec<u8>) -> Result<bool, NoRow> {
        if !record.is_whole {
            return Err(NoRow { key: None, reason: TOO_LONG.to_owned() });
        }
        if let Some((row, has_extra)) = self.rows.as_ref().and_then(|rows| rows.get(record.raw)) {
            fields.extend(row);
            return Ok(*has_extra);
        }
        let begin = fields.len();
        let has_extra = self.reader.read(record.raw, &mut Fields(fields))?;
        if let Some(rows) = self.rows.as_mut().filter(|_| self.bytes < BATCH_BYTES) {
            let row = fields[begin..].to_owned();
            self.bytes += record.raw.len() + row.len();
            rows.insert(record.raw.to_owned(), (row, has_extra));
        }
        Ok(has_extra)
    }
}

fn read_body(
    Unread { origin, at, body }: Unread<impl Read>,
    reading: &mut Reading,
    is_wanted: impl Fn() -> bool,
    mut send: impl FnMut(Piece),
) {
    let mut body = Hashing { body, is_wanted, hasher: sha2::Sha256::new(), bytes: 0 };
    let key = reading.reader.key();
    let empty = || Filling { batch: Batch::new(origin, key), bytes: 0 };
    let mut filling = empty();
    let (mut records, mut with_extra) = (0, 0);
    let document = read_records(&mut body, &at, |record| {
        records += 1;
        let batch = &mut filling.batch;
        let begin = batch.fields.len();
        let read = reading.read(&record, &mut batch.fields);
        let is_row = read.is_ok();
        match read {
            Ok(has_extra) => {
                with_extra += u64::from(has_extra);
                // Bytes that only stand between fields count too, and with and without kept records: what is a batch must not depend
                // on how it is written, because of equal ids in one batch only the last is seen.
                // Of a wide table a short record is a long row.
                filling.bytes += record.raw.len().max(batch.fields.len() - begin);
                if reading.keep_records {
                    batch.records.insert(record.index, record.raw.to_owned());
                }
                batch.rows.push(RowAt { index: record.index, fields: begin..batch.fields.len() });
            }
            Err(why) => {
                batch.fields.truncate(begin);
                let wrong = WrongRecord::new(record, why);
                filling.bytes += wrong.raw.len();
                batch.wrong.push(wrong);
            }
        }
        if filling.is_full() {
            send(std::mem::replace(&mut filling, empty()).end());
        }
        is_row
    });
    let broken = match document {
        Ok(_) => None,
        Err(RecordsError::Document(DocumentError::Read(error))) => {
            return send(Piece::BrokeOff(error));
        }
        // Judged only when the digest says that these are the bytes that were archived, so the rest is read too.
        Err(error) => Some(chain(&error)),
    };
    if let Err(error) = io::copy(&mut body, &mut io::sink()) {
        return send(Piece::BrokeOff(error));
    }
    if !filling.is_empty() {
        send(filling.end());
    }
    let Hashing { hasher, bytes, .. } = body;
    send(Piece::Summary(Summary { sha256: Sha256::of(hasher), bytes, records, with_extra, broken }));
}

/// A batch that is not full yet.
struct Filling {
    batch: Batch,
    bytes: usize,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.batch.rows.len() + self.batch.wrong.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    fn is_empty(&self) -> bool {
        self.batch.rows.is_empty() && self.batch.wrong.is_empty()
    }

    fn end(mut self) -> Piece {
        self.batch.sort();
        Piece::Batch(self.batch)
    }
}

/// Sees every byte once, on its way to the parser.
struct Hashing<R, W> {
    body: R,
    is_wanted: W,
    hasher: sha2::Sha256,
    bytes: u64,
}

impl<R: Read, W: Fn() -> bool> Read for Hashing<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.is_wanted)() {
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
    use crate::{
        any_document::{Chunks, any_chunking, any_document},
        read::{row::Key, table_definition::TableDefinition},
    };

    fn pieces(document: impl Read) -> (Vec<Batch>, Summary) {
        pieces_for(TableDefinition::default(), document)
    }

    fn pieces_for(definition: TableDefinition, document: impl Read) -> (Vec<Batch>, Summary) {
        let (mut batches, mut end) = (Vec::new(), None);
        let origin = Origin { sequence: Sequence::FIRST, fetched_at: jiff::Timestamp::UNIX_EPOCH };
        let reader = Arc::new(RecordReader::new(definition.table_columns));
        let mut reading = Reading { reader, keep_records: false, rows: None, bytes: 0 };
        read_body(
            Unread { origin, at: RecordsAt::default(), body: document },
            &mut reading,
            || true,
            |piece| match piece {
                Piece::Batch(batch) => batches.push(batch),
                Piece::Summary(last) => assert!(end.replace(last).is_none(), "one summary"),
                Piece::BrokeOff(error) => panic!("{error}"),
            },
        );
        (batches, end.expect("there is an end"))
    }

    fn post(id: i64, title: &str) -> String {
        format!(r#"{{"id":{id},"userId":1,"title":"{title}","body":""}}"#)
    }

    #[test]
    fn a_batch_is_sorted_and_of_two_posts_with_one_id_the_later_one_wins() {
        let document = format!("[{},{},7,{},{}]", post(2, "b"), post(1, "old"), post(3, "c"), post(1, "new"));
        let (batches, end) = pieces(document.as_bytes());
        let [batch] = batches.as_slice() else { panic!("{batches:?}") };
        let rows: Vec<_> = batch.rows().into_iter().map(|row| (row.key, row.values().nth(2))).collect();
        let expected = [("new", 1), ("b", 2), ("c", 3)];
        assert_eq!(rows, expected.map(|(title, id)| (Key::Number(id), Some(Some(title.as_bytes())))));
        assert_eq!(batch.wrong[0].index, 2);
        let Summary { bytes, records, with_extra: 0, broken, .. } = end else { panic!("{end:?}") };
        assert_eq!((bytes, records, broken), (document.len() as u64, 5, None));
    }

    #[test]
    fn a_record_that_comes_again_in_a_run_is_the_same_row() {
        let reader = Arc::new(RecordReader::new(TableDefinition::default().table_columns));
        let mut reading = Reading { reader, keep_records: false, rows: Some(HashMap::new()), bytes: 0 };
        let (one, other) = (post(1, "t"), post(1, "other").replace('}', r#","x":0}"#));
        let mut read = |raw: &str| {
            let mut fields = Vec::new();
            let record = Record { index: 0, raw: raw.as_bytes(), is_whole: true };
            (reading.read(&record, &mut fields).unwrap(), fields)
        };
        let first = [read(&one), read(&other)];
        assert_eq!([read(&one), read(&other)], first);
        assert_ne!(first[0], first[1]);
        assert_eq!(reading.rows.unwrap().len(), 2);
    }

    #[test]
    fn what_is_kept_of_a_wrong_record_is_capped() {
        let document = format!("{{\"id\":1,\"title\":\"{}\"}}", "é".repeat(70_000));
        let (batches, _) = pieces(document.as_bytes());
        let [WrongRecord { key, raw, .. }] = &*batches[0].wrong else { panic!("{batches:?}") };
        assert_eq!((key.as_deref(), raw.len()), (Some(&1_i64.to_be_bytes()[..]), 65_536));
        let name = "é".repeat(1_000);
        let (batches, _) = pieces(format!("[{{\"id\":1,\"{name}\":1,\"{name}\":2}}]").as_bytes());
        assert_eq!(batches[0].wrong[0].reason.chars().count(), 500);
    }

    #[test]
    fn a_long_document_comes_in_batches() {
        let posts: Vec<_> = (0..20_000).map(|id| post(id, "t")).collect();
        let (batches, _) = pieces(format!("[{}]", posts.join(",")).as_bytes());
        assert_eq!(batches.iter().map(|batch| batch.rows.len()).collect::<Vec<_>>(), [8_000, 8_000, 4_000]);
    }

    #[test]
    fn short_records_of_a_wide_table_fill_a_batch_by_their_rows() {
        let columns: Vec<_> = (0..1_000).map(|at| format!("c{at} text")).collect();
        let table_columns = format!("id bigint, {}", columns.join(", ")).parse().unwrap();
        let records: Vec<_> = (0..2_000).map(|id| format!("{{\"id\":{id}}}")).collect();
        let definition = TableDefinition { table_columns, ..TableDefinition::default() };
        let (batches, _) = pieces_for(definition, format!("[{}]", records.join(",")).as_bytes());
        // A NULL takes four bytes, and the id twelve.
        let rows = BATCH_BYTES.div_ceil(4_012);
        assert_eq!(batches.iter().map(|batch| batch.rows.len()).collect::<Vec<_>>(), [rows, 2_000 - rows]);
    }

    #[test]
    fn a_post_costs_two_allocations_and_few_for_its_escapes() {
        let document =
            |title: &str| format!("[{}]", (0..1_000).map(|id| post(id, title)).collect::<Vec<_>>().join(","));
        let each = |document: String| {
            allocation_counter::measure(|| assert_eq!(pieces(document.as_bytes()).0[0].rows.len(), 1_000)).count_total
                / 1_000
        };
        assert_eq!(each(document("some words")), 2);
        let escaped = each(document("some\\nwords, and more of them"));
        assert!(escaped <= 5, "{escaped}");
    }

    #[test]
    fn a_broken_document_is_hashed_to_its_end() {
        let (_, whole) = pieces(&b"[1,2]"[..]);
        let (_, broken) = pieces(&b"[1,2 and more"[..]);
        let Summary { bytes: 5, broken: None, .. } = whole else { panic!("{whole:?}") };
        let Summary { bytes: 13, broken: Some(reason), .. } = broken else { panic!("{broken:?}") };
        assert_eq!(reason, "the document is broken from byte 3 on: it ends inside the array");
    }

    proptest! {
        #[test]
        fn any_document_gives_the_same_batches_however_it_is_cut((_, document) in any_document(), sizes in any_chunking(), end in any::<prop::sample::Index>()) {
            // Whole, and broken off somewhere.
            for document in [&document[..], &document[..end.index(document.len())]] {
                let whole = pieces(document);
                let Summary { sha256, bytes, .. } = &whole.1;
                prop_assert_eq!((*sha256, *bytes), (Sha256(sha2::Sha256::digest(document).into()), document.len() as u64));
                let cut = pieces(Chunks::new(document, sizes.clone()));
                prop_assert_eq!(format!("{cut:?}"), format!("{whole:?}"));
            }
        }
    }
}
