//! Flags and environment become values, and every problem is told at once.
//!
//! Each step has its own clap struct beside its code, and the doc comments there are the `--help`. This file parses them
//! so that one start shows all that is wrong: clap itself stops at the first bad value.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::Write,
    ops::Deref,
    process,
    str::FromStr,
    time::Duration,
};

use clap::{
    Arg, ArgMatches, Args, Command, Parser, ValueEnum, builder::NonEmptyStringValueParser, parser::ValueSource,
    value_parser,
};
use jiff::SignedDuration;
use url::{Url, form_urlencoded};

use crate::{
    object::{Sequence, StreamName},
    records::RecordsAt,
};

/// What both daemons must know.
#[derive(Args, Clone, Debug)]
pub struct ArchiveSettings {
    /// Name of the stream, which is its prefix in the bucket and its message group: a-z, 0-9, _ and -, at most 63
    #[arg(long, env = "STREAM", value_name = "NAME", default_value = "posts")]
    pub stream: StreamName,
    /// S3 bucket that holds the archive. The SDK's own variables say how it is reached: AWS_REGION, AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL
    #[arg(long, env = "ARCHIVE_BUCKET", value_name = "BUCKET", required = true, value_parser = NonEmptyStringValueParser::new())]
    pub archive_bucket: String,
}

/// What both daemons must know of an answer.
#[derive(Args, Clone, Debug, Default)]
pub struct RecordsSettings {
    /// Where the records are in each answer of the API: a JSON pointer through members of objects to an array, as in /data for
    /// `{"data":[…],"next":…}`; or a dot, if the answer is one record. Give it to both daemons: the importer archives no answer that
    /// has no array there, and the transformer follows what the importer has noted with each object. The setting counts for objects
    /// without such a note [default: the answer itself is the array]
    #[arg(long, env = "RECORDS_AT", value_name = "POINTER", default_value = "", hide_default_value = true)]
    pub records_at: RecordsAt,
}

/// What both daemons must know of records that the API has no more.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbsentSettings {
    /// What becomes of a row whose record the API no longer has. `keep`: nothing. `mark` (soft delete): the column absent_since says since when.
    /// `delete` (hard delete): the row goes. Only whole snapshots count, and one that took several requests must be confirmed by the next. Give
    /// it to both daemons: the importer then archives such a snapshot a second time
    #[arg(long, env = "ABSENT", value_name = "WORD", default_value_t, value_enum)]
    pub absent: Absent,
}

/// What becomes of a row that the API has no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Absent {
    /// It stays as it is.
    #[default]
    Keep,
    /// It stays, and says since when.
    Mark,
    /// It goes.
    Delete,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::Mark => "mark",
            Self::Delete => "delete",
        })
    }
}

/// Everything that is wrong with the command line and the environment.
#[derive(Debug)]
pub struct Problems {
    program: String,
    lines: Vec<String>,
}

impl Problems {
    /// What is wrong with the settings of a program: what it is in the first line of each, then why.
    pub fn new(program: &str, lines: Vec<String>) -> Self {
        Self { program: program.to_owned(), lines }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, lines } = self;
        let wrong =
            if lines.len() == 1 { "1 setting is wrong" } else { &format!("{} settings are wrong", lines.len()) };
        writeln!(f, "{program}: {wrong}, nothing was started\n")?;
        for line in lines {
            writeln!(f, "  {}", line.trim_end().replace('\n', "\n      "))?;
        }
        write!(f, "\n`{program} --help` explains each setting.")
    }
}

/// Says what is wrong with settings that are each right by themselves. It gets each as it was given, by its id.
pub type Contradictions = fn(&dyn Fn(&str) -> Option<String>) -> Vec<String>;

