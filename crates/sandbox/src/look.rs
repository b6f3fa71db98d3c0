//! What can be seen of a stream: its archive, its table, and whether they are what they should be.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use shared::{archive::Archive, object::Sequence};
use sqlx::AssertSqlSafe;
use tokio::time::sleep;

use crate::{
    compare::{Row, differences},
    sandbox::{Program, Sandbox},
    tail,
};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Sandbox {
    /// The number of the newest object; 0 for an empty archive.
    pub async fn end(&self) -> Result<u64> {
        Ok(self.archive().end().await?.map_or(0, Sequence::get))
    }

    /// An object's body, byte for byte.
    pub async fn body(&self, sequence: u64) -> Result<Vec<u8>> {
        let sequence = Sequence::try_from(sequence)?;
        let object = self.archive().get(sequence).await?.with_context(|| format!("there is no object {sequence}"))?;
        Ok(object.into_bytes().await?.to_vec())
    }

    /// The table of posts, by id.
    pub async fn rows(&self) -> Result<Vec<Row>> {
        self.query(&format!("SELECT id, user_id, title, body FROM {}.posts ORDER BY id", self.schema)).await
    }

    /// The name of the key of the table, and the first rows: the key, and the beginning of what else the record gave.
    pub(crate) async fn first_rows(&self, count: usize) -> Result<(String, Vec<(String, String)>)> {
        let table = self.table();
        let key = format!(
            "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum = 1"
        );
        let (key,): (String,) = self.query(&key).await?.pop().context("a table has a key")?;
        let others = format!(
            "jsonb_strip_nulls(to_jsonb(record)) - '{{first_seen_at,updated_at,sequence}}'::text[] - (SELECT attname::text FROM pg_attribute
             WHERE attrelid = '{table}'::regclass AND attnum = 1)"
        );
        let rows = format!(
            "SELECT {key}::text, left(({others})::text, 10000) FROM {table} AS record ORDER BY record.{key} LIMIT {count}"
        );
        let rows = self.query(&rows).await?;
        Ok((key, rows))
    }

    /// The table of the rows, as in SQL.
    pub(crate) fn table(&self) -> String {
        format!("{}.{}", self.schema, self.settings().get("TABLE").unwrap_or("posts"))
    }

    /// What is not among the rows and why, the newest first, as the transformer's own command knows it; nothing if all is.
    pub(crate) async fn quarantined(&self, limit: usize) -> Result<Vec<String>> {
        let output =
            self.run(Program::Transformer, &["quarantine", "list", "--json", "--limit", &limit.to_string()]).await?;
        ensure!(output.status.success(), "the quarantine cannot be read: {}", String::from_utf8_lossy(&output.stderr));
        let line = |line: &str| {
            let record: Value = serde_json::from_str(line)?;
            let place = record["index"].as_u64().map_or(" as a whole".to_owned(), |index| format!(", record {index}"));
            Ok(format!("object {}{place}: {}", record["sequence"], record["reason"].as_str().unwrap_or_default()))
        };
        String::from_utf8_lossy(&output.stdout).lines().map(line).collect()
    }

    /// How many rows the table has.
    pub async fn count(&self) -> Result<u64> {
        let counted: Vec<(i64,)> = self.query(&format!("SELECT count(*) FROM {}", self.table())).await?;
        Ok(counted.first().map_or(0, |(count,)| count.unsigned_abs()))
    }

    /// The number of the last object applied; 0 before the first.
    pub async fn position(&self) -> Result<u64> {
        let found: Vec<(Option<i64>,)> = self.query(&format!("SELECT position FROM {}.stream", self.schema)).await?;
        Ok(found.first().and_then(|(position,)| *position).map_or(0, i64::unsigned_abs))
    }

    /// What keeps the table from being the API's posts at the end of the archive: nothing, if it is empty. Of an API that is not ours only
    /// the archive knows what it said: all pages of a snapshot, and the position at their end.
    pub async fn unsettled(&self) -> Result<Vec<String>> {
        let (end, position) = (self.end().await?, self.position().await?);
        if position != end || end == 0 {
            return Ok(vec![format!("the position is {position}, and the end of the archive {end}")]);
        }
        if self.is_own_api() {
            let head = self.archive().head(Sequence::try_from(end)?).await?;
            let is_whole = head.is_some_and(|head| head.metadata.last_page);
            return Ok(if is_whole { Vec::new() } else { vec!["the last pages are not archived yet".to_owned()] });
        }
        let posts = self.api.posts();
        let count = self.count().await?;
        if count < posts.len() as u64 {
            return Ok(vec![format!("the table has {count} rows, and the API {} posts", posts.len())]);
        }
        Ok(differences(&posts, &self.rows().await?))
    }

    /// Waits until the table equals the API and the position is the end of the archive.
    pub async fn settled(&self, deadline: Duration) -> Result<()> {
        let what = if self.is_own_api() { "all of the archive is applied" } else { "the table equals the API" };
        let wait = Wait::new(what, deadline);
        loop {
            match self.unsettled().await {
                Ok(differences) if differences.is_empty() => return Ok(()),
                Ok(differences) => wait.again(self, &differences.join("\n")).await?,
                Err(error) => wait.again(self, &format!("{error:#}")).await?,
            }
        }
    }

    /// Waits until the condition holds; it is looked at every 20 ms. An error in it counts as "not yet", because a database
    /// that is being restored does not answer. A failure tells the last error and what the daemons logged last.
    pub async fn wait_until(
        &self,
        what: impl fmt::Display,
        deadline: Duration,
        mut condition: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let wait = Wait::new(what, deadline);
        loop {
            match condition().await {
                Ok(true) => return Ok(()),
                Ok(false) => wait.again(self, "").await?,
                Err(error) => wait.again(self, &format!("last error: {error:#}")).await?,
            }
        }
    }

    fn last_lines(&self) -> String {
        let lines = [&self.importer, &self.transformer].map(|daemon| {
            let name = daemon.name();
            format!(
                "\n--- {name}, restarted {} times, its last lines:\n{}",
                daemon.restarts(),
                tail::of_file(daemon.log())
            )
        });
        lines.concat()
    }

    /// Rows of a statement. A connection that was cut, by a restore for instance, is made anew once.
    pub(crate) async fn query<T>(&self, statement: &str) -> Result<Vec<T>>
    where
        T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
    {
        let mut kept = self.connection.lock().await;
        if let Some(mut connection) = kept.take()
            && let Ok(rows) = sqlx::query_as(AssertSqlSafe(statement)).fetch_all(&mut connection).await
        {
            *kept = Some(connection);
            return Ok(rows);
        }
        let mut connection = self.connect().await?;
        let rows = sqlx::query_as(AssertSqlSafe(statement)).fetch_all(&mut connection).await?;
        *kept = Some(connection);
        Ok(rows)
    }
}

/// A wait that has its limit.
struct Wait {
    what: String,
    begun: Instant,
    deadline: Duration,
}

impl Wait {
    fn new(what: impl fmt::Display, deadline: Duration) -> Self {
        Self { what: what.to_string(), begun: Instant::now(), deadline }
    }

    /// The pause before the next look, or the error that there is none.
    async fn again(&self, sandbox: &Sandbox, seen: &str) -> Result<()> {
        if self.begun.elapsed() > self.deadline {
            let seconds = self.deadline.as_secs_f32();
            bail!("waited {seconds} s in vain until {}\n{seen}{}", self.what, sandbox.last_lines());
        }
        sleep(LOOK_EVERY).await;
        Ok(())
    }
}
