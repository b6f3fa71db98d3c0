//! Messages, metadata and answers that were made to do harm, or that no sane person would send: each has a clear error,
//! a hold or a quarantine, nothing is lost, memory stays where it is, and the next good thing goes through.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result};
use aws_sdk_sqs::{primitives::Blob, types::MessageAttributeValue};
use sandbox::{Daemon, Sandbox, Setup};
use serde_json::json;
use shared::{
    object::{Metadata, Sequence},
    pointer::Pointer,
};
use support::{
    SOON, assert_whole,
    author::{Author, document},
    faulty_api::{Answer, FaultyApi},
    importer, metadata, queue_is_empty, readiness, retitle, select, send, start, start_nothing,
};

const POSTS: &str = r#"[{"userId":1,"id":1,"title":"a","body":"b"}]"#;

/// What a daemon may have taken in memory at its worst: a debug build that meets nothing strange takes a third.
const PEAK_BYTES: u64 = 128 << 20;

/// No line is longer, whatever a stranger wrote.
const LINE_BYTES: usize = 10_000;

fn peak_bytes(daemon: &Daemon) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().context("it runs")?))?;
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")).context("there is a peak")?;
    Ok(peak.trim().parse::<u64>()? * 1024)
}

/// It was never started again, took no more memory than it may, and wrote no endless line.
fn assert_unharmed(daemon: &Daemon) -> Result<()> {
    assert_eq!(daemon.restarts(), 0);
    let peak = peak_bytes(daemon)?;
    assert!(peak < PEAK_BYTES, "{} took {peak} bytes", daemon.name());
    let longest = fs::read_to_string(daemon.log())?.lines().map(str::len).max();
    assert!(longest < Some(LINE_BYTES), "{} wrote a line of {longest:?} bytes", daemon.name());
    Ok(())
}

/// `once` with this API: its exit code and what it said, which is never much.
async fn once(sandbox: &Sandbox, api: &FaultyApi) -> Result<(Option<i32>, String)> {
    let output = importer(sandbox, &[("SOURCE_URL", &api.url())], &["once"]).await?;
    let said = String::from_utf8(output.stderr)?;
    assert!(said.len() < LINE_BYTES, "{} bytes", said.len());
    Ok((output.status.code(), said))
}

#[tokio::test]
async fn messages_of_every_kind_cost_a_look_and_change_nothing() -> Result<()> {
    let sandbox = start(Setup { posts: 10, ..Setup::default() }).await?;
    sandbox.settled(SOON).await?;
    sandbox.importer.terminate().await?;
    let pointer = Pointer::new(sandbox.stream(), Sequence::try_from(1)?, &metadata(&sandbox, 1).await?).encode();
    let with = |field: &str, value: serde_json::Value| {
        let mut message: serde_json::Value = serde_json::from_str(&pointer).expect("a pointer is JSON");
        message[field] = value;
        message.to_string()
    };
    // As long as the queue takes them, and nearly so with escapes.
    let long = "\n\u{1b}[31m".repeat(15_000);
    let strange = [
        "x".repeat(256 * 1024 - 1),
        with("key", long.clone().into()),
        with("version", long.clone().into()),
        with("stream", long.into()),
        "[".repeat(200_000),
        format!("{{\"version\":{}", "[".repeat(200_000)),
        with("version", json!(u64::MAX)),
        with("sequence", json!(u64::MAX)),
        pointer.replace(":1,", &format!(":{},", "9".repeat(100_000))),
        pointer.replace("\"sequence\":1", "\"sequence\":1e400"),
        pointer.replace("{\"version\":1", "{\"version\":1,\"version\":1"),
        pointer.replace("\"sequence\":1", "\"sequence\":1,\"sequence\":2"),
        with("key", "raw/posts/../other/000/000/000/001.json".into()),
        with("key", "../../etc/passwd".into()),
        with("key", "raw/other/000/000/000/001.json".into()),
        with("key", "s3://other-bucket/raw/posts/000/000/000/001.json".into()),
        with("stream", "other".into()),
        with("stream", "posts/../other".into()),
    ];
    for message in &strange {
        send(&sandbox, message).await?;
    }
    queue_is_empty(&sandbox).await?;
    let messages =
        sandbox.transformer.log_lines().into_iter().filter(|line| line["message"] == "strange message").count();
    assert!(messages >= strange.len(), "{messages} of {}", strange.len());

    // What it does not know is nothing to it, even where it would be a way to another party's objects.
    let foreign = format!("{}-foreign", sandbox.bucket());
    sandbox.s3().create_bucket().bucket(&foreign).send().await?;
    let first = metadata(&sandbox, 1).await?;
    let next = Metadata { observation: uuid::Uuid::now_v7(), previous: Some(first.observation), ..first };
    support::put(&sandbox, &foreign, 2, &next, &sandbox.body(1).await?).await?;
    let second = Pointer::new(sandbox.stream(), Sequence::try_from(2)?, &next).encode();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for more in [format!("\"bucket\":\"{foreign}\""), format!("\"more\":{deep}"), "\"more\":1e999999".to_owned()] {
        send(&sandbox, &second.replacen('{', &format!("{{{more},"), 1)).await?;
    }
    let binary =
        MessageAttributeValue::builder().data_type("Binary").binary_value(Blob::new([0xff, 0xfe, 0])).build()?;
    let message = sandbox.sqs().send_message().queue_url(sandbox.queue_url()).message_body(&pointer);
    let message = message.message_attributes("strange", binary).message_group_id("another-group");
    message.message_deduplication_id("strange").send().await?;
    queue_is_empty(&sandbox).await?;
    assert_eq!((sandbox.position().await?, sandbox.end().await?), (1, 1));

    assert_unharmed(&sandbox.transformer)?;
    sandbox.importer.start();
    retitle(&sandbox, 7, "after all that");
    assert_whole(&sandbox).await
}

