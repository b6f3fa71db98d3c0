//! The drills: what each one breaks, and how long it takes until everything is whole again.
//!
//! Every drill changes a post as well, or archives what an API that is not ours says once more, so that there is something that the fault
//! could lose. It is healed when both daemons are ready and
//! the table equals the API at the end of the archive. What happens until then is told as events like everything else, so the terminal,
//! the page and a test see the same story.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, bail, ensure};
use aws_sdk_sqs::types::QueueAttributeName::DelaySeconds;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Serialize;
use tokio::{
    sync::{Mutex, broadcast::error::RecvError},
    time::{interval, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    daemon::Daemon,
    event::Event,
    postgres::Backup,
    sandbox::{Program, Sandbox},
    say::{Tone, say},
    tail,
};

/// A hundred posts take seconds; a million, a restore and a busy machine get their time.
const HEAL_DEADLINE: Duration = Duration::from_mins(2);

/// Both ends are on loopback; rendering a million posts takes the API a second or two.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How often to look whether it is healed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often a backup is due. Four of them reach a little further back than a minute.
const BACK_UP_EVERY: Duration = Duration::from_secs(20);
const KEPT_BACKUPS: usize = 4;

/// How far back a restore should go: far enough to have missed something, near enough for a person to remember what.
const RESTORED_AGE: Duration = Duration::from_mins(1);

/// How long the queue keeps a message back while it waits to be purged; longer than the importer's poll, far below SQS's limit of 900 s.
const HELD_BACK_SECS: &str = "60";

/// A fault on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drill {
    /// Nothing breaks: a post gets another title.
    ChangeAPost,
    /// Nothing breaks: a post goes, and its row is marked.
    DeleteAPost,
    /// SIGKILL to the importer, which is started again.
    KillImporter,
    /// SIGKILL to the transformer, which is started again.
    KillTransformer,
    /// The message about an object is lost.
    PurgeQueue,
    /// The database is put back by about a minute.
    RestoreDatabase,
}

/// Something that happened while a drill ran.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Since the drill began.
    pub elapsed_ms: u64,
    /// `drill`, `sandbox`, `posts API`, `importer` or `transformer`.
    pub who: &'static str,
    /// In words.
    pub text: String,
}

/// How a drill ended that was healed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Report {
    /// From the beginning of the drill until everything was whole.
    pub healed_ms: u64,
    /// Where the table stands: at the end of the archive.
    pub position: u64,
    /// What it holds: the API's posts.
    pub rows: u64,
}

/// The database's last few backups.
#[derive(Debug, Default)]
pub struct Backups(Mutex<VecDeque<Kept>>);

#[derive(Debug)]
struct Kept {
    /// The last moment at which the database was known to be like this.
    at: Instant,
    position: u64,
    backup: Backup,
}

/// Runs a drill to its end; an error says what kept it from healing.
pub async fn run(
    drill: Drill,
    sandbox: &Sandbox,
    backups: &Backups,
    mut progress: impl FnMut(Step) + Send,
) -> Result<Report> {
    let begun = Instant::now();
    let mut events = sandbox.events().subscribe();
    let mut note = |event: Result<Event, RecvError>| {
        let step = |who, text| Step { elapsed_ms: millis(begun), who, text };
        match event.map(|event| (event.who, say(&event))) {
            Ok((_, None | Some((Tone::Quiet, _)))) | Err(RecvError::Closed) => {}
            Ok((who, Some((_, text)))) => progress(step(who, text)),
            Err(RecvError::Lagged(count)) => progress(step("drill", format!("… {count} events were missed"))),
        }
    };
    let work = break_and_heal(drill, sandbox, backups, begun);
    tokio::pin!(work);
    let outcome = loop {
        tokio::select! {
            // What happened before the end is told before it.
            biased;
            // Nothing is lost when it is dropped: the events stay in the channel.
            event = events.recv() => note(event),
            outcome = &mut work => break outcome,
        }
    };
    while let Ok(event) = events.try_recv() {
        note(Ok(event));
    }
    match &outcome {
        Ok(report) => tell(sandbox, &format!("{drill} is healed, {} later", seconds(report.healed_ms))),
        Err(error) => tell(sandbox, &format!("{drill} has failed: {error:#}")),
    }
    outcome
}

async fn break_and_heal(drill: Drill, sandbox: &Sandbox, backups: &Backups, begun: Instant) -> Result<Report> {
    let client = Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?;
    let before = sandbox.position().await.context("the drill was not begun, since the table cannot be read")?;
    match drill {
        Drill::ChangeAPost => bring_news(sandbox, &client).await?,
        Drill::DeleteAPost => delete_a_post(sandbox, &client).await?,
        Drill::KillImporter => change_and_kill(sandbox, &client, &sandbox.importer).await?,
        Drill::KillTransformer => change_and_kill(sandbox, &client, &sandbox.transformer).await?,
        Drill::PurgeQueue => lose_a_message(sandbox, &client).await?,
        Drill::RestoreDatabase => backups.restore(sandbox, &client).await?,
    }
    let is_healed = || async {
        check_ready(&client, &sandbox.importer).await?;
        check_ready(&client, &sandbox.transformer).await?;
        check_applied(sandbox, before).await
    };
    until("everything is whole", is_healed).await?;
    let healed_ms = millis(begun);
    Ok(Report { healed_ms, position: sandbox.position().await?, rows: sandbox.count().await? })
}

