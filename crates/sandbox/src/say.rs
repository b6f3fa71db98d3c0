//! An event in words, for people. Pure.

use crate::{daemon::CLEAN_END, event::Event};

/// How an event is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Comes so often that it is for the background.
    Quiet,
    /// As it should be.
    Plain,
    /// What everybody waits for.
    Good,
    /// Heals by itself.
    Warning,
    /// Needs a person.
    Bad,
}

/// The event as a sentence; `None` for one that would only be in the way. Fields may be missing: the words around them stay.
pub(crate) fn say(event: &Event) -> Option<(Tone, String)> {
    let text = |name: &str| event.text(name).unwrap_or_else(|| "?".to_owned());
    let ms = |name: &str| event.number(name).map(|ms| format!(" in {ms} ms")).unwrap_or_default();
    let bytes = event.number("bytes").map_or_else(|| "a body".to_owned(), format_bytes);
    let sentence = match event.message.as_str() {
        "appended" => {
            format!("fetched {bytes}{}, appended as object {}{}", ms("fetch_ms"), text("sequence"), ms("append_ms"))
        }
        "announced" => format!("sent a message for object {}{}", text("sequence"), ms("announce_ms")),
        "adopted" => format!("found object {} at the end of the archive", text("sequence")),
        "unchanged" => return Some((Tone::Quiet, "the API has nothing new".to_owned())),
        "received" => format!("received the message for object {}", text("sequence")),
        "strange message" => return Some((Tone::Warning, format!("received a strange message: {}", text("why")))),
        "applied" => return Some(applied(event)),
        "ready" => "ready".to_owned(),
        "ready again" => return Some((Tone::Good, format!("ready again after: {}", text("was")))),
        "standing by" => "stands by, because another one does the work".to_owned(),
        "waiting for a dependency" => return Some((Tone::Warning, format!("waits and tries again: {}", text("why")))),
        "holding: a person is needed" => {
            return Some((Tone::Bad, format!("holds, a person is needed: {}", text("why"))));
        }
        "draining" => "finishes what is in hand".to_owned(),
        // The sandbox says it when it starts and ends them, the address is printed with the others, and an object is soon applied.
        "importer starts"
        | "transformer starts"
        | "importer ends"
        | "transformer ends"
        | "admin endpoint listens"
        | "begins with" => {
            return None;
        }
        "changed" => changed(event),
        "daemon started" => format!("started the {} as process {}", text("daemon"), text("pid")),
        "daemon started again" => {
            return Some((Tone::Good, format!("started the {} again as process {}", text("daemon"), text("pid"))));
        }
        "daemon ended" => {
            let tone = if text("how") == CLEAN_END { Tone::Plain } else { Tone::Warning };
            return Some((tone, format!("the {}, process {}, ended {}", text("daemon"), text("pid"), text("how"))));
        }
        _ => return generic(event),
    };
    Some((Tone::Plain, sentence))
}

fn applied(event: &Event) -> (Tone, String) {
    let count = |name| event.number(name).unwrap_or(0);
    let sequence = event.text("sequence").unwrap_or_else(|| "?".to_owned());
    let elapsed = event.number("elapsed_ms").map(|ms| format!(" in {ms} ms")).unwrap_or_default();
    let outcome = event.text("outcome").unwrap_or_else(|| "loaded".to_owned());
    if outcome != "loaded" {
        return (Tone::Warning, format!("object {sequence} is {outcome}{elapsed}"));
    }
    let parts = [
        ("inserted", "new"),
        ("updated", "changed"),
        ("unchanged", "as before"),
        ("absent", "absent"),
        ("quarantined", "set aside"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(name, _)| count(name) > 0)
        .map(|(name, word)| format!("{} {word}", count(name)))
        .collect();
    let parts = if parts.is_empty() { String::new() } else { format!(", {}", parts.join(", ")) };
    let tone = if count("quarantined") > 0 { Tone::Warning } else { Tone::Good };
    (tone, format!("applied object {sequence}: {} records{parts}, committed{elapsed}", count("records")))
}

fn changed(event: &Event) -> String {
    let id = event.text("id").unwrap_or_else(|| "?".to_owned());
    match event.text("method").as_deref() {
        Some("POST") => format!("post {id} was added"),
        Some("DELETE") => format!("post {id} was deleted"),
        _ => format!("post {id} was changed"),
    }
}

/// Whatever it means, it is told from level info upwards.
fn generic(event: &Event) -> Option<(Tone, String)> {
    let tone = match event.level.as_str() {
        "ERROR" => Tone::Bad,
        "WARN" => Tone::Warning,
        "INFO" => Tone::Plain,
        _ => return None,
    };
    let fields = event.fields_as_text();
    let separator = if fields.is_empty() { "" } else { "  " };
    Some((tone, format!("{}{separator}{fields}", event.message)))
}

/// Three digits and a unit: "27.5 kB".
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB"] {
        if value < 999.5 {
            let decimals = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} GB")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::Events;

    fn said(line: &serde_json::Value) -> Option<(Tone, String)> {
        let events = Events::default();
        let mut receiver = events.subscribe();
        events.log_line("importer", &line.to_string());
        say(&receiver.try_recv().unwrap())
    }

    #[test]
    fn log_lines_become_sentences() {
        for (line, tone, sentence) in [
            (
                json!({"message": "appended", "level": "INFO", "sequence": 1, "bytes": 27_520, "fetch_ms": 3, "append_ms": 12}),
                Tone::Plain,
                "fetched 27.5 kB in 3 ms, appended as object 1 in 12 ms",
            ),
            (
                json!({"message": "announced", "sequence": 1, "announce_ms": 7}),
                Tone::Plain,
                "sent a message for object 1 in 7 ms",
            ),
            (
                json!({"message": "applied", "sequence": 2, "outcome": "loaded", "records": 100, "inserted": 0, "updated": 1, "unchanged": 99, "quarantined": 0, "elapsed_ms": 9}),
                Tone::Good,
                "applied object 2: 100 records, 1 changed, 99 as before, committed in 9 ms",
            ),
            (
                json!({"message": "applied", "sequence": 2, "outcome": "quarantined"}),
                Tone::Warning,
                "object 2 is quarantined",
            ),
            (json!({"message": "received"}), Tone::Plain, "received the message for object ?"),
            (
                json!({"message": "new words", "level": "WARN", "target": "x", "a": 1, "b": "c"}),
                Tone::Warning,
                "new words  a=1 b=c",
            ),
        ] {
            assert_eq!(said(&line), Some((tone, sentence.to_owned())), "{line}");
        }
        assert_eq!(said(&json!({"message": "new words", "level": "DEBUG"})), None);
    }

    #[test]
    fn bytes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (27_520, "27.5 kB"),
            (275_200_000, "275 MB"),
            (2_000_000_000, "2.0 GB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
