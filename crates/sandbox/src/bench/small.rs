//! Many small objects: each with a message, and caught up with. They take so long that cold caches do not count.

use std::time::Duration;

use anyhow::{Context, Result};
use aws_sdk_s3::Client;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use axum::body::Bytes;
use serde_json::{Map, json};
use shared::pointer::Pointer;
use tokio::time::Instant;

use super::{
    Bench,
    program::Usage,
    report::{Goal, Report, per_second},
};
use crate::{
    daemon::Signal,
    posts::Posts,
    proxy::{Proxy, Way},
};

/// Each is the API's hundred posts with one of them changed.
const MESSAGES: u64 = 2_000;

/// Each is one post.
const CAUGHT_UP_WITH: u64 = 10_000;

/// How many of them are fetched one after the other.
const ONE_BY_ONE: usize = 2_000;

/// How many snapshots of a hundred posts are caught up with.
const SNAPSHOTS: u64 = 2_000;

/// How many objects are caught up with over a slow wire.
const OVER_A_SLOW_WIRE: u64 = 500;

/// There and back, as to S3 in another region.
const LATENCY: Duration = Duration::from_millis(100);

/// A queue takes no larger batch (<https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html>).
const BATCH: usize = 10;

/// Two thousand take some seconds.
const DEADLINE: Duration = Duration::from_mins(3);

/// The daemon, told of each object by a message.
pub(super) async fn by_message(bench: &Bench, report: &mut Report) -> Result<()> {
    let rate = format!("{MESSAGES} messages of objects of 100 posts");
    let processor = "processor time a message";
    for number in 1..=bench.settings.rounds {
        report.begin("messages", number);
        let (took, used) = follow_messages(bench, &format!("by_message_{number}")).await?;
        report.sample(&rate, per_second(MESSAGES, took));
        if let Some(used) = used {
            report.sample(processor, 1e3 / per_second(MESSAGES, used));
        }
    }
    report.figure(&rate, "objects/s", None, None);
    report.figure(processor, "ms", None, Some(Goal::AtMost(0.5)));
    Ok(())
}

/// How long the messages took, and how much of the processor, where that is known.
async fn follow_messages(bench: &Bench, stream: &str) -> Result<(Duration, Option<Duration>)> {
    let transformer = bench.transformer(stream, stream).await?;
    let queue_url = transformer.settings.get("QUEUE_URL").context("it has a queue")?.to_owned();
    let transformer = bench.daemon("transformer", transformer).await?;
    // Without a message it sees nothing of these: the next look is an hour away.
    let pointers = bench.store.archive(stream, changing_posts(MESSAGES)?)?;
    transformer.signal(Signal::STOP);
    send(bench, &queue_url, &pointers).await?;
    let usage = || transformer.pid().and_then(Usage::of);
    let (begun, before) = (Instant::now(), usage());
    transformer.signal(Signal::CONT);
    let statement = format!("SELECT position = {MESSAGES} FROM {stream}.stream");
    let is_there = async || Ok(bench.sandbox.query::<(bool,)>(&statement).await? == [(true,)]);
    bench.sandbox.wait_until("all messages were followed", DEADLINE, is_there).await?;
    let (took, after) = (begun.elapsed(), usage());
    transformer.terminate().await?;
    Ok((took, before.zip(after).map(|(before, after)| after.processor.saturating_sub(before.processor))))
}

/// What an API of a hundred posts says while one after the other changes.
fn changing_posts(times: u64) -> Result<Vec<Bytes>> {
    let mut posts = Posts::lorem_ipsum(100);
    let mut say = |time| {
        posts.patch(time % 100 + 1, Map::from_iter([("title".to_owned(), json!(format!("title {time}")))]));
        Ok(serde_json::to_vec(&posts.iter().collect::<Vec<_>>())?.into())
    };
    (0..times).map(&mut say).collect()
}

