//! The tables of one stream in Postgres, behind the one connection to them.

use std::{sync::Arc, time::Duration};

use clap::Args;

use shared::{
    archive::Object,
    object::{Metadata, Sequence, StreamName},
    records::RecordsAt,
    settings::RecordsSettings,
    status,
    telemetry::chain,
};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    absence::{BrakeSettings, Seen, is_judged},
    decide::Position,
    postgres::{
        connect::{DatabaseSettings, connect, obstacles, within},
        fault::TableError,
    },
    read::{
        batch::{self, Piece, Unread},
        record::RecordReader,
        table_definition::TableDefinition,
    },
    write::{
        ledger::{Home, LedgerLine, read_position},
        statements::Statements,
        transaction::{Absence, Attempt, Run, apply, pass_over, see_batch},
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

    /// Whether absence is judged by this object, which then is a run of its own.
    fn judges(&self, metadata: &Metadata) -> bool;

    /// Reads a page that is applied once more for its ids, where [`Attempt::Unseen`] asks for the pages of a snapshot, one after the other from
    /// the first. Whether its bytes are those that were archived.
    async fn see(&mut self, sequence: Sequence, object: Object) -> Result<bool, TableError>;

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

impl TableSettings {
    /// How records are found in an answer.
    pub fn reading(&self) -> Reading {
        let reader = Arc::new(RecordReader::new(self.definition.table_columns.clone()));
        Reading { reader, at: self.records.records_at.clone() }
    }
}

/// Where records are, and what they are known by.
#[derive(Clone, Debug)]
pub struct Reading {
    /// By the table's definition.
    pub reader: Arc<RecordReader>,
    /// Where records are, unless the object says it.
    pub at: RecordsAt,
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
    absence: Absence,
    /// Taken out while it is used and put back after success, so that no error and no drop leaves half a conversation behind. With the
    /// time when that was.
    connection: Option<(PgConnection, Instant)>,
}

impl PostgresTable {
    /// The tables of `stream`. Nothing is asked of Postgres yet.
    pub fn new(settings: DatabaseSettings, stream: StreamName, table: TableSettings, brake: BrakeSettings) -> Self {
        let TableSettings { records: RecordsSettings { records_at }, definition } = table;
        let reader = Arc::new(RecordReader::new(definition.table_columns.clone()));
        let (statements, absence) = (Statements::new(definition), Absence { brake, seen: None });
        Self { settings, stream, records_at, reader, statements, absence, connection: None }
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
            let definition = &self.statements.definition;
            obstacles(&mut connect(&self.settings).await?, &self.settings.database_schema, definition, false).await
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
        // Lost with whatever fails: pages that were seen count if they are committed, and no page is missing between.
        let mut absence = Absence { seen: self.absence.seen.take(), brake: self.absence.brake.clone() };
        let act = async |connection: &mut PgConnection, home: Home<'_>| {
            apply(connection, home, position, Run { objects, first, pieces, care, absence: &mut absence }).await
        };
        let attempt = self.do_on_it(act).await?;
        if matches!(attempt, Attempt::Applied(_)) {
            self.absence.seen = absence.seen;
        }
        Ok(attempt)
    }

    fn judges(&self, metadata: &Metadata) -> bool {
        is_judged(self.statements.definition.absent.absent, metadata)
    }

    async fn see(&mut self, sequence: Sequence, object: Object) -> Result<bool, TableError> {
        let Object { metadata, body, .. } = object;
        let unread = vec![Unread::new(sequence, &metadata, &self.records_at, body)];
        let mut pieces = batch::read(unread, self.reader.clone(), false);
        let mut seen = Seen::turn(self.absence.seen.take(), sequence, &metadata);
        loop {
            status::beat();
            match pieces.next().await {
                Piece::Batch(batch) => see_batch(&mut seen, &batch, false)?,
                Piece::Summary(summary) => {
                    self.absence.seen = seen;
                    return Ok(summary.sha256 == metadata.sha256);
                }
                Piece::BrokeOff(error) => return Err(TableError::BrokeOff(error)),
            }
        }
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
