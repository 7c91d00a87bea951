"""The statements that count and find jobs for an overview: dead letters in groups, old rows, jobs of ticks, tasks.

These statements only read, and take no lock. `pqcore.sql.admin_statements` has the other statements of operators.
"""

from __future__ import annotations

from pqcore.sql.fragments import EXPRESSIBLE, IS_DEFERRED, IS_READY, IS_URGENT, OF_QUEUE
from pqcore.sql.statement_set import StatementSet, composed

HEAD = 2_000
"""The number of characters at the beginning of the JSON in which the path of a call's function is searched for."""
SLICE = 10_000
"""The number of rows that one statement looks at if no index leads to the wanted ones."""

# JSON operators are not used, because they fail on a string with \\u0000, which a row may hold.
_TASK = rf"""substring(left(data::text, {HEAD}) FROM '^\s*\{{{{\s*"function"\s*:\s*"([^"\\]*)"\s*[,}}}}]')"""
_TYPE = r"""substring(error::text FROM '^\s*\{{\s*"type"\s*:\s*"([^"\\]*)"')"""
_MESSAGE = r"""substring(error::text FROM '"message"\s*:\s*"((?:[^"\\]|\\.){{0,200}})')"""
_OLD = "statement_timestamp() - :age::float8 * interval '1 second'"


