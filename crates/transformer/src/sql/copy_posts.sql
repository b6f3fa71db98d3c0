-- New posts: nothing to compare with.
COPY posts (id, user_id, title, body, extra, first_seen_at, updated_at, sequence) FROM STDIN (FORMAT binary)
