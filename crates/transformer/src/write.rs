//! A batch into its table. The rows of its ids are read and compared here, which costs less than to send all for comparison; then changed
//! ones are updated and new ones copied. Nobody writes between, since the stream's row is locked. A small batch is one statement,
//! MERGE, and so is each part of one in which Postgres refuses something.

use std::{iter, ops::RangeInclusive, time::Duration};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use shared::{
    crash_point,
    object::{Metadata, Sequence},
    records::Record,
};
use sqlx::{
    Executor, PgConnection, Postgres, Row as _, ValueRef,
    postgres::{PgArguments, PgCopyIn, PgRow},
    query::Query,
};
use tokio::time::Instant;

use crate::{
    batch::{Batch, Pieces},
    connect::{within, within_since},
    copy::{HEADER, TRAILER, encode_rows},
    fault::{Fault, TableError},
    ledger::to_bigint,
    parameter::{Column, Time},
    record_type::{NoRow, Statements, WrongRecord},
    row::{Id, Row},
};

/// From so many rows on it pays to compare them here. Fewer are one round trip with MERGE, and of a small COPY the end may wait 40 ms for an
/// acknowledgement, since sqlx sets no `TCP_NODELAY`.
const MANY_ROWS: usize = 500;

/// A range of ids with this many times as many numbers as rows is still read as a whole: in order, without a look for each.
const DENSE: u64 = 2;

/// How many rows are encoded at a time.
const COPY_PART_ROWS: usize = 500;

/// A COPY takes further batches for so long, and waits for them: far below the time that the server gives a statement, and less than a
/// client may be silent.
const COPY_FOR: Duration = Duration::from_secs(5);

/// The object that rows come from, and how they are written.
#[derive(Clone, Copy, Debug)]
pub struct RowSource {
    statements: &'static Statements,
    sequence: i64,
    fetched_at: Timestamp,
}

impl RowSource {
    /// The object with this number and metadata.
    pub fn new(statements: &'static Statements, sequence: Sequence, metadata: &Metadata) -> Self {
        Self { statements, sequence: to_bigint(sequence.get()), fetched_at: metadata.fetched_at }
    }
}

/// Rows that this backend has written, rolled back or not.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// New ones.
    pub inserted: i64,
    /// Changed ones.
    pub updated: i64,
}

impl Written {
    /// Reads the columns of these names.
    pub fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { inserted: row.try_get("inserted")?, updated: row.try_get("updated")? })
    }
}

/// Writes the rows of an object, batch after batch.
#[derive(Debug)]
pub struct Writer {
    source: RowSource,
    /// Whether all rows of the last batch were changed ones, so that the next is not compared first.
    expects_changes: bool,
}

impl Writer {
    /// For the object that rows come from.
    pub fn new(source: RowSource) -> Self {
        Self { source, expects_changes: false }
    }

    /// Writes the rows of a batch. Of many, changed ones come before new ones, as they may make room for them in a unique index of
    /// somebody's own.
    ///
    /// Batches of `pieces` that lie between the same rows as the new ones are new too: they are taken, and written in the same COPY.
    pub async fn write(
        &mut self,
        connection: &mut PgConnection,
        batch: Batch,
        pieces: &mut Pieces,
    ) -> Result<(), TableError> {
        let rows = batch.rows();
        if rows.len() < MANY_ROWS {
            return merge(connection, &rows, self.source).await;
        }
        let all = rows.len() as u64;
        let is_updated = self.expects_changes;
        if is_updated && update(connection, &rows, self.source).await? == all {
            return Ok(());
        }
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(()) };
        let ids = first.id.clone().into_owned()..=last.id.clone().into_owned();
        let Compared { new, perhaps_changed } = compare(connection, rows, self.source.statements).await?;
        self.expects_changes = !is_updated && update(connection, &perhaps_changed, self.source).await? == all;
        if new.len() < MANY_ROWS {
            merge(connection, &new, self.source).await
        } else {
            let gap = Gap::around(connection, ids, self.source.statements).await?;
            let mut copy = OpenCopy::begin(connection, self.source).await?;
            copy.send(&new).await?;
            // A COPY goes on for seconds: kept so long, this one would be a fourth batch in memory.
            drop(new);
            drop(batch);
            copy.send_those_in(gap, pieces).await?;
            copy.finish().await
        }
    }
}