class OverviewStatements(StatementSet):
    """The statements that count and find jobs for an overview."""

    @composed()
    def dead_groups(self) -> str:
        """Count dead letters by task and error, of one queue or of all; the largest groups come first."""
        died = EXPRESSIBLE.format("died_at")
        return f"""
SELECT q_name, task, kind, reason, count(*), min(died), max(died), max(id), max(message) FROM (
  SELECT q_name, {_TASK} AS task, {_TYPE} AS kind, reason, id, {died} AS died, {_MESSAGE} AS message
  FROM {{dead}} WHERE :q_name::text IS NULL OR q_name = :q_name::text
) AS letter GROUP BY q_name, task, kind, reason ORDER BY count(*) DESC, q_name, task, kind, reason LIMIT :n::bigint"""

    @composed()
    def dead_of_group(self) -> str:
        """Return the ids of the dead letters of one task and error, the oldest first."""
        return f"""
SELECT id FROM {{dead}} WHERE {OF_QUEUE} AND reason = :reason::text
  AND coalesce({_TASK}, '') = :task::text AND coalesce({_TYPE}, '') = :kind::text ORDER BY died_at, id"""

    @composed()
    def count_old_dead(self) -> str:
        """Count the dead letters of a queue that a purge would delete."""
        return f"SELECT count(*) FROM {{dead}} WHERE {OF_QUEUE} AND died_at <= {_OLD}"

    @composed()
    def count_old_kept(self) -> str:
        """Count the finished rows that a purge would delete, in a slice of ids like that of `purge_kept`."""
        return f"""
WITH slice AS (
  SELECT id FROM {{table}} WHERE id > :after::bigint ORDER BY id LIMIT {SLICE}
)
SELECT max(id), (
  SELECT count(*) FROM {{table}} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND {OF_QUEUE} AND dequeued_at <= {_OLD}
) FROM slice"""

    @composed()
    def count_old_archived(self) -> str:
        """Count the archived rows that a purge would delete."""
        return f"SELECT count(*) FROM {{archive}} WHERE {OF_QUEUE} AND dequeued_at <= {_OLD}"

    @composed()
    def find_tick_jobs(self) -> str:
        """Find the job of the last tick of each periodic task, among the jobs that were put last.

        The job calls the function with the task's name, was put since the tick, and is due at the tick, or later if the
        job was run before. Jobs of functions with other names are not found, because other tasks may have the same
        tick.
        """
        columns = (
            f"id, q_name, enqueued_at, schedule_at, left(data::text, {HEAD}) AS head, attempts,"
            " coalesce(failures, 0) AS failures"
        )
        last = f"ORDER BY id DESC LIMIT {SLICE}"
        state = (
            "CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NULL AND leased_until >"
            " statement_timestamp() THEN 'leased' ELSE 'waiting' END"
        )
        ended = f"CASE WHEN ended_at IS NOT NULL THEN {EXPRESSIBLE.format('ended_at')} END"
        return f"""
WITH recent AS (
  (SELECT {columns}, {state} AS state, dequeued_at AS ended_at FROM {{table}} {last})
  UNION ALL
  (SELECT {columns}, 'done', dequeued_at FROM {{archive}} {last})
  UNION ALL
  (SELECT {columns}, 'dead', died_at FROM {{dead}} {last})
), found AS (
  SELECT last.q_name, last.name, recent.id, state, failures, ended_at, row_number() OVER (
    PARTITION BY last.q_name, last.name ORDER BY schedule_at = last.tick DESC, enqueued_at, recent.id
  ) AS place
  FROM {{ticks}} AS last JOIN recent ON recent.q_name = last.q_name
  WHERE recent.enqueued_at >= last.tick - interval '5 seconds'
    AND (recent.schedule_at = last.tick OR recent.schedule_at > last.tick AND recent.attempts > 0)
    AND strpos(recent.head, '"' || last.name || '"') > 0
)
SELECT q_name, name, id, state, failures, {ended} FROM found WHERE place = 1"""

    @composed()
    def waiting_tasks(self) -> str:
        """Count the waiting calls of each task, among the first jobs of each class.

        Each part of the UNION reads one class of rows through its index.
        """
        free = "(leased_until IS NULL OR parked_on IS NOT NULL OR leased_until <= statement_timestamp())"
        some = " UNION ALL ".join(
            f"(SELECT q_name, data FROM {{table}} WHERE {kind} LIMIT {SLICE})"
            for kind in (IS_READY, IS_URGENT, f"{IS_DEFERRED} AND {free}")
        )
        return f"""
SELECT q_name, task, count(*) FROM (
  SELECT q_name, {_TASK} AS task FROM ({some}) AS waiting
) AS calls WHERE task IS NOT NULL GROUP BY q_name, task ORDER BY q_name, task"""

    @composed()
    def count_by_task(self) -> str:
        """Count the jobs of a queue by task, among the first jobs of each class and the jobs that were put last.

        Each part of the UNION reads one class of rows through its index, or the rows of a slice of ids.
        """
        held = "leased_until > statement_timestamp() AND parked_on IS NULL"
        classes = (
            (IS_READY, "'waiting'"),
            (IS_URGENT, "'waiting'"),
            (IS_DEFERRED, f"CASE WHEN {held} THEN 'leased' ELSE 'waiting' END"),
        )
        waiting = " UNION ALL ".join(
            f"(SELECT {state} AS state, data, coalesce(failures, 0) > 0 AS failed FROM {{table}}"
            f" WHERE {OF_QUEUE} AND {kind} LIMIT {SLICE})"
            for kind, state in classes
        )
        done = "(SELECT q_name, data, dequeued_at, failures FROM {} ORDER BY id DESC LIMIT {})"
        finished = " UNION ALL ".join(done.format(place, SLICE) for place in ("{table}", "{archive}"))
        counts = ", ".join(
            f"count(*) FILTER (WHERE state = '{state}')" for state in ("waiting", "leased", "done", "dead")
        )
        return f"""
SELECT task, {counts}, count(*) FILTER (WHERE failed AND state IN ('waiting', 'leased')) FROM (
  SELECT {_TASK} AS task, state, failed FROM (
    {waiting}
    UNION ALL
    SELECT 'done', data, coalesce(failures, 0) > 0 FROM ({finished}) AS lately
    WHERE {OF_QUEUE} AND dequeued_at > statement_timestamp() - interval '1 hour'
    UNION ALL
    (SELECT 'dead', data, true FROM {{dead}} WHERE {OF_QUEUE} LIMIT {SLICE})
  ) AS job
) AS calls WHERE task IS NOT NULL GROUP BY task ORDER BY count(*) DESC, task LIMIT :n::bigint"""

    @composed()
    def list_batches(self) -> str:
        """List the batches of a queue whose jobs have not all ended, or one such batch. Ended batches have no row."""
        opened = f"CASE WHEN created_at IS NOT NULL THEN {EXPRESSIBLE.format('created_at')} END"
        return f"""
SELECT id, q_name, total, pending, failed, {opened}, callback::text FROM {{batches}}
WHERE (:q_name::text IS NULL OR q_name = :q_name::text) AND (:id::bigint IS NULL OR id = :id::bigint) AND pending > 0
ORDER BY id DESC LIMIT :n::bigint"""

    @composed()
    def paused_queues(self) -> str:
        """List the queues that are paused as a whole."""
        return (
            "SELECT q_name FROM {rules} WHERE kind = 'pause' AND name = 'queue'"
            " AND coalesce(until > statement_timestamp(), true) ORDER BY q_name"
        )
