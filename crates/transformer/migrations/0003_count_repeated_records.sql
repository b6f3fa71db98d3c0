-- How many records of an object had an id that came again within what was applied together: of these only the last is a row.
ALTER TABLE objects ADD COLUMN repeated bigint NOT NULL DEFAULT 0;
