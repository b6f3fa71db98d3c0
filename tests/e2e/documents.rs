//! Records of any kind: whole objects in `documents`, under the same promises as posts.

use anyhow::{Result, ensure};
use sandbox::{Sandbox, Setup};
use serde_json::{Value, json};
use shared::json_pointer::JsonPointer;
use support::{SOON, applied, author::Author, execute, hold_of, select, start, transformer};
use transformer::{
    document,
    record_type::RecordType,
    row::{Fields, Row},
};

/// A stream of documents with their ids there, without an importer.
async fn follow(id_at: &'static str) -> Result<Sandbox> {
    let settings = vec![("RECORD_TYPE", "document"), ("ID_AT", id_at)];
    start(Setup { posts: 0, importer: false, settings, ..Setup::default() }).await
}

async fn apply(sandbox: &Sandbox, author: &mut Author<'_>, records: &Value) -> Result<String> {
    let number = author.append(records.to_string()).await?;
    applied(sandbox, number).await?;
    let counts = "SELECT concat_ws(' ', records, inserted, updated, quarantined) FROM objects
        WHERE sequence = (SELECT max(sequence) FROM objects)";
    select(sandbox, counts).await
}

#[tokio::test]
async fn any_object_is_a_document_by_its_id() -> Result<()> {
    let sandbox = follow("/key/id").await?;
    let mut author = Author::of(&sandbox).await?;
    let first = json!([
        {"key": {"id": "b"}, "n": 100, "tags": ["x", {"y": null}]},
        {"key": {"id": 7}, "title": "a \"title\"\u{1f600}"},
        {"key": {"id": null}},
        {"key": "b"},
        {"key": {"id": "z"}, "text": "a\0b"},
        {"key": {"id": "A"}},
        7
    ]);
    assert_eq!(apply(&sandbox, &mut author, &first).await?, "7 3 0 4");
    let rows = "SELECT array_agg(concat_ws(' ', id, doc, sequence) ORDER BY id) FROM documents";
    let first_rows: Vec<String> = select(&sandbox, rows).await?;
    assert_eq!(
        first_rows,
        [
            r#"7 {"key": {"id": 7}, "title": "a \"title\"😀"} 1"#,
            r#"A {"key": {"id": "A"}} 1"#,
            r#"b {"n": 100, "key": {"id": "b"}, "tags": ["x", {"y": null}]} 1"#,
        ]
    );
    let reasons: Vec<String> =
        select(&sandbox, "SELECT array_agg(index || ' ' || reason ORDER BY index) FROM quarantined_records").await?;
    assert_eq!(
        reasons,
        [
            "2 `/key/id` is null, and ID_AT must lead to a text or a number",
            "3 `/key/id` is missing, and ID_AT must lead to a text or a number",
            "4 `text` holds U+0000, which Postgres cannot store",
            "6 invalid type: integer `7`, expected an object",
        ]
    );
    // Written in another way, and one changed.
    let number = author.append(
        r#"[{"tags":["x",{"y":null}],"n":1e2,"key":{"id":"b"}},{"title":"a \u0022title\u0022\ud83d\ude00","key":{"id":7}},
            {"key":{"id":"A"},"new":[]}]"#,
    );
    let number = number.await?;
    applied(&sandbox, number).await?;
    let changed: Vec<String> = select(&sandbox, "SELECT array_agg(id) FROM documents WHERE sequence = 2").await?;
    assert_eq!(changed, ["A"]);
    let times = "SELECT bool_and((first_seen_at < updated_at) = (sequence = 2)) FROM documents";
    ensure!(select::<bool>(&sandbox, times).await?, "they are those of the observations");
    Ok(())
}

#[tokio::test]
async fn records_with_the_same_id_are_counted_and_told_once() -> Result<()> {
    let sandbox = follow("/of").await?;
    let mut author = Author::of(&sandbox).await?;
    for (records, counts) in [
        (json!([{"id": 1, "of": "a"}, {"id": 2, "of": "b"}, {"id": 3, "of": "a"}]), "3 2 0 0"),
        (json!([{"id": 4, "of": "a"}, {"id": 5, "of": "a"}, {"id": 6, "of": "a"}]), "3 0 1 0"),
    ] {
        assert_eq!(apply(&sandbox, &mut author, &records).await?, counts);
    }
    let repeated: Vec<i64> = select(&sandbox, "SELECT array_agg(repeated ORDER BY sequence) FROM objects").await?;
    assert_eq!(repeated, [1, 2]);
    let lines = sandbox.transformer.log_lines();
    let told =
        lines.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.contains("have the same id")));
    assert_eq!(told.count(), 1);
    Ok(())
}

