//! What was measured, beside what, and whether the goal is met: a table for people, JSON for programs.

use std::{
    collections::HashMap,
    fmt::{self, Display, Formatter},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Serialize;

/// The samples of each round by name, and the figures that were made of them.
#[derive(Debug, Default)]
pub(super) struct Report {
    heading: String,
    /// Whether samples count in this round.
    is_counted: bool,
    samples: HashMap<String, Vec<f64>>,
    figures: Vec<Figure>,
}

/// What the ratio has to be, or the value where there is nothing beside it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// A line of the table.
#[derive(Debug, PartialEq, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// What it is measured beside.
    reference: Option<String>,
    /// The median of the rounds' ratios, which is not the ratio of the medians.
    ratio: Option<f64>,
    goal: Option<String>,
    met: Option<bool>,
}

impl Report {
    pub(super) fn new(heading: String) -> Self {
        Self { heading, ..Self::default() }
    }

    /// A round begins. Round 0 pays for cold caches and is not counted.
    pub(super) fn begin(&mut self, what: &str, round: usize) {
        eprintln!("{what}: round {round}");
        self.is_counted = round > 0;
    }

    /// One measurement of this round.
    pub(super) fn sample(&mut self, name: &str, value: f64) {
        eprintln!("  {name}: {}", three_digits(value));
        if self.is_counted {
            self.samples.entry(name.to_owned()).or_default().push(value);
        }
    }

    /// A line, of samples that were taken under this name and, for the ratio, under that of the reference in the same rounds. What could
    /// not be measured on this machine has none.
    pub(super) fn figure(&mut self, name: &str, unit: &'static str, reference: Option<&str>, goal: Option<Goal>) {
        let Some(values) = self.samples.get(name) else { return };
        let beside = reference.and_then(|reference| self.samples.get(reference));
        let ratio = beside.map(|beside| median(values.iter().zip(beside).map(|(value, beside)| value / beside)));
        let value = median(values.iter().copied());
        let judged = ratio.unwrap_or(value);
        self.figures.push(Figure {
            name: name.to_owned(),
            value,
            unit,
            reference: reference.map(str::to_owned),
            ratio,
            goal: goal.map(|goal| goal.to_string()),
            met: goal.map(|goal| goal.is_met(judged)),
        });
    }

    /// The figures as JSON.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.figures)?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.heading)?;
        let width = |text: fn(&Figure) -> &str, least| {
            self.figures.iter().map(|figure| text(figure).chars().count()).max().unwrap_or(0).max(least)
        };
        let name_width = width(|figure| &figure.name, 0);
        let reference_width = width(|figure| figure.reference.as_deref().unwrap_or_default(), "beside".len());
        writeln!(
            f,
            "{:name_width$}  {:>9} {:<9}  {:>6}  {:<reference_width$}  {:>7}  met",
            "", "", "", "ratio", "beside", "goal"
        )?;
        for Figure { name, value, unit, reference, ratio, goal, met } in &self.figures {
            let (reference, goal) = (reference.as_deref().unwrap_or_default(), goal.as_deref().unwrap_or_default());
            let ratio = ratio.map(three_digits).unwrap_or_default();
            let met = met.map_or("", |met| if met { "yes" } else { "NO" });
            let value = three_digits(*value);
            let line = format!(
                "{name:name_width$}  {value:>9} {unit:<9}  {ratio:>6}  {reference:<reference_width$}  {goal:>7}  {met}"
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl Display for Goal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// How often a second.
#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn per_second(number: u64, took: Duration) -> f64 {
    number as f64 / took.as_secs_f64()
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The value that this percentage of the values does not exceed; NaN of none.
pub(super) fn percentile(percent: usize, values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let index = (values.len().saturating_sub(1) * percent + 50) / 100;
    values.get(index).copied().unwrap_or(f64::NAN)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    percentile(50, values)
}

/// As much as a person reads: 571 k, 293, 16.7, 0.31.
fn three_digits(value: f64) -> String {
    match value {
        1e5.. => format!("{:.0} k", value / 1e3),
        1e4.. => format!("{:.1} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_rounds_and_is_what_the_goal_is_for() {
        let mut report = Report::default();
        // A machine that drifts: the second round is ten times as slow.
        for (round, (ours, theirs)) in [(7.0, 1.0), (80.0, 100.0), (8.0, 10.0), (9.0, 10.0)].into_iter().enumerate() {
            report.begin("test", round);
            report.sample("ours", ours);
            report.sample("theirs", theirs);
        }
        report.figure("ours", "rows/s", Some("theirs"), Some(Goal::AtLeast(0.81)));
        report.figure("never measured", "rows/s", None, None);
        let [figure] = report.figures.as_slice() else { panic!("{report}") };
        assert_eq!((figure.value, figure.ratio, figure.met), (9.0, Some(0.8), Some(false)));
    }
}
