//! Rows that the API has no more are marked or deleted, in the transaction of the page that shows it.

use std::collections::HashSet;

use futures_util::TryStreamExt;
use shared::{
    crash_point,
    object::{Metadata, Sequence},
    settings::Absent,
};
use sqlx::PgConnection;

use crate::{
    absence::{BrakeSettings, Ids, Seen},
    events,
    postgres::{
        connect::within,
        fault::{Fault, TableError},
    },
    read::{
        batch::Batch,
        row::{Key, LENGTH_BYTES, Parts, text_of, to_bigint},
    },
    write::{
        copy::FieldReader,
        ledger::Home,
        parameter::{Column, Time},
    },
};

/// Rows that one statement marks or deletes: a foreign key without an index, or a trigger, may take its time for each.
const WRITTEN_AT_A_TIME: usize = 500;

/// Rows that one statement notes.
const NOTED_AT_A_TIME: usize = 8_000;

/// Keys of lacking rows that are kept. Where they are more, a person has to allow it: then all are kept.
const LACKING_LIMIT_BYTES: usize = 8 << 20;

/// How many ids a person is shown.
const SHOWN: usize = 5;

/// What was judged.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variant says what its fields are")]
pub enum Judgement {
    /// How many rows are absent from here on.
    Absent(u64),
    /// It would be more than a person has allowed: `gone` of those that were there before the snapshot, some with these ids. What was done is to be
    /// rolled back.
    Braked { gone: u64, present: u64, ids: Vec<String> },
}

/// The last page of a snapshot by which absence is judged.
#[derive(Debug)]
pub struct Judged<'a> {
    /// The page.
    pub sequence: Sequence,
    /// What it says of itself.
    pub metadata: &'a Metadata,
    /// Its ids, if all of its pages are loaded.
    pub seen: Option<Seen>,
    /// Whether each record that is written is a row.
    pub is_plain: bool,
    /// How many rows the page has inserted.
    pub inserted: u64,
}

/// How many rows are there, without those that are absent.
async fn count_present(connection: &mut PgConnection, home: Home<'_>) -> Result<u64, TableError> {
    let count = sqlx::query_scalar(home.statements.count.sql()).fetch_one(connection);
    let count: i64 = within("count the rows of", count).await?;
    Ok(count.unsigned_abs())
}

/// How many rows the pages of the snapshot before this one have inserted.
async fn sum_inserted(connection: &mut PgConnection, snapshot: Sequence, page: Sequence) -> Result<u64, TableError> {
    let (first, next) = (to_bigint(snapshot.get()), to_bigint(page.get()));
    let sum = sqlx::query_scalar(include_str!("../sql/sum_inserted.sql")).bind(first).bind(next);
    let sum: i64 = within("read the ledger of", sum.fetch_one(connection)).await?;
    Ok(sum.unsigned_abs())
}

/// Whether all pages of the snapshot before this one are loaded.
pub async fn are_loaded(connection: &mut PgConnection, snapshot: Sequence, page: Sequence) -> Result<bool, TableError> {
    let (first, next) = (to_bigint(snapshot.get()), to_bigint(page.get()));
    let count = sqlx::query_scalar(include_str!("../sql/count_loaded.sql")).bind(first).bind(next);
    let count: i64 = within("read the ledger of", count.fetch_one(connection)).await?;
    Ok(count == next - first)
}

/// The rows of these records are not missing, if the last snapshot lacked them.
pub async fn found_again(connection: &mut PgConnection, batch: &Batch) -> Result<(), TableError> {
    // Without a readable id a record may be that of any row.
    let ids: Option<Vec<&[u8]>> = batch.ids().collect();
    let delete = sqlx::query(include_str!("../sql/delete_missing_rows.sql")).bind(ids);
    within("delete missing rows in", delete.execute(connection)).await?;
    Ok(())
}

