//! What the archive and the position say together. Pure.

use std::{ops::RangeInclusive, str::FromStr};

use shared::{
    archive::ArchiveError,
    object::{Metadata, Sequence, Sha256},
    status::{Dependency, Reason, State},
    telemetry::chain,
};
use thiserror::Error;
use uuid::Uuid;

use crate::{
    postgres::fault::{Fault, TableError},
    queue::QueueError,
};

/// Where the database stands: the last object applied, as its ledger has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its number.
    pub sequence: Sequence,
    /// The archive that the number counts in.
    pub archive_id: Uuid,
    /// What the next object must name as its `previous`; unknown after a missing object was skipped.
    pub observation: Option<Uuid>,
    /// The digest of the object.
    pub sha256: Option<Sha256>,
}

impl Position {
    /// Where the database stands after it has applied the object.
    pub fn after(sequence: Sequence, metadata: &Metadata) -> Self {
        let Metadata { archive_id, observation, sha256, .. } = *metadata;
        Self { sequence, archive_id, observation: Some(observation), sha256: Some(sha256) }
    }
}

/// The object to apply next; `None` as a position is a table that has applied nothing.
pub fn next_after(position: Option<&Position>) -> Sequence {
    position.map_or(Sequence::FIRST, |position| position.sequence.next())
}

/// What only a person can settle. The daemon touches nothing, and looks again every minute.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum Hold {
    /// The archive begins elsewhere than the one that was followed.
    #[error(
        "this is another archive: the object at sequence {sequence} belongs to archive {found}, and the table was made from {ours}: \
         correct ARCHIVE_BUCKET or STREAM, bring the old archive back, or rebuild into a new DATABASE_SCHEMA"
    )]
    AnotherArchive { sequence: Sequence, found: Uuid, ours: Uuid },
    /// The object at the position is not the one that was applied.
    #[error(
        "the object at the position, sequence {sequence}, was written anew: the archive has observation {found}, and the ledger {ours}: \
         bring the old version of the object back, or rebuild into a new DATABASE_SCHEMA"
    )]
    Rewritten { sequence: Sequence, found: Uuid, ours: Uuid },
    /// The next object does not continue what was applied.
    #[error(
        "the archive was forked: the object at sequence {sequence} follows observation {found}, and the ledger ends with {ours}: \
         correct ARCHIVE_BUCKET, bring the old archive back, or rebuild into a new DATABASE_SCHEMA",
        found = found.map_or("none".to_owned(), |found| found.to_string())
    )]
    Forked { sequence: Sequence, found: Option<Uuid>, ours: Uuid },
    /// The archive ends before the position.
    #[error(
        "the archive ends at {end}, below the position, sequence {position}: was the bucket emptied or swapped? Bring its objects \
         back (delete markers of a versioned bucket can be removed), correct ARCHIVE_BUCKET, or rebuild into a new DATABASE_SCHEMA",
        end = end.map_or("nothing".to_owned(), |end| format!("sequence {end}"))
    )]
    EndBelowPosition { end: Option<Sequence>, position: Sequence },
    /// There is a hole.
    #[error(
        "the object at sequence {missing} is missing, and the archive goes on to {end}: bring it back (a versioned bucket has it \
         under a delete marker), or do without it with SKIP={missing}"
    )]
    ObjectMissing { missing: Sequence, end: Sequence },
    /// What absence is judged by is gone.
    #[error(
        "the object at sequence {missing} is missing or was written anew, and without it nobody can tell which rows the snapshot lacks that \
         ends at sequence {sequence}: bring it back (a versioned bucket has it under a delete marker), or do without the snapshot's last \
         page with SKIP={sequence}"
    )]
    PageMissing { missing: Sequence, sequence: Sequence },
    /// More ids than are kept.
    #[error(
        "the snapshot that the object at sequence {sequence} belongs to has {ids} ids or more, and the transformer cannot hold more in memory to \
         tell which rows are absent: set ABSENT=keep for both daemons and run `transformer migrate`, or do without the object with \
         SKIP={sequence}"
    )]
    TooManyIds { sequence: Sequence, ids: u64 },
    /// The brake.
    #[error(
        "the snapshot that ends with the object at sequence {sequence} lacks {gone} of {present} rows (ids {}{}), which ABSENT_LIMIT does \
         not allow, so its last page is not applied. If the API was wrong, set SKIP={sequence}, and once it is right again run `importer \
         once --again`; if those records are really gone, set ALLOW_ABSENT={sequence}",
        ids.join(", "), if *gone > ids.len() as u64 { ", …" } else { "" }
    )]
    RowsAbsent { sequence: Sequence, gone: u64, present: u64, ids: Vec<String> },
}

