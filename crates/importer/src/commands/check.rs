//! `importer check`: is everything that the importer needs reachable and permitted, and is the collection whole?
//!
//! It appends nothing: the right to is tried on an object beside the archive, and the pointer that is sent is that of an object that was
//! announced before, or, without one, of an object that will never be.

use std::{io::Write, time::Duration};

use serde_json::{Value, json};
use shared::{
    archive::{Archive, S3Archive},
    object::StreamName,
    pointer::Pointer,
    telemetry::chain,
};

use super::advice::{Verdict, find_more, is_map, likely_ids, likely_records, read, records_of};
use crate::{
    body::SpoolError,
    http::HttpError,
    next_page::NextPage,
    paging::PageError,
    queue::{Queue as _, SqsQueue},
    retry::{is_transient, refusal},
    run::bytes_a_day,
    snapshot::{End, Snapshot},
    source::{Api, PollError, Source as _},
};

/// How many places of ids are named.
const SHOWN_IDS: usize = 3;

/// What is looked at, besides the API.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The stream.
    pub stream: &'a StreamName,
    /// How often the API is polled.
    pub poll_interval: Duration,
    /// Whether the lines are for a program.
    pub is_json: bool,
}

/// Writes a line for each dependency, as JSON or for a person. Whether all is well.
struct Report<'a, W> {
    out: &'a mut W,
    is_json: bool,
    is_well: bool,
}

impl<W: Write> Report<'_, W> {
    fn tell(&mut self, what: &str, found: Result<String, String>) -> anyhow::Result<()> {
        self.tell_with(what, found, json!({}))
    }

    /// `more` goes into the JSON alone.
    fn tell_with(&mut self, what: &str, found: Result<String, String>, mut more: Value) -> anyhow::Result<()> {
        let is_well = found.is_ok();
        self.is_well &= is_well;
        let says = found.unwrap_or_else(|problem| problem);
        if self.is_json {
            (more["what"], more["is_well"], more["says"]) = (what.into(), is_well.into(), says.into());
            writeln!(self.out, "{more}")?;
        } else {
            writeln!(self.out, "{what:<8}  {:<7}  {says}", if is_well { "ok" } else { "PROBLEM" })?;
        }
        // A program may wait for the first line.
        Ok(self.out.flush()?)
    }
}

/// Looks at each dependency and writes a line for it. Whether all is well. `reach` says who one is on AWS, and leads to archive and queue, if
/// AWS can be asked at all.
pub async fn check(
    api: &Api,
    reach: impl AsyncFnOnce() -> (Result<String, String>, Option<(S3Archive, SqsQueue)>),
    surroundings: Surroundings<'_>,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let mut report = Report { out, is_json: surroundings.is_json, is_well: true };
    match api.poll(None).await {
        Err(error) => {
            let may_pass = matches!(&error, PollError::Http(error) if is_transient(error));
            report.tell_with("api", Err(explained(&error)), json!({ "may_pass": may_pass }))?;
            if matches!(error, PollError::Page(PageError::More { .. }))
                && api.next_page() == NextPage::Link
                && let Some(advice) = way_on(api).await
            {
                report.tell("paging", Err(advice))?;
            }
        }
        Ok(snapshot) => {
            let snapshot = snapshot.expect("nothing was said of a last one that could be unchanged");
            tell_of_api(&mut report, api, &snapshot, surroundings.poll_interval).await?;
        }
    }
    let (aws, doors) = reach().await;
    report.tell("aws", aws)?;
    let Some((archive, queue)) = doors else { return Ok(report.is_well) };
    let end = end(&archive).await;
    let mut pointer = Pointer::to_nothing(surroundings.stream);
    let mut took = "a pointer to nothing, which transformers throw away";
    match &end {
        Err(why) => report.tell("archive", Err(why.clone()))?,
        Ok(None) => report.tell("archive", Ok("it is empty".into()))?,
        Ok(Some(end)) => {
            (pointer, took) = (
                Pointer::new(surroundings.stream, end.sequence, &end.metadata),
                "the pointer to the archive's end again",
            );
            let fetched_at = end.metadata.fetched_at;
            report.tell("archive", Ok(format!("it ends at sequence {}, fetched at {fetched_at:.0}", end.sequence)))?;
        }
    }
    if end.is_ok() {
        let proven =
            archive.prove().await.map(|()| "the role may append, and a number that is taken is refused".to_owned());
        report.tell("append", proven.map_err(|error| chain(&error)))?;
    }
    let told = queue.announce(&[pointer]).await;
    report.tell("queue", told.map(|()| format!("it took {took}")).map_err(|error| chain(&error)))?;
    Ok(report.is_well)
}

