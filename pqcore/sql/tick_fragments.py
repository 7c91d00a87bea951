"""The fragments for ticks, which declared periodic tasks and schedules share, so that the same rules apply to both."""

from __future__ import annotations

from pqcore.sql.put_statements import CONFLICT, PUT_COLUMNS

_IN = "statement_timestamp() + :{}::float8 * interval '1 second'"

COUNT_AGAIN = """ON CONFLICT (q_name, name) DO UPDATE SET cron = excluded.cron, tz = excluded.tz,
  tick = CASE WHEN last.cron IS NULL THEN last.tick ELSE greatest(last.tick, excluded.tick) END
  WHERE last.cron IS DISTINCT FROM excluded.cron OR last.tz IS DISTINCT FROM excluded.tz"""
"""The end of an INSERT of a tick with its expression: the ticks of a changed expression count from now.

The first session locks the row, so a second session finds the new expression, and changes nothing.
"""

UNCHANGED = """SELECT q_name, name, cron, tz FROM {schedules}
  WHERE q_name = :q_name::text AND name = :name::text AND updated_at = :version::timestamptz AND paused_at IS NULL
  FOR SHARE SKIP LOCKED"""
"""The end of a query that finds a schedule only if it is as the worker read it, and is not paused.

FOR SHARE keeps the schedule from being changed or removed before the statement ends, so that a removed schedule leaves
no tick. A schedule that an open transaction has changed is skipped (SKIP LOCKED): the worker looks again later, and
waits for no transaction of a program. This lock comes before the lock of the tick's row, in the same order as in
statements that change a schedule.
"""


def put_of_tick(free: str | None = None) -> str:
    """Return a statement that puts the job of a tick, and returns its id.

    One worker moves the tick's row forward; other workers find the row moved, and put nothing. The statement puts
    no job of a tick that is ahead of the server's clock: the clock was set back after the worker read the time. In that
    case, workers also set the tick's row back, so without this rule two workers could put the job of the same tick.

    Args:
        free: A SELECT that returns a row if the job may be put; None if it always may.
    """
    begin, source = ("", "") if free is None else (f"free AS (\n  {free}\n), ", " FROM free")
    return f"""
WITH {begin}won AS (
  INSERT INTO {{ticks}} AS last (q_name, name, tick)
  SELECT :q_name::text, :name::text, :tick::timestamptz{source}
  WHERE :tick::timestamptz <= {_IN.format("ahead")}
  ON CONFLICT (q_name, name) DO UPDATE SET tick = excluded.tick WHERE last.tick < excluded.tick
  RETURNING tick
)
INSERT INTO {{table}} ({PUT_COLUMNS})
SELECT :q_name::text, :data::text::json, :payload::bytea, :serializer::text, statement_timestamp(), tick,
  coalesce(:expected_at::timestamptz, {_IN.format("expected_in")}), :headers::text::json, :group_key::text,
  :dedup_key::text, :lane::text, CASE WHEN :lane::text IS NOT NULL THEN 'infinity'::timestamptz END, :priority::int
FROM won {CONFLICT} DO NOTHING RETURNING id"""
