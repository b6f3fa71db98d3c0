//! The doubles of the three doors to the world, each as exact as the thing itself, and as unreliable as the dice say.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fs::File,
    io,
    mem::take,
    rc::Rc,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use importer::queue::{Queue, QueueError};
use sha2::Digest;
use shared::{
    archive::{Append, Archive, ArchiveError, Head, Object, Upload},
    object::{Metadata, Sequence, Sha256},
    pointer::Pointer,
    settings::Absent,
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep, timeout_at},
};
use transformer::{
    absence::{BrakeSettings, Ids, Seen, is_judged},
    decide::Position,
    postgres::fault::TableError,
    queue,
    read::row::Key,
    write::{
        ledger::{Counts, LedgerLine},
        table::Table,
        transaction::Attempt,
        writer::Care,
    },
};

use crate::world::{Lock, Message, Posts, Rows, Shared, Stored, World, latency};

const QUEUE_URL: &str = "https://sqs.example.org/posts.fifo";

/// How long SQS remembers a deduplication id, and how long a received message is invisible.
const DEDUPLICATION: Duration = Duration::from_mins(5);
const VISIBILITY: Duration = Duration::from_secs(4);

const BACKUPS: usize = 6;

/// An upload wants a file; the bodies are in memory.
pub static NO_FILE: LazyLock<Arc<File>> = LazyLock::new(|| Arc::new(File::open("/dev/null").expect("there is one")));

/// A door to the world: all of them are this.
#[derive(Clone)]
pub struct Door {
    pub world: Shared,
    /// Which archive the bucket held when this daemon looked last.
    looked: Rc<Cell<u64>>,
    /// The pages of a whole snapshot that this daemon has applied last.
    seen: Rc<RefCell<Option<Seen>>>,
}

impl Door {
    pub fn new(world: Shared) -> Self {
        Self { world, looked: Rc::default(), seen: Rc::default() }
    }

    pub fn fails(&self, percent: u8) -> bool {
        self.world.borrow_mut().fails(percent)
    }
}

fn no_answer() -> ArchiveError {
    let (bucket, key) = (String::new(), String::new());
    ArchiveError::Failed { operation: "simulated", bucket, key, source: "no answer".into() }
}

impl Door {
    /// A call to S3 that is not answered, before or after it was done.
    async fn s3<T>(&self, call: impl FnOnce(&mut World) -> T) -> Result<T, ArchiveError> {
        latency(&self.world).await;
        if self.fails(4) {
            return Err(no_answer());
        }
        let done = call(&mut self.world.borrow_mut());
        latency(&self.world).await;
        if self.fails(4) { Err(no_answer()) } else { Ok(done) }
    }

    /// The same for one that shows the importer which archive it is.
    async fn look<T>(&self, call: impl FnOnce(&World) -> T) -> Result<T, ArchiveError> {
        self.s3(|world| {
            self.looked.set(world.figures.swaps);
            call(world)
        })
        .await
    }
}

impl World {
    /// `looked` is when the importer has last seen the archive that it means.
    fn put(&mut self, number: u64, stored: Stored, looked: u64) -> Append {
        // Whoever lags behind could write anew what somebody has deleted; then the transformer holds for a person, who is not simulated.
        if self.archive.contains_key(&number) || self.deleted.contains_key(&number) {
            return Append::Taken;
        }
        // Nor is one who throws away what arrives in another archive than it was sent to, which nobody can help.
        if looked == self.figures.swaps {
            let before = self.archive.get(&(number - 1)).or(self.deleted.get(&(number - 1)));
            let before = before.map(|Stored { metadata, .. }| (metadata.archive_id, metadata.observation));
            if before != stored.metadata.previous.map(|previous| (stored.metadata.archive_id, previous)) {
                self.wrong = Some(format!("object {number} was appended, and does not continue the archive"));
            }
            self.archive.insert(number, stored);
            self.figures.objects += 1;
        }
        Append::Done
    }
}

impl Archive for Door {
    async fn end(&self) -> Result<Option<Sequence>, ArchiveError> {
        let end = self.look(|world| world.archive.keys().next_back().copied()).await?;
        Ok(end.map(|number| Sequence::try_from(number).expect("a sequence")))
    }

