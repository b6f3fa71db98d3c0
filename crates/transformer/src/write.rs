//! A batch into the tables. The rows of its ids are read and compared here, which costs less than to send all posts for comparison; then
//! changed posts are updated and new ones copied. Nobody writes between, since the stream's row is locked. A small batch is one statement,
//! MERGE, and so is each part of one in which Postgres refuses something.

use std::{iter, ops::RangeInclusive, time::Duration};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use shared::{
    crash_point,
    object::{Metadata, Sequence},
};
use sqlx::{
    Executor, PgConnection, Postgres, Row,
    postgres::{PgArguments, PgCopyIn, PgRow},
    query::Query,
};
use tokio::time::Instant;

use crate::{
    batch::{Batch, Pieces},
    connect::within,
    copy::{HEADER, TRAILER, encode_posts},
    fault::{Fault, TableError},
    ledger::to_bigint,
    post::{Post, WrongRecord},
    record::Record,
};

/// From so many posts on it pays to compare them here. Fewer are one round trip with MERGE, and of a small COPY the end may wait 40 ms for an
/// acknowledgement, since sqlx sets no `TCP_NODELAY`.
const MANY_POSTS: usize = 500;

/// A range of ids with this many times as many numbers as posts is still read as a whole: in order, without a look for each.
const DENSE: u64 = 2;

/// How many posts are encoded at a time.
const COPY_PART_POSTS: usize = 500;

/// A COPY takes further batches for so long, and waits for them: far below the time that the server gives a statement, and less than a
/// client may be silent.
const COPY_FOR: Duration = Duration::from_secs(5);

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

/// Writes the posts of an object, batch after batch.
#[derive(Debug)]
pub struct Writer {
    row: RowSource,
    /// Whether all posts of the last batch were changed ones, so that the next is not compared first.
    expects_changes: bool,
}

impl Writer {
    /// For the object that rows come from.
    pub fn new(row: RowSource) -> Self {
        Self { row, expects_changes: false }
    }

    /// Writes posts that are sorted by id, each id once. Of many, changed ones come before new ones, as they may make room for them in a
    /// unique index of somebody's own.
    ///
    /// Batches of `pieces` that lie between the same rows as the new ones are new too: they are taken, and written in the same COPY.
    pub async fn write(
        &mut self,
        connection: &mut PgConnection,
        posts: Vec<Post<'_>>,
        pieces: &mut Pieces,
    ) -> Result<(), TableError> {
        if posts.len() < MANY_POSTS {
            return merge(connection, &posts, self.row).await;
        }
        let all = posts.len() as u64;
        let is_updated = self.expects_changes;
        if is_updated && update(connection, &posts, self.row).await? == all {
            return Ok(());
        }
        let (Some(first), Some(last)) = (posts.first(), posts.last()) else { return Ok(()) };
        let ids = first.id..=last.id;
        let Compared { new, perhaps_changed } = compare(connection, posts).await?;
        self.expects_changes = !is_updated && update(connection, &perhaps_changed, self.row).await? == all;
        if new.len() < MANY_POSTS {
            merge(connection, &new, self.row).await
        } else {
            let gap = Gap::around(connection, ids).await?;
            copy(connection, &new, self.row, gap, pieces).await
        }
    }
}

/// What a batch holds, beside the rows of its ids. Equal ones are left out.
#[derive(Debug, Default)]
struct Compared<'a> {
    new: Vec<Post<'a>>,
    /// Only Postgres can tell equal values of jsonb.
    perhaps_changed: Vec<Post<'a>>,
}

async fn compare<'a>(connection: &mut PgConnection, posts: Vec<Post<'a>>) -> Result<Compared<'a>, TableError> {
    let mut compared = Compared::default();
    let (Some(first), Some(last)) = (posts.first(), posts.last()) else { return Ok(compared) };
    let is_dense = last.id.abs_diff(first.id) < DENSE * posts.len() as u64;
    let look = if is_dense {
        sqlx::query(include_str!("sql/select_posts_between.sql")).bind(first.id).bind(last.id)
    } else {
        sqlx::query(include_str!("sql/select_posts.sql")).bind(column(&posts, |post| post.id))
    };
    let compare = async {
        let mut rows = look.fetch(connection);
        let mut posts = posts.into_iter().peekable();
        while let Some(row) = rows.try_next().await? {
            let id: i64 = row.try_get(0)?;
            compared.new.extend(iter::from_fn(|| posts.next_if(|post| post.id < id)));
            if let Some(post) = posts.next_if(|post| post.id == id)
                && may_differ(&post, &row)?
            {
                compared.perhaps_changed.push(post);
            }
        }
        compared.new.extend(posts);
        Ok(compared)
    };
    within("compare posts with those in", compare).await
}

fn may_differ(post: &Post<'_>, row: &PgRow) -> Result<bool, sqlx::Error> {
    Ok(post.extra.is_some()
        || row.try_get::<bool, _>(4)?
        || row.try_get::<i64, _>(1)? != post.user_id
        || row.try_get::<&str, _>(2)? != post.title
        || row.try_get::<&str, _>(3)? != post.body)
}

/// Where the table has no rows but those of the batches that were written last.
#[derive(Debug)]
struct Gap {
    written: RangeInclusive<i64>,
    /// The nearest rows.
    below: Option<i64>,
    above: Option<i64>,
}

impl Gap {
    async fn around(connection: &mut PgConnection, written: RangeInclusive<i64>) -> Result<Self, TableError> {
        let look = sqlx::query_as(include_str!("sql/select_neighbours.sql")).bind(written.start()).bind(written.end());
        let (below, above) = within("look for the nearest posts in", look.fetch_one(connection)).await?;
        Ok(Self { written, below, above })
    }

