//! The command line: which command, its settings, and the exit code (0 done, 1 failed, 2 wrong settings, 3 nothing new, or a problem
//! found).

use std::{env, io, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use shared::{
    admin,
    archive::S3Archive,
    aws::{self, SdkConfig},
    metrics,
    settings::{ArchiveSettings, VERSION, public_url},
    shutdown::run_until_drained,
    status::{Dependency, Status},
    systemd,
    telemetry::{self, TelemetrySettings},
};
use tracing::{error, info};

use super::{
    check::{Surroundings, check, explained},
    list::{ListSettings, is_closed_pipe, list},
};
use crate::{
    events,
    fault::{ImportError, Outcome},
    queue::{QueueSettings, SqsQueue},
    run::{Importer, PaceSettings},
    since::Since,
    source::{Api, SourceSettings, exposure, obstacle},
};

/// Ends the help.
const EXAMPLE: &str = "\
Example:
  importer --source-url https://jsonplaceholder.typicode.com/posts --archive-bucket my-archive \\
           --queue-url https://sqs.eu-central-1.amazonaws.com/123456789012/posts.fifo

HTTPS_PROXY, HTTP_PROXY and NO_PROXY apply to requests to the API and to AWS.
SSL_CERT_FILE names a file with certificates that take the place of the system's, for the API and for AWS.
AWS_CA_BUNDLE names a file with certificates of further authorities, for AWS alone.

Other commands, which take the same settings: once, list, check. See `importer help`.";

/// Polls an API, archives what it answers in S3 and announces it to an SQS queue
#[derive(Debug, Parser)]
#[command(name = "importer", version = VERSION)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Polls an API, archives what it answers in S3 and announces it to an SQS queue.
    ///
    /// Each answer that brings new records becomes the next numbered object of the archive, byte for byte, and an SQS
    /// FIFO message says where it is. A collection that is not known to be whole is not archived. The importer keeps no state: kill it, run two, move it; it goes on from where the
    /// archive ends.
    ///
    /// Every setting is a flag and an environment variable. SIGTERM drains, and so do SIGINT and SIGHUP: what is in hand is
    /// finished or left for the next start, within 8 seconds. Under nohup SIGHUP is ignored. Exit codes: 0 done, 1 failed, 2 wrong settings.
    #[command(override_usage = "importer [run] [OPTIONS]", after_long_help = EXAMPLE)]
    Run(Settings),
    /// Polls once, for cron and CI: exit code 0 when something was archived, 3 when there was nothing new, 1 when it failed
    Once(OnceSettings),
    /// Lists the archive: sequence, time, bytes, page, observation and etag of each object
    List(ListCommand),
    /// Looks whether the API's collection comes whole, and whether API, archive and queue are reachable and permitted, and says what to
    /// do: exit code 3 when something is wrong. It appends nothing to the archive
    Check(CheckSettings),
}

