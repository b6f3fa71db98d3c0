//! One request to the API and its answer, whose body is kept if it may be the data.

use std::{fmt::Write as _, io, path::PathBuf, time::Duration};

use async_compression::{
    tokio::bufread::{BrotliDecoder, DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder},
    zstd::DParameter,
};
use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use jiff::{SignedDuration, Timestamp};
use reqwest::{
    Client, Response, StatusCode, Version,
    header::{
        ACCEPT, ACCEPT_ENCODING, AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, DATE, ETAG,
        HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION,
        TRANSFER_ENCODING,
    },
    redirect,
};
use shared::{
    settings::{parse_duration, public_url},
    telemetry::chain,
};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt},
    time::timeout,
};
use tokio_util::io::{ReaderStream, StreamReader};
use url::Url;

use crate::{
    body::{Body, Shown, Spool, SpoolError},
    paging::is_paged,
    refusal::{self, Refusal, moment},
    request::Request,
    since::AnswerTime,
    snapshot::Validators,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An API that sends nothing for this long, once it has begun, has stopped.
const IDLE_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest that one answer may take while it moves: 1 GiB at 0.6 MB/s.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(30);

/// How much of a packed body is unpacked at once. Each piece costs a message to the threads that take it.
const UNPACKED_BYTES: usize = 64 * 1024;

/// In which encodings an answer may come.
const ENCODINGS: &str = "gzip, zstd, br, deflate";

/// What content types of a record a line are called; nobody has registered one.
const LINES: [&str; 5] = ["ndjson", "jsonl", "jsonlines", "json-lines", "json-stream"];

/// Longer windows than 8 MiB need not be supported (RFC 9659), and would take as much memory.
const ZSTD_WINDOW_LOG: u32 = 23;

/// The lower half of the first byte of a zlib stream.
const ZLIB: u8 = 8;

/// More hops than this are a loop. They never leave the origin.
const REDIRECTS: usize = 5;

/// What is sent with each request.
#[derive(Args, Clone, Debug)]
pub struct HttpSettings {
    /// A file with headers to send, one a line, as in `X-Api-Key: abc`, or with a bearer token alone on a line; read again for each
    /// request
    #[arg(long, env = "SOURCE_HEADER_FILE", value_name = "FILE")]
    pub source_header_file: Option<PathBuf>,
    /// Longest wait for the first byte of an answer, as in 30s or 5m; a poll that exceeds it fails
    #[arg(long, env = "SOURCE_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub source_timeout: Duration,
}

/// Why a request brought nothing.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum HttpError {
    /// No connection, or none that lasted until the headers.
    #[error("{request} got no answer ({hint})", hint = hint_of_silence(source))]
    NoAnswer { request: String, source: reqwest::Error },
    /// A connection, and no answer in time. Asked again at once, the API would only have more to do.
    #[error(
        "{request} was not answered within SOURCE_TIMEOUT, which is {limit:?}: raise it, or ask for smaller pages in SOURCE_URL"
    )]
    TooSlow { request: String, limit: Duration },
    /// Another status than 200, or a 304 that was not asked for.
    #[error("{request} was answered with {status}{hint}", hint = refusal.hint)]
    Status { request: String, status: StatusCode, refusal: Refusal },
    /// A redirect that is not followed.
    #[error("{request} was redirected to {to}, which is {why}: set SOURCE_URL to where the data is")]
    Redirected { request: String, to: String, why: &'static str },
    /// An encoding that was not asked for.
    #[error(
        "the answer to {request} is encoded as `{encoding}`, and {ENCODINGS} were asked for: have the server send one of these, or plain \
         bytes"
    )]
    Encoded { request: String, encoding: String },
    /// It is not what its label says.
    #[error(
        "the answer to {request} is labelled `Content-Encoding: {encoding}`, and its bytes are something else: have the server correct that"
    )]
    Mislabelled { request: String, encoding: String, source: io::Error },
    /// The headers came and the body did not.
    #[error("the answer to {request} could not be kept")]
    Body { request: String, source: SpoolError },
    /// Nothing shows where lines end.
    #[error(
        "the answer to {request} is lines of JSON that only the end of the connection ends, so that nobody can say whether these are all: have \
         the server send `Content-Length` or chunks"
    )]
    Endless { request: String },
    /// The body cannot be the data.
    #[error("the answer to {request} has no records (is SOURCE_URL where the data is?)")]
    NotTheData { request: String, source: SpoolError },
    /// The headers to send are not to be had.
    #[error("cannot use SOURCE_HEADER_FILE {}, which holds `Name: value` lines or a bearer token", file.display())]
    HeaderFile { file: PathBuf, source: io::Error },
}

