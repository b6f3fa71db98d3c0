//! The command line: which command, its settings, and the exit code (0 done, 1 failed, 2 wrong settings, 3 something found).

use std::{
    env,
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use shared::{
    admin,
    archive::S3Archive,
    aws::{self, SdkConfig},
    metrics,
    object::{Sequence, StreamName},
    settings::{ArchiveSettings, RecordsSettings, VERSION, parse_sequence},
    shutdown::run_until_drained,
    status::{self, Dependency, Status},
    systemd,
    telemetry::{self, TelemetrySettings},
};
use tokio::time::sleep;
use tracing::{error, info};

use crate::{
    absence::BrakeSettings,
    commands::{
        audit::audit,
        check::{check_doors, check_server, tell},
        history::{self, history},
        migrate::{Wanted, migrate},
        quarantine::{QuarantineCommand, quarantine},
        snapshot::{self, Snapshot},
    },
    decide::Sequences,
    events,
    follow::{Followed, Follower, Goal},
    postgres::connect::{DatabaseSettings, connect, exposure},
    queue::{QueueSettings, SqsQueue},
    read::table_definition::TableDefinition,
    run::{PaceSettings, Transformer},
    write::table::{PostgresTable, Table, TableSettings},
};

/// Ends the help.
const EXAMPLE: &str = "\
Example:
  export DATABASE_URL=postgres://transformer:password@localhost/posts
  transformer migrate
  transformer --archive-bucket my-archive \\
              --queue-url https://sqs.eu-central-1.amazonaws.com/123456789012/posts.fifo

HTTPS_PROXY, HTTP_PROXY and NO_PROXY apply to requests to AWS. AWS_CA_BUNDLE names a file with certificates of further authorities.

Other commands: once, propose, migrate, check, audit, quarantine. See `transformer help`.";

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
    /// Proposes TABLE and TABLE_COLUMNS for the records of the archive's newest snapshot: exit code 3 when no member could be the key.
    ///
    /// Standard output takes two lines for a shell or for systemd's EnvironmentFile; for `docker --env-file` take the outer quotes away.
    /// Standard error says what a person should know of them. It needs neither database nor queue, and changes nothing.
    Propose(ProposeSettings),
    /// Tells what the archive says of one record: when it appeared, changed and went, in which object, and which members changed. It reads the
    /// archive alone, so it knows quarantined records, too. Exit code 3 when no object has the record
    History(HistorySettings),
    /// Compares the archive with the ledger, object by object: exit code 3 when something is wrong. It changes nothing
    Audit(AuditSettings),
    /// Shows the records and objects that are not among the rows, and why
    Quarantine(QuarantineSettings),
    /// Makes the tables of a stream, or brings them to this release; safe to repeat.
    ///
    /// Run it before the first start and after each upgrade, under a role that may create tables. Migrations only add, so
    /// the old release keeps running on the new tables, with the same TABLE_COLUMNS.
    Migrate(MigrateSettings),
    /// Looks whether database, archive and queue are reachable, permitted and durable, and says what to do: exit code 3
    /// when something is wrong
    Check(CheckSettings),
}

/// What the transformer is connected to.
#[derive(Args, Debug)]
struct Wires {
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    database: DatabaseSettings,
}

#[derive(Args, Debug)]
struct RunSettings {
    #[command(flatten)]
    wires: Wires,
    #[command(flatten)]
    queue: QueueSettings,
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
    skip: Sequences,
    #[command(flatten)]
    table: TableSettings,
    #[command(flatten)]
    brake: BrakeSettings,
}

