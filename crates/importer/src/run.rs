//! The loop, and the only file that knows the order of the steps.
//!
//! The order is the protocol: the end of the archive is known *before* the fetch begins, so the archive's order is the
//! order of observation, without clocks or leases; whoever loses a number throws its answer away and asks again.

use std::time::{Duration, Instant};

use clap::Args;
use shared::{
    archive::{Append, Archive, ArchiveError},
    object::{Metadata, Sequence, StreamName},
    pointer::Pointer,
    settings::parse_duration,
    shutdown::Shutdown,
    telemetry::{State, Status},
};
use thiserror::Error;
use tokio::time::{self, MissedTickBehavior};
use tracing::{debug, info};

use crate::{
    bell::{Bell, BellError},
    decide::{End, Winner, next_object, state_after, validators, winner},
    poll::{Answer, PollError, Polled, Source},
};

/// An append whose outcome is unknown is tried again after these pauses. Together they stay below the drain deadline;
/// after the last, the next poll finds out what became of it.
const APPEND_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_millis(2500)];

/// How often.
#[derive(Args, Clone, Copy, Debug)]
pub struct PaceSettings {
    /// Time from the start of one poll to the start of the next, as in 2s or 5m
    #[arg(long, env = "POLL_INTERVAL", value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    pub poll_interval: Duration,
}

