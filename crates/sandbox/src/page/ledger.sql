-- What the ledger and the quarantine say last, as one document, the newest first.
SELECT jsonb_build_object(
    'objects', (
        SELECT coalesce(jsonb_agg(to_jsonb(o) ORDER BY sequence DESC), '[]')
        FROM (
            SELECT sequence, key, observation, bytes, fetched_at, loaded_at, outcome, reason,
                inserted, updated, records - inserted - updated - quarantined AS unchanged, absent, quarantined
            FROM public.objects ORDER BY sequence DESC LIMIT 50
        ) o
    ),
    'quarantine', (
        SELECT coalesce(jsonb_agg(to_jsonb(q) ORDER BY sequence DESC, index), '[]')
        FROM (
            -- The beginning of a record is enough to know it by; in base64, because its bytes may be no text.
            SELECT sequence, index, id, NULL AS outcome, reason, encode(substring(raw FROM 1 FOR 300), 'base64') AS raw
            FROM public.quarantined_records
            UNION ALL
            SELECT sequence, NULL, NULL, outcome, reason, NULL FROM public.objects WHERE outcome <> 'loaded'
            ORDER BY sequence DESC, index LIMIT 50
        ) q
    ),
    'quarantined', (SELECT count(*) FROM public.quarantined_records)
        + (SELECT count(*) FROM public.objects WHERE outcome <> 'loaded')
)::text
