//! The command line and what it offers besides the daemon.

pub mod advice;
pub mod check;
pub mod cli;
pub mod list;
