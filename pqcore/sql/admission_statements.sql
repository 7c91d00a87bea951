-- Statements of admission that need no fragments. pqcore.sql.admission_statements composes the others, and explains how
-- keys are locked.

-- name: create_keys
-- Insert the rows of keys that have none, because a row may have been lost. Each row gets the jobs that run under its
-- key, as far as they are among the 10,000 leases that run out first. Only takes run this statement, never puts, and no
-- session waits: a session first takes the advisory lock of the key, until its transaction ends. A session that finds
-- the lock taken skips the key. Headers with escapes that JSON functions cannot read are left out: see
-- pqcore.sql.fragments.UNREADABLE.
WITH out AS MATERIALIZED (
  SELECT * FROM (
    SELECT id, group_key, headers, leased_until, parked_on FROM {table}
    WHERE q_name = :q_name::text AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL OR (schedule_at IS NOT NULL AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) > '-infinity' AND coalesce(leased_until, schedule_at) < 'infinity'
    ORDER BY coalesce(leased_until, schedule_at), id LIMIT 10000
  ) AS head LIMIT (SELECT 10000)
), admitted AS MATERIALIZED (
  SELECT id, group_key, CASE
    WHEN strpos(lower(headers::text), chr(92) || 'u0000') + strpos(lower(headers::text), chr(92) || 'ud') = 0
    THEN headers #> '{{gate,limits}}' END AS limits FROM out
  WHERE leased_until IS NOT NULL AND parked_on IS NULL AND strpos(headers::text, '"gate"') > 0
), known AS (
  SELECT key, array_agg(id) AS ids FROM (
    SELECT 'group:' || group_key AS key, id FROM admitted WHERE group_key IS NOT NULL
    UNION ALL
    SELECT 'limit:' || name, id FROM admitted CROSS JOIN LATERAL
      json_object_keys(CASE json_typeof(limits) WHEN 'object' THEN limits ELSE '{{}}' END) AS limited (name)
  ) AS held GROUP BY key
)
INSERT INTO {keys} (q_name, key, version, places, newest, running)
SELECT :q_name::text, wanted.key, 0, wanted.number, wanted.newest, coalesce(known.ids, '{{}}')
FROM json_to_recordset(:needs::text::json) AS wanted (key text, number int, newest bigint)
LEFT JOIN known ON known.key = wanted.key
WHERE (
    SELECT version FROM {keys} WHERE q_name = :q_name::text AND key = wanted.key ORDER BY version DESC LIMIT 1
  ) IS NULL
  AND pg_try_advisory_xact_lock(hashtextextended(:table::text || ' ' || :q_name::text || ' ' || wanted.key, 7072))
ON CONFLICT DO NOTHING RETURNING key;

-- name: add_running
-- Add running jobs to keys whose rows lack them, as after a restore. A key that another transaction has locked waits
-- for the next sweep. Adding jobs that have ended meanwhile does no harm, because a job's own row shows whether it
-- runs.
WITH missing AS MATERIALIZED (
  SELECT mine.ctid, given.key, wanted.ids FROM json_to_recordset(:needs::text::json) AS given (key text, ids bigint[])
  CROSS JOIN LATERAL (
    SELECT version, running FROM {keys} WHERE q_name = :q_name::text AND key = given.key ORDER BY version DESC LIMIT 1
  ) AS newest CROSS JOIN LATERAL (
    SELECT array_agg(job) AS ids FROM unnest(given.ids) AS job WHERE job <> ALL (newest.running)
  ) AS wanted CROSS JOIN LATERAL (
    SELECT ctid FROM {keys} WHERE q_name = :q_name::text AND key = given.key AND version = newest.version
    FOR UPDATE SKIP LOCKED
  ) AS mine WHERE wanted.ids IS NOT NULL
)
UPDATE {keys} AS kept SET version = kept.version + 1, running = kept.running || missing.ids FROM missing
WHERE kept.ctid = ANY (ARRAY(SELECT ctid FROM missing)) AND kept.key = missing.key;

