-- Records that could not become rows.
INSERT INTO quarantined_records (sequence, index, id, reason, raw)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bytea[])
