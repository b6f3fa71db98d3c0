-- A page of the ledger, for the audit. A live transformer goes on writing above the position that the audit began with.
SELECT sequence, sha256, observation, outcome FROM objects WHERE sequence BETWEEN $1 AND $2 ORDER BY sequence LIMIT 1000
