//! `SKIP`: what a person does without, and what nobody but a person may decide.

use anyhow::{Context, Result};
use sandbox::{Sandbox, Setup};
use shared::object::Sequence;
use support::{
    applied,
    author::{Author, document},
    hold_of, metadata, select, start,
};

async fn follow(settings: Vec<(&'static str, &'static str)>) -> Result<Sandbox> {
    start(Setup { posts: 0, importer: false, transformer: false, settings, ..Setup::default() }).await
}

async fn delete(sandbox: &Sandbox, sequence: u64) -> Result<()> {
    let key = Sequence::try_from(sequence)?.key(sandbox.stream());
    sandbox.s3().delete_object().bucket(sandbox.bucket()).key(key).send().await?;
    Ok(())
}

/// A line an object: number, outcome, whether its identity is known, reason.
async fn ledger(sandbox: &Sandbox) -> Result<Vec<String>> {
    let lines =
        "SELECT array_agg(concat_ws(' ', sequence, outcome, CASE WHEN observation IS NULL THEN 'unknown' END, reason)
        ORDER BY sequence) FROM objects";
    select(sandbox, lines).await
}

#[tokio::test]
async fn present_and_missing_objects_are_skipped_one_and_several() -> Result<()> {
    // Which objects are missing, what is skipped, and the ledger.
    let (skipped, missing) = ("skipped SKIP names it", "skipped unknown SKIP names it, and it is missing");
    for (deleted, skip, expected) in [
        (&[][..], "2", ["loaded", skipped, "loaded", "loaded", "loaded"]),
        (&[], "1", [skipped, "loaded", "loaded", "loaded", "loaded"]),
        (&[], "2-4", ["loaded", skipped, skipped, skipped, "loaded"]),
        (&[3], "3", ["loaded", "loaded", missing, "loaded", "loaded"]),
        (&[1], "1", [missing, "loaded", "loaded", "loaded", "loaded"]),
        (&[1, 2, 3], "1-3", [missing, missing, missing, "loaded", "loaded"]),
        (&[2, 4], "2,3,4", ["loaded", missing, skipped, missing, "loaded"]),
        (&[1], "1-5", [missing, skipped, skipped, skipped, skipped]),
    ] {
        let sandbox = follow(vec![("SKIP", skip)]).await?;
        let mut author = Author::of(&sandbox).await?;
        for title in ["a", "b", "c", "d", "e"] {
            author.append(document([1], title)).await?;
        }
        for sequence in deleted {
            delete(&sandbox, *sequence).await?;
        }
        sandbox.transformer.start();
        applied(&sandbox, 5).await?;
        let expected: Vec<_> = (1..).zip(expected).map(|(number, line)| format!("{number} {line}")).collect();
        assert_eq!(ledger(&sandbox).await?, expected, "{deleted:?} are missing, SKIP={skip}");
        // The chain goes on behind them.
        author.append(document([1], "f")).await?;
        applied(&sandbox, 6).await?;
        assert_eq!(sandbox.rows().await?[0].title, "f 1");
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_object_holds_until_a_person_does_without_it() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    for title in ["a", "b", "c"] {
        author.append(document([1], title)).await?;
    }
    delete(&sandbox, 1).await?;
    sandbox.transformer.start();
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("the object at sequence 1 is missing, and the archive goes on to 3"), "{why}");
    assert!(why.contains("or do without it with SKIP=1"), "{why}");
    sandbox.transformer.restart_with(&[("SKIP", "1")]).await?;
    applied(&sandbox, 3).await
}

#[tokio::test]
async fn what_is_skipped_beyond_the_end_waits_until_it_is_there() -> Result<()> {
    let sandbox = follow(vec![("SKIP", "2,5-9")]).await?;
    let mut author = Author::of(&sandbox).await?;
    sandbox.transformer.start();
    for title in ["a", "b", "c"] {
        let number = author.append(document([1], title)).await?;
        applied(&sandbox, number).await?;
    }
    assert_eq!(ledger(&sandbox).await?, ["1 loaded", "2 skipped SKIP names it", "3 loaded"]);
    Ok(())
}

#[tokio::test]
async fn an_object_of_a_newer_release_holds_the_transformer() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    for title in ["a", "b", "c"] {
        author.append(document([1], title)).await?;
    }
    let mut fields = metadata(&sandbox, 2).await?.encode()?;
    fields.insert("version".into(), "2".into());
    let key = Sequence::try_from(2)?.key(sandbox.stream());
    let put = sandbox.s3().put_object().bucket(sandbox.bucket()).key(&key).body(b"[]".to_vec().into());
    put.set_metadata(Some(fields)).send().await?;
    sandbox.transformer.start();
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains(&key) && why.contains("version 2, and this program reads up to 1"), "{why}");
    assert_eq!(sandbox.position().await?, 1);

    // It can be done without, as one that is missing.
    sandbox.transformer.restart_with(&[("SKIP", "2")]).await?;
    applied(&sandbox, 3).await?;
    let second = ledger(&sandbox).await?.into_iter().nth(1).context("a line")?;
    assert!(second.starts_with("2 skipped"), "{second}");
    Ok(())
}

#[tokio::test]
async fn a_copy_of_another_object_is_skipped_as_well() -> Result<()> {
    let sandbox = follow(vec![("SKIP", "3")]).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document([1], "a")).await?;
    author.append(document([1], "b")).await?;
    let second = metadata(&sandbox, 2).await?;
    author.append_with(document([1], "b"), |copy| *copy = second.clone()).await?;
    author.append(document([1], "d")).await?;
    sandbox.transformer.start();
    applied(&sandbox, 4).await?;
    let third = "3 skipped unknown SKIP names it, and it does not continue the archive";
    assert_eq!(ledger(&sandbox).await?, ["1 loaded", "2 loaded", third, "4 loaded"]);
    Ok(())
}
