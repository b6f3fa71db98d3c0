-- A page of the ledger, for the audit.
SELECT sequence, sha256, observation, outcome FROM objects WHERE sequence >= $1 ORDER BY sequence LIMIT 1000
