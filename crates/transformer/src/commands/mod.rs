//! The command line and what it offers besides the daemon.

pub mod cli;
pub mod audit;
pub mod check;
pub mod history;
pub mod migrate;
pub mod propose;
pub mod snapshot;
pub mod quarantine;
