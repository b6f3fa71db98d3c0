//! One poll of the API: a snapshot of the collection, page by page, retries included.

use std::{io, path::PathBuf, time::Duration};

use async_compression::tokio::bufread::GzipDecoder;
use bytes::Bytes;
use clap::Args;
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use reqwest::{
    Client, Response, StatusCode, Version,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
        IF_NONE_MATCH, LAST_MODIFIED, LINK, LOCATION, RETRY_AFTER, TRANSFER_ENCODING,
    },
    redirect,
};
use shared::{
    object::Metadata,
    settings::public_url,
    telemetry::{beat, chain},
};
use thiserror::Error;
use tokio::time::sleep;
use tokio_util::io::{ReaderStream, StreamReader};
use tracing::{debug, warn};
use url::{Host, Url};
use uuid::Uuid;

use crate::{
    page::{PageError, Paging, Signs, Turn},
    retry::{parse_retry_after, pause_after},
    spool::{Spool, SpoolError, Spooled},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An API that sends nothing for this long has stopped.
const IDLE_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest that one answer may take while it moves: 1 GiB at 0.6 MB/s.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(30);

/// More hops than this are a loop. They never leave the origin.
const REDIRECTS: usize = 5;

/// How often a collection that changes while it is paged is fetched from its first page.
const SNAPSHOTS: u32 = 3;

/// Which collection, and what its answers may cost here.
#[derive(Args, Clone, Debug)]
pub struct PollSettings {
    /// The collection to poll: an address that answers with a JSON array. Pages behind `Link: rel=next` are followed. https, unless
    /// the host is this machine or --allow-http is given
    #[arg(long, env = "SOURCE_URL", value_name = "URL", hide_env_values = true, required = true, value_parser = shared::settings::parse_http_url)]
    pub source_url: Url,
    /// For an API without `Link` headers: the parameter that numbers its pages, as in `page`. It is counted up from 1, or
    /// from its value in SOURCE_URL, until a page is empty
    #[arg(long, env = "PAGE_PARAMETER", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub page_parameter: Option<String>,
    /// A file with a header to send, as in `X-Api-Key: abc`, or with a bearer token alone; read again for each request
    #[arg(long, env = "SOURCE_HEADER_FILE", value_name = "FILE")]
    pub source_header_file: Option<PathBuf>,
    /// Takes a SOURCE_URL with http on another host, where everybody on the way can read and change what is archived
    #[arg(long, env = "ALLOW_HTTP", value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub allow_http: bool,
    /// Folder for one answer on its way to S3: a disk with room for it, not a tmpfs [default: the system's temporary folder]
    #[arg(long, env = "SPOOL_DIR", value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,
    /// The longest answer that is taken, all its pages together, in bytes, compressed and not; S3 takes 5 GiB in one piece
    #[arg(long, env = "MAX_BODY", value_name = "BYTES", default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1..=5 << 30))]
    pub max_body: u64,
}

impl PollSettings {
    /// The folder of the settings, or the system's.
    pub fn spool_dir(&self) -> PathBuf {
        self.spool_dir.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// Plain http to another host, without the word that allows it.
pub fn exposure(source_url: &str, allow_http: bool) -> Option<String> {
    let url = Url::parse(source_url).ok()?;
    (url.scheme() == "http" && !is_loopback(&url) && !allow_http).then(|| {
        format!(
            "SOURCE_URL (--source-url) is `{}`\nwith http everybody on the way can read and change what is archived: use https, or say \
             --allow-http",
            public_url(&url)
        )
    })
}

/// What the API said last time, so that it need not say it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// For `If-None-Match`.
    pub etag: Option<String>,
    /// For `If-Modified-Since`.
    pub last_modified: Option<String>,
}

/// What to send with the next fetch from `source_url`. A snapshot of several pages has no validator of its own, a cut one none
/// that counts, and what another address said is not to be held against this one.
pub fn validators(last: Option<&Metadata>, source_url: &str) -> Validators {
    match last {
        Some(last) if last.last_page && last.page == 1 && last.source_url == source_url => {
            Validators { etag: last.etag.clone(), last_modified: last.last_modified.clone() }
        }
        _ => Validators::default(),
    }
}

/// A page of a snapshot, not archived yet: a whole body that may be the data.
#[derive(Debug)]
pub struct Answer {
    /// Its identity from here to the ledger.
    pub observation: Uuid,
    /// When the fetch began.
    pub fetched_at: Timestamp,
    /// Where it came from, as it may be shown.
    pub source_url: String,
    /// What the next poll may send. None for a page of many: a first page that is the same says nothing of a new last one.
    pub validators: Validators,
    /// The body.
    pub spooled: Spooled,
}

/// How the loop sees the API.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Source {
    /// Asks for a snapshot: its pages, one at least, or `None` if it is still what `last` says of the last one. Safe to drop at any
    /// await: nothing but the spool file was touched.
    async fn poll(&self, last: Option<&Metadata>) -> Result<Option<Vec<Answer>>, PollError>;
}

/// Why a poll brought nothing.
#[derive(Debug, Error)]
pub enum PollError {
    /// No connection, or none that lasted until the headers.
    #[error("GET {url} got no answer (is it right in SOURCE_URL, and may this machine reach it?)")]
    NoAnswer {
        /// What was asked.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// Another status than 200, or a 304 that was not asked for.
    #[error("GET {url} was answered with {status}{hint}", hint = hint(*status))]
    Status {
        /// What was asked.
        url: String,
        /// What came back.
        status: StatusCode,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// A redirect that is not followed.
    #[error("GET {url} was redirected to {to}, which is {why}: set SOURCE_URL to where the data is")]
    Redirected {
        /// What was asked.
        url: String,
        /// Where it leads.
        to: String,
        /// Why it is not followed.
        why: &'static str,
    },
    /// An encoding that was not asked for.
    #[error(
        "the answer to GET {url} is encoded as `{encoding}`, and only gzip was asked for: have the server send gzip or plain bytes"
    )]
    Encoded {
        /// What was asked.
        url: String,
        /// The `Content-Encoding`.
        encoding: String,
    },
    /// The headers came and the body did not.
    #[error("the answer to GET {url} could not be kept")]
    Body {
        /// What was asked.
        url: String,
        /// What happened to it.
        source: SpoolError,
    },
    /// There is nowhere to put an answer.
    #[error(transparent)]
    Spool(SpoolError),
    /// The body cannot be the data.
    #[error("the answer to GET {url}, which should be a JSON array, {fault}: set SOURCE_URL to where the data is")]
    NotTheData {
        /// What was asked.
        url: String,
        /// What it is instead.
        fault: String,
    },
    /// The pages cannot be followed.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The collection does not hold still.
    #[error(
        "the collection at {url} changed while it was paged, {SNAPSHOTS} times in a row: ask for larger pages in SOURCE_URL"
    )]
    Unsettled {
        /// The collection.
        url: String,
    },
    /// The header to send is not to be had.
    #[error("cannot use SOURCE_HEADER_FILE {}, which holds `Name: value` or a bearer token", file.display())]
    HeaderFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// What a walk through the pages came to.
