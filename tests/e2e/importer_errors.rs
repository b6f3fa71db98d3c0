//! Typical mistakes of a new user, each with the words that the importer has for it: what was tried, where, what came back, and
//! what to do.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use jiff::ToSpan;
use sandbox::Sandbox;
use support::{
    faulty_api::{Answer, FaultyApi},
    importer, start_nothing, told,
};
use tokio::process::Command;

/// `importer once`, as a snapshot.
async fn once(sandbox: &Sandbox, settings: &[(&'static str, &str)], names: &[(&str, &str)]) -> Result<String> {
    let output = importer(sandbox, settings, &["once"]).await?;
    Ok(told(sandbox, &output, names))
}

/// `importer once` with an API that answers so.
async fn with_api(sandbox: &Sandbox, answer: Answer, settings: &[(&'static str, &str)]) -> Result<String> {
    let api = FaultyApi::saying([answer]).await?;
    let url = api.url();
    let mut all = vec![("SOURCE_URL", url.as_str())];
    all.extend_from_slice(settings);
    once(sandbox, &all, &[(&url, "http://API/posts")]).await
}

/// `importer once` with an S3 that answers so.
async fn with_s3(sandbox: &Sandbox, status: u16, code: &str, message: &str) -> Result<String> {
    with_s3_saying(sandbox, s3_error(status, code, message)).await
}

fn s3_error(status: u16, code: &str, message: &str) -> Answer {
    let error = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    Answer::ok(error).with_status(status)
}

async fn with_s3_saying(sandbox: &Sandbox, answer: Answer) -> Result<String> {
    let s3 = FaultyApi::saying([answer]).await?;
    let url = s3.url().replace("/posts", "");
    once(sandbox, &[("AWS_ENDPOINT_URL_S3", &url)], &[(&url, "http://S3")]).await
}

#[tokio::test]
async fn the_api_is_not_what_was_thought() -> Result<()> {
    let sandbox = start_nothing().await?;
    let page = Answer::ok("<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>");
    insta::assert_snapshot!("api_html", with_api(&sandbox, page, &[]).await?);
    insta::assert_snapshot!("api_empty", with_api(&sandbox, Answer::ok(""), &[]).await?);
    insta::assert_snapshot!("api_404", with_api(&sandbox, Answer::status(404), &[]).await?);
    insta::assert_snapshot!("api_401", with_api(&sandbox, Answer::status(401), &[]).await?);
    insta::assert_snapshot!("api_403", with_api(&sandbox, Answer::status(403), &[]).await?);
    let busy = Answer::status(429).with("Retry-After", 3600);
    insta::assert_snapshot!("api_429", with_api(&sandbox, busy, &[]).await?);
    let long = with_api(&sandbox, Answer::posts(10_001), &[("MAX_BODY", "10000")]).await?;
    insta::assert_snapshot!("api_too_long", long);
    let circle = Answer::status(302).with("Location", "/posts");
    insta::assert_snapshot!("api_endless_redirect", with_api(&sandbox, circle, &[]).await?);
    let away = Answer::status(301).with("Location", "https://www.example.org/posts");
    insta::assert_snapshot!("api_redirect_away", with_api(&sandbox, away, &[]).await?);
    let packed = Answer::ok("[]").with("Content-Encoding", "compress");
    insta::assert_snapshot!("api_encoding", with_api(&sandbox, packed, &[]).await?);
    let mislabelled = Answer::ok("[{\"id\":1}]").with("Content-Encoding", "gzip");
    insta::assert_snapshot!("api_mislabelled", with_api(&sandbox, mislabelled, &[]).await?);
    let slow = Answer::ok("[]").held_by(&Arc::default());
    insta::assert_snapshot!("api_too_slow", with_api(&sandbox, slow, &[("SOURCE_TIMEOUT", "200ms")]).await?);
    let rows = Answer::ok(r#"[["id","title"],[1,"a"],[2,"b"]]"#);
    insta::assert_snapshot!("api_rows", with_api(&sandbox, rows, &[]).await?);
    let beside = Answer::ok(r#"[{"page":1,"pages":6},[{"id":1},{"id":2}]]"#);
    insta::assert_snapshot!("api_records_beside_something", with_api(&sandbox, beside, &[]).await?);
    let by_id = Answer::ok(r#"{"1":{"title":"a"},"2":{"title":"b"}}"#);
    insta::assert_snapshot!("api_records_by_id", with_api(&sandbox, by_id, &[]).await?);
    let elsewhere = Answer::ok(r#"{"meta":{},"data":[{"id":1,"title":"a"}]}"#);
    insta::assert_snapshot!("api_records_elsewhere", with_api(&sandbox, elsewhere, &[]).await?);
    let wrong = Answer::ok(r#"{"ok":false,"error":"token_revoked"}"#);
    insta::assert_snapshot!("api_error", with_api(&sandbox, wrong, &[]).await?);
    let used_up = Answer::status(403).with("X-RateLimit-Remaining", 0).with("X-RateLimit-Reset", 3600);
    insta::assert_snapshot!("api_budget_used_up", with_api(&sandbox, used_up, &[]).await?);
    assert_eq!(sandbox.end().await?, 0);
    Ok(())
}

#[tokio::test]
async fn the_api_is_not_where_it_was_thought() -> Result<()> {
    let sandbox = start_nothing().await?;
    let said = once(&sandbox, &[("SOURCE_URL", "https://api.invalid/posts")], &[]).await?;
    // The rest is the name server's, in words that differ.
    let said = said.split("lookup address").next().context("split gives one at least")?.to_owned();
    insta::assert_snapshot!("api_no_such_host", said);
    let plain = once(&sandbox, &[("SOURCE_URL", "http://api.example.org/posts?token=s3cret")], &[]).await?;
    insta::assert_snapshot!("api_http", plain);
    // Port 9 is reserved for a service that nobody runs.
    insta::assert_snapshot!("api_refused", once(&sandbox, &[("SOURCE_URL", "http://127.0.0.1:9/posts")], &[]).await?);
    insta::assert_snapshot!("api_header_file", once(&sandbox, &[("SOURCE_HEADER_FILE", "/no/such/file")], &[]).await?);
    Ok(())
}

#[tokio::test]
async fn there_is_no_room_for_an_answer() -> Result<()> {
    let sandbox = start_nothing().await?;
    insta::assert_snapshot!("spool_missing", once(&sandbox, &[("SPOOL_DIR", "/no/such/folder")], &[]).await?);

    let api = FaultyApi::saying([Answer::posts(2 << 20)]).await?;
    let mut settings = sandbox.settings().clone();
    settings.set(&[("SOURCE_URL", &api.url()), ("LOG_FORMAT", "json")]);
    // A file system of 1 MiB that nobody else sees, and that ends with the importer.
    let may_mount = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output().await;
    if may_mount.is_ok_and(|output| output.status.success()) {
        let mut shell = sandbox.world().program(Path::new("unshare"), &settings);
        shell.args(["--mount", "sh", "-c", r#"mount -t tmpfs -o size=1m none "$SPOOL_DIR" && exec "$0" once"#]);
        shell.arg(&sandbox.world().programs().importer);
        let output = Command::from(shell).kill_on_drop(true).output().await?;
        let spool = sandbox.logs().join("spool");
        let names = [(&*api.url(), "http://API/posts"), (&*spool.to_string_lossy(), "SPOOL")];
        insta::assert_snapshot!("spool_full", told(&sandbox, &output, &names));
        assert_eq!(sandbox.end().await?, 0);
    } else {
        support::skipped("a full disk, because nothing may be mounted here");
    }
    // With room the same answer is archived.
    let settings = [("SOURCE_URL", &*api.url())];
    assert_eq!(importer(&sandbox, &settings, &["once"]).await?.status.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn the_archive_is_not_there_or_not_ours() -> Result<()> {
    let sandbox = start_nothing().await?;
    insta::assert_snapshot!("bucket_missing", once(&sandbox, &[("ARCHIVE_BUCKET", "no-such-bucket")], &[]).await?);
    let no_keys = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", ""), ("AWS_EC2_METADATA_DISABLED", "true")];
    insta::assert_snapshot!("no_credentials", once(&sandbox, &no_keys, &[]).await?);
    insta::assert_snapshot!("s3_refused", once(&sandbox, &[("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")], &[]).await?);
    // What LocalStack never says, in the words of S3.
    insta::assert_snapshot!("no_list_bucket", with_s3(&sandbox, 403, "AccessDenied", "Access Denied").await?);
    let elsewhere = "The bucket you are attempting to access must be addressed using the specified endpoint.";
    insta::assert_snapshot!("wrong_region", with_s3(&sandbox, 301, "PermanentRedirect", elsewhere).await?);
    let malformed = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'";
    let said = with_s3(&sandbox, 400, "AuthorizationHeaderMalformed", malformed).await?;
    insta::assert_snapshot!("wrong_region_in_the_signature", said);
    let expired = with_s3(&sandbox, 400, "ExpiredToken", "The provided token has expired.").await?;
    insta::assert_snapshot!("expired_credentials", expired);
    let elsewhere = s3_error(301, "PermanentRedirect", elsewhere).with("x-amz-bucket-region", "eu-west-1");
    insta::assert_snapshot!("another_region_that_s3_names", with_s3_saying(&sandbox, elsewhere).await?);
    let no_key = "User: arn:aws:iam::111122223333:user/me is not authorized to perform: kms:Decrypt on resource: KEY";
    insta::assert_snapshot!("kms_refused", with_s3(&sandbox, 403, "AccessDenied", no_key).await?);
    let skewed = "The difference between the request time and the current time is too large.";
    insta::assert_snapshot!("clock_off", with_s3(&sandbox, 403, "RequestTimeTooSkewed", skewed).await?);
    let twenty_minutes_ago = (jiff::Timestamp::now() - 1_210.seconds()).strftime("%a, %d %b %Y %H:%M:%S GMT");
    let dated = s3_error(403, "SignatureDoesNotMatch", "They differ").with("Date", twenty_minutes_ago);
    insta::assert_snapshot!("clock_off_by_the_date", with_s3_saying(&sandbox, dated).await?);
    Ok(())
}

#[tokio::test]
async fn the_queue_is_not_there_or_none_of_the_right_kind() -> Result<()> {
    let sandbox = start_nothing().await?;
    let missing = sandbox.queue_url().replace(".fifo", "-missing.fifo");
    let said = once(&sandbox, &[("QUEUE_URL", &missing)], &[(&missing, "http://AWS/MISSING.fifo")]).await?;
    insta::assert_snapshot!("queue_missing", said);
    let standard = "http://sqs.us-east-1.localhost/000000000000/posts";
    insta::assert_snapshot!("queue_not_fifo", once(&sandbox, &[("QUEUE_URL", standard)], &[]).await?);
    Ok(())
}
