-- How many rows the objects from $1 on, and before $2, have inserted.
SELECT coalesce(sum(inserted), 0)::bigint FROM objects WHERE sequence >= $1 AND sequence < $2
