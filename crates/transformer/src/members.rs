//! The members of a record, by name, each read as what a column wants. Pure.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::jsonb;

/// An object with more members is no record: they would take many times its length in memory.
const LIMIT: usize = 250_000;

/// The members of an object, as they are written.
#[derive(Debug)]
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Of a record, or why it is no object.
    pub fn of(record: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(record).map_err(|error| without_place(&error))
    }

    /// The value of the member with this name; of repeated ones the last.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rfind(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// Takes out the member with this name, which must be there once and have such a value.
    pub fn take<T: Deserialize<'a>>(&mut self, name: &str) -> Result<T, String> {
        let place = self.0.iter().position(|(known, _)| known == name);
        let (_, value) = self.0.swap_remove(place.ok_or_else(|| format!("`{name}` is missing"))?);
        if self.get(name).is_some() {
            return Err(format!("`{name}` stands there twice"));
        }
        serde_json::from_str(value.get()).map_err(|error| format!("`{name}`: {}", without_place(&error)))
    }

    /// The same for a text, which Postgres must be able to hold.
    pub fn take_text(&mut self, name: &str) -> Result<Cow<'a, str>, String> {
        let Text(text) = self.take(name)?;
        if text.contains('\0') { Err(format!("`{name}` holds U+0000, which Postgres cannot store")) } else { Ok(text) }
    }

    /// All that was not taken, as an object for jsonb; `None` if that is nothing.
    pub fn rest(self) -> Result<Option<String>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        jsonb::object(self, 0).map(Some)
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
