//! Which page comes next, and whether the pages belong together. Pure.
//!
//! A collection is paged by `Link: <…>; rel="next"` (RFC 8288), which is followed unasked, by a numbered parameter until a page is
//! empty, or by a cursor in each body until there is none. None may lead to another origin, in a circle, or on for ever.

use std::collections::HashSet;

use thiserror::Error;
use url::Url;

use shared::{object::Sha256, settings::public_url};

/// A collection of more pages is taken for an endless one.
pub const MOST_PAGES: usize = 10_000;

/// All addresses of a walk are in memory together, and few servers take a longer one.
const LINK_LIMIT_BYTES: usize = 4_000;

/// So much without a query goes into an object's metadata, however it has to be written there. Were that found out only when the
/// page is appended, each poll would append the pages before it anew.
const PATH_LIMIT_BYTES: usize = 900;

/// What a page says of the collection, beside its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signs {
    /// The address of the page, behind its redirects: links are relative to it.
    pub page: Url,
    /// The `Link` header lines.
    pub links: Vec<String>,
    /// `X-Total-Count`: how many records the collection has.
    pub total: Option<String>,
    /// Whether the page holds no record.
    pub is_empty: bool,
    /// Whether it is an object, of which nobody here knows whether it holds some.
    pub is_object: bool,
    /// The next page's cursor, if it was looked for and the body has one.
    pub cursor: Option<String>,
    /// The digest of the body, once it is there.
    pub sha256: Option<Sha256>,
}

/// How an API without `Link` headers names its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// It has one page.
    None,
    /// With this parameter, which counts them.
    Number(String),
    /// With this parameter, which has the cursor of the page before.
    Cursor(String),
}

impl Signs {
    /// Whether the collection may have more pages than this one. Many a server has a `Link` for something else.
    pub fn is_paged(&self) -> bool {
        self.total.is_some() || ["next", "last"].iter().any(|relation| target(&self.links, relation).is_some())
    }
}

/// What to do after a page.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Fetch this one.
    Next(Url),
    /// That was the last one.
    End,
    /// The page is past the end of a numbered collection, and no part of it.
    PastTheEnd,
    /// The collection is not the one that the first page belonged to: total or number of pages changed.
    Changed,
}

/// Why the pages cannot be followed.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum PageError {
    /// A page that was there before.
    #[error("the next page of {from} is {next}, which came before: the pages lead in a circle")]
    Circle { from: String, next: String },
    /// Another server.
    #[error("the next page of {from} is {next}, on another origin: set SOURCE_URL to the origin that serves all pages")]
    OtherOrigin { from: String, next: String },
    /// No address at all.
    #[error("the next page of {from} is `{next}`, which is no address")]
    Unreadable { from: String, next: String },
    /// An address that is too long.
    #[error(
        "the next page of {from} has an address of {bytes} bytes, and a page's may have {LINK_LIMIT_BYTES}, and {PATH_LIMIT_BYTES} \
         before its query"
    )]
    TooLong { from: String, bytes: usize },
    /// An object among numbered pages.
    #[error(
        "the page at {from} is an object, and the pages that PAGE_PARAMETER numbers end with an empty array: name the member that has the \
         next page's number or cursor in CURSOR_AT, the parameter in CURSOR_PARAMETER, and leave PAGE_PARAMETER out"
    )]
    NoEnd { from: String },
    /// A numbered page that is the one before it.
    #[error(
        "the page at {from} is the one before it, byte for byte: the API does not know the parameter that PAGE_PARAMETER names, so correct it \
         or leave it out"
    )]
    Same { from: String },
    /// Too many.
    #[error("the collection goes on after {MOST_PAGES} pages: ask for larger ones in SOURCE_URL")]
    Endless,
}

/// The walk through the pages of one collection.
#[derive(Debug)]
pub struct Paging {
    parameter: Parameter,
    pages: usize,
    /// The addresses that were asked for and, behind their redirects, those that answered.
    seen: HashSet<Url>,
    /// The digest of the page before.
    last: Option<Sha256>,
    /// Total and last page, as the first page had them.
    extent: Option<(Option<String>, Option<String>)>,
}

impl Paging {
    /// Before the first page.
    pub fn new(parameter: Parameter) -> Self {
        Self { parameter, pages: 0, seen: HashSet::new(), last: None, extent: None }
    }

