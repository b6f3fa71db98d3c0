//! Several transformers on one stream: one applies, the others stand by and take over; several streams: side by side.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sandbox::{Daemon, Sandbox, Setup, Signal};
use serde_json::Value;
use shared::{object::Sequence, pointer::Pointer};
use support::{
    SOON, assert_whole,
    author::{Author, document},
    daemon,
    host::Host,
    metadata,
    proxy::{Proxy, Way},
    readiness, retitle, second, select, send, start,
};

/// Two batches of posts, so that the transaction is open while the second is on its way.
const LARGE: i64 = 12_000;

/// A stream with one large object, and a transformer at work on it whose body has stopped on the way: it holds the lock, and Postgres
/// waits for it.
struct AtWork {
    sandbox: Sandbox,
    s3: Proxy,
    postgres: Proxy,
    /// The transformer, if it is on a host of its own and not the stream's.
    remote: Option<Daemon>,
}

impl AtWork {
    async fn start() -> Result<Self> {
        Self::start_on(None).await
    }

    async fn start_on(host: Option<&Host>) -> Result<Self> {
        // As in production: what is fast here is not the idle look.
        let settings = vec![("CATCH_UP_INTERVAL", "1m")];
        let setup = Setup { posts: 0, importer: false, transformer: false, settings, ..Setup::default() };
        let sandbox = start(setup).await?;
        let at = host.map_or(Ipv4Addr::LOCALHOST.into(), Host::our_address);
        let s3 = Proxy::start_at(at, sandbox.world().localstack().endpoint()).await?;
        let postgres = Proxy::start_at(at, &sandbox.world().postgres().address()).await?;
        let mut through_proxy = url::Url::parse(sandbox.database_url())?;
        through_proxy.set_ip_host(at).expect("the URL has a host");
        through_proxy.set_port(Some(postgres.address().port())).expect("the URL has a host");
        let remote = match host {
            Some(host) => {
                let program = host.program(&sandbox.world().programs().transformer, &sandbox.logs())?;
                Some(daemon(&sandbox, "transformer", &program, "remote").await?)
            }
            None => None,
        };
        Author::of(&sandbox).await?.append(document(1..=LARGE, "large")).await?;
        s3.set(Way::Rate(300_000));
        let settings = [
            ("AWS_ENDPOINT_URL", s3.url()),
            ("DATABASE_URL", through_proxy.to_string()),
            ("ALLOW_PLAINTEXT", "true".to_owned()),
        ];
        let at_work = Self { sandbox, s3, postgres, remote };
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        at_work.transformer().restart_with(&settings).await?;
        at_work.wait("the transaction is open", "SELECT count(*) > 0").await?;
        at_work.s3.set(Way::BlackHole);
        at_work
            .wait("Postgres waits for the transformer", "SELECT count(*) FILTER (WHERE wait_event = 'ClientRead') > 0")
            .await?;
        Ok(at_work)
    }

