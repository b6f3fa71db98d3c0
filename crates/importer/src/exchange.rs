//! One exchange with the API: a request and its answer, whose body is kept if it may be the data.

use std::{io, path::PathBuf, time::Duration};

use async_compression::tokio::bufread::GzipDecoder;
use bytes::Bytes;
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
use shared::settings::public_url;
use thiserror::Error;
use tokio_util::io::{ReaderStream, StreamReader};
use url::Url;
use uuid::Uuid;

use crate::{
    decide::{fault_of, is_cut_short, is_empty, is_object},
    page::{Parameter, Signs},
    poll::{Answer, PollSettings, Validators},
    retry::parse_retry_after,
    spool::{Spool, SpoolError, Spooled},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An API that sends nothing for this long has stopped.
const IDLE_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest that one answer may take while it moves: 1 GiB at 0.6 MB/s.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(30);

/// So much of a packed body is unpacked at once; each piece costs a word to the thread that writes it.
const UNPACKED_BYTES: usize = 64 * 1024;

/// More hops than this are a loop. They never leave the origin.
const REDIRECTS: usize = 5;

/// Why a request brought nothing.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum ExchangeError {
    /// No connection, or none that lasted until the headers.
    #[error("GET {url} got no answer (is it right in SOURCE_URL, and may this machine reach it?)")]
    NoAnswer { url: String, source: reqwest::Error },
    /// Another status than 200, or a 304 that was not asked for.
    #[error("GET {url} was answered with {status}{hint}", hint = hint(*status))]
    Status { url: String, status: StatusCode, retry_after: Option<Duration> },
    /// A redirect that is not followed.
    #[error("GET {url} was redirected to {to}, which is {why}: set SOURCE_URL to where the data is")]
    Redirected { url: String, to: String, why: &'static str },
    /// An encoding that was not asked for.
    #[error(
        "the answer to GET {url} is encoded as `{encoding}`, and only gzip was asked for: have the server send gzip or plain bytes"
    )]
    Encoded { url: String, encoding: String },
    /// The headers came and the body did not.
    #[error("the answer to GET {url} could not be kept")]
    Body { url: String, source: SpoolError },
    /// The body cannot be the data.
    #[error("the answer to GET {url}, which should be JSON, {fault}: set SOURCE_URL to where the data is")]
    NotTheData { url: String, fault: String },
    /// The header to send is not to be had.
    #[error("cannot use SOURCE_HEADER_FILE {}, which holds `Name: value` or a bearer token", file.display())]
    HeaderFile { file: PathBuf, source: io::Error },
}

/// How the API is asked.
#[derive(Debug)]
pub struct Http {
    client: Client,
    settings: PollSettings,
}

impl Http {
    /// A client with our limits. Nothing is asked yet.
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

    /// One request and its answer: a page and what it says of the collection, or `None` for a 304.
    pub async fn exchange(
        &self,
        url: &Url,
        validators: &Validators,
        spool: &mut Spool,
    ) -> Result<Option<(Answer, Signs)>, ExchangeError> {
        let (fetched_at, shown) = (Timestamp::now(), public_url(url));
        let response = self.ask(url, validators, fetched_at).await?;
        let headers = response.headers().clone();
        let mut signs = Signs {
            page: response.url().clone(),
            links: headers.get_all(LINK).iter().filter_map(|link| link.to_str().ok()).map(str::to_owned).collect(),
            total: text(&headers, &HeaderName::from_static("x-total-count")),
            is_empty: false,
            is_object: false,
            cursor: None,
            sha256: None,
        };
        let is_paged = signs.is_paged() || self.settings.parameter() != Parameter::None;
        if response.status() == StatusCode::NOT_MODIFIED {
            if is_paged {
                // The only page became the first of several, and is the same for all that.
                return Box::pin(self.exchange(url, &Validators::default(), spool)).await;
            }
            return Ok(None);
        }
        let spooled = self.keep(response, &shown, spool).await?;
        (signs.is_empty, signs.is_object) = (is_empty(&spooled), is_object(&spooled));
        signs.sha256 = Some(spooled.sha256);
        let validators = if is_paged {
            Validators::default()
        } else {
            Validators { etag: text(&headers, &ETAG), last_modified: text(&headers, &LAST_MODIFIED) }
        };
        Ok(Some((Answer { observation: Uuid::now_v7(), fetched_at, source_url: shown, validators, spooled }, signs)))
    }

    /// Sends the request; what comes back has a body, or is a 304 that was asked for.
    async fn ask(&self, url: &Url, validators: &Validators, now: Timestamp) -> Result<Response, ExchangeError> {
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
            Err(source) => return Err(ExchangeError::NoAnswer { url: shown, source: source.without_url() }),
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
            return Err(ExchangeError::Redirected {
                url: shown,
                to: there.map_or(to, |there| public_url(&there)),
                why,
            });
        }
        let retry_after = text(response.headers(), &RETRY_AFTER).and_then(|value| parse_retry_after(&value, now));
        Err(ExchangeError::Status { url: shown, status, retry_after })
    }

    /// Keeps a body that may be the data.
    async fn keep(&self, response: Response, shown: &str, spool: &mut Spool) -> Result<Spooled, ExchangeError> {
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
                spool.keep(ReaderStream::with_capacity(decoder, UNPACKED_BYTES)).await
            }
            Some(encoding) => return Err(ExchangeError::Encoded { url: url(), encoding: encoding.to_owned() }),
        };
        let spooled = spooled.map_err(|source| ExchangeError::Body { url: url(), source })?;
        if let Some(fault) = fault_of(&spooled.beginning) {
            return Err(ExchangeError::NotTheData { url: url(), fault });
        }
        if !is_measured && is_cut_short(&spooled) {
            let source = io::Error::other("the array or object in it has no end");
            let source = SpoolError::Broken { bytes: spooled.upload.bytes, source };
            return Err(ExchangeError::Body { url: url(), source });
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
    async fn header(&self) -> Result<HeaderMap, ExchangeError> {
        let Some(file) = &self.settings.source_header_file else { return Ok(HeaderMap::new()) };
        let read = tokio::fs::read_to_string(file).await.and_then(|text| parse_header(&text).map_err(io::Error::other));
        read.map_err(|source| ExchangeError::HeaderFile { file: file.clone(), source })
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
    use super::*;

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
}
