//! ABSENT: a row that the API has no more is marked or deleted, once that is sure, and never more rows than a person would expect.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use sandbox::{Sandbox, Setup};
use serde_json::{Value, json};
use shared::object::{Metadata, Sequence, Sha256, SnapshotKind};
use support::{
    SOON,
    absence::{Observed, Records},
    applied,
    author::{Author, document},
    execute,
    faulty_api::{Answer, FaultyApi},
    hold_of, metrics, select, start, transformer,
};

/// A stream whose daemons do not run.
async fn stopped(absent: &'static str) -> Result<Sandbox> {
    let settings = vec![("ABSENT", absent)];
    start(Setup { posts: 0, importer: false, transformer: false, settings, ..Setup::default() }).await
}

/// Appends the pages of a snapshot; answers with the number of the last.
async fn append(author: &mut Author<'_>, kind: SnapshotKind, pages: &[String], is_single: bool) -> Result<u64> {
    let first = Sequence::try_from(author.next())?;
    let mut last = 0;
    for (page, number) in pages.iter().zip(1..) {
        let change = |metadata: &mut Metadata| {
            (metadata.snapshot, metadata.page, metadata.last_page) = (first, number, number as usize == pages.len());
            (metadata.facts.kind, metadata.facts.single) = (Some(kind), is_single);
        };
        last = author.append_with(page, change).await?;
    }
    Ok(last)
}

/// A whole snapshot of one answer.
async fn append_single(author: &mut Author<'_>, ids: impl IntoIterator<Item = i64>) -> Result<u64> {
    append(author, SnapshotKind::Whole, &[document(ids, "title")], true).await
}

/// A whole snapshot of two pages.
async fn append_two(
    author: &mut Author<'_>,
    one: impl IntoIterator<Item = i64>,
    two: impl IntoIterator<Item = i64>,
) -> Result<u64> {
    append(author, SnapshotKind::Whole, &[document(one, "title"), document(two, "title")], false).await
}

