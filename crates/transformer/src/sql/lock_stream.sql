-- Serialises the stream. NOWAIT, because whoever holds the row is at work on what we would wait to apply.
-- The counts of rows belong to this backend, not to this transaction, so they are taken before and after.
SELECT
    name, table_name, table_columns,
    current_schema() AS schema,
    position,
    previous,
    pg_stat_get_xact_tuples_inserted($2::text::regclass) AS inserted,
    pg_stat_get_xact_tuples_updated($2::text::regclass) AS updated,
    -- Somebody's own triggers, and constraints that are not checked row by row, which are triggers too. Not those of other tables that refer
    -- to an id of this one.
    EXISTS (
        SELECT FROM pg_trigger LEFT JOIN pg_constraint ON pg_constraint.oid = tgconstraint
        WHERE tgrelid = $2::text::regclass AND coalesce(conrelid, tgrelid) = tgrelid
    ) AS has_triggers,
    -- While more objects follow, COMMIT need not wait for the disk: one that is lost takes its position with it.
    set_config('synchronous_commit', CASE WHEN $1 THEN 'off' ELSE current_setting('synchronous_commit') END, true)
FROM stream FOR UPDATE NOWAIT
