//! What every part says of itself at one time: the API, both daemons, the archive, the queue, the table and its ledger.

use anyhow::{Context, Result};
use aws_sdk_sqs::types::QueueAttributeName::{ApproximateNumberOfMessages, ApproximateNumberOfMessagesNotVisible};
use axum::http::header;
use serde_json::{Value, json};
use shared::object::{self, Sequence};

use super::{Page, within};
use crate::daemon::Daemon;

/// As many as a station has room for.
const SHOWN_OBJECTS: u64 = 5;

impl Page {
    /// All parts side by side; one that does not answer says why, and does not keep the others from being shown.
    pub(super) async fn look(&self) -> Value {
        let told = |look: Result<Value>| look.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        let (api, importer, archive, queue, transformer, table, ledger) = tokio::join!(
            within(self.api()),
            self.daemon(&self.sandbox.importer),
            within(self.archive()),
            within(self.queue()),
            self.daemon(&self.sandbox.transformer),
            within(self.table()),
            within(self.ledger()),
        );
        json!({
            "api": told(api), "importer": importer, "archive": told(archive), "queue": told(queue),
            "transformer": transformer, "table": told(table), "ledger": told(ledger),
        })
    }

    async fn api(&self) -> Result<Value> {
        if self.sandbox.is_own_api() {
            // Not asked: the importer asks it, and its owner serves it.
            let every = self.sandbox.settings().get("POLL_INTERVAL");
            return Ok(json!({"address": self.sandbox.source_url(), "every": every}));
        }
        let response = self.client.head(self.sandbox.api.url()).send().await?.error_for_status()?;
        let etag = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok());
        Ok(json!({"posts": self.sandbox.api.len(), "etag": etag}))
    }

    async fn daemon(&self, daemon: &Daemon) -> Value {
        let (readiness, metrics) = tokio::join!(daemon.readiness(&self.client), self.metrics(daemon));
        let (state, dependencies) = match readiness {
            Ok(readiness) => (readiness.state, readiness.dependencies),
            Err(_) if daemon.pid().is_some() => ("starting".to_owned(), Vec::new()),
            Err(_) => ("down".to_owned(), Vec::new()),
        };
        // One that does not answer has no figures; its state says the rest.
        let figures = metrics.map(|text| Figures::of(&text)).unwrap_or_default();
        json!({
            "pid": daemon.pid(), "restarts": daemon.restarts(), "state": state,
            "dependencies": dependencies.iter().map(|(name, state)| json!({"name": name, "state": state})).collect::<Vec<_>>(),
            "memory_bytes": figures.memory_bytes, "retries": figures.retries,
        })
    }

    async fn metrics(&self, daemon: &Daemon) -> Result<String> {
        let answer = self.client.get(format!("{}/metrics", daemon.admin_url())).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    async fn archive(&self) -> Result<Value> {
        let (end, stream) = (self.sandbox.end().await?, self.sandbox.stream());
        let after = Sequence::try_from(end.saturating_sub(SHOWN_OBJECTS)).ok().map(|sequence| sequence.key(stream));
        let request = self.sandbox.s3().list_objects_v2().bucket(self.sandbox.bucket());
        let listed = request.prefix(object::prefix(stream)).set_start_after(after).send().await?;
        let objects = listed.contents().iter().filter_map(|object| {
            let key = object.key()?;
            let at = object.last_modified()?.to_millis().ok()?;
            Some(json!({"sequence": Sequence::from_key(key, stream)?, "key": key, "bytes": object.size(), "at": at}))
        });
        Ok(json!({"end": end, "objects": objects.collect::<Vec<_>>()}))
    }

    async fn queue(&self) -> Result<Value> {
        let request = self.sandbox.sqs().get_queue_attributes().queue_url(self.sandbox.queue_url());
        let (waiting, in_flight) = (ApproximateNumberOfMessages, ApproximateNumberOfMessagesNotVisible);
        let answer = request.attribute_names(waiting.clone()).attribute_names(in_flight.clone()).send().await?;
        let count = |name| answer.attributes()?.get(name)?.parse::<u64>().ok();
        Ok(json!({"waiting": count(&waiting), "in_flight": count(&in_flight)}))
    }

    async fn table(&self) -> Result<Value> {
        Ok(json!({"position": self.sandbox.position().await?, "rows": self.sandbox.count().await?}))
    }

    async fn ledger(&self) -> Result<Value> {
        let found: Vec<(String,)> = self.sandbox.query(&self.in_schema(include_str!("ledger.sql"))).await?;
        let (document,) = found.first().context("a statement without FROM has one row")?;
        Ok(serde_json::from_str(document)?)
    }
}

/// What the page shows of a daemon's metrics; nothing where it does not have them.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    memory_bytes: Option<f64>,
    /// Of all dependencies, since the process began.
    retries: Option<f64>,
}

impl Figures {
    fn of(text: &str) -> Self {
        let mut figures = Self::default();
        for (series, value) in text.lines().filter_map(|line| line.rsplit_once(' ')) {
            let Ok(value) = value.parse::<f64>() else { continue };
            match series.split('{').next() {
                Some("process_resident_memory_bytes") => figures.memory_bytes = Some(value),
                Some("pipeline_retries_total") => *figures.retries.get_or_insert_default() += value,
                _ => {}
            }
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_summed_over_their_labels_and_missing_ones_stay_unknown() {
        let text = "# HELP pipeline_retries_total Calls again.\n# TYPE pipeline_retries_total counter\n\
            pipeline_retries_total{stream=\"posts\",dependency=\"archive\"} 2\npipeline_retries_total{dependency=\"queue\"} 3\n\
            pipeline_retries_total_of_another 7\nprocess_resident_memory_bytes 14336000\ntransformer_lag_seconds NaN\n";
        assert_eq!(Figures::of(text), Figures { memory_bytes: Some(14_336_000.0), retries: Some(5.0) });
        assert_eq!(Figures::of("<html>no such page</html>\n"), Figures::default());
    }
}
