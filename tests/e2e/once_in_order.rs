//! Promise 3: redelivery, resends and two transformers at once change nothing.

use anyhow::Result;
use sandbox::Setup;
use shared::{object::Sequence, pointer::Pointer};
use support::{SOON, assert_whole, metadata, queue_is_empty, retitle, second, select, send, start};

#[tokio::test]
async fn old_repeated_and_strange_messages_change_nothing() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    retitle(&sandbox, 7, "another title");
    sandbox.settled(SOON).await?;

    let pointer = |sequence: u64| async move { anyhow::Ok(Sequence::try_from(sequence)?) };
    for number in [2, 1, 1, 2] {
        let sequence = pointer(number).await?;
        send(&sandbox, &Pointer::new(sandbox.stream(), sequence, &metadata(&sandbox, number).await?).encode()).await?;
    }
    let beyond = Pointer::new(sandbox.stream(), pointer(900).await?, &metadata(&sandbox, 2).await?).encode();
    for strange in ["", "ding", "{}", &beyond, &beyond.replace("\"posts\"", "\"other\""), &beyond.replace(":1,", ":2,")]
    {
        // SQS takes no empty message.
        send(&sandbox, if strange.is_empty() { " " } else { strange }).await?;
    }
    queue_is_empty(&sandbox).await?;
    assert_whole(&sandbox).await?;
    assert_eq!(sandbox.end().await?, 2);
    assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM posts WHERE sequence = 1").await?, 99);
    Ok(())
}

#[tokio::test]
async fn two_transformers_apply_each_object_once() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    let other = second(&sandbox, "transformer").await?;
    for round in 0..20 {
        retitle(&sandbox, round + 1, &format!("round {round}"));
        sandbox.wait_until("it is archived", SOON, async || Ok(sandbox.end().await? > round)).await?;
    }
    assert_whole(&sandbox).await?;
    // The other one takes over.
    sandbox.transformer.stop().await?;
    retitle(&sandbox, 50, "by the other alone");
    assert_whole(&sandbox).await?;
    assert!(other.pid().is_some());
    Ok(())
}

#[tokio::test]
async fn a_lock_that_another_holds_is_not_waited_for() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    let mut connection = sandbox.connect().await?;
    let mut transaction = sqlx::Connection::begin(&mut connection).await?;
    sqlx::query("SELECT FROM stream FOR UPDATE").execute(&mut *transaction).await?;
    retitle(&sandbox, 7, "another title");
    let stands_by = "the transformer stands by";
    sandbox
        .wait_until(stands_by, SOON, async || {
            Ok(support::readiness(&sandbox.transformer).await? == (200, "standing by".into()))
        })
        .await?;
    transaction.rollback().await?;
    assert_whole(&sandbox).await
}
