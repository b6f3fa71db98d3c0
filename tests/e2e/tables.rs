//! Records of any kind in a table of any columns: TABLE and TABLE_COLUMNS, under the same promises as posts.

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use jiff::{Timestamp, ToSpan, civil};
use sandbox::{Sandbox, Setup};
use serde_json::{Value, json};
use shared::object::Sequence;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use support::{applied, author::Author, execute, hold_of, select, start, start_nothing, told, transformer};
use transformer::{
    read::{
        record::RecordReader,
        row::{Fields, Origin, Row},
        table_definition::{DEFAULT, TableDefinition},
    },
    write::{
        copy::{HEADER, TRAILER, encode_rows},
        statements::{Statement, Statements},
    },
};
use uuid::Uuid;

const ORIGIN: Origin = Origin { sequence: Sequence::FIRST, fetched_at: Timestamp::UNIX_EPOCH };

/// A column of each type, and what has to be quoted.
const TYPED: &str = r#"id bigint, "Weird ""name" text not null "/a b/c,d", at timestamptz /times/at, seconds timestamptz epoch /times/s,
    millis timestamptz epoch_ms /times/ms, price numeric, uuid uuid, day date, ok boolean, ratio double precision, tags jsonb, more jsonb *"#;

/// A record for them.
const RECORD: &str = r#"{"id":ID,"a b":{"c,d":"text","e":null},"times":{"at":"2026-11-30T12:00:00.5+01:00","s":1764504000.25,"ms":1764504000125},
    "price":12.50,"uuid":"67e55044-10b1-426f-9247-bb680e5fe0c8","day":"2026-11-30","ok":true,"ratio":0.1,"tags":["x"]}"#;

