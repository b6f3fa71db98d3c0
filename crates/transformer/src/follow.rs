//! From the position to the end of the archive, object by object, and what to do about each that cannot be applied.

use std::time::Duration;

use indicatif::ProgressBar;
use shared::{
    archive::{Archive, ArchiveError, Head, Object},
    crash_point,
    object::Sequence,
    shutdown::Shutdown,
    status,
};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    bell::BellError,
    decide::{Absence, Hold, Position, absence, check_next, check_position, next_after},
    fault::{Fault, TableError},
    ledger::LedgerLine,
    notes,
    prefetch::Prefetch,
    skip::Skip,
    table::{Care, Outcome, Table},
    together::{Together, apply_together},
};

/// How often an object is read whose bytes are not those that were archived, before it is quarantined.
const READS: u32 = 3;

/// Each so manyth look lists the end though it is known: an object that went missing before it was applied is otherwise hidden by
/// nothing but the want of a bell.
const LOOKS_A_LISTING: u32 = 10;

/// A message that points so far beyond the position has missed none before it: a receive brings at most as many.
const NEAR: u64 = 10;

/// A holder of the lock that is silent for so long has vanished or is frozen: longer than a stalled body is waited for. It cannot be
/// told from one that sends a batch over a slow wire, so it doubles each time that somebody was ended, until somebody has applied an object.
const PATIENCE: Duration = Duration::from_secs(20);

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
    Bell(#[from] BellError),
    /// A person's.
    #[error(transparent)]
    Hold(#[from] Hold),
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Until there is no further object.
    End,
    /// To the object that a message named, which may be a lie.
    Bell(Sequence),
    /// To an object that a person named.
    To(Sequence),
}

impl Goal {
    fn is_passed(self, sequence: Sequence) -> bool {
        match self {
            Self::End => false,
            Self::Bell(last) | Self::To(last) => sequence > last,
        }
    }

    fn at_most(self, end: Option<Sequence>) -> Option<Sequence> {
        match self {
            Self::End => end,
            Self::Bell(last) | Self::To(last) => end.min(Some(last)),
        }
    }
}

/// How far following came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// As far as was asked, or as there is.
    ToTheGoal,
    /// Another transformer has the stream.
    Busy,
}

/// Follows one archive with one table.
#[derive(Debug)]
pub struct Follower<A, T> {
    archive: A,
    table: T,
    skip: Skip,
    /// Hidden, unless somebody watches.
    progress: ProgressBar,
    /// The position that a listing has shown to be the end: there a 404 needs no second listing, so an idle look costs two requests.
    end: Option<Sequence>,
    /// How often the archive was looked at, and how long a holder of the lock must be silent to be ended.
    looks: u32,
    patience: Duration,
    /// Where the table stood at the last look.
    seen: Option<Sequence>,
    /// Whether this process has begun with an object.
    has_begun: bool,
    /// An object of which Postgres does not take a batch, and how it is written therefore: kept while the stream is locked, perhaps by a
    /// backend of our own that still rolls back.
    careful: Option<(Sequence, Care)>,
    /// So many objects may be applied together. The first is applied alone, so that in the end a process begins with the one that kills it.
    most_together: usize,
}

impl<A: Archive, T: Table> Follower<A, T> {
    /// A follower that knows nothing yet.
    pub fn new(archive: A, table: T, skip: Skip, progress: ProgressBar) -> Self {
        Self {
            archive,
            table,
            skip,
            progress,
            end: None,
            looks: 0,
            patience: PATIENCE,
            seen: None,
            has_begun: false,
            careful: None,
            most_together: 1,
        }
    }

    /// Where the table stands.
    pub async fn position(&mut self) -> Result<Option<Position>, FollowError> {
        Ok(self.table.position().await?)
    }

