//! The Debian package brings both daemons and their units, leaves to the administrator what is the administrator's, and goes without
//! a trace.
//!
//! It is packed from this test's own programs, without a release build, and installed by dpkg in a Debian that debootstrap makes once
//! below the target folder; the test works on a copy. No systemd runs there: in the place of `systemctl` one writes down what the
//! package asks for. Without root, debootstrap or cargo-deb there is nothing to do that with, and the test says that it was skipped.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sandbox::Place;
use support::programs::path_of;
use tempfile::TempDir;

/// The release that the images are made of, the oldest that a package has to run on.
const SUITE: &str = "bookworm";

/// What hosts have and the smallest Debian has not; systemd, because its own tool judges the units.
const INCLUDED: &str = "ca-certificates,systemd";

/// What an administrator has to write.
const SETTINGS: &str = "etc/posts-pipeline/importer-posts.env";

/// What `systemctl enable` makes.
const LINK: &str = "etc/systemd/system/multi-user.target.wants/importer@posts.service";

/// A folder that systemd makes for an importer.
const SPOOL: &str = "var/cache/private/posts-pipeline/importer-posts";

#[test]
fn a_package_installs_runs_upgrades_and_leaves_nothing_behind() -> Result<()> {
    if let Some(missing) = missing()? {
        support::skipped(missing);
        return Ok(());
    }
    let debian = Debian::copy()?;
    let before = debian.files()?;

    debian.dpkg("--install", &pack(env!("CARGO_PKG_VERSION"))?)?;
    for daemon in ["importer", "transformer"] {
        let told = debian.run(&[daemon, "--version"])?;
        ensure!(told.starts_with(&format!("{daemon} {} (", env!("CARGO_PKG_VERSION"))), "{told}");
        let unit = format!("{daemon}@posts.service");
        let complaints = debian.run(&["systemd-analyze", "verify", &unit])?;
        ensure!(complaints.is_empty(), "systemd reads {unit} so: {complaints}");
        // An exposure of at most 1.3, of 10.
        debian.run(&["systemd-analyze", "security", "--offline=yes", "--threshold=13", &unit])?;
        let example = debian.path(&format!("usr/share/doc/posts-pipeline/examples/{daemon}-posts.env"));
        ensure!(example.is_file(), "{} is not there", example.display());
    }
    ensure!(debian.path("usr/share/doc/posts-pipeline/copyright").is_file());
    assert_eq!(debian.asked()?, "daemon-reload\n", "nothing is started or enabled by itself");
    ensure!(!debian.path(LINK).exists());

    // Its own systemctl, which needs no running systemd for this.
    debian.run(&["env", "SYSTEMD_OFFLINE=1", "/usr/bin/systemctl", "enable", "importer@posts"])?;
    ensure!(debian.path(LINK).is_symlink());
    fs::create_dir_all(debian.path(SPOOL))?;
    fs::create_dir_all(debian.path(SETTINGS).parent().context("a folder")?)?;
    fs::write(debian.path(SETTINGS), "SOURCE_URL=https://example.org/posts\n")?;

    debian.dpkg("--install", &pack("999.0.0")?)?;
    assert_eq!(debian.run(&["dpkg-query", "--show", "--showformat=${Version}", "posts-pipeline"])?, "999.0.0");
    debian.run(&["importer", "--version"])?;
    let restart = "daemon-reload\ntry-restart importer@*.service transformer@*.service\n";
    assert_eq!(debian.asked()?, restart, "what runs, and only that, goes on as the new version");

    debian.run(&["dpkg", "--remove", "posts-pipeline"])?;
    assert_eq!(debian.asked()?, "stop importer@*.service transformer@*.service\ndaemon-reload\n");
    ensure!(!debian.path("usr/bin/importer").exists());
    ensure!(debian.path(LINK).is_symlink() && debian.path(SETTINGS).is_file(), "a removal keeps what was set up");

    debian.run(&["dpkg", "--purge", "posts-pipeline"])?;
    assert_eq!(debian.asked()?, "daemon-reload\n");
    let mut written = before;
    written.extend(["etc/posts-pipeline", SETTINGS].map(PathBuf::from));
    let after = debian.files()?;
    let difference: Vec<_> = after.symmetric_difference(&written).collect();
    ensure!(difference.is_empty(), "a purge leaves what the administrator wrote, and nothing else: {difference:?}");
    Ok(())
}

