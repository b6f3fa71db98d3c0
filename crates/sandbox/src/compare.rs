//! Whether the table is what the API says. Pure.

use std::collections::BTreeMap;

use sqlx::{FromRow, Row as _, postgres::PgRow};

use crate::posts::{Post, Posts};

/// A row of the table, as far as the API knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Primary key.
    pub id: i64,
    /// The author.
    pub user_id: i64,
    /// One line.
    pub title: String,
    /// A few lines.
    pub body: String,
}

impl Row {
    /// The row that the post should become; `None` for a post that no row can hold.
    pub fn of(post: &Post) -> Option<Self> {
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        Some(Self {
            id: post.id.try_into().ok()?,
            user_id: post.user_id.as_i64()?,
            title: text(&post.title)?,
            body: text(&post.body)?,
        })
    }
}

impl FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            user_id: row.try_get("user_id")?,
            title: row.try_get("title")?,
            body: row.try_get("body")?,
        })
    }
}

/// What is different, a line each, in the order of the ids. Posts that no row can hold are left out, whatever is in the table; a row whose
/// post was deleted at the API stays, because an observation without a post says nothing about it.
pub fn differences(posts: &Posts, rows: &[Row]) -> Vec<String> {
    let mut rest: BTreeMap<i64, &Row> = rows.iter().map(|row| (row.id, row)).collect();
    let mut lines = Vec::new();
    for post in posts.iter() {
        let row = i64::try_from(post.id).ok().and_then(|id| rest.remove(&id));
        let Some(expected) = Row::of(post) else { continue };
        match row {
            None => lines.push(format!("post {} is not in the table", post.id)),
            Some(row) if *row != expected => {
                lines.push(format!("post {}: the API has {expected:?}, the table {row:?}", post.id));
            }
            Some(_) => {}
        }
    }
    let is_known = |id: i64| u64::try_from(id).is_ok_and(|id| posts.was_deleted(id));
    lines.extend(rest.into_keys().filter(|id| !is_known(*id)).map(|id| format!("row {id} was never a post")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_is_nothing_and_every_difference_is_named() {
        let mut posts = Posts::lorem_ipsum(4);
        let mut rows: Vec<Row> = posts.iter().filter_map(Row::of).collect();
        assert_eq!(differences(&posts, &rows), Vec::<String>::new());

        posts.delete(4);
        posts.replace(3, Post::default());
        assert_eq!(
            differences(&posts, &rows),
            Vec::<String>::new(),
            "neither a deleted nor a broken post is a difference"
        );

        rows.remove(0);
        rows[0].title.push('!');
        rows.push(Row { id: 9, ..rows[0].clone() });
        let lines = differences(&posts, &rows);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!((lines[0].as_str(), lines[2].as_str()), ("post 1 is not in the table", "row 9 was never a post"));
    }
}
