//! Makes and upgrades the tables of one stream.
//!
//! Migrations are embedded and only go forward. All of them run in one transaction under an advisory lock, so that two
//! migrators, or one that is killed, leave either the old tables or the new ones.

use std::time::Duration;

use shared::{object::StreamName, settings::Absent};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, Row, SqlStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::{
    postgres::{
        connect::{DatabaseSettings, connect, obstacles},
        fault::REBUILD,
        fault::TableError,
    },
    read::table_definition::{TableDefinition, quoted},
    write::{
        ledger::definition_of,
        statements::{Statement, Statements},
    },
};

/// Number, name and text of each file of `migrations/`, in their order.
const MIGRATIONS: [(i64, &str, &str); 1] =
    [(1, "create stream", include_str!("../../migrations/0001_create_stream.sql"))];

/// Any number, as long as every migrator takes the same. Per database, so streams in one database wait for each other.
const ADVISORY_LOCK: i64 = 0x0070_6f73_7473;

/// What can hold any text, in the order of its bytes.
pub const ENCODING: &str = "UTF8";

/// All of it takes no longer: migrations make tables and indexes, and wait for locks at most 10 seconds each.
const DEADLINE: Duration = Duration::from_mins(10);

/// What the tables are for.
#[derive(Debug)]
pub struct Wanted {
    /// The stream.
    pub stream: StreamName,
    /// The table of its rows.
    pub definition: TableDefinition,
    /// A role that may then run the transformer and nothing else.
    pub grant_to: Option<String>,
    /// Whether the statements that make or change the table are only shown.
    pub is_shown: bool,
}

/// Brings the schema to this release, makes it the home of the stream if no stream has it yet, makes the table or adds its new columns, and
/// lets a role run the transformer on it. Answers with the statements of the table.
pub async fn migrate(settings: &DatabaseSettings, wanted: &Wanted) -> anyhow::Result<Vec<Statement>> {
    let mut connection = connect(settings).await?;
    // The server bounds each statement; this is for one that is heard no more.
    match timeout(DEADLINE, migrate_on(&mut connection, settings, wanted)).await {
        Ok(migrated) => migrated.map_err(of_postgres),
        Err(_) => anyhow::bail!("the database did not answer for {} seconds: is it still there?", DEADLINE.as_secs()),
    }
}

