//! Small objects that have arrived from S3 are applied together. Whatever is out of the ordinary about one is left to be found when it is
//! applied alone.

use shared::{
    archive::{Archive, Object},
    object::Sequence,
    status,
};
use tokio::time::Instant;

use crate::{
    bundle::Small,
    decide::{Position, check_next, next_after},
    follow::FollowError,
    notes,
    prefetch::{OBJECTS_AHEAD, Prefetch, is_small},
    skip::Skip,
    table::Table,
};

/// Objects are applied together until they have so many bytes: what is made of them takes several times as much memory.
const BUNDLE_BYTES: usize = 1 << 20;

/// What became of an object that may be applied together with those behind it.
#[allow(clippy::large_enum_variant, reason = "there is one at a time, which is taken apart at once")]
pub enum Together {
    /// They are applied, up to this one.
    Applied(Position),
    /// It has to be applied alone.
    Alone(Object),
}

/// Applies the object together with those behind it that have arrived, if it is small. `most` is how many may be: half as many after a failure,
/// and twice as many after a success.
pub async fn apply_together<A: Archive, T: Table>(
    table: &mut T,
    ahead: &mut Prefetch<'_, A>,
    position: Option<&Position>,
    object: Object,
    last: Option<Sequence>,
    skip: &Skip,
    most: &mut usize,
) -> Result<Together, FollowError> {
    let (started, sequence) = (Instant::now(), next_after(position));
    let Some(last) = last.filter(|last| *last > sequence && is_small(&object)) else {
        return Ok(Together::Alone(object));
    };
    let first = Small::new(sequence, object).await?;
    let mut objects = gather(ahead, first, last, skip, *most).await?;
    let more = OBJECTS_AHEAD.min(2 * *most);
    // Until it is a success.
    *most = (objects.len() / 2).max(1);
    let mut counts = Vec::new();
    if let [_, .., newest] = objects.as_slice() {
        status::note_object(newest.sequence);
        let more_follow = last > newest.sequence;
        counts = ahead.meanwhile(table.apply_bundle(position, &objects, more_follow)).await?;
    }
    if !counts.is_empty() || objects.len() == 1 {
        *most = more;
    }
    let rest = objects.split_off(counts.len().max(1));
    ahead.put_back(rest.into_iter().map(|object| (object.sequence, object.into())));
    if counts.is_empty() {
        return Ok(Together::Alone(objects.remove(0).into()));
    }
    let share = started.elapsed() / u32::try_from(counts.len()).unwrap_or(u32::MAX);
    let mut position = None;
    for (object, counts) in objects.iter().zip(counts) {
        notes::loaded(object.sequence, &object.metadata, counts, share);
        position = Some(Position::after(object.sequence, &object.metadata));
    }
    Ok(Together::Applied(position.expect("one at least was applied")))
}

