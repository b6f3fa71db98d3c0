//! The pages of a collection become objects: what each says of itself, and whether they are new at all. Pure.

use jiff::Timestamp;
use reqwest::header::HeaderValue;
use shared::{
    archive::Upload,
    object::{Metadata, Sequence, Sha256, SnapshotFacts},
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

/// The objects that the snapshot becomes, or `None` when the archive ends with the same records and `again` does not ask for them anew.
pub fn next_objects(end: Option<&End>, snapshot: &Snapshot, again: bool) -> Option<Vec<(Sequence, Metadata)>> {
    let pages = &snapshot.pages;
    let digests: Vec<Sha256> = pages.iter().map(|page| page.sha256).collect();
    let snapshot_sha256 = Sha256::of_pages(&digests);
    if !again && end.is_some_and(|end| is_unchanged(&end.metadata, snapshot, snapshot_sha256)) {
        return None;
    }
    let first = end.map_or(Sequence::FIRST, |end| end.sequence.next());
    // The first observation gives the archive its name: it is as new and as unique as anything.
    let archive_id = end.map(|end| end.metadata.archive_id).or(pages.first().map(|page| page.id))?;
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
            facts: snapshot.facts.clone(),
        };
        objects.push((sequence, metadata));
        sequence = sequence.next();
    }
    Some(objects)
}

/// Whether the archive ends with these records. Like is compared with like: a settled snapshot behind a torn one is always new. An end of an
/// older release is compared by the bytes of its pages.
fn is_unchanged(end: &Metadata, snapshot: &Snapshot, snapshot_sha256: Sha256) -> bool {
    let (known, facts) = (&end.facts, &snapshot.facts);
    let is_same = match known.records_sha256 {
        Some(_) => known.request == facts.request && known.records_sha256 == facts.records_sha256,
        None => end.snapshot_sha256 == snapshot_sha256,
    };
    end.last_page && is_same && (facts.torn || !known.torn)
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
            validators: Validators { etag: Some("\"a\"".into()), last_modified: None },
            facts: SnapshotFacts {
                records_sha256: Some(Sha256::of_pages(&digests)),
                request: Some(7),
                records_at: Some(RecordsAt::default()),
                torn: false,
            },
        }
    }

    /// The end of an archive whose only snapshot is this one.
    fn end_of(snapshot: &Snapshot) -> End {
        let (sequence, metadata) = next_objects(None, snapshot, false).unwrap().pop().unwrap();
        End { sequence, metadata }
    }

    fn is_new(end: &End, snapshot: &Snapshot) -> bool {
        next_objects(Some(end), snapshot, false).is_some()
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
        let objects = next_objects(Some(&end), &snapshot(vec![page(2, 2), page(3, 3)]), false).unwrap();
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
        assert!(next_objects(Some(&end), &one(), true).is_some(), "it was asked for anew");
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
