//! Promise 5: restore last night's backup, start the transformer, and the table is current.

use anyhow::Result;
use sandbox::Setup;
use support::{SOON, assert_whole, queue_is_empty, retitle, start};

#[tokio::test]
async fn a_restored_database_catches_up_without_any_message() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    let backup = sandbox.back_up().await?;
    for round in 0..5 {
        retitle(&sandbox, round + 1, &format!("round {round}"));
        sandbox.settled(SOON).await?;
    }
    let before = sandbox.rows().await?;
    sandbox.importer.terminate().await?;
    // A look may have been faster than the last message.
    queue_is_empty(&sandbox).await?;
    sandbox.transformer.terminate().await?;
    sandbox.restore(&backup).await?;
    assert_eq!(sandbox.position().await?, 1, "the position went back with the rows");

    sandbox.transformer.start();
    assert_whole(&sandbox).await?;
    assert_eq!(sandbox.position().await?, 6);
    assert_eq!(sandbox.rows().await?, before);
    Ok(())
}

#[tokio::test]
async fn a_database_restored_under_a_running_transformer_catches_up() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    let backup = sandbox.back_up().await?;
    retitle(&sandbox, 1, "after the backup");
    sandbox.settled(SOON).await?;
    sandbox.restore(&backup).await?;
    assert_whole(&sandbox).await?;
    assert_eq!(sandbox.transformer.restarts(), 0, "it lives through it");
    Ok(())
}
