//! The command line: which command, its settings, and the exit code (0 done, 1 failed, 2 wrong settings, 3 something found).

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use shared::{
    archive::S3Archive,
    aws,
    object::{Sequence, StreamName},
    settings::{ArchiveSettings, VERSION, parse_sequence},
    shutdown::run_until_drained,
    systemd,
    telemetry::{self, Status, TelemetrySettings},
};
use tokio::time::sleep;
use tracing::{error, info};

use crate::{
    audit::audit,
    bell::{BellSettings, SqsBell},
    check::check,
    connect::{DatabaseSettings, connect, exposure},
    follow::{Followed, Follower, Goal},
    migrate::migrate,
    quarantine::{QuarantineCommand, quarantine},
    run::{PaceSettings, Transformer},
    skip::Skip,
    table::{PostgresTable, Table},
};

/// Ends the help.
const EXAMPLE: &str = "\
Example:
  export DATABASE_URL=postgres://transformer:password@localhost/posts
  transformer migrate
  transformer --archive-bucket my-archive \\
              --queue-url https://sqs.eu-central-1.amazonaws.com/123456789012/posts.fifo

Other commands: once, audit, quarantine, migrate, check. See `transformer help`.";

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
    /// Applies what is in the archive and ends: for cron, and for a rebuild into another DATABASE_SCHEMA. It needs no queue. Killed,
    /// it goes on where it was
    Once(OnceSettings),
    /// Compares the archive with the ledger, object by object: exit code 3 when something is wrong. It changes nothing
    Audit(AuditSettings),
    /// Shows the records and objects that are not among the posts, and why
    Quarantine(QuarantineSettings),
    /// Makes the tables of a stream, or brings them to this release; safe to repeat.
    ///
    /// Run it before the first start and after each upgrade, under a role that may create tables. Migrations only add, so
    /// the old release keeps running on the new tables.
    Migrate(MigrateSettings),
    /// Looks whether database, archive and queue are reachable, permitted and durable, and says what to do: exit code 3
    /// when something is wrong
    Check(CheckSettings),
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
struct OnceSettings {
    /// The last object to apply, to see the table as it was then [default: the end of the archive]
    #[arg(long, value_name = "SEQUENCE", value_parser = parse_sequence)]
    to: Option<Sequence>,
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    follow: FollowSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct AuditSettings {
    /// Reads every object again and compares its bytes with the digest in its metadata
    #[arg(long)]
    deep: bool,
    /// Writes one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct QuarantineSettings {
    #[command(subcommand)]
    command: QuarantineCommand,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct MigrateSettings {
    /// Name of the stream that the tables are for: a-z, 0-9, _ and -, at most 63
    #[arg(long, env = "STREAM", value_name = "NAME", default_value = "posts")]
    stream: StreamName,
    /// A role that may then run the transformer and nothing else. It is made if there is none; on RDS it gets rds_iam
    #[arg(long, value_name = "ROLE")]
    grant_to: Option<String>,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct CheckSettings {
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    bell: BellSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

/// What is wrong with settings that are each right by themselves.
pub fn contradictions(given: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let allow_plaintext = given("allow_plaintext").is_some_and(|value| value == "true");
    given("database_url").and_then(|url| exposure(&url, allow_plaintext)).into_iter().collect()
}

/// Does what the command line says.
pub async fn execute(CommandLine { command }: CommandLine) -> ExitCode {
    let (Command::Run(RunSettings { telemetry, .. })
    | Command::Once(OnceSettings { telemetry, .. })
    | Command::Audit(AuditSettings { telemetry, .. })
    | Command::Quarantine(QuarantineSettings { telemetry, .. })
    | Command::Migrate(MigrateSettings { telemetry, .. })
    | Command::Check(CheckSettings { telemetry, .. })) = &command;
    telemetry::log_to_stderr(telemetry);
    let done = match command {
        Command::Run(settings) => run(settings).await,
        Command::Once(settings) => once(settings).await,
        Command::Audit(settings) => audit_archive(settings).await,
        Command::Quarantine(settings) => show_quarantine(settings).await,
        Command::Migrate(settings) => {
            let migrated = migrate(&settings.database, &settings.stream, settings.grant_to.as_deref()).await;
            migrated.map(|()| ExitCode::SUCCESS)
        }
        Command::Check(settings) => check_all(settings).await,
    };
    done.unwrap_or_else(|problem| {
        error!(why = telemetry::chain(problem.as_ref()), "the transformer ends");
        ExitCode::FAILURE
    })
}

/// Something was found.
const FOUND: u8 = 3;

async fn run(settings: RunSettings) -> anyhow::Result<ExitCode> {
    let status = Status::default();
    telemetry::serve_admin(&settings.telemetry, &status).await?;
    let config = aws::config().await;
    let ArchiveSettings { stream, archive_bucket } = settings.archive;
    info!(version = VERSION, %stream, archive_bucket, schema = %settings.database.database_schema, "transformer starts");
    let archive = S3Archive::new(aws::s3(&config), archive_bucket, stream.clone());
    let table = PostgresTable::new(settings.database, stream.clone());
    let follower = Follower::new(archive, table, settings.follow.skip, ProgressBar::hidden());
    let transformer =
        Transformer::new(follower, SqsBell::new(aws::sqs(&config), settings.bell), stream, status.clone());
    run_until_drained(|shutdown| {
        systemd::serve(&status);
        transformer.run(settings.pace, shutdown)
    })
    .await;
    info!("transformer ends");
    Ok(ExitCode::SUCCESS)
}

async fn once(settings: OnceSettings) -> anyhow::Result<ExitCode> {
    /// A live transformer has the stream for the time of one object.
    const BUSY_PAUSE: Duration = Duration::from_millis(500);

    let archive = s3_archive(&settings.archive).await;
    let (database, stream) = (settings.database, settings.archive.stream);
    let table = PostgresTable::new(database.clone(), stream.clone());
    let progress = progress();
    let mut follower = Follower::new(archive, table, settings.follow.skip, progress.clone());
    let goal = settings.to.map_or(Goal::End, Goal::To);
    let done = run_until_drained(async |mut shutdown| {
        while follower.look(goal, &shutdown).await? == Followed::Busy && !shutdown.is_draining() {
            follower.take_over_from_the_silent().await?;
            // Nothing is in hand.
            shutdown.race(sleep(BUSY_PAUSE)).await;
        }
        anyhow::Ok(shutdown.is_draining())
    });
    let was_cut = done.await.transpose()?.unwrap_or(true);
    progress.finish_and_clear();
    ensure!(!was_cut, "it was told to end before it was done; it goes on where it was");
    let reached = table_at(&database, &stream).await?;
    if let Some(to) = settings.to {
        ensure!(
            reached == Some(to),
            "the position is {}, and --to {to} is not to be reached",
            reached.map_or(0, Sequence::get)
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn table_at(database: &DatabaseSettings, stream: &StreamName) -> anyhow::Result<Option<Sequence>> {
    let position = PostgresTable::new(database.clone(), stream.clone()).position().await?;
    Ok(position.map(|position| position.sequence))
}

async fn audit_archive(settings: AuditSettings) -> anyhow::Result<ExitCode> {
    let archive = s3_archive(&settings.archive).await;
    let mut connection = connect(&settings.database).await?;
    let position = PostgresTable::new(settings.database, settings.archive.stream).position().await?;
    let progress = progress();
    let report = audit(&archive, &mut connection, position.as_ref(), settings.deep, &progress).await;
    progress.finish_and_clear();
    let report = report?;
    let text = if settings.json { serde_json::to_string(&report)? } else { report.to_string() };
    writeln!(io::stdout(), "{text}")?;
    Ok(found(!report.problems.is_empty()))
}

async fn show_quarantine(settings: QuarantineSettings) -> anyhow::Result<ExitCode> {
    let mut connection = connect(&settings.database).await?;
    quarantine(settings.command, &mut connection, &mut io::stdout().lock()).await?;
    Ok(ExitCode::SUCCESS)
}

async fn check_all(settings: CheckSettings) -> anyhow::Result<ExitCode> {
    let archive = s3_archive(&settings.archive).await;
    let bell = SqsBell::new(aws::sqs(&aws::config().await), settings.bell);
    let connection = connect(&settings.database).await;
    let mut table = PostgresTable::new(settings.database, settings.archive.stream);
    let is_well = check(connection, &mut table, &archive, &bell, &mut io::stdout().lock()).await?;
    Ok(found(!is_well))
}

async fn s3_archive(settings: &ArchiveSettings) -> S3Archive {
    S3Archive::new(aws::s3(&aws::config().await), settings.archive_bucket.clone(), settings.stream.clone())
}

fn found(something: bool) -> ExitCode {
    if something { ExitCode::from(FOUND) } else { ExitCode::SUCCESS }
}

/// On a terminal, how far a long command has come.
fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{wide_bar} {pos} of {len} objects, {eta} left").expect("a valid template");
    ProgressBar::new(0).with_style(style)
}
