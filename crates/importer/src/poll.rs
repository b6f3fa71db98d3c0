//! One exchange with the API.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use reqwest::{
    Client, Response, StatusCode,
    header::{ETAG, HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED},
    redirect,
};
use thiserror::Error;
use url::Url;
use uuid::Uuid;

use crate::spool::{SpoolError, Spooled, spool};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An API that sends nothing for this long has stopped; a long body may take as long as it likes while it moves.
const IDLE_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// More hops than this are a loop. They never leave the origin.
const REDIRECTS: usize = 5;

/// Which collection, and what its answers may cost here.
#[derive(Args, Clone, Debug)]
pub struct PollSettings {
    /// The collection to poll, an http or https URL that answers with a JSON array
    #[arg(long, env = "SOURCE_URL", value_name = "URL", required = true, value_parser = shared::settings::parse_http_url)]
    pub source_url: Url,
    /// Folder for one answer on its way to S3: a disk with room for it, not a tmpfs [default: the system's temporary folder]
    #[arg(long, env = "SPOOL_DIR", value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,
    /// The longest answer that is taken, in bytes; S3 itself takes 5 GiB in one piece
    #[arg(long, env = "MAX_BODY", value_name = "BYTES", default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(1..=5 << 30))]
    pub max_body: u64,
}

impl PollSettings {
    /// The collection's address as it may be shown and stored.
    pub fn public_url(&self) -> String {
        public_url(&self.source_url)
    }
}

/// What the API said last time, so that it need not say it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// For `If-None-Match`.
    pub etag: Option<String>,
    /// For `If-Modified-Since`.
    pub last_modified: Option<String>,
}

/// What came of a poll.
#[derive(Debug)]
pub enum Polled {
    /// 304: what the validators stand for is still so.
    NotModified,
    /// A whole body that may be the data.
    Answer(Answer),
}

/// An observation that is not archived yet.
#[derive(Debug)]
pub struct Answer {
    /// Its identity from here to the ledger.
    pub observation: Uuid,
    /// When the fetch began.
    pub fetched_at: Timestamp,
    /// See [`PollSettings::public_url`].
    pub source_url: String,
    /// What the next poll may send.
    pub validators: Validators,
    /// The body.
    pub spooled: Spooled,
}

/// How the loop sees the API.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Source {
    /// Asks once. Safe to drop at any await.
    async fn poll(&self, validators: Validators) -> Result<Polled, PollError>;
}

/// Why a poll brought nothing.
#[derive(Debug, Error)]
pub enum PollError {
    /// No connection, or none that lasted until the headers.
    #[error("GET {url} got no answer")]
    NoAnswer {
        /// What was asked.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// Another status than 200 and 304.
    #[error("GET {url} was answered with {status}")]
    Status {
        /// What was asked.
        url: String,
        /// What came back.
        status: StatusCode,
    },
    /// The headers came and the body did not.
    #[error("the answer to GET {url} could not be kept")]
    Body {
        /// What was asked.
        url: String,
        /// What happened to it.
        source: SpoolError<reqwest::Error>,
    },
    /// The body cannot be the data.
    #[error("the answer to GET {url} is no JSON collection: it {fault}")]
    NotTheData {
        /// What was asked.
        url: String,
        /// What it is instead.
        fault: String,
    },
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
            .redirect(redirect::Policy::custom(stay_on_the_origin))
            .build()?;
        Ok(Self { client, settings })
    }

    async fn keep(&self, response: Response, fetched_at: Timestamp) -> Result<Answer, PollError> {
        let (observation, url) = (Uuid::now_v7(), self.settings.public_url());
        let validators =
            Validators { etag: text(response.headers(), ETAG), last_modified: text(response.headers(), LAST_MODIFIED) };
        let dir = self.settings.spool_dir.clone().unwrap_or_else(std::env::temp_dir);
        let body = response.bytes_stream().map_err(reqwest::Error::without_url);
        let spooled = spool(body, &dir, self.settings.max_body)
            .await
            .map_err(|source| PollError::Body { url: url.clone(), source })?;
        match fault_of(&spooled.beginning) {
            Some(fault) => Err(PollError::NotTheData { url, fault }),
            None => Ok(Answer { observation, fetched_at, source_url: url, validators, spooled }),
        }
    }
}

impl Source for Api {
    async fn poll(&self, validators: Validators) -> Result<Polled, PollError> {
        let (fetched_at, url) = (Timestamp::now(), self.settings.public_url());
        let mut request = self.client.get(self.settings.source_url.clone());
        for (name, value) in [(IF_NONE_MATCH, validators.etag), (IF_MODIFIED_SINCE, validators.last_modified)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let response = match request.send().await {
            Ok(response) => response,
            // reqwest names the address with its secrets.
            Err(source) => return Err(PollError::NoAnswer { url, source: source.without_url() }),
        };
        match response.status() {
            StatusCode::OK => self.keep(response, fetched_at).await.map(Polled::Answer),
            StatusCode::NOT_MODIFIED => Ok(Polled::NotModified),
            status => Err(PollError::Status { url, status }),
        }
    }
}

/// What makes a body impossible as data, judged by how it begins: a log-in page must not become the last word.
fn fault_of(beginning: &[u8]) -> Option<String> {
    let text = beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning).trim_ascii_start();
    match text.first() {
        Some(b'[' | b'{') => None,
        // `null` is an empty collection to many servers.
        Some(b'n') if text.starts_with(b"null") => None,
        Some(_) => Some(format!("begins with {:?}", String::from_utf8_lossy(text))),
        None => Some("is empty".to_owned()),
    }
}

/// A header as text, if it is text.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn stay_on_the_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let is_home = attempt.previous().first().is_none_or(|first| first.origin() == attempt.url().origin());
    if !is_home || attempt.previous().len() > REDIRECTS { attempt.stop() } else { attempt.follow() }
}

/// The address without user, password and the values of parameters whose names say that they are secret.
fn public_url(url: &Url) -> String {
    const SECRET: [&str; 7] = ["key", "token", "secret", "passw", "auth", "sig", "credential"];
    let mut shown = url.clone();
    // Both fail only for addresses without a host, which http does not have.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    let is_secret = |name: &str| SECRET.iter().any(|secret| name.to_ascii_lowercase().contains(secret));
    if url.query_pairs().any(|(name, _)| is_secret(&name)) {
        let pairs = url.query_pairs();
        let pairs = pairs.map(|(name, value)| if is_secret(&name) { (name, "***".into()) } else { (name, value) });
        shown.query_pairs_mut().clear().extend_pairs(pairs);
    }
    shown.into()
}

#[cfg(test)]
mod tests {
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
    fn secrets_in_an_address_are_neither_shown_nor_stored() {
        for (given, shown) in [
            ("https://example.org/posts", "https://example.org/posts"),
            ("https://me:pw@example.org/posts", "https://example.org/posts"),
            (
                "https://example.org/posts?api_key=s3cret&page=2&Token=t",
                "https://example.org/posts?api_key=***&page=2&Token=***",
            ),
        ] {
            assert_eq!(public_url(&given.parse().unwrap()), shown);
        }
    }
}
