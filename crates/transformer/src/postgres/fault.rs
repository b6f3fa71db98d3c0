//! What can go wrong with the database, and whose fault it is. Pure. Nothing outside an object is ever charged to the object.

use std::{io, path::PathBuf, time::Duration};

use sqlx::{error::DatabaseError, postgres::PgDatabaseError};
use thiserror::Error;

use crate::absence::TooManyIds;
use crate::read::table_definition::{ColumnsError, KEY, OUR_TABLES, TableDefinition};

/// No such table, and no such column: a release before this one made the tables.
const UNDEFINED: [&str; 2] = ["42P01", "42703"];
const QUERY_CANCELED: &str = "57014";
const READ_ONLY: &str = "25006";

/// How long a statement may run, as `connect.rs` sets it for each session.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_mins(1);

/// How much longer than ours the server's minute may be found to be.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

/// Why the database did not do what was asked. Whatever escapes this file has cost the connection.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum TableError {
    /// Postgres answered with an error, so long after it was asked.
    #[error("could not {doing} the database: {} (SQLSTATE {}){}", answer.message(), code(&**answer), remedy(&code(&**answer)))]
    Refused { doing: &'static str, answer: Box<dyn DatabaseError>, took: Duration },
    /// Postgres could not be reached or understood.
    #[error("could not {doing} the database")]
    Sql { doing: &'static str, source: sqlx::Error },
    /// Postgres did not answer.
    #[error("could not {doing} the database: no answer for {secs} seconds")]
    Deadline { doing: &'static str, secs: u64 },
    /// The address is not to be had.
    #[error("cannot read DATABASE_URL_FILE {}", file.display())]
    UrlFile { file: PathBuf, source: io::Error },
    /// A file holds nothing of use, perhaps because it is being written.
    #[error("{why}")]
    Unreadable { why: String },
    /// The address cannot be connected to, or asks for less than TLS with a checked certificate.
    #[error("{why}")]
    Address { why: String },
    /// There is no token to connect with.
    #[error("could not make an IAM token for the database")]
    Token(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The body stopped on its way from S3.
    #[error("the object's body broke off on its way from S3")]
    BrokeOff(#[source] io::Error),
    /// The schema has no tables, or no row for a stream.
    #[error("DATABASE_SCHEMA does not hold the tables of a stream: run `transformer migrate`, or correct it")]
    NoStream,
    /// The table of the rows was made, and is not there.
    #[error("the table {table} is missing: bring it back. {REBUILD}")]
    NoTable { table: String },
    /// A later release has made the table.
    #[error(
        "the table was made from TABLE_COLUMNS='{columns}', which this release cannot read: take the release that made it"
    )]
    NewerDefinition { columns: String, source: ColumnsError },
    /// Row level security is in force, so that an upsert would miss rows.
    #[error(
        "row level security hides rows of the tables from the role of DATABASE_URL, which needs all: give it BYPASSRLS, or disable row \
         level security on the stream's tables"
    )]
    Hidden,
    /// Constraints would refuse rows when it is too late to tell which.
    #[error(
        "the table {table} has constraints that can wait for COMMIT, where nothing tells which record breaks them: make {} NOT DEFERRABLE",
        constraints.join(", ")
    )]
    Deferrable { table: String, constraints: Vec<String> },
    /// What keeps the role from its work, each with what to do.
    #[error("{}", .0.join("; and "))]
    Obstacles(Vec<String>),
    /// The session is not the one that was set up.
    #[error(
        "the session is in the schema `{found}`, and DATABASE_SCHEMA is `{ours}`: a pooler between here and Postgres must keep a \
         session for each client"
    )]
    OtherSession { found: String, ours: String },
    /// The schema is another stream's.
    #[error("the tables hold the stream `{found}`, and STREAM is `{ours}`: correct STREAM or DATABASE_SCHEMA")]
    OtherStream { found: String, ours: String },
    /// A later release has given ABSENT a word that this one does not know.
    #[error("the stream keeps ABSENT={absent}, which this release cannot read: take the release that set it")]
    NewerAbsent { absent: String },
    /// A snapshot has more ids than are kept.
    #[error(
        "this snapshot has {} ids or more, and the transformer cannot hold more in memory to tell which rows are absent: set ABSENT=keep \
         for both daemons and run `transformer migrate`", .0.ids
    )]
    TooManyIds(TooManyIds),
    /// Rows of others depend on rows that are to go, or a constraint or trigger refuses their mark.
    #[error(
        "could not {doing} the database: {why}: remove what refers to the row or blocks it (an index on the column that refers to it helps \
         where this takes too long), or set ABSENT=keep for both daemons and run `transformer migrate`"
    )]
    AbsentRefused { doing: &'static str, why: String },
    /// The table is not made from the settings.
    #[error("{}", other_definition(found.as_ref(), ours))]
    OtherDefinition { found: Option<TableDefinition>, ours: TableDefinition },
}

