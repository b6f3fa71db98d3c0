//! Whether anything was lost or doubled. The archive is read from S3 object by object and folded into the posts that it makes, without a line
//! of the transformer's code; API, ledger and table are held against that.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use shared::{
    archive::Archive,
    object::{Metadata, Sequence},
};
use sqlx::{Connection, Executor, PgConnection, Row as _};
use uuid::Uuid;

use crate::sandbox::Sandbox;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Objects, posts or acknowledgements that are not where they must be, or not as they must be.
    pub(super) lost: Vec<String>,
    /// Observations and rows that are there more often than they should be.
    pub(super) doubled: Vec<String>,
}

impl Verdict {
    pub(super) fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty()
    }

    fn lose(&mut self, is_lost: bool, what: impl FnOnce() -> String) {
        if is_lost {
            self.lost.push(what());
        }
    }

    fn double(&mut self, is_doubled: bool, what: impl FnOnce() -> String) {
        if is_doubled {
            self.doubled.push(what());
        }
    }
}

/// A row of the table: user, title, body, extra, first seen, updated (both in microseconds), and the object that changed it last.
type Row = (i64, String, String, Option<Value>, i64, i64, i64);

/// A line of the ledger: observation, outcome, and how many records were quarantined.
type Line = (Uuid, String, i64);

/// The archive as far as it was read, and what it comes to.
#[derive(Debug, Default)]
pub(super) struct Fold {
    lines: Vec<Line>,
    seen: HashSet<Uuid>,
    posts: BTreeMap<i64, Row>,
    /// The records of the snapshot at the end, whose last page may not be there yet.
    snapshot: Vec<Value>,
    last: Option<Metadata>,
    /// The last whole snapshot's digest.
    last_whole: Option<shared::object::Sha256>,
    verdict: Verdict,
}

impl Fold {
    /// How many objects were read.
    pub(super) fn end(&self) -> u64 {
        self.lines.len() as u64
    }

    /// What the posts come to.
    pub(super) fn rows(&self) -> u64 {
        self.posts.len() as u64
    }

    /// What was found so far.
    pub(super) fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Reads on, to the end of the archive.
    pub(super) async fn read(&mut self, sandbox: &Sandbox) -> Result<()> {
        let end = sandbox.end().await?;
        self.verdict.lose(end < self.end(), || format!("the archive ended at {}, and now at {end}", self.lines.len()));
        for number in self.end() + 1..=end {
            let Some(object) = sandbox.archive().get(Sequence::try_from(number)?).await? else {
                self.verdict.lost.push(format!("object {number} is missing, and the archive goes on to {end}"));
                return Ok(());
            };
            let metadata = object.metadata.clone();
            self.add(number, metadata, &object.into_bytes().await?);
        }
        Ok(())
    }

    fn add(&mut self, number: u64, metadata: Metadata, body: &[u8]) {
        let previous = self.last.as_ref().map(|last| last.observation);
        self.verdict
            .lose(metadata.previous != previous, || format!("object {number} does not continue the one before"));
        self.verdict.double(!self.seen.insert(metadata.observation), || {
            format!("object {number} holds an observation that is in the archive already")
        });
        if metadata.last_page {
            let is_same = self.last_whole.replace(metadata.snapshot_sha256) == Some(metadata.snapshot_sha256);
            self.verdict.double(is_same, || format!("the snapshot that ends with object {number} is that before it"));
        }
        if metadata.page == 1 {
            self.snapshot.clear();
        }
        let records: Option<Vec<Value>> = serde_json::from_slice(body).ok();
        let outcome = if records.is_some() { "loaded" } else { "quarantined" };
        let records = records.unwrap_or_default();
        let at = metadata.fetched_at.as_microsecond();
        let wrong = records.iter().filter(|record| !self.observe(number, at, record));
        let wrong = i64::try_from(wrong.count()).unwrap_or_default();
        self.lines.push((metadata.observation, outcome.to_owned(), wrong));
        self.snapshot.extend(records);
        self.last = Some(metadata);
    }

    /// Whether the record is a post.
    fn observe(&mut self, number: u64, at: i64, record: &Value) -> bool {
        let Some((id, user_id, title, body, extra)) = read_post(record) else { return false };
        let sequence = i64::try_from(number).unwrap_or_default();
        let new = (user_id, title, body, extra, at, at, sequence);
        let row = self.posts.entry(id).or_insert_with(|| new.clone());
        if (row.0, &row.1, &row.2, &row.3) != (new.0, &new.1, &new.2, &new.3) {
            *row = (new.0, new.1, new.2, new.3, row.4, at, sequence);
        }
        true
    }

    /// What has still to happen until the archive ends with what the API says and the table stands at its end. Nothing: then the ledger and
    /// the table are judged, and with them what the importers said that they archived.
    pub(super) async fn judge(&mut self, sandbox: &Sandbox, acknowledged: &[(u64, Uuid)]) -> Result<Option<String>> {
        self.read(sandbox).await?;
        let api = serde_json::to_value(sandbox.api.posts().iter().collect::<Vec<_>>())?;
        let is_whole = self.last.as_ref().is_some_and(|last| last.last_page);
        if !is_whole || api.as_array() != Some(&self.snapshot) {
            return Ok(Some(format!("the archive does not end, at {}, with what the API says", self.end())));
        }
        let mut connection = sandbox.connect().await?;
        let mut transaction = connection.begin().await?;
        // Position, ledger and posts of one instant.
        transaction.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
        let position: i64 = sqlx::query_scalar("SELECT position FROM stream").fetch_one(&mut *transaction).await?;
        if position.unsigned_abs() != self.end() {
            return Ok(Some(format!("the position is {position}, and the end of the archive {}", self.end())));
        }
        self.judge_ledger(&mut transaction).await?;
        self.judge_posts(&mut transaction).await?;
        for (sequence, observation) in acknowledged {
            let line = usize::try_from(sequence - 1).ok().and_then(|index| self.lines.get(index));
            let is_there = line.is_some_and(|line| line.0 == *observation);
            self.verdict
                .lose(!is_there, || format!("{observation} was archived as object {sequence}, and is not there"));
        }
        Ok(None)
    }

