//! A value of a record as what a column takes: what a careful person would accept, and nothing else. Pure.

use std::{borrow::Cow, ops::RangeInclusive};

use jiff::{Timestamp, civil, tz::TimeZone};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    decimal::Decimal,
    jsonb,
    members::{Text, without_place},
    row::Fields,
    table_definition::Kind,
};

/// A longer key is one that Postgres cannot index: a third of a page of 8 KiB is the limit.
pub const KEY_LIMIT_BYTES: usize = 2_600;

/// Times that a text has four digits of a year for, up to the last microsecond that jiff makes a time of again.
const TIMES: RangeInclusive<Timestamp> =
    Timestamp::constant(-62_135_596_800, 0)..=Timestamp::constant(253_402_207_200, 0);

/// A person is shown so much of a value.
const SHOWN_CHARS: usize = 60;

/// Puts the value as a field of that type. Whether there is one: `null` is NULL. Or why it does not fit, for a person.
pub fn put(kind: Kind, value: &RawValue, fields: &mut Fields<'_>) -> Result<bool, String> {
    let json = value.get();
    if json == "null" {
        fields.put_null();
        return Ok(false);
    }
    if kind == Kind::Jsonb {
        fields.put_jsonb(&jsonb::value(value)?);
        return Ok(true);
    }
    let unfit = || format!("{} is no {}", shown(json), kind.words());
    let text = match json.as_bytes() {
        [b'"', .., b'"'] if !json.contains('\\') => Some(Cow::Borrowed(&json[1..json.len() - 1])),
        [b'"', ..] => {
            let Text(text) =
                serde_json::from_str(json).map_err(|error| format!("it is no text: {}", without_place(&error)))?;
            Some(text)
        }
        _ => None,
    };
    // A number, also one that is written as a text.
    let number = || match &text {
        Some(text) if begins_a_number(text) && is_json(text) => Ok(&**text),
        None if begins_a_number(json) => Ok(json),
        _ => Err(unfit()),
    };
    match kind {
        Kind::Text => match text {
            Some(text) if text.contains('\0') => return Err("it holds U+0000, which Postgres cannot store".to_owned()),
            Some(text) => fields.put_text(&text),
            None => return Err(unfit()),
        },
        Kind::Bigint => fields.put_bigint(bigint(number()?).ok_or_else(unfit)?),
        Kind::DoublePrecision => fields.put_double(double(number()?).ok_or_else(unfit)?),
        Kind::Numeric => fields.put_numeric(&Decimal::of(number()?).ok_or_else(unfit)?),
        Kind::Boolean => match text.as_deref().unwrap_or(json) {
            "true" => fields.put_boolean(true),
            "false" => fields.put_boolean(false),
            _ => return Err(unfit()),
        },
        Kind::Date => fields.put_date(text.and_then(|text| date(&text)).ok_or_else(unfit)?),
        Kind::Timestamptz => fields.put_timestamptz(text.and_then(|text| time(&text)).ok_or_else(unfit)?),
        Kind::TimestamptzEpoch => fields.put_timestamptz(since_1970(number()?, 6).ok_or_else(unfit)?),
        Kind::TimestamptzEpochMs => fields.put_timestamptz(since_1970(number()?, 3).ok_or_else(unfit)?),
        Kind::Uuid => fields.put_uuid(text.and_then(|text| uuid(&text)).ok_or_else(unfit)?),
        Kind::Jsonb => unreachable!("it is put above"),
    }
    Ok(true)
}

/// A value for a person, as it is written.
pub fn shown(json: &str) -> String {
    match json.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("`{}…`", &json[..end]),
        None => format!("`{json}`"),
    }
}

fn begins_a_number(text: &str) -> bool {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// A number by the grammar of JSON has no zero in front, which would be lost, as of `"007"`.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok() && !text.ends_with(char::is_whitespace)
}

/// A whole one, however it is written.
fn bigint(number: &str) -> Option<i64> {
    number.parse().ok().or_else(|| Decimal::of(number)?.scaled(0, false))
}

/// One that is not too great, and not too small to be told from 0.
fn double(number: &str) -> Option<f64> {
    let value: f64 = number.parse().ok()?;
    let is_zero = !number.split(['e', 'E']).next()?.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
    (value.is_finite() && (value != 0.0 || is_zero)).then_some(value)
}

fn date(text: &str) -> Option<civil::Date> {
    let is_plain = text.len() == 10 && text.as_bytes()[4] == b'-' && text.as_bytes()[7] == b'-';
    let date: civil::Date = if is_plain { text.parse().ok()? } else { return None };
    (date.year() > 0).then_some(date)
}

