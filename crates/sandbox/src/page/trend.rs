//! The last ten minutes in steps of ten seconds: what was loaded, as the ledger says, and how far the table was behind the archive.
//!
//! The lag is nowhere written down, so it is looked at every second, whether a person watches or not: a page that is opened after a fault
//! still shows it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::{archive::Archive, object::Sequence};
use tokio::time::{MissedTickBehavior, interval};

use super::{Page, within};
use crate::sandbox::Sandbox;

/// As in `rates.sql`.
const STEP_SECS: i64 = 10;
const STEPS: i64 = 60;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far the table is behind the archive.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Lag {
    objects: u64,
    /// How long the oldest object that is not applied has waited since its fetch; 0 where there is none.
    seconds: f64,
}

/// The worst lag of each step; no entry where nobody could look.
#[derive(Debug, Default)]
struct Lags(BTreeMap<i64, Lag>);

/// A row of `rates.sql`: step, objects, rows, bytes.
type Rate = (Option<i64>, i64, i64, i64);

/// Looks until the runtime ends.
pub(super) async fn follow(page: Arc<Page>) {
    let mut lags = Lags::default();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let lag = within(look(&page.sandbox)).await;
        let end = Timestamp::now().as_second() / STEP_SECS;
        if let Ok(lag) = lag {
            lags.note(end, lag);
        }
        page.trend.send_replace(told(&page, &lags, end, lag).await);
    }
}

async fn look(sandbox: &Sandbox) -> Result<Lag> {
    // In this order an object that arrives meanwhile is one too many for a moment; in the other the table would seem to be ahead.
    let position = sandbox.position().await?;
    let objects = sandbox.end().await?.saturating_sub(position);
    if objects == 0 {
        return Ok(Lag::default());
    }
    let oldest = sandbox.archive().head(Sequence::try_from(position + 1)?).await?;
    let seconds = oldest.map_or(0.0, |head| Timestamp::now().duration_since(head.metadata.fetched_at).as_secs_f64());
    Ok(Lag { objects, seconds: seconds.max(0.0) })
}

async fn told(page: &Page, lags: &Lags, end: i64, lag: Result<Lag>) -> Value {
    match within(page.sandbox.query(&page.in_schema(include_str!("rates.sql"))))
        .await
        .and_then(|rates| Ok((rates, lag?)))
    {
        Ok((rates, lag)) => figures(&rates, lags, end, lag),
        Err(error) => json!({"error": format!("{error:#}")}),
    }
}

/// Every figure as it is now, and at each step until now.
fn figures(rates: &[Rate], lags: &Lags, end: i64, lag: Lag) -> Value {
    let steps = || end - STEPS + 1..=end;
    let rate = |value: fn(&Rate) -> i64| {
        let of = |step| rates.iter().find(|rate| rate.0 == step).map_or(0, value);
        json!({"now": of(None), "steps": steps().map(|step| of(Some(step))).collect::<Vec<_>>()})
    };
    let worst = |value: fn(&Lag) -> Value| json!({"now": value(&lag), "steps": steps().map(|step| lags.0.get(&step).map(value)).collect::<Vec<_>>()});
    json!({
        "end": end * STEP_SECS, "step_secs": STEP_SECS,
        "objects": rate(|rate| rate.1), "rows": rate(|rate| rate.2), "bytes": rate(|rate| rate.3),
        "lag_objects": worst(|lag| lag.objects.into()), "lag_seconds": worst(|lag| lag.seconds.into()),
    })
}

impl Lags {
    fn note(&mut self, step: i64, lag: Lag) {
        let worst = self.0.entry(step).or_default();
        *worst = Lag { objects: worst.objects.max(lag.objects), seconds: worst.seconds.max(lag.seconds) };
        self.0.retain(|kept, _| *kept > step - STEPS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_keeps_its_worst_lag_and_an_unseen_one_stays_unknown() {
        let (mut lags, worst) = (Lags::default(), Lag { objects: 3, seconds: 1.5 });
        lags.note(100, Lag::default());
        lags.note(102, worst);
        lags.note(102, Lag { objects: 1, seconds: 0.5 });
        let rates = [(Some(102), 2, 20, 200), (None, 5, 50, 500)];
        let figures = figures(&rates, &lags, 102, Lag::default());
        let last = |name: &str| figures[name]["steps"].as_array().unwrap()[57..].to_vec();
        assert_eq!(last("lag_objects"), [json!(0), Value::Null, json!(3)]);
        assert_eq!(last("lag_seconds"), [json!(0.0), Value::Null, json!(1.5)]);
        assert_eq!((last("rows"), &figures["rows"]["now"]), (vec![json!(0), json!(0), json!(20)], &json!(50)));
        assert_eq!(figures["lag_objects"]["now"], 0);
    }

    #[test]
    fn what_is_older_than_ten_minutes_is_forgotten() {
        let mut lags = Lags::default();
        for step in 0..1000 {
            lags.note(step, Lag::default());
        }
        assert_eq!((lags.0.len(), lags.0.first_key_value().unwrap().0), (60, &940));
    }
}