/// What the machine lacks.
fn missing() -> Result<Option<&'static str>> {
    let works = |program: &str, argument: &str| {
        Command::new(program).args(argument.split(' ')).output().is_ok_and(|output| output.status.success())
    };
    Ok(if fs::metadata("/proc/self")?.uid() != 0 {
        Some("only root can make a Debian to install the package in")
    } else if !works("debootstrap", "--version") {
        Some("there is no debootstrap on this machine (apt-get install debootstrap)")
    } else if !works("cargo", "deb --version") {
        Some("there is no cargo-deb on this machine (.ci/run installs it below the target folder)")
    } else {
        None
    })
}

/// Packs this test's programs as a version.
fn pack(version: &str) -> Result<PathBuf> {
    let programs = path_of("")?;
    let Place { target, profile } = Place::find()?;
    let profile = profile.context("tests run in a checkout")?;
    let package = programs.join(format!("posts-pipeline_{version}_test.deb"));
    let mut cargo = Command::new("cargo");
    cargo.args(["deb", "--package", "importer", "--no-build", "--no-strip", "--fast", "--quiet"]);
    cargo.args(["--profile", if profile == "debug" { "dev" } else { &profile }]);
    cargo.args(["--deb-version", version]).arg("--output").arg(&package);
    cargo.current_dir(checkout()).env("CARGO_TARGET_DIR", target);
    finish(cargo)?;
    Ok(package)
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a command to its end, and answers with all that it says.
fn finish(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(said)
}

/// A fresh Debian in a folder.
struct Debian {
    folder: TempDir,
}

impl Debian {
    fn copy() -> Result<Self> {
        let cache = Place::find()?.target.join("debootstrap");
        fs::create_dir_all(&cache)?;
        let made = cache.join(SUITE);
        if !made.exists() {
            Self::make(&cache, &made)?;
        }
        let folder = TempDir::new_in(&cache)?;
        let mut copy = Command::new("cp");
        copy.arg("--archive").arg(made.join(".")).arg(folder.path());
        finish(copy)?;
        let debian = Self { folder };
        // This is how maintainer scripts see that systemd runs, and what they then find first.
        fs::create_dir_all(debian.path("run/systemd/system"))?;
        let tool = debian.path("usr/local/sbin/systemctl");
        fs::write(&tool, "#!/bin/sh\necho \"$@\" >>/var/log/asked\n")?;
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755))?;
        Ok(debian)
    }

    /// Whole or not at all: it gets its name when it is ready.
    fn make(cache: &Path, made: &Path) -> Result<()> {
        let half = TempDir::new_in(cache)?;
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", &format!("--include={INCLUDED}"), SUITE]).arg(half.path());
        finish(debootstrap)?;
        // A third of it, and nothing is installed from there any more.
        for downloaded in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            fs::remove_dir_all(half.path().join(downloaded))?;
        }
        fs::rename(half.path(), made).with_context(|| format!("cannot keep {}", made.display()))
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut chroot = Command::new("chroot");
        chroot.arg(self.folder.path()).args(arguments).env_clear();
        chroot.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        finish(chroot)
    }

    fn dpkg(&self, action: &str, package: &Path) -> Result<()> {
        fs::copy(package, self.path("run/package.deb"))?;
        self.run(&["dpkg", action, "/run/package.deb"])?;
        fs::remove_file(self.path("run/package.deb"))?;
        Ok(())
    }

    /// What `systemctl` was asked for since the last time.
    fn asked(&self) -> Result<String> {
        let log = self.path("var/log/asked");
        let asked = fs::read_to_string(&log)?;
        fs::remove_file(log)?;
        Ok(asked)
    }

    /// Every file and folder but dpkg's own, the logs, and what a boot empties.
    fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
                let inside = path.strip_prefix(self.folder.path())?.to_owned();
                if ["var/lib/dpkg", "var/log", "run"].iter().any(|left_out| inside.starts_with(left_out)) {
                    continue;
                }
                if kind.is_dir() {
                    folders.push(path);
                }
                files.insert(inside);
            }
        }
        Ok(files)
    }
}
