//! S3 in memory, as far as the daemons speak it: LocalStack's own speed would be what is measured. Tests never use it.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
    net::Ipv4Addr,
    sync::{Arc, PoisonError, RwLock},
};

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::ListenerExt,
};
use serde::Deserialize;
use shared::object::{Sequence, StreamName};
use tokio::{net::TcpListener, task::JoinHandle};

/// No object changes here, so all have the same.
const ETAG: HeaderValue = HeaderValue::from_static("\"memory\"");

/// All buckets are one. A key's headers are its metadata and its `ETag`.
type Objects = Arc<RwLock<BTreeMap<String, (HeaderMap, Bytes)>>>;

/// The server; it ends when it is dropped.
pub(super) struct MemoryS3 {
    /// For `AWS_ENDPOINT_URL_S3`.
    pub(super) endpoint: String,
    objects: Objects,
    server: JoinHandle<()>,
}

impl MemoryS3 {
    pub(super) async fn start() -> Result<Self> {
        let objects = Objects::default();
        let router = Router::new()
            .route("/{bucket}", get(list))
            .route("/{bucket}/", get(list))
            .route("/{bucket}/{*key}", get(read).put(write))
            .layer(DefaultBodyLimit::disable())
            .with_state(objects.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        // It serves until it is aborted.
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { endpoint, objects, server })
    }

    /// What a PUT does, without another copy of the body.
    pub(super) fn insert(&self, key: String, metadata: HashMap<String, String>, body: Bytes) -> Result<()> {
        let field = |(name, value): (String, String)| {
            anyhow::Ok((HeaderName::try_from(format!("x-amz-meta-{name}"))?, HeaderValue::try_from(value)?))
        };
        let mut headers: HeaderMap = metadata.into_iter().map(field).collect::<Result<_>>()?;
        headers.insert(header::ETAG, ETAG);
        self.objects.write().unwrap_or_else(PoisonError::into_inner).insert(key, (headers, body));
        Ok(())
    }

    /// Makes an archive of this many objects that are only there to be listed.
    pub(super) fn fill(&self, stream: &StreamName, objects: u64) {
        let sequences = iter::successors(Some(Sequence::FIRST), |sequence| Some(sequence.next()));
        let keys = sequences.take_while(|sequence| sequence.get() <= objects).map(|sequence| sequence.key(stream));
        let mut all = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        all.extend(keys.map(|key| (key, (HeaderMap::new(), Bytes::new()))));
    }
}

impl Drop for MemoryS3 {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// GET, whole or a range, and HEAD by dropping the body.
async fn read(State(objects): State<Objects>, Path((_, key)): Path<(String, String)>, asked: HeaderMap) -> Response {
    let objects = objects.read().unwrap_or_else(PoisonError::into_inner);
    let Some((headers, body)) = objects.get(&key).cloned() else {
        return refusal(StatusCode::NOT_FOUND, "NoSuchKey");
    };
    match range(&asked) {
        Some((first, last)) if last < body.len() => {
            let range = [(header::CONTENT_RANGE, format!("bytes {first}-{last}/{}", body.len()))];
            (StatusCode::PARTIAL_CONTENT, headers, range, body.slice(first..=last)).into_response()
        }
        _ => (headers, body).into_response(),
    }
}

/// The first and the last byte, where both are given.
fn range(asked: &HeaderMap) -> Option<(usize, usize)> {
    let (first, last) = asked.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

async fn write(
    State(objects): State<Objects>,
    Path((_, key)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut objects = objects.write().unwrap_or_else(PoisonError::into_inner);
    if headers.contains_key(header::IF_NONE_MATCH) && objects.contains_key(&key) {
        return refusal(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
    }
    let metadata = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-amz-meta-"));
    let mut kept: HeaderMap = metadata.map(|(name, value)| (name.clone(), value.clone())).collect();
    kept.insert(header::ETAG, ETAG);
    objects.insert(key, (kept, body));
    ([(header::ETAG, ETAG)], "").into_response()
}

/// What a listing asks for. Folders of an archive hold at most a thousand entries, so that a second page is never asked for.
#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    prefix: String,
}

async fn list(State(objects): State<Objects>, Query(Listing { prefix }): Query<Listing>) -> String {
    let objects = objects.read().unwrap_or_else(PoisonError::into_inner);
    let (mut entries, mut from) = (Vec::new(), prefix.clone());
    while let Some(key) = objects.range(from..).next().map(|(key, _)| key).filter(|key| key.starts_with(&prefix)) {
        if let Some((folder, _)) = key[prefix.len()..].split_once('/') {
            entries.push(format!("<CommonPrefixes><Prefix>{prefix}{folder}/</Prefix></CommonPrefixes>"));
            // The character after the slash: past all keys in the folder.
            from = format!("{prefix}{folder}0");
        } else {
            entries.push(format!("<Contents><Key>{key}</Key></Contents>"));
            from = format!("{key}\0");
        }
    }
    let entries = entries.concat();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>")
}

fn refusal(status: StatusCode, code: &str) -> Response {
    (status, format!("<Error><Code>{code}</Code></Error>")).into_response()
}
