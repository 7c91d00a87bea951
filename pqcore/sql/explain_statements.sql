-- Statements that find out why a job does not run, and need no fragments. pqcore.sql.explain_statements composes the
-- others.

-- name: explain_lock
-- This statement only reads. Return the session whose open transaction has locked or changed a row: pg_locks shows the
-- transaction id that the row has as xmax. The lock of a prepared transaction belongs to no session.
SELECT held.pid, pg_backend_pid() = held.pid, extract(epoch FROM clock_timestamp() - activity.xact_start)::float8,
  activity.application_name
FROM pg_locks AS held LEFT JOIN pg_stat_activity AS activity ON activity.pid = held.pid
WHERE held.locktype = 'transactionid' AND held.granted AND held.mode = 'ExclusiveLock'
  AND held.transactionid = :xmax::text::xid
LIMIT 1;

-- name: explain_key_locks
-- This statement only reads. Return the session whose open transaction has admitted a job under a key. It has changed
-- the newest version of the key's row, or inserts the row under the advisory lock of `create_keys`.
SELECT wanted.key, held.pid, held.pid = pg_backend_pid(),
  extract(epoch FROM clock_timestamp() - activity.xact_start)::float8, activity.application_name
FROM unnest(:keys::text[]) AS wanted (key)
LEFT JOIN LATERAL (
  SELECT xmax FROM {keys} WHERE q_name = :q_name::text AND key = wanted.key ORDER BY version DESC LIMIT 1
) AS newest ON true
JOIN pg_locks AS held ON held.granted AND (
  (held.locktype = 'transactionid' AND held.mode = 'ExclusiveLock' AND held.transactionid = newest.xmax)
  OR (held.locktype = 'advisory' AND held.objsubid = 1 AND (held.classid::bigint << 32 | held.objid::bigint)
    = hashtextextended(:table::text || ' ' || :q_name::text || ' ' || wanted.key, 7072))
) LEFT JOIN pg_stat_activity AS activity ON activity.pid = held.pid
ORDER BY wanted.key LIMIT 100;

-- name: explain_pauses
-- This statement only reads. Return the pauses that apply now to any of some names: the queue, a task, or keys.
SELECT name, CASE WHEN until < 'infinity' THEN until AT TIME ZONE 'UTC' END FROM {rules}
WHERE q_name = :q_name::text AND kind = 'pause' AND name = ANY (:names::text[])
  AND coalesce(until > statement_timestamp(), true)
ORDER BY name;

-- name: explain_bucket
-- This statement only reads. Return the tokens that were left of a queue's rate, and the seconds for which they have
-- been refilled since.
SELECT tokens, greatest(extract(epoch FROM clock_timestamp() - refilled_at), 0)::float8 FROM {rates}
WHERE q_name = :q_name::text;

-- name: explain_snapshot
-- This statement only reads. Return the age, in seconds, of the oldest open transaction that keeps VACUUM from removing
-- dead rows.
SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::float8 FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL);