/// Brings one more object into the archive, and is not done before the API has it or, of an API that is not ours, the archive.
async fn bring_news(sandbox: &Sandbox, client: &Client) -> Result<()> {
    if !sandbox.is_own_api() {
        return change_a_post(sandbox, client).await;
    }
    let output = sandbox.run(Program::Importer, &["once", "--again"]).await?;
    ensure!(
        output.status.success(),
        "the API was asked once more, in vain:\n{}",
        tail::of(&String::from_utf8_lossy(&output.stderr))
    );
    tell(sandbox, "asked the API once more and archived its answer, the same or not: `importer once --again`");
    Ok(())
}

/// Gives a random post a title that it never had.
async fn change_a_post(sandbox: &Sandbox, client: &Client) -> Result<()> {
    let title = format!("changed by a drill at {:.3}", jiff::Timestamp::now());
    let change = |url| client.patch(url).json(&serde_json::json!({ "title": title }));
    do_to_a_post(sandbox, change).await.map(drop)
}

/// Takes a random post away, and waits until its row says so.
async fn delete_a_post(sandbox: &Sandbox, client: &Client) -> Result<()> {
    ensure!(!sandbox.is_own_api(), "nobody but its owner deletes from an API that is not ours");
    let absent = sandbox.settings().get("ABSENT").unwrap_or_default();
    ensure!(absent == "mark", "ABSENT is not `mark` here, so nothing would be seen of it");
    let id = do_to_a_post(sandbox, |url| client.delete(url)).await?;
    let is_marked = || async {
        let mut connection = sandbox.connect().await?;
        let look = sqlx::query_scalar("SELECT absent_since IS NOT NULL FROM posts WHERE id = $1");
        let is_marked: bool = look.bind(i64::try_from(id)?).fetch_one(&mut connection).await?;
        ensure!(is_marked, "post {id} is not marked");
        Ok(())
    };
    until("the row of the deleted post is marked", is_marked).await?;
    tell(sandbox, &format!("the row of post {id} is there still, and absent_since says since when the API lacks it"));
    Ok(())
}

/// Does something to a random post; answers with its id.
async fn do_to_a_post(sandbox: &Sandbox, act: impl Fn(String) -> RequestBuilder) -> Result<u64> {
    let count = sandbox.api.len() as u64;
    ensure!(count > 0, "the API has no post");
    let random = Uuid::new_v4().as_u64_pair().1 % count;
    // A post that was deleted is passed over.
    for id in (0..count).map(|offset| (random + offset) % count + 1) {
        let response = act(format!("{}/{id}", sandbox.api.url())).send().await.context("the API does not answer")?;
        if response.status() != StatusCode::NOT_FOUND {
            response.error_for_status().context("the API refused to change a post")?;
            return Ok(id);
        }
    }
    bail!("the API has none of the posts 1 to {count}")
}

async fn change_and_kill(sandbox: &Sandbox, client: &Client, daemon: &Daemon) -> Result<()> {
    if !sandbox.is_own_api() {
        change_a_post(sandbox, client).await?;
    }
    let pid = daemon.kill().with_context(|| format!("the {} has no process to kill right now", daemon.name()))?;
    tell(sandbox, &format!("sent SIGKILL to the {} (process {pid})", daemon.name()));
    // Its last answer must not be taken for that of the next one.
    let is_gone = || async {
        ensure!(daemon.pid() != Some(pid), "the process is still there");
        Ok(())
    };
    until("it is gone", is_gone).await?;
    // Behind the kill, since this one waits until it is archived: the daemon would have nothing left to do.
    if sandbox.is_own_api() { bring_news(sandbox, client).await } else { Ok(()) }
}

/// The transformer hears within milliseconds, so a purge alone would come too late: the queue is told to hold messages back, which makes the
/// loss certain. Whatever happens, it delivers at once again.
async fn lose_a_message(sandbox: &Sandbox, client: &Client) -> Result<()> {
    let delay = |seconds| {
        let request = sandbox.sqs().set_queue_attributes().queue_url(sandbox.queue_url());
        request.attributes(DelaySeconds, seconds).send()
    };
    delay(HELD_BACK_SECS).await.context("the queue cannot be told to hold messages back")?;
    tell(sandbox, "told the queue to hold messages back, so that the purge is faster than the transformer");
    let mut events = sandbox.events().subscribe();
    let lost = async {
        bring_news(sandbox, client).await?;
        let announced = async {
            // The command that archives an answer once more has rung before it ends.
            while !sandbox.is_own_api() && events.recv().await?.message != "announced" {}
            Ok::<_, Error>(())
        };
        timeout(HEAL_DEADLINE, announced).await.context("the importer sent no message")??;
        sandbox.purge_queue().await?;
        tell(sandbox, "purged the queue: the message is lost, the next idle look at the archive will find the object");
        Ok(())
    };
    let lost = lost.await;
    delay("0").await.context("the queue cannot be told to deliver at once again")?;
    lost
}

