//! One search finds one observation: the log lines of both daemons, its line in the ledger and its metadata in the archive.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use shared::{archive::Archive, object::Sequence};
use sqlx::AssertSqlSafe;
use tokio::fs;

use super::{Page, within};

/// A shorter part would be found almost everywhere.
const LEAST_CHARACTERS: usize = 4;

/// More than these, the newest, nobody reads through: a longer part finds less.
const SHOWN_MATCHES: usize = 50;

/// Answers with the observations whose ids have this part, and with all that is known of it where there is one.
pub(super) async fn trace(State(page): State<Arc<Page>>, Path(part): Path<String>) -> Response {
    let part = part.trim().to_ascii_lowercase();
    if part.len() < LEAST_CHARACTERS || !part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return (StatusCode::BAD_REQUEST, "a search takes at least four of 0-9, a-f and dashes\n").into_response();
    }
    match within(page.find(&part)).await {
        Ok(found) => Json(found).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

impl Page {
    async fn find(&self, part: &str) -> Result<Value> {
        let ledger = self.ledger_lines(part).await.context("the ledger cannot be read")?;
        let log = self.log_lines(part).await?;
        let ids = ledger.iter().chain(&log).filter_map(|line| line["observation"].as_str());
        let ids: BTreeSet<&str> = ids.filter(|id| id.contains(part)).collect();
        let sequence_of = |id: &str| {
            let mut lines = ledger.iter().chain(&log).filter(|line| line["observation"] == id);
            lines.find_map(|line| number(&line["sequence"]))
        };
        // Their ids begin with the time.
        let newest = ids.iter().rev().take(SHOWN_MATCHES);
        let matches = newest.map(|id| json!({"observation": id, "sequence": sequence_of(id)})).collect::<Vec<_>>();
        let found = match ids.first() {
            Some(id) if ids.len() == 1 => json!({
                "observation": id, "sequence": sequence_of(id), "ledger": ledger.first(),
                "metadata": self.metadata(id, sequence_of(id)).await.context("the archive does not answer")?,
                "log": log.iter().filter(|line| line["observation"] == *id).collect::<Vec<_>>(),
            }),
            _ => Value::Null,
        };
        Ok(json!({"matches": matches, "found": found}))
    }

    async fn ledger_lines(&self, part: &str) -> Result<Vec<Value>> {
        let statement = AssertSqlSafe(self.in_schema(include_str!("trace.sql")));
        // A connection of its own: the one that is kept takes no parameters, and people search seldom.
        let mut connection = self.sandbox.connect().await?;
        let lines: Vec<(String,)> = sqlx::query_as(statement).bind(part).fetch_all(&mut connection).await?;
        lines.iter().map(|(line,)| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Of both daemons, in the order of time; each says `who` wrote it.
    async fn log_lines(&self, part: &str) -> Result<Vec<Value>> {
        let mut found = Vec::new();
        for daemon in [&self.sandbox.importer, &self.sandbox.transformer] {
            // Not there before the first start.
            let text = fs::read_to_string(daemon.log()).await.unwrap_or_default();
            for line in text.lines().filter(|line| line.contains(part)) {
                // One that is no JSON, such as a panic, names no observation.
                let Ok(mut line) = serde_json::from_str::<Value>(line) else { continue };
                line["who"] = daemon.name().into();
                found.push(line);
            }
        }
        found.sort_by_key(|line| line["timestamp"].as_str().map(str::to_owned));
        Ok(found)
    }

    /// What S3 has, if the object of this number is that of this observation.
    async fn metadata(&self, observation: &str, sequence: Option<u64>) -> Result<Option<BTreeMap<String, String>>> {
        let Some(sequence) = sequence else { return Ok(None) };
        let head = self.sandbox.archive().head(Sequence::try_from(sequence)?).await?;
        let metadata = head.map(|head| head.metadata).filter(|it| it.observation.to_string() == observation);
        Ok(metadata.map(|metadata| metadata.encode()).transpose()?.map(BTreeMap::from_iter))
    }
}

/// The daemons log numbers also as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}
