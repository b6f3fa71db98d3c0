-- How many objects from $1 on, and before $2, are loaded.
SELECT count(*) FROM objects WHERE sequence >= $1 AND sequence < $2 AND outcome = 'loaded'
