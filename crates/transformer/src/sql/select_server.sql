-- What the server is, and which rights this role lacks here. (One call for several rights asks for any of them, not for all. Of a
-- table that is missing nothing is said: that is the position's to tell.)
SELECT
    current_setting('server_version_num')::integer AS version,
    current_setting('fsync') AS fsync,
    current_setting('synchronous_commit') AS synchronous_commit,
    ARRAY(
        SELECT wanted.privilege || ' on ' || wanted.name
        FROM (VALUES
            ('stream', 'SELECT'), ('stream', 'UPDATE'),
            ('objects', 'SELECT'), ('objects', 'INSERT'),
            ('posts', 'SELECT'), ('posts', 'INSERT'), ('posts', 'UPDATE'),
            ('quarantined_records', 'SELECT'), ('quarantined_records', 'INSERT')
        ) AS wanted (name, privilege)
        WHERE NOT has_table_privilege(to_regclass(wanted.name), wanted.privilege)
    ) AS lacking
