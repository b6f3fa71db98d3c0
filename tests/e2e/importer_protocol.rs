//! The archive stays one log whatever happens between the importer and S3, SQS, the API, and a second importer.

use std::{
    os::unix::process::ExitStatusExt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use sandbox::{Daemon, Sandbox, Setup, Signal};
use support::{
    SOON, assert_whole,
    faulty_api::{Answer, FaultyApi},
    importer, logged, metadata, object_versions,
    proxy::{Proxy, Way, http, s3_error},
    readiness, retitle, second, start, start_nothing,
};
use tokio::sync::Notify;

/// A stream whose importer reaches S3 and SQS through proxies, and the API too. It runs when `start_importer` is called.
struct Proxied {
    sandbox: Sandbox,
    s3: Proxy,
    sqs: Proxy,
    api: Proxy,
}

async fn proxied(setup: Setup) -> Result<Proxied> {
    let sandbox = start(Setup { importer: false, ..setup }).await?;
    let aws = sandbox.world().localstack().endpoint();
    let (s3, sqs) = (Proxy::start(aws).await?, Proxy::start(aws).await?);
    let api = Proxy::start(&sandbox.api.url()).await?;
    Ok(Proxied { sandbox, s3, sqs, api })
}

impl Proxied {
    async fn start_importer(&self) -> Result<()> {
        let settings = [
            ("AWS_ENDPOINT_URL_S3", self.s3.url()),
            ("AWS_ENDPOINT_URL_SQS", self.sqs.url()),
            ("SOURCE_URL", format!("{}/posts", self.api.url())),
        ];
        self.sandbox.importer.restart_with(&settings.each_ref().map(|(name, value)| (*name, value.as_str()))).await
    }

    async fn lost(&self, proxy: &Proxy, count: u64) -> Result<()> {
        let what = format!("{count} answers were lost");
        self.sandbox.wait_until(what, SOON, async || Ok(proxy.lost() == count)).await
    }
}

async fn end_is(sandbox: &Sandbox, end: u64) -> Result<()> {
    let what = format!("the archive ends at {end}");
    sandbox.wait_until(what, SOON, async || Ok(sandbox.end().await? == end)).await
}

/// Each object was written once, and never again.
async fn assert_written_once(sandbox: &Sandbox) -> Result<()> {
    let listed = object_versions(sandbox).await?;
    assert_eq!(listed.versions().len() as u64, sandbox.end().await?);
    assert_eq!(listed.delete_markers(), []);
    Ok(())
}

/// One poll of another importer that sees this collection.
async fn another_appends(sandbox: &Sandbox, source_url: &str) -> Result<()> {
    let output = importer(sandbox, &[("SOURCE_URL", source_url)], &["once"]).await?;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn post(title: &str) -> String {
    format!(r#"[{{"userId":1,"id":1,"title":"{title}","body":"b"}}]"#)
}

#[tokio::test]
async fn an_append_whose_answer_was_lost_is_there_once() -> Result<()> {
    let world = proxied(Setup::default()).await?;
    // The first append of all, and one that continues.
    world.s3.lose_answers("PUT /", 1);
    world.start_importer().await?;
    world.sandbox.settled(SOON).await?;
    world.lost(&world.s3, 1).await?;
    // The object is there after the first; then it takes more losses than the SDK tries by itself.
    world.s3.lose_answers("PUT /", 4);
    retitle(&world.sandbox, 1, "four times");
    world.sandbox.settled(SOON).await?;
    world.lost(&world.s3, 5).await?;
    assert_eq!(world.sandbox.end().await?, 2);
    assert_written_once(&world.sandbox).await?;
    assert_whole(&world.sandbox).await
}

#[tokio::test]
async fn a_lost_answer_at_any_other_call_costs_nothing_but_time() -> Result<()> {
    let world = proxied(Setup { settings: vec![("CATCH_UP_INTERVAL", "1h")], ..Setup::default() }).await?;
    world.s3.lose_answers("list-type=2", 3);
    world.start_importer().await?;
    world.sandbox.settled(SOON).await?;
    let rounds = [(&world.s3, "HEAD /"), (&world.sqs, "POST /"), (&world.api, "GET /posts")];
    for (round, (proxy, pattern)) in rounds.into_iter().enumerate() {
        // As many as make the whole call fail, and one more.
        let (before, count) = (proxy.lost(), 4);
        proxy.lose_answers(pattern, count);
        retitle(&world.sandbox, 1, &format!("round {round}"));
        world.lost(proxy, before + count).await?;
        world.sandbox.settled(SOON).await?;
        assert_eq!(world.sandbox.end().await?, 2 + round as u64, "{pattern}");
    }
    assert_written_once(&world.sandbox).await?;
    assert_whole(&world.sandbox).await
}

#[tokio::test]
async fn whatever_s3_answers_to_an_append_the_object_is_there_once() -> Result<()> {
    let world = proxied(Setup::default()).await?;
    world.start_importer().await?;
    world.sandbox.settled(SOON).await?;
    // Worse than in life: each time the object was written, and the answer says that it was not. As often as it takes to
    // make not only a request fail, but the whole poll.
    for (round, (status, code)) in [
        ("409 Conflict", "ConditionalRequestConflict"),
        ("503 Slow Down", "SlowDown"),
        ("500 Internal Server Error", "InternalError"),
        ("400 Bad Request", "ExpiredToken"),
        ("403 Forbidden", "AccessDenied"),
        ("404 Not Found", "NoSuchBucket"),
    ]
    .into_iter()
    .enumerate()
    {
        let (before, count) = (world.s3.lost(), 5);
        world.s3.replace_answers("PUT /", count, &s3_error(status, code));
        retitle(&world.sandbox, 1, &format!("round {round}"));
        // A refused poll is followed by one that finds the object there, and has nothing more to write.
        world.sandbox.wait_until("it is told", SOON, async || Ok(world.s3.lost() > before)).await?;
        world.sandbox.settled(SOON).await?;
        assert_eq!(world.sandbox.end().await?, 2 + round as u64, "{code}");
        world.s3.replace_answers("PUT /", 0, "");
    }
    assert_eq!(world.sandbox.importer.restarts(), 0);
    assert_written_once(&world.sandbox).await?;
    assert_whole(&world.sandbox).await
}

#[tokio::test]
async fn credentials_that_expire_are_waited_out_and_a_refusal_is_no_empty_archive() -> Result<()> {
    let world = proxied(Setup::default()).await?;
    world.start_importer().await?;
    world.sandbox.settled(SOON).await?;
    for (status, code, state) in
        [("400 Bad Request", "ExpiredToken", "waiting"), ("403 Forbidden", "AccessDenied", "holding")]
    {
        world.s3.replace_answers("HEAD /", u64::MAX, &s3_error(status, code));
        let what = format!("the importer is {state}");
        let is_told = async || Ok(readiness(&world.sandbox.importer).await?.1.starts_with(state));
        world.sandbox.wait_until(what, SOON, is_told).await?;
        let end = world.sandbox.end().await?;
        retitle(&world.sandbox, 1, code);
        world.s3.replace_answers("HEAD /", 0, "");
        end_is(&world.sandbox, end + 1).await?;
    }
    assert_whole(&world.sandbox).await
}

#[tokio::test]
async fn a_pointer_that_the_queue_did_not_take_is_sent_again() -> Result<()> {
    // The idle look is an hour away, so that only the message can tell.
    let world = proxied(Setup { settings: vec![("CATCH_UP_INTERVAL", "1h")], ..Setup::default() }).await?;
    world.start_importer().await?;
    world.sandbox.settled(SOON).await?;
    let refused =
        r#"{"Successful":[],"Failed":[{"Id":"0","SenderFault":false,"Code":"InternalFailure","Message":"so"}]}"#;
    // More than a poll tries.
    world.sqs.replace_answers("POST /", 5, &http("200 OK", "application/x-amz-json-1.0", refused));
    retitle(&world.sandbox, 1, "rung at last");
    world.lost(&world.sqs, 5).await?;
    assert_whole(&world.sandbox).await?;
    let told = world.sandbox.importer.log_lines();
    let why = told.iter().find_map(|line| line["why"].as_str()).unwrap_or_default();
    assert!(why.contains("did not take 1 of the messages (InternalFailure)"), "{why}");
    Ok(())
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_was_idle_or_in_use_is_made_anew() -> Result<()> {
    let world = proxied(Setup::default()).await?;
    world.start_importer().await?;
    world.sandbox.settled(SOON).await?;
    for round in 0..20 {
        for proxy in [&world.s3, &world.sqs, &world.api] {
            proxy.cut();
        }
        retitle(&world.sandbox, 1, &format!("round {round}"));
        world.sandbox.settled(SOON).await?;
    }
    assert_eq!(world.sandbox.importer.restarts(), 0);
    assert_written_once(&world.sandbox).await?;
    assert_whole(&world.sandbox).await
}

#[tokio::test]
async fn an_upload_that_is_cut_is_begun_again_from_its_start() -> Result<()> {
    let world = proxied(Setup { posts: 5_000, ..Setup::default() }).await?;
    world.s3.set(Way::CutAfter { sent: 300_000, received: u64::MAX });
    let mut events = world.sandbox.events().subscribe();
    world.start_importer().await?;
    let why = logged(&mut events, "importer", "waiting for a dependency").await?.text("why").unwrap_or_default();
    assert!(why.contains("PutObject s3://"), "{why}");
    assert_eq!(world.sandbox.end().await?, 0, "half a body is no object");
    world.s3.set(Way::Pass);
    world.sandbox.settled(SOON).await?;
    assert_written_once(&world.sandbox).await
}

#[tokio::test]
async fn archiving_goes_on_while_the_queue_is_down_and_the_message_comes_later() -> Result<()> {
    // The idle look is an hour away, so that only the message can tell.
    let world = proxied(Setup { settings: vec![("CATCH_UP_INTERVAL", "1h")], ..Setup::default() }).await?;
    world.start_importer().await?;
    world.sandbox.settled(SOON).await?;
    world.sqs.set(Way::Refuse);
    for title in ["second", "third", "fourth"] {
        let end = world.sandbox.end().await?;
        retitle(&world.sandbox, 1, title);
        end_is(&world.sandbox, end + 1).await?;
    }
    let waits = "the importer says what it waits for";
    let is_told = async || Ok(readiness(&world.sandbox.importer).await?.1.contains("SendMessageBatch"));
    world.sandbox.wait_until(waits, SOON, is_told).await?;
    assert_eq!(world.sandbox.position().await?, 1);
    world.sqs.set(Way::Pass);
    assert_whole(&world.sandbox).await
}

#[tokio::test]
async fn the_importer_starts_before_everything_that_it_needs() -> Result<()> {
    let world = proxied(Setup::default()).await?;
    for proxy in [&world.s3, &world.sqs, &world.api] {
        proxy.set(Way::Refuse);
    }
    let mut events = world.sandbox.events().subscribe();
    world.start_importer().await?;
    for (proxy, what) in
        [(&world.s3, "ListObjectsV2 s3://"), (&world.api, "got no answer"), (&world.sqs, "SendMessage")]
    {
        let why = logged(&mut events, "importer", "waiting for a dependency").await?.text("why").unwrap_or_default();
        assert!(why.contains(what), "{why}");
        proxy.set(Way::Pass);
    }
    world.sandbox.settled(SOON).await?;
    assert_eq!(world.sandbox.importer.restarts(), 0, "it waits, it does not die");
    Ok(())
}

#[tokio::test]
async fn an_importer_that_lost_a_number_adopts_the_winner_and_asks_the_api_again() -> Result<()> {
    let sandbox = start_nothing().await?;
    let gate = Arc::new(Notify::new());
    let slow = FaultyApi::saying([
        Answer::ok(post("first")),
        Answer::ok(post("fetched before the winner")).held_by(&gate),
        Answer::ok(post("fetched after the winner")),
    ])
    .await?;
    let winner = FaultyApi::saying([Answer::ok(post("the winner"))]).await?;
    let mut events = sandbox.events().subscribe();
    sandbox.importer.restart_with(&[("SOURCE_URL", &slow.url())]).await?;
    sandbox.wait_until("the second fetch is held", SOON, async || Ok(slow.seen().len() == 2)).await?;
    another_appends(&sandbox, &winner.url()).await?;
    gate.notify_one();
    logged(&mut events, "importer", "standing by").await?;
    assert_eq!(
        logged(&mut events, "importer", "adopted").await?.number("sequence"),
        None,
        "a sequence is shown as text"
    );
    end_is(&sandbox, 3).await?;
    let bodies = [sandbox.body(1).await?, sandbox.body(2).await?, sandbox.body(3).await?];
    assert_eq!(bodies.map(String::from_utf8), ["first", "the winner", "fetched after the winner"].map(|t| Ok(post(t))));
    assert_eq!(metadata(&sandbox, 3).await?.previous, Some(metadata(&sandbox, 2).await?.observation));
    assert_written_once(&sandbox).await
}

#[tokio::test]
async fn a_snapshot_of_several_pages_wins_or_loses_as_one_does() -> Result<()> {
    for pages_of_the_winner in [3, 1] {
        let sandbox = start_nothing().await?;
        let gate = Arc::new(Notify::new());
        let in_pages = |pages: usize, title: &'static str, held: Option<Arc<Notify>>| {
            FaultyApi::start(move |request| {
                let page = request.query.strip_prefix("page=").map_or(Ok(1), str::parse).unwrap_or(1);
                let answer = Answer::ok(post(&format!("{title} {page}")));
                match &held {
                    _ if page < pages => answer.with("Link", format!("<?page={}>; rel=next", page + 1)),
                    Some(gate) => answer.held_by(gate),
                    None => answer,
                }
            })
        };
        let slow = in_pages(4 - pages_of_the_winner, "the loser", Some(gate.clone())).await?;
        let winner = in_pages(pages_of_the_winner, "the winner", None).await?;
        let mut events = sandbox.events().subscribe();
        sandbox.importer.restart_with(&[("SOURCE_URL", &slow.url())]).await?;
        let is_held = async || Ok(slow.seen().len() == 4 - pages_of_the_winner);
        sandbox.wait_until("the last page is held", SOON, is_held).await?;
        another_appends(&sandbox, &winner.url()).await?;
        gate.notify_one();
        logged(&mut events, "importer", "standing by").await?;
        // It polls again, and this time its pages are the newer ones.
        gate.notify_one();
        end_is(&sandbox, 4).await?;
        for sequence in 1..=4 {
            let metadata = metadata(&sandbox, sequence).await?;
            let first = if sequence <= pages_of_the_winner as u64 { 1 } else { pages_of_the_winner as u64 + 1 };
            assert_eq!((metadata.snapshot.get(), u64::from(metadata.page)), (first, sequence - first + 1));
        }
        assert_written_once(&sandbox).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_state_that_a_dead_importer_left_is_not_the_last_word() -> Result<()> {
    let sandbox = start_nothing().await?;
    let etag = |title: &str| format!("\"{title}\"");
    let saying = move |title: &'static str| {
        move |request: &support::faulty_api::Request| {
            if request.header("if-none-match") == Some(&etag(title)) {
                return Answer::status(304);
            }
            Answer::ok(post(title)).with("ETag", etag(title))
        }
    };
    let api = FaultyApi::start(saying("as it was")).await?;
    sandbox.importer.restart_with(&[("SOURCE_URL", &api.url())]).await?;
    end_is(&sandbox, 1).await?;
    // While this importer sees nothing, another one archives a change, and dies, and the API takes the change back.
    sandbox.importer.signal(Signal::STOP);
    api.answer(saying("as it never stayed"));
    another_appends(&sandbox, &api.url()).await?;
    api.answer(saying("as it was"));
    sandbox.importer.signal(Signal::CONT);
    end_is(&sandbox, 3).await?;
    assert_eq!(sandbox.body(3).await?, post("as it was").into_bytes());
    Ok(())
}

#[tokio::test]
async fn a_second_importer_takes_over_when_the_first_dies() -> Result<()> {
    let sandbox = start(Setup { importer: false, transformer: false, ..Setup::default() }).await?;
    sandbox.importer.start();
    let second = second(&sandbox, "importer").await?;
    let mut took = Vec::new();
    for (round, (dies, lives)) in [(&sandbox.importer, &second), (&second, &sandbox.importer)].into_iter().enumerate() {
        for daemon in [dies, lives] {
            sandbox.wait_until("both are ready", SOON, async || Ok(readiness(daemon).await?.0 == 200)).await?;
        }
        dies.stop().await?;
        let (end, died) = (sandbox.end().await?, Instant::now());
        retitle(&sandbox, 1, &format!("round {round}"));
        end_is(&sandbox, end + 1).await?;
        took.push(died.elapsed());
        dies.start();
    }
    println!("polling every 200 ms, the other importer took over within {took:?}");
    assert_appended_by_one(&sandbox, &[&sandbox.importer, &second]).await
}

#[tokio::test]
async fn importers_that_race_append_each_number_once() -> Result<()> {
    let sandbox = start(Setup { importer: false, ..Setup::default() }).await?;
    let url = format!("{}?_page=1&_limit=40", sandbox.api.url());
    sandbox.importer.restart_with(&[("SOURCE_URL", &url)]).await?;
    let second = second(&sandbox, "importer").await?;
    second.restart_with(&[("SOURCE_URL", &url)]).await?;
    for round in 0..10 {
        // Three pages a snapshot, so that the two also meet between pages.
        retitle(&sandbox, round * 10 + 1, &format!("round {round}"));
        sandbox.settled(SOON).await?;
    }
    assert_appended_by_one(&sandbox, &[&sandbox.importer, &second]).await?;
    assert_whole(&sandbox).await
}

/// No number was written by two, nor by one twice: what they say that they appended is what is there.
async fn assert_appended_by_one(sandbox: &Sandbox, importers: &[&Daemon]) -> Result<()> {
    let lines = importers.iter().flat_map(|daemon| daemon.log_lines());
    let mut appended: Vec<_> = lines.filter(|line| line["message"] == "appended").collect();
    let sequence = |line: &serde_json::Value| line["sequence"].as_str().and_then(|text| text.parse::<u64>().ok());
    appended.sort_by_key(sequence);
    for (line, expected) in appended.iter().zip(1..) {
        assert_eq!(sequence(line), Some(expected), "{line}");
        let there = metadata(sandbox, expected).await?.observation.to_string();
        assert_eq!(line["observation"].as_str(), Some(there.as_str()), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn an_archive_whose_oldest_objects_are_gone_goes_on() -> Result<()> {
    let sandbox = start(Setup { posts: 5, transformer: false, ..Setup::default() }).await?;
    for sequence in 1..=4 {
        end_is(&sandbox, sequence).await?;
        retitle(&sandbox, 1, &format!("after {sequence}"));
    }
    end_is(&sandbox, 5).await?;
    sandbox.importer.terminate().await?;
    for sequence in 1..=3 {
        let key = shared::object::Sequence::try_from(sequence)?.key(sandbox.stream());
        sandbox.s3().delete_object().bucket(sandbox.bucket()).key(key).send().await?;
    }
    let listed = importer(&sandbox, &[], &["list", "--json"]).await?.stdout;
    let lines = serde_json::Deserializer::from_slice(&listed).into_iter::<serde_json::Value>();
    let numbers: Vec<_> = lines.map(|line| line.map(|line| line["sequence"].clone())).collect::<Result<_, _>>()?;
    assert_eq!(numbers, [4, 5], "the list begins with the oldest that is kept");
    retitle(&sandbox, 1, "the newest");
    sandbox.importer.start();
    end_is(&sandbox, 6).await?;
    let newest = metadata(&sandbox, 6).await?;
    assert_eq!(newest.previous, Some(metadata(&sandbox, 5).await?.observation));
    assert_eq!(newest.archive_id, metadata(&sandbox, 4).await?.archive_id);
    Ok(())
}

#[tokio::test]
async fn an_archive_that_was_emptied_is_noticed_though_the_api_says_the_same() -> Result<()> {
    let sandbox = start_nothing().await?;
    sandbox.importer.restart_with(&[("POLL_INTERVAL", "10ms")]).await?;
    end_is(&sandbox, 1).await?;
    let before = metadata(&sandbox, 1).await?;
    support::empty_bucket(&sandbox).await?;
    // Another archive, which the transformer will not take for the old one.
    end_is(&sandbox, 1).await?;
    assert_ne!(metadata(&sandbox, 1).await?.archive_id, before.archive_id);
    Ok(())
}

#[tokio::test]
async fn an_end_that_is_not_ours_holds_the_importer_until_it_is_gone() -> Result<()> {
    let sandbox = start(Setup { posts: 5, transformer: false, ..Setup::default() }).await?;
    end_is(&sandbox, 1).await?;
    let foreign = shared::object::Sequence::try_from(2)?.key(sandbox.stream());
    let put = sandbox.s3().put_object().bucket(sandbox.bucket()).key(&foreign);
    put.body(b"[]".to_vec().into()).send().await?;
    let listed = String::from_utf8(importer(&sandbox, &[], &["list"]).await?.stdout)?;
    assert!(listed.contains("           2  its metadata lacks `archive-id`"), "{listed}");
    let why = support::hold_of(&sandbox, &sandbox.importer).await?;
    assert!(why.contains(&foreign) && why.contains("its metadata lacks `archive-id`"), "{why}");
    sandbox.s3().delete_object().bucket(sandbox.bucket()).key(&foreign).send().await?;
    retitle(&sandbox, 1, "goes on");
    end_is(&sandbox, 2).await?;

    // A copy of one of ours, under the last number that there is.
    let source = format!("{}/{}", sandbox.bucket(), shared::object::Sequence::FIRST.key(sandbox.stream()));
    let last = shared::object::Sequence::LAST.key(sandbox.stream());
    sandbox.s3().copy_object().bucket(sandbox.bucket()).copy_source(source).key(&last).send().await?;
    sandbox.importer.terminate().await?;
    sandbox.importer.start();
    let why = support::hold_of(&sandbox, &sandbox.importer).await?;
    assert!(why.contains(&last) && why.contains("it has the last number of all"), "{why}");
    assert!(sandbox.importer.ended().is_none_or(|status| status.success()), "it stays up");
    Ok(())
}

#[tokio::test]
async fn sigterm_in_the_middle_of_a_big_upload_ends_in_time_and_the_next_start_archives_it_once() -> Result<()> {
    // So much that it is not over before anybody looks, and takes its time on a busy machine.
    const BYTES: u64 = 1 << 30;
    let sandbox = start_nothing().await?;
    let api = FaultyApi::saying([Answer::posts(BYTES)]).await?;
    let s3 = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    s3.set(Way::Rate(4_000_000));
    sandbox.importer.restart_with(&[("SOURCE_URL", &api.url()), ("AWS_ENDPOINT_URL_S3", &s3.url())]).await?;
    sandbox.wait_until("the upload is on its way", 3 * SOON, async || Ok(s3.sent() > 2_000_000)).await?;
    let told = Instant::now();
    let status = sandbox.importer.terminate().await?.expect("it was running");
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    assert!(told.elapsed() < Duration::from_secs(10), "it took {:?}", told.elapsed());
    assert!(s3.sent() < BYTES / 2, "it was in the middle");
    let listed = object_versions(&sandbox).await?;
    assert_eq!(listed.versions(), [], "nothing that is not whole");

    s3.set(Way::Pass);
    sandbox.importer.start();
    sandbox.wait_until("it is archived", 3 * SOON, async || Ok(sandbox.end().await? == 1)).await?;
    let key = shared::object::Sequence::FIRST.key(sandbox.stream());
    let head = sandbox.s3().head_object().bucket(sandbox.bucket()).key(key).send().await?;
    assert_eq!(head.content_length(), Some(BYTES.try_into()?));
    let polls = api.seen().len();
    sandbox.wait_until("it polled again", 3 * SOON, async || Ok(api.seen().len() > polls + 1)).await?;
    assert_written_once(&sandbox).await
}
