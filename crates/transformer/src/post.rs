//! A record becomes a post: the columns of `posts`, and what there is no column for beside them. Pure.

use std::borrow::Cow;

use crate::{
    members::Members,
    record_type::{NoRow, RecordType, Statements},
    row::{ColumnType, Fields},
};

/// The table of posts.
pub static STATEMENTS: Statements = Statements {
    table: "posts",
    columns: &[ColumnType::BIGINT, ColumnType::BIGINT, ColumnType::TEXT, ColumnType::TEXT, ColumnType::JSONB],
    copy: include_str!("sql/copy_posts.sql"),
    merge: include_str!("sql/merge_posts.sql"),
    update: include_str!("sql/update_posts.sql"),
    select: include_str!("sql/select_posts.sql"),
    select_between: Some(include_str!("sql/select_posts_between.sql")),
    select_neighbours: include_str!("sql/select_neighbours_of_posts.sql"),
};

/// Posts.
#[derive(Debug)]
pub struct Type;

impl RecordType for Type {
    fn statements(&self) -> &'static Statements {
        &STATEMENTS
    }

    fn read(&self, record: &[u8], fields: &mut Fields<'_>) -> Result<bool, NoRow> {
        let Post { id, user_id, title, body, extra } = Post::from_record(record)?;
        fields.put_bigint(id);
        fields.put_bigint(user_id);
        fields.put_text(&title);
        fields.put_text(&body);
        match &extra {
            Some(extra) => fields.put_jsonb(extra),
            None => fields.put_null(),
        }
        Ok(extra.is_some())
    }
}

/// A row of `posts`, as the observation gives it. Its texts are borrowed from a record without escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post<'a> {
    /// `id`, a 64-bit integer.
    pub id: i64,
    /// `userId`, a 64-bit integer.
    pub user_id: i64,
    /// `title`, any text without U+0000.
    pub title: Cow<'a, str>,
    /// `body`, any text without U+0000.
    pub body: Cow<'a, str>,
    /// All other members as one JSON object, as Postgres writes it; `None` when there are none.
    pub extra: Option<String>,
}

impl<'a> Post<'a> {
    /// Reads a record.
    pub fn from_record(record: &'a [u8]) -> Result<Self, NoRow> {
        let mut members = Members::of(record).map_err(|reason| NoRow { id: None, reason })?;
        let id = members.take("id");
        Self::of(id.clone(), members).map_err(|reason| NoRow { id: id.ok(), reason })
    }

    fn of(id: Result<i64, String>, mut members: Members<'a>) -> Result<Self, String> {
        Ok(Self {
            id: id?,
            user_id: members.take("userId")?,
            title: members.take_text("title")?,
            body: members.take_text("body")?,
            extra: members.rest()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::any_document::any_record;

    fn post(json: &str) -> Result<Post<'_>, NoRow> {
        Post::from_record(json.as_bytes())
    }

    #[test]
    fn a_post_takes_its_columns_and_keeps_what_it_does_not_know() {
        let json = r#"{"userId": 1, "id": -9223372036854775808, "title": "t\u00e9", "body": "", "z": 1.50, "a": {"b": [1e400]}}"#;
        assert_eq!(
            post(json),
            Ok(Post {
                id: i64::MIN,
                user_id: 1,
                title: "té".into(),
                body: "".into(),
                extra: Some(r#"{"a": {"b": [1e400]}, "z": 1.50}"#.into()),
            })
        );
        assert_eq!(post(r#"{"userId":1,"id":2,"title":"","body":""}"#).unwrap().extra, None);
        let escaped = r#"{"userId":1,"id":2,"title":"","body":"b","x":["\\","\"","\u00e9","\\u0000","\"\u00e9"]}"#;
        assert!(post(escaped).unwrap().extra.is_some(), "each string ends where it ends, and none holds U+0000");
    }

    #[test]
    fn a_wrong_record_says_what_is_wrong_with_it() {
        for (json, id, reason) in [
            ("7", None, "invalid type: integer `7`, expected an object"),
            ("[1,2,\"t\",\"b\"]", None, "invalid type: sequence, expected an object"),
            (r#"{"userId":1,"id":2,"title":"t"}"#, Some(2), "`body` is missing"),
            (
                r#"{"userId":1,"id":2,"title":null,"body":""}"#,
                Some(2),
                "`title`: invalid type: null, expected a string",
            ),
            (
                r#"{"userId":1,"id":2.5,"title":"","body":""}"#,
                None,
                "`id`: invalid type: floating point `2.5`, expected i64",
            ),
            (
                r#"{"userId":1,"id":9223372036854775808,"title":"","body":""}"#,
                None,
                "`id`: invalid value: integer `9223372036854775808`, expected i64",
            ),
            (
                r#"{"userId":"1","id":2,"title":"","body":""}"#,
                Some(2),
                "`userId`: invalid type: string \"1\", expected i64",
            ),
            (r#"{"id":2,"id":2,"userId":1,"title":"","body":""}"#, None, "`id` stands there twice"),
            (r#"{"id":2,"x":1,"x":1,"userId":1,"title":"","body":""}"#, Some(2), "`x` stands there twice"),
            (
                r#"{"id":2,"userId":1,"title":"a\u0000b","body":""}"#,
                Some(2),
                "`title` holds U+0000, which Postgres cannot store",
            ),
            (
                r#"{"id":2,"userId":1,"title":"","body":"","x":["\u0000"]}"#,
                Some(2),
                "`x` holds U+0000, which Postgres cannot store",
            ),
            (
                r#"{"id":2,"userId":1,"title":"","body":"","x":["a\\","\u0000"]}"#,
                Some(2),
                "`x` holds U+0000, which Postgres cannot store",
            ),
            (
                r#"{"id":2,"userId":1,"title":"","body":"","x":["\"\u0000"]}"#,
                Some(2),
                "`x` holds U+0000, which Postgres cannot store",
            ),
            (r#"{"id":2,"userId":1,"title":"\ud800","body":""}"#, Some(2), "`title`: unexpected end of hex escape"),
            (
                r#"{"id":2,"userId":1,"title":"","body":"","x":"\ud800"}"#,
                Some(2),
                "`x` is no text: unexpected end of hex escape",
            ),
        ] {
            let wrong = post(json).unwrap_err();
            assert_eq!((wrong.id, wrong.reason.as_str()), (id, reason), "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_record_is_a_post_with_all_its_fields_or_said_to_be_none(record in any_record()) {
            let json = record.to_string();
            match post(&json) {
                Ok(Post { id, user_id, title, body, extra }) => {
                    prop_assert!(!title.contains('\0') && !body.contains('\0'));
                    let mut fields: serde_json::Map<String, Value> =
                        extra.map(|extra| serde_json::from_str(&extra).unwrap()).unwrap_or_default();
                    for (name, value) in [("id", id.into()), ("userId", user_id.into()), ("title", title.into()), ("body", body.into())] {
                        prop_assert_eq!(fields.insert(name.into(), value), None);
                    }
                    prop_assert_eq!(Value::Object(fields), record);
                }
                Err(wrong) => {
                    prop_assert!(!wrong.reason.is_empty());
                    prop_assert_eq!(wrong.id, record.get("id").and_then(Value::as_i64));
                }
            }
        }
    }
}
