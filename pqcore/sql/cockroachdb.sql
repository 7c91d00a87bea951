-- Statements that CockroachDB runs in place of those with the same names.

-- name: create_keys
-- Insert the rows of keys that have none. No advisory lock can be tried first: a take waits for another that inserts
-- the same row, until its transaction ends.
WITH out AS MATERIALIZED (
  SELECT id, group_key, headers, leased_until, parked_on FROM {table}
  WHERE q_name = :q_name::text AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL OR (schedule_at IS NOT NULL AND expected_at IS NOT NULL))
    AND coalesce(leased_until, schedule_at) > '-infinity' AND coalesce(leased_until, schedule_at) < 'infinity'
  ORDER BY coalesce(leased_until, schedule_at), id LIMIT 10000
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
WHERE NOT EXISTS (SELECT FROM {keys} WHERE q_name = :q_name::text AND key = wanted.key)
ON CONFLICT DO NOTHING RETURNING key;

-- name: add_running
-- Add running jobs to keys whose rows lack them. The statement differs from PostgreSQL's in that a row of keys is
-- identified by its version.
UPDATE {keys} AS kept SET version = kept.version + 1, running = kept.running || missing.ids
FROM (
  SELECT mine.key, mine.version, wanted.ids
  FROM json_to_recordset(:needs::text::json) AS given (key text, ids bigint[])
  CROSS JOIN LATERAL (
    SELECT version, running FROM {keys} WHERE q_name = :q_name::text AND key = given.key ORDER BY version DESC LIMIT 1
  ) AS newest CROSS JOIN LATERAL (
    SELECT array_agg(job) AS ids FROM unnest(given.ids) AS job WHERE job <> ALL (newest.running)
  ) AS wanted CROSS JOIN LATERAL (
    SELECT key, version FROM {keys} WHERE q_name = :q_name::text AND key = given.key AND version = newest.version
    FOR UPDATE SKIP LOCKED
  ) AS mine WHERE wanted.ids IS NOT NULL
) AS missing WHERE kept.q_name = :q_name::text AND kept.key = missing.key AND kept.version = missing.version;

-- name: sweep_keys
-- Delete keys under which nothing was admitted for an hour. The statement differs from PostgreSQL's in that a row of
-- keys is identified by its version.
DELETE FROM {keys} WHERE q_name = :q_name::text AND (key, version) IN (
  SELECT key, version FROM {keys} AS old
  WHERE q_name = :q_name::text AND admitted_at < statement_timestamp() - interval '1 hour'
    AND NOT EXISTS (
      SELECT FROM {table} AS job WHERE job.id = ANY (old.running) AND job.q_name = :q_name::text
        AND job.dequeued_at IS NULL AND job.parked_on IS NULL AND job.leased_until IS NOT NULL)
  LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- name: lock_migrations
-- Lock nothing: run migrations one at a time.
SELECT true;

-- name: unlock_migrations
-- Unlock nothing; see lock_migrations.
SELECT true;

-- name: lock_schema
-- Lock nothing; see lock_migrations.
SELECT true;

-- name: partitions
-- Find no partitions, because no table has any.
SELECT NULL::text WHERE false;

-- name: replan
-- Do nothing: DISCARD PLANS does not exist, and no statement is prepared.
SELECT 1;

-- name: discard_plans
-- This is never run, because replan is allowed.
SELECT 1;

-- name: identify
-- There is no inet_server_addr.
SELECT current_database()::text, NULL::text, NULL::int, current_setting('server_version');

-- name: register
-- This is never run, because no connection listens.
SELECT NULL::text WHERE false AND :channels::text[] IS NULL;

-- name: unregister
-- This is never run, because no connection listens.
SELECT NULL::text WHERE false AND :channels::text[] IS NULL;

-- name: notification_usage
-- Return 0, because the server has no notification queue.
SELECT 0;

-- name: listening
-- This is never run, because no connection listens.
SELECT NULL::text WHERE false;

-- name: notify_always
-- This is never run, because no connection listens.
SELECT NULL::text WHERE false;

-- name: session_settings
-- Set nothing.
SELECT NULL::text WHERE false AND :names::text[] IS NULL AND :values::text[] IS NULL AND :mild::bool[] IS NULL;

-- name: notify_waiters
-- This is never run, because no connection listens.
SELECT NULL::text WHERE false;

-- name: explain_lock
-- Find nothing. The server has neither xmax nor pg_locks.
SELECT NULL::int, false, NULL::float8, NULL::text WHERE false AND :xmax::text IS NULL;

-- name: explain_key_locks
-- Find nothing; see explain_lock.
SELECT NULL::text, NULL::int, false, NULL::float8, NULL::text WHERE false AND :keys::text[] IS NULL;

-- name: explain_snapshot
-- Find nothing, because transactions keep no dead rows.
SELECT NULL::float8;
