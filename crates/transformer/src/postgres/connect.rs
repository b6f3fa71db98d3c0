//! One connection to Postgres: its settings, and the deadline on everything that it does.
//!
//! A future of the database is never raced or aborted and then used again: whoever misses a deadline or sees an error
//! drops the connection, and the server rolls back.

use std::{env, fs, future::Future, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use shared::{settings::Absent, status};
use sqlx::{
    ConnectOptions, Executor, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::time::{Instant, timeout};
use url::{Host, Position, Url};

use crate::{
    postgres::{fault::TableError, token::rds_token},
    read::table_definition::TableDefinition,
};

/// No answer for this long means that nobody is there: longer than the server lets a statement run.
const DEADLINE: Duration = Duration::from_secs(75);

/// The server's side of every bound. `idle_in_transaction` is longer than a stalled body is waited for, because S3 is read inside the
/// transaction. The planner is held to the index, and to its order: with stale statistics an upsert fell from 310,000 to 15,000 rows a
/// second, and on a table that was small when it was analysed it would read the whole of it for each post (measured on 15). To read a
/// table of one row then seems dear enough to compile the plan first, which took 40 ms a statement, so that is off. No session looks for
/// anything outside its own schema.
const SESSION: &str = "
    SET statement_timeout = '60s';
    SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '120s';
    SET tcp_keepalives_idle = 30;
    SET tcp_keepalives_interval = 5;
    SET tcp_keepalives_count = 3;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET jit = off;
    SET client_min_messages = warning;
";

/// Which database, and where in it.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// Postgres 15 or newer, as postgres://user:password@host:port/name; a password only in the environment or in
    /// DATABASE_URL_FILE, never on the command line
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true, required = true, value_parser = parse_database_url)]
    pub database_url: Option<SecretString>,
    /// A file that holds what DATABASE_URL would; read again for each connection
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<PathBuf>,
    /// How to prove who we are: with the address's `password`, or with a token from `iam` that is made anew for each connection
    /// (RDS; the SDK's own variables say whose)
    #[arg(long, env = "DATABASE_AUTH", value_name = "HOW", value_enum, default_value_t = DatabaseAuth::Password)]
    pub database_auth: DatabaseAuth,
    /// Talks to a database on another host without checking its certificate. Without this flag sslmode is verify-full there; the
    /// authority's certificate is named in the address, as in `?sslrootcert=/etc/ssl/rds.pem`
    #[arg(long, env = "ALLOW_PLAINTEXT", value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub allow_plaintext: bool,
    /// Schema that holds this stream's tables: a-z, 0-9 and _, at most 63
    #[arg(long, env = "DATABASE_SCHEMA", value_name = "NAME", default_value = "public")]
    pub database_schema: SchemaName,
}

/// How to prove who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DatabaseAuth {
    /// With the password in the address.
    Password,
    /// With an RDS IAM token.
    Iam,
}

impl DatabaseSettings {
    /// How to connect, with secrets read and TLS decided.
    async fn options(&self) -> Result<PgConnectOptions, TableError> {
        let url = self.url()?;
        let mut options = read_address(url.expose_secret()).map_err(|why| TableError::Address { why })?;
        if is_elsewhere(&options) && !self.allow_plaintext {
            if let Some(why) = exposure(url.expose_secret(), false) {
                return Err(TableError::Address { why });
            }
            options = options.ssl_mode(PgSslMode::VerifyFull);
        }
        if let Some(why) = unreadable_file(url.expose_secret()) {
            return Err(TableError::Unreadable { why });
        }
        if self.database_auth == DatabaseAuth::Iam {
            // In an address, as which a token is signed, colons of the host's own stand in brackets.
            let host = options.get_host();
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            let token = rds_token(&host, options.get_port(), options.get_username()).await;
            options = options.password(token.map_err(TableError::Token)?.expose_secret());
        }
        Ok(options.application_name("transformer").disable_statement_logging())
    }

    fn url(&self) -> Result<SecretString, TableError> {
        match (&self.database_url, &self.database_url_file) {
            (Some(url), _) => Ok(url.clone()),
            (None, Some(file)) => {
                let text =
                    fs::read_to_string(file).map_err(|source| TableError::UrlFile { file: file.clone(), source })?;
                parse_database_url(text.trim()).map_err(|why| TableError::Unreadable {
                    why: format!("DATABASE_URL_FILE {} holds nothing to connect to: {why}", file.display()),
                })
            }
            (None, None) => unreachable!("clap wants one of the two"),
        }
    }
}

