//! What both daemons say and set up alike, in reading order.
//!
//! A file enters this crate when `importer` and `transformer` both use it: the archive's format and its S3 door, the pointer, the
//! reading of documents, and the life of a process (settings, clients, log lines, metrics, state, shutdown, and where tests may end
//! it). Nothing here knows HTTP APIs or SQL; there is no reqwest and no sqlx.

pub mod object;
pub mod archive;
mod download;
pub mod pointer;
pub mod json_pointer;
pub mod json_scan;
pub mod records;
pub mod settings;
pub mod aws;
pub mod telemetry;
pub mod metrics;
pub mod status;
pub mod admin;
pub mod systemd;
pub mod shutdown;
pub mod crash;
#[cfg(test)]
mod any_document;
