//! A batch into its table. The rows of its ids are read and compared here, which costs less than to send all for comparison; then changed
//! ones are updated and new ones copied. Nobody writes between, since the stream's row is locked. A small batch is one statement,
//! MERGE, and so is each part of one in which Postgres refuses something.

use std::iter;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use shared::{
    crash_point,
    object::{Metadata, Sequence},
    records::Record,
};
use sqlx::{
    Executor, PgConnection, Postgres, Row as _, ValueRef,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use crate::{
    batch::Batch,
    connect::within,
    copy::{HEADER, TRAILER, encode_rows},
    fault::{Fault, TableError},
    ledger::to_bigint,
    parameter::{Column, Time},
    record::{NoRow, WrongRecord},
    row::{Key, Row},
    statements::{Statement, Statements},
};

/// From so many rows on it pays to compare them here. Fewer are one round trip with MERGE, and of a small COPY the end may wait 40 ms for an
/// acknowledgement, since sqlx sets no `TCP_NODELAY`.
const MANY_ROWS: usize = 500;

/// A range of ids with this many times as many numbers as rows is still read as a whole: in order, without a look for each.
const DENSE: u64 = 2;

/// How many rows are encoded at a time.
const COPY_PART_ROWS: usize = 500;

/// The object that rows come from, and how they are written.
#[derive(Clone, Copy, Debug)]
pub struct RowSource<'a> {
    statements: &'a Statements,
    sequence: i64,
    fetched_at: Timestamp,
}

impl<'a> RowSource<'a> {
    /// The object with this number and metadata.
    pub fn new(statements: &'a Statements, sequence: Sequence, metadata: &Metadata) -> Self {
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
pub struct Writer<'a> {
    source: RowSource<'a>,
    /// Whether all rows of the last batch were changed ones, so that the next is not compared first.
    expects_changes: bool,
}

impl<'a> Writer<'a> {
    /// For the object that rows come from.
    pub fn new(source: RowSource<'a>) -> Self {
        Self { source, expects_changes: false }
    }

