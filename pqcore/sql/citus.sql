-- Statements that Citus runs in place of those with the same names.

-- name: claim_key
-- Claim a key for a time; return no row if another job holds it. A key whose time is over is deleted first. If two
-- sessions claim it concurrently, ON CONFLICT makes one wait for the other, and then find the key held.
WITH gone AS (
  DELETE FROM {dedup} WHERE q_name = :q_name::text AND dedup_key = :dedup_key::text AND until <= statement_timestamp()
  RETURNING job_id
)
INSERT INTO {dedup} AS held (q_name, dedup_key, job_id, until)
SELECT :q_name::text, :dedup_key::text, 0, clock_timestamp() + :period::float8 * interval '1 second'
FROM (SELECT count(*) FROM gone) AS done
ON CONFLICT (q_name, dedup_key) DO NOTHING RETURNING job_id;

-- name: claim_keys
-- Claim keys for a time; return the keys that no other job holds. See claim_key.
WITH gone AS (
  DELETE FROM {dedup} WHERE q_name = :q_name::text AND until <= statement_timestamp() AND dedup_key = ANY (ARRAY(
    SELECT item.dedup_key FROM json_to_recordset(:items::text::json) AS item (dedup_key text)))
  RETURNING job_id
)
INSERT INTO {dedup} AS held (q_name, dedup_key, job_id, until)
SELECT :q_name::text, item.dedup_key, 0, clock_timestamp() + item.period * interval '1 second'
FROM json_to_recordset(:items::text::json) AS item (dedup_key text, period float8),
  (SELECT count(*) FROM gone) AS done ORDER BY item.dedup_key
ON CONFLICT (q_name, dedup_key) DO NOTHING RETURNING dedup_key;

-- name: sweep_results
-- Delete results whose time is over, on all nodes.
DELETE FROM {results} WHERE expires_at <= statement_timestamp();

-- name: explain_lock
-- Find nothing. The rows are on other nodes, and this node does not show their locks.
SELECT NULL::int, false, NULL::float8, NULL::text WHERE false AND :xmax::text IS NULL;

-- name: explain_key_locks
-- Find nothing; see explain_lock.
SELECT NULL::text, NULL::int, false, NULL::float8, NULL::text WHERE false AND :keys::text[] IS NULL;

-- name: stats_all
-- Count the jobs of each queue by state. This statement only reads. All jobs on lanes count as parked until they are
-- leased, because Citus does not plan a look at limits over all nodes.
SELECT q_name, count(*) FILTER (WHERE due), count(*) FILTER (WHERE NOT due AND NOT held AND NOT on_lane),
  count(*) FILTER (WHERE held),
  (extract(epoch FROM statement_timestamp()) - extract(epoch FROM min(due_at) FILTER (WHERE due)))::float8,
  count(*) FILTER (WHERE on_lane), count(*) FILTER (WHERE due_at = 'infinity' AND NOT on_lane AND NOT held)
FROM (
  SELECT q_name, coalesce(schedule_at, enqueued_at) AS due_at,
    coalesce(coalesce(leased_until, schedule_at) = 'infinity' AND parked_on IS NOT NULL, false) AS on_lane,
    coalesce(leased_until > statement_timestamp() AND leased_until < 'infinity', false) AS held,
    coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND coalesce(leased_until <= statement_timestamp(), true) AS due
  FROM {table} WHERE dequeued_at IS NULL
) AS job GROUP BY q_name ORDER BY q_name;
