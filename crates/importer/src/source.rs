//! A snapshot of the collection: its pages one after the other, tries included, until the walk comes to its end.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Args;
use serde_json::Value;
use sha2::Digest;
use shared::{
    crash_point,
    object::{Metadata, Sha256},
    settings::{RecordsSettings, SecretUrl, public_url},
    status::beat,
};
use thiserror::Error;
use tokio::time::sleep;
use url::{Host, Url};
use uuid::Uuid;

use crate::{
    body::{Body, Spool, SpoolError, SpoolSettings, Wanted},
    events,
    http::{Answer, Http, HttpError, HttpSettings},
    next_page::{NextPage, Totals},
    paging::{Page, PageError, Turn, Walk, is_paged},
    request::Request,
    retry::pause_after,
    signs::in_last_record,
    snapshot::{Observation, Snapshot, Validators, validators},
};

/// How often a collection that changes while it is paged is walked from its first page. The last walk is taken, as torn.
const WALKS: u32 = 3;

/// Which collection, and how it is asked for.
#[derive(Args, Clone, Debug)]
pub struct SourceSettings {
    /// The collection to poll: an address that answers with JSON. Its pages are followed, by default behind `Link: rel=next`. https, unless
    /// the host is this machine or --allow-http is given
    #[arg(long, env = "SOURCE_URL", value_name = "URL", hide_env_values = true, required = true)]
    pub source_url: SecretUrl,
    /// A file with a JSON body: each request is a POST with it. Read again for each poll
    #[arg(long, env = "SOURCE_BODY_FILE", value_name = "FILE")]
    pub source_body_file: Option<PathBuf>,
    /// Where the records are.
    #[command(flatten)]
    pub records: RecordsSettings,
    /// How pages follow, where no `Link` header says it:
    /// /links/next is the place of the next address in the answer, after=/paging/next/after the place of a value that goes into the parameter
    /// `after`; page+1 counts the parameter `page` up, offset+records adds the records that came; none says that one page is all. -1 is an
    /// array's last element, as in starting_after=/data/-1/id. A parameter that begins with a slash is a place in the body of
    /// SOURCE_BODY_FILE. `importer check` finds out what an API needs
    #[arg(long, env = "NEXT_PAGE", value_name = "FORM")]
    pub next_page: Option<NextPage>,
    /// Whether a total in the answer counts the records of the collection. check: fewer records than that are no whole collection; ignore: it
    /// counts something else
    #[arg(long, env = "TOTALS", value_name = "HOW", value_enum, default_value_t)]
    pub totals: Totals,
    /// What is sent with each request.
    #[command(flatten)]
    pub http: HttpSettings,
    /// Takes a SOURCE_URL with http on another host, where everybody on the way can read and change what is archived
    #[arg(long, env = "ALLOW_HTTP", value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub allow_http: bool,
    /// Where answers wait.
    #[command(flatten)]
    pub spool: SpoolSettings,
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

/// What stands in the way of a walk, as far as the settings show it.
pub fn obstacle(source_url: &str, body_file: Option<&str>, next_page: &str) -> Option<String> {
    let (url, form) = (source_url.parse().ok()?, next_page.parse::<NextPage>().ok()?);
    let body = body_file.map(|file| read_body(file.as_ref()).unwrap_or_default());
    let problem = form.problem(&Request { url, body })?;
    Some(format!("NEXT_PAGE (--next-page) is `{next_page}`, and {problem}"))
}

/// How the loop sees the API.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Source {
    /// Asks for a snapshot, or for `None` if it is still what `last` says of the last one. Safe to drop at any await: nothing but the spool
    /// file was touched.
    async fn poll(&self, last: Option<&Metadata>) -> Result<Option<Snapshot>, PollError>;
}

/// Why a poll brought nothing.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum PollError {
    /// A page is not to be had.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// There is nowhere to put an answer.
    #[error(transparent)]
    Spool(SpoolError),
    /// The pages cannot be followed, or are not all.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The body to send is not to be had.
    #[error("cannot use SOURCE_BODY_FILE {}, which holds a JSON body", file.display())]
    BodyFile { file: PathBuf, source: io::Error },
}

/// What a walk through the pages came to.
enum Walked {
    Whole(Snapshot),
    /// 304: what the validators stand for is still so.
    Unmodified,
    /// The collection changed under way.
    Torn,
}

/// A collection behind HTTP.
#[derive(Debug)]
pub struct Api {
    http: Http,
    settings: SourceSettings,
    wanted: Wanted,
    has_warned_of_total: AtomicBool,
}

impl Api {
    /// The collection of the settings. Nothing is asked of it yet.
    pub fn new(settings: SourceSettings) -> Result<Self, reqwest::Error> {
        let records_at = settings.records.records_at.clone();
        let keeps_last = match &settings.next_page {
            Some(NextPage::Address(at) | NextPage::Value(_, at)) => in_last_record(at, &records_at).is_some(),
            _ => false,
        };
        let http = Http::new(settings.http.clone(), settings.spool.max_body)?;
        let wanted = Wanted { records_at, keeps_last };
        Ok(Self { http, settings, wanted, has_warned_of_total: AtomicBool::new(false) })
    }

    /// How its pages follow, where somebody has said it.
    pub fn told_next_page(&self) -> Option<&NextPage> {
        self.settings.next_page.as_ref()
    }

