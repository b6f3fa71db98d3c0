//! How fast the transformer loads, beside straight binary COPY of the same rows into the same kind of table, in one run.
//!
//! The transformer is the real program: it reads the object from S3, hashes, parses, loads, writes ledger and position. Rounds
//! are interleaved and medians are shown, so that a machine that drifts does not decide.

use std::{
    fs,
    io::Write,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use jiff::Timestamp;
use sha2::Digest;
use shared::object::{Metadata, Sequence, Sha256};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::{io::AsyncReadExt, time::interval};
use uuid::Uuid;

use crate::{
    posts::Posts,
    progress::Progress,
    sandbox::{Sandbox, Setup},
    world::World,
};

/// What to measure.
#[derive(Args, Clone, Copy, Debug)]
pub struct BenchSettings {
    /// How many posts an object has
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    posts: u64,
    /// How many rounds, after one that is not counted
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,
}

/// Measures, and prints a table.
pub async fn bench(settings: &BenchSettings) -> Result<()> {
    let world = World::start(&Progress::default()).await?;
    let setup = Setup { posts: 1, importer: false, transformer: false, ..Setup::default() };
    let sandbox = Sandbox::start(&world, setup).await?;
    let measured = measure(&sandbox, settings).await;
    world.stop().await?;
    show(&measured?, settings)
}

/// One thing that was done in a round.
#[derive(Clone, Copy, Debug)]
struct Run {
    took: Duration,
    /// `None` for what another process did.
    peak_bytes: Option<u64>,
    wal_bytes: u64,
}

/// The runs of each round: straight COPY, then the three objects.
type Rounds = Vec<[Run; 4]>;

async fn measure(sandbox: &Sandbox, settings: &BenchSettings) -> Result<Rounds> {
    archive_three_objects(sandbox, settings.posts).await?;
    let mut connection = sandbox.connect().await?;
    let mut rows = None;
    let mut rounds = Vec::new();
    for round in 0..=settings.rounds {
        eprintln!("round {round} of {}", settings.rounds);
        let schema = format!("round_{round}");
        let transformer = Transformer { sandbox, schema: &schema };
        transformer.run(&["migrate"]).await?;
        let first = transformer.once(1, &mut connection).await?;
        if rows.is_none() {
            rows = Some(ready_made_rows(&mut connection, &schema).await?);
        }
        let rows = rows.as_ref().context("they were made just now")?;
        let copy = straight_copy(&mut connection, &schema, rows).await?;
        let unchanged = transformer.once(2, &mut connection).await?;
        let changed = transformer.once(3, &mut connection).await?;
        connection.execute(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).await?;
        // The first round pays for cold caches.
        if round > 0 {
            rounds.push([copy, first, unchanged, changed]);
        }
    }
    Ok(rounds)
}

/// The posts, the same again, and the same with other titles.
async fn archive_three_objects(sandbox: &Sandbox, posts: u64) -> Result<()> {
    let body = tokio::task::spawn_blocking(move || {
        let posts = Posts::lorem_ipsum(posts);
        serde_json::to_vec(&posts.iter().collect::<Vec<_>>())
    });
    let body = body.await??;
    let other = String::from_utf8(body.clone())?.replace("\"title\":\"", "\"title\":\"new ").into_bytes();
    let archive_id = Uuid::now_v7();
    let mut previous = None;
    for (number, body) in [(1, body.clone()), (2, body), (3, other)] {
        let sequence = Sequence::try_from(number)?;
        let observation = Uuid::now_v7();
        let sha256 = Sha256(sha2::Sha256::digest(&body).into());
        let metadata = Metadata {
            archive_id,
            observation,
            previous: previous.replace(observation),
            sha256,
            fetched_at: Timestamp::now(),
            source_url: sandbox.api.url(),
            etag: None,
            last_modified: None,
            snapshot: sequence,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256::of_pages(&[sha256]),
        };
        let put = sandbox.s3().put_object().bucket(sandbox.bucket()).key(sequence.key(sandbox.stream()));
        put.set_metadata(Some(metadata.encode()?)).body(body.into()).send().await?;
    }
    Ok(())
}

/// The program, on a schema of its own.
struct Transformer<'a> {
    sandbox: &'a Sandbox,
    schema: &'a str,
}

