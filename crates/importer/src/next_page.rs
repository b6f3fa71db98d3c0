//! The settings that say how the pages of a collection follow each other. Pure.

use std::str::FromStr;

use clap::ValueEnum;
use shared::{
    json_pointer::{JsonPointer, JsonPointerError},
    records::RecordsAt,
};
use thiserror::Error;

use crate::request::{Place, Request};

/// How the pages of a collection follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NextPage {
    /// A `Link` header has the address of the next one.
    #[default]
    Link,
    /// The answer has the address of the next one, at this place.
    Address(JsonPointer),
    /// The answer has a value, at this place, that the next request brings.
    Value(Place, JsonPointer),
    /// They are numbered.
    Number(Place),
    /// The next request brings the number of records that came.
    Offset(Place),
    /// There is one page. A person says so.
    None,
}

/// The text does not say how pages follow.
#[derive(Debug, Error)]
pub enum NextPageError {
    /// A place that is none.
    #[error(transparent)]
    Pointer(#[from] JsonPointerError),
    /// None of the forms.
    #[error(
        "it is /links/next for the place of an address in the answer, after=/paging/next for the place of a value that goes into the \
         parameter `after`, page+1 or offset+records for parameters that count, or none for a collection of one page"
    )]
    Form,
}

impl FromStr for NextPage {
    type Err = NextPageError;

    fn from_str(text: &str) -> Result<Self, NextPageError> {
        let place = |text: &str| if text.is_empty() { Err(NextPageError::Form) } else { Ok(text.parse()?) };
        let pointer = JsonPointer::with_places_in_arrays;
        if text == "none" {
            Ok(Self::None)
        } else if let Some((to, at)) = text.split_once("=/") {
            Ok(Self::Value(place(to)?, pointer(&format!("/{at}"))?))
        } else if let Some(to) = text.strip_suffix("+1") {
            Ok(Self::Number(place(to)?))
        } else if let Some(to) = text.strip_suffix("+records") {
            Ok(Self::Offset(place(to)?))
        } else if text.starts_with('/') {
            Ok(Self::Address(pointer(text)?))
        } else {
            Err(NextPageError::Form)
        }
    }
}

impl NextPage {
    /// Whether the requests carry the number of a page or of records.
    pub fn is_counted(&self) -> bool {
        matches!(self, Self::Number(_) | Self::Offset(_))
    }

    /// The first request. It sends the first offset, 0, too, so that an API that refuses the parameter does so at once.
    pub fn first(&self, request: Request) -> Request {
        match self {
            Self::Offset(place) if request.number(place).is_none() => request.with(place, &0.into()),
            _ => request,
        }
    }

    /// What stands in the way of a walk from this request through answers with their records there.
    pub fn problem(&self, first: &Request, records_at: &RecordsAt) -> Option<String> {
        match (self, records_at) {
            (Self::Address(_) | Self::Value(..), RecordsAt::Document) => {
                let why = "RECORDS_AT is a dot\nan answer that is one record has no next page: leave one of them out";
                return Some(why.to_owned());
            }
            (Self::Address(at) | Self::Value(_, at), RecordsAt::Array(records)) => {
                let inside = at.names().strip_prefix(records.names());
                if inside.is_some_and(|inside| inside.first().is_none_or(|first| first != "-1")) {
                    return Some(format!(
                        "{at} leads into the records, which are at RECORDS_AT, or are the answer itself where that is not set\nof \
                         its elements an array's last one alone can be named, by -1"
                    ));
                }
            }
            _ => {}
        }
        match self {
            Self::Number(place) if first.number(place).is_none() => {
                let place = match place {
                    Place::Parameter(name) => format!("SOURCE_URL has no number in its parameter `{name}`"),
                    Place::Body(at) => format!("the body of SOURCE_BODY_FILE has no number at {at}"),
                };
                Some(format!(
                    "{place}\nsay which page is the first: some APIs count from 0, most from 1, and a wrong guess skips one"
                ))
            }
            Self::Value(Place::Body(at), _) | Self::Number(Place::Body(at)) | Self::Offset(Place::Body(at))
                if first.body.is_none() =>
            {
                Some(format!("{at} would be a place in the request's body, and SOURCE_BODY_FILE is not set"))
            }
            _ => None,
        }
    }
}

/// Whether the API's totals count the records of the collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Totals {
    /// A total beyond the records that came shows that the collection is not whole.
    #[default]
    Check,
    /// They count something else. A person says so.
    Ignore,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_the_setting_is_read_and_others_are_refused() {
        for text in [
            "/links/next",
            "after=/paging/next/after",
            "starting_after=/data/-1/id",
            "page+1",
            "$offset+records",
            "none",
        ] {
            assert!(text.parse::<NextPage>().is_ok(), "{text}");
        }
        assert!(matches!("/variables/after=/data/x/endCursor".parse(), Ok(NextPage::Value(Place::Body(_), _))));
        assert!(matches!("/from+records".parse(), Ok(NextPage::Offset(Place::Body(_)))));
        for text in ["", "page", "after=next", "+1", "=/next", "Link", "None"] {
            assert!(text.parse::<NextPage>().is_err(), "{text}");
        }
        let problem = |text: &str, url: &str, at: &str| {
            let request = Request { url: url.parse().unwrap(), body: None };
            text.parse::<NextPage>().unwrap().problem(&request, &at.parse().unwrap()).is_some()
        };
        for (text, url, at, is_wrong) in [
            ("page+1", "http://api/?page=x", "", true),
            ("page+1", "http://api/?page=0", "", false),
            ("/from+records", "http://api/", "", true),
            ("offset+records", "http://api/", "", false),
            ("/next", "http://api/", "", true),
            ("/next", "http://api/", ".", true),
            ("/next", "http://api/", "/data", false),
            ("after=/data/0/id", "http://api/", "/data", true),
            ("after=/data", "http://api/", "/data", true),
            ("after=/data/-1/id", "http://api/", "/data", false),
            ("after=/-1/id", "http://api/", "", false),
        ] {
            assert_eq!(problem(text, url, at), is_wrong, "{text} {url} {at}");
        }
    }
}
