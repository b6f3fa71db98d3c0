//! The command line: which command, its settings, and the exit code (0 done, 1 failed, 2 wrong settings).

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use indicatif::ProgressBar;
use shared::{
    archive::S3Archive,
    aws,
    object::StreamName,
    settings::{ArchiveSettings, VERSION},
    shutdown::run_until_drained,
    telemetry::{self, Status, TelemetrySettings},
};
use tracing::{error, info};

use crate::{
    bell::{BellSettings, SqsBell},
    connect::DatabaseSettings,
    follow::Follower,
    migrate::migrate,
    run::{PaceSettings, Transformer},
    skip::Skip,
    table::PostgresTable,
};

/// Ends the help.
const EXAMPLE: &str = "\
Example:
  export DATABASE_URL=postgres://transformer:password@localhost/posts
  transformer migrate
  transformer --archive-bucket my-archive \\
              --queue-url https://sqs.eu-central-1.amazonaws.com/123456789012/posts.fifo

Other commands: transformer help";

/// Follows the archive and keeps a Postgres table that is a function of it
#[derive(Debug, Parser)]
#[command(name = "transformer", version = VERSION)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follows the archive and keeps a Postgres table that is a function of it.
    ///
    /// Each object of the archive is applied in one transaction with the position, once and in order, whatever the queue
    /// says. Kill it, run two, restore the database: it goes on from the position that it finds there. The tables come
    /// from `transformer migrate`.
    ///
    /// Every setting is a flag and an environment variable. SIGTERM drains: what is in hand is finished or rolled back
    /// within 8 seconds. Exit codes: 0 done, 1 failed, 2 wrong settings.
    #[command(override_usage = "transformer [run] [OPTIONS]", after_long_help = EXAMPLE)]
    Run(RunSettings),
    /// Makes the tables of a stream, or brings them to this release; safe to repeat.
    ///
    /// Run it before the first start and after each upgrade, under a role that may create tables. Migrations only add, so
    /// the old release keeps running on the new tables.
    Migrate(MigrateSettings),
}

#[derive(Args, Debug)]
struct RunSettings {
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    bell: BellSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    follow: FollowSettings,
    #[command(flatten)]
    pace: PaceSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Clone, Debug)]
struct FollowSettings {
    /// Objects to do without, as in 17,40-52: for one that kills the process each time, or that is missing for good. The
    /// ledger says that they were skipped
    #[arg(long, env = "SKIP", value_name = "SEQUENCES", default_value = "", hide_default_value = true)]
    skip: Skip,
}

#[derive(Args, Debug)]
struct MigrateSettings {
    /// Name of the stream that the tables are for: a-z, 0-9, _ and -, at most 63
    #[arg(long, env = "STREAM", value_name = "NAME", default_value = "posts")]
    stream: StreamName,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

/// Does what the command line says.
pub async fn execute(CommandLine { command }: CommandLine) -> ExitCode {
    let (Command::Run(RunSettings { telemetry, .. }) | Command::Migrate(MigrateSettings { telemetry, .. })) = &command;
    telemetry::log_to_stderr(telemetry);
    let done = match command {
        Command::Run(settings) => run(settings).await,
        Command::Migrate(settings) => migrate(&settings.database, &settings.stream).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(why = telemetry::chain(problem.as_ref()), "the transformer ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: RunSettings) -> anyhow::Result<()> {
    let status = Status::default();
    telemetry::serve_admin(&settings.telemetry, &status).await?;
    let config = aws::config().await;
    let ArchiveSettings { stream, archive_bucket } = settings.archive;
    info!(version = VERSION, %stream, archive_bucket, schema = %settings.database.database_schema, "transformer starts");
    let archive = S3Archive::new(aws::s3(&config), archive_bucket, stream.clone());
    let table = PostgresTable::new(settings.database, stream.clone());
    let follower = Follower::new(archive, table, settings.follow.skip, ProgressBar::hidden());
    let transformer = Transformer::new(follower, SqsBell::new(aws::sqs(&config), settings.bell), stream, status);
    run_until_drained(|shutdown| transformer.run(settings.pace, shutdown)).await;
    info!("transformer ends");
    Ok(())
}
