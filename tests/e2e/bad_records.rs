//! Promise 6: one bad record stops nothing, and one broken object neither.

use anyhow::Result;
use sandbox::Setup;
use sha2::Digest;
use shared::object::{Metadata, Sha256};
use support::{
    SOON,
    faulty_api::{Answer, FaultyApi},
    metadata, put, retitle, select, start,
};
use uuid::Uuid;

#[tokio::test]
async fn a_bad_record_is_quarantined_with_its_reason_and_the_others_load() -> Result<()> {
    let sandbox = start(Setup { posts: 10, importer: false, ..Setup::default() }).await?;
    let client = reqwest::Client::new();
    for (id, patch) in [(3, r#"{"title": 7}"#), (5, r#"{"body": "a\u0000b"}"#)] {
        let request = client.patch(format!("{}/{id}", sandbox.api.url())).header("content-type", "application/json");
        assert_eq!(request.body(patch).send().await?.status().as_u16(), 200);
    }
    sandbox.importer.start();
    sandbox.wait_until("the object is applied", SOON, async || Ok(sandbox.position().await? == 1)).await?;

    let quarantined: Vec<String> = select(
        &sandbox,
        "SELECT array_agg(concat_ws(' ', index, id, reason) ORDER BY index) FROM quarantined_records WHERE sequence = 1",
    )
    .await?;
    assert_eq!(
        quarantined,
        [
            "2 3 column `title` (text from /title): `7` is no text",
            "4 5 column `body` (text from /body): it holds U+0000, which Postgres cannot store"
        ]
    );
    let raw: Vec<u8> = select(&sandbox, "SELECT raw FROM quarantined_records WHERE index = 2").await?;
    let body = sandbox.body(1).await?;
    assert!(body.windows(raw.len()).any(|window| window == raw), "the raw bytes are those of the object");
    assert_eq!(sandbox.count().await?, 8);
    let ledger: String =
        select(&sandbox, "SELECT outcome || ' ' || records || ' ' || quarantined FROM objects").await?;
    assert_eq!(ledger, "loaded 10 2");

    // The next observation brings the mended record in.
    retitle(&sandbox, 3, "mended");
    sandbox.wait_until("the mended post is there", SOON, async || Ok(sandbox.count().await? == 9)).await
}

#[tokio::test]
async fn a_record_that_is_no_json_is_quarantined_alone_also_where_a_record_is_a_line() -> Result<()> {
    let post = |id: u32, title: &str| format!(r#"{{"userId":1,"id":{id},"title":{title},"body":"b"}}"#);
    let posts = [post(1, "\"a\""), post(2, "NaN"), post(3, "\"\u{1}\""), post(4, "\"d\"")];
    for (body, index) in [(format!("[{}]", posts.join(",")), 1), (posts.join("\n"), 2)] {
        let api = FaultyApi::saying([Answer::ok(body)]).await?;
        let sandbox = start(Setup { importer: false, ..Setup::default() }).await?;
        sandbox.importer.restart_with(&[("SOURCE_URL", &api.url())]).await?;
        sandbox.wait_until("the object is applied", SOON, async || Ok(sandbox.position().await? == 1)).await?;
        assert_eq!(sandbox.count().await?, 2, "of body {index}");
        let reasons: Vec<String> =
            select(&sandbox, "SELECT array_agg(index || ' ' || reason ORDER BY index) FROM quarantined_records")
                .await?;
        assert!(
            reasons[0].starts_with("1 expected value") && reasons[1].starts_with("2 control character"),
            "{reasons:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_broken_object_is_quarantined_whole_and_the_archive_is_followed_on() -> Result<()> {
    let sandbox = start(Setup { posts: 10, ..Setup::default() }).await?;
    sandbox.settled(SOON).await?;
    sandbox.importer.terminate().await?;
    let before = sandbox.rows().await?;

    let body = b"[{\"id\":1,\"userId\":1,\"title\":\"half\",\"body\":\"\"},";
    let first = metadata(&sandbox, 1).await?;
    let sha256 = Sha256(sha2::Sha256::digest(body).into());
    let broken = Metadata { observation: Uuid::now_v7(), previous: Some(first.observation), sha256, ..first };
    put(&sandbox, sandbox.bucket(), 2, &broken, body).await?;
    // And one whose bytes are not those that its metadata speaks of.
    let (observation, previous) = (Uuid::now_v7(), Some(broken.observation));
    put(&sandbox, sandbox.bucket(), 3, &Metadata { observation, previous, ..broken }, b"[]").await?;
    sandbox.wait_until("both are quarantined", SOON, async || Ok(sandbox.position().await? == 3)).await?;

    let reasons: Vec<String> = select(
        &sandbox,
        "SELECT array_agg(outcome || ': ' || reason ORDER BY sequence) FROM objects WHERE sequence > 1",
    )
    .await?;
    assert_eq!(reasons[0], "quarantined: the document is broken from byte 46 on: it ends inside the array");
    assert!(reasons[1].starts_with("quarantined: its bytes are not those that were archived"), "{}", reasons[1]);
    assert_eq!(sandbox.rows().await?, before, "half an object is not applied");

    sandbox.importer.start();
    retitle(&sandbox, 1, "after the broken ones");
    sandbox.settled(SOON).await
}
