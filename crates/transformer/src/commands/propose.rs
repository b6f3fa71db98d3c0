//! Which TABLE and TABLE_COLUMNS would fit records that were seen. Pure.
//!
//! A column's type is the first of `KINDS` that takes every value, and `values::put` says what a type takes, as it does for the loader.
//! An object stays jsonb, but one that never had more than one or two members, and those neither objects nor arrays, becomes a column for
//! each: `{"title": {"rendered": "…"}}` gives `title text /title/rendered`.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
};

use serde_json::value::RawValue;
use shared::{json_pointer::JsonPointer, object::StreamName, records::Record};

use crate::read::{
    batch::TOO_LONG,
    decimal::Decimal,
    jsonb,
    members::Members,
    row::Fields,
    table_definition::{ColumnSource, Columns, Kind, escaped, parse_table, written},
    values::{self, KEY_LIMIT_BYTES},
};

/// The types of columns, the most telling first.
const KINDS: [Kind; 11] = [
    Kind::Boolean,
    Kind::TimestamptzEpoch,
    Kind::TimestamptzEpochMs,
    Kind::Bigint,
    Kind::DoublePrecision,
    Kind::Numeric,
    Kind::Timestamptz,
    Kind::Date,
    Kind::Uuid,
    Kind::Text,
    Kind::Jsonb,
];

/// Members that are usually a key, the likeliest first.
const KEY_NAMES: [&str; 5] = ["id", "_id", "uuid", "guid", "key"];

/// A whole number may be a time if its name ends so.
const TIME_NAMES: [&str; 6] = ["_at", "time", "timestamp", "created", "updated", "date"];

/// Seconds from 1970 to 2000, and to 2100.
const TIMES: std::ops::Range<i64> = 946_684_800..4_102_444_800;

/// A proposed table has no more columns, and a list no more members: a person is to read them.
const COLUMNS_LIMIT: usize = 40;

/// Members are looked at down to this depth: /a/b/c.
const DEPTH_LIMIT: usize = 3;

/// What no column takes goes here.
const REST: &str = "extra";

/// The types by which keys are compared.
const KEY_KINDS: [Kind; 5] = [Kind::Bigint, Kind::Timestamptz, Kind::Date, Kind::Uuid, Kind::Text];

const OBJECT: &str = "object";

/// As many members are watched; more are names that are values, such as ids.
const MEMBERS_LIMIT: usize = 2_000;

/// As many hashes are kept to see whether a key repeats. They take some 80 MB.
const HASHES_LIMIT: usize = 4 << 20;

/// A name leaves room for what is put before and behind it, below the 63 bytes of Postgres.
const NAME_LIMIT_BYTES: usize = 48;

/// What was seen of records.
#[derive(Debug)]
pub struct Sample {
    /// In the order in which they were first seen; the first is the record itself.
    members: Vec<Member>,
    /// How many records there were that a table can hold.
    pub records: u64,
    /// How many others there were, and why the first of them can be in no table.
    pub left_out: Option<(u64, String)>,
    /// After how many records there were too many hashes.
    searched: Option<u64>,
}

/// What was seen of a member.
#[derive(Debug)]
struct Member {
    path: Vec<String>,
    inner: HashMap<String, usize>,
    /// Whether it has members that are not watched.
    has_more: bool,
    /// In how many records it is there and not null.
    values: u64,
    shapes: Vec<&'static str>,
    /// The types that took all values.
    kinds: Vec<Kind>,
    /// Hashes of its values as long as it may be the key, or why it is not.
    key: Result<HashSet<u64>, &'static str>,
}

/// A column that is wanted: its name, and where it comes from.
type Wanted<'a> = (String, &'a Member);

/// What to set, and what a person should know of it.
#[derive(Debug)]
pub struct Proposal {
    /// TABLE.
    pub table: String,
    /// TABLE_COLUMNS.
    pub columns: String,
    /// Sentences for a person.
    pub notes: Vec<String>,
}