#[derive(Args, Debug)]
struct OnceSettings {
    /// The last object to apply, to see the table as it was then [default: the end of the archive]
    #[arg(long, value_name = "SEQUENCE", value_parser = parse_sequence)]
    to: Option<Sequence>,
    #[command(flatten)]
    wires: Wires,
    #[command(flatten)]
    follow: FollowSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct ProposeSettings {
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    records: RecordsSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct HistorySettings {
    #[command(flatten)]
    wanted: history::Wanted,
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    table: TableSettings,
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
    wires: Wires,
    #[command(flatten)]
    table: TableSettings,
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
    /// Shows the statements that would make or change the table, and changes nothing
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    definition: TableDefinition,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct CheckSettings {
    #[command(flatten)]
    wires: Wires,
    #[command(flatten)]
    queue: QueueSettings,
    #[command(flatten)]
    table: TableSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

/// What is wrong with settings that are each right by themselves.
pub fn contradictions(given: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let allow_plaintext = given("allow_plaintext").is_some_and(|value| value == "true");
    let exposure = given("database_url").and_then(|url| exposure(&url, allow_plaintext));
    let gone = GONE.iter().filter(|(name, _)| env::var_os(name).is_some_and(|value| !value.is_empty()));
    let gone = gone.map(|(name, instead)| format!("{name} is no setting any more\n{instead}"));
    exposure.into_iter().chain(gone).collect()
}

/// Settings of older releases, and what replaces them.
const GONE: [(&str, &str); 2] = [
    (
        "RECORD_TYPE",
        "TABLE and TABLE_COLUMNS say what a record becomes; a whole document by its id is `id text /id, doc jsonb .`",
    ),
    ("ID_AT", "the first entry of TABLE_COLUMNS says where the id is, as in `id text /isbn`"),
];

/// Does what the command line says.
pub async fn execute(CommandLine { command }: CommandLine) -> ExitCode {
    let (Command::Run(RunSettings { telemetry, .. })
    | Command::Once(OnceSettings { telemetry, .. })
    | Command::Propose(ProposeSettings { telemetry, .. })
    | Command::History(HistorySettings { telemetry, .. })
    | Command::Audit(AuditSettings { telemetry, .. })
    | Command::Check(CheckSettings { telemetry, .. })
    | Command::Quarantine(QuarantineSettings { telemetry, .. })
    | Command::Migrate(MigrateSettings { telemetry, .. })) = &command;
    telemetry::log_to_stderr(telemetry);
    let done = match command {
        Command::Run(settings) => run(settings).await,
        Command::Once(settings) => once(settings).await,
        Command::Propose(settings) => propose(settings).await,
        Command::History(settings) => tell_history(settings).await,
        Command::Audit(settings) => audit_archive(settings).await,
        Command::Quarantine(settings) => show_quarantine(settings).await,
        Command::Migrate(settings) => {
            let MigrateSettings { stream, grant_to, print, definition, database, .. } = settings;
            let wanted = Wanted { stream, definition, grant_to, is_shown: print };
            let shown = migrate(&database, &wanted).await.and_then(|statements| {
                let shown = statements.iter().filter(|_| print);
                Ok(shown.into_iter().try_for_each(|statement| writeln!(io::stdout(), "{};", statement.text()))?)
            });
            shown.map(|()| ExitCode::SUCCESS)
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

async fn run(RunSettings { wires, queue, follow, pace, telemetry }: RunSettings) -> anyhow::Result<ExitCode> {
    let status = Status::new(&[Dependency::Archive, Dependency::Queue, Dependency::Database]);
    metrics::name_the_program("transformer");
    events::register();
    admin::serve(&telemetry, &status).await?;
    let (stream, schema) = (wires.archive.stream.clone(), wires.database.database_schema.clone());
    info!(version = VERSION, %stream, archive_bucket = wires.archive.archive_bucket, %schema, "transformer starts");
    run_until_drained(async |mut shutdown| {
        systemd::serve(&status);
        let Some(config) = aws::config_at_last(&status, &mut shutdown).await else { return };
        let queue = SqsQueue::new(aws::sqs(&config), queue);
        let (archive, table) = doors(wires, follow.table, follow.brake, &config);
        let follower = Follower::new(archive, table, follow.skip);
        Transformer::new(follower, queue, stream, status.clone()).run(pace, shutdown).await;
    })
    .await;
    info!("transformer ends");
    Ok(ExitCode::SUCCESS)
}

async fn once(OnceSettings { to, wires, follow, .. }: OnceSettings) -> anyhow::Result<ExitCode> {
    /// A live transformer has the stream for the time of one transaction.
    const BUSY_PAUSE: Duration = Duration::from_millis(500);

    let progress = progress();
    let (archive, table) = doors(wires, follow.table, follow.brake, &aws::config().await?);
    let mut follower = Follower::new(archive, table, follow.skip);
    let goal = to.map_or(Goal::End, Goal::To);
    let done = run_until_drained(async |mut shutdown| {
        while showing(&progress, to, follower.look(goal, &shutdown)).await? == Followed::Busy && !shutdown.is_draining()
        {
            follower.take_over_from_the_silent().await?;
            // Nothing is in hand.
            shutdown.race(sleep(BUSY_PAUSE)).await;
        }
        anyhow::Ok(shutdown.is_draining())
    });
    let was_cut = done.await.transpose()?.unwrap_or(true);
    progress.finish_and_clear();
    ensure!(!was_cut, "it was told to end before it was done; it goes on where it was");
    if let Some(to) = to {
        let reached = follower.position().await?;
        let at = reached.map_or(0, |position| position.sequence.get());
        ensure!(at == to.get(), "the position is {at}, and --to {to} is not to be reached");
    }
    Ok(ExitCode::SUCCESS)
}

async fn propose(ProposeSettings { archive, records, .. }: ProposeSettings) -> anyhow::Result<ExitCode> {
    let ArchiveSettings { stream, archive_bucket } = archive;
    let archive = S3Archive::new(aws::s3(&aws::config().await?), archive_bucket, stream.clone());
    let (snapshot, sample, problems) = snapshot::newest(&archive, &records.records_at).await?;
    let Snapshot { first, last, end, is_finished, torn } = snapshot;
    // Not locked: another thread may log meanwhile.
    let err = &mut io::stderr();
    let what =
        if is_finished { "a whole snapshot" } else { "a snapshot without its last page, since none is finished" };
    let held = sample.records;
    writeln!(err, "{what} was read, objects {first} to {last}, with {held} records that a table can hold")?;
    if last < end {
        writeln!(err, "newer objects, up to {end}, have no record, or are of a snapshot that is not finished")?;
    }
    if torn {
        writeln!(err, "the API changed while it was asked: records may be missing or doubled")?;
    }
    let proposal = match sample.propose(&stream) {
        Ok(proposal) => proposal,
        Err(why) => {
            writeln!(err, "{why}")?;
            return Ok(found(true));
        }
    };
    proposal.notes.iter().chain(&problems).try_for_each(|note| writeln!(err, "{note}"))?;
    writeln!(io::stdout(), "{proposal}")?;
    Ok(ExitCode::SUCCESS)
}

async fn tell_history(HistorySettings { wanted, archive, table, .. }: HistorySettings) -> anyhow::Result<ExitCode> {
    let ArchiveSettings { stream, archive_bucket } = archive;
    let archive = S3Archive::new(aws::s3(&aws::config().await?), archive_bucket, stream);
    let oldest = archive.oldest().await?.unwrap_or(Sequence::FIRST);
    let progress = progress();
    let tell = |entry: &dyn Display| Ok(progress.suspend(|| writeln!(io::stdout(), "{entry}"))?);
    let is_told = history(&archive, oldest, &wanted, &table.reading(), &progress, tell).await;
    progress.finish_and_clear();
    if is_told? {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(io::stderr(), "no object has a record with the id {}", wanted.id)?;
    Ok(found(true))
}

async fn audit_archive(AuditSettings { deep, json, wires, table, .. }: AuditSettings) -> anyhow::Result<ExitCode> {
    let mut connection = connect(&wires.database).await?;
    let (archive, mut table) = doors(wires, table, BrakeSettings::default(), &aws::config().await?);
    let position = table.position().await?;
    let progress = progress();
    let report = audit(&archive, &mut connection, position.as_ref(), deep, &progress).await;
    progress.finish_and_clear();
    let report = report?;
    let text = if json { serde_json::to_string(&report)? } else { report.to_string() };
    writeln!(io::stdout(), "{text}")?;
    Ok(found(!report.problems.is_empty()))
}

async fn show_quarantine(settings: QuarantineSettings) -> anyhow::Result<ExitCode> {
    let mut connection = connect(&settings.database).await?;
    quarantine(settings.command, &mut connection, &mut io::stdout().lock()).await?;
    Ok(ExitCode::SUCCESS)
}

async fn check_all(CheckSettings { wires, queue, table, .. }: CheckSettings) -> anyhow::Result<ExitCode> {
    let out = &mut io::stdout().lock();
    let config = aws::config().await;
    let aws = aws::surroundings(&config, &wires.archive.archive_bucket).await;
    tell(out, "aws", &aws)?;
    let connection = connect(&wires.database).await;
    let mut is_well =
        check_server(connection, &wires.database.database_schema, &table.definition, out).await? && aws.is_ok();
    if let Ok(config) = config {
        let queue = SqsQueue::new(aws::sqs(&config), queue);
        let (archive, mut table) = doors(wires, table, BrakeSettings::default(), &config);
        is_well &= check_doors(&mut table, &archive, &queue, out).await?;
    }
    Ok(found(!is_well))
}

/// Nothing is asked of either yet.
fn doors(
    Wires { archive, database }: Wires,
    table: TableSettings,
    brake: BrakeSettings,
    config: &SdkConfig,
) -> (S3Archive, PostgresTable) {
    let ArchiveSettings { stream, archive_bucket } = archive;
    let archive = S3Archive::new(aws::s3(config), archive_bucket, stream.clone());
    (archive, PostgresTable::new(database, stream, table, brake))
}

fn found(something: bool) -> ExitCode {
    if something { ExitCode::from(FOUND) } else { ExitCode::SUCCESS }
}

/// Awaits something, and shows meanwhile where the table stands.
async fn showing<T>(progress: &ProgressBar, to: Option<Sequence>, done: impl Future<Output = T>) -> T {
    const PAUSE: Duration = Duration::from_millis(100);
    let show = async {
        loop {
            progress.set_length(to.map_or(status::end(), Sequence::get));
            progress.set_position(status::position());
            // Nothing signals that the position has moved; a person sees ten looks a second.
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        biased;
        // Never dropped before it is done, because the other branch never is.
        done = done => done,
        () = show => unreachable!("it shows for ever"),
    }
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
