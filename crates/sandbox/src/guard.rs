//! The guard: whatever becomes of the sandbox, its children end and its folder goes.
//!
//! A process that is killed with SIGKILL cannot clean up, and `PR_SET_PDEATHSIG` needs `pre_exec`, which is unsafe. So
//! there is one more process, a shell that waits for a pipe whose other end only we hold. When that end closes, for
//! whatever reason, the kernel wakes the guard, and the guard ends its process group, which all children belong to. (They are in
//! our session, but not in our own process group, so a Ctrl-C at the terminal reaches us alone and we end them in order.)

use std::{
    ffi::OsStr,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// A line on the pipe means that the children have ended already. The end of the file means that the sandbox is gone: SIGINT
/// is what Postgres needs for a fast shutdown, and three seconds are ample for it; all others just have to stop. The folder
/// goes before SIGKILL because the guard is in the group itself.
const SCRIPT: &str = r#"trap "" INT TERM HUP
read -r _ || { kill -INT 0; sleep 3; }
cd /
rm -rf -- "$@"
kill -KILL 0"#;

/// Holds the children's lives; when it goes, by drop or by the end of this process, they go.
#[derive(Debug)]
#[must_use]
pub(crate) struct Guard {
    shell: Mutex<Child>,
    group: i32,
}

impl Guard {
    /// Starts the guard; `folder` is deleted after the children have ended.
    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "sandbox-guard"])
            .arg(folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let group = i32::try_from(shell.id()).map_err(io::Error::other)?;
        Ok(Self { shell: Mutex::new(shell), group })
    }

    /// A command whose process will be guarded. It reads nothing: a background process that asks the terminal is stopped.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.process_group(self.group).stdin(Stdio::null());
        command
    }

    /// Lets the guard go at once, because the children have ended; one that has not gets SIGKILL. Waits until the folder is gone.
    pub(crate) fn release(&self) {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut pipe) = shell.stdin.take() {
            // A guard that was killed has nothing left to do.
            let _ = pipe.write_all(b"done\n");
        }
        let _ = shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::process::ExitStatusExt, time::Duration};

    use super::*;

    #[tokio::test]
    async fn children_and_folder_end_with_the_guard() {
        let folder = tempfile::tempdir().unwrap();
        let guard = Guard::start(folder.path()).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let mut child = guard.command("sleep").arg("60").spawn().unwrap();
        drop(guard);
        let status = child.wait().unwrap();
        assert!(matches!(status.signal(), Some(2 | 9)), "{status}");
        let gone = async {
            while folder.path().exists() {
                // Between two looks at the condition; the guard has no process left that could tell.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the folder goes");
    }

    #[test]
    fn a_released_guard_waits_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let guard = Guard::start(folder.path()).unwrap();
        guard.release();
        assert!(!folder.path().exists());
    }
}
