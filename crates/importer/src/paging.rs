//! What comes after a page: how the next one is asked for, where the collection ends, and whether its pages belong together. Pure.
//!
//! A walk is whole only where it comes to an end that the API shows: an address or a cursor that is not there any more, a page without
//! records, a clear word. An answer that shows that there is more, while nothing says how to go on, is refused.

use std::collections::HashMap;

use reqwest::StatusCode;
use serde_json::Value;
use shared::{json_pointer::JsonPointer, records::RecordsAt, settings::public_url};
use thiserror::Error;
use url::Url;

use crate::{
    next_page::{NextPage, Totals},
    request::{Place, Request},
    signs::{Next, Signs, in_last_record, is_filled, members, quoted, value_at},
};

/// A collection of more pages is taken for an endless one.
pub const MOST_PAGES: usize = 10_000;

/// After ten pages without records in a row nobody can tell whether more follow.
const MOST_EMPTY_PAGES: u32 = 10;

/// All requests of a walk are in memory together, and few servers take a longer address.
const LINK_LIMIT_BYTES: usize = 4_000;

/// The longest path of an address, which goes into an object's metadata. If only the append refused a longer one, each poll would append the pages
/// before it anew.
const PATH_LIMIT_BYTES: usize = 560;

/// The longest body of a request; it may hold a cursor.
const BODY_LIMIT_BYTES: usize = 256 * 1024;

/// A page, as the walk sees it.
#[derive(Clone, Debug)]
pub struct Page {
    /// What was asked.
    pub request: Request,
    /// The address that answered, behind its redirects: links are relative to it.
    pub url: Url,
    /// The header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// How many records it holds.
    pub records: u64,
    /// Equal ones are the same records.
    pub digest: u64,
    /// The answer with `null` for its records.
    pub around: String,
    /// The last record, if it leads to the next page.
    pub last_record: Option<String>,
}

/// Whether headers show further pages. A 304 has nothing else to show them. A `Link` may be for something else.
pub fn is_paged(headers: &[(String, String)]) -> bool {
    let signs = Signs::read(headers, "null", &RecordsAt::default());
    !signs.totals.is_empty() || ["next", "last"].iter().any(|relation| target(headers, relation).is_some())
}

/// What to do after a page, or where there was none.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Ask this.
    Ask(Request),
    /// That was the end: the pages are the collection.
    End,
    /// The collection did not hold still: walk again from its first page.
    Torn,
}

/// Why the pages cannot be followed.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum PageError {
    /// The answer says of itself that the request failed.
    #[error("the answer to {from} says that it failed: {failure}")]
    Failure { from: String, failure: String },
    /// The answer shows more than the walk can reach.
    #[error("the answer to {from} shows that there is more ({signs}), and nothing says how to go on: {advice}")]
    More { from: String, signs: String, advice: String },
    /// A page that was there before.
    #[error("the answer to {from} came before: the pages lead in a circle")]
    Circle { from: String },
    /// The next page is on another origin.
    #[error("the next page of {from} is {next}, on another origin: set SOURCE_URL to the origin that serves all pages")]
    OtherOrigin { from: String, next: String },
    /// The next page is not one of what has changed.
    #[error(
        "the next page of {from} is {next}, which does not say since when: it leads from what has changed to the whole collection. Let \
         NEXT_PAGE count (page+1 or offset+records) instead of following addresses, or unset SINCE"
    )]
    SinceLost { from: String, next: String },
    /// No address at all.
    #[error("the next page of {from} is `{next}`, which is no address")]
    Unreadable { from: String, next: String },
    /// A request that is too long.
    #[error("the request for the page behind {from} has {what} of {bytes} bytes, and may have one of {limit}")]
    LongRequest { from: String, what: &'static str, bytes: usize, limit: usize },
    /// What leads to the next page is something else.
    #[error(
        "the answer to {from} has {found} at {at}, where NEXT_PAGE looks for what leads to the next page: set it to where that is"
    )]
    NoValue { from: String, at: JsonPointer, found: String },
    /// A page that is the one before it.
    #[error(
        "the answer to {from} has the records of the page before it: the API does not know the parameter that NEXT_PAGE names, so \
         correct it, or set NEXT_PAGE=none if this is all"
    )]
    Same { from: String },
    /// The collection has too many pages.
    #[error("the collection goes on after {MOST_PAGES} pages: ask for larger ones in SOURCE_URL")]
    Endless,
}

/// The walk through the pages of one collection.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, seen on the way")]
pub struct Walk {
    next_page: NextPage,
    totals: Totals,
    records_at: RecordsAt,
    /// Whether a collection that changes is walked to its end all the same.
    is_last_try: bool,
    /// Whether what has changed is asked for, and not the whole collection.
    is_increment: bool,
    /// The pages of the snapshot, the records in them, and whether two pages differ, which shows that the API reads the parameter.
    pages: usize,
    records: u64,
    are_different: bool,
    /// The records of the first page, and its number.
    first_records: u64,
    first_number: u64,
    /// All requests so far, by their hashes, and the records that they brought: their bodies may be long.
    brought: HashMap<u64, u64>,
    last: Option<Last>,
    /// Pages without records, one after the other.
    empty: u32,
    /// The total that the first page names, where it stands, and the last page of its links.
    total: Option<(String, u64)>,
    last_link: Option<String>,
    /// The first answer's code, if it has one.
    code: Option<String>,
    /// Where a counted walk stands behind a status that may be its end.
    past: Past,
    /// Whether a request was tried again.
    was_tried_again: bool,
    is_torn: bool,
}

/// The page before.
#[derive(Debug)]
struct Last {
    request: Request,
    digest: u64,
    records: u64,
    more: Vec<String>,
}

/// Behind a status that may be the end of a counted walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Past {
    /// There was none.
    #[default]
    No,
    /// It came once, and is asked for again.
    Once,
    /// It came twice. The page before is asked for again.
    Twice,
}

impl Walk {
    /// Before the first page. On the last try a collection that does not hold still is walked to its end.
    pub fn new(next_page: NextPage, totals: Totals, records_at: RecordsAt, is_last_try: bool) -> Self {
        Self { next_page, totals, records_at, is_last_try, ..Self::default() }
    }

    /// Of what has changed. Often that is one page, and a page once more is then the end.
    #[must_use]
    pub fn of_changes(mut self, is_increment: bool) -> Self {
        self.is_increment = is_increment;
        self
    }

    /// Whether the collection did not hold still on its last try.
    pub fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// A total that the API names and that is larger than the records that came. If it changes between pages, the smallest counts.
    pub fn larger_total(&self) -> Option<(&str, u64)> {
        self.total.as_ref().filter(|(_, total)| *total > self.records).map(|(at, total)| (at.as_str(), *total))
    }

    /// Notes that a request had to be made again.
    pub fn tried_again(&mut self) {
        self.was_tried_again = true;
    }

