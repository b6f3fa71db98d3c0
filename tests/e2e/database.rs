//! Postgres for real: TLS that checks, secrets that rotate, answers that never come.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    time::Instant,
};

use anyhow::{Context, Result};
use sandbox::{Sandbox, Setup};
use support::{
    SOON, applied,
    author::{Author, document},
    certificates::Certificates,
    cluster::Cluster,
    execute,
    iam_gate::IamGate,
    proxy::{Proxy, Way},
    readiness, select, start, transformer, world,
};

async fn nothing_runs() -> Result<Sandbox> {
    start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await
}

/// An address of this machine that is not loopback. Nothing is sent.
fn address_elsewhere() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}

#[tokio::test]
async fn another_host_is_only_talked_to_with_its_certificate_checked() -> Result<()> {
    let Some(host) = address_elsewhere() else {
        support::skipped("this machine has no address but loopback");
        return Ok(());
    };
    let sandbox = nothing_runs().await?;
    let folder = sandbox.logs().join("tls");
    let right = match Certificates::make(&folder.join("right"), &format!("IP:{host}")) {
        Ok(right) => right,
        Err(why) => {
            support::skipped(format!("openssl makes no certificates here: {why:#}"));
            return Ok(());
        }
    };
    let other = Certificates::make(&folder.join("other"), "DNS:db.example.org")?;
    let serve = async |certificates: &Certificates, ssl: &str| {
        // The server itself takes what comes, so that it is the client that refuses.
        let access = b"host all all all trust\n";
        let files = [("server.pem", &*certificates.certificate), ("server.key", &certificates.key), ("hba", access)];
        let settings =
            ["listen_addresses=*", ssl, "hba_file=hba", "ssl_cert_file=../server.pem", "ssl_key_file=../server.key"];
        Cluster::start(sandbox.world(), &settings, &files).await
    };
    let (checked, wrong_name, plain) =
        tokio::try_join!(serve(&right, "ssl=on"), serve(&other, "ssl=on"), serve(&right, "ssl=off"))?;
    let url = |cluster: &Cluster, more: &str| {
        let port = cluster.address().rsplit(':').next().map(str::to_owned).unwrap_or_default();
        format!("postgres://postgres@{host}:{port}/postgres{more}")
    };
    let ours = format!("?sslrootcert={}", right.authority.display());
    let theirs = format!("?sslrootcert={}", other.authority.display());
    for (what, url, allow, code, text) in [
        ("the right authority", url(&checked, &ours), "false", 0, ""),
        ("the right authority, said aloud", url(&checked, &format!("{ours}&sslmode=verify-full")), "false", 0, ""),
        ("another authority", url(&checked, &theirs), "false", 1, "invalid peer certificate: UnknownIssuer"),
        ("no authority named", url(&checked, ""), "false", 1, "invalid peer certificate: UnknownIssuer"),
        ("another name", url(&wrong_name, &theirs), "false", 1, "certificate not valid for name"),
        ("a server without TLS", url(&plain, &ours), "false", 1, "server does not support TLS"),
        ("no TLS asked for", url(&checked, "?sslmode=disable"), "false", 2, "asks for less than sslmode=verify-full"),
        (
            "TLS without a check",
            url(&checked, "?sslmode=require"),
            "false",
            2,
            "asks for less than sslmode=verify-full",
        ),
        ("TLS without a check, allowed", url(&checked, "?sslmode=require"), "true", 0, ""),
        ("no TLS, allowed", url(&plain, "?sslmode=disable"), "true", 0, ""),
    ] {
        let settings = [("DATABASE_URL", url.as_str()), ("ALLOW_PLAINTEXT", allow)];
        let output = transformer(&sandbox, &settings, &["migrate"]).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{what}: {told}");
        assert!(told.contains(text), "{what}: {told}");
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_in_a_file_is_read_again_when_it_has_rotated() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let role = format!("filed_{}", select::<String>(&sandbox, "SELECT current_database()::text").await?);
    let granted = transformer(&sandbox, &[], &["migrate", "--grant-to", &role]).await?;
    assert!(granted.status.success());
    let file = sandbox.logs().join("database-url");
    let rotate = async |password: &str| {
        execute(&sandbox, &format!("ALTER ROLE {role} PASSWORD '{password}'")).await?;
        let cut = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'");
        execute(&sandbox, &cut).await
    };
    let write = |password: &str| {
        let mut url = url::Url::parse(sandbox.database_url())?;
        url.set_username(&role).and_then(|()| url.set_password(Some(password))).expect("the URL has a host");
        // As secrets are put in place: whole, and with a line feed.
        fs::write(file.with_extension("new"), format!("{url}\n"))?;
        anyhow::Ok(fs::rename(file.with_extension("new"), &file)?)
    };
    rotate("first").await?;
    write("first")?;
    let mut settings = sandbox.settings().clone();
    settings.set(&[("LOG_FORMAT", "json"), ("DATABASE_URL_FILE", &file.to_string_lossy())]);
    let mut without_url = sandbox::Settings::new();
    for (name, value) in settings.iter().filter(|(name, _)| *name != "DATABASE_URL") {
        without_url.set(&[(name, value)]);
    }
    let folder = sandbox.logs().join("filed");
    fs::create_dir_all(&folder)?;
    let program = &sandbox.world().programs().transformer;
    let daemon = sandbox::Daemon::new(
        "transformer",
        program,
        without_url,
        &folder,
        sandbox.events().clone(),
        sandbox.world().clone(),
    );
    daemon.start();
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=3, "first")).await?;
    applied(&sandbox, 1).await?;

    rotate("second").await?;
    let waits = sandbox.wait_until("it waits for the new secret", SOON, async || {
        Ok(readiness(&daemon).await?.1.contains("password authentication failed"))
    });
    waits.await?;
    author.append(document(1..=3, "second")).await?;
    write("second")?;
    applied(&sandbox, 2).await?;
    assert_eq!(daemon.restarts(), 0);
    // The old file's session lives on until it is cut, as RDS leaves it.
    Ok(())
}

