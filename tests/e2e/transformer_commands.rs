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
    cluster::Cluster,
    execute, hold_of, readiness, select, start, told, transformer, transformer_command,
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
    let output = transformer(&sandbox, &[("DATABASE_URL", role.url.as_str())], &["check"]).await?;
    assert_eq!(output.status.code(), Some(3));
    let names = [(role.name.as_str(), "ROLE"), (version.as_str(), "PostgreSQL 15.0")];
    let rights = told(&sandbox, &output, &names);
    let rights: Vec<_> = rights.lines().filter(|line| line.starts_with("rights")).collect();
    assert_eq!(
        rights,
        [
            "rights    PROBLEM  the role ROLE lacks UPDATE on posts, UPDATE on stream: run `transformer migrate --grant-to ROLE`"
        ]
    );
    Ok(())
}

#[tokio::test]
async fn check_and_run_name_what_keeps_the_role_from_its_work() -> Result<()> {
    let sandbox = nothing_runs().await?;
    Author::of(&sandbox).await?.append(document(1..=3, "a")).await?;
    let role = Role::new(&sandbox, "kept").await?;
    let database: String = select(&sandbox, "SELECT current_database()::text").await?;
    let (name, as_role) = (&role.name, [("DATABASE_URL", role.url.as_str())]);
    sandbox.transformer.restart_with(&as_role).await?;
    sandbox.wait_until("it is applied", SOON, async || Ok(sandbox.position().await? == 1)).await?;
    let secured = |table: &str| {
        (
            format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; CREATE POLICY theirs ON {table} USING (false)"),
            format!("DROP POLICY theirs ON {table}; ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"),
            format!(
                "row level security hides rows of the table {table} from the role {name}, which needs all: \
                 `ALTER ROLE {name} BYPASSRLS`, or `ALTER TABLE public.{table} DISABLE ROW LEVEL SECURITY`"
            ),
        )
    };
    let lacking = |right: &str, on: &str| {
        let lacks = match on {
            "SCHEMA public" => format!("the role {name} may not look into the schema public"),
            table => format!("the role {name} lacks {right} on {table}"),
        };
        (
            format!("REVOKE {right} ON {on} FROM {name}, public"),
            format!("GRANT {right} ON {on} TO {name}"),
            format!("{lacks}: run `transformer migrate --grant-to {name}`"),
        )
    };
    let read_only = |of: &str| {
        (
            format!("ALTER {of} SET default_transaction_read_only = on"),
            format!("ALTER {of} RESET default_transaction_read_only"),
            format!(
                "default_transaction_read_only is on, so nothing can be written: `ALTER {of} RESET \
                 default_transaction_read_only`"
            ),
        )
    };
    for (break_it, mend_it, why) in [
        secured("posts"),
        secured("objects"),
        secured("quarantined_records"),
        secured("stream"),
        lacking("USAGE", "SCHEMA public"),
        lacking("SELECT", "stream"),
        lacking("UPDATE", "stream"),
        lacking("SELECT", "objects"),
        lacking("INSERT", "posts"),
        read_only(&format!("ROLE {name}")),
        read_only(&format!("DATABASE {database}")),
        read_only(&format!("ROLE {name} IN DATABASE {database}")),
    ] {
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'transformer'";
        execute(&sandbox, &format!("{break_it}; {cut}")).await?;
        let output = transformer(&sandbox, &as_role, &["check"]).await?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(3) && said.contains(&format!("rights    PROBLEM  {why}\n")), "{said}");
        let before = sandbox.position().await?;
        Author::of(&sandbox).await?.append(document(1..=3, &why)).await?;
        let held = sandbox.wait_until("it holds", SOON, async || {
            Ok(readiness(&sandbox.transformer).await?.1 == format!("holding: {why}"))
        });
        held.await?;
        let output = transformer(&sandbox, &as_role, &["once"]).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains(&why), "{said}");
        let mut connection = sandbox.connect().await?;
        connection.execute("SET default_transaction_read_only = off").await?;
        connection.execute(AssertSqlSafe(mend_it)).await?;
        sandbox.wait_until("it goes on", SOON, async || Ok(sandbox.position().await? == before + 1)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_right_that_only_a_trigger_needs_is_named() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let role = Role::new(&sandbox, "triggering").await?;
    execute(
        &sandbox,
        "CREATE SEQUENCE theirs;
        CREATE FUNCTION count_them() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.theirs'); RETURN NEW; END $$;
        CREATE TRIGGER count_them BEFORE INSERT ON posts FOR EACH ROW EXECUTE FUNCTION count_them();",
    )
    .await?;
    Author::of(&sandbox).await?.append(document(1..=3, "a")).await?;
    sandbox.transformer.restart_with(&[("DATABASE_URL", role.url.as_str())]).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(
        why.contains("permission denied for sequence theirs (SQLSTATE 42501): give this right to the role"),
        "{why}"
    );
    execute(&sandbox, &format!("GRANT USAGE ON SEQUENCE theirs TO {}", role.name)).await?;
    sandbox.wait_until("it goes on", SOON, async || Ok(sandbox.position().await? == 1)).await
}

