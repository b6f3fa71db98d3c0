//! What Postgres can do with rows that are ready-made: the limit, and the best of the usual ways to bring changed rows in.
//!
//! Nothing is read, hashed or parsed here. Each is one transaction on a table with the columns and the key of the transformer's own.

use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// `INSERT … ON CONFLICT` from a staging table.
pub(super) const UPSERT: &str = "
    INSERT INTO plain SELECT * FROM staged
    ON CONFLICT (id) DO UPDATE SET
        user_id = excluded.user_id, title = excluded.title, body = excluded.body, extra = excluded.extra,
        updated_at = excluded.updated_at, sequence = excluded.sequence
    WHERE (plain.user_id, plain.title, plain.body, plain.extra)
        IS DISTINCT FROM (excluded.user_id, excluded.title, excluded.body, excluded.extra)";

/// `UPDATE … FROM` a staging table whose size the planner knows.
pub(super) const UPDATE: &str = "
    ANALYZE staged;
    UPDATE plain SET
        user_id = staged.user_id, title = staged.title, body = staged.body, extra = staged.extra,
        updated_at = staged.updated_at, sequence = staged.sequence
    FROM staged
    WHERE plain.id = staged.id AND (plain.user_id, plain.title, plain.body, plain.extra)
        IS DISTINCT FROM (staged.user_id, staged.title, staged.body, staged.extra)";

/// The table as binary COPY writes it, in this order.
pub(super) async fn ready_made_rows(connection: &mut PgConnection, table: &str, order: &str) -> Result<Vec<u8>> {
    use tokio_stream::StreamExt;

    let mut rows = Vec::new();
    let statement = format!("COPY (SELECT * FROM {table} ORDER BY {order}) TO STDOUT (FORMAT binary)");
    let mut copy = connection.copy_out_raw(&statement).await?;
    while let Some(chunk) = copy.next().await {
        rows.extend_from_slice(&chunk?);
    }
    Ok(rows)
}

/// The limit of any load: binary COPY into an empty table like that one.
pub(super) async fn straight_copy(
    connection: &mut PgConnection,
    schema: &str,
    like: &str,
    rows: &[u8],
) -> Result<Duration> {
    make_plain(connection, schema, like).await?;
    settle(connection, &format!("{schema}.plain")).await?;
    let begun = Instant::now();
    let mut transaction = connection.begin().await?;
    copy(&mut transaction, &format!("{schema}.plain"), rows).await?;
    transaction.commit().await?;
    let took = begun.elapsed();
    drop_plain(connection, schema).await?;
    Ok(took)
}

/// Binary COPY of the new rows into a temporary table, then `merge` from there into a table that has the old ones.
pub(super) async fn staged(
    connection: &mut PgConnection,
    schema: &str,
    (old, new): (&[u8], &[u8]),
    merge: &'static str,
) -> Result<Duration> {
    make_plain(connection, schema, "posts").await?;
    copy(connection, &format!("{schema}.plain"), old).await?;
    settle(connection, &format!("{schema}.plain")).await?;
    let begun = Instant::now();
    let mut transaction = connection.begin().await?;
    let stage = format!(
        "SET LOCAL search_path = {schema}, pg_temp; CREATE TEMPORARY TABLE staged (LIKE {schema}.plain) ON COMMIT DROP"
    );
    run(&mut transaction, stage).await?;
    copy(&mut transaction, "staged", new).await?;
    transaction.execute(merge).await?;
    transaction.commit().await?;
    let took = begun.elapsed();
    drop_plain(connection, schema).await?;
    Ok(took)
}

/// What autovacuum would have done some time later, so that it does not do it now; and no checkpoint is due.
pub(super) async fn settle(connection: &mut PgConnection, table: &str) -> Result<()> {
    run(connection, format!("VACUUM (ANALYZE) {table}")).await?;
    run(connection, "CHECKPOINT".to_owned()).await
}

/// How many bytes the server has written ahead so far.
pub(super) async fn wal_bytes(connection: &mut PgConnection) -> Result<u64> {
    let position: i64 =
        sqlx::query_scalar("SELECT (pg_current_wal_lsn() - '0/0')::bigint").fetch_one(connection).await?;
    Ok(position.unsigned_abs())
}

async fn make_plain(connection: &mut PgConnection, schema: &str, like: &str) -> Result<()> {
    run(connection, format!("CREATE TABLE {schema}.plain (LIKE {schema}.{like} INCLUDING ALL)")).await
}

async fn drop_plain(connection: &mut PgConnection, schema: &str) -> Result<()> {
    run(connection, format!("DROP TABLE {schema}.plain")).await
}

/// Statements whose names are ours.
pub(super) async fn run(connection: &mut PgConnection, statements: String) -> Result<()> {
    connection.execute(AssertSqlSafe(statements)).await?;
    Ok(())
}

async fn copy(connection: &mut PgConnection, table: &str, rows: &[u8]) -> Result<()> {
    let mut copy = connection.copy_in_raw(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await?;
    for chunk in rows.chunks(1 << 20) {
        copy.send(chunk).await?;
    }
    copy.finish().await?;
    Ok(())
}