    /// Whether all of these are new, as they lie beside what was written. If so, they are counted as written.
    fn takes(&mut self, ids: &RangeInclusive<i64>) -> bool {
        let is_above = ids.start() > self.written.end() && self.above.is_none_or(|above| *ids.end() < above);
        let is_below = ids.end() < self.written.start() && self.below.is_none_or(|below| *ids.start() > below);
        if is_above {
            self.written = *self.written.start()..=*ids.end();
        } else if is_below {
            self.written = *ids.start()..=*self.written.end();
        }
        is_above || is_below
    }
}

/// Copies new posts, and the batches after them as long as the gap takes them.
async fn copy(
    connection: &mut PgConnection,
    posts: &[Post<'_>],
    row: RowSource,
    mut gap: Gap,
    pieces: &mut Pieces,
) -> Result<(), TableError> {
    const DOING: &str = "copy posts into";
    let begun = Instant::now();
    let mut copy = within(DOING, connection.copy_in_raw(include_str!("sql/copy_posts.sql"))).await?;
    let mut rows = HEADER.to_vec();
    within(DOING, send(&mut copy, &mut rows, posts, row)).await?;
    loop {
        let left = COPY_FOR.saturating_sub(begun.elapsed());
        // A batch that is there is taken however short the wait.
        if left.is_zero() {
            break;
        }
        let is_taken = |batch: &Batch| batch.wrong.is_empty() && batch.ids().is_some_and(|ids| gap.takes(&ids));
        let Some(batch) = pieces.next_batch_if(left, is_taken).await else { break };
        within(DOING, send(&mut copy, &mut rows, &batch.posts(), row)).await?;
    }
    let finish = async {
        copy.send(TRAILER).await?;
        copy.finish().await
    };
    within(DOING, finish).await?;
    Ok(())
}

/// In parts, so that Postgres has something to do while the next one is encoded.
async fn send(
    copy: &mut PgCopyIn<&mut PgConnection>,
    rows: &mut Vec<u8>,
    posts: &[Post<'_>],
    row: RowSource,
) -> Result<(), sqlx::Error> {
    for part in posts.chunks(COPY_PART_POSTS) {
        encode_posts(rows, part, row.fetched_at, row.sequence);
        copy.send(rows.as_slice()).await?;
        rows.clear();
    }
    Ok(())
}

/// How many of them were there and are changed.
async fn update(connection: &mut PgConnection, posts: &[Post<'_>], row: RowSource) -> Result<u64, TableError> {
    if posts.is_empty() {
        return Ok(0);
    }
    let update = posts_and_source(include_str!("sql/update_posts.sql"), posts, row).execute(connection);
    Ok(within("update posts in", update).await?.rows_affected())
}

/// Inserts, updates or leaves each, in the order of their ids.
async fn merge(connection: &mut PgConnection, posts: &[Post<'_>], row: RowSource) -> Result<(), TableError> {
    // Statement triggers of somebody's own would run, and could fail for ever.
    if posts.is_empty() {
        return Ok(());
    }
    let merge = posts_and_source(include_str!("sql/merge_posts.sql"), posts, row).execute(connection);
    within("merge posts into", merge).await?;
    Ok(())
}

fn posts_and_source<'q>(
    statement: &'static str,
    posts: &'q [Post],
    row: RowSource,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(statement)
        .bind(column(posts, |post| post.id))
        .bind(column(posts, |post| post.user_id))
        .bind(column(posts, |post| &*post.title))
        .bind(column(posts, |post| &*post.body))
        .bind(column(posts, |post| post.extra.as_deref()))
        .bind(row.fetched_at.to_string())
        .bind(row.sequence)
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
    let mut posts = batch.posts();
    while !posts.is_empty() {
        // A post that a refused one would have superseded counts after all.
        let mut superseded = Vec::new();
        let mut parts = vec![posts.as_slice()];
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
                        superseded.extend(batch.superseded_by(culprit));
                    } else {
                        let (first, second) = part.split_at(part.len() / 2);
                        parts.extend([second, first]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        posts = superseded;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_takes_what_lies_between_its_rows_and_what_was_written() {
        let mut gap = Gap { written: 10..=20, below: Some(0), above: Some(50) };
        for (ids, is_taken) in [
            (15..=25, false),
            (20..=25, false),
            (21..=50, false),
            (0..=9, false),
            (5..=10, false),
            (21..=30, true),
            (22..=23, false),
            (31..=49, true),
            (1..=9, true),
            (1..=1, false),
        ] {
            assert_eq!(gap.takes(&ids), is_taken, "{ids:?}");
        }
        let mut whole = Gap { written: 0..=0, below: None, above: None };
        assert!(whole.takes(&(1..=i64::MAX)) && whole.takes(&(i64::MIN..=-1)));
    }

    #[test]
    fn what_a_statement_is_bound_to_costs_no_allocation_a_post() {
        let row = RowSource { sequence: 1, fetched_at: Timestamp::UNIX_EPOCH };
        let count = |number| {
            let post = |id| Post { index: 0, id, user_id: 1, title: "t".into(), body: "b".into(), extra: None };
            let posts: Vec<_> = (0..number).map(post).collect();
            allocation_counter::measure(|| drop(posts_and_source("", &posts, row))).count_total
        };
        // Only buffers that double.
        assert!(count(8_000) <= count(1_000) + 10, "{} and {}", count(8_000), count(1_000));
    }
}
