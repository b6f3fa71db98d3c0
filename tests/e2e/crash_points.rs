//! Promise 8 where it is hardest: a daemon ends between two of its effects, at the first, second or 17th time that it comes there.
//!
//! Each run is a stream of its own. The daemon that crashes is built with crash points; what is started in its place is the usual one.
//! The source is another one with each poll, and full of what the daemons have to cope with, so that a few polls lead everywhere.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env, fmt, fs,
    future::pending,
    os::unix::process::ExitStatusExt,
    path::Path,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use sandbox::{Daemon, Program, Programs, Sandbox, Settings, Setup};
use serde_json::{Value, json};
use sha2::Digest;
use shared::{
    archive::Archive,
    object::{Metadata, Sequence, Sha256},
};
use support::{
    SOON,
    absence::{Observed, Records},
    author::Author,
    execute,
    faulty_api::{Answer, FaultyApi, Request},
    importer, metadata,
    programs::{path_of, with_crash_points},
    proxy::Proxy,
    select, start, world,
};
use tokio::{process::Command, sync::Notify, time::timeout};
use url::form_urlencoded;
use uuid::Uuid;

/// In the order in which a poll passes them.
pub(crate) const IMPORTER: [&str; 14] = [
    "end-found",
    "adopted",
    "spooling",
    "page-spooled",
    "fetched",
    "end-checked",
    "uploading",
    "appended",
    "taken",
    "end-moved",
    "between-pages",
    "not-announced",
    "announcing",
    "announced",
];

/// In the order in which a message passes them, and then what is off the straight way.
pub(crate) const TRANSFORMER: [&str; 18] = [
    "received",
    "object-found",
    "reading",
    "locked",
    "rows-written",
    "batch-written",
    "absence-judged",
    "position-advanced",
    "committed",
    "not-deleted",
    "deleted",
    "between-objects",
    "rolled-back",
    "part-refused",
    "ids-seen-again",
    "quarantined",
    "skipped",
    SILENT,
];

/// The one that takes 20 seconds to come to, each time.
const SILENT: &str = "ended-a-silent-holder";

const PASSAGES: [u32; 3] = [1, 2, 17];

/// Runs at once: most of a run is waiting.
const AT_ONCE: usize = 6;

/// What is skipped where something is: enough for 17 passages, and the first object is none of it.
const SKIPPED: std::ops::RangeInclusive<u64> = 2..=40;

/// More than one request to SQS takes.
const MOST_PAGES: u64 = 12;

/// A title that the table does not take.
const REFUSED: &str = "refused";

/// Where which daemon is to end.
#[derive(Clone, Copy, Debug)]
struct Crash {
    importer: Option<&'static str>,
    transformer: Option<&'static str>,
    passage: u32,
}

/// As it stands in `CRASH`: `appended@17`, `appended+committed@1`.
impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points: Vec<_> = self.importer.into_iter().chain(self.transformer).collect();
        write!(f, "{}@{}", points.join("+"), self.passage)
    }
}

impl FromStr for Crash {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (points, passage) = text.split_once('@').context("POINT@PASSAGE or POINT+POINT@PASSAGE")?;
        let find =
            |all: &[&'static str]| all.iter().copied().find(|point| points.split('+').any(|named| named == *point));
        let crash = Self { importer: find(&IMPORTER), transformer: find(&TRANSFORMER), passage: passage.parse()? };
        ensure!(crash.to_string() == text, "{text} names a point that is none");
        Ok(crash)
    }
}

impl Crash {
    fn is_at(&self, point: &str) -> bool {
        self.importer == Some(point) || self.transformer == Some(point)
    }
}

#[tokio::test]
async fn a_daemon_that_ends_at_any_crash_point_loses_and_doubles_nothing() -> Result<()> {
    if let Ok(crash) = env::var("CRASH") {
        return run_all(vec![crash.parse()?]).await;
    }
    let at = |importer, transformer| PASSAGES.map(|passage| Crash { importer, transformer, passage });
    let transformer = TRANSFORMER.into_iter().rev().flat_map(|point| at(None, Some(point)));
    let importer = IMPORTER.into_iter().flat_map(|point| at(Some(point), None));
    // 17 silent holders would take six minutes.
    let crashes = transformer.chain(importer).filter(|crash| !(crash.is_at(SILENT) && crash.passage > 2));
    run_all(crashes.collect()).await
}

