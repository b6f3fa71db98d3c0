//! Somebody's own API in place of the posts: its settings, and one look at its first page before anything is started.

use std::{convert::Infallible, env, fmt::Display, fs, path, str::FromStr, time::Duration};

use clap::Args;
use reqwest::{
    Client, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_ENCODING, LINK, LOCATION},
    redirect,
};
use shared::{
    document::JsonPointer,
    settings::{SecretUrl, public_url},
    telemetry::chain,
};

use crate::{
    first_page::{LIMIT_BYTES, Pointers, judge},
    settings::Settings,
};

/// What of the environment goes on to the importer: how the API is asked, and what stands between it and this machine.
const PASSED_ON: [&str; 11] = [
    "POLL_INTERVAL",
    "PAGE_PARAMETER",
    "CURSOR_AT",
    "CURSOR_PARAMETER",
    "SOURCE_HEADER_FILE",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// An API that sends nothing for so long has stopped; the importer thinks so too.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const TOTAL_TIMEOUT: Duration = Duration::from_mins(2);

/// As many as the importer follows, on the same origin.
const REDIRECTS: usize = 5;

/// How much of an answer is shown that is not the data.
const SHOWN_CHARS: usize = 80;

/// Another API, and where its answers have what.
#[derive(Args, Clone, Debug)]
pub(crate) struct OwnApiSettings {
    /// Your own API in place of the posts: an address that answers with JSON. Its records become rows of `documents`. What the importer has
    /// to know besides, it takes from the environment: CURSOR_AT and CURSOR_PARAMETER, or PAGE_PARAMETER, for an API in pages;
    /// SOURCE_HEADER_FILE, a file with a header or a bearer token to send; POLL_INTERVAL [1m]. An address with a secret in it goes into
    /// SANDBOX_SOURCE instead
    #[arg(long, env = "SANDBOX_SOURCE", value_name = "URL", hide_env_values = true, value_parser = take::<SecretUrl>)]
    source: Option<Given<SecretUrl>>,
    /// Where the records are in an answer of that API, as a JSON pointer, as in /data for `{"data":[…]}` [default: the answer itself]
    #[arg(long, value_name = "POINTER", value_parser = take::<JsonPointer>)]
    records_at: Option<Given<JsonPointer>>,
    /// Where a record of that API has its id, a text or a number, as a JSON pointer [default: /id]
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
            let given = [("--records-at", &self.records_at), ("--id-at", &self.id_at)].into_iter();
            problems.extend(given.filter(|(_, given)| given.is_some()).map(|(flag, _)| {
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
        if is_argument && url.as_ref().is_some_and(|url| public_url(url) != url.as_str()) {
            let why = "carries a secret, and every user of the machine can read the command line\nput it into the environment as \
                SANDBOX_SOURCE";
            problems.push(format!("--source {why}"));
        }
        let mut pointer = |name, given: &Option<_>| given.as_ref().and_then(|given| sift(name, given, &mut problems));
        let passed_on: Vec<_> = PASSED_ON.iter().filter_map(|name| Some((*name, passed_on(name)?))).collect();
        let cursor = passed_on.iter().find(|(name, _)| *name == "CURSOR_AT").and_then(|(_, text)| take(text).ok());
        let at = Pointers {
            records: pointer("--records-at", &self.records_at).unwrap_or_default(),
            id: pointer("--id-at", &self.id_at).unwrap_or_else(|| "/id".parse().expect("it begins with a slash")),
            cursor: pointer("CURSOR_AT", &cursor),
            is_paged: passed_on.iter().any(|(name, _)| *name == "PAGE_PARAMETER"),
        };
        if at.id.is_root() {
            problems.push("--id-at leads to the record itself\nname a member, as in /id".to_owned());
        }
        let url = url.filter(|_| problems.is_empty()).ok_or(problems)?;
        Ok(Some(OwnApi { url, at, passed_on }))
    }
}

/// The value, or a problem more.
fn sift<T: Clone>(name: &str, given: &Given<T>, problems: &mut Vec<String>) -> Option<T> {
    given.clone().map_err(|why| problems.push(format!("{name} is wrong\n{why}"))).ok()
}

/// A variable of ours, if it says anything. The importer runs in another folder.
fn passed_on(name: &str) -> Option<String> {
    let value = env::var(name).ok().filter(|value| !value.is_empty())?;
    let path = (name == "SOURCE_HEADER_FILE").then(|| path::absolute(&value).ok()).flatten();
    Some(path.map_or(value, |path| path.to_string_lossy().into_owned()))
}

/// An API that can be asked.
#[derive(Debug)]
pub(crate) struct OwnApi {
    url: SecretUrl,
    at: Pointers,
    passed_on: Vec<(&'static str, String)>,
}

impl OwnApi {
    /// What the daemons have to know of it.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::new();
        settings.set(&[
            ("SOURCE_URL", self.url.as_str()),
            ("ALLOW_HTTP", if self.url.scheme() == "http" { "true" } else { "false" }),
            // It is somebody's: no oftener than the importer would.
            ("POLL_INTERVAL", "1m"),
            ("RECORD_TYPE", "document"),
            ("ID_AT", &self.at.id.to_string()),
        ]);
        if !self.at.records.is_root() {
            settings.set(&[("RECORDS_AT", &self.at.records.to_string())]);
        }
        for (name, value) in &self.passed_on {
            settings.set(&[(name, value)]);
        }
        settings
    }

    /// Asks for the first page, once. What a person should know of it; or why nothing can come of it.
    pub(crate) async fn look(&self) -> Result<Vec<String>, Unusable> {
        let url = public_url(&self.url);
        let page = self.fetch().await.map_err(|why| match why {
            Unusable::Settings(why) => Unusable::Settings(format!("GET {url} {why}")),
            Unusable::Now(why) => Unusable::Now(format!("GET {url} {why}")),
        })?;
        let Some((page, has_link)) = page else {
            return Ok(vec!["the first page is packed, or longer than 16 MiB, and was not looked into".to_owned()]);
        };
        let at = Pointers { is_paged: self.at.is_paged || has_link, ..self.at.clone() };
        judge(&page, &at)
            .map_err(|why| Unusable::Settings(format!("GET {url} was answered with {}\n{why}", beginning(&page))))
    }

    /// The page, unless it is too long or packed, and whether a header names the next one.
    async fn fetch(&self) -> Result<Option<(Vec<u8>, bool)>, Unusable> {
        let failed = |error: reqwest::Error| {
            let why = chain(&error.without_url());
            Unusable::Now(format!("failed: {why}\nis the address right, and may this machine reach it?"))
        };
        let client = Client::builder()
            .user_agent(concat!("posts-sandbox/", env!("CARGO_PKG_VERSION")))
            .read_timeout(IDLE_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .redirect(redirect::Policy::custom(stay_on_the_origin));
        let mut request = client.build().map_err(failed)?.get((*self.url).clone());
        if let Some((_, file)) = self.passed_on.iter().find(|(name, _)| *name == "SOURCE_HEADER_FILE") {
            let text = fs::read_to_string(file)
                .map_err(|error| Unusable::Settings(format!("was not sent: SOURCE_HEADER_FILE {file}: {error}")))?;
            request = match text.trim().split_once(':') {
                Some((name, value)) => request.header(name.trim(), value.trim()),
                None => request.header(AUTHORIZATION, format!("Bearer {}", text.trim())),
            };
        }
        let mut response = request.send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        if response.headers().contains_key(CONTENT_ENCODING) {
            return Ok(None);
        }
        let links = response.headers().get_all(LINK).iter();
        let has_link = links.filter_map(|link| link.to_str().ok()).any(|link| link.contains("next"));
        let mut page = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            page.extend_from_slice(&chunk);
            if page.len() > LIMIT_BYTES {
                return Ok(None);
            }
        }
        Ok(Some((page, has_link)))
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

/// Another status than 200, and what it usually asks for.
async fn refusal(mut response: Response) -> Unusable {
    let status = response.status();
    let to =
        response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| response.url().join(to).ok());
    let hint = match (status, to) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            "put a header or a bearer token that it takes into a file, and the file's name into SOURCE_HEADER_FILE"
                .to_owned()
        }
        (_, Some(to)) if status.is_redirection() => {
            format!("it is redirected to {}: try that address", public_url(&to))
        }
        (StatusCode::TOO_MANY_REQUESTS, _) => "try again later".to_owned(),
        _ if status.is_server_error() => "try again later, or another address".to_owned(),
        _ => "name the address that answers with the data".to_owned(),
    };
    let body = response.chunk().await.ok().flatten().unwrap_or_default();
    let why = format!("was answered with {status}: {}\n{hint}", beginning(&body));
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Unusable::Now(why)
    } else {
        Unusable::Settings(why)
    }
}

/// The first words of a body.
fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN_CHARS)]);
    let text = text.replace(char::is_control, " ");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("`{}…`", &words[..end]),
        None if words.is_empty() => "nothing".to_owned(),
        None => format!("`{words}`"),
    }
}

fn stay_on_the_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let is_home = attempt.previous().first().is_none_or(|first| first.origin() == attempt.url().origin());
    if !is_home || attempt.previous().len() > REDIRECTS { attempt.stop() } else { attempt.follow() }
}