impl Backups {
    /// Backs the database up every 20 s, for ever.
    pub async fn keep(&self, sandbox: &Sandbox) {
        let mut due = interval(BACK_UP_EVERY);
        let mut has_failed = false;
        loop {
            due.tick().await;
            let taken = self.take(sandbox).await;
            // A database that stays away is told of once.
            if let Some(error) = taken.as_ref().err().filter(|_| !has_failed) {
                tell(sandbox, &format!("a backup has failed: {error:#}"));
            }
            has_failed = taken.is_err();
        }
    }

    /// Backs the database up. At the position of the last backup nothing has changed since, so that one is as good as new; this spares a
    /// large table that is at rest.
    pub async fn take(&self, sandbox: &Sandbox) -> Result<()> {
        let mut kept = self.0.lock().await;
        let (at, position) = (Instant::now(), sandbox.position().await?);
        if let Some(last) = kept.back_mut().filter(|last| last.position == position) {
            last.at = at;
            return Ok(());
        }
        let backup = sandbox.back_up().await?;
        kept.push_back(Kept { at, position, backup });
        if kept.len() > KEPT_BACKUPS {
            kept.pop_front();
        }
        Ok(())
    }

    /// Puts the database back to the backup whose age is nearest to a minute, after a change that the backup cannot know.
    async fn restore(&self, sandbox: &Sandbox, client: &Client) -> Result<()> {
        // Locked to the end, so that no backup is made of a database that is being exchanged.
        let kept = self.0.lock().await;
        let chosen = kept.iter().min_by_key(|kept| kept.at.elapsed().abs_diff(RESTORED_AGE));
        let chosen = chosen.context("there is no backup of the database yet")?;
        bring_news(sandbox, client).await?;
        until("the change is in the table", || check_applied(sandbox, chosen.position)).await?;
        let age = seconds(millis(chosen.at));
        tell(sandbox, &format!("restoring the database as it was {age} ago, at position {}", chosen.position));
        sandbox.restore(&chosen.backup).await?;
        let (position, end) = (chosen.position, sandbox.end().await?);
        tell(
            sandbox,
            &format!("restored: the position has gone back to {position} with the rows, the archive goes on to {end}"),
        );
        Ok(())
    }
}

impl Drill {
    /// All of them, in the order in which a person should try them.
    pub const ALL: [Self; 6] = [
        Self::ChangeAPost,
        Self::DeleteAPost,
        Self::KillImporter,
        Self::KillTransformer,
        Self::PurgeQueue,
        Self::RestoreDatabase,
    ];
}

/// The name, as it stands in the page's addresses.
impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChangeAPost => "change-a-post",
            Self::DeleteAPost => "delete-a-post",
            Self::KillImporter => "kill-importer",
            Self::KillTransformer => "kill-transformer",
            Self::PurgeQueue => "purge-queue",
            Self::RestoreDatabase => "restore-database",
        })
    }
}

impl FromStr for Drill {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|drill| drill.to_string() == name);
        found.with_context(|| {
            format!("`{name}` is no drill; there are {}", Self::ALL.map(|drill| drill.to_string()).join(", "))
        })
    }
}

/// Looks until there is nothing to object to; at the deadline the last objection is the error.
async fn until<F: Future<Output = Result<()>>>(what: &str, mut look: impl FnMut() -> F) -> Result<()> {
    let begun = Instant::now();
    while let Err(objection) = look().await {
        if begun.elapsed() > HEAL_DEADLINE {
            return Err(objection.context(format!("waited {} s in vain until {what}", HEAL_DEADLINE.as_secs())));
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The changed post is one object more than `before`. The cheap look comes first.
async fn check_applied(sandbox: &Sandbox, before: u64) -> Result<()> {
    let position = sandbox.position().await?;
    ensure!(position > before, "the position is still {position}");
    let differences = sandbox.unsettled().await?;
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

async fn check_ready(client: &Client, daemon: &Daemon) -> Result<()> {
    let readiness = daemon.readiness(client).await?;
    ensure!(readiness.is_ready, "the {} is {}", daemon.name(), readiness.state);
    Ok(())
}

fn tell(sandbox: &Sandbox, text: &str) {
    sandbox.events().tell("drill", text, &[]);
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}
