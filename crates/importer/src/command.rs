//! The command line: which command, its settings, and the exit code (0 done, 1 failed, 2 wrong settings).

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use shared::{
    archive::S3Archive,
    aws,
    settings::{ArchiveSettings, VERSION},
    shutdown::run_until_drained,
    telemetry::{self, Status, TelemetrySettings, chain},
};
use tracing::{error, info};

use crate::{
    bell::{BellSettings, SqsBell},
    poll::{Api, PollSettings},
    run::{Importer, PaceSettings},
};

/// Ends the help.
const EXAMPLE: &str = "\
Example:
  importer --source-url https://jsonplaceholder.typicode.com/posts --archive-bucket my-archive \\
           --queue-url https://sqs.eu-central-1.amazonaws.com/123456789012/posts.fifo";

/// Polls an API, archives what it answers in S3 and rings the bell
#[derive(Debug, Parser)]
#[command(name = "importer", version = VERSION)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Polls an API, archives what it answers in S3 and rings the bell.
    ///
    /// Each answer that brings something new becomes the next numbered object of the archive, byte for byte, and an SQS
    /// FIFO message says where it is. The importer keeps no state: kill it, run two, move it; it goes on from where the
    /// archive ends.
    ///
    /// Every setting is a flag and an environment variable. SIGTERM drains: what is in hand is finished or left for the
    /// next start, within 8 seconds. Exit codes: 0 done, 1 failed, 2 wrong settings.
    #[command(override_usage = "importer [run] [OPTIONS]", after_long_help = EXAMPLE)]
    Run(RunSettings),
}

#[derive(Args, Debug)]
struct RunSettings {
    #[command(flatten)]
    poll: PollSettings,
    #[command(flatten)]
    pace: PaceSettings,
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    bell: BellSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

/// Does what the command line says.
pub async fn execute(CommandLine { command }: CommandLine) -> ExitCode {
    let Command::Run(settings) = command;
    telemetry::log_to_stderr(&settings.telemetry);
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(why = chain(problem.as_ref()), "the importer ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: RunSettings) -> anyhow::Result<()> {
    let status = Status::default();
    telemetry::serve_admin(&settings.telemetry, &status).await?;
    let config = aws::config().await;
    let ArchiveSettings { stream, archive_bucket } = settings.archive;
    info!(version = VERSION, %stream, archive_bucket, source_url = settings.poll.public_url(), "importer starts");
    let importer = Importer::new(
        Api::new(settings.poll)?,
        S3Archive::new(aws::s3(&config), archive_bucket, stream.clone()),
        SqsBell::new(aws::sqs(&config), settings.bell),
        stream,
        status,
    );
    run_until_drained(|shutdown| importer.run(settings.pace, shutdown)).await;
    info!("importer ends");
    Ok(())
}
