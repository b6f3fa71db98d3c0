//! Runs a program to its end, and tells everything when it fails.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    sync::mpsc,
};

use crate::tail;

/// Runs the program; each line of its stderr and stdout goes to `on_line` as it comes. Its stdout, or an error with the end of
/// what it wrote. When the future is dropped the program is killed.
pub(crate) async fn finish(command: Command, mut on_line: impl FnMut(&str)) -> Result<String> {
    let name = describe(&command);
    let mut command = tokio::process::Command::from(command);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let stderr = child.stderr.take().context("stderr is piped")?;

    // Two readers, one order: lines are handled as they come. 64 lines are a buffer, not a limit: the readers wait.
    let (lines, mut arrived) = mpsc::channel(64);
    let readers =
        [tokio::spawn(read_lines(stdout, true, lines.clone())), tokio::spawn(read_lines(stderr, false, lines))];
    let (mut output, mut complaints) = (String::new(), String::new());
    while let Some((is_stdout, line)) = arrived.recv().await {
        on_line(&line);
        let kept = if is_stdout { &mut output } else { &mut complaints };
        kept.push_str(&line);
        kept.push('\n');
    }
    for reader in readers {
        reader.await.context("a reader panicked")?;
    }
    let status = child.wait().await?;
    if !status.success() {
        // Python's venv complains on stdout; cargo's stdout is for programs.
        let why = if complaints.is_empty() { &output } else { &complaints };
        bail!("`{name}` ended with {status}:\n{}", tail::of(why));
    }
    Ok(output)
}

async fn read_lines(pipe: impl AsyncRead + Unpin, is_stdout: bool, lines: mpsc::Sender<(bool, String)>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await.is_ok_and(|bytes| bytes > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if lines.send((is_stdout, text)).await.is_err() {
            return;
        }
        line.clear();
    }
}

/// The command as a person would type it.
fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_shows_what_the_program_wrote() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let error = finish(command, |_| ()).await.unwrap_err().to_string();
        assert!(error.ends_with("ended with exit status: 3:\ntwo"), "{error}");
    }

    #[tokio::test]
    async fn a_success_gives_its_stdout() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2"]);
        assert_eq!(finish(command, |_| ()).await.unwrap(), "one\n");
    }
}
