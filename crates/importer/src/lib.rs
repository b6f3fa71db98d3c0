//! The importer: polls an API, archives every answer that brings something new, and rings the bell.
//!
//! It keeps no state of its own. Where the archive ends and what the API last said is read from the archive, so it can
//! be killed on any line, run twice, or be started on another machine.
//!
//! ```text
//! command   the command line: which command, its settings, the exit code
//! run       the loop, and the only file that knows the order of the steps:
//!   poll      a snapshot of the collection, page by page
//!     exchange  a request and its answer
//!     cursor    the next page's cursor, out of a body
//!     page      which page comes next, and whether the pages belong together
//!     retry     whether and when to ask again
//!     spool     a body, to disk, with hash and length
//!   decide    the data or something else, new or unchanged; what a person must see to
//!   bell      the pointers, to the queue
//! notes     what happened, as log lines and numbers
//! list      shows the archive
//! check     looks whether everything is reachable and permitted
//! ```
//!
//! There is no SQL here, and S3 is reached through `shared::archive` alone.

pub mod command;
pub mod run;
pub mod poll;
pub mod exchange;
pub mod cursor;
pub mod page;
pub mod retry;
pub mod spool;
pub mod decide;
pub mod bell;
pub mod notes;
pub mod list;
pub mod check;