impl Hold {
    fn reason(&self) -> Reason {
        match self {
            Self::AnotherArchive { .. } => Reason::AnotherArchive,
            Self::Rewritten { .. } => Reason::ObjectRewritten,
            Self::Forked { .. } => Reason::ArchiveForked,
            Self::EndBelowPosition { .. } => Reason::EndBelowPosition,
            Self::ObjectMissing { .. } | Self::PageMissing { .. } => Reason::ObjectMissing,
            Self::RowsAbsent { .. } | Self::TooManyIds { .. } => Reason::RowsAbsent,
        }
    }
}

/// Whether the object at the position is the one that was applied.
pub fn check_position(position: &Position, there: &Metadata) -> Result<(), Hold> {
    let Position { sequence, archive_id: ours, .. } = *position;
    if there.archive_id != ours {
        return Err(Hold::AnotherArchive { sequence, found: there.archive_id, ours });
    }
    let (Some(ours), Some(sha256)) = (position.observation, position.sha256) else { return Ok(()) };
    if (there.observation, there.sha256) != (ours, sha256) {
        return Err(Hold::Rewritten { sequence, found: there.observation, ours });
    }
    Ok(())
}

/// Whether the object continues what was applied.
pub fn check_next(position: Option<&Position>, there: &Metadata) -> Result<(), Hold> {
    let Some(position) = position else { return Ok(()) };
    let sequence = position.sequence.next();
    if there.archive_id != position.archive_id {
        return Err(Hold::AnotherArchive { sequence, found: there.archive_id, ours: position.archive_id });
    }
    match position.observation {
        Some(ours) if there.previous != Some(ours) => Err(Hold::Forked { sequence, found: there.previous, ours }),
        _ => Ok(()),
    }
}

/// Why the next object is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variant says what its fields are")]
pub enum Missing {
    /// Everything is applied.
    AtTheEnd,
    /// Later objects are listed, up to `end`: a hole, unless this one was appended after the look.
    Hole { end: Sequence },
}

/// Why the next object is not there, by the archive's listed end.
pub fn why_missing(position: Option<&Position>, end: Option<Sequence>) -> Result<Missing, Hold> {
    let position = position.map(|position| position.sequence);
    match (position, end) {
        (Some(position), end) if end.is_none_or(|end| end < position) => Err(Hold::EndBelowPosition { end, position }),
        (position, Some(end)) if Some(end) > position => Ok(Missing::Hole { end }),
        _ => Ok(Missing::AtTheEnd),
    }
}

/// Why following came to a stop.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The archive's side.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The database's side.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The queue's side.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A person's.
    #[error(transparent)]
    Hold(#[from] Hold),
}

/// What a fault means to the people who run the daemon.
pub fn state_after(fault: &FollowError) -> State {
    let why = chain(fault);
    match fault {
        FollowError::Hold(hold) => State::Holding(hold.reason(), why),
        FollowError::Archive(ArchiveError::Foreign { .. }) => State::Holding(Reason::ObjectForeign, why),
        FollowError::Archive(ArchiveError::NoBucket { .. }) => State::Holding(Reason::BucketMissing, why),
        FollowError::Archive(ArchiveError::Unfit { .. }) => State::Holding(Reason::BucketUnfit, why),
        FollowError::Archive(
            ArchiveError::Refused { .. } | ArchiveError::Failed { .. } | ArchiveError::BrokeOff { .. },
        )
        | FollowError::Table(TableError::BrokeOff(_)) => State::Waiting(Dependency::Archive, why),
        FollowError::Queue(_) => State::Waiting(Dependency::Queue, why),
        FollowError::Table(error) => match error.fault() {
            Fault::Dependency => State::Waiting(Dependency::Database, why),
            Fault::Record | Fault::Operator | Fault::Unknown => State::Holding(Reason::Database, why),
        },
    }
}

/// Objects that a person names, as numbers and ranges of them: `17,40-52`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequences(Vec<RangeInclusive<Sequence>>);

impl Sequences {
    /// Whether the object is one of them.
    pub fn contains(&self, sequence: Sequence) -> bool {
        self.0.iter().any(|range| range.contains(&sequence))
    }
}

