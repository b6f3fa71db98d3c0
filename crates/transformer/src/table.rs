//! The table: one object, one transaction, on one connection.
//!
//! It promises that an object's rows, its ledger line and the position are committed together or not at all, and that what
//! is committed was verified: the digest comes before COMMIT.

use std::{io, path::PathBuf, time::Duration};

use shared::{
    archive::Object,
    object::{Metadata, Sequence, Sha256, StreamName},
};
use sqlx::{Connection, Executor, PgConnection, Postgres, Row, Transaction, postgres::PgRow};
use thiserror::Error;
use tokio::{sync::mpsc, time::timeout};
use uuid::Uuid;

use crate::{
    batch::{self, End, Piece},
    connect::{DatabaseSettings, connect, within},
    decide::Position,
    fault::{Fault, of_sqlstate},
    write::{RowSource, Written, in_micros, write_posts, write_posts_carefully, write_wrong_records},
};

const UNDEFINED_TABLE: &str = "42P01";
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// How often the database hears of a transaction whose body is slow.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// How the loop sees the database: the third door to the world. Dropped at any await, the transaction is rolled back.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Table {
    /// The last object applied, `None` when there is none.
    async fn position(&mut self) -> Result<Option<Position>, TableError>;

    /// Applies the object after `position`, if the table is still there. `carefully` finds the records that Postgres refuses and sets
    /// them aside, at the price of a savepoint a batch.
    async fn apply(
        &mut self,
        position: Option<&Position>,
        sequence: Sequence,
        object: Object,
        carefully: bool,
    ) -> Result<Outcome, TableError>;

    /// Moves past the object after `position` without its records.
    async fn write_off(
        &mut self,
        position: Option<&Position>,
        sequence: Sequence,
        loss: &Loss<'_>,
    ) -> Result<Outcome, TableError>;

    /// Ends the transaction that keeps this stream [`Outcome::Busy`] if its client is silent. Whether there was one.
    async fn end_silent_holder(&mut self) -> Result<bool, TableError>;
}

/// An object without its records, for the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Loss<'a> {
    /// What the object says of itself; `None` for one that is missing.
    pub metadata: Option<&'a Metadata>,
    /// The archive, which a missing object cannot name.
    pub archive_id: Uuid,
    /// Its length, as far as it was read.
    pub bytes: Option<u64>,
    /// `quarantined` or `skipped`.
    pub outcome: &'static str,
    /// Why, for a person.
    pub reason: &'a str,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is applied, with this to show for it.
    Applied(Counts),
    /// Another transformer has the stream locked. Nothing was done.
    Busy,
    /// The position is another one than expected: another transformer was faster, or the database was restored. Nothing was done.
    Moved,
    /// The bytes are those that were archived, and no document. Nothing was done.
    Broken {
        /// Their number.
        bytes: u64,
        /// What is wrong with them.
        reason: String,
    },
    /// The bytes are not those that were archived. Nothing was done.
    WrongBytes {
        /// Their number.
        bytes: u64,
    },
}

/// What an object did to the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The elements of the document.
    pub records: u64,
    /// New posts.
    pub inserted: u64,
    /// Changed posts.
    pub updated: u64,
    /// Records that are no posts, or that Postgres refuses.
    pub quarantined: u64,
    /// Posts with fields that no column is there for.
    pub with_extra: u64,
}

