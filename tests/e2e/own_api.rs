//! `sandbox --source`: anybody's API in Postgres, whatever its shape, or a refusal that says what to change.

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use support::{
    SOON,
    faulty_api::{Answer, FaultyApi, Request},
    programs::path_of,
    world,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

/// The sandbox as a person starts it in this folder.
fn sandbox(folder: &TempDir, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Command> {
    let mut command = Command::new(path_of("sandbox")?);
    command.args(["--env-file", "env"]).args(arguments).envs(environment.iter().copied());
    command.current_dir(folder).kill_on_drop(true);
    Ok(command)
}

/// What it says when it loads the API once: exit code, stdout, stderr.
async fn load(arguments: &[&str], environment: &[(&str, &str)], folder: &TempDir) -> Result<(Option<i32>, String)> {
    // The shared world has installed what it needs.
    world().await;
    let arguments = [&["--once"], arguments].concat();
    let output = sandbox(folder, &arguments, environment)?.output().await?;
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Ok((output.status.code(), told))
}

/// What stands in the query for this name.
fn parameter<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[tokio::test]
async fn an_array_behind_links_is_loaded_page_by_page() -> Result<()> {
    let page = |request: &Request| {
        let page: u64 = parameter(request, "page").and_then(|page| page.parse().ok()).unwrap_or(1);
        let records: Value = (1..=10).map(|id| json!({"id": 10 * (page - 1) + id, "name": "x"})).collect();
        let answer = Answer::ok(records.to_string());
        if page < 3 { answer.with("Link", format!("<?page={}>; rel=\"next\"", page + 1)) } else { answer }
    };
    let api = FaultyApi::start(page).await?;
    let (code, told) = load(&["--source", &api.url()], &[], &tempfile::tempdir()?).await?;
    assert_eq!(code, Some(0), "{told}");
    for part in [
        &format!("your API     {}", api.url()),
        "asked every 1m",
        "applied object 3: 10 records, 10 new",
        "TABLE=posts\n  TABLE_COLUMNS='id bigint, name text, extra jsonb *'\n",
        "`/id` is the key: it is different in every record",
        "  1                         {\"name\": \"x\"}\n  2 ",
        "and 25 more",
        "30 rows; position 3 is the end of the archive",
    ] {
        assert!(told.contains(part), "{part}:\n{told}");
    }
    assert_eq!(api.seen().len(), 6, "a look at all pages, and one poll");
    Ok(())
}

#[tokio::test]
async fn an_object_behind_a_cursor_and_a_token_is_loaded_to_its_end() -> Result<()> {
    let page = |request: &Request| {
        if request.header("authorization") != Some("Bearer t0ken") {
            return Answer::status(401);
        }
        let after: u64 = parameter(request, "after").and_then(|after| after.parse().ok()).unwrap_or(0);
        let data: Value = (after..after + 5).map(|id| json!({"uuid": format!("u-{id}"), "rank": 1})).collect();
        let next = (after < 10).then(|| (after + 5).to_string());
        Answer::ok(json!({"data": data, "meta": {"next": next}}).to_string())
    };
    let api = FaultyApi::start(page).await?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("token"), "t0ken\n")?;
    let source = ["--source", &api.url(), "--records-at", "/data"];
    let token = ("SOURCE_HEADER_FILE", "token");

    let cursor = [("NEXT_PAGE", "after=/meta/next"), token];
    let (code, told) = load(&source, &cursor, &folder).await?;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("TABLE_COLUMNS='uuid text, rank bigint, extra jsonb *'"), "{told}");
    assert!(told.contains("15 rows; position 3 is the end of the archive"), "{told}");
    assert!(!told.contains("t0ken"), "{told}");

    let (code, told) = load(&source, &[token], &folder).await?;
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("shows that there is more (something next is at `/meta/next`)"), "{told}");

    let (code, told) = load(&source, &[("NEXT_PAGE", "after"), token], &folder).await?;
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("NEXT_PAGE (--next-page) is `after`"), "{told}");
    Ok(())
}

