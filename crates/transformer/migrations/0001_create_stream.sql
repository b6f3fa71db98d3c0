-- One schema holds one stream: its position, its ledger, its rows and what could not be loaded. The table of
-- the rows is made from its definition.

-- One row. The position is the number of the last object applied, stored in the same transaction as its rows: once and
-- in order follow from this row alone.
CREATE TABLE stream (
    name text PRIMARY KEY,
    -- What the table of the rows was made from; NULL before it is.
    table_name text,
    table_columns text,
    -- What becomes of rows that the API has no more.
    absent text NOT NULL DEFAULT 'keep',
    -- The identity of the archive that the position counts in; unknown until the first object is applied.
    archive_id uuid,
    position bigint NOT NULL DEFAULT 0 CHECK (position >= 0),
    -- The observation at the position: the next object must name it as its `previous`. NULL before the first object, and
    -- after one that was skipped because it is missing, which nobody can name.
    previous uuid,
    CHECK ((position = 0) = (archive_id IS NULL))
);
CREATE UNIQUE INDEX stream_has_one_row ON stream ((true));

-- The ledger: what became of each object up to the position. A missing object that was skipped has only its number.
CREATE TABLE objects (
    sequence bigint PRIMARY KEY CHECK (sequence > 0),
    key text NOT NULL,
    sha256 bytea CHECK (length(sha256) = 32),
    observation uuid UNIQUE,
    bytes bigint,
    fetched_at timestamptz,
    loaded_at timestamptz NOT NULL DEFAULT now(),
    outcome text NOT NULL CHECK (outcome IN ('loaded', 'quarantined', 'skipped')),
    -- Why it is not loaded, for a person.
    reason text CHECK ((outcome = 'loaded') = (reason IS NULL)),
    records bigint NOT NULL DEFAULT 0,
    inserted bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    quarantined bigint NOT NULL DEFAULT 0,
    -- Records with members that have no column of their own: the API's schema drifts.
    with_extra bigint NOT NULL DEFAULT 0,
    -- Records with a key that came again within what was applied together: of these only the last is a row.
    repeated bigint NOT NULL DEFAULT 0,
    -- Rows that are absent from this object on.
    absent bigint NOT NULL DEFAULT 0,
    CHECK (outcome = 'skipped' OR (sha256, observation, bytes, fetched_at) IS NOT NULL)
);

-- Records that are not among the rows, with the reason. The object holds them whole.
CREATE TABLE quarantined_records (
    sequence bigint NOT NULL,
    -- Its place in the document, from 0.
    index bigint NOT NULL,
    -- The record's key, where it could be read.
    id text,
    reason text NOT NULL,
    -- Its bytes, at most 64 KiB of them.
    raw bytea NOT NULL,
    PRIMARY KEY (sequence, index)
);

-- Rows that the last whole snapshot of several requests lacked, by their key as it is stored. Absent if the next one lacks them, too, and no
-- object between brings them.
CREATE TABLE missing_rows (
    id bytea PRIMARY KEY,
    -- The last page of that snapshot.
    sequence bigint NOT NULL
);
