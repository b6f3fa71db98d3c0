//! The records of the archive's newest snapshot, for `transformer propose`.

use anyhow::{Context, bail};
use shared::{
    archive::Archive,
    json_scan::DocumentError,
    object::{Sequence, SnapshotKind},
    records::{RecordsAt, RecordsError, read_records},
    telemetry::chain,
};
use tokio::{runtime::Handle, task::spawn_blocking};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::commands::propose::Sample;

/// As many snapshots are looked at for one that is finished and has records.
const SNAPSHOTS_LIMIT: usize = 100;

/// Objects of one answer of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The sequence of its first page.
    pub first: u64,
    /// The sequence of the last page that there is.
    pub last: u64,
    /// The archive's newest object. What is between it and `last` has no records, or its snapshot is not finished.
    pub end: u64,
    /// Whether its last page is among them.
    pub is_finished: bool,
    /// Whether records may be missing or doubled.
    pub torn: bool,
}

/// The newest finished snapshot with a record that a table can hold, or, where there is none, the newest unfinished one; what was seen of its
/// records; and which objects could not be read.
pub async fn newest(archive: &impl Archive, at: &RecordsAt) -> anyhow::Result<(Snapshot, Sample, Vec<String>)> {
    let empty =
        "the archive has no object, and a table is proposed for records: `importer once` archives a first snapshot";
    let end = archive.end().await?.context(empty)?.get();
    let (mut last, mut unfinished, mut problems) = (end, None, Vec::new());
    for _ in 0..SNAPSHOTS_LIMIT {
        let Some(snapshot) = Snapshot::until(archive, last, end).await? else { break };
        if snapshot.is_finished {
            let sample = snapshot.sample(archive, at, &mut problems).await?;
            if sample.records > 0 {
                return Ok((snapshot, sample, problems));
            }
        } else {
            unfinished = unfinished.or(Some(snapshot));
        }
        last = snapshot.first - 1;
    }
    if let Some(snapshot) = unfinished {
        let sample = snapshot.sample(archive, at, &mut problems).await?;
        if sample.records > 0 {
            return Ok((snapshot, sample, problems));
        }
    }
    bail!(
        "objects {} to {end} have no record that a table can hold{}: look whether RECORDS_AT leads to the records, or propose again when \
         the API has some",
        last + 1,
        problems.first().map_or_else(String::new, |problem| format!("; {problem}"))
    )
}

impl Snapshot {
    /// The one that this object is a page of, without later pages. `None` where there is no object.
    async fn until(archive: &impl Archive, last: u64, end: u64) -> anyhow::Result<Option<Self>> {
        let Ok(sequence) = Sequence::try_from(last) else { return Ok(None) };
        let head = archive.head(sequence).await?;
        Ok(head.map(|head| Self {
            first: head.metadata.snapshot.get().min(last),
            last,
            end,
            // An increment is no picture of the collection.
            is_finished: head.metadata.last_page && head.metadata.facts.kind != Some(SnapshotKind::Increment),
            torn: head.metadata.facts.torn,
        }))
    }

