-- Records of any kind: a function of the archive, like the posts. A view gives them columns.
CREATE TABLE documents (
    -- Ordered by bytes, as the transformer orders them.
    id text COLLATE "C" PRIMARY KEY,
    doc jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- The object that last changed the document.
    sequence bigint NOT NULL
);