    /// One answer by itself, not tried again; `None` for a 304 that nobody asked for.
    pub async fn peek(&self, request: &Request) -> Result<Option<Body>, PollError> {
        let SpoolSettings { max_body, .. } = self.settings.spool;
        let mut spool = Spool::new(&self.settings.spool.dir(), max_body).map_err(PollError::Spool)?;
        let (none, before) = (Validators::default(), sha2::Sha256::new());
        let answer = self.http.exchange(request, &none, &mut spool, &self.wanted, &before).await?;
        Ok(answer.map(|answer| answer.body))
    }

    /// The first request.
    pub fn first(&self) -> Result<Request, PollError> {
        let body = self
            .settings
            .source_body_file
            .as_ref()
            .map(|file| read_body(file).map_err(|source| PollError::BodyFile { file: file.clone(), source }));
        let request = Request { url: (*self.settings.source_url).clone(), body: body.transpose()? };
        Ok(self.next_page().first(request))
    }

    fn next_page(&self) -> NextPage {
        self.settings.next_page.clone().unwrap_or_default()
    }

    /// Walks through the pages once.
    async fn walk(&self, first: &Request, validators: &Validators, is_last_try: bool) -> Result<Walked, PollError> {
        let SourceSettings { spool, totals, .. } = &self.settings;
        let mut spool = Spool::new(&spool.dir(), spool.max_body).map_err(PollError::Spool)?;
        let mut walk = Walk::new(self.next_page(), *totals, self.wanted.records_at.clone(), is_last_try);
        let (mut request, mut hasher, mut count) = (first.clone(), sha2::Sha256::new(), 0);
        let (mut pages, mut of_one_page) = (Vec::new(), Validators::default());
        let turn = loop {
            let none = Validators::default();
            let sent = if pages.is_empty() { validators } else { &none };
            let asked = self.ask(&request, sent, &mut spool, &hasher, &mut walk).await;
            let turn = match asked {
                Ok(None) => return Ok(Walked::Unmodified),
                Ok(Some(answer)) => {
                    let Answer { fetched_at, url, headers, validators, body } = answer;
                    let records = body.records;
                    let last_record = records.last.map(|last| String::from_utf8_lossy(&last).into_owned());
                    let (digest, around) = (records.digest, records.around);
                    let page = Page {
                        request: request.clone(),
                        url,
                        headers,
                        records: records.count,
                        digest,
                        around,
                        last_record,
                    };
                    let (is_kept, turn) = walk.turn(&page)?;
                    if is_kept {
                        let (upload, sha256, source_url) = (body.upload, body.sha256, public_url(&request.url));
                        pages.push(Observation { id: Uuid::now_v7(), fetched_at, source_url, upload, sha256 });
                        (hasher, count) = (records.hasher, count + records.count);
                        let is_alone = pages.len() == 1 && !is_paged(&page.headers) && !self.next_page().is_counted();
                        of_one_page = if is_alone { validators } else { Validators::default() };
                        crash_point!("page-spooled");
                    }
                    turn
                }
                Err(error @ HttpError::Status { status, .. }) => match walk.status(&request, status)? {
                    Some(turn) => turn,
                    None => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            };
            match turn {
                Turn::Ask(next) => request = *next,
                turn => break turn,
            }
        };
        if turn == Turn::Torn {
            return Ok(Walked::Torn);
        }
        self.warn_of_total(&walk, count);
        Ok(Walked::Whole(Snapshot {
            pages,
            records: count,
            validators: of_one_page,
            records_sha256: Sha256::of(hasher),
            request: digest(first, &self.wanted),
            records_at: self.wanted.records_at.clone(),
            is_torn: walk.is_torn(),
        }))
    }

    /// One page, tried again while that may help. `None` for a 304.
    async fn ask(
        &self,
        request: &Request,
        validators: &Validators,
        spool: &mut Spool,
        before: &sha2::Sha256,
        walk: &mut Walk,
    ) -> Result<Option<Answer>, HttpError> {
        let mut dice = fastrand::Rng::new();
        let mut tries = 0;
        loop {
            beat();
            let error = match self.http.exchange(request, validators, spool, &self.wanted, before).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            tries += 1;
            let Some(pause) = pause_after(&error, tries, &mut dice) else { return Err(error) };
            walk.tried_again();
            events::asking_again(&error, tries, pause);
            sleep(pause).await;
        }
    }

    fn warn_of_total(&self, walk: &Walk, count: u64) {
        let Some((at, total)) = walk.larger_total() else { return };
        if !self.has_warned_of_total.swap(true, Ordering::Relaxed) {
            events::total_is_larger(at, total, count);
        }
    }
}

impl Source for Api {
    async fn poll(&self, last: Option<&Metadata>) -> Result<Option<Snapshot>, PollError> {
        let first = self.first()?;
        let validators =
            if first.body.is_none() { validators(last, digest(&first, &self.wanted)) } else { Validators::default() };
        let mut walk = 1;
        loop {
            match self.walk(&first, &validators, walk >= WALKS).await? {
                Walked::Whole(snapshot) => return Ok(Some(snapshot)),
                Walked::Unmodified => return Ok(None),
                Walked::Torn => events::torn(walk, WALKS),
            }
            walk += 1;
        }
    }
}

/// 16 bits that tell requests apart. Secrets that may be rotated are none of it.
fn digest(first: &Request, wanted: &Wanted) -> u16 {
    let mut hasher = sha2::Sha256::new();
    let body = first.body.as_ref().map(Value::to_string).unwrap_or_default();
    for part in [public_url(&first.url), body, wanted.records_at.to_string()] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let Sha256([high, low, ..]) = Sha256::of(hasher);
    u16::from_be_bytes([high, low])
}

fn read_body(file: &Path) -> io::Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
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
