//! Messages from the queue. The only file here that talks to SQS.
//!
//! A message is deleted after COMMIT. Whether the delete succeeds does not matter: the position tells an old one.

use std::time::Duration;

use aws_sdk_sqs::{
    Client,
    error::ProvideErrorMetadata,
    types::{self, DeleteMessageBatchRequestEntry},
};
use clap::Args;
use shared::{aws, telemetry::chain};
use thiserror::Error;
use tokio::time::timeout;
use tracing::debug;
use url::Url;

/// A message that was received and not deleted comes again after this many seconds. Nothing extends it: what takes longer
/// is found done.
const VISIBILITY_SECS: i32 = 4;

/// The most that SQS hands out at once.
const MESSAGES: i32 = 10;

/// SQS counts in seconds, and a wait of none would make a busy loop.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// What an answer may take beyond the wait that was asked for, a connection included.
const SLACK: Duration = Duration::from_secs(10);

/// The longest that SQS lets a receive wait.
pub const LONGEST_WAIT: Duration = Duration::from_secs(20);

const RECEIVE: &str = "ReceiveMessage";
const DELETE: &str = "DeleteMessage";

/// What the role must be allowed.
const RIGHTS: &str = "sqs:ReceiveMessage and sqs:DeleteMessage";

/// What SQS calls a receipt that is none, once it has found nothing against whoever shows it.
const NO_RECEIPT: [&str; 3] = ["ReceiptHandleIsInvalid", "InvalidParameterValue", "InvalidAddress"];

/// Which queue.
#[derive(Args, Clone, Debug)]
pub struct QueueSettings {
    /// URL of the SQS queue that says what was appended
    #[arg(long, env = "QUEUE_URL", value_name = "URL", required = true, value_parser = shared::settings::parse_queue_url)]
    pub queue_url: Url,
}

/// One receipt of a message.
#[derive(Clone, Debug)]
pub struct Message {
    /// What it says. Never believed.
    pub body: String,
    /// What deletes this receipt's message.
    pub receipt: String,
}

/// How the loop sees the queue: the second door to the world.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Queue {
    /// Waits for messages at most `wait`. Safe to drop: what it would have brought comes again.
    async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError>;

    /// Forgets the messages, as far as that succeeds.
    async fn delete(&self, messages: &[Message]);

    /// Whether messages may be deleted at all; none is.
    async fn may_delete(&self) -> Result<(), QueueError>;
}

/// The queue gave no answer, or a bad one.
#[derive(Debug, Error)]
#[error("{doing} on {queue_url} failed")]
pub struct QueueError {
    doing: &'static str,
    queue_url: Url,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl QueueError {
    /// A receive that was not answered in time.
    pub fn no_answer(queue_url: Url) -> Self {
        Self { doing: RECEIVE, queue_url, source: "no answer in time".into() }
    }
}

/// An SQS queue.
#[derive(Clone, Debug)]
pub struct SqsQueue {
    client: Client,
    queue_url: Url,
}

impl SqsQueue {
    /// The queue of the settings. Nothing is asked of SQS yet.
    pub fn new(client: Client, settings: QueueSettings) -> Self {
        Self { client, queue_url: settings.queue_url }
    }
}

impl Queue for SqsQueue {
    async fn receive(&self, wait: Duration) -> Result<Vec<Message>, QueueError> {
        let wait = wait.clamp(SHORTEST_WAIT, LONGEST_WAIT);
        let wait_secs = i32::try_from(wait.as_millis().div_ceil(1000)).expect("20 at most");
        let request = self
            .client
            .receive_message()
            .queue_url(self.queue_url.as_str())
            .max_number_of_messages(MESSAGES)
            .visibility_timeout(VISIBILITY_SECS)
            .wait_time_seconds(wait_secs);
        // A receive that hangs must not keep the idle look waiting through the SDK's own timeouts and retries.
        let answer = timeout(wait + SLACK, request.send()).await;
        let queue_url = self.queue_url.clone();
        match answer {
            Err(_) => Err(QueueError::no_answer(queue_url)),
            Ok(Ok(answer)) => Ok(answer.messages.unwrap_or_default().into_iter().filter_map(received).collect()),
            Ok(Err(source)) => Err(QueueError { doing: RECEIVE, queue_url, source: aws::reason(&source, RIGHTS) }),
        }
    }

    async fn delete(&self, messages: &[Message]) {
        let entry = |(id, message): (usize, &Message)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(id.to_string()).receipt_handle(&message.receipt);
            entry.build().expect("id and receipt are given")
        };
        let entries = messages.iter().enumerate().map(entry).collect();
        let request = self.client.delete_message_batch().queue_url(self.queue_url.as_str()).set_entries(Some(entries));
        match timeout(SLACK, request.send()).await {
            Ok(Ok(done)) => {
                for failed in done.failed() {
                    debug!(code = failed.code(), "a message was not deleted and comes again");
                }
            }
            Ok(Err(error)) => debug!(why = chain(&error), "messages were not deleted and come again"),
            Err(_) => debug!(why = "no answer in time", "messages were not deleted and come again"),
        }
    }

    async fn may_delete(&self) -> Result<(), QueueError> {
        // The rights are looked at before the receipt, which is nobody's.
        let queue_url = self.queue_url.clone();
        match self.client.delete_message().queue_url(queue_url.as_str()).receipt_handle("none").send().await {
            Err(error) if !error.code().is_some_and(|code| NO_RECEIPT.iter().any(|known| code.ends_with(known))) => {
                Err(QueueError { doing: DELETE, queue_url, source: aws::reason(&error, RIGHTS) })
            }
            _ => Ok(()),
        }
    }
}

fn received(message: types::Message) -> Option<Message> {
    Some(Message { body: message.body.unwrap_or_default(), receipt: message.receipt_handle? })
}
