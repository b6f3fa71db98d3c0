//! Stands before S3 and SQS and counts what is asked of them as the bill does: by operation, a batch as one.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{self, Method, StatusCode, header},
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use reqwest::Client;
use tokio::{net::TcpListener, task::JoinHandle};

/// How often each operation was asked for, in all or on average.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(pub(super) BTreeMap<String, f64>);

/// It ends when it is dropped.
pub(super) struct Counted {
    /// For `AWS_ENDPOINT_URL`.
    pub(super) url: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    target: String,
    client: Client,
    counts: Mutex<Counts>,
}

impl Counted {
    /// Counts what is asked of `target`, a URL without a path.
    pub(super) async fn start(target: &str) -> Result<Self> {
        let client = Client::builder().no_proxy().tcp_nodelay(true).build()?;
        let shared = Arc::new(Shared { target: target.to_owned(), client, counts: Mutex::default() });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let router = Router::new().fallback(pass).with_state(shared.clone());
        // It serves until it is aborted.
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { url, shared, server })
    }

    /// So far.
    pub(super) fn counts(&self) -> Counts {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Counts {
    /// What came after `before`, divided by this number.
    pub(super) fn since(&self, before: &Self, number: u32) -> Self {
        let mean = |(name, count): (&String, &f64)| (name.clone(), (count - before.of(name)) / f64::from(number));
        Self(self.0.iter().map(mean).collect())
    }

    pub(super) fn of(&self, operation: &str) -> f64 {
        self.0.get(operation).copied().unwrap_or_default()
    }

    /// All operations together.
    pub(super) fn all(&self) -> f64 {
        self.0.values().sum()
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let operation = operation(&request);
    *shared.counts.lock().unwrap_or_else(PoisonError::into_inner).0.entry(operation).or_default() += 1.0;
    let answer = shared.pass(request).await;
    answer.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response())
}

impl Shared {
    async fn pass(&self, request: Request) -> Result<Response> {
        let (mut parts, body) = request.into_parts();
        for of_the_connection in [header::HOST, header::EXPECT, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
            parts.headers.remove(of_the_connection);
        }
        let request = self.client.request(parts.method, format!("{}{}", self.target, parts.uri));
        let answer = request.headers(parts.headers).body(to_bytes(body, usize::MAX).await?).send().await?;
        Ok(http::Response::from(answer).map(Body::new))
    }
}

/// SQS names it in a header; S3 means it by method and query.
fn operation(request: &Request) -> String {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    if let Some((_, name)) = target.and_then(|target| target.rsplit_once('.')) {
        return name.to_owned();
    }
    let is_listing = request.uri().query().is_some_and(|query| query.contains("list-type=2"));
    match *request.method() {
        Method::GET if is_listing => "ListObjectsV2".to_owned(),
        Method::GET => "GetObject".to_owned(),
        Method::HEAD => "HeadObject".to_owned(),
        Method::PUT => "PutObject".to_owned(),
        ref other => other.to_string(),
    }
}
