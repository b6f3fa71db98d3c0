//! The posts are a pure function of the archive: a rebuild gives equal posts, at the end and at any point before.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
};

use anyhow::{Result, bail, ensure};
use fastrand::Rng;
use sandbox::{Sandbox, Setup};
use serde_json::{Value, json};
use shared::object::{Sequence, Sha256};
use sqlx::AssertSqlSafe;
use support::{
    SOON, applied,
    author::{Author, document},
    execute, select, start, transformer, transformer_command,
};
use transformer::read::table_definition::DEFAULT;

/// The columns of a post: user, title, extra, first seen, updated, sequence.
type Post = (i64, String, Option<Value>, i64, i64, i64);

/// What the table has to hold after an object, worked out without the transformer's code.
#[derive(Clone, Debug, Default)]
struct Model(BTreeMap<i64, Post>);

impl Model {
    /// The post as the object with this number has it.
    fn observe(&mut self, number: u64, id: i64, user: i64, title: &str, extra: Option<Value>) {
        let at = Author::fetched_at(number).as_microsecond();
        let sequence = i64::try_from(number).expect("a small number");
        match self.0.get_mut(&id) {
            Some((old_user, old_title, old_extra, _, updated, changed_by)) => {
                if (*old_user, old_title.as_str(), &*old_extra) != (user, title, &extra) {
                    (*old_user, *old_extra, *updated, *changed_by) = (user, extra, at, sequence);
                    title.clone_into(old_title);
                }
            }
            None => drop(self.0.insert(id, (user, title.to_owned(), extra, at, at, sequence))),
        }
    }

    async fn assert_is(&self, sandbox: &Sandbox, schema: &str, why: &str) -> Result<()> {
        let statement = format!(
            "SELECT id, user_id, title, extra::text, (extract(epoch FROM first_seen_at) * 1000000)::bigint,
                (extract(epoch FROM updated_at) * 1000000)::bigint, sequence FROM {schema}.posts ORDER BY id"
        );
        let mut connection = sandbox.connect().await?;
        let rows = sqlx::query_as(AssertSqlSafe(statement)).fetch_all(&mut connection).await?;
        let mut found = BTreeMap::new();
        for (id, user, title, extra, first_seen, updated, sequence) in rows {
            let extra: Option<String> = extra;
            let extra = extra.map(|extra| serde_json::from_str(&extra)).transpose()?;
            found.insert(id, (user, title, extra, first_seen, updated, sequence));
        }
        let ids = found.keys().chain(self.0.keys());
        let different = ids.copied().find(|id| found.get(id) != self.0.get(id));
        let Some(id) = different else { return Ok(()) };
        bail!("{why}: post {id} is {:?} and has to be {:?}", found.get(&id), self.0.get(&id))
    }
}

/// A document with random posts and records that are none, and what it does to the table.
fn random_document(random: &mut Rng, number: u64, model: &mut Model) -> String {
    let mut records = Vec::new();
    // Of two posts with one id in a document the later one counts.
    let mut last = BTreeMap::new();
    for _ in 0..random.usize(0..40) {
        let id = random.i64(1..60);
        // Few titles, so that many observations bring nothing new.
        let (user, title) = (random.i64(1..3), format!("title {} ü", random.u8(0..3)));
        let post = json!({ "id": id, "userId": user, "title": title, "body": "b" });
        match random.u8(0..12) {
            0 => records.push(json!({ "id": id, "userId": user }).to_string()),
            1 => records.push(json!({ "id": id, "userId": user, "title": "a\u{0}b", "body": "" }).to_string()),
            2 => records.push(["7", "\"x\"", "null", "[{}]", "true"][random.usize(0..5)].to_owned()),
            3 => records.push(post.to_string().replace("\"body\"", "\"id\": 1, \"body\"")),
            4 => {
                let extra = json!({ "tags": [random.u8(0..2)] });
                records.push(post.to_string().replace("\"id\"", &format!("\"tags\":{},\"id\"", extra["tags"])));
                last.insert(id, (user, title, Some(extra)));
            }
            _ => {
                records.push(post.to_string());
                last.insert(id, (user, title, None));
            }
        }
    }
    for (id, (user, title, extra)) in last {
        model.observe(number, id, user, &title, extra);
    }
    format!("[{}]", records.join(", "))
}

