//! Nothing outside an object is ever charged to the object: each kind of fault on a real Postgres.

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use aws_sdk_sqs::types::MessageSystemAttributeName::ApproximateReceiveCount;
use sandbox::{Sandbox, Setup};
use sha2::Digest;
use shared::object::{Metadata, Sha256};
use sqlx::{AssertSqlSafe, Connection, Executor};
use support::{
    SOON, applied,
    author::{Author, document},
    cluster::Cluster,
    execute, hold_of, metadata,
    proxy::{Proxy, Way, s3_error},
    put, readiness, select, start,
    tap::Tap,
    transformer, world,
};

/// A stream without an importer, whose transformer runs with these settings.
async fn follow(settings: Vec<(&'static str, &'static str)>) -> Result<Sandbox> {
    start(Setup { posts: 0, importer: false, settings, ..Setup::default() }).await
}

/// Makes Postgres refuse post 3 with this error.
async fn refuse(sandbox: &Sandbox, code: &str, more: &str) -> Result<()> {
    let trigger = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.id = 3 THEN RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}'{more}; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON posts FOR EACH ROW EXECUTE FUNCTION refuse();"
    );
    execute(sandbox, &trigger).await
}

async fn accept(sandbox: &Sandbox) -> Result<()> {
    execute(sandbox, "DROP FUNCTION IF EXISTS refuse CASCADE").await
}

/// The ledger's line of an object: outcome, records, quarantined.
async fn line(sandbox: &Sandbox, sequence: u64) -> Result<String> {
    let statement =
        format!("SELECT concat_ws(' ', outcome, records, quarantined) FROM objects WHERE sequence = {sequence}");
    let mut connection = sandbox.connect().await?;
    Ok(sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut connection).await?)
}

/// All quarantined records: object, index, id and reason.
async fn quarantine(sandbox: &Sandbox) -> Result<Vec<String>> {
    let all = "SELECT coalesce(array_agg(concat_ws(' ', sequence, index, id, reason) ORDER BY sequence, index), '{}')
        FROM quarantined_records";
    select(sandbox, all).await
}

/// Waits until the transformer says `word`, `waiting` or `holding`, and why.
async fn says(sandbox: &Sandbox, word: &str, why: &str) -> Result<()> {
    let what = format!("the transformer is {word} because of {why:?}");
    let is_said = sandbox.wait_until(what, SOON, async || {
        let (status, text) = readiness(&sandbox.transformer).await?;
        ensure!(status == 503 && text.starts_with(&format!("{word}: ")) && text.contains(why), "{status} {text}");
        Ok(true)
    });
    is_said.await
}

#[tokio::test]
async fn a_record_that_postgres_refuses_is_quarantined_and_the_others_load() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    // Data exceptions, program limits, and constraints that are not the primary key.
    for code in ["22003", "22P02", "22P05", "22021", "54000", "54001", "23502", "23503", "23505", "23514", "23P01"] {
        refuse(&sandbox, code, "").await?;
        let number = author.append(document(1..=5, code)).await?;
        applied(&sandbox, number).await?;
        accept(&sandbox).await?;
        assert_eq!(line(&sandbox, number).await?, "loaded 5 1", "{code}");
        let expected = format!("{number} 2 3 Postgres refuses it: not this one");
        assert_eq!(quarantine(&sandbox).await?.last(), Some(&expected), "{code}");
        let titles: Vec<String> = sandbox.rows().await?.into_iter().map(|row| row.title).collect();
        assert_eq!(titles, [1, 2, 4, 5].map(|id| format!("{code} {id}")), "the others are there");
    }
    let raw: Vec<u8> = select(&sandbox, "SELECT raw FROM quarantined_records WHERE sequence = 1").await?;
    assert_eq!(String::from_utf8(raw)?, r#"{"body":"","id":3,"title":"22003 3","userId":1}"#);
    // The next observation brings it in.
    let number = author.append(document(1..=5, "at last")).await?;
    applied(&sandbox, number).await?;
    assert_eq!(sandbox.rows().await?.len(), 5);
    Ok(())
}

