//! Rows as parameters of a statement: a column of many is an array, in the form that the fields are in already.

use jiff::Timestamp;
use sqlx::{
    Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, types::Oid},
};

use crate::read::{row::postgres_micros, table_definition::Kind};

/// One column of many rows, as a parameter: an array.
#[derive(Debug)]
pub struct Column<'a> {
    /// The field of each row, with its length.
    pub fields: Vec<&'a [u8]>,
    /// Its type.
    pub kind: Kind,
}

impl Type<Postgres> for Column<'_> {
    fn type_info() -> PgTypeInfo {
        unreachable!("`produces` says it of each value")
    }
}

impl Encode<'_, Postgres> for Column<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        const DIMENSIONS: i32 = 1;
        const LOWEST_INDEX: i32 = 1;
        const MAY_HAVE_NULLS: i32 = 1;
        for number in [DIMENSIONS, MAY_HAVE_NULLS, self.kind.oids().0.cast_signed()] {
            buffer.extend(number.to_be_bytes());
        }
        buffer.extend(i32::try_from(self.fields.len())?.to_be_bytes());
        buffer.extend(LOWEST_INDEX.to_be_bytes());
        for field in &self.fields {
            buffer.extend(*field);
        }
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.kind.oids().1)))
    }
}

/// A time, as a parameter of the type timestamptz. As text Postgres would read it anew for each row.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub Timestamp);

impl Type<Postgres> for Time {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(Kind::Timestamptz.oids().0))
    }
}

impl PgHasArrayType for Time {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(Kind::Timestamptz.oids().1))
    }
}

impl Encode<'_, Postgres> for Time {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend(postgres_micros(self.0).to_be_bytes());
        Ok(IsNull::No)
    }
}
