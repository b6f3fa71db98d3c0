//! The real JSONPlaceholder, as its authors publish it on npm, for a source: nothing in it knows of us.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use sandbox::{Settings, Setup};
use support::{SOON, importer, metadata, start};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// It brings json-server, and the posts.
const PACKAGE: &str = "jsonplaceholder@0.3.3";

/// Its own app, on a free port.
const SERVER: &str = "const server = require('jsonplaceholder/src/app').listen(0, '127.0.0.1', () => console.log(server.address().port))";

#[tokio::test]
async fn the_real_jsonplaceholder_is_archived_and_applied_page_by_page() -> Result<()> {
    let sandbox = start(Setup { importer: false, ..Setup::default() }).await?;
    let folder = match install(&sandbox.world().place().target).await {
        Ok(folder) => folder,
        Err(why) => {
            support::skipped(format!("the real JSONPlaceholder was not tried: {why:#}"));
            return Ok(());
        }
    };
    let mut node = sandbox.world().program(Path::new("node"), &Settings::new());
    node.args(["-e", SERVER]).current_dir(folder).env("NODE_ENV", "production").stdout(Stdio::piped());
    let mut server: Child = Command::from(node).kill_on_drop(true).spawn()?;
    let mut port = String::new();
    BufReader::new(server.stdout.take().context("stdout is piped")?).read_line(&mut port).await?;
    let posts = format!("http://127.0.0.1:{}/posts", port.trim());

    // Page by page, by the links that it gives.
    let paged = format!("{posts}?_page=1&_limit=30");
    sandbox.importer.restart_with(&[("SOURCE_URL", &paged)]).await?;
    sandbox.wait_until("the posts are in the table", SOON, async || Ok(sandbox.position().await? == 4)).await?;
    sandbox.importer.terminate().await?;
    let rows = sandbox.rows().await?;
    assert_eq!(rows.len(), 100);
    assert_eq!(rows[0].title, "sunt aut facere repellat provident occaecati excepturi optio reprehenderit");
    for sequence in 1..=4 {
        let page = metadata(&sandbox, sequence).await?;
        assert_eq!((u64::from(page.page), page.last_page), (sequence, sequence == 4));
    }
    let once = async |source_url: &str| -> Result<_> {
        let output = importer(&sandbox, &[("SOURCE_URL", source_url)], &["once"]).await?;
        Ok(output.status.code())
    };
    assert_eq!(once(&paged).await?, Some(3), "nothing new");

    // And in one piece, which has a validator.
    assert_eq!(once(&posts).await?, Some(0));
    assert!(metadata(&sandbox, 5).await?.etag.is_some_and(|etag| etag.starts_with("W/")));
    assert_eq!(once(&posts).await?, Some(3));
    sandbox.wait_until("it is applied", SOON, async || Ok(sandbox.position().await? == 5)).await?;
    assert_eq!(sandbox.rows().await?, rows, "the same posts");
    Ok(())
}

/// The folder with the package, which is installed once, whole or not at all.
async fn install(target: &Path) -> Result<PathBuf> {
    let folder = target.join(PACKAGE.replace('@', "-"));
    if folder.exists() {
        return Ok(folder);
    }
    let half = tempfile::Builder::new().prefix("jsonplaceholder-").tempdir_in(target)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--loglevel=error", PACKAGE, "--prefix"]).arg(half.path());
    let output = npm.kill_on_drop(true).output().await.context("npm is not there")?;
    if !output.status.success() {
        bail!("npm install {PACKAGE} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // Somebody else may have been faster, with the same.
    if tokio::fs::rename(half.path(), &folder).await.is_err() && !folder.exists() {
        bail!("{} cannot be made", folder.display());
    }
    Ok(folder)
}
