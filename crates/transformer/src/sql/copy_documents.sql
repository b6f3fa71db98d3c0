-- New documents: nothing to compare with.
COPY documents (id, doc, first_seen_at, updated_at, sequence) FROM STDIN (FORMAT binary)
