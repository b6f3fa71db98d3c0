//! The page: the pipeline as it runs, and buttons for the drills. Everything that it shows comes by server-sent events:
//!
//! - `event`: what happened, in words and with its values; a page that is opened late gets the last ones first,
//! - `look`: what every part says of itself at one time,
//! - `trend`: rates and lag over the last ten minutes,
//! - `drill`: the drill that runs or ran last, whole each time.

mod state;
mod trace;
mod trend;

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn},
    response::{
        Html, IntoResponse, Response, Sse,
        sse::{self, KeepAlive},
    },
    routing::{get, post},
};
use reqwest::Client;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch},
    time::{sleep, timeout},
};
use tokio_stream::{
    Stream, StreamExt, iter,
    wrappers::{BroadcastStream, WatchStream, errors::BroadcastStreamRecvError},
};

use crate::{
    drills::{self, Backups, Drill, Report, Step},
    event::Event,
    sandbox::Sandbox,
    say::{Tone, say},
};

/// Enough to read back over the last drills.
const KEPT_EVENTS: usize = 300;

/// A reader that falls this far behind is told so.
const CAPACITY: usize = 1024;

/// Every part is on loopback; one that does not answer for this long is shown as such.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// While something happens the parts are looked at again after the first, while nothing does after the second.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_secs(1);

struct Page {
    sandbox: Arc<Sandbox>,
    backups: Backups,
    client: Client,
    events: Mutex<VecDeque<Value>>,
    live: broadcast::Sender<Value>,
    look: watch::Sender<Value>,
    trend: watch::Sender<Value>,
    drill: watch::Sender<Option<Shown>>,
}

/// A drill, as the page shows it.
#[derive(Clone, Serialize)]
struct Shown {
    drill: String,
    steps: Vec<Step>,
    /// Nothing as long as it runs.
    outcome: Option<Result<Report, String>>,
}

/// Serves the page on a free port until the runtime ends; answers with its address, `http://127.0.0.1:PORT`.
pub async fn serve(sandbox: Arc<Sandbox>) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = format!("http://{}", listener.local_addr()?);
    let page = Arc::new(Page {
        sandbox,
        backups: Backups::default(),
        client: Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?,
        events: Mutex::default(),
        live: broadcast::Sender::new(CAPACITY),
        look: watch::Sender::default(),
        trend: watch::Sender::default(),
        drill: watch::Sender::default(),
    });
    tokio::spawn(record(page.clone(), page.sandbox.events().subscribe()));
    tokio::spawn(look_on(page.clone()));
    tokio::spawn(trend::follow(page.clone()));
    let keeper = page.clone();
    tokio::spawn(async move { keeper.backups.keep(&keeper.sandbox).await });
    let routes = Router::new()
        .route("/", get(index))
        .route("/page.css", get(async || ([(header::CONTENT_TYPE, "text/css")], include_str!("page/page.css"))))
        .route("/page.js", get(async || ([(header::CONTENT_TYPE, "text/javascript")], include_str!("page/page.js"))))
        .route("/events", get(follow))
        .route("/drills/{name}", post(start))
        .route("/observations/{part}", get(trace::trace))
        .with_state(page)
        .layer(from_fn(refuse_strangers));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(address)
}

/// The page. What makes sense for the posts alone, or for another API alone, is hidden by the class of the whole.
async fn index(State(page): State<Arc<Page>>) -> Html<String> {
    let class = if page.sandbox.is_own_api() { "own-api" } else { "posts-api" };
    Html(include_str!("page.html").replace("<html ", &format!("<html class=\"{class}\" ")))
}

/// What a part answers, or that it does not.
async fn within<T>(part: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(ANSWER_DEADLINE, part).await.with_context(|| format!("no answer for {ANSWER_DEADLINE:?}"))?
}

/// Only the page itself may ask, at the address that it has: another site in the same browser may not start a drill or read along.
async fn refuse_strangers(request: Request, next: Next) -> Response {
    if is_of_the_page(request.headers()) { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() }
}

fn is_of_the_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let is_here = host.rsplit_once(':').is_some_and(|(host, _)| host == "127.0.0.1" || host == "localhost");
    is_here && text(header::ORIGIN).is_none_or(|origin| origin.strip_prefix("http://") == Some(host))
}

