//! `transformer quarantine`: what is not among the rows, and why.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;
use shared::object::Sequence;
use sqlx::{PgConnection, Row};

use crate::{
    postgres::{connect::within, fault::TableError},
    read::row::to_bigint,
};

const READ: &str = "read the quarantine of";

/// What to look at.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum QuarantineCommand {
    /// Lists the quarantined records, and the objects that were quarantined as a whole, the newest first
    List(ListSettings),
    /// Writes the bytes of a quarantined record to stdout
    Show(ShowSettings),
}

/// How much, and in which form.
#[derive(Args, Clone, Copy, Debug)]
pub struct ListSettings {
    /// How many to list
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: u32,
    /// Writes a JSON object a line instead of a table
    #[arg(long)]
    json: bool,
}

/// Which record.
#[derive(Args, Clone, Copy, Debug)]
pub struct ShowSettings {
    /// The object's sequence
    #[arg(value_parser = shared::settings::parse_sequence)]
    sequence: Sequence,
    /// The record's place in it, from 0
    #[arg(value_parser = clap::value_parser!(u64).range(..1 << 63))]
    index: u64,
}

/// Does it.
pub async fn quarantine(
    command: QuarantineCommand,
    connection: &mut PgConnection,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match command {
        QuarantineCommand::List(settings) => list(settings, connection, out).await,
        QuarantineCommand::Show(settings) => show(settings, connection, out).await,
    }
}

async fn list(settings: ListSettings, connection: &mut PgConnection, out: &mut impl Write) -> anyhow::Result<()> {
    let select = sqlx::query(include_str!("../sql/select_quarantine.sql")).bind(i64::from(settings.limit));
    let rows = within(READ, select.fetch_all(connection)).await.map_err(TableError::of_our_tables)?;
    if !settings.json {
        writeln!(out, "{:>12}  {:>9}  {:>20}  reason", "sequence", "index", "id")?;
    }
    for row in &rows {
        let (sequence, index, id, reason): (i64, Option<i64>, Option<String>, String) =
            (row.try_get("sequence")?, row.try_get("index")?, row.try_get("id")?, row.try_get("reason")?);
        if settings.json {
            writeln!(out, "{}", json!({ "sequence": sequence, "index": index, "id": id, "reason": reason }))?;
        } else {
            let index = index.map_or("object".to_owned(), |index| index.to_string());
            let id = id.unwrap_or_else(|| "-".to_owned());
            writeln!(out, "{sequence:>12}  {index:>9}  {id:>20}  {reason}")?;
        }
    }
    Ok(())
}

async fn show(settings: ShowSettings, connection: &mut PgConnection, out: &mut impl Write) -> anyhow::Result<()> {
    let select = sqlx::query_scalar(include_str!("../sql/select_quarantined_record.sql"))
        .bind(to_bigint(settings.sequence.get()))
        .bind(to_bigint(settings.index));
    let raw: Option<Vec<u8>> =
        within(READ, select.fetch_optional(connection)).await.map_err(TableError::of_our_tables)?;
    let ShowSettings { sequence, index } = settings;
    let raw = raw.ok_or_else(|| {
        anyhow::anyhow!("record {index} of object {sequence} is not quarantined: see `transformer quarantine list`")
    })?;
    out.write_all(&raw)?;
    Ok(writeln!(out)?)
}
