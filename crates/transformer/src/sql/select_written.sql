-- What this backend has written to a table so far, rolled back or not.
SELECT
    pg_stat_get_xact_tuples_inserted($1::text::regclass) AS inserted,
    pg_stat_get_xact_tuples_updated($1::text::regclass) AS updated
