-- The rows of a range of ids, to compare with.
SELECT id, user_id, title, body, extra FROM posts WHERE id BETWEEN $1 AND $2 ORDER BY id
