//! One poll of the API: a snapshot of the collection, page by page, retries included.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use shared::{
    crash_point,
    document::{DocumentError, JsonPointer, JsonPointerError},
    object::Metadata,
    settings::{SecretUrl, public_url},
    status::beat,
};
use thiserror::Error;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::warn;
use url::{Host, Url};
use uuid::Uuid;

use crate::{
    cursor::{CursorError, read_cursor},
    decide::validators,
    exchange::{ExchangeError, Http},
    notes,
    page::{PageError, Paging, Parameter, Signs, Turn},
    retry::pause_after,
    spool::{Spool, SpoolError, Spooled},
};

/// How often a collection that changes while it is paged is fetched from its first page.
const SNAPSHOTS: u32 = 3;

/// What most APIs call it.
const CURSOR_PARAMETER: &str = "cursor";

/// Which collection, and what its answers may cost here.
#[derive(Args, Clone, Debug)]
pub struct PollSettings {
    /// The collection to poll: an address that answers with a JSON array, or with an object that holds it (RECORDS_AT of the
    /// transformer). Pages behind `Link: rel=next` are followed. https, unless the host is this machine or --allow-http is given
    #[arg(long, env = "SOURCE_URL", value_name = "URL", hide_env_values = true, required = true)]
    pub source_url: SecretUrl,
    /// For an API without `Link` headers: the parameter that numbers its pages, as in `page`. It is counted up from 1, or
    /// from its value in SOURCE_URL, until a page is an empty array
    #[arg(long, env = "PAGE_PARAMETER", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub page_parameter: Option<String>,
    /// For an API without `Link` headers whose bodies name the next page: where, as a JSON pointer through members of objects, as in
    /// /meta/next. The text or number there goes to CURSOR_PARAMETER of the next request, until it is null, empty or not there;
    /// `importer check` says how many pages that comes to
    #[arg(long, env = "CURSOR_AT", value_name = "POINTER", value_parser = parse_cursor_at)]
    pub cursor_at: Option<JsonPointer>,
    /// The parameter of SOURCE_URL that takes the cursor at CURSOR_AT
    #[arg(long, env = "CURSOR_PARAMETER", value_name = "NAME", default_value = CURSOR_PARAMETER, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub cursor_parameter: String,
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

    /// How pages are named where no link says it.
    pub fn parameter(&self) -> Parameter {
        match (&self.cursor_at, &self.page_parameter) {
            (Some(_), _) => Parameter::Cursor(self.cursor_parameter.clone()),
            (None, Some(parameter)) => Parameter::Number(parameter.clone()),
            (None, None) => Parameter::None,
        }
    }
}

/// A pointer to something inside a body.
fn parse_cursor_at(text: &str) -> Result<JsonPointer, String> {
    let pointer: JsonPointer = text.parse().map_err(|error: JsonPointerError| error.to_string())?;
    if pointer.is_root() { Err(JsonPointerError::NoSlash.to_string()) } else { Ok(pointer) }
}

/// A parameter for cursors that are nowhere.
pub fn aimlessness(cursor_parameter: Option<&str>, cursor_at: Option<&str>) -> Option<String> {
    let parameter = cursor_parameter.filter(|parameter| *parameter != CURSOR_PARAMETER && cursor_at.is_none())?;
    Some(format!(
        "CURSOR_PARAMETER (--cursor-parameter) is `{parameter}`, and CURSOR_AT (--cursor-at) is not set\nonly the first page would be read: \
         say where in a body the cursor is, as in /meta/next"
    ))
}

/// Two ways to name the pages at once.
pub fn ambiguity(page_parameter: Option<&str>, cursor_at: Option<&str>) -> Option<String> {
    let (parameter, at) = page_parameter.zip(cursor_at)?;
    Some(format!(
        "PAGE_PARAMETER (--page-parameter) is `{parameter}`, and CURSOR_AT (--cursor-at) is `{at}`\nan API numbers its pages or gives \
         cursors: leave one of them out"
    ))
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
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum PollError {
    /// A page is not to be had.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// There is nowhere to put an answer.
    #[error(transparent)]
    Spool(SpoolError),
    /// A page does not say how to go on.
    #[error("the answer to GET {url} does not name the next page")]
    Cursor { url: String, source: CursorError },
    /// The pages cannot be followed.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The collection does not hold still.
    #[error(
        "the collection at {url} changed while it was paged, {SNAPSHOTS} times in a row: ask for larger pages in SOURCE_URL"
    )]
    Unsettled { url: String },
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
    http: Http,
    settings: PollSettings,
}

impl Api {
    /// The collection of the settings. Nothing is asked of it yet.
    pub fn new(settings: PollSettings) -> Result<Self, reqwest::Error> {
        Ok(Self { http: Http::new(settings.clone())?, settings })
    }

    /// What the collection is now.
    async fn snapshot(&self, validators: &Validators) -> Result<Snapshot, PollError> {
        let mut spool = Spool::new(&self.settings.spool_dir(), self.settings.max_body).map_err(PollError::Spool)?;
        let mut paging = Paging::new(self.settings.parameter());
        let mut url = (*self.settings.source_url).clone();
        let mut pages = Vec::new();
        loop {
            let none = Validators::default();
            let validators = if pages.is_empty() { validators } else { &none };
            let Some((page, mut signs)) = self.fetch(&url, validators, &mut spool).await? else {
                return Ok(Snapshot::Unmodified);
            };
            signs.cursor = self.cursor(&page).await?;
            let turn = paging.turn(&signs)?;
            if !matches!(turn, Turn::PastTheEnd) {
                pages.push(page);
                crash_point!("page-spooled");
            }
            match turn {
                Turn::Next(next) => url = next,
                Turn::End | Turn::PastTheEnd => return Ok(Snapshot::Whole(pages)),
                Turn::Changed => return Ok(Snapshot::Torn),
            }
        }
    }

    /// The next page's cursor, where there is to be one in the body.
    async fn cursor(&self, page: &Answer) -> Result<Option<String>, PollError> {
        let Some(at) = self.settings.cursor_at.clone() else { return Ok(None) };
        let body = page.spooled.reader();
        // A body may be long.
        let read = spawn_blocking(move || read_cursor(body, &at)).await.expect("reading a file does not panic");
        read.map_err(|source| match source {
            CursorError::Document(DocumentError::Read(source)) => PollError::Spool(SpoolError::Unreadable { source }),
            source => PollError::Cursor { url: page.source_url.clone(), source },
        })
    }

    /// One page, tried again while that may help. `None` for a 304.
    async fn fetch(
        &self,
        url: &Url,
        validators: &Validators,
        spool: &mut Spool,
    ) -> Result<Option<(Answer, Signs)>, ExchangeError> {
        let mut dice = fastrand::Rng::new();
        let mut tries = 0;
        loop {
            beat();
            let error = match self.http.exchange(url, validators, spool).await {
                Ok(page) => return Ok(page),
                Err(error) => error,
            };
            tries += 1;
            let Some(pause) = pause_after(&error, tries, &mut dice) else { return Err(error) };
            notes::asking_again(&error, tries, pause);
            sleep(pause).await;
        }
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

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
