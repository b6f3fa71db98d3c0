-- The ledger's lines for the objects of a run, and the position on the last of them. They are applied when this commits, and not before.
WITH lines AS (
    INSERT INTO objects (
        sequence, key, sha256, observation, bytes, fetched_at, outcome, reason, records, inserted, updated, quarantined, with_extra, repeated, absent
    )
    SELECT * FROM unnest(
        $1::bigint[], $2::text[], $3::bytea[], $4::uuid[], $5::bigint[], $6::timestamptz[], $7::text[], $8::text[], $9::bigint[], $10::bigint[],
        $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[]
    )
)
UPDATE stream SET archive_id = $16, position = $17, previous = $18
