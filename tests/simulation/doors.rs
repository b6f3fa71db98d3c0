//! The doubles: the API and the three doors to the world, each as exact as the thing itself, and as unreliable as the dice say.

use std::{io, os::unix::fs::FileExt, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use importer::{
    bell::BellError as ImporterBellError,
    decide::validators,
    poll::{Answer, PollError, Source, Validators},
    spool::Spooled,
};
use sha2::Digest;
use shared::{
    archive::{Append, Archive, ArchiveError, Head, Object, Upload},
    object::{Metadata, Sequence, Sha256},
    pointer::Pointer,
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep},
};
use transformer::{
    bell::{BellError, Ring},
    decide::Position,
    fault::TableError,
    ledger::{Counts, LedgerLine},
    table::{Care, Outcome, Table},
};

use crate::world::{Lock, Message, Posts, Rows, Shared, Stored, World, latency};

const URL: &str = "https://api.example.org/posts";

/// How long SQS remembers a deduplication id, and how long a received message is invisible.
const DEDUPLICATION: Duration = Duration::from_mins(5);
const VISIBILITY: Duration = Duration::from_secs(4);

/// A door to the world: all of them are this.
#[derive(Clone)]
pub struct Door(pub Shared);

impl Source for Door {
    async fn poll(&self, last: Option<&Metadata>) -> Result<Option<Vec<Answer>>, PollError> {
        let fetched_at = self.0.borrow().time();
        latency(&self.0).await;
        let answer = {
            let mut world = self.0.borrow_mut();
            if world.fails(10) {
                return Err(PollError::Unsettled { url: URL.to_owned() });
            }
            let api = world.api.clone();
            let etag = format!("\"{:?}\"", (&api.posts, api.is_broken)).replace(|c: char| !c.is_ascii(), "");
            let etag = Sha256(sha2::Sha256::digest(etag).into()).to_string();
            // A collection of more than three posts has two pages.
            let pages: Vec<Vec<u8>> = if api.is_broken {
                vec![b"broken".to_vec()]
            } else if api.posts.len() > 3 {
                let second = api.posts.clone().split_off(api.posts.keys().nth(2).expect("there are more"));
                let mut first = api.posts.clone();
                first.retain(|id, _| !second.contains_key(id));
                [first, second].map(|posts| serde_json::to_vec(&posts).expect("it is JSON")).into()
            } else {
                vec![serde_json::to_vec(&api.posts).expect("it is JSON")]
            };
            let is_one = pages.len() == 1;
            if is_one && validators(last, URL).etag.as_ref() == Some(&etag) {
                None
            } else {
                let validators = Validators { etag: is_one.then_some(etag), last_modified: None };
                let page = |body: Vec<u8>| {
                    let upload = Upload { file: world.spool.clone(), offset: world.spooled, bytes: body.len() as u64 };
                    world.spool.write_all_at(&body, world.spooled).expect("there is room");
                    world.spooled += body.len() as u64;
                    let sha256 = Sha256(sha2::Sha256::digest(&body).into());
                    let spooled = Spooled { upload, sha256, beginning: Vec::new(), ending: None };
                    let (observation, source_url) = (world.uuid(), URL.to_owned());
                    world.versions.insert(observation, api.version);
                    Answer { observation, fetched_at, source_url, validators: validators.clone(), spooled }
                };
                Some(pages.into_iter().map(page).collect())
            }
        };
        latency(&self.0).await;
        Ok(answer)
    }
}

fn no_answer() -> ArchiveError {
    let (bucket, key) = (String::new(), String::new());
    ArchiveError::Failed { operation: "simulated", bucket, key, source: "no answer".into() }
}

impl Door {
    /// A call to S3 that is not answered, before or after it was done.
    async fn s3<T>(&self, call: impl FnOnce(&mut World) -> T) -> Result<T, ArchiveError> {
        latency(&self.0).await;
        if self.0.borrow_mut().fails(4) {
            return Err(no_answer());
        }
        let done = call(&mut self.0.borrow_mut());
        latency(&self.0).await;
        if self.0.borrow_mut().fails(4) { Err(no_answer()) } else { Ok(done) }
    }
}

fn put(world: &mut World, number: u64, stored: Stored) -> Append {
    // Whoever lags behind could write anew what somebody has deleted; then the transformer holds for a person, who is not simulated.
    if world.archive.contains_key(&number) || world.deleted.contains_key(&number) {
        return Append::Taken;
    }
    world.archive.insert(number, stored);
    world.figures.objects += 1;
    Append::Done
}

