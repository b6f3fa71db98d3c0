//! Small objects in one transaction, as if they had been applied one after the other: while catching up, what each costs beside its rows would
//! be most of its time.
//!
//! The rows of all their ids are read once, and what each object changes is found here. Rows are written in the order of the objects, and
//! twice only by two statements, so that somebody's own constraints see what they would have seen. Whatever is out of the ordinary, as
//! are constraints that see more than a row and triggers, is left to be applied alone.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::TryStreamExt;
use shared::{
    archive::{ArchiveError, Object},
    crash_point,
    object::{Metadata, Sequence},
};
use sqlx::{Connection, PgConnection, Row as _, ValueRef};
use tokio::{task::spawn_blocking, time::Instant};

use crate::{
    batch::{Batch, Records, Whole, read_whole},
    connect::within,
    decide::Position,
    fault::{Fault, TableError},
    ledger::{Counts, Home, Lock, advance_over, lock},
    notes,
    parameter::Column,
    row::{Fields, Key, Row},
    statements::Statements,
    write::{RowSource, merge_of},
};

/// Objects are applied together until they have so many records: each costs memory several times.
const MOST_RECORDS: u64 = 8_000;

/// Stored rows are kept in memory together up to so many bytes: a few ids may stand for long rows.
const STORED_BYTES: usize = 4 << 20;

/// An object in memory.
#[derive(Clone, Debug)]
pub struct Small {
    /// Its number.
    pub sequence: Sequence,
    /// What it says of itself.
    pub metadata: Metadata,
    /// Its body, not verified yet.
    pub body: Bytes,
}

impl Small {
    /// One whose body is in memory already, or at least small.
    pub async fn new(sequence: Sequence, object: Object) -> Result<Self, ArchiveError> {
        let metadata = object.metadata.clone();
        Ok(Self { sequence, metadata, body: object.into_bytes().await? })
    }
}

impl From<Small> for Object {
    fn from(Small { metadata, body, .. }: Small) -> Self {
        Self::of_bytes(metadata, body)
    }
}

/// Applies objects after `position`: those before the first that is not as usual. Answers with what each did; with nothing where the first has
/// to be applied alone, and with `None` where all have, because the table has triggers. Nothing was done then.
pub async fn apply_bundle(
    connection: &mut PgConnection,
    home: Home<'_>,
    position: Option<&Position>,
    objects: &[Small],
    records: Records,
    more_follow: bool,
) -> Result<Option<Vec<Counts>>, TableError> {
    let statements = home.statements;
    let wholes = read(objects, records).await;
    let objects = &objects[..wholes.len()];
    if objects.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let mut transaction = within("begin a transaction of", connection.begin()).await?;
    let written = async {
        match lock(&mut transaction, home, position, more_follow).await? {
            Lock::Taken { has_triggers: false, .. } => {}
            Lock::Taken { has_triggers: true, .. } => return Ok(None),
            // Alone it is told so again.
            Lock::Busy | Lock::Moved => return Ok(Some(Vec::new())),
        }
        crash_point!("bundle-locked");
        let counts = write(&mut transaction, objects, &wholes, statements).await?;
        crash_point!("bundle-written");
        advance_over(&mut transaction, home, &objects[..counts.len()], &counts).await?;
        Ok::<_, TableError>(Some(counts))
    };
    let counts = match written.await {
        Err(error) if error.fault() == Fault::Dependency && !error.is_too_slow() => return Err(error),
        // Alone it shows whose fault it is.
        Err(_) => Some(Vec::new()),
        Ok(counts) => counts,
    };
    if counts.as_ref().is_none_or(Vec::is_empty) {
        within("roll back a transaction of", transaction.rollback()).await?;
        return Ok(counts);
    }
    let committing = Instant::now();
    within("commit to", transaction.commit()).await?;
    notes::took("commit", committing.elapsed());
    crash_point!("bundle-committed");
    Ok(counts)
}