enum Snapshot {
    Whole(Vec<Answer>),
    /// 304: what the validators stand for is still so.
    Unmodified,
    /// The collection changed under way.
    Torn,
}

/// A collection behind HTTP.
#[derive(Debug)]
pub struct Api {
    client: Client,
    settings: PollSettings,
}

impl Api {
    /// A client for the collection. Nothing is asked of it yet.
    pub fn new(settings: PollSettings) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .user_agent(concat!("posts-importer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(IDLE_READ_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .redirect(redirect::Policy::custom(stay_on_the_origin))
            .build()?;
        Ok(Self { client, settings })
    }

    /// What the collection is now.
    async fn snapshot(&self, validators: &Validators) -> Result<Snapshot, PollError> {
        let mut spool = Spool::new(&self.settings.spool_dir(), self.settings.max_body).map_err(PollError::Spool)?;
        let mut paging = Paging::new(self.settings.page_parameter.clone());
        let mut url = self.settings.source_url.clone();
        let mut pages = Vec::new();
        loop {
            let none = Validators::default();
            let validators = if pages.is_empty() { validators } else { &none };
            let Some((page, signs)) = self.fetch(&url, validators, &mut spool).await? else {
                return Ok(Snapshot::Unmodified);
            };
            let turn = paging.turn(&signs)?;
            if !matches!(turn, Turn::PastTheEnd) {
                pages.push(page);
            }
            match turn {
                Turn::Next(next) => url = next,
                Turn::End | Turn::PastTheEnd => return Ok(Snapshot::Whole(pages)),
                Turn::Changed => return Ok(Snapshot::Torn),
            }
        }
    }

    /// One page, tried again while that may help. `None` for a 304.
    async fn fetch(
        &self,
        url: &Url,
        validators: &Validators,
        spool: &mut Spool,
    ) -> Result<Option<(Answer, Signs)>, PollError> {
        let mut dice = fastrand::Rng::new();
        let mut tries = 0;
        loop {
            beat();
            let error = match self.exchange(url, validators, spool).await {
                Ok(page) => return Ok(page),
                Err(error) => error,
            };
            tries += 1;
            let Some(pause) = pause_after(&error, tries, &mut dice) else { return Err(error) };
            debug!(why = chain(&error), tries, pause_ms = pause.as_millis(), "asking again");
            sleep(pause).await;
        }
    }

    /// One request and its answer.
    async fn exchange(
        &self,
        url: &Url,
        validators: &Validators,
        spool: &mut Spool,
    ) -> Result<Option<(Answer, Signs)>, PollError> {
        let (fetched_at, shown) = (Timestamp::now(), public_url(url));
        let response = self.ask(url, validators, fetched_at).await?;
        let headers = response.headers().clone();
        let mut signs = Signs {
            page: response.url().clone(),
            links: headers.get_all(LINK).iter().filter_map(|link| link.to_str().ok()).map(str::to_owned).collect(),
            total: text(&headers, &HeaderName::from_static("x-total-count")),
            is_empty: false,
        };
        let is_paged = signs.is_paged() || self.settings.page_parameter.is_some();
        if response.status() == StatusCode::NOT_MODIFIED {
            if is_paged {
                // The only page became the first of several, and is the same for all that.
                return Box::pin(self.exchange(url, &Validators::default(), spool)).await;
            }
            return Ok(None);
        }
        let spooled = self.keep(response, &shown, spool).await?;
        signs.is_empty = is_empty(&spooled);
        let validators = if is_paged {
            Validators::default()
        } else {
            Validators { etag: text(&headers, &ETAG), last_modified: text(&headers, &LAST_MODIFIED) }
        };
        Ok(Some((Answer { observation: Uuid::now_v7(), fetched_at, source_url: shown, validators, spooled }, signs)))
    }

    /// Sends the request; what comes back has a body, or is a 304 that was asked for.
    async fn ask(&self, url: &Url, validators: &Validators, now: Timestamp) -> Result<Response, PollError> {
        let mut request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "gzip").headers(self.header().await?);
        for (name, value) in [(IF_NONE_MATCH, &validators.etag), (IF_MODIFIED_SINCE, &validators.last_modified)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let shown = public_url(url);
        let response = match request.send().await {
            Ok(response) => response,
            // reqwest names the address with its secrets.
            Err(source) => return Err(PollError::NoAnswer { url: shown, source: source.without_url() }),
        };
        let status = response.status();
        let is_asked_for = status == StatusCode::NOT_MODIFIED && *validators != Validators::default();
        if status == StatusCode::OK || is_asked_for {
            return Ok(response);
        }
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            let to = text(response.headers(), &LOCATION).unwrap_or_default();
            let there = response.url().join(&to).ok();
            let is_home = there.as_ref().is_some_and(|there| there.origin() == url.origin());
            let why = if is_home { "one redirect too many" } else { "another origin" };
            return Err(PollError::Redirected { url: shown, to: there.map_or(to, |there| public_url(&there)), why });
        }
        let retry_after = text(response.headers(), &RETRY_AFTER).and_then(|value| parse_retry_after(&value, now));
        Err(PollError::Status { url: shown, status, retry_after })
    }

