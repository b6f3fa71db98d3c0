//! What the table looks like, and where in a record each column comes from: TABLE and TABLE_COLUMNS. Pure.
//!
//! ```text
//! entries = entry, entry, …
//! entry   = name type [not null] [source]
//! name    = bare, or in double quotes, where "" is one of them
//! type    = bigint | double precision | boolean | text | date | timestamptz [epoch | epoch_ms] | uuid | jsonb | numeric
//! source  = /pointer, in double quotes where it holds a blank or a comma | . (the record) | * (what no other column takes)
//! ```

use std::{collections::HashSet, fmt, str::FromStr};

use clap::Args;
use shared::{
    json_pointer::JsonPointer,
    settings::{Absent, AbsentSettings},
};
use thiserror::Error;

/// Postgres cuts a longer name off, and takes two that begin alike for one.
const NAME_LIMIT_BYTES: usize = 63;

/// A table of Postgres has at most 1,600 columns, and four are ours.
const COLUMNS_LIMIT: usize = 1_596;

/// The columns that each table has besides.
pub const OURS: [&str; 4] = ["first_seen_at", "updated_at", "sequence", "absent_since"];

/// The tables that each schema has besides.
pub const OUR_TABLES: [&str; 5] = ["stream", "objects", "quarantined_records", "missing_rows", "stream_migrations"];

/// Their indexes, which have names among those of tables.
const OUR_INDEXES: [&str; 8] = [
    "stream_pkey",
    "stream_has_one_row",
    "objects_pkey",
    "objects_observation_key",
    "quarantined_records_pkey",
    "missing_rows_pkey",
    "stream_migrations_pkey",
    KEY,
];

/// The constraint of the key of the rows, whatever the table's name.
pub const KEY: &str = "stream_rows_pkey";

/// Columns that Postgres gives each table.
const OF_POSTGRES: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// The table.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct TableDefinition {
    /// The table that records become rows of, in DATABASE_SCHEMA
    #[arg(long = "table", env = "TABLE", value_name = "NAME", default_value = "posts", value_parser = parse_table)]
    pub table: String,
    /// The table's columns, as in CREATE TABLE, each with the place in a record that it comes from: `name type [not null] [source]`, with
    /// commas between. The first is the key. Types: bigint, double precision, boolean, text, date, timestamptz, timestamptz epoch,
    /// timestamptz epoch_ms, uuid, jsonb, numeric. Sources: a JSON pointer as in /title/rendered, in double quotes where it holds a blank or
    /// a comma [default: /name]; a dot for the whole record; * for all that no other column takes
    #[arg(long, env = "TABLE_COLUMNS", value_name = "COLUMNS", default_value = DEFAULT)]
    pub table_columns: Columns,
    /// What becomes of rows that the API has no more.
    #[command(flatten)]
    pub absent: AbsentSettings,
}

impl Default for TableDefinition {
    fn default() -> Self {
        Self { table: "posts".to_owned(), table_columns: Columns::default(), absent: AbsentSettings::default() }
    }
}

/// As a person sets it.
impl fmt::Display for TableDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TABLE={} TABLE_COLUMNS='{}'", written(&self.table), self.table_columns)?;
        match self.absent.absent {
            Absent::Keep => Ok(()),
            absent => write!(f, " ABSENT={absent}"),
        }
    }
}

impl TableDefinition {
    /// The columns that a table made from `made` lacks, or why it cannot become this one.
    pub fn added<'a>(&'a self, made: &Self) -> Result<Vec<&'a Column>, String> {
        let mut problems = Vec::new();
        if self.table != made.table {
            problems.push(format!("the table is `{}`, and TABLE is `{}`", made.table, self.table));
        }
        if self.table_columns.key() != made.table_columns.key() {
            problems.push(format!("the key is `{}`", made.table_columns.key()));
        }
        for before in made.table_columns.all() {
            match self.table_columns.all().iter().find(|column| column.name == before.name) {
                Some(now) if now == before => {}
                Some(now) => problems.push(format!("`{before}` would become `{now}`")),
                None => problems.push(format!("`{before}` would be missing")),
            }
        }
        let is_new = |column: &&Column| !made.table_columns.all().iter().any(|before| before.name == column.name);
        let added: Vec<_> = self.table_columns.all().iter().filter(is_new).collect();
        for column in added.iter().filter(|column| column.is_required) {
            problems.push(format!("`{column}` is new, and old rows have no value for a column that is not null"));
        }
        if problems.is_empty() { Ok(added) } else { Err(problems.join("; ")) }
    }
}

