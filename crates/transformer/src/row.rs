//! A row, in the binary form that COPY, arrays and answers of Postgres have in common: each field with its length, -1 for NULL, all
//! big-endian (<https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format"). Pure.

use std::borrow::Cow;

use jiff::Timestamp;

const NULL: i32 = -1;

/// Postgres counts microseconds from the beginning of 2000.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The first byte of a jsonb value is the version of its form.
const JSONB_VERSION: u8 = 1;

/// The type of a column, by the numbers that every Postgres has for it and for arrays of it (`pg_type.dat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// Of a value.
    pub oid: u32,
    /// Of an array of them.
    pub array_oid: u32,
}

#[allow(missing_docs, reason = "they are named as in SQL")]
impl ColumnType {
    pub const BIGINT: Self = Self { oid: 20, array_oid: 1016 };
    pub const TEXT: Self = Self { oid: 25, array_oid: 1009 };
    pub const JSONB: Self = Self { oid: 3802, array_oid: 3807 };
    pub const TIMESTAMPTZ: Self = Self { oid: 1184, array_oid: 1185 };
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

/// What a row is known by: its first column, in the order that the table has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id<'a> {
    /// Of a column of the type bigint.
    Number(i64),
    /// Of a column of the type text with the collation "C", which is ordered by bytes as here.
    Text(Cow<'a, str>),
}

impl<'a> Id<'a> {
    /// What is stored in a column of that type, which is one of these two.
    pub fn of(column: ColumnType, field: &'a [u8]) -> Self {
        if column == ColumnType::BIGINT {
            Self::Number(i64::from_be_bytes(field.try_into().expect("a bigint has eight bytes")))
        } else {
            assert_eq!(column, ColumnType::TEXT, "an id is bigint or text");
            Self::Text(str::from_utf8(field).expect("what Postgres takes and gives is UTF-8").into())
        }
    }

    /// One that outlives its row.
    pub fn into_owned(self) -> Id<'static> {
        match self {
            Self::Number(number) => Id::Number(number),
            Self::Text(text) => Id::Text(Cow::Owned(text.into_owned())),
        }
    }

    /// As a number, if it is one and written as one.
    pub fn as_number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok().filter(|number: &i64| number.to_string() == **text),
        }
    }
}

/// A row of a batch.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The place of its record in the document, from 0.
    pub index: u64,
    /// Its id.
    pub id: Id<'a>,
    /// All of its fields, one after the other, each with its length.
    pub fields: &'a [u8],
}

impl<'a> Row<'a> {
    /// A row of these fields, of which the first is the id.
    pub fn new(index: u64, id: ColumnType, fields: &'a [u8]) -> Self {
        let first = Parts(fields).next().expect("each row has an id");
        Self { index, id: Id::of(id, value_of(first).expect("no id is NULL")), fields }
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
pub struct Parts<'a>(&'a [u8]);

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
