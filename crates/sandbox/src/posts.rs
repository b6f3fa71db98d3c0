//! The posts that the API serves: what there is, what was changed and when, and how it looks as JSON.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// As JSONPlaceholder has it.
const POSTS_A_USER: u64 = 10;

/// A post as JSON. Like json-server, the API takes any value in any field, also one that is no post.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Post {
    /// A whole number, usually.
    #[serde(rename = "userId", default, skip_serializing_if = "Value::is_null")]
    pub user_id: Value,
    /// Given by the API.
    #[serde(default)]
    pub id: u64,
    /// Text, usually.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub title: Value,
    /// Text, usually.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub body: Value,
    /// Fields of the future.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The collection.
#[derive(Clone, Debug, Default)]
pub struct Posts {
    by_id: BTreeMap<u64, Post>,
    deleted: BTreeSet<u64>,
    /// When a post was changed last, if it was.
    changed: BTreeMap<u64, Timestamp>,
}

impl FromIterator<Post> for Posts {
    fn from_iter<T: IntoIterator<Item = Post>>(posts: T) -> Self {
        Self { by_id: posts.into_iter().map(|post| (post.id, post)).collect(), ..Self::default() }
    }
}

impl Posts {
    /// `count` posts, ten a user; the same ones every time.
    pub fn lorem_ipsum(count: u64) -> Self {
        Self { by_id: (1..=count).map(|id| (id, lorem_ipsum(id))).collect(), ..Self::default() }
    }

    /// In the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Post> {
        self.by_id.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// One of them.
    pub fn get(&self, id: u64) -> Option<&Post> {
        self.by_id.get(&id)
    }

    /// Whether a post of this id has been there and was deleted.
    pub fn was_deleted(&self, id: u64) -> bool {
        self.deleted.contains(&id)
    }

    /// Whether a post was changed then or later.
    pub fn is_changed_since(&self, id: u64, since: Timestamp) -> bool {
        self.changed.get(&id).is_some_and(|at| *at >= since)
    }

    /// Adds a post, with the next id.
    pub fn insert(&mut self, mut post: Post) -> &Post {
        let last = self.by_id.last_key_value().map(|(id, _)| *id).max(self.deleted.last().copied());
        let id = last.unwrap_or(0) + 1;
        post.id = id;
        self.changed.insert(id, Timestamp::now());
        self.by_id.entry(id).or_insert(post)
    }

    /// Puts another post in the place of the one that is there.
    pub fn replace(&mut self, id: u64, post: Post) -> Option<&Post> {
        let place = self.by_id.get_mut(&id)?;
        self.changed.insert(id, Timestamp::now());
        *place = Post { id, ..post };
        Some(place)
    }

    /// Changes the given fields only.
    pub fn patch(&mut self, id: u64, fields: Map<String, Value>) -> Option<&Post> {
        let post = self.by_id.get_mut(&id)?;
        self.changed.insert(id, Timestamp::now());
        for (name, value) in fields {
            match name.as_str() {
                "id" => {}
                "userId" => post.user_id = value,
                "title" => post.title = value,
                "body" => post.body = value,
                _ => {
                    post.extra.insert(name, value);
                }
            }
        }
        Some(post)
    }

    /// Takes a post away.
    pub fn delete(&mut self, id: u64) -> Option<Post> {
        let post = self.by_id.remove(&id)?;
        self.deleted.insert(id);
        Some(post)
    }
}

const WORDS: [&str; 64] = [
    "sunt",
    "aut",
    "facere",
    "repellat",
    "provident",
    "occaecati",
    "excepturi",
    "optio",
    "reprehenderit",
    "qui",
    "est",
    "esse",
    "ea",
    "molestias",
    "quasi",
    "exercitationem",
    "et",
    "iusto",
    "sed",
    "quo",
    "iure",
    "voluptatem",
    "eum",
    "dolorem",
    "magnam",
    "facilis",
    "autem",
    "quas",
    "nesciunt",
    "sint",
    "architecto",
    "totam",
    "laboriosam",
    "odio",
    "nihil",
    "dolor",
    "ipsa",
    "tempora",
    "saepe",
    "quidem",
    "porro",
    "consequuntur",
    "libero",
    "vitae",
    "maiores",
    "quaerat",
    "tempore",
    "harum",
    "asperiores",
    "velit",
    "recusandae",
    "perspiciatis",
    "accusantium",
    "voluptas",
    "nostrum",
    "fugiat",
    "cumque",
    "debitis",
    "minus",
    "deserunt",
    "earum",
    "corporis",
    "praesentium",
    "laudantium",
];

/// The shape of JSONPlaceholder's posts: a title of a few words, four lines of body.
pub(crate) fn lorem_ipsum(id: u64) -> Post {
    // splitmix64: every id gives its own text, the same one on every machine.
    let mut state = id;
    let mut random = move |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    };
    let mut line = |least: u64, most: u64| {
        let count = least + random(most - least + 1);
        let mut text = String::new();
        for position in 0..count {
            if position > 0 {
                text.push(' ');
            }
            let word = usize::try_from(random(WORDS.len() as u64)).expect("an index into WORDS");
            text.push_str(WORDS[word]);
        }
        text
    };
    let title = line(3, 9);
    let body = [line(4, 7), line(4, 7), line(4, 7), line(4, 7)].join("\n");
    Post {
        user_id: ((id - 1) / POSTS_A_USER + 1).into(),
        id,
        title: title.into(),
        body: body.into(),
        extra: Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_posts_are_those_of_ten_users() {
        let posts = Posts::lorem_ipsum(100);
        assert_eq!(posts.len(), 100);
        let users: BTreeSet<u64> = posts.iter().map(|post| post.user_id.as_u64().unwrap()).collect();
        assert_eq!(users, (1..=10).collect());
        assert_eq!(posts.iter().collect::<Vec<_>>(), Posts::lorem_ipsum(100).iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_post_looks_like_json_servers() {
        let post: Post =
            serde_json::from_value(serde_json::json!({"title": "t", "id": 1, "userId": 1, "body": "b"})).unwrap();
        let expected = "{\n  \"userId\": 1,\n  \"id\": 1,\n  \"title\": \"t\",\n  \"body\": \"b\"\n}";
        assert_eq!(serde_json::to_string_pretty(&post).unwrap(), expected);
    }

    #[test]
    fn changes_stay_and_ids_are_not_given_twice() {
        let mut posts = Posts::lorem_ipsum(3);
        let fields = serde_json::json!({"title": "new", "id": 9, "mood": "good"});
        posts.patch(2, fields.as_object().unwrap().clone()).unwrap();
        let changed = posts.get(2).unwrap();
        assert_eq!((changed.id, &changed.title, &changed.extra["mood"]), (2, &"new".into(), &"good".into()));
        assert!(posts.delete(3).is_some() && posts.delete(3).is_none() && posts.was_deleted(3));
        assert!(posts.is_changed_since(2, Timestamp::MIN) && !posts.is_changed_since(2, Timestamp::MAX));
        assert!(!posts.is_changed_since(1, Timestamp::MIN), "it was there from the beginning");
        assert_eq!(posts.insert(Post::default()).id, 4);
        assert!(posts.replace(7, Post::default()).is_none());
    }
}