    /// Takes a page. Answers whether it is part of the snapshot, and what comes after it.
    pub fn turn(&mut self, page: &Page) -> Result<(bool, Turn), PageError> {
        let mut signs = Signs::read(&page.headers, &page.around, &self.records_at);
        let failure = signs.failure.take().or_else(|| self.other_code(page, signs.code.take()));
        if let Some(failure) = failure {
            return Err(PageError::Failure { from: page.request.to_string(), failure });
        }
        if self.totals == Totals::Ignore || self.next_page == NextPage::None {
            (signs.totals, signs.pages) = (Vec::new(), Vec::new());
        }
        if self.past == Past::Twice {
            let turn = match &self.last {
                Some(last) if last.digest == page.digest => self.natural_end(&page.request, &last.more)?,
                _ => self.torn(),
            };
            return Ok((false, turn));
        }
        self.past = Past::No;
        if self.has_changed(page, &signs) && self.torn() == Turn::Torn {
            return Ok((true, Turn::Torn));
        }
        let is_first = self.pages == 0;
        if let NextPage::Number(place) = &self.next_page
            && is_first
        {
            self.first_number = page.request.number(place).unwrap_or_default();
        }
        let brought = self.brought.insert(page.request.digest(), page.digest);
        let more = self.more(&signs);
        if let Some(brought) = brought {
            let is_same = brought == page.digest;
            let mut keeps_its_place = !is_same;
            if is_same
                && page.records == 0
                && self.follows_answers()
                && let Turn::Ask(next) = self.after(page, &signs)?
            {
                if !self.brought.contains_key(&next.digest()) {
                    return Ok((false, Turn::Ask(next)));
                }
                keeps_its_place = true;
            }
            // Such a server may have sent a page on a try that failed.
            if keeps_its_place && self.was_tried_again && self.torn() == Turn::Torn {
                return Ok((true, Turn::Torn));
            }
            if is_same && (page.records == 0 || self.are_different) {
                return Ok((false, self.natural_end(&page.request, &more)?));
            }
            if is_same {
                return Err(PageError::Circle { from: page.request.to_string() });
            }
        }
        if self.next_page.is_counted() && self.last.as_ref().is_some_and(|last| last.digest == page.digest) {
            return Ok((false, self.behind_a_page_once_more(page, &signs)?));
        }
        if is_first || page.records > 0 {
            self.take(page, more);
        }
        let is_the_end_near = page.records == 0 && (!is_first || self.next_page.is_counted());
        let turn = if is_the_end_near { self.behind_an_empty_page(page, &signs)? } else { self.after(page, &signs)? };
        let is_asked_again = turn == Turn::End && page.records == 0 && self.is_sudden(page, &signs);
        let turn = if is_asked_again { Turn::Ask(page.request.clone()) } else { turn };
        Ok((is_first || page.records > 0, turn))
    }

    /// Whether nothing but a page without records ends the walk, behind one as long as the first: a server that is busy answers so, too.
    fn is_sudden(&self, page: &Page, signs: &Signs) -> bool {
        let is_behind_a_full_page = self.last.as_ref().is_some_and(|last| last.records >= self.first_records.max(1));
        is_behind_a_full_page && !self.is_end_shown(page) && !signs.is_end && self.total.is_none()
    }

    /// Whether the answer has something where NEXT_PAGE looks for what leads on, if only null.
    fn is_end_shown(&self, page: &Page) -> bool {
        match &self.next_page {
            NextPage::Address(at) | NextPage::Value(_, at) => value_at(&page.around, at.names()).is_some(),
            _ => false,
        }
    }

    /// Whether what leads on stands beside the records, so that a page without them may have it.
    fn follows_answers(&self) -> bool {
        match &self.next_page {
            NextPage::Address(at) | NextPage::Value(_, at) => in_last_record(at, &self.records_at).is_none(),
            NextPage::Link => true,
            NextPage::Number(_) | NextPage::Offset(_) | NextPage::None => false,
        }
    }

    /// A request was answered with this status. What to do if that may be the end of a counted walk; `None` if it is a fault.
    pub fn status(&mut self, request: &Request, status: StatusCode) -> Result<Option<Turn>, PageError> {
        let may_be_the_end = matches!(status.as_u16(), 204 | 400 | 404 | 410 | 416);
        let Some(last) = self.last.as_ref().filter(|_| may_be_the_end && self.next_page.is_counted()) else {
            return Ok(None);
        };
        let turn = match self.past {
            Past::No => {
                self.past = Past::Once;
                Turn::Ask(request.clone())
            }
            // Behind a page that is shorter than the first nothing else was to be expected.
            Past::Once if last.records < self.first_records => self.natural_end(request, &last.more)?,
            Past::Once => {
                self.past = Past::Twice;
                Turn::Ask(last.request.clone())
            }
            Past::Twice => return Ok(None),
        };
        Ok(Some(turn))
    }

    /// That the answer has another code than the first one, for a person. Behind the end some have the one of a status.
    fn other_code(&mut self, page: &Page, code: Option<String>) -> Option<String> {
        let code = code?;
        let first = self.code.get_or_insert_with(|| code.clone());
        let is_behind_the_end = page.records == 0 && ["is 204", "is 404"].iter().any(|status| code.ends_with(status));
        (*first != code && !is_behind_the_end).then(|| format!("{code}, and on the first page {first}"))
    }

    fn take(&mut self, page: &Page, more: Vec<String>) {
        self.pages += 1;
        self.records += page.records;
        if self.pages == 1 {
            self.first_records = page.records;
        }
        self.are_different |= self.last.as_ref().is_some_and(|last| last.digest != page.digest);
        self.empty = 0;
        let (request, digest, records) = (page.request.clone(), page.digest, page.records);
        self.last = Some(Last { request, digest, records, more });
    }

    /// Whether the total, or the last page of the links, is another than before. A count that is no larger than the records that came counts a
    /// page, and not the collection. Of totals that change the least one counts.
    fn has_changed(&mut self, page: &Page, signs: &Signs) -> bool {
        let last_link = target(&page.headers, "last");
        if self.total.is_none() {
            let larger = signs.totals.iter().filter(|(_, total)| *total > self.records + page.records);
            self.total = larger.max_by_key(|(_, total)| *total).cloned();
        }
        if self.brought.is_empty() {
            self.last_link = last_link;
            return false;
        }
        // Not every page need say it.
        let total = self.total.as_ref().and_then(|(at, _)| signs.totals.iter().find(|(there, _)| there == at));
        let has_changed = total.is_some() && total != self.total.as_ref();
        self.total = self.total.take().map(|known| total.map_or(known.clone(), |total| known.min(total.clone())));
        has_changed || last_link.is_some() && self.last_link.is_some() && last_link != self.last_link
    }

