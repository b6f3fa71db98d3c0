//! From the position to the end of the archive, object by object, and what to do about each that cannot be applied.

use std::time::Duration;

use shared::{
    archive::{Archive, ArchiveError, Head, Object},
    crash_point,
    object::{Metadata, Sequence},
    shutdown::Shutdown,
    status,
};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    absence::TooManyIds,
    ahead::{BYTES_AHEAD, OBJECTS_AHEAD, Prefetch, is_small},
    decide::{FollowError, Hold, Missing, Position, Sequences, check_next, check_position, next_after, why_missing},
    events,
    postgres::fault::{Fault, TableError},
    write::{
        ledger::{Counts, LedgerLine},
        table::Table,
        transaction::Attempt,
        writer::Care,
    },
};

/// How often an object is read whose bytes are not those that were archived, before it is quarantined.
const READS: u32 = 3;

/// Every tenth look lists the end though it is known: an object that was deleted before it was applied is otherwise noticed only with the next
/// message.
const LOOKS_A_LISTING: u32 = 10;

/// A message that points so far beyond the position has missed none before it: a receive brings at most as many.
const NEAR: u64 = 10;

/// A holder of the lock that is silent for so long has vanished or is frozen: longer than a stalled body is waited for. It cannot be
/// told from one that sends a batch over a slow wire, so it doubles each time that one was ended, until an object has been applied.
const PATIENCE: Duration = Duration::from_secs(20);

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Until there is no further object.
    End,
    /// To the object that a message named, which may be a lie.
    Named(Sequence),
    /// To an object that a person named.
    To(Sequence),
}

impl Goal {
    fn is_passed(self, sequence: Sequence) -> bool {
        match self {
            Self::End => false,
            Self::Named(last) | Self::To(last) => sequence > last,
        }
    }

