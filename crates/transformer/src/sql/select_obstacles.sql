-- What keeps this role from its work in the schema $1, where records go into the tables $2, whose rows it deletes if $4, and what to do: a line each. Only catalogs are
-- read, which every role may. That tables are missing is the position's to tell; here it means that `migrate` is next, as $3 does.
WITH tables AS (
    SELECT pg_class.oid, relname, relowner
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname = ANY ($2 || ARRAY['stream', 'objects', 'quarantined_records', 'missing_rows', 'stream_migrations'])
),
work AS (
    SELECT
        current_user AS role,
        -- Settings are those of the role that has logged in.
        session_user AS login,
        $3 OR NOT EXISTS (SELECT FROM tables WHERE relname = 'stream') AS migrates,
        (SELECT oid FROM pg_namespace WHERE nspname = $1) AS schema
)
SELECT format('the role %I may not create the schema %I: create it as another role, `CREATE SCHEMA %2$I AUTHORIZATION %1$I`, or correct DATABASE_SCHEMA', role, $1)
FROM work
WHERE migrates AND schema IS NULL AND NOT has_database_privilege(current_database(), 'CREATE')
UNION ALL
SELECT format(
    'the role %I may not create tables in the schema %I: run `transformer migrate` as a role that may, or, as the schema''s owner, '
        '`GRANT USAGE, CREATE ON SCHEMA %2$I TO %1$I`',
    role, $1
)
FROM work
WHERE migrates AND NOT (has_schema_privilege(schema, 'CREATE') AND has_schema_privilege(schema, 'USAGE'))
UNION ALL
SELECT format(
    'the schema %I holds %s already, which were made by another program, or by a version from before the first release; give the stream '
        'a DATABASE_SCHEMA of its own, which `transformer once` fills from the archive',
    $1, string_agg('the table ' || relname, ', ' ORDER BY relname)
)
FROM work, tables
WHERE (migrates AND NOT EXISTS (SELECT FROM tables WHERE relname = 'stream_migrations'))
    -- The table of the rows had no definition before the first release.
    OR EXISTS (
        SELECT FROM tables AS stream
        WHERE relname = 'stream' AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = stream.oid AND attname = 'table_columns')
    )
HAVING count(*) > 0
UNION ALL
SELECT format('the tables in the schema %I belong to the role %I: run `transformer migrate` as that role', $1, pg_get_userbyid(relowner))
FROM work, tables
WHERE migrates AND relname = 'stream_migrations' AND NOT pg_has_role(relowner, 'USAGE')
UNION ALL
SELECT format('the role %I may not look into the schema %I: run `transformer migrate --grant-to %1$I`', role, $1)
FROM work
WHERE NOT migrates AND NOT has_schema_privilege(schema, 'USAGE')
UNION ALL
-- One call for several rights would ask for any of them.
SELECT format(
    'the role %I lacks %s: run `transformer migrate --grant-to %1$I`',
    role, string_agg(privilege || ' on ' || relname, ', ' ORDER BY relname, privilege)
)
FROM work, tables CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE NOT migrates AND NOT has_table_privilege(oid, privilege)
    AND relname || ' ' || privilege <> ALL (ARRAY['stream INSERT', 'objects UPDATE', 'quarantined_records UPDATE', 'missing_rows UPDATE'])
    AND (privilege <> 'DELETE' OR relname = 'missing_rows' OR ($4 AND relname = ANY ($2)))
    AND relname <> 'stream_migrations'
GROUP BY role
UNION ALL
SELECT format(
    'row level security hides rows of the table %I from the role %I, which needs all: `ALTER ROLE %2$I BYPASSRLS`, or '
        '`ALTER TABLE %3$I.%1$I DISABLE ROW LEVEL SECURITY`',
    relname, role, $1
)
FROM work, tables
WHERE relname <> 'stream_migrations' AND row_security_active(oid)
UNION ALL
-- A replica is no obstacle but a server to wait for: it may be promoted, or the address may come to mean another.
SELECT format(
    'default_transaction_read_only is on, so nothing can be written: %s',
    CASE source
        WHEN 'database' THEN format('`ALTER DATABASE %I RESET default_transaction_read_only`', current_database())
        WHEN 'user' THEN format('`ALTER ROLE %I RESET default_transaction_read_only`', login)
        WHEN 'global' THEN '`ALTER ROLE ALL RESET default_transaction_read_only`'
        WHEN 'database user' THEN
            format('`ALTER ROLE %I IN DATABASE %I RESET default_transaction_read_only`', login, current_database())
        WHEN 'client' THEN 'take it out of the options in DATABASE_URL or PGOPTIONS'
        ELSE 'turn it off in the server''s configuration, or make room if the provider did so because the disk is full'
    END
)
FROM work, pg_settings
WHERE name = 'default_transaction_read_only' AND setting = 'on' AND NOT pg_is_in_recovery()
