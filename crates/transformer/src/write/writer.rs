//! The batches of a run into their table. One statement upserts the rows of batches that have each id once, and says what became of those of
//! each object. Of a long batch the rows of its ids are read and compared here, which costs less than to send all for comparison; then
//! changed ones are updated and new ones copied. Nobody writes between, since the stream's row is locked.

use std::{collections::HashMap, iter, mem};

use futures_util::TryStreamExt;
use shared::{crash_point, object::Sequence, records::Record};
use sqlx::{
    Executor, PgConnection, Postgres, Row as _, ValueRef,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use crate::{
    postgres::{
        connect::within,
        fault::{Fault, TableError},
    },
    read::{
        batch::Batch,
        record::{NoRow, WrongRecord},
        row::{Key, Row, text_of, to_bigint},
        table_definition::Kind,
    },
    write::{
        copy::{HEADER, TRAILER, encode_rows},
        ledger::Counts,
        parameter::{Column, Time},
        statements::{Statement, Statements},
    },
};

/// From this many rows of an object on it pays to compare them here. Fewer are one round trip, and of a small COPY the end may wait 40 ms for an
/// acknowledgement, since sqlx sets no `TCP_NODELAY`.
const MANY_ROWS: usize = 500;

/// A range of ids with this many times as many numbers as rows is still read as a whole: in order, without a look for each.
const DENSE: u64 = 2;

/// Records of a run that wait to be written by one statement: each costs memory several times.
const MOST_WAITING: usize = 8_000;

/// How many rows are encoded at a time.
const COPY_PART_ROWS: usize = 500;

/// How a run is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// What Postgres refuses fails the transaction.
    None,
    /// The records that it refuses are found and quarantined, at the price of a savepoint a batch. The run has one object.
    EachRecord,
}

/// Writes the records of a run, batch after batch.
#[derive(Debug)]
pub struct Writer<'a> {
    statements: &'a Statements,
    care: Care,
    /// The objects of the run, and what each has done so far.
    counts: Vec<(Sequence, Counts)>,
    /// Batches that are to be written by one statement: no two of them have an id in common.
    waiting: Vec<Batch>,
    /// How many records are in them.
    records: usize,
    /// The last row of each id in the run, where rows of several objects may be written by one statement: the same again changes nothing.
    known: Option<HashMap<Vec<u8>, Known>>,
    /// Whether all rows of the last batch were changed ones, so that the next is not compared first.
    expects_changes: bool,
}

/// A row of the run.
#[derive(Debug)]
struct Known {
    fields: Vec<u8>,
    is_waiting: bool,
}

impl<'a> Writer<'a> {
    /// For the objects of a run. If the table `is_plain`, rows of several of them may be written by one statement.
    pub fn new(statements: &'a Statements, care: Care, is_plain: bool, run: impl Iterator<Item = Sequence>) -> Self {
        let counts = run.map(|sequence| (sequence, Counts::default())).collect();
        let known = is_plain.then(HashMap::new);
        Self { statements, care, counts, waiting: Vec::new(), records: 0, known, expects_changes: false }
    }

    /// What the object has done so far.
    pub fn counts(&mut self, sequence: Sequence) -> &mut Counts {
        let of_run = self.counts.iter_mut().find(|(of, _)| *of == sequence);
        &mut of_run.expect("each batch comes from an object of the run").1
    }

    /// Takes the next batch, in the order of the archive, and writes what must not wait with it: an id that comes again is written by another
    /// statement, so that each row goes through all that it would go through if its object were applied alone.
    pub async fn take(&mut self, connection: &mut PgConnection, mut batch: Batch) -> Result<(), TableError> {
        let is_last = self.counts.last().is_some_and(|(last, _)| *last == batch.sequence());
        if let Some(known) = &self.known {
            let mut comes_again = false;
            batch.retain(|row| {
                let before = known.get(row.id());
                let is_kept = before.is_none_or(|before| before.fields != row.fields);
                comes_again |= is_kept && before.is_some_and(|before| before.is_waiting);
                is_kept
            });
            if comes_again || self.records + batch.records() > MOST_WAITING {
                self.write(connection).await?;
            }
        }
        if let Some(known) = &mut self.known {
            let row = |row: &Row<'_>| (row.id().to_owned(), Known { fields: row.fields.to_owned(), is_waiting: true });
            known.extend(batch.rows().iter().map(row));
        }
        self.records += batch.records();
        self.waiting.push(batch);
        if is_last || self.known.is_none() { self.write(connection).await } else { Ok(()) }
    }

