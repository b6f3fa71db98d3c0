//! Promise 0: a collection arrives whole, or the poll fails and says why. Imitations of well-known list APIs, by the shapes of their answers:
//! 57 records each, ten a page.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use sandbox::{Sandbox, Setup};
use serde_json::{Value, json};
use support::{
    faulty_api::{Answer, FaultyApi, Request},
    importer, select, start, transformer,
};

const RECORDS: usize = 57;
const PAGE: usize = 10;

/// Streams at once: most of a stream's time is waiting.
const AT_ONCE: usize = 4;

/// What an answer shows of further pages to whoever has been told nothing but address, records and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unaided {
    /// Enough to follow them.
    Loads,
    /// That there is more.
    Refused,
    /// Nothing: `importer check` has to ask.
    Asked,
}

/// One API: its settings, and its answer from its records.
struct Shape {
    name: &'static str,
    query: &'static str,
    next_page: &'static str,
    records_at: &'static str,
    id_at: &'static str,
    unaided: Unaided,
    answer: fn(&Request, &[Value]) -> Answer,
}

/// The records from there on, a page of them.
fn page(records: &[Value], from: usize) -> &[Value] {
    let rest = &records[from.min(records.len())..];
    &rest[..rest.len().min(PAGE)]
}

fn number(request: &Request, name: &str) -> Option<usize> {
    request.parameter(name)?.parse().ok()
}

fn has_more(from: usize) -> bool {
    from + PAGE < RECORDS
}

fn ok(body: &Value) -> Answer {
    Answer::ok(body.to_string())
}

/// An array whose pages are numbered from 1, with a link to the next one.
fn linked(request: &Request, records: &[Value], parameter: &str) -> Answer {
    let number = number(request, parameter).unwrap_or(1);
    let from = PAGE * (number - 1);
    let answer = ok(&page(records, from).into());
    let first = format!("<?{parameter}=1>; rel=\"first\"");
    if has_more(from) {
        answer.with("Link", format!("{first}, <?{parameter}={}>; rel=\"next\"", number + 1))
    } else {
        answer.with("Link", first)
    }
}

/// Where a cursor that is a number leads.
fn at(cursor: Option<String>) -> usize {
    cursor.and_then(|cursor| cursor.trim_start_matches("c-").parse().ok()).unwrap_or(0)
}

/// The cursor of the page behind this one.
fn cursor(from: usize) -> Value {
    if has_more(from) { json!(format!("c-{}", from + PAGE)) } else { Value::Null }
}

/// Where the id of the last record of the page before leads.
fn behind(records: &[Value], id_at: &str, id: Option<String>) -> usize {
    let id_of = |record: &Value| record.pointer(id_at).map(|id| id.to_string().trim_matches('"').to_owned());
    id.and_then(|id| records.iter().position(|record| id_of(record).as_ref() == Some(&id))).map_or(0, |at| at + 1)
}

