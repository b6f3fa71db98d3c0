//! The loop, and the only file that knows the order of the steps.
//!
//! The order is the protocol: the end of the archive is known *before* the fetch begins, so the archive's order is the
//! order of observation, without clocks or leases; whoever loses a number throws its answer away and asks again.

use std::{error::Error, iter, time::Duration};

use clap::Args;
use jiff::Timestamp;
use shared::{
    archive::{Append, Archive, ArchiveError, Upload},
    crash_point,
    object::{Metadata, Sequence, StreamName},
    pointer::Pointer,
    settings::parse_duration,
    shutdown::Shutdown,
    status::{self, Dependency, State, Status},
    telemetry::chain,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::warn;
use uuid::Uuid;

use crate::{
    body::record_hashes,
    events::{self, Took},
    fault::{ImportError, Outcome, Pace, next_poll, result, state_after},
    queue::Queue,
    retry::{LONGEST_PAUSE, jittered, limit_wait},
    snapshot::{End, Snapshot, Times, Validators, is_new, is_wanted_again, next_objects, times},
    source::{PollError, Source},
};

/// An append whose outcome is unknown is tried again after these pauses. Together they stay below the drain deadline;
/// after the last, the next poll finds out what became of it.
const APPEND_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_millis(2500)];

/// After this many polls with validators, one asks without them, and the archive's end is looked at. A 304 need not
/// carry `Link` (RFC 9110, 15.4.5), so a collection that grew a second page behind an unchanged first one would stay as it was.
/// `once` forgets, and finds that with the first change.
const BELIEVED_POLLS: u32 = 60;

/// An older answer is not believed to be still so: a file that was put back with an older time is a 304 for ever.
const BELIEVED_FOR: Duration = Duration::from_hours(24);

/// Up to this many objects of other importers are adopted one by one. When there are more, listing is quicker.
const MOST_ADOPTED: u32 = 100;

/// As many bytes of a snapshot that another process has appended are read to tell what an increment adds to it.
const KNOWN_BYTES: u64 = 64 << 20;

/// This many polls in a row that bring other records are no coincidence.
const STREAK_POLLS: u32 = 10;

/// How often.
#[derive(Args, Clone, Copy, Debug)]
pub struct PaceSettings {
    /// Time from the start of one poll to the start of the next, give or take a tenth, as in 2s or 5m
    #[arg(long, env = "POLL_INTERVAL", value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    pub poll_interval: Duration,
}

/// One stream's importer.
#[derive(Debug)]
pub struct Importer<S, A, Q> {
    source: S,
    archive: A,
    queue: Q,
    stream: StreamName,
    status: Status,
    /// The archive's end, as far as this process knows it. It is only ever learnt from the archive, never from an own answer.
    end: Option<Box<End>>,
    /// How many polls ago the answer was asked for whole.
    believed: u32,
    /// When this process last got a whole answer.
    answered_at: Option<Timestamp>,
    /// What the API said of itself when a whole answer last was what the archive ends with: newer than what the end says.
    confirmed: Option<Confirmed>,
    /// The hashes of the records of the snapshot that ends with this observation, in order.
    known: Option<(Uuid, Vec<u64>)>,
    /// The newest object that the queue was told of by this process.
    announced: Option<Sequence>,
    /// What the queue should be told next.
    news: Vec<Pointer>,
}

/// What the API has said of itself since the archive ends with this observation, which was nothing new.
#[derive(Debug)]
struct Confirmed {
    observation: Uuid,
    validators: Validators,
    times: Times,
}

impl Confirmed {
    fn by(end: &Metadata, snapshot: &Snapshot) -> Self {
        let times = times(Some(end), &snapshot.facts, false);
        Self { observation: end.observation, validators: snapshot.validators.clone(), times }
    }

    /// The whole collection was asked for, and a 304 came: it is what it was.
    fn by_304(end: &Metadata, asked_at: Timestamp) -> Self {
        let Metadata { observation, etag, last_modified, facts, .. } = end;
        let validators = Validators { etag: etag.clone(), last_modified: last_modified.clone() };
        let times = Times { as_of: facts.as_of, whole_at: Some(asked_at) };
        Self { observation: *observation, validators, times }
    }
}

impl<S: Source, A: Archive, Q: Queue> Importer<S, A, Q> {
    /// An importer that knows nothing yet.
    pub fn new(source: S, archive: A, queue: Q, stream: StreamName, status: Status) -> Self {
        Self {
            source,
            archive,
            queue,
            stream,
            status,
            end: None,
            believed: 0,
            answered_at: None,
            confirmed: None,
            known: None,
            announced: None,
            news: Vec::new(),
        }
    }

