//! The importer on a large answer, plain and packed, beside downloading it, unpacking it and then uploading it.

use std::{
    io::{Read, Write},
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    http::header::{CONTENT_ENCODING, CONTENT_TYPE},
    routing::get,
};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use tokio::{net::TcpListener, task::spawn_blocking, time::Instant};

use super::{
    Bench,
    report::{Goal, Report, per_second},
};

const PLAIN: &str = "plain download, then plain upload";
const IMPORTER: &str = "importer once";
const PLAIN_PACKED: &str = "download of gzip, unpacking, upload";
const IMPORTER_PACKED: &str = "importer once, of gzip";

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let packed = pack(bench.posts.clone()).await?;
    let answers = [
        (PLAIN, IMPORTER, serve(bench.posts.clone(), "identity").await?),
        (PLAIN_PACKED, IMPORTER_PACKED, serve(packed, "gzip").await?),
    ];
    // Of what is archived, however it came.
    let megabytes = |took: Duration| per_second(bench.posts.len() as u64, took) / 1e6;
    for number in 0..=bench.settings.rounds {
        report.begin("importer", number);
        for (answer, (plain, importer, url)) in answers.iter().enumerate() {
            report.sample(plain, megabytes(carry(bench, url, "plain").await?));
            let mut program = bench.importer(&format!("import_{number}_{answer}")).await?;
            program.settings.set(&[("SOURCE_URL", url)]);
            report.sample(importer, megabytes(program.run(&["once"]).await?.took));
        }
    }
    report.figure(PLAIN, "MB/s", None, None);
    report.figure(IMPORTER, "MB/s", Some(PLAIN), Some(Goal::AtLeast(0.8)));
    report.figure(PLAIN_PACKED, "MB/s", None, None);
    report.figure(IMPORTER_PACKED, "MB/s", Some(PLAIN_PACKED), Some(Goal::AtLeast(0.8)));
    Ok(())
}

async fn pack(body: Bytes) -> Result<Bytes> {
    let packed = spawn_blocking(move || {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(&body)?;
        packer.finish()
    });
    Ok(packed.await??.into())
}

/// An API that says the same every time, from memory; it ends with the program.
async fn serve(body: Bytes, encoding: &'static str) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}/posts", listener.local_addr()?);
    let headers = [(CONTENT_TYPE, "application/json"), (CONTENT_ENCODING, encoding)];
    let api = Router::new().route("/posts", get(async move || (headers, body)));
    tokio::spawn(async move { axum::serve(listener, api).await });
    Ok(url)
}

/// Through memory: nothing is hashed, and nothing is written to disk on the way.
async fn carry(bench: &Bench, url: &str, key: &str) -> Result<Duration> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let begun = Instant::now();
    let answer = client.get(url).send().await?.error_for_status()?;
    let is_packed = answer.headers()[CONTENT_ENCODING] == "gzip";
    let mut body = answer.bytes().await?;
    if is_packed {
        body = spawn_blocking(move || unpack(&body)).await??;
    }
    let put = bench.store.client.put_object().bucket(&bench.store.bucket).key(key).body(body.into());
    put.customize().disable_payload_signing().send().await?;
    Ok(begun.elapsed())
}

fn unpack(body: &[u8]) -> Result<Bytes> {
    let mut unpacked = Vec::new();
    GzDecoder::new(body).read_to_end(&mut unpacked)?;
    Ok(unpacked.into())
}
