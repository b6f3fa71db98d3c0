//! A posts API that behaves like JSONPlaceholder, which is json-server: pages, filters, validators, and changes that stay.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    event::Events,
    posts::{Post, Posts},
};

/// json-server's page size where `_limit` does not say another.
const DEFAULT_LIMIT: usize = 10;

/// A running posts API; it ends when it is dropped.
#[derive(Debug)]
pub struct PostsApi {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<io::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    source: Mutex<Source>,
    events: Events,
}

#[derive(Debug)]
struct Source {
    posts: Posts,
    /// The whole collection as it is sent, until it changes: of a million posts it is a quarter of a gigabyte.
    rendered: Option<Rendered>,
}

/// A body and the validator that belongs to it.
#[derive(Clone, Debug)]
struct Rendered {
    body: Bytes,
    etag: HeaderValue,
}

impl PostsApi {
    /// Serves `posts` on a free port of loopback. Changes are told to `events`.
    pub async fn start(posts: Posts, events: Events) -> io::Result<Self> {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), posts, events).await
    }

    /// No posts, served nowhere: for a stream of another API.
    pub(crate) fn none() -> Self {
        let source = Mutex::new(Source { posts: Posts::default(), rendered: None });
        let shared = Arc::new(Shared { source, events: Events::default() });
        Self { address: (Ipv4Addr::LOCALHOST, 0).into(), shared, server: tokio::spawn(async { Ok(()) }) }
    }

    /// The same at a chosen address.
    pub async fn listen(address: SocketAddr, posts: Posts, events: Events) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { source: Mutex::new(Source { posts, rendered: None }), events });
        let routes = Router::new()
            .route("/posts", get(list).post(create))
            .route("/feed", get(feed))
            .route("/posts/{id}", get(show).put(replace).patch(patch).delete(delete))
            .fallback(async || not_found())
            .with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(Self { address, shared, server })
    }

    /// The collection: `http://127.0.0.1:PORT/posts`.
    pub fn url(&self) -> String {
        format!("http://{}/posts", self.address)
    }

    /// The same posts behind cursors, in objects: `http://127.0.0.1:PORT/feed`.
    pub fn feed_url(&self) -> String {
        format!("http://{}/feed", self.address)
    }

    /// What the API would answer now, in the order of the ids.
    pub fn posts(&self) -> Posts {
        self.shared.source().posts.clone()
    }

    /// How many posts there are.
    pub fn len(&self) -> usize {
        self.shared.source().posts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes the posts from inside, without a request: `api.change(|posts| posts.delete(7))`.
    pub fn change<T>(&self, change: impl FnOnce(&mut Posts) -> T) -> T {
        self.shared.source().change(change)
    }

    /// Serves until the process ends.
    pub async fn forever(mut self) -> io::Result<()> {
        (&mut self.server).await.map_err(io::Error::other)?
    }
}

impl Drop for PostsApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn source(&self) -> MutexGuard<'_, Source> {
        // A panic elsewhere leaves whole posts behind.
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, method: &Method, id: u64) {
        self.events.tell("posts API", "changed", &[("method", method.as_str().into()), ("id", id.into())]);
    }
}

impl Source {
    fn change<T>(&mut self, change: impl FnOnce(&mut Posts) -> T) -> T {
        self.rendered = None;
        change(&mut self.posts)
    }

    fn whole(&mut self) -> Rendered {
        let posts = &self.posts;
        self.rendered.get_or_insert_with(|| render(&posts.iter().collect::<Vec<_>>())).clone()
    }
}

fn render(value: &impl serde::Serialize) -> Rendered {
    let body = Bytes::from(serde_json::to_vec_pretty(value).expect("posts are plain JSON"));
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    // The form of Express' validators: weak, length and hash.
    let etag = format!("W/\"{:x}-{:016x}\"", body.len(), hasher.finish());
    Rendered { etag: HeaderValue::try_from(etag).expect("ASCII"), body }
}

