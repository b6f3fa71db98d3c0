//! What is broken in a storm, and when: a function of the seed and the storm's number. Pure.

use std::{fmt, time::Duration};

use fastrand::Rng;

use crate::proxy::Way;

/// Kills begin within this time; each waits for its moment.
const KILLING: Duration = Duration::from_secs(9);

/// One each 0.9 s: a daemon is there again after 0.3 s, and looks around before it works.
const KILLS: u32 = 10;

/// Everything that is broken between two calms.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Storm {
    /// Grows the collection, or shrinks it.
    pub(crate) is_growing: bool,
    /// The second host is cut off from everything as long as it lasts.
    pub(crate) is_alone: bool,
    /// In each lane one fault after the other; the lanes side by side.
    pub(crate) lanes: Vec<Vec<Planned>>,
}

/// A fault and when it is due, counted from the beginning of the storm.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

/// A fault on purpose. Whatever has a duration is mended after it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// SIGKILL to a daemon of the first host.
    Kill(Moment),
    /// What one wire, or that of both hosts, does to bytes.
    Wire { wire: Wire, hosts: usize, way: Way, lasts: Duration },
    /// What the API answers.
    Api { answer: ApiAnswer, lasts: Duration },
    /// SIGKILL to Postgres.
    PostgresKilled,
    /// An immediate shutdown between a COMMIT and its answer.
    PostgresStoppedAtCommit,
    /// SIGSTOP to all its processes.
    PostgresFrozen(Duration),
    /// At another port, and read-only.
    PostgresFailedOver(Duration),
    /// Its disk is full (SQLSTATE 53100).
    PostgresFull(Duration),
    /// Put back to one of the last backups.
    PostgresRestored,
    /// The active transformer is stopped inside a transaction and cut off from everything.
    HostGone(Duration),
    /// SIGSTOP to S3 and SQS.
    LocalStackFrozen(Duration),
    /// S3 and SQS as clients see a restart: connections reset, nobody listens. (LocalStack itself would come back without the bucket.)
    LocalStackDown(Duration),
    /// All messages are deleted.
    QueuePurged,
    /// The queue is deleted and made anew.
    QueueRemade,
}

/// When a daemon is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The importer, an upload being open, this many pieces after its head.
    Upload(u32),
    /// The importer, after it archived and before the queue's answer.
    Announce,
    /// The transformer, inside a transaction, this many messages after BEGIN.
    Transaction(u32),
    /// The transformer, between COMMIT and its answer.
    Commit,
    /// The transformer, before a message is known to be deleted.
    Delete,
    /// The importer, whatever it does.
    Importer,
    /// The transformer, whatever it does.
    Transformer,
}

/// From a daemon to what it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    ImporterApi,
    ImporterS3,
    ImporterSqs,
    TransformerS3,
    TransformerSqs,
    TransformerPostgres,
}

/// An API that misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApiAnswer {
    TooManyRequests,
    Failed,
    /// Shorter than its length says.
    TooShort,
    /// Longer than its length says: what arrives is cut JSON.
    TooLong,
    Endless,
    Html,
    Empty,
}

impl Storm {
    /// The storm of this number.
    pub(crate) fn draw(seed: u64, number: u32) -> Self {
        let mut random = Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number.into()));
        let is_alone = !number.is_multiple_of(3);
        let kills = (0..KILLS).map(|number| {
            let at = KILLING * number / KILLS + millis(&mut random, 0..900);
            Planned { at, fault: Fault::Kill(Moment::draw(&mut random)) }
        });
        let kills = kills.collect();
        let (wires, dependencies) = (random.u32(2..4), random.u32(1..3));
        let wires = lane(&mut random, wires, |random| wire_fault(random, is_alone));
        let dependencies = lane(&mut random, dependencies, dependency_fault);
        Self { is_growing: number % 4 < 2, is_alone, lanes: vec![kills, wires, dependencies] }
    }

    /// Each fault, a line.
    pub(crate) fn plan(&self) -> String {
        let mut all: Vec<_> = self.lanes.iter().flatten().collect();
        all.sort_by_key(|planned| planned.at);
        let lines: Vec<_> = all.into_iter().map(|Planned { at, fault }| format!("  {at:.1?} {fault:?}")).collect();
        lines.join("\n")
    }
}

fn lane(random: &mut Rng, count: u32, mut draw: impl FnMut(&mut Rng) -> Fault) -> Vec<Planned> {
    let mut at = Duration::ZERO;
    let faults = (0..count).map(|_| {
        at += millis(random, 500..3000);
        Planned { at, fault: draw(random) }
    });
    faults.collect()
}

fn wire_fault(random: &mut Rng, is_alone: bool) -> Fault {
    let lasts = millis(random, 500..4000);
    if random.u8(0..4) == 0 {
        use ApiAnswer::{Empty, Endless, Failed, Html, TooLong, TooManyRequests, TooShort};
        let answers = [TooManyRequests, Failed, TooShort, TooLong, Endless, Html, Empty];
        return Fault::Api { answer: answers[random.usize(..answers.len())], lasts };
    }
    let way = match random.u8(0..7) {
        0 => Way::Delay(millis(random, 20..500)),
        1 => Way::CutAfter { sent: random.u64(50..20_000), received: random.u64(50..20_000) },
        2 => Way::Reset,
        3 => Way::BlackHole,
        4 => Way::HalfOpen,
        5 => Way::Rate(random.u64(4_000..40_000)),
        _ => Way::Refuse,
    };
    let hosts = if is_alone || random.bool() { 1 } else { 2 };
    Fault::Wire { wire: Wire::ALL[random.usize(..Wire::ALL.len())], hosts, way, lasts }
}