#[tokio::test]
async fn migrate_says_what_keeps_it_from_its_work() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let role = format!("migrator_{}", select::<String>(&sandbox, "SELECT current_database()::text").await?);
    execute(&sandbox, &format!("CREATE ROLE {role} LOGIN PASSWORD 'own'; CREATE SCHEMA own AUTHORIZATION {role}"))
        .await?;
    let mut url = Url::parse(sandbox.database_url())?;
    url.set_username(&role).and_then(|()| url.set_password(Some("own"))).expect("the URL has a host");
    execute(
        &sandbox,
        "CREATE SCHEMA closed; CREATE SCHEMA taken; CREATE TABLE taken.posts (); CREATE TABLE taken.objects ()",
    )
    .await?;
    execute(&sandbox, &format!("GRANT ALL ON SCHEMA public, taken TO {role}")).await?;
    let read_only = format!("ALTER ROLE {role} SET default_transaction_read_only = on");
    let may_write = format!("ALTER ROLE {role} RESET default_transaction_read_only");
    for (schema, before, why) in [
        (
            "closed",
            "",
            "the role ROLE may not create tables in the schema closed: run `transformer migrate` as a role that may, or, \
            as the schema's owner, `GRANT USAGE, CREATE ON SCHEMA closed TO ROLE`",
        ),
        (
            "missing",
            "",
            "the role ROLE may not create the schema missing: create it as another role, `CREATE SCHEMA missing AUTHORIZATION \
            ROLE`",
        ),
        (
            "public",
            "",
            "the tables in the schema public belong to the role postgres: run `transformer migrate` as that role",
        ),
        ("taken", "", "the schema taken holds the table objects, the table posts already, which were made by another"),
        (
            "own",
            &*read_only,
            "default_transaction_read_only is on, so nothing can be written: `ALTER ROLE ROLE RESET \
            default_transaction_read_only`",
        ),
    ] {
        execute(&sandbox, before).await?;
        let settings = [("DATABASE_URL", url.as_str()), ("DATABASE_SCHEMA", schema)];
        let output = transformer(&sandbox, &settings, &["migrate"]).await?;
        let said = told(&sandbox, &output, &[(&role, "ROLE")]);
        ensure!(output.status.code() == Some(1) && said.contains(why), "{schema}: {said}");
        let output = transformer(&sandbox, &settings, &["check"]).await?;
        let said = told(&sandbox, &output, &[(&role, "ROLE")]);
        // The first that a person runs says it too, but for tables that are there, which are not for `check` to upgrade.
        ensure!(output.status.code() == Some(3) && (schema == "public" || said.contains(why)), "{schema}: {said}");
    }
    execute(&sandbox, &may_write).await?;
    succeeds(&sandbox, &[("DATABASE_URL", url.as_str()), ("DATABASE_SCHEMA", "own")], &["migrate"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_set_to_read_only_is_named() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let cluster = Cluster::start(sandbox.world(), &["default_transaction_read_only=on"], &[]).await?;
    let of_server =
        "turn it off in the server's configuration, or make room if the provider did so because the disk is full";
    let (url, of_client) = (cluster.url("postgres"), "take it out of the options in DATABASE_URL or PGOPTIONS");
    let of_ours = format!("{}?options=-c%20default_transaction_read_only%3Don", sandbox.database_url());
    for (url, instead) in [(&url, of_server), (&of_ours, of_client)] {
        for command in ["check", "migrate"] {
            let output = transformer(&sandbox, &[("DATABASE_URL", url)], &[command]).await?;
            let said = told(&sandbox, &output, &[]);
            let why = format!("default_transaction_read_only is on, so nothing can be written: {instead}\n");
            ensure!(!output.status.success() && said.contains(&why), "{command}: {said}");
        }
    }
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
    assert_eq!(select::<i64>(&sandbox, "SELECT count(*) FROM stream_migrations").await?, 1);
    // As a program before the first release left it.
    execute(&sandbox, "DROP TABLE _sqlx_migrations; ALTER TABLE stream_migrations RENAME TO _sqlx_migrations").await?;
    let output = transformer(&sandbox, &[], &["migrate"]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("give the stream a DATABASE_SCHEMA of its own"), "{said}");
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