/// A page as it came.
#[derive(Debug)]
pub struct Answer {
    /// When the fetch began and the answer came, and what it says of that.
    pub time: AnswerTime,
    /// The address that answered, behind its redirects.
    pub url: Url,
    /// The header lines, names in lower case; bytes outside ASCII are percent-encoded.
    pub headers: Vec<(String, String)>,
    /// What the next poll may send.
    pub validators: Validators,
    /// The body.
    pub body: Body,
}

/// How the API is asked.
#[derive(Debug)]
pub struct Http {
    client: Client,
    settings: HttpSettings,
    max_body: u64,
}

impl Http {
    /// A client with our limits, for bodies of at most `max_body` bytes. Nothing is asked yet.
    pub fn new(settings: HttpSettings, max_body: u64) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .user_agent(concat!("posts-importer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TOTAL_TIMEOUT + settings.source_timeout)
            .redirect(redirect::Policy::custom(stay_on_the_origin))
            .build()?;
        Ok(Self { client, settings, max_body })
    }

    /// One request and its answer, or `None` for a 304.
    pub async fn exchange(
        &self,
        request: &Request,
        validators: &Validators,
        spool: &mut Spool,
    ) -> Result<Option<Answer>, HttpError> {
        let asked = Timestamp::now();
        let response = self.ask(request, validators).await?;
        let arrived = Timestamp::now();
        let headers = lines(response.headers());
        if response.status() == StatusCode::NOT_MODIFIED {
            if is_paged(&headers) || is_another(validators, response.headers()) {
                // The only page became the first of several, and is the same for all that; or it is the 304 of another version.
                let none = Validators::default();
                return Box::pin(self.exchange(request, &none, spool)).await;
            }
            return Ok(None);
        }
        let date = text(response.headers(), &DATE).and_then(|date| moment(&date));
        let age = text(response.headers(), &AGE).and_then(|age| age.trim().parse::<u32>().ok()).unwrap_or(0);
        let time = AnswerTime { date, age: SignedDuration::from_secs(age.into()), asked, arrived };
        let validators = Validators {
            // The star stands for any version.
            etag: text(response.headers(), &ETAG).filter(|etag| etag != "*"),
            last_modified: text(response.headers(), &LAST_MODIFIED).filter(|at| is_settled(at, date.unwrap_or(asked))),
        };
        let url = response.url().clone();
        let shown = Shown {
            has_next: is_paged(&headers),
            is_lines: text(response.headers(), &CONTENT_TYPE).is_some_and(|of| is_lines(&of)),
        };
        let body = self.keep(response, request, spool, shown).await?;
        Ok(Some(Answer { time, url, headers, validators, body }))
    }

    /// Sends the request; what comes back has a body, or is a 304 that was asked for.
    async fn ask(&self, request: &Request, validators: &Validators) -> Result<Response, HttpError> {
        let mut asked = match &request.body {
            None => self.client.get(request.url.clone()),
            Some(body) => {
                self.client.post(request.url.clone()).header(CONTENT_TYPE, "application/json").body(body.to_string())
            }
        };
        asked = asked.header(ACCEPT, "application/json, */*;q=0.5").header(ACCEPT_ENCODING, ENCODINGS);
        // A cache on the way would answer with what was.
        asked = asked.header(CACHE_CONTROL, "no-cache");
        // These replace ours.
        asked = asked.headers(self.headers().await?);
        for (name, value) in [(IF_NONE_MATCH, &validators.etag), (IF_MODIFIED_SINCE, &validators.last_modified)] {
            if let Some(value) = value {
                asked = asked.header(name, value);
            }
        }
        let shown = request.to_string();
        let limit = self.settings.source_timeout;
        let response = match timeout(limit, asked.send()).await {
            Ok(Ok(response)) => response,
            // reqwest names the address with its secrets.
            Ok(Err(source)) => return Err(HttpError::NoAnswer { request: shown, source: source.without_url() }),
            Err(_) => return Err(HttpError::TooSlow { request: shown, limit }),
        };
        let status = response.status();
        let is_asked_for = status == StatusCode::NOT_MODIFIED && *validators != Validators::default();
        if request.body.is_some() && *response.url() != request.url {
            // Behind most redirects a POST becomes a GET, of another collection.
            let to = public_url(response.url());
            return Err(HttpError::Redirected { request: shown, to, why: "no place for a POST" });
        }
        if status == StatusCode::OK || is_asked_for {
            return Ok(response);
        }
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            let to = text(response.headers(), &LOCATION).unwrap_or_default();
            let there = response.url().join(&to).ok();
            let is_home = there.as_ref().is_some_and(|there| there.origin() == request.url.origin());
            let why = if is_home { "one redirect too many" } else { "another origin" };
            let to = there.map_or_else(|| "something that is no address".to_owned(), |there| public_url(&there));
            return Err(HttpError::Redirected { request: shown, to, why });
        }
        let refusal = refusal::read(status, response.headers(), Timestamp::now());
        Err(HttpError::Status { request: shown, status, refusal })
    }

