//! `transformer`: see the library for the picture.

use std::process::ExitCode;

use shared::{aws::drop_empty_variables, settings::parse_or_exit, shutdown::block_on};
use transformer::commands::cli::{contradictions, execute};

fn main() -> ExitCode {
    drop_empty_variables();
    block_on(execute(parse_or_exit(contradictions)))
}