#[tokio::test]
async fn the_record_is_found_in_a_batch_of_thousands() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    refuse(&sandbox, "22003", "").await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=9_000, "many")).await?;
    applied(&sandbox, 1).await?;
    assert_eq!(quarantine(&sandbox).await?, ["1 2 3 Postgres refuses it: not this one"]);
    assert_eq!(sandbox.count().await?, 8_999);
    let counts: String = select(&sandbox, "SELECT inserted || ' ' || updated FROM objects").await?;
    assert_eq!(counts, "8999 0", "what was rolled back is not counted");
    Ok(())
}

#[tokio::test]
async fn a_record_too_large_for_memory_costs_itself() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    // In the server's memory they would take two gigabytes.
    let zeros = "0,".repeat(16_777_300);
    let post = |id: i64, more: &str| format!(r#"{{"id":{id},"userId":1,"title":"t","body":""{more}}}"#);
    author.append(format!("[{},{},{}]", post(1, ""), post(2, &format!(r#","x":[{zeros}0]"#)), post(3, ""))).await?;
    applied(&sandbox, 1).await?;
    assert_eq!((line(&sandbox, 1).await?, sandbox.count().await?), ("loaded 3 1".into(), 2));
    assert_eq!(quarantine(&sandbox).await?, ["1 1 it is longer than 16 MiB"]);
    Ok(())
}

#[tokio::test]
async fn thousands_of_refused_records_are_found_without_locks_for_each() -> Result<()> {
    // Each level of subtransactions left behind would hold a lock, in a table with room for 64 a connection, which all databases share.
    let world = world().await;
    let cluster = Cluster::start(&world, &["max_connections=10"], &[]).await?;
    let database_url = cluster.url("postgres").leak() as &str;
    let sandbox = follow(vec![("DATABASE_URL", database_url)]).await?;
    execute(&sandbox, "ALTER TABLE posts ADD CONSTRAINT somebodys_own CHECK (id % 8 <> 0)").await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=16_000, "many")).await?;
    applied(&sandbox, 1).await?;
    assert_eq!((line(&sandbox, 1).await?, sandbox.count().await?), ("loaded 16000 2000".into(), 14_000));
    Ok(())
}

#[tokio::test]
async fn a_refused_record_takes_no_earlier_one_of_its_id_with_it() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let post =
        |id: i64, title: &str, x: &str| format!(r#"{{"id":{id},"userId":1,"title":"{title}","body":"","x":{x}}}"#);
    let (good, bad) = ("1", "1e200000");
    let records = [
        post(5, "older", good),
        post(5, "good", good),
        post(5, "bad", bad),
        post(5, "bad too", bad),
        post(6, "bad", bad),
        post(6, "good", good),
        post(7, "bad", bad),
        post(7, "bad too", bad),
        post(8, "good", good),
    ];
    Author::of(&sandbox).await?.append(format!("[{}]", records.join(","))).await?;
    applied(&sandbox, 1).await?;
    let rows: Vec<_> = sandbox.rows().await?.into_iter().map(|row| (row.id, row.title)).collect();
    assert_eq!(rows, [5, 6, 8].map(|id| (id, "good".to_owned())));
    assert_eq!(line(&sandbox, 1).await?, "loaded 9 4");
    Ok(())
}

#[tokio::test]
async fn values_that_only_postgres_can_judge_cost_their_record() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    execute(&sandbox, "CREATE INDEX somebodys_index ON posts (title)").await?;
    // Too long for an index, and not to be compressed.
    let mut random = fastrand::Rng::with_seed(7);
    let long: String = (0..9_000).map(|_| random.alphanumeric()).collect();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let post = |id: i64, title: &str, extra: &str| {
        format!(r#"{{"id":{id},"userId":1,"title":"{title}","body":"","x":{extra}}}"#)
    };
    let document = |title: &str| {
        let posts = [
            post(1, title, "1"),
            post(2, title, "1e999999"),
            post(3, &long, "1"),
            post(4, title, &deep),
            post(5, title, "2"),
            // Text with escapes beside a number that is too great for us, and not for Postgres.
            post(6, title, r#"["\u00e9", 1e400]"#),
        ];
        // Enough others that the batch is no small one.
        let others: Vec<_> = (7..=1_000).map(|id| post(id, title, "3")).collect();
        format!("[{},{}]", posts.join(","), others.join(","))
    };
    let mut author = Author::of(&sandbox).await?;
    // New, then changed.
    for title in ["copied", "updated"] {
        let number = author.append(document(title)).await?;
        applied(&sandbox, number).await?;
        assert_eq!(line(&sandbox, number).await?, "loaded 1000 3");
        assert_eq!(sandbox.rows().await?.iter().map(|row| row.title.as_str()).collect::<Vec<_>>(), [title; 997]);
    }
    let reasons = quarantine(&sandbox).await?;
    assert_eq!(reasons.len(), 6);
    for (reason, expected) in reasons.iter().zip(
        [
            "2 Postgres refuses it: value overflows numeric format",
            "3 Postgres refuses it: index row requires",
            "4 Postgres refuses it: stack depth limit exceeded",
        ]
        .repeat(2),
    ) {
        assert!(reason.contains(expected), "{reason}");
    }
    Ok(())
}

#[tokio::test]
async fn somebodys_own_constraints_cost_records_and_not_the_stream() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    execute(&sandbox, "CREATE UNIQUE INDEX somebodys_own ON posts (user_id, title)").await?;
    execute(&sandbox, "ALTER TABLE posts ADD CONSTRAINT somebodys_other CHECK (length(title) < 20)").await?;
    let mut author = Author::of(&sandbox).await?;
    let post = |id: i64, title: &str| format!(r#"{{"id":{id},"userId":1,"title":"{title}","body":""}}"#);
    let first = [post(1, "a"), post(2, "a"), post(3, "a title that is far too long"), post(4, "b")];
    author.append(format!("[{}]", first.join(","))).await?;
    let second = [post(1, "a"), post(2, "b"), post(4, "c"), post(5, "d")];
    author.append(format!("[{}]", second.join(","))).await?;
    applied(&sandbox, 2).await?;
    let unique = "Postgres refuses it: duplicate key value violates unique constraint \"somebodys_own\"";
    assert_eq!(
        quarantine(&sandbox).await?,
        [
            format!("1 1 2 {unique}"),
            "1 2 3 Postgres refuses it: new row for relation \"posts\" violates check constraint \"somebodys_other\""
                .into(),
        ]
    );
    // A change makes room for what is new.
    let rows: Vec<String> = sandbox.rows().await?.iter().map(|row| format!("{} {}", row.id, row.title)).collect();
    assert_eq!(rows, ["1 a", "2 b", "4 c", "5 d"]);
    Ok(())
}

#[tokio::test]
async fn a_dependency_that_fails_is_waited_for_and_costs_no_record() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    for code in [
        "57014", "57P01", "57P02", "57P03", "40001", "40P01", "55P03", "25006", "53100", "53200", "53300", "08000",
        "08003", "08006", "28000", "28P01",
    ] {
        refuse(&sandbox, code, "").await?;
        let number = author.append(document(1..=5, code)).await?;
        says(&sandbox, "waiting", "not this one").await?;
        assert_eq!(sandbox.position().await?, number - 1, "{code}");
        accept(&sandbox).await?;
        applied(&sandbox, number).await?;
        assert_eq!(line(&sandbox, number).await?, "loaded 5 0", "{code}");
    }
    assert_eq!(quarantine(&sandbox).await?, [""; 0]);
    assert_eq!(sandbox.transformer.restarts(), 0);
    Ok(())
}

#[tokio::test]
async fn what_only_a_person_can_mend_holds_and_costs_no_record() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    let operators = ["42P01", "42501", "42703", "42883", "3D000", "3F000"].map(|code| (code, ""));
    // The last is ours, the others nobody knows.
    let unknown = ["P0001", "XX000", "XX001", "0A000", "25P02", "99999", "F0000"].map(|code| (code, ""));
    let ours = ("23505", ", CONSTRAINT = 'stream_rows_pkey'");
    for (code, more) in operators.into_iter().chain(unknown).chain([ours]) {
        refuse(&sandbox, code, more).await?;
        let number = author.append(document(1..=5, code)).await?;
        says(&sandbox, "holding", "not this one").await?;
        assert_eq!(sandbox.position().await?, number - 1, "{code}");
        accept(&sandbox).await?;
        applied(&sandbox, number).await?;
        assert_eq!(line(&sandbox, number).await?, "loaded 5 0", "{code}");
    }
    assert_eq!(quarantine(&sandbox).await?, [""; 0]);
    assert_eq!(sandbox.transformer.restarts(), 0);
    Ok(())
}

#[tokio::test]
async fn a_constraint_that_waits_for_commit_holds_until_it_waits_no_more() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let add = |when: &str| format!("ALTER TABLE posts ADD CONSTRAINT at_the_end UNIQUE (title) {when}");
    execute(&sandbox, &add("DEFERRABLE INITIALLY DEFERRED")).await?;
    let mut author = Author::of(&sandbox).await?;
    let titled = |id: i64, title: &str| format!(r#"{{"id":{id},"userId":1,"title":"{title}","body":""}}"#);
    author.append(format!("[{},{}]", titled(1, "the same"), titled(2, "the same"))).await?;
    let remedy = "make at_the_end NOT DEFERRABLE";
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    ensure!(why.contains(remedy), "{why}");
    let checked = transformer(&sandbox, &[], &["check"]).await?;
    let text = String::from_utf8_lossy(&checked.stdout);
    ensure!(checked.status.code() == Some(3) && text.contains(remedy), "{text}");
    execute(&sandbox, &format!("ALTER TABLE posts DROP CONSTRAINT at_the_end; {}", add(""))).await?;
    applied(&sandbox, 1).await?;
    let unique = "Postgres refuses it: duplicate key value violates unique constraint \"at_the_end\"";
    assert_eq!(quarantine(&sandbox).await?, [format!("1 1 2 {unique}")]);
    assert_eq!((line(&sandbox, 1).await?, sandbox.count().await?), ("loaded 2 1".into(), 1));
    Ok(())
}

#[tokio::test]
async fn nothing_is_received_while_the_database_fails() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    refuse(&sandbox, "53100", "").await?;
    author.append(document(1..=5, "first")).await?;
    says(&sandbox, "waiting", "not this one").await?;
    // The message about the first object may have been what brought it here; this one comes when it waits already.
    author.append(document(1..=5, "second")).await?;
    let tries = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let before: i64 = select(&sandbox, tries).await?;
    let is_trying = sandbox.wait_until("it has tried three times more", SOON, async || {
        Ok(select::<i64>(&sandbox, tries).await? >= before + 3)
    });
    is_trying.await?;
    let request = sandbox.sqs().receive_message().queue_url(sandbox.queue_url()).max_number_of_messages(10);
    // The first message is invisible for some seconds, and with it perhaps the second.
    let request = request.wait_time_seconds(20);
    let received = request.message_system_attribute_names(ApproximateReceiveCount).send().await?;
    let counts: Vec<_> = received.messages().iter().filter_map(|message| message.attributes()).collect();
    let untouched = counts.iter().filter(|count| count[&ApproximateReceiveCount] == "1").count();
    assert!(untouched >= 1, "we are the first to receive the second message: {counts:?}");
    accept(&sandbox).await?;
    applied(&sandbox, 2).await
}