/// The name of a table, as Postgres has it: bare or in double quotes, and none of the tables that the schema has besides.
pub fn parse_table(text: &str) -> Result<String, String> {
    match name(text.trim())? {
        (Name { folded, .. }, rest) if rest.trim().is_empty() => {
            if OUR_TABLES.contains(&&*folded) || OUR_INDEXES.contains(&&*folded) {
                Err(format!("the schema has a table or an index `{folded}` besides"))
            } else if folded.starts_with("pg_") {
                Err(format!("Postgres looks for `{folded}` among its own tables: take another name"))
            } else {
                Ok(folded)
            }
        }
        (_, rest) => Err(format!("behind the name stands `{}`", rest.trim())),
    }
}

/// Columns and where each comes from; the first is the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(Vec<Column>);

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// As in the database, without quotes.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Whether a record without it is no row.
    pub is_required: bool,
    /// Where it comes from.
    pub source: ColumnSource,
}

/// The type of a column, and how a value of it stands in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are named as in SQL")]
pub enum Kind {
    Bigint,
    DoublePrecision,
    Boolean,
    Text,
    Date,
    Timestamptz,
    /// Of a number of seconds since 1970.
    TimestamptzEpoch,
    /// Of a number of milliseconds since 1970.
    TimestamptzEpochMs,
    Uuid,
    Jsonb,
    Numeric,
}

/// Where in a record a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnSource {
    /// Where this leads, which is not the record itself.
    Pointer(JsonPointer),
    /// It is the whole record.
    Record,
    /// It is an object of all that no other column takes; NULL where that is nothing.
    Rest,
}

/// All that is wrong with a definition.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct ColumnsError(Vec<String>);

impl Kind {
    const ALL: [Self; 11] = [
        Self::Bigint,
        Self::DoublePrecision,
        Self::Boolean,
        Self::Text,
        Self::Date,
        Self::TimestamptzEpochMs,
        Self::TimestamptzEpoch,
        Self::Timestamptz,
        Self::Uuid,
        Self::Jsonb,
        Self::Numeric,
    ];

    /// As it stands in TABLE_COLUMNS.
    pub fn words(self) -> &'static str {
        match self {
            Self::TimestamptzEpoch => "timestamptz epoch",
            Self::TimestamptzEpochMs => "timestamptz epoch_ms",
            other => other.sql(),
        }
    }

    /// As it is named in SQL.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Bigint => "bigint",
            Self::DoublePrecision => "double precision",
            Self::Boolean => "boolean",
            Self::Text => "text",
            Self::Date => "date",
            Self::Timestamptz | Self::TimestamptzEpoch | Self::TimestamptzEpochMs => "timestamptz",
            Self::Uuid => "uuid",
            Self::Jsonb => "jsonb",
            Self::Numeric => "numeric",
        }
    }

    /// Whether rows can be known by it: equal values must be equal bytes.
    pub fn may_be_key(self) -> bool {
        !matches!(self, Self::DoublePrecision | Self::Boolean | Self::Jsonb | Self::Numeric)
    }
}

impl Columns {
    /// All of them; the first is the key.
    pub fn all(&self) -> &[Column] {
        &self.0
    }

    /// The column that a row is known by.
    pub fn key(&self) -> &Column {
        &self.0[0]
    }
}

impl Default for Columns {
    /// Those of a blog post.
    fn default() -> Self {
        DEFAULT.parse().expect("a test reads it")
    }
}

/// Posts.
pub const DEFAULT: &str =
    "id bigint, user_id bigint not null /userId, title text not null, body text not null, extra jsonb *";

impl FromStr for Columns {
    type Err = ColumnsError;

    fn from_str(text: &str) -> Result<Self, ColumnsError> {
        let (mut columns, mut problems) = (Vec::new(), Vec::new());
        for (at, entry) in entries(text).into_iter().enumerate() {
            match Column::parse(entry) {
                Ok(mut column) => {
                    column.is_required |= at == 0;
                    columns.push(column);
                }
                Err(problem) => problems.push(format!("entry {}, `{}`: {problem}", at + 1, entry.trim())),
            }
        }
        problems.extend(contradictions(&columns));
        if problems.is_empty() { Ok(Self(columns)) } else { Err(ColumnsError(problems)) }
    }
}

/// What is wrong with entries that are each right by themselves.
fn contradictions(columns: &[Column]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut names = HashSet::new();
    for Column { name, .. } in columns {
        if !names.insert(name) {
            problems.push(format!("column `{name}` stands there twice"));
        }
    }
    if let Some(key) = columns.first() {
        if !key.kind.may_be_key() {
            problems.push(format!(
                "the first entry is the key, and {} cannot be one: take bigint, text, uuid, date or timestamptz",
                key.kind.sql()
            ));
        }
        if !matches!(key.source, ColumnSource::Pointer(_)) {
            problems.push(format!("the first entry is the key, and `{}` is no single value", key.source));
        }
    }
    if columns.iter().filter(|column| column.source == ColumnSource::Rest).count() > 1 {
        problems.push("two columns take the rest (`*`)".to_owned());
    }
    if columns.len() > COLUMNS_LIMIT {
        problems.push(format!("a table has room for {COLUMNS_LIMIT} columns, and these are {}", columns.len()));
    }
    problems
}

