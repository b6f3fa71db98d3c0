//! A collection of several pages is one snapshot: whole, in order, and archived once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use anyhow::Result;
use sandbox::{Sandbox, Setup};
use serde_json::{Value, json};
use shared::{
    object::{Metadata, Sha256},
    pointer::Pointer,
};
use support::{
    SOON,
    faulty_api::{Answer, FaultyApi, Request},
    importer, logged, metadata,
    programs::with_crash_points,
    proxy::{Proxy, Way},
    retitle, start, start_nothing,
};
use tokio::process::Command;
use url::form_urlencoded;

/// A stream whose posts come in pages of `limit`. It polls when it is told to.
async fn in_pages(posts: u64, limit: u64, transformer: bool) -> Result<(Sandbox, String)> {
    let sandbox = start(Setup { posts, importer: false, transformer, ..Setup::default() }).await?;
    let url = format!("{}?_page=1&_limit={limit}", sandbox.api.url());
    Ok((sandbox, url))
}

/// The same behind cursors, in objects.
async fn in_a_feed(posts: u64, limit: u64) -> Result<(Sandbox, String)> {
    let settings = vec![("NEXT_PAGE", "cursor=/meta/next"), ("RECORDS_AT", "/data")];
    let sandbox = start(Setup { posts, importer: false, settings, ..Setup::default() }).await?;
    let url = format!("{}?limit={limit}", sandbox.api.feed_url());
    Ok((sandbox, url))
}

