-- Statements of the list of workers.

-- name: announce_worker
-- List a worker for each of its queues, or renew its rows. A worker writes only its own rows, so two workers never wait
-- for each other here. A row that was deleted meanwhile, for example by TRUNCATE, is written again.
INSERT INTO {workers} (q_name, id, host, pid, version, tasks, concurrency, started_at, seen_at, running)
SELECT place.name, :id::text, :host::text, :pid::int, :version::text, place.tasks::json, :concurrency::int,
  statement_timestamp() - :age::float8 * interval '1 second', statement_timestamp(), place.running::json
FROM unnest(:names::text[], :tasks::text[], :running::text[]) AS place (name, tasks, running)
ON CONFLICT (q_name, id) DO UPDATE SET tasks = excluded.tasks, seen_at = excluded.seen_at, running = excluded.running;

-- name: withdraw_worker
-- Delete the rows of a worker that stops. If a sweep has locked a row, this statement waits, and then finds the row
-- deleted.
DELETE FROM {workers} WHERE q_name = ANY (:names::text[]) AND id = :id::text;

-- name: sweep_workers
-- Delete the rows of workers that have not renewed them for long. Rows that another sweep has locked are skipped (SKIP
-- LOCKED). A worker that renews its row at this moment is checked again after its row is unlocked.
DELETE FROM {workers} WHERE (q_name, id) IN (
  SELECT q_name, id FROM {workers} WHERE seen_at < statement_timestamp() - :silence::float8 * interval '1 second'
  FOR UPDATE SKIP LOCKED
) AND seen_at < statement_timestamp() - :silence::float8 * interval '1 second';

-- name: find_quiet
-- This statement only reads. Return the queues of which a worker must take no more jobs.
SELECT q_name FROM {workers} WHERE q_name = ANY (:names::text[]) AND id = :id::text AND quiet;

-- name: set_quiet
-- Have a worker take no more jobs, or take jobs again. The worker renews its rows concurrently: one of both statements
-- waits for the other, and each changes columns of its own.
UPDATE {workers} SET quiet = :quiet::boolean WHERE id = :id::text RETURNING q_name;

-- name: list_workers
-- This statement only reads. List workers, one row for each queue of each worker, in the order of their start.
SELECT q_name, id, host, pid, version, tasks::text, concurrency, started_at AT TIME ZONE 'UTC',
  seen_at AT TIME ZONE 'UTC', seen_at > statement_timestamp() - :alive::float8 * interval '1 second', running::text,
  coalesce(quiet, false)
FROM {workers} WHERE :q_name::text IS NULL OR q_name = :q_name::text
ORDER BY started_at, id, q_name LIMIT 10000;
