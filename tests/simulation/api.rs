//! The double of the API, whose pages follow each other in one of the ways that APIs have, and the importer's walk through them.

use std::{ops::ControlFlow, sync::LazyLock, time::Duration};

use importer::{
    http::HttpError,
    next_page::{NextPage, Totals},
    paging::{Page, PageError, Turn, Walk, is_paged},
    refusal,
    request::{Place, Request},
    retry::Tries,
    since::{Change, Since, SinceSettings},
    snapshot::{Observation, Snapshot, Validators, validators},
    source::{PollError, Source},
};
use jiff::Timestamp;
use reqwest::{
    StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};
use serde_json::json;
use sha2::Digest;
use shared::{
    archive::Upload,
    object::{AsOf, Metadata, Sha256, SnapshotFacts, SnapshotKind},
    records::RecordsAt,
    settings::Absent,
};
use tokio::time::sleep;
use url::Url;

use crate::{
    doors::{Door, NO_FILE},
    world::{Api, Posts, World, latency},
};

static ADDRESS: LazyLock<Url> = LazyLock::new(|| "https://api.example.org/posts".parse().expect("an address"));
static SINCE: LazyLock<Since> = LazyLock::new(|| "since=%s".parse().expect("a form"));
static DATA: LazyLock<RecordsAt> = LazyLock::new(|| "/data".parse().expect("a place"));
const REQUEST: u16 = 1;

const PAGE_POSTS: usize = 2;

/// How many seconds before it could be seen a post may say that it changed.
const LAG: i64 = 30;

/// As often as the importer walks through a collection that does not hold still.
const WALKS: [bool; 3] = [false, false, true];

/// How the API's pages follow each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// The setting of the importer, empty for links.
    next_page: &'static str,
    query: &'static str,
    has_total: bool,
    past_the_end: PastTheEnd,
}

/// What a number past the end brings.
#[derive(Clone, Copy, Debug, Default)]
enum PastTheEnd {
    #[default]
    NoRecords,
    NotFound,
    /// Without a total nobody could tell that from an API that does not know the parameter.
    LastPage,
}

impl Manner {
    pub fn any(dice: &mut fastrand::Rng) -> Self {
        let (next_page, query) = [
            ("", ""),
            ("/next", ""),
            ("after=/cursor", ""),
            ("after=/data/-1/id", ""),
            ("page+1", "page=1"),
            ("offset+records", "offset=0"),
            ("scroll=/scroll", ""),
        ][dice.usize(..7)];
        let has_total = dice.bool();
        let past_the_end = [PastTheEnd::NoRecords, PastTheEnd::NotFound, PastTheEnd::LastPage]
            [dice.usize(..if has_total && next_page == "page+1" { 3 } else { 2 })];
        Self { next_page, query, has_total, past_the_end }
    }
}

/// What came of one request.
enum Answer {
    Page { page: Box<Page>, posts: Posts, body: String },
    Status(StatusCode),
    Unmodified,
}

impl Source for Door {
    async fn poll(&self, last: Option<&Metadata>) -> Result<Option<Snapshot>, PollError> {
        for is_last_try in WALKS {
            if let ControlFlow::Break(snapshot) = self.walk(last, is_last_try).await? {
                return Ok(snapshot);
            }
        }
        unreachable!("the last try is taken as it is")
    }
}

