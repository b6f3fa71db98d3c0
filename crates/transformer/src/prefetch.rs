//! Objects on their way from S3 ahead of the one that is being applied, so that catching up does not wait for the network
//! once an object.

use std::{collections::BTreeMap, convert::Infallible, future::pending};

use futures_util::{StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use shared::{
    archive::{Archive, ArchiveError, Object},
    object::Sequence,
};

/// At 100 ms a GET, this many under way are 640 objects a second.
pub const OBJECTS_AHEAD: usize = 64;

/// A larger object waits in its connection. So what is held in memory stays below 128 times this: those that are taken back wait, too.
const SMALL_BYTES: u64 = 128 * 1024;

type Got = Result<Option<Object>, ArchiveError>;

/// GETs for a run of sequences.
pub struct Prefetch<'a, A> {
    archive: &'a A,
    under_way: FuturesUnordered<LocalBoxFuture<'a, (Sequence, Got)>>,
    arrived: BTreeMap<Sequence, Got>,
    /// The one that will be taken next, and the first that was not asked for yet.
    run: Option<(Sequence, Sequence)>,
    /// How many may be under way: one more with each that was there, so that what is only said to be there costs no more GETs than there
    /// were objects before it, and one.
    window: usize,
}

impl<'a, A: Archive> Prefetch<'a, A> {
    /// Nothing is asked for yet.
    pub fn new(archive: &'a A) -> Self {
        Self { archive, under_way: FuturesUnordered::new(), arrived: BTreeMap::new(), run: None, window: 1 }
    }

    /// Waits for the object, and asks for those after it, up to `last`. Out of turn, it begins anew from there.
    pub async fn get(&mut self, sequence: Sequence, last: Sequence) -> Got {
        if self.run.is_none_or(|(next, _)| next != sequence) {
            *self = Self { run: Some((sequence, sequence)), ..Self::new(self.archive) };
        }
        self.ask(last.max(sequence));
        while !self.arrived.contains_key(&sequence) {
            let (arrived, got) = self.under_way.next().await.expect("the object was asked for and has not arrived");
            self.arrived.insert(arrived, got);
        }
        self.take(sequence)
    }

    /// The next object, if it has arrived already, is in memory, and is wanted.
    pub fn take_if(&mut self, is_wanted: impl FnOnce(&Object) -> bool) -> Option<Object> {
        let (next, _) = self.run?;
        match self.arrived.get(&next) {
            Some(Ok(Some(object))) if is_small(object) && is_wanted(object) => self.take(next).ok()?,
            _ => None,
        }
    }

    /// Takes back what was taken last.
    pub fn put_back(&mut self, objects: impl DoubleEndedIterator<Item = (Sequence, Object)>) {
        for (sequence, object) in objects.rev() {
            self.arrived.insert(sequence, Ok(Some(object)));
            self.run = self.run.map(|(_, unasked)| (sequence, unasked));
        }
    }

    fn take(&mut self, sequence: Sequence) -> Got {
        self.run = self.run.map(|(_, unasked)| (sequence.next(), unasked));
        self.window = OBJECTS_AHEAD.min(self.window + 1);
        self.arrived.remove(&sequence).expect("it has arrived")
    }

    /// Asks for as many as may be under way, up to `last`.
    pub fn ask(&mut self, last: Sequence) {
        let Some((next, mut unasked)) = self.run else { return };
        while unasked <= last && self.under_way.len() + self.arrived.len() < self.window {
            let (archive, sequence) = (self.archive, unasked);
            self.under_way.push(Box::pin(async move { (sequence, get(archive, sequence).await) }));
            unasked = unasked.next();
        }
        self.run = Some((next, unasked));
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
        while let Some((sequence, got)) = self.under_way.next().await {
            self.arrived.insert(sequence, got);
        }
        pending().await
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
