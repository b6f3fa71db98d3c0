-- The lines of the ledger whose observation's id has $1 in it, the newest first.
SELECT jsonb_build_object(
    'sequence', sequence, 'key', key, 'sha256', encode(sha256, 'hex'), 'observation', observation, 'bytes', bytes,
    'fetched_at', fetched_at, 'loaded_at', loaded_at, 'outcome', outcome, 'reason', reason, 'records', records,
    'inserted', inserted, 'updated', updated, 'absent', absent, 'quarantined', quarantined, 'with_extra', with_extra
)::text
FROM public.objects WHERE strpos(observation::text, $1) > 0
ORDER BY sequence DESC LIMIT 50
