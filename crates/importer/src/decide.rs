//! What the importer decides, from values alone: whether an answer is new, what a person must see to. Pure.

use shared::{
    archive::ArchiveError,
    object::{Metadata, Sequence, Sha256},
    telemetry::{State, chain},
};

use crate::{poll::Answer, run::ImportError};

/// The newest object of the archive, as the archive shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its number.
    pub sequence: Sequence,
    /// What it says of itself.
    pub metadata: Metadata,
}

/// The objects that the pages become, or `None` when the archive ends with just them and `again` does not ask for them anew.
pub fn next_objects(end: Option<&End>, pages: &[Answer], again: bool) -> Option<Vec<(Sequence, Metadata)>> {
    let digests: Vec<Sha256> = pages.iter().map(|page| page.spooled.sha256).collect();
    let snapshot_sha256 = Sha256::of_pages(&digests);
    let is_unchanged = |end: &End| end.metadata.last_page && end.metadata.snapshot_sha256 == snapshot_sha256;
    if !again && end.is_some_and(is_unchanged) {
        return None;
    }
    let snapshot = end.map_or(Sequence::FIRST, |end| end.sequence.next());
    // The first observation gives the archive its name: it is as new and as unique as anything.
    let archive_id = end.map(|end| end.metadata.archive_id).or(pages.first().map(|page| page.observation))?;
    let mut previous = end.map(|end| end.metadata.observation);
    let mut sequence = snapshot;
    let mut objects = Vec::new();
    for (page, number) in pages.iter().zip(1..) {
        let metadata = Metadata {
            archive_id,
            observation: page.observation,
            previous: previous.replace(page.observation),
            sha256: page.spooled.sha256,
            fetched_at: page.fetched_at,
            source_url: page.source_url.clone(),
            etag: page.validators.etag.clone(),
            last_modified: page.validators.last_modified.clone(),
            snapshot,
            page: number,
            last_page: number as usize == pages.len(),
            snapshot_sha256,
        };
        objects.push((sequence, metadata));
        sequence = sequence.next();
    }
    Some(objects)
}

/// What a fault means to the people who run the daemon.
pub fn state_after(fault: &ImportError) -> State {
    match fault {
        ImportError::Archive(
            ArchiveError::Refused { .. } | ArchiveError::NoBucket { .. } | ArchiveError::Foreign { .. },
        ) => State::Holding(chain(fault)),
        ImportError::Archive(ArchiveError::Failed { .. } | ArchiveError::BrokeOff { .. })
        | ImportError::Poll(_)
        | ImportError::Bell(_) => State::Waiting(chain(fault)),
        ImportError::EndMoved => State::StandingBy,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use shared::archive::Upload;
    use uuid::Uuid;

    use super::*;
    use crate::{poll::Validators, spool::Spooled};

    fn answer(observation: u128, digest: u8) -> Answer {
        let upload = Upload { file: Arc::new(tempfile::tempfile().unwrap()), offset: 0, bytes: 0 };
        Answer {
            observation: Uuid::from_u128(observation),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: "https://example.org/posts".into(),
            validators: Validators { etag: Some("\"a\"".into()), last_modified: None },
            spooled: Spooled { upload, sha256: Sha256([digest; 32]), beginning: Vec::new(), ending: None },
        }
    }

    /// The end of an archive whose only snapshot has the pages.
    fn end_of(pages: &[Answer]) -> End {
        let (sequence, metadata) = next_objects(None, pages, false).unwrap().pop().unwrap();
        End { sequence, metadata }
    }

    fn end(page: u32, last_page: bool) -> End {
        let end = end_of(&[answer(1, 1)]);
        End { metadata: Metadata { page, last_page, ..end.metadata }, ..end }
    }

    #[test]
    fn the_first_object_brings_the_archive_into_the_world() {
        let End { sequence, metadata } = end_of(&[answer(1, 1)]);
        assert_eq!(sequence, Sequence::FIRST);
        assert_eq!((metadata.archive_id, metadata.previous), (Uuid::from_u128(1), None));
        assert_eq!((metadata.page, metadata.last_page, metadata.snapshot), (1, true, Sequence::FIRST));
    }

    #[test]
    fn the_pages_of_a_snapshot_continue_the_chain() {
        let objects = next_objects(Some(&end(1, true)), &[answer(2, 2), answer(3, 3)], false).unwrap();
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
    fn only_a_whole_snapshot_can_be_what_the_api_says_again() {
        assert_eq!(next_objects(Some(&end(1, true)), &[answer(2, 1)], false), None);
        assert!(next_objects(Some(&end(1, false)), &[answer(2, 1)], false).is_some(), "the end is a cut snapshot");
        assert!(next_objects(Some(&end(1, true)), &[answer(2, 1)], true).is_some(), "it was asked for anew");
        let pages = [answer(1, 1), answer(2, 2)];
        assert_eq!(next_objects(Some(&end_of(&pages)), &pages, false), None);
        assert!(next_objects(Some(&end_of(&pages)), &pages[..1], false).is_some(), "a page less");
    }
}
