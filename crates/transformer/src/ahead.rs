//! Objects on their way from S3 ahead of those that are being applied, so that catching up does not wait for the network once an object.

use std::{collections::VecDeque, convert::Infallible, future::pending, iter};

use futures_util::{
    StreamExt,
    stream::{self, LocalBoxStream},
};
use shared::{
    archive::{Archive, ArchiveError, Object},
    object::Sequence,
};

/// At 100 ms a GET, this many under way are 640 objects a second. They hold 8 MiB at most.
const UNDER_WAY: usize = 64;

/// A larger object waits in its connection.
const SMALL_BYTES: u64 = 128 * 1024;

/// No more GETs are begun while this many objects wait to be applied.
pub const OBJECTS_AHEAD: usize = 512;

/// … or while they have this many bytes.
pub const BYTES_AHEAD: u64 = 4 << 20;

type Got = Result<Option<Object>, ArchiveError>;

/// GETs for consecutive objects.
pub struct Prefetch<'a, A> {
    archive: &'a A,
    /// The next object, and the last that is asked for.
    range: Option<(Sequence, Sequence)>,
    under_way: LocalBoxStream<'a, Got>,
    /// In order, from the next object on.
    arrived: VecDeque<Got>,
}

impl<'a, A: Archive> Prefetch<'a, A> {
    /// Nothing is asked for yet.
    pub fn new(archive: &'a A) -> Self {
        Self { archive, range: None, under_way: stream::empty().boxed_local(), arrived: VecDeque::new() }
    }

    /// Waits for the object, and asks for those after it, up to `last`. Out of turn, or with another `last`, it begins anew.
    pub async fn get(&mut self, sequence: Sequence, last: Sequence) -> Got {
        let last = last.max(sequence);
        if self.range != Some((sequence, last)) {
            let archive = self.archive;
            let sequences = iter::successors(Some(sequence), |sequence| Some(sequence.next()));
            let gets =
                sequences.take_while(move |sequence| *sequence <= last).map(move |sequence| get(archive, sequence));
            self.under_way = stream::iter(gets).buffered(UNDER_WAY).boxed_local();
            self.arrived.clear();
        }
        self.range = Some((sequence.next(), last));
        match self.arrived.pop_front() {
            Some(got) => got,
            None => self.under_way.next().await.expect("the object was asked for"),
        }
    }

    /// The next object, if it has arrived already, is small, and is wanted.
    pub fn take_if(&mut self, is_wanted: impl FnOnce(&Object) -> bool) -> Option<Object> {
        let is_taken = matches!(self.arrived.front(), Some(Ok(Some(object))) if is_small(object) && is_wanted(object));
        let object = if is_taken { self.arrived.pop_front()?.ok()? } else { None };
        if object.is_some() {
            self.range = self.range.map(|(next, last)| (next.next(), last));
        }
        object
    }

    /// Awaits something else to its end, and lets the GETs under way go on meanwhile.
    pub async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            // Never dropped before it is done, because the other branch never is.
            done = other => done,
            never = self.advance() => match never {},
        }
    }

    async fn advance(&mut self) -> Infallible {
        while self.has_room()
            && let Some(got) = self.under_way.next().await
        {
            self.arrived.push_back(got);
        }
        pending().await
    }

    fn has_room(&self) -> bool {
        let bytes = |got: &Got| got.as_ref().ok().and_then(Option::as_ref).map_or(0, |object| object.bytes);
        self.arrived.len() < OBJECTS_AHEAD && self.arrived.iter().map(bytes).sum::<u64>() < BYTES_AHEAD
    }
}

/// Whether an object comes with its body in memory.
pub fn is_small(object: &Object) -> bool {
    object.bytes <= SMALL_BYTES
}

async fn get(archive: &impl Archive, sequence: Sequence) -> Got {
    match archive.get(sequence).await {
        Ok(Some(object)) if is_small(&object) => object.into_memory().await.map(Some),
        got => got,
    }
}
