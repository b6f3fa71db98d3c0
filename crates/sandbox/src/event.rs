//! What happens in the sandbox, as one stream of events: the daemons' log lines, and the sandbox's own doings.

use std::{fmt::Write, time::Instant};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::broadcast;

/// A reader that falls this far behind loses the oldest ones. A busy minute of both daemons is a few hundred.
const CAPACITY: usize = 4096;

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Since the sandbox began.
    pub elapsed_ms: u64,
    /// When, by the clock of this machine.
    pub at: Timestamp,
    /// `importer`, `transformer`, `posts API` or `sandbox`.
    pub who: &'static str,
    /// What, in the constant words of the log line: "appended".
    pub message: String,
    /// `TRACE`, `DEBUG`, `INFO`, `WARN` or `ERROR`.
    pub level: String,
    /// The values that belong to it.
    pub fields: Map<String, Value>,
}

/// Where events go. Cheap to clone; nobody has to listen.
#[derive(Clone, Debug)]
pub struct Events {
    begun: Instant,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { begun: Instant::now(), sender: broadcast::Sender::new(CAPACITY) }
    }
}

impl Events {
    /// Everything from here on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    /// Something that the sandbox itself did or saw.
    pub fn tell(&self, who: &'static str, message: &str, fields: &[(&str, Value)]) {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.send(who, message.to_owned(), "INFO".to_owned(), fields);
    }

    /// A daemon's log line, as it wrote it. One that is no JSON, such as a panic, is kept as it is, as a warning.
    pub fn log_line(&self, who: &'static str, line: &str) {
        let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(line) else {
            return self.send(who, line.to_owned(), "WARN".to_owned(), Map::new());
        };
        let mut take = |name| match fields.remove(name) {
            Some(Value::String(text)) => text,
            other => other.map(|value| value.to_string()).unwrap_or_default(),
        };
        let (message, level) = (take("message"), take("level"));
        fields.remove("timestamp");
        self.send(who, message, level, fields);
    }

    fn send(&self, who: &'static str, message: String, level: String, fields: Map<String, Value>) {
        let elapsed_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        // An error means that nobody listens.
        let _ = self.sender.send(Event { elapsed_ms, at: Timestamp::now(), who, message, level, fields });
    }
}

impl Event {
    /// A field as a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name)?.as_u64()
    }

    /// A field as text, whatever it is.
    pub fn text(&self, name: &str) -> Option<String> {
        Some(plain(self.fields.get(name)?))
    }

    /// All fields as `name=value`, for an event whose meaning is not known.
    pub fn fields_as_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.fields.iter().filter(|(name, _)| *name != "target") {
            let space = if text.is_empty() { "" } else { " " };
            write!(text, "{space}{name}={}", plain(value)).expect("a string takes everything");
        }
        text
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
