//! The tables of one stream in Postgres, behind the one connection to them.

use std::{sync::Arc, time::Duration};

use clap::Args;

use shared::{
    archive::Object,
    object::{Sequence, StreamName},
    records::RecordsAt,
    settings::RecordsSettings,
    telemetry::chain,
};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    decide::Position,
    postgres::{
        connect::{DatabaseSettings, connect, obstacles, within},
        fault::TableError,
    },
    read::{
        batch::{self, Unread},
        record::RecordReader,
        table_definition::TableDefinition,
    },
    write::{
        ledger::{Home, LedgerLine, read_position},
        statements::Statements,
        transaction::{Attempt, Run, apply, pass_over},
        writer::Care,
    },
};

/// A connection that was used so lately is taken for open. `idle_session_timeout` and the limits of poolers are longer.
const IDLE: Duration = Duration::from_millis(100);

/// How the loop sees the database: the third door to the world. Dropped at any await, the transaction is rolled back, or
/// committed if it had come to that: the position tells.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Table {
    /// The last object applied, `None` when there is none.
    async fn position(&mut self) -> Result<Option<Position>, TableError>;

    /// Applies a run, the objects after `position`, in one transaction, if the table is still there. Rows, times, ledger and counts become what
    /// they would become if each object were applied alone. Of several, all are small.
    async fn apply(
        &mut self,
        position: Option<&Position>,
        run: Vec<(Sequence, Object)>,
        care: Care,
    ) -> Result<Attempt, TableError>;

    /// Moves past the object after `position` without its records.
    async fn pass_over(&mut self, position: Option<&Position>, line: &LedgerLine<'_>) -> Result<Attempt, TableError>;

    /// Ends the transaction that keeps this stream [`Attempt::Busy`] if its client has been silent for so long. Whether there was one.
    async fn end_silent_holder(&mut self, silence: Duration) -> Result<bool, TableError>;
}

/// Where an answer's records are, and which table they become rows of.
#[derive(Args, Clone, Debug, Default)]
pub struct TableSettings {
    #[command(flatten)]
    records: RecordsSettings,
    /// The table.
    #[command(flatten)]
    pub definition: TableDefinition,
}

/// The tables of one stream in Postgres.
#[derive(Debug)]
pub struct PostgresTable {
    settings: DatabaseSettings,
    stream: StreamName,
    /// Where records are, unless the object says it.
    records_at: RecordsAt,
    reader: Arc<RecordReader>,
    statements: Statements,
    /// Taken out while it is used and put back after success, so that no error and no drop leaves half a conversation behind. With the
    /// time when that was.
    connection: Option<(PgConnection, Instant)>,
}

impl PostgresTable {
    /// The tables of `stream`. Nothing is asked of Postgres yet.
    pub fn new(settings: DatabaseSettings, stream: StreamName, table: TableSettings) -> Self {
        let TableSettings { records: RecordsSettings { records_at }, definition } = table;
        let reader = Arc::new(RecordReader::new(definition.table_columns.clone()));
        Self { settings, stream, records_at, reader, statements: Statements::new(definition), connection: None }
    }

    /// Does something on the connection, and says what keeps the role from it, if that is why it fails.
    async fn do_on_it<T>(
        &mut self,
        act: impl AsyncFnOnce(&mut PgConnection, Home<'_>) -> Result<T, TableError>,
    ) -> Result<T, TableError> {
        let mut connection = self.take_connection().await?;
        let error = match act(&mut connection, self.home()).await {
            Ok(done) => {
                self.connection = Some((connection, Instant::now()));
                return Ok(done);
            }
            Err(error) => error,
        };
        drop(connection);
        if !error.may_be_an_obstacle() {
            return Err(error);
        }
        let look = async {
            let table = &*self.statements.definition.table;
            obstacles(&mut connect(&self.settings).await?, &self.settings.database_schema, &[table], false).await
        };
        Err(look.await.ok().filter(|found| !found.is_empty()).map_or(error, TableError::Obstacles))
    }

    /// The connection, made anew where there is none, or where the server or a pooler has closed it while nothing was in hand.
    async fn take_connection(&mut self) -> Result<PgConnection, TableError> {
        if let Some((mut connection, used)) = self.connection.take() {
            if used.elapsed() < IDLE {
                return Ok(connection);
            }
            match within("ask for a sign of life of", connection.ping()).await {
                Ok(()) => return Ok(connection),
                Err(error @ TableError::Deadline { .. }) => return Err(error),
                Err(error) => debug!(why = chain(&error), "the idle connection is opened again"),
            }
        }
        connect(&self.settings).await
    }

    fn home(&self) -> Home<'_> {
        Home { stream: &self.stream, schema: self.settings.database_schema.as_str(), statements: &self.statements }
    }
}

impl Table for PostgresTable {
    async fn position(&mut self) -> Result<Option<Position>, TableError> {
        self.do_on_it(async |connection, home| read_position(connection, home).await).await
    }

    async fn apply(
        &mut self,
        position: Option<&Position>,
        run: Vec<(Sequence, Object)>,
        care: Care,
    ) -> Result<Attempt, TableError> {
        let (mut objects, mut unread) = (Vec::new(), Vec::new());
        for (sequence, Object { metadata, body, .. }) in run {
            unread.push(Unread::new(sequence, &metadata, &self.records_at, body));
            objects.push((sequence, metadata));
        }
        let mut pieces = batch::read(unread, self.reader.clone(), care == Care::EachRecord);
        // The transaction opens when there is something to write: a small object is wholly read before it.
        let first = pieces.next().await;
        let act = async |connection: &mut PgConnection, home: Home<'_>| {
            apply(connection, home, position, Run { objects, first, pieces, care }).await
        };
        self.do_on_it(act).await
    }

    async fn pass_over(&mut self, position: Option<&Position>, line: &LedgerLine<'_>) -> Result<Attempt, TableError> {
        self.do_on_it(async |connection, home| pass_over(connection, home, position, line).await).await
    }

    async fn end_silent_holder(&mut self, silence: Duration) -> Result<bool, TableError> {
        let end = sqlx::query(include_str!("../sql/end_silent_holder.sql")).bind(silence.as_secs_f64());
        let doing = "end a silent holder of the lock in";
        let ended = self.do_on_it(async |connection, _| within(doing, end.fetch_all(connection)).await).await?;
        Ok(!ended.is_empty())
    }
}