/// The object and as many of those behind it as have arrived, are small, continue the archive and are not to be skipped.
async fn gather<A: Archive>(
    ahead: &mut Prefetch<'_, A>,
    first: Small,
    last: Sequence,
    skip: &Skip,
    most: usize,
) -> Result<Vec<Small>, FollowError> {
    let mut at = Position::after(first.sequence, &first.metadata);
    let mut bytes = first.body.len();
    let mut objects = vec![first];
    while objects.len() < most && bytes < BUNDLE_BYTES && at.sequence < last && !skip.contains(at.sequence.next()) {
        let continues = |object: &Object| check_next(Some(&at), &object.metadata).is_ok();
        let Some(object) = ahead.take_if(continues) else { break };
        let object = Small::new(at.sequence.next(), object).await?;
        at = Position::after(object.sequence, &object.metadata);
        bytes += object.body.len();
        objects.push(object);
    }
    ahead.ask(last);
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, future::poll_fn, task::Poll};

    use jiff::Timestamp;
    use shared::{
        archive::{Append, ArchiveError, Head, Upload},
        object::{Metadata, Sha256, SnapshotFacts},
    };
    use uuid::Uuid;

    use super::*;

    /// Bodies of so many bytes, by number.
    struct Bodies(BTreeMap<Sequence, usize>);

    fn sequence(number: u64) -> Sequence {
        Sequence::try_from(number).unwrap()
    }

    fn observation(number: u64) -> Uuid {
        Uuid::from_u128(number.into())
    }

    /// Number 20 does not continue what is before it.
    fn metadata(sequence: Sequence) -> Metadata {
        let number = sequence.get();
        let previous = observation(if number == 20 { 99 } else { number - 1 });
        Metadata {
            archive_id: Uuid::nil(),
            observation: observation(number),
            previous: (number > 1).then_some(previous),
            sha256: Sha256([0; 32]),
            fetched_at: Timestamp::UNIX_EPOCH,
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: sequence,
            page: 1,
            last_page: true,
            snapshot_sha256: Sha256([0; 32]),
            facts: SnapshotFacts::default(),
        }
    }

    impl Archive for Bodies {
        async fn end(&self) -> Result<Option<Sequence>, ArchiveError> {
            unreachable!("nobody asks for the end")
        }

        async fn head(&self, _: Sequence) -> Result<Option<Head>, ArchiveError> {
            unreachable!("nobody asks for a head")
        }

        async fn get(&self, sequence: Sequence) -> Result<Option<Object>, ArchiveError> {
            Ok(self.0.get(&sequence).map(|bytes| Object::of_bytes(metadata(sequence), vec![b' '; *bytes].into())))
        }

        async fn append(&self, _: Sequence, _: &Metadata, _: &Upload) -> Result<Append, ArchiveError> {
            unreachable!("nobody appends")
        }
    }

    /// Those that are gathered from the first on when all have arrived, and what comes next.
    async fn gathered(sizes: &[usize], most: usize, last: u64, skip: &str) -> (Vec<u64>, Option<u64>) {
        let archive = Bodies((1..).map(sequence).zip(sizes.iter().copied()).collect());
        let mut ahead = Prefetch::new(&archive);
        for _ in sizes {
            // The window grows.
            let object = ahead.get(sequence(1), sequence(sizes.len() as u64)).await.unwrap().unwrap();
            ahead.put_back([(sequence(1), object)].into_iter());
        }
        let mut turns = 0;
        let turns = poll_fn(|context| {
            turns += 1;
            context.waker().wake_by_ref();
            if turns > 100 { Poll::Ready(()) } else { Poll::Pending }
        });
        ahead.meanwhile(turns).await;
        let first = ahead.get(sequence(1), sequence(last)).await.unwrap().unwrap();
        let first = Small::new(sequence(1), first).await.unwrap();
        let objects = gather(&mut ahead, first, sequence(last), &skip.parse().unwrap(), most).await.unwrap();
        let next = ahead.take_if(|_| true).map(|object| object.metadata.snapshot.get());
        (objects.iter().map(|object| object.sequence.get()).collect(), next)
    }

    #[tokio::test]
    async fn what_is_applied_together_is_small_continues_the_archive_and_is_not_too_much() {
        let numbers = |to: u64| (1..=to).collect::<Vec<_>>();
        assert_eq!(gathered(&[2; 5], 64, 5, "").await, (numbers(5), None), "all of them");
        assert_eq!(gathered(&[2; 5], 3, 5, "").await, (numbers(3), Some(4)), "as many as may be");
        assert_eq!(gathered(&[2; 5], 64, 4, "").await, (numbers(4), Some(5)), "to the last");
        assert_eq!(gathered(&[2; 5], 64, 5, "3").await, (numbers(2), Some(3)), "not what is skipped");
        assert_eq!(gathered(&[2; 25], 64, 25, "").await, (numbers(19), Some(20)), "not what does not continue");
        assert_eq!(gathered(&[2, 2, 200_000, 2], 64, 4, "").await, (numbers(2), None), "not what is large");
        assert_eq!(gathered(&[BUNDLE_BYTES / 8; 12], 64, 12, "").await, (numbers(8), Some(9)), "not too many bytes");
    }
}
