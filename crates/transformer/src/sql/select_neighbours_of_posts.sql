-- The rows next to a range of ids.
SELECT (SELECT max(id)::bigint FROM posts WHERE id < $1), (SELECT min(id)::bigint FROM posts WHERE id > $2)