async fn list(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost").to_owned();
    // A large collection takes seconds to render; that may not hold up the other requests.
    let rendering = tokio::task::spawn_blocking(move || {
        if query.is_empty() {
            return (shared.source().whole(), HeaderMap::new());
        }
        let source = shared.source();
        let posts = &source.posts;
        let found: Vec<&Post> = posts.iter().filter(|post| fits(posts, post, &query)).collect();
        let (page, extra) = paginate(&found, &query, &host);
        (render(&page), extra)
    });
    let (rendered, extra) = rendering.await.expect("rendering does not panic");
    answer(rendered, &headers, extra)
}

/// Whether the post has the value of each filter, such as `userId=3`, and was changed at or behind `modified_after`. Names that begin with `_`
/// are no filters.
fn fits(posts: &Posts, post: &Post, query: &[(String, String)]) -> bool {
    query.iter().filter(|(name, _)| !name.starts_with('_')).all(|(name, wanted)| {
        let found = match name.as_str() {
            "id" => return wanted.parse() == Ok(post.id),
            "modified_after" => return wanted.parse().is_ok_and(|since| posts.is_changed_since(post.id, since)),
            "userId" => &post.user_id,
            "title" => &post.title,
            "body" => &post.body,
            other => post.extra.get(other).unwrap_or(&Value::Null),
        };
        match found {
            Value::String(text) => text == wanted,
            other => serde_json::from_str(wanted).is_ok_and(|wanted: Value| wanted == *other),
        }
    })
}

/// `_page` and `_limit` cut out a page, with its headers; `_limit` alone takes that many from the first on.
fn paginate<'a>(found: &'a [&'a Post], query: &[(String, String)], host: &str) -> (&'a [&'a Post], HeaderMap) {
    let number = |name| query.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.parse::<usize>().ok());
    let (page, limit) = (number("_page"), number("_limit"));
    let mut headers = HeaderMap::new();
    if page.is_none() && limit.is_none() {
        return (found, headers);
    }
    headers.insert(HeaderName::from_static("x-total-count"), found.len().into());
    let limit = limit.unwrap_or(DEFAULT_LIMIT).max(1);
    let Some(page) = page.map(|page| page.max(1)) else { return (&found[..limit.min(found.len())], headers) };

    let last = found.len().div_ceil(limit).max(1);
    let link = |page: usize, relation: &str| {
        let mut url = url::form_urlencoded::Serializer::new(String::new());
        url.extend_pairs(query.iter().filter(|(name, _)| name != "_page" && name != "_limit"));
        url.append_pair("_page", &page.to_string()).append_pair("_limit", &limit.to_string());
        format!("<http://{host}/posts?{}>; rel=\"{relation}\"", url.finish())
    };
    let mut links = Vec::new();
    if last > 1 {
        links.push(link(1, "first"));
        if page > 1 {
            links.push(link(page - 1, "prev"));
        }
        if page < last {
            links.push(link(page + 1, "next"));
        }
        links.push(link(last, "last"));
    }
    if let Ok(links) = HeaderValue::try_from(links.join(", ")) {
        headers.insert(header::LINK, links);
    }
    let begin = ((page - 1).saturating_mul(limit)).min(found.len());
    (&found[begin..begin.saturating_add(limit).min(found.len())], headers)
}

/// The same posts as an API with cursors has them: `{"data":[…],"meta":{"next":"20"}}`, and `null` on the last page. `cursor` and
/// `limit` say which page.
async fn feed(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    let number = |name| query.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.parse::<u64>().ok());
    let (after, limit) = (number("cursor").unwrap_or(0), number("limit").unwrap_or(10).max(1));
    let rendered = {
        let source = shared.source();
        let mut rest = source.posts.iter().filter(|post| post.id > after);
        let page: Vec<&Post> = rest.by_ref().take(usize::try_from(limit).unwrap_or(usize::MAX)).collect();
        let next = rest.next().and(page.last()).map(|last| last.id.to_string());
        render(&json!({ "data": page, "meta": { "next": next } }))
    };
    answer(rendered, &headers, HeaderMap::new())
}

