//! The importer's commands: their exit codes, what they write, and for whom.

use anyhow::Result;
use sandbox::{Sandbox, Setup};
use serde_json::Value;
use support::{
    faulty_api::{Answer, FaultyApi},
    importer, metadata, object_versions, put, queue_is_empty, retitle, start_nothing, told,
};

/// The exit code of a command with the stream's own settings.
async fn code(sandbox: &Sandbox, arguments: &[&str]) -> Result<Option<i32>> {
    Ok(importer(sandbox, &[], arguments).await?.status.code())
}

/// What a command says, for a snapshot.
async fn says(sandbox: &Sandbox, settings: &[(&'static str, &str)], arguments: &[&str]) -> Result<String> {
    let output = importer(sandbox, settings, arguments).await?;
    let missing = missing_queue(sandbox);
    Ok(told(sandbox, &output, &[(&sandbox.api.url(), "http://API/posts"), (&missing, "http://AWS/MISSING.fifo")]))
}

/// The URL of a queue that nobody made.
fn missing_queue(sandbox: &Sandbox) -> String {
    sandbox.queue_url().replace(".fifo", "-missing.fifo")
}

#[tokio::test]
async fn once_says_by_its_exit_code_whether_there_was_anything_new() -> Result<()> {
    let sandbox = start_nothing().await?;
    assert_eq!(code(&sandbox, &["once"]).await?, Some(0), "something was archived");
    assert_eq!(code(&sandbox, &["once"]).await?, Some(3), "there was nothing new");
    retitle(&sandbox, 1, "new");
    assert_eq!(code(&sandbox, &["once"]).await?, Some(0));
    let down = importer(&sandbox, &[("ARCHIVE_BUCKET", "no-such-bucket")], &["once"]).await?;
    assert_eq!(down.status.code(), Some(1), "it failed");
    assert_eq!(sandbox.end().await?, 2);
    Ok(())
}

#[tokio::test]
async fn again_archives_and_applies_what_did_not_change() -> Result<()> {
    let setup = Setup { posts: 3, importer: false, settings: vec![("CATCH_UP_INTERVAL", "1h")], ..Setup::default() };
    let sandbox = support::start(setup).await?;
    assert_eq!(code(&sandbox, &["once"]).await?, Some(0));
    sandbox.settled(support::SOON).await?;
    assert_eq!(code(&sandbox, &["once", "--again"]).await?, Some(0));
    sandbox.settled(support::SOON).await?;
    assert_eq!((sandbox.end().await?, sandbox.position().await?), (2, 2));
    assert_eq!(sandbox.body(1).await?, sandbox.body(2).await?);
    assert_eq!(code(&sandbox, &["once"]).await?, Some(3), "and no third time");
    Ok(())
}

#[tokio::test]
async fn once_that_could_not_ring_says_so_and_the_next_one_rings() -> Result<()> {
    let sandbox = start_nothing().await?;
    let missing = missing_queue(&sandbox);
    let output = importer(&sandbox, &[("QUEUE_URL", &missing)], &["once"]).await?;
    assert_eq!((output.status.code(), sandbox.end().await?), (Some(1), 1), "archived all the same");
    queue_is_empty(&sandbox).await?;
    assert_eq!(code(&sandbox, &["once"]).await?, Some(3));
    let received = sandbox.sqs().receive_message().queue_url(sandbox.queue_url()).wait_time_seconds(10).send().await?;
    assert_eq!(received.messages().len(), 1);
    Ok(())
}

#[tokio::test]
async fn list_shows_the_archive_as_a_table_and_as_json() -> Result<()> {
    let sandbox = start_nothing().await?;
    insta::assert_snapshot!("list_empty", says(&sandbox, &[], &["list"]).await?);
    assert_eq!(importer(&sandbox, &[], &["list", "--json"]).await?.stdout, b"");

    let with_etag = FaultyApi::saying([Answer::ok("[1]").with("ETag", "W/\"v1\"")]).await?;
    let paged = FaultyApi::start(|request| match request.query.as_str() {
        "" => Answer::ok("[1, 2]").with("Link", "<?page=2>; rel=next"),
        _ => Answer::ok("[3]"),
    })
    .await?;
    for api in [&with_etag, &paged] {
        importer(&sandbox, &[("SOURCE_URL", &api.url())], &["once"]).await?;
    }
    // A gap, as a lifecycle rule or a person leaves it.
    let (fourth, body) = (metadata(&sandbox, 3).await?, sandbox.body(3).await?);
    put(&sandbox, sandbox.bucket(), 5, &fourth, &body).await?;
    insta::assert_snapshot!("list", says(&sandbox, &[], &["list"]).await?);
    insta::assert_snapshot!("list_part", says(&sandbox, &[], &["list", "--from", "2", "--to", "3"]).await?);

    let output = importer(&sandbox, &[], &["list", "--json", "--from", "3", "--to", "900"]).await?;
    let lines: Vec<Value> =
        String::from_utf8(output.stdout)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let [third, missing, fifth] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(third["sha256"], metadata(&sandbox, 3).await?.sha256.to_string());
    assert_eq!((&third["page"], &third["last_page"], &third["snapshot"]), (&2.into(), &true.into(), &2.into()));
    assert_eq!(third["source_url"], format!("{}?page=2", paged.url()));
    assert_eq!((&missing["sequence"], &missing["problem"]), (&4.into(), &"missing".into()));
    assert_eq!(fifth["key"], "raw/posts/000/000/000/005.json");
    Ok(())
}

#[tokio::test]
async fn check_finds_nothing_wrong_with_what_works_and_changes_nothing() -> Result<()> {
    let sandbox = start_nothing().await?;
    insta::assert_snapshot!("check_empty", says(&sandbox, &[], &["check"]).await?);
    assert_eq!(sandbox.end().await?, 0, "it writes no object");
    code(&sandbox, &["once"]).await?;
    insta::assert_snapshot!("check", says(&sandbox, &[], &["check"]).await?);
    assert_eq!(sandbox.end().await?, 1);
    let listed = object_versions(&sandbox).await?;
    assert_eq!(listed.versions().len(), 1, "nor an old one anew");
    Ok(())
}

#[tokio::test]
async fn check_finds_the_parameter_of_an_api_that_shows_more() -> Result<()> {
    let sandbox = start_nothing().await?;
    let api = FaultyApi::start(|request| match request.parameter("page").as_deref() {
        None | Some("1") => Answer::ok(r#"{"total":3,"data":[{"id":1},{"id":2}]}"#),
        Some("2") => Answer::ok(r#"{"total":3,"data":[{"id":3}]}"#),
        Some(_) => Answer::ok("{}"),
    })
    .await?;
    let url = api.url();
    let settings = [("SOURCE_URL", &*url), ("RECORDS_AT", "/data")];
    let said = says(&sandbox, &settings, &["check"]).await?;
    assert!(said.contains("with page=2 other records come: set NEXT_PAGE=page+1, and page=1 in SOURCE_URL"), "{said}");
    let url = format!("{url}?page=1");
    let settings = [("SOURCE_URL", &*url), ("RECORDS_AT", "/data"), ("NEXT_PAGE", "page+1"), ("TOTALS", "ignore")];
    let output = importer(&sandbox, &settings, &["once"]).await?;
    assert_eq!((output.status.code(), sandbox.end().await?), (Some(0), 2), "an answer of `{{}}` has no records");
    Ok(())
}

#[tokio::test]
async fn check_tells_each_problem_with_its_remedy_and_goes_on() -> Result<()> {
    let sandbox = start_nothing().await?;
    let missing = missing_queue(&sandbox);
    insta::assert_snapshot!("check_empty_no_queue", says(&sandbox, &[("QUEUE_URL", &missing)], &["check"]).await?);
    code(&sandbox, &["once"]).await?;
    let nowhere = format!("{}/nowhere", sandbox.api.url());
    for (name, settings) in [
        ("check_api", ("SOURCE_URL", nowhere.as_str())),
        ("check_bucket", ("ARCHIVE_BUCKET", "no-such-bucket")),
        ("check_queue", ("QUEUE_URL", missing.as_str())),
        ("check_spool", ("SPOOL_DIR", "/no/such/folder")),
    ] {
        let said = says(&sandbox, &[settings], &["check"]).await?;
        insta::assert_snapshot!(name, said);
    }
    Ok(())
}