/// What a batch holds, beside the rows of its ids. Equal ones are left out.
#[derive(Debug, Default)]
struct Compared<'a> {
    new: Vec<Row<'a>>,
    /// Different bytes can be equal values: only Postgres can tell.
    perhaps_changed: Vec<Row<'a>>,
}

async fn compare<'a>(
    connection: &mut PgConnection,
    rows: Vec<Row<'a>>,
    statements: &Statements,
) -> Result<Compared<'a>, TableError> {
    let mut compared = Compared::default();
    let (Some(Row { id: first, .. }), Some(Row { id: last, .. })) = (rows.first(), rows.last()) else {
        return Ok(compared);
    };
    let is_dense = match (first, last) {
        (Id::Number(first), Id::Number(last)) => last.abs_diff(*first) < DENSE * rows.len() as u64,
        _ => false,
    };
    let look = match statements.select_between {
        Some(between) if is_dense => sqlx::query(between).bind(first.clone()).bind(last.clone()),
        _ => sqlx::query(statements.select).bind(Column { rows: &rows, at: 0, column: statements.columns[0] }),
    };
    let compare = async {
        let mut stored = look.fetch(connection);
        let mut rows = rows.iter().cloned().peekable();
        while let Some(there) = stored.try_next().await? {
            let id = Id::of(statements.columns[0], there.try_get_raw(0)?.as_bytes().map_err(sqlx::Error::Decode)?);
            compared.new.extend(iter::from_fn(|| rows.next_if(|row| row.id < id)));
            if let Some(row) = rows.next_if(|row| row.id == id)
                && may_differ(&row, &there)?
            {
                compared.perhaps_changed.push(row);
            }
        }
        compared.new.extend(rows);
        Ok(compared)
    };
    within("compare rows with those in", compare).await
}