async fn show(State(shared): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let rendered = id.parse().ok().and_then(|id| shared.source().posts.get(id).map(render));
    rendered.map_or_else(not_found, |rendered| answer(rendered, &headers, HeaderMap::new()))
}

async fn create(State(shared): State<Arc<Shared>>, method: Method, body: Bytes) -> Response {
    let Some(post) = parse_post(&body) else { return bad_request() };
    let (id, rendered) = shared.source().change(|posts| {
        let post = posts.insert(post);
        (post.id, render(post))
    });
    shared.changed(&method, id);
    (StatusCode::CREATED, json_headers(), rendered.body).into_response()
}

async fn replace(State(shared): State<Arc<Shared>>, method: Method, Path(id): Path<u64>, body: Bytes) -> Response {
    let Some(post) = parse_post(&body) else { return bad_request() };
    change_one(&shared, &method, id, |posts| posts.replace(id, post).map(render))
}

async fn patch(State(shared): State<Arc<Shared>>, method: Method, Path(id): Path<u64>, body: Bytes) -> Response {
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(&body) else { return bad_request() };
    change_one(&shared, &method, id, |posts| posts.patch(id, fields).map(render))
}

async fn delete(State(shared): State<Arc<Shared>>, method: Method, Path(id): Path<u64>) -> Response {
    change_one(&shared, &method, id, |posts| posts.delete(id).map(|_| render(&Map::new())))
}

fn change_one(
    shared: &Shared,
    method: &Method,
    id: u64,
    change: impl FnOnce(&mut Posts) -> Option<Rendered>,
) -> Response {
    // The answer is built after the lock is given back.
    let changed = shared.source().change(change);
    let Some(rendered) = changed else { return not_found() };
    shared.changed(method, id);
    (json_headers(), rendered.body).into_response()
}

/// A post to be stored; its id is not the caller's to choose.
fn parse_post(body: &[u8]) -> Option<Post> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
    fields.remove("id");
    serde_json::from_value(Value::Object(fields)).ok()
}

fn answer(rendered: Rendered, request: &HeaderMap, extra: HeaderMap) -> Response {
    let known = request.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok()).unwrap_or_default();
    // Weak comparison (RFC 9110, 8.8.3.2): the mark of weakness does not count.
    let bare = |etag: &str| etag.trim().trim_start_matches("W/").to_owned();
    let current = bare(rendered.etag.to_str().unwrap_or_default());
    let is_known = known.split(',').any(|known| known.trim() == "*" || bare(known) == current);
    let validator = [(header::ETAG, rendered.etag)];
    if is_known {
        return (StatusCode::NOT_MODIFIED, validator, extra).into_response();
    }
    (json_headers(), validator, extra, Body::from(rendered.body)).into_response()
}

fn json_headers() -> [(HeaderName, &'static str); 2] {
    [(header::CONTENT_TYPE, "application/json; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")]
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, json_headers(), "{}").into_response()
}

fn bad_request() -> Response {
    (StatusCode::BAD_REQUEST, json_headers(), "{\n  \"error\": \"a post is a JSON object\"\n}").into_response()
}

#[cfg(test)]
mod tests {
    use reqwest::{Client, RequestBuilder, Response};

    use super::*;

    async fn api(count: u64) -> (PostsApi, Client) {
        let api = PostsApi::start(Posts::lorem_ipsum(count), Events::default()).await.unwrap();
        (api, Client::builder().no_proxy().build().unwrap())
    }

    async fn get(client: &Client, url: String) -> Response {
        client.get(url).send().await.unwrap()
    }

