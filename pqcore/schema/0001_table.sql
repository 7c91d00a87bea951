--- The table of pq 1.9.1, column for column, so that a table made by pq can stay as it is.
CREATE TABLE IF NOT EXISTS {table} (
  id          bigserial    PRIMARY KEY,
  enqueued_at timestamptz  NOT NULL DEFAULT current_timestamp,
  dequeued_at timestamptz,
  expected_at timestamptz,
  schedule_at timestamptz,
  q_name      text         NOT NULL CHECK (length(q_name) > 0),
  data        json
)
--- Columns that pq does not have. Each change affects only the catalogue: no row is rewritten, and the lock is short.
ALTER TABLE {table}
  ADD COLUMN IF NOT EXISTS attempts     integer NOT NULL DEFAULT 0,
  ADD COLUMN IF NOT EXISTS leased_until timestamptz,
  ADD COLUMN IF NOT EXISTS serializer   text,
  ADD COLUMN IF NOT EXISTS payload      bytea,
  ADD COLUMN IF NOT EXISTS headers      json,
  ADD COLUMN IF NOT EXISTS failures     integer,
  ADD COLUMN IF NOT EXISTS excused      integer,
  ADD COLUMN IF NOT EXISTS error        json,
  ADD COLUMN IF NOT EXISTS dedup_key    text,
  ADD COLUMN IF NOT EXISTS group_key    text,
  ADD COLUMN IF NOT EXISTS parked_on    text,
  ADD COLUMN IF NOT EXISTS cancelling   boolean,
  ALTER COLUMN data DROP NOT NULL
--- Dead rows at the head of a queue slow every get. So VACUUM runs early and in one pass. It includes the indexes,
--- which it would skip while few pages have dead rows. An empty table is not truncated: that takes an exclusive lock,
--- and makes a sequential scan look cheap.
ALTER TABLE {table} SET (
  vacuum_index_cleanup = on,
  vacuum_truncate = off,
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0.05
)
--- NOT VALID: existing rows, which pq wrote and which all have data, are not checked.
DO $do$ BEGIN
  ALTER TABLE {table} ADD CONSTRAINT {data_check} CHECK (data IS NOT NULL OR payload IS NOT NULL) NOT VALID;
EXCEPTION WHEN duplicate_object THEN NULL;
END $do$
--- Finished rows, for retention = 'archive'.
CREATE TABLE IF NOT EXISTS {archive} (
  id          bigint       PRIMARY KEY,
  q_name      text         NOT NULL,
  enqueued_at timestamptz  NOT NULL,
  dequeued_at timestamptz  NOT NULL,
  expected_at timestamptz,
  schedule_at timestamptz,
  data        json,
  attempts    integer      NOT NULL,
  serializer  text,
  payload     bytea,
  headers     json,
  failures    integer,
  excused     integer,
  error       json
)
--- For deleting the oldest rows first.
CREATE INDEX IF NOT EXISTS {archive_index} ON {archive} (q_name, dequeued_at)
--- A sequential scan is best for a table of a few pages, and a prepared statement keeps that plan while the table
--- grows, until ANALYZE. So the table has 32 pages from the start.
INSERT INTO {table} (id, q_name, serializer, payload)
SELECT -number, '-', 'none', convert_to(repeat('-', 1900), 'UTF8') FROM generate_series(1, 128) AS number
--- These rows only gave the table its size.
DELETE FROM {table} WHERE id BETWEEN -128 AND -1 AND serializer = 'none'
