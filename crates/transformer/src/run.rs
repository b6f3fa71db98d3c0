//! The loop, and the only file that knows the order of the steps.
//!
//! Look first, then listen: at the start, after a fault and every interval the archive itself is looked at, so that a queue
//! that says nothing, or nothing true, costs time and never data. While the archive or the database fails, nothing is
//! received: a message in hand would only run out.

use std::time::Duration;

use clap::Args;
use shared::{
    archive::{Archive, ArchiveError, Object},
    object::{Metadata, Sequence, StreamName},
    pointer::Pointer,
    settings::parse_duration,
    shutdown::Shutdown,
    telemetry::{State, Status, chain},
};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::{
    bell::{Bell, BellError, LONGEST_WAIT, Ring},
    decide::{Absence, Hold, Position, absence, check_next, check_position, next_after, state_after},
    table::{Counts, Outcome, Table, TableError},
};

/// The first pause after a fault; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause while a dependency fails: short enough that its return is noticed soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How often to look again at what only a person can settle.
const HOLD_PAUSE: Duration = Duration::from_mins(1);

/// How often to look whether another transformer is still at work.
const STAND_BY_PAUSE: Duration = Duration::from_secs(5);

/// How often an object is read whose bytes are not those that were archived, before it is written off.
const READS: u32 = 3;

/// How often.
#[derive(Args, Clone, Copy, Debug)]
pub struct PaceSettings {
    /// How often to look at the archive when the queue says nothing, as in 5s or 1m
    #[arg(long, env = "CATCH_UP_INTERVAL", value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    pub catch_up_interval: Duration,
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
    Bell(#[from] BellError),
    /// A person's.
    #[error(transparent)]
    Hold(#[from] Hold),
}

/// How far following came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Followed {
    /// As far as was asked.
    ToTheEnd,
    /// Another transformer has the stream.
    Busy,
}

/// One stream's transformer.
#[derive(Debug)]
pub struct Transformer<A, B, T> {
    archive: A,
    bell: B,
    table: T,
    stream: StreamName,
    status: Status,
    /// A queue that fails is not well again because the archive is.
    is_deaf: bool,
}

impl<A: Archive, B: Bell, T: Table> Transformer<A, B, T> {
    /// A transformer that knows nothing yet.
    pub fn new(archive: A, bell: B, table: T, stream: StreamName, status: Status) -> Self {
        Self { archive, bell, table, stream, status, is_deaf: false }
    }

    /// Follows the archive until the daemon drains.
    pub async fn run(mut self, pace: PaceSettings, mut shutdown: Shutdown) {
        let mut faults = 0;
        while !shutdown.is_draining() {
            let pause = match self.look_and_listen(pace, &mut shutdown).await {
                Ok(Followed::ToTheEnd) => {
                    faults = 0;
                    continue;
                }
                Ok(Followed::Busy) => {
                    self.status.set(State::StandingBy);
                    STAND_BY_PAUSE.min(pace.catch_up_interval)
                }
                Err(fault) => {
                    let state = state_after(&fault);
                    let is_held = matches!(state, State::Holding(_));
                    self.status.set(state);
                    faults += 1;
                    if is_held { HOLD_PAUSE.min(pace.catch_up_interval) } else { pause_after(faults) }
                }
            };
            // Nothing is in hand.
            shutdown.race(sleep(pause)).await;
        }
    }

    /// Looks at the archive, and listens to the queue until it is time to look again. Whatever fails ends both, so that
    /// after the pause comes a look.
    async fn look_and_listen(&mut self, pace: PaceSettings, shutdown: &mut Shutdown) -> Result<Followed, FollowError> {
        if self.look(shutdown).await? == Followed::Busy {
            return Ok(Followed::Busy);
        }
        if !self.is_deaf {
            self.status.set(State::Ready);
        }
        let next_look = Instant::now() + pace.catch_up_interval;
        while Instant::now() < next_look {
            let wait = next_look.saturating_duration_since(Instant::now()).min(LONGEST_WAIT);
            // Dropped in the middle, what it would have brought comes again.
            let Some(rings) = shutdown.race(self.bell.receive(wait)).await else { break };
            self.is_deaf = rings.is_err();
            let rings = rings?;
            self.status.set(State::Ready);
            if !rings.is_empty() && self.answer(&rings, shutdown).await? == Followed::Busy {
                return Ok(Followed::Busy);
            }
        }
        Ok(Followed::ToTheEnd)
    }

    /// The idle look: is the archive still the one that was followed, and is there more of it?
    async fn look(&mut self, shutdown: &Shutdown) -> Result<Followed, FollowError> {
        let position = self.table.position().await?;
        if let Some(position) = &position {
            match self.archive.head(position.sequence).await? {
                Some(head) => check_position(position, &head.metadata)?,
                // An old object may be gone; the next one's `previous` speaks for it. The end may not.
                None => {
                    absence(Some(position), self.archive.end().await?)?;
                }
            }
        }
        self.follow(position, None, shutdown).await
    }