    async fn judge_ledger(&mut self, connection: &mut PgConnection) -> Result<()> {
        let statement = "SELECT sequence, observation, outcome, quarantined FROM objects ORDER BY sequence";
        let mut found = BTreeMap::new();
        for row in connection.fetch_all(statement).await? {
            let sequence: i64 = row.try_get(0)?;
            let line: Line = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            found.insert(sequence, line);
        }
        for (line, sequence) in self.lines.iter().zip(1..) {
            let ours = found.remove(&sequence);
            self.verdict.lose(ours.as_ref() != Some(line), || {
                format!("object {sequence} is {line:?}, and in the ledger {ours:?}")
            });
        }
        for sequence in found.keys() {
            self.verdict.doubled.push(format!("the ledger has an object {sequence} that the archive has not"));
        }
        Ok(())
    }

    async fn judge_posts(&mut self, connection: &mut PgConnection) -> Result<()> {
        let statement =
            "SELECT user_id, title, body, extra::text, (extract(epoch FROM first_seen_at) * 1000000)::bigint,
            (extract(epoch FROM updated_at) * 1000000)::bigint, sequence, id FROM posts ORDER BY id";
        let mut found = BTreeMap::new();
        for row in connection.fetch_all(statement).await? {
            let extra: Option<String> = row.try_get(3)?;
            let extra = extra.map(|extra| serde_json::from_str(&extra)).transpose().context("extra is JSON")?;
            let post: Row = (
                row.try_get(0)?,
                row.try_get(1)?,
                row.try_get(2)?,
                extra,
                row.try_get(4)?,
                row.try_get(5)?,
                row.try_get(6)?,
            );
            found.insert(row.try_get::<i64, _>(7)?, post);
        }
        for (id, post) in &self.posts {
            let row = found.remove(id);
            self.verdict.lose(row.as_ref() != Some(post), || {
                format!(
                    "post {id} is {} after the archive, and in the table {}",
                    brief(Some(post)),
                    brief(row.as_ref())
                )
            });
        }
        for id in found.keys() {
            self.verdict.doubled.push(format!("row {id} is in no object"));
        }
        Ok(())
    }
}

/// What the table holds of a record, if it is a post.
fn read_post(record: &Value) -> Option<(i64, i64, String, String, Option<Value>)> {
    let mut fields: Map<String, Value> = record.as_object()?.clone();
    let mut text = |name| fields.remove(name)?.as_str().filter(|text| !text.contains('\0')).map(str::to_owned);
    let (title, body) = (text("title")?, text("body")?);
    let (id, user_id) = (fields.remove("id")?.as_i64()?, fields.remove("userId")?.as_i64()?);
    Some((id, user_id, title, body, (!fields.is_empty()).then_some(Value::Object(fields))))
}

/// A row without its body.
fn brief(row: Option<&Row>) -> String {
    row.map_or("nothing".to_owned(), |(user_id, title, body, extra, first_seen, updated, sequence)| {
        let bytes = body.len();
        format!("({user_id}, {title}, {bytes} bytes, {extra:?}, {first_seen}, {updated}, {sequence})")
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;
    use shared::object::{Sha256, SnapshotFacts};

    use super::*;

    fn metadata(number: u8, digest: u8) -> Metadata {
        Metadata {
            archive_id: Uuid::from_u128(1),
            observation: Uuid::from_u128(number.into()),
            previous: (number > 1).then(|| Uuid::from_u128(u128::from(number) - 1)),
            sha256: Sha256([digest; 32]),
            fetched_at: Timestamp::from_microsecond(number.into()).unwrap(),
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: Sequence::FIRST,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256([digest; 32]),
            facts: SnapshotFacts::default(),
        }
    }

    fn body(title: &Value) -> Vec<u8> {
        json!([{ "id": 1, "userId": 2, "title": title, "body": "b" }]).to_string().into_bytes()
    }

    #[test]
    fn the_last_change_counts_and_what_is_no_post_changes_nothing() {
        let mut fold = Fold::default();
        for (title, number) in [json!("a"), json!("a"), json!(7), json!("b"), json!("c\0")].iter().zip(1..) {
            fold.add(number.into(), metadata(number, number), &body(title));
        }
        fold.add(6, metadata(6, 6), b"[{");
        let row = (2, "b".to_owned(), "b".to_owned(), None, 1, 4, 4);
        assert_eq!(fold.posts, [(1, row)].into());
        let outcomes: Vec<_> = fold.lines.iter().map(|line| (line.1.as_str(), line.2)).collect();
        assert_eq!(outcomes[2..], [("loaded", 1), ("loaded", 0), ("loaded", 1), ("quarantined", 0)]);
        assert!(fold.verdict.is_clean(), "{:?}", fold.verdict);
    }

    #[test]
    fn what_is_doubled_or_breaks_the_chain_is_found() {
        let mut fold = Fold::default();
        fold.add(1, metadata(1, 1), &body(&json!("a")));
        fold.add(2, metadata(2, 1), &body(&json!("a")));
        assert_eq!((fold.verdict.doubled.len(), fold.verdict.lost.len()), (1, 0));
        fold.add(3, metadata(2, 2), &body(&json!("b")));
        assert_eq!((fold.verdict.doubled.len(), fold.verdict.lost.len()), (2, 1));
    }
}