impl Archive for Door {
    async fn end(&self) -> Result<Option<Sequence>, ArchiveError> {
        let end = self.s3(|world| world.archive.keys().next_back().copied()).await?;
        Ok(end.map(|number| Sequence::try_from(number).expect("a sequence")))
    }

    async fn head(&self, sequence: Sequence) -> Result<Option<Head>, ArchiveError> {
        let stored = self.s3(|world| world.archive.get(&sequence.get()).cloned()).await?;
        Ok(stored.map(|Stored { metadata, body }| Head { metadata, bytes: body.len() as u64 }))
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Object>, ArchiveError> {
        let Some(stored) = self.s3(|world| world.archive.get(&sequence.get()).cloned()).await? else { return Ok(None) };
        let Stored { metadata, body } = stored;
        let bytes = body.len() as u64;
        let breaks_off = self.0.borrow_mut().fails(4);
        let end = breaks_off.then(|| Err(io::Error::other("it broke off")));
        let body = stream::iter([Ok(Bytes::from(body))].into_iter().chain(end)).boxed();
        Ok(Some(Object { metadata, bytes, body }))
    }

    async fn append(&self, sequence: Sequence, metadata: &Metadata, body: &Upload) -> Result<Append, ArchiveError> {
        let mut bytes = vec![0; body.bytes.try_into().expect("a small body")];
        body.file.read_exact_at(&mut bytes, body.offset).expect("it was written");
        let (number, stored) = (sequence.get(), Stored { metadata: metadata.clone(), body: bytes });
        if self.0.borrow_mut().fails(3) {
            // Long after everybody has given it up, it arrives.
            let (world, wait) = (self.0.clone(), self.0.borrow_mut().millis(1..20_000));
            spawn_local(async move {
                sleep(wait).await;
                put(&mut world.borrow_mut(), number, stored);
            });
            return Err(no_answer());
        }
        self.s3(move |world| put(world, number, stored)).await
    }
}

impl importer::bell::Bell for Door {
    async fn ring(&self, pointers: &[Pointer]) -> Result<(), ImporterBellError> {
        let failed = || ImporterBellError::Failed {
            queue_url: "https://sqs.example.org/posts.fifo".parse().expect("an address"),
            source: "no answer".into(),
        };
        latency(&self.0).await;
        let mut world = self.0.borrow_mut();
        if world.fails(5) {
            return Err(failed());
        }
        for pointer in pointers {
            let now = Instant::now();
            let id = pointer.deduplication_id();
            let is_known = world.sent.get(&id).is_some_and(|at| now - *at < DEDUPLICATION);
            // SQS loses nothing; a purge does, and this stands for it.
            if is_known || world.fails(10) {
                continue;
            }
            world.sent.insert(id, now);
            let copies = 1 + usize::from(world.fails(10));
            for _ in 0..copies {
                let message = Message { id: world.uuid(), body: pointer.encode(), visible_at: now };
                world.queue.push(message);
            }
        }
        if world.fails(5) { Err(failed()) } else { Ok(()) }
    }
}

impl World {
    /// What can be seen, in any order.
    fn receive(&mut self) -> Vec<Ring> {
        let now = Instant::now();
        let mut chosen: Vec<usize> = (0..self.queue.len()).filter(|at| self.queue[*at].visible_at <= now).collect();
        self.dice.shuffle(&mut chosen);
        let receive = |at: usize| {
            self.queue[at].visible_at = now + VISIBILITY;
            Ring { body: self.queue[at].body.clone(), receipt: self.queue[at].id.to_string() }
        };
        chosen.into_iter().take(10).map(receive).collect()
    }
}

impl transformer::bell::Bell for Door {
    async fn receive(&self, wait: Duration) -> Result<Vec<Ring>, BellError> {
        let until = Instant::now() + wait;
        loop {
            latency(&self.0).await;
            if self.0.borrow_mut().fails(3) {
                return Err(BellError::no_answer("https://sqs.example.org/posts.fifo".parse().expect("an address")));
            }
            let rings = self.0.borrow_mut().receive();
            if !rings.is_empty() || Instant::now() >= until {
                return Ok(rings);
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    async fn delete(&self, rings: &[Ring]) {
        latency(&self.0).await;
        let mut world = self.0.borrow_mut();
        if !world.fails(10) {
            world.queue.retain(|message| !rings.iter().any(|ring| ring.receipt == message.id.to_string()));
        }
    }

    async fn may_delete(&self) -> Result<(), BellError> {
        Ok(())
    }
}

/// The stream's row, held. A process that is killed gives it back; one whose host is gone does not.
struct Held {
    world: Shared,
    session: u64,
}

impl Held {
    /// The session does something, if it is still there.
    fn is_heard(&self) -> Result<(), TableError> {
        match &mut self.world.borrow_mut().lock {
            Some(lock) if lock.session == self.session => {
                lock.heard = Instant::now();
                Ok(())
            }
            _ => Err(lost("its session was ended")),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut world = self.world.borrow_mut();
        let is_ours = world.lock.is_some_and(|lock| lock.session == self.session);
        if is_ours && !world.fails(20) {
            world.lock = None;
        }
    }
}

fn lost(doing: &'static str) -> TableError {
    TableError::Deadline { doing, secs: 75 }
}

impl Door {
    fn lock(&self, position: Option<&Position>) -> Result<Held, Outcome> {
        let mut world = self.0.borrow_mut();
        if world.lock.is_some() {
            return Err(Outcome::Busy);
        }
        let stands = |rows: &Rows| rows.position.map(|position| (position.sequence, position.observation));
        if stands(&world.table) != position.map(|position| (position.sequence, position.observation)) {
            return Err(Outcome::Moved);
        }
        world.next_session += 1;
        let session = world.next_session;
        world.lock = Some(Lock { session, heard: Instant::now() });
        drop(world);
        Ok(Held { world: self.0.clone(), session })
    }

    /// COMMIT: applied or not, answered or not.
    async fn commit(&self, held: Held, change: impl FnOnce(&mut Rows)) -> Result<Outcome, TableError> {
        latency(&self.0).await;
        held.is_heard()?;
        {
            let mut world = self.0.borrow_mut();
            if world.fails(4) {
                return Err(lost("commit to"));
            }
            change(&mut world.table);
            let rows = world.table.clone();
            world.backups.push(rows);
            world.lock = None;
        }
        latency(&self.0).await;
        if self.0.borrow_mut().fails(4) { Err(lost("commit to")) } else { Ok(Outcome::Applied(Counts::default())) }
    }
}

impl Table for Door {
    async fn position(&mut self) -> Result<Option<Position>, TableError> {
        latency(&self.0).await;
        let mut world = self.0.borrow_mut();
        if world.fails(4) { Err(lost("read the position in")) } else { Ok(world.table.position) }
    }

    async fn apply(
        &mut self,
        position: Option<&Position>,
        sequence: Sequence,
        object: Object,
        _: Care,
    ) -> Result<Outcome, TableError> {
        let metadata = object.metadata.clone();
        let held = match self.lock(position) {
            Ok(held) => held,
            Err(outcome) => return Ok(outcome),
        };
        let mut body = Vec::new();
        let mut chunks = object.body;
        while let Some(chunk) = chunks.next().await {
            latency(&self.0).await;
            held.is_heard()?;
            body.extend_from_slice(&chunk.map_err(TableError::BrokeOff)?);
        }
        if self.0.borrow_mut().fails(4) {
            return Err(lost("merge posts into"));
        }
        if Sha256(sha2::Sha256::digest(&body).into()) != metadata.sha256 {
            return Ok(Outcome::WrongBytes { bytes: body.len() as u64 });
        }
        let Ok(posts) = serde_json::from_slice::<Posts>(&body) else {
            return Ok(Outcome::Broken { bytes: body.len() as u64, reason: "it is broken".to_owned() });
        };
        let change = move |rows: &mut Rows| {
            for (id, title) in posts {
                if rows.posts.get(&id).is_none_or(|(known, _)| *known != title) {
                    rows.posts.insert(id, (title, sequence.get()));
                }
            }
            rows.ledger.insert(sequence.get(), "loaded");
            rows.position = Some(Position::after(sequence, &metadata));
        };
        self.commit(held, change).await
    }

    async fn pass_over(&mut self, position: Option<&Position>, line: &LedgerLine<'_>) -> Result<Outcome, TableError> {
        let held = match self.lock(position) {
            Ok(held) => held,
            Err(outcome) => return Ok(outcome),
        };
        let (sequence, outcome) = (line.sequence, line.outcome);
        let metadata = line.metadata.expect("nothing is skipped here").clone();
        let change = move |rows: &mut Rows| {
            rows.ledger.insert(sequence.get(), outcome);
            rows.position = Some(Position::after(sequence, &metadata));
        };
        self.commit(held, change).await
    }

    async fn end_silent_holder(&mut self, silence: Duration) -> Result<bool, TableError> {
        latency(&self.0).await;
        let mut world = self.0.borrow_mut();
        let is_silent = world.lock.is_some_and(|lock| lock.heard.elapsed() > silence);
        if is_silent {
            world.lock = None;
        }
        Ok(is_silent)
    }
}