/// The name of a schema, safe to stand in a statement: `[a-z_][a-z0-9_]{0,62}`.
#[derive(Clone, Debug)]
pub struct SchemaName(String);

impl FromStr for SchemaName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if starts_well && text.len() <= 63 && text.chars().all(is_word) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a schema name is 1 to 63 characters of a-z, 0-9 and _, and begins with a letter or _")
        }
    }
}

impl SchemaName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for SchemaName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn parse_database_url(text: &str) -> Result<SecretString, String> {
    read_address(text)?;
    Ok(SecretString::from(text))
}

const FORM: &str = "a database's address is postgres://user:password@host:port/name, with special characters percent-encoded, as in %40 for @ \
                    and %23 for #; that of a socket is postgres:///name?host=/folder&user=user";
const SEVERAL: &str = "names several hosts, and the transformer connects to one: give it the host that takes writes, or a name that follows a \
                       failover, such as the cluster's endpoint";

const PARAMETERS: &str = "https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS";

/// The parameters that sqlx reads, beside `options[…]`.
const KNOWN: &str = "host hostaddr port user password dbname application_name options sslmode ssl-mode sslrootcert ssl-root-cert ssl-ca sslcert \
                     ssl-cert sslkey ssl-key statement-cache-capacity";

/// What libpq reads beside the address, and what parameter each stands for. sqlx reads the first two, and takes a wrong value for none.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("PGPORT", "port"),
    ("PGSSLMODE", "sslmode"),
    ("PGSERVICE", "service"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGREQUIREAUTH", "require_auth"),
];

/// How to connect to what an address names, or why that cannot be done, without a word that may be part of a secret.
///
/// libpq knows more than sqlx, which ignores the parameters that it does not know, and logs them with their values.
fn read_address(text: &str) -> Result<PgConnectOptions, String> {
    let mut url = Url::parse(text).map_err(|_| {
        let hosts = text.split_once("://").map_or("", |(_, rest)| rest.rsplit('@').next().unwrap_or(rest));
        let is_list = hosts.split(['/', '?']).next().is_some_and(|hosts| hosts.contains(','));
        if is_list { format!("the address {SEVERAL}") } else { FORM.to_owned() }
    })?;
    // Behind the host they show that the host is the beginning of a password.
    if !matches!(url.scheme(), "postgres" | "postgresql") || url[Position::AfterPort..].contains(['@', '#']) {
        return Err(FORM.to_owned());
    }
    let environment =
        ENVIRONMENT.iter().filter_map(|(variable, name)| Some((*variable, *name, env::var(variable).ok()?)));
    // An empty one says nothing, as to libpq.
    let environment = environment.filter(|(_, _, value)| !value.is_empty());
    for (variable, name, value) in environment {
        judge_parameter(variable, name, &value).map_err(|why| format!("unset {variable}: {why}"))?;
    }
    let mut is_behind_password = false;
    for (name, value) in url.query_pairs() {
        let shown = if is_behind_password { "what follows the password, in which & is written %26" } else { &name };
        judge_parameter(shown, &name, &value)?;
        is_behind_password |= name == "password";
    }
    // sqlx takes the brackets for a part of the host's name.
    if let Some(Host::Ipv6(host)) = url.host() {
        let query = format!("host={host}&{}", url.query().unwrap_or_default());
        url.set_query(Some(&query));
    }
    let options = PgConnectOptions::from_str(url.as_str()).map_err(|_| FORM)?;
    if options.get_host().contains(',') { Err(format!("the address, or PGHOST, {SEVERAL}")) } else { Ok(options) }
}

/// What is wrong with a parameter, which is shown under another name where it has one.
fn judge_parameter(shown: &str, name: &str, value: &str) -> Result<(), String> {
    let instead = match name {
        "host" | "hostaddr" | "port" if value.contains(',') => return Err(format!("{shown} {SEVERAL}")),
        _ if KNOWN.split(' ').any(|known| known == name) => {
            let alone = Url::parse_with_params("postgres://localhost", [(name, value)]);
            let is_taken = alone.is_ok_and(|url| PgConnectOptions::from_str(url.as_str()).is_ok());
            let wrong = || format!("{shown} has a value that it cannot have: see {PARAMETERS}");
            return if is_taken { Ok(()) } else { Err(wrong()) };
        }
        _ if name.starts_with("options[") => return Ok(()),
        "target_session_attrs" if value == "any" => return Ok(()),
        "target_session_attrs" | "load_balance_hosts" => {
            "leave it out, and name the host that takes writes, since the transformer waits while its host takes none"
        }
        "service" | "servicefile" => "write what the service says into the address",
        "passfile" => "name the file in the environment, as PGPASSFILE",
        _ => "leave it out",
    };
    Err(format!("the transformer does not know {shown}: {instead}"))
}

