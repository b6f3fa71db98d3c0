//! `transformer`: see the library for the picture.

use std::process::ExitCode;

use shared::{settings::parse_or_exit, shutdown::block_on};
use transformer::command::{contradictions, execute};

fn main() -> ExitCode {
    block_on(execute(parse_or_exit(contradictions)))
}