/// A stream whose transformer reaches Postgres through a proxy.
async fn through_proxy() -> Result<(Sandbox, Proxy)> {
    let sandbox = nothing_runs().await?;
    let proxy = Proxy::start(&sandbox.world().postgres().address()).await?;
    let mut url = url::Url::parse(sandbox.database_url())?;
    url.set_port(Some(proxy.address().port())).expect("the URL has a host");
    sandbox.transformer.restart_with(&[("DATABASE_URL", url.as_str())]).await?;
    Ok((sandbox, proxy))
}

#[tokio::test]
async fn an_answer_that_is_lost_at_any_step_costs_and_repeats_nothing() -> Result<()> {
    let (sandbox, proxy) = through_proxy().await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=3, "first")).await?;
    applied(&sandbox, 1).await?;
    for step in [
        "SET statement_timeout",
        "SET search_path",
        "FROM stream LEFT JOIN objects",
        "BEGIN",
        "FOR UPDATE NOWAIT",
        "INSERT INTO \"posts\"",
        "INSERT INTO quarantined_records",
        "INSERT INTO objects",
        "UPDATE stream",
        "COMMIT",
    ] {
        let lost = proxy.lost();
        // On a new connection every statement is sent with its text.
        proxy.lose_answers(step, 1);
        proxy.cut();
        let number = author.append(format!("[7, {}", &document(1..=3, step)[1..])).await?;
        applied(&sandbox, number).await?;
        sandbox.wait_until("it is ready", SOON, async || Ok(readiness(&sandbox.transformer).await?.0 == 200)).await?;
        assert_eq!(proxy.lost(), lost + 1, "{step}");
        let line: String = {
            let mut connection = sandbox.connect().await?;
            let statement = "SELECT concat_ws(' ', outcome, records, inserted, updated, quarantined) FROM objects
                WHERE sequence = $1";
            sqlx::query_scalar(statement).bind(i64::try_from(number)?).fetch_one(&mut connection).await?
        };
        assert_eq!(line, "loaded 4 0 3 1", "{step}");
    }
    assert_eq!(sandbox.transformer.restarts(), 0);
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_cut_off_again_and_again_is_found_again() -> Result<()> {
    let (sandbox, proxy) = through_proxy().await?;
    let mut author = Author::of(&sandbox).await?;
    let mut random = fastrand::Rng::with_seed(13);
    for round in 0..15 {
        let number = author.append(document(1..=500, &format!("round {round}"))).await?;
        proxy.set(Way::CutAfter { sent: random.u64(100..60_000), received: u64::MAX });
        proxy.cut();
        let cuts = "it has tried, or is through";
        let before = proxy.sent();
        sandbox
            .wait_until(cuts, SOON, async || Ok(proxy.sent() > before || sandbox.position().await? == number))
            .await?;
        proxy.set(Way::Pass);
        proxy.cut();
        applied(&sandbox, number).await?;
        sandbox.wait_until("it is ready", SOON, async || Ok(readiness(&sandbox.transformer).await?.0 == 200)).await?;
    }
    let dense: bool =
        select(&sandbox, "SELECT count(*) = 15 AND bool_and(updated + inserted = 500) FROM objects").await?;
    assert!(dense);
    assert_eq!(sandbox.transformer.restarts(), 0);
    Ok(())
}

