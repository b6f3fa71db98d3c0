//! The types of records that there are. A further one is one more name here.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use shared::{
    json_pointer::{JsonPointer, JsonPointerError},
    records::RecordsAt,
    settings::RecordsSettings,
};

use crate::{
    batch::Records,
    document, post,
    record_type::{RecordType, Statements},
};

/// The tables that records go into.
pub fn tables() -> Vec<&'static str> {
    Name::value_variants().iter().map(|name| name.statements().table).collect()
}

/// Where the records are, and what they become.
#[derive(Args, Clone, Debug)]
pub struct RecordSettings {
    #[command(flatten)]
    records: RecordsSettings,
    /// What each record becomes: post, a row of `posts`; or document, a row of `documents`, which takes any JSON object whole, by its id at
    /// ID_AT. Like SKIP it decides what the rows are: a change counts from the next object on, and for all of them after a rebuild
    #[arg(long, env = "RECORD_TYPE", value_name = "TYPE", value_enum, default_value_t)]
    record_type: Name,
    /// Where each document has its id, a text or a number, as a JSON pointer through members of objects; 7 and "7" are one id. It decides
    /// like RECORD_TYPE
    #[arg(long, env = "ID_AT", value_name = "POINTER", default_value = ID_AT, value_parser = parse_id_at)]
    id_at: JsonPointer,
}

const ID_AT: &str = "/id";

fn parse_id_at(text: &str) -> Result<JsonPointer, String> {
    let pointer: JsonPointer = text.parse().map_err(|error: JsonPointerError| error.to_string())?;
    if pointer.is_root() {
        Err("it leads to the record itself: name a member, as in /id".to_owned())
    } else {
        Ok(pointer)
    }
}

/// A place of ids for records that are no documents.
pub fn uselessness(record_type: Option<&str>, id_at: Option<&str>) -> Option<String> {
    let at = id_at.filter(|at| *at != ID_AT && record_type != Some("document"))?;
    Some(format!(
        "ID_AT (--id-at) is `{at}`, and RECORD_TYPE (--record-type) is not document\na post has its id in `id`: set RECORD_TYPE, or leave \
         ID_AT out"
    ))
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Name {
    #[default]
    Post,
    Document,
}

impl Name {
    fn statements(self) -> &'static Statements {
        match self {
            Self::Post => &post::STATEMENTS,
            Self::Document => &document::STATEMENTS,
        }
    }
}

impl RecordSettings {
    /// What each record becomes.
    pub fn record_type(&self) -> Arc<dyn RecordType> {
        match self.record_type {
            Name::Post => Arc::new(post::Type),
            Name::Document => Arc::new(document::Type::new(self.id_at.clone())),
        }
    }
}

impl From<RecordSettings> for Records {
    fn from(settings: RecordSettings) -> Self {
        Self { of: settings.record_type(), at: settings.records.records_at }
    }
}

impl Default for Records {
    /// Posts, and the document is an array of them.
    fn default() -> Self {
        Self { of: Arc::new(post::Type), at: RecordsAt::default() }
    }
}
