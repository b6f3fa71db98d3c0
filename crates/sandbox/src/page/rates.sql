-- What was loaded in each ten seconds of the last ten minutes, and in the last minute as a whole, which has no step. Ten seconds begin where
-- the clock's do, so that a figure stays the same until its time has passed.
SELECT floor(extract(epoch FROM loaded_at) / 10)::bigint AS step,
    count(*) AS objects, sum(inserted + updated)::bigint AS rows, coalesce(sum(bytes), 0)::bigint AS bytes
FROM public.objects WHERE loaded_at > now() - interval '10 minutes'
GROUP BY 1
UNION ALL
SELECT NULL, count(*), coalesce(sum(inserted + updated), 0)::bigint, coalesce(sum(bytes), 0)::bigint
FROM public.objects WHERE loaded_at > now() - interval '1 minute'