#[tokio::test]
async fn a_database_that_is_set_to_read_only_holds_and_costs_no_record() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=5, "before")).await?;
    applied(&sandbox, 1).await?;
    let alter = |to: &str| {
        format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {to}', current_database()); END $$;
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'transformer'"
        )
    };
    execute(&sandbox, &alter("on")).await?;
    author.append(document(1..=5, "after")).await?;
    says(&sandbox, "holding", "RESET default_transaction_read_only`").await?;
    assert_eq!(sandbox.position().await?, 1);
    let mut connection = sandbox.connect().await?;
    connection.execute("SET default_transaction_read_only = off").await?;
    connection.execute(AssertSqlSafe(alter("off"))).await?;
    applied(&sandbox, 2).await?;
    assert_eq!(line(&sandbox, 2).await?, "loaded 5 0");
    assert_eq!(quarantine(&sandbox).await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_database_that_fails_over_to_a_replica_is_waited_for() -> Result<()> {
    let cluster = Cluster::start(&world().await, &[], &[]).await?;
    let sandbox = follow(vec![("DATABASE_URL", cluster.url("postgres").leak())]).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=5, "before")).await?;
    applied(&sandbox, 1).await?;
    // Once a session has crashed, the server starts anew, and reads that it is a replica.
    let signal = cluster.folder().join("data/standby.signal");
    cluster.execute(&format!("COPY (SELECT '') TO '{}'", signal.display())).await?;
    let session: i32 =
        select(&sandbox, "SELECT pid FROM pg_stat_activity WHERE application_name = 'transformer'").await?;
    ensure!(Command::new("kill").args(["-KILL", &session.to_string()]).status()?.success());
    let is_replica = async || select::<bool>(&sandbox, "SELECT pg_is_in_recovery()").await;
    sandbox.wait_until("it is a replica", SOON, is_replica).await?;
    author.append(document(1..=5, "after")).await?;
    says(&sandbox, "waiting", "read-only transaction").await?;
    let checked = transformer(&sandbox, &[], &["check"]).await?;
    let told = String::from_utf8_lossy(&checked.stdout);
    ensure!(told.contains("it is a replica, which takes no writes: name the primary in DATABASE_URL"), "{told}");
    cluster.execute("SELECT pg_promote()").await?;
    applied(&sandbox, 2).await?;
    assert_eq!(line(&sandbox, 2).await?, "loaded 5 0");
    Ok(())
}

