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
-- Claim keys for a time; return those that no other job holds. See claim_key.
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
