//! What a person sees while something long goes on: a spinner on a terminal, else a line now and then. Goes to stderr.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A step that is done sooner says nothing where there is no terminal.
const SILENT_FOR: Duration = Duration::from_secs(2);

/// In a build log, one line every so often shows that it lives.
const REPEAT_AFTER: Duration = Duration::from_secs(20);

/// Longer details, such as pip's list of all that it installed, are cut.
const WIDTH: usize = 100;

/// The steps that are going on side by side.
#[derive(Debug)]
pub struct Progress {
    bars: MultiProgress,
}

/// One step; over when it is dropped.
#[derive(Debug)]
pub struct Step {
    name: &'static str,
    bar: ProgressBar,
    begun: Instant,
    /// When a plain line was last written, if any was.
    spoken: Mutex<Option<Instant>>,
}

impl Default for Progress {
    fn default() -> Self {
        // indicatif draws to stderr, and nothing where stderr is no terminal.
        Self { bars: MultiProgress::new() }
    }
}

impl Progress {
    /// Begins a step, named in the progressive: "installing LocalStack".
    pub fn step(&self, name: &'static str) -> Step {
        let bar = self.bars.add(ProgressBar::new_spinner().with_message(name));
        let style = ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}").expect("a valid template");
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Step { name, bar, begun: Instant::now(), spoken: Mutex::default() }
    }
}

impl Step {
    /// What is being done right now, such as the crate that is compiled.
    pub fn say(&self, detail: &str) {
        let detail: String = detail.trim().chars().take(WIDTH).collect();
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{}: {detail}", self.name));
            return;
        }
        let mut spoken = self.spoken.lock().expect("nobody panics while speaking");
        let is_due = spoken.map_or(self.begun.elapsed() > SILENT_FOR, |spoken| spoken.elapsed() > REPEAT_AFTER);
        if is_due {
            eprintln!("{} ({} s): {detail}", self.name, self.begun.elapsed().as_secs());
            *spoken = Some(Instant::now());
        }
    }

    /// How long the step has taken until now.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
