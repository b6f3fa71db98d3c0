//! The promises, kept by real processes: one module a promise.

mod archive_is_truth;
mod bad_records;
mod deploy_is_true;
mod importer_commands;
mod importer_errors;
mod importer_protocol;
mod killable;
mod kind_to_the_api;
mod nothing_is_lost;
mod once_in_order;
mod page;
mod paging;
mod queue_proof;
mod real_jsonplaceholder;
mod restore_proof;
mod sandbox_ends_whole;
mod settings_teach;
mod traceable;
mod whose_fault;