impl TableError {
    /// What the error means of a statement that names our tables alone.
    #[must_use]
    pub fn of_our_tables(self) -> Self {
        if self.sqlstate().is_some_and(|code| UNDEFINED.contains(&&*code)) { Self::NoStream } else { self }
    }

    /// The same, where it was about rows that are to go or to be marked: that is no fault of a record.
    #[must_use]
    pub fn of_absent_rows(self) -> Self {
        match self {
            Self::Refused { doing, answer, .. } => {
                let detail = answer.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail);
                let why = [Some(answer.message()), detail].into_iter().flatten().collect::<Vec<_>>().join(": ");
                Self::AbsentRefused { doing, why }
            }
            other => other,
        }
    }

    /// The code that Postgres gave, if it was Postgres.
    pub fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Refused { answer, .. } => Some(code(&**answer)),
            _ => None,
        }
    }

    /// What Postgres said, or what happened instead.
    pub fn database_message(&self) -> String {
        match self {
            Self::Refused { answer, .. } => answer.message().to_owned(),
            other => shared::telemetry::chain(other),
        }
    }

    /// Whether a statement took longer than the session allows, as one does for thousands of rows with a slow trigger that a user
    /// added. The same again would take as long, and half of it half. A statement that a person cancels has the same code, and a
    /// message may be in any language, so the time tells. Two clocks differ, so a little less counts too.
    pub fn is_too_slow(&self) -> bool {
        matches!(self, Self::Refused { answer, took, .. } if code(&**answer) == QUERY_CANCELED && *took + CLOCKS_DIFFER >= STATEMENT_TIMEOUT)
    }

    /// Whether what keeps the role from its work may be the cause.
    pub fn may_be_an_obstacle(&self) -> bool {
        matches!(self.fault(), Fault::Operator | Fault::Unknown) || self.sqlstate().as_deref() == Some(READ_ONLY)
    }

    /// Who has to do something.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Refused { answer, .. } => of_sqlstate(&code(&**answer), answer.table(), answer.constraint()),
            // Sockets, TLS, protocol: the next connection may do better.
            Self::Sql { .. }
            | Self::Deadline { .. }
            | Self::BrokeOff(_)
            | Self::UrlFile { .. }
            | Self::Unreadable { .. }
            | Self::Token(_) => Fault::Dependency,
            Self::NoStream
            | Self::NoTable { .. }
            | Self::NewerDefinition { .. }
            | Self::NewerAbsent { .. }
            | Self::TooManyIds(_)
            | Self::AbsentRefused { .. }
            | Self::Hidden
            | Self::Deferrable { .. }
            | Self::Obstacles(_)
            | Self::OtherStream { .. }
            | Self::OtherDefinition { .. }
            | Self::OtherSession { .. }
            | Self::Address { .. } => Fault::Operator,
        }
    }
}

fn code(answer: &dyn DatabaseError) -> String {
    answer.code().unwrap_or_default().into_owned()
}

/// What a person can do about an answer that does not say it.
fn remedy(code: &str) -> &'static str {
    match code {
        "42501" => ": give this right to the role of DATABASE_URL",
        "3D000" => ": create it, or correct DATABASE_URL",
        _ => "",
    }
}

fn other_definition(found: Option<&TableDefinition>, ours: &TableDefinition) -> String {
    let Some(found) = found else { return "there is no table yet: run `transformer migrate`".to_owned() };
    if (TableDefinition { absent: ours.absent, ..found.clone() }) == *ours {
        let (there, here) = (found.absent.absent, ours.absent.absent);
        return format!(
            "the stream was set up with ABSENT={there}, and it is {here} here: set ABSENT={there} here, too, or run `transformer migrate` to \
             apply {here} from the next object on"
        );
    }
    let remedy = match ours.added(found) {
        Ok(_) => "run `transformer migrate`, which adds what is new".to_owned(),
        Err(why) => format!("{why}. {REBUILD}"),
    };
    format!("the table was made from {found}, and the settings say {ours}: {remedy}")
}

/// What a change of the table's definition takes.
pub const REBUILD: &str = "Take the settings back, or make the table anew from the archive, without asking the API: set DATABASE_SCHEMA to a new \
                           schema, run `transformer migrate`, then `transformer once`";

/// Who has to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The record's: Postgres refuses a value.
    Record,
    /// A dependency's: the same again later succeeds.
    Dependency,
    /// The operator's: the same again fails until a person changes something.
    Operator,
    /// Nobody knows, so a person must look.
    Unknown,
}

