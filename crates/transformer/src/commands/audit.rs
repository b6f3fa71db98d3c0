//! `transformer audit`: the archive against the ledger, object by object.
//!
//! It proves promise 1: every object up to the position is applied, quarantined or skipped, and everything above it is pending.

use std::{collections::VecDeque, fmt};

use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use sha2::Digest;
use shared::{
    archive::{Archive, ArchiveError, Head},
    object::{Sequence, Sha256},
};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::{
    decide::{Position, why_missing},
    postgres::connect::within,
    read::row::to_bigint,
};

/// Requests under way at once: S3 answers one in some 20 ms, so this looks at a few hundred objects a second.
const CONCURRENCY: usize = 16;

/// What there is, and what is wrong with it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The last object applied.
    pub position: u64,
    /// The newest object in the archive.
    pub end: u64,
    /// Objects whose records are in the table.
    pub applied: u64,
    /// Objects that were quarantined as a whole, with their reason in the ledger.
    pub quarantined: u64,
    /// Objects that a person does without.
    pub skipped: u64,
    /// Objects above the position.
    pub pending: u64,
    /// The oldest objects, applied and no longer in the bucket: for a rebuild they are lost, for the table they are not needed.
    pub gone: u64,
    /// Everything else.
    pub problems: Vec<Problem>,
}

/// Something that is not as it should be.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where.
    pub sequence: u64,
    /// What.
    pub what: What,
}

/// What can be wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Not in the bucket, and later ones are.
    Missing,
    /// Up to the position, and not in the ledger.
    NotInTheLedger,
    /// The position, and the archive ends before it.
    EndBelowPosition,
    /// Not one of ours, or of a later release.
    Foreign,
    /// Another observation than the one that was applied.
    WrittenAnew,
    /// Of another archive than the position.
    OtherArchive,
    /// Its `previous` is not the object before it.
    ChainBroken,
    /// Its bytes are not those that its metadata speaks of.
    OtherBytes,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => {
                "is missing from the bucket: bring it back, a versioned bucket has it under a delete marker"
            }
            Self::NotInTheLedger => "is below the position and not in the ledger: rebuild into a new DATABASE_SCHEMA",
            Self::EndBelowPosition => {
                "is the position, and the archive ends before it: was the bucket emptied or swapped?"
            }
            Self::Foreign => "says nothing of itself that this release understands",
            Self::WrittenAnew => "was written anew after it was applied: bring its old version back",
            Self::OtherArchive => "belongs to another archive: was the bucket swapped?",
            Self::ChainBroken => "does not continue the object before it: was the archive forked?",
            Self::OtherBytes => "holds other bytes than its metadata says: bring its old version back",
        })
    }
}

/// Looks at every object; `deep` reads each of them again.
pub async fn audit(
    archive: &impl Archive,
    ledger: &mut PgConnection,
    position: Option<&Position>,
    deep: bool,
    progress: &ProgressBar,
) -> anyhow::Result<Report> {
    let end = archive.end().await?;
    let at = position.map_or(0, |position| position.sequence.get());
    let mut report = Report { position: at, end: end.map_or(0, Sequence::get), ..Report::default() };
    let last = report.end.max(at);
    progress.set_length(last);
    if why_missing(position, end).is_err() {
        report.problems.push(Problem { sequence: at, what: What::EndBelowPosition });
    }
    let looks = stream::iter(1..=last).map(async |number| {
        let sequence = Sequence::try_from(number)?;
        let head = match archive.head(sequence).await {
            Err(ArchiveError::Foreign { .. }) => return Ok((sequence, None, Some(What::Foreign))),
            head => head?,
        };
        let is_damaged = deep && head.is_some() && !has_its_bytes(archive, sequence).await?;
        anyhow::Ok((sequence, head, is_damaged.then_some(What::OtherBytes)))
    });
    let mut looks = Box::pin(looks.buffered(CONCURRENCY));
    let mut lines = Ledger { connection: ledger, lines: VecDeque::new(), next: 1, position: at };
    let mut before = None;
    while let Some((sequence, head, damage)) = looks.try_next().await? {
        let line = lines.take(sequence.get()).await?;
        count(&mut report, line.as_ref(), sequence.get() > at);
        let archive_id = position.map(|position| position.archive_id);
        let is_skipped = line.as_ref().is_some_and(|line| line.outcome == "skipped");
        let wrong = match damage {
            Some(What::Foreign) => (!is_skipped).then_some(What::Foreign),
            damage => judge(sequence.get() <= at, line.as_ref(), head.as_ref(), before, archive_id).or(damage),
        };
        match wrong {
            // Nothing older is there either.
            Some(What::Missing) if before.is_none() && line.is_some() => report.gone += 1,
            Some(what) => report.problems.push(Problem { sequence: sequence.get(), what }),
            None => {}
        }
        before = head
            .map(|head| head.metadata.observation)
            .or(line.and_then(|line| line.observation).filter(|_| before.is_some()));
        progress.inc(1);
    }
    Ok(report)
}

