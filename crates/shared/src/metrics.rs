//! Numbers for Prometheus: how they are made, and the text that /metrics serves.
//!
//! Names and units follow <https://prometheus.io/docs/practices/naming/>. Each label has a closed set of values, which are there from
//! the start, so that a rate knows the first event from none. What both daemons count begins with `pipeline_`, what one of them counts
//! with its name. Counting is a few nanoseconds; nothing is served unless ADMIN_ADDR asks for it.

use jiff::Timestamp;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, PullingGauge, TextEncoder,
    core::Collector, register,
};

use crate::settings::{GIT_REVISION, RELEASE};

/// From a row to a body of a gigabyte.
const SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

const ONCE: &str = "a name is used once, and is well formed";

/// Events.
pub fn counter(name: &str, help: &str) -> IntCounter {
    registered(IntCounter::new(name, help).expect(ONCE))
}

/// Events, one number for each value of the label.
pub fn counters(name: &str, help: &str, label: &str, values: &[&str]) -> IntCounterVec {
    let counters = registered(IntCounterVec::new(Opts::new(name, help), &[label]).expect(ONCE));
    for value in values {
        counters.with_label_values(&[value]);
    }
    counters
}

/// A number that goes up and down.
pub fn gauge(name: &str, help: &str) -> IntGauge {
    registered(IntGauge::new(name, help).expect(ONCE))
}

/// The same, one for each value of the label.
pub fn gauges(name: &str, help: &str, label: &str, values: &[&str]) -> IntGaugeVec {
    let gauges = registered(IntGaugeVec::new(Opts::new(name, help), &[label]).expect(ONCE));
    for value in values {
        gauges.with_label_values(&[value]);
    }
    gauges
}

/// A number that is looked up when it is asked for.
pub fn looked_up(name: &str, help: &str, look: fn() -> f64) {
    registered(PullingGauge::new(name, help, Box::new(look)).expect(ONCE));
}

/// How long stages take.
pub fn stages(name: &str, help: &str, values: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
    let stages = registered(HistogramVec::new(options, &["stage"]).expect(ONCE));
    for value in values {
        stages.with_label_values(&[value]);
    }
    stages
}

fn registered<C: Collector + Clone + 'static>(collector: C) -> C {
    register(Box::new(collector.clone())).expect(ONCE);
    collector
}

/// Says which program this is, and since when.
pub fn name_the_program(program: &str) {
    let labels = [("program", program), ("version", RELEASE), ("revision", GIT_REVISION)];
    let options = labels.iter().fold(
        Opts::new("pipeline_build_info", "1; the labels say which program this is"),
        |options, (label, value)| options.const_label(*label, *value),
    );
    registered(IntGauge::with_opts(options).expect(ONCE)).set(1);
    // The process' own figure needs more of /proc than a hardened unit shows.
    gauge("pipeline_start_timestamp_seconds", "When the daemon started").set(Timestamp::now().as_second());
}

/// All of it, in the text format 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
pub fn text() -> String {
    TextEncoder::new().encode_to_string(&prometheus::gather()).unwrap_or_else(|error| format!("# {error}\n"))
}
