-- What the server is, and which rights this role lacks here, those on a missing table among them. (One call for several rights asks for
-- any of them, not for all. Where there is no table at all nothing is said: that is the position's to tell.)
SELECT
    current_setting('server_version_num')::integer AS version,
    current_setting('server_encoding') AS encoding,
    current_setting('fsync') AS fsync,
    current_setting('synchronous_commit') AS synchronous_commit,
    ARRAY(
        SELECT DISTINCT
            CASE WHEN to_regclass(wanted.name) IS NULL THEN 'the table ' ELSE wanted.privilege || ' on ' END || wanted.name
        FROM (VALUES
            ('stream', 'SELECT'), ('stream', 'UPDATE'),
            ('objects', 'SELECT'), ('objects', 'INSERT'),
            ($1::text, 'SELECT'), ($1, 'INSERT'), ($1, 'UPDATE'),
            ('quarantined_records', 'SELECT'), ('quarantined_records', 'INSERT')
        ) AS wanted (name, privilege)
        WHERE NOT coalesce(has_table_privilege(to_regclass(wanted.name), wanted.privilege), to_regclass('stream') IS NULL)
    ) AS lacking
