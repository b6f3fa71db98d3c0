-- What is not among the rows: records, and objects as a whole (without an index), the newest first.
SELECT sequence, index, id, reason FROM quarantined_records
UNION ALL
SELECT sequence, NULL, NULL, reason FROM objects WHERE outcome = 'quarantined'
ORDER BY sequence DESC, index
LIMIT $1