#[tokio::test]
async fn records_deep_in_an_object_are_loaded_by_their_deep_ids_and_a_bad_one_is_told() -> Result<()> {
    let page = json!({"result": {"items": [{"key": {"id": "a"}}, {"key": {"id": "b"}}, {"key": null}], "count": 3}});
    let api = FaultyApi::saying([Answer::ok(page.to_string())]).await?;
    let source = ["--source", &api.url(), "--records-at", "/result/items"];
    let (code, told) = load(&source, &[], &tempfile::tempdir()?).await?;
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("no table can be proposed for the records of --source"), "{told}");
    let table = [("TABLE", "items"), ("TABLE_COLUMNS", "id text /key/id, doc jsonb .")];
    let (code, told) = load(&source, &table, &tempfile::tempdir()?).await?;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("2 rows; position 1 is the end of the archive"), "{told}");
    assert!(told.contains("object 1, record 2: column `id` (text from /key/id): it is missing"), "{told}");

    api.say([Answer::ok(r#"{"key":{"id":"alone"}}"#)]);
    let source = ["--source", &api.url(), "--records-at", "."];
    let (code, told) = load(&source, &[], &tempfile::tempdir()?).await?;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("TABLE_COLUMNS='id text /key/id, extra jsonb *'"), "{told}");
    assert!(told.contains("\n  1 row; position 1 is the end of the archive"), "{told}");
    Ok(())
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_what_to_change() -> Result<()> {
    let api = FaultyApi::saying([]).await?;
    let folder = tempfile::tempdir()?;
    let mut told = String::new();
    let mut refused = async |name: &str, arguments: &[&str], environment: &[(&str, &str)]| {
        let output = sandbox(&folder, arguments, environment)?.output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr).replace(&api.url(), "http://API/things");
        // Whoever builds beside it makes it wait, and say so.
        let stderr: String =
            stderr.split_inclusive('\n').filter(|line| !line.starts_with("building importer")).collect();
        told = format!("{told}# {name}: exit code {}\n{stderr}\n", output.status.code().unwrap_or(-1));
        ensure!(output.stdout.is_empty() && !folder.path().join("env").exists(), "nothing is started");
        Ok(())
    };
    let url = api.url();
    for (name, answer, more) in [
        ("a page for people", Answer::ok("<!doctype html>\n<html lang=\"en\">"), &[][..]),
        ("records in a member", Answer::ok(r#"{"data":[{"id":1}],"meta":{"next":"abc"}}"#), &[]),
        (
            "no such member",
            Answer::ok(r#"{"data":[{"uuid":"a","n":1},{"uuid":"b","n":1}]}"#),
            &["--records-at", "/items"],
        ),
        ("no token", Answer::status(401).with_body(r#"{"message":"who are you?"}"#), &[]),
        ("elsewhere", Answer::status(301).with("Location", "https://example.org/things?token=abc"), &[]),
        ("out of order", Answer::status(503), &[]),
    ] {
        api.say([answer]);
        refused(name, &[&["--source", &url], more].concat(), &[]).await?;
    }
    refused("nobody there", &["--source", "http://127.0.0.1:1/things"], &[]).await?;
    refused("no API", &["--records-at", "/data"], &[]).await?;
    let all = ["--posts", "3", "--source", "https://me:secret@example.org/", "--records-at", "data"];
    refused("all at once", &all, &[]).await?;
    refused("another command", &["--source", &url, "soak"], &[]).await?;
    assert!(!told.contains("secret@") && !told.contains("token=abc"), "{told}");
    insta::assert_snapshot!("own_api_refusals", told);
    Ok(())
}

#[tokio::test]
async fn a_sandbox_of_an_own_api_tells_what_to_try_and_heals_from_every_drill() -> Result<()> {
    world().await;
    let page = json!([{"id": 1, "name": "a", "price": 1.5, "isNew": true}, {"id": 2, "name": "b"}]);
    let api = FaultyApi::saying([Answer::ok(page.to_string())]).await?;
    let folder = tempfile::tempdir()?;
    let source = format!("{}?api_key=s3cret", api.url());
    let mut command = sandbox(&folder, &[], &[("SANDBOX_SOURCE", &source), ("POLL_INTERVAL", "5m")])?;
    let mut sandbox = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(sandbox.stdout.take().context("stdout is piped")?).lines();
    let mut told = String::new();
    while !told.ends_with("\n  ready\n") {
        let line = timeout(2 * SOON, lines.next_line()).await??.with_context(|| format!("it ended early:\n{told}"))?;
        told = told + &line + "\n";
    }
    // Nobody may have to wait for a reader.
    tokio::spawn(async move { while lines.next_line().await.is_ok_and(|line| line.is_some()) {} });
    assert!(told.contains("api_key=…") && !told.contains("s3cret") && told.contains("asked every 5m"), "{told}");
    assert!(!told.contains("posts API") && !told.contains("PATCH"), "{told}");

    let environment = read_env(&folder.path().join("env"))?;
    let of = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!((of("SOURCE_URL"), of("TABLE")), (Some(source.as_str()), Some("posts")));
    assert_eq!(
        of("TABLE_COLUMNS"),
        Some("id bigint, is_new boolean /isNew, name text, price double precision, extra jsonb *")
    );
    let mut database = PgConnection::connect(of("DATABASE_URL").context("it is there")?).await?;
    let price = "SELECT price FROM posts WHERE id = 1";
    assert_eq!(sqlx::query_scalar::<_, f64>(price).fetch_one(&mut database).await?.to_bits(), 1.5_f64.to_bits());
    database.close().await?;

    let page = of("SANDBOX_URL").context("it is there")?;
    let html = reqwest::get(page).await?.text().await?;
    assert!(html.contains("<html class=\"own-api\""), "what makes no sense is hidden");
    let asked = api.seen().len();
    for drill in ["kill-importer", "kill-transformer", "purge-queue", "restore-database"] {
        let healed = reqwest::Client::new().post(format!("{page}/drills/{drill}")).send().await?;
        let (status, report) = (healed.status(), healed.text().await?);
        assert!(status.is_success() && report.contains("\"rows\":2"), "{drill}: {report}");
    }
    assert_eq!(api.seen().len() - asked, 5, "each drill asks once, and so does a new importer");

    Command::new("kill").args(["-TERM", &sandbox.id().context("it runs")?.to_string()]).status().await?;
    assert_eq!(timeout(SOON, sandbox.wait()).await??.code(), Some(0));
    Ok(())
}

fn read_env(file: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(file)?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect())
}
