-- A batch into a range of ids that holds no row: nothing to compare, so nothing to merge.
COPY posts (id, user_id, title, body, extra, first_seen_at, updated_at, sequence) FROM STDIN (FORMAT binary)
