//! An HTTP API that answers as it is told, rightly or not, and keeps what it was asked.
//!
//! It writes HTTP/1.1 by hand, because a real server does its best not to send what is needed here: a wrong length, a body that
//! breaks off, a connection closed without a word.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{self, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::sleep,
};
use url::form_urlencoded;

/// What a request came with.
#[derive(Clone, Debug)]
pub struct Request {
    /// When its head was read.
    pub at: Instant,
    /// `GET`
    pub method: String,
    /// `/posts`
    pub path: String,
    /// `page=2`, or nothing.
    pub query: String,
    /// What was sent with it.
    pub body: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// What a parameter of the query says.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let mut pairs = form_urlencoded::parse(self.query.as_bytes());
        pairs.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
    }

    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    gate: Option<Arc<Notify>>,
    is_last: bool,
}

#[derive(Clone, Debug)]
enum Body {
    /// These bytes.
    Whole(Vec<u8>),
    /// The length of all of them is announced, and only this many are sent.
    Broken(Vec<u8>, usize),
    /// One byte after the other.
    Dripping(Vec<u8>, Duration),
    /// An array of posts that is exactly so long: the same length, the same bytes.
    Posts(u64),
    /// The same in an object.
    WrappedPosts(u64),
    /// These bytes without their length: where the connection ends, so does the body.
    Unmeasured(Vec<u8>),
    /// An array of posts without end.
    Endless,
}

impl Answer {
    /// 200 with a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::Whole(body.into()), gate: None, is_last: false }
    }

    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    /// An array of posts that is exactly so long, made while it is sent. At least 2.
    pub fn posts(bytes: u64) -> Self {
        Self { body: Body::Posts(bytes), ..Self::ok("") }
    }

    /// An object that is exactly so long, with such an array as `data`, a member before it and one behind it. At least 47.
    pub fn wrapped_posts(bytes: u64) -> Self {
        Self { body: Body::WrappedPosts(bytes), ..Self::ok("") }
    }

    /// 200 with a body whose length is not announced.
    pub fn unmeasured(body: impl Into<Vec<u8>>) -> Self {
        Self { body: Body::Unmeasured(body.into()), ..Self::ok("") }
    }

    /// Posts without end.
    pub fn endless() -> Self {
        Self { body: Body::Endless, ..Self::ok("") }
    }

    /// With this status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// With this body, as it is.
    #[must_use]
    pub fn with_body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: Body::Whole(body.into()), ..self }
    }

    /// With one more header.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "numbers read better without a reference")]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// Packed with gzip, which also makes a bomb of a long run of spaces.
    #[must_use]
    pub fn gzip(mut self) -> Self {
        if let Body::Whole(bytes) = &self.body {
            self.body = Body::Whole(gzipped(bytes));
        }
        self.with("Content-Encoding", "gzip")
    }

    /// The body breaks off after this many bytes.
    #[must_use]
    pub fn broken_after(self, bytes: usize) -> Self {
        let body = if let Body::Whole(whole) = self.body { Body::Broken(whole, bytes) } else { self.body };
        Self { body, ..self }
    }

    /// The body comes byte by byte, with this pause before each.
    #[must_use]
    pub fn dripping(self, pause: Duration) -> Self {
        let body = if let Body::Whole(whole) = self.body { Body::Dripping(whole, pause) } else { self.body };
        Self { body, ..self }
    }

    /// It is sent when the gate is notified, and not before.
    #[must_use]
    pub fn held_by(self, gate: &Arc<Notify>) -> Self {
        Self { gate: Some(gate.clone()), ..self }
    }

    /// The server closes the connection after it without having said so.
    #[must_use]
    pub fn then_closed(self) -> Self {
        Self { is_last: true, ..self }
    }
}

/// A gzip member.
pub fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}

/// The API; it ends when it is dropped.
#[derive(Debug)]
pub struct FaultyApi {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

type Script = Box<dyn FnMut(&Request) -> Answer + Send>;

struct Shared {
    script: Mutex<Script>,
    seen: Mutex<Vec<Request>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl FaultyApi {
    /// An API that answers as the function says.
    pub async fn start(script: impl FnMut(&Request) -> Answer + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { script: Mutex::new(Box::new(script)), seen: Mutex::default() });
        Ok(Self { address, server: tokio::spawn(serve(listener, shared.clone())), shared })
    }

    /// An API that gives these answers one after the other, and the last one for ever.
    pub async fn saying(answers: impl IntoIterator<Item = Answer>) -> io::Result<Self> {
        let api = Self::start(|_| Answer::status(500)).await?;
        api.say(answers);
        Ok(api)
    }

    /// From here on it answers as the function says.
    pub fn answer(&self, script: impl FnMut(&Request) -> Answer + Send + 'static) {
        *lock(&self.shared.script) = Box::new(script);
    }

