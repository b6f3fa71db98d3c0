-- The rows of a range of ids, to compare with. The cast does nothing, unless somebody has made the column narrower.
SELECT id::bigint, user_id, title, body, extra FROM posts WHERE id BETWEEN $1 AND $2 ORDER BY id
