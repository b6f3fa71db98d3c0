//! Which rows the API has no more, as far as ids tell. Pure.
//!
//! Absence is judged at the last page of a whole, settled snapshot. One answer that shows all by itself is enough. Several requests take time,
//! in which a record may move from a page that is not read yet to one that is: there a row is absent only where two such snapshots in a row lack
//! it, and no object between brings it.

use std::{
    hash::{DefaultHasher, Hasher},
    ops::RangeInclusive,
};

use clap::Args;
use roaring::RoaringTreemap;
use shared::{
    object::{Metadata, Sequence, SnapshotKind},
    settings::Absent,
};

use crate::{decide::Sequences, read::row::Key};

/// This many rows may become absent without a person, however few there are.
const FEW: u64 = 10;

/// What the ids of one snapshot may take: three million that lie apart or are texts, and many more numbers that lie close.
const IDS_LIMIT_BYTES: usize = 24 << 20;

/// Below this many, memory is not looked at.
const FEW_IDS: u64 = 16_384;

/// What a container of a bitmap takes beside its numbers, about: its own fields and an allocation.
const CONTAINER_BYTES: usize = 56;

/// A container with more than 4,096 of 65,536 numbers has a bit for each.
const BITSET_BYTES: usize = 8 * 1024;

/// How many rows may become absent at once.
#[derive(Args, Clone, Debug, Default)]
pub struct BrakeSettings {
    /// How many rows one snapshot may make absent, as a percentage of the rows that are there; ten always may be. If a snapshot would exceed
    /// it, or make all rows absent, the transformer does not apply its last page, and waits for a person
    #[arg(long, env = "ABSENT_LIMIT", value_name = "PERCENT", default_value = "10%", value_parser = parse_percent)]
    pub absent_limit: u64,
    /// Objects that may make any number of rows absent, as in 17,40-52: for where those records are really gone
    #[arg(long, env = "ALLOW_ABSENT", value_name = "SEQUENCES", default_value = "", hide_default_value = true)]
    pub allow_absent: Sequences,
}

impl BrakeSettings {
    /// Whether a person has to look, if this object makes `gone` of `present` rows absent.
    pub fn holds(&self, sequence: Sequence, gone: u64, present: u64) -> bool {
        let is_much = gone > FEW && gone.saturating_mul(100) > present.saturating_mul(self.absent_limit);
        gone > 0 && (is_much || gone >= present) && !self.allow_absent.contains(sequence)
    }
}

fn parse_percent(text: &str) -> Result<u64, String> {
    let number = text.trim().trim_end_matches('%').parse().ok().filter(|percent| *percent <= 100);
    number.ok_or_else(|| "it is a whole number from 0% to 100%".to_owned())
}

/// Whether absence is judged by this object.
pub fn is_judged(absent: Absent, metadata: &Metadata) -> bool {
    absent != Absent::Keep && metadata.last_page && is_whole(metadata)
}

fn is_whole(Metadata { facts, .. }: &Metadata) -> bool {
    facts.kind == Some(SnapshotKind::Whole) && !facts.torn
}

/// More ids than are kept in memory.
#[derive(Debug)]
pub struct TooManyIds {
    /// How many were in hand.
    pub ids: u64,
}

/// The ids of the pages of one snapshot, from its first to the last that was applied.
#[derive(Debug)]
pub struct Seen {
    snapshot: Sequence,
    last: Sequence,
    /// `None` where the id of a record cannot be read: any row may be that record's.
    ids: Option<Ids>,
    /// Whether each id is that of a row.
    are_rows: bool,
}

impl Seen {
    /// Turns to the next page; `None` where it is no page of a whole snapshot, or one whose earlier pages were not seen.
    pub fn turn(before: Option<Self>, sequence: Sequence, metadata: &Metadata) -> Option<Self> {
        if !is_whole(metadata) {
            return None;
        }
        if metadata.snapshot == sequence {
            return Some(Self { snapshot: sequence, last: sequence, ids: Some(Ids::default()), are_rows: true });
        }
        before.filter(|seen| seen.precedes(sequence, metadata)).map(|seen| Self { last: sequence, ..seen })
    }