/// As lines for a shell and for systemd's EnvironmentFile. In both a quoted part may follow another one, and only thus does a single quote
/// stand in both.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_quotes = |text: &str| format!("'{}'", text.replace('\'', r#"'"'"'"#));
        let table = if self.table.contains('"') { in_quotes(&self.table) } else { self.table.clone() };
        write!(f, "TABLE={table}\nTABLE_COLUMNS={}", in_quotes(&self.columns))
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self { members: vec![Member::new(Vec::new())], records: 0, left_out: None, searched: None }
    }
}

impl Sample {
    /// Looks at a record. Whether a table can hold it at all: the others count for nothing.
    pub fn add(&mut self, record: Record<'_>) -> bool {
        let read = || {
            let members = if record.is_whole { Members::of(record.raw)? } else { return Err(TOO_LONG.to_owned()) };
            jsonb::object(members.clone(), record.raw.len()).map(|_| members)
        };
        let members = match read() {
            Ok(members) => members,
            Err(why) => {
                self.left_out.get_or_insert((0, why)).0 += 1;
                return false;
            }
        };
        let mut found = Vec::new();
        self.find(0, &members, &mut found);
        found.resize(self.members.len(), None);
        self.records += 1;
        let may_search = self.searched.is_none();
        let mut hashes = 0;
        for (member, value) in self.members.iter_mut().zip(found).skip(1) {
            member.note(value.filter(|value| value.get() != "null"), self.records, may_search);
            hashes += member.key.as_ref().map_or(0, HashSet::len);
        }
        if hashes > HASHES_LIMIT {
            self.searched = self.searched.or(Some(self.records));
        }
        true
    }

