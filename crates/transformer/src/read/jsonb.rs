//! JSON as Postgres writes it when it is asked for a jsonb, so that equal values are equal bytes and need not be sent for comparison. Pure.
//!
//! Members are sorted by the length of their names, then by their bytes; of repeated ones the last counts; escapes are those that must be
//! (<https://www.postgresql.org/docs/current/datatype-json.html>). Numbers stay as they are: `1e2` and `100` are told to be equal by Postgres.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::members::{Members, without_place};

/// What is nested deeper stays as it is. Each level is read once more for the one above it.
const LEVELS: u32 = 32;

/// A longer value in brackets stays as it is: its elements would take many times its length while they are sorted.
const PART_LIMIT_BYTES: usize = 1 << 20;

/// Postgres writes numbers out: `1e131071` has that many digits. A record may have as many more by its exponents.
const DIGITS_LIMIT: u64 = 1 << 20;

/// The object of these members, or which of them Postgres cannot hold, and why. It is expected to have about this many bytes.
pub fn object(mut members: Members<'_>, bytes: usize) -> Result<String, String> {
    sort(&mut members);
    if let Some([(name, _), _]) = members.0.array_windows().find(|[(one, _), (next, _)]| one == next) {
        return Err(format!("`{}` stands there twice", name.escape_debug()));
    }
    let mut out = Output { text: String::with_capacity(bytes), digits: 0 };
    out.write_list("{}", members.0, |out, (name, value)| {
        out.write_member(&name, value, LEVELS).map_err(|why| format!("`{}` {why}", name.escape_debug()))
    })?;
    Ok(out.text)
}

/// Any value, or why Postgres cannot hold it.
pub fn value(value: &RawValue) -> Result<String, String> {
    let mut out = Output { text: String::with_capacity(value.get().len()), digits: 0 };
    out.write(value, LEVELS).map_err(|why| format!("it {why}"))?;
    Ok(out.text)
}

fn sort(members: &mut Members<'_>) {
    members.0.sort_by(|(one, _), (other, _)| (one.len(), one).cmp(&(other.len(), other)));
}

struct Output {
    text: String,
    /// How many digits the exponents of its numbers stand for.
    digits: u64,
}

impl Output {
    fn write(&mut self, value: &RawValue, levels: u32) -> Result<(), String> {
        let json = value.get();
        let may_open = levels > 0 && json.len() <= PART_LIMIT_BYTES;
        match json.as_bytes() {
            [b'{', ..] if may_open => {
                let mut members: Members<'_> = read(json)?;
                sort(&mut members);
                // The last one stays.
                members.0.reverse();
                members.0.dedup_by(|(one, _), (other, _)| one == other);
                members.0.reverse();
                self.write_list("{}", members.0, |out, (name, value)| out.write_member(&name, value, levels - 1))
            }
            [b'[', ..] if may_open => {
                self.write_list("[]", read::<Vec<&RawValue>>(json)?, |out, element| out.write(element, levels - 1))
            }
            [b'"', ..] if json.contains('\\') => self.write_text(&read::<String>(json)?),
            first => {
                if first[0] != b'"' {
                    self.digits = self.digits.saturating_add(digits_of_exponents(json));
                }
                if self.digits > DIGITS_LIMIT {
                    return Err(format!("has numbers of more than {DIGITS_LIMIT} digits, written out"));
                }
                self.text.push_str(json);
                Ok(())
            }
        }
    }

    fn write_list<T>(
        &mut self,
        brackets: &str,
        list: Vec<T>,
        write: impl Fn(&mut Self, T) -> Result<(), String>,
    ) -> Result<(), String> {
        self.text.push_str(&brackets[..1]);
        for (at, one) in list.into_iter().enumerate() {
            self.text.push_str(if at == 0 { "" } else { ", " });
            write(self, one)?;
        }
        self.text.push_str(&brackets[1..]);
        Ok(())
    }

    fn write_member(&mut self, name: &str, value: &RawValue, levels: u32) -> Result<(), String> {
        self.write_text(name)?;
        self.text.push_str(": ");
        self.write(value, levels)
    }

