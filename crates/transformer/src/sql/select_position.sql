-- Where the stream stands, with the digest that the ledger has for that object.
SELECT
    stream.name, current_schema() AS schema, stream.archive_id, stream.position, stream.previous, objects.sha256,
    -- An error where it is missing.
    $1::text::regclass
FROM stream LEFT JOIN objects ON objects.sequence = stream.position