impl Door {
    /// Goes on with the next walk where the collection did not hold still.
    async fn walk(
        &self,
        last: Option<&Metadata>,
        is_last_try: bool,
    ) -> Result<ControlFlow<Option<Snapshot>>, PollError> {
        let (manner, version) = {
            let world = self.world.borrow();
            (world.api.manner, world.api.version)
        };
        let (change, as_of) = self.world.borrow().asked_since(last);
        let next_page: NextPage = manner.next_page.parse().unwrap_or_default();
        let is_counted = next_page.is_counted();
        let mut url = ADDRESS.clone();
        url.set_query(Some(manner.query).filter(|query| !query.is_empty()));
        let mut request = Request { url, body: None };
        if let Some(change) = change {
            request = SINCE.asked(&request, change.since);
        }
        let mut walk = Walk::new(next_page, Totals::Check, DATA.clone(), is_last_try).of_changes(change.is_some());
        let (mut pages, mut posts, mut bodies) = (Vec::new(), Posts::new(), String::new());
        let (mut of_one_page, mut is_single) = (Validators::default(), false);
        let mut was_wrong = false;
        let mut tries = Tries::new(false);
        let turn = loop {
            latency(&self.world).await;
            if self.fails(5) {
                return Err(PageError::Endless.into());
            }
            // The API has had more requests than it allows, or the token has expired.
            let refusal = [StatusCode::TOO_MANY_REQUESTS, StatusCode::UNAUTHORIZED].into_iter().find(|_| self.fails(3));
            if let Some(status) = refusal {
                let pause = self.refused(status, &mut tries)?;
                // On the paused clock of the simulation it takes no time.
                sleep(pause).await;
                continue;
            }
            tries = Tries::new(!pages.is_empty());
            // Never twice in a row: the importer could not know.
            let is_wrong = !was_wrong && !pages.is_empty() && self.fails(5);
            // An API that hands out places in the collection forgets them.
            let is_expired = !pages.is_empty() && !is_counted && self.fails(2);
            let answer = if is_expired {
                Answer::Status(
                    [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::GONE]
                        [self.world.borrow_mut().dice.usize(..3)],
                )
            } else {
                self.world.borrow_mut().answer(manner, &request, last.filter(|_| pages.is_empty()), is_wrong)
            };
            if self.fails(5) {
                // It was lost on its way.
                walk.tried_again();
                continue;
            }
            was_wrong = is_wrong;
            let turn = match answer {
                Answer::Unmodified => return Ok(ControlFlow::Break(None)),
                Answer::Status(status) => walk.status(&request, status)?.ok_or_else(|| refusal_of(status, None))?,
                Answer::Page { page, posts: on_it, body } => {
                    let (is_kept, turn) = walk.turn(&page)?;
                    is_single = turn == Turn::End && pages.is_empty();
                    if is_single && change.is_none() && !is_paged(&page.headers) {
                        of_one_page.etag = Some(body.clone());
                    }
                    if is_kept {
                        bodies.push_str(&body);
                        pages.push(self.world.borrow_mut().observation(body));
                        posts.extend(on_it);
                    }
                    turn
                }
            };
            match turn {
                Turn::Ask(next) => request = next,
                turn => break turn,
            }
        };
        latency(&self.world).await;
        if turn == Turn::Torn {
            return Ok(ControlFlow::Continue(()));
        }
        let mut world = self.world.borrow_mut();
        if !walk.is_torn()
            && change.is_none()
            && world.api.version == version
            && !world.api.is_broken
            && posts != world.api.posts
        {
            world.wrong = Some(format!("{posts:?} was taken for the whole of {:?} ({manner:?})", world.api.posts));
        }
        let facts = SnapshotFacts {
            records_sha256: Some(digest(&bodies)),
            request: Some(REQUEST),
            records_at: Some(DATA.clone()),
            torn: walk.is_torn() || world.fails(5),
            kind: Some(if change.is_some() { SnapshotKind::Increment } else { SnapshotKind::Whole }),
            single: is_single,
            as_of: Some(as_of),
            whole_at: change.is_none().then_some(as_of.ours),
            repeat: false,
        };
        let judges_absence = change.is_none() && world.absent != Absent::Keep;
        let hashes = posts.iter().map(|post| short(&format!("{post:?}"))).collect();
        let (records, hashes) = (posts.len() as u64, Some(hashes));
        let snapshot = Snapshot { pages, validators: of_one_page, records, hashes, judges_absence, facts };
        Ok(ControlFlow::Break(Some(snapshot)))
    }
}

impl Door {
    /// How long the importer waits after this status. The API may say for how long.
    fn refused(&self, status: StatusCode, tries: &mut Tries) -> Result<Duration, HttpError> {
        let mut world = self.world.borrow_mut();
        let wait = world.dice.bool().then(|| world.dice.u32(1..60));
        let error = refusal_of(status, wait);
        tries.pause_after(&error, &mut world.dice).ok_or(error)
    }
}

/// The answer with this status, and with a wait in seconds.
fn refusal_of(status: StatusCode, wait: Option<u32>) -> HttpError {
    let headers: HeaderMap = wait.map(|seconds| (RETRY_AFTER, seconds.into())).into_iter().collect();
    let refusal = refusal::read(status, &headers, Timestamp::UNIX_EPOCH);
    HttpError::Status { request: String::new(), status, refusal }
}

impl World {
    /// From when on changes are asked for, and when that is.
    fn asked_since(&self, last: Option<&Metadata>) -> (Option<Change>, AsOf) {
        let [api, ours] = [self.api.ahead, 0].map(|ahead| second(self.clock(ahead)));
        let settings = |full_refresh_interval| SinceSettings {
            since: Some(SINCE.clone()),
            since_overlap: Duration::from_secs(LAG.unsigned_abs()),
            full_refresh_interval,
        };
        let change = self.api.refresh.and_then(|refresh| settings(refresh).change(last, REQUEST, ours));
        (change, AsOf { api, ours })
    }