/// What a person should know of a collection that came whole by what its answers say.
async fn tell_of_api<W: Write>(
    report: &mut Report<'_, W>,
    api: &Api,
    snapshot: &Snapshot,
    poll_interval: Duration,
) -> anyhow::Result<()> {
    let Snapshot { pages, records, facts, .. } = snapshot;
    let bytes = pages.iter().map(|page| page.upload.bytes).sum();
    let in_pages = if pages.len() == 1 { "1 page".to_owned() } else { format!("{} pages", pages.len()) };
    let page = pages.first().and_then(|page| read(&page.upload));
    let at = api.records_at();
    let all = page.as_ref().map_or(&[][..], |page| records_of(page, &at));
    let ids = likely_ids(all);
    let mut says = format!("it answered with {records} records in {in_pages}, {bytes} bytes, and SPOOL_DIR took them");
    if !ids.is_empty() {
        let shown: Vec<_> = ids.iter().take(SHOWN_IDS).map(String::as_str).collect();
        says = format!("{says}; each may be known by {}", shown.join(" or "));
    }
    let found = if facts.torn {
        Err(format!("{says}; the collection did not hold still, so records may be missing"))
    } else {
        Ok(says)
    };
    report.tell_with("api", found, json!({ "ids": ids, "record": all.first() }))?;
    if pages.len() == 1 && api.next_page() != NextPage::None {
        let found = match find_more(api, page.as_ref(), &at).await {
            Ok(Verdict::More(advice)) => Err(format!("this is not all. {advice}")),
            Ok(Verdict::Nothing) => Ok("one page seems to be all: no usual parameter brought other records".to_owned()),
            Ok(Verdict::NotTried(why)) => Ok(format!("whether this is all was not tried, since {why}")),
            Err(error) => Err(explained(&error)),
        };
        report.tell("paging", found)?;
    }
    let most = bytes_a_day(bytes, poll_interval);
    report.tell("growth", Ok(format!("at most {most} bytes a day, if each poll brings new records")))
}

/// What brings the rest of a collection that shows more than it leads to.
async fn way_on(api: &Api) -> Option<String> {
    let page = read(&api.peek(&api.first().ok()?).await.ok()?.upload);
    match find_more(api, page.as_ref(), &api.records_at()).await {
        Ok(Verdict::More(advice)) => Some(advice),
        _ => None,
    }
}

/// An error, with how long the API asks to wait, or where the records are likely to be instead.
pub fn explained(error: &PollError) -> String {
    let said = chain(error);
    if let PollError::Http(error) = error
        && let Some(wait) = refusal(error).and_then(|refusal| refusal.wait)
    {
        let wait = match wait.as_secs_f64().ceil() {
            3600.0.. => "an hour or more".to_owned(),
            seconds => format!("{seconds} s"),
        };
        return format!("{said}; it asks to wait {wait}");
    }
    let PollError::Http(HttpError::NotTheData { source: SpoolError::NoRecords { upload, .. }, .. }) = error else {
        return said;
    };
    let page = read(upload);
    match page.as_ref().and_then(|page| likely_records(page)) {
        Some((at, records)) if !at.is_empty() => {
            let ids = likely_ids(records);
            let ids = ids.first().map(|id| format!(", whose records may be known by {id}")).unwrap_or_default();
            format!("{said}; try RECORDS_AT={at}{ids}")
        }
        _ if page.as_ref().is_some_and(is_map) => {
            format!(
                "{said}; its members seem to be records by their ids, and such an object is not taken: have the API send an array"
            )
        }
        _ => said,
    }
}

async fn end(archive: &impl Archive) -> Result<Option<End>, String> {
    let Some(sequence) = archive.end().await.map_err(|error| chain(&error))? else { return Ok(None) };
    let head = archive.head(sequence).await.map_err(|error| chain(&error))?;
    Ok(head.map(|head| End { sequence, metadata: head.metadata }))
}