/// RFC 3339 and its cousins: a blank for the T, and without an offset it is UTC.
fn time(text: &str) -> Option<Timestamp> {
    // What jiff takes besides: a date alone, and names of time zones behind the time.
    if date(text.get(..10)?).is_none() || !text.contains(':') || text.contains('[') {
        return None;
    }
    let has_offset = text.get(10..)?.contains(['+', '-', 'Z', 'z']);
    let time = if has_offset { text.parse().ok() } else { TimeZone::UTC.to_timestamp(text.parse().ok()?).ok() };
    // An offset may lead before the year 1.
    time.filter(|time| TIMES.contains(time))
}

/// A number of seconds (`digits` is 6) or milliseconds (3) since 1970: `digits` is how far the point moves to give microseconds. It is no
/// earlier than the year 1, as a text is, since Postgres does not hold all earlier times.
fn since_1970(number: &str, digits: i64) -> Option<Timestamp> {
    let time = Timestamp::from_microsecond(Decimal::of(number)?.scaled(digits, true)?).ok()?;
    Some(time).filter(|time| TIMES.contains(time))
}

/// With hyphens or without.
fn uuid(text: &str) -> Option<Uuid> {
    matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::row::text_of;

    /// The field's bytes, without their length.
    fn field(kind: Kind, json: &str) -> Result<Option<Vec<u8>>, String> {
        let mut bytes = Vec::new();
        let is_there = put(kind, serde_json::from_str(json).unwrap(), &mut Fields(&mut bytes))?;
        let length = i32::from_be_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(length, if is_there { i32::try_from(bytes.len()).unwrap() - 4 } else { -1 });
        Ok(is_there.then(|| bytes[4..].to_vec()))
    }

    fn text(kind: Kind, json: &str) -> Option<String> {
        Some(text_of(kind, &field(kind, json).ok()??))
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "it is a table")]
    fn what_fits_is_taken_and_what_does_not_is_refused() {
        use Kind::*;
        let year_10_000 = r#""10000-01-01T00:00:00Z""#;
        for (kind, taken, refused) in [
            (
                Bigint,
                &[
                    ("12", "12"),
                    ("12.0", "12"),
                    ("\"12\"", "12"),
                    ("1.2e1", "12"),
                    ("-0", "0"),
                    ("120e-1", "12"),
                    ("\"-7\"", "-7"),
                    ("9223372036854775807", "9223372036854775807"),
                    ("-9223372036854775808.000", "-9223372036854775808"),
                ][..],
                &[
                    "12.5",
                    "\"12 \"",
                    "\" 12\"",
                    "\"007\"",
                    "\"+1\"",
                    "\"\"",
                    "\"0x1\"",
                    "true",
                    "[1]",
                    "9223372036854775808",
                    "1e19",
                    "1e-1",
                    "1e400",
                    "1e99999999999999999999",
                ][..],
            ),
            (
                Text,
                &[("\"\"", ""), ("\"a\\n\\u00e9\"", "a\né")],
                &["1", "true", "[]", "{}", "\"\\u0000\"", "\"\\ud800\""],
            ),
            (
                Timestamptz,
                &[
                    ("\"2026-11-30T12:00:00Z\"", "2026-11-30T12:00:00Z"),
                    ("\"2026-11-30t12:00:00.1234567z\"", "2026-11-30T12:00:00.123456Z"),
                    ("\"2026-11-30T12:00:00+01:00\"", "2026-11-30T11:00:00Z"),
                    ("\"2026-11-30T12:00:00+0100\"", "2026-11-30T11:00:00Z"),
                    ("\"2026-11-30T12:00:00-01\"", "2026-11-30T13:00:00Z"),
                    ("\"2026-11-30 12:00:00\"", "2026-11-30T12:00:00Z"),
                    ("\"2026-11-30T12:00\"", "2026-11-30T12:00:00Z"),
                    ("\"0001-01-01T00:00:00Z\"", "0001-01-01T00:00:00Z"),
                ],
                &[
                    "\"2026-11-30\"",
                    "\"2026-02-30T00:00:00Z\"",
                    "\"2026-11-30T25:00:00Z\"",
                    "\"30.11.2026 12:00:00\"",
                    "\"\"",
                    "1",
                    "\"12:00:00\"",
                    "\"0000-00-00 00:00:00\"",
                    "\"2026-11-30T12:00:00+01:00[Europe/Berlin]\"",
                    "\"2026-11-30T12:00:00 Europe/Berlin\"",
                    year_10_000,
                    "\"now\"",
                    "\"infinity\"",
                    "\"0001-01-01T00:00:00+01:00\"",
                    "\"9999-12-30T22:00:00.999999999Z\"",
                ],
            ),
            (
                TimestamptzEpoch,
                &[
                    ("1764504000", "2025-11-30T12:00:00Z"),
                    ("1764504000.1234567", "2025-11-30T12:00:00.123456Z"),
                    ("\"1764504000.5\"", "2025-11-30T12:00:00.5Z"),
                    ("1.7645e9", "2025-11-30T10:53:20Z"),
                    ("-1", "1969-12-31T23:59:59Z"),
                    ("0", "1970-01-01T00:00:00Z"),
                ],
                &["\"2026-11-30T12:00:00Z\"", "true", "1e30", "253402300800", "-62135596801"],
            ),
            (
                TimestamptzEpochMs,
                &[("1764504000123", "2025-11-30T12:00:00.123Z"), ("0.5", "1970-01-01T00:00:00.0005Z")],
                &["\"\"", "253402300800000"],
            ),
            (
                Date,
                &[("\"2026-11-30\"", "2026-11-30"), ("\"0001-01-01\"", "0001-01-01"), ("\"9999-12-31\"", "9999-12-31")],
                &[
                    "\"2026-02-29\"",
                    "\"20261130\"",
                    "\"2026-11-30T00:00:00Z\"",
                    "\"0000-01-01\"",
                    "\"2026-1-1\"",
                    "\"30-11-2026\"",
                    "20261130",
                ],
            ),
            (
                Uuid,
                &[
                    ("\"67E55044-10B1-426F-9247-BB680E5FE0C8\"", "67e55044-10b1-426f-9247-bb680e5fe0c8"),
                    ("\"67e5504410b1426f9247bb680e5fe0c8\"", "67e55044-10b1-426f-9247-bb680e5fe0c8"),
                ],
                &[
                    "\"67e55044-10b1-426f-9247-bb680e5fe0c\"",
                    "\"{67e55044-10b1-426f-9247-bb680e5fe0c8}\"",
                    "\"urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8\"",
                    "\"\"",
                    "1",
                ],
            ),
        ] {
            for (json, expected) in taken {
                assert_eq!(text(kind, json).as_deref(), Some(*expected), "{json} as {kind:?}");
            }
            for json in refused {
                assert!(field(kind, json).is_err(), "{json} as {kind:?}");
            }
        }
    }

    #[test]
    fn numbers_have_the_form_of_postgres() {
        use Kind::*;
        assert_eq!(field(DoublePrecision, "\"-1.5\""), Ok(Some((-1.5_f64).to_be_bytes().to_vec())));
        for json in ["1e400", "1e-400", "\"NaN\"", "\"\"", "true"] {
            assert!(field(DoublePrecision, json).is_err(), "{json}");
        }
        assert_eq!(field(DoublePrecision, "0e-400"), Ok(Some(0_f64.to_be_bytes().to_vec())));
        assert_eq!(field(Boolean, "true"), Ok(Some(vec![1])));
        assert_eq!(field(Boolean, "\"false\""), Ok(Some(vec![0])));
        for json in ["0", "1", "\"yes\"", "\"True\"", "\"\""] {
            assert!(field(Boolean, json).is_err(), "{json}");
        }
        // As `SELECT numeric_send(…)` shows it: number of groups, weight, sign, digits behind the point, groups.
        for (json, expected) in [
            ("0", &[0, 0, 0, 0][..]),
            ("-0.00", &[0, 0, 0, 2]),
            ("1.50", &[2, 0, 0, 2, 1, 5000]),
            ("\"-12345.678\"", &[3, 1, 0x4000, 3, 1, 2345, 6780]),
            ("1e-5", &[1, 0xfffe, 0, 5, 1000]),
            ("0.0001", &[1, 0xffff, 0, 4, 1]),
            ("1.2e9", &[1, 2, 0, 0, 12]),
            ("100000000", &[1, 2, 0, 0, 1]),
        ] {
            let words = expected.iter().flat_map(|word: &u16| word.to_be_bytes()).collect();
            assert_eq!(field(Numeric, json), Ok(Some(words)), "{json}");
        }
        for json in ["1e131072", "1e-16384", "\"1,5\"", "\"NaN\"", "1e99999999999999999999"] {
            assert!(field(Numeric, json).is_err(), "{json}");
        }
        assert!(field(Numeric, "1e131071").is_ok());
    }

    #[test]
    fn null_is_null_of_any_type() {
        for kind in [Kind::Bigint, Kind::Text, Kind::Jsonb, Kind::Numeric] {
            assert_eq!(field(kind, "null"), Ok(None));
        }
        assert_eq!(field(Kind::Jsonb, r#"{"b":1,"a":[ null]}"#), Ok(Some(b"\x01{\"a\": [null], \"b\": 1}".to_vec())));
    }
}
