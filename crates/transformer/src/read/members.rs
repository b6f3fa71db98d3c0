//! The members of a record, by name, each read as what a column wants. Pure.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// An object with more members is no record: they would take many times its length in memory.
const LIMIT: usize = 250_000;

/// The members of an object, as they are written.
#[derive(Clone, Debug)]
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Of a record, or why it is no object.
    pub fn of(record: &'a [u8]) -> Result<Self, String> {
        // Looked at once; serde_json would look at each value by itself.
        let text = str::from_utf8(record).map_err(|error| error.to_string())?;
        serde_json::from_str(text).map_err(|error| without_place(&error))
    }
}

/// What serde_json says, without the place: inside a record that has no line breaks of its own it helps nobody.
pub fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message).to_owned()
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor).map(Self)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((Text(name), value)) = map.next_entry()? {
            members.push((name, value));
            if members.len() > LIMIT {
                return Err(A::Error::custom(format!("it has more than {LIMIT} members")));
            }
        }
        Ok(members)
    }
}

/// A string, which is copied only if it has escapes.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_too_many_members_is_none() {
        let object = |members: usize| format!("{{{}\"\":0}}", "\"\":0,".repeat(members - 1));
        assert_eq!(Members::of(object(LIMIT).as_bytes()).unwrap().0.len(), LIMIT);
        assert_eq!(Members::of(object(LIMIT + 1).as_bytes()).unwrap_err(), "it has more than 250000 members");
    }
}
