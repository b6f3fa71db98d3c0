-- The object is applied when this commits, and not before.
UPDATE stream SET archive_id = $1, position = $2, previous = $3