/// Those before the first that is not as usual, on another thread.
async fn read(objects: &[Small], records: Records) -> Vec<Whole> {
    let of = |Small { body, metadata, .. }: &Small| (body.clone(), records.of_object(metadata), metadata.sha256);
    let bodies: Vec<_> = objects.iter().map(of).collect();
    let read = move || {
        let mut number = 0;
        let wholes = bodies.iter().map_while(|(body, records, sha256)| read_whole(body, records, *sha256));
        let is_within = |whole: &Whole| {
            number += whole.records;
            number <= MOST_RECORDS
        };
        wholes.take_while(is_within).collect()
    };
    spawn_blocking(read).await.expect("reading does not panic")
}

/// Writes what they change, and answers with what each does. With nothing where the stored rows are too long, or Postgres leaves a row that
/// seemed to be changed, as equal numbers inside JSON can.
async fn write(
    connection: &mut PgConnection,
    objects: &[Small],
    wholes: &[Whole],
    statements: &Statements,
) -> Result<Vec<Counts>, TableError> {
    let Some(stored) = stored(connection, wholes, statements).await? else { return Ok(Vec::new()) };
    let stored = stored.iter().map(|fields| Row::new(0, statements.kinds[0], fields));
    let mut known: HashMap<_, _> = stored.map(|row| (row.key, row.fields)).collect();
    let (mut unwritten, mut all) = (Unwritten::default(), Vec::new());
    for (object, whole) in objects.iter().zip(wholes) {
        let source = RowSource::new(statements, object.sequence, &object.metadata);
        let repeated = whole.batches.iter().map(Batch::repeated).sum();
        let mut counts = Counts { records: whole.records, with_extra: whole.with_extra, repeated, ..Counts::default() };
        for row in whole.batches.iter().flat_map(Batch::rows) {
            let before = known.get(&row.key).copied();
            if before == Some(row.fields) {
                continue;
            }
            if unwritten.keys.contains(&row.key) && !unwritten.merge(connection).await? {
                return Ok(Vec::new());
            }
            known.insert(row.key, row.fields);
            unwritten.push(row, source);
            *(if before.is_some() { &mut counts.updated } else { &mut counts.inserted }) += 1;
        }
        all.push(counts);
    }
    if unwritten.merge(connection).await? { Ok(all) } else { Ok(Vec::new()) }
}

/// Rows to be written by one statement, none twice.
#[derive(Debug, Default)]
struct Unwritten<'a> {
    rows: Vec<Row<'a>>,
    sources: Vec<RowSource<'a>>,
    keys: HashSet<Key<'a>>,
}

impl<'a> Unwritten<'a> {
    fn push(&mut self, row: Row<'a>, source: RowSource<'a>) {
        self.keys.insert(row.key);
        self.rows.push(row);
        self.sources.push(source);
    }

    /// Writes them. Whether Postgres left none.
    async fn merge(&mut self, connection: &mut PgConnection) -> Result<bool, TableError> {
        let Self { rows, sources, .. } = std::mem::take(self);
        Ok(merge_of(connection, &rows, &sources).await? == rows.len() as u64)
    }
}

/// The fields of the rows that there are of all ids, `None` where they are too long.
async fn stored(
    connection: &mut PgConnection,
    wholes: &[Whole],
    statements: &Statements,
) -> Result<Option<Vec<Vec<u8>>>, TableError> {
    let mut rows: Vec<Row<'_>> = wholes.iter().flat_map(|whole| &whole.batches).flat_map(Batch::rows).collect();
    rows.sort_by(|one, other| one.key.cmp(&other.key));
    rows.dedup_by(|one, other| one.key == other.key);
    let (mut stored, mut bytes) = (Vec::new(), 0);
    let select = async {
        let ids = Column { rows: &rows, at: 0, kind: statements.kinds[0] };
        let mut found = sqlx::query(statements.select.sql()).bind(ids).fetch(connection);
        while let Some(there) = found.try_next().await? {
            let mut fields = Vec::new();
            for at in 0..statements.kinds.len() {
                let value = there.try_get_raw(at)?;
                let value = if value.is_null() { None } else { Some(value.as_bytes().map_err(sqlx::Error::Decode)?) };
                bytes += value.map_or(0, <[u8]>::len);
                if bytes > STORED_BYTES {
                    return Ok(None);
                }
                Fields(&mut fields).put_raw(value);
            }
            stored.push(fields);
        }
        Ok(Some(stored))
    };
    within("compare rows with those in", select).await
}
