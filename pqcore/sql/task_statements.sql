-- Statements of tasks and workers that need no fragments. pqcore.sql.task_statements composes the others.

-- Leases.

-- name: find_leases
-- This statement only reads. If a row has the token and no lease, the holder has ended the lease: an expired lease
-- stays in the row until the job is fetched again, under the next token.
SELECT id, attempts, leased_until IS NULL FROM {table} WHERE id = ANY (:ids::bigint[]) AND q_name = :q_name::text
UNION ALL SELECT id, attempts, true FROM {archive} WHERE id = ANY (:ids::bigint[]) AND q_name = :q_name::text
UNION ALL SELECT id, attempts, true FROM {dead} WHERE id = ANY (:ids::bigint[]) AND q_name = :q_name::text;

-- name: request_stop
-- Mark a running job for cancellation, and notify its worker. A job whose lease ended meanwhile is checked again after
-- its row is unlocked.
UPDATE {table} SET cancelling = true WHERE id = :id::bigint AND q_name = :q_name::text
  AND num_nulls(dequeued_at, parked_on) = 2 AND leased_until > statement_timestamp()
RETURNING id, pg_notify(:channel::text, '')::text;

-- name: find_stop_requests
-- This statement only reads. Return those jobs that are marked for cancellation.
SELECT id FROM {table} WHERE id = ANY (:ids::bigint[]) AND cancelling;

-- Dead letters.

-- name: count_dead
-- This statement only reads. Count the dead letters of a queue.
SELECT count(*) FROM {dead} WHERE q_name = :q_name::text AND (:reason::text IS NULL OR reason = :reason::text);

-- name: purge_dead
-- Delete dead letters, the oldest first. Rows that another session has locked are skipped.
WITH picked AS (
  SELECT id FROM {dead} WHERE q_name = :q_name::text AND (:ids::bigint[] IS NULL OR id = ANY (:ids::bigint[]))
    AND died_at <= statement_timestamp() - :age::float8 * interval '1 second'
  ORDER BY died_at LIMIT 10000 FOR UPDATE SKIP LOCKED
)
DELETE FROM {dead} WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND q_name = :q_name::text RETURNING id;

-- Results.

-- name: find_result
-- This statement only reads. Return a result, if it belongs to this job, and not to another job that had the id: see
-- `keep_result`.
SELECT state, progress::text, data::text, payload, serializer, error::text FROM {results} AS kept
WHERE job_id = :id::bigint AND q_name = :q_name::text AND coalesce(
  kept.put_at = :put_at::timestamptz,
  (:put_at::timestamptz IS NULL OR kept.updated_at >= :put_at::timestamptz)
  AND NOT EXISTS (
    SELECT FROM {table} WHERE id = :id::bigint AND q_name = :q_name::text AND enqueued_at > kept.updated_at)
  AND NOT EXISTS (
    SELECT FROM {dead} WHERE id = :id::bigint AND q_name = :q_name::text AND enqueued_at > kept.updated_at)
  AND NOT EXISTS (
    SELECT FROM {archive} WHERE id = :id::bigint AND q_name = :q_name::text AND enqueued_at > kept.updated_at)
);

-- name: find_progress
-- This statement only reads. Return the progress of unfinished jobs: of these jobs, and not of other jobs that had the
-- ids before.
SELECT job.id, kept.progress::text FROM {table} AS job JOIN {results} AS kept
  ON kept.job_id = job.id AND kept.q_name = job.q_name
WHERE job.id = ANY (:ids::bigint[]) AND job.q_name = :q_name::text AND kept.progress IS NOT NULL
  AND coalesce(kept.put_at = job.enqueued_at, kept.updated_at >= job.enqueued_at);

-- name: sweep_results
-- Delete results whose time is over. Rows that another session has locked are skipped.
DELETE FROM {results} WHERE job_id = ANY (ARRAY(
  SELECT job_id FROM {results} WHERE expires_at <= statement_timestamp()
  ORDER BY expires_at LIMIT 10000 FOR UPDATE SKIP LOCKED
));

-- Batches.

