//! A row, in the binary form that COPY, arrays and answers of Postgres have in common: each field with its length, -1 for NULL, all
//! big-endian (<https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format"). Pure.

use jiff::{Timestamp, civil};
use shared::object::Sequence;
use uuid::Uuid;

use super::{decimal::Decimal, table_definition::Kind};

const NULL: i32 = -1;

/// What a field begins with.
pub const LENGTH_BYTES: usize = 4;

/// Postgres counts microseconds from the beginning of 2000.
pub const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

const POSTGRES_EPOCH_DATE: civil::Date = civil::date(2000, 1, 1);

/// The first byte of a jsonb value is the version of its form.
const JSONB_VERSION: u8 = 1;

impl Kind {
    /// The number that every Postgres has for the type, and for an array of it (`pg_type.dat`).
    pub fn oids(self) -> (u32, u32) {
        match self {
            Self::Bigint => (20, 1016),
            Self::DoublePrecision => (701, 1022),
            Self::Boolean => (16, 1000),
            Self::Text => (25, 1009),
            Self::Date => (1082, 1182),
            Self::Timestamptz | Self::TimestamptzEpoch | Self::TimestamptzEpochMs => (1184, 1185),
            Self::Uuid => (2950, 2951),
            Self::Jsonb => (3802, 3807),
            Self::Numeric => (1700, 1231),
        }
    }
}

/// Where the fields of a row are put, in the order of its columns.
#[derive(Debug)]
pub struct Fields<'a>(pub &'a mut Vec<u8>);

impl Fields<'_> {
    /// A column of the type bigint.
    pub fn put_bigint(&mut self, value: i64) {
        self.0.extend(8_i32.to_be_bytes());
        self.0.extend(value.to_be_bytes());
    }

    /// A column of the type text.
    pub fn put_text(&mut self, value: &str) {
        self.put_bytes(&[], value.as_bytes());
    }

    /// A column of the type jsonb.
    pub fn put_jsonb(&mut self, json: &str) {
        self.put_bytes(&[JSONB_VERSION], json.as_bytes());
    }

    /// A column of the type timestamptz.
    pub fn put_timestamptz(&mut self, time: Timestamp) {
        self.put_bigint(postgres_micros(time));
    }

    /// A column of the type double precision.
    pub fn put_double(&mut self, value: f64) {
        self.put_bytes(&[], &value.to_be_bytes());
    }

    /// A column of the type boolean.
    pub fn put_boolean(&mut self, value: bool) {
        self.put_bytes(&[], &[u8::from(value)]);
    }

    /// A column of the type date, which Postgres counts in days.
    pub fn put_date(&mut self, date: civil::Date) {
        let days = (date - POSTGRES_EPOCH_DATE).get_days();
        self.put_bytes(&[], &days.to_be_bytes());
    }

    /// A column of the type uuid.
    pub fn put_uuid(&mut self, uuid: Uuid) {
        self.put_bytes(&[], uuid.as_bytes());
    }

    /// A column of the type numeric: the number of groups, the weight of the first, the sign and the digits behind the point, then the groups
    /// (`numeric_recv`).
    pub fn put_numeric(&mut self, number: &Decimal) {
        const NEGATIVE: u16 = 0x4000;
        let (weight, groups) = number.groups();
        let sign = if number.is_negative { NEGATIVE } else { 0 };
        let length = i32::try_from(8 + 2 * groups.len()).expect("a number has at most 147,455 digits");
        self.0.extend(length.to_be_bytes());
        let count = u16::try_from(groups.len()).expect("a number has at most 36,864 groups");
        for word in [count, weight.cast_unsigned(), sign, number.behind] {
            self.0.extend(word.to_be_bytes());
        }
        self.0.extend(groups.iter().flat_map(|group| group.to_be_bytes()));
    }

    /// A column of any type, as Postgres gave it.
    pub fn put_raw(&mut self, value: Option<&[u8]>) {
        match value {
            Some(value) => self.put_bytes(&[], value),
            None => self.put_null(),
        }
    }

    /// A column of any type, if it may be NULL.
    pub fn put_null(&mut self) {
        self.0.extend(NULL.to_be_bytes());
    }

    fn put_bytes(&mut self, prefix: &[u8], value: &[u8]) {
        let length = i32::try_from(prefix.len() + value.len()).expect("a record is far below 2 GiB");
        self.0.extend(length.to_be_bytes());
        self.0.extend(prefix);
        self.0.extend(value);
    }
}

