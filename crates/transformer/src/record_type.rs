//! What a record becomes: a row of its type's table. Whoever reads, compares and writes rows knows no more of a type than this. Pure.

use std::fmt::Debug;

use shared::records::Record;

use crate::row::{ColumnType, Fields};

/// How much of a wrong record is kept beside its reason; the object holds it whole.
const RAW_LIMIT_BYTES: usize = 64 * 1024;

/// A reason may quote the value, and that may be long.
const REASON_LIMIT_CHARS: usize = 500;

/// A type of record, with a table of its own.
pub trait RecordType: Debug + Send + Sync {
    /// Its table, and what is done with it.
    fn statements(&self) -> &'static Statements;

    /// Reads a record and puts its fields, in the order of the columns. What Postgres would refuse is refused here, with words, and what was
    /// put until then does not count. Whether it has members that no column is there for.
    fn read(&self, record: &[u8], fields: &mut Fields<'_>) -> Result<bool, NoRow>;
}

/// The statements of a table. Its columns are those that a record gives, the id first, which is bigint or text with the collation "C"; then
/// `first_seen_at` and `updated_at`, as timestamptz, and `sequence`, as bigint: the object that last changed the row.
#[derive(Debug)]
pub struct Statements {
    /// The table's name.
    pub table: &'static str,
    /// The columns that a record gives.
    pub columns: &'static [ColumnType],
    /// Copies rows of all columns from stdin, in the binary form.
    pub copy: &'static str,
    /// Takes an array for each column that a record gives, then of the times and of the sequences. Inserts, updates or leaves.
    pub merge: &'static str,
    /// Takes an array for each column that a record gives, then the time and the sequence. Updates or leaves, and inserts nothing.
    pub update: &'static str,
    /// Takes an array of ids. Selects the columns that a record gives of the rows that there are, by id.
    pub select: &'static str,
    /// Takes the lowest and the highest id, and selects the same; for ids that are numbers, of which many may lie side by side.
    pub select_between: Option<&'static str>,
    /// Takes the lowest and the highest id. Selects the nearest one below and the nearest one above, where there is one.
    pub select_neighbours: &'static str,
}

/// Why a record is no row.
#[derive(Debug, PartialEq, Eq)]
pub struct NoRow {
    /// Its id, if that much can be read and it is a number.
    pub id: Option<i64>,
    /// Why, for a person.
    pub reason: String,
}

/// A record that is no row.
#[derive(Debug, PartialEq, Eq)]
pub struct WrongRecord {
    /// Its place in the document, from 0.
    pub index: u64,
    /// Its id, if that much can be read and it is a number.
    pub id: Option<i64>,
    /// Why it is no row, for a person; at most 500 characters.
    pub reason: String,
    /// Its bytes, at most 64 KiB of them.
    pub raw: Vec<u8>,
}

impl WrongRecord {
    /// Sets a record aside.
    pub fn new(record: Record<'_>, NoRow { id, reason }: NoRow) -> Self {
        let Record { index, raw, .. } = record;
        let reason = reason.chars().take(REASON_LIMIT_CHARS).collect();
        Self { index, id, reason, raw: raw[..raw.len().min(RAW_LIMIT_BYTES)].to_owned() }
    }
}
