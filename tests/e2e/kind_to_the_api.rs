//! The importer is a good guest: it asks for no more than it needs, waits when it is told to, and says who it is.

use std::{
    fs,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use sandbox::{Sandbox, Signal};
use support::{
    SOON,
    certificates::Certificates,
    faulty_api::{Answer, FaultyApi, Request, gzipped},
    importer, logged, metadata, metrics,
    proxy::{Proxy, Way},
    put, readiness, second, start_nothing,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::Notify,
};

const POSTS: &str = r#"[{"userId":1,"id":1,"title":"a","body":"b"}]"#;

/// A stream whose importer polls this API.
async fn polling(api: &FaultyApi) -> Result<Sandbox> {
    let sandbox = start_nothing().await?;
    sandbox.importer.restart_with(&[("SOURCE_URL", &api.url())]).await?;
    Ok(sandbox)
}

async fn archived(sandbox: &Sandbox, end: u64) -> Result<()> {
    let what = format!("the archive ends at {end}");
    sandbox.wait_until(what, SOON, async || Ok(sandbox.end().await? == end)).await
}

async fn asked(sandbox: &Sandbox, api: &FaultyApi, times: usize) -> Result<()> {
    sandbox.wait_until("the API was asked again", SOON, async || Ok(api.seen().len() >= times)).await
}

/// `once` with this API: its exit code and what it said.
async fn once(sandbox: &Sandbox, api: &FaultyApi, settings: &[(&'static str, &str)]) -> Result<(Option<i32>, String)> {
    let url = api.url();
    let mut all = vec![("SOURCE_URL", url.as_str())];
    all.extend_from_slice(settings);
    let output = importer(sandbox, &all, &["once"]).await?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

#[tokio::test]
async fn what_the_api_said_last_is_not_fetched_again() -> Result<()> {
    let api = FaultyApi::start(|request| {
        let is_known = request.header("if-none-match") == Some("W/\"v1, 100%\"")
            && request.header("if-modified-since") == Some("Thu, 01 Jan 2026 00:00:00 GMT");
        if is_known {
            return Answer::status(304);
        }
        Answer::ok(POSTS).with("ETag", "W/\"v1, 100%\"").with("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
    })
    .await?;
    let sandbox = polling(&api).await?;
    asked(&sandbox, &api, 5).await?;
    // Also by one that was not there when it was said.
    sandbox.importer.kill_and_wait().await?;
    let so_far = api.seen().len();
    asked(&sandbox, &api, so_far + 3).await?;
    let without = api.seen().iter().filter(|request| request.header("if-none-match").is_none()).count();
    assert_eq!((without, sandbox.end().await?), (1, 1), "the body was sent once");
    Ok(())
}

#[tokio::test]
async fn what_one_address_said_is_not_held_against_another() -> Result<()> {
    let api = FaultyApi::start(|request| match request.header("if-none-match") {
        Some(_) => Answer::status(304),
        None => Answer::ok(format!("[{{\"title\":\"{}\"}}]", request.path)).with("ETag", "\"v1\""),
    })
    .await?;
    let sandbox = start_nothing().await?;
    for (path, code) in [("/a", 0), ("/a", 3), ("/b", 0)] {
        let url = api.url().replace("/posts", path);
        let output = importer(&sandbox, &[("SOURCE_URL", &url)], &["once"]).await?;
        assert_eq!(output.status.code(), Some(code), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_304_that_nobody_asked_for_says_nothing() -> Result<()> {
    let sandbox = start_nothing().await?;
    let api = FaultyApi::saying([Answer::status(304)]).await?;
    let (code, said) = once(&sandbox, &api, &[]).await?;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("was answered with 304 Not Modified, though nobody asked whether anything changed"),
        "{said}"
    );
    // Nor does one for a page in the middle.
    api.answer(|request| match request.query.as_str() {
        "" => Answer::ok("[1]").with("Link", "<?page=2>; rel=next"),
        _ => Answer::status(304),
    });
    assert_eq!((once(&sandbox, &api, &[]).await?.0, sandbox.end().await?), (Some(1), 0));
    Ok(())
}

#[tokio::test]
async fn a_link_to_something_else_costs_no_validator() -> Result<()> {
    let api = FaultyApi::start(|request| match request.header("if-none-match") {
        Some(_) => Answer::status(304),
        None => Answer::ok(POSTS).with("ETag", "\"v1\"").with("Link", "</style.css>; rel=preload"),
    })
    .await?;
    let sandbox = start_nothing().await?;
    assert_eq!(once(&sandbox, &api, &[]).await?.0, Some(0));
    assert_eq!(once(&sandbox, &api, &[]).await?.0, Some(3));
    assert_eq!(api.seen()[1].header("if-none-match"), Some("\"v1\""));
    Ok(())
}

#[tokio::test]
async fn the_same_body_without_validators_is_archived_once() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    let sandbox = polling(&api).await?;
    asked(&sandbox, &api, 6).await?;
    assert_eq!(sandbox.end().await?, 1);
    assert!(api.seen().iter().all(|request| request.header("if-none-match").is_none()));
    Ok(())
}

#[tokio::test]
async fn a_busy_api_is_asked_again_when_it_wants_to_be() -> Result<()> {
    let sandbox = start_nothing().await?;
    let soon = DateTimePrinter::new().timestamp_to_rfc9110_string(&(Timestamp::now() + Duration::from_secs(5)))?;
    for (answer, at_least) in [
        // The date has no fractions of a second, and the world is busy until it is asked.
        (Answer::status(503).with("Retry-After", soon), Duration::from_secs(1)),
        (Answer::status(429).with("Retry-After", 2), Duration::from_secs(2)),
        (Answer::status(408), Duration::ZERO),
        (Answer::status(425), Duration::ZERO),
        (Answer::status(500), Duration::ZERO),
        (Answer::ok(POSTS).broken_after(10), Duration::ZERO),
    ] {
        let api = FaultyApi::saying([answer.clone(), Answer::ok(POSTS)]).await?;
        let (code, said) = once(&sandbox, &api, &[]).await?;
        assert!(matches!(code, Some(0 | 3)), "{answer:?}: {said}");
        let seen = api.seen();
        let [first, second] = seen.as_slice() else { panic!("{answer:?}: {} requests", seen.len()) };
        assert!(second.at - first.at >= at_least, "{answer:?}: after {:?}", second.at - first.at);
    }
    assert_eq!(sandbox.end().await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_limit_is_waited_out_and_the_pages_in_hand_are_kept() -> Result<()> {
    let mut limits = [
        Answer::status(429),
        Answer::status(429).with("Retry-After", "0.5"),
        Answer::status(403).with("X-RateLimit-Remaining", 0).with("X-RateLimit-Reset", 1),
    ]
    .into_iter();
    let api = FaultyApi::start(move |request| match request.parameter("page").as_deref() {
        None => Answer::ok("[1]").with("Link", "<?page=2>; rel=next"),
        _ => limits.next().unwrap_or_else(|| Answer::ok("[2]")),
    })
    .await?;
    let sandbox = start_nothing().await?;
    let (code, said) = once(&sandbox, &api, &[]).await?;
    assert_eq!((code, sandbox.end().await?), (Some(0), 2), "{said}");
    let asked: Vec<_> = api.seen().into_iter().map(|request| request.query).collect();
    assert_eq!(asked, ["", "page=2", "page=2", "page=2", "page=2"]);
    assert!(said.contains("answered with 429 Too Many Requests, since it limits requests"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_long_wait_shows_and_ends_with_the_daemon() -> Result<()> {
    let api = FaultyApi::start(|request| match request.parameter("page") {
        None => Answer::ok("[1]").with("Link", "<?page=2>; rel=next"),
        Some(_) => Answer::status(429).with("Retry-After", 1800),
    })
    .await?;
    let sandbox = polling(&api).await?;
    let waits = async || Ok(readiness(&sandbox.importer).await.is_ok_and(|(_, state)| state.starts_with("waiting")));
    sandbox.wait_until("the importer waits", SOON, waits).await?;
    let (status, state) = readiness(&sandbox.importer).await?;
    assert!(status == 503 && state.contains("; the importer asks again at 20"), "{status} {state}");
    let until: i64 = metrics(&sandbox.importer).await?["importer_asks_again_timestamp_seconds"].parse()?;
    assert!((1_700..=1_802).contains(&(until - Timestamp::now().as_second())), "{until}");
    assert_eq!(api.seen().len(), 2, "nothing is asked meanwhile");
    let ended = sandbox.importer.terminate().await?;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_wait_that_is_over_shows_no_more() -> Result<()> {
    let gate = Arc::new(Notify::new());
    let (held, mut limits) = (gate.clone(), [Answer::status(429).with("Retry-After", "0.1")].into_iter());
    let api = FaultyApi::start(move |request| match request.parameter("page").as_deref() {
        None => Answer::ok("[1]").with("Link", "<?page=2>; rel=next"),
        Some("2") => limits.next().unwrap_or_else(|| Answer::ok("[2]").with("Link", "<?page=3>; rel=next")),
        Some(_) => Answer::ok("[3]").held_by(&held),
    })
    .await?;
    let sandbox = polling(&api).await?;
    asked(&sandbox, &api, 4).await?;
    let (_, state) = readiness(&sandbox.importer).await?;
    assert!(!state.contains("asks again"), "{state}");
    assert_eq!(metrics(&sandbox.importer).await?["importer_asks_again_timestamp_seconds"], "0");
    gate.notify_one();
    archived(&sandbox, 3).await
}

#[tokio::test]
async fn a_token_that_expires_between_pages_is_read_again() -> Result<()> {
    let sandbox = start_nothing().await?;
    let file = sandbox.logs().join("token");
    fs::write(&file, "first")?;
    let renewed = file.clone();
    let api = FaultyApi::start(move |request| match (request.parameter("page"), request.header("authorization")) {
        (None, _) => Answer::ok("[1]").with("Link", "<?page=2>; rel=next"),
        (Some(_), Some("Bearer second")) => Answer::ok("[2]"),
        (Some(_), _) => {
            fs::write(&renewed, "second").expect("the file can be written");
            Answer::status(401)
        }
    })
    .await?;
    let (code, said) = once(&sandbox, &api, &[("SOURCE_HEADER_FILE", &*file.to_string_lossy())]).await?;
    assert_eq!((code, api.seen().len(), sandbox.end().await?), (Some(0), 3, 2), "{said}");
    Ok(())
}

#[tokio::test]
async fn lines_of_json_are_records() -> Result<()> {
    let sandbox = start_nothing().await?;
    let two = "{\"id\":1}\n{\"id\":2}\n";
    let api = FaultyApi::saying([Answer::ok(two).with("Content-Type", "application/x-ndjson")]).await?;
    let (code, said) = once(&sandbox, &api, &[]).await?;
    assert_eq!((code, sandbox.body(1).await?), (Some(0), two.into()), "{said}");
    // An object alone is a record where the answer says that a record is a line, and otherwise as good as an error.
    for (content_type, line, code) in [
        ("application/jsonl; charset=utf-8", r#"{"id":1}"#, 0),
        ("application/json", r#"{"id":1}"#, 1),
        ("application/jsonl", r#"{"error":"busy"}"#, 1),
    ] {
        let api = FaultyApi::saying([Answer::ok(line).with("Content-Type", content_type)]).await?;
        assert_eq!(once(&sandbox, &api, &[]).await?.0, Some(code), "{content_type} {line}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_array_or_shows_no_end_is_refused() -> Result<()> {
    let sandbox = start_nothing().await?;
    for answer in [
        Answer::ok("[{\"id\":1},]"),
        Answer::ok("[{\"id\":1},,{\"id\":2}]"),
        Answer::unmeasured("{\"id\":1}\n{\"id\":2}\n"),
    ] {
        let api = FaultyApi::saying([answer.clone()]).await?;
        let (code, said) = once(&sandbox, &api, &[]).await?;
        assert_eq!((code, sandbox.end().await?, api.seen().len()), (Some(1), 0, 1), "{answer:?}: {said}");
    }
    // A collection without lines, and one in two streams.
    let lines = |body: Vec<u8>| Answer::ok(body).with("Content-Type", "application/x-ndjson");
    let packed = [gzipped(b"{\"id\":1}\n"), gzipped(b"{\"id\":2}\n")].concat();
    let api = FaultyApi::saying([lines(Vec::new()), lines(packed).with("Content-Encoding", "gzip")]).await?;
    for _ in 0..2 {
        let (code, said) = once(&sandbox, &api, &[]).await?;
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(sandbox.body(2).await?, b"{\"id\":1}\n{\"id\":2}\n");
    Ok(())
}

#[tokio::test]
async fn a_304_of_another_version_is_not_believed() -> Result<()> {
    let api = FaultyApi::start(|request| match request.header("if-none-match") {
        Some(_) => Answer::status(304).with("ETag", "\"v2\""),
        None => Answer::ok(POSTS).with("ETag", "W/\"v1\""),
    })
    .await?;
    let sandbox = start_nothing().await?;
    once(&sandbox, &api, &[]).await?;
    api.answer(|request| match request.header("if-none-match") {
        Some(_) => Answer::status(304).with("ETag", "\"v2\""),
        None => Answer::ok("[]").with("ETag", "\"v2\""),
    });
    assert_eq!((once(&sandbox, &api, &[]).await?.0, api.seen().len()), (Some(0), 3));
    Ok(())
}

#[tokio::test]
async fn white_space_before_the_data_is_part_of_it() -> Result<()> {
    let sandbox = start_nothing().await?;
    let late = format!("{}{POSTS}", " \r\n".repeat(1000));
    let api = FaultyApi::saying([Answer::ok(late.clone())]).await?;
    let (code, said) = once(&sandbox, &api, &[]).await?;
    assert_eq!((code, sandbox.body(1).await?), (Some(0), late.into()), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_slow_answer_is_waited_for_as_long_as_the_setting_says_and_asked_for_once() -> Result<()> {
    let gate = Arc::new(Notify::new());
    let api = FaultyApi::saying([Answer::ok(POSTS).held_by(&gate)]).await?;
    let sandbox = start_nothing().await?;
    let stalled = FaultyApi::saying([Answer::ok(POSTS).dripping(Duration::from_mins(1))]).await?;
    for api in [api, stalled] {
        let (code, said) = once(&sandbox, &api, &[("SOURCE_TIMEOUT", "300ms")]).await?;
        assert_eq!((code, api.seen().len()), (Some(1), 1), "{said}");
        assert!(said.contains("was not answered within SOURCE_TIMEOUT, which is 300ms: raise it"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn json_is_asked_for_unless_a_header_of_the_settings_asks_for_something_else() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    let sandbox = start_nothing().await?;
    let file = sandbox.logs().join("headers");
    fs::write(&file, "Accept: application/vnd.api+json; version=2\nUser-Agent: mine\n")?;
    once(&sandbox, &api, &[]).await?;
    once(&sandbox, &api, &[("SOURCE_HEADER_FILE", &*file.to_string_lossy())]).await?;
    let seen = api.seen();
    let headers =
        |name: &str| [seen[0].header(name), seen[1].header(name)].map(|value| value.unwrap_or_default().to_owned());
    assert_eq!(headers("accept"), ["application/json, */*;q=0.5", "application/vnd.api+json; version=2"]);
    assert_eq!(headers("user-agent"), ["posts-importer/0.1.0", "mine"]);
    Ok(())
}

#[tokio::test]
async fn an_answer_may_come_in_each_encoding_that_was_asked_for() -> Result<()> {
    let sandbox = start_nothing().await?;
    let packed = |number: u8, encoding: &str, begin: &[u8], end: &[u8]| {
        let body = [begin, format!(r#"[{{"id":{number}}}]"#).as_bytes(), end].concat();
        (number, Answer::ok(body).with("Content-Encoding", encoding))
    };
    let gzip = |number: u8, encoding: &str, behind: &[u8]| {
        let text = format!(r#"[{{"id":{number}}}]"#);
        let (first, second) = text.as_bytes().split_at(4);
        let body = [&gzipped(first), &gzipped(second), behind].concat();
        (number, Answer::ok(body).with("Content-Encoding", encoding))
    };
    for (number, answer) in [
        packed(1, "none", b"", b""),
        packed(2, "UTF-8", b"", b""),
        gzip(3, "gzip", b""),
        gzip(4, "x-gzip", &[0; 512]),
        // Stored as they are, the lengths and checksums around them by hand: zlib, bare deflate, brotli, zstd.
        packed(5, "deflate", b"\x78\x01\x01\x0a\0\xf5\xff", b"\x11\xba\x03\x31"),
        packed(6, "deflate", b"\x01\x0a\0\xf5\xff", b""),
        packed(7, "br", b"\x8b\x04\x80", b"\x03"),
        packed(8, "zstd", b"\x28\xb5\x2f\xfd\x20\x0a\x51\0\0", b""),
        // A second frame, of a blank.
        packed(9, "zstd", b"\x28\xb5\x2f\xfd\x20\x0a\x51\0\0", b"\x28\xb5\x2f\xfd\x20\x01\x09\0\0 "),
    ] {
        let api = FaultyApi::saying([answer]).await?;
        let (code, said) = once(&sandbox, &api, &[]).await?;
        assert_eq!(code, Some(0), "{number}: {said}");
        let end = sandbox.end().await?;
        assert_eq!(sandbox.body(end).await?.trim_ascii_end(), format!(r#"[{{"id":{number}}}]"#).as_bytes(), "{number}");
    }
    for encoding in ["gzip", "deflate", "br", "zstd"] {
        let api = FaultyApi::saying([Answer::ok(POSTS).with("Content-Encoding", encoding)]).await?;
        let (code, said) = once(&sandbox, &api, &[]).await?;
        assert_eq!((code, api.seen().len()), (Some(1), 1), "{encoding}: {said}");
        assert!(said.contains(&format!("labelled `Content-Encoding: {encoding}`")), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_time_of_change_within_the_second_of_the_answer_is_no_validator() -> Result<()> {
    for (behind, is_sent) in [(0, false), (60, true)] {
        let api = FaultyApi::start(move |_| {
            let changed_at = Timestamp::now() - Duration::from_secs(behind);
            let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&changed_at).expect("it has four digits");
            Answer::ok(POSTS).with("Last-Modified", date)
        })
        .await?;
        let sandbox = start_nothing().await?;
        once(&sandbox, &api, &[]).await?;
        once(&sandbox, &api, &[]).await?;
        assert_eq!(api.seen()[1].header("if-modified-since").is_some(), is_sent, "{behind} s");
    }
    Ok(())
}

#[tokio::test]
async fn a_time_of_change_is_a_validator_once_it_is_old_enough() -> Result<()> {
    let mut first_asked = None;
    let api = FaultyApi::start(move |request| {
        let changed_at = first_asked.get_or_insert_with(Timestamp::now);
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(changed_at).expect("it has four digits");
        match request.header("if-modified-since") {
            Some(_) => Answer::status(304),
            None => Answer::ok(POSTS).with("Last-Modified", date),
        }
    })
    .await?;
    let sandbox = polling(&api).await?;
    let is_sent = async || Ok(api.seen().iter().any(|request| request.header("if-modified-since").is_some()));
    sandbox.wait_until("the time is sent, though the archive does not have it", SOON, is_sent).await?;
    assert!(metadata(&sandbox, 1).await?.last_modified.is_none());
    assert_eq!(sandbox.end().await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_was_said_more_than_a_day_ago_is_asked_for_whole() -> Result<()> {
    let api = FaultyApi::start(|request| match request.header("if-none-match") {
        Some(_) => Answer::status(304),
        None => Answer::ok(POSTS).with("ETag", "\"v1\""),
    })
    .await?;
    let sandbox = start_nothing().await?;
    once(&sandbox, &api, &[]).await?;
    let mut end = metadata(&sandbox, 1).await?;
    for (hours, is_sent) in [(23, true), (25, false)] {
        end.fetched_at = Timestamp::now() - Duration::from_hours(hours);
        put(&sandbox, sandbox.bucket(), 1, &end, POSTS.as_bytes()).await?;
        assert_eq!(once(&sandbox, &api, &[]).await?.0, Some(3), "{hours} hours");
        let last = api.seen().pop().context("it was asked")?;
        assert_eq!(last.header("if-none-match").is_some(), is_sent, "{hours} hours");
    }
    Ok(())
}

#[tokio::test]
async fn an_api_may_be_behind_a_proxy_or_have_an_address_of_the_sixth_version() -> Result<()> {
    let sandbox = start_nothing().await?;
    let api = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    let proxy = api.url().replace("/posts", "");
    let proxied = [("SOURCE_URL", "http://api.invalid/posts"), ("ALLOW_HTTP", "true"), ("HTTP_PROXY", &proxy)];
    // LocalStack is asked without it.
    let through = importer(&sandbox, &[&proxied[..], &[("NO_PROXY", "127.0.0.1")]].concat(), &["once"]).await?;
    assert_eq!(through.status.code(), Some(0), "{}", String::from_utf8_lossy(&through.stderr));
    assert_eq!(api.seen().pop().context("the proxy was asked")?.path, "http://api.invalid/posts");
    let past =
        importer(&sandbox, &[&proxied[..], &[("NO_PROXY", "api.invalid, 127.0.0.1")]].concat(), &["once"]).await?;
    assert_eq!((past.status.code(), api.seen().len()), (Some(1), 1));

    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        support::skipped("an address of the sixth version, because this machine has none");
        return Ok(());
    };
    let (there, address) = (proxy.replace("http://", ""), listener.local_addr()?);
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await?;
        copy_bidirectional(&mut client, &mut TcpStream::connect(there).await?).await
    });
    let output = importer(&sandbox, &[("SOURCE_URL", &format!("http://{address}/posts"))], &["once"]).await?;
    assert_eq!((output.status.code(), api.seen().len()), (Some(3), 2), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn an_answer_that_will_not_change_is_not_asked_for_again() -> Result<()> {
    let sandbox = start_nothing().await?;
    for status in [400, 401, 403, 404, 410, 204] {
        let api = FaultyApi::saying([Answer::status(status)]).await?;
        let (code, said) = once(&sandbox, &api, &[]).await?;
        assert_eq!((code, api.seen().len()), (Some(1), 1), "{said}");
        assert!(said.contains(&format!("answered with {status}")), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn an_api_that_is_down_is_polled_until_it_is_back() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    let proxy = Proxy::start(&api.url()).await?;
    proxy.set(Way::Refuse);
    let sandbox = start_nothing().await?;
    let mut events = sandbox.events().subscribe();
    sandbox.importer.restart_with(&[("SOURCE_URL", &format!("{}/posts", proxy.url()))]).await?;
    let waits = logged(&mut events, "importer", "waiting for a dependency").await?;
    let why = waits.text("why").unwrap_or_default();
    assert!(why.contains(&format!("GET {}/posts got no answer", proxy.url())), "{why}");
    assert!(why.contains("Connection refused"), "{why}");
    proxy.set(Way::Pass);
    archived(&sandbox, 1).await?;
    logged(&mut events, "importer", "ready again").await?;
    Ok(())
}

#[tokio::test]
async fn an_answer_that_comes_in_drips_or_breaks_off_is_archived_whole_or_not_at_all() -> Result<()> {
    let api = FaultyApi::saying([
        Answer::ok(POSTS).broken_after(0),
        Answer::ok(POSTS).broken_after(POSTS.len() - 1),
        // As from a server that dies in the middle.
        Answer::unmeasured(&POSTS[..POSTS.len() - 1]),
        Answer::ok(POSTS).dripping(Duration::from_millis(5)).then_closed(),
        Answer::ok(POSTS).then_closed(),
    ])
    .await?;
    let sandbox = polling(&api).await?;
    asked(&sandbox, &api, 9).await?;
    assert_eq!((sandbox.end().await?, sandbox.body(1).await?), (1, POSTS.into()));
    Ok(())
}

#[tokio::test]
async fn polls_do_not_overlap_and_those_that_were_missed_are_not_made_up_for() -> Result<()> {
    let pause = Duration::from_millis(10);
    let slow = FaultyApi::saying([Answer::ok(POSTS).dripping(pause)]).await?;
    let sandbox = polling(&slow).await?;
    asked(&sandbox, &slow, 4).await?;
    let at_least = pause * u32::try_from(POSTS.len())?;
    for pair in slow.seen().windows(2) {
        assert!(pair[1].at - pair[0].at >= at_least, "the answer takes longer than the interval");
    }

    // Suspended for ten intervals, which another importer counts.
    let api = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    sandbox.importer.restart_with(&[("SOURCE_URL", &api.url())]).await?;
    asked(&sandbox, &api, 1).await?;
    let clock = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    sandbox.importer.signal(Signal::STOP);
    let other = second(&sandbox, "importer").await?;
    other.restart_with(&[("SOURCE_URL", &clock.url())]).await?;
    asked(&sandbox, &clock, 10).await?;
    let before = api.seen().len();
    sandbox.importer.signal(Signal::CONT);
    asked(&sandbox, &api, before + 5).await?;
    let seen = &api.seen()[before..];
    // Four intervals are 800 ms, each may be a tenth shorter, and each request late by itself.
    assert!(seen[4].at - seen[0].at > Duration::from_millis(400), "five polls in {:?}", seen[4].at - seen[0].at);
    Ok(())
}

#[tokio::test]
async fn each_request_says_who_asks() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    once(&start_nothing().await?, &api, &[]).await?;
    let seen = api.seen();
    assert_eq!(seen[0].header("user-agent"), Some("posts-importer/0.1.0"));
    assert_eq!(seen[0].header("authorization"), None);
    Ok(())
}

#[tokio::test]
async fn a_secret_header_is_read_anew_and_shows_nowhere_else() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    let sandbox = start_nothing().await?;
    let file = sandbox.logs().join("token");
    fs::write(&file, "s3cret-0ne\n")?;
    let settings =
        [("SOURCE_URL", &*api.url()), ("SOURCE_HEADER_FILE", &file.to_string_lossy()), ("RUST_LOG", "trace")];
    sandbox.importer.restart_with(&settings).await?;
    let has = |name: &'static str, value: &'static str| {
        let api = &api;
        let what = format!("the API was sent {name}");
        let sent = move || Ok(api.seen().iter().any(|request| request.header(name) == Some(value)));
        sandbox.wait_until(what, SOON, async move || sent())
    };
    has("authorization", "Bearer s3cret-0ne").await?;
    fs::write(&file, "X-Api-Key: s3cret-tw0")?;
    has("x-api-key", "s3cret-tw0").await?;
    let last = api.seen().pop().expect("there are some");
    assert_eq!(last.header("authorization"), None);

    let pid = sandbox.importer.pid().expect("it runs");
    let argv = fs::read(format!("/proc/{pid}/cmdline"))?;
    sandbox.importer.terminate().await?;
    let log = fs::read_to_string(sandbox.importer.log())?;
    let archived = metadata(&sandbox, 1).await?;
    for shown in [String::from_utf8_lossy(&argv).into_owned(), log, format!("{archived:?}")] {
        assert!(!shown.contains("s3cret"), "a secret shows");
    }
    Ok(())
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_origin_and_nowhere_else() -> Result<()> {
    let api = FaultyApi::start(|request| match request.path.as_str() {
        "/posts" => Answer::status(302).with("Location", "/v2/posts?page=1"),
        _ => Answer::ok(POSTS),
    })
    .await?;
    let sandbox = start_nothing().await?;
    let (code, said) = once(&sandbox, &api, &[]).await?;
    assert_eq!((code, sandbox.body(1).await?), (Some(0), POSTS.into()), "{said}");

    let other = FaultyApi::saying([Answer::ok(POSTS)]).await?;
    let token = sandbox.logs().join("token");
    fs::write(&token, "s3cret")?;
    let header = [("SOURCE_HEADER_FILE", &*token.to_string_lossy())];
    let there = other.url();
    for target in [there.clone(), there.replace("127.0.0.1", "localhost"), there.replace("http", "https")] {
        api.say([Answer::status(307).with("Location", &target)]);
        let (code, said) = once(&sandbox, &api, &header).await?;
        assert_eq!(code, Some(1));
        assert!(said.contains(&format!("was redirected to {target}")), "{said}");
    }
    assert_eq!(other.seen().len(), 0, "neither a request nor the token went there");
    Ok(())
}

#[tokio::test]
async fn http_to_another_host_needs_a_word() -> Result<()> {
    let sandbox = start_nothing().await?;
    let refused = importer(&sandbox, &[("SOURCE_URL", "http://api.invalid/posts")], &["once"]).await?;
    assert_eq!(refused.status.code(), Some(2));
    // Now it gets as far as looking for the host, which no name server may know (RFC 2606).
    let allowed = importer(&sandbox, &[("SOURCE_URL", "http://api.invalid/posts")], &["once", "--allow-http"]).await?;
    assert_eq!(allowed.status.code(), Some(1), "{}", String::from_utf8_lossy(&allowed.stderr));
    Ok(())
}

#[tokio::test]
async fn an_authority_of_ones_own_is_named_by_ssl_cert_file() -> Result<()> {
    let sandbox = start_nothing().await?;
    let folder = sandbox.logs().join("tls");
    let certificates = match Certificates::make(&folder, "IP:127.0.0.1") {
        Ok(certificates) => certificates,
        Err(why) => {
            support::skipped(format!("openssl makes no certificates here: {why:#}"));
            return Ok(());
        }
    };
    fs::write(folder.join("posts"), format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{POSTS}", POSTS.len()))?;
    let mut server = Command::new("openssl");
    server.args("s_server -accept 127.0.0.1:0 -cert server.pem -key server.key -HTTP".split(' ')).current_dir(&folder);
    let mut server = server.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("it is piped")?).lines();
    let address = loop {
        let line = lines.next_line().await?.context("openssl says where it listens")?;
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            break address.to_owned();
        }
    };
    let url = format!("https://{address}/posts");
    let unknown = importer(&sandbox, &[("SOURCE_URL", &url)], &["once"]).await?;
    let said = String::from_utf8(unknown.stderr)?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(said.contains("set SSL_CERT_FILE to a file with that authority's certificates"), "{said}");
    let file = certificates.authority.to_string_lossy();
    let known = importer(&sandbox, &[("SOURCE_URL", &url), ("SSL_CERT_FILE", &file)], &["once"]).await?;
    assert_eq!(known.status.code(), Some(0), "{}", String::from_utf8_lossy(&known.stderr));
    Ok(())
}

#[tokio::test]
async fn a_packed_answer_is_archived_unpacked() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok(POSTS).gzip().with("ETag", "\"packed\"")]).await?;
    let sandbox = start_nothing().await?;
    let (code, said) = once(&sandbox, &api, &[]).await?;
    assert_eq!((code, sandbox.body(1).await?), (Some(0), POSTS.into()), "{said}");
    assert_eq!(api.seen()[0].header("accept-encoding"), Some("gzip, zstd, br, deflate"));
    assert_eq!(metadata(&sandbox, 1).await?.etag.as_deref(), Some("\"packed\""));
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_refused_packed_or_not() -> Result<()> {
    let sandbox = start_nothing().await?;
    let bomb = Answer::ok(format!("[{}]", " ".repeat(20 << 20))).gzip();
    for answer in [Answer::posts(100_001), Answer::endless(), bomb] {
        let api = FaultyApi::saying([answer]).await?;
        let (code, said) = once(&sandbox, &api, &[("MAX_BODY", "100000")]).await?;
        assert_eq!((code, api.seen().len()), (Some(1), 1), "{said}");
        assert!(said.contains("longer than MAX_BODY (100000 bytes)"), "{said}");
    }
    let api = FaultyApi::saying([Answer::posts(100_000)]).await?;
    assert_eq!(once(&sandbox, &api, &[("MAX_BODY", "100000")]).await?.0, Some(0), "just as long as allowed");
    assert_eq!(sandbox.end().await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_the_data_gets_no_sequence_and_is_told_once() -> Result<()> {
    for (answer, beginning) in [
        (Answer::ok("<!DOCTYPE html><title>Log in</title>"), "begins with `<!DOCTYPE html><title>Log in</title>`"),
        (Answer::ok(""), "begins with nothing: the document is empty"),
        (Answer::ok("try later"), "begins with `try later`"),
        (Answer::ok(format!("{}try later", " ".repeat(1_000))), "begins with `try later`"),
    ] {
        let api = FaultyApi::saying([answer]).await?;
        let sandbox = polling(&api).await?;
        asked(&sandbox, &api, 3).await?;
        api.say([Answer::ok(POSTS)]);
        archived(&sandbox, 1).await?;
        assert_eq!(sandbox.body(1).await?, POSTS.as_bytes(), "the first sequence is the data's");
        let lines = sandbox.importer.log_lines();
        let told: Vec<_> = lines.iter().filter_map(|line| line["why"].as_str()).collect();
        let [told] = told.as_slice() else { panic!("told {} times: {told:?}", told.len()) };
        assert!(told.contains(beginning), "{told}");
    }
    Ok(())
}

#[tokio::test]
async fn an_api_that_changes_at_every_poll_is_told_with_what_it_costs() -> Result<()> {
    let polls = Mutex::new(1000);
    let api = FaultyApi::start(move |_: &Request| {
        let mut poll = polls.lock().expect("nobody panics with it");
        *poll += 1;
        Answer::ok(format!(r#"[{{"userId":1,"id":1,"title":"at {poll}","body":"b"}}]"#))
    })
    .await?;
    let sandbox = start_nothing().await?;
    let mut events = sandbox.events().subscribe();
    sandbox.importer.restart_with(&[("SOURCE_URL", &api.url())]).await?;
    let told = loop {
        let event = events.recv().await?;
        if event.number("bytes_a_day").is_some() {
            break event;
        }
    };
    let bytes = sandbox.body(1).await?.len() as u64;
    assert_eq!((told.level.as_str(), told.number("polls")), ("WARN", Some(10)));
    assert_eq!(told.number("bytes_a_day"), Some(bytes * 24 * 60 * 60 * 5), "five polls a second");
    Ok(())
}
