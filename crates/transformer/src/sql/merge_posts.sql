-- A small batch or a part of one into the posts: new ones are inserted, changed ones updated, equal ones not written at all (no WAL).
-- The stream's row lock makes MERGE safe here: nobody else inserts between its look and its insert.
MERGE INTO posts
USING unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::jsonb[], $6::timestamptz[], $7::bigint[])
    AS new (id, user_id, title, body, extra, fetched_at, sequence)
ON posts.id = new.id
WHEN MATCHED AND (posts.user_id, posts.title, posts.body, posts.extra)
    IS DISTINCT FROM (new.user_id, new.title, new.body, new.extra) THEN
    UPDATE SET
        user_id = new.user_id, title = new.title, body = new.body, extra = new.extra,
        updated_at = new.fetched_at, sequence = new.sequence
WHEN NOT MATCHED THEN
    INSERT (id, user_id, title, body, extra, first_seen_at, updated_at, sequence)
    VALUES (new.id, new.user_id, new.title, new.body, new.extra, new.fetched_at, new.fetched_at, new.sequence)
