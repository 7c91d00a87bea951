-- Statements that CockroachDB runs instead of those of the same names.

-- name: lock_keys
-- Lock keys until the transaction ends. Instead of an advisory lock there is a row, under the queue 'pqcore locks':
-- the transaction that inserts or updates it has it locked. The order of the keys is one for all callers.
INSERT INTO {dedup} (q_name, dedup_key, job_id, until)
SELECT 'pqcore locks', gate.lock::text, 0, statement_timestamp()
FROM unnest(:locks::bigint[]) AS gate (lock) ORDER BY gate.lock
ON CONFLICT (q_name, dedup_key) DO UPDATE SET until = excluded.until RETURNING 'read committed', job_id;

-- name: try_keys
-- The same: rows cannot be tried here, so admission waits.
INSERT INTO {dedup} (q_name, dedup_key, job_id, until)
SELECT 'pqcore locks', gate.lock::text, 0, statement_timestamp()
FROM unnest(:locks::bigint[]) AS gate (lock) ORDER BY gate.lock
ON CONFLICT (q_name, dedup_key) DO UPDATE SET until = excluded.until
RETURNING dedup_key::bigint, true, 'read committed';

-- name: sweep_dedup
-- Delete keys whose time is over, and rows of locks that nobody has used for an hour.
DELETE FROM {dedup} WHERE (q_name = :q_name::text AND until <= statement_timestamp())
  OR (q_name = 'pqcore locks' AND until <= statement_timestamp() - interval '1 hour');

-- name: lock_migrations
-- Migrations are not kept apart: run them one at a time.
SELECT true;

-- name: unlock_migrations
-- See lock_migrations.
SELECT true;

-- name: lock_schema
-- See lock_migrations.
SELECT true;

-- name: partitions
-- No table has partitions.
SELECT NULL::text WHERE false;

-- name: replan
-- There is no DISCARD PLANS, and no statement is prepared.
SELECT 1;

-- name: register
-- Never run, as no connection listens.
SELECT NULL::text WHERE false AND :channels::text[] IS NULL;

-- name: unregister
-- Never run, as no connection listens.
SELECT NULL::text WHERE false AND :channels::text[] IS NULL;

-- name: notification_usage
-- There is no queue of notifications.
SELECT 0;

-- name: listening
-- Never run, as no connection listens.
SELECT NULL::text WHERE false;

-- name: notify_always
-- Never run, as no connection listens.
SELECT NULL::text WHERE false;

-- name: session_settings
-- Set nothing.
SELECT NULL::text WHERE false AND :names::text[] IS NULL AND :values::text[] IS NULL AND :mild::bool[] IS NULL;

-- name: notify_waiters
-- Never run, as no connection listens.
SELECT NULL::text WHERE false;
