//! Promise 2: the archive is the truth, and whoever tampers with it is noticed.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use sandbox::{Sandbox, Setup};
use shared::object::{Metadata, Sha256};
use support::{SOON, empty_bucket, hold_of, metadata, object_versions, put, readiness, retitle, select, start};
use uuid::Uuid;

#[tokio::test]
async fn the_archived_object_is_the_response_byte_for_byte() -> Result<()> {
    let sandbox = start(Setup { transformer: false, ..Setup::default() }).await?;
    sandbox.wait_until("an object is archived", SOON, async || Ok(sandbox.end().await? == 1)).await?;
    let response = reqwest::get(sandbox.api.url()).await?;
    let etag = response.headers()["etag"].to_str()?.to_owned();
    let served = response.bytes().await?;
    assert_eq!(sandbox.body(1).await?, served);

    let metadata = metadata(&sandbox, 1).await?;
    assert_eq!(metadata.etag, Some(etag));
    assert_eq!(metadata.source_url, sandbox.api.url());
    assert_eq!((metadata.previous, metadata.page, metadata.last_page), (None, 1, true));
    assert_eq!(metadata.snapshot_sha256, Sha256::of_pages(&[metadata.sha256]));
    Ok(())
}

#[tokio::test]
async fn an_unchanged_poll_writes_nothing_anywhere() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    support::queue_is_empty(&sandbox).await?;
    // From here on a message would stay in the queue.
    sandbox.transformer.terminate().await?;
    let written = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables";
    let before: i64 = select(&sandbox, written).await?;

    let mut events = sandbox.events().subscribe();
    let mut unchanged = 0;
    while unchanged < 5 {
        unchanged += usize::from(events.recv().await?.message == "unchanged");
    }
    let versions = object_versions(&sandbox).await?;
    assert_eq!(versions.versions().len(), 1, "nothing new in S3");
    let received = sandbox.sqs().receive_message().queue_url(sandbox.queue_url()).send().await?;
    assert_eq!(received.messages(), [], "nothing new in the queue");
    assert_eq!(select::<i64>(&sandbox, written).await?, before, "nothing new in Postgres");
    Ok(())
}

/// A stream that has applied three objects.
async fn three_objects() -> Result<Sandbox> {
    let sandbox = start(Setup { posts: 10, ..Setup::default() }).await?;
    sandbox.settled(SOON).await?;
    for title in ["second", "third"] {
        retitle(&sandbox, 1, title);
        sandbox.settled(SOON).await?;
    }
    assert_eq!(sandbox.position().await?, 3);
    Ok(sandbox)
}

/// What a hold must not touch.
async fn fingerprint(sandbox: &Sandbox) -> Result<String> {
    let everything = "SELECT md5((SELECT string_agg(posts::text, ',' ORDER BY id) FROM posts)
        || (SELECT string_agg(objects::text, ',' ORDER BY sequence) FROM objects) || (SELECT stream::text FROM stream))";
    select(sandbox, everything).await
}

#[tokio::test]
async fn an_emptied_bucket_holds_the_transformer_and_touches_nothing() -> Result<()> {
    let sandbox = three_objects().await?;
    let before = fingerprint(&sandbox).await?;
    let ours = metadata(&sandbox, 1).await?.archive_id;
    empty_bucket(&sandbox).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("below the position, sequence 3"), "{why}");

    // The importer begins a new archive, with the next change at the latest or when it looks again, and that changes nothing here.
    retitle(&sandbox, 1, "fourth");
    let is_new = async || Ok(metadata(&sandbox, 1).await?.archive_id != ours);
    sandbox.wait_until("a new archive has begun", SOON, is_new).await?;
    let still = "the transformer has seen the new archive";
    sandbox
        .wait_until(still, SOON, async || {
            // Of one object, or of two where the importer has looked before the change.
            let said = readiness(&sandbox.transformer).await?.1;
            Ok(["1", "2"].iter().any(|end| said.contains(&format!("ends at sequence {end}, below the position"))))
        })
        .await?;
    assert_eq!(fingerprint(&sandbox).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_forked_copy_holds_the_transformer_until_the_old_archive_is_back() -> Result<()> {
    let sandbox = three_objects().await?;
    let before = fingerprint(&sandbox).await?;
    let fork = format!("{}-fork", sandbox.bucket());
    sandbox.s3().create_bucket().bucket(&fork).send().await?;
    for sequence in 1..=3 {
        let ours = metadata(&sandbox, sequence).await?;
        // The copy went its own way after object 2.
        let observation = if sequence == 3 { Uuid::now_v7() } else { ours.observation };
        put(&sandbox, &fork, sequence, &Metadata { observation, ..ours }, &sandbox.body(sequence).await?).await?;
    }
    sandbox.transformer.restart_with(&[("ARCHIVE_BUCKET", &fork)]).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("the object at the position, sequence 3, was written anew"), "{why}");
    assert_eq!(fingerprint(&sandbox).await?, before);

    sandbox.transformer.restart_with(&[("ARCHIVE_BUCKET", sandbox.bucket())]).await?;
    retitle(&sandbox, 1, "fourth");
    sandbox.settled(SOON).await
}