#[tokio::test]
#[ignore = "266 runs: cargo test -p tests --test e2e -- --ignored --nocapture crash_points"]
async fn both_daemons_that_end_at_any_two_crash_points_lose_and_double_nothing() -> Result<()> {
    let mut crashes = Vec::new();
    for (row, transformer) in TRANSFORMER.into_iter().enumerate().rev() {
        for (column, importer) in IMPORTER.into_iter().enumerate() {
            let passage = if transformer == SILENT { 1 } else { PASSAGES[(row + column) % PASSAGES.len()] };
            crashes.push(Crash { importer: Some(importer), transformer: Some(transformer), passage });
        }
    }
    run_all(crashes).await
}

#[tokio::test]
async fn a_daemon_that_dies_of_objects_that_are_applied_together_begins_with_one_of_them_alone() -> Result<()> {
    const OBJECTS: u64 = 40;
    let programs = tokio::task::spawn_blocking(with_crash_points).await??;
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    for _ in 0..OBJECTS {
        author.append_silently("[]").await?;
    }
    let mut position = 0;
    for deaths in 0.. {
        let mut command = sandbox.world().program(&programs.transformer, sandbox.settings());
        command.arg("once").env("FAILPOINTS", "between-objects=panic");
        let once = Command::from(command).kill_on_drop(true).output().await?;
        let told = String::from_utf8_lossy(&once.stderr);
        let begins = format!("\"sequence\":\"{}\"", position + 1);
        let first = told.lines().find(|line| line.contains("begins with")).unwrap_or_default();
        ensure!(first.contains(&begins), "it does not begin with {}: {told}", position + 1);
        let before = position;
        position = sandbox.position().await?;
        ensure!(position > before, "it came no further than {position}: {told}");
        if once.status.success() {
            ensure!(deaths > 0, "it never died");
            break;
        }
    }
    assert_eq!(position, OBJECTS);
    Ok(())
}

#[test]
fn no_crash_point_is_left_out() -> Result<()> {
    for (folders, listed) in [(&["importer", "shared"][..], &IMPORTER[..]), (&["transformer"], &TRANSFORMER)] {
        let mut found = Vec::new();
        for folder in folders {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates").join(folder).join("src");
            let mut paths = vec![source];
            while let Some(path) = paths.pop() {
                if path.is_dir() {
                    paths.extend(fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?);
                    continue;
                }
                let text = fs::read_to_string(path)?;
                let points = text.split("crash_point!(\"").skip(1).filter_map(|rest| rest.split('"').next());
                found.extend(points.map(str::to_owned));
            }
        }
        found.sort_unstable();
        let mut listed = listed.to_vec();
        listed.sort_unstable();
        assert_eq!(found, listed, "{folders:?}");
    }
    Ok(())
}

#[test]
fn the_usual_daemons_have_no_crash_points() -> Result<()> {
    let Programs { importer, transformer } = with_crash_points()?;
    for (name, armed, point) in [("importer", importer, IMPORTER[0]), ("transformer", transformer, TRANSFORMER[11])] {
        for (program, is_armed) in [(armed, true), (path_of(name)?, false)] {
            let bytes = fs::read(program)?;
            for word in ["FAILPOINTS", point] {
                let is_there = bytes.windows(word.len()).any(|window| window == word.as_bytes());
                assert_eq!(is_there, is_armed, "{word} in the {name}");
            }
        }
    }
    Ok(())
}

