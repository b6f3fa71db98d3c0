//! A snapshot of the collection: its pages one after the other, tries included, until the walk comes to its end.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Args;
use jiff::Timestamp;
use reqwest::StatusCode;
use serde_json::Value;
use sha2::Digest;
use shared::{
    crash_point,
    object::{AsOf, Metadata, Sha256, SnapshotFacts, SnapshotKind},
    records::RecordsAt,
    settings::{Absent, AbsentSettings, RecordsSettings, SecretUrl, public_url, without_secrets},
    status::{Dependency, State, Status, beat_after},
};
use thiserror::Error;
use tokio::time::sleep;
use url::{Host, Url};
use uuid::Uuid;

use crate::{
    body::{Body, Records, Spool, SpoolError, SpoolSettings, Wanted},
    events,
    http::{Answer, Http, HttpError, HttpSettings},
    next_page::{NextPage, Totals},
    paging::{Page, PageError, Turn, Walk, is_paged},
    request::Request,
    retry::{FIRST_PAUSE, Tries, refusal},
    signs::in_last_record,
    since::{Change, SinceSettings},
    snapshot::{Observation, Snapshot, Validators, validators},
};

/// How often a collection that changes while it is paged is walked from its first page. The last walk is taken, as torn.
const WALKS: u32 = 3;

/// Hashes of records that are kept in memory, of eight bytes each. Without them an increment may be appended once more.
const HASHES_LIMIT: usize = 2_000_000;

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
    /// How pages follow, if not by `Link` headers:
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
    /// How changes are asked for.
    #[command(flatten)]
    pub since: SinceSettings,
    /// What becomes of records that are gone.
    #[command(flatten)]
    pub absent: AbsentSettings,
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
pub fn obstacle(source_url: &str, body_file: Option<&str>, next_page: &str, records_at: &str) -> Option<String> {
    let (url, form, records_at) =
        (source_url.parse().ok()?, next_page.parse::<NextPage>().ok()?, records_at.parse().ok()?);
    let body = body_file.map(|file| read_body(file.as_ref()).unwrap_or_default());
    let problem = form.problem(&Request { url, body }, &records_at)?;
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
    ToTheEnd(Box<Snapshot>),
    /// 304: what the validators stand for is still so.
    Unmodified,
    /// The collection changed under way.
    Torn,
    /// Changes were asked for, and the API's clock is behind what it was: some may bear earlier times.
    ClockBehind,
}

/// What is asked for.
struct Asked {
    first: Request,
    /// Of the first request, whatever changes are asked for.
    digest: u16,
    validators: Validators,
    /// `None` for the whole collection.
    change: Option<Change>,
    /// The moment, by the API's clock, of what the archive ends with.
    known_at: Option<Timestamp>,
}

/// A collection behind HTTP.
#[derive(Debug)]
pub struct Api {
    http: Http,
    settings: SourceSettings,
    wanted: Wanted,
    status: Status,
    has_warned_of_total: AtomicBool,
    has_warned_of_torn: AtomicBool,
}

impl Api {
    /// The collection of the settings. Nothing is asked of it yet. A wait that it asks for is shown in `status`.
    pub fn new(settings: SourceSettings, status: Status) -> Result<Self, reqwest::Error> {
        let records_at = settings.records.records_at.clone();
        let keeps_last = match &settings.next_page {
            Some(NextPage::Address(at) | NextPage::Value(_, at)) => in_last_record(at, &records_at).is_some(),
            _ => false,
        };
        let http = Http::new(settings.http.clone(), settings.spool.max_body)?;
        let is_paged = settings.next_page.as_ref().is_some_and(|next| !matches!(next, NextPage::None | NextPage::Link));
        let wanted = Wanted { records_at, keeps_last, is_paged, hashes_each: settings.since.since.is_some() };
        let (has_warned_of_total, has_warned_of_torn) = Default::default();
        Ok(Self { http, settings, wanted, status, has_warned_of_total, has_warned_of_torn })
    }

    /// One answer by itself.
    pub async fn peek(&self, request: &Request) -> Result<Body, PollError> {
        let (mut spool, mut walk) = (self.spool()?, Walk::default());
        let answer = self.ask(request, &Validators::default(), &mut spool, &mut walk, false).await?;
        Ok(answer.expect("no 304 is taken where no validator was sent").body)
    }

    /// A file for one snapshot.
    fn spool(&self) -> Result<Spool, PollError> {
        let SpoolSettings { max_body, .. } = self.settings.spool;
        Spool::new(&self.settings.spool.dir(), max_body, self.wanted.clone()).map_err(PollError::Spool)
    }

