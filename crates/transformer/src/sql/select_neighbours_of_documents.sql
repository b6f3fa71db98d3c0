-- The rows next to a range of ids.
SELECT (SELECT max(id) FROM documents WHERE id < $1), (SELECT min(id) FROM documents WHERE id > $2)
