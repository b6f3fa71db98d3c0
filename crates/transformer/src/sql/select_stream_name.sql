-- Whose tables these are.
SELECT name FROM stream