/// Marks or deletes the rows that are absent by this page, which has been written.
pub async fn judge(
    connection: &mut PgConnection,
    home: Home<'_>,
    judged: Judged<'_>,
    brake: &BrakeSettings,
) -> Result<Judgement, TableError> {
    let Judged { sequence, metadata, seen, is_plain, inserted } = judged;
    let (ids, are_rows) = match seen.map(Seen::into_ids) {
        Some(Some((ids, are_rows))) => (ids, are_rows && is_plain),
        Some(None) => {
            events::absence_is_not_judged(sequence, "the id of a quarantined record of this snapshot cannot be read");
            return Ok(Judgement::Absent(0));
        }
        None => {
            events::absence_is_not_judged(sequence, "not all pages of this snapshot are loaded");
            return Ok(Judgement::Absent(0));
        }
    };
    let there = count_present(connection, home).await?;
    // If both counts are equal, no row is lacking, and the keys need not be looked at.
    let are_all_kept = brake.allow_absent.contains(sequence);
    let is_none_lacking = are_rows && there == ids.count();
    let Lacking { keys, count } = if is_none_lacking {
        Lacking::default()
    } else {
        look_for_lacking(connection, home, &ids, are_all_kept).await?
    };
    let mut absent: Vec<&[u8]> = Parts(&keys).collect();
    let are_too_many = count > absent.len() as u64;
    if !(are_too_many || metadata.facts.single) {
        absent = twice_lacking(connection, sequence, absent).await?;
    }
    let gone = if are_too_many { count } else { absent.len() as u64 };
    let earlier = if gone > 0 { sum_inserted(connection, metadata.snapshot, sequence).await? } else { 0 };
    let present = there.saturating_sub(inserted + earlier);
    if are_too_many || brake.holds(sequence, gone, present) {
        let kind = home.statements.kinds[0];
        let ids = absent.iter().take(SHOWN).map(|key| text_of(kind, &key[LENGTH_BYTES..]));
        return Ok(Judgement::Braked { gone, present, ids: ids.collect() });
    }
    for part in absent.chunks(WRITTEN_AT_A_TIME) {
        write(connection, home, metadata, part).await?;
    }
    let forget = sqlx::query(include_str!("../sql/delete_old_missing_rows.sql")).bind(to_bigint(sequence.get()));
    within("delete missing rows in", forget.execute(connection)).await?;
    crash_point!("absence-judged");
    Ok(Judgement::Absent(gone))
}

/// Rows that are there and that a snapshot lacks.
#[derive(Debug, Default)]
struct Lacking {
    /// Their keys as fields, as far as they are kept.
    keys: Vec<u8>,
    /// How many there are.
    count: u64,
}

async fn look_for_lacking(
    connection: &mut PgConnection,
    home: Home<'_>,
    ids: &Ids,
    are_all_kept: bool,
) -> Result<Lacking, TableError> {
    let kind = home.statements.kinds[0];
    let look = async {
        let mut copy = connection.copy_out_raw(&home.statements.keys).await?;
        let (mut reader, mut lacking) = (FieldReader::default(), Lacking::default());
        while let Some(bytes) = copy.try_next().await? {
            reader.read(&bytes, |field| {
                if !ids.contains(Key::of(kind, &field[LENGTH_BYTES..])) {
                    lacking.count += 1;
                    if are_all_kept || lacking.keys.len() < LACKING_LIMIT_BYTES {
                        lacking.keys.extend(field);
                    }
                }
            });
        }
        Ok(lacking)
    };
    within("look for absent rows in", look).await
}

/// Notes the rows that the snapshot lacks, and answers with those that the one before lacked, too.
async fn twice_lacking<'a>(
    connection: &mut PgConnection,
    sequence: Sequence,
    lacking: Vec<&'a [u8]>,
) -> Result<Vec<&'a [u8]>, TableError> {
    let mut twice = Vec::new();
    for part in lacking.chunks(NOTED_AT_A_TIME) {
        let keys: Vec<&[u8]> = part.iter().map(|key| &key[LENGTH_BYTES..]).collect();
        let note = sqlx::query_scalar(include_str!("../sql/note_missing_rows.sql"));
        let note = note.bind(keys).bind(to_bigint(sequence.get())).fetch_all(&mut *connection);
        let of_part: HashSet<Vec<u8>> = within("note missing rows in", note).await?.into_iter().collect();
        twice.extend(part.iter().filter(|key| of_part.contains(&key[LENGTH_BYTES..])));
    }
    Ok(twice)
}

/// Marks or deletes rows.
async fn write(
    connection: &mut PgConnection,
    home: Home<'_>,
    metadata: &Metadata,
    keys: &[&[u8]],
) -> Result<(), TableError> {
    let statements = home.statements;
    let column = Column { fields: keys.to_vec(), kind: statements.kinds[0] };
    let (doing, statement) = match statements.definition.absent.absent {
        Absent::Delete => ("delete absent rows from", sqlx::query(statements.delete.sql()).bind(column)),
        Absent::Mark | Absent::Keep => {
            let mark = sqlx::query(statements.mark.sql()).bind(column);
            ("mark absent rows in", mark.bind(Time(metadata.fetched_at)))
        }
    };
    match within(doing, statement.execute(connection)).await {
        Ok(_) => Ok(()),
        // A row that may not go, as one that a foreign key of another table refers to, is no record's fault; and what takes longer than a
        // statement may, for a foreign key without an index, takes as long the next time.
        Err(error) if error.is_too_slow() || matches!(error.fault(), Fault::Record | Fault::Unknown) => {
            Err(error.of_absent_rows())
        }
        Err(error) => Err(error),
    }
}
