-- Statements that say why a job does not run, as they are run. pqcore.sql.explain_statements has those that are composed.

-- name: explain_lock
-- Reads only. Give the session whose open transaction has locked or changed a row: pg_locks shows its transaction id,
-- which the row has as xmax. No session has the lock of a prepared transaction.
SELECT held.pid, pg_backend_pid() = held.pid, extract(epoch FROM clock_timestamp() - activity.xact_start)::float8,
  activity.application_name
FROM pg_locks AS held LEFT JOIN pg_stat_activity AS activity ON activity.pid = held.pid
WHERE held.locktype = 'transactionid' AND held.granted AND held.mode = 'ExclusiveLock'
  AND held.transactionid = :xmax::text::xid
LIMIT 1;

-- name: explain_key_locks
-- Reads only. Give the session whose open transaction has admitted a job under a key: it has changed the newest version
-- of the key's row, or makes the row, under the advisory lock of `create_keys`.
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
-- Reads only. Give the pauses that apply now to any of some names: the queue, a task, or keys.
SELECT name, CASE WHEN until < 'infinity' THEN until AT TIME ZONE 'UTC' END FROM {rules}
WHERE q_name = :q_name::text AND kind = 'pause' AND name = ANY (:names::text[])
  AND coalesce(until > statement_timestamp(), true)
ORDER BY name;

-- name: explain_bucket
-- Reads only. Give the tokens that were left of a queue's rate, and for how many seconds they have been refilled since.
SELECT tokens, greatest(extract(epoch FROM clock_timestamp() - refilled_at), 0)::float8 FROM {rates}
WHERE q_name = :q_name::text;

-- name: explain_snapshot
-- Reads only. Give for how many seconds the oldest transaction has been open that keeps dead rows from being removed.
SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::float8 FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL);
