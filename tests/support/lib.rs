//! What several tests need: the one world that they share, and hands to do in it what people and accidents do.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use sandbox::{Daemon, Progress, Sandbox, Setup, World};
use shared::{
    archive::Archive,
    object::{Metadata, Sequence},
};
use tokio::sync::OnceCell;

/// How long anything may take that takes milliseconds: the machine that runs this may be busy with the other tests.
pub const SOON: Duration = Duration::from_mins(1);

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

/// Changes the title of a post at the API.
pub fn retitle(sandbox: &Sandbox, id: u64, title: &str) {
    let fields = [("title".to_owned(), title.into())].into_iter().collect();
    sandbox.api.change(|posts| posts.patch(id, fields).map(|_| ())).expect("the API has the post");
}

/// What `/readyz` says, with its status; an error while nobody answers.
pub async fn readiness(daemon: &Daemon) -> Result<(u16, String)> {
    let response = reqwest::get(format!("{}/readyz", daemon.admin_url())).await?;
    Ok((response.status().as_u16(), response.text().await?))
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

/// Deletes every object of the archive, as somebody with the rights to do so would.
pub async fn empty_bucket(sandbox: &Sandbox) -> Result<()> {
    let listed = sandbox.s3().list_objects_v2().bucket(sandbox.bucket()).send().await?;
    let keys = listed.contents().iter().filter_map(|object| object.key());
    let objects = keys.map(|key| ObjectIdentifier::builder().key(key).build()).collect::<Result<Vec<_>, _>>()?;
    let delete = Delete::builder().set_objects(Some(objects)).build()?;
    sandbox.s3().delete_objects().bucket(sandbox.bucket()).delete(delete).send().await?;
    Ok(())
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
    let mut settings = sandbox.settings().clone();
    settings.set(&[("LOG_FORMAT", "json")]);
    let logs = sandbox.logs().join("second");
    tokio::fs::create_dir_all(&logs).await?;
    let daemon = Daemon::new(name, program, settings, &logs, sandbox.events().clone(), sandbox.world().clone());
    daemon.start();
    Ok(daemon)
}

/// Sends a message to the stream's queue, as anybody could.
pub async fn send(sandbox: &Sandbox, body: &str) -> Result<()> {
    let message = sandbox.sqs().send_message().queue_url(sandbox.queue_url()).message_body(body);
    let id = uuid::Uuid::new_v4().to_string();
    message.message_group_id(sandbox.stream().to_string()).message_deduplication_id(id).send().await?;
    Ok(())
}

/// Waits until the queue holds no message, seen or unseen.
pub async fn queue_is_empty(sandbox: &Sandbox) -> Result<()> {
    use aws_sdk_sqs::types::QueueAttributeName::{ApproximateNumberOfMessages, ApproximateNumberOfMessagesNotVisible};
    let is_empty = sandbox.wait_until("the queue is empty", SOON, async || {
        let request = sandbox.sqs().get_queue_attributes().queue_url(sandbox.queue_url());
        let request =
            request.attribute_names(ApproximateNumberOfMessages).attribute_names(ApproximateNumberOfMessagesNotVisible);
        let attributes = request.send().await?.attributes.unwrap_or_default();
        Ok(attributes.len() == 2 && attributes.values().all(|count| count == "0"))
    });
    is_empty.await
}
