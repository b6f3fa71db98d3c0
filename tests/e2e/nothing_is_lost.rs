//! Promise 1: every object up to the position is loaded or quarantined, all above it is pending.

use anyhow::Result;
use sandbox::Setup;
use support::{SOON, assert_whole, retitle, select, start};

#[tokio::test]
async fn a_hundred_posts_arrive_equal_to_the_source() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    assert_whole(&sandbox).await?;

    let served: Vec<serde_json::Value> = reqwest::get(sandbox.api.url()).await?.json().await?;
    let rows = sandbox.rows().await?;
    assert_eq!((served.len(), rows.len()), (100, 100));
    for (post, row) in served.iter().zip(rows) {
        let expected = serde_json::json!({ "userId": row.user_id, "id": row.id, "title": row.title, "body": row.body });
        assert_eq!(*post, expected);
    }
    let (extra, outcome): (Option<i64>, String) = (
        select(&sandbox, "SELECT count(extra) FROM posts").await?,
        select(&sandbox, "SELECT outcome || ' ' || records || ' ' || inserted FROM objects").await?,
    );
    assert_eq!((extra, outcome.as_str()), (Some(0), "loaded 100 100"));
    Ok(())
}

#[tokio::test]
async fn a_changed_post_is_updated_and_only_that_one() -> Result<()> {
    let sandbox = start(Setup::default()).await?;
    sandbox.settled(SOON).await?;
    retitle(&sandbox, 7, "another title");
    assert_whole(&sandbox).await?;

    assert_eq!(sandbox.end().await?, 2);
    let changed: Vec<i64> = select(&sandbox, "SELECT array_agg(id) FROM posts WHERE sequence = 2").await?;
    assert_eq!(changed, [7]);
    let times: bool = select(
        &sandbox,
        "SELECT bool_and(CASE WHEN id = 7 THEN updated_at > first_seen_at ELSE updated_at = first_seen_at END) FROM posts",
    )
    .await?;
    assert!(times, "only the changed post has a later time");
    let counts: String = select(&sandbox, "SELECT inserted || ' ' || updated FROM objects WHERE sequence = 2").await?;
    assert_eq!(counts, "0 1");
    Ok(())
}

#[tokio::test]
async fn new_posts_with_unknown_fields_keep_them() -> Result<()> {
    let sandbox = start(Setup { posts: 3, ..Setup::default() }).await?;
    let post = r#"{"userId": 1, "title": "t", "body": "b", "tags": ["x"], "score": 1.50}"#;
    let created = reqwest::Client::new().post(sandbox.api.url()).header("content-type", "application/json").body(post);
    assert_eq!(created.send().await?.status().as_u16(), 201);
    assert_whole(&sandbox).await?;
    sandbox.wait_until("the new post is there", SOON, async || Ok(sandbox.count().await? == 4)).await?;
    let extra: String = select(&sandbox, "SELECT extra::text FROM posts WHERE id = 4").await?;
    assert_eq!(extra.replace("1.50", "1.5"), r#"{"tags": ["x"], "score": 1.5}"#);
    Ok(())
}
