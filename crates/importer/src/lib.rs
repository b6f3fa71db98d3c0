//! The importer: polls an API, archives every answer that brings something new, and announces it to the queue.
//!
//! It keeps no state of its own. Where the archive ends and what the API last said is read from the archive, so it can
//! be killed on any line, run twice, or be started on another machine.
//!
//! ```text
//! run       the loop, and the only file that knows the order of the steps:
//!   source    a snapshot of the collection, page by page
//!     http      a request and its answer
//!     body      a body, to disk, with hash, length and records
//!     since     all of the collection, or what has changed
//!     request   what is asked
//!     next_page how pages follow, as the settings say it
//!     paging    what comes after a page, and where the collection ends
//!     signs     what an answer shows of further pages
//!     refusal   what an answer without data says of the next request
//!     retry     whether and when to ask again
//!   snapshot  pages become objects; new or unchanged
//!   queue     the pointers, to the queue
//! fault     what a poll came to, and what it means
//! events    what happened, as log lines and numbers
//! commands  the command line; the archive as a list; what is reachable and permitted, and how an API's pages follow
//! ```
//!
//! There is no SQL here, and S3 is reached through `shared::archive` alone.

pub mod run;
pub mod source;
pub mod http;
pub mod body;
pub mod since;
pub mod request;
pub mod next_page;
pub mod paging;
pub mod signs;
pub mod refusal;
pub mod retry;
pub mod snapshot;
pub mod queue;
pub mod fault;
pub mod events;
pub mod commands;
