//! Faults of the dependencies, made on purpose. (Those of the daemons are theirs: [`crate::Daemon::kill`].)

use anyhow::{Result, ensure};

use crate::{
    postgres::Backup,
    sandbox::{Sandbox, create_queue},
};

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