    /// Writes the rows of a batch. Of many, changed ones come before new ones, as they may make room for them in a unique index of
    /// somebody's own.
    pub async fn write(&mut self, connection: &mut PgConnection, batch: &Batch) -> Result<(), TableError> {
        let rows = batch.rows();
        if rows.len() < MANY_ROWS {
            return merge(connection, &rows, self.source).await;
        }
        let all = rows.len() as u64;
        let is_updated = self.expects_changes;
        if is_updated && update(connection, &rows, self.source).await? == all {
            return Ok(());
        }
        let Compared { new, perhaps_changed } = compare(connection, rows, self.source.statements).await?;
        self.expects_changes = !is_updated && update(connection, &perhaps_changed, self.source).await? == all;
        if new.len() < MANY_ROWS {
            merge(connection, &new, self.source).await
        } else {
            copy(connection, &new, self.source).await
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
    let (Some(Row { key: first, .. }), Some(Row { key: last, .. })) = (rows.first(), rows.last()) else {
        return Ok(compared);
    };
    let kind = statements.kinds[0];
    let look = match (&statements.select_between, first, last) {
        (Some(between), Key::Number(first), Key::Number(last)) if last.abs_diff(*first) < DENSE * rows.len() as u64 => {
            sqlx::query(between.sql()).bind(*first).bind(*last)
        }
        _ => sqlx::query(statements.select.sql()).bind(Column { rows: &rows, at: 0, kind }),
    };
    let compare = async {
        let mut stored = look.fetch(connection);
        let mut rows = rows.iter().cloned().peekable();
        while let Some(there) = stored.try_next().await? {
            let key = Key::of(kind, there.try_get_raw(0)?.as_bytes().map_err(sqlx::Error::Decode)?);
            compared.new.extend(iter::from_fn(|| rows.next_if(|row| row.key < key)));
            if let Some(row) = rows.next_if(|row| row.key == key)
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

/// New rows, in parts, so that Postgres has something to do while the next one is encoded.
async fn copy(
    connection: &mut PgConnection,
    rows: &[Row<'_>],
    RowSource { statements, sequence, fetched_at }: RowSource<'_>,
) -> Result<(), TableError> {
    let copy = async {
        let mut postgres = connection.copy_in_raw(&statements.copy).await?;
        let mut bytes = HEADER.to_vec();
        for part in rows.chunks(COPY_PART_ROWS) {
            encode_rows(&mut bytes, statements.kinds.len(), part, fetched_at, sequence);
            postgres.send(bytes.as_slice()).await?;
            bytes.clear();
        }
        postgres.send(TRAILER).await?;
        postgres.finish().await
    };
    within("copy rows into", copy).await?;
    Ok(())
}

/// How many of them were there and are changed.
async fn update(connection: &mut PgConnection, rows: &[Row<'_>], source: RowSource<'_>) -> Result<u64, TableError> {
    if rows.is_empty() {
        return Ok(0);
    }
    let update = columns(&source.statements.update, source.statements, rows);
    let update = update.bind(Time(source.fetched_at)).bind(source.sequence);
    Ok(within("update rows in", update.execute(connection)).await?.rows_affected())
}

/// Inserts, updates or leaves each, in the order of their ids.
async fn merge(connection: &mut PgConnection, rows: &[Row<'_>], source: RowSource<'_>) -> Result<(), TableError> {
    merge_of(connection, rows, &vec![source; rows.len()]).await?;
    Ok(())
}

/// Inserts, updates or leaves each, in this order. How many were not left.
pub async fn merge_of(
    connection: &mut PgConnection,
    rows: &[Row<'_>],
    sources: &[RowSource<'_>],
) -> Result<u64, TableError> {
    // Statement triggers of somebody's own would run, and could fail for ever.
    let Some(RowSource { statements, .. }) = sources.first() else { return Ok(0) };
    let merge = columns(&statements.merge, statements, rows)
        .bind(sources.iter().map(|source| Time(source.fetched_at)).collect::<Vec<_>>())
        .bind(sources.iter().map(|source| source.sequence).collect::<Vec<_>>());
    Ok(within("merge rows into", merge.execute(connection)).await?.rows_affected())
}

fn columns<'q>(
    statement: &Statement,
    statements: &Statements,
    rows: &'q [Row<'q>],
) -> Query<'q, Postgres, PgArguments> {
    let kinds = statements.kinds.iter().enumerate();
    kinds.fold(sqlx::query(statement.sql()), |query, (at, kind)| query.bind(Column { rows, at, kind: *kind }))
}

/// Writes rows of which Postgres refuses some, by a constraint or trigger of somebody's own or a value that it cannot hold: what fails is
/// rolled back and halved until the culprits stand alone, and they move to the batch's wrong records. What failed is added to
/// `written_before`, since the server counts it as written.
pub async fn write_carefully(
    connection: &mut PgConnection,
    batch: &mut Batch,
    source: RowSource<'_>,
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
                        refused.push((
                            culprit.index,
                            NoRow { id: Some(culprit.key_text(source.statements.kinds[0])), reason },
                        ));
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

async fn written(connection: &mut PgConnection, source: RowSource<'_>) -> Result<Written, TableError> {
    const DOING: &str = "count rows in";
    let count = sqlx::query(include_str!("sql/select_written.sql")).bind(&source.statements.table);
    let row = within(DOING, count.fetch_one(connection)).await?;
    Written::of(&row).map_err(|source| TableError::Sql { doing: DOING, source })
}

/// Writes the records that are no rows.
pub async fn write_wrong_records(
    connection: &mut PgConnection,
    records: &[WrongRecord],
    source: RowSource<'_>,
) -> Result<(), TableError> {
    if records.is_empty() {
        return Ok(());
    }
    let insert = sqlx::query(include_str!("sql/insert_quarantined_records.sql"))
        .bind(source.sequence)
        .bind(column(records, |record| to_bigint(record.index)))
        .bind(column(records, |record| record.id.as_deref()))
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
    use crate::{
        record::RecordReader,
        row::Fields,
        table_definition::{Columns, TableDefinition},
    };

    #[test]
    fn what_a_statement_is_bound_to_costs_no_allocation_a_row() {
        let statements = &Statements::new(TableDefinition::default());
        let mut fields = Vec::new();
        let json = br#"{"id":1,"userId":1,"title":"t","body":"b"}"#;
        RecordReader::new(Columns::default()).read(json, &mut Fields(&mut fields)).unwrap();
        let count = |number| {
            let rows: Vec<_> = (0..number).map(|index| Row::new(index, statements.kinds[0], &fields)).collect();
            allocation_counter::measure(|| drop(columns(&statements.merge, statements, &rows))).count_total
        };
        // Only buffers that double.
        assert!(count(8_000) <= count(1_000) + 10, "{} and {}", count(8_000), count(1_000));
    }
}
