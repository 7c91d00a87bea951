"""The statements that find out why a job does not run.

Each statement only reads, takes no lock, and looks at a bounded number of rows through an index, however many jobs
there are.
"""

from __future__ import annotations

from pqcore.sql.fragments import (
    ATTEMPTS,
    DUE_AT,
    EXPRESSIBLE,
    HIDDEN_ORDER,
    IS_DEFERRED,
    IS_READY,
    IS_URGENT,
    OF_PUT,
    OF_QUEUE,
    ORDER,
    READY_ORDER,
    STORED_STATE,
    URGENT_ORDER,
    VISIBLE_AT,
)
from pqcore.sql.statement_set import StatementSet, composed, from_file

HEAD = 2_000
"""The number of characters at the beginning of the JSON in which the path of a call's function is searched for."""
MOST_BEFORE = 1_000
"""The largest number of earlier jobs that are counted."""
MOST_LOOKED_AT = 10_000
"""The largest number of index entries that one statement looks at to find the wanted rows."""

_NOW = "statement_timestamp()"
_COMMON = f"""serializer, {ATTEMPTS}, coalesce(failures, 0), error::text, headers::text,
  left(data::text, {HEAD}), {EXPRESSIBLE.format("enqueued_at")}, {EXPRESSIBLE.format(_NOW)}"""
_SCHEDULE = f"CASE WHEN schedule_at IS NOT NULL THEN {EXPRESSIBLE.format('schedule_at')} END"


class ExplainStatements(StatementSet):
    """The statements that find out why a job does not run."""

    file = "explain_statements.sql"

    @composed()
    def explain_job(self) -> str:
        """Return a job's state, and which table has the job: the queue's table, the archive or the dead letters."""
        wanted = f"WHERE id = :id::bigint AND {OF_PUT}"
        elsewhere = "NULL::text, NULL::timestamp, NULL::text, NULL::text, false, NULL::text, 0"
        return f"""
SELECT 'table', q_name, {STORED_STATE}, {_COMMON}, {_SCHEDULE}, parked_on,
  CASE WHEN leased_until < 'infinity' THEN {EXPRESSIBLE.format("leased_until")} END,
  group_key, NULL::text, coalesce(cancelling, false), xmax::text, priority
FROM {{table}} {wanted}
UNION ALL
SELECT 'dead', q_name, 'dead', {_COMMON}, {_SCHEDULE}, NULL::text, NULL::timestamp, NULL::text, reason, false,
  NULL::text, 0
FROM {{dead}} {wanted}
UNION ALL
SELECT 'archive', q_name, 'done', {_COMMON}, {_SCHEDULE}, {elsewhere}
FROM {{archive}} {wanted}
LIMIT 1"""

    explain_lock = from_file()
    explain_key_locks = from_file()
    explain_pauses = from_file()
    explain_bucket = from_file()
    explain_snapshot = from_file()

    @composed()
    def explain_before(self) -> str:
        """Return the jobs that a take finds before the given due job of a queue, in the order in which they are taken.

        Each class of waiting rows is read through its own index, up to the job's position in the order.
        """
        expected = "coalesce(expected_at, 'infinity')"
        columns = f"id, {expected} AS expected, {DUE_AT} AS due"
        # With two bounds, the planner expects fewer rows, and reads them in the order of the index.
        out = f"{VISIBLE_AT} > '-infinity' AND {VISIBLE_AT} <= {_NOW}"
        place = f"({expected}, {DUE_AT}, id) < (SELECT expected, due, id FROM me)"
        return f"""
WITH me AS (
  SELECT {columns} FROM {{table}} WHERE id = :id::bigint AND {OF_QUEUE}
), visible AS (
  SELECT id, expected_at, schedule_at, enqueued_at FROM {{table}} WHERE {OF_QUEUE} AND {IS_DEFERRED}
    AND {out} ORDER BY {HIDDEN_ORDER} LIMIT {MOST_LOOKED_AT}
), before AS (
  (SELECT {columns} FROM {{table}} WHERE {OF_QUEUE} AND {IS_URGENT}
     AND (expected_at, enqueued_at, id) < (SELECT expected, due, id FROM me)
   ORDER BY {URGENT_ORDER} LIMIT {MOST_BEFORE})
  UNION ALL
  (SELECT {columns} FROM {{table}} WHERE {OF_QUEUE} AND {IS_READY} AND {DUE_AT} <= {_NOW}
     AND ({DUE_AT}, id) < (SELECT due, id FROM me) AND (SELECT expected FROM me) = 'infinity'
   ORDER BY {READY_ORDER} LIMIT {MOST_BEFORE})
  UNION ALL
  (SELECT {columns} FROM visible WHERE {DUE_AT} <= {_NOW} AND {place} LIMIT {MOST_BEFORE})
)
SELECT id FROM before ORDER BY expected, due, id LIMIT {MOST_BEFORE}"""

    @composed()
    def explain_before_in_lane(self) -> str:
        """Return the jobs that come before a waiting job on its lane, in order."""
        waiting = f"SELECT id, expected_at, {DUE_AT} AS due FROM {{table}} WHERE {OF_QUEUE} AND parked_on = :lane::text"
        first = f"ORDER BY {ORDER} LIMIT {MOST_BEFORE}"
        return f"""
WITH me AS (
  SELECT id, coalesce(expected_at, 'infinity') AS expected, {DUE_AT} AS due FROM {{table}}
  WHERE id = :id::bigint AND {OF_QUEUE}
)
SELECT id FROM (
  ({waiting} AND (expected_at, {DUE_AT}, id) < (SELECT expected, due, id FROM me) {first})
  UNION ALL
  ({waiting} AND expected_at IS NULL AND ({DUE_AT}, id) < (SELECT due, id FROM me)
     AND (SELECT expected FROM me) = 'infinity' {first})
) AS before ORDER BY expected_at, due, id LIMIT {MOST_BEFORE}"""

    @composed()
    def explain_leased(self) -> str:
        """Return the leased jobs of the given queues, in the order in which their leases end."""
        return f"""
SELECT job.id FROM unnest(:names::text[]) AS place (name)
CROSS JOIN LATERAL (
  SELECT id, leased_until FROM (
    SELECT id, leased_until FROM {{table}} WHERE q_name = place.name AND {IS_DEFERRED}
      AND {VISIBLE_AT} > {_NOW} AND {VISIBLE_AT} < 'infinity' ORDER BY {HIDDEN_ORDER} LIMIT {MOST_LOOKED_AT}
  ) AS hidden WHERE leased_until IS NOT NULL LIMIT :n::bigint
) AS job ORDER BY job.leased_until, job.id LIMIT :n::bigint"""

    @composed()
    def explain_group(self) -> str:
        """Return the unfinished jobs of a group that were put before a job, in order."""
        return (
            f"SELECT id FROM {{table}} WHERE {OF_QUEUE} AND group_key = :group::text AND dequeued_at IS NULL"
            f" AND id < :id::bigint ORDER BY id LIMIT {MOST_BEFORE}"
        )
