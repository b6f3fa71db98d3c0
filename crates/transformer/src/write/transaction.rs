//! One run of objects, one transaction.
//!
//! It promises that the rows of all, their ledger lines and the position are committed together or not at all, and that what is committed was
//! verified: each digest comes before COMMIT.

use std::time::Duration;

use shared::{
    crash_point,
    object::{Metadata, Sequence},
    settings::Absent,
};
use sqlx::{Connection, Executor, PgConnection, Postgres, Transaction};
use tokio::time::{Instant, timeout};

use crate::{
    absence::{BrakeSettings, Seen, is_judged},
    decide::Position,
    events,
    postgres::{connect::within, fault::TableError},
    read::{
        batch::{Batch, Piece, Pieces, Summary},
        row::Key,
    },
    write::{
        judge::{Judged, Judgement, are_loaded, found_again, judge},
        ledger::{Counts, Home, LedgerLine, Lock, advance, lock},
        writer::{Care, Writer},
    },
};

/// How often the database hears of a transaction whose body is slow.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// What became of an attempt to apply a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variant says what its fields are")]
pub enum Attempt {
    /// It is applied, and each of its objects has this to show for it.
    Applied(Vec<Counts>),
    /// Another transformer has the stream locked. Nothing was done.
    Busy,
    /// The position is another one than expected: another transformer was faster, or the database was restored. Nothing was done.
    Moved,
    /// The bytes of an object are those that were archived, and no document. Nothing was done.
    Broken { bytes: u64, reason: String },
    /// The bytes of an object are not those that were archived. Nothing was done.
    WrongBytes { bytes: u64 },
    /// Absence is judged by the object, and the earlier pages of its snapshot, from this one on, are to be seen first. Nothing was done.
    Unseen { first: Sequence },
    /// The object would make more rows absent than a person has allowed: `gone` of `present`, some with these ids. Nothing was done.
    Braked { gone: u64, present: u64, ids: Vec<String> },
}

/// What absence is judged by.
#[derive(Debug)]
pub struct Absence {
    /// The pages of a snapshot up to the position, as far as they are the last that this process has applied.
    pub seen: Option<Seen>,
    /// How many rows may become absent.
    pub brake: BrakeSettings,
}

/// A run of objects on its way into the table.
#[derive(Debug)]
pub struct Run<'a> {
    /// Their numbers, and what they say of themselves.
    pub objects: Vec<(Sequence, Metadata)>,
    /// The first of the pieces.
    pub first: Piece,
    /// The others.
    pub pieces: Pieces,
    /// How it is written.
    pub care: Care,
    /// What absence is judged by.
    pub absence: &'a mut Absence,
}

