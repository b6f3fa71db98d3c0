//! A large object over a wire as there is to S3: the transformer's first load, which asks for the next part while it reads one, beside plain
//! downloads by one, two and three requests at once.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use aws_sdk_s3::Client;
use tokio::{
    io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};
use url::Url;

use super::{
    Bench,
    load::COPY,
    report::{Goal, Report, mib, per_second},
    sql, store,
};

/// What S3 gives a connection at most is 85 to 90 MB/s
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html>).
const BYTES_A_SECOND: u32 = 90_000_000;

/// One way: there and back it is as to another region.
const LATENCY: Duration = Duration::from_millis(50);

const CHUNK_BYTES: usize = 64 * 1024;

/// What such a wire carries in the time there and back: less would slow it down.
const CHUNKS_ON_THE_WAY: usize = 140;

/// How many requests share the object.
const PARTS: [u64; 3] = [1, 2, 3];

const STREAM: &str = "wire";
const LOAD: &str = "first load over a wire of 90 MB/s and 100 ms";
const LOAD_BYTES: &str = "the same in bytes";
const PEAK: &str = "the same, peak memory";

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let pointers = bench.store.archive(STREAM, [bench.posts.clone()])?;
    let key = &pointers.first().context("one was archived")?.key;
    let wire = Wire::to(bench.store.endpoint()).await?;
    let client = store::client(&bench.sandbox, &wire.url);
    let plain = PARTS.map(|parts| format!("plain download over that wire, by {parts} GET at once"));
    for number in 0..=bench.settings.rounds {
        report.begin("wire", number);
        load(bench, report, &wire, &format!("wire_{number}")).await?;
        for (name, parts) in plain.iter().zip(PARTS) {
            let took = download(bench, &client, key, parts).await?;
            report.sample(name, per_second(bench.posts.len() as u64, took) / 1e6);
        }
    }
    report.figure(LOAD, "rows/s", Some(COPY), Some(Goal::AtLeast(0.6)));
    report.figure(LOAD_BYTES, "MB/s", Some(&plain[0]), None);
    report.figure(PEAK, "MiB", None, Some(Goal::AtMost(64.0)));
    report.figure(&plain[0], "MB/s", None, None);
    for name in &plain[1..] {
        report.figure(name, "MB/s", Some(&plain[0]), None);
    }
    Ok(())
}

/// From the answer to the GET to the COMMIT.
async fn load(bench: &Bench, report: &mut Report, wire: &Wire, schema: &str) -> Result<()> {
    let mut transformer = bench.transformer(STREAM, schema).await?;
    transformer.settings.set(&[("AWS_ENDPOINT_URL_S3", &wire.url)]);
    let mut connection = bench.sandbox.connect().await?;
    sql::settle(&mut connection, &format!("{schema}.posts")).await?;
    let ran = transformer.run(&["once"]).await?;
    let took = ran.between("begins with", "applied")?;
    report.sample(LOAD, per_second(bench.settings.posts, took));
    report.sample(LOAD_BYTES, per_second(bench.posts.len() as u64, took) / 1e6);
    if let Some(usage) = ran.usage {
        report.sample(PEAK, mib(usage.peak_bytes));
    }
    sql::run(&mut connection, format!("DROP SCHEMA {schema} CASCADE")).await
}

/// Nothing is done with the bytes.
async fn download(bench: &Bench, client: &Client, key: &str, parts: u64) -> Result<Duration> {
    let (begun, bytes) = (Instant::now(), bench.posts.len() as u64);
    let mut downloads = JoinSet::new();
    for part in 0..parts {
        let range = format!("bytes={}-{}", bytes * part / parts, bytes * (part + 1) / parts - 1);
        let get = client.get_object().bucket(&bench.store.bucket).key(key).range(range);
        downloads.spawn(async move {
            let mut body = get.send().await?.body;
            while body.try_next().await?.is_some() {}
            anyhow::Ok(())
        });
    }
    while let Some(downloaded) = downloads.join_next().await {
        downloaded??;
    }
    Ok(begun.elapsed())
}

/// What goes in comes out later, and no faster than the wire takes it, in each direction of each connection. (`Way::Delay` lets one chunk
/// wait for the other, which is no wire for large bodies.) It ends when it is dropped.
struct Wire {
    url: String,
    server: JoinHandle<()>,
}

impl Wire {
    async fn to(endpoint: &str) -> Result<Self> {
        let target = *Url::parse(endpoint)?.socket_addrs(|| None)?.first().context("an address")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, target));
            }
        });
        Ok(Self { url, server })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(pump(from_client, to_server), pump(from_server, to_client)).map(|_| ())
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let (entrance, mut exit) = mpsc::channel(CHUNKS_ON_THE_WAY);
    let enter = async move {
        let mut free_at = Instant::now();
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = from.read(&mut chunk).await?;
            chunk.truncate(read);
            free_at = free_at.max(Instant::now()) + Duration::from_secs(read as u64) / BYTES_A_SECOND;
            if read == 0 || entrance.send((free_at + LATENCY, chunk)).await.is_err() {
                return Ok(());
            }
        }
    };
    let leave = async move {
        while let Some((at, chunk)) = exit.recv().await {
            sleep_until(at).await;
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(enter, leave).map(|_| ())
}