    /// Keeps a body that may be the data.
    async fn keep(&self, response: Response, shown: &str, spool: &mut Spool) -> Result<Spooled, PollError> {
        let url = || shown.to_owned();
        // Where only the end of the connection ends a body, a server that dies looks like one that is done.
        let is_measured = response.content_length().is_some()
            || response.headers().contains_key(TRANSFER_ENCODING)
            || response.version() >= Version::HTTP_2;
        let encoding = text(response.headers(), &CONTENT_ENCODING).map(|encoding| encoding.to_ascii_lowercase());
        let spooled = match encoding.as_deref() {
            None | Some("identity" | "") => spool.keep(self.wire(response)).await,
            Some("gzip") => {
                let mut decoder = GzipDecoder::new(StreamReader::new(self.wire(response)));
                decoder.multiple_members(true);
                spool.keep(ReaderStream::new(decoder)).await
            }
            Some(encoding) => return Err(PollError::Encoded { url: url(), encoding: encoding.to_owned() }),
        };
        let spooled = spooled.map_err(|source| PollError::Body { url: url(), source })?;
        if let Some(fault) = fault_of(&spooled.beginning) {
            return Err(PollError::NotTheData { url: url(), fault });
        }
        if !is_measured && is_cut_short(&spooled) {
            let source = io::Error::other("the array or object in it has no end");
            let source = SpoolError::Broken { bytes: spooled.upload.bytes, source };
            return Err(PollError::Body { url: url(), source });
        }
        Ok(spooled)
    }