/// Runs them, and tells all that failed.
async fn run_all(crashes: Vec<Crash>) -> Result<()> {
    let programs = tokio::task::spawn_blocking(with_crash_points).await??;
    world().await;
    let (started, count) = (Instant::now(), crashes.len());
    let runs = stream::iter(crashes).map(async |crash| (crash, Box::pin(run(crash, &programs)).await));
    let failed: Vec<String> = runs
        .buffer_unordered(AT_ONCE)
        .filter_map(async |(crash, run)| {
            let error = run.err()?;
            let again = format!("CRASH={crash} cargo test -p tests --test e2e -- crash_points::a_daemon");
            Some(format!("{error:?}\nrun it again with: {again}\n"))
        })
        .collect()
        .await;
    println!("{count} crashes in {} s", started.elapsed().as_secs());
    ensure!(failed.is_empty(), "{} of {count} runs failed\n\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// Lets the daemons work until each has crashed where it is to, then until they have caught up.
async fn run(crash: Crash, programs: &Programs) -> Result<()> {
    let source = Source::start(&crash).await?;
    let skip = if crash.is_at("skipped") { format!("{}-{}", SKIPPED.start(), SKIPPED.end()) } else { String::new() };
    let settings = vec![
        ("SOURCE_URL", &*source.api.url().leak()),
        ("POLL_INTERVAL", "50ms"),
        ("SKIP", &*skip.leak()),
        ("ABSENT", "mark"),
    ];
    let setup = Setup { posts: 0, settings, importer: false, transformer: false, ..Setup::default() };
    let sandbox = start(setup).await?;
    execute(&sandbox, &format!("ALTER TABLE posts ADD CHECK (title <> '{REFUSED}')")).await?;

    let s3 = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    let mut settings = sandbox.settings().clone();
    settings.set(&[("AWS_ENDPOINT_URL_S3", &s3.url())]);

    let importer = async {
        end_at(crash.importer, crash.passage, &sandbox, &programs.importer, &settings, &sandbox.importer).await?;
        source.let_pass();
        sandbox.importer.start();
        anyhow::Ok(())
    };
    let transformer = async {
        let (point, settings) = (crash.transformer, sandbox.settings());
        end_at(point, crash.passage, &sandbox, &programs.transformer, settings, &sandbox.transformer).await?;
        sandbox.transformer.start();
        anyhow::Ok(())
    };
    tokio::select! {
        // What leads them to their points is not needed any more when both have crashed.
        done = async { tokio::try_join!(importer, transformer) } => done.map(drop)?,
        never = async {
            let led = (race(&source, &sandbox), lose(&crash, &s3, &sandbox), hold(&crash, &sandbox));
            tokio::try_join!(pace(&source, &sandbox), led.0, led.1, led.2)
        } => match never?.0 {},
    }

    source.change_once_more();
    let last = source.state.last_page();
    let caught_up = sandbox.wait_until("the daemons have caught up", SOON, async || {
        let end = sandbox.end().await?;
        let is_last = end > 0 && sandbox.body(end).await? == last.as_bytes() && sandbox.position().await? == end;
        // Nothing is appended behind these.
        let is_judged = |Metadata { facts, .. }: Metadata| facts.single || facts.repeat;
        Ok(is_last && is_judged(metadata(&sandbox, end).await?))
    });
    caught_up.await?;
    sandbox.stop().await?;
    let what_is_skipped = crash.is_at("skipped").then_some(SKIPPED);
    assert_folded(&sandbox, |number| what_is_skipped.as_ref().is_some_and(|skipped| skipped.contains(&number))).await?;
    let audit = sandbox.run(Program::Transformer, &["audit", "--deep"]).await?;
    ensure!(audit.status.success(), "audit: {}", String::from_utf8_lossy(&audit.stdout));
    Ok(())
}

/// Runs a daemon until it ends at the point, if it is to.
async fn end_at(
    point: Option<&str>,
    passage: u32,
    sandbox: &Sandbox,
    program: &Path,
    settings: &Settings,
    daemon: &Daemon,
) -> Result<()> {
    let Some(point) = point else { return Ok(()) };
    let mut command = sandbox.world().program(program, settings);
    command.env("FAILPOINTS", format!("{point}={}*off->panic", passage - 1)).env("RUST_LOG", "info");
    let ended = timeout(2 * SOON, Command::from(command).kill_on_drop(true).output()).await;
    let ended = ended.with_context(|| format!("the {} never came to {point}@{passage}", daemon.name()))??;
    let told = String::from_utf8_lossy(&ended.stderr);
    let is_there = ended.status.signal() == Some(6) && told.contains(&format!("failpoint {point} panic"));
    ensure!(is_there, "the {} ended elsewhere: {}\n{told}", daemon.name(), ended.status);
    Ok(())
}

/// Lets the source change when the transformer has nearly kept up: one that is always behind never listens to the queue.
async fn pace(source: &Source, sandbox: &Sandbox) -> Result<Infallible> {
    let keeps_up = async || Ok(sandbox.end().await? <= sandbox.position().await? + 2 * source.state.pages);
    loop {
        // A holder that is silent keeps it for twenty seconds, and the next one for forty.
        sandbox.wait_until("the transformer keeps up", 2 * SOON, keeps_up).await?;
        source.state.may_change.store(true, SeqCst);
        source.state.changed.notified().await;
    }
}

/// Lets another importer append whenever ours has asked and not been answered yet.
async fn race(source: &Source, sandbox: &Sandbox) -> Result<Infallible> {
    if !source.is_raced() {
        return pending().await;
    }
    let rivals_source = format!("{}?rival=1", source.api.url());
    loop {
        source.state.asked.notified().await;
        let rival = importer(sandbox, &[("SOURCE_URL", &rivals_source)], &["once"]).await?;
        ensure!(rival.status.success(), "{}", String::from_utf8_lossy(&rival.stderr));
        source.state.gate.notify_one();
    }
}

/// Loses the answer to an append of which the object was written, and again when another object is there, which means that the importer has
/// found out about the first.
async fn lose(crash: &Crash, s3: &Proxy, sandbox: &Sandbox) -> Result<Infallible> {
    if !crash.is_at("taken") {
        return pending().await;
    }
    loop {
        let lost = s3.lost();
        s3.lose_answers("PUT /", 1);
        sandbox.wait_until("an answer is lost", SOON, async || Ok(s3.lost() > lost)).await?;
        let end = sandbox.end().await?;
        sandbox.wait_until("an object is appended", SOON, async || Ok(sandbox.end().await? > end)).await?;
    }
}

/// Holds the stream's lock and says nothing, until that was ended as often as it is to be.
async fn hold(crash: &Crash, sandbox: &Sandbox) -> Result<Infallible> {
    let times = if crash.is_at(SILENT) { crash.passage } else { 0 };
    for _ in 0..times {
        let position = sandbox.position().await?;
        let mut holder = sandbox.connect().await?;
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut holder).await?;
        sqlx::raw_sql("BEGIN; SELECT FROM stream FOR UPDATE").execute(&mut holder).await?;
        let mut connection = sandbox.connect().await?;
        let ended = sandbox.wait_until("the holder is ended", SOON, async || {
            Ok(sqlx::query("SELECT FROM pg_stat_activity WHERE pid = $1")
                .bind(pid)
                .fetch_all(&mut connection)
                .await?
                .is_empty())
        });
        ended.await?;
        // Whoever ended two in a row is more patient with the third.
        sandbox.wait_until("an object is applied", SOON, async || Ok(sandbox.position().await? > position)).await?;
    }
    pending().await
}

/// A collection that is another one each time that somebody asks for its first page, unless the transformer is far behind.
struct Source {
    api: FaultyApi,
    state: Arc<State>,
}

struct State {
    pages: u64,
    /// Whether pages hold nothing but posts.
    is_plain: bool,
    /// Spaces in each page.
    padding: usize,
    version: AtomicU64,
    /// With the next look at the first page.
    may_change: AtomicBool,
    changed: Notify,
    /// Whether an answer waits for the gate, unless it is a rival's.
    is_raced: AtomicBool,
    asked: Notify,
    gate: Arc<Notify>,
}

impl Source {
    async fn start(crash: &Crash) -> Result<Self> {
        let is_at_any = |points: &[&str]| points.iter().any(|point| crash.is_at(point));
        // What is out of the ordinary is applied alone.
        let is_plain = crash.transformer.is_some_and(|point| point == "between-objects");
        let state = Arc::new(State {
            pages: match () {
                () if is_at_any(&["page-spooled", "between-pages", "announcing"]) || is_plain => MOST_PAGES,
                // The last page is refused, and applied with care: then the first one is to be seen again.
                () if is_at_any(&["ids-seen-again"]) => 2,
                () => 1,
            },
            is_plain,
            // More than one read or write takes.
            padding: if is_at_any(&["spooling", "uploading", "reading"]) { 600_000 } else { 0 },
            version: 0.into(),
            may_change: true.into(),
            changed: Notify::new(),
            is_raced: is_at_any(&["end-moved", "adopted"]).into(),
            asked: Notify::new(),
            gate: Arc::default(),
        });
        let script = state.clone();
        Ok(Self { api: FaultyApi::start(move |request| script.answer(request)).await?, state })
    }

    fn is_raced(&self) -> bool {
        self.state.is_raced.load(SeqCst)
    }

    /// Nobody is held up any more.
    fn let_pass(&self) {
        self.state.is_raced.store(false, SeqCst);
    }

    /// From here on it stays as it is, which it never was before.
    fn change_once_more(&self) {
        self.state.may_change.store(false, SeqCst);
        self.state.version.fetch_add(1, SeqCst);
    }
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        let asked: BTreeMap<_, u64> = form_urlencoded::parse(request.query.as_bytes())
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        // The links name the version, so no snapshot is torn.
        let (version, page) = match (asked.get("version"), asked.get("page")) {
            (Some(version), Some(page)) => (*version, *page),
            _ => (self.next_version(asked.contains_key("rival")), 1),
        };
        let mut answer = Answer::ok(self.document(version, page));
        if page < self.pages {
            answer = answer.with("Link", format!("</posts?version={version}&page={}>; rel=\"next\"", page + 1));
        }
        if page == 1 && self.is_raced.load(SeqCst) && !asked.contains_key("rival") {
            self.asked.notify_one();
            answer = answer.held_by(&self.gate);
        }
        answer
    }

    /// Another one, if it may be or has to be.
    fn next_version(&self, has_to_change: bool) -> u64 {
        if self.may_change.swap(false, SeqCst) || has_to_change {
            self.changed.notify_one();
            return self.version.fetch_add(1, SeqCst) + 1;
        }
        self.version.load(SeqCst)
    }

    /// Posts of which half change with each version and one is missing from the first page for a while, a record that is none, and in turn: a
    /// document that is broken, nothing more, a post that the table refuses.
    fn document(&self, version: u64, page: u64) -> String {
        let first = 10 * page;
        let post = |id: u64, title: &str| json!({ "id": id, "userId": page, "title": title, "body": "b" }).to_string();
        let changing = format!("version {version}");
        let is_there = |id: &u64| page > 1 || *id != first + version / 4 % 8;
        let mut records: Vec<_> = (first..first + 8)
            .filter(is_there)
            .map(|id| post(id, if id % 2 == 0 { &changing } else { "as ever" }))
            .collect();
        if self.is_plain {
            return format!("[{}]", records.join(","));
        }
        records.push(json!({ "id": first + 8, "title": "nobody's" }).to_string());
        if version.is_multiple_of(3) {
            records.push(post(first + 9, REFUSED));
        }
        if version % 3 == 1 {
            records.push("{[}]".to_owned());
        }
        format!("[{}{}]", records.join(","), " ".repeat(self.padding))
    }

    fn last_page(&self) -> String {
        self.document(self.version.load(SeqCst), self.pages)
    }
}

