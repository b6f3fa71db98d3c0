//! One connection to Postgres: its settings, and the deadline on everything that it does.
//!
//! A future of the database is never raced or aborted and then used again: whoever misses a deadline or sees an error
//! drops the connection, and the server rolls back.

use std::{fs, future::Future, io, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use shared::status;
use sqlx::{
    ConnectOptions, Executor, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::time::{Instant, timeout};
use url::Url;

use crate::{fault::TableError, token::rds_token};

/// No answer for this long means that nobody is there: longer than the server lets a statement run.
const DEADLINE: Duration = Duration::from_secs(75);

/// The server's side of every bound. `idle_in_transaction` is longer than a stalled body is waited for, because S3 is read inside the
/// transaction. The planner is held to the index, and to its order: with stale statistics MERGE fell from 310,000 to 15,000 rows a
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
        let mut options = PgConnectOptions::from_str(url.expose_secret())
            .map_err(|source| TableError::Sql { doing: "read the address of", source })?;
        if is_elsewhere(&options) && !self.allow_plaintext {
            if let Some(why) = exposure(url.expose_secret(), false) {
                return Err(TableError::Address { why });
            }
            options = options.ssl_mode(PgSslMode::VerifyFull);
        }
        if self.database_auth == DatabaseAuth::Iam {
            let token = rds_token(options.get_host(), options.get_port(), options.get_username()).await;
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
                parse_database_url(text.trim())
                    .map_err(|why| TableError::UrlFile { file: file.clone(), source: io::Error::other(why) })
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
    let wrong = "a database's address is postgres://user:password@host:port/name, with special characters in the password percent-encoded";
    let url = Url::parse(text).map_err(|_| wrong)?;
    if !matches!(url.scheme(), "postgres" | "postgresql") || PgConnectOptions::from_str(text).is_err() {
        return Err(wrong.to_owned());
    }
    Ok(SecretString::from(text))
}

/// An address that allows less than a checked certificate on another host, without the word that allows it.
pub fn exposure(url: &str, allow_plaintext: bool) -> Option<String> {
    let options = PgConnectOptions::from_str(url).ok()?;
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
    // An IPv6 address stands in brackets there.
    let host = options.get_host().trim_matches(['[', ']']);
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
    fn what_is_no_database_is_refused() {
        for wrong in ["", "localhost/posts", "mysql://localhost/posts"] {
            assert!(parse_database_url(wrong).is_err(), "{wrong}");
        }
        assert!(parse_database_url("postgres://me:pw@localhost:5432/posts").is_ok());
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