    /// Polls until the daemon drains.
    pub async fn run(mut self, pace: PaceSettings, mut dice: fastrand::Rng, mut shutdown: Shutdown) {
        let (mut faults, mut streak) = (0, Streak::default());
        loop {
            // The monotonic clock: neither a step of the wall clock nor a suspended machine brings a burst of polls.
            let started = Instant::now();
            let regular = started + jittered(pace.poll_interval, &mut dice);
            let polled = self.poll(false, &mut shutdown).await;
            if let Some((result, succeeded)) = result(&polled) {
                events::polled(result, succeeded);
            }
            let next = match &polled {
                Ok(Outcome::Drained) => return,
                Ok(outcome) => {
                    faults = 0;
                    self.status.set(State::Ready);
                    streak.add(outcome, pace.poll_interval);
                    regular
                }
                Err(fault) => {
                    faults += 1;
                    let now = Instant::now();
                    let next = next_poll(fault, faults, Pace { interval: pace.poll_interval, now, regular }, &mut dice);
                    let then = Timestamp::now() + (next - now);
                    self.status.set(state_after(fault, then));
                    if let ImportError::Poll(PollError::Http(error)) = fault {
                        events::waits_until(limit_wait(error).map(|_| then));
                    }
                    next
                }
            };
            while Instant::now() < next {
                let is_owing = !self.news.is_empty();
                let wait = next.saturating_duration_since(Instant::now());
                let wait = if is_owing { wait.min(LONGEST_PAUSE) } else { wait };
                status::beat_after(wait);
                // Nothing is in hand.
                if shutdown.race(sleep(wait)).await.is_none() {
                    return;
                }
                if is_owing && Instant::now() < next {
                    let is_all = self.announce().await.is_ok() && matches!(polled, Err(ImportError::Queue(_)));
                    if is_all {
                        self.status.set(State::Ready);
                    }
                }
            }
            if shutdown.is_draining() {
                return;
            }
            if let Err(fault @ ImportError::Poll(PollError::Http(error))) = &polled
                && limit_wait(error).is_some()
            {
                // The wait is over, and nothing is known of the API yet.
                events::waits_until(None);
                self.status.back_to(State::Waiting(Dependency::Api, chain(fault)));
            }
        }
    }

    /// One poll, with all that belongs to it. Killed between any two lines, the next poll of any importer goes on.
    pub async fn poll(&mut self, again: bool, shutdown: &mut Shutdown) -> Result<Outcome, ImportError> {
        let archived = self.archive_a_snapshot(again, shutdown).await;
        crash_point!("not-announced");
        // The queue is told even when the API is down: there may be news from before.
        let announced = self.announce().await;
        let outcome = archived?;
        announced.map(|()| outcome)
    }

    async fn archive_a_snapshot(&mut self, again: bool, shutdown: &mut Shutdown) -> Result<Outcome, ImportError> {
        self.find_end().await?;
        self.status.worked(&[Dependency::Archive]);
        crash_point!("end-found");
        let answered_at = self.answered_at.or(self.end.as_ref().map(|end| end.metadata.fetched_at));
        let is_old = answered_at.is_some_and(|at| is_old(at, Timestamp::now()));
        let is_unconditional = again || is_old || self.believed >= BELIEVED_POLLS;
        if is_unconditional {
            self.check_end().await?;
        }
        let (started, asked_at) = (Instant::now(), Timestamp::now());
        let end = self.end.as_ref().map(|end| self.believed_of(end));
        let mut last = end.as_ref().filter(|_| !again).map(|end| end.metadata.clone());
        if let Some(last) = last.as_mut().filter(|_| is_unconditional) {
            (last.etag, last.last_modified) = (None, None);
        }
        // Nothing is in hand: a fetch that is dropped leaves no trace.
        let Some(snapshot) = shutdown.race(self.source.poll(last.as_ref())).await.transpose()? else {
            return Ok(Outcome::Drained);
        };
        crash_point!("fetched");
        self.status.worked(&[Dependency::Api]);
        self.believed = if is_unconditional { 0 } else { self.believed + 1 };
        let Some(mut snapshot) = snapshot else {
            if let Some(confirmed) = end.map(|End { metadata, .. }| Confirmed::by_304(&metadata, asked_at)) {
                self.confirmed = Some(confirmed);
            }
            events::unchanged(started.elapsed());
            return Ok(Outcome::Unchanged);
        };
        self.status.worked(&[Dependency::Disk]);
        self.answered_at = Some(Timestamp::now());
        if let Some(End { metadata, .. }) = end.as_ref().filter(|_| !again) {
            let known = if snapshot.is_increment_with_records() { self.known().await? } else { None };
            let is_new = is_new(metadata, &snapshot, known);
            snapshot.facts.repeat = !is_new && is_wanted_again(metadata, &snapshot);
            if !is_new && !snapshot.facts.repeat {
                self.confirmed = Some(Confirmed::by(metadata, &snapshot));
                events::unchanged(started.elapsed());
                return Ok(Outcome::Unchanged);
            }
        }
        let objects = next_objects(end.as_ref(), &snapshot);
        let (fetch, mut bytes) = (started.elapsed(), 0);
        events::fetched(fetch);
        self.check_end().await?;
        crash_point!("end-checked");
        for ((sequence, metadata), page) in objects.iter().zip(&snapshot.pages) {
            let upload = &page.upload;
            let begun = Instant::now();
            self.append(*sequence, metadata, upload).await?;
            bytes += upload.bytes;
            let took = Took { fetch, append: begun.elapsed() };
            events::appended(&self.stream, *sequence, metadata, upload.bytes, took);
            self.news.push(Pointer::new(&self.stream, *sequence, metadata));
            crash_point!("between-pages");
        }
        self.known = objects.last().zip(snapshot.hashes).map(|((_, metadata), mut hashes)| {
            hashes.sort_unstable();
            (metadata.observation, hashes)
        });
        Ok(Outcome::Appended { bytes })
    }

