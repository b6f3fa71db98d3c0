//! The archives that are loaded.

use anyhow::Result;
use aws_sdk_s3::Client;
use axum::body::Bytes;
use jiff::Timestamp;
use sha2::Digest;
use shared::{
    object::{Metadata, Sequence, Sha256, SnapshotFacts, StreamName},
    pointer::Pointer,
};
use uuid::Uuid;

use super::memory_s3::MemoryS3;
use crate::sandbox::Sandbox;

/// Where the archives lie.
pub(super) struct Store {
    pub(super) client: Client,
    pub(super) bucket: String,
    server: MemoryS3,
}

impl Store {
    pub(super) async fn start(sandbox: &Sandbox) -> Result<Self> {
        let server = MemoryS3::start().await?;
        let client = client(sandbox, &server.endpoint);
        Ok(Self { client, bucket: sandbox.bucket().to_owned(), server })
    }

    /// For `AWS_ENDPOINT_URL_S3`.
    pub(super) fn endpoint(&self) -> &str {
        &self.server.endpoint
    }

    /// Archives the bodies as the first objects of a stream. Answers with what an importer would tell the queue.
    pub(super) fn archive(&self, stream: &str, bodies: impl IntoIterator<Item = Bytes>) -> Result<Vec<Pointer>> {
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
                facts: SnapshotFacts::default(),
            };
            self.server.insert(sequence.key(&stream), metadata.encode()?, body)?;
            pointers.push(Pointer::new(&stream, sequence, &metadata));
            sequence = sequence.next();
        }
        Ok(pointers)
    }
}

/// A client of S3 at another place than the world's.
pub(super) fn client(sandbox: &Sandbox, endpoint: &str) -> Client {
    shared::aws::s3(&sandbox.world().aws_config().into_builder().endpoint_url(endpoint).build())
}
