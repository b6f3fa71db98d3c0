//! What a daemon says to people: log lines on stderr, and errors in one line.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Logs and admin endpoint.
#[derive(Args, Clone, Debug)]
pub struct TelemetrySettings {
    /// Where to serve /healthz, /readyz and /metrics, as host:port; port 0 takes a free one and logs it. Nothing is served by default
    #[arg(long, env = "ADMIN_ADDR", value_name = "ADDR")]
    pub admin_addr: Option<SocketAddr>,
    /// Form of the log lines [default: text on a terminal, json otherwise]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Which log lines to write: error, warn, info, debug or trace, also per module, as in `info,importer=debug`
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info", value_parser = parse_filter)]
    pub rust_log: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

fn parse_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Sends log lines to stderr from here on. Once a process.
pub fn log_to_stderr(settings: &TelemetrySettings) {
    let is_terminal = io::stderr().is_terminal();
    let format = settings.log_format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
    let color = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let filter = EnvFilter::new(&settings.rust_log);
    let stderr = move || {
        let mut stderr = io::stderr();
        if is_terminal {
            // A progress bar may stand in this line; it is drawn again below.
            let _ = stderr.write_all(b"\r\x1b[2K");
        }
        stderr
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(color);
    match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
        LogFormat::Text => lines.with_target(false).init(),
    }
}

/// What strangers wrote may be in an error, and is as long as they like.
const LINE_LIMIT_CHARS: usize = 2_000;

/// An error and its causes in one line, for the one place that logs it. Some libraries repeat the cause in their own text.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    let line = line.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LINE_LIMIT_CHARS) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_once() {
        let cause = io::Error::other("connection refused");
        let error = crate::archive::ArchiveError::Failed {
            operation: "PutObject",
            bucket: "b".into(),
            key: "k".into(),
            source: cause.into(),
        };
        assert_eq!(chain(&error), "PutObject s3://b/k failed: connection refused");
        let long = chain(&io::Error::other("é".repeat(256 * 1024)));
        assert_eq!((long.chars().count(), long.ends_with("é …")), (LINE_LIMIT_CHARS + 2, true));
    }
}
