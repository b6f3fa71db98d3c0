//! A TCP proxy between a daemon and anything: S3, SQS, Postgres, an API. What it does to the bytes can be changed while it runs.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// What becomes of the bytes. It counts from the next chunk on, also for connections that are open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// They are passed on.
    Pass,
    /// Each chunk, in both directions, comes this much later.
    Delay(Duration),
    /// After so many bytes of a connection, to the server or from it, the connection is reset.
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
    target: String,
    orders: watch::Sender<Orders>,
    trap: Mutex<Option<Trap>>,
    lost: AtomicU64,
    sent: AtomicU64,
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
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let orders = watch::Sender::new(Orders { way: Way::Pass, cuts: 0 });
        let shared = Shared { target, orders, trap: Mutex::default(), lost: 0.into(), sent: 0.into() };
        let shared = Arc::new(shared);
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
        *self.shared.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some(trap);
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
        let mut server = TcpStream::connect(&shared.target).await?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let trapped = Mutex::default();
        let up = pump(from_client, to_server, &shared, &trapped, true);
        tokio::try_join!(up, pump(from_server, to_client, &shared, &trapped, false)).map(|_| ())
    };
    let carried = tokio::select! {
        // Dropping either only drops bytes, which is what a cut does.
        _ = cut => Err(cut_off()),
        carried = carried => carried,
    };
    if carried.is_err_and(|error| error.kind() != io::ErrorKind::UnexpectedEof) {
        // Closing then resets.
        let _ = client.set_zero_linger();
    }
}

/// One direction of a connection, until its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    trapped: &Mutex<Option<Vec<u8>>>,
    is_up: bool,
) -> io::Result<()> {
    let (mut buffer, mut total, mut tail) = (vec![0; 16 * 1024], 0, Vec::new());
    loop {
        let read = from.read(&mut buffer).await?;
        let chunk = &buffer[..read];
        if read == 0 {
            return to.shutdown().await;
        }
        if is_up {
            if let Some(answer) = shared.springs_trap(&mut tail, chunk) {
                *trapped.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
            }
        } else if !chunk.starts_with(b"HTTP/1.1 100") {
            let instead = trapped.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(answer) = instead {
                shared.lost.fetch_add(1, SeqCst);
                to.write_all(&answer).await?;
                return Err(if answer.is_empty() { cut_off() } else { io::ErrorKind::UnexpectedEof.into() });
            }
        }
        let way = shared.orders.borrow().way;
        match way {
            Way::BlackHole => continue,
            Way::Delay(delay) => sleep(delay).await,
            Way::Rate(bytes) => {
                sleep(Duration::from_secs(read as u64) / u32::try_from(bytes).unwrap_or(u32::MAX)).await;
            }
            Way::Reset | Way::Refuse => return Err(cut_off()),
            Way::Pass | Way::CutAfter { .. } => {}
        }
        let left = match way {
            Way::CutAfter { sent, received } => usize::try_from((if is_up { sent } else { received }) - total),
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
    /// What the answer is to be, if the pattern ends in this chunk. `tail` is what it may have begun with in the one before.
    fn springs_trap(&self, tail: &mut Vec<u8>, chunk: &[u8]) -> Option<Vec<u8>> {
        let mut trap = self.trap.lock().unwrap_or_else(PoisonError::into_inner);
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

fn cut_off() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}
