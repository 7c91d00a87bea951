"""Statements of rules, composed of fragments: they set jobs of paused tasks aside, and delete old rows.

`rule_statements.sql` has the statements that need no fragments.
"""

from __future__ import annotations

from pqcore.sql.fragments import (
    IS_GATED,
    OF_QUEUE,
    ONE_MORE,
    QUEUE_URGENT,
    READY_NOW,
    READY_ORDER,
    URGENT_ORDER,
)
from pqcore.sql.overview_statements import HEAD
from pqcore.sql.statement_set import StatementSet, composed, from_file

SET_ASIDE = 5_000
"""The number of rows at the head of a queue that one statement checks for jobs of paused tasks."""
EXPIRED, SLICE = 1_000, 2_000
"""The largest number of rows that one statement deletes if an index leads to the oldest rows (``EXPIRED``), and the
largest number of ids that one statement checks if no index does (``SLICE``)."""
UNWRITTEN = 60
"""Seconds for which a job is scheduled if its lane is too long to be written. After this time, a take looks at the job
again."""
_OLD = "statement_timestamp() - :age::float8 * interval '1 second'"


def _expired(place: str, column: str, which: str, order: str = "") -> str:
    """Return CTEs that delete expired rows; the last CTE, ``gone``, has the ids.

    A row with a kept result stays, and so does a row of an open batch. A locked row is skipped (SKIP LOCKED), because
    another worker deletes it.

    Args:
        place: The placeholder of the table.
        column: The column with the time when a row was finished, or died.
        which: A condition on ``job``.
        order: The order and the limit of the rows.
    """
    return f"""old AS (
  SELECT job.id FROM {{{place}}} AS job
  WHERE {which} AND job.{column} <= {_OLD}
    AND NOT EXISTS (
      SELECT FROM {{results}} AS kept WHERE kept.job_id = job.id AND kept.expires_at > statement_timestamp())
    AND NOT (strpos(coalesce(job.headers::text, ''), '"batch"') > 0 AND EXISTS (
      SELECT FROM {{batches}} AS batch WHERE batch.pending > 0 AND batch.id::text = job.headers ->> 'batch'))
  {order}FOR UPDATE OF job SKIP LOCKED
), gone AS (
  DELETE FROM {{{place}}} WHERE id = ANY (ARRAY(SELECT id FROM old)) AND {OF_QUEUE} RETURNING id
)"""


def _oldest_expired(place: str, column: str) -> str:
    """Return a statement that deletes the oldest expired rows, and returns their number; an index orders the rows."""
    gone = _expired(place, column, f"job.{OF_QUEUE}", f"ORDER BY job.{column} LIMIT {EXPIRED} ")
    return f"WITH {gone}\nSELECT count(*) FROM gone"


class RuleStatements(StatementSet):
    """The statements of rules: limits, rates, weights and pauses."""

    file = "rule_statements.sql"

    set_rule = from_file()
    remove_rule = from_file()
    list_rules = from_file()
    current_rules = from_file()
    key_states = from_file()
    waiting_lanes = from_file()
    set_expiry = from_file()
    list_expiry = from_file()
    count_expired = from_file()

    # Jobs of paused tasks. None of these statements waits for a lock of another consumer.

    @composed(rows=False)
    def set_aside_leased(self) -> str:
        """Park leased jobs on lanes; the attempts do not count. The token is checked on the locked row.

        A job is scheduled for later if its lane is too long to be written.
        """
        return f"""
UPDATE {{table}} AS job SET parked_on = named.lane, excused = {ONE_MORE.format("job.excused")},
  leased_until = CASE WHEN named.lane IS NULL THEN NULL ELSE 'infinity'::timestamptz END,
  schedule_at = CASE WHEN named.lane IS NULL THEN clock.later ELSE job.schedule_at END
FROM json_to_recordset(:jobs::text::json) AS named (id bigint, token int, lane text),
  (SELECT statement_timestamp() + interval '{UNWRITTEN} seconds' AS later) AS clock
WHERE job.id = named.id AND job.attempts = named.token AND job.q_name = :q_name::text
  AND job.leased_until IS NOT NULL AND num_nulls(job.dequeued_at, job.parked_on) = 2"""

    @composed(rows=False)
    def set_aside_due(self) -> str:
        """Park jobs of paused tasks on lanes, if the jobs are at the head of the queue and name no keys.

        The statement reads the head without locking it, and locks only matching jobs, so that consumers skip no other
        job meanwhile. Rows that another session has locked are skipped (SKIP LOCKED). The conditions are checked again
        on each locked row. Each lane is read from one JSON value: with old statistics, the planner would join the
        thousands of rows by a nested loop.
        """
        plain = f"({IS_GATED}) IS NOT TRUE"
        parts = " UNION ALL ".join(
            f"(SELECT id, data FROM {{table}} WHERE {condition} ORDER BY {order} LIMIT {SET_ASIDE})"
            for condition, order in ((QUEUE_URGENT, URGENT_ORDER), (READY_NOW, READY_ORDER))
        )
        return f"""
WITH wanted AS MATERIALIZED (
  SELECT * FROM json_to_recordset(:tasks::text::json) AS wanted (pattern text, lane text)
), met AS MATERIALIZED (
  SELECT head.id, min(wanted.lane) AS lane FROM ({parts}) AS head
  JOIN wanted ON left(head.data::text, {HEAD}) ~ wanted.pattern GROUP BY head.id
), free AS MATERIALIZED (
  SELECT id FROM {{table}} WHERE id = ANY (ARRAY(SELECT id FROM met)) AND {OF_QUEUE}
    AND num_nulls(dequeued_at, leased_until, parked_on) = 3 AND {plain} FOR UPDATE SKIP LOCKED
), lanes AS MATERIALIZED (
  SELECT jsonb_object_agg(id::text, lane) AS by_id FROM met
)
UPDATE {{table}} SET parked_on = (SELECT by_id FROM lanes) ->> id::text, leased_until = 'infinity'
WHERE id = ANY (ARRAY(SELECT id FROM free)) AND {OF_QUEUE}"""

    # Deleting expired rows.

    @composed()
    def expire_finished(self) -> str:
        """Delete finished rows in one slice of ids; see `_expired`.

        The statement returns whether the slice has younger rows.
        """
        in_slice = "id = ANY (ARRAY(SELECT id FROM slice))"
        return f"""
WITH slice AS (
  SELECT id FROM {{table}} WHERE id > :after::bigint ORDER BY id LIMIT {SLICE}
), {_expired("table", "dequeued_at", f"job.{in_slice} AND job.{OF_QUEUE}")}
SELECT max(id), (SELECT count(*) FROM gone), EXISTS (
  SELECT FROM {{table}} WHERE {in_slice} AND {OF_QUEUE} AND dequeued_at > {_OLD})
FROM slice"""

    @composed()
    def expire_archive(self) -> str:
        """Delete archived rows, the oldest first; see `_expired`."""
        return _oldest_expired("archive", "dequeued_at")

    @composed()
    def expire_dead(self) -> str:
        """Delete dead letters, the oldest first; see `_expired`."""
        return _oldest_expired("dead", "died_at")
