//! A value becomes what a column takes, or is refused with a reason; a definition that is read is written so that it is read again. Both as
//! a plainer reading says.

use serde_json::{Value, value::RawValue};

use crate::{
    record::RecordReader,
    row::{Fields, text_of},
    table_definition::{Columns, Kind},
    values::put,
};

/// By the first byte, from `a` on; `l` is a definition.
const KINDS: [Kind; 11] = [
    Kind::Bigint,
    Kind::DoublePrecision,
    Kind::Numeric,
    Kind::Boolean,
    Kind::Text,
    Kind::Date,
    Kind::Timestamptz,
    Kind::TimestamptzEpoch,
    Kind::TimestamptzEpochMs,
    Kind::Uuid,
    Kind::Jsonb,
];

/// A reason quotes at most 60 characters of a value.
const REASON_LIMIT_CHARS: usize = 200;

/// From 1970 to 2000.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
const EPOCH_DAYS: i64 = 10_957;

/// The year 1, in microseconds from 2000 on.
const YEAR_1_MICROS: i64 = -63_082_281_600_000_000;

/// Digits behind the point, however the number is written.
const SCALE_LIMIT: i64 = 16_383;

/// Sums of greater exponents are none.
const EXPONENT_LIMIT: i64 = 1 << 60;

/// Whatever the bytes are.
pub fn hold(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let Ok(text) = str::from_utf8(rest) else { return };
    match KINDS.get(usize::from(first.wrapping_sub(b'a') % 12)) {
        None => hold_of_definition(text),
        Some(kind) => {
            if let Ok(value) = serde_json::from_str(text) {
                hold_of_value(*kind, value);
            }
        }
    }
}