    async fn head(&self, sequence: Sequence) -> Result<Option<Head>, ArchiveError> {
        let head = |Stored { metadata, body }: &Stored| Head { metadata: metadata.clone(), bytes: body.len() as u64 };
        self.look(|world| world.archive.get(&sequence.get()).map(head)).await
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Object>, ArchiveError> {
        let stored = self.s3(|world| world.archive.get(&sequence.get()).cloned()).await?;
        let breaks_off = self.fails(4).then(|| Err(io::Error::other("it broke off")));
        Ok(stored.map(|Stored { metadata, body }| {
            let bytes = body.len() as u64;
            Object { metadata, bytes, body: stream::iter([Ok(body)].into_iter().chain(breaks_off)).boxed() }
        }))
    }

    async fn append(&self, sequence: Sequence, metadata: &Metadata, body: &Upload) -> Result<Append, ArchiveError> {
        let body = self.world.borrow().bodies[usize::try_from(body.offset).expect("an index")].clone();
        let (number, stored, looked) = (sequence.get(), Stored { metadata: metadata.clone(), body }, self.looked.get());
        if self.fails(3) {
            // Long after everybody has given it up, it arrives.
            let (world, wait) = (self.world.clone(), self.world.borrow_mut().millis(1..20_000));
            spawn_local(async move {
                sleep(wait).await;
                world.borrow_mut().put(number, stored, looked);
            });
            return Err(no_answer());
        }
        self.s3(|world| world.put(number, stored, looked)).await
    }
}

impl Queue for Door {
    async fn announce(&self, pointers: &[Pointer]) -> Result<(), QueueError> {
        let failed =
            || QueueError::Failed { queue_url: QUEUE_URL.parse().expect("an address"), source: "no answer".into() };
        latency(&self.world).await;
        let mut world = self.world.borrow_mut();
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
            for _ in 0..=u8::from(world.fails(10)) {
                let message = Message { number: world.number(), body: pointer.encode(), visible_at: now };
                world.queue.push(message);
            }
        }
        world.ears.notify_waiters();
        if world.fails(5) { Err(failed()) } else { Ok(()) }
    }
}

impl World {
    /// What can be seen, in any order.
    fn receive(&mut self) -> Vec<queue::Message> {
        let now = Instant::now();
        let mut chosen: Vec<usize> = (0..self.queue.len()).filter(|at| self.queue[*at].visible_at <= now).collect();
        self.dice.shuffle(&mut chosen);
        let receive = |at: usize| {
            self.queue[at].visible_at = now + VISIBILITY;
            queue::Message { body: self.queue[at].body.clone(), receipt: self.queue[at].number.to_string() }
        };
        chosen.into_iter().take(10).map(receive).collect()
    }
}

impl queue::Queue for Door {
    async fn receive(&self, wait: Duration) -> Result<Vec<queue::Message>, queue::QueueError> {
        let until = Instant::now() + wait;
        latency(&self.world).await;
        if self.fails(3) {
            return Err(queue::QueueError::no_answer(QUEUE_URL.parse().expect("an address")));
        }
        loop {
            let messages = self.world.borrow_mut().receive();
            if !messages.is_empty() || Instant::now() >= until {
                return Ok(messages);
            }
            let ears = self.world.borrow().ears.clone();
            let visible_at = self.world.borrow().queue.iter().map(|message| message.visible_at).min();
            // Until one is sent, or visible again.
            let _ = timeout_at(visible_at.map_or(until, |at| at.min(until)), ears.notified()).await;
        }
    }

    async fn delete(&self, messages: &[queue::Message]) {
        latency(&self.world).await;
        if !self.fails(10) {
            let receipts: Vec<u64> =
                messages.iter().map(|message| message.receipt.parse().expect("a number")).collect();
            self.world.borrow_mut().queue.retain(|message| !receipts.contains(&message.number));
        }
    }

