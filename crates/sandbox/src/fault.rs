//! Faults of the dependencies, made on purpose. (Those of the daemons are theirs: [`crate::Daemon::kill`].)

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::{
    port::free_port,
    postgres::Backup,
    sandbox::{Sandbox, create_queue},
    world::World,
};

/// Stops a process and its children, and lets them go on after this many seconds. A process of its own does it, so that nothing stays stopped
/// when the sandbox is killed meanwhile: the guard's SIGINT ends the wait early.
const FREEZE: &str = r#"all=$1
trap 'kill -CONT $all; exit' INT TERM HUP
kill -STOP "$1"
for stat in /proc/[0-9]*/stat; do
    read -r line 2>/dev/null <"$stat" || continue
    # After the name in brackets: the state, the parent.
    rest=${line##*) }
    rest=${rest#* }
    [ "${rest%% *}" != "$1" ] || all="$all ${line%% *}"
done
kill -STOP $all
sleep "$2"
kill -CONT $all || :"#;

impl World {
    /// Ends Postgres, with SIGKILL or, for an immediate shutdown, SIGQUIT, and starts it again: it recovers from its WAL.
    pub async fn crash_postgres(&self, signal: Signal) -> Result<()> {
        let postgres = self.postgres();
        postgres.end(signal).await?;
        postgres.start_again(postgres.port(), &[], self.guard()).await
    }

    /// Shuts Postgres down and starts it at another port, where it takes no writes; [`World::fail_back`] ends that.
    pub async fn fail_over(&self) -> Result<u16> {
        let postgres = self.postgres();
        let home = postgres.port();
        postgres.stop().await?;
        postgres.start_again(free_port(), &["default_transaction_read_only=on"], self.guard()).await?;
        Ok(home)
    }

    /// Postgres is at its old port again, and takes writes.
    pub async fn fail_back(&self, home: u16) -> Result<()> {
        self.postgres().stop().await?;
        self.postgres().start_again(home, &[], self.guard()).await
    }

    /// Stops every process of Postgres for so long (SIGSTOP, SIGCONT).
    pub async fn freeze_postgres(&self, lasts: Duration) -> Result<()> {
        self.freeze(self.postgres().pid(), lasts).await
    }

    /// The same with S3 and SQS.
    pub async fn freeze_localstack(&self, lasts: Duration) -> Result<()> {
        self.freeze(self.localstack().pid(), lasts).await
    }

    async fn freeze(&self, pid: u32, lasts: Duration) -> Result<()> {
        let mut shell = self.guard().command("sh");
        shell.args(["-c", FREEZE, "sandbox-freeze", &pid.to_string(), &lasts.as_secs_f32().to_string()]);
        let mut shell = shell.spawn().context("cannot start a shell")?;
        // Not a child of the runtime: it goes on when this is dropped.
        let ended = tokio::task::spawn_blocking(move || shell.wait()).await??;
        ensure!(ended.success(), "a process could not be stopped and started again: {ended}");
        Ok(())
    }
}

impl Sandbox {
    /// Writes the database to a file.
    pub async fn back_up(&self) -> Result<Backup> {
        self.world().back_up(&self.database).await
    }

    /// Puts the database back to what it was.
    pub async fn restore(&self, backup: &Backup) -> Result<()> {
        self.world().restore(&self.database, backup).await
    }

    /// Deletes all messages.
    pub async fn purge_queue(&self) -> Result<()> {
        self.sqs().purge_queue().queue_url(self.queue_url()).send().await?;
        Ok(())
    }

    /// Deletes the queue and makes one of the same name.
    pub async fn recreate_queue(&self) -> Result<()> {
        self.sqs().delete_queue().queue_url(self.queue_url()).send().await?;
        let name = self.queue_url().rsplit('/').next().unwrap_or_default();
        let url = create_queue(self.sqs(), name).await?;
        ensure!(url == self.queue_url(), "the new queue is at {url}");
        Ok(())
    }
}
