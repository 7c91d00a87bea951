-- Statements of rules: limits, rates and weights that operators set, and pauses.
--
-- A rule is one row. Puts, takes and ends of jobs read it, but never lock it. So only operators that change the same
-- rule wait for each other.

-- name: set_rule
-- Set a rule, and notify the waiters for jobs and the workers. A second operator that sets the same rule waits for the
-- end of the first one's transaction (ON CONFLICT); then the second one's values replace the first one's. If the rule's
-- end has already passed by the server's clock, the statement sets nothing and returns no row.
WITH kept AS (
  INSERT INTO {rules} (q_name, kind, name, number, period, until, changed_at)
  SELECT :q_name::text, :kind::text, :name::text, :number::float8, :period::float8, wanted.until, wanted.now
  FROM (
    SELECT statement_timestamp() AS now, coalesce(:until_at::timestamptz,
      statement_timestamp() + :until_in::float8 * interval '1 second') AS until
  ) AS wanted
  WHERE coalesce(wanted.until > wanted.now, true)
  ON CONFLICT (q_name, kind, name) DO UPDATE SET number = excluded.number, period = excluded.period,
    until = excluded.until, changed_at = excluded.changed_at
  RETURNING name
)
SELECT name, pg_notify(:channel::text, '')::text, pg_notify(:control::text, '')::text FROM kept;

-- name: remove_rule
-- Remove a rule, and notify as in `set_rule`; return whether the rule was in force. If another session is changing the
-- rule, this statement waits, and then removes it.
WITH gone AS (
  DELETE FROM {rules} WHERE q_name = :q_name::text AND kind = :kind::text AND name = :name::text
  RETURNING coalesce(until > statement_timestamp(), true) AS held
)
SELECT held, pg_notify(:channel::text, '')::text, pg_notify(:control::text, '')::text FROM gone;

-- name: list_rules
-- This statement only reads. Return the rules of a queue that are in force.
SELECT kind, name, number, period,
  CASE WHEN until IS NOT NULL THEN least(until AT TIME ZONE 'UTC', timestamp '9999-12-31 23:59:59.999999') END,
  changed_at AT TIME ZONE 'UTC'
FROM {rules} WHERE q_name = :q_name::text AND kind <> 'expiry' AND coalesce(until > statement_timestamp(), true)
ORDER BY kind, name;

-- name: current_rules
-- This statement only reads. Return the rules that consumers cache, each with the seconds for which it holds. The first
-- row has the age of this transaction's snapshot, in seconds. Pauses of keys are not included, because there may be
-- many: a take reads only the pauses of the keys that it meets.
SELECT 'age' AS kind, '' AS name, CASE WHEN current_setting('transaction_isolation') = 'read committed' THEN 0
  ELSE extract(epoch FROM statement_timestamp() - transaction_timestamp()) END::float8 AS number,
  NULL::float8 AS remaining
UNION ALL
SELECT kind, name, number, extract(epoch FROM until - statement_timestamp())::float8
FROM {rules} WHERE q_name = :q_name::text AND kind = 'weight'
UNION ALL
SELECT kind, name, number, extract(epoch FROM until - statement_timestamp())::float8
FROM {rules} WHERE q_name = :q_name::text AND kind = 'pause' AND (name = 'queue' OR left(name, 5) = 'task:')
  AND coalesce(until > statement_timestamp(), true);

-- name: key_states
-- This statement only reads. Return the keys under which jobs were admitted: the places by the newest put, and the jobs
-- that still run.
SELECT newest.key, newest.places, (
  SELECT coalesce(json_agg(job.id ORDER BY job.id), '[]')::text FROM {table} AS job
  WHERE job.id = ANY (newest.running) AND job.q_name = :q_name::text
    AND num_nulls(job.dequeued_at, job.parked_on) = 2 AND num_nulls(job.leased_until) = 0
)
FROM (
  SELECT DISTINCT ON (key) key, places, running FROM {keys} WHERE q_name = :q_name::text ORDER BY key, version DESC
) AS newest;

-- name: waiting_lanes
-- This statement only reads. Count the waiting jobs of each lane; for a lane whose text is a digest, the headers of one
-- job show the keys.
SELECT lane.name, lane.number, (
  SELECT headers::text FROM {table} WHERE q_name = :q_name::text AND parked_on = lane.name LIMIT 1
)
FROM (
  SELECT parked_on AS name, count(*) AS number FROM {table}
  WHERE q_name = :q_name::text AND parked_on IS NOT NULL AND dequeued_at IS NULL GROUP BY parked_on
) AS lane;

-- name: set_expiry
-- Set how long rows of one kind are kept. If two sessions set it concurrently, the second waits for the first (ON
-- CONFLICT). The time comes from the row proposed for insertion, because Citus allows no function in the assignment.
INSERT INTO {rules} AS rule (q_name, kind, name, period, changed_at)
VALUES (:q_name::text, 'expiry', :name::text, :period::float8, statement_timestamp())
ON CONFLICT (q_name, kind, name) DO UPDATE SET changed_at = excluded.changed_at,
  period = CASE WHEN :replaces::boolean THEN excluded.period ELSE rule.period END
RETURNING name;

-- name: list_expiry
-- This statement only reads. Return how long rows are kept, and how many expired rows were deleted; the times for all
-- queues come first.
SELECT q_name, name, period, number FROM {rules} WHERE kind = 'expiry' ORDER BY q_name, name DESC;

-- name: count_expired
-- Count deleted rows. Workers that count concurrently wait for each other, for the length of this statement.
UPDATE {rules} SET number = coalesce(number, 0) + :number::bigint
WHERE q_name = :q_name::text AND kind = 'expiry' AND name = :name::text RETURNING name;