#[tokio::test]
async fn metadata_that_cannot_be_followed_holds_until_it_is_mended() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=3, "first")).await?;
    author.append_silently(document(1..=3, "second")).await?;
    sandbox.wait_until("both are applied", SOON, async || Ok(sandbox.position().await? == 2)).await?;

    let good = metadata(&sandbox, 2).await?;
    let good = Metadata { previous: Some(good.observation), observation: uuid::Uuid::now_v7(), ..good };
    let key = Sequence::try_from(3)?.key(sandbox.stream());
    let put = async |fields: HashMap<String, String>| -> Result<()> {
        let put = sandbox.s3().put_object().bucket(sandbox.bucket()).key(&key).set_metadata(Some(fields));
        put.body(sandbox.body(2).await?.into()).send().await?;
        Ok(())
    };
    for (field, value, said) in [
        ("archive-id", None, "its metadata lacks `archive-id`"),
        ("snapshot-sha256", None, "its metadata lacks `snapshot-sha256`"),
        ("sha256", Some("é"), "field `sha256` cannot be read"),
        ("observation", Some("nobody"), "field `observation` cannot be read"),
        ("version", Some("2"), "its metadata has version 2"),
        ("version", Some("99999999999"), "field `version` cannot be read"),
        ("snapshot", Some("0"), "field `snapshot` cannot be read"),
        ("page", Some("-1"), "field `page` cannot be read"),
        ("last-page", Some("maybe"), "field `last-page` cannot be read"),
        ("source-url", Some("%ff"), "field `source-url` cannot be read"),
        ("etag", Some("%c3%28"), "field `etag` cannot be read"),
        ("fetched-at", Some("-009999-01-02T03:04:05Z"), "field `fetched-at` cannot be read"),
        ("previous", Some("00000000-0000-0000-0000-000000000000"), "the archive was forked"),
        ("archive-id", Some("00000000-0000-0000-0000-000000000000"), "this is another archive"),
    ] {
        let mut fields = good.encode()?;
        match value {
            Some(value) => fields.insert(field.into(), value.into()),
            None => fields.remove(field),
        };
        put(fields).await?;
        let what = format!("{field} {value:?}: the transformer holds because {said}");
        let is_held = sandbox.wait_until(what, SOON, async || {
            let (_, text) = readiness(&sandbox.transformer).await?;
            Ok(text.starts_with("holding: ") && text.contains(said))
        });
        is_held.await?;
        assert_eq!(sandbox.position().await?, 2);
    }
    put(good.encode()?).await?;
    sandbox.wait_until("the mended object is applied", SOON, async || Ok(sandbox.position().await? == 3)).await?;
    assert_unharmed(&sandbox.transformer)
}

