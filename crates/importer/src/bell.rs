//! The bell: pointers on their way to the queue, and the only file here that talks to SQS.
//!
//! A ring that is lost costs time and no data, so a failed one stops nothing: the newest pointer is sent with the next poll.

use aws_sdk_sqs::{Client, error::SdkError, operation::send_message::SendMessageError};
use clap::Args;
use shared::pointer::Pointer;
use thiserror::Error;
use url::Url;

/// Which queue.
#[derive(Args, Clone, Debug)]
pub struct BellSettings {
    /// URL of the SQS FIFO queue that says what was appended; its name ends in `.fifo`
    #[arg(long, env = "QUEUE_URL", value_name = "URL", required = true, value_parser = parse_fifo_url)]
    pub queue_url: Url,
}

/// How the loop sees the queue: the second door to the world. Safe to drop at any await.
#[allow(async_fn_in_trait, reason = "the loop runs on the main task, so nothing has to be Send")]
pub trait Bell {
    /// Says that the pointer's object is in the archive. Said twice within five minutes it is one message.
    async fn ring(&self, pointer: &Pointer) -> Result<(), BellError>;
}

/// The queue did not take the pointer.
#[derive(Debug, Error)]
#[error("SendMessage to {queue_url} failed: check QUEUE_URL and that the role may sqs:SendMessage")]
pub struct BellError {
    queue_url: Url,
    source: Box<SdkError<SendMessageError>>,
}

/// An SQS FIFO queue.
#[derive(Clone, Debug)]
pub struct SqsBell {
    client: Client,
    queue_url: Url,
}

impl SqsBell {
    /// The queue of the settings. Nothing is asked of SQS yet.
    pub fn new(client: Client, settings: BellSettings) -> Self {
        Self { client, queue_url: settings.queue_url }
    }
}

impl Bell for SqsBell {
    async fn ring(&self, pointer: &Pointer) -> Result<(), BellError> {
        let request = self
            .client
            .send_message()
            .queue_url(self.queue_url.as_str())
            .message_group_id(pointer.stream.to_string())
            .message_deduplication_id(pointer.deduplication_id())
            .message_body(pointer.encode());
        match request.send().await {
            Ok(_) => Ok(()),
            Err(source) => Err(BellError { queue_url: self.queue_url.clone(), source: Box::new(source) }),
        }
    }
}

fn parse_fifo_url(text: &str) -> Result<Url, String> {
    let url = shared::settings::parse_http_url(text)?;
    if url.path().ends_with(".fifo") {
        Ok(url)
    } else {
        Err("the pointers need a FIFO queue, whose name ends in .fifo: create one with FifoQueue=true".to_owned())
    }
}
