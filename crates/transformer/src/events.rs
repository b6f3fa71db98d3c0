//! What happened, each fact as a log line and as numbers from one function, so that they cannot disagree.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge};
use shared::{
    metrics::{counter, counters, gauge, looked_up, stages},
    object::{Metadata, Sequence},
    pointer::{Pointer, PointerError},
    status::{end, position},
    telemetry::chain,
};
use tracing::{debug, info, warn};

use crate::write::ledger::{Counts, LedgerLine};

struct Numbers {
    objects: IntCounterVec,
    records: IntCounterVec,
    rows: IntCounterVec,
    messages: IntCounterVec,
    stages: HistogramVec,
    quarantined_at: IntGauge,
    take_overs: IntCounter,
    refused_runs: IntCounter,
    last_look: IntGauge,
}

static NUMBERS: LazyLock<Numbers> = LazyLock::new(|| Numbers {
    objects: counters(
        "transformer_objects_total",
        "Objects that the position has moved past, by what became of them",
        "outcome",
        &["loaded", "quarantined", "skipped"],
    ),
    records: counters("transformer_records_total", "Records of loaded objects", "outcome", &["loaded", "quarantined"]),
    rows: counters(
        "transformer_rows_total",
        "What loaded objects did to the rows",
        "change",
        &["inserted", "updated", "unchanged", "absent"],
    ),
    messages: counters(
        "transformer_messages_total",
        "Messages received: of an object above the position, at or below it, or unusable; one beyond the end is new and strange",
        "kind",
        &["new", "old", "strange"],
    ),
    stages: stages(
        "transformer_stage_seconds",
        "Time that stages take: get waits for an object, apply is an object's share of its transaction, commit ends one and is part of apply",
        &["get", "apply", "commit"],
    ),
    quarantined_at: gauge(
        "transformer_last_quarantined_timestamp_seconds",
        "When this process last quarantined a record or an object; 0 for never",
    ),
    take_overs: counter("transformer_take_overs_total", "Transactions of silent transformers that were ended"),
    refused_runs: counter(
        "transformer_refused_runs_total",
        "Transactions over several objects that were rolled back because of one of them; each object was applied alone then",
    ),
    last_look: gauge(
        "transformer_last_success_timestamp_seconds",
        "When the archive was last looked at, and all that it had was applied; at first, when the daemon started",
    ),
});

/// When the fetch of the newest applied object began, in seconds since 1970; 0 while that is unknown.
static APPLIED_FETCHED: AtomicI64 = AtomicI64::new(0);

/// Where the key is no key, it repeats in each object.
static HAS_WARNED_OF_REPEATED: AtomicBool = AtomicBool::new(false);

/// Has all numbers there before the first event.
#[allow(clippy::cast_precision_loss, reason = "sequences and times are below 2^53")]
pub fn register() {
    looked_up("transformer_position", "Sequence of the last object applied; 0 for none", || position() as f64);
    looked_up("transformer_lag_objects", "Objects above the position", || end().saturating_sub(position()) as f64);
    looked_up(
        "transformer_lag_seconds",
        "Time since the fetch of the newest applied object began; NaN while unknown",
        || match APPLIED_FETCHED.load(Ordering::Relaxed) {
            0 => f64::NAN,
            // The importer's clock may be ahead.
            fetched_at => (Timestamp::now().as_second() - fetched_at).max(0) as f64,
        },
    );
    NUMBERS.last_look.set(Timestamp::now().as_second());
}

/// A message says that there is an object.
pub fn received(pointer: &Pointer) {
    let kind = if pointer.sequence.get() > position() { "new" } else { "old" };
    NUMBERS.messages.with_label_values(&[kind]).inc();
    debug!(sequence = %pointer.sequence, observation = %pointer.observation, kind, "received");
}

/// A message says nothing that can be used.
pub fn strange_message(error: &PointerError) {
    NUMBERS.messages.with_label_values(&["strange"]).inc();
    warn!(why = chain(error), "strange message");
}

