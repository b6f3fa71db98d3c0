//! A TCP proxy before S3 that reads along: it counts the requests for bodies, and can change what a body says.
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
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
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
}

impl Tap {
    /// A tap before `target`, a URL. In the next `damages` bodies every `letter` becomes another one.
    pub async fn start(target: &str, letter: u8, damages: u64) -> Result<Self> {
        let target = *url::Url::parse(target)?.socket_addrs(|| None)?.first().context("an address")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Shared { target, gets: 0.into(), ranges: 0.into(), letter, damages: damages.into() };
        let shared = Arc::new(shared);
        Ok(Self { address, server: tokio::spawn(serve(listener, shared.clone())), shared })
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many bodies were asked for so far, whole or in part.
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
    let damages = AtomicBool::new(false);
    // Either end is the end of both.
    tokio::try_join!(up(from_client, to_server, &shared, &damages), down(from_server, to_client, &shared, &damages))
        .map(|_| ())
}

async fn up(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, damages: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let request = String::from_utf8_lossy(&buffer[..read]).to_ascii_lowercase();
        if request.starts_with("get ") && request.contains("x-id=getobject") {
            shared.gets.fetch_add(1, SeqCst);
            shared.ranges.fetch_add(u64::from(request.contains("\nrange: bytes=")), SeqCst);
            let left = shared.damages.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
            damages.store(left.is_ok(), SeqCst);
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn down(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    damages: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if damages.load(SeqCst) {
            buffer[..read].iter_mut().filter(|byte| **byte == shared.letter).for_each(|byte| *byte = DAMAGED);
        }
        to.write_all(&buffer[..read]).await?;
    }
}
