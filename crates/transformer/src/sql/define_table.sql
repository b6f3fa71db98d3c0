-- What the table was made from, for whoever writes to it.
UPDATE stream SET table_name = $1, table_columns = $2, absent = $3