    /// From here on it gives these answers one after the other, and the last one for ever.
    pub fn say(&self, answers: impl IntoIterator<Item = Answer>) {
        let mut answers: VecDeque<Answer> = answers.into_iter().collect();
        self.answer(move |_| {
            if answers.len() > 1 {
                answers.pop_front().expect("there are two")
            } else {
                answers.front().cloned().unwrap_or_else(|| Answer::status(500))
            }
        });
    }

    /// The collection: `http://127.0.0.1:PORT/posts`.
    pub fn url(&self) -> String {
        format!("http://{}/posts", self.address)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Request> {
        lock(&self.shared.seen).clone()
    }
}

impl Drop for FaultyApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        // It ends with its connection, which ends with the client.
        tokio::spawn(async move { converse(BufReader::new(stream), &shared).await });
    }
}

async fn converse(mut stream: BufReader<TcpStream>, shared: &Shared) -> io::Result<()> {
    while let Some(request) = read(&mut stream).await? {
        lock(&shared.seen).push(request.clone());
        let answer = lock(&shared.script)(&request);
        if let Some(gate) = &answer.gate {
            gate.notified().await;
        }
        write(stream.get_mut(), &answer).await?;
        if answer.is_last || matches!(answer.body, Body::Broken(..) | Body::Unmeasured(_) | Body::Endless) {
            break;
        }
    }
    Ok(())
}

/// A request with its body, of which it has said how long it is.
async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let (mut line, mut lines) = (String::new(), Vec::new());
    while stream.read_line(&mut line).await? > 2 {
        lines.push(line.trim_end().to_owned());
        line.clear();
    }
    let mut words = lines.first().map(|first| first.split(' ')).into_iter().flatten();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let (method, path, query) = (method.to_owned(), path.to_owned(), query.to_owned());
    let mut request = Request { at: Instant::now(), method, path, query, body: String::new(), headers };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}

async fn write(stream: &mut TcpStream, Answer { status, headers, body, .. }: &Answer) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} so\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("a string takes everything");
    }
    let length = match body {
        Body::Whole(bytes) | Body::Broken(bytes, _) | Body::Dripping(bytes, _) => Some(bytes.len() as u64),
        Body::Posts(bytes) | Body::WrappedPosts(bytes) => Some(*bytes),
        Body::Unmeasured(_) | Body::Endless => None,
    };
    match length {
        Some(length) => write!(head, "Content-Length: {length}\r\n\r\n"),
        None => write!(head, "Connection: close\r\n\r\n"),
    }
    .expect("a string takes everything");
    stream.write_all(head.as_bytes()).await?;
    match body {
        Body::Whole(bytes) | Body::Unmeasured(bytes) => stream.write_all(bytes).await,
        Body::Broken(bytes, sent) => stream.write_all(&bytes[..*sent]).await,
        Body::Dripping(bytes, pause) => {
            for byte in bytes {
                // The slow answer itself, which the test asked for.
                sleep(*pause).await;
                stream.write_all(&[*byte]).await?;
            }
            Ok(())
        }
        Body::Posts(bytes) => write_posts(stream, *bytes).await,
        Body::WrappedPosts(bytes) => {
            stream.write_all(AROUND[0].as_bytes()).await?;
            write_posts(stream, bytes - (AROUND[0].len() + AROUND[1].len()) as u64).await?;
            stream.write_all(AROUND[1].as_bytes()).await
        }
        Body::Endless => write_posts(stream, u64::MAX).await,
    }
}

/// What stands around posts in an object.
const AROUND: [&str; 2] = [r#"{"kind":"posts","data":"#, r#","meta":{"next":null}}"#];

/// Posts until nearly `bytes` are sent, then spaces.
async fn write_posts(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let (mut sent, mut id, mut chunk) = (0, 1_u64, String::from("["));
    let filler = "lorem ipsum dolor sit amet ".repeat(20);
    loop {
        let comma = if id == 1 { "" } else { "," };
        let post = format!(r#"{comma}{{"userId":1,"id":{id},"title":"post {id}","body":"{filler}"}}"#);
        let is_full = sent + (chunk.len() + post.len()) as u64 + 1 > bytes;
        if is_full {
            let spaces = usize::try_from(bytes - sent).expect("less than a chunk and a post") - chunk.len() - 1;
            chunk.push_str(&" ".repeat(spaces));
            chunk.push(']');
        } else {
            chunk.push_str(&post);
            id += 1;
        }
        if is_full || chunk.len() >= 64 * 1024 {
            stream.write_all(chunk.as_bytes()).await?;
            sent += chunk.len() as u64;
            chunk.clear();
        }
        if is_full {
            return Ok(());
        }
    }
}