/// The settings of this process. With problems it prints them all and ends with exit code 2; so it does for `--help` (0).
/// A command line without a command runs `run`.
pub fn parse_or_exit<S: Parser>(contradictions: Contradictions) -> S {
    let mut argv: Vec<OsString> = std::env::args_os().collect();
    name_the_command(&S::command(), &mut argv);
    match parse(&argv, contradictions) {
        Ok(settings) => settings,
        Err(Failure::Clap(error)) => error.exit(),
        Err(Failure::Problems(problems)) => {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(std::io::stderr(), "{problems}");
            process::exit(2)
        }
    }
}

/// `importer --help` shows the settings of `importer run`, because that is what people look for.
fn name_the_command(command: &Command, argv: &mut Vec<OsString>) {
    let first = argv.get(1).and_then(|word| word.to_str());
    let is_command = |word: &str| word == "help" || command.get_subcommands().any(|known| known.get_name() == word);
    let is_complete = first.is_some_and(|word| is_command(word) || word == "--version" || word == "-V");
    if !is_complete {
        argv.insert(1.min(argv.len()), "run".into());
    }
}

enum Failure {
    /// Help, version, or a command line that is no sentence.
    Clap(clap::Error),
    Problems(Problems),
}

fn parse<S: Parser>(argv: &[OsString], contradictions: Contradictions) -> Result<S, Failure> {
    let command = S::command();
    let lenient = command.clone().mut_subcommands(|command| command.mut_args(take_anything));
    let found = lenient.try_get_matches_from(argv).map_err(Failure::Clap)?;
    let (name, values) = found.subcommand().expect("name_the_command has put one there");
    let chosen = command.find_subcommand(name).expect("clap knows what it found");
    let mut lines: Vec<String> = chosen.get_arguments().filter_map(|arg| problem_of(arg, values)).collect();
    lines.extend(contradictions(&|id| raw(values, id).map(|value| value.to_string_lossy().into_owned())));
    if !lines.is_empty() {
        return Err(Failure::Problems(Problems::new(command.get_name(), lines)));
    }
    // What is required is there, or in its file.
    let command = command.mut_subcommands(|command| command.mut_args(|arg| arg.required(false)));
    let matches = command.try_get_matches_from(argv).map_err(Failure::Clap)?;
    S::from_arg_matches(&matches).map_err(Failure::Clap)
}

/// Takes any value and none, so that each can be judged by itself.
fn take_anything(arg: Arg) -> Arg {
    if arg.get_action().takes_values() { arg.required(false).value_parser(value_parser!(OsString)) } else { arg }
}

/// What is wrong with one setting. One whose values are hidden in the help is a secret: it is not shown here either.
fn problem_of(arg: &Arg, values: &ArgMatches) -> Option<String> {
    let id = arg.get_id().as_str();
    let (flag, variable) = (arg.get_long()?, arg.get_env()?.to_str()?);
    let Some(given) = raw(values, id) else {
        let is_in_file = values.try_contains_id(&format!("{id}_file")).unwrap_or(false);
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        return (arg.is_required_set() && !is_in_file).then(|| format!("{variable} (--{flag}) is missing\n{help}"));
    };
    let is_secret = arg.is_hide_env_values_set() || has_secret(&given.to_string_lossy());
    let shown = if is_secret { "wrong".into() } else { format!("`{}`", given.to_string_lossy()) };
    if let Some(why) = refusal(arg, given) {
        return Some(format!("{variable} (--{flag}) is {shown}\n{why}"));
    }
    let is_in_argv = values.value_source(id) == Some(ValueSource::CommandLine);
    (is_in_argv && has_secret(&given.to_string_lossy())).then(|| {
        format!(
            "--{flag} carries a secret, and every user of the machine can read the command line\n\
             put it into the environment as {variable}"
        )
    })
}

/// A setting as it was given, from wherever.
fn raw<'a>(values: &'a ArgMatches, id: &str) -> Option<&'a OsStr> {
    values.try_get_raw(id).ok()??.next()
}