#[derive(Args, Debug)]
struct Settings {
    #[command(flatten)]
    wires: Wires,
    #[command(flatten)]
    pace: PaceSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct CheckSettings {
    /// Writes a JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args, Debug)]
struct OnceSettings {
    /// Archives the answer even if it is what the archive ends with, so that it is applied once more
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    wires: Wires,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[derive(Args, Debug)]
struct ListCommand {
    #[command(flatten)]
    list: ListSettings,
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

/// What the importer is connected to.
#[derive(Args, Debug)]
struct Wires {
    #[command(flatten)]
    source: SourceSettings,
    #[command(flatten)]
    archive: ArchiveSettings,
    #[command(flatten)]
    queue: QueueSettings,
}

/// What is wrong with settings that are each right by themselves.
pub fn contradictions(given: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let allow_http = given("allow_http").is_some_and(|value| value == "true");
    let exposure = given("source_url").and_then(|url| exposure(&url, allow_http));
    let next_page = given("next_page").unwrap_or_default();
    let (body_file, records_at) = (given("source_body_file"), given("records_at").unwrap_or_default());
    let obstacle = given("source_url").and_then(|url| obstacle(&url, body_file.as_deref(), &next_page, &records_at));
    let gone = GONE.iter().filter(|(name, _)| env::var_os(name).is_some_and(|value| !value.is_empty()));
    let gone = gone.map(|(name, instead)| format!("{name} is no setting any more\n{instead}"));
    let since = given("since").and_then(|since| since.parse::<Since>().ok());
    let bodiless = since.filter(|since| since.is_in_body() && body_file.is_none()).map(|_| {
        "SINCE (--since) names a place in a body, and there is no SOURCE_BODY_FILE\nname a parameter, as in modified_after=%Y-%m-%d, or give the body"
            .to_owned()
    });
    exposure.into_iter().chain(obstacle).chain(bodiless).chain(gone).collect()
}

/// Settings of older releases, and what replaces them.
const GONE: [(&str, &str); 3] = [
    ("PAGE_PARAMETER", "set NEXT_PAGE=page+1 with the parameter's name, and its first number in SOURCE_URL"),
    ("CURSOR_AT", "set NEXT_PAGE=cursor=/meta/next, with the parameter's name on the left and the place on the right"),
    ("CURSOR_PARAMETER", "its name stands in NEXT_PAGE, left of the place, as in NEXT_PAGE=cursor=/meta/next"),
];

/// Does what the command line says.
pub async fn execute(CommandLine { command }: CommandLine) -> ExitCode {
    let (Command::Run(Settings { telemetry, .. })
    | Command::Check(CheckSettings { settings: Settings { telemetry, .. }, .. })
    | Command::Once(OnceSettings { telemetry, .. })
    | Command::List(ListCommand { telemetry, .. })) = &command;
    telemetry::log_to_stderr(telemetry);
    let done = match command {
        Command::Run(settings) => run(settings).await,
        Command::Once(settings) => once(settings).await,
        Command::List(settings) => list_archive(settings).await,
        Command::Check(settings) => check_wires(settings).await,
    };
    done.unwrap_or_else(|problem| {
        error!(why = telemetry::chain(problem.as_ref()), "the importer ends");
        ExitCode::FAILURE
    })
}

/// Nothing new, or something found.
const FOUND: u8 = 3;

async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let status = Status::new(&[Dependency::Api, Dependency::Disk, Dependency::Archive, Dependency::Queue]);
    metrics::name_the_program("importer");
    events::register();
    admin::serve(&settings.telemetry, &status).await?;
    let Wires { source, archive, .. } = &settings.wires;
    let (stream, archive_bucket) = (&archive.stream, &archive.archive_bucket);
    info!(version = VERSION, %stream, archive_bucket, source_url = public_url(&source.source_url), "importer starts");
    let done = run_until_drained(async |mut shutdown| {
        systemd::serve(&status);
        let Some(config) = aws::config_at_last(&status, &mut shutdown).await else { return Ok(()) };
        let importer = importer(settings.wires, &config, status.clone())?;
        importer.run(settings.pace, fastrand::Rng::new(), shutdown).await;
        anyhow::Ok(())
    });
    done.await.transpose()?;
    info!("importer ends");
    Ok(ExitCode::SUCCESS)
}

async fn once(settings: OnceSettings) -> anyhow::Result<ExitCode> {
    let mut importer = importer(settings.wires, &aws::config().await?, Status::default())?;
    let polled = run_until_drained(async |mut shutdown| importer.poll(settings.again, &mut shutdown).await).await;
    let polled = polled.transpose().map_err(|fault| match &fault {
        ImportError::Poll(error) => anyhow::Error::msg(explained(error)),
        _ => fault.into(),
    })?;
    match polled {
        Some(Outcome::Appended { .. }) => Ok(ExitCode::SUCCESS),
        Some(Outcome::Unchanged) => {
            info!("nothing new");
            Ok(ExitCode::from(FOUND))
        }
        Some(Outcome::Drained) | None => anyhow::bail!("it was told to end before it was done"),
    }
}

fn importer(wires: Wires, config: &SdkConfig, status: Status) -> anyhow::Result<Importer<Api, S3Archive, SqsQueue>> {
    let stream = wires.archive.stream.clone();
    let api = Api::new(wires.source, status.clone())?;
    let (archive, queue) = doors(wires.archive, wires.queue, config);
    Ok(Importer::new(api, archive, queue, stream, status))
}

/// Nothing is asked of either yet.
fn doors(
    ArchiveSettings { stream, archive_bucket }: ArchiveSettings,
    queue: QueueSettings,
    config: &SdkConfig,
) -> (S3Archive, SqsQueue) {
    (S3Archive::new(aws::s3(config), archive_bucket, stream), SqsQueue::new(aws::sqs(config), queue))
}

async fn list_archive(settings: ListCommand) -> anyhow::Result<ExitCode> {
    let ArchiveSettings { stream, archive_bucket } = settings.archive;
    let archive = S3Archive::new(aws::s3(&aws::config().await?), archive_bucket, stream.clone());
    let mut out = io::BufWriter::new(io::stdout().lock());
    match list(settings.list, &archive, &stream, &mut out).await {
        Err(error) if !is_closed_pipe(&error) => Err(error),
        _ => Ok(ExitCode::SUCCESS),
    }
}

async fn check_wires(CheckSettings { json, settings }: CheckSettings) -> anyhow::Result<ExitCode> {
    let Wires { source, archive, queue } = settings.wires;
    let stream = archive.stream.clone();
    let reach = async || {
        let config = aws::config().await;
        let aws = aws::surroundings(&config, &archive.archive_bucket).await;
        (aws, config.ok().map(|config| doors(archive, queue, &config)))
    };
    let api = Api::new(source, Status::default())?;
    let surroundings = Surroundings { stream: &stream, poll_interval: settings.pace.poll_interval, is_json: json };
    let is_well = check(&api, reach, surroundings, &mut io::stdout().lock()).await?;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}
