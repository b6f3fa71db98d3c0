//! A hole in the archive is noticed by whoever comes to it, with or without a message, and an emptied bucket by every command.

use anyhow::Result;
use sandbox::{Program, Sandbox, Setup};
use shared::object::Sequence;
use support::{
    SOON,
    author::{Author, document},
    empty_bucket, hold_of,
    proxy::Proxy,
    queue_is_empty, readiness, retitle, start,
};

/// Five objects, of which the third was deleted, and a table that has applied `position` of them.
async fn a_stream_with_a_hole() -> Result<Sandbox> {
    let sandbox = start(Setup { posts: 5, ..Setup::default() }).await?;
    for number in 1..=5 {
        retitle(&sandbox, 1, &format!("title {number}"));
        sandbox.settled(SOON).await?;
    }
    sandbox.importer.terminate().await?;
    queue_is_empty(&sandbox).await?;
    sandbox.transformer.terminate().await?;
    let key = Sequence::try_from(3)?.key(sandbox.stream());
    sandbox.s3().delete_object().bucket(sandbox.bucket()).key(key).send().await?;
    Ok(sandbox)
}

#[tokio::test]
async fn a_rebuild_that_comes_to_a_hole_fails_and_says_where() -> Result<()> {
    let sandbox = a_stream_with_a_hole().await?;
    let schema = ["--database-schema", "rebuilt"];
    assert!(sandbox.run(Program::Transformer, &[&["migrate"], &schema[..]].concat()).await?.status.success());
    let once = sandbox.run(Program::Transformer, &[&["once"], &schema[..]].concat()).await?;
    let log = String::from_utf8_lossy(&once.stderr);
    assert_eq!(once.status.code(), Some(1), "{log}");
    assert!(log.contains("the object at sequence 3 is missing, and the archive goes on to"), "{log}");
    // Up to the hole it did its work.
    let at: i64 = support::select(&sandbox, "SELECT position FROM rebuilt.stream").await?;
    assert_eq!(at, 2);
    let to = sandbox.run(Program::Transformer, &[&["once", "--to", "2"], &schema[..]].concat()).await?;
    assert!(to.status.success(), "what was asked for is there");
    Ok(())
}

#[tokio::test]
async fn a_restored_database_that_comes_to_a_hole_holds_without_any_message() -> Result<()> {
    let sandbox = start(Setup { posts: 5, ..Setup::default() }).await?;
    sandbox.settled(SOON).await?;
    let backup = sandbox.back_up().await?;
    for number in 2..=4 {
        retitle(&sandbox, 1, &format!("title {number}"));
        sandbox.settled(SOON).await?;
    }
    sandbox.importer.terminate().await?;
    queue_is_empty(&sandbox).await?;
    let key = Sequence::try_from(3)?.key(sandbox.stream());
    sandbox.s3().delete_object().bucket(sandbox.bucket()).key(key).send().await?;
    // The transformer lives through it, and has seen the end of the archive before.
    sandbox.restore(&backup).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("the object at sequence 3 is missing"), "{why}");
    Ok(())
}

#[tokio::test]
async fn an_object_that_went_missing_before_it_was_applied_is_held_for_though_no_message_tells_of_it() -> Result<()> {
    let setup = Setup { posts: 0, importer: false, transformer: false, ..Setup::default() };
    let sandbox = start(setup).await?;
    let s3 = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    let settings = [("CATCH_UP_INTERVAL", "200ms"), ("AWS_ENDPOINT_URL_S3", &*s3.url())];
    sandbox.transformer.restart_with(&settings).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=3, "first")).await?;
    sandbox.wait_until("it is applied", SOON, async || Ok(sandbox.position().await? == 1)).await?;
    queue_is_empty(&sandbox).await?;
    // The end is known now, and looked at in vain: the second object goes before its transformer sees it.
    sandbox.wait_until("it is ready", SOON, async || Ok(readiness(&sandbox.transformer).await?.0 == 200)).await?;
    author.skip_a_number();
    author.append_silently(document(1..=3, "third")).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("the object at sequence 2 is missing, and the archive goes on to 3"), "{why}");
    // It stays so, look after look.
    let ready_again = || sandbox.transformer.log_lines().iter().filter(|line| line["message"] == "ready again").count();
    let before = s3.sent();
    // A look at the archive is five requests or more, of half a kilobyte or more.
    sandbox.wait_until("it has looked again and again", SOON, async || Ok(s3.sent() > before + 60_000)).await?;
    assert_eq!((ready_again(), sandbox.position().await?), (0, 1));
    Ok(())
}

#[tokio::test]
async fn audit_and_check_say_that_a_bucket_was_emptied() -> Result<()> {
    let sandbox = start(Setup { posts: 5, ..Setup::default() }).await?;
    sandbox.settled(SOON).await?;
    sandbox.importer.terminate().await?;
    sandbox.transformer.terminate().await?;
    empty_bucket(&sandbox).await?;
    let audit = sandbox.run(Program::Transformer, &["audit"]).await?;
    let text = String::from_utf8_lossy(&audit.stdout);
    assert_eq!(audit.status.code(), Some(3), "{text}");
    assert!(text.contains("is the position, and the archive ends before it"), "{text}");
    let check = sandbox.run(Program::Transformer, &["check"]).await?;
    let text = String::from_utf8_lossy(&check.stdout);
    assert_eq!(check.status.code(), Some(3), "{text}");
    assert!(text.contains("the archive ends at nothing, below the position"), "{text}");
    Ok(())
}

#[tokio::test]
async fn other_peoples_files_are_not_the_archive() -> Result<()> {
    let sandbox = start(Setup { posts: 5, ..Setup::default() }).await?;
    sandbox.settled(SOON).await?;
    for key in ["raw/posts/999.txt", "raw/posts/999.json", "raw/posts/000/000/000/900.json.bak", "raw/posts/readme/x"] {
        sandbox.s3().put_object().bucket(sandbox.bucket()).key(key).send().await?;
    }
    assert_eq!(sandbox.end().await?, 1);
    sandbox.importer.kill();
    sandbox.transformer.kill();
    retitle(&sandbox, 1, "beside them");
    support::assert_whole(&sandbox).await
}