/// Applies a run. The order is the protocol.
pub async fn apply(
    connection: &mut PgConnection,
    home: Home<'_>,
    position: Option<&Position>,
    Run { objects, first, mut pieces, care, absence: Absence { seen, brake } }: Run<'_>,
) -> Result<Attempt, TableError> {
    let mut transaction = within("begin a transaction of", connection.begin()).await?;

    // The lock comes before the first write, and the position is read under it: whoever was faster is seen here.
    let absent = home.statements.definition.absent.absent;
    let judged = objects.last().filter(|(_, metadata)| is_judged(absent, metadata));
    let locked = lock(&mut transaction, home, position, objects.len() > 1 || judged.is_some()).await?;
    let (is_plain, has_missing) = match locked {
        Lock::Taken { is_plain, has_missing } => (is_plain, has_missing),
        Lock::Busy => return roll_back(transaction, Attempt::Busy).await,
        Lock::Moved => return roll_back(transaction, Attempt::Moved).await,
    };
    crash_point!("locked");
    if let Some((sequence, metadata)) = judged {
        let is_seen =
            metadata.snapshot == *sequence || seen.as_ref().is_some_and(|seen| seen.precedes(*sequence, metadata));
        if !is_seen && are_loaded(&mut transaction, metadata.snapshot, *sequence).await? {
            return roll_back(transaction, Attempt::Unseen { first: metadata.snapshot }).await;
        }
    }
    let are_together = is_plain && objects.len() > 1;
    let mut writer = Writer::new(home.statements, care, are_together, objects.iter().map(|(sequence, _)| *sequence));
    let (mut lines, mut first) = (Vec::new(), Some(first));
    for (sequence, metadata) in &objects {
        *seen = if absent == Absent::Keep { None } else { Seen::turn(seen.take(), *sequence, metadata) };
        let Summary { sha256, bytes, records, with_extra, broken } = loop {
            let piece = match first.take() {
                Some(piece) => piece,
                None => next_piece_meanwhile(&mut transaction, &mut pieces).await?,
            };
            match piece {
                Piece::Batch(batch) => {
                    see_batch(seen, &batch, care == Care::None)?;
                    if has_missing {
                        found_again(&mut transaction, &batch).await?;
                    }
                    writer.take(&mut transaction, batch).await?;
                }
                Piece::Summary(summary) => break summary,
                Piece::BrokeOff(error) => return Err(TableError::BrokeOff(error)),
            }
        };
        // The digest is judged first: bytes that are not the archived ones say nothing about the document.
        if sha256 != metadata.sha256 {
            return roll_back(transaction, Attempt::WrongBytes { bytes }).await;
        }
        if let Some(reason) = broken {
            return roll_back(transaction, Attempt::Broken { bytes, reason }).await;
        }
        let counts = writer.counts(*sequence);
        (counts.records, counts.with_extra) = (records, with_extra);
        let (archive_id, metadata, bytes) = (metadata.archive_id, Some(metadata), Some(bytes));
        let counts = Counts::default();
        lines.push(LedgerLine {
            sequence: *sequence,
            metadata,
            archive_id,
            bytes,
            outcome: "loaded",
            reason: None,
            counts,
        });
        if lines.len() < objects.len() {
            crash_point!("between-objects");
        }
    }
    writer.write(&mut transaction).await?;
    if let Some((sequence, metadata)) = judged {
        let (seen, inserted) = (seen.take(), writer.counts(*sequence).inserted);
        let judged = Judged { sequence: *sequence, metadata, seen, is_plain, inserted };
        match judge(&mut transaction, home, judged, brake).await? {
            Judgement::Absent(absent) => writer.counts(*sequence).absent = absent,
            Judgement::Braked { gone, present, ids } => {
                return roll_back(transaction, Attempt::Braked { gone, present, ids }).await;
            }
        }
    }
    for line in &mut lines {
        line.counts = *writer.counts(line.sequence);
    }
    advance(&mut transaction, home, &lines).await?;
    commit(transaction).await?;
    Ok(Attempt::Applied(lines.iter().map(|line| line.counts).collect()))
}

/// The records of a batch were seen, each of which is a row if `are_rows` and none is wrong.
pub fn see_batch(seen: &mut Option<Seen>, batch: &Batch, are_rows: bool) -> Result<(), TableError> {
    let Some(seen) = seen else { return Ok(()) };
    let kind = batch.key_kind();
    let ids = batch.ids().map(|id| id.map(|id| Key::of(kind, id)));
    seen.add(ids, are_rows && batch.wrong.is_empty()).map_err(TableError::TooManyIds)
}

/// Moves past an object without its records.
pub async fn pass_over(
    connection: &mut PgConnection,
    home: Home<'_>,
    position: Option<&Position>,
    line: &LedgerLine<'_>,
) -> Result<Attempt, TableError> {
    let mut transaction = within("begin a transaction of", connection.begin()).await?;
    match lock(&mut transaction, home, position, false).await? {
        Lock::Taken { .. } => {}
        Lock::Busy => return roll_back(transaction, Attempt::Busy).await,
        Lock::Moved => return roll_back(transaction, Attempt::Moved).await,
    }
    advance(&mut transaction, home, std::slice::from_ref(line)).await?;
    commit(transaction).await?;
    Ok(Attempt::Applied(vec![line.counts]))
}

async fn commit(transaction: Transaction<'_, Postgres>) -> Result<(), TableError> {
    let committing = Instant::now();
    within("commit to", transaction.commit()).await?;
    events::took("commit", committing.elapsed());
    crash_point!("committed");
    Ok(())
}

/// The next piece inside the transaction, where a client that is silent for 20 seconds is taken for one that vanished: a body may be slow.
async fn next_piece_meanwhile(
    transaction: &mut Transaction<'_, Postgres>,
    pieces: &mut Pieces,
) -> Result<Piece, TableError> {
    loop {
        if let Ok(piece) = timeout(SIGN_OF_LIFE, pieces.next()).await {
            return Ok(piece);
        }
        within("keep open a transaction of", transaction.execute("SELECT")).await?;
    }
}

async fn roll_back(transaction: Transaction<'_, Postgres>, attempt: Attempt) -> Result<Attempt, TableError> {
    within("roll back a transaction of", transaction.rollback()).await?;
    crash_point!("rolled-back");
    Ok(attempt)
}
