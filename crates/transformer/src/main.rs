//! `transformer`: see the library for the picture.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    Box::pin(transformer::command::execute(shared::settings::parse_or_exit(|_| Vec::new()))).await
}
