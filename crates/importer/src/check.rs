//! `importer check`: is everything that the importer needs reachable and permitted?
//!
//! It writes nothing: the right to append is tried on a number that is taken, and the bell is rung for an object that was
//! announced before, or, without one, for an object that will never be.

use std::{fmt, io::Write, time::Duration};

use shared::{
    archive::{Append, Archive, Upload},
    object::{Sequence, StreamName},
    pointer::Pointer,
    telemetry::chain,
};

use crate::{
    bell::Bell,
    decide::End,
    poll::{Polled, Source, Validators},
    run::bytes_a_day,
};

/// What was looked at, and what came of it.
struct Finding {
    what: &'static str,
    result: Result<String, String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, text) = match &self.result {
            Ok(text) => ("ok", text),
            Err(text) => ("PROBLEM", text),
        };
        write!(f, "{:<8}  {word:<7}  {text}", self.what)
    }
}

/// Looks at each dependency and writes a line for it. Whether all is well.
pub async fn check(
    source: &impl Source,
    archive: &impl Archive,
    bell: &impl Bell,
    stream: &StreamName,
    poll_interval: Duration,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let mut is_well = true;
    let mut tell = |what, result: Result<String, String>| {
        is_well &= result.is_ok();
        writeln!(out, "{}", Finding { what, result })
    };
    let polled = source.poll(&Validators::default()).await;
    tell("api", polled.as_ref().map(describe).map_err(|error| chain(error)))?;
    if let Ok(Polled::Snapshot(pages)) = &polled {
        let bytes = pages.iter().map(|page| page.spooled.upload.bytes).sum();
        let most = bytes_a_day(bytes, poll_interval);
        tell("growth", Ok(format!("at most {most} bytes a day, if each poll brings another answer")))?;
    }
    let end = end(archive).await;
    let (mut pointer, mut took) = (Pointer::to_nothing(stream), "a pointer to nothing, which transformers throw away");
    match &end {
        Err(why) => tell("archive", Err(why.clone()))?,
        Ok(None) => {
            tell("archive", Ok("it is empty; whether it may be appended to shows with the first object".into()))?;
        }
        Ok(Some(end)) => {
            (pointer, took) =
                (Pointer::new(stream, end.sequence, &end.metadata), "the pointer to the archive's end again");
            let fetched_at = end.metadata.fetched_at;
            tell("archive", Ok(format!("it ends at sequence {}, fetched at {fetched_at:.0}", end.sequence)))?;
            tell("append", may_append(archive, end).await)?;
        }
    }
    let rung = bell.ring(&[pointer]).await;
    tell("queue", rung.map(|()| format!("it took {took}")).map_err(|error| chain(&error)))?;
    Ok(is_well)
}

fn describe(polled: &Polled) -> String {
    match polled {
        Polled::NotModified => "it answered 304 without being asked to".to_owned(),
        Polled::Snapshot(pages) => {
            let bytes: u64 = pages.iter().map(|page| page.spooled.upload.bytes).sum();
            let pages = if pages.len() == 1 { "1 page".to_owned() } else { format!("{} pages", pages.len()) };
            format!("it answered with a collection of {pages}, {bytes} bytes, and SPOOL_DIR took it")
        }
    }
}

async fn end(archive: &impl Archive) -> Result<Option<End>, String> {
    let Some(sequence) = archive.end().await.map_err(|error| chain(&error))? else { return Ok(None) };
    let head = archive.head(sequence).await.map_err(|error| chain(&error))?;
    Ok(head.map(|head| End { sequence, metadata: head.metadata }))
}

/// Tries to write the newest object once more, without a body. S3 looks at the rights first, then refuses the number.
async fn may_append(archive: &impl Archive, End { sequence, metadata }: &End) -> Result<String, String> {
    let nothing = tempfile::tempfile().map_err(|error| error.to_string())?;
    let upload = Upload { file: nothing.into(), offset: 0, bytes: 0 };
    match archive.append(*sequence, metadata, &upload).await {
        Ok(Append::Taken) => Ok("the role may append, and a number that is taken is refused".to_owned()),
        Ok(Append::Done) => Err(overwritten(*sequence)),
        Err(error) => Err(chain(&error)),
    }
}

fn overwritten(sequence: Sequence) -> String {
    format!("this S3 server ignores `If-None-Match: *`: it took sequence {sequence} twice. It cannot hold an archive")
}
