//! A record of any kind becomes a document: the whole object as jsonb, by its id. A view shapes it. Pure.

use std::borrow::Cow;

use shared::json_pointer::JsonPointer;

use crate::{
    jsonb,
    members::{Members, Text, without_place},
    record_type::{NoRow, RecordType, Statements},
    row::{ColumnType, Fields, Id},
};

/// The table of documents.
pub static STATEMENTS: Statements = Statements {
    table: "documents",
    columns: &[ColumnType::TEXT, ColumnType::JSONB],
    copy: include_str!("sql/copy_documents.sql"),
    merge: include_str!("sql/merge_documents.sql"),
    update: include_str!("sql/update_documents.sql"),
    select: include_str!("sql/select_documents.sql"),
    select_between: None,
    select_neighbours: include_str!("sql/select_neighbours_of_documents.sql"),
};

/// A longer id is one that Postgres cannot index: a third of a page of 8 KiB is the limit.
const ID_LIMIT_BYTES: usize = 2_600;

/// Documents with their id there.
#[derive(Debug)]
pub struct Type {
    id_at: JsonPointer,
}

impl Type {
    /// Whose id is there.
    pub fn new(id_at: JsonPointer) -> Self {
        Self { id_at }
    }
}

impl RecordType for Type {
    fn statements(&self) -> &'static Statements {
        &STATEMENTS
    }

    fn read(&self, record: &[u8], fields: &mut Fields<'_>) -> Result<bool, NoRow> {
        let members = Members::of(record).map_err(|reason| NoRow { id: None, reason })?;
        let id = find_id(&members, &self.id_at).map_err(|reason| NoRow { id: None, reason })?;
        if id.len() > ID_LIMIT_BYTES {
            let reason = format!("`{}` is longer than {ID_LIMIT_BYTES} bytes, and no id", self.id_at);
            return Err(NoRow { id: None, reason });
        }
        fields.put_text(&id);
        let doc = jsonb::object(members, record.len() + record.len() / 8)
            .map_err(|reason| NoRow { id: Id::Text(id).as_number(), reason })?;
        fields.put_jsonb(&doc);
        Ok(false)
    }
}

fn find_id<'a>(members: &Members<'a>, at: &JsonPointer) -> Result<Cow<'a, str>, String> {
    let missing = || format!("`{at}` is missing, and ID_AT must lead to a text or a number");
    let (first, rest) = at.names().split_first().ok_or_else(missing)?;
    let mut value = members.get(first).ok_or_else(missing)?;
    for name in rest {
        let inner: Members<'_> = serde_json::from_str(value.get()).map_err(|_| missing())?;
        value = inner.get(name).ok_or_else(missing)?;
    }
    let json = value.get();
    match json.as_bytes()[0] {
        b'"' => {
            let Text(text) = serde_json::from_str(json).map_err(|error| without_place(&error))?;
            Ok(text)
        }
        // As it is written: nobody sorts by it as a number.
        b'-' | b'0'..=b'9' => Ok(json.into()),
        other => Err(format!("{}, and ID_AT must lead to a text or a number", at.found_there(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Id, Row};

    fn read(id_at: &str, json: &str) -> Result<(String, String), NoRow> {
        let mut bytes = Vec::new();
        let documents = Type { id_at: id_at.parse().unwrap() };
        assert!(!documents.read(json.as_bytes(), &mut Fields(&mut bytes))?);
        let row = Row::new(0, STATEMENTS.columns[0], &bytes);
        let Id::Text(id) = row.id.clone() else { panic!("{row:?}") };
        let [_, Some([1, doc @ ..])] = *row.values().collect::<Vec<_>>() else { panic!("{row:?}") };
        Ok((id.into_owned(), String::from_utf8_lossy(doc).into_owned()))
    }

    #[test]
    fn a_document_is_the_whole_record_by_its_id() {
        for (id_at, json, id, doc) in [
            ("/id", r#"{"x":[1],"id":7}"#, "7", r#"{"x": [1], "id": 7}"#),
            ("/id", r#"{"id":"a\u00e9"}"#, "aé", r#"{"id": "aé"}"#),
            ("/id", r#"{"id":-1.50}"#, "-1.50", r#"{"id": -1.50}"#),
            ("/key/name", r#"{"id":1,"key":{"name":"n"}}"#, "n", r#"{"id": 1, "key": {"name": "n"}}"#),
            ("/key/n", r#"{"key":{"n":1,"n":2}}"#, "2", r#"{"key": {"n": 2}}"#),
        ] {
            assert_eq!(read(id_at, json), Ok((id.to_owned(), doc.to_owned())), "{json}");
        }
    }

    #[test]
    fn a_record_without_an_id_says_so() {
        for (id_at, json, id, reason) in [
            ("/id", "7", None, "invalid type: integer `7`, expected an object"),
            ("/id", "{}", None, "`/id` is missing, and ID_AT must lead to a text or a number"),
            ("/a/b", r#"{"a":[]}"#, None, "`/a/b` is missing, and ID_AT must lead to a text or a number"),
            ("/id", r#"{"id":null}"#, None, "`/id` is null, and ID_AT must lead to a text or a number"),
            ("/id", r#"{"id":7,"x":"\u0000"}"#, Some(7), "`x` holds U+0000, which Postgres cannot store"),
            ("/id", r#"{"id":"\ud800"}"#, None, "unexpected end of hex escape"),
            ("/id", r#"{"id":1,"id":2}"#, Some(2), "`id` stands there twice"),
            ("/id", r#"{"id":"007","x":"\u0000"}"#, None, "`x` holds U+0000, which Postgres cannot store"),
            (
                "/id",
                &format!(r#"{{"id":"{}"}}"#, "x".repeat(2_601)),
                None,
                "`/id` is longer than 2600 bytes, and no id",
            ),
        ] {
            assert_eq!(read(id_at, json), Err(NoRow { id, reason: reason.to_owned() }), "{json}");
        }
    }
}
