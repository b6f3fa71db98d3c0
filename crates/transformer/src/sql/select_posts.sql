-- The rows of these ids, to compare with.
SELECT id, user_id, title, body, extra IS NOT NULL AS has_extra FROM posts WHERE id = ANY ($1) ORDER BY id
