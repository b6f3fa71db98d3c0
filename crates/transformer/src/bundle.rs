//! Small objects in one transaction, as if they had been applied one after the other: while catching up, what each costs beside its rows would
//! be most of its time.
//!
//! The rows of all their ids are read once, and what each object changes is found here. Rows are written in the order of the objects, and
//! twice only by two statements, so that a constraint of somebody's own sees what it would have seen. Whatever is out of the ordinary is
//! left to be applied alone.

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
    fault::TableError,
    ledger::{Counts, Home, Lock, advance_over, lock},
    notes,
    parameter::Column,
    record_type::Statements,
    row::{Row, Rows},
    write::{RowSource, Unwritten},
};

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

/// Applies objects after `position`: those before the first that is not as usual. Answers with what each did; with nothing where the first is
/// it, or the table is not as usual, and nothing was done.
pub async fn apply_bundle(
    connection: &mut PgConnection,
    home: Home<'_>,
    position: Option<&Position>,
    objects: &[Small],
    records: Records,
    more_follow: bool,
) -> Result<Vec<Counts>, TableError> {
    let statements = records.of.statements();
    let read = read(objects.to_vec(), records).await;
    let objects = &objects[..read.len()];
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let mut transaction = within("begin a transaction of", connection.begin()).await?;
    let written = match lock(&mut transaction, home, position, more_follow).await? {
        Lock::Taken(_) => {
            crash_point!("bundle-locked");
            write(&mut transaction, objects, &read, statements).await?
        }
        Lock::Busy | Lock::Moved => None,
    };
    let Some(counts) = written else {
        within("roll back a transaction of", transaction.rollback()).await?;
        return Ok(Vec::new());
    };
    crash_point!("bundle-written");
    advance_over(&mut transaction, home, objects, &counts).await?;
    let committing = Instant::now();
    within("commit to", transaction.commit()).await?;
    notes::took("commit", committing.elapsed());
    crash_point!("bundle-committed");
    Ok(counts)
}

/// Those before the first that is not as usual, on another thread.
async fn read(objects: Vec<Small>, records: Records) -> Vec<Whole> {
    let read = move || {
        let read = |object: &Small| read_whole(&object.body, &records, object.metadata.sha256);
        objects.iter().map_while(read).collect()
    };
    spawn_blocking(read).await.expect("reading does not panic")
}

/// Writes what they change. `None` where the stored rows are too long, or Postgres leaves a row that seemed to be changed, as it does with equal
/// numbers inside JSON and for triggers of somebody's own.
async fn write(
    connection: &mut PgConnection,
    objects: &[Small],
    read: &[Whole],
    statements: &'static Statements,
) -> Result<Option<Vec<Counts>>, TableError> {
    let Some(stored) = stored(connection, read, statements).await? else { return Ok(None) };
    let mut known: HashMap<_, _> = stored.iter().map(|row| (row.id, row.fields)).collect();
    let (mut unwritten, mut ids) = (Unwritten::new(statements), HashSet::new());
    let mut all = Vec::new();
    for (object, whole) in objects.iter().zip(read) {
        let source = RowSource::new(statements, object.sequence, &object.metadata);
        let mut counts = Counts { records: whole.records, with_extra: whole.with_extra, ..Counts::default() };
        for row in whole.batches.iter().flat_map(Batch::rows) {
            let before = known.get(&row.id).copied();
            if before == Some(row.fields) {
                continue;
            }
            if ids.contains(&row.id) {
                ids.clear();
                if !unwritten.merge(connection).await? {
                    return Ok(None);
                }
            }
            unwritten.push(&row, source);
            ids.insert(row.id.clone());
            known.insert(row.id, row.fields);
            *(if before.is_some() { &mut counts.updated } else { &mut counts.inserted }) += 1;
        }
        all.push(counts);
    }
    Ok(unwritten.merge(connection).await?.then_some(all))
}

/// The rows that there are of all ids, `None` where they are too long.
async fn stored(
    connection: &mut PgConnection,
    read: &[Whole],
    statements: &'static Statements,
) -> Result<Option<Rows>, TableError> {
    let mut rows: Vec<Row<'_>> = read.iter().flat_map(|whole| &whole.batches).flat_map(Batch::rows).collect();
    rows.sort_by(|one, other| one.id.cmp(&other.id));
    rows.dedup_by(|one, other| one.id == other.id);
    let mut stored = Rows::new(statements.columns[0]);
    let select = async {
        let ids = Column { rows: &rows, at: 0, column: statements.columns[0] };
        let mut found = sqlx::query(statements.select).bind(ids).fetch(connection);
        while let Some(there) = found.try_next().await? {
            for at in 0..statements.columns.len() {
                let value = there.try_get_raw(at)?;
                let value = if value.is_null() { None } else { Some(value.as_bytes().map_err(sqlx::Error::Decode)?) };
                stored.fields().put_raw(value);
            }
            stored.end();
            if stored.bytes() > STORED_BYTES {
                return Ok(None);
            }
        }
        Ok(Some(stored))
    };
    within("compare rows with those in", select).await
}