/// Each says that there is more in its own way, and ends in its own way.
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn shapes() -> Vec<Shape> {
    use Unaided::{Asked, Loads, Refused};
    let shape = |name, query, next_page, records_at, id_at, unaided, answer| Shape {
        name,
        query,
        next_page,
        records_at,
        id_at,
        unaided,
        answer,
    };
    vec![
        shape("jsonplaceholder", "_page=1", "", "", "/id", Loads, |request, records| {
            linked(request, records, "_page").with("X-Total-Count", RECORDS)
        }),
        shape("wordpress", "per_page=10", "", "", "/id", Loads, |request, records| {
            linked(request, records, "page").with("X-WP-Total", RECORDS).with("X-WP-TotalPages", 6)
        }),
        shape("wordpress-com", "", "page_handle=/meta/next_page", "/posts", "/ID", Refused, |request, records| {
            let from = at(request.parameter("page_handle"));
            let mut meta = json!({ "links": {} });
            if has_more(from) {
                meta["next_page"] = cursor(from);
            }
            ok(&json!({ "found": RECORDS, "posts": page(records, from), "meta": meta }))
        }),
        shape("forem", "page=1", "page+1", "", "/id", Asked, |request, records| {
            ok(&page(records, PAGE * (number(request, "page").unwrap_or(1) - 1)).into())
        }),
        shape("reddit", "", "after=/data/after", "/data/children", "/data/name", Refused, |request, records| {
            let from = at(request.parameter("after"));
            ok(
                &json!({ "kind": "Listing", "data": { "dist": 10, "children": page(records, from), "after": cursor(from) } }),
            )
        }),
        shape("contentful", "limit=10", "skip+records", "/items", "/sys/id", Refused, |request, records| {
            let from = number(request, "skip").unwrap_or(0);
            ok(&json!({ "total": RECORDS, "skip": from, "limit": 10, "items": page(records, from) }))
        }),
        shape("notion", "", "/start_cursor=/next_cursor", "/results", "/id", Refused, |request, records| {
            let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
            let is_known = request.header("authorization") == Some("Bearer t0ken")
                && request.header("notion-version") == Some("2022-06-28");
            if request.method != "POST" || body["page_size"] != 10 || !is_known {
                return Answer::status(400);
            }
            let from = at(body["start_cursor"].as_str().map(str::to_owned));
            ok(&json!({ "results": page(records, from), "has_more": has_more(from), "next_cursor": cursor(from) }))
        }),
        shape("github", "", "", "", "/number", Loads, |request, records| linked(request, records, "page")),
        shape("gitlab", "", "", "", "/id", Loads, |request, records| {
            let from = at(request.parameter("cursor"));
            let answer = ok(&page(records, from).into());
            if has_more(from) {
                answer.with("Link", format!("<?cursor=c-{}>; rel=\"next\"", from + PAGE))
            } else {
                answer
            }
        }),
        shape("stripe", "", "starting_after=/data/-1/id", "/data", "/id", Refused, |request, records| {
            let from = behind(records, "/id", request.parameter("starting_after"));
            ok(&json!({ "object": "list", "has_more": has_more(from), "data": page(records, from) }))
        }),
        shape("shopify", "status=any", "", "/products", "/id", Loads, |request, records| {
            let handle = request.parameter("page_info");
            if handle.is_some() && request.parameter("status").is_some() {
                return Answer::status(400);
            }
            let from = at(handle);
            let answer = ok(&json!({ "products": page(records, from) }));
            if has_more(from) {
                answer.with("Link", format!("<?page_info=c-{}>; rel=\"next\"", from + PAGE))
            } else {
                answer
            }
        }),
        shape("slack", "", "cursor=/response_metadata/next_cursor", "/channels", "/id", Refused, |request, records| {
            let from = at(request.parameter("cursor"));
            let next = if has_more(from) { cursor(from) } else { json!("") };
            ok(&json!({ "ok": true, "channels": page(records, from), "response_metadata": { "next_cursor": next } }))
        }),
        shape("hubspot", "", "after=/paging/next/after", "/results", "/id", Refused, |request, records| {
            let from = at(request.parameter("after"));
            let mut body = json!({ "results": page(records, from) });
            if has_more(from) {
                body["paging"] = json!({ "next": { "after": cursor(from), "link": "?" } });
            }
            ok(&body)
        }),
        shape("jira", "", "nextPageToken=/nextPageToken", "/issues", "/key", Refused, |request, records| {
            let from = at(request.parameter("nextPageToken"));
            let mut body = json!({ "issues": page(records, from), "isLast": !has_more(from) });
            if has_more(from) {
                body["nextPageToken"] = cursor(from);
            }
            ok(&body)
        }),
        // The cursor is there on the last page, too.
        shape(
            "zendesk",
            "page[size]=10",
            "page[after]=/meta/after_cursor",
            "/tickets",
            "/id",
            Refused,
            |request, records| {
                let from = at(request.parameter("page[after]"));
                let (more, after) = (has_more(from), format!("c-{}", from + PAGE));
                ok(
                    &json!({ "tickets": page(records, from), "meta": { "has_more": more, "after_cursor": after }, "links": {} }),
                )
            },
        ),
        shape("salesforce", "q=SELECT", "/nextRecordsUrl", "/records", "/Id", Refused, |request, records| {
            let from = at(request.parameter("locator"));
            let mut body = json!({ "totalSize": RECORDS, "done": !has_more(from), "records": page(records, from) });
            if has_more(from) {
                body["nextRecordsUrl"] = json!(format!("/salesforce?locator=c-{}", from + PAGE));
            }
            ok(&body)
        }),
        shape("airtable", "", "offset=/offset", "/records", "/id", Refused, |request, records| {
            let from = at(request.parameter("offset"));
            let mut body = json!({ "records": page(records, from) });
            if has_more(from) {
                body["offset"] = cursor(from);
            }
            ok(&body)
        }),
        shape("socrata", "$limit=10", "$offset+records", "", "/:id", Asked, |request, records| {
            ok(&page(records, number(request, "$offset").unwrap_or(0)).into())
        }),
        shape(
            "elasticsearch",
            "",
            "/search_after=/hits/hits/-1/sort",
            "/hits/hits",
            "/_id",
            Refused,
            |request, records| {
                static TOOK: AtomicU64 = AtomicU64::new(0);
                let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
                let from = behind(records, "/sort/0", body["search_after"][0].as_u64().map(|sort| sort.to_string()));
                let hits = json!({ "total": { "value": RECORDS, "relation": "eq" }, "hits": page(records, from) });
                ok(&json!({ "took": TOOK.fetch_add(1, SeqCst), "timed_out": false, "hits": hits }))
            },
        ),
        shape("twilio", "", "/next_page_uri", "/messages", "/sid", Refused, |request, records| {
            let from = at(request.parameter("PageToken"));
            let next = cursor(from).as_str().map(|cursor| format!("/twilio?PageToken={cursor}"));
            ok(&json!({ "messages": page(records, from), "next_page_uri": next, "page_size": 10 }))
        }),
        shape("pokeapi", "", "/next", "/results", "/name", Refused, |request, records| {
            let from = number(request, "offset").unwrap_or(0);
            let host = request.header("host").unwrap_or_default();
            let next = has_more(from).then(|| format!("http://{host}/pokeapi?offset={}&limit=10", from + PAGE));
            ok(&json!({ "count": RECORDS, "next": next, "previous": null, "results": page(records, from) }))
        }),
        shape("spacex", "", "", "", "/id", Loads, |_, records| ok(&records.into())),
        // The first request brings a cursor, and the time it took stands in each answer.
        shape("openalex", "cursor=*", "cursor=/meta/next_cursor", "/results", "/id", Refused, |request, records| {
            static TOOK: AtomicU64 = AtomicU64::new(0);
            let from = at(request.parameter("cursor"));
            let meta = json!({ "count": RECORDS, "db_response_time_ms": TOOK.fetch_add(1, SeqCst), "next_cursor": cursor(from) });
            ok(&json!({ "meta": meta, "results": page(records, from) }))
        }),
    ]
}