    async fn may_delete(&self) -> Result<(), queue::QueueError> {
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
    fn lock(&self, position: Option<&Position>) -> Result<Held, Attempt> {
        let mut world = self.world.borrow_mut();
        if world.lock.is_some() {
            return Err(Attempt::Busy);
        }
        let stands = |position: &Position| (position.sequence, position.observation);
        if world.table.position.as_ref().map(stands) != position.map(stands) {
            return Err(Attempt::Moved);
        }
        let session = world.number();
        world.lock = Some(Lock { session, heard: Instant::now() });
        Ok(Held { world: self.world.clone(), session })
    }

    /// COMMIT: applied or not, answered or not.
    async fn commit(&self, held: Held, changes: Vec<Change<'_>>) -> Result<(), TableError> {
        latency(&self.world).await;
        held.is_heard()?;
        if self.fails(4) {
            return Err(lost("commit to"));
        }
        self.world.borrow_mut().change(changes);
        latency(&self.world).await;
        if self.fails(4) { Err(lost("commit to")) } else { Ok(()) }
    }
}

impl World {
    /// Rows, ledger and position in one.
    fn change(&mut self, changes: Vec<Change<'_>>) {
        for change in changes {
            self.change_by_one(change);
        }
        self.backups.push_back(self.table.clone());
        if self.backups.len() > BACKUPS {
            self.backups.pop_front();
        }
        self.lock = None;
    }

    fn change_by_one(&mut self, Change { line, posts, absence }: Change<'_>) {
        let (number, metadata) = (line.sequence.get(), line.metadata.expect("nothing is skipped here"));
        if self.true_object(number).is_none_or(|stored| stored.metadata != *metadata) {
            self.wrong = Some(format!("object {number} was applied, and is not the archive's"));
        }
        let Rows { position, ledger, posts: rows, absent, missing } = &mut self.table;
        for (id, title) in posts {
            missing.remove(&id);
            let was_absent = absent.remove(&id).is_some();
            if was_absent || rows.get(&id).is_none_or(|(known, _)| *known != title) {
                rows.insert(id, (title, number));
            }
        }
        if let Some(Absence { gone, lacking }) = absence {
            *missing = lacking;
            for id in gone {
                if self.absent == Absent::Delete {
                    rows.remove(&id);
                } else {
                    absent.insert(id, number);
                }
            }
        }
        // The ledger has a primary key.
        if ledger.insert(number, line.outcome).is_some() {
            self.wrong = Some(format!("object {number} was applied twice"));
        }
        *position = Some(Position::after(line.sequence, metadata));
    }
}

/// What an object changes.
struct Change<'a> {
    line: LedgerLine<'a>,
    posts: Posts,
    absence: Option<Absence>,
}

/// What the last page of a whole snapshot shows.
struct Absence {
    /// The rows that become absent.
    gone: Vec<i64>,
    /// The other rows that the snapshot lacks.
    lacking: BTreeSet<i64>,
}

impl World {
    /// Which rows the snapshot lacks that ends with this object, and how many are there.
    fn judge(&self, metadata: &Metadata, ids: &Ids) -> (Absence, u64) {
        let Rows { posts, absent, missing, .. } = &self.table;
        let present: Vec<i64> = posts.keys().filter(|id| !absent.contains_key(id)).copied().collect();
        let lacks = present.iter().filter(|id| !ids.contains(Key::Number(**id))).copied();
        let (gone, lacking): (Vec<i64>, Vec<i64>) = lacks.partition(|id| metadata.facts.single || missing.contains(id));
        (Absence { gone, lacking: lacking.into_iter().collect() }, present.len() as u64)
    }

    /// A person looks at what made a transformer hold, and lets it through.
    fn allow(world: &Shared, number: u64) {
        let (world, wait) = (world.clone(), world.borrow_mut().millis(1..20_000));
        spawn_local(async move {
            // On the paused clock of the simulation it takes no time.
            sleep(wait).await;
            let mut world = world.borrow_mut();
            world.allowed.insert(number);
            for host in 2..4 {
                world.ends[host].notify_waiters();
            }
        });
    }

    fn brake(&self) -> BrakeSettings {
        let allowed: Vec<String> = self.allowed.iter().map(u64::to_string).collect();
        let allow_absent = allowed.join(",").parse().expect("sequences");
        BrakeSettings { absent_limit: 10, allow_absent }
    }
}

impl Table for Door {
    async fn position(&mut self) -> Result<Option<Position>, TableError> {
        latency(&self.world).await;
        if self.fails(4) { Err(lost("read the position in")) } else { Ok(self.world.borrow().table.position) }
    }

