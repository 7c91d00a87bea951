"""The statements of rules that are composed: those that set jobs of paused tasks aside.

`rule_statements.sql` has those that are run as they are written.
"""

from __future__ import annotations

from pqcore.sql.admin_statements import HEAD
from pqcore.sql.fragments import (
    IS_GATED,
    OF_QUEUE,
    ONE_MORE,
    QUEUE_URGENT,
    READY_NOW,
    READY_ORDER,
    URGENT_ORDER,
)
from pqcore.sql.statement_set import StatementSet, composed, from_file

SET_ASIDE = 5_000
"""Rows at the head of a queue that one statement looks at for jobs of paused tasks."""
UNWRITTEN = 60
"""Seconds for which a job is scheduled whose lane is too long to be written: it is looked at again after that."""


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
    expire_finished = from_file()
    expire_archive = from_file()
    expire_dead = from_file()

    # Jobs of paused tasks. None of these statements waits for a lock of another consumer.

    @composed(rows=False)
    def set_aside_leased(self) -> str:
        """Have leased jobs wait on lanes, and excuse the attempts. The token is checked on the row as it is locked.

        A job without a lane is scheduled for later.
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
        """Have jobs of tasks wait on lanes that are at the head of the queue, and name no keys.

        It looks at the head without locking it, and locks those that fit: consumers skip no other job meanwhile. What
        another session has locked is skipped (SKIP LOCKED), and the rest is checked again on the row as locked.
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
)
UPDATE {{table}} AS job SET parked_on = met.lane, leased_until = 'infinity' FROM met
WHERE job.id = met.id AND job.id = ANY (ARRAY(SELECT id FROM free)) AND job.q_name = :q_name::text"""
