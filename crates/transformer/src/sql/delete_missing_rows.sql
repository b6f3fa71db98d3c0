-- Rows whose records an object has are missing no more; without $1 no row is.
DELETE FROM missing_rows WHERE id = ANY ($1) OR $1 IS NULL
