//! On a host of AWS the streams come, change and go by themselves: `streams.py`, which user data brings there, is run under a real
//! systemd with what Terraform writes to the bucket, values included that a shell or systemd could take for something else.
//!
//! Terraform makes it on its mocked provider; how the program reads the bucket is seen in `deploy_applied`. The daemons reach nothing
//! here, and wait. Without a systemd or Terraform the test says that it was skipped.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use support::{
    SOON,
    programs::path_of,
    systemd::{DAEMONS, Systemd, write_units},
    terraform::{NOT_IN_THE_FILE, Terraform, environments, settings},
};
use tokio::time::{Duration, Instant, sleep};

/// The file of each stream, by what its name ends with.
type Settings = BTreeMap<String, BTreeMap<String, String>>;

/// Nobody listens there, so that nothing is asked of AWS.
const DROP_IN: &str = "[Service]\nStandardError=append:/run/test/%p.log\n\
    Environment=AWS_ENDPOINT_URL=http://127.0.0.1:1 AWS_ACCESS_KEY_ID=none AWS_SECRET_ACCESS_KEY=none\n";

/// Whoever asks for the verb is killed.
const KILLING_SYSTEMCTL: &str =
    "#!/bin/sh\n[ \"$1\" = \"$KILLED_AT\" ] && { kill -KILL $PPID; exit 1; }\nexec /usr/bin/systemctl \"$@\"\n";

#[tokio::test]
async fn streams_come_change_and_go_and_the_others_run_on() -> Result<()> {
    if let Some(missing) = Systemd::missing()? {
        support::skipped(missing);
        return Ok(());
    }
    let Some(terraform) = Terraform::find() else { return Ok(()) };
    terraform.init()?;
    let states = terraform.test(&["-filter=tests/set_up.tftest.hcl"])?;
    let [(_, by_default), (_, chosen)] = &states[..] else { bail!("two runs make something") };

    let folder = tempfile::tempdir()?;
    write_units(&folder.path().join("etc"), DROP_IN, "")?;
    fs::create_dir(folder.path().join("etc/posts-pipeline"))?;
    fs::write(folder.path().join("streams.py"), include_str!("../../deploy/terraform/streams.py"))?;
    fs::create_dir(folder.path().join("killing"))?;
    let systemd = Systemd::boot(folder.path(), &path_of("")?).await?;
    systemd.run(&[
        "sh",
        "-c",
        "printf %s \"$0\" >/run/test/killing/systemctl; chmod 755 /run/test/killing/systemctl",
        KILLING_SYSTEMCTL,
    ])?;

    for daemon in DAEMONS {
        let host = Host { systemd: &systemd, folder: folder.path(), daemon };
        let told = environments(&chosen["outputs"], daemon)?;
        let outcome = host.lives(settings(by_default, daemon)?, settings(chosen, daemon)?, &told["my-comments"]).await;
        outcome.with_context(|| format!("the host of the {daemon}s:\n{}", systemd.log().unwrap_or_default()))?;
    }
    Ok(())
}

/// A host with its daemon's streams. Both hosts are one here: neither touches the other's units.
struct Host<'a> {
    systemd: &'a Systemd,
    folder: &'a Path,
    daemon: &'static str,
}

