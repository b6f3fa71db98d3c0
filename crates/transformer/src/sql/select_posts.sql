-- The rows of these ids, to compare with. The cast does nothing, unless somebody has made the column narrower.
SELECT id::bigint, user_id, title, body, extra FROM posts WHERE id = ANY ($1) ORDER BY id