/// A time as Postgres has it, cut and not rounded.
pub fn postgres_micros(time: Timestamp) -> i64 {
    time.as_microsecond() - POSTGRES_EPOCH_MICROS
}

/// Postgres has no unsigned integers; ours are far below 2^63.
pub fn to_bigint(number: u64) -> i64 {
    i64::try_from(number).expect("sequences, sizes and counts stay below 2^63")
}

/// A stored key as text, for a person.
pub fn text_of(kind: Kind, field: &[u8]) -> String {
    let number = || match *field {
        [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
        _ => i64::from_be_bytes(field.try_into().unwrap_or_default()),
    };
    match kind {
        Kind::Text => String::from_utf8_lossy(field).into_owned(),
        Kind::Uuid => Uuid::from_slice(field).unwrap_or_default().to_string(),
        Kind::Date => {
            let days = jiff::Span::new().try_days(number());
            days.and_then(|days| civil::date(2000, 1, 1).checked_add(days))
                .map_or_else(|_| String::new(), |date| date.to_string())
        }
        Kind::Timestamptz | Kind::TimestamptzEpoch | Kind::TimestamptzEpochMs => {
            let time = Timestamp::from_microsecond(number() + POSTGRES_EPOCH_MICROS);
            time.map_or_else(|_| String::new(), |time| time.to_string())
        }
        _ => number().to_string(),
    }
}

/// What a row is known by: its key, in the order that the table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key<'a> {
    /// Of a bigint, a date or a timestamptz.
    Number(i64),
    /// Of a uuid, or of a text with the collation "C", which are ordered by bytes.
    Bytes(&'a [u8]),
}

impl<'a> Key<'a> {
    /// What is stored in a column of that type.
    pub fn of(kind: Kind, field: &'a [u8]) -> Self {
        match (kind, field) {
            (Kind::Text | Kind::Uuid, bytes) => Self::Bytes(bytes),
            (_, &[a, b, c, d]) => Self::Number(i32::from_be_bytes([a, b, c, d]).into()),
            (_, bytes) => {
                Self::Number(i64::from_be_bytes(bytes.try_into().expect("such a key has four bytes or eight")))
            }
        }
    }
}

/// The object that rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its number.
    pub sequence: Sequence,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}

/// A row of a batch.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The object that it comes from.
    pub origin: Origin,
    /// The place of its record in the document, from 0.
    pub index: u64,
    /// Its key.
    pub key: Key<'a>,
    /// All of its fields, one after the other, each with its length.
    pub fields: &'a [u8],
}

impl<'a> Row<'a> {
    /// A row of these fields, of which the first is the key.
    pub fn new(origin: Origin, index: u64, kind: Kind, fields: &'a [u8]) -> Self {
        let first = Parts(fields).next().expect("each row has a key");
        Self { origin, index, key: Key::of(kind, value_of(first).expect("no key is NULL")), fields }
    }

    /// The key as bytes, equal where keys are.
    pub fn id(&self) -> &'a [u8] {
        self.fields().next().unwrap_or_default()
    }

    /// The key's value as bytes.
    pub fn key_value(&self) -> &'a [u8] {
        self.values().next().flatten().unwrap_or_default()
    }

    /// The fields, each with its length.
    pub fn fields(&self) -> Parts<'a> {
        Parts(self.fields)
    }

    /// The fields without their lengths, `None` for NULL.
    pub fn values(&self) -> impl Iterator<Item = Option<&'a [u8]>> {
        self.fields().map(value_of)
    }
}

/// The fields of a row, each with its length.
#[derive(Clone, Debug)]
pub struct Parts<'a>(pub &'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, _) = self.0.split_first_chunk()?;
        let bytes = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        self.0.split_off(..4 + bytes)
    }
}

fn value_of(field: &[u8]) -> Option<&[u8]> {
    let (length, value) = field.split_at(4);
    (length != NULL.to_be_bytes()).then_some(value)
}