    /// Takes a page and says what comes after it.
    pub fn turn(&mut self, signs: &Signs) -> Result<Turn, PageError> {
        let page = &signs.page;
        self.pages += 1;
        self.seen.insert(page.clone());
        let extent = (signs.total.clone(), target(&signs.links, "last").map(str::to_owned));
        let first = self.extent.get_or_insert_with(|| extent.clone());
        // Not every page need say it.
        let is_told_otherwise = |first: &Option<String>, now: &Option<String>| matches!((first, now), (Some(first), Some(now)) if first != now);
        if is_told_otherwise(&first.0, &extent.0) || is_told_otherwise(&first.1, &extent.1) {
            return Ok(Turn::Changed);
        }
        let is_same = signs.sha256.is_some() && self.last == signs.sha256;
        self.last = signs.sha256;
        let next = match (target(&signs.links, "next"), &self.parameter, &signs.cursor) {
            (Some(next), ..) => resolve(page, next)?,
            (None, Parameter::Number(_), _) if signs.is_empty => {
                return Ok(if self.pages == 1 { Turn::End } else { Turn::PastTheEnd });
            }
            (None, Parameter::Number(_), _) if signs.is_object => {
                return Err(PageError::NoEnd { from: public_url(page) });
            }
            (None, Parameter::Number(_), _) if is_same => return Err(PageError::Same { from: public_url(page) }),
            (None, Parameter::Number(parameter), _) => numbered_after(page, parameter),
            (None, Parameter::Cursor(parameter), Some(cursor)) => with_parameter(page, parameter, cursor),
            (None, Parameter::Cursor(_) | Parameter::None, _) => return Ok(Turn::End),
        };
        let bytes = next.as_str().len();
        if bytes > LINK_LIMIT_BYTES || next.as_str().find('?').unwrap_or(bytes) > PATH_LIMIT_BYTES {
            return Err(PageError::TooLong { from: public_url(page), bytes });
        }
        if !self.seen.insert(next.clone()) {
            return Err(PageError::Circle { from: public_url(page), next: public_url(&next) });
        }
        if self.pages >= MOST_PAGES { Err(PageError::Endless) } else { Ok(Turn::Next(next)) }
    }
}

/// The target of the first link with the relation. Relations are compared as RFC 8288 says: words, in any case.
fn target<'a>(lines: &'a [String], relation: &str) -> Option<&'a str> {
    let found = lines.iter().flat_map(|line| line.split('<').skip(1)).filter_map(|link| link.split_once('>'));
    found.into_iter().find(|(_, parameters)| has_relation(parameters, relation)).map(|(target, _)| target)
}

fn has_relation(parameters: &str, relation: &str) -> bool {
    let values = parameters.split([';', ',']).filter_map(|parameter| parameter.split_once('='));
    let mut relations = values.filter(|(name, _)| name.trim().eq_ignore_ascii_case("rel"));
    relations.any(|(_, value)| {
        let value = value.trim().trim_matches('"');
        value.split_ascii_whitespace().any(|word| word.eq_ignore_ascii_case(relation))
    })
}

fn resolve(page: &Url, next: &str) -> Result<Url, PageError> {
    let from = public_url(page);
    let Ok(url) = page.join(next) else { return Err(PageError::Unreadable { from, next: next.to_owned() }) };
    if url.origin() == page.origin() { Ok(url) } else { Err(PageError::OtherOrigin { from, next: public_url(&url) }) }
}

/// The page with the next number; the first has 1 unless its address says otherwise.
fn numbered_after(page: &Url, parameter: &str) -> Url {
    let number = page.query_pairs().find(|(name, _)| name == parameter).and_then(|(_, number)| number.parse().ok());
    with_parameter(page, parameter, &number.unwrap_or(1_u64).saturating_add(1).to_string())
}