/// A file system of a fixed size; it goes when this is dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: std::path::PathBuf, megabytes: u32) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let disk = Self(at);
        disk.run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]))?;
        Ok(disk)
    }

    fn grow(&self, megabytes: u32) -> Result<()> {
        self.run(Command::new("mount").args(["-o", &format!("remount,size={megabytes}m")]))
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        let output = command.arg(&self.0).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.run(Command::new("umount").arg("--lazy"));
    }
}

#[tokio::test]
async fn a_disk_that_is_really_full_is_waited_for() -> Result<()> {
    let world = world().await;
    let cluster = Cluster::start(&world, &[], &[]).await?;
    let disk = match SmallDisk::mount(cluster.folder().join("disk"), 4) {
        Ok(disk) => disk,
        Err(why) => {
            support::skipped(format!("this machine lets us mount no small disk: {why:#}"));
            return Ok(());
        }
    };
    if let Some((user, group)) = cluster.owner() {
        std::os::unix::fs::chown(&disk.0, Some(user), Some(group))?;
    }
    let sandbox = follow(vec![("DATABASE_URL", cluster.url("postgres").leak())]).await?;
    execute(&sandbox, &format!("CREATE TABLESPACE small LOCATION '{}'", disk.0.display())).await?;
    execute(&sandbox, "ALTER TABLE posts SET TABLESPACE small").await?;
    let mut author = Author::of(&sandbox).await?;
    let long = "a title of some length, so that the disk is full before the object ends".repeat(4);
    author.append(document(1..=5, "fits")).await?;
    applied(&sandbox, 1).await?;
    author.append(document(1..=30_000, &long)).await?;
    says(&sandbox, "waiting", "No space left on device").await?;
    assert_eq!((sandbox.position().await?, sandbox.count().await?), (1, 5));
    disk.grow(200)?;
    applied(&sandbox, 2).await?;
    assert_eq!((line(&sandbox, 2).await?.as_str(), sandbox.count().await?), ("loaded 30000 0", 30_000));
    assert_eq!(sandbox.transformer.restarts(), 0);
    Ok(())
}

