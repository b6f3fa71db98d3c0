//! `importer`: see the library for the picture.

use std::process::ExitCode;

use importer::commands::cli::{contradictions, execute};
use shared::{settings::parse_or_exit, shutdown::block_on};

fn main() -> ExitCode {
    block_on(execute(parse_or_exit(contradictions)))
}
