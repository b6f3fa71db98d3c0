//! The pages of a collection become objects: what each says of itself, and whether they are new at all. Pure.

use jiff::Timestamp;
use reqwest::header::HeaderValue;
use shared::{
    archive::Upload,
    object::{AsOf, Metadata, Sequence, Sha256, SnapshotFacts, SnapshotKind},
};
use uuid::Uuid;

/// What the API said last time, so that it need not say it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// For `If-None-Match`.
    pub etag: Option<String>,
    /// For `If-Modified-Since`.
    pub last_modified: Option<String>,
}

/// A page of a snapshot, not archived yet.
#[derive(Debug)]
pub struct Observation {
    /// Its identity from here to the ledger.
    pub id: Uuid,
    /// When the fetch began.
    pub fetched_at: Timestamp,
    /// Where it came from, as it may be shown.
    pub source_url: String,
    /// The body.
    pub upload: Upload,
    /// Its digest.
    pub sha256: Sha256,
}

/// A collection, as it was walked from its first page to its end.
#[derive(Debug)]
pub struct Snapshot {
    /// Its pages: one at least.
    pub pages: Vec<Observation>,
    /// What the next poll may send. None for several pages: a first page that is the same says nothing of a new last one.
    pub validators: Validators,
    /// How many records they hold.
    pub records: u64,
    /// A hash of each, if changes are asked for and all are held.
    pub hashes: Option<Vec<u64>>,
    /// Whether rows that it lacks count as absent, at once or after the next snapshot confirms it.
    pub judges_absence: bool,
    /// What its metadata say of it.
    pub facts: SnapshotFacts,
}

/// The newest object of the archive, as the archive shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its number.
    pub sequence: Sequence,
    /// What it says of itself.
    pub metadata: Metadata,
}

/// The objects that the snapshot becomes: none if it has no page.
pub fn next_objects(end: Option<&End>, snapshot: &Snapshot) -> Vec<(Sequence, Metadata)> {
    let pages = &snapshot.pages;
    let snapshot_sha256 = snapshot.sha256();
    let first = end.map_or(Sequence::FIRST, |end| end.sequence.next());
    // The first observation gives the archive its name: it is as new and as unique as anything.
    let archive_id = end.map(|end| end.metadata.archive_id).or(pages.first().map(|page| page.id)).unwrap_or_default();
    let facts = times(end.map(|end| &end.metadata), &snapshot.facts, true).onto(snapshot.facts.clone());
    let mut previous = end.map(|end| end.metadata.observation);
    let mut sequence = first;
    let mut objects = Vec::new();
    for (page, number) in pages.iter().zip(1..) {
        let metadata = Metadata {
            archive_id,
            observation: page.id,
            previous: previous.replace(page.id),
            sha256: page.sha256,
            fetched_at: page.fetched_at,
            source_url: page.source_url.clone(),
            etag: snapshot.validators.etag.clone(),
            last_modified: snapshot.validators.last_modified.clone(),
            snapshot: first,
            page: number,
            last_page: number as usize == pages.len(),
            snapshot_sha256,
            facts: facts.clone(),
        };
        objects.push((sequence, metadata));
        sequence = sequence.next();
    }
    objects
}

/// Since when changes are to be asked for, and when the whole collection was asked for last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// When the API was asked.
    pub as_of: Option<AsOf>,
    /// When the first page of the last whole snapshot was.
    pub whole_at: Option<Timestamp>,
}

impl Times {
    /// The facts with these times.
    pub fn onto(self, facts: SnapshotFacts) -> SnapshotFacts {
        SnapshotFacts { as_of: self.as_of, whole_at: self.whole_at, ..facts }
    }
}

/// The times behind a snapshot, whether its records are new or not. A torn one moves none, so that the same is asked for again, and neither does
/// an increment that is new and of several requests: between these records may have moved from page to page. An end that was cut, or of
/// something else that was asked, has none.
pub fn times(end: Option<&Metadata>, facts: &SnapshotFacts, is_new: bool) -> Times {
    let end = end.filter(|end| end.last_page && end.facts.request == facts.request);
    let before =
        end.map_or_else(Times::default, |Metadata { facts: SnapshotFacts { as_of, whole_at, .. }, .. }| Times {
            as_of: *as_of,
            whole_at: *whole_at,
        });
    match facts.kind {
        _ if facts.torn => before,
        Some(SnapshotKind::Increment) if is_new && !facts.single => before,
        Some(SnapshotKind::Increment) => Times { as_of: facts.as_of, ..before },
        _ => Times { as_of: facts.as_of, whole_at: facts.whole_at },
    }
}