    fn header<'a>(response: &'a Response, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    async fn json(request: RequestBuilder) -> (u16, Value) {
        let response = request.send().await.unwrap();
        (response.status().as_u16(), serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
    }

    #[tokio::test]
    async fn the_collection_has_a_validator_that_changes_with_it() {
        let (api, client) = api(100).await;
        let first = get(&client, api.url()).await;
        let etag = header(&first, "etag").to_owned();
        let body = first.text().await.unwrap();
        assert!(body.starts_with("[\n  {\n    \"userId\": 1,\n    \"id\": 1,\n    \"title\": "), "{body}");
        assert_eq!(serde_json::from_str::<Vec<Post>>(&body).unwrap().len(), 100);

        let conditional = async || client.get(api.url()).header("if-none-match", &etag).send().await.unwrap().status();
        assert_eq!(conditional().await, StatusCode::NOT_MODIFIED);
        api.change(|posts| posts.delete(100));
        assert_eq!(conditional().await, StatusCode::OK);
    }

    #[tokio::test]
    async fn pages_name_their_neighbours() {
        let (api, client) = api(25).await;
        let url = api.url();
        let page = get(&client, format!("{url}?_page=2&_limit=10")).await;
        let link = |page, relation| format!("<{url}?_page={page}&_limit=10>; rel=\"{relation}\"");
        let links = [link(1, "first"), link(1, "prev"), link(3, "next"), link(3, "last")].join(", ");
        assert_eq!((header(&page, "x-total-count"), header(&page, "link")), ("25", links.as_str()));
        let posts: Vec<Post> = page.json().await.unwrap();
        assert_eq!((posts.len(), posts[0].id), (10, 11));

        for (query, count) in
            [("_page=3", 5), ("_page=9", 0), ("_limit=7", 7), ("userId=3", 5), ("userId=3&id=21", 1), ("x=y", 0)]
        {
            let posts: Vec<Post> = get(&client, format!("{url}?{query}")).await.json().await.unwrap();
            assert_eq!(posts.len(), count, "{query}");
        }
        let all_in_one = get(&client, format!("{url}?_page=1&_limit=25")).await;
        assert_eq!(header(&all_in_one, "link"), "");
    }

    #[tokio::test]
    async fn the_feed_is_the_same_posts_behind_cursors() {
        let (api, client) = api(5).await;
        let mut url = api.feed_url() + "?limit=2";
        let mut pages = Vec::new();
        loop {
            let page: Value = get(&client, url.clone()).await.json().await.unwrap();
            pages.push(
                page["data"].as_array().unwrap().iter().map(|post| post["id"].as_u64().unwrap()).collect::<Vec<_>>(),
            );
            let Some(next) = page["meta"]["next"].as_str() else { break };
            url = format!("{}?limit=2&cursor={next}", api.feed_url());
        }
        assert_eq!(pages, [vec![1, 2], vec![3, 4], vec![5]]);
    }

    #[tokio::test]
    async fn what_is_changed_stays_changed() {
        let (api, client) = api(3).await;
        let one = |id: u64| format!("{}/{id}", api.url());
        let (code, post) = json(client.post(api.url()).json(&json!({"title": "new", "id": 1}))).await;
        assert_eq!((code, post), (201, json!({"id": 4, "title": "new"})));
        let (code, post) = json(client.patch(one(4)).json(&json!({"userId": 7}))).await;
        assert_eq!((code, post), (200, json!({"userId": 7, "id": 4, "title": "new"})));
        assert_eq!(json(client.put(one(4)).json(&json!({"body": "b"}))).await, (200, json!({"id": 4, "body": "b"})));
        assert_eq!(json(client.get(one(4))).await, (200, json!({"id": 4, "body": "b"})));
        assert_eq!(json(client.delete(one(4))).await, (200, json!({})));
        for missing in
            [client.get(one(4)), client.delete(one(4)), client.put(one(4)).json(&json!({})), client.get(one(99))]
        {
            assert_eq!(json(missing).await, (404, json!({})));
        }
        assert_eq!(json(client.post(api.url()).body("[]")).await.0, 400);
        assert_eq!(api.len(), 3);
    }
}
