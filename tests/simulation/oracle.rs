//! What the archive makes, by the words of the design: for the check of what the daemons made of it.

use std::collections::{BTreeMap, BTreeSet};

use shared::{object::SnapshotKind, settings::Absent};

use crate::world::{Posts, Stored, World};

/// Title and the object that wrote it last, of each row; and the rows that are absent, with the object that showed it.
pub type Table = (BTreeMap<i64, (String, u64)>, BTreeMap<i64, u64>);

/// The table that the archive makes. Objects that hold no posts are quarantined.
pub fn fold(world: &World) -> Result<Table, String> {
    let pages: BTreeMap<u64, Option<Posts>> =
        world.archive.iter().map(|(number, stored)| (*number, serde_json::from_slice(&stored.body).ok())).collect();
    let (mut rows, mut absent) = Table::default();
    for number in world.archive.keys() {
        let present: BTreeSet<i64> = rows.keys().filter(|id| !absent.contains_key(id)).copied().collect();
        for (id, title) in pages[number].iter().flatten() {
            let was_absent = absent.remove(id).is_some();
            if was_absent || rows.get(id).is_none_or(|(known, _)| known != title) {
                rows.insert(*id, (title.clone(), *number));
            }
        }
        if world.absent == Absent::Keep || !is_judged(world, &pages, *number) {
            continue;
        }
        let gone = gone(world, &pages, *number, &present);
        let is_much =
            !gone.is_empty() && (gone.len() == present.len() || gone.len() > 10 && gone.len() * 10 > present.len());
        if is_much && !world.allowed.contains(number) {
            return Err(format!("object {number} made {gone:?} of {present:?} absent, and nobody has looked"));
        }
        for id in gone {
            match world.absent {
                Absent::Delete => drop(rows.remove(&id)),
                Absent::Mark | Absent::Keep => drop(absent.insert(id, *number)),
            }
        }
    }
    Ok((rows, absent))
}

/// Whether it is the last page of a whole, settled snapshot, all of whose pages are loaded.
fn is_judged(world: &World, pages: &BTreeMap<u64, Option<Posts>>, number: u64) -> bool {
    let Stored { metadata, .. } = &world.archive[&number];
    let is_of_it = |page| world.archive.get(&page).is_some_and(|stored| stored.metadata.snapshot == metadata.snapshot);
    metadata.last_page
        && metadata.facts.kind == Some(SnapshotKind::Whole)
        && !metadata.facts.torn
        && (metadata.snapshot.get()..=number).all(|page| is_of_it(page) && pages[&page].is_some())
}

/// The rows that the snapshot shows to be absent.
fn gone(world: &World, pages: &BTreeMap<u64, Option<Posts>>, number: u64, present: &BTreeSet<i64>) -> BTreeSet<i64> {
    let metadata = &world.archive[&number].metadata;
    let first = metadata.snapshot.get();
    // One answer shows all by itself; else since when no object may have the row: the snapshot before that is judged, or nothing is.
    let since = if metadata.facts.single {
        first
    } else {
        let before = (1..first).rev().find(|before| is_judged(world, pages, *before));
        let Some(before) = before else { return BTreeSet::new() };
        world.archive[&before].metadata.snapshot.get()
    };
    let seen: BTreeSet<i64> =
        pages.range(since..=number).flat_map(|(_, page)| page.iter().flatten()).map(|(id, _)| *id).collect();
    present.difference(&seen).copied().collect()
}