    /// Writes what waits.
    pub async fn write(&mut self, connection: &mut PgConnection) -> Result<(), TableError> {
        self.records = 0;
        if let Some(known) = &mut self.known {
            if known.len() > MOST_WAITING {
                // What is not known is only asked of Postgres again.
                known.clear();
            }
            for row in known.values_mut() {
                row.is_waiting = false;
            }
        }
        let mut batches = mem::take(&mut self.waiting);
        match batches.as_mut_slice() {
            [] => return Ok(()),
            [batch] if self.care == Care::EachRecord => self.write_carefully(connection, batch).await?,
            [batch] => self.write_batch(connection, batch).await?,
            several => {
                let rows: Vec<_> = several.iter().flat_map(Batch::rows).collect();
                self.upsert(connection, &rows).await?;
            }
        }
        crash_point!("rows-written");
        for batch in &batches {
            let counts = self.counts(batch.sequence());
            counts.repeated += batch.repeated();
            counts.quarantined += batch.wrong.len() as u64;
        }
        quarantine(connection, &batches, self.statements.kinds[0]).await?;
        crash_point!("batch-written");
        Ok(())
    }

    /// Of many rows, changed ones come before new ones, as they may make room for them in a unique index that a user added.
    async fn write_batch(&mut self, connection: &mut PgConnection, batch: &Batch) -> Result<(), TableError> {
        let rows = batch.rows();
        if rows.len() < MANY_ROWS {
            return self.upsert(connection, &rows).await;
        }
        let all = rows.len() as u64;
        let is_updated = self.expects_changes;
        if is_updated && self.update(connection, &rows).await? == all {
            return Ok(());
        }
        let Compared { new, perhaps_changed } = compare(connection, rows, self.statements).await?;
        self.expects_changes = !is_updated && self.update(connection, &perhaps_changed).await? == all;
        if new.len() < MANY_ROWS { self.upsert(connection, &new).await } else { self.copy(connection, &new).await }
    }

