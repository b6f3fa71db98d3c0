//! systemd as the first process of namespaces of its own (processes, mounts, names, cgroups), knowing only the units that a test gives
//! it. The network is the host's, so that the daemons reach the shared world.

use std::{
    fs::{self, File},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Duration, Instant, sleep};

/// Where Debian and its like have it.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// What has units.
pub const DAEMONS: [&str; 2] = ["importer", "transformer"];

/// What the units name, empty here, because the host's units are none of the test's.
const TARGETS: [&str; 5] = ["sysinit", "basic", "shutdown", "network-online", "multi-user"];

/// What is unshared. The first process dies with `unshare`, and everything in its namespace with it.
const UNSHARE: [&str; 8] = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"];

/// A shell outside, which holds the cgroup and waits for a pipe whose other end only the test holds: however the test ends, systemd
/// is killed and the cgroup removed. The rest of the line joins the cgroup before it is unshared, so that it becomes the root in there.
const GUARD: &str = r#"trap "" INT TERM HUP
cgroup=$1
shift
mkdir "$cgroup" || exit
sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$cgroup" "$@" &
read -r _
kill -KILL $!
wait
until find "$cgroup" -depth -type d -exec rmdir {} +; do sleep 0.1; done 2>/dev/null"#;

/// A running systemd. It ends when this is dropped, or with this process.
#[derive(Debug)]
pub struct Systemd {
    guard: Child,
    folder: PathBuf,
    /// The number of its process out here.
    process: String,
}

impl Systemd {
    /// What the machine lacks for it.
    pub fn missing() -> Result<Option<String>> {
        if fs::metadata("/proc/self")?.uid() != 0 {
            return Ok(Some("only root can start a systemd".into()));
        }
        if !Path::new(SYSTEMD).exists() {
            return Ok(Some(format!("there is no {SYSTEMD} on this machine (package systemd)")));
        }
        let cgroup = match new_cgroup() {
            Ok(cgroup) => cgroup,
            Err(why) => return Ok(Some(format!("{why:#}"))),
        };
        if let Err(why) = fs::create_dir(&cgroup).and_then(|()| fs::remove_dir(&cgroup)) {
            return Ok(Some(format!("no cgroup can be made at {}: {why}", cgroup.display())));
        }
        let mounts = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -t cgroup2 cgroup2 /run";
        let probe = Command::new(UNSHARE[0]).args(&UNSHARE[1..]).args(["sh", "-c", mounts]).output()?;
        let told = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
        Ok((!probe.status.success())
            .then(|| format!("namespaces and mounts of one's own are not allowed here: {told}")))
    }

    /// Starts it with the units and settings below `folder/etc` and the daemons of the folder `programs`; it then starts `test.target`.
    pub async fn boot(folder: &Path, programs: &Path) -> Result<Self> {
        let log = File::create(folder.join("systemd.log"))?;
        let script = folder.join("boot.sh");
        fs::write(&script, include_str!("systemd/boot.sh"))?;
        let cgroup = new_cgroup()?;
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "systemd-guard"]).arg(&cgroup).args(UNSHARE).arg("--mount-proc");
        guard.arg("sh").args([&script, folder, programs]).process_group(0);
        let guard = guard.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut systemd = Self { guard, folder: folder.to_owned(), process: String::new() };
        let deadline = Instant::now() + crate::SOON;
        // Its own process is the only one of a scope that it makes.
        let processes = cgroup.join("init.scope/cgroup.procs");
        while systemd.process.is_empty() || systemd.systemctl(&["show"]).is_err() {
            systemd.process = fs::read_to_string(&processes).unwrap_or_default().trim_end().into();
            if Instant::now() > deadline {
                bail!("systemd does not start:\n{}", systemd.log()?);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(systemd)
    }

    /// Runs a command in there, and answers with what it writes.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.process, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"]);
        let output = command.args(arguments).output().context("there is no nsenter (package util-linux)")?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {}: {}", output.status, told.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `systemctl` in there.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        self.run(&[&["systemctl", "--no-pager"], arguments].concat())
    }

    /// A property of a unit.
    pub fn show(&self, unit: &str, property: &str) -> Result<String> {
        Ok(self.systemctl(&["show", "--value", "--property", property, unit])?.trim_end().to_owned())
    }

    /// What systemd logged.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.folder.join("systemd.log"))?).into_owned())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // It fails only if the guard is gone.
        let _ = self.guard.wait();
    }
}

/// The daemons' units below `etc`, with a drop-in for both, and what `test.target` says.
pub fn write_units(etc: &Path, drop_in: &str, test_target: &str) -> Result<()> {
    let units = etc.join("systemd/system");
    fs::create_dir_all(&units)?;
    for target in TARGETS {
        fs::write(units.join(format!("{target}.target")), "[Unit]\n")?;
    }
    fs::write(units.join("test.target"), format!("[Unit]\n{test_target}"))?;
    for daemon in DAEMONS {
        let unit = format!("{daemon}@.service");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd").join(&unit);
        fs::copy(source, units.join(&unit))?;
        let drop_ins = units.join(format!("{unit}.d"));
        fs::create_dir(&drop_ins)?;
        fs::write(drop_ins.join("test.conf"), drop_in)?;
    }
    Ok(())
}

/// The name of a cgroup below this process' own, wherever the host mounts the second version.
fn new_cgroup() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("this kernel has no cgroup v2")?;
    let name = format!("posts-pipeline-{}", uuid::Uuid::new_v4().simple());
    Ok(Path::new(mount.context("cgroup v2 is not mounted here")?).join(own).join(name))
}