#[tokio::test]
async fn a_password_that_rotates_is_waited_for() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    let role: String = select(&sandbox, "SELECT 'rotating_' || current_database()").await?;
    let granted = transformer(&sandbox, &[], &["migrate", "--grant-to", &role]).await?;
    assert!(granted.status.success());
    execute(&sandbox, &format!("ALTER ROLE {role} PASSWORD 'old'")).await?;
    let mut url = url::Url::parse(sandbox.database_url())?;
    url.set_username(&role).and_then(|()| url.set_password(Some("old"))).expect("the URL has a host");
    sandbox.transformer.restart_with(&[("DATABASE_URL", url.as_str())]).await?;
    author.append(document(1..=5, "before")).await?;
    applied(&sandbox, 1).await?;

    let cut = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'");
    execute(&sandbox, &format!("ALTER ROLE {role} PASSWORD 'new'; {cut}")).await?;
    author.append(document(1..=5, "after")).await?;
    says(&sandbox, "waiting", "password authentication failed").await?;
    execute(&sandbox, &format!("ALTER ROLE {role} PASSWORD 'old'")).await?;
    applied(&sandbox, 2).await?;
    assert_eq!(line(&sandbox, 2).await?, "loaded 5 0");
    Ok(())
}

#[tokio::test]
async fn tables_that_are_missing_hold_with_what_to_do() -> Result<()> {
    let sandbox = follow(vec![("DATABASE_SCHEMA", "public")]).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=5, "first")).await?;
    applied(&sandbox, 1).await?;
    sandbox.transformer.restart_with(&[("DATABASE_SCHEMA", "not_migrated")]).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("DATABASE_SCHEMA does not hold the tables of a stream: run `transformer migrate`"), "{why}");
    // It sees for itself that somebody did.
    let migrated = transformer(&sandbox, &[("DATABASE_SCHEMA", "not_migrated")], &["migrate"]).await?;
    assert!(migrated.status.success());
    let is_there = "SELECT count(*) FROM not_migrated.posts";
    sandbox.wait_until("it is loaded there", SOON, async || Ok(select::<i64>(&sandbox, is_there).await? == 5)).await
}

