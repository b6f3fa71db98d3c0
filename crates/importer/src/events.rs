//! What happened, each fact as a log line and as numbers from one function, so that they cannot disagree.

use std::{error::Error, sync::LazyLock, time::Duration};

use jiff::Timestamp;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge};
use shared::{
    metrics::{counter, counters, gauge, stages},
    object::{Metadata, Sequence, SnapshotKind, StreamName},
    pointer::Pointer,
    status::{Dependency, note_end, note_retry},
    telemetry::chain,
};
use tracing::{debug, info, warn};

struct Numbers {
    polls: IntCounterVec,
    objects: IntCounter,
    bytes: IntCounter,
    announcements: IntCounterVec,
    stages: HistogramVec,
    last_poll: IntGauge,
    end_fetched: IntGauge,
    waits_until: IntGauge,
}

static NUMBERS: LazyLock<Numbers> = LazyLock::new(|| Numbers {
    polls: counters(
        "importer_polls_total",
        "Polls of the API, by what came of them",
        "result",
        &["appended", "unchanged", "rejected", "overtaken", "failed"],
    ),
    objects: counter("importer_appended_objects_total", "Objects appended to the archive"),
    bytes: counter("importer_appended_bytes_total", "Bytes of the bodies of these objects"),
    announcements: counters(
        "importer_announcements_total",
        "Attempts to tell the queue of objects, by what came of them",
        "result",
        &["sent", "failed"],
    ),
    stages: stages("importer_stage_seconds", "Time that the stages of a poll take", &["fetch", "append", "announce"]),
    last_poll: gauge(
        "importer_last_success_timestamp_seconds",
        "When a poll last ended with the API's answer in the archive, new or not; at first, when the daemon started",
    ),
    end_fetched: gauge("importer_end_fetched_timestamp_seconds", "When the fetch of the newest object began"),
    waits_until: gauge(
        "importer_asks_again_timestamp_seconds",
        "When an API that limits requests is asked again; 0 while the importer does not wait for that",
    ),
});

/// Has all numbers there before the first event.
pub fn register() {
    // A source is stale only after a time without success, and not since 1970.
    NUMBERS.last_poll.set(Timestamp::now().as_second());
}

/// A poll is over. It `succeeded` if the API's answer is in the archive, new or not.
pub fn polled(result: &'static str, succeeded: bool) {
    NUMBERS.polls.with_label_values(&[result]).inc();
    if succeeded {
        NUMBERS.last_poll.set(Timestamp::now().as_second());
    }
}

/// A request to the API failed, and is made again after the pause.
pub fn asking_again(error: &dyn Error, pause: Duration) {
    note_retry(Dependency::Api);
    debug!(why = chain(error), pause_ms = millis(pause), "asking again");
}

/// When an API that limits requests is asked again; `None` while the importer does not wait for that.
pub fn waits_until(until: Option<Timestamp>) {
    NUMBERS.waits_until.set(until.map_or(0, Timestamp::as_second));
}

/// The API said nothing new.
pub fn unchanged(fetch: Duration) {
    NUMBERS.stages.with_label_values(&["fetch"]).observe(fetch.as_secs_f64());
    debug!(fetch_ms = millis(fetch), "unchanged");
}

/// All pages of a snapshot are on disk.
pub fn fetched(fetch: Duration) {
    NUMBERS.stages.with_label_values(&["fetch"]).observe(fetch.as_secs_f64());
}

/// The collection changed while it was walked, and is walked again.
pub fn torn(walk: u32, walks: u32) {
    info!(walk, walks, "the collection changed while it was paged");
}

/// The API's clock is behind what it said before.
pub fn clock_behind() {
    warn!(
        "the API's clock was set back: the whole collection is asked for, since changes may bear earlier times than were asked for"
    );
}

/// It changed in each of these walks, and what the last one brought is archived.
pub fn taken_torn(walks: u32) {
    warn!(
        walks,
        "the collection does not hold still: what is archived may lack records until it does; ask for larger pages in SOURCE_URL"
    );
}

/// The API's own total is larger than what came to an end that the API has shown.
pub fn total_is_larger(at: &str, total: u64, records: u64) {
    warn!(
        at,
        total,
        records,
        "the API names a larger total than the records that came, and shows an end; TOTALS=ignore says that the total counts something \
         else"
    );
}

/// How long an object took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// Its snapshot's fetch.
    pub fetch: Duration,
    /// Its append.
    pub append: Duration,
}

/// An object is in the archive.
pub fn appended(
    stream: &StreamName,
    sequence: Sequence,
    metadata: &Metadata,
    bytes: u64,
    Took { fetch, append }: Took,
) {
    NUMBERS.objects.inc();
    NUMBERS.bytes.inc_by(bytes);
    ends_with(sequence, metadata);
    NUMBERS.stages.with_label_values(&["append"]).observe(append.as_secs_f64());
    let (observation, page, last_page) = (metadata.observation, metadata.page, metadata.last_page);
    let kind = metadata.facts.kind.map(SnapshotKind::word);
    info!(
        %sequence, %observation, key = sequence.key(stream), bytes, kind, page, last_page, fetch_ms = millis(fetch), append_ms = millis(append),
        "appended"
    );
}

/// The archive ends with this object.
pub fn ends_with(sequence: Sequence, metadata: &Metadata) {
    note_end(Some(sequence));
    NUMBERS.end_fetched.set(metadata.fetched_at.as_second());
}

/// The archive ends with an object that this process has not told the queue of.
pub fn adopted(sequence: Sequence, metadata: &Metadata) {
    info!(%sequence, observation = %metadata.observation, "adopted");
}

/// The queue was told of some objects, this the newest, or not.
pub fn announced(newest: &Pointer, elapsed: Duration, result: Result<(), &dyn Error>) {
    NUMBERS.announcements.with_label_values(&[if result.is_ok() { "sent" } else { "failed" }]).inc();
    NUMBERS.stages.with_label_values(&["announce"]).observe(elapsed.as_secs_f64());
    if result.is_ok() {
        info!(sequence = %newest.sequence, observation = %newest.observation, announce_ms = millis(elapsed), "announced");
    }
}

/// For log fields.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