/// Why the database did not do what was asked. Whatever escapes this file has cost the connection.
#[derive(Debug, Error)]
pub enum TableError {
    /// Postgres answered with an error, or could not be reached.
    #[error("could not {doing} the database")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// What came back.
        source: sqlx::Error,
    },
    /// Postgres did not answer.
    #[error("could not {doing} the database: no answer for {secs} seconds")]
    Deadline {
        /// What was being done.
        doing: &'static str,
        /// The deadline.
        secs: u64,
    },
    /// The address is not to be had.
    #[error("cannot use DATABASE_URL_FILE {}", file.display())]
    UrlFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The address asks for less than TLS with a checked certificate.
    #[error("{why}")]
    Exposed {
        /// What to do.
        why: String,
    },
    /// There is no token to connect with.
    #[error("could not make an IAM token for the database")]
    Token(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The body stopped on its way from S3.
    #[error("the object's body broke off on its way from S3")]
    BrokeOff(#[source] io::Error),
    /// The schema has no row for a stream.
    #[error("the schema {schema} holds no stream: run `transformer migrate`")]
    NoStream {
        /// The schema.
        schema: String,
    },
    /// The schema is another stream's.
    #[error("the tables hold the stream `{found}`, and STREAM is `{ours}`: correct STREAM or DATABASE_SCHEMA")]
    OtherStream {
        /// The name in the database.
        found: String,
        /// The name in the settings.
        ours: String,
    },
}

impl TableError {
    /// The code that Postgres gave, if it was Postgres.
    pub fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Sql { source: sqlx::Error::Database(error), .. } => error.code().map(String::from),
            _ => None,
        }
    }

    /// What Postgres said, or what happened instead.
    pub fn database_message(&self) -> String {
        match self {
            Self::Sql { source: sqlx::Error::Database(error), .. } => error.message().to_owned(),
            other => shared::telemetry::chain(other),
        }
    }

    /// Who has to do something.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Sql { source: sqlx::Error::Database(error), .. } => {
                of_sqlstate(error.code().as_deref().unwrap_or_default(), error.constraint())
            }
            // Sockets, TLS, protocol: the next connection may do better.
            Self::Sql { .. } | Self::Deadline { .. } | Self::BrokeOff(_) | Self::UrlFile { .. } | Self::Token(_) => {
                Fault::Dependency
            }
            Self::NoStream { .. } | Self::OtherStream { .. } | Self::Exposed { .. } => Fault::Operator,
        }
    }
}

/// The tables of one stream in Postgres.
#[derive(Debug)]
pub struct PostgresTable {
    settings: DatabaseSettings,
    stream: StreamName,
    /// Taken out while it is used and put back after success, so that no error and no drop leaves half a conversation behind.
    connection: Option<PgConnection>,
}

impl PostgresTable {
    /// The tables of `stream`. Nothing is asked of Postgres yet.
    pub fn new(settings: DatabaseSettings, stream: StreamName) -> Self {
        Self { settings, stream, connection: None }
    }

    async fn take_connection(&mut self) -> Result<PgConnection, TableError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => connect(&self.settings).await,
        }
    }

    fn no_stream(&self) -> TableError {
        TableError::NoStream { schema: self.settings.database_schema.to_string() }
    }
}

impl Table for PostgresTable {
    async fn position(&mut self) -> Result<Option<Position>, TableError> {
        let mut connection = self.take_connection().await?;
        let read = sqlx::query(include_str!("sql/select_position.sql")).fetch_optional(&mut connection);
        let row = match within("read the position in", read).await {
            Err(error) if error.sqlstate().as_deref() == Some(UNDEFINED_TABLE) => return Err(self.no_stream()),
            read => read?.ok_or_else(|| self.no_stream())?,
        };
        self.connection = Some(connection);
        let (found, position) =
            read_position(&row).map_err(|source| TableError::Sql { doing: "read the position in", source })?;
        if found != self.stream.to_string() {
            return Err(TableError::OtherStream { found, ours: self.stream.to_string() });
        }
        Ok(position)
    }

    async fn apply(
        &mut self,
        position: Option<&Position>,
        sequence: Sequence,
        object: Object,
        carefully: bool,
    ) -> Result<Outcome, TableError> {
        let mut connection = self.take_connection().await?;
        let outcome = apply(&mut connection, &self.stream, position, sequence, object, carefully).await?;
        self.connection = Some(connection);
        Ok(outcome)
    }

    async fn write_off(
        &mut self,
        position: Option<&Position>,
        sequence: Sequence,
        loss: &Loss<'_>,
    ) -> Result<Outcome, TableError> {
        let mut connection = self.take_connection().await?;
        let outcome = write_off(&mut connection, &self.stream, position, sequence, loss).await?;
        self.connection = Some(connection);
        Ok(outcome)
    }

    async fn end_silent_holder(&mut self) -> Result<bool, TableError> {
        let mut connection = self.take_connection().await?;
        let end = sqlx::query(include_str!("sql/end_silent_holder.sql")).fetch_all(&mut connection);
        let ended = within("end a silent holder of the lock in", end).await?;
        self.connection = Some(connection);
        Ok(!ended.is_empty())
    }
}

