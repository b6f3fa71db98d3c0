-- What this backend has written to the posts so far, rolled back or not.
SELECT
    pg_stat_get_xact_tuples_inserted('posts'::regclass) AS inserted,
    pg_stat_get_xact_tuples_updated('posts'::regclass) AS updated
