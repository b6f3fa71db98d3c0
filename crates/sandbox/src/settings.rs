//! The settings of a stream's daemons, as names and values: their environment, and what the env file shows.

use std::fmt::Write;

/// Names and values in the order of the documentation.
#[derive(Clone, Debug, Default)]
pub struct Settings(Vec<(&'static str, String)>);

impl Settings {
    /// No settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets these; one that was set already gets the new value.
    pub fn set(&mut self, settings: &[(&'static str, &str)]) {
        for &(name, value) in settings {
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, old)) => value.clone_into(old),
                None => self.0.push((name, value.to_owned())),
            }
        }
    }

    /// The value of one, if it is set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// `NAME=value` lines that a shell can read (`set -a; . FILE`), quoted where needed.
    pub fn to_shell(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.iter() {
            writeln!(text, "{name}={}", quote(value)).expect("a string takes everything");
        }
        text
    }
}

/// Single quotes keep everything but themselves. Plain words stay bare, so that other readers of env files, which may not know quotes,
/// get along too.
fn quote(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,=".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_what_was_set() {
        let mut settings = Settings::new();
        settings.set(&[("PLAIN", "http://127.0.0.1:80/posts"), ("HARD", "it's $HOME; `x` \"y\" \\"), ("EMPTY", "")]);
        assert!(settings.to_shell().starts_with("PLAIN=http://127.0.0.1:80/posts\n"));
        let script = format!("{}printf '%s|%s|%s' \"$PLAIN\" \"$HARD\" \"$EMPTY\"", settings.to_shell());
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let expected = "http://127.0.0.1:80/posts|it's $HOME; `x` \"y\" \\|";
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    #[test]
    fn a_setting_that_is_set_again_has_its_last_value() {
        let mut settings = Settings::new();
        settings.set(&[("A", "1"), ("B", "2")]);
        settings.set(&[("A", "3")]);
        assert_eq!(settings.iter().collect::<Vec<_>>(), [("A", "3"), ("B", "2")]);
    }
}