/// A record whose id stands there. The last one says how often it was changed.
fn record(id_at: &str, number: usize, version: u64) -> Value {
    let id = if id_at == "/id" { json!(number) } else { json!(format!("id-{number}")) };
    let names = id_at.split('/').skip(1).collect::<Vec<_>>();
    let mut record = names.iter().rev().fold(id, |value, name| json!({ *name: value }));
    record["text"] = json!(format!("record {number}"));
    record["sort"] = json!([number]);
    record["version"] = json!(if number == RECORDS { version } else { 0 });
    record
}

/// A stream of this API's records, with what both daemons have to know of it. Which columns there are is said here alone.
async fn stream_of(shape: &Shape, url: &str) -> Result<Sandbox> {
    let url = format!("{}{}{}", url.replace("/posts", "/"), shape.name, if shape.query.is_empty() { "" } else { "?" });
    let mut settings = vec![("SOURCE_URL", leak(format!("{url}{}", shape.query))), ("RECORDS_AT", shape.records_at)];
    let id = if shape.id_at == "/id" { "bigint" } else { "text" };
    settings.extend([("TABLE", "documents"), ("TABLE_COLUMNS", leak(format!("id {id} {}, doc jsonb .", shape.id_at)))]);
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, settings, ..Setup::default() }).await?;
    Ok(sandbox)
}

