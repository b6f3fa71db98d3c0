//! How the time grows: with streams side by side, with the size of an object, and with the length of an archive.

use anyhow::Result;
use shared::archive::{Archive, S3Archive};
use tokio::time::Instant;

use super::{
    Bench,
    counted::Counted,
    memory_s3::MemoryS3,
    posts,
    program::Program,
    report::{Goal, Report, per_second},
    sql,
    store::{self, Store},
};

const STREAMS: [u64; 3] = [1, 2, 4];

/// Of an object, up to ten times the large one.
const SIZES: [u64; 6] = [100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// Of an archive.
const LENGTHS: [u64; 3] = [100, 10_000, 1_000_000];

/// How often an end is found in a round.
const FINDS: u32 = 20;

/// A quarter of the large object for each of some streams, all in one database.
pub(super) async fn streams(bench: &Bench, report: &mut Report) -> Result<()> {
    let each = (bench.settings.posts / 4).max(1);
    let body = posts(each).await?;
    let name = |streams: u64| format!("side by side: {streams}, {each} posts each");
    let alone = name(1);
    let mut connection = bench.sandbox.connect().await?;
    for number in 0..=bench.settings.rounds {
        report.begin("streams", number);
        for streams in STREAMS {
            let mut transformers = Vec::new();
            for stream in 1..=streams {
                let stream = format!("side_{number}_{streams}_{stream}");
                bench.store.archive(&stream, [body.clone()])?;
                transformers.push(bench.transformer(&stream, &stream).await?);
            }
            sql::run(&mut connection, "CHECKPOINT".to_owned()).await?;
            let begun = Instant::now();
            once(&transformers).await?;
            report.sample(&name(streams), per_second(streams * each, begun.elapsed()));
            for transformer in &transformers {
                let schema = transformer.settings.get("DATABASE_SCHEMA").unwrap_or_default();
                sql::run(&mut connection, format!("DROP SCHEMA {schema} CASCADE")).await?;
            }
        }
    }
    for streams in STREAMS {
        report.figure(&name(streams), "rows/s", (streams > 1).then_some(&*alone), None);
    }
    Ok(())
}

/// All of them side by side, to their ends.
async fn once(transformers: &[Program<'_>]) -> Result<()> {
    let Some((first, others)) = transformers.split_first() else { return Ok(()) };
    tokio::try_join!(first.run(&["once"]), Box::pin(once(others))).map(|_| ())
}

/// What a post costs in an object of few and of many: a first load, from the answer to the GET to the COMMIT.
pub(super) async fn sizes(bench: &Bench, report: &mut Report) -> Result<()> {
    let name = |size: u64| format!("a post in an object of {size}");
    let is_measured = |size: &u64| *size <= 10 * bench.settings.posts;
    for size in SIZES.into_iter().filter(is_measured) {
        let stream = format!("size_{size}");
        // It goes with its object, which may be two gigabytes.
        let store = Store::start(&bench.sandbox).await?;
        store.archive(&stream, [posts(size).await?])?;
        // The largest takes half a minute, and is not cold by now.
        let rounds = if size > bench.settings.posts { 1..=1 } else { 0..=bench.settings.rounds };
        for number in rounds {
            report.begin(&stream, number);
            let schema = format!("{stream}_{number}");
            let mut transformer = bench.transformer(&stream, &schema).await?;
            transformer.settings.set(&[("AWS_ENDPOINT_URL_S3", store.endpoint())]);
            let mut connection = bench.sandbox.connect().await?;
            sql::settle(&mut connection, &format!("{schema}.posts")).await?;
            let took = transformer.run(&["once"]).await?.between("begins with", "applied")?;
            report.sample(&name(size), 1e6 / per_second(size, took));
            sql::run(&mut connection, format!("DROP SCHEMA {schema} CASCADE")).await?;
        }
    }
    for size in SIZES {
        report.figure(&name(size), "µs", None, None);
    }
    Ok(())
}

/// What it takes to find the end of an archive, as both daemons do when they start.
pub(super) async fn lengths(bench: &Bench, report: &mut Report) -> Result<()> {
    for length in LENGTHS {
        let s3 = MemoryS3::start().await?;
        s3.fill(bench.sandbox.stream(), length);
        let counted = Counted::start(&s3.endpoint).await?;
        let archive = |endpoint: &str| {
            let (client, bucket) = (store::client(&bench.sandbox, endpoint), bench.store.bucket.clone());
            S3Archive::new(client, bucket, bench.sandbox.stream().clone())
        };
        let requests = format!("the end of {length} objects, LIST");
        let time = format!("the end of {length} objects, time");
        let direct = archive(&s3.endpoint);
        for number in 0..=bench.settings.rounds {
            report.begin("end", number);
            let before = counted.counts();
            archive(&counted.url).end().await?;
            report.sample(&requests, counted.counts().since(&before, 1).all());
            let begun = Instant::now();
            for _ in 0..FINDS {
                direct.end().await?;
            }
            report.sample(&time, 1e3 / per_second(FINDS.into(), begun.elapsed()));
        }
        report.figure(&requests, "requests", None, Some(Goal::AtMost(4.0)));
        report.figure(&time, "ms", None, None);
    }
    Ok(())
}