/// The first file of an address that is not to be read, of which sqlx would tell without its name.
fn unreadable_file(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    url.query_pairs()
        .filter(|(name, value)| name.starts_with("ssl") && !name.ends_with("mode") && !value.contains('\n'))
        .find_map(|(name, file)| {
            let error = fs::File::open(&*file).err()?;
            if file == "system" {
                return Some(format!(
                    "{name} is `system` in the database's address: leave it out, since these authorities are known"
                ));
            }
            Some(format!("cannot read the file {file}, which the database's address names as {name}: {error}"))
        })
}

/// An address that allows less than a checked certificate on another host, without the word that allows it.
pub fn exposure(url: &str, allow_plaintext: bool) -> Option<String> {
    let options = read_address(url).ok()?;
    let says_less = Url::parse(url)
        .ok()?
        .query_pairs()
        .any(|(name, value)| matches!(&*name, "sslmode" | "ssl-mode") && value != "verify-full");
    (says_less && is_elsewhere(&options) && !allow_plaintext).then(|| {
        "DATABASE_URL (--database-url) asks for less than sslmode=verify-full on another host\nwhoever sits between could be the database: \
         name the authority's certificate with sslrootcert, or say --allow-plaintext"
            .to_owned()
    })
}

/// Whether others can see the connection.
fn is_elsewhere(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    options.get_socket().is_none() && !host.starts_with('/') && !is_loopback
}

/// Opens a connection whose unqualified names mean the stream's schema.
pub async fn connect(settings: &DatabaseSettings) -> Result<PgConnection, TableError> {
    let Ok(options) = timeout(DEADLINE, settings.options()).await else {
        return Err(TableError::Deadline { doing: "prepare to connect to", secs: DEADLINE.as_secs() });
    };
    let options = options?;
    let mut connection = within("connect to", options.connect()).await?;
    // Checked when it was made: a name of [a-z0-9_] needs no quoting rules.
    let search_path = format!("SET search_path = \"{}\"", settings.database_schema);
    within("set up a session of", connection.execute(SESSION)).await?;
    within("set up a session of", connection.execute(sqlx::AssertSqlSafe(search_path))).await?;
    Ok(connection)
}

/// What keeps the connection's role from its work on the table that records go into, or from migrating: a line each, with what to do.
pub async fn obstacles(
    connection: &mut PgConnection,
    schema: &SchemaName,
    definition: &TableDefinition,
    is_migrating: bool,
) -> Result<Vec<String>, TableError> {
    let look = sqlx::query_scalar(include_str!("../sql/select_obstacles.sql"));
    let deletes = definition.absent.absent == Absent::Delete;
    let look = look.bind(schema.as_str()).bind([definition.table.as_str()]).bind(is_migrating).bind(deletes);
    within("look for obstacles in", look.fetch_all(connection)).await
}

/// Awaits an answer of the database until the deadline. After an error of any kind the connection is good for nothing but to be dropped.
pub async fn within<T>(
    doing: &'static str,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, TableError> {
    within_since(Instant::now(), doing, answer).await
}

