//! The way to a value in a JSON document (RFC 6901). Pure.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A JSON pointer through members of objects, as in `/meta/next`. The empty one leads to the document itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonPointer(Vec<String>);

/// The text is no pointer, or one that is not followed here.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum JsonPointerError {
    /// Without its first character.
    #[error("a JSON pointer begins with `/`, as in /data or /meta/next")]
    NoSlash,
    /// An escape that is none.
    #[error("in a JSON pointer `~0` stands for `~` and `~1` for `/`, and `~` alone for nothing")]
    Escape,
    /// A place in an array.
    #[error("`{0}` would be a place in an array, and only members of objects are followed")]
    Index(String),
}

impl JsonPointer {
    /// The same with places in arrays, which [`crate::json_scan::Document`] does not follow: `0` is the first element, `-1` the last.
    pub fn with_places_in_arrays(text: &str) -> Result<Self, JsonPointerError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let names = text.strip_prefix('/').ok_or(JsonPointerError::NoSlash)?.split('/');
        names.map(unescape).collect::<Result<_, _>>().map(Self)
    }

    /// Whether it leads to the document itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The names of the members on the way.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// For a person: what there is, where it leads to after all its members, judged by its first byte.
    pub fn found_there(&self, first: u8) -> String {
        self.found(self.0.len(), first)
    }

    pub(crate) fn found(&self, depth: usize, first: u8) -> String {
        let kind = match first {
            b'{' => "an object",
            b'[' => "an array",
            b'"' => "a text",
            b't' | b'f' => "true or false",
            b'n' => "null",
            b'-' | b'0'..=b'9' => "a number",
            _ => "no JSON",
        };
        format!("{} is {kind}", self.place(depth))
    }

    /// For a person: where it leads to after this many members.
    pub(crate) fn place(&self, depth: usize) -> String {
        if depth == 0 { "the document".to_owned() } else { format!("`{}`", Self(self.0[..depth].to_vec())) }
    }
}

impl FromStr for JsonPointer {
    type Err = JsonPointerError;

    fn from_str(text: &str) -> Result<Self, JsonPointerError> {
        let pointer = Self::with_places_in_arrays(text)?;
        match pointer.0.iter().find(|name| is_place_in_an_array(name)) {
            Some(place) => Err(JsonPointerError::Index(place.clone())),
            None => Ok(pointer),
        }
    }
}

fn is_place_in_an_array(name: &str) -> bool {
    name == "0" || (!name.is_empty() && !name.starts_with('0') && name.bytes().all(|byte| byte.is_ascii_digit()))
}

fn unescape(token: &str) -> Result<String, JsonPointerError> {
    if token.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1'])) {
        return Err(JsonPointerError::Escape);
    }
    // In this order, so that `~01` is `~1`.
    Ok(token.replace("~1", "/").replace("~0", "~"))
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(text: &str) -> JsonPointer {
        text.parse().unwrap()
    }

    #[test]
    fn pointers_are_those_of_the_rfc_through_objects_alone() {
        for (text, names) in [
            ("", &[][..]),
            ("/", &[""]),
            ("/data", &["data"]),
            ("/a~1b/m~0n/ /~01", &["a/b", "m~n", " ", "~1"]),
            ("/-/01/1a//\u{e9}", &["-", "01", "1a", "", "\u{e9}"]),
        ] {
            let parsed = pointer(text);
            assert_eq!(
                (parsed.0.as_slice(), parsed.to_string().as_str()),
                (&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()[..], text)
            );
        }
        for (text, error) in [
            ("data", JsonPointerError::NoSlash),
            ("#/data", JsonPointerError::NoSlash),
            ("/a~", JsonPointerError::Escape),
            ("/a~2", JsonPointerError::Escape),
            ("/data/0/id", JsonPointerError::Index("0".into())),
            ("/data/12", JsonPointerError::Index("12".into())),
        ] {
            assert_eq!(text.parse::<JsonPointer>(), Err(error), "{text}");
        }
        assert_eq!(JsonPointer::with_places_in_arrays("/data/-1/id").unwrap().to_string(), "/data/-1/id");
        assert_eq!(JsonPointer::with_places_in_arrays("/data/0").unwrap().names(), ["data", "0"]);
    }
}