#[tokio::test]
async fn many_documents_are_copied_updated_or_only_looked_at() -> Result<()> {
    let sandbox = follow("/id").await?;
    let mut author = Author::of(&sandbox).await?;
    // Numbers are no order of texts: each batch lies across the ones before it.
    let documents = |title: &dyn Fn(u32) -> String| -> Value {
        (0..20_000).map(|id| json!({"id": id, "title": title(id), "nested": {"b": [id], "a": 1.5}})).collect()
    };
    let unchanged = documents(&|_| "first".to_owned());
    assert_eq!(apply(&sandbox, &mut author, &unchanged).await?, "20000 20000 0 0");
    assert_eq!(apply(&sandbox, &mut author, &unchanged).await?, "20000 0 0 0");
    let changed = documents(&|id| if id % 3 == 0 { "second" } else { "first" }.to_owned());
    assert_eq!(apply(&sandbox, &mut author, &changed).await?, "20000 0 6667 0");
    let all = documents(&|id| format!("title {id}"));
    assert_eq!(apply(&sandbox, &mut author, &all).await?, "20000 0 20000 0");
    // Between and around what is there.
    let more: Value = (0..30_000).map(|id| json!({"id": format!("{id}a"), "title": "new"})).collect();
    assert_eq!(apply(&sandbox, &mut author, &more).await?, "30000 30000 0 0");
    let sum = "SELECT concat_ws(' ', count(*), count(DISTINCT id), sum((doc ->> 'id')::int) FILTER (WHERE doc ? 'nested')) FROM documents";
    assert_eq!(select::<String>(&sandbox, sum).await?, "50000 50000 199990000");
    let differing = "SELECT count(*) FROM documents WHERE id <> doc ->> 'id' OR doc ? 'nested' AND doc ->> 'title' <> 'title ' || id";
    assert_eq!(select::<i64>(&sandbox, differing).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_document_that_somebodys_constraint_refuses_is_quarantined() -> Result<()> {
    let sandbox = follow("/id").await?;
    execute(&sandbox, "ALTER TABLE documents ADD CHECK (doc ->> 'title' <> 'bad')").await?;
    let mut author = Author::of(&sandbox).await?;
    let some = json!([{"id": 1, "title": "bad"}, {"id": "x", "title": "bad"}, {"id": 2, "title": "good"}, {"id": 2, "title": "bad"}]);
    assert_eq!(apply(&sandbox, &mut author, &some).await?, "4 1 0 3");
    let quarantined: Vec<String> = select(
        &sandbox,
        "SELECT array_agg(concat_ws(' ', index, id, split_part(reason, ':', 1)) ORDER BY index) FROM quarantined_records",
    )
    .await?;
    assert_eq!(quarantined, ["0 1 Postgres refuses it", "1 Postgres refuses it", "3 2 Postgres refuses it"]);
    assert_eq!(select::<String>(&sandbox, "SELECT doc ->> 'title' FROM documents").await?, "good");
    Ok(())
}

#[tokio::test]
async fn tables_of_an_older_release_are_told_to_be_migrated() -> Result<()> {
    let sandbox = start(Setup { posts: 3, ..Setup::default() }).await?;
    sandbox.settled(SOON).await?;
    execute(&sandbox, "DROP TABLE documents").await?;
    sandbox.transformer.restart_with(&[("RECORD_TYPE", "document")]).await?;
    support::retitle(&sandbox, 1, "changed");
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    ensure!(why.contains("run `transformer migrate`"), "{why}");
    let checked = transformer(&sandbox, &[("RECORD_TYPE", "document")], &["check"]).await?;
    let text = String::from_utf8_lossy(&checked.stdout);
    ensure!(checked.status.code() == Some(3) && text.contains("run `transformer migrate"), "{text}");
    Ok(())
}

#[tokio::test]
async fn what_is_compared_is_what_postgres_writes() -> Result<()> {
    let sandbox = support::start_nothing().await?;
    let documents = document::Type::new("/id".parse::<JsonPointer>()?);
    let texts = ["", "é", "\u{7f}\u{80}\u{2028}\u{1f600}", "\t\n\r\u{8}\u{c}\u{1}\u{1f}", "\"\\/", "a b"];
    let scalars =
        [json!(0), json!(-1), json!(u64::MAX), json!(i64::MIN), json!(1.5), json!(-0.25), json!(true), Value::Null];
    let mut records = Vec::new();
    for text in texts {
        for scalar in &scalars {
            records.push(json!({"id": 1, text: scalar, "zz": text, "a": [text, [], {}, {text: {text: [scalar]}}], "z": {"bb": 1, "é": 2, "c": 3}}));
        }
    }
    let mut records: Vec<String> = records.iter().map(Value::to_string).collect();
    let deep = format!("{}0{}", r#"{"b":1,"a":"#.repeat(30), "}".repeat(30));
    records.extend(
        [
            r#"{ "id" : 1 , "a\u0062c" : "\u0041\/\u00e9\ud83d\ude00\u007f" }"#,
            r#"{"id":1,"x":{"b":1,"a":{"c":[1 , 2],"c":[3]},"b":[ ]}}"#,
            "{\n\t\"id\": 1.50,\r \"x\": [0.10, 123456789012345678901234567890, -0.5]\n}",
            r#"{"id":1,"é":1,"zz":2,"z":3,"":4,"\"":5}"#,
            &format!(r#"{{"id":1,"x":{deep}}}"#),
        ]
        .map(str::to_owned),
    );
    let mut connection = sandbox.connect().await?;
    for record in records {
        let mut bytes = Vec::new();
        documents.read(record.as_bytes(), &mut Fields(&mut bytes)).map_err(|no| anyhow::anyhow!(no.reason))?;
        let row = Row::new(0, document::STATEMENTS.columns[0], &bytes);
        let ours = row.values().nth(1).flatten().map(|jsonb| String::from_utf8_lossy(&jsonb[1..]).into_owned());
        let theirs: String =
            sqlx::query_scalar("SELECT $1::text::jsonb::text").bind(&record).fetch_one(&mut connection).await?;
        assert_eq!(ours, Some(theirs), "{record}");
    }
    Ok(())
}
