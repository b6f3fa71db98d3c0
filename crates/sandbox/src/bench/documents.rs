//! The same large object as documents: each record whole, as jsonb, by its id.

use anyhow::Result;

use super::{
    Bench,
    load::{STREAM, once},
    report::{Goal, Report, per_second},
    sql,
};

const COPY: &str = "documents, straight binary COPY";
const LOADS: [&str; 2] = ["documents, first load", "documents, unchanged"];

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut connection = bench.sandbox.connect().await?;
    let mut rows = None;
    for number in 0..=bench.settings.rounds {
        report.begin("documents", number);
        let schema = format!("documents_{number}");
        let table = format!("{schema}.documents");
        let mut transformer = bench.program(&bench.sandbox.world().programs().transformer, STREAM, &schema).await?;
        transformer.settings.set(&[("TABLE", "documents"), ("TABLE_COLUMNS", "id bigint, doc jsonb .")]);
        transformer.run(&["migrate"]).await?;
        for load in LOADS.into_iter().zip(1..) {
            once(&transformer, report, &mut connection, &table, load).await?;
        }
        let rows = match &rows {
            Some(rows) => rows,
            None => rows.insert(sql::ready_made_rows(&mut connection, &table, "id").await?),
        };
        let took = sql::straight_copy(&mut connection, &schema, "documents", rows).await?;
        report.sample(COPY, per_second(bench.settings.posts, took));
        sql::run(&mut connection, format!("DROP SCHEMA {schema} CASCADE")).await?;
    }
    report.figure(COPY, "rows/s", None, None);
    report.figure(LOADS[0], "rows/s", Some(COPY), Some(Goal::AtLeast(0.6)));
    report.figure(LOADS[1], "rows/s", Some(COPY), Some(Goal::AtLeast(0.7)));
    Ok(())
}
