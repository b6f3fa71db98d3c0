-- A batch onto the posts that are there: equal ones are not written at all (no WAL), new ones not inserted.
UPDATE posts SET
    user_id = new.user_id, title = new.title, body = new.body, extra = new.extra,
    updated_at = $6, sequence = $7
FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::jsonb[]) AS new (id, user_id, title, body, extra)
WHERE posts.id = new.id
    AND (posts.user_id, posts.title, posts.body, posts.extra)
        IS DISTINCT FROM (new.user_id, new.title, new.body, new.extra)
