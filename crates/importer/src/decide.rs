//! What the importer decides, from values alone. Pure.

use shared::{
    archive::ArchiveError,
    object::{Metadata, Sequence, Sha256},
    telemetry::{State, chain},
};
use uuid::Uuid;

use crate::{
    poll::{Answer, Validators},
    run::ImportError,
};

/// The newest object of the archive, as the archive shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its number.
    pub sequence: Sequence,
    /// What it says of itself.
    pub metadata: Metadata,
}

/// What to send with the next fetch. A snapshot of several pages has no validator of its own, and a cut one none that counts.
pub fn validators(end: Option<&End>) -> Validators {
    match end {
        Some(End { metadata, .. }) if metadata.last_page && metadata.page == 1 => {
            Validators { etag: metadata.etag.clone(), last_modified: metadata.last_modified.clone() }
        }
        _ => Validators::default(),
    }
}

/// The object that the answer becomes, or `None` when the archive ends with just that.
pub fn next_object(end: Option<&End>, answer: &Answer) -> Option<(Sequence, Metadata)> {
    let snapshot_sha256 = Sha256::of_pages(&[answer.spooled.sha256]);
    let is_unchanged = |end: &End| end.metadata.last_page && end.metadata.snapshot_sha256 == snapshot_sha256;
    if end.is_some_and(is_unchanged) {
        return None;
    }
    let sequence = end.map_or(Sequence::FIRST, |end| end.sequence.next());
    let metadata = Metadata {
        // The first observation gives the archive its name: it is as new and as unique as anything.
        archive_id: end.map_or(answer.observation, |end| end.metadata.archive_id),
        observation: answer.observation,
        previous: end.map(|end| end.metadata.observation),
        sha256: answer.spooled.sha256,
        fetched_at: answer.fetched_at,
        source_url: answer.source_url.clone(),
        etag: answer.validators.etag.clone(),
        last_modified: answer.validators.last_modified.clone(),
        snapshot: sequence,
        page: 1,
        last_page: true,
        snapshot_sha256,
    };
    Some((sequence, metadata))
}

/// Who has the number that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// An earlier try of this very append, whose answer was lost.
    Us,
    /// Another importer.
    Another,
    /// Nobody: the object is gone again.
    Nobody,
}

/// Reads a 412 with the object that has the number now.
pub fn winner(ours: Uuid, now_there: Option<&Metadata>) -> Winner {
    match now_there {
        Some(metadata) if metadata.observation == ours => Winner::Us,
        Some(_) => Winner::Another,
        None => Winner::Nobody,
    }
}

/// What a fault means to the people who run the daemon.
pub fn state_after(fault: &ImportError) -> State {
    match fault {
        ImportError::Archive(
            ArchiveError::Refused { .. } | ArchiveError::NoBucket { .. } | ArchiveError::Foreign { .. },
        ) => State::Holding(chain(fault)),
        ImportError::Archive(ArchiveError::Failed { .. }) | ImportError::Poll(_) | ImportError::Bell(_) => {
            State::Waiting(chain(fault))
        }
        ImportError::EndMoved { .. } => State::StandingBy,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use shared::archive::Upload;

    use super::*;
    use crate::spool::Spooled;

    fn answer(sha256: [u8; 32]) -> Answer {
        let upload = Upload { file: Arc::new(tempfile::tempfile().unwrap()), bytes: 0 };
        Answer {
            observation: Uuid::from_u128(9),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: "https://example.org/posts".into(),
            validators: Validators { etag: Some("\"a\"".into()), last_modified: None },
            spooled: Spooled { upload, sha256: Sha256(sha256), beginning: Vec::new() },
        }
    }

    fn end(page: u32, last_page: bool) -> End {
        let (sequence, metadata) = next_object(None, &answer([1; 32])).unwrap();
        End { sequence, metadata: Metadata { observation: Uuid::from_u128(1), page, last_page, ..metadata } }
    }

    #[test]
    fn the_first_object_brings_the_archive_into_the_world() {
        let (sequence, metadata) = next_object(None, &answer([1; 32])).unwrap();
        assert_eq!(sequence, Sequence::FIRST);
        assert_eq!((metadata.archive_id, metadata.previous), (Uuid::from_u128(9), None));
    }

    #[test]
    fn the_next_object_continues_the_chain() {
        let (sequence, metadata) = next_object(Some(&end(1, true)), &answer([2; 32])).unwrap();
        assert_eq!(sequence.get(), 2);
        assert_eq!((metadata.archive_id, metadata.previous), (Uuid::from_u128(9), Some(Uuid::from_u128(1))));
    }

    #[test]
    fn only_a_whole_snapshot_can_be_what_the_api_says_again() {
        assert_eq!(next_object(Some(&end(1, true)), &answer([1; 32])), None);
        assert!(next_object(Some(&end(1, false)), &answer([1; 32])).is_some());
    }

    #[test]
    fn validators_are_those_of_a_whole_snapshot_of_one_page() {
        assert_eq!(validators(Some(&end(1, true))).etag.as_deref(), Some("\"a\""));
        for without in [None, Some(&end(1, false)), Some(&end(2, true))] {
            assert_eq!(validators(without), Validators::default());
        }
    }

    #[test]
    fn a_taken_number_is_ours_when_the_observation_is() {
        let there = end(1, true).metadata;
        assert_eq!(winner(Uuid::from_u128(1), Some(&there)), Winner::Us);
        assert_eq!(winner(Uuid::from_u128(2), Some(&there)), Winner::Another);
        assert_eq!(winner(Uuid::from_u128(1), None), Winner::Nobody);
    }
}