    /// What follows a page that belongs to the snapshot.
    fn after(&self, page: &Page, signs: &Signs) -> Result<Turn, PageError> {
        let no_value = |at: JsonPointer, found: &Value| {
            let (from, found) = (page.request.to_string(), quoted(&found.to_string()));
            Err(PageError::NoValue { from, at, found })
        };
        if let Some(name) = self.going_on(page) {
            let signs = format!("`continue` has `{name}`, too, and the API goes on with both together");
            return end_unless(&page.request, &[signs], || "ask for less at once in SOURCE_URL".to_owned());
        }
        let next = match self.next_page.clone() {
            NextPage::None => return Ok(Turn::End),
            NextPage::Link => match target(&page.headers, "next").map(|next| resolve(page, &next)).transpose()? {
                Some(next) if next != page.url && next != page.request.url => {
                    Request { url: next, body: page.request.body.clone() }
                }
                link => return self.shown_end(page, signs, link.is_some()),
            },
            _ if signs.is_end && self.next_page.is_counted() => {
                return self.natural_end(&page.request, &self.more(signs));
            }
            _ if signs.is_end => return self.shown_end(page, signs, true),
            NextPage::Address(at) => match self.value(page, &at)? {
                Some(Value::String(next)) => Request { url: resolve(page, &next)?, body: page.request.body.clone() },
                Some(value) => return no_value(at, &value),
                None => return self.shown_end(page, signs, self.is_end_shown(page)),
            },
            NextPage::Value(place, at) => match self.value(page, &at)? {
                Some(list @ Value::Array(_)) if matches!(place, Place::Parameter(_)) => return no_value(at, &list),
                Some(value) => page.request.with(&place, &value),
                None => return self.shown_end(page, signs, self.is_end_shown(page)),
            },
            // A total that was larger than the first page is that of the collection: nothing is asked behind it, where some APIs fail.
            NextPage::Number(_) | NextPage::Offset(_)
                if self.total.as_ref().is_some_and(|(_, total)| *total == self.records) =>
            {
                return self.natural_end(&page.request, &self.more(signs));
            }
            NextPage::Number(place) => page.request.counted(&place, 1),
            NextPage::Offset(place) => page.request.counted(&place, page.records),
        };
        self.ask(page, next)
    }

    fn ask(&self, page: &Page, next: Request) -> Result<Turn, PageError> {
        let address = next.url.as_str();
        for (what, bytes, limit) in [
            ("an address", address.len(), LINK_LIMIT_BYTES),
            ("a path", address.find('?').unwrap_or(address.len()), PATH_LIMIT_BYTES),
            ("a body", next.body.as_ref().map_or(0, |body| body.to_string().len()), BODY_LIMIT_BYTES),
        ] {
            if bytes > limit {
                return Err(PageError::LongRequest { from: page.request.to_string(), what, bytes, limit });
            }
        }
        if self.pages >= MOST_PAGES { Err(PageError::Endless) } else { Ok(Turn::Ask(next)) }
    }

    /// What the answer has there that leads to the next page.
    fn value(&self, page: &Page, at: &JsonPointer) -> Result<Option<Value>, PageError> {
        let found = match (in_last_record(at, &self.records_at), &page.last_record) {
            (Some(_), None) => return Ok(None),
            (Some(rest), Some(last)) => {
                // The records go on as long as there are any.
                let there = value_at(last, rest).filter(|value| is_filled(value) || value == "0");
                let found = "nothing in its last record".to_owned();
                there.ok_or_else(|| PageError::NoValue { from: page.request.to_string(), at: at.clone(), found })?
            }
            (None, _) => match value_at(&page.around, at.names()) {
                Some(value) if is_filled(&value) || value == "0" => value,
                _ => return Ok(None),
            },
        };
        let is_value = !found.starts_with('{') && found != "true";
        // A number goes on as it stands there: some are longer than any that can be held.
        let is_held = found.parse::<u64>().is_ok() || found.parse::<i64>().is_ok();
        let is_long = !is_held && found.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        let value = if is_long { Some(found.clone().into()) } else { serde_json::from_str(&found).ok() };
        value.filter(|_| is_value).map(Some).ok_or_else(|| PageError::NoValue {
            from: page.request.to_string(),
            at: at.clone(),
            found: quoted(&found),
        })
    }

    /// A page without records. It ends a walk that counts or goes on behind the last record, and one that has as many records as the total
    /// says, unless the API says that there is more. Another walk goes on where the page leads: records may follow.
    fn behind_an_empty_page(&mut self, page: &Page, signs: &Signs) -> Result<Turn, PageError> {
        self.empty += 1;
        let more = self.more(signs);
        let is_more_said = !more.is_empty() || self.larger_total().is_some();
        let has_all = self.total.as_ref().is_some_and(|(_, total)| *total == self.records);
        let is_the_end = self.next_page.is_counted() || has_all;
        let are_many = self.empty >= MOST_EMPTY_PAGES;
        let leads_on = self.follows_answers() || self.next_page.is_counted();
        if !leads_on || is_the_end && !is_more_said || are_many && is_more_said {
            return self.natural_end(&page.request, &more);
        }
        if are_many {
            return Ok(self.torn());
        }
        match &self.next_page {
            NextPage::Offset(place) => self.ask(page, page.request.counted(place, self.first_records.max(1))),
            _ => self.after(page, signs),
        }
    }

    /// The records of the page before came once more. Servers that take a number past the end for the last page do that, and so do those that
    /// do not know the parameter, unless they have a total which says that this is all.
    fn behind_a_page_once_more(&self, page: &Page, signs: &Signs) -> Result<Turn, PageError> {
        // A count may be that of the page.
        let mut totals = signs.totals.iter().filter(|(at, _)| at.to_ascii_lowercase().contains("total"));
        if self.is_increment || self.are_different || totals.any(|(_, total)| *total == self.records) {
            self.natural_end(&page.request, &self.more(signs))
        } else {
            Err(PageError::Same { from: page.request.to_string() })
        }
    }

    /// An end that the answer shows by itself, as far as it `is_shown`: nothing at all is no end where the answer tells of more.
    fn shown_end(&self, page: &Page, signs: &Signs, is_shown: bool) -> Result<Turn, PageError> {
        let mut more = self.more(signs);
        let is_known = is_shown || self.pages > 1 && page.records > 0;
        more.extend(self.missing().filter(|_| !is_known));
        // Once the walk has gone on, what leads on is known, and other words are of something else.
        let is_named = match &self.next_page {
            NextPage::Address(at) | NextPage::Value(_, at) => {
                at.names().last().is_some_and(|name| name.to_lowercase().contains("next"))
            }
            _ => false,
        };
        let is_trusted = signs.is_end || self.pages > 1 || is_shown && is_named;
        let next = signs.next.iter().filter(|_| !is_trusted);
        more.extend(next.map(|Next { at, .. }| format!("something next is at `{at}`")));
        if !is_trusted && target(&page.headers, "next").is_some_and(|_| self.next_page != NextPage::Link) {
            more.push("a `Link` header has a next page".to_owned());
        }
        end_unless(&page.request, &more, || advice(signs, page.request.body.as_ref()))
    }

    /// An end that nothing but the want of further records shows. A larger total refutes it.
    fn natural_end(&self, request: &Request, more: &[String]) -> Result<Turn, PageError> {
        let advice = "the API ends sooner than it says; ask for larger pages in SOURCE_URL, or set TOTALS=ignore if that counts something \
                      else";
        let more: Vec<_> = more.iter().cloned().chain(self.missing()).collect();
        end_unless(request, &more, || advice.to_owned())
    }

    /// A member of MediaWiki's `continue` beside the one that NEXT_PAGE names: it goes on with all of them together.
    fn going_on(&self, page: &Page) -> Option<String> {
        let NextPage::Value(_, at) = &self.next_page else { return None };
        let (named, parent) =
            at.names().split_last().filter(|(_, parent)| parent.last().is_some_and(|name| name == "continue"))?;
        let parent = value_at(&page.around, parent)?;
        let mut others = members(&parent)
            .into_iter()
            .filter(|(name, value)| name != named && name != "continue" && is_filled(value.get()));
        others.next().map(|(name, _)| name)
    }

    /// That a total is larger than what came, for a person.
    fn missing(&self) -> Option<String> {
        self.larger_total().map(|(at, total)| format!("`{at}` is {total}, and {} came", self.records))
    }