    /// Waits until `select` is true of the sessions that have locked the stream.
    async fn wait(&self, what: &str, select: &str) -> Result<()> {
        let statement = format!(
            "{select} FROM pg_stat_activity WHERE pid IN
                (SELECT pid FROM pg_locks WHERE relation = 'stream'::regclass AND mode = 'RowShareLock')"
        );
        let is_so = self.sandbox.wait_until(what, SOON, async || {
            let mut connection = self.sandbox.connect().await?;
            Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement.as_str())).fetch_one(&mut connection).await?)
        });
        is_so.await
    }

    /// The one that is at work.
    fn transformer(&self) -> &Daemon {
        self.remote.as_ref().unwrap_or(&self.sandbox.transformer)
    }

    /// Another transformer, on another host, that finds the lock taken.
    async fn stand_by(&self) -> Result<Daemon> {
        let other = second(&self.sandbox, "transformer").await?;
        self.says(&other, "standing by").await?;
        assert_eq!(self.sandbox.position().await?, 0);
        Ok(other)
    }

    async fn says(&self, daemon: &Daemon, text: &str) -> Result<()> {
        let what = format!("a transformer says {text:?}");
        self.sandbox.wait_until(what, SOON, async || Ok(readiness(daemon).await?.1.starts_with(text))).await
    }

    async fn is_taken_over(&self, since: Instant, at_most: Duration, what: &str) -> Result<()> {
        let taken_over =
            self.sandbox.wait_until("the other takes over", 2 * SOON, async || Ok(self.sandbox.position().await? == 1));
        taken_over.await?;
        let took = since.elapsed();
        eprintln!("{what}: applied after {:.1} s", took.as_secs_f32());
        assert!(took < at_most, "{what}: {took:?}");
        Ok(())
    }

    /// The one that was at work comes back, and whatever it had in hand is gone.
    async fn goes_on_cleanly(&self) -> Result<()> {
        self.s3.set(Way::Pass);
        let is_ready = async || {
            Ok(self
                .transformer()
                .log_lines()
                .iter()
                .filter_map(state)
                .next_back()
                .is_some_and(|state| state.starts_with("ready")))
        };
        self.sandbox.wait_until("it is ready again", 2 * SOON, is_ready).await?;
        let mut author = Author::of(&self.sandbox).await?;
        author.append(document(1..=5, "after")).await?;
        self.sandbox
            .wait_until("the next object is applied", SOON, async || Ok(self.sandbox.position().await? == 2))
            .await?;
        let ledger: String = select(
            &self.sandbox,
            "SELECT string_agg(concat_ws(' ', sequence, outcome, records, inserted, updated), ', ' ORDER BY sequence) FROM objects",
        )
        .await?;
        assert_eq!(ledger, format!("1 loaded {LARGE} {LARGE} 0, 2 loaded 5 0 5"));
        assert_eq!(self.sandbox.count().await?, LARGE.unsigned_abs());
        assert_eq!(self.transformer().restarts(), 0, "it lives through it");
        Ok(())
    }
}

/// What a log line says of the daemon's state, if it does.
fn state(line: &Value) -> Option<&str> {
    (line["target"] == "shared::status").then(|| line["message"].as_str()).flatten()
}

#[tokio::test]
async fn the_place_of_one_that_dies_at_work_is_taken_within_seconds() -> Result<()> {
    let at_work = AtWork::start().await?;
    let other = at_work.stand_by().await?;
    let since = Instant::now();
    at_work.sandbox.transformer.stop().await?;
    at_work.is_taken_over(since, Duration::from_secs(20), "killed at work").await?;
    at_work.says(&other, "ready").await
}

