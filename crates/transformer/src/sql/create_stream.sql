-- The schema's one stream, at the beginning of its archive. Nothing happens where there is one.
INSERT INTO stream (name) VALUES ($1) ON CONFLICT DO NOTHING
