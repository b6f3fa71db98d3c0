//! Python environments under the target folder: installed once, by one process at a time, and whole or not at all.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    command,
    guard::Guard,
    progress::{Progress, Step},
};

/// A virtual environment that holds exactly the pinned packages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Venv<'a> {
    /// Its folder.
    pub folder: &'a Path,
    /// `NAME==VERSION` lines, complete: pip resolves nothing.
    pub requirements: &'a str,
    /// For people: "installing LocalStack".
    pub step: &'static str,
}

impl Venv<'_> {
    /// Installs it unless it is there. Answers with its Python.
    pub(crate) async fn install(self, guard: &Guard, progress: &Progress) -> Result<PathBuf> {
        let (python, stamp) = (self.folder.join("bin/python"), self.folder.join("complete"));
        fs::create_dir_all(self.folder.parent().context("an environment lies in a folder")?)?;
        let step = progress.step(self.step);
        let _lock = lock(&self.folder.with_extension("lock"), &step).await?;
        // The stamp is written last, so what has none is the rest of an attempt that was cut off.
        let is_complete = fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == self.requirements);
        if is_complete && works(guard.command(&python)).await {
            return Ok(python);
        }
        if self.folder.exists() {
            fs::remove_dir_all(self.folder)?;
        }
        create(self.folder, guard).await?;
        let requirements = self.folder.join("requirements.txt");
        fs::write(&requirements, self.requirements)?;
        let mut pip = guard.command(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--no-compile",
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar=off",
            "-r",
        ]);
        pip.arg(&requirements);
        command::finish(pip, |line| step.say(line)).await?;
        fs::write(&stamp, self.requirements)?;
        Ok(python)
    }
}

/// The lock lasts as long as the file is open, so also a killed process gives it back.
async fn lock(path: &Path, step: &Step) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => step.say("another process is at it"),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await?.context("cannot lock")
}

/// LocalStack 4.4 and its pins need Python 3.11. Machines have it under one of two names, or get it through uv.
async fn create(folder: &Path, guard: &Guard) -> Result<()> {
    let mut failures = String::new();
    for python in ["python3.11", "python3"] {
        if !works(guard.command(python)).await {
            continue;
        }
        let mut venv = guard.command(python);
        venv.args(["-m", "venv", "--clear"]).arg(folder);
        match command::finish(venv, |_| ()).await {
            Ok(_) => return Ok(()),
            // Debian ships venv as a package of its own.
            Err(error) => failures = format!("\n{error}"),
        }
    }
    let mut uv = guard.command("uv");
    uv.args(["venv", "--quiet", "--clear", "--seed", "--python", "3.11"]).arg(folder);
    if command::finish(uv, |_| ()).await.is_ok() {
        return Ok(());
    }
    bail!(
        "the sandbox needs Python 3.11 with venv, or uv, which brings it. One line gets it:\n  \
         Debian 12       sudo apt-get install -y python3.11-venv\n  \
         Debian, Ubuntu  sudo apt-get install -y pipx && pipx install uv && pipx ensurepath\n  \
         Fedora          sudo dnf install -y python3.11\n  \
         macOS           brew install python@3.11{failures}"
    )
}

async fn works(mut python: Command) -> bool {
    python.args(["-c", "import sys, venv; sys.exit(sys.version_info[:2] != (3, 11))"]);
    command::finish(python, |_| ()).await.is_ok()
}