#[tokio::test]
async fn the_place_of_one_that_dies_idle_is_taken_with_the_next_message() -> Result<()> {
    let settings = vec![("CATCH_UP_INTERVAL", "1m")];
    let sandbox = start(Setup { posts: 0, importer: false, settings, ..Setup::default() }).await?;
    let _other = second(&sandbox, "transformer").await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=5, "before")).await?;
    sandbox.wait_until("it is applied", SOON, async || Ok(sandbox.position().await? == 1)).await?;
    sandbox.transformer.stop().await?;
    let since = Instant::now();
    author.append(document(1..=5, "after")).await?;
    sandbox.wait_until("the other takes over", SOON, async || Ok(sandbox.position().await? == 2)).await?;
    let took = since.elapsed();
    eprintln!("killed idle: the next object was applied in {:.1} s", took.as_secs_f32());
    // The message may have been in the dead one's hands: then it comes again after its visibility.
    assert!(took < Duration::from_secs(30), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn the_place_of_one_that_freezes_with_the_lock_is_taken_and_it_writes_nothing_when_it_wakes() -> Result<()> {
    let at_work = AtWork::start().await?;
    let since = Instant::now();
    at_work.sandbox.transformer.signal(Signal::STOP).context("it runs")?;
    let _other = at_work.stand_by().await?;
    at_work.is_taken_over(since, Duration::from_mins(1), "frozen at work").await?;
    at_work.sandbox.transformer.signal(Signal::CONT).context("it is frozen")?;
    at_work.goes_on_cleanly().await
}

#[tokio::test]
async fn the_place_of_one_whose_host_is_cut_off_is_taken_and_it_writes_nothing_when_it_is_back() -> Result<()> {
    let at_work = AtWork::start().await?;
    let since = Instant::now();
    at_work.postgres.set(Way::BlackHole);
    let _other = at_work.stand_by().await?;
    at_work.is_taken_over(since, Duration::from_mins(1), "cut off at work").await?;
    // The network is back, and knows nothing of the old connections.
    at_work.postgres.set(Way::Pass);
    at_work.postgres.cut();
    at_work.goes_on_cleanly().await
}

#[tokio::test]
async fn the_place_of_one_whose_wire_is_pulled_is_taken_and_it_writes_nothing_when_it_is_back() -> Result<()> {
    let host = match Host::start() {
        Ok(host) => host,
        Err(why) => {
            support::skipped(format!("no host in a network namespace of its own: {why:#}"));
            return Ok(());
        }
    };
    let at_work = AtWork::start_on(Some(&host)).await?;
    let since = Instant::now();
    host.cut_off()?;
    let _other = at_work.stand_by().await?;
    at_work.is_taken_over(since, Duration::from_mins(1), "the wire pulled at work").await?;
    host.join()?;
    at_work.goes_on_cleanly().await
}

#[tokio::test]
async fn one_that_is_slow_and_alive_keeps_its_place() -> Result<()> {
    let at_work = AtWork::start().await?;
    let _other = at_work.stand_by().await?;
    // A batch takes longer than the patience with the silent, and bytes come all the time.
    at_work.s3.set(Way::Rate(7_000));
    at_work.s3.cut();
    at_work.is_taken_over(Instant::now(), Duration::from_secs(100), "slow and alive").await?;
    let ended: i64 =
        select(&at_work.sandbox, "SELECT sessions_killed FROM pg_stat_database WHERE datname = current_database()")
            .await?;
    assert_eq!(ended, 0, "nobody was ended");
    at_work.goes_on_cleanly().await
}

#[tokio::test]
async fn one_whose_wire_to_the_database_is_slow_keeps_its_place() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let postgres = Proxy::start(&sandbox.world().postgres().address()).await?;
    let mut through_proxy = url::Url::parse(sandbox.database_url())?;
    through_proxy.set_port(Some(postgres.address().port())).expect("the URL has a host");
    // 12 MB in 25 seconds, longer than the patience with the silent. A COPY ends before.
    Author::of(&sandbox).await?.append(document(1..=130_000, "slow")).await?;
    postgres.set(Way::Rate(500_000));
    sandbox.transformer.restart_with(&[("DATABASE_URL", through_proxy.as_str())]).await?;
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'stream'::regclass AND mode = 'RowShareLock'";
    sandbox
        .wait_until("the transaction is open", SOON, async || Ok(select::<i64>(&sandbox, locked).await? > 0))
        .await?;
    let _other = second(&sandbox, "transformer").await?;
    sandbox.wait_until("it is applied", 4 * SOON, async || Ok(sandbox.position().await? == 1)).await?;
    let ended = "SELECT sessions_killed FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(select::<i64>(&sandbox, ended).await?, 0, "nobody was ended");
    Ok(())
}

