//! What a storm rages over: a stream with two hosts, each an importer and a transformer, and a wire of its own from each daemon to each thing
//! that it depends on. Applies faults, and mends what it broke.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Executor};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until},
};
use url::Url;

use super::{
    schedule::{ApiAnswer, Fault, Moment, Planned, Storm, Wire},
    tally::Tally,
};
use crate::{
    daemon::Daemon,
    postgres::Backup,
    posts::Post,
    proxy::{Proxy, Way, http},
    sandbox::{Sandbox, Setup},
    world::World,
};

/// How long a kill waits for its moment, and Postgres for a COMMIT: a change is a tenth of a second away, unless other faults are in force.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many of the last backups a restore chooses from.
const KEPT_BACKUPS: usize = 3;

/// What the importers take at most, so that an endless answer ends soon.
const MAX_BODY: usize = 4 << 20;

/// The posts come in pages of this many: the API has sometimes fewer, sometimes more.
const PAGE: usize = 40;

/// The stream and its hosts.
pub(super) struct Rig {
    pub(super) sandbox: Sandbox,
    pub(super) hosts: [Host; 2],
    pub(super) tally: Tally,
    backups: Mutex<Vec<Backup>>,
    changes: AtomicU64,
}

/// A machine with both daemons.
pub(super) struct Host {
    pub(super) importer: Daemon,
    pub(super) transformer: Daemon,
    /// In the order of [`Wire::ALL`].
    wires: [Proxy; 6],
}

impl Host {
    async fn start(sandbox: &Sandbox, names: [&'static str; 2]) -> Result<Self> {
        let (aws, api) = (sandbox.world().localstack().endpoint(), sandbox.api.url());
        let postgres = sandbox.world().postgres().address();
        let wires = [
            Proxy::start(&api).await?,
            Proxy::start(aws).await?,
            Proxy::start(aws).await?,
            Proxy::start(aws).await?,
            Proxy::start(aws).await?,
            Proxy::start(&postgres).await?,
        ];
        let [api, importer_s3, importer_sqs, transformer_s3, transformer_sqs, postgres] = &wires;
        let mut database: Url = sandbox.database_url().parse()?;
        database.set_port(Some(postgres.address().port())).ok().context("the database's URL has a port")?;
        let programs = sandbox.world().programs();
        let daemon = |name, program, s3: &Proxy, sqs: &Proxy| {
            let mut settings = sandbox.settings().clone();
            settings.set(&[
                ("AWS_ENDPOINT_URL_S3", &s3.url()),
                ("AWS_ENDPOINT_URL_SQS", &sqs.url()),
                ("SOURCE_URL", &format!("{}/posts?_page=1&_limit={PAGE}", api.url())),
                ("DATABASE_URL", database.as_str()),
                ("LOG_FORMAT", "json"),
            ]);
            Daemon::new(name, program, settings, &sandbox.logs(), sandbox.events().clone(), sandbox.world().clone())
        };
        let [importer, transformer] = names;
        let importer = daemon(importer, &programs.importer, importer_s3, importer_sqs);
        let transformer = daemon(transformer, &programs.transformer, transformer_s3, transformer_sqs);
        importer.start();
        transformer.start();
        Ok(Self { importer, transformer, wires })
    }

    fn wire(&self, wire: Wire) -> &Proxy {
        &self.wires[wire as usize]
    }

    fn set(&self, wires: &[Wire], way: Way) {
        for wire in wires {
            self.wire(*wire).set(way);
        }
    }

    /// Whole again, as a network that knows nothing of the old connections.
    fn mend(&self, wires: &[Wire]) {
        self.set(wires, Way::Pass);
        for wire in wires {
            self.wire(*wire).cut();
        }
    }
}

/// Breaks the same wires of these hosts, and mends them after so long.
async fn break_wires(hosts: &[Host], wires: &[Wire], way: Way, lasts: Duration) {
    for host in hosts {
        host.set(wires, way);
    }
    sleep(lasts).await;
    for host in hosts {
        host.mend(wires);
    }
}

impl Rig {
    /// Starts the stream, its hosts, and the count of what happens.
    pub(super) async fn start(world: &Arc<World>) -> Result<Arc<Self>> {
        let settings = vec![
            ("POLL_INTERVAL", "200ms"),
            ("CATCH_UP_INTERVAL", "1s"),
            ("MAX_BODY", MAX_BODY.to_string().leak() as &str),
        ];
        let setup = Setup { posts: 30, settings, importer: false, transformer: false, ..Setup::default() };
        let sandbox = Sandbox::start(world, setup).await?;
        sandbox.connect().await?.execute(include_str!("full_disk.sql")).await?;
        let hosts = [
            Host::start(&sandbox, ["importer", "transformer"]).await?,
            Host::start(&sandbox, ["importer-2", "transformer-2"]).await?,
        ];
        let tally = Tally::default();
        Ok(Arc::new(Self { sandbox, hosts, tally, backups: Mutex::default(), changes: 0.into() }))
    }

