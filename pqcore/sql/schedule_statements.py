"""Statements of schedules, composed of fragments; `schedule_statements.sql` has the statements without fragments."""

from __future__ import annotations

from pqcore.sql.statement_set import StatementSet, composed, from_file
from pqcore.sql.tick_fragments import COUNT_AGAIN, UNCHANGED, put_of_tick


class ScheduleStatements(StatementSet):
    """The statements of schedules: for programs that make and change schedules, and for workers that put the jobs."""

    file = "schedule_statements.sql"

    @composed()
    def set_schedule(self) -> str:
        """Make or replace a schedule, and notify workers.

        The ticks of a new schedule, or of a new expression, count from now. If two sessions set the same schedule, the
        second waits for the end of the first one's transaction (ON CONFLICT). If there is a tick of this name, but
        no schedule, the name belongs to a periodic task in code: then the statement sets nothing, and returns no row.
        """
        mine = "q_name = :q_name::text AND name = :name::text"
        return f"""
WITH kept AS (
  INSERT INTO {{schedules}} (q_name, name, task, cron, tz, missed, call, deadline_in, created_at, updated_at)
  SELECT :q_name::text, :name::text, :task::text, :cron::text, :tz::text, :missed::text, :call::text::json,
    :deadline_in::float8, clock.now, clock.now
  FROM (SELECT clock_timestamp() AS now) AS clock
  WHERE NOT EXISTS (SELECT FROM {{ticks}} WHERE {mine}) OR EXISTS (SELECT FROM {{schedules}} WHERE {mine})
  ON CONFLICT (q_name, name) DO UPDATE SET task = excluded.task, cron = excluded.cron, tz = excluded.tz,
    missed = excluded.missed, call = excluded.call, deadline_in = excluded.deadline_in,
    updated_at = excluded.updated_at
  RETURNING q_name, name, cron, tz, paused_at, created_at, updated_at
), counted AS (
  INSERT INTO {{ticks}} AS last (q_name, name, tick, cron, tz) SELECT q_name, name, updated_at, cron, tz FROM kept
  {COUNT_AGAIN}
)
SELECT paused_at AT TIME ZONE 'UTC', created_at AT TIME ZONE 'UTC',
  updated_at AT TIME ZONE 'UTC', pg_notify(:control::text, '')::text FROM kept"""

    remove_schedule = from_file()
    pause_schedule = from_file()
    resume_schedule = from_file()
    list_schedules = from_file()
    find_schedule = from_file()

    # Ticks.

    find_timetables = from_file()
    find_scheduled_calls = from_file()

    @composed()
    def tick_schedule(self) -> str:
        """Put the job of a schedule's tick, unless the schedule changed after the worker read it (`put_of_tick`)."""
        return put_of_tick(UNCHANGED)

    @composed()
    def register_schedule(self) -> str:
        """Store the expression of a schedule whose tick is missing or has another expression; see `COUNT_AGAIN`."""
        return f"""
INSERT INTO {{ticks}} AS last (q_name, name, tick, cron, tz)
SELECT free.q_name, free.name, :tick::timestamptz, free.cron, free.tz FROM (
  {UNCHANGED}
) AS free
{COUNT_AGAIN} RETURNING name"""