#[tokio::test]
async fn the_tables_of_another_stream_hold_with_what_to_do() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    sandbox.transformer.restart_with(&[("STREAM", "albums")]).await?;
    let why = hold_of(&sandbox, &sandbox.transformer).await?;
    assert!(why.contains("the tables hold the stream `posts`, and STREAM is `albums`"), "{why}");
    assert!(why.contains("correct STREAM or DATABASE_SCHEMA"), "{why}");
    let migrated = transformer(&sandbox, &[("STREAM", "albums")], &["migrate"]).await?;
    assert_eq!(migrated.status.code(), Some(1), "nor does `migrate` give them away");
    Ok(())
}

#[tokio::test]
async fn bytes_that_were_damaged_on_their_way_are_read_again() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=50, "WORD")).await?;
    let tap = Tap::start(sandbox.world().localstack().endpoint(), b'W', 2).await?;
    sandbox.transformer.restart_with(&[("AWS_ENDPOINT_URL_S3", &tap.url())]).await?;
    applied(&sandbox, 1).await?;
    assert_eq!(tap.gets(), 3, "twice wrong and once right");
    assert_eq!(line(&sandbox, 1).await?, "loaded 50 0");
    assert!(sandbox.rows().await?.iter().all(|row| row.title.starts_with("WORD ")));
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_damaged_for_good_cost_their_object() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=50, "WORD")).await?;
    author.append(document(1..=5, "after")).await?;
    let tap = Tap::start(sandbox.world().localstack().endpoint(), b'W', 3).await?;
    sandbox.transformer.restart_with(&[("AWS_ENDPOINT_URL_S3", &tap.url())]).await?;
    applied(&sandbox, 2).await?;
    assert_eq!((line(&sandbox, 1).await?, line(&sandbox, 2).await?), ("quarantined 0 0".into(), "loaded 5 0".into()));
    assert_eq!(sandbox.count().await?, 5);
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_cut_in_the_middle_is_resumed() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    let body = document(1..=20_000, "long");
    author.append(&body).await?;
    let tap = Tap::start(sandbox.world().localstack().endpoint(), b'W', 0).await?;
    tap.cut_after(400_000);
    sandbox.transformer.restart_with(&[("AWS_ENDPOINT_URL_S3", &tap.url())]).await?;
    applied(&sandbox, 1).await?;
    assert_eq!(line(&sandbox, 1).await?, "loaded 20000 0");
    // 1.1 MB: twice cut, and nothing is read from its beginning again.
    assert_eq!((body.len() / 400_000, tap.gets(), tap.ranges()), (2, 3, 2));
    Ok(())
}

