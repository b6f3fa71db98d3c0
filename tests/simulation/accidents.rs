//! What happens to the world while the daemons work, and how it comes to rest.

use std::mem::take;

use shared::object::Metadata;
use tokio::time::sleep;

use crate::world::{Shared, Stored, World};

/// What happens to the world while the daemons work.
pub async fn accidents(world: Shared) {
    loop {
        let wait = world.borrow_mut().millis(100..20_000);
        sleep(wait).await;
        let mut world = world.borrow_mut();
        match world.dice.u8(..40) {
            0..24 => {
                let (id, title) = (world.dice.i64(1..6), world.dice.u8(..4).to_string());
                let before = world.api.posts.clone();
                if world.dice.u8(..3) == 0 {
                    // As it was before the last change.
                    world.api.posts = take(&mut world.api.posts_before);
                } else {
                    world.api.posts.insert(id, title);
                }
                world.api.posts_before = before;
                world.api.version += 1;
                // What was broken says nothing of having changed when it is mended: the next whole collection brings it.
                let is_soon_whole = world.api.refresh.is_none_or(|refresh| refresh < crate::CALM);
                world.api.is_broken = world.dice.u8(..10) == 0 && is_soon_whole;
            }
            24..28 => {
                // A backup of no long ago, and the sessions end.
                let backups = world.backups.len();
                let at = world.dice.usize(..backups);
                let backup = world.backups[at].clone();
                // One that is older than what is wrong with the bucket would not show it to anybody.
                if world.away.keys().next().is_none_or(|from| *from <= backup.stands_at()) {
                    world.table = backup;
                    world.lock = None;
                    world.figures.restores += 1;
                }
            }
            28..32 => world.queue.clear(),
            32..34 => {
                let (end, at) = (world.archive.len() as u64, world.dice.u64(1..200));
                // Not the end: whoever deletes that makes the importer write the number anew.
                if at < end
                    && world.away.is_empty()
                    && let Some(stored) = world.archive.remove(&at)
                {
                    world.deleted.insert(at, stored);
                }
            }
            34 => world.swap(),
            _ => world.bring_back(),
        }
    }
}

/// Nothing goes wrong any more, from a moment in which any of the daemons die, one of each two perhaps for good.
pub fn calm_down(world: &Shared) {
    let mut world = world.borrow_mut();
    world.is_calm = true;
    if take(&mut world.api.is_broken) {
        world.api.version += 1;
    }
    world.bring_back();
    for host in 0..4 {
        if world.dice.bool() {
            world.ends[host].notify_waiters();
            world.is_down[host] = world.dice.bool() && !world.is_down[host ^ 1];
        }
    }
}

impl World {
    /// From some object on, which the table has applied, the bucket holds another archive, or nothing: it is emptied or swapped where
    /// that is the first object, its newest object is written anew where it is the last, it is forked or cut in between.
    pub fn swap(&mut self) {
        let stands_at = self.table.stands_at();
        // One that is not applied yet cannot be told from the true one by anybody.
        if stands_at == 0 || !self.away.is_empty() {
            return;
        }
        let from = [1, stands_at, self.dice.u64(1..=stands_at)][self.dice.usize(..3)];
        self.away = self.archive.split_off(&from);
        self.away.append(&mut self.deleted.split_off(&from));
        let others = [0, 1, self.away.len(), self.away.len() + 1][self.dice.usize(..4)];
        let others: Vec<Stored> = self.away.values().cycle().take(others).cloned().collect();
        let before = self.archive.values().next_back().map(|Stored { metadata, .. }| metadata);
        let mut previous = before.map(|before| before.observation);
        let archive_id = before.map(|before| before.archive_id);
        let archive_id = archive_id.unwrap_or_else(|| self.uuid());
        for (number, Stored { metadata, body }) in (from..).zip(others) {
            let observation = self.uuid();
            let metadata = Metadata { archive_id, observation, previous: previous.replace(observation), ..metadata };
            self.archive.insert(number, Stored { metadata, body });
        }
        self.figures.swaps += 1;
    }

    /// The bucket holds the true archive again, and all of it.
    pub fn bring_back(&mut self) {
        if let Some(from) = self.away.keys().next() {
            self.archive.split_off(from);
            self.figures.swaps += 1;
        }
        self.archive.append(&mut self.away);
        self.archive.append(&mut self.deleted);
    }
}
