-- A batch onto the documents that are there: equal ones are not written at all (no WAL), new ones not inserted.
UPDATE documents SET doc = new.doc, updated_at = $3, sequence = $4
FROM unnest($1::text[], $2::jsonb[]) AS new (id, doc)
WHERE documents.id = new.id AND documents.doc IS DISTINCT FROM new.doc
