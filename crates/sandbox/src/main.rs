//! `sandbox`: the whole pipeline on this machine, with one command.

use std::{
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::{Parser, Subcommand};
use sandbox::{
    Events, Post, Posts, PostsApi, Row,
    bench::{BenchSettings, bench},
    differences,
    run::{RunSettings, run},
    soak::{SoakSettings, soak},
};
use sqlx::{Connection, PgConnection};

/// How long a comparison waits for what is on its way: a change at the API takes a poll to arrive, and a daemon that waits for a dependency
/// asks again every 15 seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two comparisons.
const COMPARE_EVERY: Duration = Duration::from_millis(200);

/// The whole pipeline on this machine: posts API, S3, SQS, Postgres and both daemons
#[derive(Parser)]
#[command(version = shared::settings::VERSION, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    run: RunSettings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Measure how fast the transformer loads, beside straight COPY; with `cargo run --release`
    Bench(BenchSettings),
    /// Break everything again and again under load, and say whether anything was lost or doubled.
    ///
    /// A fault drill: two importers and two transformers work on one stream, each behind wires of its own, while the posts change several times
    /// a second. In each storm daemons are killed with SIGKILL, most of them while an upload or a transaction is open; wires are
    /// delayed, cut, reset, swallowed, half open; the API, S3, SQS and Postgres fail; the database is restored. In the calm after it
    /// everything must come to rest, and archive, ledger and table are compared, row by row, with what the archive's objects come to.
    ///
    /// Nothing outside the sandbox is touched: all of it runs on loopback and ends with it. The seed decides each storm, and a failure
    /// prints the command that brings its storm again. The last line holds all figures. Exit code 0: nothing was lost or doubled.
    Soak(SoakSettings),
    /// Serve the posts API alone, until the process is ended
    PostsApi {
        /// Address to listen at
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// How many posts there are
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        posts: u64,
    },
    /// Say whether a table equals a posts API that both run elsewhere; waits 30 seconds for what is on its way
    Compare {
        /// The API's collection, all of it in one answer
        #[arg(long, env, value_name = "URL")]
        source_url: String,
        /// The Postgres with the table `posts`
        #[arg(long, env, value_name = "URL", hide_env_values = true)]
        database_url: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match arguments.command {
        None => run(&arguments.run).await,
        Some(Command::Bench(settings)) => bench(&settings).await.map(|()| ExitCode::SUCCESS),
        Some(Command::Soak(settings)) => soak(&settings).await,
        Some(Command::PostsApi { listen, posts }) => serve_posts(listen, posts).await,
        Some(Command::Compare { source_url, database_url }) => compare(&source_url, &database_url).await,
    };
    ended.unwrap_or_else(|error| {
        // Not anyhow's own form, which adds a backtrace: these errors tell a person what to do.
        eprintln!("sandbox: {error:#}");
        ExitCode::FAILURE
    })
}

async fn serve_posts(listen: SocketAddr, posts: u64) -> Result<ExitCode> {
    let api = PostsApi::listen(listen, Posts::lorem_ipsum(posts), Events::default()).await?;
    println!("{}", api.url());
    api.forever().await?;
    Ok(ExitCode::SUCCESS)
}

async fn compare(source_url: &str, database_url: &str) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut connection = PgConnection::connect(database_url).await?;
    loop {
        let answer = reqwest::get(source_url).await?.error_for_status()?;
        let posts: Posts = answer.json::<Vec<Post>>().await?.into_iter().collect();
        ensure!(!posts.is_empty(), "{source_url} has no posts to compare with");
        let statement = "SELECT id, user_id, title, body FROM posts ORDER BY id";
        let rows: Vec<Row> = sqlx::query_as(statement).fetch_all(&mut connection).await?;
        let differences = differences(&posts, &rows);
        if differences.is_empty() {
            println!("{} rows, equal to the API's posts field by field", rows.len());
            return Ok(ExitCode::SUCCESS);
        }
        if begun.elapsed() > PATIENCE {
            bail!("the table is not equal to the API's posts:\n{}", differences.join("\n"));
        }
        // Between two looks at the condition: neither the API nor the table tells when it changes.
        tokio::time::sleep(COMPARE_EVERY).await;
    }
}
