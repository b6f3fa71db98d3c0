//! A run of objects in one transaction does to the tables what its objects do one by one, wherever it is cut.

use anyhow::{Context, Result};
use bytes::Bytes;
use fastrand::Rng;
use jiff::{Timestamp, ToSpan};
use sandbox::Sandbox;
use serde_json::{Value, json};
use sha2::Digest;
use shared::{
    archive::Object,
    object::{Metadata, Sequence, Sha256, SnapshotFacts},
};
use sqlx::AssertSqlSafe;
use transformer::{
    absence::BrakeSettings,
    commands::migrate::{Wanted, migrate},
    decide::Position,
    postgres::{
        connect::{DatabaseAuth, DatabaseSettings},
        fault::Fault,
    },
    read::table_definition::TableDefinition,
    write::{
        table::{PostgresTable, Table, TableSettings},
        transaction::Attempt,
        writer::Care,
    },
};
use uuid::Uuid;

const OBJECTS: u64 = 60;

/// Few ids and few titles, so that what was comes back within a run; now and then a record that is no row, one that the table refuses, and so
/// many records that alone they are compared here.
fn document(random: &mut Rng) -> String {
    let record = |random: &mut Rng| -> Value {
        let title = match random.u8(0..60) {
            0 => return json!(7),
            1 => "refused",
            _ => ["A", "B", "C"][random.usize(0..3)],
        };
        json!({"id": random.i64(1..9), "userId": random.i64(1..9), "title": title, "body": ""})
    };
    let mut records: Vec<_> = (0..random.usize(0..6)).map(|_| record(random)).collect();
    if random.u8(0..12) == 0 {
        let title = ["D", "E"][random.usize(0..2)];
        records
            .extend((100..700).map(|id| json!({"id": id, "userId": 1, "title": format!("{title}{id}"), "body": ""})));
    }
    json!(records).to_string()
}

fn objects(random: &mut Rng) -> Result<Vec<(Sequence, Metadata, Bytes)>> {
    let archive_id = Uuid::new_v4();
    let mut previous = None;
    let mut objects = Vec::new();
    for number in 1..=OBJECTS {
        let (sequence, body) = (Sequence::try_from(number)?, Bytes::from(document(random)));
        let sha256 = Sha256(sha2::Sha256::digest(&body).into());
        let observation = Uuid::now_v7();
        let metadata = Metadata {
            archive_id,
            observation,
            previous,
            sha256,
            fetched_at: Timestamp::UNIX_EPOCH + i64::try_from(number)?.hours(),
            source_url: String::new(),
            etag: None,
            last_modified: None,
            snapshot: sequence,
            page: 1,
            last_page: true,
            snapshot_sha256: sha256,
            facts: SnapshotFacts::default(),
        };
        objects.push((sequence, metadata, body));
        previous = Some(observation);
    }
    Ok(objects)
}

async fn table(sandbox: &Sandbox, schema: &str, change: &str) -> Result<PostgresTable> {
    let url = sandbox.settings().get("DATABASE_URL").context("it has a database")?;
    let settings = DatabaseSettings {
        database_url: Some(url.to_owned().into()),
        database_url_file: None,
        database_auth: DatabaseAuth::Password,
        allow_plaintext: false,
        database_schema: schema.parse().map_err(anyhow::Error::msg)?,
    };
    let (stream, definition) = (sandbox.stream().clone(), TableDefinition::default());
    let wanted = Wanted { stream: stream.clone(), definition, grant_to: None, is_shown: false };
    migrate(&settings, &wanted).await?;
    support::execute(sandbox, &format!("SET search_path = {schema}; {change}")).await?;
    Ok(PostgresTable::new(settings, stream, TableSettings::default(), BrakeSettings::default()))
}

/// Applies them in runs of `length` objects each; what is refused, one by one. How many transactions that took.
async fn apply(
    table: &mut PostgresTable,
    objects: &[(Sequence, Metadata, Bytes)],
    mut length: impl FnMut() -> usize,
) -> Result<usize> {
    let (mut position, mut at, mut transactions) = (None::<Position>, 0, 0);
    while at < objects.len() {
        let mut run = &objects[at..objects.len().min(at + length())];
        let mut care = Care::None;
        loop {
            let object = |(sequence, metadata, body): &(Sequence, Metadata, Bytes)| {
                (*sequence, Object::of_bytes(metadata.clone(), body.clone()))
            };
            match table.apply(position.as_ref(), run.iter().map(object).collect(), care).await {
                Ok(Attempt::Applied(counts)) if counts.len() == run.len() => break,
                Err(error) if error.fault() == Fault::Record && run.len() > 1 => run = &run[..1],
                Err(error) if error.fault() == Fault::Record && care == Care::None => care = Care::EachRecord,
                other => anyhow::bail!("{other:?}"),
            }
        }
        let (sequence, metadata, _) = run.last().context("a run has an object")?;
        position = Some(Position::after(*sequence, metadata));
        (at, transactions) = (at + run.len(), transactions + 1);
    }
    Ok(transactions)
}

