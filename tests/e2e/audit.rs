//! `transformer audit` proves promise 1, or says where it is broken.

use anyhow::{Context, Result};
use sandbox::{Sandbox, Setup};
use serde_json::{Value, json};
use shared::object::{Metadata, Sequence, Sha256};
use support::{
    author::{Author, document},
    execute, metadata, put, start, transformer,
};
use uuid::Uuid;

/// An archive of six objects, of which five are applied: one quarantined, one skipped.
async fn six_objects() -> Result<Sandbox> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    for title in ["a", "b", "c"] {
        author.append(document(1..=3, title)).await?;
    }
    author.append("[{").await?;
    author.append(document(1..=3, "skipped")).await?;
    author.append(document(1..=3, "pending")).await?;
    let once = transformer(&sandbox, &[("SKIP", "5")], &["once", "--to", "5"]).await?;
    assert!(once.status.success(), "{}", String::from_utf8_lossy(&once.stderr));
    Ok(sandbox)
}

async fn audit(sandbox: &Sandbox, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
    let output = transformer(sandbox, &[], &[&["audit", "--json"], arguments].concat()).await?;
    let report =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.code(), report))
}

/// The problems that an audit finds, with the exit code that belongs to them.
async fn problems(sandbox: &Sandbox, arguments: &[&str]) -> Result<Vec<String>> {
    let (code, report) = audit(sandbox, arguments).await?;
    let problems = report["problems"].as_array().context("a list")?;
    assert_eq!(code, Some(if problems.is_empty() { 0 } else { 3 }), "{report}");
    Ok(problems
        .iter()
        .map(|problem| format!("{} {}", problem["sequence"], problem["what"].as_str().unwrap_or_default()))
        .collect())
}

async fn delete(sandbox: &Sandbox, sequence: u64) -> Result<()> {
    let key = Sequence::try_from(sequence)?.key(sandbox.stream());
    sandbox.s3().delete_object().bucket(sandbox.bucket()).key(key).send().await?;
    Ok(())
}

#[tokio::test]
async fn a_healthy_stream_is_told_in_numbers() -> Result<()> {
    let sandbox = six_objects().await?;
    for arguments in [&[][..], &["--deep"]] {
        let (code, report) = audit(&sandbox, arguments).await?;
        let expected = json!({ "position": 5, "end": 6, "applied": 3, "quarantined": 1, "skipped": 1, "pending": 1, "gone": 0,
            "problems": [] });
        assert_eq!((code, report), (Some(0), expected));
    }
    let table = transformer(&sandbox, &[], &["audit"]).await?;
    insta::assert_snapshot!(String::from_utf8(table.stdout)?);
    // What was deleted at the beginning, as by a lifecycle rule, is no problem for the table.
    delete(&sandbox, 1).await?;
    delete(&sandbox, 2).await?;
    let (code, report) = audit(&sandbox, &["--deep"]).await?;
    assert_eq!((code, &report["gone"], &report["problems"]), (Some(0), &json!(2), &json!([])));
    Ok(())
}

#[tokio::test]
async fn an_empty_stream_has_no_problems() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    assert_eq!(problems(&sandbox, &["--deep"]).await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn each_kind_of_problem_in_the_archive_is_found() -> Result<()> {
    let sandbox = six_objects().await?;
    let other = |ours: &Metadata| Metadata { observation: Uuid::now_v7(), ..ours.clone() };
    let originals = {
        let mut originals = Vec::new();
        for sequence in 1..=6 {
            originals.push((metadata(&sandbox, sequence).await?, sandbox.body(sequence).await?));
        }
        originals
    };
    let (third, sixth) = (&originals[2].0, &originals[5].0);
    for (sequence, change, deep, expected) in [
        (3, None, false, vec!["3 missing"]),
        (6, None, false, vec![]),
        (3, Some(other(third)), false, vec!["3 written_anew", "4 chain_broken"]),
        (3, Some(Metadata { sha256: Sha256([7; 32]), ..third.clone() }), false, vec!["3 written_anew"]),
        (6, Some(Metadata { archive_id: Uuid::new_v4(), ..sixth.clone() }), false, vec!["6 other_archive"]),
        (6, Some(Metadata { previous: Some(Uuid::now_v7()), ..sixth.clone() }), false, vec!["6 chain_broken"]),
        (6, Some(Metadata { sha256: Sha256([7; 32]), ..sixth.clone() }), false, vec![]),
        (6, Some(Metadata { sha256: Sha256([7; 32]), ..sixth.clone() }), true, vec!["6 other_bytes"]),
    ] {
        match &change {
            Some(metadata) => {
                put(&sandbox, sandbox.bucket(), sequence, metadata, &originals[usize::try_from(sequence)? - 1].1)
                    .await?;
            }
            None => delete(&sandbox, sequence).await?,
        }
        let arguments = if deep { &["--deep"][..] } else { &[] };
        assert_eq!(problems(&sandbox, arguments).await?, expected, "object {sequence}: {change:?}");
        let (metadata, body) = &originals[usize::try_from(sequence)? - 1];
        put(&sandbox, sandbox.bucket(), sequence, metadata, body).await?;
    }
    // A byte that turned in S3, under metadata that is right.
    put(&sandbox, sandbox.bucket(), 2, &originals[1].0, &originals[1].1.to_ascii_uppercase()).await?;
    assert_eq!(problems(&sandbox, &[]).await?, [""; 0]);
    assert_eq!(problems(&sandbox, &["--deep"]).await?, ["2 other_bytes"]);
    put(&sandbox, sandbox.bucket(), 2, &originals[1].0, &originals[1].1).await?;
    // Of a later release.
    let mut fields = sixth.encode()?;
    fields.insert("version".into(), "2".into());
    let key = Sequence::try_from(6)?.key(sandbox.stream());
    let newer = sandbox.s3().put_object().bucket(sandbox.bucket()).key(key).body(b"[]".to_vec().into());
    newer.set_metadata(Some(fields)).send().await?;
    assert_eq!(problems(&sandbox, &["--deep"]).await?, ["6 foreign"]);
    for sequence in [5, 6] {
        delete(&sandbox, sequence).await?;
    }
    assert_eq!(problems(&sandbox, &[]).await?, ["5 end_below_position"]);
    Ok(())
}

#[tokio::test]
async fn each_kind_of_problem_in_the_ledger_is_found() -> Result<()> {
    let sandbox = six_objects().await?;
    execute(&sandbox, "CREATE TABLE kept AS TABLE objects").await?;
    for (change, expected) in [
        ("DELETE FROM objects WHERE sequence = 2", "2 not_in_the_ledger"),
        ("UPDATE objects SET sequence = 6 WHERE sequence = 5", "5 not_in_the_ledger"),
        ("UPDATE objects SET observation = gen_random_uuid() WHERE sequence = 1", "1 written_anew"),
        ("UPDATE stream SET archive_id = gen_random_uuid()", "1 other_archive"),
    ] {
        execute(&sandbox, change).await?;
        let found = problems(&sandbox, &[]).await?;
        assert_eq!(found.first().map(String::as_str), Some(expected), "{change}: {found:?}");
        execute(&sandbox, "TRUNCATE objects; INSERT INTO objects TABLE kept").await?;
    }
    Ok(())
}
