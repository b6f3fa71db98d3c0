//! Where the archives lie: s3s-fs, if it is installed, because LocalStack's own speed would be what is measured; else LocalStack.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context, Result};
use aws_sdk_s3::Client;
use axum::body::Bytes;
use jiff::Timestamp;
use sha2::Digest;
use shared::{
    object::{Metadata, Sequence, Sha256, StreamName},
    pointer::Pointer,
};
use tokio::{
    process::Child,
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::{port::free_port, sandbox::Sandbox, settings::Settings};

/// It takes some milliseconds.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// An S3 server with the bucket in it.
pub(super) struct Store {
    /// For people.
    pub(super) name: &'static str,
    pub(super) endpoint: String,
    pub(super) client: Client,
    pub(super) bucket: String,
    /// Ends with this.
    _server: Option<Child>,
}

impl Store {
    /// `cargo install s3s-fs --version 0.14.1 --features binary --locked --root target/s3s-fs` brings the fast one.
    pub(super) async fn start(sandbox: &Sandbox) -> Result<Self> {
        let world = sandbox.world();
        let program = world.place().target.join("s3s-fs/bin/s3s-fs");
        let bucket = sandbox.bucket().to_owned();
        if !program.is_file() {
            let (name, endpoint) =
                ("LocalStack, whose own speed counts here (s3s-fs is not installed)", world.localstack().endpoint());
            return Ok(Self {
                name,
                endpoint: endpoint.to_owned(),
                client: sandbox.s3().clone(),
                bucket,
                _server: None,
            });
        }
        let root = sandbox.logs().join("s3s-fs");
        fs::create_dir_all(root.join(&bucket))?;
        let port = free_port();
        let mut server = world.program(&program, &Settings::new());
        server.args([
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--access-key",
            "test",
            "--secret-key",
            "test",
        ]);
        server.arg(&root).stdout(Stdio::null()).stderr(Stdio::null());
        let server = tokio::process::Command::from(server).kill_on_drop(true).spawn()?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let config = world.aws_config().into_builder().endpoint_url(&endpoint).build();
        let store = Self { name: "s3s-fs", endpoint, client: shared::aws::s3(&config), bucket, _server: Some(server) };
        store.until_it_answers().await?;
        Ok(store)
    }

    async fn until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match self.client.head_bucket().bucket(&self.bucket).send().await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error).context("s3s-fs does not answer"),
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Archives the bodies as the first objects of a stream. Answers with what an importer would tell the queue.
    pub(super) async fn archive(&self, stream: &str, bodies: impl IntoIterator<Item = Bytes>) -> Result<Vec<Pointer>> {
        let stream: StreamName = stream.parse()?;
        let (archive_id, mut previous, mut sequence) = (Uuid::now_v7(), None, Sequence::FIRST);
        let mut pointers = Vec::new();
        for body in bodies {
            let (observation, sha256) = (Uuid::now_v7(), Sha256(sha2::Sha256::digest(&body).into()));
            let metadata = Metadata {
                archive_id,
                observation,
                previous: previous.replace(observation),
                sha256,
                fetched_at: Timestamp::now(),
                source_url: "http://127.0.0.1/posts".to_owned(),
                etag: None,
                last_modified: None,
                snapshot: sequence,
                page: 1,
                last_page: true,
                snapshot_sha256: Sha256::of_pages(&[sha256]),
            };
            let put = self.client.put_object().bucket(&self.bucket).key(sequence.key(&stream));
            put.set_metadata(Some(metadata.encode()?)).body(body.into()).send().await?;
            pointers.push(Pointer::new(&stream, sequence, &metadata));
            sequence = sequence.next();
        }
        Ok(pointers)
    }
}