    /// The idle look: is the archive still the one that was followed, and is there more of it?
    pub async fn look(&mut self, goal: Goal, shutdown: &Shutdown) -> Result<Followed, FollowError> {
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_A_LISTING) {
            self.end = None;
        }
        let position = self.table.position().await?;
        let at = position.as_ref().map(|position| position.sequence);
        if at != self.seen {
            (self.seen, self.patience) = (at, PATIENCE);
        }
        if let Some(position) = &position {
            match self.archive.head(position.sequence).await {
                // SKIP has moved past an object that says nothing of itself.
                Err(ArchiveError::Foreign { .. }) if position.observation.is_none() => {}
                Ok(Some(head)) => {
                    status::note_object(position.sequence);
                    check_position(position, &head.metadata)?;
                    notes::stands_at(&head.metadata);
                }
                // An old object may be gone; the next one's `previous` speaks for it. The end may not.
                Ok(None) => {
                    let end = self.archive.end().await?;
                    status::note_end(end);
                    absence(Some(position), end)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.follow(position, goal, shutdown).await
    }

    /// Applies what a message points to, and what is before it.
    pub async fn follow_bell(&mut self, named: Sequence, shutdown: &Shutdown) -> Result<Followed, FollowError> {
        let position = self.table.position().await?;
        self.follow(position, Goal::Bell(named), shutdown).await
    }

    /// Ends the transaction of a transformer that vanished or froze, if that is what keeps this one from work.
    pub async fn take_over_from_the_silent(&mut self) -> Result<bool, FollowError> {
        let has_ended = self.table.end_silent_holder(self.patience).await?;
        if has_ended {
            self.patience *= 2;
        }
        Ok(has_ended)
    }

    async fn follow(
        &mut self,
        mut position: Option<Position>,
        goal: Goal,
        shutdown: &Shutdown,
    ) -> Result<Followed, FollowError> {
        let Self { archive, table, skip, progress, end: known_end, has_begun, careful, most_together, .. } = self;
        let mut ahead = Prefetch::new(&*archive);
        // How far to read ahead. What a message names close by may be asked for without being believed; else the end is listed once there is
        // more than one object to catch up with.
        let near = next_after(position.as_ref()).get() + NEAR;
        let mut last = if let Goal::Bell(named) = goal { Some(named).filter(|named| named.get() < near) } else { None };
        while !shutdown.is_draining() {
            status::note_position(position.as_ref().map(|position| position.sequence));
            let sequence = next_after(position.as_ref());
            if goal.is_passed(sequence) {
                break;
            }
            let (outcome, next) = if skip.contains(sequence) {
                let Some(outcome) = skip_object(archive, table, position.as_ref(), sequence).await? else { break };
                (outcome, None)
            } else {
                let asked = Instant::now();
                let found = next_object(archive, &mut ahead, position.as_ref(), goal, last, known_end).await?;
                let Some(object) = found else { break };
                crash_point!("object-found");
                notes::took("get", asked.elapsed());
                status::note_object(sequence);
                check_next(position.as_ref(), &object.metadata)?;
                if !*has_begun {
                    // An object that kills the process each time is named by the last line before.
                    info!(%sequence, observation = %object.metadata.observation, bytes = object.bytes, "begins with");
                    *has_begun = true;
                }
                let next = Position::after(sequence, &object.metadata);
                let more_follow = last.is_some_and(|last| last > sequence);
                let (ahead, at) = (&mut ahead, position.as_ref());
                let object = match apply_together(table, ahead, at, object, last, skip, most_together).await? {
                    Together::Applied(at) => {
                        progress.set_position(at.sequence.get());
                        position = Some(at);
                        continue;
                    }
                    Together::Alone(object) => (object, more_follow),
                };
                (apply(archive, table, ahead, at, object, careful).await?, Some(next))
            };
            position = match outcome {
                Outcome::Busy => return Ok(Followed::Busy),
                Outcome::Applied(_) => {
                    if last.is_none() && !goal.is_passed(sequence.next()) {
                        let end = archive.end().await?;
                        status::note_end(end);
                        last = goal.at_most(end);
                        progress.set_length(last.map_or(0, Sequence::get));
                    }
                    progress.set_position(sequence.get());
                    if next.is_some() { next } else { table.position().await? }
                }
                Outcome::Moved | Outcome::Broken { .. } | Outcome::WrongBytes { .. } => table.position().await?,
            };
        }
        Ok(Followed::ToTheGoal)
    }
}

/// The object after the position, `None` where there is none yet.
async fn next_object<A: Archive>(
    archive: &A,
    ahead: &mut Prefetch<'_, A>,
    position: Option<&Position>,
    goal: Goal,
    last: Option<Sequence>,
    known_end: &mut Option<Sequence>,
) -> Result<Option<Object>, FollowError> {
    let (sequence, at) = (next_after(position), position.map(|position| position.sequence));
    let mut was_absent = false;
    loop {
        if let Some(object) = ahead.get(sequence, last.unwrap_or(sequence)).await? {
            return Ok(Some(object));
        }
        if goal == Goal::End && at.is_some() && at == *known_end {
            return Ok(None);
        }
        match read_absence(archive, position, goal).await? {
            Absence::AtTheEnd => {
                *known_end = at;
                return Ok(None);
            }
            Absence::Hole { end } if was_absent => {
                *known_end = None;
                return Err(Hold::ObjectMissing { missing: sequence, end }.into());
            }
            // It may have been appended after the look.
            Absence::Hole { .. } => was_absent = true,
        }
    }
}

/// What it means that the next object is not there.
async fn read_absence(archive: &impl Archive, position: Option<&Position>, goal: Goal) -> Result<Absence, FollowError> {
    let end = archive.end().await?;
    status::note_end(end);
    let absence = absence(position, end)?;
    if let (Goal::Bell(named), Absence::AtTheEnd) = (goal, absence) {
        notes::bell_beyond_the_end(named);
    }
    Ok(absence)
}

/// Applies one object, or quarantines it when the fault is its own.
async fn apply<A: Archive, T: Table>(
    archive: &A,
    table: &mut T,
    ahead: &mut Prefetch<'_, A>,
    position: Option<&Position>,
    (object, more_follow): (Object, bool),
    careful: &mut Option<(Sequence, Care)>,
) -> Result<Outcome, FollowError> {
    let (started, sequence) = (Instant::now(), next_after(position));
    let metadata = object.metadata.clone();
    let (mut object, mut reads) = (Some(object), 1);
    let mut care = careful.filter(|(of, _)| *of == sequence).map_or(Care::None, |(_, care)| care);
    let (bytes, reason) = loop {
        let Some(body) = object.take() else { return Ok(Outcome::Moved) };
        match ahead.meanwhile(table.apply(position, sequence, body, care, more_follow)).await {
            Ok(Outcome::WrongBytes { bytes }) => {
                warn!(%sequence, observation = %metadata.observation, reads, "the bytes are not those that were archived");
                if reads == READS {
                    break (
                        bytes,
                        format!("its bytes are not those that were archived, {READS} times: their SHA-256 is another"),
                    );
                }
                reads += 1;
            }
            Ok(Outcome::Broken { bytes, reason }) => break (bytes, reason),
            Ok(outcome) => {
                if let Outcome::Applied(counts) = outcome {
                    *careful = None;
                    notes::loaded(sequence, &metadata, counts, started.elapsed());
                }
                return Ok(outcome);
            }
            Err(error) => match care.more() {
                Some(more) if error.fault() == Fault::Record || error.is_too_slow() => {
                    warn!(%sequence, observation = %metadata.observation, why = error.database_message(), "Postgres does not take a batch");
                    care = more;
                    *careful = Some((sequence, more));
                }
                _ => return Err(error.into()),
            },
        }
        // One that was written anew meanwhile is judged anew.
        object = archive.get(sequence).await?.filter(|object| object.metadata == metadata);
    };
    let line = LedgerLine {
        sequence,
        metadata: Some(&metadata),
        archive_id: metadata.archive_id,
        bytes: Some(bytes),
        outcome: "quarantined",
        reason: Some(&reason),
    };
    let outcome = table.pass_over(position, &line).await?;
    crash_point!("quarantined");
    if let Outcome::Applied(_) = outcome {
        notes::passed_over(&line);
    }
    Ok(outcome)
}

/// Moves past an object that a person does without, whether it is there or not. `None` beyond the end of the archive.
async fn skip_object(
    archive: &impl Archive,
    table: &mut impl Table,
    position: Option<&Position>,
    sequence: Sequence,
) -> Result<Option<Outcome>, FollowError> {
    // Listed before it is looked at: one that is missing then was not just about to be appended.
    let Some(end) = archive.end().await?.filter(|end| *end >= sequence) else { return Ok(None) };
    let (head, absent) = match archive.head(sequence).await {
        // One that cannot be read is as good as none.
        Err(ArchiveError::Foreign { .. }) => (None, "SKIP names it, and it cannot be read"),
        head => (head?, "SKIP names it, and it is missing"),
    };
    if let (Some(Position { archive_id: ours, .. }), Some(found)) =
        (position, head.as_ref().map(|head| head.metadata.archive_id))
        && found != *ours
    {
        return Err(Hold::AnotherArchive { sequence, found, ours: *ours }.into());
    }
    let archive_id = match (&head, position) {
        (Some(head), _) => head.metadata.archive_id,
        (None, Some(position)) => position.archive_id,
        (None, None) => match archive.head(end).await? {
            Some(end) => end.metadata.archive_id,
            None => return Ok(None),
        },
    };
    // One that does not continue what was applied, as a copy of another, would bring an observation that is not its own.
    let fits = |head: &&Head| check_next(position, &head.metadata).is_ok();
    let head = head.as_ref();
    let reason = match head {
        None => absent,
        Some(head) if fits(&head) => "SKIP names it",
        Some(_) => "SKIP names it, and it does not continue the archive",
    };
    let line = LedgerLine {
        sequence,
        metadata: head.filter(fits).map(|head| &head.metadata),
        archive_id,
        bytes: head.map(|head| head.bytes),
        outcome: "skipped",
        reason: Some(reason),
    };
    let outcome = table.pass_over(position, &line).await?;
    crash_point!("skipped");
    if let Outcome::Applied(_) = outcome {
        notes::passed_over(&line);
    }
    Ok(Some(outcome))
}