impl Transformer<'_> {
    /// Applies the next object, and takes from the log line how long it took.
    async fn once(&self, to: u64, connection: &mut PgConnection) -> Result<Run> {
        connection.execute("CHECKPOINT").await?;
        let before = wal_position(connection).await?;
        let (log, peak_bytes) = self.run(&["once", "--to", &to.to_string()]).await?;
        let mut applied = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let applied = applied.rfind(|line| line["message"] == "applied");
        let elapsed_ms = applied
            .and_then(|line| line["elapsed_ms"].as_u64())
            .with_context(|| format!("nothing was applied:\n{log}"))?;
        let wal_bytes = wal_position(connection).await? - before;
        Ok(Run { took: Duration::from_millis(elapsed_ms), peak_bytes, wal_bytes })
    }

    /// Its log and its peak memory.
    async fn run(&self, arguments: &[&str]) -> Result<(String, Option<u64>)> {
        let world = self.sandbox.world();
        let mut settings = self.sandbox.settings().clone();
        settings.set(&[("DATABASE_SCHEMA", self.schema), ("LOG_FORMAT", "json")]);
        let mut command = world.program(&world.programs().transformer, &settings);
        command.args(arguments).stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let mut stderr = child.stderr.take().context("stderr is piped")?;
        let pid = child.id().context("it has just started")?;
        let (mut log, mut peak_bytes) = (String::new(), None);
        let mut ticks = interval(Duration::from_millis(5));
        let read = stderr.read_to_string(&mut log);
        tokio::pin!(read);
        loop {
            tokio::select! {
                // The log ends when the process does.
                read = &mut read => {
                    read?;
                    break;
                }
                // Only a clock.
                _ = ticks.tick() => peak_bytes = memory(pid, "VmHWM:").or(peak_bytes),
            }
        }
        let ended = child.wait().await?;
        ensure!(ended.success(), "transformer {} ended with {ended}:\n{log}", arguments.join(" "));
        Ok((log, peak_bytes))
    }
}

/// A line of the process's `/proc` status in bytes: `VmHWM:` is the most memory that it has had in use. `None` when it has ended, or
/// where there is no /proc.
pub(crate) fn memory(pid: u32, line: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|found| found.strip_prefix(line))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

async fn wal_position(connection: &mut PgConnection) -> Result<u64> {
    let position: i64 =
        sqlx::query_scalar("SELECT (pg_current_wal_lsn() - '0/0')::bigint").fetch_one(connection).await?;
    Ok(position.unsigned_abs())
}

/// The table as COPY writes it: what straight COPY is fed with.
async fn ready_made_rows(connection: &mut PgConnection, schema: &str) -> Result<Vec<u8>> {
    use tokio_stream::StreamExt;

    let mut rows = Vec::new();
    let mut copy = connection.copy_out_raw(&format!("COPY {schema}.posts TO STDOUT (FORMAT binary)")).await?;
    while let Some(chunk) = copy.next().await {
        rows.write_all(&chunk?)?;
    }
    Ok(rows)
}

/// The limit: nothing is read, hashed, parsed or compared.
async fn straight_copy(connection: &mut PgConnection, schema: &str, rows: &[u8]) -> Result<Run> {
    connection
        .execute(AssertSqlSafe(format!("CREATE TABLE {schema}.straight (LIKE {schema}.posts INCLUDING ALL)")))
        .await?;
    connection.execute("CHECKPOINT").await?;
    let before = wal_position(connection).await?;
    let began = Instant::now();
    let mut transaction = connection.begin().await?;
    let mut copy = transaction.copy_in_raw(&format!("COPY {schema}.straight FROM STDIN (FORMAT binary)")).await?;
    for chunk in rows.chunks(1 << 20) {
        copy.send(chunk).await?;
    }
    copy.finish().await?;
    transaction.commit().await?;
    let took = began.elapsed();
    let wal_bytes = wal_position(connection).await? - before;
    connection.execute(AssertSqlSafe(format!("DROP TABLE {schema}.straight"))).await?;
    Ok(Run { took, peak_bytes: None, wal_bytes })
}

#[allow(clippy::cast_precision_loss, reason = "figures for people have three digits")]
fn show(rounds: &Rounds, settings: &BenchSettings) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} posts, {} rounds, medians", settings.posts, settings.rounds)?;
    writeln!(out, "{:<22}  {:>10}  {:>7}  {:>8}  {:>8}", "", "rows/s", "of COPY", "peak MiB", "WAL MB")?;
    let median = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    for (number, name) in ["straight binary COPY", "first load", "unchanged", "all changed"].into_iter().enumerate() {
        let of = |value: fn(&[Run; 4], usize) -> f64| median(rounds.iter().map(|round| value(round, number)).collect());
        let seconds = of(|round, number| round[number].took.as_secs_f64());
        let ratio = of(|round, number| round[0].took.as_secs_f64() / round[number].took.as_secs_f64());
        let peak =
            of(|round, number| round[number].peak_bytes.map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 20)));
        let wal = of(|round, number| round[number].wal_bytes as f64 / 1e6);
        let rate = settings.posts as f64 / seconds;
        let peak = if peak.is_nan() { "-".to_owned() } else { format!("{peak:.1}") };
        writeln!(out, "{name:<22}  {rate:>10.0}  {ratio:>7.2}  {peak:>8}  {wal:>8.1}")?;
    }
    Ok(())
}
