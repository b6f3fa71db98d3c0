//! What systemd is told by a unit of `Type=notify`: that the loop runs, its state in one line, that it lives, that it drains.
//!
//! One task does it, on the thread that does the work, every second at most. It feeds the watchdog only while the work loop gives its
//! signs of life, so a loop that is stuck stops it after three minutes, and a thread that is blocked or a process that is stopped, at
//! once. The loop does not feed by itself, because it may wait for a week between two polls, and systemd knows one deadline only; such
//! a wait is announced by `beat_after`, and the task feeds through it.
//!
//! Where systemd did not start the process there is no `NOTIFY_SOCKET`, and nothing happens.

use std::{env, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::{
    status::{Status, is_alive},
    telemetry::chain,
};

/// How often the state is looked at: often enough for a person, and seldom enough to tell systemd of a thousand objects a second.
const LONGEST_TICK: Duration = Duration::from_secs(1);

/// So much of a state is told: a line of `systemctl status`, where the log has the whole.
const LONGEST_STATUS_CHARS: usize = 200;

/// Tells systemd that the loop runs, whether or not what it depends on does; from here on its state, and that it lives. It ends with
/// the process.
pub fn serve(status: &Status) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    // Three meals a deadline, so that one may come late.
    let watchdog = sd_notify::watchdog_enabled();
    let tick = watchdog.map_or(LONGEST_TICK, |deadline| (deadline / 3).min(LONGEST_TICK));
    let status = status.clone();
    tell(&[NotifyState::Ready]);
    tokio::spawn(async move {
        let mut ticks = interval(tick.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = String::new();
        loop {
            ticks.tick().await;
            let line = one_line(&status.summary());
            if line != told {
                tell(&[NotifyState::Status(&line)]);
                told = line;
            }
            if watchdog.is_some() && is_alive() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    });
}

/// Tells systemd that the daemon drains.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(news: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(news) {
        debug!(why = chain(&error), "systemd does not listen");
    }
}

/// Systemd takes each line for a message of its own, and what an API answers is part of a state.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_STATUS_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_cannot_smuggle_in_another_message() {
        assert_eq!(one_line("waiting: 500\nWATCHDOG=trigger"), "waiting: 500 WATCHDOG=trigger");
        assert_eq!(one_line(&"ü".repeat(1_000)).chars().count(), LONGEST_STATUS_CHARS);
    }
}