    /// Finds the members that are watched; of repeated names the last, as the loader does.
    fn find<'a>(&mut self, outer: usize, members: &Members<'a>, found: &mut Vec<Option<&'a RawValue>>) {
        for (name, value) in &members.0 {
            let Some(at) = self.watch(outer, name) else { continue };
            found.resize(self.members.len().max(found.len()), None);
            found[at] = Some(value);
            if self.members[at].path.len() < DEPTH_LIMIT
                && let Ok(inner) = serde_json::from_str(value.get())
            {
                self.find(at, &inner, found);
            }
        }
    }

    fn watch(&mut self, outer: usize, name: &str) -> Option<usize> {
        if let Some(at) = self.members[outer].inner.get(name) {
            return Some(*at);
        }
        // A control character would not come through every file of settings.
        let is_named = !name.contains(char::is_control) && pointer(&[name.to_owned()]).is_some();
        if !is_named || self.members.len() > MEMBERS_LIMIT {
            self.members[outer].has_more = true;
            return None;
        }
        let at = self.members.len();
        let path = [&*self.members[outer].path, &[name.to_owned()]].concat();
        self.members.push(Member::new(path));
        self.members[outer].inner.insert(name.to_owned(), at);
        Some(at)
    }

    /// The table for these records, or why no table can hold them.
    pub fn propose(&self, stream: &StreamName) -> Result<Proposal, String> {
        let mut keys: Vec<_> = self.members.iter().filter(|member| member.is_key()).collect();
        keys.sort_by_key(|member| member.rank());
        let [key, ..] = *keys else { return Err(self.no_key()) };
        let mut columns = vec![(key.name().to_owned(), key)];
        self.columns(0, key, &mut columns);
        let left = columns.split_off(columns.len().min(COLUMNS_LIMIT - 1));
        let mut names = HashSet::from([REST.to_owned()]);
        let entries = columns.iter().map(|(name, member)| member.entry(&free(name, &mut names)));
        let entries: Vec<_> = entries.chain([format!("{REST} jsonb *")]).collect();
        let notes = self.notes(&keys, &columns, &left);
        Ok(Proposal { table: table(stream), columns: entries.join(", "), notes })
    }

    /// The members that become columns, each with the name that it should have. The key is among them already.
    fn columns<'a>(&'a self, outer: usize, key: &Member, columns: &mut Vec<Wanted<'a>>) {
        for at in self.inner(outer) {
            let member = &self.members[at];
            if member.path == key.path || member.values == 0 {
                continue;
            }
            let inner: Vec<_> = self.inner(at).map(|at| &self.members[at]).collect();
            let is_flat = |inner: &&Member| inner.values > 0 && inner.shapes.iter().all(is_scalar);
            let is_small = (1..=2).contains(&inner.len()) && !member.has_more && member.shapes == [OBJECT];
            if key.path.starts_with(&member.path) {
                self.columns(at, key, columns);
            } else if is_small && member.values * 2 >= self.records && inner.iter().all(is_flat) {
                let suffix = |one: &Member| if inner.len() == 1 { String::new() } else { format!("_{}", one.name()) };
                columns.extend(inner.iter().map(|one| (format!("{}{}", member.name(), suffix(one)), *one)));
            } else {
                columns.push((member.name().to_owned(), member));
            }
        }
    }

    fn inner(&self, outer: usize) -> impl Iterator<Item = usize> {
        let mut inner: Vec<_> = self.members[outer].inner.values().copied().collect();
        inner.sort_unstable();
        inner.into_iter()
    }

    fn notes(&self, keys: &[&Member], columns: &[Wanted<'_>], left: &[Wanted<'_>]) -> Vec<String> {
        let (records, key) = (self.records, keys[0]);
        let columns = || columns[1..].iter().map(|(_, member)| *member);
        let mixed = columns().filter(|member| member.kind() == Kind::Jsonb && member.shapes.iter().any(is_scalar));
        let mixed = mixed.map(|member| format!("{} ({})", member.shown(), member.shapes.join(", ")));
        let empty = self.members.iter().filter(|member| member.path.len() == 1 && member.values == 0);
        let single = "there is one record, of which any member could be the key: look again when there are more";
        [
            Some(format!("{} is the key: it is different in every record", key.shown())),
            (key.rank().0 > 0)
                .then(|| "its name does not say that it is a key: make sure that no record ever changes it".to_owned()),
            (records == 1).then(|| single.to_owned()),
            self.left_out
                .as_ref()
                .map(|(count, why)| format!("{count} records would be quarantined; the first: {why}")),
            self.searched.map(|at| format!("for want of memory keys were compared in the first {at} records alone")),
            list("also different in every record", keys[1..].iter().map(|member| member.shown())),
            list(
                "never missing or null; `not null` fits them, and would quarantine a later record without a value",
                columns().filter(|member| member.values == records).map(Member::shown),
            ),
            list("sometimes missing or null", columns().filter(|member| member.values < records).map(Member::shown)),
            list("jsonb, since no other type takes all of their values", mixed),
            list("always null, left in the rest", empty.map(Member::shown)),
            list("more than 40 columns, left in the rest", left.iter().map(|(_, member)| member.shown())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn no_key(&self) -> String {
        let mut likely: Vec<_> = self.members[1..].iter().filter(|member| member.rank().0 == 0).collect();
        likely.sort_by_key(|member| member.rank());
        let why = |member: &Member| match &member.key {
            Err(why) => format!("; {} {why}", member.shown()),
            Ok(_) => format!("; {} is of no type for a key", member.shown()),
        };
        format!(
            "no member tells the {} records apart: a key is there, not null and different in every record, and at most two levels down{}. If \
             records came twice, archive another snapshot with `importer once` and propose again; if the records are deeper in the answer, \
             correct RECORDS_AT; else write TABLE_COLUMNS yourself: of records with equal keys the last one stays",
            self.records,
            likely.into_iter().take(COLUMNS_LIMIT).map(why).collect::<String>()
        )
    }
}

impl Member {
    fn new(path: Vec<String>) -> Self {
        let (inner, key) = (HashMap::new(), Ok(HashSet::new()));
        Self { path, inner, has_more: false, values: 0, shapes: Vec::new(), kinds: KINDS.to_vec(), key }
    }

    /// Notes its value in a record. `records` counts the records up to this one.
    fn note(&mut self, value: Option<&RawValue>, records: u64, may_search: bool) {
        if let Some(value) = value {
            self.values += 1;
            let shape = shape(value.get());
            if !self.shapes.contains(&shape) {
                self.shapes.push(shape);
            }
            let name = self.path.last().map_or("", String::as_str);
            self.kinds.retain(|kind| field(*kind, name, value).is_some());
        }
        if self.values < records {
            self.key = Err("is missing or null in some records");
        }
        let (Ok(hashes), Some(value)) = (&mut self.key, value) else { return };
        // As what it is by itself: a column of a wider type has no fewer values.
        match KEY_KINDS.iter().find_map(|kind| field(*kind, "", value)) {
            None => self.key = Err("is of no type for a key"),
            Some(field) if field.len() > KEY_LIMIT_BYTES => self.key = Err("is too long for a key"),
            Some(field) => {
                if may_search && !hashes.insert(BuildHasherDefault::<DefaultHasher>::default().hash_one(&field)) {
                    self.key = Err("repeats");
                }
            }
        }
    }

    fn kind(&self) -> Kind {
        self.kinds.first().copied().unwrap_or(Kind::Jsonb)
    }

    fn is_key(&self) -> bool {
        self.values > 0 && self.key.is_ok() && self.kind().may_be_key()
    }

    /// How likely it is a key, the likeliest first: by its name, else by its depth, and times last.
    fn rank(&self) -> (u8, usize, usize) {
        let (name, depth) = (self.name(), self.path.len());
        let is_time = self.kind().sql() == Kind::Timestamptz.sql() || self.kind() == Kind::Date;
        match KEY_NAMES.iter().position(|known| name.eq_ignore_ascii_case(known)) {
            Some(place) => (0, depth, place),
            None if depth == 1 && (name.ends_with("Id") || name.ends_with("_id")) => (0, depth, KEY_NAMES.len()),
            None if depth == 1 && name == "slug" => (0, depth, KEY_NAMES.len() + 1),
            None => (1 + u8::from(is_time), depth, 0),
        }
    }

    fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    fn shown(&self) -> String {
        format!("`{}`", pointer(&self.path).unwrap_or_default())
    }

    fn entry(&self, name: &str) -> String {
        let source = match &*self.path {
            [own] if own == name => String::new(),
            path => format!(" {}", ColumnSource::Pointer(pointer(path).expect("only these are watched"))),
        };
        format!("{} {}{source}", written(name), self.kind().words())
    }
}

/// A value as a field, if the type takes it and tells what it is.
fn field(kind: Kind, name: &str, value: &RawValue) -> Option<Vec<u8>> {
    let mut field = Vec::new();
    values::put(kind, value, &mut Fields(&mut field)).ok()?;
    let json = value.get();
    let is_whole = json.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    let is_time = |unit| {
        let has_name = TIME_NAMES.iter().any(|end| snake(name).ends_with(end));
        has_name && is_whole && json.parse().is_ok_and(|number: i64| TIMES.contains(&number.div_euclid(unit)))
    };
    let tells = match kind {
        Kind::Bigint => is_whole,
        Kind::TimestamptzEpoch => is_time(1),
        Kind::TimestamptzEpochMs => is_time(1_000),
        Kind::DoublePrecision => is_held(json),
        Kind::Boolean | Kind::Numeric => !json.starts_with('"'),
        // Thirty-two digits without a hyphen are a digest as well.
        Kind::Uuid => json.contains('-'),
        Kind::Timestamptz | Kind::Date | Kind::Text | Kind::Jsonb => true,
    };
    tells.then_some(field)
}

/// Whether a number has no more digits than a double: the shortest text of the double is the same number.
fn is_held(number: &str) -> bool {
    let digits = |text: &str| {
        let mut number = Decimal::of(text)?;
        let end = number.digits.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1);
        number.digits.truncate(end);
        Some((number.is_negative, number.digits, number.before))
    };
    let is_number = !number.starts_with('"');
    is_number && number.parse().is_ok_and(|double: f64| digits(&double.to_string()) == digits(number))
}

fn shape(json: &str) -> &'static str {
    match json.as_bytes().first() {
        Some(b'{') => OBJECT,
        Some(b'[') => "array",
        Some(b'"') => "text",
        Some(b't' | b'f') => "true or false",
        _ => "number",
    }
}