/// The version that a body is of.
fn version_of(body: &[u8]) -> Result<u64> {
    let text = str::from_utf8(body)?;
    let (_, rest) = text.split_once("version ").context("a body with a version")?;
    Ok(rest.split('"').next().unwrap_or_default().parse()?)
}

/// The columns of a post: user, title, body, first seen, updated, sequence.
type Post = (i64, String, String, i64, i64, i64);

/// What the archive makes of a table, worked out without the transformer's code.
#[derive(Debug, Default, PartialEq)]
struct Table {
    posts: BTreeMap<i64, Post>,
    ledger: Vec<(i64, Option<Uuid>, String)>,
    quarantine: Vec<(i64, i64)>,
    /// The rows that are absent, and since when.
    absent: BTreeMap<i64, i64>,
}

impl Table {
    fn apply(&mut self, sequence: i64, metadata: &Metadata, body: &[u8], is_skipped: bool, observed: &mut Observed) {
        let records = serde_json::from_slice::<Vec<Value>>(body);
        let outcome = match &records {
            _ if is_skipped => "skipped",
            Ok(_) => "loaded",
            Err(_) => "quarantined",
        };
        self.ledger.push((sequence, Some(metadata.observation), outcome.to_owned()));
        let present = self.posts.keys().filter(|id| !self.absent.contains_key(id)).copied().collect();
        if outcome != "loaded" {
            observed.next(metadata, Records::None, &present);
            return;
        }
        let ids = records.iter().flatten().filter_map(|record| record["id"].as_i64()).collect();
        let gone = observed.next(metadata, Records::Ids(ids), &present);
        for (record, index) in records.unwrap_or_default().iter().zip(0..) {
            if self.observe(record, sequence, metadata.fetched_at.as_microsecond()).is_none() {
                self.quarantine.push((sequence, index));
            }
        }
        self.absent.extend(gone.into_iter().map(|id| (id, metadata.fetched_at.as_microsecond())));
    }

