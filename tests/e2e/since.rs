//! SINCE: only what has changed is asked for, and the table is what it would be without.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use sandbox::Sandbox;
use serde_json::{Value, json};
use shared::object::{Metadata, SnapshotKind};
use support::{
    SOON,
    faulty_api::{Answer, FaultyApi, Request},
    importer, metadata, start_nothing, transformer,
};

const PAGE: usize = 10;

/// What the API has, with the second by its own clock in which each record changed last.
#[derive(Debug, Default)]
struct Collection {
    records: Vec<(u64, String, i64)>,
    /// How far its clock is ahead of ours.
    ahead: i64,
}

impl Collection {
    fn now(&self) -> i64 {
        Timestamp::now().as_second() + self.ahead
    }

    fn set(&mut self, id: u64, title: &str) {
        let record = (id, title.to_owned(), self.now());
        match self.records.iter_mut().find(|(known, ..)| *known == id) {
            Some(known) => *known = record,
            None => self.records.push(record),
        }
    }

    /// Pages behind links; `since` reads the moment that is asked for.
    fn answer(&self, request: &Request, since: SinceOf) -> Answer {
        let changed = self.records.iter().filter(|(.., at)| since(request).is_none_or(|since| *at >= since));
        let changed: Vec<Value> =
            changed.map(|(id, title, _)| json!({ "id": id, "userId": 1, "title": title, "body": "" })).collect();
        let page: usize = request.parameter("page").and_then(|page| page.parse().ok()).unwrap_or(1);
        let answer = Answer::ok(Value::from(changed.chunks(PAGE).nth(page - 1).unwrap_or_default()).to_string());
        let date = Timestamp::from_second(self.now()).expect("a moment of these years");
        let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&date).expect("after the year 0");
        let answer = answer.with("Date", date);
        if page * PAGE >= changed.len() {
            return answer;
        }
        let query: Vec<_> = request.query.split('&').filter(|pair| !pair.starts_with("page=")).collect();
        answer.with("Link", format!("<?{}&page={}>; rel=\"next\"", query.join("&"), page + 1))
    }
}

/// The second since which changes are asked for.
type SinceOf = fn(&Request) -> Option<i64>;

fn lock(collection: &Mutex<Collection>) -> MutexGuard<'_, Collection> {
    collection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The API of a collection, its clock as far ahead as that, and the collection.
async fn api(ahead: SignedDuration, since: SinceOf) -> Result<(FaultyApi, Arc<Mutex<Collection>>)> {
    let collection = Arc::new(Mutex::new(Collection { ahead: ahead.as_secs(), records: Vec::new() }));
    {
        let mut collection = lock(&collection);
        (1..=57).for_each(|id| collection.set(id, "first"));
        // Changed an hour before.
        collection.records.iter_mut().for_each(|(.., at)| *at -= 3_600);
    }
    let served = collection.clone();
    let api = FaultyApi::start(move |request| lock(&served).answer(request, since)).await?;
    Ok((api, collection))
}