/// Fills the queue.
pub(super) async fn send(bench: &Bench, queue_url: &str, pointers: &[Pointer]) -> Result<()> {
    for batch in pointers.chunks(BATCH) {
        let entry = |pointer: &Pointer| {
            let entry = SendMessageBatchRequestEntry::builder().id(pointer.sequence.to_string());
            let entry = entry.message_body(pointer.encode()).message_group_id(pointer.stream.to_string());
            entry.message_deduplication_id(pointer.observation.to_string()).build()
        };
        let entries = batch.iter().map(entry).collect::<Result<_, _>>()?;
        let send = bench.sandbox.sqs().send_message_batch().queue_url(queue_url);
        send.set_entries(Some(entries)).send().await?;
    }
    Ok(())
}

/// `transformer once` on an archive that it knows nothing of, beside fetching the same objects and doing nothing with them; and over a wire
/// on which each answer is late.
pub(super) async fn caught_up_with(bench: &Bench, report: &mut Report) -> Result<()> {
    const STREAM: &str = "catch_up";
    const OF_SNAPSHOTS: &str = "catch_up_snapshots";
    let posts = Posts::lorem_ipsum(CAUGHT_UP_WITH);
    let bodies: Vec<Bytes> = posts.iter().map(|post| Ok(serde_json::to_vec(post)?.into())).collect::<Result<_>>()?;
    let archive = |stream, bodies| -> Result<Vec<_>> {
        Ok(bench.store.archive(stream, bodies)?.into_iter().map(|pointer| pointer.key).collect())
    };
    let keys = archive(STREAM, bodies)?;
    let snapshot_keys = archive(OF_SNAPSHOTS, changing_posts(SNAPSHOTS)?)?;
    let snapshots = format!("catch-up, {SNAPSHOTS} snapshots of the same 100 posts");
    let one_snapshot = "one GET of a snapshot after the other";
    let caught_up = format!("catch-up, {CAUGHT_UP_WITH} objects of one post");
    let one_by_one = "one GET after the other";
    let wire = Proxy::start(bench.store.endpoint()).await?;
    wire.set(Way::Delay(LATENCY / 2));
    let slow = format!("catch-up, {OVER_A_SLOW_WIRE} objects of one post, S3 100 ms away");
    for number in 1..=bench.settings.rounds {
        report.begin("catch-up", number);
        let catch_up = async |stream: &str, endpoint: &str, objects: u64, schema: String| {
            let mut transformer = bench.transformer(stream, &schema).await?;
            transformer.settings.set(&[("AWS_ENDPOINT_URL_S3", endpoint)]);
            let ran = transformer.run(&["once", "--to", &objects.to_string()]).await?;
            anyhow::Ok(per_second(objects, ran.took))
        };
        let near = catch_up(STREAM, bench.store.endpoint(), CAUGHT_UP_WITH, format!("catch_up_{number}")).await?;
        report.sample(&caught_up, near);
        let took = get_each(&bench.store.client, &bench.store.bucket, &keys[..ONE_BY_ONE]).await?;
        report.sample(one_by_one, per_second(ONE_BY_ONE as u64, took));
        let near =
            catch_up(OF_SNAPSHOTS, bench.store.endpoint(), SNAPSHOTS, format!("catch_up_snapshots_{number}")).await?;
        report.sample(&snapshots, near);
        let took = get_each(&bench.store.client, &bench.store.bucket, &snapshot_keys).await?;
        report.sample(one_snapshot, per_second(SNAPSHOTS, took));
        report.sample(&slow, catch_up(STREAM, &wire.url(), OVER_A_SLOW_WIRE, format!("slow_catch_up_{number}")).await?);
    }
    report.figure(one_by_one, "objects/s", None, None);
    report.figure(&caught_up, "objects/s", Some(one_by_one), Some(Goal::AtLeast(1.5)));
    report.figure(one_snapshot, "objects/s", None, None);
    report.figure(&snapshots, "objects/s", Some(one_snapshot), Some(Goal::AtLeast(1.5)));
    report.figure(&slow, "objects/s", None, Some(Goal::AtLeast(250.0)));
    Ok(())
}

async fn get_each(client: &Client, bucket: &str, keys: &[String]) -> Result<Duration> {
    let begun = Instant::now();
    for key in keys {
        client.get_object().bucket(bucket).key(key).send().await?.body.collect().await?;
    }
    Ok(begun.elapsed())
}
