-- A small batch or a part of one into the documents: new ones are inserted, changed ones updated, equal ones not written at all (no WAL).
-- The stream's row lock makes MERGE safe here: nobody else inserts between its look and its insert.
MERGE INTO documents
USING unnest($1::text[], $2::jsonb[], $3::timestamptz[], $4::bigint[]) AS new (id, doc, fetched_at, sequence)
ON documents.id = new.id
WHEN MATCHED AND documents.doc IS DISTINCT FROM new.doc THEN
    UPDATE SET doc = new.doc, updated_at = new.fetched_at, sequence = new.sequence
WHEN NOT MATCHED THEN
    INSERT (id, doc, first_seen_at, updated_at, sequence)
    VALUES (new.id, new.doc, new.fetched_at, new.fetched_at, new.sequence)