    /// What the API says now. Where it `is_wrong`, it is busy and says that there is nothing.
    fn answer(&mut self, manner: Manner, request: &Request, last: Option<&Metadata>, is_wrong: bool) -> Answer {
        self.stamp();
        let number = |name: &str| request.number(&Place::Parameter(name.to_owned()));
        let since = number("since").map(u64::cast_signed);
        let is_changed = |id: &i64| since.is_none_or(|since| self.api.stamps[id].1 >= since);
        let changed = self.api.posts.iter().filter(|(id, _)| is_changed(id));
        let all: Vec<_> = changed.map(|(id, title)| (*id, title.clone())).collect();
        let behind = |id: u64| all.iter().take_while(|(known, _)| *known <= id.cast_signed()).count();
        let place = number("scroll").and_then(|scroll| self.api.places.get(&scroll).copied());
        let passed = number("page").map(|page| (page - 1) * PAGE_POSTS as u64).or(number("offset")).or(place);
        let mut begin =
            passed.map_or_else(|| number("after").map_or(0, behind), |passed| usize::try_from(passed).expect("a few"));
        if begin >= all.len() && begin > 0 && passed.is_some() && place.is_none() {
            match manner.past_the_end {
                PastTheEnd::NoRecords => {}
                PastTheEnd::NotFound => return Answer::Status(StatusCode::NOT_FOUND),
                PastTheEnd::LastPage => begin = all.len().saturating_sub(1) / PAGE_POSTS * PAGE_POSTS,
            }
        }
        if is_wrong && passed.is_some() && place.is_none() && self.dice.bool() {
            return Answer::Status(StatusCode::NOT_FOUND);
        }
        let end = all.len().min(begin + PAGE_POSTS);
        let posts: Posts =
            if is_wrong { Posts::new() } else { all.get(begin..end).unwrap_or_default().iter().cloned().collect() };
        // One that is broken is archived as it is: records are judged by the transformer.
        let body =
            if self.api.is_broken { "broken".to_owned() } else { serde_json::to_string(&posts).expect("it is JSON") };
        if since.is_none()
            && end == all.len()
            && validators(last, REQUEST, ADDRESS.as_str()).etag.is_some_and(|known| known == body)
        {
            return Answer::Unmodified;
        }
        let last_id = posts.keys().next_back();
        let next = last_id.filter(|_| end < all.len());
        let mut around = json!({ "data": null });
        let mut headers = Vec::new();
        if manner.has_total && !is_wrong {
            around["total"] = all.len().into();
        }
        let and_since = since.map_or_else(String::new, |since| format!("&since={since}"));
        match (manner.next_page, next) {
            ("", Some(id)) => headers.push(("link".to_owned(), format!("<?after={id}{and_since}>; rel=next"))),
            ("/next", Some(id)) => around["next"] = format!("?after={id}{and_since}").into(),
            ("after=/cursor", Some(id)) => around["cursor"] = (*id).into(),
            ("scroll=/scroll", _) => {
                let scroll = number("scroll").unwrap_or_else(|| self.number());
                if !is_wrong {
                    self.api.places.insert(scroll, end as u64);
                }
                around["scroll"] = scroll.into();
            }
            _ => {}
        }
        let page = Page {
            request: request.clone(),
            url: request.url.clone(),
            headers,
            records: posts.len() as u64,
            digest: short(&format!("{posts:?}")),
            around: around.to_string(),
            last_record: last_id.map(|id| json!({ "id": id }).to_string()),
        };
        Answer::Page { page: Box::new(page), posts, body }
    }

    /// A post that is another one than when it was asked for last says so, and may name a second that has passed.
    fn stamp(&mut self) {
        let now = self.clock(self.api.ahead);
        let Api { posts, stamps, .. } = &mut self.api;
        stamps.retain(|id, _| posts.contains_key(id));
        for (id, title) in posts {
            if stamps.get(id).is_none_or(|(known, _)| known != title) {
                stamps.insert(*id, (title.clone(), now - self.dice.i64(0..LAG)));
            }
        }
    }

    fn observation(&mut self, body: String) -> Observation {
        let upload = Upload { file: NO_FILE.clone(), offset: self.bodies.len() as u64, bytes: body.len() as u64 };
        let sha256 = digest(&body);
        self.bodies.push(body.into());
        Observation {
            id: self.uuid(),
            // The order of observation, for the check.
            fetched_at: Timestamp::from_second(self.api.version).expect("there are not many"),
            source_url: ADDRESS.to_string(),
            upload,
            sha256,
        }
    }
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("of these years")
}

fn short(text: &str) -> u64 {
    u64::from_be_bytes(digest(text).0[..8].try_into().expect("eight bytes"))
}

fn digest(text: &str) -> Sha256 {
    Sha256(sha2::Sha256::digest(text).into())
}