    /// The words for more, and a number of pages beyond those that came.
    fn more(&self, signs: &Signs) -> Vec<String> {
        let came = self.first_number.max(1) - 1 + self.brought.len().max(1) as u64;
        let pages = signs.pages.iter().filter(|(_, pages)| *pages > came);
        let pages = pages.map(|(at, pages)| format!("`{at}` is {pages}, and this is page {came}"));
        signs.more.iter().cloned().chain(pages).collect()
    }

    /// The collection changed under way. The last try is taken as it is.
    fn torn(&mut self) -> Turn {
        self.is_torn |= self.is_last_try;
        if self.is_last_try { Turn::End } else { Turn::Torn }
    }
}

/// The end, unless something shows that there is more.
fn end_unless(request: &Request, more: &[String], advice: impl FnOnce() -> String) -> Result<Turn, PageError> {
    if more.is_empty() {
        return Ok(Turn::End);
    }
    Err(PageError::More { from: request.to_string(), signs: more.join(", "), advice: advice() })
}

/// Which settings to try.
fn advice(signs: &Signs, body: Option<&Value>) -> String {
    // A place in the body, or the name of a parameter.
    let (place, counted) = match body {
        None => (
            "",
            "page+1 or offset+records, with the API's own name for the parameter (`importer check` tries the usual ones)",
        ),
        Some(body) if body.get("query").is_some_and(Value::is_string) => ("/variables/", "/variables/page+1"),
        Some(_) => ("/", "/page+1 or /offset+records, with the place that it has in the body"),
    };
    let next =
        signs.next.iter().find(|next| next.at.starts_with('/') && (body.is_some() || !next.value.starts_with('[')));
    let way = match next {
        Some(Next { at, value }) => {
            // What is longer than anything that is kept has a mark in its place.
            let (at, text) = (at.strip_suffix("/too long").unwrap_or(at), value.trim_matches('"'));
            let is_address =
                text.contains("://") || text.starts_with(['/', '?']) || text.contains('?') && text.contains('=');
            let name = parameter_for(at);
            if is_address {
                format!("set NEXT_PAGE={at}")
            } else {
                format!(
                    "set NEXT_PAGE={place}{name}={at} (or another name, if the API does not call it `{name}` in a request)"
                )
            }
        }
        None => match signs.next.first() {
            Some(Next { at, .. }) => {
                format!("NEXT_PAGE cannot follow what is at `{at}`; set it to {counted}, if the API knows that, too")
            }
            None => format!("set NEXT_PAGE to {counted}"),
        },
    };
    let is_counted = !signs.totals.is_empty() || !signs.pages.is_empty();
    let totals = if is_counted { ", TOTALS=ignore if such a number counts something else" } else { "" };
    format!("{way}{totals}, or NEXT_PAGE=none if this is all")
}

/// The likely parameter for a cursor that stands there: `cursor` for `/meta/next_cursor`, `pageToken` for `/nextPageToken`.
fn parameter_for(at: &str) -> String {
    let name = at.rsplit('/').next().unwrap_or_default();
    let bare = name.strip_prefix("next").unwrap_or(name).trim_start_matches(['_', '-']);
    let mut letters = bare.chars();
    match letters.next() {
        // As GraphQL's connections have it.
        _ if name == "endCursor" => "after".to_owned(),
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => "cursor".to_owned(),
    }
}

/// The target of the first link with the relation, in header lines. Relations are compared as RFC 8288 says: words, in any case. A next link
/// to a page without results does not count.
fn target(headers: &[(String, String)], relation: &str) -> Option<String> {
    let headers = headers.iter().filter(|(name, _)| name == "link");
    let links = headers.flat_map(|(_, line)| line.split('<').skip(1)).filter_map(|link| link.split_once('>'));
    let mut wanted = links.filter(|(_, parameters)| has(parameters, "rel", relation));
    wanted.find(|(_, parameters)| !has(parameters, "results", "false")).map(|(target, _)| target.to_owned())
}

fn has(parameters: &str, name: &str, word: &str) -> bool {
    let values = parameters.split([';', ',']).filter_map(|parameter| parameter.split_once('='));
    let mut named = values.filter(|(known, _)| known.trim().eq_ignore_ascii_case(name));
    named.any(|(_, value)| {
        let value = value.trim().trim_matches('"');
        value.split_ascii_whitespace().any(|known| known.eq_ignore_ascii_case(word))
    })
}