/// Why a poll came to nothing.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The archive's side.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The API's side.
    #[error(transparent)]
    Poll(#[from] PollError),
    /// The queue's side. What was fetched is archived all the same.
    #[error(transparent)]
    Bell(#[from] BellError),
    /// The archive no longer ends where it did when the fetch began: another importer appended, or somebody deleted.
    #[error("the archive no longer ended before sequence {sequence} when the answer was there")]
    EndMoved {
        /// The number that the answer would have had.
        sequence: Sequence,
    },
}

/// One stream's importer.
#[derive(Debug)]
pub struct Importer<S, A, B> {
    source: S,
    archive: A,
    bell: B,
    stream: StreamName,
    status: Status,
    end: KnownEnd,
    /// The newest object that the queue was told of by this process.
    announced: Option<Sequence>,
    /// What the queue should be told next.
    news: Option<Pointer>,
}

/// What this process knows of the archive's end. It is only ever learnt from the archive, never from an own answer.
#[derive(Clone, Debug)]
enum KnownEnd {
    Unknown,
    Empty,
    At(End),
}

impl KnownEnd {
    fn get(&self) -> Option<&End> {
        match self {
            Self::At(end) => Some(end),
            Self::Unknown | Self::Empty => None,
        }
    }
}

impl<S: Source, A: Archive, B: Bell> Importer<S, A, B> {
    /// An importer that knows nothing yet.
    pub fn new(source: S, archive: A, bell: B, stream: StreamName, status: Status) -> Self {
        Self { source, archive, bell, stream, status, end: KnownEnd::Unknown, announced: None, news: None }
    }

    /// Polls until the daemon drains.
    pub async fn run(mut self, pace: PaceSettings, mut shutdown: Shutdown) {
        let mut ticks = time::interval(pace.poll_interval);
        // After a suspended laptop or a slow poll the next one is due at once, and only one.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.race(ticks.tick()).await.is_some() {
            match self.poll().await {
                Ok(()) => self.status.set(State::Ready),
                Err(fault) => self.status.set(state_after(&fault)),
            }
        }
    }

    /// One poll, with all that belongs to it. Killed between any two lines, the next poll of any importer goes on.
    async fn poll(&mut self) -> Result<(), ImportError> {
        let archived = self.archive_an_observation().await;
        // The bell rings even when the API is down: there may be news from before.
        let announced = self.announce().await;
        archived.and(announced)
    }

    async fn archive_an_observation(&mut self) -> Result<(), ImportError> {
        self.find_end().await?;
        let started = Instant::now();
        let answer = match self.source.poll(validators(self.end.get())).await? {
            Polled::Answer(answer) => answer,
            Polled::NotModified => return Ok(self.note_unchanged(started)),
        };
        let Some((sequence, metadata)) = next_object(self.end.get(), &answer) else {
            return Ok(self.note_unchanged(started));
        };
        let fetched = started.elapsed();
        self.append(sequence, &metadata, &answer).await?;
        info!(
            %sequence, observation = %metadata.observation, key = sequence.key(&self.stream), bytes = answer.spooled.upload.bytes,
            fetch_ms = millis(fetched), append_ms = millis(started.elapsed().saturating_sub(fetched)), "appended"
        );
        self.news = Some(Pointer::new(&self.stream, sequence, &metadata));
        Ok(())
    }

    /// Brings `self.end` up to the archive. One HEAD when nothing happened since the last poll; four listings at the start.
    ///
    /// Without the look past the known end, a state that another importer appended before it died could stay the last word.
    async fn find_end(&mut self) -> Result<(), ImportError> {
        if let KnownEnd::Unknown = self.end {
            match self.archive.end().await? {
                None => self.end = KnownEnd::Empty,
                Some(sequence) => match self.archive.head(sequence).await? {
                    Some(metadata) => self.adopt(End { sequence, metadata }),
                    None => return Err(ImportError::EndMoved { sequence }),
                },
            }
        }
        loop {
            let sequence = self.end.get().map_or(Sequence::FIRST, |end| end.sequence.next());
            let Some(metadata) = self.archive.head(sequence).await? else { return Ok(()) };
            self.adopt(End { sequence, metadata });
        }
    }

    fn adopt(&mut self, end: End) {
        if self.announced.is_none_or(|announced| announced < end.sequence) {
            info!(sequence = %end.sequence, observation = %end.metadata.observation, "adopted");
            self.news = Some(Pointer::new(&self.stream, end.sequence, &end.metadata));
        }
        self.end = KnownEnd::At(end);
    }

    /// Writes the object, and finds out whether it was written when the answer does not say.
    async fn append(&mut self, sequence: Sequence, metadata: &Metadata, answer: &Answer) -> Result<(), ImportError> {
        self.check_end(sequence).await?;
        let mut pauses = APPEND_AGAIN_AFTER.into_iter();
        loop {
            let outcome = match self.archive.append(sequence, metadata, &answer.spooled.upload).await {
                Ok(Append::Done) => return Ok(()),
                Ok(Append::Taken) => match winner(metadata.observation, self.archive.head(sequence).await?.as_ref()) {
                    Winner::Us => return Ok(()),
                    Winner::Another => return Err(self.end_moved(sequence)),
                    Winner::Nobody => Err(self.end_moved(sequence)),
                },
                Err(unknown @ ArchiveError::Failed { .. }) => Err(unknown.into()),
                Err(refused) => return Err(refused.into()),
            };
            match pauses.next() {
                Some(pause) => time::sleep(pause).await,
                None => return outcome,
            }
        }
    }

    /// The object that the new one will name as `previous` must still be there and be the same: nothing is appended to an
    /// archive that was emptied or forked since the last poll.
    async fn check_end(&mut self, sequence: Sequence) -> Result<(), ImportError> {
        let Some(end) = self.end.get() else { return Ok(()) };
        if self.archive.head(end.sequence).await?.as_ref() == Some(&end.metadata) {
            return Ok(());
        }
        Err(self.end_moved(sequence))
    }

    /// Forgets the end, so that the next poll reads it anew.
    fn end_moved(&mut self, sequence: Sequence) -> ImportError {
        self.end = KnownEnd::Unknown;
        ImportError::EndMoved { sequence }
    }

    async fn announce(&mut self) -> Result<(), ImportError> {
        let Some(pointer) = &self.news else { return Ok(()) };
        let started = Instant::now();
        self.bell.ring(pointer).await?;
        info!(sequence = %pointer.sequence, observation = %pointer.observation, elapsed_ms = millis(started.elapsed()), "announced");
        self.announced = Some(pointer.sequence);
        self.news = None;
        Ok(())
    }

    fn note_unchanged(&self, started: Instant) {
        debug!(elapsed_ms = millis(started.elapsed()), "unchanged");
    }
}

/// For log fields.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
