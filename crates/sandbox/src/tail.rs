//! The end of a text, for error messages.

use std::{fs, path::Path};

/// Enough for a compiler's error or a Python traceback, and still one screen.
const LINES: usize = 50;

/// The last lines of the file; a sentence where it cannot be read. Logs of a sandbox are small enough to be read whole.
pub(crate) fn of_file(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => of(&String::from_utf8_lossy(&bytes)),
        Err(error) => format!("(no log: {error})"),
    }
}

/// The last lines of the text.
pub(crate) fn of(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