    /// Keeps a body that may be the data.
    async fn keep(
        &self,
        response: Response,
        request: &Request,
        spool: &mut Spool,
        headers: Shown,
    ) -> Result<Body, HttpError> {
        let shown = || request.to_string();
        // Where only the end of the connection ends a body, a server that dies looks like one that is done.
        let is_measured = response.content_length().is_some()
            || response.headers().contains_key(TRANSFER_ENCODING)
            || response.version() >= Version::HTTP_2;
        let encoding = encoding(response.headers());
        let body = self.wire(response);
        let body = match encoding.as_str() {
            "" => body,
            encoding => unpacked(body, encoding)
                .ok_or_else(|| HttpError::Encoded { request: shown(), encoding: encoding.to_owned() })?,
        };
        let kept = spool.keep(body, headers).await;
        let body = kept.map_err(|source| match source {
            SpoolError::Broken { bytes: 0, source } if source.kind() == io::ErrorKind::TimedOut => {
                HttpError::TooSlow { request: shown(), limit: self.settings.source_timeout }
            }
            SpoolError::NoRecords { ref upload, .. } if !is_measured && source.ends_too_soon() => {
                let (bytes, source) = (upload.bytes, io::Error::other("the array or object in it has no end"));
                HttpError::Body { request: shown(), source: SpoolError::Broken { bytes, source } }
            }
            SpoolError::NoRecords { .. } => HttpError::NotTheData { request: shown(), source },
            SpoolError::Broken { source, .. } if !is_cut(&source) => {
                HttpError::Mislabelled { request: shown(), encoding, source }
            }
            source => HttpError::Body { request: shown(), source },
        })?;
        if body.records.are_lines && !is_measured {
            return Err(HttpError::Endless { request: shown() });
        }
        Ok(body)
    }

    /// The body as it comes, no longer than allowed: a bomb may be small where it is unpacked, and endless on the wire.
    fn wire(&self, response: Response) -> Chunks {
        let (first_limit, most) = (self.settings.source_timeout, self.max_body);
        let next = move |(mut response, received): (Response, u64)| async move {
            let limit = if received == 0 { first_limit } else { IDLE_READ_TIMEOUT };
            let chunk = timeout(limit, response.chunk()).await;
            // The first byte has a limit of its own.
            let kind = if received == 0 { io::ErrorKind::TimedOut } else { CUT };
            let chunk = chunk.map_err(|_| io::Error::new(kind, format!("nothing came for {limit:?}")))?;
            let chunk = chunk.map_err(|error| io::Error::new(CUT, error.without_url()))?;
            let received = received + chunk.as_ref().map_or(0, Bytes::len) as u64;
            if received > most {
                return Err(io::Error::other(SpoolError::TooLong { max_bytes: most }));
            }
            Ok(chunk.map(|chunk| (chunk, (response, received))))
        };
        stream::try_unfold((response, 0), next).boxed()
    }

