-- Where the stream stands, with the digest that the ledger has for that object; and what of the table's own makes it unfit.
SELECT
    stream.name, stream.table_name, stream.table_columns, stream.absent, current_schema() AS schema, stream.archive_id, stream.position, stream.previous, objects.sha256,
    -- An error where one is missing; NULL where the table of the rows is, or has another name than $1.
    row_security_active(to_regclass($1)) OR row_security_active('objects') OR row_security_active('quarantined_records')
        OR row_security_active('missing_rows') AS is_hidden,
    -- Constraint triggers are constraints, too.
    ARRAY(
        SELECT conname::text FROM pg_constraint
        -- Where rows are deleted, foreign keys that refer to them count, too.
        WHERE (conrelid = to_regclass($1) OR (confrelid = to_regclass($1) AND stream.absent = 'delete')) AND condeferrable
        ORDER BY conname
    ) AS deferrable
FROM stream LEFT JOIN objects ON objects.sequence = stream.position