#[tokio::test]
async fn a_large_body_comes_in_parts_each_of_which_may_be_cut() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    // Each megabyte is another, so that a part in the wrong place is seen.
    let post = |id| {
        format!("{{\"id\":{id},\"userId\":1,\"title\":\"t\",\"body\":\"{}\"}}", format!("{id:08}").repeat(1 << 17))
    };
    author.append(format!("[{}]", (1..=70).map(post).collect::<Vec<_>>().join(","))).await?;
    let tap = Tap::start(sandbox.world().localstack().endpoint(), b'W', 0).await?;
    tap.cut_after(10_000_000);
    sandbox.transformer.restart_with(&[("AWS_ENDPOINT_URL_S3", &tap.url())]).await?;
    applied(&sandbox, 1).await?;
    assert_eq!(line(&sandbox, 1).await?, "loaded 70 0");
    // 70 MiB and their brackets are five parts of 14, each cut once, and a short one.
    assert_eq!((tap.gets(), tap.ranges()), (11, 10));
    Ok(())
}

#[tokio::test]
async fn a_wire_that_breaks_for_ever_costs_no_object() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=20_000, "long")).await?;
    let proxy = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    proxy.set(Way::CutAfter { sent: u64::MAX, received: 20_000 });
    sandbox.transformer.restart_with(&[("AWS_ENDPOINT_URL_S3", &proxy.url())]).await?;
    says(&sandbox, "waiting", "broke off on its way from S3: could not read raw/").await?;
    assert_eq!(sandbox.position().await?, 0);
    proxy.set(Way::Pass);
    applied(&sandbox, 1).await?;
    assert_eq!((line(&sandbox, 1).await?, sandbox.transformer.restarts()), ("loaded 20000 0".into(), 0));
    Ok(())
}

#[tokio::test]
async fn s3_that_fails_is_waited_for() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    let mut author = Author::of(&sandbox).await?;
    let proxy = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    let sqs = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    let settings = [("AWS_ENDPOINT_URL_S3", &*proxy.url()), ("AWS_ENDPOINT_URL_SQS", &*sqs.url())];
    sandbox.transformer.restart_with(&settings).await?;
    for (status, code) in [
        ("500 Internal Server Error", "InternalError"),
        ("503 Slow Down", "SlowDown"),
        ("400 Bad Request", "ExpiredToken"),
        ("403 Forbidden", "AccessDenied"),
        ("403 Forbidden", "InvalidObjectState: so; S3 keeps the object in an archive tier such as Glacier: restore it"),
    ] {
        let error = code.split(':').next().unwrap_or(code);
        proxy.replace_answers("GET /", u64::MAX, &s3_error(status, error));
        author.append(document(1..=5, code)).await?;
        says(&sandbox, "waiting", code).await?;
        let checked = transformer(&sandbox, &settings, &["check"]).await?;
        let checked = String::from_utf8(checked.stdout)?;
        assert!(checked.lines().any(|line| line.starts_with("archive   PROBLEM") && line.contains(code)), "{checked}");
        // Nothing is received meanwhile: a message in hand would only run out.
        let (asked, received) = (proxy.lost(), sqs.sent());
        sandbox.wait_until("it asks again", SOON, async || Ok(proxy.lost() > asked)).await?;
        assert_eq!(sqs.sent(), received, "{code}");
        proxy.replace_answers("GET /", 0, "");
        applied(&sandbox, author.next() - 1).await?;
        assert_eq!(line(&sandbox, author.next() - 1).await?, "loaded 5 0", "{code}");
    }
    for (round, way) in [Way::Refuse, Way::Reset].into_iter().enumerate() {
        proxy.set(way);
        author.append(document(1..=5, &format!("{round}"))).await?;
        says(&sandbox, "waiting", "").await?;
        proxy.set(Way::Pass);
        applied(&sandbox, author.next() - 1).await?;
    }
    Ok(())
}

