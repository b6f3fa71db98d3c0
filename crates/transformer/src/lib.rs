//! The transformer: follows the archive, and keeps a Postgres table that is a function of it.
//!
//! It trusts the archive and the position in the database, and nothing else: a message from the queue only says that it
//! may be worth looking. A run of objects, usually of one, is applied in one transaction with its ledger lines and the
//! position. So the transformer can be killed on any line, run twice, or find a database that was restored.
//!
//! ```text
//! run       the loop, and the only file that knows the order of the steps: look, receive, follow, delete
//!   queue     receive and delete messages: the second door to the world
//!   follow    from the position to the end of the archive, run by run, and the order of the steps for a run
//!     decide    what the archive and the position say together: apply, wait, or hold for a person
//!     ahead     objects on their way from S3
//!     absence   which rows the API has no more, as far as ids tell
//! read      bytes become records, and records rows
//!   batch     the bodies of a run, on a thread of their own, to batches of rows
//!   record    a record to a row
//!   table_definition   which table and columns, and where in a record each comes from
//!   values    a value as a column takes it; decimal, members and jsonb: numbers, objects and JSON
//!   row       a row's fields, in the binary form of Postgres
//! write     rows become the table
//!   table     the third door to the world: position, apply, pass over
//!   transaction   the order of the steps inside a transaction: lock, batches, absence, ledger, position, commit
//!   ledger    the stream's row, and a line for each object
//!   writer    batches into the table
//!   judge     rows that the API has no more
//!   statements   made from the definition; parameter and copy: rows as arrays and as COPY reads them
//! postgres  connect: one connection, its settings and deadlines; token: for IAM; fault: what failed, and whose fault it is
//! events    what happened, as log lines and numbers
//! commands  the command line, and what it offers besides the daemon
//! ```
//!
//! There is no HTTP client here but the AWS SDK's, and S3 is reached through `shared::archive` alone.

pub mod run;
pub mod queue;
pub mod follow;
pub mod decide;
pub mod ahead;
pub mod absence;
pub mod read;
pub mod write;
pub mod postgres;
pub mod events;
pub mod commands;
#[cfg(test)]
#[path = "../../shared/src/any_document.rs"]
mod any_document;
