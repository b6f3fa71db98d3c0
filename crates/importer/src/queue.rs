//! Announces pointers to the queue. The only file here that talks to SQS.
//!
//! A message that is lost costs time and no data, so a failure stops nothing: the newest pointer is sent with the next poll.

use aws_sdk_sqs::{Client, types::SendMessageBatchRequestEntry};
use clap::Args;
use shared::{aws, crash_point, pointer::Pointer};
use thiserror::Error;
use url::Url;

/// The most that SQS takes at once.
const BATCH: usize = 10;

/// How often a batch is sent of which SQS refuses entries; what is refused then is sent with the next poll.
const TRIES: u32 = 3;

/// Which queue.
#[derive(Args, Clone, Debug)]
pub struct QueueSettings {
    /// URL of the SQS FIFO queue that says what was appended; its name ends in `.fifo`
    #[arg(long, env = "QUEUE_URL", value_name = "URL", required = true, value_parser = parse_fifo_url)]
    pub queue_url: Url,
}

/// How the loop sees the queue: the second door to the world. Safe to drop at any await.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Queue {
    /// Says that the pointers' objects are in the archive. Said twice within five minutes it is one message.
    async fn announce(&self, pointers: &[Pointer]) -> Result<(), QueueError>;
}

/// The queue did not take a pointer.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum QueueError {
    /// The request failed.
    #[error("SendMessageBatch to {queue_url} failed")]
    Failed { queue_url: Url, source: Box<dyn std::error::Error + Send + Sync> },
    /// The request succeeded, and entries in it did not.
    #[error("{queue_url} did not take {entries} of the messages ({code})")]
    Refused { queue_url: Url, entries: usize, code: String },
}

/// An SQS FIFO queue.
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
    async fn announce(&self, pointers: &[Pointer]) -> Result<(), QueueError> {
        for batch in pointers.chunks(BATCH) {
            // A 200 can hold failures. Sent again, those that were taken are repetitions, which SQS drops.
            let mut tries = 0;
            while let Err(error) = self.send(batch).await {
                tries += 1;
                if tries == TRIES || matches!(error, QueueError::Failed { .. }) {
                    return Err(error);
                }
            }
            crash_point!("announcing");
        }
        Ok(())
    }
}

impl SqsQueue {
    async fn send(&self, pointers: &[Pointer]) -> Result<(), QueueError> {
        let entry = |(id, pointer): (usize, &Pointer)| {
            let entry = SendMessageBatchRequestEntry::builder()
                .id(id.to_string())
                .message_group_id(pointer.stream.to_string())
                .message_deduplication_id(pointer.deduplication_id())
                .message_body(pointer.encode());
            entry.build().expect("id and body are given")
        };
        let entries = pointers.iter().enumerate().map(entry).collect();
        let queue_url = self.queue_url.clone();
        let request = self.client.send_message_batch().queue_url(queue_url.as_str()).set_entries(Some(entries));
        match request.send().await {
            Ok(sent) => match sent.failed() {
                [] => Ok(()),
                [first, ..] => {
                    Err(QueueError::Refused { queue_url, entries: sent.failed().len(), code: first.code().to_owned() })
                }
            },
            Err(source) => Err(QueueError::Failed { queue_url, source: aws::reason(&source, "sqs:SendMessage") }),
        }
    }
}

fn parse_fifo_url(text: &str) -> Result<Url, String> {
    let url = shared::settings::parse_queue_url(text)?;
    if url.path().rsplit_once('.').is_some_and(|(_, suffix)| suffix == "fifo") {
        Ok(url)
    } else {
        Err("the pointers need a FIFO queue, whose name ends in .fifo: create one with FifoQueue=true".to_owned())
    }
}
