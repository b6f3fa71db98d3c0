//! Wrong settings end a daemon with exit code 2 and one message that lists all of them; the help explains each.

use std::{collections::BTreeSet, process::Output};

use anyhow::Result;
use support::world;

async fn run(program: &str, settings: &[(&'static str, &str)], arguments: &[&str]) -> Result<Output> {
    let world = world().await;
    let programs = world.programs();
    let program = if program == "importer" { &programs.importer } else { &programs.transformer };
    let mut set = sandbox::Settings::new();
    set.set(settings);
    Ok(world.program(program, &set).args(arguments).output()?)
}

fn told(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    format!("exit code {}\n{}", output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text))
}

#[tokio::test]
async fn the_help_explains_every_setting() -> Result<()> {
    insta::assert_snapshot!("importer_help", told(&run("importer", &[], &["--help"]).await?));
    insta::assert_snapshot!("transformer_help", told(&run("transformer", &[], &["--help"]).await?));
    insta::assert_snapshot!("transformer_migrate_help", told(&run("transformer", &[], &["migrate", "--help"]).await?));
    Ok(())
}

#[tokio::test]
async fn all_wrong_settings_are_told_at_once() -> Result<()> {
    let wrong =
        [("POLL_INTERVAL", "2x"), ("STREAM", "Posts"), ("QUEUE_URL", "http://localhost/posts"), ("MAX_BODY", "0")];
    insta::assert_snapshot!("importer_wrong_settings", told(&run("importer", &wrong, &[]).await?));
    let wrong = [
        ("PAGE_PARAMETER", "page"),
        ("CURSOR_AT", "/meta/next"),
        ("NEXT_PAGE", "next"),
        ("TOTALS", "no"),
        ("RECORDS_AT", "data"),
    ];
    insta::assert_snapshot!("importer_wrong_paging", told(&run("importer", &wrong, &[]).await?));
    let wrong = [("SOURCE_URL", "https://example.org/posts"), ("NEXT_PAGE", "page+1")];
    insta::assert_snapshot!("importer_no_first_page", told(&run("importer", &wrong, &[]).await?));
    let wrong = [
        ("CATCH_UP_INTERVAL", "0s"),
        ("DATABASE_URL", "mysql://me:secret@host/db"),
        ("DATABASE_SCHEMA", "a-b"),
        ("RECORDS_AT", "/pages/0/data"),
    ];
    let output = run("transformer", &wrong, &["--log-format", "xml"]).await?;
    assert!(!told(&output).contains("secret"));
    insta::assert_snapshot!("transformer_wrong_settings", told(&output));
    Ok(())
}

#[tokio::test]
async fn an_address_that_only_libpq_understands_is_refused_with_what_to_do() -> Result<()> {
    let mut all = String::new();
    for (name, value) in [
        ("DATABASE_URL", "postgres://me:secret@one:5432,two:5433/posts"),
        ("DATABASE_URL", "postgres://me:secret@one/posts?target_session_attrs=read-write"),
        ("DATABASE_URL", "postgres://me:secret@one/posts?sslmode=verify_full"),
        ("DATABASE_URL", "host=one dbname=posts user=me password=secret"),
        ("PGHOST", "one,two"),
        ("PGPORT", "5432,5433"),
        ("PGSERVICE", "posts"),
    ] {
        let settings = [("DATABASE_URL", "postgres:///posts?user=me&password=secret"), (name, value)];
        all.push_str(&told(&run("transformer", &settings, &["quarantine", "list"]).await?));
    }
    assert!(!all.contains("secret"), "{all}");
    insta::assert_snapshot!("transformer_wrong_addresses", all);
    Ok(())
}

#[tokio::test]
async fn a_password_on_the_command_line_is_refused() -> Result<()> {
    let arguments = ["migrate", "--database-url", "postgres://me:secret@localhost/posts"];
    insta::assert_snapshot!("password_in_argv", told(&run("transformer", &[], &arguments).await?));
    let arguments = ["once", "--source-url", "https://example.org/posts?page=2&api_key=secret"];
    insta::assert_snapshot!("key_in_argv", told(&run("importer", &[], &arguments).await?));
    Ok(())
}

#[tokio::test]
async fn the_version_names_the_revision() -> Result<()> {
    for program in ["importer", "transformer"] {
        let version = told(&run(program, &[], &["--version"]).await?);
        assert!(version.starts_with(&format!("exit code 0\n{program} 0.1.0 (")), "{version}");
    }
    Ok(())
}

#[tokio::test]
async fn the_readme_knows_every_setting_and_no_other() -> Result<()> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let mut in_help = BTreeSet::new();
    for program in ["importer", "transformer"] {
        let help = told(&run(program, &[], &["--help"]).await?);
        in_help
            .extend(help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next().map(str::to_owned)));
    }
    let rows =
        readme.lines().filter(|line| line.starts_with("| `") && line.contains("| both |") | line.contains("er |"));
    let names = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let is_variable = |name: &&str| name.len() > 3 && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let in_readme: BTreeSet<String> = names.filter(is_variable).map(str::to_owned).collect();
    assert_eq!(in_readme, in_help);
    Ok(())
}
