"""The statements of jobs that wait for other jobs: finding parents, putting waiting jobs, and releasing them.

The row of a job that waits has the ``schedule_at`` ``infinity``. The trigger of schema version 15 marks how an awaited
job ended. So the statement that ends a parent changes no waiting job. Later,
`pqcore.operations.dependencies` decides with these statements which jobs no longer wait. The operation locks the row of
a waiting job before it changes other rows of the job.
"""

from __future__ import annotations

from pqcore.rows import JOB
from pqcore.sql.fragments import (
    ENDED_PARENT,
    EXPECTED,
    IDENTITY,
    LANE,
    OF_QUEUE,
    PUT_AT,
    SCHEDULE,
    TIMES,
)
from pqcore.sql.put_statements import CONFLICT, PUT_COLUMNS, PUT_VALUES, of_items
from pqcore.sql.statement_set import StatementSet, composed
from pqcore.sql.task_statements import buried

SLICE = 500
"""The largest number of jobs that one transaction releases."""
_NOW = "statement_timestamp()"
_VALUES = PUT_VALUES.replace(TIMES, f"'infinity'::timestamptz, {EXPECTED}").replace(LANE, "NULL, NULL, :priority::int")
_WAITS = "num_nulls(dequeued_at, leased_until) = 2 AND schedule_at = 'infinity'"
# The results of parents. A parent was put before the job, so a later result with the same id belongs to another job.
_DONE = (
    "job_id = ANY (:ids::bigint[]) AND state = 'done' AND error IS NULL"
    " AND (put_at IS NULL OR put_at <= :put_at::timestamptz)"
)
# These CTEs store the parents of the jobs in ``given``.
_BLOCKED = """waits AS (
  INSERT INTO {blocked} (job_id, q_name, put_at, schedule_at) SELECT id, :q_name::text, put_at, schedule_at FROM given
), needs AS (
  INSERT INTO {dependencies} (job_id, parent_id, q_name, parent_put_at, on_failure, polled, gone, outcome)
  SELECT given.id, item.id, :q_name::text, (SELECT max(enqueued_at) FROM {table} WHERE id = item.id),
    item.on_failure, item.polled, given.gone, item.outcome
  FROM given CROSS JOIN LATERAL json_to_recordset(given.parents::json)
    AS item (id bigint, on_failure text, polled boolean, outcome text)
)"""
# Whether a parent's end lets the job run.
_PASSES = "(outcome = 'done' OR on_failure = 'run')"


def _state_of(row: str, put_at: str = "true") -> str:
    """Return an SQL expression for a job's state: ``open``, or how the job ended; NULL if no table has the job.

    Args:
        row: An SQL expression for the id.
        put_at: A condition on the time of the put, which is in the column ``enqueued_at`` or ``put_at``.
    """
    return f"""coalesce(
    (SELECT max(CASE WHEN num_nulls(dequeued_at) = 0 THEN 'done' ELSE 'open' END) FROM {{table}} AS job
     WHERE job.id = {row} AND {put_at.format("job.enqueued_at")}),
    (SELECT 'dead' FROM {{dead}} AS job WHERE job.id = {row} AND {put_at.format("job.enqueued_at")}),
    (SELECT 'done' FROM {{archive}} AS job WHERE job.id = {row} AND {put_at.format("job.enqueued_at")}),
    (SELECT state FROM {{results}} AS job WHERE job.job_id = {row} AND {put_at.format("job.put_at")}
       AND state <> 'running')
  )"""