-- name: transaction_isolation
-- This statement only reads. Return the isolation level of the open transaction.
SELECT current_setting('transaction_isolation');

-- name: tell
-- Notify the waiters for jobs of a queue, when the transaction commits.
SELECT pg_notify(:channel::text, '')::text;

-- name: set_lanes
-- Write the lanes of waiting jobs that this transaction has locked. A job may turn out to name no keys, for example if
-- only the next job of its chain does. It then waits on a lane without keys; otherwise takes would park it again.
WITH named AS MATERIALIZED (
  SELECT * FROM json_to_recordset(:lanes::text::json) AS named (id bigint, lane text, priority int)
)
UPDATE {table} AS job SET parked_on = coalesce(named.lane, '[0,""]'), priority = named.priority,
  leased_until = 'infinity'
FROM named
WHERE job.id = ANY (ARRAY(SELECT id FROM named)) AND job.id = named.id AND job.q_name = :q_name::text
  AND num_nulls(job.dequeued_at) = 1 AND (job.parked_on IS NOT NULL OR job.leased_until IS NULL);

-- name: leave_lanes
-- Take jobs off their lanes that pq, older code or SQL finished or leased without changing `parked_on`. Such jobs are
-- among the first of their lanes, because they were taken in order. Each row is checked again when it is locked
-- (EvalPlanQual); a locked row is skipped.
UPDATE {table} SET parked_on = NULL, leased_until = CASE WHEN dequeued_at IS NULL THEN leased_until END
WHERE q_name = :q_name::text AND id = ANY (ARRAY(
  SELECT mine.id FROM (
    SELECT id, dequeued_at, leased_until FROM {table} WHERE q_name = :q_name::text AND parked_on IS NOT NULL
    ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id LIMIT 10000
  ) AS first CROSS JOIN LATERAL (
    SELECT id FROM {table} WHERE id = first.id AND q_name = :q_name::text AND parked_on IS NOT NULL
      AND (dequeued_at IS NOT NULL OR leased_until > statement_timestamp() AND leased_until < 'infinity')
    FOR UPDATE SKIP LOCKED
  ) AS mine
  WHERE first.dequeued_at IS NOT NULL OR first.leased_until > statement_timestamp() AND first.leased_until < 'infinity'
));

-- name: admitted_headers
-- This statement only reads. Return the leased jobs of a queue that may be under keys: places are counted by their
-- rows. These jobs are searched among the 10,000 that come out first; later ones are usually scheduled jobs.
WITH out AS MATERIALIZED (
  SELECT * FROM (
    SELECT id, group_key, headers, leased_until, parked_on FROM {table}
    WHERE q_name = :q_name::text AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL OR (schedule_at IS NOT NULL AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) > '-infinity' AND coalesce(leased_until, schedule_at) < 'infinity'
    ORDER BY coalesce(leased_until, schedule_at), id LIMIT 10000
  ) AS head LIMIT (SELECT 10000)
)
SELECT id, headers::text FROM out
WHERE leased_until IS NOT NULL AND parked_on IS NULL AND strpos(headers::text, '"gate"') > 0;

-- name: sweep_keys
-- Delete keys under which nothing was admitted for an hour, and whose jobs have ended. Locked keys are skipped.
DELETE FROM {keys} AS kept WHERE kept.ctid = ANY (ARRAY(
  SELECT ctid FROM {keys} AS old WHERE q_name = :q_name::text AND admitted_at < statement_timestamp() - interval '1 hour'
    AND NOT EXISTS (
      SELECT FROM {table} AS job WHERE job.id = ANY (old.running) AND job.q_name = :q_name::text
        AND job.dequeued_at IS NULL AND job.parked_on IS NULL AND job.leased_until IS NOT NULL)
  LIMIT 1000 FOR UPDATE SKIP LOCKED));
