-- The ledger's lines for loaded objects, and the position on the last of them. They are applied when this commits, and not before.
WITH lines AS (
    INSERT INTO objects (sequence, key, sha256, observation, bytes, fetched_at, outcome, records, with_extra, repeated, inserted, updated)
    SELECT sequence, key, sha256, observation, bytes, fetched_at, 'loaded', records, with_extra, repeated, inserted, updated
    FROM unnest(
        $1::bigint[], $2::text[], $3::bytea[], $4::uuid[], $5::bigint[], $6::timestamptz[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $14::bigint[]
    ) AS object (sequence, key, sha256, observation, bytes, fetched_at, records, with_extra, inserted, updated, repeated)
)
UPDATE stream SET archive_id = $11, position = $12, previous = $13