/// What the setting's own parser says against the value.
fn refusal(arg: &Arg, given: &OsStr) -> Option<String> {
    let alone = Arg::new("value").value_parser(arg.get_value_parser().clone()).allow_hyphen_values(true);
    let error = Command::new("").no_binary_name(true).arg(alone).try_get_matches_from([given]).err()?.to_string();
    // "error: invalid value '2x' for '[value]': the reason\n\nFor more information …"
    let why = error.split_once("'[value]'").map_or(error.as_str(), |(_, why)| why.trim_start_matches(": "));
    Some(why.split("\n\nFor more").next().unwrap_or(why).trim().to_owned())
}

/// Whether an address carries a password, or a parameter whose name says that it is secret.
fn has_secret(url: &str) -> bool {
    let has_parameter = |url: &Url| url.query_pairs().any(|(name, _)| is_secret(&name));
    Url::parse(url).is_ok_and(|url| url.password().is_some() || has_parameter(&url))
}

/// How much of a cursor is shown.
const CURSOR_CHARS: usize = 4;

/// The address as it may be shown and stored: without user and password, and with the names of its parameters. A value may be secret, whatever
/// it is called, so `…` stands for it, but for numbers that page, and for what follows the first characters of a cursor.
pub fn public_url(url: &Url) -> String {
    let mut bare = url.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    let bare = without_secrets(&bare);
    let Some(query) = url.query() else { return bare };
    let shown: Vec<_> = query.split('&').map(shown_pair).collect();
    format!("{bare}?{}", shown.join("&"))
}

/// A parameter, as it may be shown.
fn shown_pair(pair: &str) -> String {
    let Some((name, value)) = pair.split_once('=') else { return "…".to_owned() };
    let words = form_urlencoded::parse(name.as_bytes()).flat_map(|(name, _)| words(&name)).collect::<Vec<_>>();
    let is_named = |named: &[&str]| words.iter().any(|word| named.contains(&word.as_str()));
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    if value.is_empty() || is_named(&PAGING) && is_number && !is_named(&SECRET) {
        return pair.to_owned();
    }
    let shown = if is_named(&CURSOR) && !is_named(&SECRET) { CURSOR_CHARS } else { 0 };
    match value.char_indices().nth(shown) {
        Some((end, _)) => format!("{name}={}…", &value[..end]),
        None => pair.to_owned(),
    }
}

/// The address without user, password and the values of parameters whose names say that they are secret.
pub fn without_secrets(url: &Url) -> String {
    let mut shown = url.clone();
    // Both fail only for addresses without a host, which http does not have.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    if url.query_pairs().any(|(name, _)| is_secret(&name)) {
        let pairs = url.query_pairs();
        let pairs = pairs.map(|(name, value)| if is_secret(&name) { (name, "***".into()) } else { (name, value) });
        shown.query_pairs_mut().clear().extend_pairs(pairs);
    }
    shown.into()
}

const SECRET: [&str; 15] = [
    "key",
    "apikey",
    "token",
    "secret",
    "pass",
    "passwd",
    "password",
    "sslpassword",
    "pwd",
    "auth",
    "authorization",
    "sig",
    "signature",
    "credential",
    "credentials",
];

/// Words in the names of parameters that page by numbers.
const PAGING: [&str; 15] = [
    "page", "pages", "per", "offset", "skip", "start", "from", "limit", "size", "count", "top", "first", "rows", "max",
    "results",
];

/// Words in the names of parameters that bring a cursor.
const CURSOR: [&str; 6] = ["cursor", "after", "before", "marker", "continuation", "scroll"];

/// Whether one of the words in a parameter's name says so: `api_key`, `accessToken` and `X-Amz-Signature` do, `author` does not.
fn is_secret(parameter: &str) -> bool {
    words(parameter).iter().any(|word| SECRET.contains(&word.as_str()))
}

/// The words in a parameter's name, in lower case.
fn words(parameter: &str) -> Vec<String> {
    let mut words = String::new();
    for letter in parameter.chars() {
        // `accessToken`, but `TOKEN`.
        if letter.is_ascii_uppercase() && words.ends_with(|before: char| before.is_ascii_lowercase()) {
            words.push(' ');
        }
        words.push(letter);
    }
    words.split(|letter: char| !letter.is_ascii_alphanumeric()).map(str::to_ascii_lowercase).collect()
}

