//! Promise 4: purge the queue, lose it, delete it: the table ends the same.

use anyhow::Result;
use aws_sdk_sqs::types::QueueAttributeName;
use sandbox::Setup;
use support::{SOON, assert_whole, retitle, start};

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
    // The bell is deaf, and the idle look is not.
    assert_whole(&sandbox).await?;
    let name = sandbox.queue_url().rsplit('/').next().expect("a queue's URL ends with its name");
    sandbox.sqs().create_queue().queue_name(name).attributes(QueueAttributeName::FifoQueue, "true").send().await?;
    retitle(&sandbox, 2, "with the new queue");
    assert_whole(&sandbox).await?;
    let ready = "both are ready again";
    sandbox
        .wait_until(ready, SOON, async || {
            let states =
                [support::readiness(&sandbox.importer).await?, support::readiness(&sandbox.transformer).await?];
            Ok(states.iter().all(|(status, _)| *status == 200))
        })
        .await
}
