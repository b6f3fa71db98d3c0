-- The rows of these ids, to compare with.
SELECT id, user_id, title, body, extra FROM posts WHERE id = ANY ($1) ORDER BY id