impl Snapshot {
    fn sha256(&self) -> Sha256 {
        let digests: Vec<Sha256> = self.pages.iter().map(|page| page.sha256).collect();
        Sha256::of_pages(&digests)
    }

    /// Whether it is an increment with records, which are new unless the archive ends with them.
    pub fn is_increment_with_records(&self) -> bool {
        self.facts.kind == Some(SnapshotKind::Increment) && self.records > 0
    }
}

/// Whether the archive does not end with these records already. Of increments `known` are the hashes of the records that it ends with, in
/// order, if they are known.
pub fn is_new(end: &Metadata, snapshot: &Snapshot, known: Option<&[u64]>) -> bool {
    let is_settled_at_last = end.facts.torn && !snapshot.facts.torn;
    if snapshot.facts.kind != Some(SnapshotKind::Increment) {
        return !is_unchanged(end, snapshot);
    }
    let is_known = match (known, &snapshot.hashes) {
        (Some(known), Some(hashes)) => hashes.iter().all(|hash| known.binary_search(hash).is_ok()),
        _ => false,
    };
    snapshot.records > 0 && (is_settled_at_last || !is_known)
}

/// Like is compared with like: a settled snapshot behind a torn one is always new, and so is a whole one behind an increment. An end of an
/// older release is compared by the bytes of its pages.
fn is_unchanged(end: &Metadata, snapshot: &Snapshot) -> bool {
    let (known, facts) = (&end.facts, &snapshot.facts);
    let is_same = match known.records_sha256 {
        Some(_) => known.request == facts.request && known.records_sha256 == facts.records_sha256,
        None => end.snapshot_sha256 == snapshot.sha256(),
    };
    let is_alike = known.kind != Some(SnapshotKind::Increment) && (facts.torn || !known.torn);
    // By an end without a kind, which an older release appended, absence is not judged.
    let is_judged = !snapshot.judges_absence || known.kind.is_some();
    end.last_page && is_same && is_alike && is_judged
}

/// Whether a snapshot that is not new is appended all the same: absence is judged by two in a row, unless one answer showed all.
pub fn is_wanted_again(end: &Metadata, snapshot: &Snapshot) -> bool {
    let SnapshotFacts { single, repeat, torn, .. } = end.facts;
    snapshot.judges_absence && !(snapshot.facts.torn || single || repeat || torn)
}