/// A stream whose records become rows of `documents` with these columns, without an importer.
async fn follow(columns: &'static str) -> Result<Sandbox> {
    let settings = vec![("TABLE", "documents"), ("TABLE_COLUMNS", columns)];
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
    let sandbox = follow("id text /key/id, doc jsonb .").await?;
    let mut author = Author::of(&sandbox).await?;
    let first = json!([
        {"key": {"id": "b"}, "n": 100, "tags": ["x", {"y": null}]},
        {"key": {"id": "7"}, "title": "a \"title\"\u{1f600}"},
        {"key": {"id": null}},
        {"key": "b"},
        {"key": {"id": "z"}, "text": "a\0b"},
        {"key": {"id": "A"}},
        7,
        {"key": {"id": 7}}
    ]);
    assert_eq!(apply(&sandbox, &mut author, &first).await?, "8 3 0 5");
    let rows = "SELECT array_agg(concat_ws(' ', id, doc, sequence) ORDER BY id) FROM documents";
    let first_rows: Vec<String> = select(&sandbox, rows).await?;
    assert_eq!(
        first_rows,
        [
            r#"7 {"key": {"id": "7"}, "title": "a \"title\"😀"} 1"#,
            r#"A {"key": {"id": "A"}} 1"#,
            r#"b {"n": 100, "key": {"id": "b"}, "tags": ["x", {"y": null}]} 1"#,
        ]
    );
    let reasons: Vec<String> =
        select(&sandbox, "SELECT array_agg(index || ' ' || reason ORDER BY index) FROM quarantined_records").await?;
    assert_eq!(
        reasons,
        [
            "2 column `id` (text from /key/id): it is null",
            "3 column `id` (text from /key/id): it is missing",
            "4 `text` holds U+0000, which Postgres cannot store",
            "6 invalid type: integer `7`, expected an object",
            "7 column `id` (text from /key/id): `7` is no text",
        ]
    );
    // Written in another way, and one changed.
    let number = author.append(
        r#"[{"tags":["x",{"y":null}],"n":1e2,"key":{"id":"b"}},{"title":"a \u0022title\u0022\ud83d\ude00","key":{"id":"7"}},
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
    let sandbox = follow("id text /of, doc jsonb .").await?;
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
    let sandbox = follow("id text, doc jsonb .").await?;
    let mut author = Author::of(&sandbox).await?;
    // Numbers are no order of texts: each batch lies across the ones before it.
    let documents = |title: &dyn Fn(u32) -> String| -> Value {
        (0..20_000)
            .map(|id| json!({"id": id.to_string(), "title": title(id), "nested": {"b": [id], "a": 1.5}}))
            .collect()
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
    let sandbox = follow("id text, doc jsonb .").await?;
    execute(&sandbox, "ALTER TABLE documents ADD CHECK (doc ->> 'title' <> 'bad')").await?;
    let mut author = Author::of(&sandbox).await?;
    let some = json!([{"id": "1", "title": "bad"}, {"id": "x", "title": "bad"}, {"id": "2", "title": "good"}, {"id": "2", "title": "bad"}]);
    assert_eq!(apply(&sandbox, &mut author, &some).await?, "4 1 0 3");
    let quarantined: Vec<String> = select(
        &sandbox,
        "SELECT array_agg(concat_ws(' ', index, id, split_part(reason, ':', 1)) ORDER BY index) FROM quarantined_records",
    )
    .await?;
    assert_eq!(quarantined, ["0 1 Postgres refuses it", "1 x Postgres refuses it", "3 2 Postgres refuses it"]);
    assert_eq!(select::<String>(&sandbox, "SELECT doc ->> 'title' FROM documents").await?, "good");
    Ok(())
}

/// So many records, with this in place of that.
fn typed(number: u32, (from, to): (&str, &str)) -> String {
    let record = RECORD.replace(from, to);
    assert!(from == to || record != RECORD, "{from}");
    format!("[{}]", (1..=number).map(|id| record.replace("ID", &id.to_string())).collect::<Vec<_>>().join(","))
}

async fn counts_of(sandbox: &Sandbox, author: &mut Author<'_>, body: String) -> Result<String> {
    applied(sandbox, author.append(body).await?).await?;
    let counts = "SELECT concat_ws(' ', records, inserted, updated, quarantined, with_extra) FROM objects ORDER BY sequence DESC LIMIT 1";
    select(sandbox, counts).await
}

#[tokio::test]
async fn columns_of_all_types_are_inserted_left_and_updated_few_or_many_at_a_time() -> Result<()> {
    let sandbox = follow(TYPED).await?;
    let mut author = Author::of(&sandbox).await?;
    for (number, done) in [(3, "3 0"), (1_000, "997 3")] {
        let counts = counts_of(&sandbox, &mut author, typed(number, ("", ""))).await?;
        assert_eq!(counts, format!("{number} {done} 0 {number}"));
        for (from, to) in [
            (r#""id":ID"#, r#""id":"ID""#),
            (r#""2026-11-30T12:00:00.5+01:00""#, r#""2026-11-30 11:00:00.500000""#),
            ("1764504000.25", r#""1.76450400025e9""#),
            ("1764504000125", "1764504000125.0"),
            ("12.50", r#""12.5""#),
            ("67e55044-10b1-426f-9247-bb680e5fe0c8", "67E5504410B1426F9247BB680E5FE0C8"),
            ("true", r#""true""#),
            ("0.1", "1e-1"),
            (r#"["x"]"#, r#"[ "\u0078" ]"#),
        ] {
            let counts = counts_of(&sandbox, &mut author, typed(number, (from, to))).await?;
            assert_eq!(counts, format!("{number} 0 0 0 {number}"), "{to} is {from}");
        }
        for (from, to) in [
            (r#""c,d":"text""#, r#""c,d":"""#),
            ("12:00:00.5", "12:00:00.500001"),
            ("1764504000.25", "null"),
            ("1764504000125", "-1764504000125.5"),
            ("12.50", "12.51"),
            ("fe0c8", "fe0c9"),
            (r#""day":"2026-11-30","#, ""),
            ("true", "false"),
            ("0.1", "0.30000000000000004"),
            (r#"["x"]"#, r#""x""#),
            (r#""e":null"#, r#""e":0"#),
        ] {
            let counts = counts_of(&sandbox, &mut author, typed(number, (from, to))).await?;
            assert_eq!(counts, format!("{number} 0 {number} 0 {number}"), "{to} is not {from}");
        }
    }
    counts_of(&sandbox, &mut author, typed(1_000, ("", ""))).await?;
    let rows = r#"SELECT array_agg(DISTINCT concat_ws('|', "Weird ""name", at AT TIME ZONE 'UTC', seconds AT TIME ZONE 'UTC', millis AT TIME ZONE 'UTC',
        price, uuid, day, ok, ratio, tags, more)) FROM documents"#;
    assert_eq!(
        select::<Vec<String>>(&sandbox, rows).await?,
        [
            r#"text|2026-11-30 11:00:00.5|2025-11-30 12:00:00.25|2025-11-30 12:00:00.125|12.50|67e55044-10b1-426f-9247-bb680e5fe0c8|2026-11-30|t|0.1|["x"]|{"a b": {"e": null}}"#
        ]
    );
    Ok(())
}

#[tokio::test]
async fn rows_are_known_by_keys_of_each_type() -> Result<()> {
    let sandbox = start_nothing().await?;
    let mut author = Author::of(&sandbox).await?;
    let day = civil::date(1999, 6, 1);
    let record = |number: i64, value: i64| {
        json!({
            "n": 7 * number - 300, "t": format!("{number}\u{e9}"), "u": Uuid::from_u128(number.unsigned_abs().into()).simple(),
            "d": day + number.days(), "at": Timestamp::UNIX_EPOCH + (number - 350).hours(), "s": number - 350, "v": value,
        })
    };
    let records: [Vec<Value>; 4] = [
        (0..700).map(|number| record(number, 0)).collect(),
        (0..700).rev().map(|number| record(number, 0)).collect(),
        (0..700).map(|number| record(number, i64::from(number % 3 == 0))).collect(),
        (690..710).map(|number| record(number, 2)).collect(),
    ];
    for records in records {
        author.append(Value::from(records).to_string()).await?;
    }
    for (at, key) in
        ["n bigint", "t text", "u uuid", "d date", "at timestamptz", "s timestamptz epoch", "s timestamptz epoch_ms"]
            .iter()
            .enumerate()
    {
        let columns = format!("{key}, v bigint");
        // One by one, and those that are small together.
        for (schema, goals) in [(format!("alone_{at}"), &["1", "2", "3", "4"][..]), (format!("together_{at}"), &["4"])]
        {
            let settings = [("DATABASE_SCHEMA", &*schema), ("TABLE_COLUMNS", &columns)];
            succeeds(&sandbox, &settings, &["migrate"]).await?;
            for goal in goals {
                succeeds(&sandbox, &settings, &["once", "--to", goal]).await?;
            }
            let seen = format!(
                "SELECT string_agg(inserted || ' ' || updated, ', ' ORDER BY sequence) || ': ' ||
                    (SELECT concat_ws(' ', count(*), sum(v)) FROM {schema}.posts) FROM {schema}.objects"
            );
            let mut connection = sandbox.connect().await?;
            let seen: String = sqlx::query_scalar(AssertSqlSafe(seen)).fetch_one(&mut connection).await?;
            // Of the last twenty, ten were there, of which 690, 693, 696 and 699 had a one.
            assert_eq!(seen, "700 0, 0 0, 0 234, 10 10: 710 270", "{schema}: {columns}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_quarantined_record_is_listed_with_its_key_its_column_and_what_was_found() -> Result<()> {
    let columns = TYPED.replace("id bigint", "id text");
    let sandbox = follow(columns.leak()).await?;
    let mut author = Author::of(&sandbox).await?;
    let wrong: Vec<String> = [
        (r#""id":ID"#, r#""id":7"#),
        ("text", r"a\u0000b"),
        (r#""text""#, "null"),
        (r#""c,d":"text","#, ""),
        ("2026-11-30T12:00:00.5+01:00", "yesterday"),
        ("1764504000.25", r#""2026-11-30T12:00:00Z""#),
        ("1764504000125", "253402300800000"),
        ("1764504000.25", "-299999999999"),
        ("12.50", r#""12,50""#),
        ("67e55044", "7e55044"),
        (r#""day":"2026-11-30"#, r#""day":"2026-11-31"#),
        ("true", "1"),
        ("0.1", "1e999"),
        (r#"["x"]"#, r#"["\u0000"]"#),
        (r#""e":null"#, r#""e":"\u0000""#),
        (r#""ok""#, r#""id""#),
    ]
    .into_iter()
    .zip('a'..)
    .map(|(change, id)| {
        let record = RECORD.replace(change.0, change.1).replace("ID", &format!(r#""{id} 1""#));
        assert_ne!(record, RECORD);
        record
    })
    .collect();
    assert_eq!(counts_of(&sandbox, &mut author, format!("[{}]", wrong.join(","))).await?, "16 0 0 16 0");
    let listed = transformer(&sandbox, &[], &["quarantine", "list"]).await?;
    insta::assert_snapshot!("typed_quarantine", told(&sandbox, &listed, &[]));
    Ok(())
}

async fn succeeds(sandbox: &Sandbox, settings: &[(&'static str, &str)], arguments: &[&str]) -> Result<String> {
    let output = transformer(sandbox, settings, arguments).await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What a command that does not succeed says of why.
async fn refusal(sandbox: &Sandbox, settings: &[(&'static str, &str)], command: &str, code: i32) -> Result<String> {
    let output = transformer(sandbox, settings, &[command]).await?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.code() == Some(code), "{command} {settings:?}: {said}");
    Ok(said)
}

#[tokio::test]
async fn a_table_gets_new_columns_and_keeps_those_that_it_has() -> Result<()> {
    let sandbox = follow("id bigint, a text, rest jsonb *").await?;
    let mut author = Author::of(&sandbox).await?;
    let body = r#"[{"id":1,"a":"x","b":1.50},{"id":2,"a":"y","b":2}]"#;
    assert_eq!(counts_of(&sandbox, &mut author, body.to_owned()).await?, "2 2 0 0 2");
    for (table, columns, why) in [
        ("documents", "id bigint, a bigint, rest jsonb *", "`a text /a` would become `a bigint /a`"),
        ("documents", "id bigint, a text /b, rest jsonb *", "`a text /a` would become `a text /b`"),
        ("documents", "id bigint, a text not null, rest jsonb *", "would become `a text not null /a`"),
        ("documents", "a text, id bigint, rest jsonb *", "the key is `id bigint not null /id`"),
        ("documents", "id bigint /a, a text, rest jsonb *", "the key is `id bigint not null /id`"),
        ("documents", "id bigint, rest jsonb *", "`a text /a` would be missing"),
        (
            "documents",
            "id bigint, a text, rest jsonb *, b bigint not null",
            "`b bigint not null /b` is new, and old rows",
        ),
        ("others", "id bigint, a text, rest jsonb *", "the table is `documents`, and TABLE is `others`"),
    ] {
        let settings = [("TABLE", table), ("TABLE_COLUMNS", columns)];
        for (command, code) in [("migrate", 1), ("check", 3), ("once", 1)] {
            let said = refusal(&sandbox, &settings, command, code).await?;
            ensure!(said.contains(why) && said.contains("set DATABASE_SCHEMA to a new schema"), "{command}: {said}");
        }
    }
    let wider = [("TABLE_COLUMNS", "id bigint, b numeric, a text, rest jsonb *, \"the \"\"c\" date \"/c c\"")];
    let remedy = "run `transformer migrate`, which adds what is new";
    let said = refusal(&sandbox, &wider, "check", 3).await?;
    ensure!(said.contains(remedy), "{said}");
    sandbox.transformer.restart_with(&wider).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    ensure!(why.contains(remedy), "{why}");
    for printed in [
        "ALTER TABLE \"documents\" ADD COLUMN \"b\" numeric;\nALTER TABLE \"documents\" ADD COLUMN \"the \"\"c\" date;\n",
        // Nothing was changed, so it is the same again.
        "ALTER TABLE \"documents\" ADD COLUMN \"b\" numeric;\nALTER TABLE \"documents\" ADD COLUMN \"the \"\"c\" date;\n",
    ] {
        assert_eq!(succeeds(&sandbox, &wider, &["migrate", "--print"]).await?, printed);
    }
    succeeds(&sandbox, &wider, &["migrate"]).await?;
    assert_eq!(succeeds(&sandbox, &wider, &["migrate", "--print"]).await?, "");
    let rows =
        "SELECT array_agg(concat_ws(' ', id, coalesce(b::text, '-'), rest, sequence) ORDER BY id) FROM documents";
    let old: Vec<String> = select(&sandbox, rows).await?;
    assert_eq!(old, [r#"1 - {"b": 1.50} 1"#, r#"2 - {"b": 2} 1"#]);
    // The daemon goes on by itself.
    assert_eq!(counts_of(&sandbox, &mut author, r#"[{"id":1,"a":"x","b":1.50}]"#.to_owned()).await?, "1 0 1 0 0");
    assert_eq!(select::<Vec<String>>(&sandbox, rows).await?, ["1 1.50 2", r#"2 - {"b": 2} 1"#]);
    // What is there by now counts.
    let said = refusal(&sandbox, &[("TABLE_COLUMNS", "id bigint, a text, rest jsonb *")], "migrate", 1).await?;
    ensure!(said.contains("`b numeric /b` would be missing"), "{said}");
    let fresh = [("DATABASE_SCHEMA", "fresh")];
    let printed = succeeds(&sandbox, &fresh, &["migrate", "--print"]).await?;
    ensure!(printed.starts_with("CREATE TABLE \"documents\" (\n    \"id\" bigint NOT NULL"), "{printed}");
    assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM pg_namespace WHERE nspname = 'fresh'").await?, 0);
    Ok(())
}

#[tokio::test]
async fn tables_of_the_programs_before_are_left_to_them() -> Result<()> {
    let sandbox = start_nothing().await?;
    for (schema, migrations) in [("first", "_sqlx_migrations"), ("second", "stream_migrations")] {
        let before = format!(
            "CREATE SCHEMA {schema}; SET search_path = {schema}; CREATE TABLE {migrations} (version bigint PRIMARY KEY);
            CREATE TABLE stream (name text PRIMARY KEY, archive_id uuid, position bigint NOT NULL DEFAULT 0, previous uuid);
            CREATE TABLE objects (sequence bigint PRIMARY KEY, sha256 bytea);
            CREATE TABLE posts (id bigint PRIMARY KEY, user_id bigint, title text, body text, extra jsonb, sequence bigint);
            CREATE TABLE quarantined_records (sequence bigint, index bigint, id bigint, reason text, raw bytea);
            INSERT INTO stream (name) VALUES ('posts')"
        );
        execute(&sandbox, &before).await?;
        let why = format!(
            "the schema {schema} holds the table objects, the table posts, the table quarantined_records, the table stream"
        );
        let remedy = "give the stream a DATABASE_SCHEMA of its own, which `transformer once` fills from the archive";
        let settings = [("DATABASE_SCHEMA", schema)];
        for (command, code) in [("migrate", 1), ("check", 3), ("once", 1)] {
            let said = refusal(&sandbox, &settings, command, code).await?;
            ensure!(said.contains(&why) && said.contains(remedy), "{command}: {said}");
        }
        sandbox.transformer.restart_with(&settings).await?;
        let said = hold_of(&sandbox, &sandbox.transformer).await?;
        ensure!(said.contains(&why) && said.contains(remedy), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_statements_of_a_table_run_as_they_are() -> Result<()> {
    let sandbox = start_nothing().await?;
    let mut connection = sandbox.connect().await?;
    let widest = (1..1_596).fold("id text".to_owned(), |columns, at| format!("{columns}, c{at} boolean"));
    for (name, table, columns) in [
        ("default", "posts", DEFAULT),
        ("typed", "The \"table", TYPED),
        ("key_alone", "keys", "id uuid"),
        ("widest", "posts", &widest),
    ] {
        let definition =
            TableDefinition { table: table.to_owned(), table_columns: columns.parse()?, ..TableDefinition::default() };
        let added = definition.table_columns.all().last().expect("there is a key").clone();
        let statements = Statements::new(definition);
        let Statements { create, copy, upsert, update, select, select_between, count, keys, mark, delete, .. } =
            &statements;
        let upserts = [Some(upsert), Some(update), Some(select), select_between.as_ref()];
        let prepared = upserts.into_iter().chain([count, mark, delete].map(Some));
        let prepared: Vec<_> = prepared.flatten().map(Statement::text).collect();
        run(&mut connection, &format!("CREATE SCHEMA of_{name}; SET search_path = of_{name}")).await?;
        run(&mut connection, create.text()).await?;
        for (at, statement) in prepared.iter().enumerate() {
            let name = format!("{name}_{at}");
            run(&mut connection, &format!("PREPARE {name} AS {statement}")).await?;
            let count = "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = $1";
            let count: i32 = sqlx::query_scalar(count).bind(&name).fetch_one(&mut connection).await?;
            let nothing = match vec!["NULL"; usize::try_from(count)?].join(", ") {
                nothing if nothing.is_empty() => nothing,
                nothing => format!("({nothing})"),
            };
            run(&mut connection, &format!("EXECUTE {name} {nothing}")).await?;
        }
        let copied: Vec<_> = connection.copy_out_raw(keys).await?.try_collect().await?;
        assert_eq!(copied.concat(), [HEADER, TRAILER].concat());
        let mut empty = connection.copy_in_raw(copy).await?;
        empty.send([HEADER, TRAILER].concat().as_slice()).await?;
        assert_eq!(empty.finish().await?, 0);
        if name == "widest" {
            continue;
        }
        run(&mut connection, &format!("ALTER TABLE {} DROP COLUMN \"{}\"", statements.table, added.name)).await?;
        let add = statements.add(&added);
        run(&mut connection, add.text()).await?;
        let all = [&[create.text(), copy], &prepared[..], &[keys, add.text()]].concat();
        insta::assert_snapshot!(format!("statements_{name}"), format!("{};\n", all.join(";\n\n")));
    }
    Ok(())
}

async fn run(connection: &mut PgConnection, statement: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.with_context(|| statement.to_owned())?;
    Ok(())
}

/// Values of each type: as JSON, and behind `=>` as Postgres reads it where that is another text.
const VALUES: [(&str, &str); 11] = [
    ("bigint", r#"9223372036854775807 | -9223372036854775808 | -0 | 1.20e1 => 12 | "7""#),
    (
        "numeric",
        r#"0 | -0 | -0.00 | 0.000 | 0e10 | 0e-5 | 1 | -1 | 10 | 9999 | 10000 | 10001 | 99990000 | 100.00 | 0.1 | 0.0001 | 0.00010 | 0.00001
         | -0.99990000 | 12345.678 | 123456789012345678901234567890.123 | 1e-5 | 1E5 | 1e4 | 1e3 | 12e-3 | -1.5e+3 | 1.000e2 | 1.2345e2
         | 0.00012e9 | 1e131071 | -9e131071 | 1e-16383 | "7.50""#,
    ),
    (
        "double precision",
        r#"0 | -0.0 | 0.1 | 1e308 | 1.7976931348623157e308 | 5e-324 | 2.2250738585072014e-308 | 123456789012345678 | "-1.5""#,
    ),
    ("boolean", r#"true | false | "true""#),
    ("text", r#""" | "\u00e9\ud83d\ude00/" => é😀/ | " 'a\\" =>  'a\"#),
    ("date", r#""0001-01-01" | "1999-12-31" | "2000-01-01" | "2024-02-29" | "9999-12-31""#),
    (
        "timestamptz",
        r#""0001-01-01T00:00:00Z" | "1999-12-31T23:59:59.999999Z" | "2000-01-01 00:00:00" | "2026-11-30T12:00" | "2026-11-30t12:00:00.5+01"
         | "2026-11-30T12:00:00-0530" | "2026-11-30T12:00:00+14:00" | "9999-12-30T22:00:00Z""#,
    ),
    (
        "timestamptz epoch",
        r#"0 => 1970-01-01 | 1764504000.000001 => 2025-11-30 12:00:00.000001 | -0.5 => 1969-12-31 23:59:59.5 | -62135596800 => 0001-01-01
         | "1.7e9" => 2023-11-14 22:13:20"#,
    ),
    ("timestamptz epoch_ms", "1764504000123.456 => 2025-11-30 12:00:00.123456 | -1 => 1969-12-31 23:59:59.999"),
    (
        "uuid",
        r#""67E55044-10b1-426f-9247-bb680e5fe0c8" | "67e5504410b1426f9247bb680e5fe0c8" | "00000000-0000-0000-0000-000000000000""#,
    ),
    (
        "jsonb",
        r#"0 => 0 | -1.50 => -1.50 | true => true | [ 1,{"bb":[],"a":{}}] => [ 1,{"bb":[],"a":{}}] | "a\u0062\/" => "ab/""#,
    ),
];

#[tokio::test]
async fn a_value_of_each_type_is_the_bytes_that_postgres_sends_back() -> Result<()> {
    let sandbox = start_nothing().await?;
    let mut connection = sandbox.connect().await?;
    run(&mut connection, "SET timezone = 'UTC'").await?;
    let longest = format!("-{}.{}", "9".repeat(131_072), "9".repeat(16_383));
    let values = VALUES.iter().flat_map(|(kind, values)| values.split('|').map(|value| (*kind, value.trim())));
    for (at, (kind, value)) in values.chain([("numeric", &*longest)]).enumerate() {
        let (json, text) = value.split_once(" => ").unwrap_or((value, value.trim_matches('"')));
        let definition =
            TableDefinition { table_columns: format!("id bigint, v {kind}").parse()?, ..TableDefinition::default() };
        let reader = RecordReader::new(definition.table_columns.clone());
        let statements = Statements::new(definition);
        run(&mut connection, &format!("CREATE SCHEMA of_{at}; SET search_path = of_{at}")).await?;
        run(&mut connection, statements.create.text()).await?;
        let mut fields = Vec::new();
        let read = reader.read(format!(r#"{{"id":1,"v":{json}}}"#).as_bytes(), &mut Fields(&mut fields));
        read.map_err(|no| anyhow::anyhow!("{kind} {json}: {}", no.reason))?;
        let rows = [Row::new(ORIGIN, 0, reader.key(), &fields)];
        let mut bytes = HEADER.to_vec();
        encode_rows(&mut bytes, 2, &rows);
        bytes.extend(TRAILER);
        let mut copy = connection.copy_in_raw(&statements.copy).await?;
        copy.send(bytes.as_slice()).await?;
        copy.finish().await?;
        let select = format!("SELECT v, $1::text::{} FROM of_{at}.posts", statements.kinds[1].sql());
        let stored = sqlx::query(AssertSqlSafe(select)).bind(text).fetch_one(&mut connection).await?;
        let ours = rows[0].values().nth(1).flatten();
        for (column, what) in ["as it is stored", "as Postgres reads it"].into_iter().enumerate() {
            let theirs = stored.try_get_raw(column)?.as_bytes().map_err(|error| anyhow::anyhow!(error))?;
            assert!(ours == Some(theirs), "{kind} {}, {what}", &json[..json.len().min(40)]);
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_compared_is_what_postgres_writes() -> Result<()> {
    let sandbox = support::start_nothing().await?;
    let documents = RecordReader::new("id bigint, doc jsonb .".parse()?);
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
            "{\n\t\"id\": 1,\r \"x\": [0.10, 1.50, 123456789012345678901234567890, -0.5]\n}",
            r#"{"id":1,"é":1,"zz":2,"z":3,"":4,"\"":5}"#,
            &format!(r#"{{"id":1,"x":{deep}}}"#),
        ]
        .map(str::to_owned),
    );
    let mut connection = sandbox.connect().await?;
    for record in records {
        let mut bytes = Vec::new();
        documents.read(record.as_bytes(), &mut Fields(&mut bytes)).map_err(|no| anyhow::anyhow!(no.reason))?;
        let row = Row::new(ORIGIN, 0, documents.key(), &bytes);
        let ours = row.values().nth(1).flatten().map(|jsonb| String::from_utf8_lossy(&jsonb[1..]).into_owned());
        let theirs: String =
            sqlx::query_scalar("SELECT $1::text::jsonb::text").bind(&record).fetch_one(&mut connection).await?;
        assert_eq!(ours, Some(theirs), "{record}");
    }
    Ok(())
}