    /// Whether this is the next page of the snapshot.
    pub fn precedes(&self, sequence: Sequence, metadata: &Metadata) -> bool {
        self.snapshot == metadata.snapshot && self.last.next() == sequence
    }

    /// Adds the ids of records, `None` for one that cannot be read, and whether each of them is that of a row.
    pub fn add<'a>(&mut self, ids: impl Iterator<Item = Option<Key<'a>>>, are_rows: bool) -> Result<(), TooManyIds> {
        self.are_rows &= are_rows;
        let Some(mut seen) = self.ids.take() else { return Ok(()) };
        let Some(()) = seen.add_all(ids) else { return Ok(()) };
        seen.bound()?;
        self.ids = Some(seen);
        Ok(())
    }

    /// All ids, if all could be read, and whether each is that of a row.
    pub fn into_ids(self) -> Option<(Ids, bool)> {
        let mut ids = self.ids?;
        if let Form::Far(numbers) = &mut ids.form {
            numbers.sort_unstable();
            numbers.dedup();
        }
        Some((ids, self.are_rows))
    }
}

/// Ids. Of a text 64 bits of a hash are kept: of two million ids one in ten billion rows that are gone is taken for one of them.
#[derive(Debug, Default)]
pub struct Ids {
    form: Form,
    /// How many there may be until their size is looked at again.
    unlooked: u64,
}

#[derive(Debug)]
enum Form {
    /// Numbers, of which many lie close.
    Near(RoaringTreemap),
    /// Numbers that lie apart, and hashes.
    Far(Vec<u64>),
}

impl Default for Form {
    fn default() -> Self {
        Self::Near(RoaringTreemap::new())
    }
}

impl Ids {
    /// How many. Texts whose hashes are equal count once.
    pub fn count(&self) -> u64 {
        match &self.form {
            Form::Near(numbers) => numbers.len(),
            Form::Far(numbers) => numbers.len() as u64,
        }
    }

    /// Whether the id is one of them.
    pub fn contains(&self, id: Key<'_>) -> bool {
        let id = number_of(id);
        match &self.form {
            Form::Near(numbers) => numbers.contains(id),
            Form::Far(numbers) => numbers.binary_search(&id).is_ok(),
        }
    }

    /// Adds ids, until there is one that cannot be read.
    fn add_all<'a>(&mut self, ids: impl Iterator<Item = Option<Key<'a>>>) -> Option<()> {
        // Numbers that follow each other are added at once.
        let mut range: Option<RangeInclusive<u64>> = None;
        for id in ids {
            let id = id?;
            if let (Key::Bytes(_), Form::Near(_)) = (id, &self.form) {
                self.form = Form::Far(Vec::new());
            }
            let number = number_of(id);
            let numbers = match &mut self.form {
                Form::Near(numbers) => numbers,
                Form::Far(numbers) => {
                    numbers.push(number);
                    continue;
                }
            };
            match &mut range {
                Some(range) if range.end().checked_add(1) == Some(number) => *range = *range.start()..=number,
                _ => {
                    range.replace(number..=number).map(|range| numbers.insert_range(range));
                }
            }
        }
        if let (Form::Near(numbers), Some(range)) = (&mut self.form, range) {
            numbers.insert_range(range);
        }
        Some(())
    }

    /// Takes the form that needs less memory, and says where that is too much.
    fn bound(&mut self) -> Result<(), TooManyIds> {
        const NUMBER_BYTES: usize = size_of::<u64>();
        let ids = self.count();
        // To look takes time, too.
        if ids < self.unlooked.max(FEW_IDS) {
            return Ok(());
        }
        let far_bytes = usize::try_from(ids).unwrap_or(usize::MAX).saturating_mul(NUMBER_BYTES);
        let bytes = match &mut self.form {
            Form::Far(numbers) => {
                if far_bytes > IDS_LIMIT_BYTES {
                    numbers.sort_unstable();
                    numbers.dedup();
                }
                numbers.len() * NUMBER_BYTES
            }
            Form::Near(numbers) => {
                let bytes = size_of_bitmaps(numbers);
                if bytes > far_bytes {
                    self.form = Form::Far(numbers.iter().collect());
                }
                bytes.min(far_bytes)
            }
        };
        let ids = self.count();
        self.unlooked = ids + ids / 8;
        if bytes > IDS_LIMIT_BYTES { Err(TooManyIds { ids }) } else { Ok(()) }
    }
}