    /// `None` for what is no post of this table.
    fn observe(&mut self, record: &Value, sequence: i64, at: i64) -> Option<()> {
        let text = |name: &str| record[name].as_str().filter(|text| *text != REFUSED).map(str::to_owned);
        let (id, user, title, body) =
            (record["id"].as_i64()?, record["userId"].as_i64()?, text("title")?, text("body")?);
        let old = self.posts.get(&id);
        let was_absent = self.absent.remove(&id).is_some();
        if was_absent || old.is_none_or(|old| (old.0, &old.1, &old.2) != (user, &title, &body)) {
            let first_seen = old.map_or(at, |old| old.3);
            self.posts.insert(id, (user, title, body, first_seen, at, sequence));
        }
        Some(())
    }

    async fn read(sandbox: &Sandbox) -> Result<Self> {
        let mut connection = sandbox.connect().await?;
        let posts = "SELECT id, user_id, title, body, (extract(epoch FROM first_seen_at) * 1000000)::bigint,
            (extract(epoch FROM updated_at) * 1000000)::bigint, sequence FROM posts";
        let rows: Vec<(i64, i64, String, String, i64, i64, i64)> =
            sqlx::query_as(posts).fetch_all(&mut connection).await?;
        let posts = rows
            .into_iter()
            .map(|(id, user, title, body, first, updated, by)| (id, (user, title, body, first, updated, by)));
        let ledger = sqlx::query_as("SELECT sequence, observation, outcome FROM objects ORDER BY sequence");
        let quarantine = sqlx::query_as("SELECT sequence, index FROM quarantined_records ORDER BY sequence, index");
        let absent =
            "SELECT id, (extract(epoch FROM absent_since) * 1000000)::bigint FROM posts WHERE absent_since IS NOT NULL";
        let absent: Vec<(i64, i64)> = sqlx::query_as(absent).fetch_all(&mut connection).await?;
        Ok(Self {
            absent: absent.into_iter().collect(),
            posts: posts.collect(),
            ledger: ledger.fetch_all(&mut connection).await?,
            quarantine: quarantine.fetch_all(&mut connection).await?,
        })
    }
}

