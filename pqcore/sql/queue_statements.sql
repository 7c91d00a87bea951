-- Statements of a queue that need no fragments. Each ends with a semicolon. {table} and similar names are quoted
-- identifiers, :name is a parameter. pqcore.sql.queue_statements composes the others; tests/snapshots/ has all
-- statements as a server gets them.

-- name: update
-- Replace the data of a job. The UPDATE locks the row: of two concurrent sessions, the second overwrites the first.
UPDATE {table} SET data = :data::text::json, payload = :payload::bytea, serializer = :serializer::text
WHERE id = :id::bigint AND q_name = :q_name::text RETURNING id;

-- name: purge_kept
-- Delete finished jobs in one slice of ids, so that no statement runs long or locks many rows, however large the table
-- is. Other statements change a finished row only to run it again or to delete it, and both lock it first.
WITH slice AS (
  SELECT id FROM {table} WHERE id > :after::bigint ORDER BY id LIMIT 10000
), gone AS (
  DELETE FROM {table} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND q_name = :q_name::text
    AND dequeued_at <= statement_timestamp() - :age::float8 * interval '1 second'
  RETURNING id
)
SELECT max(id), (SELECT count(*) FROM gone) FROM slice;

-- name: purge_archive
-- Delete archived jobs in slices; the archive's index leads to the oldest rows. Rows that another session has locked
-- are skipped.
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
