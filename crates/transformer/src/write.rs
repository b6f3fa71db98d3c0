//! A batch into the tables: copied where nothing is there to compare with, merged elsewhere.

use jiff::Timestamp;
use shared::{
    crash_point,
    object::{Metadata, Sequence},
};
use sqlx::{Executor, PgConnection, Row, postgres::PgRow};

use crate::{
    batch::Batch,
    connect::within,
    copy::encode_posts,
    fault::{Fault, TableError},
    ledger::to_bigint,
    post::{Post, WrongRecord},
    record::Record,
};

/// The object that rows come from.
#[derive(Clone, Copy, Debug)]
pub struct RowSource {
    sequence: i64,
    /// In the microseconds that Postgres has, so that both ways to write give equal rows.
    fetched_at: Timestamp,
}

impl RowSource {
    /// The object with this number and metadata.
    pub fn new(sequence: Sequence, metadata: &Metadata) -> Self {
        Self { sequence: to_bigint(sequence.get()), fetched_at: in_micros(metadata.fetched_at) }
    }
}

/// A time as Postgres has it, cut and not rounded: the same in posts and ledger.
pub fn in_micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).expect("a coarser time is within the range of the finer one")
}

/// Rows of posts that this backend has written, rolled back or not.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// New ones.
    pub inserted: i64,
    /// Changed ones.
    pub updated: i64,
}

impl Written {
    /// Reads the columns of these names.
    pub fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { inserted: row.try_get("inserted")?, updated: row.try_get("updated")? })
    }
}

/// Writes posts that are sorted by id. Measured against straight COPY of all rows at once: copied 0.83 in batches of 4,000, merged
/// 0.45 where all are new and 0.73 where none has changed.
pub async fn write_posts(connection: &mut PgConnection, posts: &[Post], row: RowSource) -> Result<(), TableError> {
    let [first, .., last] = posts else { return merge(connection, posts, row).await };
    let look = sqlx::query_scalar(include_str!("sql/select_any_post_between.sql")).bind(first.id).bind(last.id);
    let is_taken: bool = within("look for posts in", look.fetch_one(&mut *connection)).await?;
    if is_taken { merge(connection, posts, row).await } else { copy(connection, posts, row).await }
}

async fn copy(connection: &mut PgConnection, posts: &[Post], row: RowSource) -> Result<(), TableError> {
    let rows = encode_posts(posts, row.fetched_at, row.sequence);
    let copy = async {
        let mut copy = connection.copy_in_raw(include_str!("sql/copy_posts.sql")).await?;
        copy.send(rows).await?;
        copy.finish().await
    };
    within("copy posts into", copy).await?;
    Ok(())
}

async fn merge(connection: &mut PgConnection, posts: &[Post], row: RowSource) -> Result<(), TableError> {
    if posts.is_empty() {
        return Ok(());
    }
    let merge = sqlx::query(include_str!("sql/merge_posts.sql"))
        .bind(column(posts, |post| post.id))
        .bind(column(posts, |post| post.user_id))
        .bind(column(posts, |post| post.title.as_str()))
        .bind(column(posts, |post| post.body.as_str()))
        .bind(column(posts, |post| post.extra.as_deref()))
        .bind(row.fetched_at.to_string())
        .bind(row.sequence);
    within("merge posts into", merge.execute(connection)).await?;
    Ok(())
}

/// Writes posts of which Postgres refuses some, by a constraint or trigger of somebody's own or a value that it cannot hold: what fails is
/// rolled back and halved until the culprits stand alone, and they move to the batch's wrong records. What failed is added to
/// `written_before`, since the server counts it as written.
pub async fn write_posts_carefully(
    connection: &mut PgConnection,
    batch: &mut Batch,
    row: RowSource,
    written_before: &mut Written,
) -> Result<(), TableError> {
    let mut refused = Vec::new();
    let mut parts = vec![batch.posts.as_slice()];
    while let Some(part) = parts.pop() {
        within("set a savepoint in", connection.execute("SAVEPOINT part")).await?;
        let before = written(connection).await?;
        match merge(connection, part, row).await {
            Ok(()) => {
                within("release a savepoint in", connection.execute("RELEASE SAVEPOINT part")).await?;
            }
            // Too slow is no record's fault: it is only written in smaller parts.
            Err(error) if error.fault() == Fault::Record || (error.is_too_slow() && part.len() > 1) => {
                // Released too: left in place, each would be one more level of subtransactions, with a lock in a table that the whole
                // cluster shares.
                let roll_back = connection.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part");
                within("roll back to a savepoint in", roll_back).await?;
                crash_point!("part-refused");
                let after = written(connection).await?;
                written_before.inserted += after.inserted - before.inserted;
                written_before.updated += after.updated - before.updated;
                if let [culprit] = part {
                    refused.push((culprit.index, format!("Postgres refuses it: {}", error.database_message())));
                } else {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
            Err(error) => return Err(error),
        }
    }
    for (index, reason) in refused {
        let raw = batch.records.get(&index).expect("records are kept where batches are written carefully");
        batch.wrong.push(WrongRecord::new(Record { index, raw, is_whole: true }, &reason));
    }
    Ok(())
}

async fn written(connection: &mut PgConnection) -> Result<Written, TableError> {
    const DOING: &str = "count rows in";
    let row = within(DOING, sqlx::query(include_str!("sql/select_written.sql")).fetch_one(connection)).await?;
    Written::of(&row).map_err(|source| TableError::Sql { doing: DOING, source })
}

/// Writes the records that are no posts.
pub async fn write_wrong_records(
    connection: &mut PgConnection,
    records: &[WrongRecord],
    row: RowSource,
) -> Result<(), TableError> {
    if records.is_empty() {
        return Ok(());
    }
    let insert = sqlx::query(include_str!("sql/insert_quarantined_records.sql"))
        .bind(row.sequence)
        .bind(column(records, |record| to_bigint(record.index)))
        .bind(column(records, |record| record.id))
        .bind(column(records, |record| record.reason.as_str()))
        .bind(column(records, |record| record.raw.as_slice()));
    within("quarantine records in", insert.execute(connection)).await?;
    Ok(())
}

fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}