    /// The four of them.
    pub(super) fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.hosts.iter().flat_map(|host| [&host.importer, &host.transformer])
    }

    /// How often the posts were changed so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// Breaks what the storm's plan says and mends it again, under load.
    pub(super) async fn endure(&self, storm: &Storm, random: &mut fastrand::Rng) -> Result<()> {
        let second = &self.hosts[1];
        if storm.is_alone {
            second.set(&Wire::ALL, Way::Refuse);
        }
        let dice = fastrand::Rng::with_seed(random.u64(..));
        let [kills, wires, dependencies] = [0, 1, 2].map(|lane| self.run_lane(&storm.lanes[lane], dice.clone()));
        let raged = tokio::select! {
            // Each change is whole.
            () = self.load(storm.is_growing, random) => unreachable!("the load has no end"),
            raged = async { tokio::try_join!(kills, wires, dependencies) } => raged.map(|_| ()),
        };
        if storm.is_alone {
            second.mend(&Wire::ALL);
        }
        raged
    }

    /// The posts change all the time: more and more of them in one storm, fewer and fewer in the next.
    async fn load(&self, is_growing: bool, random: &mut fastrand::Rng) {
        loop {
            self.change(random, is_growing);
            sleep(Duration::from_millis(random.u64(20..150))).await;
        }
    }

    /// Changes a post; of those that are wrong, and of long ones, there are some at any time.
    pub(super) fn change(&self, random: &mut fastrand::Rng, is_growing: bool) {
        let number = self.changes.fetch_add(1, Relaxed);
        let title = Value::from(format!("change {number}"));
        let body = "lorem ipsum ".repeat(if random.u8(0..40) == 0 { random.usize(1_000..30_000) } else { 20 });
        let wrong = [Value::Null, 7.into(), "a\0b".into()];
        self.sandbox.api.change(|posts| {
            let count = posts.len();
            let ids: Vec<u64> = posts.iter().map(|post| post.id).collect();
            let id = ids[random.usize(..count)];
            match random.u8(0..10) {
                0..3 if is_growing && count < 3 * PAGE => {
                    let (user_id, extra) = (Value::from(id % 10), Map::new());
                    posts.insert(Post { user_id, title, body: body.into(), extra, id: 0 });
                }
                0..3 if !is_growing && count > PAGE / 2 => drop(posts.delete(id)),
                3 => {
                    let wrong = wrong[random.usize(..wrong.len())].clone();
                    posts.patch(id, [("title".to_owned(), wrong)].into_iter().collect());
                }
                4 => {
                    posts.patch(id, [("mood".to_owned(), title)].into_iter().collect());
                }
                _ => {
                    posts.patch(
                        id,
                        [("title".to_owned(), title), ("body".to_owned(), body.into())].into_iter().collect(),
                    );
                }
            }
        });
    }

    /// Backs the database up, for a later restore.
    pub(super) async fn back_up(&self) -> Result<()> {
        let mut backups = self.backups.lock().await;
        backups.push(self.sandbox.back_up().await?);
        if backups.len() > KEPT_BACKUPS {
            backups.remove(0);
        }
        Ok(())
    }

    async fn run_lane(&self, lane: &[Planned], mut dice: fastrand::Rng) -> Result<()> {
        let begun = Instant::now();
        for Planned { at, fault } in lane {
            sleep_until(begun + *at).await;
            let is_done = self.apply(fault, &mut dice).await.with_context(|| format!("{fault:?} could not be done"))?;
            if is_done {
                self.tally.note_end(fault);
            }
        }
        Ok(())
    }