    async fn apply(
        &mut self,
        position: Option<&Position>,
        run: Vec<(Sequence, Object)>,
        _: Care,
    ) -> Result<Attempt, TableError> {
        let held = match self.lock(position) {
            Ok(held) => held,
            Err(outcome) => return Ok(outcome),
        };
        let mut seen = self.seen.take();
        let judged = run.last().filter(|(_, object)| self.judges(&object.metadata));
        if let Some((sequence, Object { metadata, .. })) = judged {
            let pages = metadata.snapshot.get()..sequence.get();
            let is_seen = pages.is_empty() || seen.as_ref().is_some_and(|seen| seen.precedes(*sequence, metadata));
            let is_loaded = |page| self.world.borrow().table.ledger.get(&page) == Some(&"loaded");
            if !is_seen && pages.clone().all(is_loaded) {
                return Ok(Attempt::Unseen { first: metadata.snapshot });
            }
        }
        let mut read = Vec::new();
        for (sequence, Object { metadata, body: mut chunks, .. }) in run {
            let mut body = Vec::new();
            while let Some(chunk) = chunks.next().await {
                latency(&self.world).await;
                held.is_heard()?;
                body.extend_from_slice(&chunk.map_err(TableError::BrokeOff)?);
            }
            let bytes = body.len() as u64;
            if Sha256(sha2::Sha256::digest(&body).into()) != metadata.sha256 {
                return Ok(Attempt::WrongBytes { bytes });
            }
            let Ok(posts) = serde_json::from_slice::<Posts>(&body) else {
                return Ok(Attempt::Broken { bytes, reason: "it is broken".to_owned() });
            };
            seen = Seen::turn(seen, sequence, &metadata);
            see(&mut seen, &posts);
            let mut absence = None;
            if self.judges(&metadata)
                && let Some((ids, _)) = seen.take().and_then(Seen::into_ids)
            {
                let world = self.world.borrow();
                let (judged, present) = world.judge(&metadata, &ids);
                let gone = judged.gone.len() as u64;
                if world.brake().holds(sequence, gone, present) {
                    drop(world);
                    World::allow(&self.world, sequence.get());
                    return Ok(Attempt::Braked { gone, present, ids: Vec::new() });
                }
                absence = Some(judged);
            }
            read.push((sequence, metadata, bytes, posts, absence));
        }
        if self.fails(4) {
            return Err(lost("copy posts into"));
        }
        let counts = vec![Counts::default(); read.len()];
        let changes = read.iter_mut().map(|(sequence, metadata, bytes, posts, absence)| {
            let metadata = &*metadata;
            let (archive_id, metadata, bytes) = (metadata.archive_id, Some(metadata), Some(*bytes));
            let (outcome, reason, counts) = ("loaded", None, Counts::default());
            let line = LedgerLine { sequence: *sequence, metadata, archive_id, bytes, outcome, reason, counts };
            Change { line, posts: take(posts), absence: absence.take() }
        });
        self.commit(held, changes.collect()).await?;
        *self.seen.borrow_mut() = seen;
        Ok(Attempt::Applied(counts))
    }

    fn judges(&self, metadata: &Metadata) -> bool {
        is_judged(self.world.borrow().absent, metadata)
    }

    async fn see(&mut self, sequence: Sequence, object: Object) -> Result<bool, TableError> {
        let Object { metadata, body: mut chunks, .. } = object;
        let mut body = Vec::new();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.map_err(TableError::BrokeOff)?);
        }
        let mut seen = Seen::turn(self.seen.take(), sequence, &metadata);
        see(&mut seen, &serde_json::from_slice(&body).unwrap_or_default());
        *self.seen.borrow_mut() = seen;
        Ok(Sha256(sha2::Sha256::digest(&body).into()) == metadata.sha256)
    }

    async fn pass_over(&mut self, position: Option<&Position>, line: &LedgerLine<'_>) -> Result<Attempt, TableError> {
        match self.lock(position) {
            Ok(held) => {
                self.commit(held, vec![Change { line: *line, posts: Posts::new(), absence: None }]).await?;
                Ok(Attempt::Applied(vec![Counts::default()]))
            }
            Err(outcome) => Ok(outcome),
        }
    }

    async fn end_silent_holder(&mut self, silence: Duration) -> Result<bool, TableError> {
        latency(&self.world).await;
        let mut world = self.world.borrow_mut();
        let is_silent = world.lock.is_some_and(|lock| lock.heard.elapsed() > silence);
        if is_silent {
            world.lock = None;
        }
        Ok(is_silent)
    }
}

fn see(seen: &mut Option<Seen>, posts: &Posts) {
    if let Some(seen) = seen {
        seen.add(posts.keys().map(|id| Some(Key::Number(*id))), true).expect("there are few");
    }
}
