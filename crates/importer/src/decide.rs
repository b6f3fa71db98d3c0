//! What the importer decides, from values alone: whether an answer may be the data, whether it is new, what a person must
//! see to. Pure.

use reqwest::header::HeaderValue;
use shared::{
    archive::ArchiveError,
    object::{Metadata, Sequence, Sha256},
    status::{Dependency, Reason, State},
    telemetry::chain,
};

use crate::{
    exchange::ExchangeError,
    poll::{Answer, PollError, Validators},
    run::ImportError,
    spool::{SpoolError, Spooled},
};

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

/// What to send with the next fetch from `source_url`. A snapshot of several pages has no validator of its own, a cut one none
/// that counts, and what another address said is not to be held against this one.
pub fn validators(last: Option<&Metadata>, source_url: &str) -> Validators {
    match last {
        Some(last) if last.last_page && last.page == 1 && last.source_url == source_url => {
            // Whoever may append may have written something there that no header can hold.
            let header = |value: &Option<String>| value.clone().filter(|value| HeaderValue::try_from(value).is_ok());
            Validators { etag: header(&last.etag), last_modified: header(&last.last_modified) }
        }
        _ => Validators::default(),
    }
}

/// What makes a body impossible as data, judged by how it begins: a log-in page must not become the last word.
pub fn fault_of(beginning: &[u8]) -> Option<String> {
    let text = content(beginning);
    match text.first() {
        Some(b'[' | b'{') => None,
        // `null` is an empty collection to many servers.
        Some(b'n') if text.starts_with(b"null") => None,
        Some(_) => Some(format!("begins with {:?}", String::from_utf8_lossy(text))),
        None => Some("is empty".to_owned()),
    }
}

/// Without byte order mark and white space in front.
fn content(beginning: &[u8]) -> &[u8] {
    let text = beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning);
    &text[text.iter().take_while(|byte| b" \t\r\n".contains(byte)).count()..]
}

/// Whether a page holds no record. A longer one than its kept beginning holds some.
pub fn is_empty(spooled: &Spooled) -> bool {
    let is_whole = spooled.upload.bytes == spooled.beginning.len() as u64;
    let words: Vec<u8> =
        content(&spooled.beginning).iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    is_whole && matches!(words.as_slice(), b"[]" | b"null")
}

/// Whether a page is an object and no array.
pub fn is_object(spooled: &Spooled) -> bool {
    content(&spooled.beginning).first() == Some(&b'{')
}

/// Whether a body that begins as an array or object does not end as one.
pub fn is_cut_short(spooled: &Spooled) -> bool {
    match content(&spooled.beginning).first() {
        Some(b'[') => spooled.ending != Some(b']'),
        Some(b'{') => spooled.ending != Some(b'}'),
        _ => false,
    }
}

/// What a fault means to the people who run the daemon.
pub fn state_after(fault: &ImportError) -> State {
    let why = chain(fault);
    match fault {
        ImportError::Archive(ArchiveError::Refused { .. }) => State::Holding(Reason::AccessRefused, why),
        ImportError::Archive(ArchiveError::NoBucket { .. }) => State::Holding(Reason::BucketMissing, why),
        ImportError::Archive(ArchiveError::Foreign { .. }) => State::Holding(Reason::ObjectForeign, why),
        ImportError::Archive(ArchiveError::Failed { .. } | ArchiveError::BrokeOff { .. }) => {
            State::Waiting(Dependency::Archive, why)
        }
        ImportError::Poll(
            PollError::Spool(_) | PollError::Exchange(ExchangeError::Body { source: SpoolError::Disk { .. }, .. }),
        ) => State::Waiting(Dependency::Disk, why),
        ImportError::Poll(_) => State::Waiting(Dependency::Api, why),
        ImportError::Bell(_) => State::Waiting(Dependency::Queue, why),
        ImportError::EndMoved => State::StandingBy,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use shared::archive::Upload;
    use uuid::Uuid;

    use super::*;

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

    /// A page from there, one of several.
    pub(crate) fn answer_from(source_url: &str) -> Answer {
        Answer { source_url: source_url.into(), validators: Validators::default(), ..answer(1, 1) }
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
    fn a_body_is_empty_or_cut_short_by_its_two_ends() {
        for (body, empty, cut_short) in [
            ("\u{feff} [ ]\n", true, false),
            ("null", true, false),
            ("[1]", false, false),
            ("{}", false, false),
            ("[1", false, true),
            ("{\"a\":1", false, true),
        ] {
            let Answer { mut spooled, .. } = answer(1, 1);
            spooled.upload.bytes = body.len() as u64;
            spooled.beginning = body.as_bytes().to_vec();
            spooled.ending = body.trim_end().bytes().last();
            assert_eq!((is_empty(&spooled), is_cut_short(&spooled)), (empty, cut_short), "{body}");
            assert_eq!(is_object(&spooled), body.starts_with('{'), "{body}");
            spooled.upload.bytes += 1;
            assert!(!is_empty(&spooled), "{body} and more");
        }
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

    #[test]
    fn a_body_that_cannot_be_the_data_is_told_apart_by_its_beginning() {
        for good in ["[]", "\u{feff} [", "\n\t {", "null"] {
            assert_eq!(fault_of(good.as_bytes()), None, "{good}");
        }
        for (bad, fault) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("<html>", "begins with \"<html>\""),
            ("\u{c}[]", "begins with \"\\u{c}[]\""),
            ("nope", "begins with \"nope\""),
            ("42", "begins with \"42\""),
        ] {
            assert_eq!(fault_of(bad.as_bytes()).as_deref(), Some(fault), "{bad}");
        }
    }

    #[test]
    fn validators_are_those_of_a_whole_snapshot_of_one_page() {
        let url = "https://example.org/posts";
        let last = |page, last_page| Metadata {
            archive_id: Uuid::nil(),
            observation: Uuid::nil(),
            previous: None,
            sha256: Sha256([0; 32]),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: url.into(),
            etag: Some("\"a\"".into()),
            last_modified: None,
            snapshot: Sequence::FIRST,
            page,
            last_page,
            snapshot_sha256: Sha256([0; 32]),
        };
        assert_eq!(validators(Some(&last(1, true)), url).etag.as_deref(), Some("\"a\""));
        assert_eq!(validators(Some(&last(1, true)), "https://example.org/others"), Validators::default());
        let strange = Metadata { etag: Some("\"a\r\nb: c\"".into()), ..last(1, true) };
        for without in [None, Some(&strange), Some(&last(1, false)), Some(&last(2, true))] {
            assert_eq!(validators(without, url), Validators::default());
        }
    }
}
