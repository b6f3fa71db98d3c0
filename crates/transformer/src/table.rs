//! The table: one object, one transaction, on one connection; or several small objects, in `bundle.rs`.
//!
//! It promises that an object's rows, its ledger line and the position are committed together or not at all, and that what
//! is committed was verified: the digest comes before COMMIT.

use std::time::Duration;

use shared::{
    archive::Object,
    crash_point,
    object::{Metadata, Sequence, StreamName},
    telemetry::chain,
};
use sqlx::{Connection, Executor, PgConnection, Postgres, Transaction};
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::{
    batch::{self, End, Piece, Pieces, Records},
    bundle::{Small, apply_bundle},
    connect::{DatabaseSettings, connect, obstacles, within},
    decide::Position,
    fault::TableError,
    ledger::{Counts, Home, LedgerLine, Lock, advance, lock, read_position},
    notes,
    write::{RowSource, Writer, write_carefully, write_wrong_records},
};

/// How often the database hears of a transaction whose body is slow.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// A connection that was used so lately is taken for open. `idle_session_timeout` and the limits of poolers are longer.
const IDLE: Duration = Duration::from_millis(100);

/// How the loop sees the database: the third door to the world. Dropped at any await, the transaction is rolled back, or
/// committed if it had come to that: the position tells.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Table {
    /// The last object applied, `None` when there is none.
    async fn position(&mut self) -> Result<Option<Position>, TableError>;

    /// Applies the object after `position`, if the table is still there. `care` decides whether the records that
    /// Postgres refuses are found and quarantined, at the price of a savepoint a batch. Where `more_follow`, a crash of Postgres may take
    /// it back, rows and position: until the last of them is applied, or for less than a second, in which Postgres writes its log by itself.
    async fn apply(
        &mut self,
        position: Option<&Position>,
        sequence: Sequence,
        object: Object,
        care: Care,
        more_follow: bool,
    ) -> Result<Outcome, TableError>;

    /// Applies objects after `position` in one transaction, as if they had been applied one after the other: those before the first that has
    /// to be applied alone, whatever the reason. Answers with what each did; with nothing if nothing was done. `more_follow` as above.
    async fn apply_bundle(
        &mut self,
        position: Option<&Position>,
        objects: &[Small],
        more_follow: bool,
    ) -> Result<Vec<Counts>, TableError>;

    /// Moves past the object after `position` without its records.
    async fn pass_over(&mut self, position: Option<&Position>, line: &LedgerLine<'_>) -> Result<Outcome, TableError>;

    /// Ends the transaction that keeps this stream [`Outcome::Busy`] if its client has been silent for so long. Whether there was one.
    async fn end_silent_holder(&mut self, silence: Duration) -> Result<bool, TableError>;
}

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// What Postgres refuses fails the transaction.
    None,
    /// The records that it refuses are found.
    EachRecord,
    /// Also those that it would refuse only at COMMIT, by a constraint that waits for it. One record that breaks such a constraint for
    /// a moment, as when two rows change their values with each other, counts as refused, so this is the last resort.
    EachConstraint,
}

impl Care {
    /// What to try after an error that is a record's fault.
    pub fn more(self) -> Option<Self> {
        match self {
            Self::None => Some(Self::EachRecord),
            Self::EachRecord => Some(Self::EachConstraint),
            Self::EachConstraint => None,
        }
    }
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variant says what its fields are")]
pub enum Outcome {
    /// It is applied, with this to show for it.
    Applied(Counts),
    /// Another transformer has the stream locked. Nothing was done.
    Busy,
    /// The position is another one than expected: another transformer was faster, or the database was restored. Nothing was done.
    Moved,
    /// The bytes are those that were archived, and no document. Nothing was done.
    Broken { bytes: u64, reason: String },
    /// The bytes are not those that were archived. Nothing was done.
    WrongBytes { bytes: u64 },
}

/// The tables of one stream in Postgres.
#[derive(Debug)]
pub struct PostgresTable {
    settings: DatabaseSettings,
    stream: StreamName,
    records: Records,
    /// Taken out while it is used and put back after success, so that no error and no drop leaves half a conversation behind. With the
    /// time when that was.
    connection: Option<(PgConnection, Instant)>,
    /// Whether somebody's own triggers were seen: from then on objects are applied alone.
    has_triggers: bool,
}

impl PostgresTable {
    /// The tables of `stream`, for documents with these records. Nothing is asked of Postgres yet.
    pub fn new(settings: DatabaseSettings, stream: StreamName, records: Records) -> Self {
        Self { settings, stream, records, connection: None, has_triggers: false }
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
            let table = &*self.records.statements.definition.table;
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
        let (schema, statements) = (self.settings.database_schema.as_str(), &*self.records.statements);
        Home { stream: &self.stream, schema, statements }
    }
}

impl Table for PostgresTable {
    async fn position(&mut self) -> Result<Option<Position>, TableError> {
        self.do_on_it(async |connection, home| read_position(connection, home).await).await
    }

    async fn apply(
        &mut self,
        position: Option<&Position>,
        sequence: Sequence,
        Object { metadata, body, .. }: Object,
        care: Care,
        more_follow: bool,
    ) -> Result<Outcome, TableError> {
        let mut pieces = batch::read(body, self.records.of_object(&metadata), care != Care::None);
        // The transaction opens when there is something to write: a small object is wholly read before it.
        let read = (pieces.next().await, pieces);
        let act = async |connection: &mut PgConnection, home: Home<'_>| {
            apply(connection, home, position, (sequence, &metadata), read, care, more_follow).await
        };
        self.do_on_it(act).await
    }

