//! `sandbox`: the whole pipeline on this machine, with one command.

use std::{net::SocketAddr, process::ExitCode};

use clap::{Parser, Subcommand};
use sandbox::{
    Events, Posts, PostsApi,
    bench::{BenchSettings, bench},
    run::{RunSettings, run},
};

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
    /// Serve the posts API alone, until the process is ended
    PostsApi {
        /// Address to listen at
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// How many posts there are
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        posts: u64,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match arguments.command {
        None => run(&arguments.run).await,
        Some(Command::Bench(settings)) => bench(&settings).await.map(|()| ExitCode::SUCCESS),
        Some(Command::PostsApi { listen, posts }) => serve_posts(listen, posts).await,
    };
    ended.unwrap_or_else(|error| {
        // Not anyhow's own form, which adds a backtrace: these errors tell a person what to do.
        eprintln!("sandbox: {error:#}");
        ExitCode::FAILURE
    })
}

async fn serve_posts(listen: SocketAddr, posts: u64) -> anyhow::Result<ExitCode> {
    let api = PostsApi::listen(listen, Posts::lorem_ipsum(posts), Events::default()).await?;
    println!("{}", api.url());
    api.forever().await?;
    Ok(ExitCode::SUCCESS)
}
