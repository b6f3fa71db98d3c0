//! `importer list`: the archive as a table, an object a line.

use std::io::{self, Write};

use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use shared::{
    archive::{Archive, ArchiveError, Head, S3Archive},
    object::{Sequence, SnapshotKind, StreamName},
    settings::parse_sequence,
    telemetry::chain,
};

/// HEAD requests under way at once: S3 answers one in some 20 ms, so this lists a few hundred objects a second.
const CONCURRENCY: usize = 16;

/// Which part, and in which form.
#[derive(Args, Clone, Copy, Debug)]
pub struct ListSettings {
    /// The first sequence to list [default: the oldest that is kept]
    #[arg(long, value_name = "SEQUENCE", value_parser = parse_sequence)]
    pub from: Option<Sequence>,
    /// The last sequence to list [default: the end of the archive]
    #[arg(long, value_name = "SEQUENCE", value_parser = parse_sequence)]
    pub to: Option<Sequence>,
    /// Writes a JSON object a line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Writes the objects in their order; one that is missing inside the archive or not ours is a line that says so.
pub async fn list(
    settings: ListSettings,
    archive: &S3Archive,
    stream: &StreamName,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let Some(end) = archive.end().await? else {
        if !settings.json {
            writeln!(out, "the archive of {stream} is empty")?;
        }
        return Ok(());
    };
    let from = match settings.from {
        Some(from) => from,
        None => archive.oldest().await?.unwrap_or(Sequence::FIRST),
    };
    let from = from.get();
    let to = settings.to.unwrap_or(end).min(end).get();
    if !settings.json {
        writeln!(
            out,
            "{:>12}  {:<20}  {:>13}  {:>9}  {:<36}  etag",
            "sequence", "time", "bytes", "page", "observation"
        )?;
    }
    let heads = stream::iter(from..=to).map(async |number| {
        let sequence = Sequence::try_from(number)?;
        let head = match archive.head(sequence).await {
            Err(ArchiveError::Foreign { source, .. }) => Err(chain(&source)),
            head => head?.ok_or_else(|| "missing".to_owned()),
        };
        anyhow::Ok((sequence, head))
    });
    let mut heads = Box::pin(heads.buffered(CONCURRENCY));
    while let Some((sequence, head)) = heads.try_next().await? {
        let line = if settings.json { as_json(sequence, stream, head) } else { as_row(sequence, head) };
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

fn as_row(sequence: Sequence, head: Result<Head, String>) -> String {
    let Head { metadata, bytes } = match head {
        Ok(head) => head,
        Err(problem) => return format!("{sequence:>12}  {problem}"),
    };
    let page = format!("{}{}", metadata.page, if metadata.last_page { "" } else { " …" });
    let etag = metadata.etag.as_deref().unwrap_or("-");
    format!(
        "{:>12}  {:<20.0}  {bytes:>13}  {page:>9}  {:<36}  {etag}",
        sequence.get(),
        metadata.fetched_at,
        metadata.observation
    )
}

fn as_json(sequence: Sequence, stream: &StreamName, head: Result<Head, String>) -> String {
    let key = sequence.key(stream);
    let value = match head {
        Err(problem) => json!({ "sequence": sequence, "key": key, "problem": problem }),
        Ok(Head { metadata, bytes }) => json!({
            "sequence": sequence,
            "key": key,
            "fetched_at": metadata.fetched_at,
            "bytes": bytes,
            "page": metadata.page,
            "last_page": metadata.last_page,
            "snapshot": metadata.snapshot,
            "kind": metadata.facts.kind.map(SnapshotKind::word),
            "torn": metadata.facts.torn,
            "etag": metadata.etag,
            "sha256": metadata.sha256,
            "observation": metadata.observation,
            "previous": metadata.previous,
            "source_url": metadata.source_url,
        }),
    };
    value.to_string()
}

/// Whether the reader closed the pipe that the list goes to, as `head` does: no failure of ours.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