async fn once(sandbox: &Sandbox, settings: &[(&'static str, &str)]) -> Result<bool> {
    let output = importer(sandbox, settings, &["once"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => Ok(true),
        Some(3) => Ok(false),
        code => anyhow::bail!("{code:?}: {said}"),
    }
}

async fn end(sandbox: &Sandbox) -> Result<Metadata> {
    metadata(sandbox, sandbox.end().await?).await
}

/// The table holds what the API has.
async fn assert_equal(sandbox: &Sandbox, collection: &Mutex<Collection>) -> Result<()> {
    let output = transformer(sandbox, &[], &["once"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut connection = sandbox.connect().await?;
    let rows: Vec<(i64, String)> =
        sqlx::query_as("SELECT id, title FROM posts ORDER BY id").fetch_all(&mut connection).await?;
    let records = lock(collection).records.clone();
    let expected: Vec<_> = records.into_iter().map(|(id, title, _)| (id.cast_signed(), title)).collect();
    assert_eq!(rows, expected);
    Ok(())
}

fn seconds(request: &Request, name: &str) -> Option<i64> {
    request.parameter(name)?.parse().ok()
}

#[tokio::test]
async fn what_has_changed_is_asked_for_however_an_api_writes_times_and_whatever_its_clock_says() -> Result<()> {
    let forms: [(&str, SinceOf, _); 3] = [
        (
            "modified_after=%Y-%m-%dT%H:%M:%SZ",
            |request| request.parameter("modified_after")?.parse().ok().map(Timestamp::as_second),
            SignedDuration::ZERO,
        ),
        ("since=%s", |request| seconds(request, "since"), SignedDuration::from_hours(24)),
        ("updated[gte]=%s", |request| seconds(request, "updated[gte]"), SignedDuration::from_hours(-24)),
    ];
    for (form, since, ahead) in forms {
        let (sandbox, (api, collection)) = (start_nothing().await?, api(ahead, since).await?);
        let url = format!("{}?a=1", api.url());
        let settings = [("SOURCE_URL", url.as_str()), ("SINCE", form)];
        ensure!(once(&sandbox, &settings).await?, "the first is whole");
        assert_eq!(sandbox.end().await?, 6, "{form}");
        assert_eq!(end(&sandbox).await?.facts.kind, Some(SnapshotKind::Whole));

        let asked = api.seen().len();
        ensure!(!once(&sandbox, &settings).await?, "{form}: nothing has changed");
        let [request] = &api.seen()[asked..] else { panic!("{form}: one request is enough") };
        let moment = since(request).with_context(|| format!("{form}: {}", request.query))?;
        let behind = lock(&collection).now() - moment;
        assert!((60..120).contains(&behind), "{form}: {behind} s before the API's now");

        lock(&collection).set(7, "second");
        ensure!(once(&sandbox, &settings).await?, "{form}: one has changed");
        ensure!(!once(&sandbox, &settings).await?, "{form}: the overlap brings it once more, and that is nothing new");
        lock(&collection).set(58, "new");
        ensure!(once(&sandbox, &settings).await?, "{form}: one is new");
        let facts = end(&sandbox).await?.facts;
        assert_eq!(
            (sandbox.end().await?, facts.kind, facts.single),
            (8, Some(SnapshotKind::Increment), true),
            "{form}"
        );
        assert_equal(&sandbox, &collection).await?;

        // v1, v2, v1 within the overlap.
        for title in ["second", "first", "second"] {
            lock(&collection).set(7, title);
            once(&sandbox, &settings).await?;
        }
        assert_equal(&sandbox, &collection).await?;
        // More than a page of changes at once: asked for again until nothing is new.
        (20..50).for_each(|id| lock(&collection).set(id, "third"));
        ensure!(once(&sandbox, &settings).await?);
        ensure!(!once(&sandbox, &settings).await?, "{form}: the pages of an increment are no news the second time");
        assert_equal(&sandbox, &collection).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_whole_is_asked_for_when_it_is_due_and_where_changes_cannot_be_trusted() -> Result<()> {
    let since: SinceOf = |request| seconds(request, "since");
    let (sandbox, (api, collection)) = (start_nothing().await?, api(SignedDuration::ZERO, since).await?);
    let (url, other) = (format!("{}?a=1", api.url()), format!("{}?a=2", api.url()));
    let settings = [("SOURCE_URL", url.as_str()), ("SINCE", "since=%s")];
    let was_whole = async |settings: &[(&'static str, &str)]| {
        let asked = api.seen().len();
        once(&sandbox, settings).await?;
        // The last walk counts: a clock that was set back shows in an answer.
        let asked = api.seen().split_off(asked);
        let mut first_pages = asked.iter().filter(|request| request.parameter("page").is_none());
        anyhow::Ok(since(first_pages.next_back().context("it has asked")?).is_none())
    };
    ensure!(was_whole(&settings).await?, "the first poll");
    ensure!(!was_whole(&settings).await?);
    ensure!(was_whole(&[settings.as_slice(), &[("FULL_REFRESH_INTERVAL", "100ms")]].concat()).await?, "it is due");
    ensure!(was_whole(&[("SOURCE_URL", other.as_str()), settings[1]]).await?, "another collection");
    ensure!(!was_whole(&[("SOURCE_URL", other.as_str()), settings[1]]).await?);

    // What changes now bears a time before the one that would be asked for.
    lock(&collection).ahead = -600;
    lock(&collection).set(3, "after the clock was set back");
    ensure!(was_whole(&[("SOURCE_URL", other.as_str()), settings[1]]).await?, "the clock was set back");
    assert_equal(&sandbox, &collection).await?;
    ensure!(!was_whole(&[("SOURCE_URL", other.as_str()), settings[1]]).await?, "and goes on from there");
    Ok(())
}

#[tokio::test]
async fn a_quiet_collection_costs_a_request_a_poll() -> Result<()> {
    let (sandbox, (api, collection)) =
        (start_nothing().await?, api(SignedDuration::ZERO, |request| seconds(request, "since")).await?);
    lock(&collection).set(5, "changed just before");
    let settings = [("SOURCE_URL", api.url()), ("SINCE", "since=%s".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    sandbox.importer.restart_with(&settings).await?;
    sandbox.wait_until("the first load", SOON, async || Ok(sandbox.end().await? >= 6)).await?;
    // The overlap brings the changed one once more: it is in the archive already.
    let asked = api.seen().len();
    sandbox.wait_until("ten polls", SOON, async || Ok(api.seen().len() >= asked + 10)).await?;
    ensure!(api.seen()[asked + 1..].iter().all(|request| seconds(request, "since").is_some()), "{:?}", api.seen());
    assert_eq!(sandbox.end().await?, 6);
    lock(&collection).set(5, "changed again");
    sandbox.wait_until("the change", SOON, async || Ok(sandbox.end().await? == 7)).await?;
    assert_equal(&sandbox, &collection).await?;
    Ok(())
}

#[tokio::test]
async fn links_that_forget_since_when_are_refused() -> Result<()> {
    let sandbox = start_nothing().await?;
    let answer = |request: &Request| {
        let page = request.parameter("page").map_or(1, |page| page.len());
        let records: Vec<Value> =
            (1..=3).map(|id| json!({ "id": id, "userId": 1, "title": "t", "body": "" })).collect();
        let answer = Answer::ok(Value::from(records).to_string());
        if page == 1 && request.parameter("since").is_some() {
            answer.with("Link", "<?page=22>; rel=\"next\"")
        } else {
            answer
        }
    };
    let api = FaultyApi::start(move |request| answer(request)).await?;
    let settings = [("SOURCE_URL", api.url()), ("SINCE", "since=%s".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    ensure!(once(&sandbox, &settings).await?);
    let why = once(&sandbox, &settings).await.expect_err("a part would be taken for all that has changed").to_string();
    ensure!(why.contains("page=22, which does not say since when") && why.contains("unset SINCE"), "{why}");
    assert_eq!(sandbox.end().await?, 1);
    Ok(())
}