/// About. What the crate says of its containers' bytes is partly in bits, and counts two bytes for four.
fn size_of_bitmaps(numbers: &RoaringTreemap) -> usize {
    let of_bitmap = |bitmap: &roaring::RoaringBitmap| {
        let of = bitmap.statistics();
        // Arrays grow by half.
        let arrays = 3 * of.n_values_array_containers as usize;
        let bitsets = BITSET_BYTES * of.n_bitset_containers as usize;
        (1 + of.n_containers as usize) * CONTAINER_BYTES + arrays + bitsets
    };
    numbers.bitmaps().map(|(_, bitmap)| of_bitmap(bitmap)).sum()
}

/// Numbers in their order; of bytes a hash.
fn number_of(id: Key<'_>) -> u64 {
    match id {
        Key::Number(number) => number.cast_unsigned() ^ (1 << 63),
        Key::Bytes(bytes) => {
            let mut hasher = DefaultHasher::new();
            hasher.write(bytes);
            hasher.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use shared::object::{Sha256, SnapshotFacts};
    use uuid::Uuid;

    use super::*;

    fn sequence(number: u64) -> Sequence {
        Sequence::try_from(number).unwrap()
    }

    fn page(snapshot: u64, kind: SnapshotKind) -> Metadata {
        Metadata {
            archive_id: Uuid::nil(),
            observation: Uuid::nil(),
            previous: None,
            sha256: Sha256([0; 32]),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: sequence(snapshot),
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256([0; 32]),
            facts: SnapshotFacts { kind: Some(kind), ..SnapshotFacts::default() },
        }
    }

    #[test]
    fn more_than_a_tenth_and_more_than_ten_or_all_rows_need_a_person() {
        let brake = |limit: &str, allow: &str| BrakeSettings {
            absent_limit: parse_percent(limit).unwrap(),
            allow_absent: allow.parse().unwrap(),
        };
        for (gone, present, holds) in [
            (0, 0, false),
            (0, 5, false),
            (1, 1, true),
            (10, 10, true),
            (10, 11, false),
            (11, 110, false),
            (11, 109, true),
            (1_000_000, 9_999_999, true),
        ] {
            assert_eq!(brake("10%", "").holds(sequence(7), gone, present), holds, "{gone} of {present}");
        }
        assert!(brake("0%", "").holds(sequence(7), 11, 1_000) && !brake("100", "").holds(sequence(7), 99, 100));
        assert!(!brake("10%", "6-7").holds(sequence(7), 100, 100) && brake("10%", "6-7").holds(sequence(8), 100, 100));
        assert!(["", "%", "101%", "-1%", "1.5%"].iter().all(|wrong| parse_percent(wrong).is_err()));
    }

    #[test]
    fn only_the_last_page_of_a_whole_and_settled_snapshot_is_judged() {
        let whole = page(1, SnapshotKind::Whole);
        assert!(is_judged(Absent::Mark, &whole) && is_judged(Absent::Delete, &whole));
        assert!(!is_judged(Absent::Keep, &whole));
        let mut others = vec![whole; 3];
        others[0].last_page = false;
        others[1].facts.torn = true;
        others[2].facts.kind = None;
        others.push(page(1, SnapshotKind::Increment));
        assert!(others.iter().all(|other| !is_judged(Absent::Mark, other)), "{others:?}");
    }

    #[test]
    fn pages_are_seen_one_after_the_other_from_the_first() {
        let whole = page(5, SnapshotKind::Whole);
        let turn = |seen: Option<Seen>, number: u64, metadata: &Metadata| Seen::turn(seen, sequence(number), metadata);
        let first = || turn(None, 5, &whole);
        let second = || turn(first(), 6, &whole);
        assert!(first().is_some() && second().is_some() && turn(second(), 7, &whole).is_some());
        assert!(turn(None, 6, &whole).is_none(), "the first page was not seen");
        assert!(turn(first(), 7, &whole).is_none(), "another process has applied a page between");
        assert!(turn(first(), 6, &page(4, SnapshotKind::Whole)).is_none(), "of another snapshot");
        assert!(turn(second(), 7, &page(7, SnapshotKind::Increment)).is_none());
        let anew = turn(second(), 7, &page(7, SnapshotKind::Whole)).unwrap();
        assert_eq!(anew.into_ids().unwrap().0.count(), 0);
    }

    #[test]
    fn ids_are_known_again_in_each_form() {
        let texts: Vec<String> = (0..20_000).map(|number| format!("id {number}")).collect();
        for form in 0..4 {
            let id = |number: i64| match form {
                0 => Key::Number(number),
                1 => Key::Number(-5 - number),
                // Far enough apart to need more memory as a bitmap.
                2 => Key::Number(number << 40),
                _ => Key::Bytes(texts[usize::try_from(number).unwrap()].as_bytes()),
            };
            let mut seen = Seen::turn(None, sequence(1), &page(1, SnapshotKind::Whole)).unwrap();
            // An id may come again on another page.
            for numbers in [0..100, 100..17_000, 16_900..18_000] {
                seen.add(numbers.map(|number| Some(id(number))), true).unwrap();
            }
            let (ids, are_rows) = seen.into_ids().unwrap();
            assert!(are_rows && matches!(ids.form, Form::Near(_)) == (form < 2), "{form}");
            assert_eq!(ids.count(), 18_000, "{form}");
            assert!((0..18_000).all(|number| ids.contains(id(number))), "{form}");
            assert!((18_000..20_000).all(|number| !ids.contains(id(number))), "{form}");
        }
    }

    #[test]
    fn an_id_that_cannot_be_read_may_be_any() {
        let mut seen = Seen::turn(None, sequence(1), &page(1, SnapshotKind::Whole)).unwrap();
        seen.add([Some(Key::Number(1)), None].into_iter(), true).unwrap();
        seen.add([Some(Key::Number(2))].into_iter(), true).unwrap();
        assert!(seen.into_ids().is_none());
    }

    #[test]
    fn ten_million_close_numbers_and_two_million_texts_are_little_and_more_is_refused() {
        let mut close = Ids::default();
        close.add_all((0..10_000_000).map(|number| Some(Key::Number(number)))).unwrap();
        close.bound().unwrap();
        let Form::Near(numbers) = &close.form else { panic!("they lie close") };
        assert!(size_of_bitmaps(numbers) < 2 << 20);
        let add = |texts: &mut Ids, count: u32| {
            for number in 0..count {
                texts.add_all([Some(Key::Bytes(&number.to_be_bytes()))].into_iter()).unwrap();
            }
        };
        let mut texts = Ids::default();
        add(&mut texts, 2_000_000);
        texts.bound().unwrap();
        // The same again are not more.
        add(&mut texts, 2_000_000);
        texts.bound().unwrap();
        add(&mut texts, 4_000_000);
        assert_eq!(texts.bound().unwrap_err().ids, 4_000_000);
    }
}