/// The text between commas that stand in no quotes.
fn entries(text: &str) -> Vec<&str> {
    let mut is_quoted = false;
    text.split(|c| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    })
    .collect()
}

impl Column {
    fn parse(entry: &str) -> Result<Self, String> {
        let (name, rest) = name(entry.trim())?;
        let taken = &*name.folded;
        if OURS.contains(&taken) {
            return Err(format!("the column `{taken}` is the transformer's own: take another name"));
        }
        if OF_POSTGRES.contains(&taken) {
            return Err(format!("Postgres gives each table a column `{taken}`: take another name"));
        }
        let Some((kind, rest)) = Kind::ALL.iter().find_map(|kind| Some((*kind, after_words(rest, kind.words())?)))
        else {
            let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.words()).collect();
            return Err(format!("`{}` begins with no type: take one of {}", rest.trim(), known.join(", ")));
        };
        let (is_required, rest) = match after_words(rest, "not null") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let source = match rest.trim() {
            "" => ColumnSource::Pointer(
                format!("/{}", escaped(&name.written)).parse().map_err(|error| format!("{error}"))?,
            ),
            "." => ColumnSource::Record,
            "*" => ColumnSource::Rest,
            pointer => ColumnSource::Pointer(pointer_of(pointer)?),
        };
        if !matches!(source, ColumnSource::Pointer(_)) && kind != Kind::Jsonb {
            return Err(format!("`{source}` is an object, and only a jsonb column takes one"));
        }
        Ok(Self { name: name.folded, kind, is_required, source })
    }
}

/// A name as it is written, and as Postgres has it.
struct Name {
    written: String,
    folded: String,
}

/// The name at the beginning, and what is behind it.
fn name(entry: &str) -> Result<(Name, &str), String> {
    let (name, rest) = if let Some(quoted) = entry.strip_prefix('"') {
        let (name, rest) = unquote(quoted)?;
        (Name { folded: name.clone(), written: name }, rest)
    } else {
        let end = entry.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(entry.len());
        let (name, rest) = entry.split_at(end);
        let is_name = !name.starts_with(|c: char| c.is_ascii_digit());
        if !(is_name && (rest.is_empty() || rest.starts_with(char::is_whitespace))) {
            let why = "a name has letters, digits and _, and does not begin with a digit: put others in double quotes";
            return Err(why.to_owned());
        }
        (Name { written: name.to_owned(), folded: name.to_ascii_lowercase() }, rest)
    };
    let shown = &name.folded;
    match () {
        () if shown.is_empty() => Err("a name is missing".to_owned()),
        () if shown.contains('\0') => Err("a name holds U+0000".to_owned()),
        () if shown.len() > NAME_LIMIT_BYTES => Err(format!("`{shown}` is longer than {NAME_LIMIT_BYTES} bytes")),
        () => Ok((name, rest)),
    }
}

/// The text up to the quote that ends it, and what is behind.
fn unquote(quoted: &str) -> Result<(String, &str), String> {
    let mut text = String::new();
    let mut rest = quoted;
    loop {
        let (part, behind) = rest.split_once('"').ok_or("a double quote is not closed")?;
        text.push_str(part);
        match behind.strip_prefix('"') {
            Some(behind) => {
                text.push('"');
                rest = behind;
            }
            None => return Ok((text, behind)),
        }
    }
}

/// What is behind these words, which may have other blanks between them and other letter case.
fn after_words<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    words.split(' ').try_fold(text, |text, word| {
        let text = text.trim_start();
        let (found, rest) = text.split_at_checked(word.len())?;
        let is_whole = !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        (found.eq_ignore_ascii_case(word) && is_whole).then_some(rest)
    })
}

fn pointer_of(source: &str) -> Result<JsonPointer, String> {
    let pointer = match source.strip_prefix('"') {
        Some(quoted) => match unquote(quoted)? {
            (pointer, rest) if rest.trim().is_empty() => pointer,
            (_, rest) => return Err(format!("behind the source stands `{}`", rest.trim())),
        },
        None if source.starts_with('/') && !source.contains(char::is_whitespace) => source.to_owned(),
        None => {
            return Err(format!(
                "`{source}` is no source: it is a JSON pointer as in /meta/id, `.` or `*`; only `not null` comes before it"
            ));
        }
    };
    let pointer: JsonPointer = pointer.parse().map_err(|error| format!("{error}"))?;
    if pointer.is_root() { Err("the record itself is `.`".to_owned()) } else { Ok(pointer) }
}

