-- Whose tables these are, and what the table of the rows was made from.
SELECT name, table_name, table_columns FROM stream