    /// The archive's end, with what the API has said of itself since.
    fn believed_of(&self, end: &End) -> End {
        let End { sequence, mut metadata } = end.clone();
        if let Some(Confirmed { observation, validators: Validators { etag, last_modified }, times }) = &self.confirmed
            && *observation == metadata.observation
        {
            (metadata.etag, metadata.last_modified) = (etag.clone(), last_modified.clone());
            metadata.facts = times.onto(metadata.facts);
        }
        End { sequence, metadata }
    }

    /// The hashes of the records that the archive ends with, in order: of what this process has appended it knows them. `None` where that would
    /// be too much to read; then an increment may be appended once more.
    async fn known(&mut self) -> Result<Option<&[u64]>, ImportError> {
        let Some(End { sequence, metadata }) = self.end.as_deref() else { return Ok(None) };
        if self.known.as_ref().is_none_or(|(of, _)| *of != metadata.observation) {
            let (mut hashes, mut bytes) = (Vec::new(), 0);
            let pages = iter::successors(Some(metadata.snapshot), |page| Some(page.next()));
            for page in pages.take_while(|page| page <= sequence) {
                status::beat();
                let Some(object) = self.archive.get(page).await? else { return Ok(None) };
                bytes += object.bytes;
                if bytes > KNOWN_BYTES {
                    return Ok(None);
                }
                let at = object.metadata.facts.records_at.clone().unwrap_or_default();
                let body = object.into_bytes().await?;
                let read = move || record_hashes(&body, &at);
                let Some(of_page) = spawn_blocking(read).await.expect("reading does not panic") else {
                    return Ok(None);
                };
                hashes.extend(of_page);
            }
            hashes.sort_unstable();
            self.known = Some((metadata.observation, hashes));
        }
        Ok(self.known.as_ref().map(|(_, hashes)| hashes.as_slice()))
    }

    /// Brings `self.end` up to the archive. One HEAD when nothing happened since the last poll; four listings at the start.
    ///
    /// Without the look past the known end, a state that another importer appended before it died could stay the last word.
    async fn find_end(&mut self) -> Result<(), ImportError> {
        let mut walked = 0;
        loop {
            status::beat();
            let (sequence, is_listed) = match &self.end {
                Some(end) if walked < MOST_ADOPTED => (end.sequence.next(), false),
                _ => {
                    let Some(end) = self.archive.end().await? else {
                        self.end = None;
                        status::note_end(None);
                        return Ok(());
                    };
                    (end, true)
                }
            };
            match self.archive.head(sequence).await? {
                Some(head) => self.adopt(End { sequence, metadata: head.metadata }),
                None if is_listed => return Err(self.end_moved()),
                None => return Ok(()),
            }
            walked = if is_listed { 0 } else { walked + 1 };
        }
    }

    fn adopt(&mut self, end: End) {
        if self.announced < Some(end.sequence) {
            events::adopted(end.sequence, &end.metadata);
            // The newest one says all.
            self.news = vec![Pointer::new(&self.stream, end.sequence, &end.metadata)];
            crash_point!("adopted");
        }
        events::ends_with(end.sequence, &end.metadata);
        self.end = Some(Box::new(end));
    }