    fn write_text(&mut self, text: &str) -> Result<(), String> {
        if text.contains('\0') {
            return Err("holds U+0000, which Postgres cannot store".to_owned());
        }
        let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.bytes().all(is_plain) {
            self.text.extend(["\"", text, "\""]);
        } else {
            self.text.push_str(&serde_json::to_string(text).map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}

/// Of a value that is not taken apart, its texts left out.
fn digits_of_exponents(json: &str) -> u64 {
    let (mut digits, mut is_text, mut before) = (0_u64, false, b' ');
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            b'"' if !is_text || before != b'\\' => is_text = !is_text,
            b'e' | b'E' if !is_text && before.is_ascii_digit() => {
                let exponent = json[at + 1..].trim_start_matches(['+', '-']);
                let end = exponent.find(|c: char| !c.is_ascii_digit()).unwrap_or(exponent.len());
                digits = digits.saturating_add(exponent[..end].parse().unwrap_or(u64::MAX));
            }
            _ => {}
        }
        // A backslash behind a backslash escapes nothing.
        before = if before == b'\\' && byte == b'\\' { b' ' } else { byte };
    }
    digits
}

/// It was found to be JSON, so only an escape can be wrong: half of a surrogate pair.
fn read<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| format!("is no text: {}", without_place(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Result<String, String> {
        object(serde_json::from_str(json).unwrap(), 0)
    }

    #[test]
    fn an_object_is_written_as_postgres_writes_it() {
        for (json, expected) in [
            ("{}", "{}"),
            (r#"{"b":1,"aa":2,"a":3,"":4}"#, r#"{"": 4, "a": 3, "b": 1, "aa": 2}"#),
            (r#"{"é":1,"zz":2,"z":3}"#, r#"{"z": 3, "zz": 2, "é": 1}"#),
            (r#"{"a":[1 ,2.50,-0,1e2,true,null,"x"]}"#, r#"{"a": [1, 2.50, -0, 1e2, true, null, "x"]}"#),
            (r#"{"a":{"b":1,"c":2,"b":[ ]}}"#, r#"{"a": {"b": [], "c": 2}}"#),
            (r#"{"a":"\u0041\/\"\\\n\u001F\u007f\ud83d\ude00"}"#, r#"{"a": "A/\"\\\n\u001f\u{7f}\u{1f600}"}"#),
            (r#"{"\u0061":1}"#, r#"{"a": 1}"#),
            (r#"{"a":"1e9999999 true","b":[true,1e99]}"#, r#"{"a": "1e9999999 true", "b": [true, 1e99]}"#),
        ] {
            let expected = expected.replace("\\u{7f}", "\u{7f}").replace("\\u{1f600}", "\u{1f600}");
            assert_eq!(written(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_postgres_cannot_hold_is_named() {
        let deep_number = format!(r#"{{"x":{}"1e9\\\"2e9",3e+99999999{}}}"#, "[".repeat(40), "]".repeat(40));
        for (json, expected) in [
            (r#"{"x":1,"y":2,"x":1}"#, "`x` stands there twice"),
            (r#"{"x":{"y":["\u0000"]}}"#, "`x` holds U+0000, which Postgres cannot store"),
            (r#"{"x":{"\u0000":1}}"#, "`x` holds U+0000, which Postgres cannot store"),
            (r#"{"\u0000":1}"#, "`\\0` holds U+0000, which Postgres cannot store"),
            (r#"{"x":["\ud800"]}"#, "`x` is no text: unexpected end of hex escape"),
            (r#"{"w":[1e524288],"x":[1E-524289]}"#, "`x` has numbers of more than 1048576 digits, written out"),
            (&deep_number, "`x` has numbers of more than 1048576 digits, written out"),
        ] {
            assert_eq!(written(json), Err(expected.to_owned()), "{json}");
        }
    }

    #[test]
    fn what_is_too_long_to_be_sorted_stays_as_it_is() {
        let long = |more: usize| format!(r#"{{"x":[{}1]}}"#, "1,".repeat((PART_LIMIT_BYTES - 4) / 2 + more));
        assert!(written(&long(0)).unwrap().contains("1, 1"));
        assert!(!written(&long(1)).unwrap().contains("1, 1"));
    }

    #[test]
    fn what_is_nested_too_deep_stays_as_it_is() {
        let nested = |levels: usize| format!(r#"{{"a":{}{{"c":1,"b":2}}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        assert!(written(&nested(31)).unwrap().contains(r#"{"b": 2, "c": 1}"#));
        assert!(written(&nested(32)).unwrap().contains(r#"{"c":1,"b":2}"#));
        assert_eq!(written(&nested(100_000)).unwrap().len(), nested(100_000).len() + 1);
    }
}
