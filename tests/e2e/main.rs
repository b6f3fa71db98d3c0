//! The promises, kept by real processes: one module a promise.

mod archive_is_truth;
mod bad_records;
mod killable;
mod nothing_is_lost;
mod once_in_order;
mod queue_proof;
mod restore_proof;
mod sandbox_ends_whole;
mod settings_teach;
mod traceable;
