//! The design says what there is: a name that the code has and no page explains is one that nobody can look up.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use shared::{
    object::{AsOf, Metadata, Sequence, Sha256, SnapshotFacts, SnapshotKind},
    records::RecordsAt,
    status::Reason,
};
use support::programs::path_of;
use uuid::Uuid;

use crate::crash_points::{IMPORTER, TRANSFORMER};

fn page(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Those that stand nowhere on the page between backquotes.
fn unnamed<'a>(page: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    names.into_iter().filter(|name| !page.contains(&format!("`{name}`"))).collect()
}

#[test]
fn the_design_names_each_crash_point_hold_reason_and_metadata_key() -> Result<()> {
    let design = page("crates/README.md")?;
    assert_eq!(unnamed(&design, IMPORTER.into_iter().chain(TRANSFORMER)), Vec::<&str>::new());
    assert_eq!(unnamed(&design, Reason::LABELS), Vec::<&str>::new());
    let time = Timestamp::UNIX_EPOCH;
    let metadata = Metadata {
        archive_id: Uuid::nil(),
        observation: Uuid::nil(),
        previous: Some(Uuid::nil()),
        sha256: Sha256([0; 32]),
        fetched_at: time,
        source_url: "https://example.org".to_owned(),
        etag: Some("a".to_owned()),
        last_modified: Some("a".to_owned()),
        snapshot: Sequence::FIRST,
        page: 1,
        last_page: true,
        snapshot_sha256: Sha256([0; 32]),
        facts: SnapshotFacts {
            records_sha256: Some(Sha256([0; 32])),
            request: Some(0),
            records_at: Some(RecordsAt::default()),
            torn: true,
            kind: Some(SnapshotKind::Whole),
            single: true,
            as_of: Some(AsOf { api: time, ours: time }),
            whole_at: Some(time),
            repeat: true,
        },
    };
    let keys = metadata.encode()?;
    ensure!(keys.len() == 23, "{keys:?}: is one missing here?");
    assert_eq!(unnamed(&design, keys.keys().map(String::as_str)), Vec::<&str>::new());
    Ok(())
}

#[tokio::test]
async fn the_readme_names_each_setting() -> Result<()> {
    let readme = page("README.md")?;
    for program in ["importer", "transformer"] {
        let help = tokio::process::Command::new(path_of(program)?).arg("--help").output().await?;
        let help = String::from_utf8(help.stdout)?;
        let settings = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
        let settings: Vec<_> = settings.collect();
        ensure!(settings.len() > 10, "{help}");
        assert_eq!(unnamed(&readme, settings), Vec::<&str>::new(), "{program}");
    }
    Ok(())
}