    /// The headers of the settings, read anew: they may have been rotated.
    async fn headers(&self) -> Result<HeaderMap, HttpError> {
        let Some(file) = &self.settings.source_header_file else { return Ok(HeaderMap::new()) };
        let read =
            tokio::fs::read_to_string(file).await.and_then(|text| parse_headers(&text).map_err(io::Error::other));
        read.map_err(|source| HttpError::HeaderFile { file: file.clone(), source })
    }
}

/// A body, piece by piece.
type Chunks = BoxStream<'static, io::Result<Bytes>>;

/// The body as it comes.
type Wire = StreamReader<Chunks, Bytes>;

/// What an error of the wire is, and none of a decoder.
const CUT: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// Whether the rest does not come, so that nothing can be said of what the bytes are.
fn is_cut(error: &io::Error) -> bool {
    matches!(error.kind(), CUT | io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof)
}

fn chunks(reader: impl AsyncRead + Send + 'static) -> Chunks {
    ReaderStream::with_capacity(reader, UNPACKED_BYTES).boxed()
}

/// What a decoder unpacks, with further streams behind the first: nothing of a body is left out.
macro_rules! all_of {
    ($decoder:expr) => {{
        let mut decoder = $decoder;
        decoder.multiple_members(true);
        chunks(decoder)
    }};
}

/// The body without its encoding; `None` if that was not asked for. A body without bytes has none.
fn unpacked(body: Chunks, encoding: &str) -> Option<Chunks> {
    let decode: fn(Wire, u8) -> Chunks = match encoding {
        "gzip" | "x-gzip" => |wire, _| unpacked_members(wire),
        // A zlib stream, as RFC 9110 has it, or a bare one, as some servers send it.
        "deflate" => |wire, first| {
            if first & 0xf == ZLIB { all_of!(ZlibDecoder::new(wire)) } else { all_of!(DeflateDecoder::new(wire)) }
        },
        "br" => |wire, _| all_of!(BrotliDecoder::new(wire)),
        "zstd" => |wire, _| all_of!(ZstdDecoder::with_params(wire, &[DParameter::window_log_max(ZSTD_WINDOW_LOG)])),
        _ => return None,
    };
    let mut wire = StreamReader::new(body);
    let body = async move {
        let first = wire.fill_buf().await?.first().copied();
        io::Result::Ok(first.map_or_else(|| stream::empty().boxed(), |first| decode(wire, first)))
    };
    Some(stream::once(body).try_flatten().boxed())
}

/// Gzip's members one after the other, and the zeros that some servers send behind them.
fn unpacked_members(wire: Wire) -> Chunks {
    let next = |(mut decoder, mut buffer): (GzipDecoder<Wire>, BytesMut)| async move {
        loop {
            buffer.reserve(UNPACKED_BYTES);
            if decoder.read_buf(&mut buffer).await? > 0 {
                return io::Result::Ok(Some((buffer.split().freeze(), (decoder, buffer))));
            }
            let mut wire = decoder.into_inner();
            loop {
                let bytes = wire.fill_buf().await?;
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                match bytes.get(zeros) {
                    None if bytes.is_empty() => return Ok(None),
                    None => wire.consume(zeros),
                    Some(_) if zeros == 0 => break,
                    Some(_) => {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "padding ends before the body does"));
                    }
                }
            }
            decoder = GzipDecoder::new(wire);
        }
    };
    stream::try_unfold((GzipDecoder::new(wire), BytesMut::new()), next).boxed()
}

/// All header lines as text.
fn lines(headers: &HeaderMap) -> Vec<(String, String)> {
    let line = |value: &HeaderValue| {
        let mut line = String::new();
        for byte in value.as_bytes() {
            if byte.is_ascii() {
                line.push(char::from(*byte));
            } else {
                write!(line, "%{byte:02X}").expect("a string takes everything");
            }
        }
        line
    };
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), line(value))).collect()
}

