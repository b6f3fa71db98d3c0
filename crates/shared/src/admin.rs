//! The admin endpoint: `/healthz` (the work loop makes progress; a dead dependency does not fail it), `/readyz` (the work gets done) and
//! `/metrics`. Loopback is a good address for it: it tells nothing secret, and asks nobody who they are.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::info;

use crate::{
    metrics,
    status::{self, Status},
    telemetry::TelemetrySettings,
};

/// So many connections at once; more wait outside, where they cost the daemon none of the files that its work needs.
const CONNECTIONS: usize = 16;

/// A connection is closed after this long, whatever comes on it. Whoever asks seldom connects anew.
const CONNECTION_LIFE: Duration = Duration::from_secs(10);

/// Serves the endpoint where the settings ask for one. It ends with the process.
pub async fn serve(settings: &TelemetrySettings, status: &Status) -> io::Result<()> {
    let Some(address) = settings.admin_addr else { return Ok(()) };
    let listener = TcpListener::bind(address).await?;
    info!(address = %listener.local_addr()?, "admin endpoint listens");
    let status = status.clone();
    let ready = async move || {
        let (is_ready, report) = status.readiness(Instant::now());
        (code(is_ready), report)
    };
    let metrics = async || ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics::text());
    let routes = Router::new()
        .route("/healthz", get(async || health()))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    tokio::spawn(answer(listener, routes));
    Ok(())
}

async fn answer(listener: TcpListener, routes: Router) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("nobody closes the semaphore");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files, most likely: the daemon's work comes first.
            sleep(Duration::from_secs(1)).await;
            continue;
        };
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.clone()));
        tokio::spawn(async move {
            // Whoever is cut off asks again.
            let _ = timeout(CONNECTION_LIFE, connection).await;
            drop(permit);
        });
    }
}

fn health() -> (StatusCode, String) {
    (code(status::is_alive()), format!("the last sign of life is {} seconds old\n", status::silence().as_secs()))
}

fn code(is_well: bool) -> StatusCode {
    if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
