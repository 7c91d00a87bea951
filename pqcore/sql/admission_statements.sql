-- Statements of admission that are run as they are written here.
-- pqcore.sql.admission_statements has those that are composed, and says how keys are locked.

-- name: create_keys
-- Make the rows of keys that have none, with the jobs that run under them: a row may have been lost. Only takes do this, never puts, and nobody waits: who makes a row has the lock
-- of its key first, until the transaction ends, and whoever finds it locked leaves the key alone.
INSERT INTO {keys} (q_name, key, version, places, newest, running)
SELECT :q_name::text, wanted.key, 0, wanted.number, wanted.newest, coalesce((
  SELECT array_agg(id) FROM {table} WHERE q_name = :q_name::text AND dequeued_at IS NULL AND leased_until IS NOT NULL
    AND coalesce(leased_until, schedule_at) > '-infinity' AND coalesce(leased_until, schedule_at) < 'infinity'
    AND parked_on IS NULL AND strpos(headers::text, '"gate"') > 0 AND CASE WHEN wanted.key LIKE 'group:%'
      THEN group_key = substr(wanted.key, 7)
      ELSE headers #> ARRAY['gate', 'limits', substr(wanted.key, 7)] IS NOT NULL END), '{{}}')
FROM json_to_recordset(:needs::text::json) AS wanted (key text, number int, newest bigint)
WHERE NOT EXISTS (SELECT FROM {keys} WHERE q_name = :q_name::text AND key = wanted.key)
  AND pg_try_advisory_xact_lock(hashtextextended(:table::text || ' ' || :q_name::text || ' ' || wanted.key, 7072))
ON CONFLICT DO NOTHING RETURNING key;

-- name: add_running
-- Count jobs under keys whose rows miss them, as after a restore. A key that another transaction has locked waits for
-- the next sweep. Jobs that have ended meanwhile do no harm: whether a job runs is read from the job.
UPDATE {keys} AS kept SET version = kept.version + 1, running = kept.running || missing.ids
FROM (
  SELECT mine.ctid, wanted.ids FROM json_to_recordset(:needs::text::json) AS given (key text, ids bigint[])
  CROSS JOIN LATERAL (
    SELECT version, running FROM {keys} WHERE q_name = :q_name::text AND key = given.key ORDER BY version DESC LIMIT 1
  ) AS newest CROSS JOIN LATERAL (
    SELECT array_agg(job) AS ids FROM unnest(given.ids) AS job WHERE job <> ALL (newest.running)
  ) AS wanted CROSS JOIN LATERAL (
    SELECT ctid FROM {keys} WHERE q_name = :q_name::text AND key = given.key AND version = newest.version
    FOR UPDATE SKIP LOCKED
  ) AS mine WHERE wanted.ids IS NOT NULL
) AS missing WHERE kept.ctid = missing.ctid;

-- name: transaction_isolation
-- Reads only. Tell the isolation of the transaction that is open.
SELECT current_setting('transaction_isolation');

-- name: tell
-- Notify those that wait for jobs of a queue, when the transaction is committed.
SELECT pg_notify(:channel::text, '')::text;

-- name: set_lanes
-- Write down the lanes of waiting jobs that are locked; a job that names no keys after all waits for a plain take.
UPDATE {table} AS job SET parked_on = named.lane, priority = named.priority,
  leased_until = CASE WHEN named.lane IS NULL THEN NULL ELSE '-infinity'::timestamptz END
FROM json_to_recordset(:lanes::text::json) AS named (id bigint, lane text, priority int)
WHERE job.id = named.id AND job.q_name = :q_name::text AND job.dequeued_at IS NULL
  AND (job.parked_on IS NOT NULL OR job.leased_until IS NULL);

-- name: admitted_headers
-- Reads only. Give the jobs of a queue that are leased, and may be under keys: the rows that places are counted by.
SELECT id, headers::text FROM {table}
WHERE q_name = :q_name::text AND dequeued_at IS NULL AND leased_until IS NOT NULL AND parked_on IS NULL
  AND coalesce(leased_until, schedule_at) > '-infinity' AND coalesce(leased_until, schedule_at) < 'infinity'
  AND strpos(headers::text, '"gate"') > 0
ORDER BY coalesce(leased_until, schedule_at), id LIMIT 10000;

-- name: sweep_keys
-- Delete keys under which nothing was admitted for an hour, and whose jobs have ended. Locked keys are skipped.
DELETE FROM {keys} WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM {keys} AS old WHERE q_name = :q_name::text AND admitted_at < statement_timestamp() - interval '1 hour'
    AND NOT EXISTS (
      SELECT FROM {table} AS job WHERE job.id = ANY (old.running) AND job.q_name = :q_name::text
        AND job.dequeued_at IS NULL AND job.parked_on IS NULL AND job.leased_until IS NOT NULL)
  LIMIT 1000 FOR UPDATE SKIP LOCKED));