fn is_scalar(shape: &&str) -> bool {
    ![OBJECT, "array"].contains(shape)
}

fn list(what: &str, members: impl Iterator<Item = String>) -> Option<String> {
    let mut members: Vec<_> = members.take(COLUMNS_LIMIT + 1).collect();
    if members.len() > COLUMNS_LIMIT {
        members.truncate(COLUMNS_LIMIT);
        members.push("…".to_owned());
    }
    (!members.is_empty()).then(|| format!("{what}: {}", members.join(", ")))
}

/// `None` for a name that a pointer takes for a place in an array.
fn pointer(path: &[String]) -> Option<JsonPointer> {
    let names: Vec<_> = path.iter().map(|name| escaped(name)).collect();
    format!("/{}", names.join("/")).parse().ok()
}

/// The stream's name, unless the schema has another table of that name.
fn table(stream: &StreamName) -> String {
    let name = stream.to_string().replace('-', "_");
    let own = written(&name);
    if parse_table(&own).is_ok() { own } else { written(&format!("rows_of_{name}")) }
}

/// A column's name that is not taken yet.
fn free(wanted: &str, names: &mut HashSet<String>) -> String {
    let name = snake(wanted);
    let others = (2..).map(|number| format!("source_{name}_{number}"));
    let mut all = [name.clone(), format!("source_{name}")].into_iter().chain(others);
    let is_allowed = |name: &String| format!("{} text /x", written(name)).parse::<Columns>().is_ok();
    all.find(|name| is_allowed(name) && names.insert(name.clone())).expect("names do not end")
}