impl FromStr for Sequences {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(range).collect::<Result<_, _>>().map(Self)
    }
}

fn range(part: &str) -> Result<RangeInclusive<Sequence>, String> {
    let wrong = || format!("`{part}` is neither a sequence nor a range of them, as in 17,40-52");
    let sequence = |text: &str| {
        text.trim().parse::<u64>().ok().and_then(|number| Sequence::try_from(number).ok()).ok_or_else(wrong)
    };
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let range = sequence(first)?..=sequence(last)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use shared::object::SnapshotFacts;

    use super::*;

    fn sequence(number: u64) -> Sequence {
        Sequence::try_from(number).unwrap()
    }

    fn metadata(observation: u128, previous: Option<u128>) -> Metadata {
        Metadata {
            archive_id: Uuid::from_u128(1),
            observation: Uuid::from_u128(observation),
            previous: previous.map(Uuid::from_u128),
            sha256: Sha256([7; 32]),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: Sequence::FIRST,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256([7; 32]),
            facts: SnapshotFacts::default(),
        }
    }

    fn position() -> Position {
        Position::after(sequence(42), &metadata(42, Some(41)))
    }

    #[test]
    fn the_object_at_the_position_must_be_the_one_that_was_applied() {
        let applied = metadata(42, Some(41));
        let ours = Uuid::from_u128(1);
        let (found, sequence) = (Uuid::from_u128(2), sequence(42));
        let rewritten = |found| Err(Hold::Rewritten { sequence, found, ours: Uuid::from_u128(42) });
        for (there, expected) in [
            (applied.clone(), Ok(())),
            (Metadata { archive_id: found, ..applied.clone() }, Err(Hold::AnotherArchive { sequence, found, ours })),
            (Metadata { observation: found, ..applied.clone() }, rewritten(found)),
            (Metadata { sha256: Sha256([8; 32]), ..applied }, rewritten(Uuid::from_u128(42))),
        ] {
            assert_eq!(check_position(&position(), &there), expected);
        }
    }

    #[test]
    fn the_next_object_must_continue_what_was_applied() {
        let next = metadata(43, Some(42));
        let (sequence, ours, found) = (sequence(43), Uuid::from_u128(1), Uuid::from_u128(2));
        let forked = |found: Option<u128>| Hold::Forked {
            sequence,
            found: found.map(Uuid::from_u128),
            ours: Uuid::from_u128(42),
        };
        assert_eq!(check_next(Some(&position()), &next), Ok(()));
        assert_eq!(check_next(None, &next), Ok(()));
        assert_eq!(check_next(Some(&position()), &metadata(43, Some(40))), Err(forked(Some(40))));
        assert_eq!(check_next(Some(&position()), &metadata(43, None)), Err(forked(None)));
        assert_eq!(
            check_next(Some(&position()), &Metadata { archive_id: found, ..next }),
            Err(Hold::AnotherArchive { sequence, found, ours })
        );
    }

    #[test]
    fn a_missing_object_is_the_end_or_a_hole_or_a_person_is_needed() {
        let at = position();
        for (position, end, expected) in [
            (None, None, Ok(Missing::AtTheEnd)),
            (None, Some(1), Ok(Missing::Hole { end: sequence(1) })),
            (Some(&at), Some(42), Ok(Missing::AtTheEnd)),
            (Some(&at), Some(44), Ok(Missing::Hole { end: sequence(44) })),
            (Some(&at), Some(41), Err(Hold::EndBelowPosition { end: Some(sequence(41)), position: sequence(42) })),
            (Some(&at), None, Err(Hold::EndBelowPosition { end: None, position: sequence(42) })),
        ] {
            assert_eq!(why_missing(position, end.map(sequence)), expected, "{position:?} {end:?}");
        }
    }

    #[test]
    fn numbers_and_ranges_are_skipped_and_nothing_else() {
        let skip: Sequences = "17, 40-52,".parse().unwrap();
        let skipped: Vec<u64> = (1..100).filter(|number| skip.contains(Sequence::try_from(*number).unwrap())).collect();
        assert_eq!(skipped, [vec![17], (40..=52).collect()].concat());
        assert_eq!("".parse(), Ok(Sequences::default()));
        for wrong in ["x", "0", "5-3", "1-2-3", "-5", "1-"] {
            assert!(wrong.parse::<Sequences>().is_err(), "{wrong}");
        }
    }
}
