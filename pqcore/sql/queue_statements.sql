-- Statements of a queue that are run as they are written here.
-- Each ends with a semicolon.  {table} and the like are quoted identifiers, :name is a parameter.
-- pqcore.sql.queue_statements has those that are composed; tests/snapshots/ has all as a server gets them.

-- name: update
-- Replace the data of a job. The UPDATE locks the row: of two that come together, the second overwrites the first.
UPDATE {table} SET data = :data::text::json, payload = :payload::bytea, serializer = :serializer::text
WHERE id = :id::bigint AND q_name = :q_name::text RETURNING id;

-- name: clear
-- Delete all jobs, and give the headers of those that a batch waits for. A row that somebody has locked is waited for.
WITH gone AS (
  DELETE FROM {table} WHERE q_name = :q_name::text RETURNING headers, dequeued_at
)
SELECT headers::text FROM gone WHERE dequeued_at IS NULL AND headers::text LIKE '%"batch"%';

-- name: purge_kept
-- Delete finished jobs in one slice of ids, so that no statement runs long or locks many rows, however large the table.
-- No other statement changes a finished row but to run it again or to delete it, and both lock it first.
WITH slice AS (
  SELECT id FROM {table} WHERE id > :after::bigint ORDER BY id LIMIT 10000
), gone AS (
  DELETE FROM {table} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND q_name = :q_name::text
    AND dequeued_at <= statement_timestamp() - :age::float8 * interval '1 second'
  RETURNING id
)
SELECT max(id), (SELECT count(*) FROM gone) FROM slice;

-- name: purge_archive
-- The same of the archive, whose index leads to the oldest rows. Rows that somebody has locked are skipped.
WITH slice AS (
  SELECT id FROM (
    SELECT id FROM {archive} WHERE q_name = :q_name::text
      AND dequeued_at <= statement_timestamp() - :age::float8 * interval '1 second'
    ORDER BY dequeued_at LIMIT 10000 FOR UPDATE SKIP LOCKED
  ) AS head LIMIT (SELECT 10000)
), gone AS (
  DELETE FROM {archive} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND q_name = :q_name::text RETURNING id
)
SELECT max(id), count(*) FROM gone;