/// Remembers what happens, and passes it on.
async fn record(page: Arc<Page>, mut events: broadcast::Receiver<Event>) {
    loop {
        let (value, is_kept) = match events.recv().await {
            Ok(event) => {
                let said = say(&event);
                let (tone, text) = said.unwrap_or((Tone::Quiet, event.message.clone()));
                (json!({"event": event, "tone": format!("{tone:?}").to_lowercase(), "text": text}), tone != Tone::Quiet)
            }
            Err(broadcast::error::RecvError::Lagged(count)) => (lost(count), true),
            Err(broadcast::error::RecvError::Closed) => return,
        };
        // Under the lock, so that a page that opens now gets each event once.
        let mut kept = page.events();
        if is_kept {
            kept.push_back(value.clone());
            if kept.len() > KEPT_EVENTS {
                kept.pop_front();
            }
        }
        // An error means that nobody watches.
        let _ = page.live.send(value);
    }
}

fn lost(count: u64) -> Value {
    json!({"tone": "warning", "text": format!("… {count} events came faster than they can be shown")})
}

/// Looks at the parts as long as a person watches.
async fn look_on(page: Arc<Page>) {
    let mut events = page.live.subscribe();
    loop {
        // Whatever happens from here on is a reason to look again.
        events = events.resubscribe();
        let is_watched = page.look.receiver_count() > 0;
        page.look.send_replace(if is_watched { Box::pin(page.look()).await } else { Value::Null });
        sleep(LOOK_PAUSE).await;
        // Only that something happened matters, or that nothing did.
        let _ = timeout(LOOK_EVERY, events.recv()).await;
    }
}

/// The stream behind the page.
async fn follow(State(page): State<Arc<Page>>) -> Sse<impl Stream<Item = Result<sse::Event, axum::Error>>> {
    let (past, live) = {
        let kept = page.events();
        (kept.clone(), page.live.subscribe())
    };
    let live = BroadcastStream::new(live).map(|event| {
        event.unwrap_or_else(|lagged| match lagged {
            BroadcastStreamRecvError::Lagged(count) => lost(count),
        })
    });
    let events = iter(past).chain(live).map(|event| message("event", &event));
    let looks = WatchStream::new(page.look.subscribe()).map(|look| message("look", &look));
    let trends = WatchStream::new(page.trend.subscribe()).map(|trend| message("trend", &trend));
    let drills = WatchStream::new(page.drill.subscribe()).map(|drill| message("drill", &drill));
    Sse::new(events.merge(looks).merge(trends).merge(drills)).keep_alive(KeepAlive::default())
}

fn message(name: &str, data: &impl Serialize) -> Result<sse::Event, axum::Error> {
    sse::Event::default().event(name).json_data(data)
}

/// Runs a drill, and answers when it is over. It runs to its end even if nobody waits for the answer.
async fn start(State(page): State<Arc<Page>>, Path(name): Path<String>) -> Response {
    let drill = match name.parse::<Drill>() {
        Ok(drill) => drill,
        Err(error) => return (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
    };
    let is_begun = page.drill.send_if_modified(|shown| {
        let is_free = shown.as_ref().is_none_or(|shown| shown.outcome.is_some());
        if is_free {
            *shown = Some(Shown { drill: name, steps: Vec::new(), outcome: None });
        }
        is_free
    });
    if !is_begun {
        return (StatusCode::CONFLICT, "another drill is running; one at a time\n").into_response();
    }
    let runner = page.clone();
    let run = tokio::spawn(async move {
        let note = |step| runner.change_drill(|shown| shown.steps.push(step));
        drills::run(drill, &runner.sandbox, &runner.backups, note).await.map_err(|error| format!("{error:#}"))
    });
    let end = tokio::spawn(async move {
        let outcome = run.await.unwrap_or_else(|error| Err(error.to_string()));
        page.change_drill(|shown| shown.outcome = Some(outcome.clone()));
        outcome
    });
    match end.await {
        Ok(Ok(report)) => Json(report).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

impl Page {
    fn change_drill(&self, change: impl FnOnce(&mut Shown)) {
        self.drill.send_modify(|shown| {
            if let Some(shown) = shown {
                change(shown);
            }
        });
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Value>> {
        // A panic elsewhere leaves whole events behind.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A statement that names the tables of the default schema, for those of the stream's.
    fn in_schema(&self, statement: &str) -> String {
        statement.replace("public.", &format!("{}.", self.sandbox.schema))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_site_in_the_same_browser_is_a_stranger() {
        for (host, origin, expected) in [
            ("127.0.0.1:80", None, true),
            ("localhost:80", Some("http://localhost:80"), true),
            ("127.0.0.1:80", Some("http://evil.example"), false),
            ("127.0.0.1:80", Some("null"), false),
            ("evil.example:80", Some("http://evil.example:80"), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(is_of_the_page(&headers), expected, "{host} {origin:?}");
        }
    }
}
