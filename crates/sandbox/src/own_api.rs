//! A user's own API in place of the posts: its settings, and what the importer says of it before anything is started.

use std::{convert::Infallible, env, fmt::Display, path, process::Stdio, str::FromStr};

use anyhow::Context;
use clap::Args;
use serde_json::Value;
use shared::{
    object::StreamName,
    records::RecordsAt,
    settings::{SecretUrl, without_secrets},
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::{guard::Guard, programs, programs::Place, progress::Progress, settings::Settings, world::guarded};

/// What of the environment goes on to the importer: how the API is asked, and what stands between it and this machine.
const PASSED_ON: [&str; 23] = [
    "POLL_INTERVAL",
    "NEXT_PAGE",
    "SINCE",
    "SINCE_OVERLAP",
    "FULL_REFRESH_INTERVAL",
    "ABSENT",
    "TOTALS",
    "TABLE",
    "TABLE_COLUMNS",
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
    /// Your own API in place of the posts: an address that answers with JSON. `transformer propose` chooses the table that its
    /// records become rows of, unless TABLE and TABLE_COLUMNS in the environment do. What the importer has to know besides, it takes from the
    /// environment: NEXT_PAGE, how pages follow; SOURCE_HEADER_FILE, a file with headers or a bearer token to send; SOURCE_BODY_FILE, a file
    /// with a JSON body to post; TOTALS; POLL_INTERVAL [1m]. An address with a secret in it goes into
    /// SANDBOX_SOURCE instead
    #[arg(long, env = "SANDBOX_SOURCE", value_name = "URL", hide_env_values = true, value_parser = take::<SecretUrl>)]
    source: Option<Given<SecretUrl>>,
    /// Where the records are in an answer of that API, as a JSON pointer, as in /data for `{"data":[…]}`; a dot if the answer is one record
    /// [default: the answer itself]
    #[arg(long, value_name = "POINTER", value_parser = take::<RecordsAt>)]
    records_at: Option<Given<RecordsAt>>,
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
            let why = "--records-at is of use with --source alone\nit says where your own API has its records: name its address too";
            return if self.records_at.is_none() { Ok(None) } else { Err(vec![why.to_owned()]) };
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
        let passed_on = PASSED_ON.iter().filter_map(|name| Some((*name, passed_on(name)?))).collect();
        let url = url.filter(|_| problems.is_empty()).ok_or(problems)?;
        Ok(Some(OwnApi { url, records_at, passed_on }))
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
    passed_on: Vec<(&'static str, String)>,
}

impl OwnApi {
    /// A name for it: the last part of its address that can be one.
    pub(crate) fn stream(&self) -> String {
        let parts = self.url.path_segments().into_iter().flatten().rev();
        let names = parts.map(|part| {
            part.to_lowercase().replace(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'), "")
        });
        let name = names.into_iter().find(|name| name.parse::<StreamName>().is_ok());
        name.unwrap_or_else(|| "records".to_owned())
    }

    /// What the daemons have to know of it.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::new();
        settings.set(&[
            ("SOURCE_URL", self.url.as_str()),
            ("ALLOW_HTTP", if self.url.scheme() == "http" { "true" } else { "false" }),
            // It is another person's API: no oftener than the importer would.
            ("POLL_INTERVAL", "1m"),
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
    pub(crate) async fn look(&self, progress: &Progress) -> anyhow::Result<Result<Vec<String>, Unusable>> {
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
        Ok(Self::judge(&findings))
    }

    fn judge(findings: &[Value]) -> Result<Vec<String>, Unusable> {
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
        let api = findings.iter().find(|finding| finding["what"] == "api");
        let is_empty = api.is_some_and(|api| api["record"].is_null());
        Ok(if is_empty { vec!["there are no records yet".to_owned()] } else { Vec::new() })
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
