//! `transformer check`: is everything that the transformer needs reachable, permitted and durable?
//!
//! It changes nothing: a message that it receives comes again after its visibility has run out.

use std::{
    io::{self, Write},
    time::Duration,
};

use shared::{archive::Archive, object::Sequence, telemetry::chain};
use sqlx::{PgConnection, Row};

use crate::{
    commands::migrate::ENCODING,
    decide::{Hold, Position, check_position, next_after, why_missing},
    postgres::{
        connect::{SchemaName, obstacles, within},
        fault::TableError,
    },
    queue::Queue,
    read::table_definition::TableDefinition,
    write::table::Table,
};

/// The oldest release that the tests run on.
const OLDEST_SERVER: i32 = 150_000;

/// Writes what there is to say of the server, where the records go into this table of the schema. Whether all is well.
pub async fn check_server(
    connection: Result<PgConnection, TableError>,
    schema: &SchemaName,
    definition: &TableDefinition,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let found = match connection {
        Ok(mut connection) => look_at_server(&mut connection, schema, definition).await,
        Err(error) => Err(error),
    };
    let found = found.unwrap_or_else(|error| vec![("server", Err(chain(&error)))]);
    for (what, result) in &found {
        tell(out, what, result)?;
    }
    Ok(found.iter().all(|(_, result)| result.is_ok()))
}

/// Writes a line each of the position, the archive and the queue. Whether all is well.
pub async fn check_doors(
    table: &mut impl Table,
    archive: &impl Archive,
    queue: &impl Queue,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let position = table.position().await;
    let described = match &position {
        Err(TableError::Obstacles(_)) => Err("it cannot be read: see above".to_owned()),
        position => position.as_ref().map(|position| describe(position.as_ref())).map_err(|error| chain(error)),
    };
    tell(out, "position", &described)?;
    let archived = look_at_archive(archive, position.ok().flatten().as_ref()).await;
    tell(out, "archive", &archived)?;
    let is_received = async {
        queue.receive(Duration::ZERO).await?;
        queue.may_delete().await
    };
    let received = is_received.await.map(|()| "it may be received from, and messages deleted".to_owned());
    let received = received.map_err(|error| chain(&error));
    tell(out, "queue", &received)?;
    Ok(described.is_ok() && archived.is_ok() && received.is_ok())
}

/// Writes the line of one dependency.
pub fn tell(out: &mut impl Write, what: &str, result: &Result<String, String>) -> io::Result<()> {
    let (word, text) = match result {
        Ok(text) => ("ok", text),
        Err(text) => ("PROBLEM", text),
    };
    writeln!(out, "{what:<8}  {word:<7}  {text}")
}

type Finding = (&'static str, Result<String, String>);

async fn look_at_server(
    connection: &mut PgConnection,
    schema: &SchemaName,
    definition: &TableDefinition,
) -> Result<Vec<Finding>, TableError> {
    const DOING: &str = "ask for the settings of";
    let row = within(DOING, sqlx::query(include_str!("../sql/select_server.sql")).fetch_one(&mut *connection)).await?;
    let read = || -> Result<_, sqlx::Error> {
        Ok((
            row.try_get::<i32, _>("version")?,
            row.try_get::<String, _>("encoding")?,
            row.try_get::<String, _>("fsync")?,
            row.try_get::<String, _>("synchronous_commit")?,
            row.try_get::<bool, _>("is_replica")?,
        ))
    };
    let (version, encoding, fsync, synchronous_commit, is_replica) =
        read().map_err(|source| TableError::Sql { doing: DOING, source })?;
    let is_durable = fsync == "on" && synchronous_commit != "off";
    let mut found = vec![
        ("server", judge_server(version, &encoding, is_replica)),
        (
            "durable",
            answer(is_durable, "a commit survives a crash", || {
                format!(
                    "fsync is {fsync} and synchronous_commit {synchronous_commit}: after a crash commits may be gone, and rows with them"
                )
            }),
        ),
    ];
    let obstacles = obstacles(connection, schema, definition, false).await?;
    if obstacles.is_empty() {
        found.push(("rights", Ok("the role has what it needs".to_owned())));
    }
    found.extend(obstacles.into_iter().map(|obstacle| ("rights", Err(obstacle))));
    Ok(found)
}

fn judge_server(version: i32, encoding: &str, is_replica: bool) -> Result<String, String> {
    let shown = format!("PostgreSQL {}.{}", version / 10_000, version % 10_000);
    if version < OLDEST_SERVER {
        Err(format!("{shown}: the transformer needs 15 or newer"))
    } else if is_replica {
        Err(format!("{shown}: it is a replica, which takes no writes: name the primary in DATABASE_URL"))
    } else if encoding != ENCODING {
        Err(format!(
            "{shown}: the database's encoding is {encoding}, which cannot hold any text: move to one of {ENCODING}"
        ))
    } else {
        Ok(shown)
    }
}

fn answer(is_well: bool, well: &str, problem: impl FnOnce() -> String) -> Result<String, String> {
    if is_well { Ok(well.to_owned()) } else { Err(problem()) }
}

fn describe(position: Option<&Position>) -> String {
    match position {
        Some(position) => format!("sequence {} of archive {}", position.sequence, position.archive_id),
        None => "nothing is applied yet".to_owned(),
    }
}

async fn look_at_archive(archive: &impl Archive, position: Option<&Position>) -> Result<String, String> {
    let end = archive.end().await.map_err(|error| chain(&error))?;
    why_missing(position, end).map_err(|hold| hold.to_string())?;
    // A missing object reads 403 without s3:ListBucket, so this asks for both rights at once.
    archive.head(end.map_or(Sequence::FIRST, Sequence::next)).await.map_err(|error| chain(&error))?;
    let Some(end) = end else {
        return Ok("it is empty".to_owned());
    };
    if let Some(position) = position
        && let Some(head) = archive.head(position.sequence).await.map_err(|error| chain(&error))?
    {
        check_position(position, &head.metadata).map_err(|hold| hold.to_string())?;
    }
    // Reading takes rights, and a place in S3, that a look does not.
    let next = next_after(position);
    if next <= end && archive.get(next).await.map_err(|error| chain(&error))?.is_none() {
        return Err(Hold::ObjectMissing { missing: next, end }.to_string());
    }
    let pending = end.get().saturating_sub(position.map_or(0, |position| position.sequence.get()));
    Ok(format!("it ends at sequence {end}, {pending} above the position"))
}
