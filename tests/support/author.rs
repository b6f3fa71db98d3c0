//! An archive written past the importer, so that a test decides what stands in each object, and when.

use anyhow::{Context, Result};
use jiff::{Timestamp, ToSpan};
use sandbox::Sandbox;
use serde_json::json;
use sha2::Digest;
use shared::{
    archive::Archive,
    object::{Metadata, Sequence, Sha256, SnapshotFacts},
    pointer::Pointer,
};
use uuid::Uuid;

/// Appends objects as an importer would, each rung for. One a stream, and no importer beside it.
#[derive(Debug)]
pub struct Author<'a> {
    sandbox: &'a Sandbox,
    archive_id: Uuid,
    last: Option<(u64, Uuid)>,
}

impl<'a> Author<'a> {
    /// Goes on where the archive ends.
    pub async fn of(sandbox: &'a Sandbox) -> Result<Self> {
        let mut author = Self { sandbox, archive_id: Uuid::new_v4(), last: None };
        let archive = sandbox.archive();
        if let Some(end) = archive.end().await? {
            let head = archive.head(end).await?.context("the end is there")?;
            author.archive_id = head.metadata.archive_id;
            author.last = Some((end.get(), head.metadata.observation));
        }
        Ok(author)
    }

    /// The next object; answers with its number.
    pub async fn append(&mut self, body: impl AsRef<[u8]>) -> Result<u64> {
        self.append_with(body, |_| {}).await
    }

    /// The next object, with metadata that says something else than an importer would.
    pub async fn append_with(&mut self, body: impl AsRef<[u8]>, change: impl FnOnce(&mut Metadata)) -> Result<u64> {
        let (number, metadata) = self.put(body.as_ref(), change).await?;
        let pointer = Pointer::new(self.sandbox.stream(), Sequence::try_from(number)?, &metadata);
        crate::send(self.sandbox, &pointer.encode()).await?;
        Ok(number)
    }

    /// The next object, without a message.
    pub async fn append_silently(&mut self, body: impl AsRef<[u8]>) -> Result<u64> {
        Ok(self.put(body.as_ref(), |_| {}).await?.0)
    }

    async fn put(&mut self, body: &[u8], change: impl FnOnce(&mut Metadata)) -> Result<(u64, Metadata)> {
        let metadata = self.metadata(body, change)?;
        let number = self.next();
        crate::put(self.sandbox, self.sandbox.bucket(), number, &metadata, body).await?;
        self.last = Some((number, metadata.observation));
        Ok((number, metadata))
    }

    /// Leaves a hole, as if the next object had been deleted.
    pub fn skip_a_number(&mut self) {
        self.last = Some((self.next(), Uuid::now_v7()));
    }

    /// The number of the next object.
    pub fn next(&self) -> u64 {
        self.last.map_or(1, |(number, _)| number + 1)
    }

    /// Each object was observed an hour after the one before it, at a time finer than Postgres can hold.
    pub fn fetched_at(number: u64) -> Timestamp {
        let first: Timestamp = "2026-01-01T00:00:00.123456789Z".parse().expect("a time");
        first + i64::try_from(number).expect("a small number").hours()
    }

    fn metadata(&self, body: &[u8], change: impl FnOnce(&mut Metadata)) -> Result<Metadata> {
        let number = self.next();
        let sha256 = Sha256(sha2::Sha256::digest(body).into());
        let mut metadata = Metadata {
            archive_id: self.archive_id,
            observation: Uuid::now_v7(),
            previous: self.last.map(|(_, observation)| observation),
            sha256,
            fetched_at: Self::fetched_at(number),
            source_url: self.sandbox.api.url(),
            etag: None,
            last_modified: None,
            snapshot: Sequence::try_from(number)?,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256::of_pages(&[sha256]),
            facts: SnapshotFacts::default(),
        };
        change(&mut metadata);
        Ok(metadata)
    }
}

/// A document of posts that all have this title and their id at its end.
pub fn document(ids: impl IntoIterator<Item = i64>, title: &str) -> String {
    let post = |id: i64| json!({ "id": id, "userId": 1, "title": format!("{title} {id}"), "body": "" }).to_string();
    format!("[{}]", ids.into_iter().map(post).collect::<Vec<_>>().join(",\n"))
}