/// A message named an object that is not there.
pub fn pointer_beyond_the_end(named: Sequence) {
    NUMBERS.messages.with_label_values(&["strange"]).inc();
    warn!(sequence = %named, why = "it points beyond the end of the archive", "strange message");
}

/// Everything in the archive is applied.
pub fn looked() {
    NUMBERS.last_look.set(Timestamp::now().as_second());
}

/// The object at the position.
pub fn stands_at(metadata: &Metadata) {
    APPLIED_FETCHED.store(metadata.fetched_at.as_second(), Ordering::Relaxed);
}

/// A stage is done.
pub fn took(stage: &'static str, time: Duration) {
    NUMBERS.stages.with_label_values(&[stage]).observe(time.as_secs_f64());
}

/// The records of a run's objects are in the table.
pub fn loaded(objects: &[(Sequence, Metadata)], counts: &[Counts], elapsed: Duration) {
    let share = elapsed / u32::try_from(objects.len()).unwrap_or(u32::MAX);
    for ((sequence, metadata), counts) in objects.iter().zip(counts) {
        loaded_one(*sequence, metadata, *counts, share);
    }
}

fn loaded_one(sequence: Sequence, metadata: &Metadata, counts: Counts, elapsed: Duration) {
    let Counts { records, inserted, updated, quarantined, with_extra, repeated, absent } = counts;
    let unchanged = records.saturating_sub(inserted + updated + quarantined);
    NUMBERS.objects.with_label_values(&["loaded"]).inc();
    for (outcome, number) in [("loaded", records - quarantined.min(records)), ("quarantined", quarantined)] {
        NUMBERS.records.with_label_values(&[outcome]).inc_by(number);
    }
    for (change, number) in [("inserted", inserted), ("updated", updated), ("unchanged", unchanged), ("absent", absent)]
    {
        NUMBERS.rows.with_label_values(&[change]).inc_by(number);
    }
    if quarantined > 0 {
        NUMBERS.quarantined_at.set(Timestamp::now().as_second());
    }
    took("apply", elapsed);
    stands_at(metadata);
    if repeated > 0 && !HAS_WARNED_OF_REPEATED.swap(true, Ordering::Relaxed) {
        warn!(
            %sequence, records, repeated,
            "records of one answer have the same id, and of each id the last alone becomes a row: is the first entry of TABLE_COLUMNS what they are known by? The column \
             `repeated` of the table `objects` counts them; this is said once"
        );
    }
    info!(
        %sequence, observation = %metadata.observation, outcome = "loaded", records, inserted, updated, unchanged, quarantined,
        with_extra, repeated, absent, elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), "applied"
    );
}

/// Which rows are absent cannot be told by this snapshot.
pub fn absence_is_not_judged(sequence: Sequence, why: &'static str) {
    warn!(%sequence, why, "no row was marked or deleted by this snapshot");
}

/// A run of objects cannot be applied in one transaction, and nothing was done.
pub fn run_refused(first: Sequence, objects: usize, why: &str) {
    NUMBERS.refused_runs.inc();
    warn!(sequence = %first, objects, why, "these objects cannot be applied together: each is applied alone");
}

/// The position has moved past an object without its records.
pub fn passed_over(line: &LedgerLine<'_>) {
    let LedgerLine { sequence, metadata, outcome, reason, .. } = *line;
    NUMBERS.objects.with_label_values(&[outcome]).inc();
    if outcome == "quarantined" {
        NUMBERS.quarantined_at.set(Timestamp::now().as_second());
    }
    metadata.inspect(|metadata| stands_at(metadata));
    let observation = metadata.map(|metadata| metadata.observation.to_string());
    warn!(%sequence, observation, outcome, reason, "applied");
}

/// A transformer that was silent lost its transaction.
pub fn took_over() {
    NUMBERS.take_overs.inc();
    info!("ended the transaction of a transformer that was silent");
}
