//! Which rows an archive shows to be absent, worked out without the transformer's code.

use std::collections::BTreeSet;

use shared::object::{Metadata, SnapshotKind};

/// The objects from the first on: what each says of itself, and its records.
#[derive(Debug, Default)]
pub struct Observed(Vec<(Metadata, Records)>);

/// The records of an object.
#[derive(Debug)]
pub enum Records {
    /// It is not loaded.
    None,
    /// These have ids.
    Ids(BTreeSet<i64>),
    /// One of them has no id that can be read: it may be that of any row.
    Any,
}

impl Observed {
    /// Adds the next object, and answers with the rows that are absent from it on; `present` are those that are there.
    pub fn next(&mut self, metadata: &Metadata, records: Records, present: &BTreeSet<i64>) -> BTreeSet<i64> {
        self.0.push((metadata.clone(), records));
        let Some(snapshot) = self.whole(self.0.len()) else { return BTreeSet::new() };
        let since = if metadata.facts.single {
            snapshot
        } else {
            let before = (1..=snapshot).rev().find_map(|end| self.whole(end));
            let Some(before) = before else { return BTreeSet::new() };
            before
        };
        let mut gone = present.clone();
        for (_, records) in &self.0[since..] {
            match records {
                Records::None => {}
                Records::Ids(ids) => gone.retain(|id| !ids.contains(id)),
                Records::Any => gone.clear(),
            }
        }
        gone
    }

    /// Where the whole, settled and loaded snapshot begins that ends with this many objects.
    fn whole(&self, end: usize) -> Option<usize> {
        let (metadata, _) = &self.0[end.checked_sub(1)?];
        let first = usize::try_from(metadata.snapshot.get()).ok()?.checked_sub(1)?;
        let is_loaded = |(page, records): &(Metadata, Records)| {
            page.snapshot == metadata.snapshot && matches!(records, Records::Ids(_))
        };
        let is_whole = metadata.last_page
            && metadata.facts.kind == Some(SnapshotKind::Whole)
            && !metadata.facts.torn
            && self.0.get(first..end).is_some_and(|pages| pages.iter().all(is_loaded));
        is_whole.then_some(first)
    }
}
