-- The bytes of a record that is not among the rows.
SELECT raw FROM quarantined_records WHERE sequence = $1 AND index = $2
