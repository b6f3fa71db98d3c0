//! The file with the addresses of a running sandbox: whole or not there, and gone when the sandbox is.

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::settings::Settings;

/// The file while its sandbox lives. Dropping it deletes the file, unless another sandbox has put its own there.
#[derive(Debug)]
pub(crate) struct EnvFile {
    path: PathBuf,
    /// Open and locked as long as we live, however we end: that is how another sandbox knows that the file is not left over.
    file: File,
}

impl EnvFile {
    /// Writes the settings to `path`, or beside it with our process id in the name if a living sandbox has its file there.
    pub(crate) fn write(path: &Path, settings: &Settings) -> Result<Self> {
        let path = if is_alive(path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{name}-{}", std::process::id()))
        } else {
            path.to_owned()
        };
        write_whole(&path, settings)
            .with_context(|| format!("cannot write {}", path.display()))
            .map(|file| Self { path, file })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for EnvFile {
    fn drop(&mut self) {
        let is_ours = |path: &Path| Ok::<_, std::io::Error>(fs::metadata(path)?.ino() == self.file.metadata()?.ino());
        if is_ours(&self.path).unwrap_or(false) {
            // If it cannot be deleted it is at least known to be left over.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whoever reads the path sees the old file or the new one, never half of one.
fn write_whole(path: &Path, settings: &Settings) -> Result<File> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.as_file().try_lock()?;
    file.write_all(settings.to_shell().as_bytes())?;
    Ok(file.persist(path)?)
}

fn is_alive(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sandboxes_have_two_files_and_a_left_over_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sandbox/env");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "left over").unwrap();
        let mut settings = Settings::new();
        settings.set(&[("STREAM", "posts")]);

        let first = EnvFile::write(&path, &settings).unwrap();
        assert_eq!((first.path(), fs::read_to_string(&path).unwrap().as_str()), (path.as_path(), "STREAM=posts\n"));
        let second = EnvFile::write(&path, &settings).unwrap();
        assert_ne!(second.path(), path);
        let beside = second.path().to_owned();
        drop((first, second));
        assert!(!path.exists() && !beside.exists());
    }

    #[test]
    fn a_file_of_another_sandbox_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        let ours = EnvFile::write(&path, &Settings::new()).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "theirs").unwrap();
        drop(ours);
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }
}
