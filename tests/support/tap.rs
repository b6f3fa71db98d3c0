//! A TCP proxy before S3 that reads along: it counts the bodies that come, can damage them and cut them off.
//!
//! It rests on what the daemons' SDK and LocalStack do: one request at a time in a connection, and no TLS.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinHandle, JoinSet},
};

/// What stands for a letter that was damaged on its way.
const DAMAGED: u8 = b'#';

/// A tap on a free port of loopback; it ends when it is dropped.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    gets: AtomicU64,
    ranges: AtomicU64,
    /// The letter, and how many bodies are still to be damaged.
    letter: u8,
    damages: AtomicU64,
    cut_after: AtomicU64,
}

/// What is known of the answer that is on its way in a connection.
#[derive(Debug, Default)]
struct Answer {
    /// A body was asked for, and nothing has come yet.
    is_awaited: AtomicBool,
    /// From some byte on.
    is_range: AtomicBool,
    is_damaged: AtomicBool,
    passed: AtomicU64,
}

impl Tap {
    /// A tap before `target`, a URL. In the next `damages` bodies every `letter` becomes another one.
    pub async fn start(target: &str, letter: u8, damages: u64) -> Result<Self> {
        let target = *url::Url::parse(target)?.socket_addrs(|| None)?.first().context("an address")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Shared {
            target,
            gets: 0.into(),
            ranges: 0.into(),
            letter,
            damages: damages.into(),
            cut_after: u64::MAX.into(),
        };
        let shared = Arc::new(shared);
        Ok(Self { address, server: tokio::spawn(serve(listener, shared.clone())), shared })
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From here on each answer with a body is cut off after this many bytes, its head included.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, SeqCst);
    }

    /// How many bodies came so far, whole or in part.
    pub fn gets(&self) -> u64 {
        self.shared.gets.load(SeqCst)
    }

    /// How many of them from some byte on.
    pub fn ranges(&self) -> u64 {
        self.shared.ranges.load(SeqCst)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(carry(client, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn carry(client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(shared.target).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let answer = Answer::default();
    // The end of either is the end of both.
    tokio::try_join!(
        shared.carry_requests(from_client, to_server, &answer),
        shared.carry_answers(from_server, to_client, &answer)
    )
    .map(|_| ())
}

impl Shared {
    async fn carry_requests(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let request = String::from_utf8_lossy(&buffer[..read]).to_ascii_lowercase();
            let is_for_body = request.starts_with("get ") && request.contains("x-id=getobject");
            answer.is_awaited.store(is_for_body, SeqCst);
            answer.is_range.store(request.contains("\nrange: bytes="), SeqCst);
            answer.is_damaged.store(false, SeqCst);
            answer.passed.store(0, SeqCst);
            to.write_all(&buffer[..read]).await?;
        }
    }

    async fn carry_answers(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        let mut is_body = false;
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let chunk = &mut buffer[..read];
            if answer.passed.fetch_add(read as u64, SeqCst) == 0 {
                is_body = answer.is_awaited.load(SeqCst) && chunk.starts_with(b"HTTP/1.1 20");
                if is_body {
                    self.count(answer);
                }
            }
            if answer.is_damaged.load(SeqCst) {
                chunk.iter_mut().filter(|byte| **byte == self.letter).for_each(|byte| *byte = DAMAGED);
            }
            to.write_all(chunk).await?;
            if is_body && answer.passed.load(SeqCst) > self.cut_after.load(SeqCst) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }

    fn count(&self, answer: &Answer) {
        self.gets.fetch_add(1, SeqCst);
        self.ranges.fetch_add(u64::from(answer.is_range.load(SeqCst)), SeqCst);
        let left = self.damages.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        answer.is_damaged.store(left.is_ok(), SeqCst);
    }
}