    fn at_most(self, end: Option<Sequence>) -> Option<Sequence> {
        match self {
            Self::End => end,
            Self::Named(last) | Self::To(last) => end.min(Some(last)),
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
    skip: Sequences,
    looks: Looks,
    runs: Runs,
}

/// What looks at the archive have shown.
#[derive(Debug)]
struct Looks {
    /// How many there were.
    count: u32,
    /// The position that a listing has shown to be the end: there a 404 needs no second listing, so an idle look costs two requests.
    end: Option<Sequence>,
    /// Where the table stood at the last one.
    seen: Option<Sequence>,
    /// How long a holder of the lock must be silent to be ended.
    patience: Duration,
}

/// How objects are applied.
#[derive(Debug, Default)]
struct Runs {
    /// How many objects the last run had; 0 where it failed, or nothing was applied yet. The next may have twice as many and one at least, so
    /// that a process begins with the object that kills it, in the end.
    longest: usize,
    /// Whether this process has begun with an object.
    has_begun: bool,
    /// Objects up to this one are applied alone: a run of them was refused.
    alone_to: Option<Sequence>,
    /// An object of which Postgres refuses a record: kept while the stream is locked, perhaps by a backend of our own that still rolls back.
    careful: Option<Sequence>,
    /// Where a person has to look because the next object would make too many rows absent, or has too many ids: it is not tried again, as it
    /// would be rolled back again. What lets it through is a setting.
    braked: Option<(Option<Position>, Hold)>,
}

impl Runs {
    /// How many objects a run that begins here may have.
    fn limit(&self, first: Sequence) -> usize {
        if self.alone_to.is_some_and(|last| first <= last) { 1 } else { (2 * self.longest).clamp(1, OBJECTS_AHEAD) }
    }
}

impl<A: Archive, T: Table> Follower<A, T> {
    /// A follower that knows nothing yet.
    pub fn new(archive: A, table: T, skip: Sequences) -> Self {
        let looks = Looks { count: 0, end: None, seen: None, patience: PATIENCE };
        Self { archive, table, skip, looks, runs: Runs::default() }
    }

    /// Where the table stands.
    pub async fn position(&mut self) -> Result<Option<Position>, FollowError> {
        Ok(self.table.position().await?)
    }

    /// The idle look: is the archive still the one that was followed, and is there more of it?
    pub async fn look(&mut self, goal: Goal, shutdown: &Shutdown) -> Result<Followed, FollowError> {
        self.looks.count += 1;
        if self.looks.count.is_multiple_of(LOOKS_A_LISTING) {
            self.looks.end = None;
        }
        let position = self.table.position().await?;
        let at = position.as_ref().map(|position| position.sequence);
        if at != self.looks.seen {
            (self.looks.seen, self.looks.patience) = (at, PATIENCE);
        }
        if let Some(position) = &position {
            match self.archive.head(position.sequence).await {
                // SKIP has moved past an object that says nothing of itself.
                Err(ArchiveError::Foreign { .. }) if position.observation.is_none() => {}
                Ok(Some(head)) => {
                    status::note_object(position.sequence);
                    check_position(position, &head.metadata)?;
                    events::stands_at(&head.metadata);
                }
                // An old object may be gone; the next one's `previous` speaks for it. The end may not.
                Ok(None) => {
                    let end = self.archive.end().await?;
                    status::note_end(end);
                    why_missing(Some(position), end)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.follow(position, goal, shutdown).await
    }

    /// Applies what a message points to, and what is before it.
    pub async fn follow_pointer(&mut self, named: Sequence, shutdown: &Shutdown) -> Result<Followed, FollowError> {
        let position = self.table.position().await?;
        self.follow(position, Goal::Named(named), shutdown).await
    }

    /// Ends the transaction of a transformer that vanished or froze, if that is what keeps this one from work.
    pub async fn take_over_from_the_silent(&mut self) -> Result<bool, FollowError> {
        let has_ended = self.table.end_silent_holder(self.looks.patience).await?;
        if has_ended {
            self.looks.patience *= 2;
        }
        Ok(has_ended)
    }

    async fn follow(
        &mut self,
        mut position: Option<Position>,
        goal: Goal,
        shutdown: &Shutdown,
    ) -> Result<Followed, FollowError> {
        let Self { archive, table, skip, looks, runs } = self;
        let mut ahead = Prefetch::new(&*archive);
        // How far to read ahead. What a message names close by may be asked for without being believed; else the end is listed once there is
        // more than one object to catch up with.
        let near = next_after(position.as_ref()).get() + NEAR;
        let mut last =
            if let Goal::Named(named) = goal { Some(named).filter(|named| named.get() < near) } else { None };
        while !shutdown.is_draining() {
            if let Some((_, hold)) = runs.braked.as_ref().filter(|(at, _)| *at == position) {
                return Err(hold.clone().into());
            }
            status::note_position(position.as_ref().map(|position| position.sequence));
            let sequence = next_after(position.as_ref());
            if goal.is_passed(sequence) {
                break;
            }
            let (attempt, next) = if skip.contains(sequence) {
                let Some(attempt) = skip_object(archive, table, position.as_ref(), sequence).await? else { break };
                (attempt, None)
            } else {
                let asked = Instant::now();
                let found = next_object(archive, &mut ahead, position.as_ref(), goal, last, &mut looks.end).await?;
                let Some(object) = found else { break };
                crash_point!("object-found");
                events::took("get", asked.elapsed());
                check_next(position.as_ref(), &object.metadata)?;
                if !runs.has_begun {
                    // An object that kills the process each time is named by the last line before.
                    info!(%sequence, observation = %object.metadata.observation, bytes = object.bytes, "begins with");
                    runs.has_begun = true;
                }
                let limit = if table.judges(&object.metadata) { 1 } else { runs.limit(sequence) };
                let run = gather(&mut ahead, (sequence, object), limit, |sequence, metadata| {
                    Some(sequence) <= last && !skip.contains(sequence) && !table.judges(metadata)
                });
                let newest = run.last().expect("a run has an object");
                let next = Position::after(newest.0, &newest.1.metadata);
                status::note_object(next.sequence);
                let applied = apply(archive, table, &mut ahead, position.as_ref(), run, runs).await;
                if let Err(FollowError::Table(TableError::TooManyIds(TooManyIds { ids }))) = applied {
                    let hold = Hold::TooManyIds { sequence, ids };
                    runs.braked = Some((position, hold.clone()));
                    return Err(hold.into());
                }
                (applied?, Some(next))
            };
            position = match attempt {
                Attempt::Busy => return Ok(Followed::Busy),
                Attempt::Applied(_) => {
                    let position = if next.is_some() { next } else { table.position().await? };
                    if last.is_none() && !goal.is_passed(next_after(position.as_ref())) {
                        let end = archive.end().await?;
                        status::note_end(end);
                        last = goal.at_most(end);
                    }
                    position
                }
                Attempt::Braked { gone, present, ids } => {
                    let hold = Hold::RowsAbsent { sequence, gone, present, ids };
                    runs.braked = Some((position, hold.clone()));
                    return Err(hold.into());
                }
                Attempt::Moved | Attempt::Broken { .. } | Attempt::WrongBytes { .. } | Attempt::Unseen { .. } => {
                    table.position().await?
                }
            };
        }
        Ok(Followed::ToTheGoal)
    }
}

/// The object and those behind it that have arrived, are small, continue the archive and may be applied with others, at most `limit` of them.
fn gather<A: Archive>(
    ahead: &mut Prefetch<'_, A>,
    first: (Sequence, Object),
    limit: usize,
    may_be_together: impl Fn(Sequence, &Metadata) -> bool,
) -> Vec<(Sequence, Object)> {
    let mut at = Position::after(first.0, &first.1.metadata);
    let mut bytes = first.1.bytes;
    let is_alone = !is_small(&first.1);
    let mut run = vec![first];
    while !is_alone && run.len() < limit && bytes < BYTES_AHEAD {
        let next = at.sequence.next();
        let is_wanted = |Object { metadata, .. }: &Object| {
            check_next(Some(&at), metadata).is_ok() && may_be_together(next, metadata)
        };
        let Some(object) = ahead.take_if(is_wanted) else { break };
        at = Position::after(at.sequence.next(), &object.metadata);
        bytes += object.bytes;
        run.push((at.sequence, object));
    }
    run
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
        match read_why_missing(archive, position, goal).await? {
            Missing::AtTheEnd => {
                *known_end = at;
                return Ok(None);
            }
            Missing::Hole { end } if was_absent => {
                *known_end = None;
                return Err(Hold::ObjectMissing { missing: sequence, end }.into());
            }
            // It may have been appended after the look.
            Missing::Hole { .. } => was_absent = true,
        }
    }
}

/// What it means that the next object is not there.
async fn read_why_missing(
    archive: &impl Archive,
    position: Option<&Position>,
    goal: Goal,
) -> Result<Missing, FollowError> {
    let end = archive.end().await?;
    status::note_end(end);
    let why = why_missing(position, end)?;
    if let (Goal::Named(named), Missing::AtTheEnd) = (goal, why) {
        events::pointer_beyond_the_end(named);
    }
    Ok(why)
}

/// Applies a run. One that is refused is applied object by object, and an object whose own fault that is, is quarantined.
async fn apply<A: Archive, T: Table>(
    archive: &A,
    table: &mut T,
    ahead: &mut Prefetch<'_, A>,
    position: Option<&Position>,
    mut run: Vec<(Sequence, Object)>,
    runs: &mut Runs,
) -> Result<Attempt, FollowError> {
    if let [_] = run.as_slice() {
        let (sequence, object) = run.remove(0);
        return apply_one(archive, table, ahead, position, (sequence, object), runs).await;
    }
    let started = Instant::now();
    let objects: Vec<_> = run.iter().map(|(sequence, object)| (*sequence, object.metadata.clone())).collect();
    // Until it is a success.
    runs.longest = 0;
    let why = match ahead.meanwhile(table.apply(position, run, Care::None)).await {
        Ok(Attempt::Applied(counts)) => {
            runs.longest = objects.len();
            events::loaded(&objects, &counts, started.elapsed());
            return Ok(Attempt::Applied(counts));
        }
        Ok(attempt @ (Attempt::Busy | Attempt::Moved | Attempt::Unseen { .. } | Attempt::Braked { .. })) => {
            return Ok(attempt);
        }
        Ok(Attempt::WrongBytes { .. }) => "the bytes of one are not those that were archived".to_owned(),
        Ok(Attempt::Broken { reason, .. }) => reason,
        Err(error) if error.fault() == Fault::Dependency && !error.is_too_slow() => return Err(error.into()),
        // Alone it shows whose fault it is.
        Err(error) => error.database_message(),
    };
    let (first, last) = (next_after(position), objects.last().map(|(sequence, _)| *sequence));
    events::run_refused(first, objects.len(), &why);
    runs.alone_to = last;
    // So that the position is asked for anew.
    Ok(Attempt::Moved)
}

/// Applies one object, or quarantines it when the fault is its own.
async fn apply_one<A: Archive, T: Table>(
    archive: &A,
    table: &mut T,
    ahead: &mut Prefetch<'_, A>,
    position: Option<&Position>,
    (sequence, object): (Sequence, Object),
    runs: &mut Runs,
) -> Result<Attempt, FollowError> {
    let started = Instant::now();
    let metadata = object.metadata.clone();
    let (mut object, mut reads, mut is_seen_again) = (Some(object), 1, false);
    let (bytes, reason) = loop {
        let Some(body) = object.take() else { return Ok(Attempt::Moved) };
        let care = if runs.careful == Some(sequence) { Care::EachRecord } else { Care::None };
        match ahead.meanwhile(table.apply(position, vec![(sequence, body)], care)).await {
            Ok(Attempt::WrongBytes { bytes }) => {
                warn!(%sequence, observation = %metadata.observation, reads, "the bytes are not those that were archived");
                if reads == READS {
                    break (
                        bytes,
                        format!("its bytes are not those that were archived, {READS} times: their SHA-256 is another"),
                    );
                }
                (reads, is_seen_again) = (reads + 1, false);
            }
            Ok(Attempt::Broken { bytes, reason }) => break (bytes, reason),
            // Twice: what is there now belongs to other snapshots than what was applied.
            Ok(Attempt::Unseen { first }) if is_seen_again => {
                return Err(Hold::PageMissing { missing: first, sequence }.into());
            }
            Ok(Attempt::Unseen { first }) => {
                see_again(archive, table, first, sequence).await?;
                is_seen_again = true;
            }
            Ok(attempt) => {
                if let Attempt::Applied(counts) = &attempt {
                    (runs.careful, runs.longest) = (None, runs.longest.max(1));
                    events::loaded(&[(sequence, metadata)], counts, started.elapsed());
                }
                return Ok(attempt);
            }
            Err(error) if care == Care::None && (error.fault() == Fault::Record || error.is_too_slow()) => {
                warn!(%sequence, observation = %metadata.observation, why = error.database_message(), "Postgres refuses a record: each is tried alone");
                (runs.careful, is_seen_again) = (Some(sequence), false);
            }
            Err(error) => return Err(error.into()),
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
        counts: Counts::default(),
    };
    let attempt = table.pass_over(position, &line).await?;
    crash_point!("quarantined");
    if let Attempt::Applied(_) = attempt {
        events::passed_over(&line);
    }
    Ok(attempt)
}

/// Reads the pages of a snapshot before this one again, for the ids of their records: another process has applied them.
async fn see_again<A: Archive>(
    archive: &A,
    table: &mut impl Table,
    first: Sequence,
    sequence: Sequence,
) -> Result<(), FollowError> {
    let mut pages = Prefetch::new(archive);
    let mut page = first;
    while page < sequence {
        let missing = Hold::PageMissing { missing: page, sequence };
        let Some(object) = pages.get(page, sequence).await? else { return Err(missing.into()) };
        if !table.see(page, object).await? {
            return Err(missing.into());
        }
        page = page.next();
    }
    crash_point!("ids-seen-again");
    Ok(())
}

/// Moves past an object that a person does without, whether it is there or not. `None` beyond the end of the archive.
async fn skip_object(
    archive: &impl Archive,
    table: &mut impl Table,
    position: Option<&Position>,
    sequence: Sequence,
) -> Result<Option<Attempt>, FollowError> {
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
        counts: Counts::default(),
    };
    let attempt = table.pass_over(position, &line).await?;
    crash_point!("skipped");
    if let Attempt::Applied(_) = attempt {
        events::passed_over(&line);
    }
    Ok(Some(attempt))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, future::poll_fn, task::Poll};

    use jiff::Timestamp;
    use shared::{
        archive::{Append, Upload},
        object::{Sha256, SnapshotFacts},
    };
    use uuid::Uuid;

    use super::*;

    /// The size of each body in bytes, by sequence.
    struct Bodies(BTreeMap<Sequence, usize>);

    fn sequence(number: u64) -> Sequence {
        Sequence::try_from(number).unwrap()
    }

    fn observation(number: u64) -> Uuid {
        Uuid::from_u128(number.into())
    }

    /// Number 50 does not continue what is before it.
    fn metadata(sequence: Sequence) -> Metadata {
        let number = sequence.get();
        let previous = observation(if number == 50 { 99 } else { number - 1 });
        Metadata {
            archive_id: Uuid::nil(),
            observation: observation(number),
            previous: (number > 1).then_some(previous),
            sha256: Sha256([0; 32]),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: sequence,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256([0; 32]),
            facts: SnapshotFacts::default(),
        }
    }

    impl Archive for Bodies {
        async fn end(&self) -> Result<Option<Sequence>, ArchiveError> {
            unreachable!("nobody asks for the end")
        }

        async fn head(&self, _: Sequence) -> Result<Option<Head>, ArchiveError> {
            unreachable!("nobody asks for a head")
        }

        async fn get(&self, sequence: Sequence) -> Result<Option<Object>, ArchiveError> {
            Ok(self.0.get(&sequence).map(|bytes| Object::of_bytes(metadata(sequence), vec![b' '; *bytes].into())))
        }

        async fn append(&self, _: Sequence, _: &Metadata, _: &Upload) -> Result<Append, ArchiveError> {
            unreachable!("nobody appends")
        }
    }

    /// Those that are gathered when all up to `last` have arrived, and what comes next.
    async fn gathered(sizes: &[usize], most: usize, last: u64, skip: &str) -> (Vec<u64>, Option<u64>) {
        let archive = Bodies((1..).map(sequence).zip(sizes.iter().copied()).collect());
        let mut ahead = Prefetch::new(&archive);
        let (first, last) = (sequence(1), sequence(last));
        let object = ahead.get(first, last).await.unwrap().unwrap();
        let mut turns = 0;
        let turns = poll_fn(|context| {
            turns += 1;
            context.waker().wake_by_ref();
            if turns > 100 { Poll::Ready(()) } else { Poll::Pending }
        });
        ahead.meanwhile(turns).await;
        let skip: Sequences = skip.parse().unwrap();
        let run = gather(&mut ahead, (first, object), most, |sequence, _| sequence <= last && !skip.contains(sequence));
        let next = ahead.take_if(|_| true).map(|object| object.metadata.snapshot.get());
        (run.iter().map(|(sequence, _)| sequence.get()).collect(), next)
    }

    #[tokio::test]
    async fn the_objects_of_a_run_are_small_continue_the_archive_and_are_not_too_much() {
        let numbers = |to: u64| (1..=to).collect::<Vec<_>>();
        assert_eq!(gathered(&[2; 5], 64, 5, "").await, (numbers(5), None), "all of them");
        assert_eq!(gathered(&[2; 5], 3, 5, "").await, (numbers(3), Some(4)), "as many as may be");
        assert_eq!(gathered(&[2; 5], 64, 4, "").await, (numbers(4), None), "to the last");
        assert_eq!(gathered(&[2; 5], 64, 5, "3").await, (numbers(2), Some(3)), "not what is skipped");
        assert_eq!(gathered(&[2; 60], 64, 60, "").await, (numbers(49), Some(50)), "not what does not continue");
        assert_eq!(gathered(&[200_000, 2], 64, 2, "").await, (numbers(1), Some(2)), "not behind what is large");
        assert_eq!(gathered(&[2, 2, 200_000, 2], 64, 4, "").await, (numbers(2), None), "not what is large");
        assert_eq!(gathered(&[128 * 1024; 45], 64, 45, "").await, (numbers(32), Some(33)), "not too many bytes");
    }

    #[test]
    fn runs_grow_and_begin_anew_after_a_failure() {
        let mut runs = Runs::default();
        let limits = [0, 1, 2, 300, 512].map(|longest| {
            runs.longest = longest;
            runs.limit(sequence(7))
        });
        assert_eq!(limits, [1, 2, 4, 512, 512]);
        runs.alone_to = Some(sequence(8));
        assert_eq!([7, 8, 9].map(|number| runs.limit(sequence(number))), [1, 1, 512]);
    }
}
