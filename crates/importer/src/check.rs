//! `importer check`: is everything that the importer needs reachable and permitted?
//!
//! It writes nothing: the right to append is tried on a number that is taken, and the bell is rung for an object that was
//! announced before, or, without one, for an object that will never be.

use std::{io::Write, path::Path, time::Duration};

use shared::{
    archive::{Append, Archive},
    object::{Sequence, StreamName},
    pointer::Pointer,
    telemetry::chain,
};

use crate::{bell::Bell, decide::End, poll::Source, run::bytes_a_day, spool::Spool};

/// Looks at each dependency and writes a line for it. Whether all is well.
pub async fn check(
    source: &impl Source,
    archive: &impl Archive,
    bell: &impl Bell,
    stream: &StreamName,
    poll_interval: Duration,
    spool_dir: &Path,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let mut is_well = true;
    let mut tell = |what: &str, found: Result<String, String>| {
        is_well &= found.is_ok();
        let word = if found.is_ok() { "ok" } else { "PROBLEM" };
        writeln!(out, "{what:<8}  {word:<7}  {}", found.unwrap_or_else(|problem| problem))
    };
    match source.poll(None).await {
        Err(error) => tell("api", Err(chain(&error)))?,
        Ok(pages) => {
            let pages = pages.expect("nothing was said of a last one that could be unchanged");
            let bytes = pages.iter().map(|page| page.spooled.upload.bytes).sum();
            let count = if pages.len() == 1 { "1 page".to_owned() } else { format!("{} pages", pages.len()) };
            tell("api", Ok(format!("it answered with a collection of {count}, {bytes} bytes, and SPOOL_DIR took it")))?;
            let most = bytes_a_day(bytes, poll_interval);
            tell("growth", Ok(format!("at most {most} bytes a day, if each poll brings another answer")))?;
        }
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
            tell("append", may_append(archive, end, spool_dir).await)?;
        }
    }
    let rung = bell.ring(&[pointer]).await;
    tell("queue", rung.map(|()| format!("it took {took}")).map_err(|error| chain(&error)))?;
    Ok(is_well)
}

async fn end(archive: &impl Archive) -> Result<Option<End>, String> {
    let Some(sequence) = archive.end().await.map_err(|error| chain(&error))? else { return Ok(None) };
    let head = archive.head(sequence).await.map_err(|error| chain(&error))?;
    Ok(head.map(|head| End { sequence, metadata: head.metadata }))
}

/// Tries to write the newest object once more, as it is: S3 looks at the rights first, then refuses the number. A server that does
/// not know `If-None-Match` loses nothing by it.
async fn may_append(archive: &impl Archive, end: &End, spool_dir: &Path) -> Result<String, String> {
    let End { sequence, metadata } = end;
    let object = archive.get(*sequence).await.map_err(|error| chain(&error))?;
    let Some(object) = object.filter(|object| object.metadata == *metadata) else {
        return Err("the archive's end is gone, or another one now: who else writes to it?".to_owned());
    };
    let mut spool = Spool::new(spool_dir, u64::MAX).map_err(|error| chain(&error))?;
    let spooled = spool.keep(object.body).await.map_err(|error| chain(&error))?;
    match archive.append(*sequence, metadata, &spooled.upload).await {
        Ok(Append::Taken) => Ok("the role may append, and a number that is taken is refused".to_owned()),
        Ok(Append::Done) => Err(overwritten(*sequence)),
        Err(error) => Err(chain(&error)),
    }
}

fn overwritten(sequence: Sequence) -> String {
    format!("this S3 server ignores `If-None-Match: *`: it took sequence {sequence} twice. It cannot hold an archive")
}