    /// Inserts, updates or leaves each.
    async fn upsert(&mut self, connection: &mut PgConnection, rows: &[Row<'_>]) -> Result<(), TableError> {
        const DOING: &str = "upsert rows into";
        // A statement trigger that a user added would run, and could fail each time.
        if rows.is_empty() {
            return Ok(());
        }
        let upsert = columns(&self.statements.upsert, self.statements, rows)
            .bind(rows.iter().map(|row| Time(row.origin.fetched_at)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| to_bigint(row.origin.sequence.get())).collect::<Vec<_>>());
        for written in within(DOING, upsert.fetch_all(connection)).await? {
            let read = || -> Result<(i64, i64, i64), sqlx::Error> {
                Ok((written.try_get("number")?, written.try_get("inserted")?, written.try_get("updated")?))
            };
            let (sequence, inserted, updated) = read().map_err(|source| TableError::Sql { doing: DOING, source })?;
            let of_run = self.counts.iter_mut().find(|(of, _)| to_bigint(of.get()) == sequence);
            // A trigger that a user added may have written another number.
            if let Some((_, counts)) = of_run {
                counts.inserted += inserted.unsigned_abs();
                counts.updated += updated.unsigned_abs();
            }
        }
        Ok(())
    }

    /// How many of one object's rows were there and are changed.
    async fn update(&mut self, connection: &mut PgConnection, rows: &[Row<'_>]) -> Result<u64, TableError> {
        let Some(Row { origin, .. }) = rows.first() else { return Ok(0) };
        let update = columns(&self.statements.update, self.statements, rows);
        let update = update.bind(Time(origin.fetched_at)).bind(to_bigint(origin.sequence.get()));
        let updated = within("update rows in", update.execute(connection)).await?.rows_affected();
        self.counts(origin.sequence).updated += updated;
        Ok(updated)
    }

    /// New rows of one object, in parts, so that Postgres has something to do while the next one is encoded.
    async fn copy(&mut self, connection: &mut PgConnection, rows: &[Row<'_>]) -> Result<(), TableError> {
        let Some(Row { origin, .. }) = rows.first() else { return Ok(()) };
        let copy = async {
            let mut postgres = connection.copy_in_raw(&self.statements.copy).await?;
            let mut bytes = HEADER.to_vec();
            for part in rows.chunks(COPY_PART_ROWS) {
                encode_rows(&mut bytes, self.statements.kinds.len(), part);
                postgres.send(bytes.as_slice()).await?;
                bytes.clear();
            }
            postgres.send(TRAILER).await?;
            postgres.finish().await
        };
        let inserted = within("copy rows into", copy).await?;
        self.counts(origin.sequence).inserted += inserted;
        Ok(())
    }

    /// Writes rows of which Postgres refuses some, by a constraint or trigger that a user added or a value that it cannot hold: what fails is
    /// rolled back and halved until the culprits stand alone, and they move to the batch's wrong records.
    async fn write_carefully(&mut self, connection: &mut PgConnection, batch: &mut Batch) -> Result<(), TableError> {
        let mut refused = Vec::new();
        let mut rows = batch.rows();
        while !rows.is_empty() {
            // A row that a refused one would have superseded counts after all.
            let mut superseded = Vec::new();
            let mut parts = vec![rows.as_slice()];
            while let Some(part) = parts.pop() {
                within("set a savepoint in", connection.execute("SAVEPOINT part")).await?;
                match self.upsert(connection, part).await {
                    Ok(()) => {
                        within("release a savepoint in", connection.execute("RELEASE SAVEPOINT part")).await?;
                    }
                    // Too slow is no record's fault: it is only written in smaller parts.
                    Err(error) if error.fault() == Fault::Record || (error.is_too_slow() && part.len() > 1) => {
                        // Released too: left in place, each would be one more level of subtransactions, with a lock in a table that the
                        // whole cluster shares.
                        let roll_back = connection.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part");
                        within("roll back to a savepoint in", roll_back).await?;
                        crash_point!("part-refused");
                        if let [culprit] = part {
                            let reason = format!("Postgres refuses it: {}", error.database_message());
                            let key = Some(culprit.key_value().to_vec());
                            refused.push((culprit.index, NoRow { key, reason }));
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
        _ => sqlx::query(statements.select.sql()).bind(Column { fields: rows.iter().map(Row::id).collect(), kind }),
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

/// An absent row does, as it is there again.
fn may_differ(row: &Row<'_>, there: &PgRow) -> Result<bool, sqlx::Error> {
    if there.try_get(there.len() - 1)? {
        return Ok(true);
    }
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

fn columns<'q>(statement: &Statement, statements: &Statements, rows: &[Row<'q>]) -> Query<'q, Postgres, PgArguments> {
    let mut rest: Vec<_> = rows.iter().map(Row::fields).collect();
    let mut bind = |query: Query<'q, Postgres, PgArguments>, kind: &Kind| {
        let fields = rest.iter_mut().map(|fields| fields.next().expect("a row has a field for each column")).collect();
        query.bind(Column { fields, kind: *kind })
    };
    statements.kinds.iter().fold(sqlx::query(statement.sql()), &mut bind)
}

/// Writes the records that are no rows.
async fn quarantine(connection: &mut PgConnection, batches: &[Batch], key: Kind) -> Result<(), TableError> {
    fn column<'a, T>(records: &[(Sequence, &'a WrongRecord)], value: impl Fn(&'a WrongRecord) -> T) -> Vec<T> {
        records.iter().map(|(_, record)| value(record)).collect()
    }
    let mut records = Vec::new();
    for batch in batches {
        records.extend(batch.wrong.iter().map(|record| (batch.sequence(), record)));
    }
    if records.is_empty() {
        return Ok(());
    }
    let insert = sqlx::query(include_str!("../sql/insert_quarantined_records.sql"))
        .bind(records.iter().map(|(sequence, _)| to_bigint(sequence.get())).collect::<Vec<_>>())
        .bind(column(&records, |record| to_bigint(record.index)))
        .bind(column(&records, |record| record.key.as_deref().map(|id| text_of(key, id))))
        .bind(column(&records, |record| record.reason.as_str()))
        .bind(column(&records, |record| record.raw.as_slice()));
    within("quarantine records in", insert.execute(connection)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{
        record::RecordReader,
        row::{Fields, Origin},
        table_definition::{Columns, TableDefinition},
    };

    #[test]
    fn what_a_statement_is_bound_to_costs_no_allocation_a_row() {
        let statements = &Statements::new(TableDefinition::default());
        let origin = Origin { sequence: Sequence::FIRST, fetched_at: jiff::Timestamp::UNIX_EPOCH };
        let mut fields = Vec::new();
        let json = br#"{"id":1,"userId":1,"title":"t","body":"b"}"#;
        RecordReader::new(Columns::default()).read(json, &mut Fields(&mut fields)).unwrap();
        let count = |number| {
            let rows: Vec<_> = (0..number).map(|index| Row::new(origin, index, statements.kinds[0], &fields)).collect();
            allocation_counter::measure(|| drop(columns(&statements.upsert, statements, &rows))).count_total
        };
        // Only buffers that double.
        assert!(count(8_000) <= count(1_000) + 10, "{} and {}", count(8_000), count(1_000));
    }
}
