//! Promise 4: purge the queue, lose it, delete it: the table ends the same.

use anyhow::{Context, Result};
use aws_sdk_sqs::types::QueueAttributeName;
use sandbox::Setup;
use shared::pointer::Pointer;
use support::{
    SOON, assert_whole,
    author::{Author, document},
    metadata, readiness, retitle, select, start,
};

#[tokio::test]
async fn a_queue_that_is_purged_again_and_again_loses_nothing() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    for round in 0..10 {
        retitle(&sandbox, round + 1, &format!("round {round}"));
        sandbox.purge_queue().await?;
        sandbox.wait_until("it is archived", SOON, async || Ok(sandbox.end().await? > round)).await?;
        sandbox.purge_queue().await?;
    }
    assert_whole(&sandbox).await
}

#[tokio::test]
async fn a_queue_that_is_deleted_and_made_anew_loses_nothing() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    sandbox.sqs().delete_queue().queue_url(sandbox.queue_url()).send().await?;
    retitle(&sandbox, 1, "while there is no queue");
    // Nothing is received, but the idle look goes on.
    assert_whole(&sandbox).await?;
    let name = sandbox.queue_url().rsplit('/').next().expect("a queue's URL ends with its name");
    sandbox.sqs().create_queue().queue_name(name).attributes(QueueAttributeName::FifoQueue, "true").send().await?;
    retitle(&sandbox, 2, "with the new queue");
    assert_whole(&sandbox).await?;
    let ready = "both are ready again";
    sandbox
        .wait_until(ready, SOON, async || {
            let states = [readiness(&sandbox.importer).await?, readiness(&sandbox.transformer).await?];
            Ok(states.iter().all(|(status, _)| *status == 200))
        })
        .await
}

#[tokio::test]
async fn a_standard_queue_that_repeats_and_reorders_does_as_well() -> Result<()> {
    // The archive is looked at when the queue says something, and not before.
    let settings = vec![("CATCH_UP_INTERVAL", "1h")];
    let setup = Setup { posts: 0, importer: false, transformer: false, settings, ..Setup::default() };
    let sandbox = start(setup).await?;
    let name = format!("standard-{}", uuid::Uuid::new_v4());
    let queue = sandbox.sqs().create_queue().queue_name(name).send().await?;
    let queue_url = queue.queue_url().context("a queue has a URL")?;
    sandbox.transformer.restart_with(&[("QUEUE_URL", queue_url)]).await?;
    sandbox.wait_until("it listens", SOON, async || Ok(readiness(&sandbox.transformer).await?.0 == 200)).await?;
    let mut author = Author::of(&sandbox).await?;
    for number in 1..=9 {
        author.append(document(1..=5, &format!("object {number}"))).await?;
    }
    for number in [4, 2, 2, 9, 4, 1] {
        let pointer = Pointer::new(sandbox.stream(), number.try_into()?, &metadata(&sandbox, number).await?);
        sandbox.sqs().send_message().queue_url(queue_url).message_body(pointer.encode()).send().await?;
    }
    sandbox.wait_until("all is applied", SOON, async || Ok(sandbox.position().await? == 9)).await?;
    let updated: Vec<i64> =
        select(&sandbox, "SELECT array_agg(inserted + updated ORDER BY sequence) FROM objects").await?;
    assert_eq!(updated, [5; 9], "each once, in order");
    let is_empty = async || support::is_empty(sandbox.sqs(), queue_url).await;
    sandbox.wait_until("the queue is empty", SOON, is_empty).await
}