async fn once(sandbox: &Sandbox, settings: &[(&'static str, &str)]) -> Result<()> {
    let output = transformer(sandbox, settings, &["once"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What `transformer once` says that fails.
async fn refused(sandbox: &Sandbox, settings: &[(&'static str, &str)]) -> Result<String> {
    let output = transformer(sandbox, settings, &["once"]).await?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The ids of the rows that are there, and of those that are absent with the number of the object that showed it.
async fn rows(sandbox: &Sandbox) -> Result<(Vec<i64>, BTreeMap<i64, u64>)> {
    let mut connection = sandbox.connect().await?;
    let rows: Vec<(i64, Option<i64>)> = sqlx::query_as(
        "SELECT id, (SELECT min(sequence) FROM objects WHERE fetched_at = absent_since) FROM posts ORDER BY id",
    )
    .fetch_all(&mut connection)
    .await?;
    let there = rows.iter().filter(|(_, by)| by.is_none()).map(|(id, _)| *id).collect();
    Ok((there, rows.iter().filter_map(|(id, by)| Some((*id, (*by)?.unsigned_abs()))).collect()))
}

async fn ledger(sandbox: &Sandbox) -> Result<Vec<i64>> {
    select(sandbox, "SELECT array_agg(absent ORDER BY sequence) FROM objects").await
}

#[tokio::test]
async fn one_answer_that_shows_all_is_enough_and_a_row_that_is_there_again_is_there_again() -> Result<()> {
    for absent in ["keep", "mark", "delete"] {
        let sandbox = stopped(absent).await?;
        let mut author = Author::of(&sandbox).await?;
        append_single(&mut author, 1..=20).await?;
        append_single(&mut author, (1..=20).filter(|id| id % 10 != 0)).await?;
        once(&sandbox, &[]).await?;
        let (there, gone) = rows(&sandbox).await?;
        let marked = if absent == "mark" { BTreeMap::from([(10, 2), (20, 2)]) } else { BTreeMap::new() };
        assert_eq!((there.len(), gone), (if absent == "keep" { 20 } else { 18 }, marked), "{absent}");
        let count: i64 = select(&sandbox, "SELECT count(*) FROM posts").await?;
        assert_eq!(count, if absent == "delete" { 18 } else { 20 }, "{absent}");
        let changed: i64 = select(&sandbox, "SELECT count(*) FROM posts WHERE sequence <> 1").await?;
        assert_eq!(changed, 0, "{absent}: absence is no change of the record");

        append_single(&mut author, 1..=20).await?;
        once(&sandbox, &[]).await?;
        assert_eq!(rows(&sandbox).await?, ((1..=20).collect(), BTreeMap::new()), "{absent}");
        let by: Vec<i64> =
            select(&sandbox, "SELECT ARRAY(SELECT id FROM posts WHERE sequence = 3 ORDER BY id)").await?;
        assert_eq!(by, if absent == "keep" { vec![] } else { vec![10, 20] }, "{absent}");
        assert_eq!(ledger(&sandbox).await?, [0, if absent == "keep" { 0 } else { 2 }, 0], "{absent}");
    }
    Ok(())
}

#[tokio::test]
async fn of_several_requests_two_in_a_row_must_lack_the_row_and_nothing_between_may_bring_it() -> Result<()> {
    let sandbox = stopped("mark").await?;
    let mut author = Author::of(&sandbox).await?;
    append_two(&mut author, 1..=20, 21..=40).await?;
    // Post 21 moves to the first page while that is read already, and back.
    append_two(&mut author, 1..=20, 22..=40).await?;
    append_two(&mut author, (1..=20).chain([21]), 22..=40).await?;
    once(&sandbox, &[]).await?;
    assert_eq!(rows(&sandbox).await?.1, BTreeMap::new(), "it was lacking once");
    // Lacking, brought by an increment, lacking.
    append_two(&mut author, 1..=20, 22..=40).await?;
    append(&mut author, SnapshotKind::Increment, &[document([21], "title")], true).await?;
    append_two(&mut author, 1..=20, 22..=40).await?;
    once(&sandbox, &[]).await?;
    assert_eq!(rows(&sandbox).await?.1, BTreeMap::new(), "it was seen between");
    // Twice in a row, each time by another process.
    let last = append_two(&mut author, 1..=20, 22..=40).await?;
    once(&sandbox, &[]).await?;
    assert_eq!(rows(&sandbox).await?.1, BTreeMap::from([(21, last)]));
    Ok(())
}

#[tokio::test]
async fn what_is_not_known_to_be_whole_judges_nothing() -> Result<()> {
    let sandbox = stopped("mark").await?;
    let mut author = Author::of(&sandbox).await?;
    append_single(&mut author, 1..=20).await?;
    // Of an older release, an increment, torn.
    author.append(document(1..=19, "title")).await?;
    append(&mut author, SnapshotKind::Increment, &[document(1..=19, "title")], true).await?;
    let whole = |metadata: &mut Metadata| {
        (metadata.facts.kind, metadata.facts.single) = (Some(SnapshotKind::Whole), true);
    };
    let torn = |metadata: &mut Metadata| {
        whole(metadata);
        metadata.facts.torn = true;
    };
    author.append_with(document(1..=19, "title"), torn).await?;
    // No document, other bytes, a record without an id.
    author.append_with("{[}", whole).await?;
    let other = |metadata: &mut Metadata| {
        whole(metadata);
        metadata.sha256 = Sha256([7; 32]);
    };
    author.append_with(document(1..=19, "title"), other).await?;
    author.append_with(document(1..=19, "title").replace("\"id\":7,", ""), whole).await?;
    // Cut behind its first page.
    let cut = |metadata: &mut Metadata| {
        whole(metadata);
        (metadata.last_page, metadata.facts.single) = (false, false);
    };
    author.append_with(document(1..=19, "title"), cut).await?;
    once(&sandbox, &[]).await?;
    assert_eq!(rows(&sandbox).await?, ((1..=20).collect(), BTreeMap::new()));
    // A quarantined record whose id can be read is there.
    author.append_with(document(1..=20, "title").replace("\"title 20\"", "null"), whole).await?;
    once(&sandbox, &[]).await?;
    assert_eq!(rows(&sandbox).await?, ((1..=20).collect(), BTreeMap::new()));
    append_single(&mut author, 1..=19).await?;
    once(&sandbox, &[]).await?;
    assert_eq!(rows(&sandbox).await?.1, BTreeMap::from([(20, 10)]));
    Ok(())
}

#[tokio::test]
async fn too_many_absent_rows_hold_before_anything_of_the_object_until_a_person_decides() -> Result<()> {
    for (ids, absent, told) in [
        (0..0, "delete", "lacks 200 of 200 rows (ids "),
        (1..171, "mark", "lacks 30 of 200 rows (ids "),
        (201..401, "delete", "lacks 200 of 200 rows (ids "),
    ] {
        let sandbox = stopped(absent).await?;
        let mut author = Author::of(&sandbox).await?;
        append_single(&mut author, 1..=200).await?;
        append(&mut author, SnapshotKind::Whole, &[document(ids.clone(), "new")], true).await?;
        append_single(&mut author, 1..=195).await?;
        let why = refused(&sandbox, &[]).await?;
        ensure!(why.contains(told) && why.contains("SKIP=2") && why.contains("ALLOW_ABSENT=2"), "{why}");
        assert_eq!(sandbox.position().await?, 1);
        let count: i64 =
            select(&sandbox, "SELECT count(*) FROM posts WHERE sequence = 1 AND absent_since IS NULL").await?;
        assert_eq!(count, 200, "nothing of it is applied");

        // The daemon says so, and goes on when a person has decided.
        sandbox.transformer.restart_with(&[]).await?;
        let held = hold_of(&sandbox, &sandbox.transformer).await?;
        ensure!(held.contains(told), "{held}");
        let numbers = metrics(&sandbox.transformer).await?;
        ensure!(
            numbers.iter().any(|(name, value)| name.contains("reason=\"rows_absent\"") && value == "1"),
            "{numbers:?}"
        );
        let decision = if absent == "mark" { ("SKIP", "2") } else { ("ALLOW_ABSENT", "2-3") };
        sandbox.transformer.restart_with(&[decision]).await?;
        applied(&sandbox, 3).await?;
        let expected: Vec<i64> = (1..=195).collect();
        assert_eq!(rows(&sandbox).await?.0, expected);
    }
    Ok(())
}

#[tokio::test]
async fn what_postgres_does_not_let_go_holds_with_the_row_named() -> Result<()> {
    let sandbox = stopped("delete").await?;
    execute(&sandbox, "CREATE TABLE comments (post bigint REFERENCES posts)").await?;
    let mut author = Author::of(&sandbox).await?;
    append_single(&mut author, 1..=20).await?;
    once(&sandbox, &[]).await?;
    execute(&sandbox, "INSERT INTO comments VALUES (7)").await?;
    append_single(&mut author, (1..=20).filter(|id| *id != 7)).await?;
    let why = refused(&sandbox, &[]).await?;
    ensure!(why.contains("Key (id)=(7) is still referenced from table") && why.contains("ABSENT=keep"), "{why}");
    assert_eq!(sandbox.position().await?, 1);
    execute(&sandbox, "DELETE FROM comments").await?;
    once(&sandbox, &[]).await?;
    assert_eq!(rows(&sandbox).await?.0.len(), 19);
    Ok(())
}

#[tokio::test]
async fn another_word_for_absent_takes_a_migration_and_the_right_to_delete() -> Result<()> {
    let sandbox = stopped("mark").await?;
    let mut author = Author::of(&sandbox).await?;
    append_single(&mut author, 1..=20).await?;
    once(&sandbox, &[]).await?;
    let other = [("ABSENT", "delete")];
    let why = refused(&sandbox, &other).await?;
    ensure!(why.contains("ABSENT=mark") && why.contains("transformer migrate"), "{why}");
    let migrated = transformer(&sandbox, &other, &["migrate"]).await?;
    let told = String::from_utf8_lossy(&migrated.stderr).into_owned();
    ensure!(migrated.status.success() && told.contains("ABSENT was mark and is delete"), "{told}");
    append_single(&mut author, 1..=19).await?;
    once(&sandbox, &other).await?;
    let count: i64 = select(&sandbox, "SELECT count(*) FROM posts").await?;
    assert_eq!(count, 19);
    ensure!(refused(&sandbox, &[]).await?.contains("ABSENT=delete"));
    Ok(())
}

/// Pages of an API behind links, which a test changes.
async fn paged_api(pages: &'static std::sync::Mutex<Vec<Vec<i64>>>) -> Result<FaultyApi> {
    let api = FaultyApi::start(move |request| {
        let pages = pages.lock().expect("no test panics with it");
        let page: usize = request.parameter("page").and_then(|page| page.parse().ok()).unwrap_or(1);
        let answer = Answer::ok(document(pages[page - 1].iter().copied(), "title"));
        let next = format!("<?page={}>; rel=\"next\"", page + 1);
        if page < pages.len() { answer.with("Link", next) } else { answer }
    });
    Ok(api.await?)
}

#[tokio::test]
async fn a_record_that_the_api_deletes_is_absent_after_the_snapshot_was_archived_twice() -> Result<()> {
    static PAGES: std::sync::Mutex<Vec<Vec<i64>>> = std::sync::Mutex::new(Vec::new());
    *PAGES.lock().expect("nobody panicked") = vec![(1..=20).collect(), (21..=40).collect()];
    let api = paged_api(&PAGES).await?;
    let settings = vec![("ABSENT", "mark"), ("SOURCE_URL", &*api.url().leak())];
    let sandbox = start(Setup { posts: 0, settings, ..Setup::default() }).await?;
    applied(&sandbox, 4).await?;
    PAGES.lock().expect("nobody panicked")[1].retain(|id| *id != 30);
    sandbox
        .wait_until("the row is absent", SOON, async || Ok(rows(&sandbox).await?.1 == BTreeMap::from([(30, 8)])))
        .await?;
    // Behind the repeat nothing is appended.
    let polls = "importer_polls_total{result=\"unchanged\"}";
    let count = async || {
        let numbers = metrics(&sandbox.importer).await?;
        numbers.get(polls).with_context(|| format!("{numbers:?}"))?.parse::<f64>().context("a number")
    };
    let before = count().await?;
    sandbox.wait_until("more polls", SOON, async || Ok(count().await? > before + 3.0)).await?;
    assert_eq!(sandbox.end().await?, 8);
    Ok(())
}

/// A title that the table does not take.
const REFUSED: &str = "two 7";

/// Rows by id: title and since when they are absent, in microseconds.
type Expected = BTreeMap<i64, (String, Option<i64>)>;

/// Appends random snapshots of up to three pages, whole and not, cut, broken and with records that are no rows; answers with what is in the
/// table after each object.
async fn append_anything(
    author: &mut Author<'_>,
    random: &mut Rng,
    absent: &str,
    objects: u64,
) -> Result<Vec<Expected>> {
    let (mut tables, mut observed, mut lacking) = (vec![Expected::new()], Observed::default(), BTreeSet::new());
    while author.next() <= objects {
        let first = Sequence::try_from(author.next())?;
        let pages = random.u32(1..=3);
        let kind = if random.u8(..4) == 0 { SnapshotKind::Increment } else { SnapshotKind::Whole };
        let (is_torn, is_single) = (random.u8(..10) == 0, pages == 1 && random.bool());
        match random.u8(..4) {
            0 => lacking.clear(),
            1 => drop(lacking.insert(random.i64(1..60))),
            _ => {}
        }
        for page in 1..=pages {
            if random.u8(..20) == 0 {
                break;
            }
            let ids = (1..60).filter(|id| id % i64::from(pages) == i64::from(page - 1) && !lacking.contains(id));
            let ids: Vec<i64> = ids.filter(|_| kind == SnapshotKind::Whole || random.u8(..8) == 0).collect();
            let mut records: Vec<Value> = serde_json::from_str(&document(ids, ["one", "two"][random.usize(..2)]))?;
            match random.u8(..24) {
                0 => records.iter_mut().take(1).for_each(|record| record["title"] = Value::Null),
                1 => records.push(json!({ "title": "without an id" })),
                _ => {}
            }
            let is_broken = random.u8(..30) == 0;
            let mut body = Value::from(records.clone()).to_string();
            if is_broken {
                body.pop();
            }
            let mut metadata = None;
            let change = |of: &mut Metadata| {
                (of.snapshot, of.page, of.last_page) = (first, page, page == pages);
                (of.facts.kind, of.facts.torn, of.facts.single) = (Some(kind), is_torn, is_single);
                metadata = Some(of.clone());
            };
            let number = author.append_with(body, change).await?;
            let metadata = metadata.context("it was asked")?;
            let mut table = tables.last().cloned().unwrap_or_default();
            let present = table.iter().filter(|(_, (_, absent))| absent.is_none()).map(|(id, _)| *id).collect();
            if is_broken {
                observed.next(&metadata, Records::None, &present);
            } else {
                let ids: Option<_> = records.iter().map(|record| record["id"].as_i64()).collect();
                let gone = observed.next(&metadata, ids.map_or(Records::Any, Records::Ids), &present);
                for record in &records {
                    let title = record["title"].as_str().filter(|title| *title != REFUSED);
                    if let (Some(id), Some(title)) = (record["id"].as_i64(), title) {
                        table.insert(id, (title.to_owned(), None));
                    }
                }
                for id in gone {
                    if absent == "delete" {
                        table.remove(&id);
                    } else if let Some((_, since)) = table.get_mut(&id) {
                        *since = Some(Author::fetched_at(number).as_microsecond());
                    }
                }
            }
            tables.push(table);
        }
    }
    Ok(tables)
}

/// Wherever processes begin and end, and whether a rebuild or the daemons applied it: the table is a function of the archive.
#[tokio::test]
async fn absent_rows_are_a_function_of_the_archive() -> Result<()> {
    const OBJECTS: u64 = 150;
    let seed = Rng::new().u64(..);
    for absent in ["mark", "delete"] {
        let mut random = Rng::with_seed(seed);
        // A person has allowed all: of few rows all may be gone.
        let settings = vec![("ABSENT", absent), ("ALLOW_ABSENT", "1-999")];
        let setup = Setup { posts: 0, importer: false, transformer: false, settings, ..Setup::default() };
        let sandbox = start(setup).await?;
        // A record that Postgres refuses is applied with care, which begins with a rollback.
        let check = |schema: &str| format!("ALTER TABLE {schema}.posts ADD CHECK (title <> '{REFUSED}')");
        execute(&sandbox, &check("public")).await?;
        let mut author = Author::of(&sandbox).await?;
        let tables = append_anything(&mut author, &mut random, absent, OBJECTS).await?;
        let end = author.next() - 1;
        let mut to = 0;
        while to < end {
            to = end.min(to + random.u64(1..12));
            let applied = transformer(&sandbox, &[], &["once", "--to", &to.to_string()]).await?;
            ensure!(applied.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&applied.stderr));
            let mut connection = sandbox.connect().await?;
            let rows: Vec<(i64, String, Option<i64>)> =
                sqlx::query_as("SELECT id, title, (extract(epoch FROM absent_since) * 1000000)::bigint FROM posts")
                    .fetch_all(&mut connection)
                    .await?;
            let found: Expected = rows.into_iter().map(|(id, title, absent)| (id, (title, absent))).collect();
            let expected = &tables[usize::try_from(to)?];
            ensure!(found == *expected, "seed {seed}, object {to}: {found:?}, and it should be {expected:?}");
        }
        let gone: i64 = select(&sandbox, "SELECT sum(absent)::bigint FROM objects").await?;
        ensure!(gone > 2, "seed {seed}: {gone} absent rows prove little");
        // In one piece.
        let again = [("DATABASE_SCHEMA", "again")];
        ensure!(transformer(&sandbox, &again, &["migrate"]).await?.status.success());
        execute(&sandbox, &check("again")).await?;
        once(&sandbox, &again).await?;
        let different: i64 = select(
            &sandbox,
            "SELECT count(*) FROM (SELECT id, title, absent_since, sequence FROM again.posts EXCEPT SELECT id, title, absent_since, sequence FROM posts) AS d",
        )
        .await?;
        let ledgers: i64 = select(
            &sandbox,
            "SELECT count(*) FROM (SELECT sequence, absent FROM again.objects EXCEPT SELECT sequence, absent FROM objects) AS d",
        )
        .await?;
        assert_eq!((different, ledgers), (0, 0), "seed {seed}: a rebuild is equal");
    }
    Ok(())
}

#[tokio::test]
async fn the_archive_tells_the_history_of_a_record() -> Result<()> {
    let sandbox = stopped("mark").await?;
    let mut author = Author::of(&sandbox).await?;
    append_single(&mut author, 1..=20).await?;
    append(&mut author, SnapshotKind::Increment, &[document([7], "another")], true).await?;
    // Quarantined, and known all the same.
    append(&mut author, SnapshotKind::Increment, &[r#"[{"id":7,"title":null}]"#.to_owned()], true).await?;
    author.append("{[}").await?;
    append_two(&mut author, 1..=6, 8..=20).await?;
    let told = transformer(&sandbox, &[], &["history", "7"]).await?;
    ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    insta::assert_snapshot!(String::from_utf8(told.stdout)?);
    let part = transformer(&sandbox, &[], &["history", "7", "--from", "2", "--to", "2"]).await?;
    let part = String::from_utf8(part.stdout)?;
    ensure!(part.starts_with("2026-01-01T02:00:00Z  object 2  appeared\n") && !part.contains("object 3"), "{part}");
    for (id, code, why) in
        [("99", 3, "no object has a record with the id 99"), ("seven", 1, "`\\\"seven\\\"` is no bigint")]
    {
        let none = transformer(&sandbox, &[], &["history", id]).await?;
        let told = String::from_utf8_lossy(&none.stderr).into_owned();
        ensure!(none.status.code() == Some(code) && told.contains(why), "{told}");
    }
    Ok(())
}
