//! What the archive says of one record over time. Nothing but the archive is read, so what is quarantined has a history, too.

use std::fmt;

use anyhow::{Context, anyhow};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use shared::{
    archive::{Archive, ArchiveError},
    json_scan::DocumentError,
    object::{Metadata, Sequence, SnapshotKind},
    records::{RecordsError, read_records},
    settings::parse_sequence,
    telemetry::chain,
};
use tokio::{runtime::Handle, task::spawn_blocking};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::{read::members::Members, write::table::Reading};

/// Objects on their way at once.
const CONCURRENCY: usize = 16;

/// A longer value is cut.
const VALUE_LIMIT_CHARS: usize = 200;

/// Which record, and which part of the archive.
#[derive(Args, Debug)]
pub struct Wanted {
    /// The record's id, as the first entry of TABLE_COLUMNS finds it
    #[arg(allow_negative_numbers = true)]
    pub id: String,
    /// The first object to read [default: the oldest]
    #[arg(long, value_name = "SEQUENCE", value_parser = parse_sequence)]
    pub from: Option<Sequence>,
    /// The last object to read [default: the end of the archive]
    #[arg(long, value_name = "SEQUENCE", value_parser = parse_sequence)]
    pub to: Option<Sequence>,
}

/// What one object says of the record.
#[derive(Debug)]
struct Observation {
    sequence: Sequence,
    metadata: Metadata,
    /// The record, if it has one; of several the last.
    record: Option<Vec<u8>>,
    /// Why it could not be read to its end.
    problem: Option<String>,
}

/// Tells each observation in which the record is another than before, and what could not be read. Whether there was one.
pub async fn history(
    archive: &impl Archive,
    oldest: Sequence,
    Wanted { id, from, to }: &Wanted,
    reading: &Reading,
    progress: &ProgressBar,
    mut tell: impl FnMut(&dyn fmt::Display) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let key = reading.reader.key_of_text(id).map_err(|why| anyhow!("the id `{id}`: {why}"))?;
    let (first, end) = (from.unwrap_or(oldest).get(), archive.end().await?.map_or(0, Sequence::get));
    let last = to.map_or(end, |to| to.get().min(end));
    progress.set_length(last.saturating_sub(first - 1));
    let looks =
        stream::iter(first..=last).map(async |number| look(archive, Sequence::try_from(number)?, reading, &key).await);
    let mut looks = Box::pin(looks.buffered(CONCURRENCY));
    let (mut story, mut is_told) = (Story::default(), false);
    while let Some(observation) = looks.try_next().await? {
        progress.inc(1);
        match observation {
            Ok(observation) => {
                if let Some(problem) = &observation.problem {
                    tell(&format_args!("object {} cannot be read: {problem}", observation.sequence))?;
                }
                if let Some(entry) = story.next(observation) {
                    tell(&entry)?;
                    is_told = true;
                }
            }
            Err(problem) => {
                story.pages = None;
                tell(&problem)?;
            }
        }
    }
    Ok(is_told)
}

/// What an object says of the record with this key, or why nothing can be said.
async fn look(
    archive: &impl Archive,
    sequence: Sequence,
    Reading { reader, at }: &Reading,
    key: &[u8],
) -> anyhow::Result<Result<Observation, String>> {
    let object = match archive.get(sequence).await {
        Ok(Some(object)) => object,
        Ok(None) => return Ok(Err(format!("object {sequence} is missing from the bucket"))),
        Err(error @ ArchiveError::Foreign { .. }) => return Ok(Err(chain(&error))),
        Err(error) => return Err(error.into()),
    };
    let at = object.metadata.facts.records_at.as_ref().unwrap_or(at).clone();
    let body = SyncIoBridge::new_with_handle(StreamReader::new(object.body), Handle::current());
    let (reader, key) = (reader.clone(), key.to_owned());
    let read = move || {
        let mut found = None;
        let read = read_records(body, &at, |record| {
            let is_it = record.is_whole && reader.key_of_record(record.raw).is_some_and(|of_record| of_record == key);
            if is_it {
                found = Some(record.raw.to_owned());
            }
            is_it
        });
        (found, read.err())
    };
    let problem = match spawn_blocking(read).await? {
        (_, Some(RecordsError::Document(DocumentError::Read(error)))) => {
            return Err(error)
                .with_context(|| format!("the body of object {sequence} broke off on its way: try again"));
        }
        (_, Some(broken)) => (None, Some(chain(&broken))),
        (record, None) => (record, None),
    };
    let (record, problem) = problem;
    Ok(Ok(Observation { sequence, metadata: object.metadata, record, problem }))
}

/// What was told last.
#[derive(Debug, Default)]
struct Story {
    /// The record as it was seen last.
    record: Option<Vec<u8>>,
    is_there: bool,
    /// The pages of a whole snapshot so far, if all could be read.
    pages: Option<Pages>,
}

#[derive(Debug)]
struct Pages {
    first: Sequence,
    last: Sequence,
    has_record: bool,
}

/// A line of the history, with what has changed.
#[derive(Debug)]
struct Entry {
    metadata: Metadata,
    objects: String,
    what: &'static str,
    changes: Vec<String>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}  {}  {}", self.metadata.fetched_at, self.objects, self.what)?;
        self.changes.iter().try_for_each(|change| write!(f, "\n    {change}"))
    }
}