/// An archive of all that can happen to one; answers with the table after each object, from 0 on.
async fn write_random_archive(
    sandbox: &Sandbox,
    author: &mut Author<'_>,
    random: &mut Rng,
    skipped: &BTreeSet<u64>,
    objects: u64,
) -> Result<Vec<Model>> {
    let mut models = vec![Model::default()];
    for number in 1..=objects {
        let mut model = models[models.len() - 1].clone();
        let mut whole = model.clone();
        let body = random_document(random, number, &mut whole);
        match random.u8(0..10) {
            // A document that breaks off, and bytes that are not those that the metadata speaks of.
            0 => drop(author.append(&body[..body.len() - 1]).await?),
            1 => drop(author.append_with(&body, |metadata| metadata.sha256 = Sha256([7; 32])).await?),
            2 => drop(author.append(["[]", " null\n", "", "<html>"][random.usize(0..4)]).await?),
            3 => {
                let id = random.i64(1..60);
                let single = json!({ "id": id, "userId": 1, "title": "single", "body": "b" }).to_string();
                author.append(format!("\u{feff}{single}")).await?;
                if !skipped.contains(&number) {
                    model.observe(number, id, 1, "single", None);
                }
            }
            _ => {
                author.append(&body).await?;
                if !skipped.contains(&number) {
                    model = whole;
                }
            }
        }
        if skipped.contains(&number) && random.bool() {
            let key = Sequence::try_from(number)?.key(sandbox.stream());
            sandbox.s3().delete_object().bucket(sandbox.bucket()).key(key).send().await?;
        }
        models.push(model);
        if random.u8(0..20) == 0 {
            sandbox.transformer.kill();
        }
    }
    Ok(models)
}

