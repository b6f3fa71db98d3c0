-- The records of one batch that could not become rows.
INSERT INTO quarantined_records (sequence, index, id, reason, raw)
SELECT $1, record.index, record.id, record.reason, record.raw
FROM unnest($2::bigint[], $3::text[], $4::text[], $5::bytea[]) AS record (index, id, reason, raw)