impl Host<'_> {
    async fn lives(&self, one: Settings, mut both: Settings, comments_told: &BTreeMap<String, String>) -> Result<()> {
        self.apply(&one).await?;
        let posts = self.runs("posts").await?;

        // Another one comes.
        let changed = both.insert("posts".into(), one["posts"].clone()).context("there are posts")?;
        self.apply(&both).await?;
        let comments = self.runs("my-comments").await?;
        assert_eq!(self.process("posts")?, posts, "the one that was there runs on");
        let environment = self.environment(&comments)?;
        for (name, value) in comments_told.iter().filter(|(name, _)| !NOT_IN_THE_FILE.contains(&name.as_str())) {
            assert_eq!(environment.get(name), Some(value), "{name} reaches the process as it is");
        }
        let readable = self.systemd.run(&["find", "/etc/posts-pipeline", "-type", "f", "-not", "-perm", "600"])?;
        assert_eq!(readable, "", "settings are root's alone");

        // The same again.
        self.apply(&both).await?;
        assert_eq!([self.process("posts")?, self.process("my-comments")?], [posts.clone(), comments.clone()]);

        // One changes.
        both.insert("posts".into(), changed);
        self.apply(&both).await?;
        let mut posts = self.runs_anew("posts", &posts).await?;

        // It changes, and whoever applies that is killed on the way.
        for verb in ["enable", "restart"] {
            let file = both.get_mut("posts").and_then(|files| files.get_mut("env")).context("posts have settings")?;
            writeln!(file, "KILLED_AT=\"{verb}\"")?;
            self.apply_killed_at(&both, verb)?;
            assert_eq!(self.process("posts")?, posts);
            self.apply(&both).await?;
            posts = self.runs_anew("posts", &posts).await?;
            assert_eq!(self.environment(&posts)?["KILLED_AT"], verb);
        }

        // It is taken out by mistake, whoever applies that is killed on the way, and it is put back.
        let files = both.remove("posts").context("there are posts")?;
        self.apply_killed_at(&both, "disable")?;
        both.insert("posts".into(), files);
        self.apply(&both).await?;
        self.runs_anew("posts", &posts).await?;

        // It goes.
        both.remove("posts");
        self.apply_killed_at(&both, "disable")?;
        self.apply(&both).await?;
        for (property, value) in [("ActiveState", "inactive"), ("UnitFileState", "disabled")] {
            assert_eq!(self.systemd.show(&self.unit("posts"), property)?, value);
        }
        let left = self.systemd.run(&["find", "/etc/posts-pipeline", "-name", &format!("{}-posts.*", self.daemon)])?;
        assert_eq!(left, "", "its settings go with it");
        assert_eq!(
            self.systemd.show(&self.unit("my-comments"), "UnitFileState")?,
            "enabled",
            "the other starts at a boot"
        );
        assert_eq!(self.process("my-comments")?, comments, "the other has run all the time");
        Ok(())
    }

    /// Waits for what systemd was asked for, so that whoever was restarted has another process by then.
    async fn apply(&self, settings: &Settings) -> Result<()> {
        self.apply_with(settings, "")?;
        let is_done = || {
            Ok(self.systemd.systemctl(&["list-jobs", "--no-legend"])?.replace("No jobs running.", "").trim().is_empty())
        };
        self.wait("systemd has done what it was asked for", is_done).await
    }

    fn apply_killed_at(&self, settings: &Settings, verb: &str) -> Result<()> {
        let path = format!("KILLED_AT={verb} PATH=/run/test/killing:$PATH");
        ensure!(self.apply_with(settings, &path).is_err(), "it is not killed at {verb}");
        Ok(())
    }

    fn apply_with(&self, settings: &Settings, variables: &str) -> Result<()> {
        fs::write(self.folder.join("settings.json"), serde_json::to_string(settings)?)?;
        let line = format!("{variables} python3 /run/test/streams.py apply {} </run/test/settings.json", self.daemon);
        self.systemd.run(&["sh", "-c", &line]).map(|_| ())
    }

    fn unit(&self, stream: &str) -> String {
        format!("{}@{stream}.service", self.daemon)
    }

    fn process(&self, stream: &str) -> Result<String> {
        self.systemd.show(&self.unit(stream), "MainPID")
    }

    /// Waits until it runs, and answers with its process.
    async fn runs(&self, stream: &str) -> Result<String> {
        self.runs_anew(stream, "0").await
    }

    async fn runs_anew(&self, stream: &str, old: &str) -> Result<String> {
        let unit = self.unit(stream);
        let is_new = || Ok(self.process(stream)? != old && self.systemd.show(&unit, "SubState")? == "running");
        self.wait(&format!("{unit} runs as another process than {old}"), is_new).await?;
        self.process(stream)
    }

    /// Waits until something is so. Nobody out here is told what systemd does in there, so it is asked again and again.
    async fn wait(&self, what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while !is_so()? {
            ensure!(Instant::now() < deadline, "not within {SOON:?}: {what}\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Of a process, as the kernel has it.
    fn environment(&self, process: &str) -> Result<BTreeMap<String, String>> {
        let told = self.systemd.run(&["cat", &format!("/proc/{process}/environ")])?;
        let pairs = told.split_terminator('\0').filter_map(|pair| pair.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join(format!("{}.log", self.daemon))).unwrap_or_default()
    }
}
