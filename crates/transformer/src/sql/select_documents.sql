-- The rows of these ids, to compare with.
SELECT id, doc FROM documents WHERE id = ANY ($1) ORDER BY id
