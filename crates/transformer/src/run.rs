//! The loop, and the only file that knows the order of the steps.
//!
//! Look first, then listen: at the start, after a fault and every interval the archive itself is looked at, so that a queue
//! that says nothing, or nothing true, costs time and never data. While the archive or the database fails, nothing is
//! received: a message in hand would only run out.

use std::time::Duration;

use clap::Args;
use shared::{
    archive::Archive,
    crash_point,
    object::StreamName,
    pointer::Pointer,
    settings::parse_duration,
    shutdown::Shutdown,
    status::{Dependency, State, Status},
};
use tokio::time::{Instant, sleep};

use crate::{
    decide::{FollowError, state_after},
    events,
    follow::{Followed, Follower, Goal},
    queue::{LONGEST_WAIT, Message, Queue},
    write::table::Table,
};

/// The first pause after a fault; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause while a dependency fails: short enough that its return is noticed soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How often to look again at what only a person can settle.
const HOLD_PAUSE: Duration = Duration::from_mins(1);

/// How often to look whether another transformer is still at work; with it, one that was killed is replaced within five seconds.
const STAND_BY_PAUSE: Duration = Duration::from_secs(4);

/// How often.
#[derive(Args, Clone, Copy, Debug)]
pub struct PaceSettings {
    /// How often to look at the archive when the queue says nothing, as in 5s or 1m
    #[arg(long, env = "CATCH_UP_INTERVAL", value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    pub catch_up_interval: Duration,
}

/// One stream's transformer.
#[derive(Debug)]
pub struct Transformer<A, Q, T> {
    follower: Follower<A, T>,
    queue: Q,
    stream: StreamName,
    status: Status,
    /// A queue that fails is not well again because the archive is.
    is_receive_failing: bool,
    /// In a row, and none before the last success, so that the pauses begin short again.
    faults: u32,
}

impl<A: Archive, Q: Queue, T: Table> Transformer<A, Q, T> {
    /// A transformer that knows nothing yet.
    pub fn new(follower: Follower<A, T>, queue: Q, stream: StreamName, status: Status) -> Self {
        Self { follower, queue, stream, status, is_receive_failing: false, faults: 0 }
    }

    /// Follows the archive until the daemon drains.
    pub async fn run(mut self, pace: PaceSettings, mut shutdown: Shutdown) {
        while !shutdown.is_draining() {
            let mut step = self.look_and_listen(pace, &mut shutdown).await;
            if matches!(step, Ok(Followed::Busy)) {
                step = self.stand_by().await;
            }
            let pause = match step {
                Ok(Followed::ToTheGoal) => continue,
                Ok(Followed::Busy) => STAND_BY_PAUSE.min(pace.catch_up_interval),
                Err(fault) => {
                    // A look begins with the position: whatever comes after it, the database has answered.
                    if matches!(fault, FollowError::Archive(_) | FollowError::Hold(_)) {
                        self.status.worked(&[Dependency::Database]);
                    }
                    let state = state_after(&fault);
                    let is_held = matches!(state, State::Holding(..));
                    self.status.set(state);
                    self.faults += 1;
                    if is_held { HOLD_PAUSE.min(pace.catch_up_interval) } else { pause_after(self.faults) }
                }
            };
            // Nothing is in hand.
            shutdown.race(sleep(pause)).await;
        }
    }

    /// Looks at the archive, and listens to the queue until it is time to look again. Whatever fails ends both, so that
    /// after the pause comes a look.
    async fn look_and_listen(&mut self, pace: PaceSettings, shutdown: &mut Shutdown) -> Result<Followed, FollowError> {
        if self.follower.look(Goal::End, shutdown).await? == Followed::Busy {
            return Ok(Followed::Busy);
        }
        events::looked();
        self.status.worked(&[Dependency::Archive, Dependency::Database]);
        if !self.is_receive_failing {
            self.status.set(State::Ready);
        }
        let next_look = Instant::now() + pace.catch_up_interval;
        while Instant::now() < next_look {
            let wait = next_look.saturating_duration_since(Instant::now()).min(LONGEST_WAIT);
            // Dropped in the middle, what it would have brought comes again.
            let Some(messages) = shutdown.race(self.queue.receive(wait)).await else { break };
            self.is_receive_failing = messages.is_err();
            let messages = messages?;
            // After the look, this is the other half of a success.
            self.faults = 0;
            self.status.worked(&[Dependency::Queue]);
            self.status.set(State::Ready);
            if !messages.is_empty() {
                if self.answer(&messages, shutdown).await? == Followed::Busy {
                    return Ok(Followed::Busy);
                }
                self.status.worked(&[Dependency::Archive, Dependency::Database]);
            }
        }
        Ok(Followed::ToTheGoal)
    }

    /// Applies what the messages point to, then deletes them: after COMMIT, never before.
    async fn answer(&mut self, messages: &[Message], shutdown: &Shutdown) -> Result<Followed, FollowError> {
        crash_point!("received");
        let mut newest = None;
        let mut is_strange = false;
        for message in messages {
            match Pointer::decode(&message.body, &self.stream) {
                Ok(pointer) => {
                    events::received(&pointer);
                    newest = newest.max(Some(pointer.sequence));
                }
                Err(error) => {
                    events::strange_message(&error);
                    is_strange = true;
                }
            }
        }
        let mut followed = Followed::ToTheGoal;
        if let Some(newest) = newest {
            followed = self.follower.follow_pointer(newest, shutdown).await?;
        }
        if is_strange && followed == Followed::ToTheGoal {
            followed = self.follower.look(Goal::End, shutdown).await?;
        }
        // Undeleted, they come again, when whoever is at work now is done.
        if followed == Followed::ToTheGoal && !shutdown.is_draining() {
            crash_point!("not-deleted");
            self.queue.delete(messages).await;
            crash_point!("deleted");
        }
        Ok(followed)
    }

    /// Another transformer has the stream. If it is silent, its place is taken at once.
    async fn stand_by(&mut self) -> Result<Followed, FollowError> {
        self.status.worked(&[Dependency::Database]);
        self.status.set(State::StandingBy);
        if self.follower.take_over_from_the_silent().await? {
            crash_point!("ended-a-silent-holder");
            events::took_over();
            return Ok(Followed::ToTheGoal);
        }
        Ok(Followed::Busy)
    }
}

/// Doubles with each fault in a row.
fn pause_after(faults: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(faults.saturating_sub(1))).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<_> = [1, 2, 3, 7, 100].into_iter().map(|faults| pause_after(faults).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1_000, 15_000, 15_000]);
    }
}