    /// The first request.
    pub fn first(&self) -> Result<Request, PollError> {
        let read =
            |file: &PathBuf| read_body(file).map_err(|source| PollError::BodyFile { file: file.clone(), source });
        let body = self.settings.source_body_file.as_ref().map(read);
        let request = Request { url: (*self.settings.source_url).clone(), body: body.transpose()? };
        Ok(self.next_page().first(request))
    }

    /// Where the records are, as a JSON pointer.
    pub fn records_at(&self) -> String {
        match &self.wanted.records_at {
            RecordsAt::Array(at) => at.to_string(),
            RecordsAt::Document => String::new(),
        }
    }

    /// What to ask for, where the archive ends with this.
    fn asked(&self, last: Option<&Metadata>) -> Result<Asked, PollError> {
        let mut first = self.first()?;
        let digest = self.digest(&first);
        let change = self.settings.since.change(last, digest, Timestamp::now());
        let known_at = last.and_then(|last| last.facts.as_of).map(|as_of| as_of.api);
        let last = last.filter(|_| first.body.is_none() && change.is_none());
        let validators = validators(last, digest, &public_url(&first.url));
        if let (Some(since), Some(change)) = (&self.settings.since.since, change) {
            first = since.asked(&first, change.since);
        }
        Ok(Asked { first, digest, validators, change, known_at })
    }

    /// How its pages follow.
    pub fn next_page(&self) -> NextPage {
        self.settings.next_page.clone().unwrap_or_default()
    }

