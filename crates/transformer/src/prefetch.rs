//! Objects on their way from S3 ahead of the one that is being applied, so that catching up does not wait for the network
//! once an object.

use std::{collections::BTreeMap, convert::Infallible, future::pending};

use futures_util::{StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use shared::{
    archive::{Archive, ArchiveError, Object},
    object::Sequence,
};

/// At 100 ms a GET, this many under way are 640 objects a second.
const OBJECTS_AHEAD: usize = 64;

/// A larger object waits in its connection. So what is held in memory stays below 64 times this.
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
        let mut unasked = match self.run {
            Some((next, unasked)) if next == sequence => unasked,
            _ => {
                *self = Self::new(self.archive);
                sequence
            }
        };
        while unasked <= last.max(sequence) && self.under_way.len() + self.arrived.len() < self.window {
            let archive = self.archive;
            self.under_way.push(Box::pin(async move { (unasked, get(archive, unasked).await) }));
            unasked = unasked.next();
        }
        self.run = Some((sequence.next(), unasked));
        self.window = OBJECTS_AHEAD.min(self.window + 1);
        loop {
            if let Some(got) = self.arrived.remove(&sequence) {
                return got;
            }
            let (arrived, got) = self.under_way.next().await.expect("the object was asked for and has not arrived");
            self.arrived.insert(arrived, got);
        }
    }

    /// Lets the GETs under way go on while something else is awaited. Safe to drop.
    pub async fn advance(&mut self) -> Infallible {
        while let Some((sequence, got)) = self.under_way.next().await {
            self.arrived.insert(sequence, got);
        }
        pending().await
    }
}

/// A small object comes with its body.
async fn get(archive: &impl Archive, sequence: Sequence) -> Got {
    match archive.get(sequence).await {
        Ok(Some(object)) if object.bytes <= SMALL_BYTES => object.into_memory().await.map(Some),
        got => got,
    }
}
