-- The rows next to a range of ids.
SELECT (SELECT max(id) FROM posts WHERE id < $1), (SELECT min(id) FROM posts WHERE id > $2)