fn may_differ(row: &Row<'_>, there: &PgRow) -> Result<bool, sqlx::Error> {
    for (at, value) in row.values().enumerate() {
        let stored = there.try_get_raw(at)?;
        let is_equal = match value {
            None => stored.is_null(),
            Some(value) => !stored.is_null() && stored.as_bytes().map_err(sqlx::Error::Decode)? == value,
        };
        if !is_equal {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where the table has no rows but those of the batches that were written last.
#[derive(Debug)]
struct Gap {
    written: RangeInclusive<Id<'static>>,
    /// The nearest rows.
    below: Option<Id<'static>>,
    above: Option<Id<'static>>,
}

impl Gap {
    async fn around(
        connection: &mut PgConnection,
        written: RangeInclusive<Id<'static>>,
        statements: &Statements,
    ) -> Result<Self, TableError> {
        const DOING: &str = "look for the nearest rows in";
        let look = sqlx::query(statements.select_neighbours).bind(written.start().clone()).bind(written.end().clone());
        let row = within(DOING, look.fetch_one(connection)).await?;
        let neighbour = |at: usize| -> Result<_, sqlx::Error> {
            let id = row.try_get_raw(at)?;
            if id.is_null() {
                return Ok(None);
            }
            let id = id.as_bytes().map_err(sqlx::Error::Decode)?;
            Ok(Some(Id::of(statements.columns[0], id).into_owned()))
        };
        let read = || Ok((neighbour(0)?, neighbour(1)?));
        let (below, above) = read().map_err(|source| TableError::Sql { doing: DOING, source })?;
        Ok(Self { written, below, above })
    }

    /// Whether all of these are new, as they lie beside what was written. If so, they are counted as written.
    fn takes(&mut self, ids: &RangeInclusive<Id<'_>>) -> bool {
        let is_above = ids.start() > self.written.end() && self.above.as_ref().is_none_or(|above| ids.end() < above);
        let is_below = ids.end() < self.written.start() && self.below.as_ref().is_none_or(|below| ids.start() > below);
        if is_above {
            self.written = self.written.start().clone()..=ids.end().clone().into_owned();
        } else if is_below {
            self.written = ids.start().clone().into_owned()..=self.written.end().clone();
        }
        is_above || is_below
    }
}

/// A COPY of new rows that has begun.
struct OpenCopy<'a> {
    postgres: PgCopyIn<&'a mut PgConnection>,
    begun: Instant,
    source: RowSource,
    /// What is sent next.
    bytes: Vec<u8>,
}

impl<'a> OpenCopy<'a> {
    const DOING: &'static str = "copy rows into";

    async fn begin(connection: &'a mut PgConnection, source: RowSource) -> Result<Self, TableError> {
        let begun = Instant::now();
        let postgres = within_since(begun, Self::DOING, connection.copy_in_raw(source.statements.copy)).await?;
        Ok(Self { postgres, begun, source, bytes: HEADER.to_vec() })
    }

    /// In parts, so that Postgres has something to do while the next one is encoded.
    async fn send(&mut self, rows: &[Row<'_>]) -> Result<(), TableError> {
        let RowSource { statements, fetched_at, sequence } = self.source;
        let send = async {
            for part in rows.chunks(COPY_PART_ROWS) {
                encode_rows(&mut self.bytes, statements.columns.len(), part, fetched_at, sequence);
                self.postgres.send(self.bytes.as_slice()).await?;
                self.bytes.clear();
            }
            Ok(())
        };
        within_since(self.begun, Self::DOING, send).await
    }

    /// Sends the next batches as long as the gap takes them.
    async fn send_those_in(&mut self, mut gap: Gap, pieces: &mut Pieces) -> Result<(), TableError> {
        loop {
            let left = COPY_FOR.saturating_sub(self.begun.elapsed());
            // A batch that is there is taken however short the wait.
            if left.is_zero() {
                return Ok(());
            }
            let is_taken = |batch: &Batch| batch.wrong.is_empty() && batch.ids().is_some_and(|ids| gap.takes(&ids));
            let Some(batch) = pieces.next_batch_if(left, is_taken).await else { return Ok(()) };
            self.send(&batch.rows()).await?;
        }
    }

    async fn finish(mut self) -> Result<(), TableError> {
        let finish = async {
            self.postgres.send(TRAILER).await?;
            self.postgres.finish().await
        };
        within_since(self.begun, Self::DOING, finish).await?;
        Ok(())
    }
}

/// How many of them were there and are changed.
async fn update(connection: &mut PgConnection, rows: &[Row<'_>], source: RowSource) -> Result<u64, TableError> {
    if rows.is_empty() {
        return Ok(0);
    }
    let update = columns(source.statements.update, source.statements, rows);
    let update = update.bind(Time(source.fetched_at)).bind(source.sequence);
    Ok(within("update rows in", update.execute(connection)).await?.rows_affected())
}

/// Inserts, updates or leaves each, in the order of their ids.
async fn merge(connection: &mut PgConnection, rows: &[Row<'_>], source: RowSource) -> Result<(), TableError> {
    merge_of(connection, rows, &vec![source; rows.len()]).await?;
    Ok(())
}

/// Inserts, updates or leaves each, in this order. How many were not left.
pub async fn merge_of(
    connection: &mut PgConnection,
    rows: &[Row<'_>],
    sources: &[RowSource],
) -> Result<u64, TableError> {
    // Statement triggers of somebody's own would run, and could fail for ever.
    let Some(RowSource { statements, .. }) = sources.first() else { return Ok(0) };
    let merge = columns(statements.merge, statements, rows)
        .bind(sources.iter().map(|source| Time(source.fetched_at)).collect::<Vec<_>>())
        .bind(sources.iter().map(|source| source.sequence).collect::<Vec<_>>());
    Ok(within("merge rows into", merge.execute(connection)).await?.rows_affected())
}

fn columns<'q>(
    statement: &'static str,
    statements: &Statements,
    rows: &'q [Row<'q>],
) -> Query<'q, Postgres, PgArguments> {
    let columns = statements.columns.iter().enumerate();
    columns.fold(sqlx::query(statement), |query, (at, column)| query.bind(Column { rows, at, column: *column }))
}

/// Writes rows of which Postgres refuses some, by a constraint or trigger of somebody's own or a value that it cannot hold: what fails is
/// rolled back and halved until the culprits stand alone, and they move to the batch's wrong records. What failed is added to
/// `written_before`, since the server counts it as written.
pub async fn write_carefully(
    connection: &mut PgConnection,
    batch: &mut Batch,
    source: RowSource,
    written_before: &mut Written,
) -> Result<(), TableError> {
    let mut refused = Vec::new();
    let mut rows = batch.rows();
    while !rows.is_empty() {
        // A row that a refused one would have superseded counts after all.
        let mut superseded = Vec::new();
        let mut parts = vec![rows.as_slice()];
        while let Some(part) = parts.pop() {
            within("set a savepoint in", connection.execute("SAVEPOINT part")).await?;
            let before = written(connection, source).await?;
            match merge(connection, part, source).await {
                Ok(()) => {
                    within("release a savepoint in", connection.execute("RELEASE SAVEPOINT part")).await?;
                }
                // Too slow is no record's fault: it is only written in smaller parts.
                Err(error) if error.fault() == Fault::Record || (error.is_too_slow() && part.len() > 1) => {
                    // Released too: left in place, each would be one more level of subtransactions, with a lock in a table that the whole
                    // cluster shares.
                    let roll_back = connection.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part");
                    within("roll back to a savepoint in", roll_back).await?;
                    crash_point!("part-refused");
                    let after = written(connection, source).await?;
                    written_before.inserted += after.inserted - before.inserted;
                    written_before.updated += after.updated - before.updated;
                    if let [culprit] = part {
                        let reason = format!("Postgres refuses it: {}", error.database_message());
                        refused.push((culprit.index, NoRow { id: culprit.id.as_number(), reason }));
                        superseded.extend(batch.superseded_by(culprit));
                    } else {
                        let (first, second) = part.split_at(part.len() / 2);
                        parts.extend([second, first]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        rows = superseded;
    }
    for (index, why) in refused {
        let raw = batch.records.get(&index).expect("records are kept where batches are written carefully");
        batch.wrong.push(WrongRecord::new(Record { index, raw, is_whole: true }, why));
    }
    Ok(())
}

async fn written(connection: &mut PgConnection, source: RowSource) -> Result<Written, TableError> {
    const DOING: &str = "count rows in";
    let count = sqlx::query(include_str!("sql/select_written.sql")).bind(source.statements.table);
    let row = within(DOING, count.fetch_one(connection)).await?;
    Written::of(&row).map_err(|source| TableError::Sql { doing: DOING, source })
}

/// Writes the records that are no rows.
pub async fn write_wrong_records(
    connection: &mut PgConnection,
    records: &[WrongRecord],
    source: RowSource,
) -> Result<(), TableError> {
    if records.is_empty() {
        return Ok(());
    }
    let insert = sqlx::query(include_str!("sql/insert_quarantined_records.sql"))
        .bind(source.sequence)
        .bind(column(records, |record| to_bigint(record.index)))
        .bind(column(records, |record| record.id))
        .bind(column(records, |record| record.reason.as_str()))
        .bind(column(records, |record| record.raw.as_slice()));
    within("quarantine records in", insert.execute(connection)).await?;
    Ok(())
}

fn column<'a, T>(records: &'a [WrongRecord], value: impl Fn(&'a WrongRecord) -> T) -> Vec<T> {
    records.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record_type::RecordType as _, row::Fields};

    #[test]
    fn a_gap_takes_what_lies_between_its_rows_and_what_was_written() {
        let ids = |from, to| Id::Number(from)..=Id::Number(to);
        let mut gap = Gap { written: ids(10, 20), below: Some(Id::Number(0)), above: Some(Id::Number(50)) };
        for (from, to, is_taken) in [
            (15, 25, false),
            (20, 25, false),
            (21, 50, false),
            (0, 9, false),
            (5, 10, false),
            (21, 30, true),
            (22, 23, false),
            (31, 49, true),
            (1, 9, true),
            (1, 1, false),
        ] {
            assert_eq!(gap.takes(&ids(from, to)), is_taken, "{from} to {to}");
        }
        let mut whole = Gap { written: ids(0, 0), below: None, above: None };
        assert!(whole.takes(&ids(1, i64::MAX)) && whole.takes(&ids(i64::MIN, -1)));
    }

    #[test]
    fn what_a_statement_is_bound_to_costs_no_allocation_a_row() {
        let statements = &crate::post::STATEMENTS;
        let mut fields = Vec::new();
        let json = br#"{"id":1,"userId":1,"title":"t","body":"b"}"#;
        crate::post::Type.read(json, &mut Fields(&mut fields)).unwrap();
        let count = |number| {
            let rows: Vec<_> = (0..number).map(|index| Row::new(index, statements.columns[0], &fields)).collect();
            allocation_counter::measure(|| drop(columns("", statements, &rows))).count_total
        };
        // Only buffers that double.
        assert!(count(8_000) <= count(1_000) + 10, "{} and {}", count(8_000), count(1_000));
    }
}