    async fn apply_bundle(
        &mut self,
        position: Option<&Position>,
        objects: &[Small],
        more_follow: bool,
    ) -> Result<Vec<Counts>, TableError> {
        if self.has_triggers {
            return Ok(Vec::new());
        }
        let records = self.records.clone();
        let act = async |connection: &mut PgConnection, home: Home<'_>| {
            apply_bundle(connection, home, position, objects, records, more_follow).await
        };
        let counts = self.do_on_it(act).await?;
        self.has_triggers = counts.is_none();
        Ok(counts.unwrap_or_default())
    }

    async fn pass_over(&mut self, position: Option<&Position>, line: &LedgerLine<'_>) -> Result<Outcome, TableError> {
        self.do_on_it(async |connection, home| pass_over(connection, home, position, line).await).await
    }

    async fn end_silent_holder(&mut self, silence: Duration) -> Result<bool, TableError> {
        let end = sqlx::query(include_str!("sql/end_silent_holder.sql")).bind(silence.as_secs_f64());
        let doing = "end a silent holder of the lock in";
        let ended = self.do_on_it(async |connection, _| within(doing, end.fetch_all(connection)).await).await?;
        Ok(!ended.is_empty())
    }
}

/// One object, one transaction. The order is the protocol.
async fn apply(
    connection: &mut PgConnection,
    home: Home<'_>,
    position: Option<&Position>,
    (sequence, metadata): (Sequence, &Metadata),
    (mut piece, mut pieces): (Piece, Pieces),
    care: Care,
    more_follow: bool,
) -> Result<Outcome, TableError> {
    let is_careful = care != Care::None;
    let mut transaction = within("begin a transaction of", connection.begin()).await?;

    // The lock comes before the first write, and the position is read under it: whoever was faster is seen here.
    let mut written_before = match lock(&mut transaction, home, position, more_follow).await? {
        Lock::Taken { written, .. } => written,
        Lock::Busy => return roll_back(transaction, Outcome::Busy).await,
        Lock::Moved => return roll_back(transaction, Outcome::Moved).await,
    };
    crash_point!("locked");
    if care == Care::EachConstraint {
        within("set the constraints of", transaction.execute("SET CONSTRAINTS ALL IMMEDIATE")).await?;
    }
    let source = RowSource::new(home.statements, sequence, metadata);
    let mut writer = Writer::new(source);
    let mut counts = Counts::default();
    let (sha256, bytes, broken) = loop {
        match piece {
            Piece::Batch(mut batch) => {
                counts.repeated += batch.repeated();
                let wrong = if is_careful {
                    write_carefully(&mut transaction, &mut batch, source, &mut written_before).await?;
                    batch.wrong
                } else {
                    writer.write(&mut transaction, &batch).await?;
                    batch.wrong
                };
                crash_point!("rows-written");
                write_wrong_records(&mut transaction, &wrong, source).await?;
                crash_point!("batch-written");
                counts.quarantined += wrong.len() as u64;
            }
            Piece::End(End::Read { sha256, bytes, records, with_extra, broken }) => {
                (counts.records, counts.with_extra) = (records, with_extra);
                break (sha256, bytes, broken);
            }
            Piece::End(End::BrokeOff(error)) => return Err(TableError::BrokeOff(error)),
        }
        piece = next_piece_meanwhile(&mut transaction, &mut pieces).await?;
    };

    // The digest is judged first: bytes that are not the archived ones say nothing about the document.
    if sha256 != metadata.sha256 {
        return roll_back(transaction, Outcome::WrongBytes { bytes }).await;
    }
    if let Some(reason) = broken {
        return roll_back(transaction, Outcome::Broken { bytes, reason }).await;
    }
    let (archive_id, metadata, bytes) = (metadata.archive_id, Some(metadata), Some(bytes));
    let line = LedgerLine { sequence, metadata, archive_id, bytes, outcome: "loaded", reason: None };
    let counts = advance(&mut transaction, home, &line, counts, written_before).await?;
    let committing = Instant::now();
    within("commit to", transaction.commit()).await?;
    notes::took("commit", committing.elapsed());
    crash_point!("committed");
    Ok(Outcome::Applied(counts))
}

async fn pass_over(
    connection: &mut PgConnection,
    home: Home<'_>,
    position: Option<&Position>,
    line: &LedgerLine<'_>,
) -> Result<Outcome, TableError> {
    let mut transaction = within("begin a transaction of", connection.begin()).await?;
    let written_before = match lock(&mut transaction, home, position, false).await? {
        Lock::Taken { written, .. } => written,
        Lock::Busy => return roll_back(transaction, Outcome::Busy).await,
        Lock::Moved => return roll_back(transaction, Outcome::Moved).await,
    };
    let counts = advance(&mut transaction, home, line, Counts::default(), written_before).await?;
    within("commit to", transaction.commit()).await?;
    Ok(Outcome::Applied(counts))
}

/// The next piece inside the transaction, where a client that is silent for 20 seconds is taken for one that vanished: a body may be slow.
async fn next_piece_meanwhile(
    transaction: &mut Transaction<'_, Postgres>,
    pieces: &mut Pieces,
) -> Result<Piece, TableError> {
    loop {
        if let Ok(piece) = timeout(SIGN_OF_LIFE, pieces.next()).await {
            return Ok(piece);
        }
        within("keep open a transaction of", transaction.execute("SELECT")).await?;
    }
}

async fn roll_back(transaction: Transaction<'_, Postgres>, outcome: Outcome) -> Result<Outcome, TableError> {
    within("roll back a transaction of", transaction.rollback()).await?;
    crash_point!("rolled-back");
    Ok(outcome)
}
