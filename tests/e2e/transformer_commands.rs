//! What the transformer's commands say and do: `quarantine`, `check`, `migrate` and the role that it grants to.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use sandbox::{Sandbox, Setup};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};
use support::{
    SOON,
    author::{Author, document},
    execute, readiness, select, start, told, transformer, transformer_command,
};
use url::Url;

async fn nothing_runs() -> Result<Sandbox> {
    start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await
}

async fn succeeds(sandbox: &Sandbox, settings: &[(&'static str, &str)], arguments: &[&str]) -> Result<String> {
    let output = transformer(sandbox, settings, arguments).await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn the_quarantine_is_listed_and_shown() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let mut author = Author::of(&sandbox).await?;
    let wrong = r#"{"id": 2, "userId": 1, "title": 7, "body": ""}"#;
    author.append(format!("[{}, {wrong}, 7]", r#"{"id":1,"userId":1,"title":"t","body":"b"}"#)).await?;
    author.append("[{\"id\":").await?;
    succeeds(&sandbox, &[], &["once"]).await?;
    for (name, arguments) in [
        ("quarantine_list", &["quarantine", "list"][..]),
        ("quarantine_list_json", &["quarantine", "list", "--json"]),
        ("quarantine_list_limit", &["quarantine", "list", "--limit", "1"]),
        ("quarantine_show", &["quarantine", "show", "1", "1"]),
        ("quarantine_show_none", &["quarantine", "show", "1", "0"]),
    ] {
        let output = transformer(&sandbox, &[], arguments).await?;
        insta::assert_snapshot!(name, told(&sandbox, &output, &[]));
    }
    Ok(())
}

#[tokio::test]
async fn check_says_what_is_well_and_what_to_do_about_the_rest() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let version = sandbox.world().postgres().version().to_owned();
    let other_archive = uuid::Uuid::new_v4();
    let no_queue = sandbox.queue_url().replace(".fifo", "-none.fifo");
    let no_queue_name = no_queue.rsplit('/').next().unwrap_or_default().to_owned();
    let check = async |name: &str, settings: &[(&'static str, &str)], code: i32| {
        let output = transformer(&sandbox, settings, &["check"]).await?;
        let ours = match sandbox.end().await? {
            0 => String::new(),
            _ => support::metadata(&sandbox, 1).await?.archive_id.to_string(),
        };
        let other = other_archive.to_string();
        let mut names =
            vec![(version.as_str(), "PostgreSQL 15.0"), (&other, "OTHER"), (no_queue_name.as_str(), "NO_QUEUE")];
        names.extend((!ours.is_empty()).then_some((ours.as_str(), "OURS")));
        let told = told(&sandbox, &output, &names);
        assert_eq!(output.status.code(), Some(code), "{name}: {told}");
        insta::assert_snapshot!(format!("check_{name}"), told);
        anyhow::Ok(())
    };
    check("empty", &[], 0).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=3, "a")).await?;
    author.append(document(1..=3, "b")).await?;
    succeeds(&sandbox, &[], &["once", "--to", "1"]).await?;
    check("well", &[], 0).await?;

    let mut nobody = Url::parse(sandbox.database_url())?;
    nobody.set_port(Some(1)).expect("the URL has a host");
    check("no_server", &[("DATABASE_URL", nobody.as_str())], 3).await?;
    let mut stranger = Url::parse(sandbox.database_url())?;
    stranger.set_password(Some("wrong")).expect("the URL has a host");
    check("wrong_password", &[("DATABASE_URL", stranger.as_str())], 3).await?;
    check("no_tables", &[("DATABASE_SCHEMA", "not_migrated")], 3).await?;
    check("other_stream", &[("STREAM", "albums")], 3).await?;
    check("no_bucket", &[("ARCHIVE_BUCKET", "there-is-no-such-bucket")], 3).await?;
    let bucket = format!("{}-empty", sandbox.bucket());
    sandbox.s3().create_bucket().bucket(&bucket).send().await?;
    check("empty_bucket", &[("ARCHIVE_BUCKET", &bucket)], 3).await?;
    let metadata = support::metadata(&sandbox, 1).await?;
    let anew = shared::object::Metadata { archive_id: other_archive, ..metadata };
    support::put(&sandbox, &bucket, 1, &anew, b"[]").await?;
    check("other_archive", &[("ARCHIVE_BUCKET", &bucket)], 3).await?;
    check("no_queue", &[("QUEUE_URL", &no_queue)], 3).await?;

    let database: String = select(&sandbox, "SELECT current_database()::text").await?;
    execute(&sandbox, &format!("ALTER DATABASE {database} SET synchronous_commit = off")).await?;
    check("not_durable", &[], 3).await?;
    execute(&sandbox, &format!("ALTER DATABASE {database} RESET synchronous_commit")).await?;
    let role = Role::new(&sandbox, "checked").await?;
    execute(&sandbox, &format!("REVOKE UPDATE ON posts, stream FROM {}", role.name)).await?;
    check("rights", &[("DATABASE_URL", role.url.as_str())], 3).await?;
    Ok(())
}

/// A migration of another program.
async fn migrate_another_program(connection: &mut PgConnection) -> Result<()> {
    let sql = "CREATE TABLE IF NOT EXISTS theirs ()".into_sql_str();
    let migration = Migration::new(1, "theirs".into(), MigrationType::Simple, sql, false);
    Ok(Migrator::with_migrations(vec![migration]).run(connection).await?)
}

#[tokio::test]
async fn another_program_keeps_its_migrations_to_itself() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let mut connection = sandbox.connect().await?;
    migrate_another_program(&mut connection).await?;
    // In the same schema, beside the tables of that program.
    succeeds(&sandbox, &[], &["migrate"]).await?;
    migrate_another_program(&mut connection).await?;
    assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM _sqlx_migrations").await?, 1);
    assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM stream_migrations").await?, 3);
    Ok(())
}

#[tokio::test]
async fn migrate_may_be_repeated_and_run_by_several_at_once() -> Result<()> {
    let sandbox = nothing_runs().await?;
    for schema in ["public", "public", "other"] {
        succeeds(&sandbox, &[("DATABASE_SCHEMA", schema)], &["migrate"]).await?;
    }
    let at_once = ["fresh"; 4].map(|schema| {
        let mut command = transformer_command(&sandbox, &[("DATABASE_SCHEMA", schema)], &["migrate"]);
        async move { command.output().await }
    });
    let [first, second, third, fourth] = at_once;
    let (first, second, third, fourth) = tokio::try_join!(first, second, third, fourth)?;
    for output in [first, second, third, fourth] {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM fresh.stream").await?, 1);
    Ok(())
}

#[tokio::test]
async fn migrate_wants_no_more_than_a_schema_of_its_own() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let role = format!("owner_{}", select::<String>(&sandbox, "SELECT current_database()::text").await?);
    execute(&sandbox, &format!("CREATE ROLE {role} LOGIN PASSWORD 'own'; CREATE SCHEMA own AUTHORIZATION {role}"))
        .await?;
    let mut url = url::Url::parse(sandbox.database_url())?;
    url.set_username(&role).and_then(|()| url.set_password(Some("own"))).expect("the URL has a host");
    succeeds(&sandbox, &[("DATABASE_URL", url.as_str()), ("DATABASE_SCHEMA", "own")], &["migrate"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused_before_there_are_tables() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let name = format!("latin_{}", select::<String>(&sandbox, "SELECT current_database()::text").await?);
    let mut connection = sandbox.connect().await?;
    let create = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN9' LOCALE 'C'");
    connection.execute(AssertSqlSafe(create)).await?;
    let mut url = Url::parse(sandbox.database_url())?;
    url.set_path(&name);
    let settings = [("DATABASE_URL", url.as_str())];
    let output = transformer(&sandbox, &settings, &["migrate"]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("the database's encoding is LATIN9"), "{said}");
    let output = transformer(&sandbox, &settings, &["check"]).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(3) && said.contains("the database's encoding is LATIN9"), "{said}");
    connection.execute(AssertSqlSafe(format!("DROP DATABASE {name}"))).await?;
    Ok(())
}

#[tokio::test]
async fn migrate_that_is_killed_in_the_middle_leaves_nothing() -> Result<()> {
    let sandbox = nothing_runs().await?;
    // Each table takes a while, so that there is a middle.
    execute(
        &sandbox,
        "CREATE SEQUENCE made;
        CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM nextval('public.made'), pg_sleep(0.5); END $$;
        CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION slow();",
    )
    .await?;
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'transformer'";
    // A sequence tells others at once what a transaction has done.
    let made = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM made";
    for tables in 1..=3 {
        let before: i64 = select(&sandbox, made).await?;
        let mut migrate = transformer_command(&sandbox, &[("DATABASE_SCHEMA", "cut")], &["migrate"]);
        let mut migrate = migrate.stderr(Stdio::null()).spawn()?;
        let reached = before + tables;
        sandbox
            .wait_until("a table is made", SOON, async || Ok(select::<i64>(&sandbox, made).await? >= reached))
            .await?;
        migrate.kill().await?;
        sandbox
            .wait_until("its session ends", SOON, async || Ok(select::<i64>(&sandbox, sessions).await? == 0))
            .await?;
        assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM pg_namespace WHERE nspname = 'cut'").await?, 0);
    }
    execute(&sandbox, "DROP EVENT TRIGGER slow").await?;
    succeeds(&sandbox, &[("DATABASE_SCHEMA", "cut")], &["migrate"]).await?;
    assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM cut.stream").await?, 1);
    Ok(())
}

/// A role that `migrate --grant-to` made.
struct Role {
    name: String,
    url: Url,
}

impl Role {
    async fn new(sandbox: &Sandbox, prefix: &str) -> Result<Self> {
        // Roles are the cluster's, and it is shared.
        let name = format!("{prefix}_{}", select::<String>(sandbox, "SELECT current_database()::text").await?);
        succeeds(sandbox, &[], &["migrate", "--grant-to", &name]).await?;
        execute(sandbox, &format!("ALTER ROLE {name} PASSWORD 'secret'")).await?;
        let mut url = Url::parse(sandbox.database_url())?;
        url.set_username(&name).and_then(|()| url.set_password(Some("secret"))).expect("the URL has a host");
        Ok(Self { name, url })
    }
}

#[tokio::test]
async fn the_granted_role_runs_the_transformer_and_may_do_nothing_else() -> Result<()> {
    let sandbox = nothing_runs().await?;
    execute(&sandbox, "CREATE TABLE somebodys (secret text)").await?;
    let role = Role::new(&sandbox, "granted").await?;
    succeeds(&sandbox, &[], &["migrate", "--grant-to", &role.name]).await?;
    let as_role = [("DATABASE_URL", role.url.as_str())];
    let mut author = Author::of(&sandbox).await?;
    // All that a transformer does: insert, update, quarantine a record and an object, find what Postgres refuses.
    execute(&sandbox, "ALTER TABLE posts ADD CONSTRAINT short CHECK (length(title) < 10)").await?;
    author.append(document(1..=3, "a")).await?;
    author.append(format!("[7, {}", &document(2..=4, "b")[1..])).await?;
    author.append("[{").await?;
    author.append(document(2..=4, "a title that is too long")).await?;
    succeeds(&sandbox, &as_role, &["check"]).await?;
    sandbox.transformer.restart_with(&as_role).await?;
    sandbox.wait_until("all is applied", SOON, async || Ok(sandbox.position().await? == 4)).await?;
    for arguments in [&["audit"][..], &["quarantine", "list"], &["quarantine", "show", "2", "0"]] {
        succeeds(&sandbox, &as_role, arguments).await?;
    }
    assert_eq!(readiness(&sandbox.transformer).await?.0, 200);

    let mut connection = PgConnection::connect(role.url.as_str()).await?;
    for statement in [
        "DELETE FROM posts",
        "DELETE FROM objects",
        "DELETE FROM stream",
        "DELETE FROM quarantined_records",
        "TRUNCATE posts",
        "TRUNCATE objects",
        "DROP TABLE posts",
        "ALTER TABLE posts ADD COLUMN x text",
        "UPDATE objects SET reason = 'mine'",
        "UPDATE quarantined_records SET reason = 'mine'",
        "INSERT INTO stream (name) VALUES ('mine')",
        "CREATE TABLE mine ()",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "SELECT * FROM somebodys",
        "INSERT INTO somebodys VALUES ('mine')",
        "SELECT * FROM stream_migrations",
        "COPY posts TO PROGRAM 'cat'",
    ] {
        let refused = connection.execute(AssertSqlSafe(statement)).await.expect_err(statement);
        let code = refused.as_database_error().context("Postgres refuses")?.code().unwrap_or_default().into_owned();
        assert_eq!(code, "42501", "{statement}: {refused}");
    }
    Ok(())
}

#[tokio::test]
async fn the_granted_role_takes_over_from_a_silent_one() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let role = Role::new(&sandbox, "silent").await?;
    // As a transformer whose host has vanished: the lock is held, and Postgres waits.
    let mut silent = PgConnection::connect(role.url.as_str()).await?;
    silent.execute("BEGIN; SELECT FROM stream FOR UPDATE").await?;
    Author::of(&sandbox).await?.append(document(1..=3, "a")).await?;
    sandbox.transformer.restart_with(&[("DATABASE_URL", role.url.as_str())]).await?;
    sandbox.wait_until("it takes over", 2 * SOON, async || Ok(sandbox.position().await? == 1)).await?;
    assert!(silent.execute("COMMIT").await.is_err(), "the session is gone");
    Ok(())
}
