//! The transformer: follows the archive, and keeps a Postgres table that is a function of it.
//!
//! It trusts the archive and the position in the database, and nothing else: a message from the queue only says that it
//! may be worth looking. A run of objects, usually of one, is applied in one transaction with its ledger lines and the
//! position, so it can be killed on any line, run twice, or find a database that was restored.
//!
//! ```text
//! command   the command line: which command, its settings, the exit code
//! run       the loop, and the only file that knows the order of the steps:
//!   bell      long poll for pointers; delete
//!   follow    from the position to the end of the archive, object by object
//!     decide    what the archive and the position say together: apply, wait, or hold for a person
//!     skip      what a person does without
//!     prefetch  objects on their way ahead of the one that is applied
//!   batch     the bodies of a run, on a thread of their own, to batches of rows:
//!     record       bytes to a row:
//!       table_definition  which table and columns, and where each comes from
//!       values       a value as what a column takes
//!       decimal      a number of any length
//!       members      a record's members
//!       jsonb        JSON in the form that Postgres gives a jsonb back
//!     row          a row's fields, in the binary form of Postgres
//!   table     the connection to the tables
//!     transaction  one run of objects: lock, batches, ledger, position, commit
//!     ledger    the stream's row, and a line for each object
//!     write     a batch into its table
//!     statements  the table's statements, made from its definition
//!     parameter rows as parameters of a statement
//!     copy      rows in the form that COPY reads
//!     connect   one connection, its settings and deadlines
//!     token     RDS IAM tokens
//!     fault     what can go wrong with the database, and whose fault it is
//! notes       what happened, as log lines and numbers
//! migrate     makes and upgrades the tables
//! propose     which table would fit the records in the archive
//!   snapshot    the records of the newest snapshot
//! audit       the archive against the ledger
//! quarantine  what is not among the rows, and why
//! check       looks whether everything is reachable, permitted and durable
//! ```
//!
//! There is no HTTP client here but the AWS SDK's, and S3 is reached through `shared::archive` alone.

pub mod command;
pub mod run;
pub mod bell;
pub mod follow;
pub mod decide;
pub mod skip;
pub mod prefetch;
pub mod batch;
pub mod record;
pub mod statements;
pub mod table_definition;
pub mod row;
pub mod members;
pub mod jsonb;
pub mod values;
pub mod decimal;
#[cfg(test)]
#[path = "../../shared/src/any_document.rs"]
mod any_document;
pub mod table;
pub mod transaction;
pub mod ledger;
pub mod write;
pub mod parameter;
pub mod copy;
pub mod connect;
pub mod token;
pub mod fault;
pub mod notes;
pub mod migrate;
pub mod propose;
pub mod snapshot;
pub mod audit;
pub mod quarantine;
pub mod check;