/// The same address, with another value of the parameter.
fn with_parameter(page: &Url, parameter: &str, value: &str) -> Url {
    let others: Vec<(String, String)> = page
        .query_pairs()
        .filter(|(name, _)| name != parameter)
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let mut next = page.clone();
    next.query_pairs_mut().clear().extend_pairs(others).append_pair(parameter, value);
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn signs(page: &str) -> Signs {
        let (links, total, cursor, sha256) = (Vec::new(), None, None, None);
        Signs { page: url(page), links, total, is_empty: false, is_object: false, cursor, sha256 }
    }

    fn linked(link: &str) -> Signs {
        Signs { links: vec![link.to_owned()], ..signs("http://api/posts?_page=1") }
    }

    fn turn(link: &str) -> Result<Turn, PageError> {
        Paging::new(Parameter::None).turn(&linked(link))
    }

    #[test]
    fn links_of_every_spelling_are_followed() {
        for link in [
            r#"<http://api/posts?_page=2>; rel="next""#,
            "<?_page=2>;rel=next",
            r#"<http://api/posts?_page=1>; rel="first", </posts?_page=2>; title="a, b"; REL="Next""#,
            r#"<http://api/posts?_page=2>; rel="prefetch next""#,
        ] {
            assert_eq!(turn(link), Ok(Turn::Next(url("http://api/posts?_page=2"))), "{link}");
        }
        for link in ["", r#"<http://api/posts>; rel="prev""#, "http://api/2; rel=next", r#"<?2>; title="rel""#] {
            assert_eq!(turn(link), Ok(Turn::End), "{link}");
        }
    }

    #[test]
    fn a_link_that_leads_astray_is_refused() {
        for (link, error) in [
            ("<http://other/posts?_page=2>; rel=next", "on another origin"),
            ("<https://api/posts?_page=2>; rel=next", "on another origin"),
            ("<http://[>; rel=next", "is no address"),
            ("<http://api/posts?_page=1>; rel=next", "came before"),
            ("<javascript:alert(1)>; rel=next", "on another origin"),
            (&format!("</{}>; rel=next", "a".repeat(PATH_LIMIT_BYTES - 10)), "has an address of 901 bytes"),
            (&format!("<?{}>; rel=next", "a".repeat(LINK_LIMIT_BYTES - 16)), "has an address of 4001 bytes"),
        ] {
            let said = turn(link).unwrap_err().to_string();
            assert!(said.contains(error), "{said}");
        }
    }

    #[test]
    fn an_address_just_as_long_as_allowed_is_followed_and_can_be_named_in_metadata() {
        for link in [
            format!("</{}a>; rel=next", "%00".repeat((PATH_LIMIT_BYTES - 12) / 3)),
            format!("<?{}>; rel=next", "a".repeat(LINK_LIMIT_BYTES - 17)),
        ] {
            let Ok(Turn::Next(next)) = turn(&link) else { panic!("{link}") };
            let page = crate::decide::tests::answer_from(next.as_str());
            for (_, metadata) in crate::decide::next_objects(None, &[page], false).unwrap() {
                metadata.encode().unwrap();
            }
        }
    }

    #[test]
    fn a_page_that_speaks_of_others_may_be_one_of_several() {
        for (signs, is_paged) in [
            (signs("http://api/posts"), false),
            (linked("</style.css>; rel=preload"), false),
            (linked("<?_page=2>; rel=next"), true),
            (linked("<?_page=2>; rel=last"), true),
            (Signs { total: Some("1".into()), ..signs("http://api/posts") }, true),
        ] {
            assert_eq!(signs.is_paged(), is_paged, "{signs:?}");
        }
    }

    #[test]
    fn a_collection_without_end_is_stopped() {
        let mut paging = Paging::new(Parameter::Number("page".into()));
        let mut page = url("http://api/posts");
        for _ in 1..MOST_PAGES {
            let Ok(Turn::Next(next)) = paging.turn(&signs(page.as_str())) else { panic!("{page}") };
            page = next;
        }
        assert_eq!(paging.turn(&signs(page.as_str())), Err(PageError::Endless));
    }

    #[test]
    fn numbered_pages_end_with_an_empty_one() {
        let mut paging = Paging::new(Parameter::Number("_page".into()));
        let (first, second) = (signs("http://api/posts?_limit=2"), signs("http://api/posts?_limit=2&_page=2"));
        let empty = |signs: &Signs| Signs { is_empty: true, ..signs.clone() };
        assert_eq!(paging.turn(&first), Ok(Turn::Next(second.page.clone())));
        assert_eq!(paging.turn(&empty(&second)), Ok(Turn::PastTheEnd));
        let mut paging = Paging::new(Parameter::Number("_page".into()));
        assert_eq!(paging.turn(&empty(&first)), Ok(Turn::End), "an empty collection has one page");
        let mut paging = Paging::new(Parameter::Number("_page".into()));
        let with = |digest: u8, signs: &Signs| Signs { sha256: Some(Sha256([digest; 32])), ..signs.clone() };
        assert_eq!(paging.turn(&with(1, &first)), Ok(Turn::Next(second.page.clone())));
        assert!(
            matches!(paging.turn(&with(1, &second)), Err(PageError::Same { .. })),
            "the API knows no such parameter"
        );
        let object = Signs { is_object: true, ..signs("http://api/posts?key=s3cret") };
        let said = Paging::new(Parameter::Number("_page".into())).turn(&object).unwrap_err().to_string();
        assert!(said.starts_with("the page at http://api/posts?key=*** is an object"), "{said}");
    }

    fn cursor(page: &str, cursor: &str) -> Signs {
        Signs { cursor: Some(cursor.to_owned()), ..signs(page) }
    }

    #[test]
    fn a_cursor_leads_to_the_next_page_until_there_is_none() {
        let mut paging = Paging::new(Parameter::Cursor("after".into()));
        let first = "http://api/posts?limit=2&after=start&x=%26";
        let second = "http://api/posts?limit=2&x=%26&after=a%26b%3D+c";
        assert_eq!(paging.turn(&cursor(first, "a&b= c")), Ok(Turn::Next(url(second))));
        let Ok(Turn::Next(third)) = paging.turn(&cursor(second, "d")) else { panic!("there is a third page") };
        assert_eq!(paging.turn(&signs(third.as_str())), Ok(Turn::End), "an empty page is a page");
        let linked = Signs { cursor: Some("a".into()), ..linked("<?_page=2>; rel=next") };
        let turn = Paging::new(Parameter::Cursor("after".into())).turn(&linked);
        assert_eq!(turn, Ok(Turn::Next(url("http://api/posts?_page=2"))), "a link says all of it");
    }

    #[test]
    fn a_cursor_that_came_before_is_refused_and_so_is_a_long_one() {
        let mut paging = Paging::new(Parameter::Cursor("cursor".into()));
        for next in ["a", "b"] {
            // A server that redirects and forgets the cursor on the way.
            assert!(matches!(paging.turn(&cursor("http://api/v2/posts", next)), Ok(Turn::Next(_))));
        }
        let said = paging.turn(&cursor("http://api/v2/posts", "a")).unwrap_err().to_string();
        assert!(said.contains("is http://api/v2/posts?cursor=a, which came before"), "{said}");

        let secret = Paging::new(Parameter::Cursor("page_token".into()))
            .turn(&cursor("http://api/?page_token=s3cret", "s3cret"));
        let said = secret.unwrap_err().to_string();
        assert!(said.contains("***") && !said.contains("s3cret"), "{said}");

        for (bytes, is_taken) in [(3_981, true), (3_982, false)] {
            let turn = Paging::new(Parameter::Cursor("a".into())).turn(&cursor("http://api/posts", &"x".repeat(bytes)));
            assert_eq!(turn.is_ok(), is_taken, "{bytes}");
        }
    }

    #[test]
    fn cursors_without_end_are_stopped() {
        let mut paging = Paging::new(Parameter::Cursor("cursor".into()));
        let mut page = url("http://api/posts");
        for number in 1..MOST_PAGES {
            let Ok(Turn::Next(next)) = paging.turn(&cursor(page.as_str(), &number.to_string())) else {
                panic!("{page}")
            };
            page = next;
        }
        assert_eq!(paging.turn(&cursor(page.as_str(), "more")), Err(PageError::Endless));
    }

    #[test]
    fn a_collection_that_changes_while_it_is_paged_is_told_apart() {
        let last = |number: u32| format!(r#"<http://api/posts?_page={number}>; rel="last", <?_page=2>; rel=next"#);
        for (first, second) in [
            (
                Signs { total: Some("10".into()), ..linked("<?_page=2>; rel=next") },
                Signs { total: Some("11".into()), ..linked("") },
            ),
            (linked(&last(2)), linked(&last(3))),
        ] {
            let mut paging = Paging::new(Parameter::None);
            assert!(matches!(paging.turn(&first), Ok(Turn::Next(_))));
            let second = Signs { page: url("http://api/posts?_page=2"), ..second };
            assert_eq!(paging.turn(&second), Ok(Turn::Changed));
            // A page that does not say it changes nothing.
            let mut paging = Paging::new(Parameter::None);
            assert!(matches!(paging.turn(&linked("<?_page=2>; rel=next")), Ok(Turn::Next(_))));
            assert_ne!(paging.turn(&second), Ok(Turn::Changed));
        }
    }
}
