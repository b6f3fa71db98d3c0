//! The importer is a good guest: it asks for no more than it needs, waits when it is told to, and says who it is.

use std::{fs, sync::Mutex, time::Duration};

use anyhow::Result;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use sandbox::{Sandbox, Signal};
use support::{
    SOON,
    faulty_api::{Answer, FaultyApi, Request},
    importer, logged, metadata,
    proxy::{Proxy, Way},
    second, start_nothing,
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
async fn a_packed_answer_is_archived_unpacked() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok(POSTS).gzip().with("ETag", "\"packed\"")]).await?;
    let sandbox = start_nothing().await?;
    let (code, said) = once(&sandbox, &api, &[]).await?;
    assert_eq!((code, sandbox.body(1).await?), (Some(0), POSTS.into()), "{said}");
    assert_eq!(api.seen()[0].header("accept-encoding"), Some("gzip"));
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
