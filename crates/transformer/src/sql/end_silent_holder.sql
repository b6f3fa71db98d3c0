-- Ends the backend that holds the stream's row while its client is silent: a host that vanished or froze inside a transaction
-- keeps the lock through every timeout and keep-alive (tried on 15, inside a COPY). Only backends of the same role can be ended.
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE wait_event = 'ClientRead'
    AND state_change < clock_timestamp() - make_interval(secs => $1)
    AND pid <> pg_backend_pid()
    AND pid IN (
        SELECT pid FROM pg_locks
        WHERE relation = 'stream'::regclass AND mode = 'RowShareLock' AND granted
            -- Databases made from one template share the numbers of their relations.
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
