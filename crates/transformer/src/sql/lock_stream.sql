-- Serialises the stream. NOWAIT, because whoever holds the row is at work on what we would wait to apply.
SELECT
    name, table_name, table_columns, absent, current_schema() AS schema, position, previous,
    -- Whether the last whole snapshot lacked rows.
    EXISTS (SELECT FROM missing_rows) AS has_missing,
    -- Whether rows of several objects may be written by one statement: the table keeps them as they are, and looks at each by itself. Asked
    -- where it matters.
    $1
    AND EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($2) AND relkind = 'r' AND NOT relhassubclass)
    AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass($2) AND NOT tgisinternal)
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass($2) AND confrelid = conrelid)
    AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass($2) AND (indisunique OR indisexclusion) AND NOT indisprimary)
    AND NOT EXISTS (
        SELECT FROM unnest($3::text[], $4::oid[]) AS ours (name, type)
        LEFT JOIN pg_attribute ON attrelid = to_regclass($2) AND attname = ours.name AND atttypid = ours.type AND atttypmod = -1
        WHERE attnum IS NULL OR (attnum = ANY (SELECT unnest(indkey) FROM pg_index WHERE indrelid = attrelid AND indisprimary)
            AND attcollation NOT IN (0, '"C"'::regcollation))
    ) AS is_plain
FROM stream FOR UPDATE NOWAIT
