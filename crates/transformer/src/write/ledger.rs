//! The stream's row and the ledger: where the table stands, and what became of each object.

use clap::ValueEnum;
use shared::{
    crash_point,
    object::{Metadata, Sequence, Sha256, StreamName},
    settings::{Absent, AbsentSettings},
};
use sqlx::{
    PgConnection, Postgres, Row, Transaction,
    postgres::{PgRow, types::Oid},
};
use uuid::Uuid;

use crate::{
    decide::Position,
    postgres::{connect::within, fault::TableError},
    read::{row::to_bigint, table_definition::TableDefinition},
    write::{parameter::Time, statements::Statements},
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
    /// What it did to the table.
    pub counts: Counts,
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
    /// Records whose id came again within a batch: the last of each id is the row.
    pub repeated: u64,
    /// Rows that are absent from this object on.
    pub absent: u64,
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
    let read = || -> Result<(Option<String>, Option<String>, String), sqlx::Error> {
        Ok((stream.try_get("table_name")?, stream.try_get("table_columns")?, stream.try_get("absent")?))
    };
    let read = read().map_err(|source| TableError::Sql { doing: "read the table's definition in", source })?;
    let (Some(table), Some(columns), absent) = read else { return Ok(None) };
    let absent = Absent::from_str(&absent, false).map_err(|_| TableError::NewerAbsent { absent })?;
    match columns.parse() {
        Ok(table_columns) => Ok(Some(TableDefinition { table, table_columns, absent: AbsentSettings { absent } })),
        Err(source) => Err(TableError::NewerDefinition { columns, source }),
    }
}

/// Where the table stands; `None` when nothing is applied.
pub async fn read_position(connection: &mut PgConnection, home: Home<'_>) -> Result<Option<Position>, TableError> {
    const DOING: &str = "read the position in";
    let read =
        sqlx::query(include_str!("../sql/select_position.sql")).bind(&home.statements.table).fetch_optional(connection);
    let row = within(DOING, read).await.map_err(TableError::of_our_tables)?.ok_or(TableError::NoStream)?;
    home.check(&row)?;
    let read = || {
        let is_hidden: Option<bool> = row.try_get("is_hidden")?;
        Ok((is_hidden, row.try_get::<Vec<String>, _>("deferrable")?, position_of(&row)?))
    };
    match read().map_err(|source| TableError::Sql { doing: DOING, source })? {
        (None, ..) => Err(TableError::NoTable { table: home.statements.table.clone() }),
        (Some(true), ..) => Err(TableError::Hidden),
        (Some(false), deferrable, position) if deferrable.is_empty() => Ok(position),
        (Some(false), constraints, _) => {
            Err(TableError::Deferrable { table: home.statements.table.clone(), constraints })
        }
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
        /// Whether rows of several objects may be written by one statement.
        is_plain: bool,
        /// Whether the last whole snapshot lacked rows, which are not absent yet.
        has_missing: bool,
    },
    /// Another transformer has it.
    Busy,
    /// The position is another one than expected.
    Moved,
}

/// Takes the stream's row, if nobody has it and it says what is expected. Unless it `asks_plain`, the table counts as not plain.
pub async fn lock(
    transaction: &mut Transaction<'_, Postgres>,
    home: Home<'_>,
    expected: Option<&Position>,
    asks_plain: bool,
) -> Result<Lock, TableError> {
    const DOING: &str = "lock the stream in";
    let columns = home.statements.definition.table_columns.all();
    let locked = sqlx::query(include_str!("../sql/lock_stream.sql"))
        .bind(asks_plain)
        .bind(&home.statements.table)
        .bind(columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>())
        .bind(columns.iter().map(|column| Oid(column.kind.oids().0)).collect::<Vec<_>>())
        .fetch_one(&mut **transaction);
    let row = match within(DOING, locked).await {
        Err(error) if error.sqlstate().as_deref() == Some(LOCK_NOT_AVAILABLE) => return Ok(Lock::Busy),
        locked => locked.map_err(TableError::of_our_tables)?,
    };
    home.check(&row)?;
    let read = || -> Result<_, sqlx::Error> {
        let found: (i64, Option<Uuid>) = (row.try_get("position")?, row.try_get("previous")?);
        Ok((found, row.try_get("is_plain")?, row.try_get("has_missing")?))
    };
    let (found, is_plain, has_missing) = read().map_err(|source| TableError::Sql { doing: DOING, source })?;
    let expected = expected.map_or((0, None), |position| (to_bigint(position.sequence.get()), position.observation));
    Ok(if found == expected { Lock::Taken { is_plain, has_missing } } else { Lock::Moved })
}

/// Writes the lines of a run's objects, and moves the position to the last of them.
pub async fn advance(
    transaction: &mut Transaction<'_, Postgres>,
    home: Home<'_>,
    lines: &[LedgerLine<'_>],
) -> Result<(), TableError> {
    fn each<'a, T>(lines: &'a [LedgerLine<'a>], value: impl Fn(&LedgerLine<'a>) -> T) -> Vec<T> {
        lines.iter().map(value).collect()
    }
    let Some(last) = lines.last() else { return Ok(()) };
    let count = |value: fn(&Counts) -> u64| each(lines, |line| to_bigint(value(&line.counts)));
    let advance = sqlx::query(include_str!("../sql/advance_position.sql"))
        .bind(each(lines, |line| to_bigint(line.sequence.get())))
        .bind(each(lines, |line| line.sequence.key(home.stream)))
        .bind(each(lines, |line| line.metadata.map(|metadata| metadata.sha256.0)))
        .bind(each(lines, |line| line.metadata.map(|metadata| metadata.observation)))
        .bind(each(lines, |line| line.bytes.map(to_bigint)))
        .bind(each(lines, |line| line.metadata.map(|metadata| Time(metadata.fetched_at))))
        .bind(each(lines, |line| line.outcome))
        .bind(each(lines, |line| line.reason))
        .bind(count(|counts| counts.records))
        .bind(count(|counts| counts.inserted))
        .bind(count(|counts| counts.updated))
        .bind(count(|counts| counts.quarantined))
        .bind(count(|counts| counts.with_extra))
        .bind(count(|counts| counts.repeated))
        .bind(count(|counts| counts.absent))
        .bind(last.archive_id)
        .bind(to_bigint(last.sequence.get()))
        .bind(last.metadata.map(|metadata| metadata.observation));
    let advanced = within("write the ledger and the position of", advance.execute(&mut **transaction)).await;
    advanced.map_err(TableError::of_our_tables)?;
    crash_point!("position-advanced");
    Ok(())
}
