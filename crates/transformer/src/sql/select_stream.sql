-- Whose tables these are. Locked before the table of the rows is, as by a transformer at work.
SELECT name, table_name, table_columns, absent, to_regclass(quote_ident(table_name)) IS NULL AS is_missing FROM stream FOR UPDATE