#[tokio::test]
async fn a_database_that_never_answers_does_not_keep_the_daemon_from_ending() -> Result<()> {
    let (sandbox, proxy) = through_proxy().await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=3, "first")).await?;
    applied(&sandbox, 1).await?;
    proxy.set(Way::BlackHole);
    author.append(document(1..=3, "second")).await?;
    let alive = reqwest::get(format!("{}/healthz", sandbox.transformer.admin_url())).await?;
    assert_eq!(alive.status().as_u16(), 200);
    let since = Instant::now();
    let status = sandbox.transformer.terminate().await?.context("it was running")?;
    eprintln!("with a database that never answers, SIGTERM took {:.1} s", since.elapsed().as_secs_f32());
    assert_eq!(status.code(), Some(0));
    // Nothing of it stays behind.
    proxy.set(Way::Pass);
    proxy.cut();
    sandbox.transformer.start();
    applied(&sandbox, 2).await
}

#[tokio::test]
async fn a_database_that_stops_answering_is_given_up_and_found_again() -> Result<()> {
    let (sandbox, proxy) = through_proxy().await?;
    let mut author = Author::of(&sandbox).await?;
    author.append(document(1..=3, "first")).await?;
    applied(&sandbox, 1).await?;
    // No bound of the server's can end this: it hears nothing, and is not heard.
    proxy.set(Way::BlackHole);
    author.append(document(1..=3, "second")).await?;
    let is_given_up = async || Ok(readiness(&sandbox.transformer).await?.1.contains("no answer for 75 seconds"));
    sandbox.wait_until("the deadline has passed", 3 * SOON, is_given_up).await?;
    proxy.set(Way::Pass);
    applied(&sandbox, 2).await?;
    assert_eq!(sandbox.transformer.restarts(), 0);
    Ok(())
}