/// What the ledger says of an object.
#[derive(Clone, Debug)]
struct Line {
    sequence: u64,
    sha256: Option<Sha256>,
    observation: Option<Uuid>,
    outcome: String,
}

fn count(report: &mut Report, line: Option<&Line>, is_above: bool) {
    match line.map(|line| line.outcome.as_str()) {
        Some("loaded") => report.applied += 1,
        Some("quarantined") => report.quarantined += 1,
        Some(_) => report.skipped += 1,
        None if is_above => report.pending += 1,
        None => {}
    }
}

/// The first thing that is wrong with an object. `before` is the observation of the object before it, if that is known.
fn judge(
    is_below: bool,
    line: Option<&Line>,
    head: Option<&Head>,
    before: Option<Uuid>,
    archive_id: Option<Uuid>,
) -> Option<What> {
    let is_skipped = line.is_some_and(|line| line.outcome == "skipped");
    match (line, head) {
        (None, _) if is_below => return Some(What::NotInTheLedger),
        (_, None) => return (!is_skipped).then_some(What::Missing),
        _ => {}
    }
    let metadata = &head?.metadata;
    if archive_id.is_some_and(|ours| ours != metadata.archive_id) {
        return Some(What::OtherArchive);
    }
    let is_other = |line: &Line| {
        line.observation.is_some_and(|ours| ours != metadata.observation)
            || line.sha256.is_some_and(|ours| ours != metadata.sha256)
    };
    if line.is_some_and(is_other) {
        return Some(What::WrittenAnew);
    }
    before.is_some_and(|before| metadata.previous != Some(before)).then_some(What::ChainBroken)
}

async fn has_its_bytes(archive: &impl Archive, sequence: Sequence) -> anyhow::Result<bool> {
    let Some(mut object) = archive.get(sequence).await? else { return Ok(false) };
    let mut hasher = sha2::Sha256::new();
    while let Some(chunk) = object.body.try_next().await? {
        hasher.update(&chunk);
    }
    Ok(Sha256::of(hasher) == object.metadata.sha256)
}

/// The ledger in order, a page at a time.
struct Ledger<'a> {
    connection: &'a mut PgConnection,
    lines: VecDeque<Line>,
    /// The first sequence that is not among the lines read so far.
    next: u64,
    /// Lines above it were written after the audit began.
    position: u64,
}