#[tokio::test]
async fn kills_in_the_middle_of_a_good_object_change_nothing() -> Result<()> {
    let sandbox = follow(Vec::new()).await?;
    // A row takes five milliseconds, the object two seconds.
    execute(
        &sandbox,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$;
        CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON posts FOR EACH ROW EXECUTE FUNCTION slow();",
    )
    .await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=400, "slow")).await?;
    let at_work =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'transformer'
        AND state = 'active' AND wait_event = 'PgSleep'";
    for _ in 0..6 {
        sandbox.wait_until("it is at work", SOON, async || Ok(select::<i64>(&sandbox, at_work).await? > 0)).await?;
        sandbox.transformer.kill_and_wait().await?;
        assert_eq!(sandbox.position().await?, 0);
    }
    execute(&sandbox, "DROP FUNCTION slow CASCADE").await?;
    applied(&sandbox, 1).await?;
    assert_eq!((line(&sandbox, 1).await?, sandbox.count().await?), ("loaded 400 0".into(), 400));
    Ok(())
}

#[tokio::test]
async fn an_object_that_was_written_wrong_loads_when_it_is_mended_in_time() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    let right = document(1..=5, "right");
    author.append(document(1..=5, "first")).await?;
    let sha256 = Sha256(sha2::Sha256::digest(&right).into());
    author.append_with("[]", |metadata| metadata.sha256 = sha256).await?;
    // Nobody has applied it yet, so its bytes may still be put right, under the same metadata.
    let there: Metadata = metadata(&sandbox, 2).await?;
    put(&sandbox, sandbox.bucket(), 2, &there, right.as_bytes()).await?;
    sandbox.transformer.start();
    applied(&sandbox, 2).await?;
    assert_eq!(line(&sandbox, 2).await?, "loaded 5 0");
    Ok(())
}

#[tokio::test]
async fn a_refused_record_is_found_though_the_stream_is_locked_between_two_tries() -> Result<()> {
    let sandbox = follow(vec![("CATCH_UP_INTERVAL", "1s")]).await?;
    // Long enough for another session to wait for the lock.
    let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.id = 3 THEN PERFORM pg_sleep(0.5); RAISE EXCEPTION 'not this one' USING ERRCODE = '23514'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON posts FOR EACH ROW EXECUTE FUNCTION refuse();";
    execute(&sandbox, trigger).await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=5, "title")).await?;
    let mut other = sandbox.connect().await?;
    // Each try has a connection of its own.
    let backends = "SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity
        WHERE application_name = 'transformer' AND datname = current_database()";
    let turned_away = "SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity
        WHERE application_name = 'transformer' AND datname = current_database() AND query LIKE '%pg_terminate_backend%'";
    let is_applied = async || anyhow::Ok(sandbox.position().await? == 1);
    let mut tries = 0;
    while !is_applied().await? {
        ensure!(tries < 5, "it is tried in vain again and again");
        tries += 1;
        let mut probe = sandbox.connect().await?;
        let at_work = sandbox.wait_until("the transformer is at work, or done", SOON, async || {
            let free = sqlx::query("SELECT FROM stream FOR UPDATE NOWAIT").execute(&mut probe).await;
            Ok(free.is_err() || is_applied().await?)
        });
        at_work.await?;
        let before: Vec<i32> = select(&sandbox, backends).await?;
        let mut transaction = other.begin().await?;
        sqlx::query("SELECT FROM stream FOR UPDATE").execute(&mut *transaction).await?;
        let is_turned_away = sandbox.wait_until("it has tried again in vain, or is done", SOON, async || {
            let idle: Vec<i32> = select(&sandbox, turned_away).await?;
            Ok(idle.iter().any(|pid| !before.contains(pid)) || is_applied().await?)
        });
        is_turned_away.await?;
        transaction.rollback().await?;
    }
    assert_eq!(line(&sandbox, 1).await?, "loaded 5 1");
    Ok(())
}
