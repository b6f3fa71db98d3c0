-- Where the stream stands, with the digest that the ledger has for that object.
SELECT
    stream.name, current_schema() AS schema, stream.archive_id, stream.position, stream.previous, objects.sha256,
    -- An error where one is missing.
    row_security_active($1::text::regclass) OR row_security_active('objects') OR row_security_active('quarantined_records') AS is_hidden
FROM stream LEFT JOIN objects ON objects.sequence = stream.position
