//! `transformer`: see the library for the picture.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    use transformer::command::{contradictions, execute};
    Box::pin(execute(shared::settings::parse_or_exit(contradictions))).await
}