    async fn sample(
        self,
        archive: &impl Archive,
        at: &RecordsAt,
        problems: &mut Vec<String>,
    ) -> anyhow::Result<Sample> {
        let mut sample = Sample::default();
        for number in self.first..=self.last {
            let Some(object) = archive.get(Sequence::try_from(number)?).await? else {
                problems.push(format!("object {number} is missing from the bucket"));
                continue;
            };
            let at = object.metadata.facts.records_at.as_ref().unwrap_or(at).clone();
            let body = SyncIoBridge::new_with_handle(StreamReader::new(object.body), Handle::current());
            let reader = move || {
                let read = read_records(body, &at, |record| sample.add(record));
                (sample, read)
            };
            let read;
            (sample, read) = spawn_blocking(reader).await?;
            match read {
                Ok(_) => {}
                Err(RecordsError::Document(DocumentError::Read(error))) => {
                    let what = format!("the body of object {number} broke off on its way: propose again");
                    return Err(anyhow::Error::new(error).context(what));
                }
                Err(broken) => problems.push(format!("object {number}: {}", chain(&broken))),
            }
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use sha2::Digest;
    use shared::{
        archive::{Append, ArchiveError, Head, Object, Upload},
        object::{Metadata, Sha256, SnapshotFacts},
    };
    use uuid::Uuid;

    use super::*;

    /// Bodies by sequence.
    struct InMemory(BTreeMap<u64, (Metadata, &'static str)>);

    impl InMemory {
        /// Of a snapshot's first page, whether it is the last one, and the body.
        fn new(objects: &[(u64, bool, &'static str)]) -> Self {
            let object = |(number, (snapshot, last_page, body)): (u64, &(u64, bool, &'static str))| {
                let metadata = Metadata {
                    archive_id: Uuid::nil(),
                    observation: Uuid::nil(),
                    previous: None,
                    sha256: Sha256::of(sha2::Sha256::new_with_prefix(body)),
                    fetched_at: jiff::Timestamp::UNIX_EPOCH,
                    source_url: String::new(),
                    etag: None,
                    last_modified: None,
                    snapshot: Sequence::try_from(*snapshot).unwrap(),
                    page: 1,
                    last_page: *last_page,
                    snapshot_sha256: Sha256([0; 32]),
                    facts: SnapshotFacts::default(),
                };
                (number, (metadata, *body))
            };
            Self((1..).zip(objects).map(object).collect())
        }
    }

    impl Archive for InMemory {
        async fn end(&self) -> Result<Option<Sequence>, ArchiveError> {
            Ok(self.0.keys().next_back().map(|number| Sequence::try_from(*number).unwrap()))
        }

        async fn head(&self, sequence: Sequence) -> Result<Option<Head>, ArchiveError> {
            let object = self.0.get(&sequence.get());
            Ok(object.map(|(metadata, body)| Head { metadata: metadata.clone(), bytes: body.len() as u64 }))
        }

        async fn get(&self, sequence: Sequence) -> Result<Option<Object>, ArchiveError> {
            let object = self.0.get(&sequence.get());
            Ok(object.map(|(metadata, body)| Object::of_bytes(metadata.clone(), Bytes::from_static(body.as_bytes()))))
        }

        async fn append(&self, _: Sequence, _: &Metadata, _: &Upload) -> Result<Append, ArchiveError> {
            unreachable!("nothing is appended")
        }
    }

    const FULL: &str = r#"[{"id":1},{"id":2}]"#;

    #[tokio::test]
    async fn the_newest_finished_snapshot_with_records_is_taken() {
        for (objects, expected) in [
            (&[(1, true, FULL)][..], (1, 1, true, 2)),
            (&[(1, true, "[]"), (2, false, FULL), (2, false, FULL), (2, true, FULL)], (2, 4, true, 6)),
            (&[(1, true, FULL), (2, false, FULL), (2, false, FULL)], (1, 1, true, 2)),
            (&[(1, false, FULL), (1, false, FULL)], (1, 2, false, 4)),
            (&[(1, false, FULL), (2, false, FULL)], (2, 2, false, 2)),
            (&[(1, true, FULL), (2, true, "[]"), (3, true, "[7]"), (4, true, "<html>")], (1, 1, true, 2)),
            (&[(1, true, "[]"), (2, false, FULL)], (2, 2, false, 2)),
            // A later release, or a stranger, says something that cannot be.
            (&[(9, true, FULL)], (1, 1, true, 2)),
        ] {
            let archive = InMemory::new(objects);
            let (Snapshot { first, last, is_finished, .. }, sample, _) =
                newest(&archive, &RecordsAt::default()).await.unwrap();
            assert_eq!((first, last, is_finished, sample.records), expected, "{objects:?}");
        }
    }

    #[tokio::test]
    async fn an_archive_without_records_says_what_to_do() {
        for (objects, expected) in [
            (&[][..], "`importer once` archives a first snapshot"),
            (
                &[(1, true, "[]"), (2, true, "[]")],
                "objects 1 to 2 have no record that a table can hold; object 2: the document is an array, and RECORDS_AT, which is /data",
            ),
            (&[(1, true, r#"{"data":[7]}"#), (2, true, r#"{"data":[]}"#)], "hold: look whether RECORDS_AT leads"),
            (&[(1, true, "<html>")], "; object 1: the document is no collection: it begins with '<'"),
        ] {
            let at = "/data".parse().unwrap();
            let at = if objects.len() == 2 { &at } else { &RecordsAt::default() };
            let told = newest(&InMemory::new(objects), at).await.unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[tokio::test]
    async fn what_is_no_row_is_told() {
        let archive = InMemory::new(&[(1, false, r#"[{"id":1},{"id":2,"x":0,"x":0}]"#), (1, true, r#"[7,{"id":2},"#)]);
        let (_, sample, problems) = newest(&archive, &RecordsAt::default()).await.unwrap();
        assert_eq!(sample.records, 2);
        assert!(problems[0].starts_with("object 2: the document is broken from byte"), "{problems:?}");
        let (count, example) = sample.left_out.unwrap();
        assert_eq!((count, &*example), (2, "`x` stands there twice"));
    }
}