#[tokio::test]
async fn metadata_that_only_the_importer_reads_leads_it_nowhere() -> Result<()> {
    let sandbox = start(Setup { posts: 3, importer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    let strange: [fn(&mut Metadata); 5] = [
        |metadata| metadata.page = 0,
        |metadata| metadata.page = u32::MAX,
        |metadata| metadata.snapshot = Sequence::LAST,
        |metadata| metadata.source_url = "javascript:alert(1)".into(),
        // The next poll would send it.
        |metadata| metadata.etag = Some("\"a\"\r\nX-Strange: yes".into()),
    ];
    for change in strange {
        author.append_with(document(1..=3, "by somebody"), change).await?;
        assert_eq!(importer(&sandbox, &[], &["once"]).await?.status.code(), Some(0));
        author = Author::of(&sandbox).await?;
    }
    sandbox.importer.start();
    retitle(&sandbox, 1, "after all that");
    assert_whole(&sandbox).await
}

#[tokio::test]
async fn headers_of_every_kind_are_kept_or_left_out_and_the_data_is_archived() -> Result<()> {
    let sandbox = start_nothing().await?;
    let long = "e".repeat(10_000);
    let many = |answer: Answer| (0..80).fold(answer, |answer, n| answer.with(&format!("X-{n}"), "x".repeat(1_000)));
    let cases: [(&str, Answer, Option<&str>, Option<&str>); 9] = [
        ("a long tag", Answer::ok("").with("ETag", format!("\"{long}\"")), None, None),
        ("no ASCII", Answer::ok("").with("ETag", "\"é\""), None, None),
        ("quotes", Answer::ok("").with("ETag", r#"W/"a\"b%0D%0A""c"#), Some(r#"W/"a\"b%0D%0A""c"#), None),
        ("a tab", Answer::ok("").with("ETag", "\"a\tb\""), Some("\"a\tb\""), None),
        ("no time", Answer::ok("").with("Last-Modified", "yesterday, 25:61"), None, None),
        ("a long time", Answer::ok("").with("Last-Modified", &long), None, None),
        ("many", many(Answer::ok("")), None, None),
        ("a long link", Answer::ok("").with("Link", format!("</{long}>; rel=preload, ").repeat(10)), None, None),
        ("half a link", Answer::ok("").with("Link", "<".repeat(100_000)), None, None),
    ];
    for (number, (name, answer, etag, last_modified)) in (1..).zip(cases) {
        let post = format!(r#"[{{"userId":1,"id":1,"title":"{name}","body":"b"}}]"#);
        let api = FaultyApi::saying([answer.with_body(post)]).await?;
        let (code, said) = once(&sandbox, &api).await?;
        assert_eq!(code, Some(0), "{name}: {said}");
        let kept = metadata(&sandbox, number).await?;
        assert_eq!((kept.etag.as_deref(), kept.last_modified.as_deref()), (etag, last_modified), "{name}");
        // Sent back as it came, or not at all.
        assert_eq!(once(&sandbox, &api).await?.0, Some(3), "{name}");
        let seen = api.seen();
        let asked = seen.last().context("it was asked")?;
        let (sent, since) = (asked.header("if-none-match"), asked.header("if-modified-since"));
        assert_eq!((sent, since), (etag, last_modified), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn headers_that_are_none_are_no_answer() -> Result<()> {
    let sandbox = start_nothing().await?;
    let many = (0..500).fold(Answer::ok(POSTS), |answer, n| answer.with(&format!("X-{n}"), "x"));
    for (answer, why) in [
        (Answer::ok(POSTS).with("ETag", "\"a\u{1}b\""), "invalid HTTP header parsed"),
        (Answer::ok(POSTS).with("Link", "<?page=2>; rel=next, ".repeat(100_000)), "message head is too large"),
        (Answer::ok(POSTS).with("Content-Length", 3), "invalid content-length parsed"),
        (many, "message head is too large"),
    ] {
        let api = FaultyApi::saying([answer]).await?;
        let (code, said) = once(&sandbox, &api).await?;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("got no answer") && said.contains(why), "{said}");
    }
    let api = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    assert_eq!((once(&sandbox, &api).await?.0, sandbox.end().await?), (Some(0), 1));
    Ok(())
}

#[tokio::test]
async fn a_next_link_leads_nowhere_but_to_a_page() -> Result<()> {
    let sandbox = start_nothing().await?;
    let other = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    let there = other.url();
    let (path, query) = (format!("/{}", "%41".repeat(1_000)), format!("?page={}", "2".repeat(100_000)));
    for (link, why) in [
        ("javascript:alert(1)", "on another origin"),
        ("data:application/json,[]", "on another origin"),
        ("file:///etc/passwd", "on another origin"),
        (&there, "on another origin"),
        (there.trim_start_matches("http:"), "on another origin"),
        ("http://[::1", "is no address"),
        (&path, "has a path of"),
        (&query, "has an address of"),
    ] {
        let api = FaultyApi::saying([Answer::ok("[{}]").with("Link", format!("<{link}>; rel=next"))]).await?;
        let (code, said) = once(&sandbox, &api).await?;
        assert_eq!((code, api.seen().len()), (Some(1), 1), "{said}");
        assert!(said.contains(why), "{said}");
    }
    assert_eq!((other.seen().len(), sandbox.end().await?), (0, 0));

    // A password in a link is no secret of ours, and is kept as little.
    let api = FaultyApi::start(|_| Answer::ok("[]")).await?;
    let link = format!("<{}?page=2>; rel=next", api.url().replace("http://", "http://user:s3cret@"));
    api.say([Answer::ok("[{}]").with("Link", link), Answer::ok(POSTS)]);
    let (code, said) = once(&sandbox, &api).await?;
    assert_eq!((code, sandbox.end().await?), (Some(0), 2), "{said}");
    assert_eq!(metadata(&sandbox, 2).await?.source_url, format!("{}?page=2", api.url()));
    assert!(!said.contains("s3cret"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_not_what_its_headers_say_is_refused() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, ..Setup::default() }).await?;
    for (answer, why) in [
        (Answer::ok(POSTS).with("Content-Encoding", "gzip"), "its bytes are something else"),
        (Answer::ok(POSTS).gzip().with_body(&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..]), "the body broke off"),
        (Answer::ok(POSTS).with("Content-Encoding", "gzip, gzip"), "is encoded as `gzip, gzip`"),
        (Answer::ok(&b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..]), "begins with"),
    ] {
        let api = FaultyApi::saying([answer]).await?;
        let (code, said) = once(&sandbox, &api).await?;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(sandbox.end().await?, 0);

    // Less is announced than comes: that is what the answer is, and it is no collection.
    let api = FaultyApi::saying([Answer::unmeasured(POSTS).with("Content-Length", POSTS.len() - 1)]).await?;
    let (code, said) = once(&sandbox, &api).await?;
    assert_eq!((code, sandbox.end().await?), (Some(1), 0), "{said}");
    assert!(said.contains("it ends inside the array"), "{said}");
    api.say([Answer::ok(POSTS)]);
    assert_eq!(once(&sandbox, &api).await?.0, Some(0));
    sandbox.wait_until("it is applied", SOON, async || Ok(sandbox.position().await? == 1)).await?;
    assert_eq!(sandbox.count().await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_is_endless_once_it_is_unpacked_costs_no_memory() -> Result<()> {
    let sandbox = start_nothing().await?;
    let bomb = Answer::ok(format!("[{}]", " ".repeat(200 << 20))).gzip();
    let api = FaultyApi::saying([bomb]).await?;
    sandbox.importer.restart_with(&[("SOURCE_URL", &api.url()), ("MAX_BODY", "100000000")]).await?;
    let is_refused = async || Ok(readiness(&sandbox.importer).await?.1.contains("longer than MAX_BODY"));
    sandbox.wait_until("the bomb is refused", SOON, is_refused).await?;
    assert_unharmed(&sandbox.importer)?;
    api.say([Answer::ok(POSTS)]);
    sandbox.wait_until("the next answer is archived", SOON, async || Ok(sandbox.end().await? == 1)).await
}

#[tokio::test]
async fn a_long_body_in_an_object_is_archived_and_applied_in_as_little_memory_as_a_short_one() -> Result<()> {
    let api = FaultyApi::saying([Answer::wrapped_posts(PEAK_BYTES + (32 << 20))]).await?;
    let url = api.url();
    let settings = vec![("NEXT_PAGE", "cursor=/meta/next"), ("RECORDS_AT", "/data"), ("POLL_INTERVAL", "1h")];
    let sandbox = start(Setup { posts: 0, importer: false, settings, ..Setup::default() }).await?;
    sandbox.importer.restart_with(&[("SOURCE_URL", &url)]).await?;
    sandbox.wait_until("it is applied", 3 * SOON, async || Ok(sandbox.position().await? == 1)).await?;
    assert_unharmed(&sandbox.importer)?;
    assert_unharmed(&sandbox.transformer)?;
    let records: i64 = select(&sandbox, "SELECT records FROM objects").await?;
    assert!(records > 200_000, "{records}");
    Ok(())
}