    /// The body as it comes, no longer than allowed: a bomb may be small where it is unpacked, and endless on the wire.
    fn wire(&self, response: Response) -> impl Stream<Item = io::Result<Bytes>> + Unpin + use<> {
        let (mut received, most) = (0, self.settings.max_body);
        let chunks = response.bytes_stream().map(move |chunk| {
            let chunk = chunk.map_err(|error| io::Error::other(error.without_url()))?;
            received += chunk.len() as u64;
            if received > most { Err(io::Error::other(SpoolError::TooLong { max_bytes: most })) } else { Ok(chunk) }
        });
        Box::pin(chunks)
    }

    /// The header of the settings, read anew: it may have been rotated.
    async fn header(&self) -> Result<HeaderMap, PollError> {
        let Some(file) = &self.settings.source_header_file else { return Ok(HeaderMap::new()) };
        let read = tokio::fs::read_to_string(file).await.and_then(|text| parse_header(&text).map_err(io::Error::other));
        read.map_err(|source| PollError::HeaderFile { file: file.clone(), source })
    }
}

impl Source for Api {
    async fn poll(&self, last: Option<&Metadata>) -> Result<Option<Vec<Answer>>, PollError> {
        let url = public_url(&self.settings.source_url);
        let validators = validators(last, &url);
        for snapshot in 1..=SNAPSHOTS {
            match self.snapshot(&validators).await? {
                Snapshot::Whole(pages) => return Ok(Some(pages)),
                Snapshot::Unmodified => return Ok(None),
                Snapshot::Torn => warn!(snapshot, "the collection changed while it was paged"),
            }
        }
        Err(PollError::Unsettled { url })
    }
}

/// What makes a body impossible as data, judged by how it begins: a log-in page must not become the last word.
fn fault_of(beginning: &[u8]) -> Option<String> {
    let text = content(beginning);
    match text.first() {
        Some(b'[' | b'{') => None,
        // `null` is an empty collection to many servers.
        Some(b'n') if text.starts_with(b"null") => None,
        Some(_) => Some(format!("begins with {:?}", String::from_utf8_lossy(text))),
        None => Some("is empty".to_owned()),
    }
}

/// Without byte order mark and white space in front.
fn content(beginning: &[u8]) -> &[u8] {
    beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning).trim_ascii_start()
}