/// The same for a part of a statement that was begun at that time.
pub async fn within_since<T>(
    begun: Instant,
    doing: &'static str,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, TableError> {
    status::beat();
    match timeout(DEADLINE, answer).await {
        Ok(answer) => answer.map_err(|error| match error {
            sqlx::Error::Database(answer) => TableError::Refused { doing, answer, took: begun.elapsed() },
            source => TableError::Sql { doing, source },
        }),
        Err(_) => Err(TableError::Deadline { doing, secs: DEADLINE.as_secs() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_refused_with_what_to_do_and_without_its_secret() {
        for (address, why) in [
            ("", FORM),
            ("localhost/posts", FORM),
            ("mysql://localhost/posts", FORM),
            ("host=localhost dbname=posts password=s3cret", FORM),
            ("postgres://me:s3/cret@localhost/posts", FORM),
            ("postgres://me:5432/s3cret@localhost/posts", FORM),
            ("postgres://me:5432#s3cret@localhost/posts", FORM),
            ("postgres://me@localhost:5432?s3cret@localhost/posts", FORM),
            ("postgres://me:s3cret@one,two/posts", &format!("the address, or PGHOST, {SEVERAL}")),
            ("postgres://me:s3cret@one:5432,two:5433/posts", &format!("the address {SEVERAL}")),
            ("postgres://me:s3cret@[::1]:5432,[::2]:5432/posts?sslmode=require", &format!("the address {SEVERAL}")),
            ("postgres:///posts?host=one,two", &format!("host {SEVERAL}")),
            ("postgres://localhost/posts?hostaddr=127.0.0.1,127.0.0.2", &format!("hostaddr {SEVERAL}")),
            ("postgres://localhost/posts?port=5432,5433", &format!("port {SEVERAL}")),
            (
                "postgres://localhost/posts?sslmode=verify_full",
                &format!("sslmode has a value that it cannot have: see {PARAMETERS}"),
            ),
            (
                "postgres://localhost/posts?port=s3cret",
                &format!("port has a value that it cannot have: see {PARAMETERS}"),
            ),
            (
                "postgres://localhost/posts?target_session_attrs=read-write",
                "the transformer does not know target_session_attrs: leave it out, and name the host that takes writes, since the \
                 transformer waits while its host takes none",
            ),
            (
                "postgres:///?service=posts",
                "the transformer does not know service: write what the service says into the address",
            ),
            (
                "postgres://localhost/posts?passfile=/s3cret",
                "the transformer does not know passfile: name the file in the environment, as PGPASSFILE",
            ),
            (
                "postgres://localhost/posts?sslpassword=s3cret",
                "the transformer does not know sslpassword: leave it out",
            ),
            (
                "postgres://localhost/posts?password=s3&cret",
                "the transformer does not know what follows the password, in which & is written %26: leave it out",
            ),
        ] {
            assert_eq!(read_address(address).unwrap_err(), why, "{address}");
        }
    }

    #[test]
    fn an_address_may_be_an_ipv6_literal() {
        for (address, host) in [
            ("postgres://me:pw@localhost:5432/posts", "localhost"),
            ("postgres://me:pw@[::1]:5432/posts?sslmode=require", "::1"),
            ("postgres://me@[2001:db8::7]", "2001:db8::7"),
            ("postgres://me@[2001:db8::7]?host=db.example.org", "db.example.org"),
            ("postgres:///posts?host=::1&user=me", "::1"),
        ] {
            assert_eq!(read_address(address).unwrap().get_host(), host, "{address}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let (there, missing) = (env!("CARGO_MANIFEST_DIR"), "no/such/ca.pem");
        let url = format!("postgres://localhost/posts?sslmode=verify-full&sslcert={there}&sslrootcert={missing}");
        let why = "cannot read the file no/such/ca.pem, which the database's address names as sslrootcert: No such file or directory (os \
                   error 2)";
        assert_eq!(unreadable_file(&url).as_deref(), Some(why));
        assert_eq!(unreadable_file("postgres://localhost/posts?sslmode=disable"), None);
    }

    #[test]
    fn another_host_is_only_talked_to_with_its_certificate_checked() {
        for (url, allow, expected) in [
            ("postgres://me@db.example.org/posts", false, None),
            ("postgres://me@db.example.org/posts?sslmode=verify-full", false, None),
            ("postgres://me@db.example.org/posts?sslmode=require", false, Some(())),
            ("postgres://me@db.example.org/posts?sslmode=disable", false, Some(())),
            ("postgres://me@db.example.org/posts?sslmode=disable", true, None),
            ("postgres://me@127.0.0.1/posts?sslmode=disable", false, None),
            ("postgres://me@[::1]/posts?sslmode=disable", false, None),
            ("postgres://me@[2001:db8::7]/posts?sslmode=disable", false, Some(())),
            ("postgres://me@localhost/posts?sslmode=disable", false, None),
        ] {
            assert_eq!(exposure(url, allow).map(|_| ()), expected, "{url}");
        }
    }

    #[test]
    fn schema_names_need_no_quoting_rules() {
        for wrong in ["", "1a", "Posts", "a\"b", "a-b", &"a".repeat(64)] {
            assert!(wrong.parse::<SchemaName>().is_err(), "{wrong}");
        }
        assert!("_posts2".parse::<SchemaName>().is_ok());
    }
}
