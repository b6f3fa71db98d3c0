//! The importer on a large answer, beside plainly downloading it and then uploading it.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Result;
use axum::{Router, body::Bytes, routing::get};
use tokio::{net::TcpListener, time::Instant};

use super::{
    Bench,
    report::{Goal, Report, per_second},
};

const PLAIN: &str = "plain download, then plain upload";
const IMPORTER: &str = "importer once";

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let url = serve(bench.posts.clone()).await?;
    let megabytes = |took: Duration| per_second(bench.posts.len() as u64, took) / 1e6;
    for number in 0..=bench.settings.rounds {
        report.begin("importer", number);
        report.sample(PLAIN, megabytes(carry(bench, &url, "plain").await?));
        let mut importer = bench.importer(&format!("import_{number}")).await?;
        importer.settings.set(&[("SOURCE_URL", &url)]);
        let ran = importer.run(&["once"]).await?;
        report.sample(IMPORTER, megabytes(ran.took));
    }
    report.figure(PLAIN, "MB/s", None, None);
    report.figure(IMPORTER, "MB/s", Some(PLAIN), Some(Goal::AtLeast(0.8)));
    Ok(())
}

/// An API that says the same every time, from memory; it ends with the program.
async fn serve(body: Bytes) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}/posts", listener.local_addr()?);
    let api = Router::new().route("/posts", get(async move || ([("content-type", "application/json")], body)));
    tokio::spawn(async move { axum::serve(listener, api).await });
    Ok(url)
}

/// Through memory: nothing is hashed, and nothing is written to disk on the way.
async fn carry(bench: &Bench, url: &str, key: &str) -> Result<Duration> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let begun = Instant::now();
    let body = client.get(url).send().await?.error_for_status()?.bytes().await?;
    let put = bench.store.client.put_object().bucket(&bench.store.bucket).key(key).body(body.into());
    put.customize().disable_payload_signing().send().await?;
    Ok(begun.elapsed())
}