/// So many transformers, killed at random while objects come and messages are lost and repeated, and the same archive applied by one alone.
async fn end_in_the_same_table_as_one_alone(transformers: usize, seed: u64) -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, ..Setup::default() }).await?;
    let mut others = Vec::new();
    for _ in 1..transformers {
        others.push(second(&sandbox, "transformer").await?);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut author = Author::of(&sandbox).await?;
    let mut kills = 0;
    for round in 0..40 {
        let first = random.i64(1..50);
        author.append(document(first..first + random.i64(1..100), &format!("round {round}"))).await?;
        // Messages that are lost, and old ones that come again.
        if random.u8(0..5) == 0 {
            sandbox.purge_queue().await?;
        }
        for _ in 0..random.usize(0..3) {
            let old = random.u64(1..author.next());
            let pointer = Pointer::new(sandbox.stream(), Sequence::try_from(old)?, &metadata(&sandbox, old).await?);
            send(&sandbox, &pointer.encode()).await?;
        }
        for _ in 0..random.usize(0..3) {
            let victim = random.usize(0..transformers);
            let victim = victim.checked_sub(1).map_or(&sandbox.transformer, |other| &others[other]);
            kills += u32::from(victim.kill().is_some());
        }
        if random.u8(0..4) == 0 {
            let end = author.next() - 1;
            sandbox.wait_until("they have caught up", SOON, async || Ok(sandbox.position().await? == end)).await?;
        }
    }
    let end = author.next() - 1;
    sandbox.wait_until("all is applied", SOON, async || Ok(sandbox.position().await? == end)).await?;
    eprintln!("{transformers} transformers, {kills} kills, seed {seed}");
    assert!(kills >= 10, "seed {seed}");

    let alone = [("DATABASE_SCHEMA", "alone")];
    for command in ["migrate", "once"] {
        let done = support::transformer(&sandbox, &alone, &[command]).await?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let differences: i64 = select(
        &sandbox,
        "SELECT count(*) FROM (
            (TABLE public.posts EXCEPT TABLE alone.posts) UNION ALL (TABLE alone.posts EXCEPT TABLE public.posts)) AS difference",
    )
    .await?;
    assert_eq!(differences, 0, "seed {seed}");
    let lines = "SELECT string_agg(concat_ws(' ', sequence, observation, outcome, records, inserted, updated), ',' ORDER BY sequence)";
    let same: bool = {
        let statement = format!("SELECT ({lines} FROM public.objects) = ({lines} FROM alone.objects)");
        let mut connection = sandbox.connect().await?;
        sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&mut connection).await?
    };
    assert!(same, "each object once and in order, seed {seed}");
    let dense: bool =
        select(&sandbox, "SELECT count(*) = max(sequence) AND count(DISTINCT observation) = count(*) FROM objects")
            .await?;
    assert!(dense, "seed {seed}");
    Ok(())
}

#[tokio::test]
async fn two_transformers_that_are_killed_at_random_end_in_the_same_table_as_one_alone() -> Result<()> {
    end_in_the_same_table_as_one_alone(2, fastrand::u64(..)).await
}

#[tokio::test]
async fn four_transformers_that_are_killed_at_random_end_in_the_same_table_as_one_alone() -> Result<()> {
    end_in_the_same_table_as_one_alone(4, fastrand::u64(..)).await
}

#[tokio::test]
async fn four_streams_live_side_by_side_in_one_database() -> Result<()> {
    let posts = start(Setup::default()).await?;
    let mut streams = Vec::new();
    for stream in ["albums", "photos-2", "todos"] {
        let schema = if stream == "photos-2" { "photos_2" } else { stream };
        let settings =
            vec![("DATABASE_URL", posts.database_url().to_owned().leak() as &str), ("DATABASE_SCHEMA", schema)];
        streams.push(start(Setup { stream: stream.to_owned(), posts: 50, settings, ..Setup::default() }).await?);
    }
    streams.push(posts);
    for round in 0..3 {
        for stream in &streams {
            retitle(stream, 7, &format!("round {round} of {}", stream.stream()));
        }
        for stream in &streams {
            stream.settled(SOON).await?;
        }
    }
    for stream in &streams {
        let rows = stream.rows().await?;
        let seventh = rows.iter().find(|row| row.id == 7).context("post 7")?;
        assert_eq!(seventh.title, format!("round 2 of {}", stream.stream()));
        assert_eq!(stream.transformer.restarts(), 0);
    }
    assert_whole(streams.last().context("posts")?).await
}
