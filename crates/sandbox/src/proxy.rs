//! A TCP proxy between a daemon and anything: S3, SQS, Postgres, an API. What it does to the bytes can be changed while it runs.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::port::free_port;

/// What becomes of the bytes. It counts from the next chunk on, also for connections that are open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// They are passed on.
    Pass,
    /// Each chunk, in both directions, comes this much later.
    Delay(Duration),
    /// After this many bytes of a connection, to the server or from it, the connection is reset.
    CutAfter {
        /// To the server.
        sent: u64,
        /// From the server.
        received: u64,
    },
    /// Connections are accepted and reset at once; open ones are reset.
    Reset,
    /// Connections are accepted, and what comes, from either side, is swallowed.
    BlackHole,
    /// The server sees its connections end; the client's stay open, and what it says is swallowed.
    HalfOpen,
    /// Nobody listens, and open connections are reset: the server is down.
    Refuse,
    /// So many bytes a second, in each direction of each connection.
    Rate(u64),
}

/// A proxy on a free port; it ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<String>,
    orders: watch::Sender<Orders>,
    trap: Mutex<Option<Trap>>,
    ambush: Mutex<Option<Ambush>>,
    /// Held while one is laid: a second one waits for its turn.
    turn: tokio::sync::Mutex<()>,
    /// How many connections went silent in an ambush so far.
    sprung: watch::Sender<u64>,
    lost: AtomicU64,
    sent: AtomicU64,
}

/// For a request after which its connection goes silent.
#[derive(Debug)]
struct Ambush {
    pattern: Vec<u8>,
    chunks: u32,
}

/// What is known of one connection.
#[derive(Debug, Default)]
struct Connection {
    /// The answer that is to come in the place of the next one.
    instead: Mutex<Option<Vec<u8>>>,
    /// Nothing is passed on any more.
    is_silent: AtomicBool,
}