/// Settings are named for the whole program, as constants are.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// The ways that are not in the address: headers, a body, and how pages follow.
fn further_settings(shape: &Shape, sandbox: &Sandbox) -> Result<Vec<(&'static str, &'static str)>> {
    let mut settings = Vec::new();
    if shape.name == "notion" {
        let (headers, body) = (sandbox.logs().join("headers"), sandbox.logs().join("body"));
        std::fs::write(&headers, "t0ken\nNotion-Version: 2022-06-28\n")?;
        std::fs::write(&body, r#"{ "page_size": 10 }"#)?;
        settings.push(("SOURCE_HEADER_FILE", leak(headers.to_string_lossy().into_owned())));
        settings.push(("SOURCE_BODY_FILE", leak(body.to_string_lossy().into_owned())));
    }
    if shape.name == "elasticsearch" {
        let body = sandbox.logs().join("body");
        std::fs::write(&body, r#"{ "size": 10, "sort": ["number"] }"#)?;
        settings.push(("SOURCE_BODY_FILE", leak(body.to_string_lossy().into_owned())));
    }
    Ok(settings)
}

/// A command of the importer: its exit code, and what it said.
async fn run(sandbox: &Sandbox, settings: &[(&'static str, &str)], command: &str) -> Result<(Option<i32>, String)> {
    let output = importer(sandbox, settings, &[command]).await?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Ok((output.status.code(), said))
}

/// All rows are the records.
async fn assert_rows(sandbox: &Sandbox, shape: &Shape, version: u64) -> Result<()> {
    let applied = transformer(sandbox, &[], &["once"]).await?;
    ensure!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let mut rows: Vec<String> = select(sandbox, "SELECT coalesce(array_agg(doc::text), '{}') FROM documents").await?;
    let mut records = Vec::new();
    for row in &mut rows {
        records.push(serde_json::from_str::<Value>(row)?);
    }
    records.sort_by_key(|record| record["sort"][0].as_u64());
    let expected: Vec<Value> = (1..=RECORDS).map(|number| record(shape.id_at, number, version)).collect();
    ensure!(records == expected, "{} rows of {RECORDS}", records.len());
    Ok(())
}

async fn load(shape: &Shape, api: &FaultyApi, version: &AtomicU64) -> Result<()> {
    let sandbox = stream_of(shape, &api.url()).await?;
    let mut settings = further_settings(shape, &sandbox)?;
    let (code, said) = run(&sandbox, &settings, "once").await?;
    match shape.unaided {
        Unaided::Refused => {
            ensure!(code == Some(1) && said.contains("NEXT_PAGE") && sandbox.end().await? == 0, "unaided: {said}");
        }
        Unaided::Loads => ensure!(code == Some(0), "unaided: {said}"),
        Unaided::Asked => {
            ensure!(code == Some(0) && sandbox.end().await? == 1, "unaided: {said}");
            let (code, said) = run(&sandbox, &settings, "check").await?;
            let advice = format!("set NEXT_PAGE={}", shape.next_page);
            ensure!(code == Some(3) && said.contains(&advice), "{said}");
        }
    }
    if !shape.next_page.is_empty() {
        settings.push(("NEXT_PAGE", shape.next_page));
        let (code, said) = run(&sandbox, &settings, "once").await?;
        ensure!(code == Some(0), "{said}");
    }
    assert_rows(&sandbox, shape, 0).await?;
    let end = sandbox.end().await?;
    let (code, said) = run(&sandbox, &settings, "once").await?;
    ensure!(code == Some(3) && sandbox.end().await? == end, "unchanged: {said}");
    version.store(1, SeqCst);
    let (code, said) = run(&sandbox, &settings, "once").await?;
    ensure!(code == Some(0), "changed: {said}");
    assert_rows(&sandbox, shape, 1).await
}

#[tokio::test]
async fn list_apis_of_every_shape_arrive_whole_by_settings_alone_and_are_refused_without() -> Result<()> {
    let shapes = shapes();
    assert_eq!(shapes.len(), 23);
    let loads = stream::iter(&shapes).map(async |shape| {
        let version = Arc::new(AtomicU64::new(0));
        let (of, answer, id_at) = (version.clone(), shape.answer, shape.id_at);
        let api = FaultyApi::start(move |request| {
            let records: Vec<Value> = (1..=RECORDS).map(|number| record(id_at, number, of.load(SeqCst))).collect();
            answer(request, &records)
        })
        .await?;
        Box::pin(load(shape, &api, &version)).await.context(shape.name)
    });
    let failed: Vec<String> = loads
        .buffer_unordered(AT_ONCE)
        .filter_map(async |loaded: Result<()>| loaded.err().map(|error| format!("{error:#}")))
        .collect()
        .await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[tokio::test]
async fn an_error_inside_a_200_is_no_collection() -> Result<()> {
    let api = FaultyApi::saying([Answer::ok(r#"{"ok":true,"channels":[{"id":1}]}"#)]).await?;
    let settings = vec![("SOURCE_URL", leak(api.url())), ("RECORDS_AT", "/channels")];
    let sandbox = start(Setup { posts: 0, importer: false, transformer: false, settings, ..Setup::default() }).await?;
    assert_eq!(run(&sandbox, &[], "once").await?.0, Some(0));
    for (body, why) in [
        (r#"{"ok":false,"error":"token_revoked"}"#, "the document has no member `channels`, and RECORDS_AT"),
        (r#"{"ok":false,"channels":[]}"#, "says that it failed: `ok` is false"),
        (r#"{"errors":[{"message":"no"}],"channels":null}"#, "says that it failed: `errors` is"),
        (r#"{"status":"error","message":"later","channels":null}"#, "says that it failed: `status` is"),
    ] {
        api.say([Answer::ok(body)]);
        let (code, said) = run(&sandbox, &[], "once").await?;
        assert!(code == Some(1) && said.contains(why), "{said}");
        let (code, said) = run(&sandbox, &[], "check").await?;
        assert!(code == Some(3) && said.contains("api       PROBLEM"), "{said}");
    }
    assert_eq!(sandbox.end().await?, 1);
    sandbox.importer.start();
    let is_told = async || Ok(support::readiness(&sandbox.importer).await?.1.contains("says that it failed"));
    sandbox.wait_until("the API is not ready", support::SOON, is_told).await
}