    /// Applies what the messages point to, then deletes them: after COMMIT, never before.
    async fn answer(&mut self, rings: &[Ring], shutdown: &Shutdown) -> Result<Followed, FollowError> {
        let mut newest = None;
        let mut is_strange = false;
        for ring in rings {
            match Pointer::decode(&ring.body, &self.stream) {
                Ok(pointer) => {
                    debug!(sequence = %pointer.sequence, observation = %pointer.observation, "heard");
                    newest = newest.max(Some(pointer.sequence));
                }
                Err(error) => {
                    warn!(why = chain(&error), "strange bell");
                    is_strange = true;
                }
            }
        }
        let mut followed = Followed::ToTheEnd;
        if newest.is_some() {
            let position = self.table.position().await?;
            followed = self.follow(position, newest, shutdown).await?;
        }
        if is_strange && followed == Followed::ToTheEnd {
            followed = self.look(shutdown).await?;
        }
        // Undeleted, they come again, when whoever is at work now is done.
        if followed == Followed::ToTheEnd && !shutdown.is_draining() {
            self.bell.delete(rings).await;
        }
        Ok(followed)
    }

    /// Applies one object after the other, up to the one that a bell named, or until there is none.
    async fn follow(
        &mut self,
        mut position: Option<Position>,
        named: Option<Sequence>,
        shutdown: &Shutdown,
    ) -> Result<Followed, FollowError> {
        let mut was_absent = false;
        while !shutdown.is_draining() {
            let sequence = next_after(position.as_ref());
            if named.is_some_and(|named| sequence > named) {
                break;
            }
            let Some(object) = self.archive.get(sequence).await? else {
                // Without a bell, a look that finds the object at the position need not list: 404 is the end.
                if position.is_some() && named.is_none() {
                    break;
                }
                match absence(position.as_ref(), self.archive.end().await?)? {
                    Absence::AtTheEnd => {
                        if let Some(named) = named {
                            warn!(sequence = %named, why = "it points beyond the end of the archive", "strange bell");
                        }
                        break;
                    }
                    Absence::Hole { end } if was_absent => {
                        return Err(Hold::ObjectMissing { missing: sequence, end }.into());
                    }
                    // It may have been appended after the look.
                    Absence::Hole { .. } => was_absent = true,
                }
                continue;
            };
            was_absent = false;
            check_next(position.as_ref(), &object.metadata)?;
            let metadata = object.metadata.clone();
            match self.apply(position.as_ref(), sequence, object).await? {
                Outcome::Applied(_) => position = Some(Position::after(sequence, &metadata)),
                Outcome::Busy => return Ok(Followed::Busy),
                Outcome::Moved | Outcome::Broken { .. } | Outcome::WrongBytes { .. } => {
                    position = self.table.position().await?;
                }
            }
        }
        Ok(Followed::ToTheEnd)
    }

    /// Applies one object, or writes it off when the fault is its own.
    async fn apply(
        &mut self,
        position: Option<&Position>,
        sequence: Sequence,
        object: Object,
    ) -> Result<Outcome, FollowError> {
        let metadata = object.metadata.clone();
        let started = Instant::now();
        let mut object = Some(object);
        let mut written_off = None;
        for read in 1..=READS {
            let Some(body) = object.take() else { return Ok(Outcome::Moved) };
            match self.table.apply(position, sequence, body).await? {
                Outcome::WrongBytes { bytes } => {
                    warn!(%sequence, observation = %metadata.observation, read, "the bytes are not those that were archived");
                    let reason = "its bytes are not those that were archived, three times: their SHA-256 is another";
                    written_off = Some((bytes, reason.to_owned()));
                    object = self.archive.get(sequence).await?;
                }
                Outcome::Broken { bytes, reason } => {
                    written_off = Some((bytes, reason));
                    break;
                }
                Outcome::Applied(counts) => {
                    note_applied(sequence, &metadata, counts, started);
                    return Ok(Outcome::Applied(counts));
                }
                outcome @ (Outcome::Busy | Outcome::Moved) => return Ok(outcome),
            }
        }
        let (bytes, reason) = written_off.expect("each read ended with an outcome");
        let outcome = self.table.quarantine(position, sequence, &metadata, bytes, &reason).await?;
        if let Outcome::Applied(_) = outcome {
            warn!(%sequence, observation = %metadata.observation, outcome = "quarantined", reason, "applied");
        }
        Ok(outcome)
    }
}

fn note_applied(sequence: Sequence, metadata: &Metadata, counts: Counts, started: Instant) {
    let Counts { records, inserted, updated, quarantined } = counts;
    let unchanged = records.saturating_sub(inserted + updated + quarantined);
    info!(
        %sequence, observation = %metadata.observation, outcome = "loaded", records, inserted, updated, unchanged, quarantined,
        elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX), "applied"
    );
}

/// Doubles with each fault in a row.
fn pause_after(faults: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(faults.saturating_sub(1))).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<_> = [1, 2, 3, 7, 100].into_iter().map(|faults| pause_after(faults).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1_000, 15_000, 15_000]);
    }
}