fn dependency_fault(random: &mut Rng) -> Fault {
    // Now and then for longer than every deadline, and than the patience with a silent transformer.
    let is_long = random.u8(0..8) == 0;
    let lasts = if is_long { Duration::from_secs(24) } else { millis(random, 1000..4000) };
    match random.u8(0..14) {
        0 => Fault::PostgresKilled,
        1 | 2 => Fault::PostgresStoppedAtCommit,
        3 => Fault::PostgresFrozen(lasts),
        4 => Fault::PostgresFailedOver(lasts),
        5 => Fault::PostgresFull(lasts),
        6..=8 => Fault::PostgresRestored,
        9 => Fault::HostGone(lasts),
        10 => Fault::LocalStackFrozen(lasts),
        11 => Fault::LocalStackDown(lasts),
        12 => Fault::QueuePurged,
        _ => Fault::QueueRemade,
    }
}

fn millis(random: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

impl Moment {
    fn draw(random: &mut Rng) -> Self {
        match random.u8(0..14) {
            0..4 => Self::Upload(random.u32(0..2)),
            4 => Self::Announce,
            5 => Self::Importer,
            6..10 => Self::Transaction(random.u32(0..5)),
            10 | 11 => Self::Commit,
            12 => Self::Delete,
            _ => Self::Transformer,
        }
    }

    /// Whether it is the importer that is killed.
    pub(crate) fn is_importer(self) -> bool {
        matches!(self, Self::Upload(_) | Self::Announce | Self::Importer)
    }
}

impl Wire {
    pub(crate) const ALL: [Self; 6] = [
        Self::ImporterApi,
        Self::ImporterS3,
        Self::ImporterSqs,
        Self::TransformerS3,
        Self::TransformerSqs,
        Self::TransformerPostgres,
    ];
}

impl Fault {
    /// Whether it keeps the archive from growing rather than the table.
    pub(crate) fn is_importers(&self) -> bool {
        use Wire::{ImporterApi, ImporterS3, ImporterSqs};
        match self {
            Self::Kill(moment) => moment.is_importer(),
            Self::Wire { wire, .. } => matches!(wire, ImporterApi | ImporterS3 | ImporterSqs),
            Self::Api { .. } => true,
            _ => false,
        }
    }

    /// Its kind, for the table of all faults.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Kill(moment) if moment.is_importer() => "importer killed",
            Self::Kill(_) => "transformer killed",
            Self::Wire { way, .. } => match way {
                Way::Pass => "wire passing",
                Way::Delay(_) => "wire delayed",
                Way::CutAfter { .. } => "wire cut after n bytes",
                Way::Reset => "wire reset",
                Way::BlackHole => "wire a black hole",
                Way::HalfOpen => "wire half-open",
                Way::Refuse => "wire refused",
                Way::Rate(_) => "wire dripping",
            },
            Self::Api { .. } => "API misbehaving",
            Self::PostgresKilled => "Postgres killed",
            Self::PostgresStoppedAtCommit => "Postgres stopped at COMMIT",
            Self::PostgresFrozen(_) => "Postgres frozen",
            Self::PostgresFailedOver(_) => "Postgres failed over, read-only",
            Self::PostgresFull(_) => "Postgres full",
            Self::PostgresRestored => "Postgres restored",
            Self::HostGone(_) => "transformer's host gone",
            Self::LocalStackFrozen(_) => "S3 and SQS frozen",
            Self::LocalStackDown(_) => "S3 and SQS down",
            Self::QueuePurged => "queue purged",
            Self::QueueRemade => "queue made anew",
        }
    }
}

/// In a few words.
impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = if self.is_alone { "one host, " } else { "two hosts," };
        let [kills, wires, dependencies] = [0, 1, 2].map(|lane| self.lanes[lane].len());
        write!(f, "{hosts} {kills} kills and {} other faults", wires + dependencies)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_and_a_number_decide_a_storm() {
        assert_eq!(Storm::draw(7, 3), Storm::draw(7, 3));
        assert_ne!(Storm::draw(7, 3).lanes, Storm::draw(7, 4).lanes);
        assert_ne!(Storm::draw(7, 3).lanes, Storm::draw(8, 3).lanes);
    }

    #[test]
    fn an_hour_has_every_kind_of_fault_ten_times_and_most_kills_at_work() {
        let storms: Vec<Storm> = (1..=150).map(|number| Storm::draw(1, number)).collect();
        let faults: Vec<&Fault> =
            storms.iter().flat_map(|storm| storm.lanes.iter().flatten()).map(|planned| &planned.fault).collect();
        let kinds: BTreeSet<_> = faults.iter().map(|fault| fault.kind()).collect();
        assert_eq!(kinds.len(), 21, "{kinds:?}");
        for kind in kinds {
            let count = faults.iter().filter(|fault| fault.kind() == kind).count();
            assert!(count >= 10, "{kind}: {count}");
        }
        let kills = faults.iter().filter(|fault| matches!(fault, Fault::Kill(_))).count();
        let at_work =
            |fault: &&&Fault| matches!(fault, Fault::Kill(Moment::Upload(_) | Moment::Transaction(_) | Moment::Commit));
        assert!(kills >= 1_000 && faults.iter().filter(at_work).count() * 2 > kills);
    }
}