/// The archive is dense, one chain, and in order of observation; the table is what the archive makes of it.
async fn assert_folded(sandbox: &Sandbox, is_skipped: impl Fn(u64) -> bool) -> Result<()> {
    let (archive, end) = (sandbox.archive(), sandbox.end().await?);
    let (mut expected, mut before, mut observed) = (Table::default(), None, Observed::default());
    for number in 1..=end {
        let sequence = Sequence::try_from(number)?;
        let object = archive.get(sequence).await?.with_context(|| format!("the archive has no object {number}"))?;
        let (metadata, body) = (object.metadata.clone(), object.into_bytes().await?);
        ensure!(metadata.sha256 == Sha256(sha2::Sha256::digest(&body).into()), "object {number} is not what it says");
        let version = version_of(&body)?;
        check_chain(before.as_ref(), sequence, &metadata, version).with_context(|| format!("object {number}"))?;
        expected.apply(number.try_into()?, &metadata, &body, is_skipped(number), &mut observed);
        before = Some((metadata, version));
    }
    let found = Table::read(sandbox).await?;
    ensure!(found == expected, "the archive makes\n{expected:?}\nand there is\n{found:?}");
    let positions: i64 = select(sandbox, "SELECT sum(position)::bigint FROM stream").await?;
    ensure!(positions.unsigned_abs() == end, "the position is {positions}, and the archive ends at {end}");
    Ok(())
}

/// Whether the object continues the one before it.
fn check_chain(before: Option<&(Metadata, u64)>, sequence: Sequence, metadata: &Metadata, version: u64) -> Result<()> {
    let is_first_page = metadata.page == 1 && metadata.snapshot == sequence;
    let Some((before, version_before)) = before else {
        ensure!(is_first_page && metadata.previous.is_none() && metadata.archive_id == metadata.observation);
        return Ok(());
    };
    ensure!(metadata.previous == Some(before.observation) && metadata.archive_id == before.archive_id);
    let is_next_page = !before.last_page
        && (metadata.snapshot, metadata.page, version) == (before.snapshot, before.page + 1, *version_before);
    // A snapshot that was cut may be observed once more as it was.
    let is_again = !before.last_page || metadata.facts.repeat;
    let is_later = version > *version_before || (version == *version_before && is_again);
    ensure!(is_next_page || (is_first_page && is_later), "{before:?} and then {metadata:?}");
    Ok(())
}
