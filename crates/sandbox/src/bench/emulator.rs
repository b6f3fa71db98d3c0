//! How long LocalStack takes for the requests that bring a change from the API into the table, without any of the daemons.

use std::time::Duration;

use anyhow::{Context, Result};
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use axum::body::Bytes;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::report::{Report, percentile};
use crate::{
    posts::Posts,
    sandbox::{Sandbox, create_queue},
};

/// How often each is asked.
const TIMES: usize = 50;

/// Until a receive waits for sure.
const UNTIL_IT_WAITS: Duration = Duration::from_millis(20);

/// What is asked, in the order in which the daemons do; all but the SEND alone are on a change's way.
pub(super) const REQUESTS: [&str; 5] = [
    "LocalStack's own HEAD",
    "LocalStack's own PUT",
    "LocalStack's own SEND",
    "LocalStack's own SEND until a waiting RECEIVE has it",
    "LocalStack's own GET",
];

/// Asked in a corner of the stream's bucket and a queue of its own.
pub(super) struct Emulator<'a> {
    sandbox: &'a Sandbox,
    queue_url: String,
    body: Bytes,
}

impl<'a> Emulator<'a> {
    pub(super) async fn start(sandbox: &'a Sandbox) -> Result<Self> {
        let queue_url = create_queue(sandbox.sqs(), "emulator.fifo").await?;
        let body = serde_json::to_vec_pretty(&Posts::lorem_ipsum(100).iter().collect::<Vec<_>>())?.into();
        Ok(Self { sandbox, queue_url, body })
    }

    /// Takes a sample of each request; answers with the milliseconds of those on a change's way.
    pub(super) async fn measure(&self, report: &mut Report) -> Result<f64> {
        let mut took = REQUESTS.map(|_| Vec::new());
        for _ in 0..TIMES {
            for (took, time) in took.iter_mut().zip(self.ask().await?) {
                took.push(time.as_secs_f64() * 1e3);
            }
        }
        let medians = took.map(|took| percentile(50, took.into_iter()));
        for (name, median) in REQUESTS.into_iter().zip(medians) {
            report.sample(name, median);
        }
        let [head, put, _, received, get] = medians;
        Ok(head + put + received + get)
    }

    async fn ask(&self) -> Result<[Duration; REQUESTS.len()]> {
        let (s3, bucket, key) = (self.sandbox.s3(), self.sandbox.bucket(), format!("emulator/{}", Uuid::now_v7()));
        let begun = Instant::now();
        let put = s3.put_object().bucket(bucket).key(&key).if_none_match("*").metadata("observation", &key);
        put.body(self.body.clone().into()).send().await?;
        let put = begun.elapsed();
        let begun = Instant::now();
        s3.head_object().bucket(bucket).key(&key).send().await?;
        let head = begun.elapsed();
        let (send, received) = self.send_and_receive(&key).await?;
        let begun = Instant::now();
        s3.get_object().bucket(bucket).key(&key).send().await?.body.collect().await?;
        Ok([head, put, send, received, begun.elapsed()])
    }

    /// How long the SEND took, and how long until the message was there.
    async fn send_and_receive(&self, body: &str) -> Result<(Duration, Duration)> {
        let sqs = self.sandbox.sqs();
        let entry = SendMessageBatchRequestEntry::builder().id("0").message_body(body).message_group_id("posts");
        let entry = entry.message_deduplication_id(Uuid::now_v7().to_string()).build()?;
        let sending = async {
            sleep(UNTIL_IT_WAITS).await;
            let begun = Instant::now();
            sqs.send_message_batch().queue_url(&self.queue_url).entries(entry).send().await?;
            anyhow::Ok((begun, begun.elapsed()))
        };
        let receiving = async {
            let receive = sqs.receive_message().queue_url(&self.queue_url).max_number_of_messages(10);
            let received = receive.visibility_timeout(4).wait_time_seconds(20).send().await?;
            anyhow::Ok((received, Instant::now()))
        };
        let ((begun, sent), (answer, at)) = tokio::try_join!(sending, receiving)?;
        let receipt = answer.messages().first().and_then(|message| message.receipt_handle());
        let receipt = receipt.context("the message that was sent")?;
        sqs.delete_message().queue_url(&self.queue_url).receipt_handle(receipt).send().await?;
        Ok((sent, at - begun))
    }
}
