//! What is asked, and how what leads to a page gets into it. Pure.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    str::FromStr,
};

use serde_json::Value;
use shared::{
    json_pointer::{JsonPointer, JsonPointerError},
    settings::public_url,
};
use url::{Url, form_urlencoded};

/// What is asked: a GET of an address, or a POST with a JSON body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The address.
    pub url: Url,
    /// The body, if there is one.
    pub body: Option<Value>,
}

/// Method and address, without secrets.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.body.is_some() { "POST" } else { "GET" }, public_url(&self.url))
    }
}

impl Request {
    /// The same with a value there.
    #[must_use]
    pub fn with(&self, place: &Place, value: &Value) -> Self {
        let mut request = self.clone();
        match place {
            Place::Parameter(name) => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                request.url = with_parameter(&self.url, name, &text);
            }
            Place::Body(at) => set(request.body.get_or_insert_default(), at.names(), value),
        }
        request
    }

    /// The same with the number there raised.
    #[must_use]
    pub fn counted(&self, place: &Place, by: u64) -> Self {
        self.with(place, &self.number(place).unwrap_or_default().saturating_add(by).into())
    }

    /// Equal ones are the same request.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// The number there.
    pub fn number(&self, place: &Place) -> Option<u64> {
        match place {
            Place::Parameter(name) => self.url.query_pairs().find(|(known, _)| known == name)?.1.parse().ok(),
            Place::Body(at) => self.body.as_ref()?.pointer(&at.to_string())?.as_u64(),
        }
    }
}

/// Puts a value into a document, with all objects on the way to it. Elements of arrays that are there are gone into.
fn set(document: &mut Value, at: &[String], value: &Value) {
    match at.split_first() {
        None => *document = value.clone(),
        Some((first, rest)) => {
            let index = first.parse::<usize>().ok();
            if let Some(element) = document.as_array_mut().zip(index).and_then(|(array, index)| array.get_mut(index)) {
                return set(element, rest, value);
            }
            if !document.is_object() {
                *document = Value::Object(serde_json::Map::new());
            }
            set(&mut document[first], rest, value);
        }
    }
}

/// The same address, with another value of the parameter. All others stay as they are, byte for byte.
fn with_parameter(page: &Url, parameter: &str, value: &str) -> Url {
    let is_other = |pair: &&str| form_urlencoded::parse(pair.as_bytes()).any(|(name, _)| name != parameter);
    let others = page.query().into_iter().flat_map(|query| query.split('&')).filter(is_other);
    let mut pairs: Vec<String> = others.map(str::to_owned).collect();
    pairs.push(form_urlencoded::Serializer::new(String::new()).append_pair(parameter, value).finish());
    let mut next = page.clone();
    next.set_query(Some(&pairs.join("&")));
    next
}

/// Where a request takes what leads to its page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this parameter of the address.
    Parameter(String),
    /// In its body, at this place.
    Body(JsonPointer),
}

impl FromStr for Place {
    type Err = JsonPointerError;

    fn from_str(text: &str) -> Result<Self, JsonPointerError> {
        if text.starts_with('/') {
            return JsonPointer::with_places_in_arrays(text).map(Self::Body);
        }
        Ok(Self::Parameter(text.to_owned()))
    }
}