/// `500ms`, `2s`, `1m`, `1h 30m`: a length of time longer than nothing, and at most a week.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_hours(7 * 24);

    let parsed: SignedDuration =
        text.parse().map_err(|_| "a duration is a number with its unit, as in 500ms, 2s, 1m, 1h".to_owned())?;
    let duration = Duration::try_from(parsed).ok().filter(|duration| !duration.is_zero() && *duration <= LONGEST);
    duration.ok_or_else(|| "a duration is longer than nothing, and at most a week".to_owned())
}

/// A whole number from 1 to 999999999999.
pub fn parse_sequence(text: &str) -> Result<Sequence, String> {
    let number: u64 = text.parse().map_err(|_| "a sequence is a whole number".to_owned())?;
    Sequence::try_from(number).map_err(|error| error.to_string())
}

/// An http or https address that may carry secrets, of which what is printed has none.
#[derive(Clone)]
pub struct SecretUrl(Url);

impl FromStr for SecretUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_http_url(text).map(Self)
    }
}

impl Deref for SecretUrl {
    type Target = Url;

    fn deref(&self) -> &Url {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&public_url(self))
    }
}

/// An absolute http or https URL.
pub fn parse_http_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}: an address begins with https:// or http://"))?;
    if matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        Err("an address begins with https:// or http://".to_owned())
    }
}

/// The same of a queue, which the log names.
pub fn parse_queue_url(text: &str) -> Result<Url, String> {
    let url = parse_http_url(text)?;
    let has_secret = !url.username().is_empty() || url.password().is_some();
    if has_secret { Err("the address of a queue has no user and no password".to_owned()) } else { Ok(url) }
}

/// The version of the workspace and the git revision that it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("GIT_REVISION"), ")");

/// The same, apart.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");
pub(crate) const GIT_REVISION: &str = env!("GIT_REVISION");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_an_address_is_seen_wherever_it_stands() {
        for (url, expected) in [
            ("postgres://me@localhost/posts", false),
            ("postgres://me:pw@localhost/posts", true),
            ("postgres://localhost/posts?user=me&password=pw", true),
            ("https://example.org/posts?page=2&api_key=abc", true),
            ("https://example.org/posts?accessToken=abc", true),
            ("https://example.org/posts?author=1&keyword=design", false),
            ("postgres://localhost/posts?sslkey=/etc/ssl/client.key", false),
        ] {
            assert_eq!(has_secret(url), expected, "{url}");
        }
    }

    #[test]
    fn secrets_in_an_address_are_neither_shown_nor_stored() {
        for (given, shown) in [
            ("https://example.org/posts", "https://example.org/posts"),
            ("https://me:pw@example.org/posts", "https://example.org/posts"),
            (
                "https://example.org/posts?api_key=s3cret&page=2&Token=t",
                "https://example.org/posts?api_key=…&page=2&Token=…",
            ),
            ("https://example.org/?appid=1234&pw=7&q=a%20b&alone", "https://example.org/?appid=…&pw=…&q=…&…"),
            (
                "https://example.org/?per_page=100&startAt=7&page=x",
                "https://example.org/?per_page=100&startAt=7&page=…",
            ),
            ("https://example.org/?page%5Btoken%5D=12&p=7#s3cret", "https://example.org/?page%5Btoken%5D=…&p=…"),
            (
                "https://example.org/?after=NTI1ODc&cursor=50&before=",
                "https://example.org/?after=NTI1…&cursor=50&before=",
            ),
        ] {
            assert_eq!(public_url(&given.parse().unwrap()), shown);
            assert_eq!(format!("{:?}", given.parse::<SecretUrl>().unwrap()), shown);
        }
    }

    #[test]
    fn durations_carry_their_unit() {
        for (text, millis) in [("500ms", 500), ("2s", 2_000), ("1m", 60_000), ("1h 30m", 5_400_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "2", "2x", "0s", "-1s", "8d", "999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