/// Reads an SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>). The table and its constraint
/// are those that were violated.
pub fn of_sqlstate(code: &str, table: Option<&str>, constraint: Option<&str>) -> Fault {
    match code {
        // Our own constraints cannot fail by a record: a batch has each id once, the ledger each object. Any other is one that a user added.
        _ if code.starts_with("23") && is_ours(table, constraint) => Fault::Unknown,
        // The disk is full; a statement was cancelled; serialization, deadlock, a lock that is held; a replica after a
        // failover; out of memory or connections.
        "53100" | QUERY_CANCELED | "40001" | "40P01" | "55P03" | READ_ONLY | "25P03" | "53200" | "53300" => {
            Fault::Dependency
        }
        _ => match code.get(..2) {
            Some("22" | "23" | "54") => Fault::Record,
            // Connections, shutdowns and restarts, and passwords while they rotate.
            Some("08" | "57" | "28") => Fault::Dependency,
            Some("42" | "3D" | "3F") => Fault::Operator,
            _ => Fault::Unknown,
        },
    }
}

fn is_ours(table: Option<&str>, constraint: Option<&str>) -> bool {
    table.is_some_and(|table| OUR_TABLES.contains(&table)) || constraint == Some(KEY)
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, error::Error as StdError, fmt};

    use sqlx::error::ErrorKind;

    use super::*;

    /// What Postgres answered.
    #[derive(Debug)]
    struct Answer {
        code: &'static str,
        message: &'static str,
    }

    impl fmt::Display for Answer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("in other words")
        }
    }

    impl StdError for Answer {}

    impl DatabaseError for Answer {
        fn message(&self) -> &str {
            self.message
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.code.into())
        }

        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    fn answered(code: &'static str, message: &'static str, took: Duration) -> TableError {
        TableError::Refused { doing: "try", answer: Box::new(Answer { code, message }), took }
    }

    #[test]
    fn an_answer_of_postgres_is_read_by_its_code_and_its_time() {
        let (cancelled, soon) = ("storniere Anfrage wegen Zeitüberschreitung der Anfrage", Duration::from_secs(50));
        for (code, message, took, fault, is_too_slow) in [
            ("22003", "out of range", soon, Fault::Record, false),
            ("XX000", "something internal", soon, Fault::Unknown, false),
            ("57014", cancelled, STATEMENT_TIMEOUT, Fault::Dependency, true),
            ("57014", "canceling statement due to statement timeout", soon, Fault::Dependency, false),
            ("22003", cancelled, STATEMENT_TIMEOUT, Fault::Record, false),
        ] {
            let error = answered(code, message, took);
            assert_eq!((error.fault(), error.is_too_slow()), (fault, is_too_slow), "{code} {message}");
            assert_eq!((error.sqlstate().as_deref(), error.database_message().as_str()), (Some(code), message));
        }
        for code in UNDEFINED {
            assert!(matches!(answered(code, "", soon).of_our_tables(), TableError::NoStream));
        }
        let told = answered("42501", "permission denied for sequence theirs", soon).of_our_tables().to_string();
        let expected = "could not try the database: permission denied for sequence theirs (SQLSTATE 42501): give this right to the role \
                        of DATABASE_URL";
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_no_answer_of_postgres_has_its_fault_too() {
        let (found, ours) = (String::new(), String::new());
        for (error, fault) in [
            (TableError::Sql { doing: "try", source: sqlx::Error::WorkerCrashed }, Fault::Dependency),
            (TableError::Deadline { doing: "try", secs: 7 }, Fault::Dependency),
            (TableError::BrokeOff(io::Error::other("cut")), Fault::Dependency),
            (TableError::NoStream, Fault::Operator),
            (TableError::Hidden, Fault::Operator),
            (TableError::Obstacles(Vec::new()), Fault::Operator),
            (TableError::OtherStream { found, ours }, Fault::Operator),
        ] {
            assert_eq!((error.fault(), error.sqlstate(), error.is_too_slow()), (fault, None, false), "{error}");
        }
        let deadline = TableError::Deadline { doing: "try", secs: 7 };
        assert_eq!(deadline.database_message(), "could not try the database: no answer for 7 seconds");
    }

    #[test]
    fn nothing_outside_an_object_is_charged_to_it() {
        for (codes, fault) in [
            (&["22003", "22P02", "22P05", "23502", "23505", "23514", "54000", "54001"][..], Fault::Record),
            (
                &["08006", "53100", "57P01", "57P03", "57014", "40001", "40P01", "55P03", "25006", "28P01"],
                Fault::Dependency,
            ),
            (&["42P01", "42501", "42703", "3D000", "3F000"], Fault::Operator),
            (&["XX000", "P0001", "0A000", "25P02", ""], Fault::Unknown),
        ] {
            for code in codes {
                assert_eq!(of_sqlstate(code, None, None), fault, "{code}");
            }
        }
        assert_eq!(of_sqlstate("23505", Some("posts"), Some(KEY)), Fault::Unknown);
        assert_eq!(of_sqlstate("23505", Some("objects"), Some("objects_observation_key")), Fault::Unknown);
        assert_eq!(of_sqlstate("23505", Some("objects_of_mine"), Some("objects_of_mine_key")), Fault::Record);
    }
}