#[tokio::test]
async fn a_fork_that_is_longer_is_noticed_by_the_chain() -> Result<()> {
    let sandbox = three_objects().await?;
    sandbox.importer.terminate().await?;
    let before = fingerprint(&sandbox).await?;
    let third = metadata(&sandbox, 3).await?;
    let fourth = Metadata { observation: Uuid::now_v7(), previous: Some(Uuid::now_v7()), ..third };
    put(&sandbox, sandbox.bucket(), 4, &fourth, &sandbox.body(3).await?).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("the archive was forked: the object at sequence 4 follows observation"), "{why}");
    assert_eq!(fingerprint(&sandbox).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_newest_object_that_is_written_anew_holds_the_transformer() -> Result<()> {
    let sandbox = three_objects().await?;
    let before = fingerprint(&sandbox).await?;
    let third = metadata(&sandbox, 3).await?;
    let anew = Metadata { observation: Uuid::now_v7(), sha256: Sha256([7; 32]), ..third };
    put(&sandbox, sandbox.bucket(), 3, &anew, b"[]").await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("sequence 3, was written anew"), "{why}");
    assert_eq!(fingerprint(&sandbox).await?, before);
    Ok(())
}

#[tokio::test]
async fn an_object_missing_inside_the_archive_holds_until_it_is_back() -> Result<()> {
    let sandbox = three_objects().await?;
    sandbox.transformer.terminate().await?;
    for title in ["fourth", "fifth"] {
        let end = sandbox.end().await?;
        retitle(&sandbox, 1, title);
        sandbox.wait_until("it is archived", SOON, async || Ok(sandbox.end().await? == end + 1)).await?;
    }
    sandbox.importer.terminate().await?;
    let (lost, body) = (metadata(&sandbox, 4).await?, sandbox.body(4).await?);
    let key = shared::object::Sequence::try_from(4)?.key(sandbox.stream());
    sandbox.s3().delete_object().bucket(sandbox.bucket()).key(&key).send().await?;

    sandbox.transformer.start();
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("the object at sequence 4 is missing, and the archive goes on to 5"), "{why}");
    assert_eq!(sandbox.position().await?, 3);
    put(&sandbox, sandbox.bucket(), 4, &lost, &body).await?;
    sandbox.settled(SOON).await
}

#[tokio::test]
async fn two_importers_append_one_chain() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    let second = support::second(&sandbox, "importer").await?;
    for round in 0..10 {
        retitle(&sandbox, 1, &format!("round {round}"));
        sandbox.settled(SOON).await?;
    }
    let ids: HashSet<_> = [metadata(&sandbox, 1).await?, metadata(&sandbox, sandbox.end().await?).await?]
        .into_iter()
        .map(|metadata| metadata.archive_id)
        .collect();
    assert_eq!(ids.len(), 1, "one archive");
    support::assert_whole(&sandbox).await?;
    second.terminate().await?;
    // Whoever is left goes on.
    sandbox.importer.terminate().await?;
    second.start();
    retitle(&sandbox, 1, "by the second alone");
    sandbox.settled(SOON + Duration::from_secs(1)).await
}
