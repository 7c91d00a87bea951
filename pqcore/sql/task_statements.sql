-- Statements of tasks and workers that are run as they are written here.
-- pqcore.sql.task_statements has those that are composed.

-- Keys.

-- name: claim_key
-- Claim a key for a time; no row if it is held. The row of the key is locked, and looked at as it then is, in one
-- statement (ON CONFLICT DO UPDATE). The claimant puts the job, and notes its id, in the same transaction: others wait
-- for its end. The job draws its id as any other does, so a role that only puts need not be allowed to choose one.
INSERT INTO {dedup} AS held (q_name, dedup_key, job_id, until)
VALUES (:q_name::text, :dedup_key::text, 0, clock_timestamp() + :period::float8 * interval '1 second')
ON CONFLICT (q_name, dedup_key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
  WHERE held.until <= clock_timestamp()
RETURNING job_id;

-- name: set_key_holder
-- Note which job holds a key. The claimant has the row locked.
UPDATE {dedup} SET job_id = :id::bigint WHERE q_name = :q_name::text AND dedup_key = :dedup_key::text;

-- name: sweep_dedup
-- Delete keys whose time is over. A key that is claimed at this moment is checked again once it is unlocked.
DELETE FROM {dedup} WHERE q_name = :q_name::text AND until <= statement_timestamp();

-- Leases.

-- name: find_leases
-- Reads only. A row that has the token, and no lease, was ended by the holder of the lease: a lease that runs out stays
-- in the row until the job is fetched again, under the next token.
SELECT id, attempts, leased_until IS NULL FROM {table} WHERE id = ANY (:ids::bigint[]) AND q_name = :q_name::text
UNION ALL SELECT id, attempts, true FROM {archive} WHERE id = ANY (:ids::bigint[]) AND q_name = :q_name::text
UNION ALL SELECT id, attempts, true FROM {dead} WHERE id = ANY (:ids::bigint[]) AND q_name = :q_name::text;

-- name: request_stop
-- Mark a running job, and notify its worker. A job whose lease ended meanwhile is checked again once it is unlocked.
UPDATE {table} SET cancelling = true WHERE id = :id::bigint AND q_name = :q_name::text
  AND num_nulls(dequeued_at, parked_on) = 2 AND leased_until > statement_timestamp()
RETURNING id, pg_notify(:channel::text, '')::text;

-- name: find_stop_requests
-- Reads only. Give those jobs that are marked.
SELECT id FROM {table} WHERE id = ANY (:ids::bigint[]) AND cancelling;

-- Dead letters.

-- name: count_dead
-- Reads only. Count the dead letters of a queue.
SELECT count(*) FROM {dead} WHERE q_name = :q_name::text AND (:reason::text IS NULL OR reason = :reason::text);

-- name: purge_dead
-- Delete dead letters, the oldest first. Those that somebody has locked are skipped.
WITH picked AS (
  SELECT id FROM {dead} WHERE q_name = :q_name::text AND (:ids::bigint[] IS NULL OR id = ANY (:ids::bigint[]))
    AND died_at <= statement_timestamp() - :age::float8 * interval '1 second'
  ORDER BY died_at LIMIT 10000 FOR UPDATE SKIP LOCKED
)
DELETE FROM {dead} WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND q_name = :q_name::text RETURNING id;

-- Results.

-- name: find_result
-- Reads only. Give a result, if it is of this job, and not of another that had the id: see `keep_result`.
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

-- name: sweep_results
-- Delete results whose time is over. Those that somebody has locked are skipped.
DELETE FROM {results} WHERE job_id = ANY (ARRAY(
  SELECT job_id FROM {results} WHERE expires_at <= statement_timestamp()
  ORDER BY expires_at LIMIT 10000 FOR UPDATE SKIP LOCKED
));

-- Batches.

-- name: open_batch
-- Begin a batch. Nobody knows its id before the transaction ends.
INSERT INTO {batches} (q_name, total, pending, callback, token)
VALUES (:q_name::text, :total::int, :total::int, :callback::text::json, :token::text) RETURNING id;

-- name: batch_progress
-- Count down a batch. The UPDATE locks the row: of the last two jobs that end concurrently, one finds none pending.
-- A job is counted that shows the batch's token, which a role that only puts cannot read.
UPDATE {batches} SET pending = pending - :done::int, failed = failed + :failed::int
WHERE id = :id::bigint AND token IS NOT DISTINCT FROM :token::text
RETURNING pending, total, failed, callback::text;

-- name: hold_batch
-- Hold a batch open while a job that was fetched for good is performed: the job's end is told later.
-- `greatest` keeps the later time, whichever of two statements comes first.
UPDATE {batches} SET held_until = greatest(held_until, statement_timestamp() + :hold::float8 * interval '1 second')
WHERE id = :id::bigint AND token IS NOT DISTINCT FROM :token::text;

-- name: open_batches
-- Reads only. Find batches of which no job may be left: those were deleted in SQL, or popped by a process that died.
-- The batches are read before their jobs. A job that ended in between has changed what is pending, so the UPDATE of
-- `end_lost_batch`, which checks that on the row as locked, finds nothing.
SELECT id, pending FROM {batches} WHERE q_name = :q_name::text AND pending > 0 ORDER BY id LIMIT 1000;

-- name: held_batches
-- Reads only. Give those batches that are held open.
SELECT id FROM {batches} WHERE id = ANY (:ids::bigint[]) AND held_until > statement_timestamp();

-- name: end_lost_batch
-- End a batch whose jobs are gone, if it is as `open_batches` found it.
UPDATE {batches} SET pending = 0, failed = failed + pending
WHERE id = :id::bigint AND q_name = :q_name::text AND pending = :pending::int
RETURNING pending, total, failed, callback::text;

-- name: close_batch
-- Delete a batch in the transaction that found none pending, and has the row locked.
DELETE FROM {batches} WHERE id = :id::bigint;

-- Periodic tasks.

-- name: register_periodic
-- Note a periodic task, or its new expression: then its tick is moved to now. The row is locked, so the second worker
-- that comes finds the same expression, and changes nothing.
INSERT INTO {ticks} AS last (q_name, name, tick, cron, tz)
VALUES (:q_name::text, :name::text, :tick::timestamptz, :cron::text, :tz::text)
ON CONFLICT (q_name, name) DO UPDATE SET cron = excluded.cron, tz = excluded.tz,
  tick = CASE WHEN last.cron IS NULL THEN last.tick ELSE greatest(last.tick, excluded.tick) END
  WHERE last.cron IS DISTINCT FROM excluded.cron OR last.tz IS DISTINCT FROM excluded.tz
RETURNING name;

-- name: set_tick_back
-- Set a tick back, if it is the one that was found ahead of the clock: of workers that come together, one does so.
UPDATE {ticks} SET tick = :now::timestamptz
WHERE q_name = :q_name::text AND name = :name::text AND tick = :tick::timestamptz RETURNING name;

-- name: last_tick
-- Reads only. Give the last tick of a periodic task, its expression, and the server's time.
SELECT max(tick) AT TIME ZONE 'UTC', max(cron), max(tz), clock_timestamp() AT TIME ZONE 'UTC' FROM {ticks}
WHERE q_name = :q_name::text AND name = :name::text;

-- Rate limits: a token bucket a queue.

-- name: take_tokens
-- Draw tokens. The row is locked, and read as locked (FOR UPDATE), before it is changed.
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
-- Make a queue's bucket, full; another session's stays as it is.
INSERT INTO {rates} (q_name, tokens, refilled_at) VALUES (:q_name::text, :capacity::float8, clock_timestamp())
ON CONFLICT DO NOTHING;

-- name: return_tokens
-- Give back tokens that were drawn in vain. The sum is of the row as locked.
UPDATE {rates} SET tokens = tokens + :n::int WHERE q_name = :q_name::text;