    /// The object that the new one will name as `previous` must still be there and be the same: nothing is appended to an
    /// archive that was emptied or forked since the last poll.
    async fn check_end(&mut self) -> Result<(), ImportError> {
        let Some(end) = &self.end else { return Ok(()) };
        let there = self.archive.head(end.sequence).await?;
        if there.is_some_and(|head| head.metadata == end.metadata) { Ok(()) } else { Err(self.end_moved()) }
    }

    /// Writes the object, and finds out whether it was written when the answer does not say.
    async fn append(&mut self, sequence: Sequence, metadata: &Metadata, upload: &Upload) -> Result<(), ImportError> {
        let mut pauses = APPEND_AGAIN_AFTER.into_iter();
        loop {
            status::beat();
            let unknown = match self.archive.append(sequence, metadata, upload).await {
                Ok(Append::Done) => {
                    crash_point!("appended");
                    return Ok(());
                }
                Ok(Append::Taken) => {
                    crash_point!("taken");
                    let there = self.archive.head(sequence).await?;
                    // An earlier try of this very append, whose answer was lost. Another one wins, and so does one that is gone again:
                    // who knows what archive this is now.
                    let is_ours = there.is_some_and(|head| head.metadata.observation == metadata.observation);
                    return if is_ours { Ok(()) } else { Err(self.end_moved()) };
                }
                Err(unknown @ ArchiveError::Failed { .. }) => unknown,
                Err(refused) => return Err(refused.into()),
            };
            let Some(pause) = pauses.next() else { return Err(unknown.into()) };
            status::note_retry(Dependency::Archive);
            sleep(pause).await;
        }
    }

    /// Forgets the end, so that the next poll reads it anew.
    fn end_moved(&mut self) -> ImportError {
        crash_point!("end-moved");
        self.end = None;
        ImportError::EndMoved
    }

    async fn announce(&mut self) -> Result<(), ImportError> {
        let Some(newest) = self.news.last().cloned() else { return Ok(()) };
        let started = Instant::now();
        let told = self.queue.announce(&self.news).await;
        events::announced(&newest, started.elapsed(), told.as_ref().copied().map_err(|error| error as &dyn Error));
        if let Err(error) = told {
            self.news = vec![newest];
            return Err(error.into());
        }
        self.status.worked(&[Dependency::Queue]);
        crash_point!("announced");
        self.announced = Some(newest.sequence);
        self.news.clear();
        Ok(())
    }
}

/// Whether an answer is too old to be believed. One from the future is, too: some clock was wrong.
fn is_old(at: Timestamp, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(at)).map_or(true, |age| age > BELIEVED_FOR)
}

/// Polls in a row that each brought another answer.
#[derive(Debug, Default)]
struct Streak {
    polls: u32,
    bytes: u64,
}

impl Streak {
    /// An API that changes with every poll (a timestamp, the order of keys) fills the archive: that is worth a word, once.
    fn add(&mut self, outcome: &Outcome, poll_interval: Duration) {
        let Outcome::Appended { bytes, .. } = outcome else { return *self = Self::default() };
        self.polls += 1;
        self.bytes += bytes;
        if self.polls == STREAK_POLLS {
            let bytes_a_day = bytes_a_day(self.bytes / u64::from(self.polls), poll_interval);
            warn!(
                polls = self.polls,
                bytes_a_day,
                "each poll brings another answer: if no post changed (see inserted and updated in the ledger), the API sends something \
                 that changes by itself; poll less often or ask for it without that"
            );
        }
    }
}

/// What an archive grows by when each poll appends `bytes`.
pub fn bytes_a_day(bytes: u64, poll_interval: Duration) -> u64 {
    const DAY_MS: u128 = 24 * 60 * 60 * 1000;
    u64::try_from(u128::from(bytes) * DAY_MS / poll_interval.as_millis().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_believed_for_a_day() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (seconds, expected) in [(0, false), (86_400, false), (86_401, true), (-1, true)] {
            assert_eq!(is_old(Timestamp::from_second(1_000_000 - seconds).unwrap(), now), expected, "{seconds}");
        }
    }

    #[test]
    fn a_streak_is_polls_in_a_row_that_appended() {
        let (mut streak, interval) = (Streak::default(), Duration::from_secs(10));
        let appended = Outcome::Appended { bytes: 100 };
        streak.add(&appended, interval);
        streak.add(&appended, interval);
        assert_eq!((streak.polls, streak.bytes), (2, 200));
        streak.add(&Outcome::Unchanged, interval);
        assert_eq!((streak.polls, streak.bytes), (0, 0));
        assert_eq!(bytes_a_day(100, interval), 864_000);
    }
}
