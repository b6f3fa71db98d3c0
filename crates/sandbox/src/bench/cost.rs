//! What is asked of S3 and SQS, and what that costs a month, beside what the obvious design asks. S3 is LocalStack.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::time::sleep;

use super::{
    Bench,
    counted::{Counted, Counts},
    report::{Goal, Report},
};
use crate::sandbox::{Sandbox, Setup};

/// Dollars a request of the standard class in us-east-1: PUT or LIST, and GET or HEAD (<https://aws.amazon.com/s3/pricing/>).
const S3: [f64; 2] = [0.005 / 1e3, 0.0004 / 1e3];

/// Dollars a request to a FIFO queue, the free million left out (<https://aws.amazon.com/sqs/pricing/>).
const SQS: f64 = 0.5 / 1e6;

/// The daemons poll and look once a minute.
const MINUTES_A_MONTH: f64 = 30.0 * 24.0 * 60.0;

/// What the obvious design asks in a minute: it archives and announces each answer, and its consumer waits for 20 seconds at a time, and
/// once more after the message.
const OBVIOUS: [(&str, f64); 5] = [
    ("PutObject", 1.0),
    ("SendMessageBatch", 1.0),
    ("ReceiveMessage", 4.0),
    ("GetObject", 1.0),
    ("DeleteMessageBatch", 1.0),
];

/// Each 61st asks for the whole answer, and looks at the archive's end for that.
const IDLE_POLLS: u32 = 61;

const BUSY_POLLS: u32 = 50;

/// Each tenth lists the end.
const LOOKS: u32 = 20;

/// A poll is over within that, and all that comes of it, long before the next begins.
const UNTIL_QUIET: Duration = Duration::from_millis(150);

/// A minute from one idle look to the next, and then some.
const DEADLINE: Duration = Duration::from_secs(90);

/// The stream, and what is counted before it.
struct Meter {
    sandbox: Sandbox,
    api: Counted,
    importer: Counted,
    transformer: Counted,
}

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    report.begin("cost", 1);
    let meter = Meter::start(bench).await?;
    meter.listen("1h").await?;
    let [idle_poll, _] = meter.polls(IDLE_POLLS, false).await?;
    let [busy_poll, received] = meter.polls(BUSY_POLLS, true).await?;
    meter.sandbox.importer.terminate().await?;
    meter.listen("1s").await?;
    let mut look = meter.looks(LOOKS).await?;
    look.0.remove("ReceiveMessage");
    meter.listen("1m").await?;
    let mut minute = meter.looks(1).await?;
    minute.0.retain(|operation, _| operation == "ReceiveMessage");
    meter.sandbox.stop().await?;

    let heads = idle_poll.of("HeadObject");
    let (read, listed) = (look.of("HeadObject") + look.of("GetObject"), look.of("ListObjectsV2"));
    for (name, requests, goal) in [
        ("an idle poll, HEAD", heads, Some(Goal::AtMost(1.02))),
        ("an idle poll, anything else", idle_poll.all() - heads, Some(Goal::AtMost(0.0))),
        ("an idle look, HEAD and GET", read, Some(Goal::AtMost(2.0))),
        ("an idle look, LIST", listed, None),
        ("20 idle seconds, RECEIVE", minute.all() / 3.0, Some(Goal::AtMost(1.0))),
        ("a poll with news, importer", busy_poll.all(), None),
        ("a poll with news, transformer", received.all(), None),
        ("a million posts, 100 a poll", (busy_poll.all() + received.all()) * 1e4, None),
    ] {
        report.sample(name, requests);
        report.figure(name, "requests", None, goal);
    }
    let obvious = "a month of the obvious design, polls each minute";
    let obviously = Counts(OBVIOUS.map(|(operation, count)| (operation.to_owned(), count)).into());
    let (busy, quiet) = ("a month with news each minute", "a month without news");
    report.sample(obvious, month(&[&obviously]));
    report.sample(busy, month(&[&busy_poll, &received, &look, &minute]));
    report.sample(quiet, month(&[&idle_poll, &look, &minute]));
    report.figure(obvious, "$", None, None);
    report.figure(busy, "$", Some(obvious), None);
    report.figure(quiet, "$", Some(obvious), None);
    Ok(())
}

/// Dollars for a month of minutes with all of these.
fn month(minute: &[&Counts]) -> f64 {
    let price = |operation: &str| match operation {
        "PutObject" | "ListObjectsV2" => S3[0],
        "HeadObject" | "GetObject" => S3[1],
        _ => SQS,
    };
    let requests = minute.iter().flat_map(|counts| &counts.0);
    requests.map(|(operation, count)| price(operation) * count).sum::<f64>() * MINUTES_A_MONTH
}

impl Meter {
    async fn start(bench: &Bench) -> Result<Self> {
        let world = bench.sandbox.world();
        let sandbox = Sandbox::start(world, Setup { importer: false, transformer: false, ..Setup::default() }).await?;
        let aws = world.localstack().endpoint();
        let api = Counted::start(sandbox.api.url().trim_end_matches("/posts")).await?;
        let (importer, transformer) = (Counted::start(aws).await?, Counted::start(aws).await?);
        let source = format!("{}/posts", api.url);
        let settings =
            [("AWS_ENDPOINT_URL", importer.url.as_str()), ("SOURCE_URL", &source), ("POLL_INTERVAL", "300ms")];
        sandbox.importer.restart_with(&settings).await?;
        Ok(Self { sandbox, api, importer, transformer })
    }

    /// Starts the transformer anew, and waits until the table equals the API.
    async fn listen(&self, catch_up_interval: &str) -> Result<()> {
        let settings = [("AWS_ENDPOINT_URL", self.transformer.url.as_str()), ("CATCH_UP_INTERVAL", catch_up_interval)];
        self.sandbox.transformer.restart_with(&settings).await?;
        self.sandbox.settled(DEADLINE).await?;
        sleep(UNTIL_QUIET).await;
        Ok(())
    }

    /// What importer and transformer ask in a poll, on average, after one that is not counted: what was archived is looked at in the next.
    async fn polls(&self, number: u32, with_news: bool) -> Result<[Counts; 2]> {
        let mut before = [Counts::default(), Counts::default()];
        for poll in 0..=number {
            if with_news {
                let title = Map::from_iter([("title".to_owned(), Value::from(Timestamp::now().to_string()))]);
                self.sandbox.api.change(|posts| posts.patch(7, title).is_some());
            }
            self.next_poll().await?;
            if poll == 0 {
                before = [self.importer.counts(), self.transformer.counts()];
            }
        }
        let [importer, transformer] = before;
        Ok([self.importer.counts().since(&importer, number), self.transformer.counts().since(&transformer, number)])
    }

    /// The next poll, and what comes of it.
    async fn next_poll(&self) -> Result<()> {
        let before = self.api.counts().all();
        let is_polled = async || Ok(self.api.counts().all() > before);
        self.sandbox.wait_until("the API is asked", DEADLINE, is_polled).await?;
        sleep(UNTIL_QUIET).await;
        Ok(())
    }

    /// What the transformer asks from one look at the archive to the next, on average.
    async fn looks(&self, number: u32) -> Result<Counts> {
        let before = self.transformer.counts();
        let heads = before.of("HeadObject") + f64::from(number);
        let has_looked = async || Ok(self.transformer.counts().of("HeadObject") >= heads);
        self.sandbox.wait_until("the transformer has looked", DEADLINE, has_looked).await?;
        sleep(UNTIL_QUIET).await;
        Ok(self.transformer.counts().since(&before, number))
    }
}