    /// Walks through the pages once.
    async fn walk(&self, asked: &Asked, is_last_try: bool) -> Result<Walked, PollError> {
        let mut spool = self.spool()?;
        let records_at = self.wanted.records_at.clone();
        let mut walk = Walk::new(self.next_page(), self.settings.totals, records_at.clone(), is_last_try)
            .of_changes(asked.change.is_some());
        let (mut request, mut pages, mut records) = (asked.first.clone(), Vec::new(), 0);
        let (none, mut of_one_page) = (Validators::default(), Validators::default());
        let mut hashes = Some(Vec::new());
        let (mut as_of, mut is_single): (Option<AsOf>, _) = (None, false);
        let mut is_stale = false;
        let turn = loop {
            let sent = if pages.is_empty() { &asked.validators } else { &none };
            let turn = match self.ask(&request, sent, &mut spool, &mut walk, !pages.is_empty()).await {
                Ok(None) => return Ok(Walked::Unmodified),
                Ok(Some(answer)) => {
                    let (is_kept, turn) = walk.turn(&page_of(&request, &answer))?;
                    let Answer { time, headers, validators, body, .. } = answer;
                    if asked.change.is_some_and(|change| time.is_behind(&change)) {
                        return Ok(Walked::ClockBehind);
                    }
                    // A cache on the way answers with what was before what the archive ends with: that shows no absence.
                    is_stale |= !time.age.is_zero() && Some(time.as_of().api) < asked.known_at;
                    // Whatever changes while a page is asked for may be on none.
                    as_of = [as_of, Some(time.as_of())].into_iter().flatten().min_by_key(|as_of| as_of.api);
                    is_single = turn == Turn::End && pages.is_empty();
                    // Where one answer has shown the end by itself, an unchanged one shows it again. What validates changes does not validate
                    // the whole.
                    if is_single && asked.change.is_none() && !is_paged(&headers) {
                        of_one_page = validators;
                    }
                    if is_kept {
                        spool.add_page(&body.records);
                        records += body.records.count;
                        match (&mut hashes, body.records.hashes) {
                            (Some(hashes), Some(more)) if hashes.len() + more.len() <= HASHES_LIMIT => {
                                hashes.extend(more);
                            }
                            _ => hashes = None,
                        }
                        let fetched_at = time.asked;
                        let (upload, sha256, source_url) = (body.upload, body.sha256, public_url(&request.url));
                        pages.push(Observation { id: Uuid::now_v7(), fetched_at, source_url, upload, sha256 });
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
                Turn::Ask(next) => {
                    let since = self.settings.since.since.as_ref().filter(|_| asked.change.is_some());
                    if since.is_some_and(|since| since.is_lost(&asked.first, &next)) {
                        let (from, next) = (request.to_string(), public_url(&next.url));
                        return Err(PageError::SinceLost { from, next }.into());
                    }
                    if next == request {
                        // A busy server may have said that there is nothing more, and nothing signals that it is busy no longer.
                        sleep(FIRST_PAUSE).await;
                    }
                    request = next;
                }
                turn => break turn,
            }
        };
        if turn == Turn::Torn {
            return Ok(Walked::Torn);
        }
        self.warn(&walk, records);
        let facts = SnapshotFacts {
            records_sha256: Some(spool.records_sha256()),
            request: Some(asked.digest),
            records_at: Some(records_at),
            torn: walk.is_torn() || is_stale,
            kind: Some(if asked.change.is_some() { SnapshotKind::Increment } else { SnapshotKind::Whole }),
            single: is_single,
            as_of,
            whole_at: pages.first().map(|page| page.fetched_at).filter(|_| asked.change.is_none()),
            repeat: false,
        };
        let judges_absence = asked.change.is_none() && self.settings.absent.absent != Absent::Keep;
        let snapshot = Snapshot { pages, validators: of_one_page, records, hashes, judges_absence, facts };
        Ok(Walked::ToTheEnd(snapshot.into()))
    }

    /// One page, tried again while that may help. `None` for a 304.
    async fn ask(
        &self,
        request: &Request,
        validators: &Validators,
        spool: &mut Spool,
        walk: &mut Walk,
        is_in_walk: bool,
    ) -> Result<Option<Answer>, HttpError> {
        let mut dice = fastrand::Rng::new();
        let mut tries = Tries::new(is_in_walk);
        loop {
            // Until the headers, and then until the first byte.
            beat_after(2 * self.settings.http.source_timeout);
            let error = match self.http.exchange(request, validators, spool).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = tries.pause_after(&error, &mut dice) else { return Err(error) };
            let mut before_the_wait = None;
            if refusal(&error).is_some_and(|refusal| refusal.is_limit) {
                let until = Timestamp::now() + pause;
                events::waits_until(Some(until));
                let why = format!("{error}; the importer asks again at {until:.0}");
                before_the_wait = Some(self.status.set(State::Waiting(Dependency::Api, why)));
            } else {
                // An API that limits requests has not answered this one, and one that refuses a token neither.
                if !matches!(error, HttpError::Status { status: StatusCode::UNAUTHORIZED, .. }) {
                    walk.tried_again();
                }
                events::asking_again(&error, pause);
            }
            beat_after(pause);
            // Nothing signals that an API can answer again.
            sleep(pause).await;
            events::waits_until(None);
            if let Some(state) = before_the_wait {
                self.status.back_to(state);
            }
        }
    }

    /// Each of these is said once, until it is over.
    fn warn(&self, walk: &Walk, records: u64) {
        let (is_torn, larger) = (walk.is_torn(), walk.larger_total());
        if !self.has_warned_of_torn.swap(is_torn, Ordering::Relaxed) && is_torn {
            events::taken_torn(WALKS);
        }
        if !self.has_warned_of_total.swap(larger.is_some(), Ordering::Relaxed)
            && let Some((at, total)) = larger
        {
            events::total_is_larger(at, total, records);
        }
    }

    /// 16 bits of a digest over path, body, RECORDS_AT and NEXT_PAGE. Secrets and the origin are left out: a secret may be rotated, and two
    /// importers may reach one API on two ways.
    fn digest(&self, first: &Request) -> u16 {
        let mut hasher = sha2::Sha256::new();
        let body = first.body.as_ref().map(Value::to_string).unwrap_or_default();
        let next_page = format!("{:?}", self.settings.next_page);
        let path = without_secrets(&first.url).split_off(first.url.origin().ascii_serialization().len());
        for part in [path, body, self.wanted.records_at.to_string(), next_page] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let Sha256([high, low, ..]) = Sha256::of(hasher);
        u16::from_be_bytes([high, low])
    }
}

/// An answer, as the walk sees it.
fn page_of(request: &Request, Answer { url, headers, body, .. }: &Answer) -> Page {
    let Records { count, digest, around, last, .. } = &body.records;
    Page {
        request: request.clone(),
        url: url.clone(),
        headers: headers.clone(),
        records: *count,
        digest: *digest,
        around: around.clone(),
        last_record: last.as_ref().map(|last| String::from_utf8_lossy(last).into_owned()),
    }
}

impl Source for Api {
    async fn poll(&self, last: Option<&Metadata>) -> Result<Option<Snapshot>, PollError> {
        let mut asked = self.asked(last)?;
        let mut walk = 1;
        loop {
            match self.walk(&asked, walk >= WALKS).await? {
                Walked::ToTheEnd(snapshot) => return Ok(Some(*snapshot)),
                Walked::Unmodified => return Ok(None),
                Walked::Torn => {
                    events::torn(walk, WALKS);
                    walk += 1;
                }
                Walked::ClockBehind => {
                    events::clock_behind();
                    asked = self.asked(None)?;
                }
            }
        }
    }
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
