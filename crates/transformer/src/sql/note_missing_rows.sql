-- Rows that the snapshot of object $2 lacks are noted. Those that were noted before were lacking twice in a row: they are answered, and noted
-- no more.
WITH twice AS (
    DELETE FROM missing_rows WHERE id = ANY ($1) RETURNING id
),
once AS (
    INSERT INTO missing_rows (id, sequence)
    SELECT id, $2 FROM unnest($1::bytea[]) AS lacking (id) WHERE id NOT IN (SELECT id FROM twice)
)
SELECT id FROM twice