/// Whether a change after the answer would have another `Last-Modified`, which counts whole seconds (RFC 9110, section 8.8.2.2).
fn is_settled(last_modified: &str, date: Timestamp) -> bool {
    moment(last_modified).is_some_and(|at| date.duration_since(at) > SignedDuration::from_secs(1))
}

/// In what a body is encoded, as lists and lines say it together; nothing where it is not.
fn encoding(headers: &HeaderMap) -> String {
    let lines = headers.get_all(CONTENT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    let all = lines.flat_map(|line| line.split(',')).map(|encoding| encoding.trim().to_ascii_lowercase());
    // Some servers name the character set here.
    let all = all.filter(|encoding| !matches!(encoding.as_str(), "" | "identity" | "none" | "utf-8" | "utf8"));
    all.collect::<Vec<_>>().join(", ")
}

/// Whether a 304 is that of another version than the one that was named.
fn is_another(validators: &Validators, headers: &HeaderMap) -> bool {
    let strong = |etag: &String| etag.trim_start_matches("W/").to_owned();
    let differs = |sent: Option<String>, came: Option<String>| sent.is_some() && came.is_some() && sent != came;
    match &validators.etag {
        Some(etag) => differs(Some(strong(etag)), text(headers, &ETAG).map(|etag| strong(&etag))),
        None => differs(validators.last_modified.clone(), text(headers, &LAST_MODIFIED)),
    }
}

/// Whether a content type, as `application/x-ndjson; charset=utf-8`, is one of a record a line.
fn is_lines(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind.split_once('/').is_some_and(|(_, kind)| LINES.contains(&kind.trim_start_matches("x-")))
}

/// A header as text, if it is text.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// `Name: value`, or a bearer token, a line. A name may come more than once.
fn parse_headers(text: &str) -> Result<HeaderMap, &'static str> {
    let mut headers = HeaderMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = match line.split_once(':') {
            Some((name, value)) => (
                HeaderName::try_from(name.trim()).map_err(|_| "a name in it is no header's name")?,
                value.trim().to_owned(),
            ),
            // With its scheme, or a token alone.
            None if line.contains(' ') => (AUTHORIZATION, line.to_owned()),
            None => (AUTHORIZATION, format!("Bearer {line}")),
        };
        let mut value = HeaderValue::try_from(value).map_err(|_| "a value has characters that no header may have")?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    if headers.is_empty() { Err("the file is empty") } else { Ok(headers) }
}

fn stay_on_the_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let is_home = attempt.previous().first().is_none_or(|first| first.origin() == attempt.url().origin());
    if !is_home || attempt.previous().len() > REDIRECTS { attempt.stop() } else { attempt.follow() }
}

/// What usually is the matter where there is no answer.
fn hint_of_silence(error: &reqwest::Error) -> &'static str {
    if chain(error).contains("UnknownIssuer") {
        "its certificate's issuer is not trusted here: set SSL_CERT_FILE to a file with that authority's certificates"
    } else {
        "is it right in SOURCE_URL, and may this machine reach it?"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_file_holds_headers_or_a_token() {
        for (text, name, value) in [
            ("X-Api-Key: abc\n", "x-api-key", "abc"),
            ("# mine\ns3cret\n", "authorization", "Bearer s3cret"),
            ("Basic abc=\n", "authorization", "Basic abc="),
        ] {
            assert_eq!(parse_headers(text).unwrap().get(name).unwrap(), value);
        }
        let several = parse_headers("s3cret\n\n X-Version: 7 \nX-Trace: a\nX-Trace: b\n").unwrap();
        assert_eq!((several.len(), several.get("x-version").unwrap().as_bytes()), (4, &b"7"[..]));
        for wrong in ["", "\n", "a b: c", "X: a\u{1}b"] {
            assert!(parse_headers(wrong).is_err(), "{wrong}");
        }
        assert!(!format!("{:?}", parse_headers("s3cret")).contains("s3cret"));
    }
}