/// `userId` is `user_id`, and `HTMLUrl` is `html_url`.
fn snake(name: &str) -> String {
    let letters: Vec<_> = name.chars().collect();
    let mut snake = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).map_or('_', |before| letters[before]);
        let ends_capitals = before.is_uppercase() && letters.get(at + 1).is_some_and(|next| next.is_lowercase());
        if letter.is_uppercase() && (before.is_lowercase() || before.is_numeric() || ends_capitals) {
            snake.push('_');
        }
        let is_kept = letter.is_alphanumeric();
        snake.extend(if is_kept { *letter } else { '_' }.to_lowercase());
    }
    snake.truncate(snake.floor_char_boundary(NAME_LIMIT_BYTES));
    if snake.is_empty() { "unnamed".to_owned() } else { snake }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{any_document::any_value, read::record::RecordReader};

    fn sample(records: &[&str]) -> Sample {
        let mut sample = Sample::default();
        for (index, raw) in (0..).zip(records) {
            sample.add(Record { index, raw: raw.as_bytes(), is_whole: true });
        }
        sample
    }

    /// What the table takes of the sample's records, and the columns.
    fn propose(records: &[&str]) -> Result<Proposal, String> {
        let proposal = sample(records).propose(&"posts".parse().unwrap())?;
        let reader = RecordReader::new(proposal.columns.parse().unwrap());
        for record in records.iter().filter(|record| sample(&[record]).records == 1) {
            let read = reader.read(record.as_bytes(), &mut Fields(&mut Vec::new()));
            assert!(read.is_ok(), "{record}: {read:?} by {}", proposal.columns);
        }
        Ok(proposal)
    }

    #[test]
    fn records_of_known_apis_give_the_table_that_a_person_would_write() {
        for (api, records, expected) in [
            (
                "JSONPlaceholder",
                &[r#"{"userId":1,"id":1,"title":"a","body":"b"}"#, r#"{"userId":1,"id":2,"title":"c","body":"d"}"#][..],
                "id bigint, user_id bigint /userId, title text, body text, extra jsonb *",
            ),
            (
                "WordPress",
                &[
                    r#"{"id":9,"date_gmt":"2026-11-30T12:00:00","guid":{"rendered":"https://a/?p=9"},"slug":"a","title":{"rendered":"A"},
                        "content":{"rendered":"<p>","protected":false},"author":1,"featured_media":0,"sticky":false,"meta":[],
                        "categories":[1],"acf":[],"_links":{"self":[{"href":"x"}],"about":[]}}"#,
                    r#"{"id":7,"date_gmt":"2026-11-29T12:00:00","guid":{"rendered":"https://a/?p=7"},"slug":"b","title":{"rendered":"B"},
                        "content":{"rendered":"","protected":false},"author":1,"featured_media":3,"sticky":true,"meta":{"x":1},
                        "categories":[],"acf":{"y":{}},"_links":{"self":[],"about":[]}}"#,
                ],
                "id bigint, date_gmt timestamptz, guid text /guid/rendered, slug text, title text /title/rendered, \
                 content_rendered text /content/rendered, content_protected boolean /content/protected, author bigint, \
                 featured_media bigint, sticky boolean, meta jsonb, categories jsonb, acf jsonb, _links jsonb, extra jsonb *",
            ),
            (
                "GitHub issues",
                &[
                    r#"{"url":"u/1","id":1001,"node_id":"I_1","number":1,"user":{"login":"a","id":5,"type":"User"},"labels":[],"state":"open",
                        "assignee":null,"created_at":"2026-01-02T03:04:05Z","updated_at":"2026-01-02T03:04:05Z","closed_at":null,
                        "reactions":{"+1":0},"sequence":1}"#,
                    r#"{"url":"u/2","id":1002,"node_id":"I_2","number":2,"user":{"login":"a","id":5,"type":"User"},"labels":[{}],"state":"open",
                        "assignee":null,"created_at":"2026-01-03T03:04:05Z","updated_at":"2026-01-03T03:04:05Z",
                        "closed_at":"2026-01-04T00:00:00Z","reactions":{"+1":3},"sequence":1}"#,
                ],
                "id bigint, url text, node_id text, number bigint, user jsonb, labels jsonb, state text, created_at timestamptz, \
                 source_updated_at timestamptz /updated_at, closed_at timestamptz, reactions bigint /reactions/+1, \
                 source_sequence bigint /sequence, extra jsonb *",
            ),
            (
                "Stripe charges",
                &[
                    r#"{"id":"ch_1","object":"charge","amount":2000,"created":1764504000,"captured":true,"fee":0.25,"metadata":{}}"#,
                    r#"{"id":"ch_2","object":"charge","amount":2000,"created":1764504001,"captured":false,"fee":1,"metadata":{}}"#,
                ],
                "id text, object text, amount bigint, created timestamptz epoch, captured boolean, fee double precision, metadata jsonb, \
                 extra jsonb *",
            ),
            (
                "like Jira",
                &[
                    r#"{"key":{"id":"67e55044-10b1-426f-9247-bb680e5fe0c8","project":"A"},"fields":{"x":{"y":1}},"summary":"s","due":"2026-11-30"}"#,
                    r#"{"key":{"id":"67e55044-10b1-426f-9247-bb680e5fe0c9","project":"A"},"fields":{},"summary":"s","due":"2026-11-30"}"#,
                ],
                "id uuid /key/id, project text /key/project, fields jsonb, summary text, due date, extra jsonb *",
            ),
        ] {
            assert_eq!(propose(records).unwrap().columns, expected, "{api}");
        }
    }

    #[test]
    fn a_column_takes_all_values_and_no_wider_type_than_they_need() {
        for (values, expected) in [
            (&["1", "-0", "null"][..], "bigint"),
            (&["1", "2.5"], "double precision"),
            (&["1.0", "2.0"], "double precision"),
            (&["1e400", "1"], "numeric"),
            (&["0.1234567890123456789"], "numeric"),
            (&["9223372036854775808"], "numeric"),
            (&["1e19"], "double precision"),
            (&["9223372036854775809", "1"], "numeric"),
            (&["9007199254740993", "1.5"], "numeric"),
            (&["1e-999999"], "jsonb"),
            (&["\"1\"", "\"2\""], "text"),
            (&["\"true\""], "text"),
            (&["true", "1"], "jsonb"),
            (&["1", "\"1\""], "jsonb"),
            (&["\"a\"", "[]"], "jsonb"),
            (&["\"2026-11-30\"", "null"], "date"),
            (&["\"2026-11-30\"", "\"2026-11-30T12:00:00Z\""], "text"),
            (&["\"2026-11-30 12:00:00\"", "\"2026-11-30T12:00:00.5+01:00\""], "timestamptz"),
            (&["\"67e55044-10b1-426f-9247-bb680e5fe0c8\""], "uuid"),
            (&["\"67e5504410b1426f9247bb680e5fe0c8\""], "text"),
        ] {
            let records: Vec<_> =
                values.iter().enumerate().map(|(at, value)| format!(r#"{{"id":"k{at}","x":{value}}}"#)).collect();
            let records: Vec<_> = records.iter().map(String::as_str).collect();
            assert_eq!(
                propose(&records).unwrap().columns,
                format!("id text, x {expected}, extra jsonb *"),
                "{values:?}"
            );
        }
        for (name, value, expected) in [
            ("created", "1764504000", "created timestamptz epoch"),
            ("lastSeenAt", "1764504000123", "last_seen_at timestamptz epoch_ms /lastSeenAt"),
            ("startTime", "4102444800", "start_time bigint /startTime"),
            ("time", "1764504000.5", "time double precision"),
            ("views", "1764504000", "views bigint"),
        ] {
            let record = format!(r#"{{"id":"k","{name}":{value}}}"#);
            assert_eq!(propose(&[&record]).unwrap().columns, format!("id text, {expected}, extra jsonb *"));
        }
    }

    #[test]
    fn names_are_those_that_sql_takes_and_come_through_files_of_settings() {
        let record = r#"{"id":1,"userID":1,"HTMLUrl":"","first name":"","Zürich":"","2fa":1,"it's, \"so\"":1,"":1,"extra":1,"ctid":1,
            "a/b~c":1,"user_id":1,"absent_since":1,"7":1,"tab\t":1,"name":{"7":1,"x":2}}"#;
        let proposal = propose(&[record]).unwrap();
        assert_eq!(
            proposal.to_string(),
            r#"TABLE=posts
TABLE_COLUMNS='id bigint, user_id bigint /userID, html_url text /HTMLUrl, first_name text "/first name", "zürich" text /Zürich, "2fa" bigint, it_s___so_ bigint "/it'"'"'s, ""so""", unnamed bigint /, source_extra bigint /extra, source_ctid bigint /ctid, a_b_c bigint /a~1b~0c, source_user_id bigint /user_id, source_absent_since bigint /absent_since, name jsonb, extra jsonb *'"#
        );
        for (stream, table) in [
            ("blog-posts", "TABLE=blog_posts"),
            ("objects", "TABLE=rows_of_objects"),
            ("stream-migrations", "TABLE=rows_of_stream_migrations"),
            ("sequence", "TABLE=sequence"),
            ("pg-stat", "TABLE=rows_of_pg_stat"),
            ("7up", "TABLE='\"7up\"'"),
        ] {
            let lines = sample(&["{\"id\":1}"]).propose(&stream.parse().unwrap()).unwrap().to_string();
            assert_eq!(lines.lines().next(), Some(table));
        }
    }

    #[test]
    fn the_key_is_there_and_different_in_every_record() {
        for (records, expected) in [
            (
                &[r#"{"a":1,"slug":"x","postId":7}"#, r#"{"a":2,"slug":"y","postId":8}"#][..],
                Ok("post_id bigint /postId"),
            ),
            (&[r#"{"a":1,"slug":"x"}"#, r#"{"a":2,"slug":"y"}"#], Ok("slug text")),
            (&[r#"{"at":"2026-11-30","n":1,"name":"x"}"#, r#"{"at":"2026-11-29","n":1,"name":"y"}"#], Ok("name text")),
            (&[r#"{"x":{"y":{"id":1}},"n":1}"#, r#"{"x":{"y":{"id":2}},"n":2}"#], Ok("id bigint /x/y/id")),
            (&[r#"{"id":1.5,"n":"a"}"#, r#"{"id":2.5,"n":"b"}"#], Ok("n text")),
            (&[r#"{"id":1}"#, r#"{"id":1}"#], Err("; `/id` repeats. If")),
            (&[r#"{"id":1}"#, r#"{"uuid":1}"#], Err("; `/id` is missing or null in some records, `/uuid`")),
            (&[r#"{"id":1}"#, r#"{"id":"1"}"#], Err("`/id` is of no type for a key")),
            // One and the same as a uuid.
            (
                &[
                    r#"{"id":"67e55044-10b1-426f-9247-bb680e5fe0c8"}"#,
                    r#"{"id":"67E55044-10B1-426F-9247-BB680E5FE0C8"}"#,
                ],
                Err("`/id` repeats"),
            ),
            (&[r#"{"x":{"y":{"z":{"id":1}}}}"#], Err("no member tells the 1 records apart")),
            (&["{}"], Err("no member tells the 1 records apart")),
        ] {
            match (propose(records), expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.columns.split(", ").next(), Some(expected), "{records:?}");
                }
                (Err(told), Err(expected)) => {
                    assert!(expected.split(", ").all(|part| told.contains(part)), "{told}\n{expected}");
                }
                (found, _) => panic!("{records:?}: {found:?}"),
            }
        }
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(KEY_LIMIT_BYTES));
        assert!(propose(&[&long]).unwrap_err().contains("`/id` is too long for a key"));
    }

    #[test]
    fn what_a_person_should_know_is_told() {
        let many: Vec<_> = (0..45).map(|at| format!(r#""m{at}":{at}"#)).collect();
        let record = format!(r#"{{"id":1,"n":1,"none":null,"sometimes":null,"mixed":1,{}}}"#, many.join(","));
        let other = record.replacen("1,\"n\":1", "2,\"n\":2", 1);
        let other = other.replace("sometimes\":null", "sometimes\":true").replace("mixed\":1", "mixed\":\"1\"");
        let proposal = propose(&[&record, &other]).unwrap();
        assert_eq!(proposal.columns.parse::<Columns>().unwrap().all().len(), COLUMNS_LIMIT);
        assert_eq!(
            proposal.notes,
            [
                "`/id` is the key: it is different in every record",
                "also different in every record: `/n`",
                &format!(
                    "never missing or null; `not null` fits them, and would quarantine a later record without a value: `/n`, `/mixed`, {}",
                    (0..35).map(|at| format!("`/m{at}`")).collect::<Vec<_>>().join(", ")
                ),
                "sometimes missing or null: `/sometimes`",
                "jsonb, since no other type takes all of their values: `/mixed` (number, text)",
                "always null, left in the rest: `/none`",
                "more than 40 columns, left in the rest: `/m35`, `/m36`, `/m37`, `/m38`, `/m39`, `/m40`, `/m41`, `/m42`, `/m43`, `/m44`",
            ]
        );
        let single = propose(&[r#"{"sku":"x","n":1}"#]).unwrap();
        assert_eq!(single.notes.len(), 5, "{:?}", single.notes);
    }

    #[test]
    fn names_that_are_values_do_not_take_all_memory() {
        let record = |id: usize| {
            let members: Vec<_> = (0..500).map(|at| format!(r#""x{}":{{"y":1}}"#, id * 500 + at)).collect();
            format!(r#"{{"id":{id},"by":{{{}}}}}"#, members.join(","))
        };
        let records: Vec<_> = (0..10).map(record).collect();
        let sample = sample(&records.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((sample.records, sample.members.len()), (10, MEMBERS_LIMIT + 1));
        assert_eq!(sample.propose(&"posts".parse().unwrap()).unwrap().columns, "id bigint, by jsonb, extra jsonb *");
    }

    proptest! {
        #[test]
        fn any_proposal_is_a_definition_and_takes_all_records_with_its_key(
            given in prop::collection::vec(prop::collection::vec((prop_oneof!["[a-cA-C_0-9'\"/~, é]{0,3}", any::<String>()], any_value()), 0..6), 1..6),
            has_id in any::<bool>(),
        ) {
            let record = |(at, members): (usize, Vec<(String, Value)>)| {
                let mut record = serde_json::Map::from_iter(members);
                if has_id {
                    record.insert("id".to_owned(), at.into());
                }
                Value::from(record).to_string()
            };
            let records: Vec<_> = given.into_iter().enumerate().map(record).collect();
            let records: Vec<_> = records.iter().map(String::as_str).collect();
            // It reads all of them.
            let proposed = propose(&records);
            prop_assert!(proposed.is_ok() || !has_id || sample(&records).records == 0);
        }
    }
}
