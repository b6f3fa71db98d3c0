//! The statements of a table, made from its definition; the only file that tells sqlx to trust a text. Names are quoted, and nothing
//! else of the settings gets into a statement. Pure.

use std::{fmt::Write, sync::Arc};

use sqlx::AssertSqlSafe;

use crate::read::table_definition::{Column, Columns, Kind, TableDefinition, quoted};

/// What is done with a table. Its columns are those of the definition, the key first, then `first_seen_at`, `updated_at`,
/// `sequence`, which is the object that last changed the row, and `absent_since`.
#[derive(Debug)]
pub struct Statements {
    /// What they are made from.
    pub definition: TableDefinition,
    /// The table's name, quoted.
    pub table: String,
    /// The types of the columns that a record gives.
    pub kinds: Vec<Kind>,
    /// Makes the table.
    pub create: Statement,
    /// Copies rows of all columns from stdin, in the binary form.
    pub copy: String,
    /// Takes an array for each column that a record gives, then of the times and of the sequences. Inserts, updates or leaves each row, of which
    /// no two may have one key, and says of each object how many it has inserted and updated.
    pub upsert: Statement,
    /// Takes an array for each column that a record gives, then the time and the sequence. Updates or leaves, and inserts nothing.
    pub update: Statement,
    /// Takes an array of keys. Selects the columns that a record gives, and whether the row is absent, of the rows that there are, by key.
    pub select: Statement,
    /// Takes the lowest and the highest key, and selects the same; for keys that are whole numbers, of which many may lie side by side.
    pub select_between: Option<Statement>,
    /// Counts the rows that are not absent.
    pub count: Statement,
    /// Copies the keys of these to stdout, in the binary form.
    pub keys: String,
    /// Takes an array of keys, and since when their rows are absent.
    pub mark: Statement,
    /// Takes an array of keys.
    pub delete: Statement,
}

/// A statement that was made here.
#[derive(Clone, Debug)]
pub struct Statement(Arc<str>);

impl Statement {
    /// For sqlx.
    pub fn sql(&self) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(self.0.clone())
    }

    /// For a person.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl Statements {
    /// Those of this table.
    pub fn new(definition: TableDefinition) -> Self {
        let (table, columns) = (quoted(&definition.table), &definition.table_columns);
        let kinds: Vec<_> = columns.all().iter().map(|column| column.kind).collect();
        let names: Vec<_> = columns.all().iter().map(|column| quoted(&column.name)).collect();
        let (key, others) = names.split_first().expect("a definition has a key");
        let all = names.join(", ");
        let given = |from: usize| (from..=names.len()).map(|at| format!("new.c{at}")).collect::<Vec<_>>();
        let aliases: Vec<_> = (1..=names.len()).map(|at| format!("c{at}")).collect();
        let aliases = aliases.join(", ");
        let mut arrays = Vec::new();
        for (at, kind) in kinds.iter().enumerate() {
            arrays.push(format!("${}::{}[]", at + 1, kind.sql()));
        }
        let arrays = arrays.join(", ");
        let (at, number) = (kinds.len() + 1, kinds.len() + 2);
        let mut is_changed = "old.absent_since IS NOT NULL".to_owned();
        if !others.is_empty() {
            let stored: Vec<_> = others.iter().map(|name| format!("old.{name}")).collect();
            is_changed =
                format!("(({}) IS DISTINCT FROM ({}) OR {is_changed})", stored.join(", "), given(2).join(", "));
        }
        let mut set = String::new();
        for (name, value) in others.iter().zip(given(2)) {
            let _ = write!(set, "{name} = {value}, ");
        }
        // The cast does nothing, unless a user has made the column narrower.
        let mut selected = format!("{key}::{}", kinds[0].sql());
        for name in others {
            let _ = write!(selected, ", {name}");
        }
        selected.push_str(", absent_since IS NOT NULL");
        // A user who makes a text key narrower takes its collation away.
        let order = if kinds[0] == Kind::Text { format!("{key} COLLATE \"C\"") } else { key.clone() };
        let statement = |text: String| Statement(text.into());
        Self {
            create: statement(create(&table, columns)),
            copy: format!("COPY {table} ({all}, first_seen_at, updated_at, sequence) FROM STDIN (FORMAT binary)"),
            upsert: statement(format!(
                "WITH new AS MATERIALIZED (
    SELECT * FROM unnest({arrays}, ${at}::timestamptz[], ${number}::bigint[]) AS new ({aliases}, at, number)
),
updated AS (
    UPDATE {table} AS old SET {set}updated_at = new.at, sequence = new.number, absent_since = NULL
    FROM new WHERE old.{key} = new.c1 AND {is_changed}
    RETURNING new.number
),
inserted AS (
    INSERT INTO {table} ({all}, first_seen_at, updated_at, sequence)
    SELECT {}, new.at, new.at, new.number
    FROM new WHERE NOT EXISTS (SELECT FROM {table} AS old WHERE old.{key} = new.c1)
    RETURNING sequence
)
SELECT number, count(*) FILTER (WHERE is_new) AS inserted, count(*) FILTER (WHERE NOT is_new) AS updated
FROM (SELECT number, false AS is_new FROM updated UNION ALL SELECT sequence, true FROM inserted) AS written
GROUP BY number",
                given(1).join(", ")
            )),
            update: statement(format!(
                "UPDATE {table} AS old SET {set}updated_at = ${at}, sequence = ${number}, absent_since = NULL
FROM unnest({arrays}) AS new ({aliases})
WHERE old.{key} = new.c1 AND {is_changed}"
            )),
            select: statement(format!("SELECT {selected} FROM {table} WHERE {key} = ANY ($1) ORDER BY {order}")),
            select_between: (kinds[0] == Kind::Bigint).then(|| {
                statement(format!("SELECT {selected} FROM {table} WHERE {key} BETWEEN $1 AND $2 ORDER BY {key}"))
            }),
            count: statement(format!("SELECT count(*) FROM {table} WHERE absent_since IS NULL")),
            keys: format!(
                "COPY (SELECT {key}::{} FROM {table} WHERE absent_since IS NULL) TO STDOUT (FORMAT binary)",
                kinds[0].sql()
            ),
            mark: statement(format!("UPDATE {table} SET absent_since = $2 WHERE {key} = ANY ($1)")),
            delete: statement(format!("DELETE FROM {table} WHERE {key} = ANY ($1)")),
            table,
            kinds,
            definition,
        }
    }

    /// Adds a column to the table.
    pub fn add(&self, column: &Column) -> Statement {
        Statement(format!("ALTER TABLE {} ADD COLUMN {}", self.table, declared(column)).into())
    }
}

fn create(table: &str, columns: &Columns) -> String {
    let mut text = format!("CREATE TABLE {table} (\n");
    for (at, column) in columns.all().iter().enumerate() {
        let key = match (at, column.kind) {
            // Ordered by bytes, as the transformer orders them.
            (0, Kind::Text) => " COLLATE \"C\" CONSTRAINT stream_rows_pkey PRIMARY KEY",
            (0, _) => " CONSTRAINT stream_rows_pkey PRIMARY KEY",
            _ => "",
        };
        let _ = writeln!(text, "    {}{key},", declared(column));
    }
    text.push_str(
        "    first_seen_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    sequence bigint NOT NULL,
    absent_since timestamptz
)",
    );
    text
}

fn declared(Column { name, kind, is_required, .. }: &Column) -> String {
    format!("{} {}{}", quoted(name), kind.sql(), if *is_required { " NOT NULL" } else { "" })
}