impl Ledger<'_> {
    /// The line of the object, for sequences that only rise.
    async fn take(&mut self, sequence: u64) -> anyhow::Result<Option<Line>> {
        if self.lines.is_empty() && self.next <= sequence {
            let select = sqlx::query(include_str!("../sql/select_ledger.sql"))
                .bind(to_bigint(sequence))
                .bind(to_bigint(self.position));
            let rows = within("read the ledger of", select.fetch_all(&mut *self.connection)).await?;
            self.lines = rows.iter().map(read_line).collect::<Result<_, _>>()?;
            self.next = self.lines.back().map_or(u64::MAX, |line| line.sequence + 1);
        }
        let is_it = self.lines.front().is_some_and(|line| line.sequence == sequence);
        Ok(if is_it { self.lines.pop_front() } else { None })
    }
}

fn read_line(row: &sqlx::postgres::PgRow) -> Result<Line, sqlx::Error> {
    Ok(Line {
        sequence: row.try_get::<i64, _>("sequence")?.unsigned_abs(),
        sha256: row.try_get::<Option<_>, _>("sha256")?.map(Sha256),
        observation: row.try_get("observation")?,
        outcome: row.try_get("outcome")?,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, end, applied, quarantined, skipped, pending, gone, problems } = self;
        writeln!(f, "position     {position:>9}  of {end}")?;
        writeln!(f, "applied      {applied:>9}")?;
        writeln!(f, "quarantined  {quarantined:>9}  with a reason: see `transformer quarantine list`")?;
        writeln!(f, "skipped      {skipped:>9}  named by SKIP")?;
        writeln!(f, "pending      {pending:>9}  above the position")?;
        writeln!(f, "gone         {gone:>9}  the oldest objects, applied and no longer in the bucket")?;
        write!(f, "problems     {:>9}", problems.len())?;
        for Problem { sequence, what } in problems {
            write!(f, "\n  object {sequence} {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use shared::object::{Metadata, SnapshotFacts};

    use super::*;

    fn head(observation: u128, previous: u128) -> Head {
        let metadata = Metadata {
            archive_id: Uuid::from_u128(1),
            observation: Uuid::from_u128(observation),
            previous: Some(Uuid::from_u128(previous)),
            sha256: Sha256([7; 32]),
            fetched_at: jiff::Timestamp::UNIX_EPOCH,
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: Sequence::FIRST,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256([7; 32]),
            facts: SnapshotFacts::default(),
        };
        Head { metadata, bytes: 1 }
    }

    fn line(observation: u128, outcome: &str) -> Line {
        let observation = Some(Uuid::from_u128(observation));
        Line { sequence: 42, sha256: Some(Sha256([7; 32])), observation, outcome: outcome.to_owned() }
    }

    #[test]
    fn each_thing_that_can_be_wrong_is_told_apart() {
        let (loaded, skipped, there) = (line(42, "loaded"), line(42, "skipped"), head(42, 41));
        let damaged = Line { sha256: Some(Sha256([8; 32])), ..loaded.clone() };
        let (before, other, ours) = (Some(Uuid::from_u128(41)), Some(Uuid::from_u128(40)), Some(Uuid::from_u128(1)));
        for (is_below, line, head, before, archive_id, expected) in [
            (true, Some(&loaded), Some(&there), before, ours, None),
            (true, Some(&loaded), Some(&there), None, ours, None),
            (false, None, Some(&there), before, ours, None),
            (false, None, Some(&there), before, None, None),
            (true, Some(&skipped), None, before, ours, None),
            (true, Some(&loaded), None, before, ours, Some(What::Missing)),
            (false, None, None, before, ours, Some(What::Missing)),
            (true, None, Some(&there), before, ours, Some(What::NotInTheLedger)),
            (true, Some(&damaged), Some(&there), before, ours, Some(What::WrittenAnew)),
            (true, Some(&loaded), Some(&head(43, 41)), before, ours, Some(What::WrittenAnew)),
            (true, Some(&loaded), Some(&there), other, ours, Some(What::ChainBroken)),
            (true, Some(&loaded), Some(&there), before, other, Some(What::OtherArchive)),
        ] {
            assert_eq!(judge(is_below, line, head, before, archive_id), expected, "{line:?} {head:?}");
        }
    }
}
