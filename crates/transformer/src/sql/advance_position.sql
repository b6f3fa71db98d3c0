-- The ledger's line for an object, with what the transaction did to the rows, and the position on it. It is applied when this commits, and
-- not before.
WITH line AS (
    INSERT INTO objects (
        sequence, key, sha256, observation, bytes, fetched_at, outcome, reason, records, quarantined, with_extra, repeated, inserted, updated
    )
    VALUES (
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $16,
        pg_stat_get_xact_tuples_inserted($15::text::regclass) - $12,
        pg_stat_get_xact_tuples_updated($15::text::regclass) - $13
    )
    RETURNING inserted, updated
)
UPDATE stream SET archive_id = $14, position = $1, previous = $4 FROM line RETURNING line.inserted, line.updated