async fn succeeds(sandbox: &Sandbox, settings: &[(&'static str, &str)], arguments: &[&str]) -> Result<String> {
    let output = transformer(sandbox, settings, arguments).await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Rows that are in one schema only: the records' table and quarantine whole, the ledger but for the loader's clock.
async fn differences(sandbox: &Sandbox, schema: &str, table: &str) -> Result<i64> {
    let mut count = 0;
    let ledger = "sequence, key, sha256, observation, bytes, fetched_at, outcome, reason, records, inserted, updated, quarantined, with_extra";
    for (table, columns) in [(table, "*"), ("quarantined_records", "*"), ("objects", ledger)] {
        let (ours, theirs) =
            (format!("SELECT {columns} FROM public.{table}"), format!("SELECT {columns} FROM {schema}.{table}"));
        let statement =
            format!("SELECT count(*) FROM (({ours} EXCEPT {theirs}) UNION ALL ({theirs} EXCEPT {ours})) AS difference");
        let mut connection = sandbox.connect().await?;
        count += sqlx::query_scalar::<_, i64>(AssertSqlSafe(statement)).fetch_one(&mut connection).await?;
    }
    Ok(count)
}

async fn position_in(sandbox: &Sandbox, schema: &str) -> Result<u64> {
    let statement = format!("SELECT position FROM {schema}.stream");
    let mut connection = sandbox.connect().await?;
    Ok(sqlx::query_scalar::<_, i64>(AssertSqlSafe(statement)).fetch_one(&mut connection).await?.unsigned_abs())
}

async fn a_rebuild_equals_the_live_posts(seed: u64) -> Result<()> {
    const OBJECTS: u64 = 40;
    let why = format!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let mut skipped: BTreeSet<u64> = (0..6).map(|_| random.u64(1..=OBJECTS)).collect();
    // The last one has to be there, or the archive ends before it.
    skipped.remove(&OBJECTS);
    let skip = skipped.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let sandbox =
        start(Setup { posts: 0, importer: false, settings: vec![("SKIP", skip.clone().leak())], ..Setup::default() })
            .await?;
    let mut author = Author::of(&sandbox).await?;
    let models = write_random_archive(&sandbox, &mut author, &mut random, &skipped, OBJECTS).await?;
    sandbox.wait_until("all is applied", SOON, async || Ok(sandbox.position().await? == OBJECTS)).await?;
    models[models.len() - 1].assert_is(&sandbox, "public", &why).await?;

    // As it was at some point, then on from there, killed on the way.
    let rebuilt = [("DATABASE_SCHEMA", "rebuilt")];
    succeeds(&sandbox, &rebuilt, &["migrate"]).await?;
    let then = random.u64(1..OBJECTS / 2);
    succeeds(&sandbox, &rebuilt, &["once", "--to", &then.to_string()]).await?;
    assert_eq!(position_in(&sandbox, "rebuilt").await?, then, "{why}");
    models[usize::try_from(then)?].assert_is(&sandbox, "rebuilt", &format!("{why}, at {then}")).await?;
    for _ in 0..3 {
        let mut once = transformer_command(&sandbox, &rebuilt, &["once"]).stderr(Stdio::null()).spawn()?;
        let reached = (position_in(&sandbox, "rebuilt").await? + random.u64(1..8)).min(OBJECTS);
        let is_there = sandbox.wait_until("the rebuild has come some way", SOON, async || {
            Ok(position_in(&sandbox, "rebuilt").await? >= reached)
        });
        is_there.await?;
        once.kill().await?;
    }
    succeeds(&sandbox, &rebuilt, &["once"]).await?;
    succeeds(&sandbox, &rebuilt, &["once"]).await?;
    assert_eq!(differences(&sandbox, "rebuilt", "posts").await?, 0, "{why}");
    models[models.len() - 1].assert_is(&sandbox, "rebuilt", &why).await?;
    let objects: i64 = select(&sandbox, "SELECT count(*) FROM rebuilt.objects").await?;
    assert_eq!(objects.unsigned_abs(), OBJECTS, "{why}");
    let audit: Value = serde_json::from_str(&succeeds(&sandbox, &rebuilt, &["audit", "--json"]).await?)?;
    assert_eq!((&audit["problems"], &audit["skipped"]), (&json!([]), &json!(skipped.len())), "{why}: {audit}");
    Ok(())
}

#[tokio::test]
async fn a_rebuild_of_any_archive_equals_the_live_posts() -> Result<()> {
    for _ in 0..2 {
        a_rebuild_equals_the_live_posts(fastrand::u64(..)).await?;
    }
    Ok(())
}

/// A small document for a table with constraints. Titles come back; now and then one is refused, or another post has it.
fn small_document(random: &mut Rng) -> String {
    let record = |random: &mut Rng| {
        let id = random.i64(1..30);
        let title = match random.u8(0..120) {
            0 => "refused".to_owned(),
            1 | 2 => format!("title 0 of {}", random.i64(1..30)),
            _ => format!("title {} of {id}", random.u8(0..3)),
        };
        let mut post = json!({ "id": id, "userId": 1, "title": title, "body": "b" }).to_string();
        if random.u8(0..6) == 0 {
            // For Postgres these are equal.
            let number = ["1", "1.0", "1.00"][random.usize(0..3)];
            post = post.replace("\"body\"", &format!("\"likes\":{number},\"body\""));
        }
        if random.u8(0..120) == 0 { "7".to_owned() } else { post }
    };
    let mut records: Vec<_> = (0..random.usize(0..4)).map(|_| record(random)).collect();
    if random.u8(0..20) == 0 {
        // So many that alone they are compared here and not by Postgres.
        let number = random.u8(0..3);
        records.extend(
            (100..700).map(|id| {
                json!({ "id": id, "userId": 1, "title": format!("{number} of {id}"), "body": "" }).to_string()
            }),
        );
    }
    format!("[{}]{}", records.join(","), if random.u8(0..60) == 0 { "]" } else { "" })
}

/// How many transactions have applied the objects.
async fn transactions(sandbox: &Sandbox, schema: &str) -> Result<u64> {
    let statement = format!("SELECT count(DISTINCT xmin::text) FROM {schema}.objects");
    let mut connection = sandbox.connect().await?;
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut connection).await?;
    Ok(count.unsigned_abs())
}

/// Applies random small objects one by one, then catches up with them in another schema, whose rows, ledger and quarantine have to be the
/// same. Answers with how many transactions that took.
async fn catch_up(objects: u64, table: &'static str, columns: &'static str, change: &str) -> Result<u64> {
    let seed = fastrand::u64(..);
    let mut random = Rng::with_seed(seed);
    let settings = vec![("TABLE", table), ("TABLE_COLUMNS", columns)];
    let sandbox = start(Setup { posts: 0, importer: false, settings, ..Setup::default() }).await?;
    let rebuilt = [("DATABASE_SCHEMA", "rebuilt")];
    succeeds(&sandbox, &rebuilt, &["migrate"]).await?;
    for schema in ["public", "rebuilt"] {
        execute(&sandbox, &format!("SET search_path = {schema}; {change}")).await?;
    }
    let mut author = Author::of(&sandbox).await?;
    for _ in 1..=objects {
        let number = author.append(small_document(&mut random)).await?;
        applied(&sandbox, number).await?;
    }
    succeeds(&sandbox, &rebuilt, &["once"]).await?;
    assert_eq!(differences(&sandbox, "rebuilt", table).await?, 0, "seed {seed}");
    assert_eq!(transactions(&sandbox, "public").await?, objects, "seed {seed}");
    transactions(&sandbox, "rebuilt").await
}

#[tokio::test]
async fn small_objects_that_are_caught_up_with_together_equal_those_that_came_one_by_one() -> Result<()> {
    let change = "ALTER TABLE posts ALTER id TYPE integer, ADD CHECK (title <> 'refused'), ADD UNIQUE (title)";
    let transactions = catch_up(80, "posts", DEFAULT, change).await?;
    assert!(transactions < 80, "{transactions} transactions");
    Ok(())
}

#[tokio::test]
async fn documents_that_are_caught_up_with_together_equal_those_that_came_one_by_one() -> Result<()> {
    // Numbers that are equal and written in other ways are met in a jsonb and in a numeric.
    let typed = "id bigint, user_id bigint /userId, title text, body text, likes numeric, extra jsonb *";
    for columns in ["id bigint, doc jsonb .", typed] {
        let transactions = catch_up(40, "documents", columns, "").await?;
        assert!(transactions < 40, "{transactions} transactions");
    }
    Ok(())
}

/// Runs of posts, each in order or backwards, with ids that are dense or not, below, between and above those of other runs. Each id is there
/// once: of two in different batches both would count.
fn runs_of_posts(random: &mut Rng, number: u64, model: &mut Model) -> String {
    let (mut records, mut seen) = (Vec::new(), BTreeSet::new());
    for _ in 0..random.usize(1..6) {
        let (first, step, many) = (random.i64(0..100_000), random.usize(1..4), random.i64(2_000..20_000));
        let mut ids: Vec<_> = (first..first + many).step_by(step).collect();
        if random.bool() {
            ids.reverse();
        }
        let title = format!("title {}", random.u8(0..3));
        for id in ids {
            if seen.insert(id) {
                records.push(json!({ "id": id, "userId": 1, "title": title, "body": "b" }).to_string());
                model.observe(number, id, 1, &title, None);
            }
        }
    }
    format!("[{}]", records.join(","))
}

#[tokio::test]
async fn large_batches_in_any_order_beside_any_rows_are_applied_like_single_posts() -> Result<()> {
    let seed = fastrand::u64(..);
    let mut random = Rng::with_seed(seed);
    let sandbox = start(Setup { posts: 0, importer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    let mut model = Model::default();
    for number in 1..=6 {
        author.append(runs_of_posts(&mut random, number, &mut model)).await?;
        sandbox.wait_until("it is applied", SOON, async || Ok(sandbox.position().await? == number)).await?;
        model.assert_is(&sandbox, "public", &format!("seed {seed}, object {number}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn once_needs_no_queue_and_ends_where_it_was_told() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    succeeds(&sandbox, &[], &["once"]).await?;
    assert_eq!(sandbox.position().await?, 0, "an empty archive is no error");
    for title in ["a", "b", "c"] {
        author.append(document(1..=3, title)).await?;
    }
    for (to, position, title) in [("2", 2, "b 1"), ("2", 2, "b 1"), ("3", 3, "c 1")] {
        succeeds(&sandbox, &[("QUEUE_URL", "http://127.0.0.1:1/none.fifo")], &["once", "--to", to]).await?;
        assert_eq!((sandbox.position().await?, sandbox.rows().await?[0].title.as_str()), (position, title), "{to}");
    }
    // The way back is a rebuild, and the way beyond the end is not there yet.
    for (to, why) in [("2", "the position is 3, and --to 2 is not to be reached"), ("9", "")] {
        let once = transformer(&sandbox, &[], &["once", "--to", to]).await?;
        let told = String::from_utf8_lossy(&once.stderr);
        assert!(once.status.code() == Some(1) && told.contains(why), "{to}: {told}");
        assert_eq!(sandbox.position().await?, 3);
    }
    Ok(())
}

#[tokio::test]
async fn once_waits_for_the_transformer_that_is_at_work() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    Author::of(&sandbox).await?.append(document(1..=3, "a")).await?;
    let mut connection = sandbox.connect().await?;
    let mut transaction = sqlx::Connection::begin(&mut connection).await?;
    sqlx::query("SELECT FROM stream FOR UPDATE").execute(&mut *transaction).await?;
    let mut once = transformer_command(&sandbox, &[], &["once"]).stderr(Stdio::null()).spawn()?;
    let tries = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    sandbox.wait_until("it has tried", SOON, async || Ok(select::<i64>(&sandbox, tries).await? >= 2)).await?;
    assert_eq!(once.try_wait()?, None, "it waits");
    transaction.commit().await?;
    assert!(once.wait().await?.success());
    assert_eq!(sandbox.position().await?, 1);
    Ok(())
}
