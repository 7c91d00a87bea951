-- Statements of rules: limits, rates and weights that operators set, and pauses.
--
-- A rule is one row. No put, take or end of a job locks it: they read it. So only operators that change the same rule
-- wait for each other.

-- name: set_rule
-- Set a rule, and notify those that wait for jobs and those that run them. A second operator that sets the same rule
-- waits for the end of the first one's transaction (ON CONFLICT), and its values stay. Gives no row, and sets nothing,
-- if the time until which it holds has passed by the server's clock.
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
-- Remove a rule, and notify as `set_rule`; gives whether it was in force. A rule that is changed at this moment is
-- removed once it is unlocked.
WITH gone AS (
  DELETE FROM {rules} WHERE q_name = :q_name::text AND kind = :kind::text AND name = :name::text
  RETURNING coalesce(until > statement_timestamp(), true) AS held
)
SELECT held, pg_notify(:channel::text, '')::text, pg_notify(:control::text, '')::text FROM gone;

-- name: list_rules
-- Reads only. Give the rules of a queue that are in force.
SELECT kind, name, number, period,
  CASE WHEN until IS NOT NULL THEN least(until AT TIME ZONE 'UTC', timestamp '9999-12-31 23:59:59.999999') END,
  changed_at AT TIME ZONE 'UTC'
FROM {rules} WHERE q_name = :q_name::text AND kind <> 'expiry' AND coalesce(until > statement_timestamp(), true)
ORDER BY kind, name;

-- name: current_rules
-- Reads only. Give the rules that consumers remember, each with the seconds for which it holds; and, in the first row,
-- for how many seconds this transaction has not seen what others commit. Pauses of keys, which may be many, are not
-- among them: a take reads those of the keys that it meets.
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
-- Reads only. Give the keys under which jobs were admitted: the places by the newest put, and the jobs that still run.
SELECT newest.key, newest.places, (
  SELECT coalesce(json_agg(job.id ORDER BY job.id), '[]')::text FROM {table} AS job
  WHERE job.id = ANY (newest.running) AND job.q_name = :q_name::text
    AND num_nulls(job.dequeued_at, job.parked_on) = 2 AND num_nulls(job.leased_until) = 0
)
FROM (
  SELECT DISTINCT ON (key) key, places, running FROM {keys} WHERE q_name = :q_name::text ORDER BY key, version DESC
) AS newest;

-- name: waiting_lanes
-- Reads only. Count the waiting jobs of each lane; the headers of one of them tell the keys of a lane that is a digest.
SELECT lane.name, lane.number, (
  SELECT headers::text FROM {table} WHERE q_name = :q_name::text AND parked_on = lane.name LIMIT 1
)
FROM (
  SELECT parked_on AS name, count(*) AS number FROM {table}
  WHERE q_name = :q_name::text AND parked_on IS NOT NULL AND dequeued_at IS NULL GROUP BY parked_on
) AS lane;

-- name: set_expiry
-- Set how long a kind of rows is kept. Of two that set it together the second waits for the first (ON CONFLICT).
INSERT INTO {rules} AS rule (q_name, kind, name, period)
VALUES (:q_name::text, 'expiry', :name::text, :period::float8)
ON CONFLICT (q_name, kind, name) DO UPDATE SET changed_at = statement_timestamp(),
  period = CASE WHEN :replaces::boolean THEN excluded.period ELSE rule.period END
RETURNING name;

-- name: list_expiry
-- Reads only. Give how long rows are kept, and how many were deleted for it; that of all queues first.
SELECT q_name, name, period, number FROM {rules} WHERE kind = 'expiry' ORDER BY q_name, name DESC;

-- name: count_expired
-- Count rows that were deleted. Workers that count together wait for each other for the length of this statement.
UPDATE {rules} SET number = coalesce(number, 0) + :number::bigint
WHERE q_name = :q_name::text AND kind = 'expiry' AND name = :name::text RETURNING name;
