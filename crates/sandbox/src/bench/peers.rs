//! What a person would write in Python otherwise, on the same posts in the same rounds: `crates/sandbox/peers/`.
//!
//! They read a file where the transformer reads S3, and they keep neither a ledger nor a position.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use sqlx::PgConnection;

use super::{
    Bench,
    load::{LOADS, change},
    posts,
    program::Program,
    report::{Goal, Report, mib, per_second},
    sql,
};
use crate::settings::Settings;

const REQUIREMENTS: &str = include_str!("../../peers/requirements.txt");

struct Peer {
    name: &'static str,
    script: &'static str,
    /// One post in this many is enough for one that is slow; its rates are those of a smaller table, which is in its favour.
    share: u64,
}

const PEERS: [Peer; 4] = [
    Peer { name: "psycopg2, a row at a time", script: "psycopg2_rows.py", share: 10 },
    Peer { name: "psycopg2, execute_values", script: "psycopg2_values.py", share: 1 },
    Peer { name: "psycopg 3, COPY and upsert", script: "psycopg3_copy.py", share: 1 },
    Peer { name: "Arrow ADBC, ingest and upsert", script: "adbc_staged.py", share: 1 },
];

/// Their Python, and their posts as files.
pub(super) struct Peers {
    python: PathBuf,
    folder: PathBuf,
}

impl Peers {
    /// Installs what they need into the target folder, unless it is there.
    pub(super) async fn install(bench: &Bench) -> Result<Self> {
        let world = bench.sandbox.world();
        let python = world.python("sandbox-venv-peers", REQUIREMENTS, "installing the peers' drivers").await?;
        let peers = Self { python, folder: world.folder().to_owned() };
        for share in [1, 10] {
            let body = posts(bench.settings.posts / share).await?;
            fs::write(peers.file(share, LOADS[0]), &body)?;
            fs::write(peers.file(share, LOADS[2]), change(&body)?)?;
        }
        Ok(peers)
    }

    fn file(&self, share: u64, load: &str) -> PathBuf {
        let state = if load == LOADS[2] { "changed" } else { "first" };
        self.folder.join(format!("{state}-{share}.json"))
    }

    /// Each of them, on a table like that of `schema`.
    pub(super) async fn round(
        &self,
        bench: &Bench,
        report: &mut Report,
        connection: &mut PgConnection,
        like: &str,
    ) -> Result<()> {
        for peer in &PEERS {
            eprintln!("    {}", peer.name);
            let make = format!(
                "DROP SCHEMA IF EXISTS peer CASCADE; CREATE SCHEMA peer; CREATE TABLE peer.posts (LIKE {like}.posts INCLUDING ALL)"
            );
            sql::run(connection, make).await?;
            for load in LOADS {
                self.run(bench, report, connection, (peer, load)).await?;
            }
        }
        Ok(())
    }

    async fn run(
        &self,
        bench: &Bench,
        report: &mut Report,
        connection: &mut PgConnection,
        (peer, load): (&Peer, &str),
    ) -> Result<()> {
        sql::settle(connection, "peer.posts").await?;
        let before = sql::wal_bytes(connection).await?;
        let world = bench.sandbox.world();
        let mut settings = Settings::new();
        settings.set(&[("DATABASE_URL", bench.sandbox.database_url()), ("PYTHONDONTWRITEBYTECODE", "1")]);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(peer.script);
        let file = self.file(peer.share, load);
        let python = Program { world, path: &self.python, settings };
        let ran = python.run(&[&script.to_string_lossy(), &file.to_string_lossy(), "peer"]).await?;
        let name = format!("{}: {load}", peer.name);
        let took = Duration::from_secs_f64(ran.stdout.trim().parse()?);
        report.sample(&name, per_second(bench.settings.posts / peer.share, took));
        let wal = sql::wal_bytes(connection).await? - before;
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        report.sample(&format!("{name}, WAL"), (wal * peer.share) as f64 / 1e6);
        if let Some(usage) = ran.usage {
            report.sample(&format!("{name}, peak memory"), mib(usage.peak_bytes));
        }
        Ok(())
    }
}

/// Their figures beside ours. In rates they are to be behind, in memory and WAL above.
pub(super) fn summarize(report: &mut Report) {
    for (column, unit, goal) in [
        (LOADS[0].to_owned(), "rows/s", Goal::AtMost(1.0)),
        (LOADS[1].to_owned(), "rows/s", Goal::AtMost(1.0)),
        (LOADS[2].to_owned(), "rows/s", Goal::AtMost(1.0)),
        (format!("{}, peak memory", LOADS[0]), "MiB", Goal::AtLeast(1.0)),
        (format!("{}, WAL", LOADS[1]), "MB", Goal::AtLeast(1.0)),
    ] {
        for peer in &PEERS {
            report.figure(&format!("{}: {column}", peer.name), unit, Some(&column), Some(goal));
        }
    }
}
