//! The admin endpoint: `/healthz` (the work loop makes progress; a dead dependency does not fail it), `/readyz` (the work gets done) and
//! `/metrics`. Loopback is a good address for it: it tells nothing secret, and asks nobody who they are.

use std::io;

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio::net::TcpListener;
use tracing::info;

use crate::{
    metrics,
    status::{self, Status},
    telemetry::TelemetrySettings,
};

/// Serves the endpoint where the settings ask for one. It ends with the process.
pub async fn serve(settings: &TelemetrySettings, status: &Status) -> io::Result<()> {
    let Some(address) = settings.admin_addr else { return Ok(()) };
    let listener = TcpListener::bind(address).await?;
    info!(address = %listener.local_addr()?, "admin endpoint listens");
    let status = status.clone();
    let ready = async move || {
        let (is_ready, report) = status.readiness();
        (code(is_ready), report)
    };
    let metrics = async || ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics::text());
    let routes = Router::new()
        .route("/healthz", get(async || health()))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(())
}

fn health() -> (StatusCode, String) {
    (code(status::is_alive()), format!("the last sign of life is {} seconds old\n", status::silence().as_secs()))
}

fn code(is_well: bool) -> StatusCode {
    if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
