//! Promise 9: a row leads to its object, and the observation's id stands everywhere.

use std::{fs, process::Output};

use anyhow::Result;
use sandbox::Setup;
use support::{
    SOON,
    faulty_api::{Answer, FaultyApi, Request},
    iam_gate::IamGate,
    importer, metadata, retitle, select, start, transformer,
};

#[tokio::test]
async fn one_observation_is_found_in_logs_metadata_and_ledger() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    retitle(&sandbox, 7, "another title");
    sandbox.settled(SOON).await?;

    let metadata = metadata(&sandbox, 2).await?;
    let found: String = select(
        &sandbox,
        "SELECT concat_ws(' ', key, encode(sha256, 'hex'), observation) FROM posts JOIN objects USING (sequence) WHERE id = 7",
    )
    .await?;
    let key = "raw/posts/000/000/000/002.json";
    assert_eq!(found, format!("{key} {} {}", metadata.sha256, metadata.observation));
    for (daemon, messages) in
        [(&sandbox.importer, ["appended", "announced"]), (&sandbox.transformer, ["received", "applied"])]
    {
        for message in messages {
            // A message may come after the object that it points to was found and applied.
            let says = format!("{} says `{message}` of it", daemon.name());
            let is_said = async || {
                let log = tokio::fs::read_to_string(daemon.log()).await?;
                let is_it = |line: &str| line.contains(message) && line.contains(&metadata.observation.to_string());
                Ok(log.lines().any(is_it))
            };
            sandbox.wait_until(says, SOON, is_said).await?;
        }
    }
    Ok(())
}

/// Both daemons and every command that talks to anybody, with and without success, each with a full trace.
#[tokio::test]
async fn no_trace_and_no_metadata_holds_a_secret() -> Result<()> {
    let api = FaultyApi::start(pages).await?;
    let header_file = tempfile::NamedTempFile::new()?;
    fs::write(header_file.path(), "X-Api-Key: secret-of-header")?;
    let source_url = format!("{}?api_key=secret-of-query", api.url().replace("//", "//user:secret-of-user@"));
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await?;
    let database = url::Url::parse(sandbox.database_url())?.socket_addrs(|| None)?[0];
    let gate = IamGate::start(&database.to_string(), database.ip()).await?;
    let iam_url = format!("postgres://postgres@127.0.0.1:{}/postgres", gate.port());
    let settings = [
        ("RUST_LOG", "trace"),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-aws-key"),
        ("AWS_SESSION_TOKEN", "secret-of-aws-session"),
        ("SOURCE_HEADER_FILE", &*header_file.path().to_string_lossy()),
        ("SOURCE_URL", &source_url),
    ];
    let with = |name, value| [&settings[..], &[(name, value)]].concat();
    let mut told = Vec::new();

    for daemon in [&sandbox.importer, &sandbox.transformer] {
        daemon.restart_with(&settings).await?;
    }
    let is_loaded = async || Ok(sandbox.position().await? >= 2 && sandbox.end().await? == sandbox.position().await?);
    sandbox.wait_until("both pages are loaded", SOON, is_loaded).await?;
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        let log = fs::read_to_string(daemon.log())?;
        assert!(log.lines().count() > 100, "the log is a full one");
        told.push((daemon.name().to_owned(), log));
        told.push((
            format!("{} metrics", daemon.name()),
            reqwest::get(format!("{}/metrics", daemon.admin_url())).await?.text().await?,
        ));
        daemon.terminate().await?;
    }
    told.push(("metadata".to_owned(), format!("{:?}", [metadata(&sandbox, 1).await?, metadata(&sandbox, 2).await?])));

    // The address of the API as it is, and as nobody listens there.
    let mut nobody = url::Url::parse(&source_url)?;
    nobody.set_port(Some(1)).expect("http has ports");
    for settings in [&settings[..], &with("SOURCE_URL", nobody.as_str())] {
        for arguments in [&["once", "--again"][..], &["list"], &["check"]] {
            let output = importer(&sandbox, settings, arguments).await?;
            told.push((format!("importer {arguments:?}"), text(&output)));
        }
    }
    // The database as it is, with another password, and behind IAM, which the database does not know of.
    let wrong = sandbox.database_url().replace("@127", "-secret-of-wrong-password@127");
    assert_ne!(wrong, sandbox.database_url());
    for settings in [
        &settings[..],
        &with("DATABASE_URL", &wrong),
        &[&with("DATABASE_URL", &iam_url)[..], &[("DATABASE_AUTH", "iam")]].concat(),
    ] {
        for arguments in [&["once"][..], &["audit"], &["quarantine", "list"], &["migrate"], &["check"]] {
            let output = transformer(&sandbox, settings, arguments).await?;
            told.push((format!("transformer {arguments:?}"), text(&output)));
        }
    }

    // Each secret was used.
    let password = url::Url::parse(sandbox.database_url())?.password().expect("the database has one").to_owned();
    let (seen, tokens) = (api.seen(), gate.tokens());
    assert!(seen.iter().all(|request| request.header("x-api-key") == Some("secret-of-header")), "{seen:?}");
    assert!(seen.iter().any(|request| request.query.contains("secret-of-link")), "{seen:?}");
    let basic = seen[0].header("authorization").expect("user and password are sent").replace("Basic ", "");
    let signatures: Vec<_> = tokens.iter().filter_map(|token| token.split("X-Amz-Signature=").nth(1)).collect();
    assert!(!signatures.is_empty(), "{tokens:?}");
    for (who, text) in &told {
        for secret in [&*password, &*basic, "secret-of"].into_iter().chain(signatures.iter().copied()) {
            assert_eq!(text.lines().find(|line| line.contains(secret)), None, "{who} keeps secrets");
        }
    }
    Ok(())
}

/// A page that leads to another, as APIs do whose links carry what they are asked with.
fn pages(request: &Request) -> Answer {
    let post = r#"[{"userId":1,"id":1,"title":"t","body":"b"}]"#;
    if request.query.contains("page=2") {
        return Answer::ok(post.replace("\"id\":1", "\"id\":2"));
    }
    Answer::ok(post).with("Link", "</posts?page=2&access_token=secret-of-link>; rel=\"next\"")
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}
