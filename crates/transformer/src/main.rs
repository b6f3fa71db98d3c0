//! `transformer`: see the library for the picture.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use shared::{settings::parse_or_exit, shutdown::block_on};
use transformer::command::{contradictions, execute};

/// Posts are made on one thread and freed on another, which is what the system's own is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    block_on(execute(parse_or_exit(contradictions)))
}
