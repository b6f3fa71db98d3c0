//! What `transformer propose` prints for a shell, `migrate` and the transformer take, and then all records are rows.

use std::process::Command;

use anyhow::{Result, ensure};
use sandbox::{Sandbox, Setup};
use support::{author::Author, execute, start, transformer};

async fn nothing_runs() -> Result<Sandbox> {
    start(Setup { posts: 0, importer: false, transformer: false, ..Setup::default() }).await
}

/// TABLE and TABLE_COLUMNS as a shell understands these lines.
fn in_a_shell(lines: &str) -> Result<(String, String)> {
    let script = format!("{lines}\nprintf '%s\\n%s' \"$TABLE\" \"$TABLE_COLUMNS\"");
    let output = Command::new("sh").args(["-c", &script]).output()?;
    ensure!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout)?;
    let (table, columns) = said.split_once('\n').unwrap_or_default();
    Ok((table.to_owned(), columns.to_owned()))
}

#[tokio::test]
async fn what_is_proposed_takes_all_records() -> Result<()> {
    let sandbox = nothing_runs().await?;
    let empty = transformer(&sandbox, &[], &["propose"]).await?;
    assert_eq!(empty.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&empty.stderr).contains("`importer once` archives a first snapshot"), "{empty:?}");

    let mut author = Author::of(&sandbox).await?;
    author.append(r#"[{"isbn":"1"},{"isbn":"1"}]"#).await?;
    let no_key = transformer(&sandbox, &[], &["propose"]).await?;
    assert_eq!(no_key.status.code(), Some(3));
    assert!(
        no_key.stdout.is_empty()
            && String::from_utf8_lossy(&no_key.stderr).contains("no member tells the 2 records apart")
    );

    author
        .append(
            r#"[{"isbn":"1","it's":1,"published":"2026-11-30","price":1.5,"title":{"rendered":"A"},"tags":[]},
                {"isbn":"2","it's":2,"published":null,"price":2,"title":{"rendered":"B"},"tags":["x"]}]"#,
        )
        .await?;
    let proposed = transformer(&sandbox, &[], &["propose"]).await?;
    assert!(proposed.status.success(), "{proposed:?}");
    let (table, columns) = in_a_shell(&String::from_utf8(proposed.stdout)?)?;
    assert_eq!(
        columns,
        "isbn text, it_s bigint /it's, published date, price double precision, title text /title/rendered, tags jsonb, extra jsonb *"
    );
    let settings = [("DATABASE_SCHEMA", "proposed"), ("TABLE", table.as_str()), ("TABLE_COLUMNS", columns.as_str())];
    for command in ["migrate", "once"] {
        let output = transformer(&sandbox, &settings, &[command]).await?;
        ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let rows =
        format!("DO $$ BEGIN ASSERT (SELECT count(*) FROM proposed.\"{table}\" WHERE extra IS NULL) = 2; END $$");
    execute(&sandbox, &rows).await?;
    Ok(())
}
