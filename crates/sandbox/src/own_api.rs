//! A user's own API in place of the posts: its settings, and what the importer says of it before anything is started.

use std::{convert::Infallible, env, fmt::Display, path, process::Stdio, str::FromStr};

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use shared::{
    json_pointer::JsonPointer,
    records::RecordsAt,
    settings::{SecretUrl, without_secrets},
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::{guard::Guard, programs, programs::Place, progress::Progress, settings::Settings, world::guarded};

/// What of the environment goes on to the importer: how the API is asked, and what stands between it and this machine.
const PASSED_ON: [&str; 17] = [
    "POLL_INTERVAL",
    "NEXT_PAGE",
    "TOTALS",
    "SOURCE_HEADER_FILE",
    "SOURCE_BODY_FILE",
    "SOURCE_TIMEOUT",
    // Of older releases: the importer says what replaces them.
    "PAGE_PARAMETER",
    "CURSOR_AT",
    "CURSOR_PARAMETER",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Other places of ids that are named beside the best.
const SHOWN_IDS: usize = 3;

/// The importer's settings of archive and queue. Nothing is sent there: they are not started yet.
const NOWHERE: [(&str, &str); 7] = [
    ("ARCHIVE_BUCKET", "none"),
    ("QUEUE_URL", "http://127.0.0.1:9/none.fifo"),
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
    ("AWS_REGION", "us-east-1"),
    ("AWS_ACCESS_KEY_ID", "none"),
    ("AWS_SECRET_ACCESS_KEY", "none"),
    ("RUST_LOG", "off"),
];

/// Another API, and where its answers have what.
#[derive(Args, Clone, Debug)]
pub(crate) struct OwnApiSettings {
    /// Your own API in place of the posts: an address that answers with JSON. Its records become rows of `documents`. What the importer has
    /// to know besides, it takes from the environment: NEXT_PAGE, how pages follow; SOURCE_HEADER_FILE, a file with headers or a bearer token
    /// to send; SOURCE_BODY_FILE, a file with a JSON body to post; TOTALS; POLL_INTERVAL [1m]. An address with a secret in it goes into
    /// SANDBOX_SOURCE instead
    #[arg(long, env = "SANDBOX_SOURCE", value_name = "URL", hide_env_values = true, value_parser = take::<SecretUrl>)]
    source: Option<Given<SecretUrl>>,
    /// Where the records are in an answer of that API, as a JSON pointer, as in /data for `{"data":[…]}`; a dot if the answer is one record
    /// [default: the answer itself]
    #[arg(long, value_name = "POINTER", value_parser = take::<RecordsAt>)]
    records_at: Option<Given<RecordsAt>>,
    /// Where a record of that API has its id, a text or a whole number, as a JSON pointer [default: /id]
    #[arg(long, value_name = "POINTER", value_parser = take::<JsonPointer>)]
    id_at: Option<Given<JsonPointer>>,
}

/// A value, or what is wrong with it, to be told with all else that is.
type Given<T> = Result<T, String>;

#[expect(clippy::unnecessary_wraps, reason = "clap alone would tell of the first one that is wrong, and end")]
fn take<T: FromStr<Err: Display>>(text: &str) -> Result<Given<T>, Infallible> {
    Ok(text.parse().map_err(|error: T::Err| error.to_string()))
}

impl OwnApiSettings {
    /// The API, if it is not the posts; or all that is wrong. `has_posts` says whether their number was given.
    pub(crate) fn resolve(&self, has_posts: bool) -> Result<Option<OwnApi>, Vec<String>> {
        let mut problems = Vec::new();
        let Some(source) = &self.source else {
            let given = [("--records-at", self.records_at.is_some()), ("--id-at", self.id_at.is_some())].into_iter();
            problems.extend(given.filter(|(_, is_given)| *is_given).map(|(flag, _)| {
                format!("{flag} is of use with --source alone\nit says where your own API has something: name its address too")
            }));
            return if problems.is_empty() { Ok(None) } else { Err(problems) };
        };
        if has_posts {
            let why =
                "is of no use with --source\nit says how many posts the sandbox's own API has: leave one of them out";
            problems.push(format!("--posts {why}"));
        }
        let url = sift("--source", source, &mut problems);
        // The address is hidden in what is shown, and not from whoever lists processes.
        let is_argument = env::args_os().any(|argument| argument.to_string_lossy().starts_with("--source"));
        if is_argument && url.as_ref().is_some_and(|url| without_secrets(url) != url.as_str()) {
            let why = "carries a secret, and every user of the machine can read the command line\nput it into the environment as \
                SANDBOX_SOURCE";
            problems.push(format!("--source {why}"));
        }
        let records_at =
            self.records_at.as_ref().and_then(|at| sift("--records-at", at, &mut problems)).unwrap_or_default();
        let id_at = self.id_at.as_ref().and_then(|at| sift("--id-at", at, &mut problems));
        let id_at = id_at.unwrap_or_else(|| "/id".parse().expect("it begins with a slash"));
        let passed_on = PASSED_ON.iter().filter_map(|name| Some((*name, passed_on(name)?))).collect();
        if id_at.is_root() {
            problems.push("--id-at leads to the record itself\nname a member, as in /id".to_owned());
        }
        let url = url.filter(|_| problems.is_empty()).ok_or(problems)?;
        Ok(Some(OwnApi { url, records_at, id_at, has_numbers: false, passed_on }))
    }
}

/// The value, or a problem more.
fn sift<T: Clone>(name: &str, given: &Given<T>, problems: &mut Vec<String>) -> Option<T> {
    given.clone().map_err(|why| problems.push(format!("{name} is wrong\n{why}"))).ok()
}

/// A variable of ours, if it says anything. The importer runs in another folder.
fn passed_on(name: &str) -> Option<String> {
    let value = env::var(name).ok().filter(|value| !value.is_empty())?;
    let path = name.ends_with("_FILE").then(|| path::absolute(&value).ok()).flatten();
    Some(path.map_or(value, |path| path.to_string_lossy().into_owned()))
}

/// An API that can be asked.
#[derive(Debug)]
pub(crate) struct OwnApi {
    url: SecretUrl,
    records_at: RecordsAt,
    id_at: JsonPointer,
    /// Whether ids are whole numbers, as far as they were seen.
    has_numbers: bool,
    passed_on: Vec<(&'static str, String)>,
}

impl OwnApi {
    /// What the daemons have to know of it.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::new();
        let id = if self.has_numbers { "bigint" } else { "text" };
        let columns = format!("id {id} \"{}\", doc jsonb .", self.id_at.to_string().replace('"', "\"\""));
        settings.set(&[
            ("SOURCE_URL", self.url.as_str()),
            ("ALLOW_HTTP", if self.url.scheme() == "http" { "true" } else { "false" }),
            // It is somebody's: no oftener than the importer would.
            ("POLL_INTERVAL", "1m"),
            ("TABLE", "documents"),
            ("TABLE_COLUMNS", &columns),
        ]);
        let records_at = self.records_at.to_string();
        if !records_at.is_empty() {
            settings.set(&[("RECORDS_AT", &records_at)]);
        }
        for (name, value) in &self.passed_on {
            settings.set(&[(name, value)]);
        }
        // What stands between here and the API does not stand between here and LocalStack.
        let exceptions = ["NO_PROXY", "no_proxy"].iter().find_map(|name| settings.get(name));
        let exceptions = exceptions.map_or("127.0.0.1".to_owned(), |given| format!("{given},127.0.0.1"));
        settings.set(&[("NO_PROXY", &exceptions)]);
        settings
    }

    /// Asks the importer whether the collection comes whole. What a person should know of it; or why nothing can come of it.
    pub(crate) async fn look(&mut self, progress: &Progress) -> anyhow::Result<Result<Vec<String>, Unusable>> {
        let place = Place::find()?;
        let folder = tempfile::Builder::new().prefix("sandbox-").tempdir().context("no temporary folder")?.keep();
        let guard = Guard::start(&folder).context("cannot start the guard, which is a shell")?;
        let importer = programs::build(&place, &guard, progress).await?.importer;
        let _step = progress.step("asking your API");
        let mut settings = self.settings();
        settings.set(&NOWHERE);
        let mut check = guarded(&guard, &importer, &settings, &folder);
        check.args(["check", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut check =
            tokio::process::Command::from(check).kill_on_drop(true).spawn().context("cannot start the importer")?;
        let mut lines = BufReader::new(check.stdout.take().context("stdout is piped")?).lines();
        let mut findings = Vec::new();
        while let Some(line) = lines.next_line().await? {
            let finding: Value = serde_json::from_str(&line).context("the importer writes JSON")?;
            // What comes behind is of AWS, which is nowhere here.
            if finding["what"] == "aws" {
                break;
            }
            findings.push(finding);
        }
        let _ = check.start_kill();
        let mut complaint = String::new();
        check.stderr.take().context("stderr is piped")?.read_to_string(&mut complaint).await?;
        guard.release();
        if findings.is_empty() {
            return Ok(Err(Unusable::Settings(complaint.trim().to_owned())));
        }
        Ok(self.judge(&findings))
    }

    fn judge(&mut self, findings: &[Value]) -> Result<Vec<String>, Unusable> {
        let says = |finding: &Value| {
            // As it is said here.
            finding["says"]
                .as_str()
                .unwrap_or_default()
                .replace("RECORDS_AT=", "--records-at ")
                .replace("; try", "\ntry")
        };
        let problems: Vec<_> = findings.iter().filter(|finding| finding["is_well"] == false).collect();
        if !problems.is_empty() {
            let may_pass = problems.iter().any(|problem| problem["may_pass"] == true);
            let said = problems.into_iter().map(says).collect::<Vec<_>>().join("\n");
            return Err(if may_pass { Unusable::Now(said) } else { Unusable::Settings(said) });
        }
        let Some(api) = findings.iter().find(|finding| finding["what"] == "api") else { return Ok(Vec::new()) };
        let (id_at, record) = (self.id_at.to_string(), &api["record"]);
        let ids: Vec<_> = api["ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let others = match ids.as_slice() {
            [] => "no text or whole number differs from record to record".to_owned(),
            [best, others @ ..] => {
                let others = others.iter().take(SHOWN_IDS).map(|other| format!(" or {other}"));
                format!("try --id-at {best}{}", others.collect::<String>())
            }
        };
        if record.is_null() {
            return Ok(vec!["there are no records yet".to_owned()]);
        }
        let id = record.pointer(&id_at);
        self.has_numbers = id.is_some_and(Value::is_i64);
        if !self.has_numbers && !id.is_some_and(Value::is_string) {
            return Err(Unusable::Settings(format!(
                "the first record has no text or whole number at {id_at}\n{others}"
            )));
        }
        if ids.contains(&id_at.as_str()) {
            return Ok(Vec::new());
        }
        Ok(vec![format!(
            "{id_at} does not tell all records of the first page apart, and of those with the same id the last one stays: {others}"
        )])
    }
}

/// Why nothing can come of an API.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// As it is asked; with what to change.
    Settings(String),
    /// It fails, and may not later.
    Now(String),
}