-- name: open_batch
-- Begin a batch. No other session knows its id before the transaction ends.
INSERT INTO {batches} (q_name, total, pending, callback, token)
VALUES (:q_name::text, :total::int, :total::int, :callback::text::json, :token::text) RETURNING id;

-- name: batch_progress
-- Count down a batch. The UPDATE locks the row: of the last two jobs that end concurrently, one finds that no job is
-- pending. A job is counted only if it has the batch's token, which a role that can only put cannot read.
UPDATE {batches} SET pending = pending - :done::int, failed = failed + :failed::int
WHERE id = :id::bigint AND token IS NOT DISTINCT FROM :token::text
RETURNING pending, total, failed, callback::text;

-- name: hold_batch
-- Keep a batch open while a consumer runs a job that it took with `get`: the end of the run is counted later.
-- `greatest` keeps the later of two times, in whichever order two statements run.
UPDATE {batches} SET held_until = greatest(held_until, statement_timestamp() + :hold::float8 * interval '1 second')
WHERE id = :id::bigint AND token IS NOT DISTINCT FROM :token::text;

-- name: open_batches
-- This statement only reads. Find batches that may have no job left: the jobs were deleted in SQL, or fetched by a
-- process that died. The batches are read before their jobs. If a job ended in between, the pending number has changed;
-- then the UPDATE of `end_lost_batch`, which checks it on the locked row, changes nothing.
SELECT id, pending FROM {batches} WHERE q_name = :q_name::text AND pending > 0 ORDER BY id LIMIT 1000;

-- name: held_batches
-- This statement only reads. Return those batches that are held open.
SELECT id FROM {batches} WHERE id = ANY (:ids::bigint[]) AND held_until > statement_timestamp();

-- name: end_lost_batch
-- End a batch whose jobs are gone, if it has not changed since `open_batches` found it.
UPDATE {batches} SET pending = 0, failed = failed + pending
WHERE id = :id::bigint AND q_name = :q_name::text AND pending = :pending::int
RETURNING pending, total, failed, callback::text;

-- name: close_batch
-- Delete a batch, in the transaction that counted its last job and has locked the row.
DELETE FROM {batches} WHERE id = :id::bigint;

-- Periodic tasks.

-- name: set_tick_back
-- Set a tick back, if it is the one that was found ahead of the clock: of several concurrent workers, only one does so.
UPDATE {ticks} SET tick = :now::timestamptz
WHERE q_name = :q_name::text AND name = :name::text AND tick = :tick::timestamptz RETURNING name;

-- name: last_tick
-- This statement only reads. Return the last tick of a periodic task, its expression, and the server's time.
SELECT max(tick) AT TIME ZONE 'UTC', max(cron), max(tz), clock_timestamp() AT TIME ZONE 'UTC' FROM {ticks}
WHERE q_name = :q_name::text AND name = :name::text;

-- Rate limits: one token bucket for each queue.

-- name: take_tokens
-- Draw tokens. FOR UPDATE locks the row, and reads the locked row, before it is changed.
WITH bucket AS (
  SELECT q_name, tokens, greatest(extract(epoch FROM clock_timestamp() - refilled_at), 0)::float8 AS elapsed
  FROM {rates} WHERE q_name = :q_name::text FOR UPDATE
), filled AS (
  SELECT q_name, least(:capacity::float8, tokens + elapsed * :rate::float8) AS available FROM bucket
), granted AS (
  SELECT q_name, available, least(:n::int, floor(available))::int AS number FROM filled
)
UPDATE {rates} AS kept SET tokens = available - number, refilled_at = clock_timestamp()
FROM granted WHERE kept.q_name = granted.q_name
RETURNING number, (greatest(1 - (available - number), 0) / :rate::float8)::float8;

-- name: create_bucket
-- Insert a queue's bucket, full; if another session has inserted it, nothing changes.
INSERT INTO {rates} (q_name, tokens, refilled_at) VALUES (:q_name::text, :capacity::float8, clock_timestamp())
ON CONFLICT DO NOTHING;

-- name: return_tokens
-- Return tokens that were drawn in vain. The sum uses the locked row.
UPDATE {rates} SET tokens = tokens + :n::int WHERE q_name = :q_name::text;