async fn migrate_on(
    connection: &mut PgConnection,
    settings: &DatabaseSettings,
    Wanted { stream, definition, grant_to, is_shown }: &Wanted,
) -> anyhow::Result<Vec<Statement>> {
    let schema = &settings.database_schema;
    let mut transaction = connection.begin().await?;
    // The session's lock timeout bounds this wait and every lock that a migration takes.
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(ADVISORY_LOCK).execute(&mut *transaction).await?;
    let obstacles = obstacles(&mut transaction, schema, definition, true).await?;
    anyhow::ensure!(obstacles.is_empty(), TableError::Obstacles(obstacles));
    // Whoever owns the schema need not be allowed to make one, which `IF NOT EXISTS` asks for first.
    let look = sqlx::query_scalar("SELECT to_regnamespace(quote_ident($1)) IS NOT NULL").bind(schema.as_str());
    let is_there: bool = look.fetch_one(&mut *transaction).await?;
    if !is_there {
        transaction.execute(AssertSqlSafe(format!("CREATE SCHEMA \"{schema}\""))).await?;
    }
    let encoding: String = sqlx::query_scalar("SHOW server_encoding").fetch_one(&mut *transaction).await?;
    anyhow::ensure!(
        encoding == ENCODING,
        "the database's encoding is {encoding}, which orders and holds other texts than an API has: make one with ENCODING '{ENCODING}'"
    );
    // sqlx's own lock is a session's, which a killed migrator behind a pooler would leave behind.
    let mut migrations = Migrator::with_migrations(MIGRATIONS.map(migration).to_vec());
    migrations.set_locking(false);
    // In the stream's schema: the usual table may be another program's, which would find migrations there that it does not know.
    migrations.dangerous_set_table_name("stream_migrations");
    // The new binary's migrations only add, so an older binary may meet one that it does not know.
    migrations.set_ignore_missing(true);
    migrations.run(&mut *transaction).await?;
    let name = stream.to_string();
    sqlx::query(include_str!("../sql/create_stream.sql")).bind(&name).execute(&mut *transaction).await?;
    let found = sqlx::query(include_str!("../sql/select_stream.sql")).fetch_one(&mut *transaction).await?;
    let (made, is_missing): (_, bool) = (definition_of(&found)?, found.try_get("is_missing")?);
    let found: String = found.try_get("name")?;
    anyhow::ensure!(
        found == name,
        "the schema {schema} holds the stream `{found}`, and STREAM is `{name}`: give each stream its own DATABASE_SCHEMA"
    );
    if let (Some(TableDefinition { table, .. }), true) = (&made, is_missing) {
        anyhow::bail!(
            "the table {} is missing: bring it back, or make it anew in a new schema. {REBUILD}",
            quoted(table)
        );
    }
    let statements = statements(definition, made.as_ref())?;
    if *is_shown {
        return Ok(statements);
    }
    for statement in &statements {
        transaction.execute(statement.sql()).await?;
    }
    let define = sqlx::query(include_str!("../sql/define_table.sql")).bind(&definition.table);
    let define = define.bind(definition.table_columns.to_string()).bind(definition.absent.absent.to_string());
    define.execute(&mut *transaction).await?;
    if let Some(made) = made.filter(|made| made.absent != definition.absent) {
        // Noted under other rules.
        transaction.execute("DELETE FROM missing_rows").await?;
        let (before, now) = (made.absent.absent, definition.absent.absent);
        warn!(
            "ABSENT was {before} and is {now} for the objects that are applied from here on; the effects of earlier objects stay. `importer once --again` makes one now, and a rebuild into a new \
             DATABASE_SCHEMA applies it to all"
        );
    }
    if let Some(role) = grant_to {
        let grants = sqlx::query_scalar(include_str!("../sql/select_grants.sql")).bind(role).bind(&definition.table);
        let grants = grants.bind(definition.absent.absent == Absent::Delete);
        let grants = grants.fetch_all(&mut *transaction).await?;
        for grant in grants {
            // Quoted by the server, which knows how.
            transaction.execute(AssertSqlSafe::<String>(grant)).await?;
        }
        info!(role, "the role may run the transformer and nothing else");
    }
    transaction.commit().await?;
    info!(%schema, %stream, table = definition.table, statements = statements.len(), "the tables are those of this release and of the settings");
    Ok(statements)
}

/// What makes the table of the one that there is.
fn statements(definition: &TableDefinition, made: Option<&TableDefinition>) -> anyhow::Result<Vec<Statement>> {
    let of_ours = Statements::new(definition.clone());
    let Some(made) = made else { return Ok(vec![of_ours.create]) };
    let added =
        definition.added(made).map_err(|why| anyhow::anyhow!("the table stays as it was made: {why}. {REBUILD}"))?;
    Ok(added.into_iter().map(|column| of_ours.add(column)).collect())
}

/// An answer of Postgres in our words.
fn of_postgres(error: anyhow::Error) -> anyhow::Error {
    let error = error.downcast().map(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
        other => sqlx::Error::from(other),
    });
    match error.or_else(anyhow::Error::downcast) {
        Ok(sqlx::Error::Database(answer)) => {
            TableError::Refused { doing: "migrate", answer, took: Duration::ZERO }.into()
        }
        Ok(other) => other.into(),
        Err(other) => other,
    }
}

/// As `sqlx::migrate!` would make it of the file, so that its digest in the database is the same.
fn migration((number, name, text): (i64, &'static str, &'static str)) -> Migration {
    Migration::new(number, name.into(), MigrationType::Simple, SqlStr::from_static(text), false)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// A database that has a migration with another digest refuses all that follow.
    #[test]
    fn a_migration_keeps_the_digest_that_databases_have_of_it() {
        // As `sha384sum` says them.
        let begins = |file| u64::from_be_bytes(migration(file).checksum[..8].try_into().unwrap());
        assert_eq!(MIGRATIONS.map(begins), [0xc63c_68ce_1144_c8c1]);
    }

    #[test]
    fn every_file_is_a_migration() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        let names = MIGRATIONS.map(|(number, name, _)| format!("{number:04}_{}.sql", name.replace(' ', "_")));
        assert_eq!(files, names.map(std::ffi::OsString::from));
    }
}
