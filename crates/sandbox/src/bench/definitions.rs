//! Large objects under other definitions of the table: whole documents, and twelve columns with each type.

use std::fmt::Write;

use anyhow::Result;
use axum::body::Bytes;

use super::{
    Bench,
    load::{self, once},
    report::{Goal, Report, per_second},
    sql,
};

/// A definition, the archive that it is measured on, and the goals beside straight COPY: of a first load, and of the same again.
struct Definition {
    name: &'static str,
    stream: &'static str,
    columns: &'static str,
    goals: [f64; 2],
}

const TYPED: &str = "typed";

const DEFINITIONS: [Definition; 2] = [
    // The same posts as in the default table, each record whole.
    Definition { name: "documents", stream: load::STREAM, columns: "id bigint, doc jsonb .", goals: [0.65, 1.0] },
    Definition {
        name: "twelve columns",
        stream: TYPED,
        columns: "id bigint, account uuid, title text, body text /body/text, price numeric, ratio double precision, open boolean, day date,
            published timestamptz, seen timestamptz epoch, changed timestamptz epoch_ms, extra jsonb *",
        goals: [0.7, 0.8],
    },
];

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let typed = typed(bench.settings.posts)?;
    bench.store.archive(TYPED, [typed.clone(), typed])?;
    for definition in DEFINITIONS {
        measure_one(bench, report, &definition).await?;
    }
    Ok(())
}

async fn measure_one(bench: &Bench, report: &mut Report, definition: &Definition) -> Result<()> {
    let Definition { name, stream, columns, goals } = definition;
    let copy = format!("{name}, straight binary COPY");
    let loads = [format!("{name}, first load"), format!("{name}, unchanged")];
    let mut connection = bench.sandbox.connect().await?;
    let mut rows = None;
    for number in 0..=bench.settings.rounds {
        report.begin(name, number);
        let schema = format!("{stream}_as_defined_{number}");
        let table = format!("{schema}.posts");
        let mut transformer = bench.program(&bench.sandbox.world().programs().transformer, stream, &schema).await?;
        transformer.settings.set(&[("TABLE_COLUMNS", columns)]);
        transformer.run(&["migrate"]).await?;
        for (load, to) in loads.iter().zip(1..) {
            once(&transformer, report, &mut connection, &table, (load, to)).await?;
        }
        let rows = match &rows {
            Some(rows) => rows,
            None => rows.insert(sql::ready_made_rows(&mut connection, &table, "id").await?),
        };
        let took = sql::straight_copy(&mut connection, &schema, "posts", rows).await?;
        report.sample(&copy, per_second(bench.settings.posts, took));
        sql::run(&mut connection, format!("DROP SCHEMA {schema} CASCADE")).await?;
    }
    report.figure(&copy, "rows/s", None, None);
    for (load, goal) in loads.iter().zip(goals) {
        report.figure(load, "rows/s", Some(&copy), Some(Goal::AtLeast(*goal)));
    }
    Ok(())
}

/// Records with a value of each type, and members that no column takes.
fn typed(records: u64) -> Result<Bytes> {
    let mut body = String::from("[");
    for id in 1..=records {
        let comma = if id > 1 { "," } else { "" };
        write!(
            body,
            r#"{comma}{{"id":{id},"account":"67e55044-10b1-426f-9247-{id:012x}","title":"record {id}","body":{{"text":"some words about record {id}"}},"price":{id}.50,"ratio":0.{id},"open":{},"day":"2026-11-{:02}","published":"2026-11-30T12:00:{:02}+01:00","seen":{},"changed":{},"tags":["a","b"],"rank":{}}}"#,
            id.is_multiple_of(2),
            1 + id % 28,
            id % 60,
            1_764_504_000 + id,
            1_764_504_000_000 + id,
            id % 7,
        )?;
    }
    body.push(']');
    Ok(body.into())
}