async fn differences(sandbox: &Sandbox, one: &str, other: &str) -> Result<i64> {
    const TABLES: [(&str, &str); 4] = [
        ("posts", "*"),
        ("quarantined_records", "*"),
        (
            "objects",
            "sequence, sha256, observation, bytes, fetched_at, outcome, records, inserted, updated, quarantined, with_extra, repeated",
        ),
        ("changes", "*"),
    ];
    let mut connection = sandbox.connect().await?;
    let mut count = 0;
    for (table, columns) in TABLES {
        let of = |schema: &str| format!("SELECT {columns} FROM {schema}.{table}");
        let (one, other) = (of(one), of(other));
        let statement = format!(
            "SELECT count(*) FROM (({one} EXCEPT ALL {other}) UNION ALL ({other} EXCEPT ALL {one})) AS difference"
        );
        count += sqlx::query_scalar::<_, i64>(AssertSqlSafe(statement)).fetch_one(&mut connection).await?;
    }
    Ok(count)
}

#[tokio::test]
async fn wherever_runs_are_cut_the_tables_are_those_of_one_object_after_the_other() -> Result<()> {
    const NOTED: &str = "CREATE TABLE changes (what text, id bigint, title text, sequence bigint);
        CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT
            AS 'BEGIN INSERT INTO changes VALUES (TG_OP, NEW.id, NEW.title, NEW.sequence); RETURN NULL; END'";
    // What a user may add, alone and together: rows are judged by themselves, by others, changed on their way, or noted.
    const ADDED: [&str; 7] = [
        "ALTER TABLE posts ADD CHECK (title <> 'refused'), ADD long text GENERATED ALWAYS AS (body || '!') STORED",
        "ALTER TABLE posts ADD note text DEFAULT 'n'; UPDATE posts SET note = 'n'; ALTER TABLE posts ALTER note SET NOT NULL",
        "CREATE TRIGGER note_change AFTER INSERT OR UPDATE ON posts FOR EACH ROW EXECUTE FUNCTION note_change()",
        "CREATE FUNCTION lower_title() RETURNS trigger LANGUAGE plpgsql
             AS 'BEGIN NEW.title := lower(NEW.title); RETURN NEW; END';
         CREATE TRIGGER lower_title BEFORE INSERT ON posts FOR EACH ROW EXECUTE FUNCTION lower_title()",
        "ALTER TABLE posts ADD FOREIGN KEY (user_id) REFERENCES posts (id)",
        "CREATE UNIQUE INDEX ON posts (title, user_id)",
        "ALTER TABLE posts ALTER title TYPE varchar(20), ALTER id TYPE integer",
    ];
    let sandbox = support::start_nothing().await?;
    let seed = fastrand::u64(..);
    let mut random = Rng::with_seed(seed);
    for round in 0..12 {
        // At first each alone, and nothing.
        let is_added = |at: usize, random: &mut Rng| if round < 8 { at == round } else { random.u8(0..3) == 0 };
        let added: Vec<_> = (0..ADDED.len()).filter(|at| is_added(*at, &mut random)).map(|at| ADDED[at]).collect();
        let change = [&[NOTED], &*added].concat().join("; ");
        let objects = objects(&mut random)?;
        let (alone, together) = (format!("alone_{round}"), format!("together_{round}"));
        let transactions = apply(&mut table(&sandbox, &alone, &change).await?, &objects, || 1).await?;
        assert_eq!(transactions, objects.len());
        let mut table = table(&sandbox, &together, &change).await?;
        let transactions = apply(&mut table, &objects, || random.usize(1..=20)).await?;
        let why = format!("seed {seed}, round {round}: {change}");
        assert!(!added.is_empty() || transactions < objects.len(), "{why}");
        assert_eq!(differences(&sandbox, &alone, &together).await?, 0, "{why}");
    }
    Ok(())
}