/// Whether a page holds no record. A longer one than its kept beginning holds some.
fn is_empty(spooled: &Spooled) -> bool {
    let is_whole = spooled.upload.bytes == spooled.beginning.len() as u64;
    let words: Vec<u8> =
        content(&spooled.beginning).iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    is_whole && matches!(words.as_slice(), b"[]" | b"null")
}

/// Whether a body that begins as an array or object does not end as one.
fn is_cut_short(spooled: &Spooled) -> bool {
    match content(&spooled.beginning).first() {
        Some(b'[') => spooled.ending != Some(b']'),
        Some(b'{') => spooled.ending != Some(b'}'),
        _ => false,
    }
}

/// A header as text, if it is text.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// `Name: value`, or a bearer token.
fn parse_header(text: &str) -> Result<HeaderMap, &'static str> {
    let text = text.trim();
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => {
            (HeaderName::try_from(name.trim()).map_err(|_| "the name is no header's name")?, value.trim().to_owned())
        }
        None if text.is_empty() => return Err("the file is empty"),
        None => (AUTHORIZATION, format!("Bearer {text}")),
    };
    let mut value = HeaderValue::try_from(value).map_err(|_| "the value has characters that no header may have")?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(name, value)]))
}

fn stay_on_the_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let is_home = attempt.previous().first().is_none_or(|first| first.origin() == attempt.url().origin());
    if !is_home || attempt.previous().len() > REDIRECTS { attempt.stop() } else { attempt.follow() }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// What a status usually means for whoever set this up.
fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ": put the API's key or token into SOURCE_HEADER_FILE",
        StatusCode::NOT_FOUND | StatusCode::GONE => ": correct SOURCE_URL",
        StatusCode::TOO_MANY_REQUESTS => ": raise POLL_INTERVAL",
        StatusCode::NOT_MODIFIED => ", though nobody asked whether anything changed: see to the cache in between",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use shared::object::{Sequence, Sha256};

    use super::*;

    #[test]
    fn a_body_that_cannot_be_the_data_is_told_apart_by_its_beginning() {
        for good in ["[]", "\u{feff} [", "\n\t {", "null"] {
            assert_eq!(fault_of(good.as_bytes()), None, "{good}");
        }
        for (bad, fault) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("<html>", "begins with \"<html>\""),
            ("nope", "begins with \"nope\""),
            ("42", "begins with \"42\""),
        ] {
            assert_eq!(fault_of(bad.as_bytes()).as_deref(), Some(fault), "{bad}");
        }
    }

    #[test]
    fn a_header_file_holds_a_header_or_a_token() {
        for (text, name, value) in
            [("X-Api-Key: abc\n", "x-api-key", "abc"), ("s3cret\n", "authorization", "Bearer s3cret")]
        {
            assert_eq!(parse_header(text).unwrap().get(name).unwrap(), value);
        }
        for wrong in ["", "\n", "a b: c", "X: a\u{1}b"] {
            assert!(parse_header(wrong).is_err(), "{wrong}");
        }
        assert!(!format!("{:?}", parse_header("s3cret")).contains("s3cret"));
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, expected) in [
            ("http://localhost:1/", true),
            ("http://127.0.0.2/", true),
            ("http://[::1]/", true),
            ("http://example.org/", false),
            ("http://localhost.example.org/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn validators_are_those_of_a_whole_snapshot_of_one_page() {
        let url = "https://example.org/posts";
        let last = |page, last_page| Metadata {
            archive_id: Uuid::nil(),
            observation: Uuid::nil(),
            previous: None,
            sha256: Sha256([0; 32]),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: url.into(),
            etag: Some("\"a\"".into()),
            last_modified: None,
            snapshot: Sequence::FIRST,
            page,
            last_page,
            snapshot_sha256: Sha256([0; 32]),
        };
        assert_eq!(validators(Some(&last(1, true)), url).etag.as_deref(), Some("\"a\""));
        assert_eq!(validators(Some(&last(1, true)), "https://example.org/others"), Validators::default());
        for without in [None, Some(&last(1, false)), Some(&last(2, true))] {
            assert_eq!(validators(without, url), Validators::default());
        }
    }
}