    /// Whether it was done: there may be no process to kill.
    async fn apply(&self, fault: &Fault, dice: &mut fastrand::Rng) -> Result<bool> {
        use Wire::{ImporterS3, ImporterSqs, TransformerPostgres, TransformerS3, TransformerSqs};
        let (sandbox, world) = (&self.sandbox, self.sandbox.world());
        match fault {
            Fault::Kill(moment) => return Ok(self.kill(*moment).await),
            Fault::Wire { wire, hosts, way, lasts } => {
                break_wires(&self.hosts[..*hosts], &[*wire], *way, *lasts).await;
            }
            Fault::Api { answer, lasts } => {
                let answer_with = |count| {
                    for host in &self.hosts {
                        host.wire(Wire::ImporterApi).replace_answers("GET /", count, &answer.text());
                    }
                };
                answer_with(u64::MAX);
                sleep(*lasts).await;
                answer_with(0);
            }
            Fault::PostgresKilled => world.crash_postgres(Signal::KILL).await?,
            Fault::PostgresStoppedAtCommit => {
                let wires = self.hosts.each_ref().map(|host| host.wire(TransformerPostgres));
                let lost = || wires.iter().map(|wire| wire.lost()).sum::<u64>();
                let (before, begun) = (lost(), Instant::now());
                for wire in wires {
                    wire.lose_answers("COMMIT", 1);
                }
                while lost() == before && begun.elapsed() < PATIENCE {
                    sleep(Duration::from_millis(1)).await;
                }
                world.crash_postgres(Signal::QUIT).await?;
                for wire in wires {
                    wire.lose_answers("COMMIT", 0);
                }
            }
            Fault::PostgresFrozen(lasts) => world.freeze_postgres(*lasts).await?,
            Fault::PostgresFailedOver(lasts) => {
                let aim = || {
                    let address = world.postgres().address();
                    for host in &self.hosts {
                        host.wire(TransformerPostgres).aim(&address);
                    }
                };
                let home = world.fail_over().await?;
                aim();
                sleep(*lasts).await;
                world.fail_back(home).await?;
                aim();
            }
            Fault::PostgresFull(lasts) => {
                self.set_disk_full(true).await?;
                sleep(*lasts).await;
                self.set_disk_full(false).await?;
            }
            Fault::PostgresRestored => {
                let backups = self.backups.lock().await;
                sandbox.restore(&backups[dice.usize(..backups.len())]).await?;
            }
            Fault::HostGone(lasts) => {
                let host = self.hosts.iter().find(|host| self.tally.is_active(&host.transformer));
                let host = host.unwrap_or(&self.hosts[0]);
                let wires = [TransformerS3, TransformerSqs, TransformerPostgres];
                host.wire(TransformerPostgres).ambush("BEGIN", 2, PATIENCE).await;
                host.set(&wires, Way::BlackHole);
                host.transformer.signal(Signal::STOP);
                sleep(*lasts).await;
                host.mend(&wires);
                host.transformer.signal(Signal::CONT);
            }
            Fault::LocalStackFrozen(lasts) => world.freeze_localstack(*lasts).await?,
            Fault::LocalStackDown(lasts) => {
                let wires = [ImporterS3, ImporterSqs, TransformerS3, TransformerSqs];
                break_wires(&self.hosts, &wires, Way::Refuse, *lasts).await;
            }
            Fault::QueuePurged => sandbox.purge_queue().await?,
            Fault::QueueRemade => sandbox.recreate_queue().await?,
        }
        Ok(true)
    }

    /// Kills a daemon of the first host when its moment comes; at any moment where that does not come.
    async fn kill(&self, moment: Moment) -> bool {
        let host = &self.hosts[0];
        let (wire, pattern, pieces) = match moment {
            Moment::Upload(pieces) => (Wire::ImporterS3, "PUT /", pieces),
            Moment::Announce => (Wire::ImporterSqs, "AmazonSQS.SendMessage", 1),
            Moment::Transaction(messages) => (Wire::TransformerPostgres, "BEGIN", messages),
            Moment::Commit => (Wire::TransformerPostgres, "COMMIT", 0),
            Moment::Delete => (Wire::TransformerSqs, "AmazonSQS.DeleteMessage", 1),
            Moment::Importer => (Wire::ImporterS3, "", 0),
            Moment::Transformer => (Wire::TransformerPostgres, "", 0),
        };
        let has_come = !pattern.is_empty() && host.wire(wire).ambush(pattern, pieces, PATIENCE).await;
        let daemon = if moment.is_importer() { &host.importer } else { &host.transformer };
        self.tally.measure(daemon);
        let is_killed = daemon.kill().is_some();
        if is_killed {
            self.tally.note_kill(moment, has_come);
        }
        is_killed
    }

    async fn set_disk_full(&self, is_full: bool) -> Result<()> {
        let statement = AssertSqlSafe(format!("UPDATE soak.disk SET is_full = {is_full}"));
        self.sandbox.connect().await?.execute(statement).await?;
        Ok(())
    }

    /// Keeps the daemons' logs where they outlive the world; answers with the folder.
    pub(super) fn keep_logs(&self) -> Result<std::path::PathBuf> {
        let folder = self.sandbox.world().place().target.join("soak-logs");
        fs::create_dir_all(&folder)?;
        for daemon in self.daemons() {
            fs::copy(daemon.log(), folder.join(daemon.log().file_name().context("a log is a file")?))?;
        }
        Ok(folder)
    }
}

impl ApiAnswer {
    /// As it goes over the wire.
    fn text(self) -> String {
        let cut = r#"[{"id": 1, "userId": 1, "title": "cut o"#;
        match self {
            Self::TooManyRequests => http("429 so\r\nRetry-After: 1", "application/json", "{}"),
            Self::Failed => http("500 so", "text/html", "<h1>500</h1>"),
            Self::TooShort => format!("HTTP/1.1 200 so\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n{cut}"),
            Self::TooLong => http("200 so", "application/json", cut) + "ff\", \"body\": \"\"}]",
            Self::Endless => {
                let posts = r#"{"id": 1, "userId": 1, "title": "endless", "body": ""}, "#.repeat(MAX_BODY / 40);
                format!("HTTP/1.1 200 so\r\nConnection: close\r\n\r\n[{posts}")
            }
            Self::Html => http("200 so", "text/html", "<!doctype html><title>Welcome</title>"),
            Self::Empty => http("200 so", "application/json", ""),
        }
    }
}
