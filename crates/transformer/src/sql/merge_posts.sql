-- A small batch or a part of one into the posts: new ones are inserted, changed ones updated, equal ones not written at all (no WAL).
-- The stream's row lock makes MERGE safe here: nobody else inserts between its look and its insert.
MERGE INTO posts
USING unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::jsonb[]) AS new (id, user_id, title, body, extra)
ON posts.id = new.id
WHEN MATCHED AND (posts.user_id, posts.title, posts.body, posts.extra)
    IS DISTINCT FROM (new.user_id, new.title, new.body, new.extra) THEN
    UPDATE SET
        user_id = new.user_id, title = new.title, body = new.body, extra = new.extra,
        updated_at = $6::text::timestamptz, sequence = $7
WHEN NOT MATCHED THEN
    INSERT (id, user_id, title, body, extra, first_seen_at, updated_at, sequence)
    VALUES (new.id, new.user_id, new.title, new.body, new.extra, $6::text::timestamptz, $6::text::timestamptz, $7)