/// One object, one transaction. The order is the protocol.
async fn apply(
    connection: &mut PgConnection,
    stream: &StreamName,
    position: Option<&Position>,
    sequence: Sequence,
    object: Object,
    carefully: bool,
) -> Result<Outcome, TableError> {
    let Object { metadata, body, .. } = object;
    let mut pieces = batch::read(body, carefully);
    // The transaction opens when there is something to write: a small object is wholly read before it.
    let mut piece = next_piece(&mut pieces).await;
    let mut transaction = within("begin a transaction of", connection.begin()).await?;

    // The lock comes before the first write, and the position is read under it: whoever was faster is seen here.
    let mut written_before = match lock(&mut transaction, position).await? {
        Ok(written) => written,
        Err(outcome) => return roll_back(transaction, outcome).await,
    };
    if carefully {
        // A constraint that waits for COMMIT would not say which record it refuses.
        within("set the constraints of", transaction.execute("SET CONSTRAINTS ALL IMMEDIATE")).await?;
    }
    let row = RowSource::new(sequence, &metadata);
    let mut counts = Counts::default();
    let (sha256, bytes, broken) = loop {
        match piece {
            Piece::Batch(mut batch) => {
                if carefully {
                    write_posts_carefully(&mut transaction, &mut batch, row, &mut written_before).await?;
                } else {
                    write_posts(&mut transaction, &batch.posts, row).await?;
                }
                write_wrong_records(&mut transaction, &batch.wrong, row).await?;
                counts.quarantined += batch.wrong.len() as u64;
                counts.with_extra += batch.posts.iter().filter(|post| post.extra.is_some()).count() as u64;
            }
            Piece::End(End::Read { sha256, bytes, records, broken }) => {
                counts.records = records;
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
    let line =
        LedgerLine { stream, sequence, metadata: Some(&metadata), bytes: Some(bytes), outcome: "loaded", reason: None };
    let counts = insert_object(&mut transaction, &line, counts, written_before).await?;
    // Last, so that everything that this position stands for is written when it is.
    advance(&mut transaction, sequence, metadata.archive_id, Some(metadata.observation)).await?;
    within("commit to", transaction.commit()).await?;
    Ok(Outcome::Applied(counts))
}

async fn write_off(
    connection: &mut PgConnection,
    stream: &StreamName,
    position: Option<&Position>,
    sequence: Sequence,
    loss: &Loss<'_>,
) -> Result<Outcome, TableError> {
    let mut transaction = within("begin a transaction of", connection.begin()).await?;
    let written_before = match lock(&mut transaction, position).await? {
        Ok(written) => written,
        Err(outcome) => return roll_back(transaction, outcome).await,
    };
    let Loss { metadata, archive_id, bytes, outcome, reason } = *loss;
    let line = LedgerLine { stream, sequence, metadata, bytes, outcome, reason: Some(reason) };
    let counts = insert_object(&mut transaction, &line, Counts::default(), written_before).await?;
    advance(&mut transaction, sequence, archive_id, metadata.map(|metadata| metadata.observation)).await?;
    within("commit to", transaction.commit()).await?;
    Ok(Outcome::Applied(counts))
}

async fn next_piece(pieces: &mut mpsc::Receiver<Piece>) -> Piece {
    pieces.recv().await.expect("the reader sends an end, or it has panicked")
}

/// The same inside the transaction, where a client that is silent for 20 seconds is taken for one that vanished: a body may be slow.
async fn next_piece_meanwhile(
    transaction: &mut Transaction<'_, Postgres>,
    pieces: &mut mpsc::Receiver<Piece>,
) -> Result<Piece, TableError> {
    loop {
        // Dropped at the time limit, nothing is lost: a channel keeps what is not received.
        if let Ok(piece) = timeout(SIGN_OF_LIFE, next_piece(pieces)).await {
            return Ok(piece);
        }
        within("keep open a transaction of", transaction.execute("SELECT")).await?;
    }
}

async fn roll_back(transaction: Transaction<'_, Postgres>, outcome: Outcome) -> Result<Outcome, TableError> {
    within("roll back a transaction of", transaction.rollback()).await?;
    Ok(outcome)
}

/// Takes the stream's row, if nobody has it and it says what is expected; answers with what was written before.
async fn lock(
    transaction: &mut Transaction<'_, Postgres>,
    expected: Option<&Position>,
) -> Result<Result<Written, Outcome>, TableError> {
    let locked = sqlx::query(include_str!("sql/lock_stream.sql")).fetch_one(&mut **transaction);
    let row = match within("lock the stream in", locked).await {
        Err(error) if error.sqlstate().as_deref() == Some(LOCK_NOT_AVAILABLE) => return Ok(Err(Outcome::Busy)),
        locked => locked?,
    };
    let read = || -> Result<_, sqlx::Error> {
        let found: (i64, Option<Uuid>) = (row.try_get("position")?, row.try_get("previous")?);
        Ok((found, Written::of(&row)?))
    };
    let (found, written) = read().map_err(|source| TableError::Sql { doing: "lock the stream in", source })?;
    let expected = expected.map_or((0, None), |position| (to_bigint(position.sequence.get()), position.observation));
    Ok(if found == expected { Ok(written) } else { Err(Outcome::Moved) })
}

/// What the ledger says of an object.
struct LedgerLine<'a> {
    stream: &'a StreamName,
    sequence: Sequence,
    metadata: Option<&'a Metadata>,
    bytes: Option<u64>,
    outcome: &'static str,
    reason: Option<&'a str>,
}

async fn insert_object(
    transaction: &mut Transaction<'_, Postgres>,
    line: &LedgerLine<'_>,
    counts: Counts,
    written_before: Written,
) -> Result<Counts, TableError> {
    let insert = sqlx::query(include_str!("sql/insert_object.sql"))
        .bind(to_bigint(line.sequence.get()))
        .bind(line.sequence.key(line.stream))
        .bind(line.metadata.map(|metadata| metadata.sha256.0))
        .bind(line.metadata.map(|metadata| metadata.observation))
        .bind(line.bytes.map(to_bigint))
        .bind(line.metadata.map(|metadata| in_micros(metadata.fetched_at).to_string()))
        .bind(line.outcome)
        .bind(line.reason)
        .bind(to_bigint(counts.records))
        .bind(to_bigint(counts.quarantined))
        .bind(to_bigint(counts.with_extra))
        .bind(written_before.inserted)
        .bind(written_before.updated);
    let row = within("write the ledger of", insert.fetch_one(&mut **transaction)).await?;
    let written = Written::of(&row).map_err(|source| TableError::Sql { doing: "write the ledger of", source })?;
    Ok(Counts { inserted: written.inserted.unsigned_abs(), updated: written.updated.unsigned_abs(), ..counts })
}

async fn advance(
    transaction: &mut Transaction<'_, Postgres>,
    sequence: Sequence,
    archive_id: Uuid,
    observation: Option<Uuid>,
) -> Result<(), TableError> {
    let update = sqlx::query(include_str!("sql/advance_position.sql"))
        .bind(archive_id)
        .bind(to_bigint(sequence.get()))
        .bind(observation);
    within("advance the position in", update.execute(&mut **transaction)).await?;
    Ok(())
}

/// The row as it stands; the caller knows whose it should be.
fn read_position(row: &PgRow) -> Result<(String, Option<Position>), sqlx::Error> {
    let name = row.try_get("name")?;
    let number = row.try_get::<i64, _>("position")?.unsigned_abs();
    let Ok(sequence) = Sequence::try_from(number) else { return Ok((name, None)) };
    let position = Position {
        sequence,
        // The table's own constraint says that it is there beside a position.
        archive_id: row.try_get("archive_id")?,
        observation: row.try_get("previous")?,
        sha256: row.try_get::<Option<_>, _>("sha256")?.map(Sha256),
    };
    Ok((name, Some(position)))
}

/// Postgres has no unsigned integers; ours are far below 2^63.
pub(crate) fn to_bigint(number: u64) -> i64 {
    i64::try_from(number).expect("sequences, sizes and counts stay below 2^63")
}