/// For requests whose answers are not to come through.
#[derive(Debug)]
struct Trap {
    /// What such a request contains.
    pattern: Vec<u8>,
    /// How many are still to come.
    count: u64,
    /// What the client gets, which is nothing for a lost answer.
    answer: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Orders {
    way: Way,
    cuts: u64,
}

impl Proxy {
    /// A proxy that passes everything on to `target`: `HOST:PORT`, or a URL with host and port.
    pub async fn start(target: &str) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), target).await
    }

    /// The same at another address of this machine.
    pub async fn start_at(address: IpAddr, target: &str) -> Result<Self> {
        let target = match url::Url::parse(target) {
            Ok(url) if url.has_host() => url.socket_addrs(|| None)?.first().context("an address")?.to_string(),
            _ => target.to_owned(),
        };
        // Not a port that the system hands out: another connection could take it while none listens.
        let listener = TcpListener::bind((address, free_port())).await?;
        let address = listener.local_addr()?;
        let orders = watch::Sender::new(Orders { way: Way::Pass, cuts: 0 });
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            orders,
            trap: Mutex::default(),
            ambush: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            sprung: watch::Sender::default(),
            lost: 0.into(),
            sent: 0.into(),
        });
        Ok(Self { address, server: tokio::spawn(serve(listener, address, shared.clone())), shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as the beginning of a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it does from here on.
    pub fn set(&self, way: Way) {
        self.shared.orders.send_modify(|orders| orders.way = way);
    }

    /// Where new connections lead from here on.
    pub fn aim(&self, target: &str) {
        target.clone_into(&mut lock(&self.shared.target));
    }

    /// Waits for a request that contains `pattern`. It and this many further chunks from the client are passed on; then its connection goes
    /// silent in both directions. Whether it came to that within `patience`.
    pub async fn ambush(&self, pattern: &str, chunks: u32, patience: Duration) -> bool {
        let _turn = self.shared.turn.lock().await;
        let mut sprung = self.shared.sprung.subscribe();
        *lock(&self.shared.ambush) = Some(Ambush { pattern: pattern.into(), chunks });
        let is_sprung = timeout(patience, sprung.changed()).await.is_ok();
        *lock(&self.shared.ambush) = None;
        is_sprung
    }

    /// Resets all connections that are open now.
    pub fn cut(&self) {
        self.shared.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// The next `count` requests that contain `pattern` reach the server, and their answers are lost: when an answer comes it
    /// is swallowed and the connection reset. (An interim answer, HTTP status 100, is passed on.)
    pub fn lose_answers(&self, pattern: &str, count: u64) {
        self.replace_answers(pattern, count, "");
    }

    /// The same, but the client gets this in the answer's place before the connection is closed.
    pub fn replace_answers(&self, pattern: &str, count: u64, answer: &str) {
        let trap = Trap { pattern: pattern.into(), count, answer: answer.into() };
        *lock(&self.shared.trap) = Some(trap);
    }

    /// How many answers were lost or replaced so far.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(SeqCst)
    }

    /// How many bytes went to the server so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An answer to put in the place of another.
pub fn http(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// An error in the words of S3.
pub fn s3_error(status: &str, code: &str) -> String {
    http(
        status,
        "application/xml",
        &format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>so</Message></Error>"),
    )
}

async fn serve(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>) {
    let mut orders = shared.orders.subscribe();
    let (mut listener, mut connections) = (Some(listener), JoinSet::new());
    loop {
        let is_down = orders.borrow_and_update().way == Way::Refuse;
        if is_down {
            listener = None;
        } else if listener.is_none() {
            // The port may linger for a moment.
            listener = TcpListener::bind(address).await.ok();
        }
        tokio::select! {
            // Both only wait.
            accepted = accept(listener.as_ref()) => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(carry(client, shared.clone()));
                }
            }
            _ = orders.changed() => {}
            () = sleep(Duration::from_millis(50)), if listener.is_none() => {}
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// One connection, until either side ends it or it is cut.
async fn carry(mut client: TcpStream, shared: Arc<Shared>) {
    let mut orders = shared.orders.subscribe();
    let cuts = orders.borrow_and_update().cuts;
    let cut = orders.wait_for(|orders| orders.cuts > cuts || matches!(orders.way, Way::Reset | Way::Refuse));
    let carried = async {
        let target = lock(&shared.target).clone();
        let mut server = TcpStream::connect(target).await?;
        // What comes in pieces goes on in pieces, without waiting for acknowledgements in between.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let connection = Connection::default();
        let up = pump(from_client, to_server, &shared, &connection, true);
        tokio::try_join!(up, pump(from_server, to_client, &shared, &connection, false)).map(|_| ())
    };
    let mut halved = shared.orders.subscribe();
    let halved = halved.wait_for(|orders| orders.way == Way::HalfOpen);
    let carried = tokio::select! {
        // Dropping any only drops bytes, which is what a cut does.
        _ = cut => Err(cut_off()),
        carried = carried => carried,
        _ = halved => Ok(()),
    };
    if carried.is_ok() && shared.orders.borrow().way == Way::HalfOpen {
        swallow(&mut client, &shared, cuts).await;
    }
    if carried.is_err_and(|error| error.kind() != io::ErrorKind::UnexpectedEof) {
        // Closing then resets.
        let _ = client.set_zero_linger();
    }
}

/// The client's half of a connection whose server is gone, until the client ends it or it is cut.
async fn swallow(client: &mut TcpStream, shared: &Shared, cuts: u64) {
    let mut orders = shared.orders.subscribe();
    let mut sink = tokio::io::sink();
    tokio::select! {
        // Dropping either only drops bytes.
        _ = tokio::io::copy(client, &mut sink) => {}
        _ = orders.wait_for(|orders| orders.cuts > cuts || matches!(orders.way, Way::Reset | Way::Refuse)) => {}
    }
}

/// One direction of a connection, until its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    connection: &Connection,
    is_up: bool,
) -> io::Result<()> {
    let (mut buffer, mut total, mut tail) = (vec![0; 16 * 1024], 0_u64, Vec::new());
    let mut until_silent = None;
    loop {
        let read = from.read(&mut buffer).await?;
        let chunk = &buffer[..read];
        if read == 0 {
            return to.shutdown().await;
        }
        if is_up {
            if let Some(answer) = shared.springs_trap(&mut tail, chunk) {
                *lock(&connection.instead) = Some(answer);
            }
        } else if !chunk.starts_with(b"HTTP/1.1 100") {
            let instead = lock(&connection.instead).take();
            if let Some(answer) = instead {
                shared.lost.fetch_add(1, SeqCst);
                to.write_all(&answer).await?;
                return Err(if answer.is_empty() { cut_off() } else { io::ErrorKind::UnexpectedEof.into() });
            }
        }
        let way = if connection.is_silent.load(SeqCst) { Way::BlackHole } else { shared.orders.borrow().way };
        if is_up && way != Way::BlackHole {
            until_silent =
                until_silent.map_or_else(|| shared.springs_ambush(chunk), |chunks: u32| chunks.checked_sub(1));
            // Before the chunk is passed on, so that its answer comes too late.
            if until_silent == Some(0) {
                connection.is_silent.store(true, SeqCst);
                shared.sprung.send_modify(|sprung| *sprung += 1);
            }
        }
        match way {
            Way::BlackHole | Way::HalfOpen => continue,
            Way::Delay(delay) => sleep(delay).await,
            Way::Rate(bytes) => {
                sleep(Duration::from_secs(read as u64) / u32::try_from(bytes).unwrap_or(u32::MAX)).await;
            }
            Way::Reset | Way::Refuse => return Err(cut_off()),
            Way::Pass | Way::CutAfter { .. } => {}
        }
        let left = match way {
            Way::CutAfter { sent, received } => {
                usize::try_from((if is_up { sent } else { received }).saturating_sub(total))
            }
            _ => Ok(usize::MAX),
        };
        let passed = read.min(left.unwrap_or(usize::MAX));
        to.write_all(&chunk[..passed]).await?;
        total += passed as u64;
        if is_up {
            shared.sent.fetch_add(passed as u64, SeqCst);
        }
        if passed < read {
            return Err(cut_off());
        }
    }
}

impl Shared {
    /// How many further chunks are passed on before the connection goes silent, if this is what the ambush waits for.
    fn springs_ambush(&self, chunk: &[u8]) -> Option<u32> {
        let mut ambush = lock(&self.ambush);
        let waited_for =
            ambush.take_if(|ambush| chunk.windows(ambush.pattern.len()).any(|seen| seen == ambush.pattern));
        waited_for.map(|ambush| ambush.chunks)
    }

    /// What the answer is to be, if the pattern ends in this chunk. `tail` is what it may have begun with in the one before.
    fn springs_trap(&self, tail: &mut Vec<u8>, chunk: &[u8]) -> Option<Vec<u8>> {
        let mut trap = lock(&self.trap);
        let Trap { pattern, count, answer } = trap.as_mut().filter(|trap| trap.count > 0)?;
        tail.extend_from_slice(chunk);
        if tail.windows(pattern.len()).any(|window| window == pattern) {
            *count -= 1;
            tail.clear();
            return Some(answer.clone());
        }
        tail.drain(..tail.len().saturating_sub(pattern.len() - 1));
        None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is assigned whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut_off() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}