/// One poll, and its exit code.
async fn once(sandbox: &Sandbox, settings: &[(&'static str, &str)]) -> Result<(Option<i32>, String)> {
    let output = importer(sandbox, settings, &["once"]).await?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

/// Everything that the objects from `first` on say of themselves.
async fn all_metadata(sandbox: &Sandbox, first: u64) -> Result<Vec<Metadata>> {
    let mut all = Vec::new();
    for sequence in first..=sandbox.end().await? {
        all.push(metadata(sandbox, sequence).await?);
    }
    Ok(all)
}

/// The objects are the pages of one whole snapshot.
fn assert_snapshot(objects: &[Metadata], first: u64) {
    let digests: Vec<_> = objects.iter().map(|page| page.sha256).collect();
    for (page, number) in objects.iter().zip(1..) {
        assert_eq!((page.page, page.snapshot.get()), (number, first));
        assert_eq!(page.last_page, number as usize == objects.len(), "page {number}");
        assert_eq!(page.snapshot_sha256, Sha256::of_pages(&digests));
        assert_eq!((&page.etag, &page.last_modified), (&None, &None), "a page of many has no validator");
    }
}

/// The number that a query gives to `_page`, 1 if it gives none.
fn page_of(request: &Request) -> usize {
    request.query.split('&').find_map(|pair| pair.strip_prefix("_page=")?.parse().ok()).unwrap_or(1)
}

fn next(page: usize) -> String {
    format!("<?_page={page}>; rel=\"next\"")
}

#[tokio::test]
async fn a_paged_collection_is_archived_page_by_page_and_applied() -> Result<()> {
    let (sandbox, url) = in_pages(95, 25, true).await?;
    sandbox.importer.restart_with(&[("SOURCE_URL", &url)]).await?;
    sandbox.settled(SOON).await?;
    let pages = all_metadata(&sandbox, 1).await?;
    assert_eq!(pages.len(), 4);
    assert_snapshot(&pages, 1);
    assert!(pages[2].source_url.ends_with("?_page=3&_limit=25"), "{}", pages[2].source_url);
    for (number, expected) in [(1, 25), (4, 20)] {
        let posts: Vec<serde_json::Value> = serde_json::from_slice(&sandbox.body(number).await?)?;
        assert_eq!(posts.len(), expected);
    }

    retitle(&sandbox, 90, "on the last page");
    sandbox.settled(SOON).await?;
    assert_snapshot(&all_metadata(&sandbox, 5).await?, 5);
    support::assert_whole(&sandbox).await
}

#[tokio::test]
async fn a_collection_in_objects_behind_cursors_is_archived_and_applied() -> Result<()> {
    let (sandbox, url) = in_a_feed(95, 25).await?;
    sandbox.importer.restart_with(&[("SOURCE_URL", &url)]).await?;
    sandbox.settled(SOON).await?;
    let pages = all_metadata(&sandbox, 1).await?;
    assert_eq!(pages.len(), 4);
    assert_snapshot(&pages, 1);
    assert!(pages[2].source_url.ends_with("/feed?limit=25&cursor=50"), "{}", pages[2].source_url);
    assert!(sandbox.body(4).await?.starts_with(b"{"));

    retitle(&sandbox, 90, "on the last page");
    sandbox.settled(SOON).await?;
    assert_snapshot(&all_metadata(&sandbox, 5).await?, 5);
    support::assert_whole(&sandbox).await?;

    // What the importer has noted with each object counts, whatever the transformer's setting says.
    sandbox.transformer.restart_with(&[("RECORDS_AT", "/data/posts")]).await?;
    retitle(&sandbox, 90, "once more");
    sandbox.settled(SOON).await?;
    assert_eq!(sandbox.position().await?, 12);
    support::assert_whole(&sandbox).await
}

#[tokio::test]
async fn the_queue_is_told_of_every_page_and_of_nothing_when_nothing_changed() -> Result<()> {
    let (sandbox, url) = in_pages(95, 8, false).await?;
    let settings = [("SOURCE_URL", url.as_str())];
    assert_eq!(once(&sandbox, &settings).await?.0, Some(0));
    let mut told = Vec::new();
    while told.len() < 12 {
        let request = sandbox.sqs().receive_message().queue_url(sandbox.queue_url()).max_number_of_messages(10);
        for message in request.wait_time_seconds(10).send().await?.messages() {
            told.push(Pointer::decode(message.body().unwrap_or_default(), sandbox.stream())?.sequence.get());
            let receipt = message.receipt_handle().unwrap_or_default();
            sandbox.sqs().delete_message().queue_url(sandbox.queue_url()).receipt_handle(receipt).send().await?;
        }
    }
    assert_eq!(told, (1..=12).collect::<Vec<_>>(), "more than a batch takes, in order");
    for _ in 0..2 {
        assert_eq!(once(&sandbox, &settings).await?.0, Some(3));
    }
    assert_eq!(sandbox.end().await?, 12);
    support::queue_is_empty(&sandbox).await
}

#[tokio::test]
async fn numbered_pages_without_links_end_with_an_empty_one() -> Result<()> {
    let api = FaultyApi::start(|request| match page_of(request) {
        page @ 1..=3 => Answer::ok(format!(r#"[{{"id":{page}}}]"#)).with("ETag", "\"same for all\""),
        _ => Answer::ok(" [ ]\n"),
    })
    .await?;
    let sandbox = start_nothing().await?;
    let url = format!("{}?_page=1", api.url());
    let settings = [("SOURCE_URL", &*url), ("NEXT_PAGE", "_page+1")];
    assert_eq!(once(&sandbox, &settings).await?.0, Some(0));
    let asked: Vec<_> = api.seen().iter().map(|request| request.query.clone()).collect();
    // The last one twice: a server that is busy may say that there are no more records.
    assert_eq!(asked, ["_page=1", "_page=2", "_page=3", "_page=4", "_page=4"]);
    let pages = all_metadata(&sandbox, 1).await?;
    assert_eq!(pages.len(), 3, "the empty page is no part of it");
    assert_snapshot(&pages, 1);
    assert_eq!(once(&sandbox, &settings).await?.0, Some(3));
    Ok(())
}

#[tokio::test]
async fn links_that_lead_in_a_circle_or_away_archive_nothing() -> Result<()> {
    let sandbox = start_nothing().await?;
    let circle = FaultyApi::start(|request| Answer::ok("[{}]").with("Link", next(page_of(request) % 3 + 1))).await?;
    let source = format!("{}?_page=1", circle.url());
    let (code, said) = once(&sandbox, &[("SOURCE_URL", &source)]).await?;
    assert_eq!((code, circle.seen().len()), (Some(1), 4), "{said}");
    assert!(said.contains("the pages lead in a circle"), "{said}");

    let other = FaultyApi::saying([Answer::ok("[]")]).await?;
    let away = format!("<{}?_page=2>; rel=next", other.url());
    let api = FaultyApi::saying([Answer::ok("[{}]").with("Link", away)]).await?;
    let (code, said) = once(&sandbox, &[("SOURCE_URL", &api.url())]).await?;
    assert_eq!((code, other.seen().len()), (Some(1), 0), "{said}");
    assert!(said.contains("on another origin"), "{said}");
    assert_eq!(sandbox.end().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_collection_that_changes_while_it_is_paged_is_fetched_again() -> Result<()> {
    let asked = AtomicUsize::new(0);
    // A post arrives between the first page and the second.
    let api = FaultyApi::start(move |request| {
        let total = if asked.fetch_add(1, SeqCst) == 0 { 2 } else { 3 };
        let page = page_of(request);
        let answer = Answer::ok(format!(r#"[{{"id":{page},"of":{total}}}]"#)).with("X-Total-Count", total);
        if page < total { answer.with("Link", next(page + 1)) } else { answer }
    })
    .await?;
    let sandbox = start_nothing().await?;
    let (code, said) = once(&sandbox, &[("SOURCE_URL", &api.url())]).await?;
    assert_eq!((code, api.seen().len()), (Some(0), 5), "{said}");
    assert!(said.contains("the collection changed while it was paged"), "{said}");
    let pages = all_metadata(&sandbox, 1).await?;
    assert_eq!(pages.len(), 3);
    assert_snapshot(&pages, 1);
    assert_eq!(sandbox.body(1).await?, br#"[{"id":1,"of":3}]"#);
    Ok(())
}

#[tokio::test]
async fn a_collection_that_never_holds_still_is_taken_torn_and_a_settled_one_follows_it() -> Result<()> {
    let requests = Arc::new(AtomicUsize::new(10));
    let is_busy = Arc::new(AtomicUsize::new(1));
    let api = FaultyApi::start({
        let (requests, is_busy) = (requests.clone(), is_busy.clone());
        move |request| {
            let total = if is_busy.load(SeqCst) == 1 { requests.fetch_add(1, SeqCst) } else { 2 };
            let page = page_of(request);
            let answer = Answer::ok(format!(r#"[{{"id":{page}}}]"#)).with("X-Total-Count", total);
            if page == 1 { answer.with("Link", next(2)) } else { answer }
        }
    })
    .await?;
    let sandbox = start_nothing().await?;
    let url = api.url();
    let settings = [("SOURCE_URL", url.as_str())];
    assert_eq!(once(&sandbox, &settings).await?.0, Some(0));
    let pages = all_metadata(&sandbox, 1).await?;
    assert_eq!((pages.len(), api.seen().len()), (2, 6), "three walks");
    assert!(pages.iter().all(|page| page.facts.torn));
    assert_snapshot(&pages, 1);
    assert_eq!(once(&sandbox, &settings).await?.0, Some(3), "the same records, torn again");
    is_busy.store(0, SeqCst);
    assert_eq!(once(&sandbox, &settings).await?.0, Some(0), "the same records, settled");
    let pages = all_metadata(&sandbox, 3).await?;
    assert!(pages.iter().all(|page| !page.facts.torn));
    assert_snapshot(&pages, 3);
    assert_eq!(once(&sandbox, &settings).await?.0, Some(3));
    Ok(())
}

#[tokio::test]
async fn a_page_that_fails_is_asked_for_again_and_the_snapshot_goes_on() -> Result<()> {
    let asked = AtomicUsize::new(0);
    let api = FaultyApi::start(move |request| match (page_of(request), asked.fetch_add(1, SeqCst)) {
        (2, 1) => Answer::ok("[{\"id\":2}]").broken_after(4),
        (2, 2) => Answer::status(503),
        (3, _) => Answer::ok("[{\"id\":3}]"),
        (page, _) => Answer::ok(format!("[{{\"id\":{page}}}]")).with("Link", next(page + 1)),
    })
    .await?;
    let sandbox = start_nothing().await?;
    assert_eq!(once(&sandbox, &[("SOURCE_URL", &api.url())]).await?.0, Some(0));
    assert_eq!((api.seen().len(), sandbox.end().await?), (5, 3));
    assert_eq!(sandbox.body(2).await?, b"[{\"id\":2}]", "nothing is left of the try that broke off");
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_a_kill_cut_is_followed_by_a_whole_one() -> Result<()> {
    for ((sandbox, url), next_page) in [
        (in_pages(80, 2, true).await?, None),
        (in_a_feed(80, 2).await?, Some("cursor=/meta/next")),
        (in_pages(80, 2, true).await?, Some("_page+1")),
    ] {
        cut_by_a_kill(&sandbox, &url, next_page).await?;
    }
    Ok(())
}

/// Of a source of forty pages.
async fn cut_by_a_kill(sandbox: &Sandbox, url: &str, next_page: Option<&str>) -> Result<()> {
    // Slow enough that the kill comes between two pages.
    let s3 = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    s3.set(Way::Delay(std::time::Duration::from_millis(5)));
    let mut events = sandbox.events().subscribe();
    let s3_url = s3.url();
    let mut settings = vec![("SOURCE_URL", url), ("AWS_ENDPOINT_URL_S3", &s3_url)];
    settings.extend(next_page.map(|next_page| ("NEXT_PAGE", next_page)));
    sandbox.importer.restart_with(&settings).await?;
    logged(&mut events, "importer", "appended").await?;
    sandbox.importer.kill_and_wait().await?;
    sandbox.settled(SOON).await?;
    let all = all_metadata(sandbox, 1).await?;
    let cut = all.len() - 40;
    assert!((1..40).contains(&cut), "{cut} pages were archived before the kill");
    assert!(all[..cut].iter().all(|page| page.snapshot.get() == 1 && !page.last_page), "the first snapshot has no end");
    assert_snapshot(&all[cut..], cut as u64 + 1);
    support::assert_whole(sandbox).await
}

#[tokio::test]
async fn a_second_page_is_noticed_though_the_first_one_is_the_same() -> Result<()> {
    /// Its name, its settings, and what an answer says of a second page, if there is one.
    type Way = (&'static str, &'static [(&'static str, &'static str)], fn(Answer, bool) -> Answer);
    let ways: [Way; 3] = [
        ("a total", &[], |answer, more| {
            let answer = answer.with("X-Total-Count", 1 + u8::from(more));
            if more { answer.with("Link", next(2)) } else { answer }
        }),
        ("numbered pages", &[("NEXT_PAGE", "_page+1")], |answer, _| answer),
        // A server that sees the first page unchanged says so, and in the same breath where the second is.
        ("a link alone", &[], |answer, more| if more { answer.with("Link", next(2)) } else { answer }),
    ];
    for (name, settings, signs) in ways {
        let is_grown = Arc::new(AtomicUsize::new(0));
        let api = FaultyApi::start({
            let is_grown = is_grown.clone();
            move |request| match (page_of(request), is_grown.load(SeqCst) == 1) {
                (1, more) if request.header("if-none-match") == Some("\"first\"") => signs(Answer::status(304), more),
                (1, more) => signs(Answer::ok(r#"[{"id":1}]"#).with("ETag", "\"first\""), more),
                (2, true) => Answer::ok(r#"[{"id":2}]"#),
                (_, _) => Answer::ok("[]"),
            }
        })
        .await?;
        let sandbox = start_nothing().await?;
        let mut all = vec![("SOURCE_URL", format!("{}?_page=1", api.url()))];
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(once(&sandbox, &all).await?.0, Some(0), "{name}");
        assert_eq!(once(&sandbox, &all).await?.0, Some(3), "{name}");
        is_grown.store(1, SeqCst);
        assert_eq!(once(&sandbox, &all).await?.0, Some(0), "{name}");
        assert_snapshot(&all_metadata(&sandbox, 2).await?, 2);
        assert_eq!(sandbox.end().await?, 3, "{name}");
    }
    Ok(())
}

/// The settings of a source whose bodies name the next page.
fn with_cursors(url: &str) -> [(&'static str, &str); 3] {
    [("SOURCE_URL", url), ("RECORDS_AT", "/data"), ("NEXT_PAGE", "after=/meta/next")]
}

/// The cursor that a request brings, if it brings one.
fn cursor_of(request: &Request) -> Option<String> {
    let mut pairs = form_urlencoded::parse(request.query.as_bytes());
    pairs.find(|(name, _)| name == "after").map(|(_, cursor)| cursor.into_owned())
}

fn wrapped(page: u64, next: &Value) -> Answer {
    Answer::ok(json!({ "data": [{ "id": page }], "meta": { "next": next } }).to_string())
}

/// Three pages behind cursors of both kinds, the first of which needs to be escaped.
fn in_three(request: &Request) -> Answer {
    match cursor_of(request).as_deref() {
        None => wrapped(1, &json!("a&b= é")).with("ETag", "\"same for all\""),
        Some("a&b= é") => wrapped(2, &json!(3)).with("ETag", "\"same for all\""),
        Some("3") => wrapped(3, &Value::Null),
        Some(_) => Answer::status(404),
    }
}

/// The same, and as many by number where they are asked for so.
fn in_three_either_way(request: &Request) -> Answer {
    match page_of(request) {
        _ if !request.query.contains("_page=") => in_three(request),
        page @ 1..=3 => Answer::ok(json!({ "data": [{ "id": page }] }).to_string()),
        _ => Answer::ok(json!({ "data": [] }).to_string()),
    }
}

/// Its settings for the one way, and for the other.
fn either_way(url: &str) -> [[(&'static str, String); 3]; 2] {
    [(url.to_owned(), "after=/meta/next"), (format!("{url}?_page=1"), "_page+1")].map(|(url, next_page)| {
        [("SOURCE_URL", url), ("RECORDS_AT", "/data".to_owned()), ("NEXT_PAGE", next_page.to_owned())]
    })
}

#[tokio::test]
async fn cursors_in_the_bodies_are_followed_to_the_last_page() -> Result<()> {
    let api = FaultyApi::start(in_three).await?;
    let sandbox = start_nothing().await?;
    let url = format!("{}?limit=1&after=", api.url());
    // An empty cursor is one to the server, and no page of it.
    api.answer(|request| match cursor_of(request).as_deref() {
        Some("") => wrapped(1, &json!("a&b= é")),
        _ => in_three(request),
    });
    assert_eq!(once(&sandbox, &with_cursors(&url)).await?.0, Some(0));
    let asked: Vec<_> = api.seen().iter().map(|request| request.query.clone()).collect();
    assert_eq!(asked, ["limit=1&after=", "limit=1&after=a%26b%3D+%C3%A9", "limit=1&after=3"]);
    let pages = all_metadata(&sandbox, 1).await?;
    assert_eq!(pages.len(), 3);
    assert_snapshot(&pages, 1);
    assert!(pages[2].source_url.ends_with("/posts?limit=1&after=3"), "{}", pages[2].source_url);
    assert_eq!(once(&sandbox, &with_cursors(&url)).await?.0, Some(3), "nothing changed");
    assert_eq!(sandbox.end().await?, 3);

    let secret = [("SOURCE_URL", &*url), ("RECORDS_AT", "/data"), ("NEXT_PAGE", "page_token=/meta/next")];
    api.answer(|request| {
        if request.query.contains("page_token=s3cret") { wrapped(2, &json!("")) } else { wrapped(1, &json!("s3cret")) }
    });
    assert_eq!(once(&sandbox, &secret).await?.0, Some(0));
    let pages = all_metadata(&sandbox, 4).await?;
    assert_eq!(pages.len(), 2);
    assert!(pages[1].source_url.ends_with("page_token=…"), "{}", pages[1].source_url);
    Ok(())
}

#[tokio::test]
async fn cursors_that_lead_in_a_circle_or_nowhere_archive_nothing() -> Result<()> {
    let sandbox = start_nothing().await?;
    let api = FaultyApi::start(|request| {
        wrapped(1, &json!(if cursor_of(request).as_deref() == Some("a") { "b" } else { "a" }))
    })
    .await?;
    let url = api.url();
    let (code, said) = once(&sandbox, &with_cursors(&url)).await?;
    assert_eq!((code, api.seen().len()), (Some(1), 4), "{said}");
    assert!(said.contains("?after=a came before: the pages lead in a circle"), "{said}");

    for (last, words) in [
        (wrapped(2, &json!({ "page": 2 })), "at /meta/next, where NEXT_PAGE looks for what leads to the next page"),
        (wrapped(2, &json!(true)), "has true at /meta/next, where NEXT_PAGE looks"),
        (Answer::ok("[]"), "the document is an array, and RECORDS_AT"),
        (Answer::ok(r#"{"data":[1,2,"meta":{}}"#), "the document is broken from byte"),
        (wrapped(2, &json!("x".repeat(4_000))), "has an address of"),
    ] {
        api.answer(move |request| if cursor_of(request).is_some() { last.clone() } else { wrapped(1, &json!("a")) });
        let (code, said) = once(&sandbox, &with_cursors(&url)).await?;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words) && said.contains("?after=a"), "{said}");
    }
    assert_eq!(sandbox.end().await?, 0);
    Ok(())
}

#[tokio::test]
async fn an_importer_that_ends_between_pages_leaves_the_next_one_a_whole_snapshot() -> Result<()> {
    let programs = tokio::task::spawn_blocking(with_crash_points).await??;
    let api = FaultyApi::start(in_three_either_way).await?;
    for settings in either_way(&api.url()) {
        let sandbox = start_nothing().await?;
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        for (point, archived) in [("page-spooled=1*off->panic", 0), ("between-pages=1*off->panic", 2)] {
            let mut crashing = sandbox.settings().clone();
            crashing.set(&settings);
            let mut crashing = sandbox.world().program(&programs.importer, &crashing);
            crashing.arg("once").env("FAILPOINTS", point);
            let ended = Command::from(crashing).kill_on_drop(true).output().await?;
            assert!(!ended.status.success(), "{point}");
            let cut = all_metadata(&sandbox, 1).await?;
            assert_eq!(cut.len(), archived, "{point}");
            assert!(cut.iter().all(|page| !page.last_page), "{point}");
        }
        assert_eq!(once(&sandbox, &settings).await?.0, Some(0));
        let pages = all_metadata(&sandbox, 3).await?;
        assert_eq!(pages.len(), 3);
        assert_snapshot(&pages, 3);
        assert_eq!(once(&sandbox, &settings).await?.0, Some(3));
    }
    Ok(())
}

#[tokio::test]
async fn two_importers_archive_one_chain_that_ends_whole() -> Result<()> {
    let api = FaultyApi::start(in_three_either_way).await?;
    for settings in either_way(&api.url()) {
        let sandbox = start_nothing().await?;
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        for _ in 0..5 {
            let both = tokio::try_join!(once(&sandbox, &settings), once(&sandbox, &settings))?;
            assert!([both.0.0, both.1.0].iter().any(|code| matches!(code, Some(0 | 3))), "{both:?}");
        }
        once(&sandbox, &settings).await?;
        let all = all_metadata(&sandbox, 1).await?;
        let mut previous = None;
        for page in &all {
            assert_eq!(page.previous, previous);
            previous = Some(page.observation);
        }
        let last = all[all.len() - 1].snapshot.get();
        assert_snapshot(&all[usize::try_from(last)? - 1..], last);
        assert_eq!(all.len() as u64, last + 2);
    }
    Ok(())
}

#[tokio::test]
async fn links_are_relative_to_where_the_redirects_led() -> Result<()> {
    let api = FaultyApi::start(|request| match request.path.as_str() {
        "/posts" => Answer::status(302).with("Location", "/v2/list/"),
        "/v2/list/" => Answer::ok(r#"[{"id":1}]"#).with("Link", "<page-2>; rel=next"),
        "/v2/list/page-2" => Answer::ok(r#"[{"id":2}]"#),
        _ => Answer::status(404),
    })
    .await?;
    let sandbox = start_nothing().await?;
    assert_eq!(once(&sandbox, &[("SOURCE_URL", &api.url())]).await?.0, Some(0));
    assert_eq!(sandbox.end().await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_second_page_that_no_304_tells_of_is_found_all_the_same() -> Result<()> {
    let sandbox = start_nothing().await?;
    let api = FaultyApi::saying([Answer::ok(r#"[{"id":1}]"#).with("ETag", "\"first\"")]).await?;
    sandbox.importer.restart_with(&[("SOURCE_URL", &api.url()), ("POLL_INTERVAL", "10ms")]).await?;
    sandbox.wait_until("one page", SOON, async || Ok(sandbox.end().await? == 1)).await?;
    let before = api.seen().len();
    api.answer(|request| match (page_of(request), request.header("if-none-match")) {
        (1, Some(_)) => Answer::status(304),
        (1, None) => Answer::ok(r#"[{"id":1}]"#).with("ETag", "\"first\"").with("Link", next(2)),
        _ => Answer::ok(r#"[{"id":2}]"#),
    });
    sandbox.wait_until("two pages", SOON, async || Ok(sandbox.end().await? == 3)).await?;
    let validated = |request: &&Request| request.header("if-none-match").is_some();
    let believed = api.seen()[before..].iter().take_while(validated).count();
    assert!((1..=60).contains(&believed), "it believed {believed} answers first");
    Ok(())
}
