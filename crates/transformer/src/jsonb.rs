//! JSON as Postgres writes it when it is asked for a jsonb, so that equal values are equal bytes and need not be sent for comparison. Pure.
//!
//! Members are sorted by the length of their names, then by their bytes; of repeated ones the last counts; escapes are those that must be
//! (<https://www.postgresql.org/docs/current/datatype-json.html>). Numbers stay as they are: `1e2` and `100` are told to be equal by Postgres.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::members::{Members, without_place};

/// What is nested deeper stays as it is. Each level is read once more for the one above it.
const LEVELS: u32 = 32;

/// A longer value in brackets stays as it is: its elements would take many times its length while they are sorted.
const PART_LIMIT_BYTES: usize = 1 << 20;

/// Writes the object of these members, or says which of them Postgres cannot hold, and why.
pub fn write_object(mut members: Members<'_>, out: &mut String) -> Result<(), String> {
    sort(&mut members);
    if let Some([(name, _), _]) = members.0.array_windows().find(|[(one, _), (next, _)]| one == next) {
        return Err(format!("`{}` stands there twice", name.escape_debug()));
    }
    write_list("{}", members.0, out, |(name, value), out| {
        write_member(&name, value, LEVELS, out).map_err(|why| format!("`{}` {why}", name.escape_debug()))
    })
}

fn sort(members: &mut Members<'_>) {
    members.0.sort_by(|(one, _), (other, _)| (one.len(), one).cmp(&(other.len(), other)));
}

fn write(value: &RawValue, levels: u32, out: &mut String) -> Result<(), String> {
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
            write_list("{}", members.0, out, |(name, value), out| write_member(&name, value, levels - 1, out))
        }
        [b'[', ..] if may_open => {
            write_list("[]", read::<Vec<&RawValue>>(json)?, out, |element, out| write(element, levels - 1, out))
        }
        [b'"', ..] if json.contains('\\') => write_text(&read::<String>(json)?, out),
        _ => {
            out.push_str(json);
            Ok(())
        }
    }
}

fn write_list<T>(
    brackets: &str,
    list: Vec<T>,
    out: &mut String,
    write: impl Fn(T, &mut String) -> Result<(), String>,
) -> Result<(), String> {
    out.push_str(&brackets[..1]);
    for (at, one) in list.into_iter().enumerate() {
        out.push_str(if at == 0 { "" } else { ", " });
        write(one, out)?;
    }
    out.push_str(&brackets[1..]);
    Ok(())
}

fn write_member(name: &str, value: &RawValue, levels: u32, out: &mut String) -> Result<(), String> {
    write_text(name, out)?;
    out.push_str(": ");
    write(value, levels, out)
}

fn write_text(text: &str, out: &mut String) -> Result<(), String> {
    if text.contains('\0') {
        return Err("holds U+0000, which Postgres cannot store".to_owned());
    }
    let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        out.extend(["\"", text, "\""]);
    } else {
        out.push_str(&serde_json::to_string(text).map_err(|error| error.to_string())?);
    }
    Ok(())
}

/// It was found to be JSON, so only an escape can be wrong: half of a surrogate pair.
fn read<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| format!("is no text: {}", without_place(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Result<String, String> {
        let mut out = String::new();
        write_object(serde_json::from_str(json).unwrap(), &mut out).map(|()| out)
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
        ] {
            let expected = expected.replace("\\u{7f}", "\u{7f}").replace("\\u{1f600}", "\u{1f600}");
            assert_eq!(written(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_postgres_cannot_hold_is_named() {
        for (json, expected) in [
            (r#"{"x":1,"y":2,"x":1}"#, "`x` stands there twice"),
            (r#"{"x":{"y":["\u0000"]}}"#, "`x` holds U+0000, which Postgres cannot store"),
            (r#"{"x":{"\u0000":1}}"#, "`x` holds U+0000, which Postgres cannot store"),
            (r#"{"\u0000":1}"#, "`\\0` holds U+0000, which Postgres cannot store"),
            (r#"{"x":["\ud800"]}"#, "`x` is no text: unexpected end of hex escape"),
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
