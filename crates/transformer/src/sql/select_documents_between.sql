-- The rows of a range of ids, to compare with.
SELECT id, doc FROM documents WHERE id BETWEEN $1 AND $2 ORDER BY id