impl Story {
    fn next(&mut self, Observation { sequence, metadata, record, problem }: Observation) -> Option<Entry> {
        let is_whole = metadata.facts.kind == Some(SnapshotKind::Whole) && !metadata.facts.torn && problem.is_none();
        let (first, has_record) = (metadata.snapshot, record.is_some());
        let before = self.pages.take().filter(|pages| pages.first == first && pages.last.next() == sequence);
        self.pages = match before {
            _ if !is_whole => None,
            Some(pages) => Some(Pages { last: sequence, has_record: pages.has_record || has_record, ..pages }),
            None if first == sequence => Some(Pages { first, last: sequence, has_record }),
            None => None,
        };
        if let Some(record) = record {
            let was_there = std::mem::replace(&mut self.is_there, true);
            let changes = changes(self.record.as_deref(), &record);
            let what = match (was_there, self.record.replace(record), changes.is_empty()) {
                (true, _, true) => return None,
                (true, ..) => "changed",
                (false, None, _) => "appeared",
                (false, Some(_), true) => "there again as it was",
                (false, Some(_), false) => "there again, and changed",
            };
            return Some(Entry { metadata, objects: format!("object {sequence}"), what, changes });
        }
        let lacks = self.pages.as_ref().is_some_and(|pages| metadata.last_page && !pages.has_record);
        if !(lacks && self.is_there) {
            return None;
        }
        self.is_there = false;
        let objects =
            if first == sequence { format!("object {sequence}") } else { format!("objects {first} to {sequence}") };
        let is_sure = metadata.facts.single;
        let what = if is_sure { "gone" } else { "lacking: gone, if the next whole snapshot lacks it, too" };
        Some(Entry { metadata, objects, what, changes: Vec::new() })
    }
}

/// The members that are new, changed or gone.
fn changes(before: Option<&[u8]>, now: &[u8]) -> Vec<String> {
    let members = |record| Members::of(record).map_or_else(|_| Vec::new(), |Members(members)| members);
    let (before, now) = (before.map(members).unwrap_or_default(), members(now));
    let mut changes = Vec::new();
    for (name, value) in &now {
        match before.iter().find(|(known, _)| known == name) {
            None => changes.push(format!("+ {name}: {}", shown(value.get()))),
            Some((_, old)) if old.get() != value.get() => {
                changes.push(format!("{name}: {} → {}", shown(old.get()), shown(value.get())));
            }
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|(name, _)| !now.iter().any(|(known, _)| known == name));
    changes.extend(gone.map(|(name, value)| format!("- {name}: {}", shown(value.get()))));
    changes
}

fn shown(value: &str) -> String {
    match value.char_indices().nth(VALUE_LIMIT_CHARS) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use shared::object::{Sha256, SnapshotFacts};
    use uuid::Uuid;

    use super::*;

    /// A page of a snapshot that begins there.
    fn page(number: u64, first: u64, is_last: bool, kind: Option<SnapshotKind>, record: Option<&str>) -> Observation {
        let sequence = |number: u64| Sequence::try_from(number).unwrap();
        let facts = SnapshotFacts { kind, single: first == number && is_last, ..SnapshotFacts::default() };
        let metadata = Metadata {
            archive_id: Uuid::nil(),
            observation: Uuid::nil(),
            previous: None,
            sha256: Sha256([0; 32]),
            fetched_at: Timestamp::from_second(i64::try_from(number).unwrap()).unwrap(),
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: sequence(first),
            page: 1,
            last_page: is_last,
            snapshot_sha256: Sha256([0; 32]),
            facts,
        };
        let record = record.map(|record| record.as_bytes().to_vec());
        Observation { sequence: sequence(number), metadata, record, problem: None }
    }

    #[test]
    fn a_record_appears_changes_goes_and_comes_back() {
        let (whole, increment) = (Some(SnapshotKind::Whole), Some(SnapshotKind::Increment));
        let mut story = Story::default();
        let mut broken = page(9, 9, true, whole, None);
        broken.problem = Some("it is broken".to_owned());
        let told: Vec<_> = [
            page(1, 1, true, whole, Some(r#"{"id":7,"a":1,"b":[]}"#)),
            page(2, 2, true, whole, Some(r#"{"b": [],"id":7,"a":1}"#)),
            page(3, 3, true, increment, None),
            page(4, 4, true, None, None),
            page(5, 5, true, increment, Some(r#"{"id":7,"a":2,"c":null}"#)),
            page(6, 6, false, whole, Some(r#"{"id":7,"a":2,"c":null}"#)),
            page(7, 6, true, whole, None),
            broken,
            page(10, 10, false, whole, None),
            page(11, 10, true, whole, None),
            page(12, 12, true, whole, None),
            page(13, 13, true, whole, Some(r#"{"id":7,"a":2,"c":null}"#)),
            page(14, 14, true, whole, None),
            page(15, 15, true, increment, Some(r#"{"id":7,"a":3,"c":null}"#)),
        ]
        .into_iter()
        .filter_map(|observation| story.next(observation))
        .map(|entry| entry.to_string())
        .collect();
        assert_eq!(
            told,
            [
                "1970-01-01T00:00:01Z  object 1  appeared\n    + id: 7\n    + a: 1\n    + b: []",
                "1970-01-01T00:00:05Z  object 5  changed\n    a: 1 → 2\n    + c: null\n    - b: []",
                "1970-01-01T00:00:11Z  objects 10 to 11  lacking: gone, if the next whole snapshot lacks it, too",
                "1970-01-01T00:00:13Z  object 13  there again as it was",
                "1970-01-01T00:00:14Z  object 14  gone",
                "1970-01-01T00:00:15Z  object 15  there again, and changed\n    a: 2 → 3",
            ]
        );
    }

    #[test]
    fn a_long_value_is_cut() {
        assert_eq!(shown("1"), "1");
        assert_eq!(shown(&"é".repeat(201)), format!("{}…", "é".repeat(200)));
    }
}
