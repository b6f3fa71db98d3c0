//! The stream's row and the ledger: where the table stands, and what became of each object.

use shared::{
    crash_point,
    object::{Metadata, Sequence, Sha256, StreamName},
};
use sqlx::{PgConnection, Postgres, Row, Transaction, postgres::PgRow};
use uuid::Uuid;

use crate::{
    bundle::Small, connect::within, decide::Position, fault::TableError, parameter::Time, statements::Statements,
    table_definition::TableDefinition, write::Written,
};

const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A line of the ledger: an object that the table has moved past.
#[derive(Clone, Copy, Debug)]
pub struct LedgerLine<'a> {
    /// The object's number.
    pub sequence: Sequence,
    /// What the object says of itself; `None` for one that is missing, or that says nothing that fits.
    pub metadata: Option<&'a Metadata>,
    /// The archive, which a missing object cannot name.
    pub archive_id: Uuid,
    /// Its length, as far as it was read.
    pub bytes: Option<u64>,
    /// `loaded`, `quarantined` or `skipped`.
    pub outcome: &'static str,
    /// Why it is not loaded, for a person.
    pub reason: Option<&'a str>,
}

/// What an object did to the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The elements of the document.
    pub records: u64,
    /// New rows.
    pub inserted: u64,
    /// Changed rows.
    pub updated: u64,
    /// Records that are no rows, or that Postgres refuses.
    pub quarantined: u64,
    /// Records with members that no column is there for.
    pub with_extra: u64,
    /// Records whose id came again within what was applied together: the last of each id is the row.
    pub repeated: u64,
}

/// What a session means by the names in its statements, so that nothing is written into another stream's tables.
#[derive(Clone, Copy, Debug)]
pub struct Home<'a> {
    /// The stream.
    pub stream: &'a StreamName,
    /// Its schema.
    pub schema: &'a str,
    /// What is done with the table that its records go into.
    pub statements: &'a Statements,
}

impl Home<'_> {
    /// Behind a pooler that shares sessions, what was set up is not what is met.
    fn check(&self, row: &PgRow) -> Result<(), TableError> {
        let read =
            || -> Result<(String, Option<String>), sqlx::Error> { Ok((row.try_get("name")?, row.try_get("schema")?)) };
        let (found, schema) = read().map_err(|source| TableError::Sql { doing: "read the stream in", source })?;
        if schema.as_deref() != Some(self.schema) {
            let found = schema.unwrap_or_else(|| "none".to_owned());
            return Err(TableError::OtherSession { found, ours: self.schema.to_owned() });
        }
        let ours = self.stream.to_string();
        if found != ours {
            return Err(TableError::OtherStream { found, ours });
        }
        let definition = definition_of(row)?;
        if definition.as_ref() == Some(&self.statements.definition) {
            return Ok(());
        }
        Err(TableError::OtherDefinition { found: definition, ours: self.statements.definition.clone() })
    }
}

/// What the table was made from; `None` where there is no table yet.
pub fn definition_of(stream: &PgRow) -> Result<Option<TableDefinition>, TableError> {
    let read = || -> Result<_, sqlx::Error> {
        let (table, columns): (Option<String>, Option<String>) =
            (stream.try_get("table_name")?, stream.try_get("table_columns")?);
        let (Some(table), Some(columns)) = (table, columns) else { return Ok(None) };
        let table_columns = columns.parse().map_err(|error| sqlx::Error::Decode(Box::new(error) as _))?;
        Ok(Some(TableDefinition { table, table_columns }))
    };
    read().map_err(|source| TableError::Sql { doing: "read the table's definition in", source })
}

/// Where the table stands; `None` when nothing is applied.
pub async fn read_position(connection: &mut PgConnection, home: Home<'_>) -> Result<Option<Position>, TableError> {
    const DOING: &str = "read the position in";
    let read =
        sqlx::query(include_str!("sql/select_position.sql")).bind(&home.statements.table).fetch_optional(connection);
    let row = within(DOING, read).await.map_err(TableError::of_our_tables)?.ok_or(TableError::NoStream)?;
    home.check(&row)?;
    let read = || Ok((row.try_get::<Option<bool>, _>("is_hidden")?, position_of(&row)?));
    match read().map_err(|source| TableError::Sql { doing: DOING, source })? {
        (None, _) => Err(TableError::NoStream),
        (Some(true), _) => Err(TableError::Hidden),
        (Some(false), position) => Ok(position),
    }
}

fn position_of(row: &PgRow) -> Result<Option<Position>, sqlx::Error> {
    let number = row.try_get::<i64, _>("position")?.unsigned_abs();
    let Ok(sequence) = Sequence::try_from(number) else { return Ok(None) };
    Ok(Some(Position {
        sequence,
        // The table's own constraint says that it is there beside a position.
        archive_id: row.try_get("archive_id")?,
        observation: row.try_get("previous")?,
        sha256: row.try_get::<Option<_>, _>("sha256")?.map(Sha256),
    }))
}