fn hold_of_definition(text: &str) {
    match text.parse::<Columns>() {
        Ok(columns) => {
            let again: Columns = columns.to_string().parse().expect("it is read back");
            assert_eq!(again, columns);
            let read = RecordReader::new(columns).read(b"{}", &mut Fields(&mut Vec::new()));
            assert!(read.is_err(), "a record without a key is a row");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn hold_of_value(kind: Kind, value: &RawValue) {
    let json = value.get();
    match field(kind, value) {
        Ok(None) => assert_eq!(json, "null"),
        Ok(Some(field)) => {
            assert_ne!(json, "null");
            assert_says(kind, json, &field);
        }
        Err(reason) => {
            assert!(!reason.is_empty() && !reason.contains('\0'), "{reason:?}");
            assert!(reason.chars().count() < REASON_LIMIT_CHARS, "{reason}");
            assert_refused(kind, json, &reason);
        }
    }
}

/// The field without its length, `None` for NULL.
fn field(kind: Kind, value: &RawValue) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    let is_there = put(kind, value, &mut Fields(&mut bytes))?;
    let (length, field) = bytes.split_at(4);
    let length = i32::from_be_bytes(length.try_into().expect("four bytes"));
    assert_eq!(length, if is_there { i32::try_from(field.len()).expect("it is short") } else { -1 });
    Ok(is_there.then(|| field.to_owned()))
}

/// It is what the JSON says, and its own text gives it again.
fn assert_says(kind: Kind, json: &str, field: &[u8]) {
    let number = || i64::from_be_bytes(field.try_into().expect("eight bytes"));
    let micros = || Some(i128::from(number()) + i128::from(EPOCH_MICROS));
    match kind {
        Kind::Bigint => assert_eq!(Plain::of(json).and_then(|plain| plain.whole(0, false)), Some(number().into())),
        Kind::DoublePrecision => {
            assert_eq!(
                Plain::text(json).parse::<f64>().map(|double| double.to_be_bytes().to_vec()),
                Ok(field.to_vec())
            );
        }
        Kind::Numeric => assert_numeric(&Plain::of(json).expect("a number"), field),
        Kind::Boolean => assert_eq!(Plain::text(json), if field == [1] { "true" } else { "false" }),
        Kind::Text => assert_eq!(serde_json::from_str::<String>(json).expect("a text").as_bytes(), field),
        Kind::Date => {
            let days = i64::from(i32::from_be_bytes(field.try_into().expect("four bytes")));
            assert_eq!(days_of(&Plain::text(json)), Some(days + EPOCH_DAYS));
        }
        Kind::Timestamptz => assert!(days_of(&Plain::text(json)[..10]).is_some()),
        Kind::TimestamptzEpoch => assert_eq!(Plain::of(json).and_then(|plain| plain.whole(6, true)), micros()),
        Kind::TimestamptzEpochMs => assert_eq!(Plain::of(json).and_then(|plain| plain.whole(3, true)), micros()),
        Kind::Uuid => assert_eq!(uuid_of(&Plain::text(json)).as_deref(), Some(field)),
        Kind::Jsonb => {
            let text = str::from_utf8(&field[1..]).expect("it is text");
            if let Ok(expected) = serde_json::from_str::<Value>(json) {
                assert_eq!(serde_json::from_str::<Value>(text).expect("it is JSON"), expected);
            }
            return assert_eq!(taken(kind, text), field);
        }
    }
    if !matches!(kind, Kind::DoublePrecision | Kind::Numeric | Kind::Boolean) {
        let text = serde_json::to_string(&text_of(kind, field)).expect("any text is JSON");
        match kind {
            // A time is not written as a number, and one before the year 1 not at all.
            Kind::TimestamptzEpoch | Kind::TimestamptzEpochMs if number() < YEAR_1_MICROS => {}
            Kind::TimestamptzEpoch | Kind::TimestamptzEpochMs => assert_eq!(taken(Kind::Timestamptz, &text), field),
            kind => assert_eq!(taken(kind, &text), field, "{text}"),
        }
    }
}

fn taken(kind: Kind, json: &str) -> Vec<u8> {
    field(kind, serde_json::from_str(json).expect("it is JSON")).expect("it is taken again").expect("it is there")
}

/// No plainer reading finds a value there.
fn assert_refused(kind: Kind, json: &str, reason: &str) {
    let text = Plain::text(json);
    let plain = Plain::of(json);
    let has_time = |digits| {
        // The last second of all may be told as one or not.
        let range = YEAR_1_MICROS + EPOCH_MICROS..=jiff::Timestamp::MAX.as_second() * 1_000_000;
        let whole = plain.as_ref().and_then(|plain| plain.whole(digits, true));
        whole.and_then(|whole| i64::try_from(whole).ok()).is_some_and(|whole| range.contains(&whole))
    };
    let is_one = match kind {
        Kind::Bigint => plain.and_then(|plain| plain.whole(0, false)).is_some(),
        Kind::DoublePrecision => plain.is_some_and(|plain| {
            text.parse::<f64>().is_ok_and(|double| double.is_finite() && (double != 0.0 || plain.digits.is_empty()))
        }),
        Kind::Numeric => plain.is_some_and(|plain| plain.exponent < Some(EXPONENT_LIMIT) && plain.fits_numeric()),
        Kind::Boolean => ["true", "false"].contains(&&*text),
        Kind::Text => serde_json::from_str::<String>(json).is_ok_and(|text| !text.contains('\0')),
        Kind::Date => json.starts_with('"') && days_of(&text).is_some(),
        Kind::Timestamptz => json.starts_with('"') && is_plain_time(&text),
        Kind::TimestamptzEpoch => has_time(6),
        Kind::TimestamptzEpochMs => has_time(3),
        Kind::Uuid => json.starts_with('"') && uuid_of(&text).is_some(),
        // What Postgres cannot hold, or serde_json cannot read.
        Kind::Jsonb => !["U+0000", "escape", "surrogate", "digits"].iter().any(|why| reason.contains(why)),
    };
    assert!(!is_one, "{json} is a {}, and refused: {reason}", kind.words());
}

/// A number in pieces: it is `digits` times ten to the power of `exponent`.
struct Plain {
    is_negative: bool,
    /// From the first that is not 0.
    digits: String,
    /// As many digits stand behind the point.
    fraction: i64,
    /// As it is written; `None` if it is out of all bounds.
    exponent: Option<i64>,
}

impl Plain {
    /// The text, or what stands there.
    fn text(json: &str) -> String {
        serde_json::from_str(json).unwrap_or_else(|_| json.to_owned())
    }

    /// By the grammar of RFC 8259, letter by letter.
    fn of(json: &str) -> Option<Self> {
        let text = Self::text(json);
        let (is_negative, rest) = text.strip_prefix('-').map_or((false, &*text), |rest| (true, rest));
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        let (whole, fraction) = match mantissa.find('.') {
            Some(at) => (&mantissa[..at], Some(&mantissa[at + 1..])),
            None => (mantissa, None),
        };
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let unsigned = exponent.map(|exponent| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
        let is_number = are_digits(whole)
            && (whole == "0" || !whole.starts_with('0'))
            && fraction.is_none_or(are_digits)
            && unsigned.is_none_or(are_digits);
        let fraction = fraction.unwrap_or_default();
        is_number.then(|| Self {
            is_negative,
            digits: format!("{whole}{fraction}").trim_start_matches('0').to_owned(),
            fraction: i64::try_from(fraction.len()).expect("it is short"),
            exponent: exponent.map_or(Some(0), |exponent| exponent.parse().ok()),
        })
    }

    /// The power of ten that its last digit counts.
    fn last(&self) -> Option<i64> {
        self.exponent?.checked_sub(self.fraction)
    }

    /// As a whole number after the point has moved `digits` to the right. `None` if others follow that may not be cut, or if no bigint holds it.
    fn whole(&self, digits: i64, may_cut: bool) -> Option<i128> {
        if self.scale()? > SCALE_LIMIT {
            return None;
        }
        if self.digits.is_empty() {
            return Some(0);
        }
        let zeros = self.last()?.checked_add(digits)?;
        let text = match usize::try_from(zeros) {
            Ok(zeros) if zeros > 40 => return None,
            Ok(zeros) => format!("{}{}", self.digits, "0".repeat(zeros)),
            Err(_) => {
                let cut = usize::try_from(zeros.unsigned_abs()).ok()?.min(self.digits.len());
                let (kept, rest) = self.digits.split_at(self.digits.len() - cut);
                let is_cut = cut == self.digits.len() || rest.contains(|digit| digit != '0');
                if is_cut && !may_cut {
                    return None;
                }
                format!("0{kept}")
            }
        };
        let number: i128 = text.parse().ok()?;
        let number = if self.is_negative { -number } else { number };
        // What a bigint holds.
        i64::try_from(number).ok().map(i128::from)
    }

    fn scale(&self) -> Option<i64> {
        Some(self.last()?.checked_neg()?.max(0))
    }

    /// As the manual of Postgres has it: 131,072 digits before the point, and 16,383 behind it.
    fn fits_numeric(&self) -> bool {
        let before =
            self.last().map(|last| i64::try_from(self.digits.len()).expect("it is short").saturating_add(last));
        self.scale().is_some_and(|scale| scale <= SCALE_LIMIT)
            && before.is_some_and(|before| self.digits.is_empty() || before <= 131_072)
    }
}

/// The groups of four digits are those of the number.
fn assert_numeric(plain: &Plain, field: &[u8]) {
    assert!(plain.fits_numeric());
    let words: Vec<u16> = field.chunks(2).map(|word| u16::from_be_bytes([word[0], word[1]])).collect();
    let [count, weight, sign, scale, groups @ ..] = &*words else { panic!("{words:?}") };
    assert_eq!(usize::from(*count), groups.len());
    assert_eq!(Some(i64::from(*scale)), plain.scale());
    assert!(groups.iter().all(|group| *group < 10_000) && groups.first() != Some(&0) && groups.last() != Some(&0));
    assert_eq!(*sign, if plain.is_negative && !plain.digits.is_empty() { 0x4000 } else { 0 });
    let digits = groups.iter().map(|group| format!("{group:04}")).collect::<Vec<_>>().concat();
    // The power of ten that the last digit of the last group counts.
    let last = 4 * (i64::from(weight.cast_signed()) + 1) - i64::try_from(digits.len()).expect("it is short");
    let trimmed = |digits: &str, last: i64| {
        let kept = digits.trim_end_matches('0');
        let zeros = i64::try_from(digits.len() - kept.len()).expect("it is short");
        (kept.trim_start_matches('0').to_owned(), if kept.is_empty() { 0 } else { last + zeros })
    };
    assert_eq!(trimmed(&digits, last), trimmed(&plain.digits, plain.last().expect("it fits")));
}

/// Days since 1970 of a date as in 2026-11-30, from the year 1 on.
fn days_of(text: &str) -> Option<i64> {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = *parts else { return None };
    let number = |text: &str, digits| {
        let is_one = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        is_one.then(|| text.parse::<i64>().expect("digits"))
    };
    let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    let before = year - 1;
    let days = before * 365 + before / 4 - before / 100 + before / 400;
    let months: i64 = lengths[..usize::try_from(month).ok()? - 1].iter().sum();
    (year > 0 && (1..=length).contains(&day)).then_some(days + months + day - 1 - 719_162)
}

/// As in 2026-11-30T12:34:56Z: what every reader of times takes.
fn is_plain_time(text: &str) -> bool {
    let Some((date, time)) = text.split_once('T') else { return false };
    let parts: Vec<&str> = time.strip_suffix('Z').unwrap_or_default().split(':').collect();
    let is_below = |part: &str, limit| {
        part.len() == 2
            && part.bytes().all(|byte| byte.is_ascii_digit())
            && part.parse::<u8>().is_ok_and(|it| it < limit)
    };
    // jiff ends a day before the year 10000.
    days_of(date).is_some_and(|days| days < 2_932_895)
        && matches!(*parts, [hour, minute, second] if is_below(hour, 24) && is_below(minute, 60) && is_below(second, 60))
}

/// The bytes of a uuid with four hyphens in their places or without any.
fn uuid_of(text: &str) -> Option<Vec<u8>> {
    let has_hyphens = text.len() == 36;
    let are_in_place = text.bytes().enumerate().all(|(at, byte)| {
        let is_place = has_hyphens && [8, 13, 18, 23].contains(&at);
        if is_place { byte == b'-' } else { byte.is_ascii_hexdigit() }
    });
    let digits = text.replace('-', "");
    let pairs = || (0..32).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("digits"));
    (are_in_place && digits.len() == 32).then(|| pairs().collect())
}

/// The whole number that a bigint takes of this JSON.
pub fn bigint(json: &str) -> Option<i64> {
    let plain = Plain::of(json)?;
    i64::try_from(plain.whole(0, false)?).ok()
}
