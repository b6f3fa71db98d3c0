//! AWS as people have it: credentials, proxies, authorities and endpoints from wherever the SDK takes them, and servers that only look like S3.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use anyhow::{Context, Result, ensure};
use sandbox::{Daemon, Sandbox};
use serde_json::json;
use support::{
    SOON, applied,
    certificates::Certificates,
    faulty_api::{Answer, FaultyApi, Request},
    importer,
    proxy::{Proxy, s3_error},
    readiness, retitle, skipped, start_nothing, transformer,
    tunnel::Tunnel,
};

/// LocalStack takes such keys for those of an account.
const ONE: &str = "111122223333";
const OTHER: &str = "444455556666";

/// No keys in the environment, and no machine that has a role.
const NO_KEYS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", ""), ("AWS_EC2_METADATA_DISABLED", "true")];

/// What `importer check` says of AWS.
async fn aws_line(sandbox: &Sandbox, settings: &[(&'static str, &str)]) -> Result<String> {
    let output = importer(sandbox, settings, &["check"]).await?;
    let (told, log) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    let line = told.lines().find(|line| line.starts_with("aws "));
    Ok(line.with_context(|| format!("{told}{log}"))?.to_owned())
}

fn folder(sandbox: &Sandbox) -> Result<PathBuf> {
    let folder = sandbox.logs().join("aws");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A file of credentials.
fn keys(key: &str) -> String {
    format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")
}

#[tokio::test]
async fn credentials_come_from_a_program_a_web_identity_or_single_sign_on() -> Result<()> {
    let sandbox = start_nothing().await?;
    let folder = folder(&sandbox)?;
    let (config, program) = (folder.join("config"), folder.join("keys"));
    let shown = config.to_string_lossy();
    let with_config = [&NO_KEYS[..], &[("AWS_CONFIG_FILE", &*shown)]].concat();

    fs::write(&config, format!("[default]\ncredential_process = {}\n", program.display()))?;
    let keys = json!({ "Version": 1, "AccessKeyId": ONE, "SecretAccessKey": "secret" });
    fs::write(&program, format!("#!/bin/sh\necho '{keys}'\n"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700))?;
    let said = aws_line(&sandbox, &with_config).await?;
    assert!(said.contains(&format!("ok       arn:aws:iam::{ONE}:root; region us-east-1; ")), "{said}");
    fs::write(&program, "#!/bin/sh\necho 'no ticket' >&2\nexit 1\n")?;
    let said = aws_line(&sandbox, &with_config).await?;
    assert!(said.contains("PROBLEM  cannot get AWS credentials: ") && said.contains("no ticket"), "{said}");
    let broken = [("AWS_ACCESS_KEY_ID", "test\n"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let said = aws_line(&sandbox, &broken).await?;
    assert!(said.contains("holds a character that none has: was it written with a line break?"), "{said}");

    let token = folder.join("token");
    fs::write(&token, "header.eyJzdWIiOiJtZSJ9.signature")?;
    let (token, role) = (token.to_string_lossy(), format!("arn:aws:iam::{OTHER}:role/reader"));
    let identity =
        [("AWS_WEB_IDENTITY_TOKEN_FILE", &*token), ("AWS_ROLE_ARN", &*role), ("AWS_ROLE_SESSION_NAME", "me")];
    let said = aws_line(&sandbox, &[&NO_KEYS[..], &identity].concat()).await?;
    assert!(said.contains(&format!("ok       arn:aws:sts::{OTHER}:assumed-role/reader/me")), "{said}");

    let sso = format!("sso_session = portal\nsso_account_id = {OTHER}\nsso_role_name = reader\n");
    let of_session = "sso_region = us-east-1\nsso_start_url = https://sso.example.org/start\n";
    fs::write(&config, format!("[default]\n{sso}\n[sso-session portal]\n{of_session}"))?;
    let cache = folder.join(".aws/sso/cache");
    fs::create_dir_all(&cache)?;
    // As `aws sso login` leaves it, in a file that has its name from the SHA-1 of the session's.
    let login = json!({ "accessToken": "open sesame", "expiresAt": "2099-01-01T00:00:00Z", "region": "us-east-1" });
    fs::write(cache.join("23f3fd77a464cbe250150f60d785f08978d07e40.json"), login.to_string())?;
    let keys = json!({ "accessKeyId": ONE, "secretAccessKey": "secret", "sessionToken": "token", "expiration": 4_070_908_800_000_u64 });
    let portal = FaultyApi::saying([Answer::ok(json!({ "roleCredentials": keys }).to_string())]).await?;
    let (home, url) = (folder.to_string_lossy(), portal.url().replace("/posts", ""));
    let said =
        aws_line(&sandbox, &[&with_config[..], &[("HOME", &*home), ("AWS_ENDPOINT_URL_SSO", &url)]].concat()).await?;
    assert!(said.contains(&format!("ok       arn:aws:iam::{ONE}:root")), "{said}");
    assert_eq!(portal.seen()[0].header("x-amz-sso_bearer_token"), Some("open sesame"));
    Ok(())
}

/// Waits until a daemon says at `/readyz` that it does not work, and why.
async fn says(sandbox: &Sandbox, daemon: &Daemon, why: &str) -> Result<()> {
    let is_said = sandbox.wait_until(format!("it says {why:?}"), SOON, async || {
        let (status, text) = readiness(daemon).await?;
        ensure!(status == 503 && text.contains(why), "{status} {text}");
        Ok(true)
    });
    is_said.await
}

#[tokio::test]
async fn daemons_go_on_with_credentials_that_appear_are_mended_or_rotated() -> Result<()> {
    let sandbox = start_nothing().await?;
    let folder = folder(&sandbox)?;
    let proxy = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    let (config, file) = (folder.join("config"), folder.join("credentials"));
    let (config_shown, file_shown, url) = (config.to_string_lossy(), file.to_string_lossy(), proxy.url());
    let settings = [
        &NO_KEYS[..],
        &[
            ("AWS_CONFIG_FILE", &*config_shown),
            ("AWS_SHARED_CREDENTIALS_FILE", &*file_shown),
            ("AWS_ENDPOINT_URL", ""),
            ("AWS_REGION", ""),
        ],
    ]
    .concat();
    let mut objects = 0;
    for daemon in [&sandbox.importer, &sandbox.transformer] {
        let is_importer = daemon.name() == "importer";
        let goes_on = async |objects: u64| {
            if is_importer {
                let is_there = async || Ok(sandbox.end().await? == objects);
                sandbox.wait_until(format!("object {objects} is there"), SOON, is_there).await
            } else {
                applied(&sandbox, objects).await
            }
        };
        // A profile in the middle of being written says neither where S3 is nor who one is.
        fs::write(&config, "[default\n")?;
        let _ = fs::remove_file(&file);
        daemon.restart_with(&settings).await?;
        says(&sandbox, daemon, "Profile definition must end with ']'").await?;
        fs::write(&config, format!("[default]\nregion = us-east-1\nendpoint_url = {url}\n"))?;
        says(&sandbox, daemon, "there are no AWS credentials; set AWS_ACCESS_KEY_ID").await?;
        fs::write(&file, keys(ONE))?;
        objects = objects.max(1);
        goes_on(objects).await?;
        // The keys are taken away, and others given.
        let of_one = format!("Credential={ONE}/");
        proxy.replace_answers(&of_one, u64::MAX, &s3_error("403 Forbidden", "InvalidAccessKeyId"));
        if is_importer {
            retitle(&sandbox, 1, "changed");
            objects += 1;
        }
        says(&sandbox, daemon, "InvalidAccessKeyId: so; AWS does not know this access key: renew the credentials")
            .await?;
        fs::write(&file, keys(OTHER))?;
        let is_ready = async || Ok(readiness(daemon).await?.0 == 200);
        sandbox.wait_until("it is ready again", SOON, is_ready).await?;
        goes_on(objects).await?;
        assert_eq!(daemon.restarts(), 0);
        proxy.replace_answers(&of_one, 0, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_leads_to_servers_whose_authority_is_ones_own() -> Result<()> {
    let sandbox = start_nothing().await?;
    let folder = folder(&sandbox)?;
    let certificates = match Certificates::make(&folder, "DNS:aws.invalid") {
        Ok(certificates) => certificates,
        Err(why) => {
            skipped(format!("openssl makes no certificates here: {why:#}"));
            return Ok(());
        }
    };
    let tunnel = Tunnel::start(sandbox.world().localstack().endpoint(), &certificates).await?;
    let (proxy, authority) = (tunnel.url(), certificates.authority.to_string_lossy());
    // No name server knows it: the proxy has to.
    let url = "https://aws.invalid";
    let set = [("AWS_ENDPOINT_URL", url), ("HTTPS_PROXY", &*proxy)];
    let said = aws_line(&sandbox, &[&set[..], &[("AWS_CA_BUNDLE", &*authority)]].concat()).await?;
    assert!(
        said.contains("ok       arn:aws:iam::")
            && said.contains("S3 at https://aws.invalid, SQS at https://aws.invalid"),
        "{said}"
    );
    assert!(tunnel.asked().iter().all(|host| host == "aws.invalid:443") && !tunnel.asked().is_empty());

    // The same in a profile, by service; both daemons.
    let config = folder.join("config");
    let services = format!("[services here]\ns3 =\n  endpoint_url = {url}\nsqs =\n  endpoint_url = {url}\n");
    fs::write(&config, format!("[default]\nca_bundle = {authority}\nservices = here\n{services}"))?;
    let shown = config.to_string_lossy();
    let by_profile = [("AWS_ENDPOINT_URL", ""), ("HTTPS_PROXY", &*proxy), ("AWS_CONFIG_FILE", &*shown)];
    let once = importer(&sandbox, &by_profile, &["once"]).await?;
    assert_eq!(once.status.code(), Some(0), "{}", String::from_utf8_lossy(&once.stderr));
    let said = transformer(&sandbox, &by_profile, &["check"]).await?;
    let said = String::from_utf8(said.stdout)?;
    assert!(
        said.contains("it ends at sequence 1, 1 above the position") && said.contains("S3 at https://aws.invalid"),
        "{said}"
    );

    for (setting, why) in [
        (("AWS_CA_BUNDLE", ""), "AWS_CA_BUNDLE for an authority of your own"),
        (("HTTPS_PROXY", "http://127.0.0.1:9"), "see to AWS_ENDPOINT_URL, AWS_REGION, HTTPS_PROXY and network"),
        (("AWS_ENDPOINT_URL_SQS", "127.0.0.1:4566"), "the endpoint of sqs (AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_SQS, or"),
        (("AWS_CA_BUNDLE", "/no/such/file"), "cannot read AWS_CA_BUNDLE (`ca_bundle` in a profile) /no/such/file"),
        (("AWS_CA_BUNDLE", "/dev/null"), "/dev/null holds no certificates in PEM"),
        // Then it goes there by itself, and finds nothing.
        (("NO_PROXY", "aws.invalid"), "dns error"),
    ] {
        let output = importer(&sandbox, &[&set[..], &[setting]].concat(), &["once"]).await?;
        let log = String::from_utf8(output.stderr)?;
        assert!(output.status.code() == Some(1) && log.contains(why), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_appended_where_objects_may_be_overwritten() -> Result<()> {
    let sandbox = start_nothing().await?;
    let nobody_there = |method: &str| match method {
        "HEAD" => Answer::status(404),
        _ => Answer::ok("<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"),
    };
    let not_implemented = "<Error><Code>NotImplemented</Code><Message>A header you provided</Message></Error>";
    for (status, why) in [
        (200, "since its server ignores `If-None-Match: *`, and overwrites"),
        (501, "since its server does not know `If-None-Match: *` (NotImplemented: A header you provided"),
        (405, "since its server does not know `If-None-Match: *` (the answer has status 405)"),
    ] {
        let s3 = FaultyApi::start(move |request| match &*request.method {
            "PUT" => Answer::ok(if status == 501 { not_implemented } else { "" }).with_status(status),
            method => nobody_there(method),
        })
        .await?;
        let url = s3.url().replace("/posts", "");
        for command in ["once", "check"] {
            let output = importer(&sandbox, &[("AWS_ENDPOINT_URL_S3", &*url)], &[command]).await?;
            let said = format!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
            assert!(!output.status.success() && said.contains(why), "{said}");
        }
        let has_checksum = |request: &Request| request.header("x-amz-checksum-sha256").is_some();
        let written: Vec<_> = s3.seen().into_iter().filter(|request| request.method == "PUT").collect();
        let is_proof =
            |request: &Request| request.path.ends_with("/raw/posts/written-once.txt") && has_checksum(request);
        assert!(!written.is_empty() && written.iter().all(is_proof));
    }
    // A server that refuses is asked once a process.
    let s3 = Proxy::start(sandbox.world().localstack().endpoint()).await?;
    s3.replace_answers("/written-once.txt", 1, &s3_error("503 Slow Down", "SlowDown"));
    sandbox.importer.restart_with(&[("AWS_ENDPOINT_URL_S3", &s3.url())]).await?;
    let is_there = async |end: u64| {
        sandbox.wait_until(format!("object {end} is there"), SOON, async || Ok(sandbox.end().await? == end)).await
    };
    is_there(1).await?;
    assert_eq!(s3.lost(), 1);
    s3.replace_answers("/written-once.txt", u64::MAX, &s3_error("503 Slow Down", "SlowDown"));
    for (round, end) in (2..5).enumerate() {
        retitle(&sandbox, 1, &format!("round {round}"));
        is_there(end).await?;
    }
    assert_eq!(s3.lost(), 1, "it is asked no more");
    Ok(())
}

#[tokio::test]
async fn folders_that_a_person_made_are_no_objects() -> Result<()> {
    let sandbox = start_nothing().await?;
    let code = async |arguments: &[&str]| anyhow::Ok(importer(&sandbox, &[], arguments).await?.status.code());
    let make = async |key: &str| {
        let key = format!("raw/{}/{key}", sandbox.stream());
        sandbox.s3().put_object().bucket(sandbox.bucket()).key(key).if_none_match("*").send().await
    };
    make("900/000/").await?;
    assert_eq!(code(&["once"]).await?, Some(0), "the archive is empty");
    for key in ["100/", "000/000/001/", "000/000/000/002/", "000/900/000/x.json", "000/000/000/000.json", "notes.txt"] {
        make(key).await?;
    }
    retitle(&sandbox, 1, "changed");
    assert_eq!((code(&["once"]).await?, sandbox.end().await?), (Some(0), 2));
    sandbox.transformer.start();
    applied(&sandbox, 2).await?;
    assert_eq!(sandbox.archive().oldest().await?.map(shared::object::Sequence::get), Some(1));
    Ok(())
}