/// What the stream's row says to whoever wants to lock it.
#[derive(Clone, Copy, Debug)]
pub enum Lock {
    /// It is ours until the transaction ends.
    Taken {
        /// The rows that this backend wrote before.
        written: Written,
        /// Whether what is written to the table may do more than that, or be refused at the end of a statement or transaction.
        has_triggers: bool,
    },
    /// Another transformer has it.
    Busy,
    /// The position is another one than expected.
    Moved,
}

/// Takes the stream's row, if nobody has it and it says what is expected. Where `more_follow`, COMMIT will not wait for the disk.
pub async fn lock(
    transaction: &mut Transaction<'_, Postgres>,
    home: Home<'_>,
    expected: Option<&Position>,
    more_follow: bool,
) -> Result<Lock, TableError> {
    const DOING: &str = "lock the stream in";
    let locked = sqlx::query(include_str!("sql/lock_stream.sql"))
        .bind(more_follow)
        .bind(&home.statements.table)
        .fetch_one(&mut **transaction);
    let row = match within(DOING, locked).await {
        Err(error) if error.sqlstate().as_deref() == Some(LOCK_NOT_AVAILABLE) => return Ok(Lock::Busy),
        locked => locked.map_err(TableError::of_our_tables)?,
    };
    home.check(&row)?;
    let read = || -> Result<_, sqlx::Error> {
        let found: (i64, Option<Uuid>) = (row.try_get("position")?, row.try_get("previous")?);
        Ok((found, Lock::Taken { written: Written::of(&row)?, has_triggers: row.try_get("has_triggers")? }))
    };
    let (found, taken) = read().map_err(|source| TableError::Sql { doing: DOING, source })?;
    let expected = expected.map_or((0, None), |position| (to_bigint(position.sequence.get()), position.observation));
    Ok(if found == expected { taken } else { Lock::Moved })
}

/// Writes the object's line and moves the position to it. Answers with what the transaction did to the rows.
pub async fn advance(
    transaction: &mut Transaction<'_, Postgres>,
    home: Home<'_>,
    line: &LedgerLine<'_>,
    counts: Counts,
    written_before: Written,
) -> Result<Counts, TableError> {
    const DOING: &str = "write the ledger and the position of";
    let advance = sqlx::query(include_str!("sql/advance_position.sql"))
        .bind(to_bigint(line.sequence.get()))
        .bind(line.sequence.key(home.stream))
        .bind(line.metadata.map(|metadata| metadata.sha256.0))
        .bind(line.metadata.map(|metadata| metadata.observation))
        .bind(line.bytes.map(to_bigint))
        .bind(line.metadata.map(|metadata| Time(metadata.fetched_at)))
        .bind(line.outcome)
        .bind(line.reason)
        .bind(to_bigint(counts.records))
        .bind(to_bigint(counts.quarantined))
        .bind(to_bigint(counts.with_extra))
        .bind(written_before.inserted)
        .bind(written_before.updated)
        .bind(line.archive_id)
        .bind(&home.statements.table)
        .bind(to_bigint(counts.repeated));
    let row = within(DOING, advance.fetch_one(&mut **transaction)).await.map_err(TableError::of_our_tables)?;
    let written = Written::of(&row).map_err(|source| TableError::Sql { doing: DOING, source })?;
    crash_point!("position-advanced");
    Ok(Counts { inserted: written.inserted.unsigned_abs(), updated: written.updated.unsigned_abs(), ..counts })
}

/// Writes a line for each of the loaded objects, and moves the position to the last.
pub async fn advance_over(
    transaction: &mut Transaction<'_, Postgres>,
    home: Home<'_>,
    objects: &[Small],
    counts: &[Counts],
) -> Result<(), TableError> {
    fn each<'a, S, T>(all: &'a [S], value: impl Fn(&'a S) -> T) -> Vec<T> {
        all.iter().map(value).collect()
    }
    let Some(last) = objects.last() else { return Ok(()) };
    let advance = sqlx::query(include_str!("sql/advance_over_objects.sql"))
        .bind(each(objects, |object| to_bigint(object.sequence.get())))
        .bind(each(objects, |object| object.sequence.key(home.stream)))
        .bind(each(objects, |object| object.metadata.sha256.0.as_slice()))
        .bind(each(objects, |object| object.metadata.observation))
        .bind(each(objects, |object| to_bigint(object.body.len() as u64)))
        .bind(each(objects, |object| Time(object.metadata.fetched_at)))
        .bind(each(counts, |counts| to_bigint(counts.records)))
        .bind(each(counts, |counts| to_bigint(counts.with_extra)))
        .bind(each(counts, |counts| to_bigint(counts.inserted)))
        .bind(each(counts, |counts| to_bigint(counts.updated)))
        .bind(last.metadata.archive_id)
        .bind(to_bigint(last.sequence.get()))
        .bind(last.metadata.observation)
        .bind(each(counts, |counts| to_bigint(counts.repeated)));
    let advanced = within("write the ledger and the position of", advance.execute(&mut **transaction)).await;
    advanced.map_err(TableError::of_our_tables)?;
    crash_point!("bundle-advanced");
    Ok(())
}

/// Postgres has no unsigned integers; ours are far below 2^63.
pub(crate) fn to_bigint(number: u64) -> i64 {
    i64::try_from(number).expect("sequences, sizes and counts stay below 2^63")
}