#[tokio::test]
async fn each_connection_comes_with_an_iam_token_of_its_own() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let cluster = Cluster::start(sandbox.world(), &[], &[]).await?;
    let gate = IamGate::start(&cluster.address(), Ipv4Addr::LOCALHOST).await?;
    let database_url = format!("postgres://postgres@127.0.0.1:{}/postgres", gate.port());
    let settings = [("DATABASE_URL", &*database_url), ("DATABASE_AUTH", "iam")];
    // The first token is refused, as one that has expired.
    let refused = transformer(&sandbox, &settings, &["migrate"]).await?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("PAM authentication failed"));
    let migrated = transformer(&sandbox, &settings, &["migrate"]).await?;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    sandbox.transformer.restart_with(&settings).await?;
    sandbox.wait_until("it is ready", SOON, async || Ok(readiness(&sandbox.transformer).await?.0 == 200)).await?;
    let tokens = gate.tokens();
    assert!(tokens.len() >= 3, "{tokens:?}");
    for token in &tokens {
        let token = url::Url::parse(&format!("https://{token}"))?;
        let parameters: HashMap<_, _> = token.query_pairs().collect();
        assert_eq!(token.port(), Some(gate.port()));
        assert_eq!((&*parameters["Action"], &*parameters["DBUser"]), ("connect", "postgres"));
        assert_eq!((&*parameters["X-Amz-Expires"], parameters["X-Amz-Signature"].len()), ("900", 64));
    }
    let log = fs::read_to_string(sandbox.transformer.log())?;
    assert!(!log.contains("X-Amz-Signature"), "no token in the log");
    Ok(())
}