/// The address of the next page. One with http on the same host is taken for a proxy's mistake, where https was asked for.
fn resolve(page: &Page, next: &str) -> Result<Url, PageError> {
    let from = || page.request.to_string();
    let Ok(mut url) = page.url.join(next) else {
        // A user and a password, or what stands behind the path, may be secret.
        let path = next.split(['?', '#']).next().unwrap_or_default();
        let next = path.rsplit('@').next().unwrap_or_default().to_owned();
        return Err(PageError::Unreadable { from: from(), next });
    };
    if page.url.scheme() == "https" && url.scheme() == "http" && url.host() == page.url.host() {
        // The port is that of https.
        let port = page.url.port();
        url.set_scheme("https").and_then(|()| url.set_port(port)).expect("an address of http takes both");
    }
    if url.origin() == page.url.origin() {
        let (asked, has_own) = (&page.request.url, !url.username().is_empty() || url.password().is_some());
        if !has_own && asked.origin() == url.origin() {
            // No answer repeats them.
            url.set_username(asked.username())
                .and_then(|()| url.set_password(asked.password()))
                .expect("it has a host");
        }
        Ok(url)
    } else {
        Err(PageError::OtherOrigin { from: from(), next: public_url(&url) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FIRST: &str = "http://api/posts";

    /// What an API answers: how many records, which ones, and what stands around them.
    #[derive(Clone)]
    struct Reply {
        headers: Vec<(String, String)>,
        records: u64,
        digest: u64,
        around: Value,
        last_record: Option<Value>,
    }

    impl Reply {
        fn new(records: u64, digest: u64) -> Self {
            Self { headers: Vec::new(), records, digest, around: json!({ "data": null }), last_record: None }
        }

        fn around(mut self, name: &str, value: Value) -> Self {
            self.around[name] = value;
            self
        }

        fn header(mut self, name: &str, value: &str) -> Self {
            self.headers.push((name.to_owned(), value.to_owned()));
            self
        }
    }

    fn request(url: &str) -> Request {
        Request { url: url.parse().unwrap(), body: None }
    }

    fn page(request: Request, reply: Reply) -> Page {
        let Reply { headers, records, digest, around, last_record } = reply;
        let last_record = last_record.map(|record| record.to_string());
        Page { url: request.url.clone(), request, headers, records, digest, around: around.to_string(), last_record }
    }

    /// What a walk came to: the digests of its pages, what was asked, and how it ended.
    #[derive(Debug, PartialEq, Eq)]
    struct Walked {
        pages: Vec<u64>,
        asked: Vec<String>,
        end: Result<Turn, String>,
    }

    enum Said {
        Page(Reply),
        Status(u16),
    }

    /// Walks through an API that answers each request by its query, the parts of its body included.
    fn walk(next_page: &str, first: Request, totals: Totals, mut api: impl FnMut(&Request) -> Said) -> Walked {
        let next_page: NextPage = next_page.parse().unwrap_or_default();
        let mut request = next_page.first(first);
        let mut walk = Walk::new(next_page, totals, "/data".parse().unwrap(), false);
        let mut walked = Walked { pages: Vec::new(), asked: Vec::new(), end: Ok(Turn::End) };
        loop {
            let body = request.body.as_ref().map(Value::to_string).unwrap_or_default();
            walked.asked.push(format!("{}{body}", request.url.query().unwrap_or_default()));
            let turn = match api(&request) {
                Said::Page(reply) => {
                    let digest = reply.digest;
                    walk.turn(&page(request.clone(), reply)).map(|(is_kept, turn)| {
                        walked.pages.extend(is_kept.then_some(digest));
                        turn
                    })
                }
                Said::Status(status) => {
                    let status = StatusCode::from_u16(status).unwrap();
                    walk.status(&request, status).map(|turn| turn.expect("a status that may be the end"))
                }
            };
            match turn {
                Ok(Turn::Ask(next)) => request = next,
                end => {
                    walked.end = end.map_err(|error| error.to_string());
                    return walked;
                }
            }
        }
    }

    /// The same by the number or text that a parameter brings.
    fn walk_by(next_page: &str, parameter: &str, mut api: impl FnMut(&str) -> Said) -> Walked {
        walk(next_page, request(&format!("{FIRST}?x=%E9&page=1")), Totals::Check, |request| {
            let value =
                request.url.query_pairs().find(|(name, _)| name == parameter).map(|(_, value)| value.into_owned());
            api(value.as_deref().unwrap_or_default())
        })
    }

    fn whole(walked: &Walked, pages: &[u64]) {
        assert_eq!((walked.end.as_ref(), walked.pages.as_slice()), (Ok(&Turn::End), pages), "{walked:?}");
    }

    fn refused(walked: &Walked, why: &str) {
        assert!(walked.end.as_ref().is_err_and(|said| said.contains(why)), "{why}: {walked:?}");
    }

    #[test]
    fn links_of_every_spelling_are_followed() {
        for link in [
            r#"<http://api/posts?_page=2>; rel="next""#,
            "<?_page=2>;rel=next",
            r#"<http://api/posts?_page=1>; rel="first", </posts?_page=2>; title="a, b"; REL="Next""#,
            r#"<http://api/posts?_page=2>; rel="prefetch next""#,
        ] {
            let walked = walk("", request(FIRST), Totals::Check, |request| {
                Said::Page(match request.url.query() {
                    None => Reply::new(2, 1).header("link", link),
                    _ => Reply::new(1, 2),
                })
            });
            whole(&walked, &[1, 2]);
            assert_eq!(walked.asked, ["", "_page=2"], "{link}");
        }
        for link in [
            "",
            r#"<http://api/posts>; rel="prev""#,
            "http://api/2; rel=next",
            r#"<?2>; title="rel""#,
            r#"<?2>; rel="next"; results="false""#,
            "<http://api/posts>; rel=next",
        ] {
            whole(
                &walk("", request(FIRST), Totals::Check, |_| Said::Page(Reply::new(2, 1).header("link", link))),
                &[1],
            );
        }
    }

    #[test]
    fn a_link_that_leads_astray_is_refused() {
        for (link, error) in [
            ("<http://other/posts?_page=2>; rel=next", "on another origin"),
            ("<https://api/posts?_page=2>; rel=next", "on another origin"),
            ("<http://[>; rel=next", "is no address"),
            ("<javascript:alert(1)>; rel=next", "on another origin"),
            (&format!("</{}>; rel=next", "a".repeat(PATH_LIMIT_BYTES - 10)), "has a path of 561 bytes"),
            (&format!("<?{}>; rel=next", "a".repeat(LINK_LIMIT_BYTES - 16)), "has an address of 4001 bytes"),
        ] {
            refused(
                &walk("", request(FIRST), Totals::Check, |_| Said::Page(Reply::new(2, 1).header("link", link))),
                error,
            );
        }
        let circle = walk("", request(FIRST), Totals::Check, |request| {
            let next = if request.url.query() == Some("b") { "a" } else { "b" };
            Said::Page(Reply::new(2, 1).header("link", &format!("<?{next}>; rel=next")))
        });
        refused(&circle, "the pages lead in a circle");
    }

    #[test]
    fn a_user_and_a_password_go_along_to_the_pages_that_answers_name() {
        for (next_page, next) in [("", "?page=2"), ("", "http://api/posts?page=2"), ("/next", "/posts?page=2")] {
            let walked = walk(next_page, request("http://u:p@api/posts"), Totals::Check, |asked| {
                assert_eq!((asked.url.username(), asked.url.password()), ("u", Some("p")), "{next_page} {next}");
                Said::Page(match asked.url.query() {
                    None => Reply::new(2, 1).header("link", &format!("<{next}>; rel=next")).around("next", json!(next)),
                    Some(_) => Reply::new(1, 2).around("next", json!(null)),
                })
            });
            whole(&walked, &[1, 2]);
        }
    }

    #[test]
    fn http_behind_a_proxy_that_speaks_https_is_asked_by_https() {
        let from = |url: &str, next: &str| {
            let page = page(request(url), Reply::new(1, 1));
            resolve(&page, next).map(|url| url.to_string())
        };
        assert_eq!(from("https://api/a", "http://api/b?%E9").as_deref(), Ok("https://api/b?%E9"));
        assert_eq!(from("https://api:8443/a", "http://api/b").as_deref(), Ok("https://api:8443/b"));
        assert!(from("http://api/a", "https://api/b").is_err());
        assert!(from("https://api/a", "http://other/b").is_err());
    }

    #[test]
    fn an_address_in_the_answer_is_followed_until_there_is_none() {
        for last in [Value::Null, json!(""), json!(false)] {
            let walked = walk("/links/next", request(FIRST), Totals::Check, |request| {
                Said::Page(match request.url.query() {
                    None => Reply::new(2, 1).around("links", json!({ "next": "/posts?cursor=%E9" })),
                    _ => Reply::new(1, 2).around("links", json!({ "next": last })),
                })
            });
            whole(&walked, &[1, 2]);
            assert_eq!(walked.asked, ["", "cursor=%E9"]);
        }
        let number =
            walk("/next", request(FIRST), Totals::Check, |_| Said::Page(Reply::new(1, 1).around("next", json!(2))));
        refused(&number, "has 2 at /next, where NEXT_PAGE looks");
    }

    #[test]
    fn a_value_in_the_answer_goes_into_a_parameter_or_the_body() {
        let walked = walk_by("after=/paging/next/after", "after", |after| {
            Said::Page(match after {
                "" => Reply::new(2, 1).around("paging", json!({ "next": { "after": "a&b= é" } })),
                "a&b= é" => Reply::new(2, 2).around("paging", json!({ "next": { "after": 3 } })),
                _ => Reply::new(1, 3),
            })
        });
        whole(&walked, &[1, 2, 3]);
        assert_eq!(walked.asked, ["x=%E9&page=1", "x=%E9&page=1&after=a%26b%3D+%C3%A9", "x=%E9&page=1&after=3"]);

        let body = Request { body: Some(json!({ "query": "q" })), ..request(FIRST) };
        let walked = walk("/variables/after=/page/end", body, Totals::Check, |request| {
            Said::Page(match request.body.as_ref().unwrap().pointer("/variables/after") {
                None => Reply::new(2, 1).around("page", json!({ "end": ["7", 1.50] })),
                _ => Reply::new(1, 2).around("page", json!({ "end": "", "hasNextPage": false })),
            })
        });
        whole(&walked, &[1, 2]);
        assert_eq!(walked.asked[1], r#"{"query":"q","variables":{"after":["7",1.5]}}"#);
    }

    #[test]
    fn the_last_record_leads_on_until_there_are_none_or_a_word_says_so() {
        let reply = |digest, id: u64| Reply { last_record: Some(json!({ "id": id })), ..Reply::new(2, digest) };
        let walked = walk_by("starting_after=/data/-1/id", "starting_after", |after| {
            Said::Page(match after {
                "" => reply(1, 18_446_744_073_709_551_615),
                "18446744073709551615" => reply(2, 4),
                _ => Reply::new(0, 3),
            })
        });
        whole(&walked, &[1, 2]);
        let walked = walk_by("starting_after=/data/-1/id", "starting_after", |after| {
            Said::Page(reply(u64::from(!after.is_empty()), 2).around("has_more", json!(after.is_empty())))
        });
        whole(&walked, &[0, 1]);
        let without = walk_by("after=/data/-1/key", "after", |_| Said::Page(reply(1, 2)));
        refused(&without, "has nothing in its last record at /data/-1/key");
    }

    #[test]
    fn a_cursor_beside_a_clear_word_or_that_was_there_before_is_the_end() {
        let word = walk_by("cursor=/next", "cursor", |cursor| {
            Said::Page(
                Reply::new(2, cursor.len() as u64)
                    .around("next", json!("aa"))
                    .around("done", json!(!cursor.is_empty())),
            )
        });
        whole(&word, &[0, 2]);
        // The last page names itself: it comes once more.
        let itself = walk_by("cursor=/next", "cursor", |cursor| {
            Said::Page(Reply::new(2, cursor.len() as u64).around("next", json!("b")))
        });
        whole(&itself, &[0, 1]);
        assert_eq!(itself.asked.len(), 3);
        let alone = walk_by("page=/next", "page", |_| Said::Page(Reply::new(2, 1).around("next", json!(1))));
        refused(&alone, "the pages lead in a circle");
    }

    #[test]
    fn a_cursor_that_never_ends_is_followed_over_pages_without_records_and_not_for_ever() {
        for (total, asked, end) in [(json!(4), 3, Turn::End), (Value::Null, 12, Turn::Torn)] {
            let mut cursors = 0;
            let walked = walk_by("cursor=/next", "cursor", |_| {
                cursors += 1;
                let reply = if cursors < 3 { Reply::new(2, cursors) } else { Reply::new(0, 0) };
                Said::Page(reply.around("next", json!(format!("c{cursors}"))).around("total", total.clone()))
            });
            assert_eq!((walked.end, walked.pages, walked.asked.len()), (Ok(end), vec![1, 2], asked));
        }
        let filtered = walk_by("cursor=/next", "cursor", |cursor| {
            Said::Page(match cursor {
                "" => Reply::new(2, 1).around("next", json!("a")),
                "a" => Reply::new(0, 0).around("next", json!("b")),
                _ => Reply::new(2, 2),
            })
        });
        whole(&filtered, &[1, 2]);
    }

    #[test]
    fn a_server_that_keeps_its_own_place_is_followed_to_its_end() {
        let mut turn = 0;
        let mut api = move |_: &str| {
            turn += 1;
            Said::Page(match turn {
                1..=3 => Reply::new(2, turn).around("scroll", json!("same")),
                _ => Reply::new(0, 0).around("scroll", json!("same")),
            })
        };
        whole(&walk_by("scroll_id=/scroll", "scroll_id", &mut api), &[1, 2, 3]);

        let mut walk = Walk::new("scroll_id=/scroll".parse().unwrap(), Totals::Check, "/data".parse().unwrap(), false);
        let mut request = request(FIRST);
        for digest in 1..=3 {
            let (_, next) =
                walk.turn(&page(request.clone(), Reply::new(2, digest).around("scroll", json!("same")))).unwrap();
            match next {
                Turn::Ask(next) => request = next,
                turn => {
                    return assert_eq!(
                        (digest, turn),
                        (3, Turn::Torn),
                        "a request that was tried again may have lost a page"
                    );
                }
            }
            walk.tried_again();
        }
        panic!("the walk did not begin anew");
    }

    #[test]
    fn a_server_that_keeps_its_own_place_may_be_busy_or_lose_a_page_to_a_try_that_failed() {
        let mut turn = 0;
        let busy = walk_by("scroll_id=/scroll", "scroll_id", |_| {
            turn += 1;
            let reply = if matches!(turn, 1 | 2 | 4) { Reply::new(2, turn) } else { Reply::new(0, 0) };
            Said::Page(reply.around("scroll", json!("same")))
        });
        whole(&busy, &[1, 2, 4]);

        let mut walk = Walk::new("scroll_id=/scroll".parse().unwrap(), Totals::Check, "/data".parse().unwrap(), false);
        let reply = |records: u64| Reply::new(records, records).around("scroll", json!("same"));
        let (_, next) = walk.turn(&page(request(FIRST), reply(2))).unwrap();
        let Turn::Ask(next) = next else { panic!("{next:?}") };
        walk.tried_again();
        assert_eq!(walk.turn(&page(next.clone(), reply(0))).unwrap().1, Turn::Ask(next.clone()));
        assert_eq!(walk.turn(&page(next, reply(0))).unwrap().1, Turn::Torn);
    }

    #[test]
    fn a_page_without_records_that_leads_on_the_second_time_is_followed() {
        let mut asked = 0;
        let walked = walk_by("cursor=/next", "cursor", |cursor| {
            asked += 1;
            Said::Page(match cursor {
                "" => Reply::new(2, 1).around("next", json!("b")),
                "b" if asked == 2 => Reply::new(0, 0).around("next", json!("b")),
                "b" => Reply::new(0, 0).around("next", json!("c")),
                _ => Reply::new(2, 2),
            })
        });
        whole(&walked, &[1, 2]);
    }

    #[test]
    fn equal_pages_behind_links_are_pages() {
        let walked = walk("", request(FIRST), Totals::Check, |request| {
            let number = request.url.query().map_or(1, |query| query.parse().unwrap());
            let reply = Reply::new(2, if number == 3 { 2 } else { number });
            Said::Page(if number < 4 { reply.header("link", &format!("<?{}>; rel=next", number + 1)) } else { reply })
        });
        whole(&walked, &[1, 2, 2, 4]);
    }

    #[test]
    fn an_end_that_words_or_totals_contradict_is_refused() {
        let last = |name: &'static str, value: Value| {
            walk_by("after=/data/-1/id", "after", move |after| {
                let reply = if after.is_empty() { Reply::new(2, 1) } else { Reply::new(0, 0) };
                let last_record = after.is_empty().then(|| json!({ "id": 7 }));
                Said::Page(Reply { last_record, ..reply }.around(name, value.clone()))
            })
        };
        refused(&last("total", json!(57)), "`/total` is 57, and 2 came");
        refused(&last("has_more", json!(true)), "`/has_more` is true");
        let stuck = walk_by("cursor=/next", "cursor", |cursor| {
            let reply = Reply::new(2, cursor.len() as u64).around("next", json!("b"));
            Said::Page(reply.around("has_more", json!(true)))
        });
        refused(&stuck, "`/has_more` is true");
        let counted = walk_by("page+1", "pg", |_| Said::Page(Reply::new(10, 1).around("count", json!(10))));
        refused(&counted, "has the records of the page before it");
        let word = walk_by("page+1", "page", |_| {
            Said::Page(Reply::new(10, 1).around("total", json!(57)).around("has_more", json!(false)))
        });
        refused(&word, "`/total` is 57, and 10 came");
    }

    #[test]
    fn pages_numbered_from_0_are_counted_like_others() {
        let api = |request: &Request| {
            let page = request.number(&Place::Parameter("page".into())).unwrap();
            Said::Page(if page < 3 { Reply::new(2, page) } else { Reply::new(0, 9) }.around("totalPages", json!(3)))
        };
        whole(&walk("page+1", request("http://api/?page=0"), Totals::Check, api), &[0, 1, 2]);
    }

    #[test]
    fn numbers_are_counted_up_until_a_page_is_empty_or_comes_once_more() {
        for (last, asked) in [(0, 5), (3, 4)] {
            let walked = walk_by("page+1", "page", |page| {
                Said::Page(match page.parse().unwrap() {
                    number @ 1..=3 => Reply::new(2, number),
                    _ if last == 0 => Reply::new(0, 0),
                    _ => Reply::new(2, last),
                })
            });
            whole(&walked, &[1, 2, 3]);
            assert_eq!((walked.asked.len(), walked.asked[asked - 1].as_str()), (asked, "x=%E9&page=4"));
        }
        refused(&walk_by("page+1", "page", |_| Said::Page(Reply::new(2, 1))), "has the records of the page before it");
        let all = walk_by("page+1", "page", |_| Said::Page(Reply::new(2, 1).around("total", json!(2))));
        whole(&all, &[1]);
        whole(&walk_by("page+1", "page", |_| Said::Page(Reply::new(0, 0))), &[0]);
        let offsets = walk_by("offset+records", "offset", |offset| {
            Said::Page(match offset {
                "0" => Reply::new(10, 1),
                "10" => Reply::new(7, 2),
                "17" => Reply::new(0, 3),
                other => panic!("{other}"),
            })
        });
        whole(&offsets, &[1, 2]);
    }

    #[test]
    fn a_status_past_the_end_counts_if_it_stays_and_the_page_before_is_still_there() {
        for status in [204, 400, 404, 410, 416] {
            let short = walk_by("page+1", "page", |page| match page {
                "1" => Said::Page(Reply::new(2, 1)),
                "2" => Said::Page(Reply::new(1, 2)),
                _ => Said::Status(status),
            });
            whole(&short, &[1, 2]);
            assert_eq!(short.asked.len(), 4, "nothing else was to be expected");
            let full = walk_by("page+1", "page", |page| match page {
                "1" | "2" => Said::Page(Reply::new(2, page.parse().unwrap())),
                _ => Said::Status(status),
            });
            whole(&full, &[1, 2]);
            assert_eq!(full.asked[2..], ["x=%E9&page=3", "x=%E9&page=3", "x=%E9&page=2"]);
        }
        let mut asked = 0;
        let moved = walk_by("page+1", "page", |page| {
            asked += 1;
            if page == "2" { Said::Status(404) } else { Said::Page(Reply::new(2, asked)) }
        });
        assert_eq!(moved.end, Ok(Turn::Torn));
        let capped = walk_by("page+1", "page", |page| match page {
            "1" | "2" => Said::Page(Reply::new(2, page.parse().unwrap()).around("total", json!(57))),
            _ => Said::Status(400),
        });
        refused(&capped, "`/total` is 57, and 4 came");
    }

    #[test]
    fn a_page_without_records_behind_a_full_one_is_asked_for_once_more() {
        for (next_page, parameter) in [("page+1", "page"), ("id=/data/-1/id", "id"), ("id=/next", "id")] {
            let mut asked = 0;
            let walked = walk_by(next_page, parameter, |_| {
                asked += 1;
                let last_record = Some(json!({ "id": asked }));
                Said::Page(match asked {
                    1 | 4 => Reply { last_record, ..Reply::new(2, asked) }.around("next", json!(asked)),
                    3 if next_page == "id=/next" => Reply::new(1, asked),
                    3 => Reply { last_record, ..Reply::new(2, asked) },
                    _ => Reply::new(0, 0),
                })
            });
            let pages = if next_page == "id=/next" { &[1, 3][..] } else { &[1, 3, 4] };
            whole(&walked, pages);
            assert_eq!(walked.asked[1], walked.asked[2], "{next_page}");
        }
    }

    #[test]
    fn a_page_without_records_in_the_middle_is_passed_while_more_is_said() {
        let walked = walk_by("offset+records", "offset", |offset| {
            let reply = match offset {
                "0" => Reply::new(10, 1),
                "10" => Reply::new(0, 2),
                "20" => Reply::new(7, 3),
                _ => Reply::new(0, 4),
            };
            Said::Page(reply.around("total", json!(17)))
        });
        whole(&walked, &[1, 3]);
        let endless = walk_by("offset+records", "offset", |offset| {
            Said::Page(if offset == "0" { Reply::new(10, 1) } else { Reply::new(0, 2) }.around("total", json!(17)))
        });
        assert_eq!(endless.asked.len(), 11);
        refused(&endless, "`/total` is 17, and 10 came");
    }

    #[test]
    fn what_goes_on_by_several_values_together_is_no_end() {
        let query = |going_on: Value| {
            walk("gapcontinue=/continue/gapcontinue", request(FIRST), Totals::Check, move |asked| {
                Said::Page(match asked.url.query() {
                    Some(query) if query.contains("gapcontinue") => {
                        Reply::new(2, 2).around("continue", going_on.clone())
                    }
                    _ => {
                        Reply::new(2, 1).around("continue", json!({ "gapcontinue": "b", "continue": "gapcontinue||" }))
                    }
                })
            })
        };
        // Some name the page itself beside what is missing of it.
        for going_on in [json!({ "clcontinue": "7" }), json!({ "clcontinue": "7", "gapcontinue": "b" })] {
            refused(&query(going_on), "`continue` has `clcontinue`, too");
        }
        whole(&query(json!({})), &[1, 2]);
    }

    #[test]
    fn an_answer_that_shows_more_is_refused_unless_a_person_says_that_it_is_all() {
        let signs: [fn(Reply) -> Reply; 8] = [
            |reply| reply.around("has_more", json!(true)),
            |reply| reply.around("next_cursor", json!("abc")),
            |reply| reply.around("meta", json!({ "next": { "href": "https://api/2" } })),
            |reply| reply.around("total", json!(57)),
            |reply| reply.around("total_pages", json!(6)),
            |reply| reply.header("x-wp-totalpages", "6"),
            |reply| reply.header("x-next-page", "2"),
            |reply| reply.header("x-total-count", "57"),
        ];
        for (number, sign) in signs.into_iter().enumerate() {
            let api = |_: &Request| Said::Page(sign(Reply::new(10, 1)));
            for next_page in ["", "after=/paging/next/after", "/links/next"] {
                let walked = walk(next_page, request(FIRST), Totals::Check, api);
                refused(&walked, "shows that there is more");
                refused(&walked, "NEXT_PAGE=none if this is all");
            }
            whole(&walk("none", request(FIRST), Totals::Check, api), &[1]);
            let ignored = walk("", request(FIRST), Totals::Ignore, api);
            assert_eq!(ignored.end.is_ok(), matches!(number, 3..=5 | 7), "{number}: {ignored:?}");
        }
        for (next, advice) in [
            (json!("https://api/?page=2"), "set NEXT_PAGE=/next,"),
            (json!({ "next_cursor": "abc" }), "set NEXT_PAGE=cursor=/next/next_cursor (or another name"),
            (json!({ "pageToken": "abc" }), "set NEXT_PAGE=pageToken=/next/pageToken (or"),
        ] {
            let walked =
                walk("", request(FIRST), Totals::Check, |_| Said::Page(Reply::new(2, 1).around("next", next.clone())));
            refused(&walked, advice);
        }
        let body = |text: &str| Request { body: Some(serde_json::from_str(text).unwrap()), ..request(FIRST) };
        for (asked, sign, advice) in [
            (request(FIRST), json!("[\"1/2\"]"), "set NEXT_PAGE=cursor=/next_cursor (or"),
            (request(FIRST), json!({ "too long": 1 }), "set NEXT_PAGE=cursor=/next_cursor (or"),
            (request(FIRST), json!([7, "a"]), "cannot follow what is at `/next_cursor`; set it to page+1 or"),
            (body("{}"), json!([7, "a"]), "set NEXT_PAGE=/cursor=/next_cursor (or"),
            (body(r#"{"query":"{ posts }"}"#), json!("abc"), "set NEXT_PAGE=/variables/cursor=/next_cursor (or"),
        ] {
            let api = |_: &Request| Said::Page(Reply::new(2, 1).around("next_cursor", sign.clone()));
            refused(&walk("", asked, Totals::Check, api), advice);
        }
        let linked = walk("/next", request(FIRST), Totals::Check, |_| {
            Said::Page(Reply::new(2, 1).header("link", "<?2>; rel=next"))
        });
        refused(&linked, "a `Link` header has a next page");
        let failed =
            walk("none", request(FIRST), Totals::Check, |_| Said::Page(Reply::new(2, 1).around("ok", json!(false))));
        refused(&failed, "says that it failed: `ok` is false");
        // A limit inside a 200, from an API whose good code nobody can know.
        let limited = walk_by("page+1", "page", |page| {
            let (records, code) = if page == "1" { (10, 1) } else { (0, 1015) };
            Said::Page(Reply::new(records, records).around("code", json!(code)))
        });
        refused(&limited, "says that it failed: `code` is 1015, and on the first page `code` is 1");
    }

    #[test]
    fn a_larger_total_behind_an_end_that_is_shown_is_no_fault() {
        let mut walk = Walk::new("/next".parse().unwrap(), Totals::Check, "/data".parse().unwrap(), false);
        let reply = Reply::new(2, 1).around("next", Value::Null).around("total", json!(3));
        assert_eq!(walk.turn(&page(request(FIRST), reply)), Ok((true, Turn::End)));
        assert_eq!(walk.larger_total(), Some(("/total", 3)));
    }

    #[test]
    fn a_collection_that_changes_while_it_is_walked_is_torn_and_the_last_try_takes_it() {
        let changing: [fn(Reply, u64) -> Reply; 2] = [
            |reply, page| reply.around("total", json!(10 + page)),
            |reply, page| reply.header("link", &format!("<?_page={}>; rel=last", 5 + page)),
        ];
        for change in changing {
            for is_last_try in [false, true] {
                let mut walk =
                    Walk::new("page+1".parse().unwrap(), Totals::Check, "/data".parse().unwrap(), is_last_try);
                let mut asked = request("http://api/?page=1");
                let mut pages = 0;
                let end = loop {
                    pages += 1;
                    let reply = if pages < 4 { Reply::new(4, pages) } else { Reply::new(0, 0) };
                    match walk.turn(&page(asked.clone(), change(reply, pages))).unwrap() {
                        (_, Turn::Ask(next)) if pages < 20 => asked = next,
                        (_, end) => break end,
                    }
                };
                let expected = if is_last_try { (Turn::End, true) } else { (Turn::Torn, false) };
                assert_eq!((end, walk.is_torn()), expected);
            }
        }
        // A count of one page's records is no total.
        let counts = walk_by("page+1", "page", |page| {
            let records = 4 - page.parse::<u64>().unwrap();
            Said::Page(Reply::new(records, records).around("count", json!(records)))
        });
        whole(&counts, &[3, 2, 1]);
    }

    #[test]
    fn a_total_that_a_later_page_names_counts_and_one_that_is_too_small_ends_nothing() {
        let late = walk_by("page+1", "page", |page| {
            Said::Page(match page {
                "1" => Reply::new(10, 1),
                "2" => Reply::new(10, 2).around("total", json!(57)),
                _ => Reply::new(0, 0).around("total", json!(57)),
            })
        });
        refused(&late, "`/total` is 57, and 20 came");
        let small = walk_by("cursor=/next", "cursor", |cursor| {
            let reply = match cursor {
                "" => Reply::new(10, 1).around("next", json!("a")),
                "a" => Reply::new(10, 2).around("next", json!("b")),
                "b" => Reply::new(0, 0).around("next", json!("c")),
                _ => Reply::new(5, 4),
            };
            Said::Page(reply.around("total", json!(15)))
        });
        whole(&small, &[1, 2, 4]);
        let begun_later = walk("page+1", request("http://api/?page=2"), Totals::Check, |request| {
            if request.url.query() == Some("page=2") {
                Said::Page(Reply::new(2, 1).around("total_pages", json!(2)))
            } else {
                Said::Status(404)
            }
        });
        whole(&begun_later, &[1]);
    }

    #[test]
    fn a_total_that_moves_does_not_hide_that_records_are_missing() {
        let mut walk = Walk::new("page+1".parse().unwrap(), Totals::Check, "/data".parse().unwrap(), true);
        let mut asked = request("http://api/?page=1");
        for (number, total) in [57, 58, 57].into_iter().enumerate() {
            let reply = Reply::new(if number < 2 { 10 } else { 0 }, number as u64).around("total", json!(total));
            match walk.turn(&page(asked.clone(), reply)) {
                Ok((_, Turn::Ask(next))) => asked = next,
                end => panic!("{end:?}"),
            }
        }
        let empty = |asked: &Request| page(asked.clone(), Reply::new(0, 9).around("total", json!(57)));
        let end = loop {
            match walk.turn(&empty(&asked)) {
                Ok((_, Turn::Ask(next))) => asked = next,
                end => break end,
            }
        };
        assert!(end.is_err_and(|error| error.to_string().contains("`/total` is 57, and 20 came")));
    }

    #[test]
    fn a_collection_without_end_is_stopped() {
        let mut pages = 0;
        let walked = walk_by("page+1", "page", |_| {
            pages += 1;
            Said::Page(Reply::new(1, pages))
        });
        refused(&walked, "goes on after 10000 pages");
    }

    #[test]
    fn a_request_shows_no_secret() {
        let said =
            walk_by("page_token=/next", "page_token", |_| Said::Page(Reply::new(2, 1).around("next", json!("s3cret"))));
        refused(&said, "page_token=…");
        assert!(!format!("{:?}", said.end).contains("s3cret"));
    }
}
