//! All of JSONTestSuite (<https://github.com/nst/JSONTestSuite>), each file as an object of the archive: what is JSON loads, what is
//! not is quarantined with a reason, and nothing kills the daemon or stops the stream.
//!
//! The files are those that the crate `actson` carries, which is here for nothing else.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sandbox::Setup;
use serde_json::Value;
use support::{SOON, author::Author, start};

/// Every file of the suite, by name.
fn cases() -> Result<BTreeMap<String, Vec<u8>>> {
    let mut cases = BTreeMap::new();
    for entry in fs::read_dir(folder_of_actson()?.join("tests/json_test_suite/test_parsing"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("names are text")?.to_owned();
        cases.insert(name, fs::read(path)?);
    }
    Ok(cases)
}

fn folder_of_actson() -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--format-version=1", "--manifest-path"]);
    let output = cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("there are packages")?;
    let actson = packages.iter().find(|package| package["name"] == "actson").context("actson is among them")?;
    let manifest = Path::new(actson["manifest_path"].as_str().context("a path")?);
    Ok(manifest.parent().context("a file is in a folder")?.to_owned())
}

/// Whether the daemon takes such a document for a collection: a bare number or string is none, however valid.
fn is_collection(document: &[u8]) -> bool {
    matches!(document.trim_ascii_start().first(), Some(b'[' | b'{' | b'n'))
}

#[tokio::test]
async fn every_case_of_json_test_suite_loads_or_is_quarantined() -> Result<()> {
    let cases = cases()?;
    ensure!(cases.len() == 318, "the suite has 318 cases, and here are {}", cases.len());
    let sandbox = start(Setup { posts: 0, importer: false, ..Setup::default() }).await?;
    let mut author = Author::of(&sandbox).await?;
    for document in cases.values() {
        author.append(document).await?;
    }
    let is_applied = async || Ok(sandbox.position().await? == cases.len() as u64);
    sandbox.wait_until("all cases are applied", 3 * SOON, is_applied).await?;
    assert_eq!(sandbox.transformer.restarts(), 0);

    let mut connection = sandbox.connect().await?;
    let ledger: Vec<(String, Option<String>, i64)> =
        sqlx::query_as("SELECT outcome, reason, quarantined FROM objects ORDER BY sequence")
            .fetch_all(&mut connection)
            .await?;
    for ((name, document), (outcome, reason, records)) in cases.iter().zip(ledger) {
        let expected = match name.get(..2) {
            Some("y_") if is_collection(document) => &["loaded"][..],
            // What is no JSON may cost its record alone.
            Some("n_") if records > 0 => &["loaded"],
            Some("y_" | "n_") => &["quarantined"],
            // The standard leaves these to the reader.
            _ => &["loaded", "quarantined"],
        };
        assert!(expected.contains(&outcome.as_str()), "{name}: {outcome}, {reason:?}");
        assert_eq!(reason.is_some(), outcome == "quarantined", "{name}");
    }
    Ok(())
}
