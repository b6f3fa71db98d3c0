//! What several tests need: the one world that they share, and hands to do in it what people and accidents do.

pub mod absence;
pub mod author;
pub mod certificates;
pub mod cluster;
pub mod faulty_api;
pub mod host;
pub mod iam_gate;
pub mod moto;
pub mod programs;
pub mod systemd;
pub mod tap;
pub mod terraform;
pub mod tunnel;

pub use sandbox::proxy;

use std::{collections::HashMap, io::Write as _, path::Path, process::Output, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use aws_sdk_s3::{
    operation::list_object_versions::ListObjectVersionsOutput,
    types::{Delete, ObjectIdentifier},
};
use sandbox::{Daemon, Event, Progress, Sandbox, Setup, World};
use shared::{
    archive::Archive,
    object::{Metadata, Sequence, prefix},
};
use tokio::{
    process::Command,
    sync::{OnceCell, broadcast::Receiver},
    time::timeout,
};

/// How long anything may take that takes milliseconds: the machine that runs this may be busy with the other tests.
pub const SOON: Duration = Duration::from_mins(1);

/// Says that a test was skipped, and why, past the test runner, which keeps what a test prints to itself when it succeeds.
pub fn skipped(why: impl std::fmt::Display) {
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// One LocalStack and one Postgres for all tests of this process; they end with it.
pub async fn world() -> Arc<World> {
    static WORLD: OnceCell<Arc<World>> = OnceCell::const_new();
    WORLD.get_or_init(async || World::start(&Progress::default()).await.expect("the world starts")).await.clone()
}

/// A stream of its own in the shared world, with daemons that do not wait long for anything.
pub async fn start(setup: Setup) -> Result<Sandbox> {
    let mut settings = vec![("POLL_INTERVAL", "200ms"), ("CATCH_UP_INTERVAL", "1s")];
    settings.extend(setup.settings);
    Sandbox::start(&world().await, Setup { settings, ..setup }).await
}

/// A stream whose daemons do not run.
pub async fn start_nothing() -> Result<Sandbox> {
    start(Setup { posts: 3, importer: false, transformer: false, ..Setup::default() }).await
}

/// Runs a command of the importer to its end, with settings on top of the stream's.
pub async fn importer(sandbox: &Sandbox, settings: &[(&'static str, &str)], arguments: &[&str]) -> Result<Output> {
    let mut command = command(sandbox, &sandbox.world().programs().importer, settings, arguments);
    Ok(command.output().await?)
}

/// Runs a command of the transformer to its end, with settings on top of the stream's.
pub async fn transformer(sandbox: &Sandbox, settings: &[(&'static str, &str)], arguments: &[&str]) -> Result<Output> {
    Ok(transformer_command(sandbox, settings, arguments).output().await?)
}

/// A command of the transformer that does not run yet.
pub fn transformer_command(sandbox: &Sandbox, settings: &[(&'static str, &str)], arguments: &[&str]) -> Command {
    command(sandbox, &sandbox.world().programs().transformer, settings, arguments)
}

fn command(sandbox: &Sandbox, program: &Path, settings: &[(&'static str, &str)], arguments: &[&str]) -> Command {
    let mut all = sandbox.settings().clone();
    all.set(&[("LOG_FORMAT", "json")]);
    all.set(settings);
    let mut command = sandbox.world().program(program, &all);
    command.args(arguments);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    command
}

/// What a command wrote, for a snapshot: its exit code, its stdout, and what it logged from warnings on. What is another with each
/// run has a name in its place.
pub fn told(sandbox: &Sandbox, output: &Output, names: &[(&str, &str)]) -> String {
    let log = String::from_utf8_lossy(&output.stderr);
    let mut text = format!("exit code {}\n", output.status.code().unwrap_or(-1));
    text.push_str(&String::from_utf8_lossy(&output.stdout));
    text.extend(log.lines().filter_map(for_people));
    let (queue, folder) = (sandbox.queue_url(), sandbox.world().folder().to_string_lossy());
    let ours = [
        (queue, "http://AWS/QUEUE.fifo"),
        (sandbox.world().localstack().endpoint(), "http://AWS"),
        (sandbox.bucket(), "BUCKET"),
        (&folder, "FOLDER"),
    ];
    for (value, name) in names.iter().chain(&ours) {
        text = text.replace(value, name);
    }
    let words = text.split_inclusive([' ', '\n']).map(|word| {
        let (bare, end) = word.split_at(word.trim_end_matches([' ', '\n']).len());
        let name = match bare {
            _ if bare.parse::<uuid::Uuid>().is_ok() => "00000000-0000-0000-0000-000000000000",
            _ if bare.parse::<jiff::Timestamp>().is_ok() => "2026-01-01T00:00:00Z",
            bare => bare,
        };
        format!("{name}{end}")
    });
    words.collect()
}

/// A log line from warnings on, or a line that is none.
fn for_people(line: &str) -> Option<String> {
    let Ok(fields) = serde_json::from_str::<serde_json::Value>(line) else { return Some(format!("{line}\n")) };
    let field = |name: &str| fields[name].as_str().unwrap_or_default();
    let is_quiet = matches!(field("level"), "INFO" | "DEBUG");
    (!is_quiet).then(|| format!("{} {}\n  {}\n", field("level"), field("message"), field("why")))
}

/// Waits for a log line of a daemon, and answers with its fields. Subscribe before what causes it.
pub async fn logged(events: &mut Receiver<Event>, who: &str, message: &str) -> Result<Event> {
    let wait = async {
        loop {
            let event = events.recv().await?;
            if event.who == who && event.message == message {
                return Ok(event);
            }
        }
    };
    timeout(SOON, wait).await.with_context(|| format!("{who} never logged {message:?}"))?
}

/// Waits until the transformer has come to this object.
pub async fn applied(sandbox: &Sandbox, sequence: u64) -> Result<()> {
    let what = format!("object {sequence} is applied");
    sandbox.wait_until(what, 2 * SOON, async || Ok(sandbox.position().await? == sequence)).await
}

/// Changes the title of a post at the API.
pub fn retitle(sandbox: &Sandbox, id: u64, title: &str) {
    let fields = [("title".to_owned(), title.into())].into_iter().collect();
    sandbox.api.change(|posts| posts.patch(id, fields).map(|_| ())).expect("the API has the post");
}

/// The state that `/readyz` begins with, and its status; an error while nobody answers.
pub async fn readiness(daemon: &Daemon) -> Result<(u16, String)> {
    let (status, report) = admin(daemon, "/readyz").await?;
    Ok((status, report.lines().next().unwrap_or_default().to_owned()))
}

/// What the admin endpoint answers, with its status.
pub async fn admin(daemon: &Daemon, path: &str) -> Result<(u16, String)> {
    let response = reqwest::get(format!("{}{path}", daemon.admin_url())).await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// The numbers that a daemon serves, as they stand there, by name and labels.
pub async fn metrics(daemon: &Daemon) -> Result<HashMap<String, String>> {
    let (_, text) = admin(daemon, "/metrics").await?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let number = |line: &str| {
        let (name, value) = line.rsplit_once(' ').context("a name and a value")?;
        Ok((name.to_owned(), value.to_owned()))
    };
    lines.map(number).collect()
}

/// Waits until the daemon holds, and answers with its reason.
pub async fn hold_of(sandbox: &Sandbox, daemon: &Daemon) -> Result<String> {
    let mut said = String::new();
    let held = sandbox.wait_until("the daemon holds", SOON, async || {
        let (status, text) = readiness(daemon).await?;
        said = text;
        Ok(status == 503 && said.starts_with("holding: "))
    });
    held.await?;
    Ok(said)
}

/// Deletes every object of the archive, as a person with the rights to do so would.
pub async fn empty_bucket(sandbox: &Sandbox) -> Result<()> {
    let listed = sandbox.s3().list_objects_v2().bucket(sandbox.bucket()).send().await?;
    let keys = listed.contents().iter().filter_map(|object| object.key());
    let objects = keys.map(|key| ObjectIdentifier::builder().key(key).build()).collect::<Result<Vec<_>, _>>()?;
    let delete = Delete::builder().set_objects(Some(objects)).build()?;
    sandbox.s3().delete_objects().bucket(sandbox.bucket()).delete(delete).send().await?;
    Ok(())
}

/// All versions of the archive's objects, in a bucket with versions: each was written once if there are as many as objects.
pub async fn object_versions(sandbox: &Sandbox) -> Result<ListObjectVersionsOutput> {
    // Numbers begin with a zero here, and what else is there does not.
    let prefix = format!("{}0", prefix(sandbox.stream()));
    Ok(sandbox.s3().list_object_versions().bucket(sandbox.bucket()).prefix(prefix).send().await?)
}

/// What an object says of itself.
pub async fn metadata(sandbox: &Sandbox, sequence: u64) -> Result<Metadata> {
    let head = sandbox.archive().head(Sequence::try_from(sequence)?).await?;
    Ok(head.with_context(|| format!("there is no object {sequence}"))?.metadata)
}

/// Writes an object past the importer, over whatever is there.
pub async fn put(sandbox: &Sandbox, bucket: &str, sequence: u64, metadata: &Metadata, body: &[u8]) -> Result<()> {
    let key = Sequence::try_from(sequence)?.key(sandbox.stream());
    let put = sandbox.s3().put_object().bucket(bucket).key(key).body(body.to_vec().into());
    put.set_metadata(Some(metadata.encode()?)).send().await?;
    Ok(())
}

/// One value from the stream's database.
pub async fn select<T>(sandbox: &Sandbox, statement: &'static str) -> Result<T>
where
    T: Send + Unpin,
    (T,): for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
{
    let mut connection = sandbox.connect().await?;
    let (value,) = sqlx::query_as(statement).fetch_one(&mut connection).await?;
    Ok(value)
}

/// Runs statements in the stream's database, as its owner.
pub async fn execute(sandbox: &Sandbox, statements: &str) -> Result<()> {
    let mut connection = sandbox.connect().await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut connection).await?;
    Ok(())
}

/// The ledger is dense, in order and knows each object once; each object continues the one before; the posts are the API's.
pub async fn assert_whole(sandbox: &Sandbox) -> Result<()> {
    sandbox.settled(SOON).await?;
    let end = sandbox.end().await?;
    let mut connection = sandbox.connect().await?;
    let ledger: Vec<(i64, uuid::Uuid)> = sqlx::query_as("SELECT sequence, observation FROM objects ORDER BY sequence")
        .fetch_all(&mut connection)
        .await?;
    let mut previous = None;
    for (expected, (sequence, observation)) in (1..=end).zip(&ledger) {
        assert_eq!(sequence.unsigned_abs(), expected, "the ledger is dense");
        let metadata = metadata(sandbox, expected).await?;
        assert_eq!(metadata.observation, *observation, "the ledger names what was applied");
        assert_eq!(metadata.previous, previous, "object {expected} continues the one before");
        previous = Some(metadata.observation);
    }
    assert_eq!(ledger.len() as u64, end, "each object once");
    Ok(())
}

/// Another daemon of the same stream, as on a second host, started.
pub async fn second(sandbox: &Sandbox, name: &'static str) -> Result<Daemon> {
    let programs = sandbox.world().programs();
    let program = if name == "importer" { &programs.importer } else { &programs.transformer };
    let second = daemon(sandbox, name, program, "second").await?;
    second.start();
    Ok(second)
}

/// A daemon of the stream that is `program`, not started yet. Its log is in `folder` below the stream's.
pub async fn daemon(sandbox: &Sandbox, name: &'static str, program: &Path, folder: &str) -> Result<Daemon> {
    let mut settings = sandbox.settings().clone();
    settings.set(&[("LOG_FORMAT", "json")]);
    let logs = sandbox.logs().join(folder);
    tokio::fs::create_dir_all(&logs).await?;
    Ok(Daemon::new(name, program, settings, &logs, sandbox.events().clone(), sandbox.world().clone()))
}

/// Sends a message to the stream's queue, as anybody could.
pub async fn send(sandbox: &Sandbox, body: &str) -> Result<()> {
    let message = sandbox.sqs().send_message().queue_url(sandbox.queue_url()).message_body(body);
    let id = uuid::Uuid::new_v4().to_string();
    message.message_group_id(sandbox.stream().to_string()).message_deduplication_id(id).send().await?;
    Ok(())
}

/// Waits until the stream's queue holds no message, seen or unseen.
pub async fn queue_is_empty(sandbox: &Sandbox) -> Result<()> {
    let is_empty =
        sandbox.wait_until("the queue is empty", SOON, async || is_empty(sandbox.sqs(), sandbox.queue_url()).await);
    is_empty.await
}

/// Whether a queue holds no message, seen or unseen.
pub async fn is_empty(sqs: &aws_sdk_sqs::Client, queue_url: &str) -> Result<bool> {
    use aws_sdk_sqs::types::QueueAttributeName::{ApproximateNumberOfMessages, ApproximateNumberOfMessagesNotVisible};
    let request = sqs.get_queue_attributes().queue_url(queue_url);
    let request =
        request.attribute_names(ApproximateNumberOfMessages).attribute_names(ApproximateNumberOfMessagesNotVisible);
    let attributes = request.send().await?.attributes.unwrap_or_default();
    Ok(attributes.len() == 2 && attributes.values().all(|count| count == "0"))
}
