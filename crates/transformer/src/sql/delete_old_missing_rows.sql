-- What snapshots before that of object $1 lacked, and nobody asks for again.
DELETE FROM missing_rows WHERE sequence < $1