/// What to send with the next GET of the same request from `source_url`. A snapshot of several pages has no validator of its own, one that was
/// cut or torn none that counts, and what another address said is not to be held against this one.
pub fn validators(last: Option<&Metadata>, request: u16, source_url: &str) -> Validators {
    match last {
        Some(last)
            if last.last_page
                && last.page == 1
                && last.source_url == source_url
                && last.facts.request == Some(request)
                && last.facts.kind != Some(SnapshotKind::Increment)
                && !last.facts.torn =>
        {
            // Whoever may append may have written something there that no header can hold.
            let header = |value: &Option<String>| value.clone().filter(|value| HeaderValue::try_from(value).is_ok());
            Validators { etag: header(&last.etag), last_modified: header(&last.last_modified) }
        }
        _ => Validators::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared::records::RecordsAt;

    use super::*;

    fn page(id: u128, digest: u8) -> Observation {
        Observation {
            id: Uuid::from_u128(id),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: "https://example.org/posts".into(),
            upload: Upload { file: Arc::new(tempfile::tempfile().unwrap()), offset: 0, bytes: 0 },
            sha256: Sha256([digest; 32]),
        }
    }

    /// The records are those of the pages.
    fn snapshot(pages: Vec<Observation>) -> Snapshot {
        let digests: Vec<_> = pages.iter().map(|page| page.sha256).collect();
        Snapshot {
            pages,
            records: 0,
            hashes: None,
            judges_absence: false,
            validators: Validators { etag: Some("\"a\"".into()), last_modified: None },
            facts: SnapshotFacts {
                records_sha256: Some(Sha256::of_pages(&digests)),
                request: Some(7),
                records_at: Some(RecordsAt::default()),
                ..SnapshotFacts::default()
            },
        }
    }

    /// The end of an archive whose only snapshot is this one.
    fn end_of(snapshot: &Snapshot) -> End {
        let (sequence, metadata) = next_objects(None, snapshot).pop().unwrap();
        End { sequence, metadata }
    }

    fn is_new(end: &End, snapshot: &Snapshot) -> bool {
        super::is_new(&end.metadata, snapshot, None)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// An increment with records of these hashes, asked for at this second.
    fn increment(hashes: &[u64], second: i64) -> Snapshot {
        let mut increment = snapshot(vec![page(second.unsigned_abs().into(), 7)]);
        (increment.records, increment.hashes) = (hashes.len() as u64, Some(hashes.to_vec()));
        let facts = &mut increment.facts;
        (facts.kind, facts.single, facts.whole_at) = (Some(SnapshotKind::Increment), true, None);
        facts.as_of = Some(AsOf { api: at(second), ours: at(second) });
        increment
    }

    #[test]
    fn the_first_object_brings_the_archive_into_the_world() {
        let End { sequence, metadata } = end_of(&snapshot(vec![page(1, 1)]));
        assert_eq!(sequence, Sequence::FIRST);
        assert_eq!((metadata.archive_id, metadata.previous), (Uuid::from_u128(1), None));
        assert_eq!((metadata.page, metadata.last_page, metadata.snapshot), (1, true, Sequence::FIRST));
    }

    #[test]
    fn the_pages_of_a_snapshot_continue_the_chain() {
        let end = end_of(&snapshot(vec![page(1, 1)]));
        let objects = next_objects(Some(&end), &snapshot(vec![page(2, 2), page(3, 3)]));
        let told: Vec<_> = objects
            .iter()
            .map(|(sequence, metadata)| {
                let Metadata { previous, snapshot, page, last_page, archive_id, .. } = metadata;
                assert_eq!(*archive_id, Uuid::from_u128(1));
                (sequence.get(), previous.map(|id| id.as_u128()), snapshot.get(), *page, *last_page)
            })
            .collect();
        assert_eq!(told, [(2, Some(1), 2, 1, false), (3, Some(2), 2, 2, true)]);
    }

    #[test]
    fn only_a_whole_snapshot_of_the_same_request_can_be_what_the_api_says_again() {
        let one = || snapshot(vec![page(2, 1)]);
        let end = end_of(&one());
        let with = |change: fn(&mut Metadata)| {
            let mut end = end.clone();
            change(&mut end.metadata);
            end
        };
        assert!(!is_new(&end, &one()));
        assert!(is_new(&with(|end| end.last_page = false), &one()), "the end is a cut snapshot");
        assert!(is_new(&with(|end| end.facts.request = Some(8)), &one()), "something else was asked");
        let two = || snapshot(vec![page(1, 1), page(2, 2)]);
        assert!(!is_new(&end_of(&two()), &two()));
        assert!(is_new(&end_of(&two()), &one()), "a page less");
        // The same records in an answer with another time in it.
        assert!(!is_new(&end, &Snapshot { facts: one().facts, ..snapshot(vec![page(3, 9)]) }));
        let older = with(|end| end.facts = SnapshotFacts::default());
        assert!(!is_new(&older, &one()) && is_new(&older, &snapshot(vec![page(3, 9)])));
    }

    #[test]
    fn a_settled_snapshot_behind_a_torn_one_is_new_and_a_torn_one_by_its_records_alone() {
        let settled = || snapshot(vec![page(2, 1)]);
        let torn = |digest| {
            let mut torn = snapshot(vec![page(2, digest)]);
            torn.facts.torn = true;
            torn
        };
        let end = end_of(&torn(1));
        assert!(end.metadata.facts.torn);
        assert!(is_new(&end, &settled()) && !is_new(&end, &torn(1)) && !is_new(&end_of(&settled()), &torn(1)));
        assert!(is_new(&end, &torn(2)));
    }

    #[test]
    fn an_increment_is_new_by_records_that_the_archive_does_not_end_with() {
        let whole = end_of(&snapshot(vec![page(1, 1)])).metadata;
        let is_new = |hashes: &[u64], known| super::is_new(&whole, &increment(hashes, 9), known);
        assert!(
            !is_new(&[], None) && is_new(&[5], None),
            "without records, and behind an end that is too much to read"
        );
        assert!(!is_new(&[5, 2], Some(&[2, 3, 5])) && is_new(&[5, 4], Some(&[2, 3, 5])));
        let behind = end_of(&increment(&[5], 9));
        let same = Snapshot {
            facts: SnapshotFacts { kind: Some(SnapshotKind::Whole), ..behind.metadata.facts.clone() },
            ..snapshot(vec![page(2, 7)])
        };
        assert!(self::is_new(&behind, &same), "like is compared with like");
        assert_eq!(validators(Some(&behind.metadata), 7, "https://example.org/posts"), Validators::default());
        let mut torn = whole.clone();
        torn.facts.torn = true;
        assert!(super::is_new(&torn, &increment(&[5], 9), Some(&[5])), "settled behind a torn one");
    }

    #[test]
    fn what_judges_absence_is_appended_twice_unless_one_answer_shows_all() {
        let of = |repeat, single, torn| {
            let mut snapshot = Snapshot { judges_absence: true, ..snapshot(vec![page(1, 1)]) };
            let facts = &mut snapshot.facts;
            (facts.kind, facts.repeat, facts.single, facts.torn) = (Some(SnapshotKind::Whole), repeat, single, torn);
            snapshot
        };
        let (one, repeat) = (of(false, false, false), of(true, false, false));
        for (end, snapshot, expected) in [
            (&one, &one, true),
            (&repeat, &one, false),
            (&of(false, true, false), &one, false),
            (&one, &of(false, false, true), false),
            (&one, &Snapshot { judges_absence: false, ..of(false, false, false) }, false),
        ] {
            let end = end_of(end);
            assert!(!is_new(&end, snapshot));
            assert_eq!(is_wanted_again(&end.metadata, snapshot), expected, "{end:?} {snapshot:?}");
        }
        let older = end_of(&snapshot(vec![page(1, 1)]));
        assert!(is_new(&older, &one), "by an end without a kind absence is not judged");
    }

    #[test]
    fn times_move_on_with_what_is_sure() {
        let facts = |kind, torn, single, second| SnapshotFacts {
            kind: Some(kind),
            torn,
            single,
            as_of: Some(AsOf { api: at(second), ours: at(second) }),
            whole_at: (kind == SnapshotKind::Whole).then(|| at(second)),
            request: Some(7),
            ..SnapshotFacts::default()
        };
        let (whole, increment) = (SnapshotKind::Whole, SnapshotKind::Increment);
        let end = end_of(&Snapshot { facts: facts(whole, false, false, 1), ..snapshot(vec![page(1, 1)]) }).metadata;
        let cut = Metadata { last_page: false, ..end.clone() };
        for (end, facts, is_new, expected) in [
            (None, facts(whole, false, false, 5), true, (Some(5), Some(5))),
            (Some(&end), facts(whole, false, false, 5), false, (Some(5), Some(5))),
            (Some(&end), facts(whole, true, false, 5), true, (Some(1), Some(1))),
            (Some(&end), facts(increment, false, true, 5), true, (Some(5), Some(1))),
            (Some(&end), facts(increment, false, false, 5), true, (Some(1), Some(1))),
            (Some(&end), facts(increment, false, false, 5), false, (Some(5), Some(1))),
            (Some(&end), facts(increment, true, true, 5), true, (Some(1), Some(1))),
            (Some(&cut), facts(whole, true, false, 5), true, (None, None)),
            (Some(&end), SnapshotFacts { request: Some(8), ..facts(whole, true, false, 5) }, true, (None, None)),
        ] {
            let times = times(end, &facts, is_new);
            let seconds = (times.as_of.map(|as_of| as_of.api.as_second()), times.whole_at.map(Timestamp::as_second));
            assert_eq!(seconds, expected, "{facts:?} {is_new}");
        }
    }

    #[test]
    fn validators_are_those_of_a_whole_settled_snapshot_of_one_page_of_the_same_request() {
        let end = end_of(&snapshot(vec![page(1, 1)])).metadata;
        let url = "https://example.org/posts";
        assert_eq!(validators(Some(&end), 7, url).etag.as_deref(), Some("\"a\""));
        assert_eq!(validators(Some(&end), 8, url), Validators::default());
        assert_eq!(validators(Some(&end), 7, "https://example.com/posts"), Validators::default());
        let mut others = vec![end.clone(); 5];
        others[0].etag = Some("\"a\r\nb: c\"".into());
        others[1].last_page = false;
        others[2].page = 2;
        others[3].facts.torn = true;
        others[4].facts.request = None;
        for without in others.iter().map(Some).chain([None]) {
            assert_eq!(validators(without, 7, url), Validators::default());
        }
    }
}