class DependencyStatements(StatementSet):
    """The statements of jobs that wait for other jobs."""

    @composed()
    def await_parents(self) -> str:
        """Mark parents as awaited, and lock their rows until the transaction ends.

        Running parents are left out, because the lock would keep their workers from ending them. Locked rows are
        skipped (SKIP LOCKED), so a put waits for no other session. A parent that is locked here cannot end before the
        transaction of the put ends. When the parent ends later, the trigger sees the mark.
        """
        return f"""
WITH free AS (
  SELECT job.id FROM unnest(:ids::bigint[]) AS wanted (id) CROSS JOIN LATERAL (
    SELECT id FROM {{table}} WHERE id = wanted.id AND num_nulls(dequeued_at) = 1
      AND (leased_until IS NULL OR parked_on IS NOT NULL)
    FOR NO KEY UPDATE SKIP LOCKED
  ) AS job
)
UPDATE {{table}} SET awaited = true WHERE id = ANY (ARRAY(SELECT id FROM free)) RETURNING {IDENTITY}"""

    @composed()
    def find_parents(self) -> str:
        """Return the state of each parent that could not be marked as awaited. This statement only reads."""
        return f"""
SELECT wanted.id, {_state_of("wanted.id")}, coalesce(
    (SELECT max({PUT_AT}) FROM {{table}} WHERE id = wanted.id),
    (SELECT {PUT_AT} FROM {{dead}} WHERE id = wanted.id),
    (SELECT {PUT_AT} FROM {{archive}} WHERE id = wanted.id),
    (SELECT {PUT_AT.replace("enqueued_at", "put_at")} FROM {{results}} WHERE job_id = wanted.id))
FROM unnest(:ids::bigint[]) AS wanted (id)"""

    @composed()
    def put_blocked(self) -> str:
        """Insert a job, and the list of the jobs that it waits for; insert nothing if its dedup key is taken.

        See `PutStatements.put`. The rows of parents were locked or read before, in the same transaction.
        """
        return f"""
WITH put AS (
  INSERT INTO {{table}} ({PUT_COLUMNS}) VALUES ({_VALUES}) {CONFLICT} DO NOTHING RETURNING id, enqueued_at
), given AS (
  SELECT id, enqueued_at AS put_at, {SCHEDULE} AS schedule_at, :gone::text AS gone, :parents::text AS parents FROM put
), {_BLOCKED}
SELECT {IDENTITY} FROM put"""

    @composed()
    def block(self) -> str:
        """Store the parents of jobs that the same transaction has put; these jobs are scheduled for infinity.

        See `put_blocked`. Only this transaction sees these jobs, so no other session releases or ends them meanwhile.
        """
        return f"""
WITH given AS (
  SELECT item.id, job.enqueued_at AS put_at, {of_items(SCHEDULE)} AS schedule_at, item.gone, item.parents
  FROM json_to_recordset(:items::text::json)
    AS item (id bigint, schedule_at timestamptz, schedule_in float8, gone text, parents text)
  CROSS JOIN LATERAL (SELECT enqueued_at FROM {{table}} WHERE id = item.id AND {OF_QUEUE} LIMIT 1) AS job
), {_BLOCKED}
SELECT id FROM given"""

    # Releasing jobs.

    @composed()
    def mark_polled(self) -> str:
        """Record the outcomes of parents that could not be marked as awaited.

        Rows that another session has locked are skipped. The row of an ended parent stays in its table, so its outcome
        can be read later. If the parent runs again later, the recorded outcome is still that of its earlier run.
        """
        same = "(edge.parent_put_at IS NULL OR {} = edge.parent_put_at)"
        return f"""
WITH looked AS (
  SELECT job_id, parent_id FROM {{dependencies}} WHERE {OF_QUEUE} AND polled AND outcome IS NULL
  LIMIT 10000 FOR UPDATE SKIP LOCKED
), found AS (
  SELECT edge.job_id, edge.parent_id, coalesce({_state_of("edge.parent_id", same)}, edge.gone) AS outcome
  FROM looked JOIN {{dependencies}} AS edge USING (job_id, parent_id)
)
UPDATE {{dependencies}} AS edge SET outcome = found.outcome FROM found
WHERE edge.job_id = found.job_id AND edge.parent_id = found.parent_id AND edge.q_name = :q_name::text
  AND found.outcome <> 'open'
RETURNING edge.job_id"""

    @composed()
    def find_candidates(self) -> str:
        """Return waiting jobs with a parent that has ended. This statement only reads: see `lock_blocked`."""
        return f"""
SELECT DISTINCT job_id FROM (
  SELECT job_id FROM {{dependencies}} WHERE {OF_QUEUE} AND outcome IS NOT NULL ORDER BY q_name, job_id LIMIT 10000
) AS ended ORDER BY job_id LIMIT {SLICE}"""

    @composed()
    def lock_blocked(self) -> str:
        """Lock jobs that wait; a job that another session has locked is skipped.

        The session that has locked a job releases or deletes it; otherwise, a later look finds the job again.
        """
        return f"""
SELECT id FROM {{table}} WHERE id = ANY (:ids::bigint[]) AND {OF_QUEUE} AND {_WAITS}
ORDER BY id FOR UPDATE SKIP LOCKED"""

    @composed()
    def find_failed_parents(self) -> str:
        """Return, for each of the locked jobs, a parent whose failure ends the job. This statement only reads."""
        return f"""
SELECT DISTINCT ON (job_id) job_id, parent_id, outcome, on_failure FROM {{dependencies}}
WHERE {OF_QUEUE} AND job_id = ANY (:ids::bigint[]) AND outcome IS NOT NULL AND NOT {_PASSES}
ORDER BY job_id, on_failure DESC, parent_id"""

    @composed()
    def release_blocked(self) -> str:
        """Delete the records of ended parents of the locked jobs; jobs that then wait for no parent may run.

        Only a session that has locked the row of a job deletes the records of the job's parents. So the statement that
        deletes the last record also releases the job. The statement takes its snapshot after the lock, and therefore
        sees all earlier deletions. The job is due from now on, so it comes behind the jobs that are due already, as if
        it were put now.
        """
        return f"""
WITH passed AS (
  DELETE FROM {{dependencies}} WHERE {OF_QUEUE} AND job_id = ANY (:ids::bigint[]) AND outcome IS NOT NULL AND {_PASSES}
), free AS (
  DELETE FROM {{blocked}} AS waits WHERE {OF_QUEUE} AND job_id = ANY (:ids::bigint[]) AND NOT EXISTS (
    SELECT FROM {{dependencies}} AS left_over WHERE left_over.job_id = waits.job_id
      AND (left_over.outcome IS NULL OR NOT {_PASSES}))
  RETURNING job_id, schedule_at
), released AS (
  UPDATE {{table}} AS job SET schedule_at = greatest(free.schedule_at, {_NOW}) FROM free
  WHERE job.id = ANY (ARRAY(SELECT job_id FROM free)) AND job.id = free.job_id AND job.q_name = :q_name::text
    AND num_nulls(job.dequeued_at, job.leased_until) = 2 AND job.schedule_at = 'infinity'
  RETURNING job.id
)
SELECT id, pg_notify(:channel::text, '')::text FROM released"""

    @composed()
    def forget_orphans(self) -> str:
        """Delete the records of parents of jobs that no longer wait, because the jobs were deleted or changed.

        Rows that another session has locked are skipped.
        """
        waiting = (
            "EXISTS (SELECT FROM {table} AS job WHERE job.id = {row}.job_id AND job.q_name = :q_name::text"
            f" AND {_WAITS})"
        )
        return f"""
WITH gone AS (
  DELETE FROM {{dependencies}} WHERE {OF_QUEUE} AND job_id = ANY (:ids::bigint[]) AND (job_id, parent_id) IN (
    SELECT job_id, parent_id FROM {{dependencies}} AS edge WHERE {OF_QUEUE} AND job_id = ANY (:ids::bigint[])
      AND NOT {waiting.replace("{row}", "edge")} FOR UPDATE SKIP LOCKED)
  RETURNING job_id
), freed AS (
  DELETE FROM {{blocked}} WHERE {OF_QUEUE} AND job_id = ANY (:ids::bigint[]) AND job_id IN (
    SELECT job_id FROM {{blocked}} AS waits WHERE {OF_QUEUE} AND job_id = ANY (:ids::bigint[])
      AND NOT {waiting.replace("{row}", "waits")} FOR UPDATE SKIP LOCKED)
  RETURNING job_id
)
SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM freed)"""

    @composed()
    def find_blocked(self) -> str:
        """Return a locked job that waits."""
        return f"SELECT {JOB} FROM {{table}} WHERE id = :id::bigint AND {OF_QUEUE} AND {_WAITS}"

    @composed()
    def bury_blocked(self) -> str:
        """Make a dead letter of a locked job that waits."""
        return buried(f"DELETE FROM {{table}} WHERE id = :id::bigint AND {OF_QUEUE} AND {_WAITS} RETURNING *")

    @composed()
    def mark_deleted(self) -> str:
        """Record the outcome of an awaited job that this transaction has deleted; the trigger has recorded ``done``."""
        return (
            "UPDATE {dependencies} SET outcome = :outcome::text WHERE parent_id = :id::bigint AND outcome = 'done'"
            " RETURNING job_id"
        )

    @composed()
    def queues_with_ended_parents(self) -> str:
        """Return those given queues in which a parent of a waiting job may have ended. This statement only reads."""
        probe = ENDED_PARENT.replace(OF_QUEUE, "q_name = listed.name")
        return f"SELECT name FROM unnest(:names::text[]) AS listed (name) WHERE {probe}"

    # Results of parents.

    @composed()
    def size_of_results(self) -> str:
        """Return the size of the results of all given jobs together, in bytes. This statement only reads."""
        size = "coalesce(octet_length(data::text), 0) + coalesce(octet_length(payload), 0)"
        return f"SELECT coalesce(sum({size}), 0)::bigint FROM {{results}} WHERE {_DONE}"

    @composed()
    def find_results(self) -> str:
        """Return the results of the given jobs. This statement only reads."""
        return f"SELECT job_id, data::text, payload, serializer FROM {{results}} WHERE {_DONE} ORDER BY job_id"

    # Statements for the command line and the web page.

    @composed()
    def open_parents(self) -> str:
        """Return some of the parents that a job waits for, and how many there are. This statement only reads."""
        return """
SELECT parent_id, count(*) OVER () FROM {dependencies} WHERE job_id = :id::bigint AND outcome IS NULL
ORDER BY parent_id LIMIT :n::bigint"""

    @composed()
    def count_blocked(self) -> str:
        """Count the jobs that wait for other jobs, by queue. This statement only reads."""
        return (
            "SELECT q_name, count(*) FROM {blocked} WHERE :q_name::text IS NULL OR q_name = :q_name::text"
            " GROUP BY q_name ORDER BY q_name"
        )

    @composed()
    def lost_parents(self) -> str:
        """Return waiting jobs whose parent is gone, or has ended without a record. This statement only reads."""
        state = _state_of("edge.parent_id", "(edge.parent_put_at IS NULL OR {} = edge.parent_put_at)")
        return f"""
SELECT job_id, parent_id FROM (
  SELECT job_id, parent_id, parent_put_at FROM {{dependencies}} WHERE outcome IS NULL AND NOT polled LIMIT 10000
) AS edge WHERE {state} IS DISTINCT FROM 'open' LIMIT :n::bigint"""