#[tokio::test]
async fn a_database_is_reached_at_an_ipv6_literal() -> Result<()> {
    if let Err(why) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        support::skipped(format!("this machine has no ::1: {why}"));
        return Ok(());
    }
    let sandbox = nothing_runs().await?;
    let folder = sandbox.logs().join("tls");
    let certificates = Certificates::make(&folder, "IP:::1")?;
    let files = [("server.pem", &*certificates.certificate), ("server.key", &certificates.key)];
    let settings =
        ["listen_addresses=127.0.0.1,::1", "ssl=on", "ssl_cert_file=../server.pem", "ssl_key_file=../server.key"];
    let cluster = Cluster::start(sandbox.world(), &settings, &files).await?;
    let port = cluster.address().replace("127.0.0.1:", "");
    for more in
        ["", "?sslmode=disable", &format!("?sslmode=verify-full&sslrootcert={}", certificates.authority.display())]
    {
        let url = format!("postgres://postgres@[::1]:{port}/postgres{more}");
        let output = transformer(&sandbox, &[("DATABASE_URL", &url)], &["migrate"]).await?;
        assert!(output.status.success(), "{more}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let gate = IamGate::start(&cluster.address(), Ipv6Addr::LOCALHOST).await?;
    let url = format!("postgres://postgres@[::1]:{}/postgres", gate.port());
    for code in [1, 0] {
        let settings = [("DATABASE_URL", &*url), ("DATABASE_AUTH", "iam")];
        let output = transformer(&sandbox, &settings, &["migrate"]).await?;
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let is_for_it = |token: &String| token.starts_with(&format!("[::1]:{}/?Action=connect", gate.port()));
    assert!(gate.tokens().iter().all(is_for_it), "{:?}", gate.tokens());
    Ok(())
}

#[tokio::test]
async fn an_idle_connection_that_is_closed_is_opened_again_without_a_word() -> Result<()> {
    let (sandbox, proxy) = through_proxy().await?;
    let mut author = Author::of(&sandbox).await?;
    let ours = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'transformer'";
    let sessions = format!("SELECT coalesce(array_agg(pid), '{{}}') {ours}");
    let sessions: &'static str = sessions.leak();
    let closed_by_postgres = format!("SELECT pg_terminate_backend(pid) {ours}");
    let idles =
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET idle_session_timeout = 300', current_database()); END $$";
    for (round, (way, sessions_seen)) in [("57P01", 1), ("a plain end", 1), ("57P05", 3)].into_iter().enumerate() {
        author.append(document(1..=3, way)).await?;
        applied(&sandbox, round as u64 + 1).await?;
        sandbox.wait_until("it is ready", SOON, async || Ok(readiness(&sandbox.transformer).await?.0 == 200)).await?;
        let before: Vec<i32> = select(&sandbox, sessions).await?;
        match way {
            "57P01" => execute(&sandbox, &closed_by_postgres).await?,
            "a plain end" => proxy.cut(),
            // From the next session on, every look finds its connection closed.
            _ => execute(&sandbox, &format!("{idles}; {closed_by_postgres}")).await?,
        }
        let mut seen = HashSet::new();
        let is_another = sandbox.wait_until("there are other sessions", SOON, async || {
            assert_eq!(readiness(&sandbox.transformer).await?, (200, "ready".to_owned()), "{way}");
            seen.extend(select::<Vec<i32>>(&sandbox, sessions).await?.into_iter().filter(|pid| !before.contains(pid)));
            Ok(seen.len() >= sessions_seen)
        });
        is_another.await?;
    }
    author.append(document(1..=3, "after")).await?;
    applied(&sandbox, 4).await?;
    let log = fs::read_to_string(sandbox.transformer.log())?;
    assert!(!log.contains("\"WARN\"") && !log.contains("ready again"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_batch_that_somebodys_trigger_makes_too_slow_is_written_in_parts() -> Result<()> {
    // A timeout and a person's cancel differ in their words alone, which are in the server's language; the time tells them apart.
    let german = Cluster::start_in_german(&world().await).await;
    let settings = match &german {
        Ok(cluster) => vec![("DATABASE_URL", &*cluster.url("postgres").leak())],
        Err(why) => {
            support::skipped(format!("messages that are not English, since this machine has none: {why:#}"));
            Vec::new()
        }
    };
    let sandbox = start(Setup { posts: 0, importer: false, settings, ..Setup::default() }).await?;
    // The sixty seconds that a statement may take are waited for, once: of many rows it takes longer, of few no time.
    let trigger =
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep(90) FROM new HAVING count(*) > 32;
            RETURN NULL;
        END $$;
        CREATE TRIGGER slow AFTER INSERT ON posts REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION slow();";
    execute(&sandbox, trigger).await?;
    Author::of(&sandbox).await?.append(document(1..=64, "slow")).await?;
    sandbox.wait_until("it is applied", 3 * SOON, async || Ok(sandbox.position().await? == 1)).await?;
    let line: String = select(&sandbox, "SELECT concat_ws(' ', outcome, records, quarantined) FROM objects").await?;
    assert_eq!(line, "loaded 64 0");
    Ok(())
}

#[tokio::test]
async fn the_server_bounds_every_session_too() -> Result<()> {
    let sandbox = start(Setup { posts: 0, importer: false, ..Setup::default() }).await?;
    // What a trigger sees is what the session has set.
    execute(
        &sandbox,
        "CREATE TABLE seen (name text, value text);
        CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.seen SELECT name, current_setting(name) FROM unnest(ARRAY['statement_timeout', 'lock_timeout',
                'idle_in_transaction_session_timeout', 'tcp_keepalives_idle', 'enable_hashjoin', 'enable_mergejoin',
                'search_path', 'application_name']) AS name;
            RETURN NULL;
        END $$;
        CREATE TRIGGER see AFTER INSERT ON objects FOR EACH STATEMENT EXECUTE FUNCTION see();",
    )
    .await?;
    Author::of(&sandbox).await?.append(document(1..=3, "first")).await?;
    applied(&sandbox, 1).await?;
    let seen: Vec<String> = select(&sandbox, "SELECT array_agg(name || '=' || value ORDER BY name) FROM seen").await?;
    assert_eq!(
        seen,
        [
            "application_name=transformer",
            "enable_hashjoin=off",
            "enable_mergejoin=off",
            "idle_in_transaction_session_timeout=2min",
            "lock_timeout=10s",
            "search_path=public",
            "statement_timeout=1min",
            "tcp_keepalives_idle=30",
        ]
    );
    Ok(())
}