/// A member's name as a part of a JSON pointer.
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// An identifier in SQL, whatever it holds.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// In one form, whichever way it was written.
impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, column) in self.0.iter().enumerate() {
            write!(f, "{}{column}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, is_required, source } = self;
        write!(f, "{} {}{} {source}", written(name), kind.words(), if *is_required { " not null" } else { "" })
    }
}

/// A name as it is written in a definition.
pub fn written(name: &str) -> String {
    let is_bare = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if is_bare && !name.starts_with(|c: char| c.is_ascii_digit()) { name.to_owned() } else { quoted(name) }
}

impl fmt::Display for ColumnSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record => f.write_str("."),
            Self::Rest => f.write_str("*"),
            Self::Pointer(pointer) => {
                let pointer = pointer.to_string();
                let is_bare = !pointer.contains(|c: char| c.is_whitespace() || c == ',' || c == '"');
                f.write_str(&if is_bare { pointer } else { quoted(&pointer) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String, String> {
        text.parse::<Columns>().map(|columns| columns.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_definition_is_read_as_people_write_it() {
        for (text, expected) in [
            (
                DEFAULT,
                "id bigint not null /id, user_id bigint not null /userId, title text not null /title, body text not null /body, extra jsonb *",
            ),
            (
                "id bigint, title text /title/rendered,\n  published timestamptz /date_gmt, extra jsonb *",
                "id bigint not null /id, title text /title/rendered, published timestamptz /date_gmt, extra jsonb *",
            ),
            ("id text /isbn, doc jsonb .", "id text not null /isbn, doc jsonb ."),
            (
                "userId  UUID,at Timestamptz  EPOCH NOT  NULL /a~1b,ms timestamptz epoch_ms,f DOUBLE\tprecision",
                "userid uuid not null /userId, at timestamptz epoch not null /a~1b, ms timestamptz epoch_ms /ms, f double precision /f",
            ),
            (
                r#""a, ""b" bigint, "Zürich/7" numeric "/x y/z,""", d date "/d""#,
                r#""a, ""b" bigint not null "/a, ""b", "Zürich/7" numeric "/x y/z,""", d date /d"#,
            ),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expected), "{text}");
            assert_eq!(canonical(expected).as_deref(), Ok(expected), "it is read back");
        }
    }

    #[test]
    fn all_mistakes_are_told_with_their_places() {
        for (text, problems) in [
            ("", &["entry 1, ``: a name is missing"][..]),
            (
                "id bigin, x, 7 text, y text null, z text z",
                &[
                    "entry 1, `id bigin`: `bigin` begins with no type: take one of bigint, double precision, boolean, text, date, \
                     timestamptz epoch_ms, timestamptz epoch, timestamptz, uuid, jsonb, numeric",
                    "entry 2, `x`: `` begins with no type",
                    "entry 3, `7 text`: a name has letters",
                    "entry 4, `y text null`: `null` is no source",
                    "entry 5, `z text z`: `z` is no source",
                ],
            ),
            ("id numeric", &["the first entry is the key, and numeric cannot be one"]),
            ("id jsonb .", &["jsonb cannot be one", "the first entry is the key, and `.` is no single value"]),
            ("id bigint, a text *", &["entry 2, `a text *`: `*` is an object, and only a jsonb column takes one"]),
            ("id bigint, a jsonb *, b jsonb *", &["two columns take the rest"]),
            ("id bigint, ID text", &["column `id` stands there twice"]),
            (
                "id bigint, sequence bigint, ctid text",
                &[
                    "entry 2, `sequence bigint`: the column `sequence` is the transformer's own",
                    "entry 3, `ctid text`: Postgres gives",
                ],
            ),
            ("id bigint, x text /0", &["would be a place in an array"]),
            ("id bigint, x text \"\"", &["the record itself is `.`"]),
            ("id bigint, \"x text", &["a double quote is not closed"]),
            ("id bigint, x text \"/a\" b", &["behind the source stands `b`"]),
            ("id varchar(3)", &["`varchar(3)` begins with no type"]),
            ("id bigint, x text(3)", &["`(3)` is no source"]),
        ] {
            let told = canonical(text).unwrap_err();
            assert_eq!(told.lines().count(), problems.len(), "{told}");
            for (line, problem) in told.lines().zip(problems) {
                assert!(line.contains(problem), "{line}\n{problem}");
            }
        }
        let long = "x".repeat(64);
        assert!(canonical(&format!("{long} text")).unwrap_err().contains("is longer than 63 bytes"));
    }
}
