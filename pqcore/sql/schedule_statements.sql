-- Statements of schedules, which programs and operators make at run time.
--
-- A schedule is one row. A session that changes a schedule locks its row, and after that the row of its last tick.
-- Workers lock both rows in the same order, so no deadlock is possible between them.

-- name: remove_schedule
-- Remove a schedule and its tick, and notify workers. The statement waits for a session that changes the schedule
-- concurrently.
-- The tick of a name without a schedule is that of a task that no code declares any more; it is removed, too.
WITH gone AS (
  DELETE FROM {schedules} WHERE q_name = :q_name::text AND name = :name::text RETURNING name
), forgotten AS (
  DELETE FROM {ticks} WHERE q_name = :q_name::text AND name = :name::text AND (SELECT count(*) FROM gone) >= 0
  RETURNING name
)
SELECT name, pg_notify(:control::text, '')::text FROM (
  SELECT name FROM gone UNION SELECT name FROM forgotten
) AS removed;

-- name: pause_schedule
-- Pause a schedule, and notify workers; a paused schedule stays paused since it was first paused. The UPDATE changes
-- the locked row.
WITH kept AS (
  UPDATE {schedules} AS schedule SET paused_at = coalesce(schedule.paused_at, clock.now), updated_at = clock.now
  FROM (SELECT clock_timestamp() AS now) AS clock
  WHERE schedule.q_name = :q_name::text AND schedule.name = :name::text RETURNING schedule.name
)
SELECT name, pg_notify(:control::text, '')::text FROM kept;

-- name: resume_schedule
-- Resume a schedule, and notify workers. Its ticks count from now, so that no tick of the pause is put. The UPDATE
-- checks on the locked row whether the schedule is paused.
WITH kept AS (
  UPDATE {schedules} AS schedule SET paused_at = NULL, updated_at = clock.now
  FROM (SELECT clock_timestamp() AS now) AS clock
  WHERE schedule.q_name = :q_name::text AND schedule.name = :name::text AND schedule.paused_at IS NOT NULL
  RETURNING schedule.q_name, schedule.name, clock.now
), counted AS (
  UPDATE {ticks} AS last SET tick = greatest(last.tick, kept.now) FROM kept
  WHERE last.q_name = kept.q_name AND last.name = kept.name AND last.q_name = :q_name::text
)
SELECT name, pg_notify(:control::text, '')::text FROM {schedules}
WHERE q_name = :q_name::text AND name = :name::text;

-- name: list_schedules
-- This statement only reads. List the schedules of one queue, or of all.
SELECT q_name, name, task, cron, tz, missed, call::text, deadline_in, paused_at AT TIME ZONE 'UTC',
  created_at AT TIME ZONE 'UTC', updated_at AT TIME ZONE 'UTC'
FROM {schedules} WHERE :q_name::text IS NULL OR q_name = :q_name::text ORDER BY q_name, name LIMIT :n::bigint;

-- name: find_schedule
-- This statement only reads. Return the job that a tick of a schedule puts.
SELECT call::text, deadline_in FROM {schedules} WHERE q_name = :q_name::text AND name = :name::text;

-- name: find_timetables
-- This statement only reads. Return the schedules of a queue that are not paused, with their last ticks, for a worker.
SELECT schedule.name, schedule.cron, schedule.tz, schedule.missed, schedule.updated_at AT TIME ZONE 'UTC',
  last.tick AT TIME ZONE 'UTC', last.cron, last.tz, clock_timestamp() AT TIME ZONE 'UTC'
FROM {schedules} AS schedule LEFT JOIN {ticks} AS last ON last.q_name = schedule.q_name AND last.name = schedule.name
WHERE schedule.q_name = :q_name::text AND schedule.paused_at IS NULL;

-- name: find_scheduled_calls
-- This statement only reads. Return the jobs that ticks of schedules put. The statement that puts one checks whether
-- the schedule is still the same.
SELECT name, task, call::text, deadline_in, updated_at AT TIME ZONE 'UTC' FROM {schedules}
WHERE q_name = :q_name::text AND name = ANY (:names::text[]);
