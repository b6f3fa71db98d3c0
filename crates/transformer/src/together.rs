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
    fault::Fault,
    follow::FollowError,
    notes,
    prefetch::{OBJECTS_AHEAD, Prefetch, is_small},
    skip::Skip,
    table::Table,
};

/// Objects are applied together until they have so many bytes: what is made of them takes several times as much memory.
const BUNDLE_BYTES: usize = 1 << 20;

/// What became of an object that may be applied together with those behind it.
pub enum Together {
    /// They are applied, up to this one.
    Applied(Position),
    /// It has to be applied alone.
    Alone(Object),
}

/// Applies the object together with those behind it that have arrived, if it is small. `together` is how many may be: half of those that
/// could not be, and twice as many after each success.
pub async fn apply_together<A: Archive, T: Table>(
    table: &mut T,
    ahead: &mut Prefetch<'_, A>,
    position: Option<&Position>,
    object: Object,
    last: Option<Sequence>,
    skip: &Skip,
    together: &mut usize,
) -> Result<Together, FollowError> {
    let (started, sequence) = (Instant::now(), next_after(position));
    let Some(last) = last.filter(|last| *last > sequence && is_small(&object)) else {
        return Ok(Together::Alone(object));
    };
    let first = Small::new(sequence, object).await?;
    let mut objects = bundle(ahead, first, last, skip, *together).await?;
    *together = OBJECTS_AHEAD.min(2 * *together);
    let mut counts = Vec::new();
    if let [_, .., newest] = objects.as_slice() {
        status::note_object(newest.sequence);
        let more_follow = last > newest.sequence;
        let applied = tokio::select! {
            biased;
            // Never dropped before it is done, because the other branch never is.
            applied = table.apply_bundle(position, &objects, more_follow) => applied,
            never = ahead.advance() => match never {},
        };
        counts = match applied {
            Err(error) if error.fault() == Fault::Record || error.is_too_slow() => Vec::new(),
            applied => applied?,
        };
        if counts.is_empty() {
            *together = objects.len() / 2;
        }
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
async fn bundle<A: Archive>(
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
