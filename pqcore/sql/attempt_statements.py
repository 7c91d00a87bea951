"""The statements of the attempts that are kept, and the fragments of statements that end an attempt and keep it."""

from __future__ import annotations

from pqcore.sql.fragments import HELD_ONE, OF_PUT, OF_QUEUE
from pqcore.sql.statement_set import StatementSet, composed

SLICE = 1_000
"""The number of attempts by which one statement of a sweep advances."""
MOST_ATTEMPTS = 20
"""The largest number of attempts that are kept of a job."""
# The place of an attempt is its token modulo `MOST_ATTEMPTS`. So a row in conflict belongs to an older attempt of the
# job, or to an earlier job with the same id.
NEW_ATTEMPT = """ON CONFLICT (job_id, place) DO UPDATE SET q_name = excluded.q_name, put_at = excluded.put_at,
    token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at,
    worker = excluded.worker, error_type = excluded.error_type, message = excluded.message,
    traceback = excluded.traceback"""
ATTEMPT_COLUMNS = (
    "job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback"
)


def keep_attempt(source: str) -> str:
    """Return the CTE ``noted``, which keeps an attempt in the statement that ends it.

    If the parameter ``outcome`` is NULL, the CTE stores no attempt.

    Only the holder of the lease ends the attempt, so two sessions do not keep attempts of one job concurrently. Even if
    they did, ON CONFLICT DO UPDATE would make the second session wait for the first.

    Args:
        source: The CTE with the row of the job, which is empty if the lease was not held.
    """
    return f"""noted AS (
  INSERT INTO {{attempts}} ({ATTEMPT_COLUMNS})
  SELECT id, mod(:token::int, {MOST_ATTEMPTS}), :q_name::text, enqueued_at, :token::int, :attempt::int,
    :outcome::text, statement_timestamp(), :worker::text, :error_type::text, :message::text, :traceback::text
  FROM {source} WHERE :outcome::text IS NOT NULL
  {NEW_ATTEMPT}
)"""


LATER = "schedule_at = coalesce(statement_timestamp() + :delay::float8 * interval '1 second', schedule_at)"


def give_up(changes: str) -> str:
    """Return a statement that gives up a lease, keeps the attempt, and notifies waiters.

    Args:
        changes: The assignments to columns of the job's row.
    """
    return f"""
WITH ended AS (
  UPDATE {{table}} SET leased_until = NULL, {changes} WHERE {HELD_ONE} RETURNING id, enqueued_at
), {keep_attempt("ended")}
SELECT id, pg_notify(:channel::text, '')::text FROM ended"""


def _job_of(attempt: str) -> str:
    """Return an SQL expression that says whether one of the tables has the job of an attempt.

    The planner turns EXISTS into joins with whole tables; each of these scalar subqueries looks up one id.

    Args:
        attempt: The alias of the table of attempts.
    """
    places = ", ".join(
        f"(SELECT true FROM {{{place}}} AS job WHERE job.id = {attempt}.job_id AND job.q_name = {attempt}.q_name"
        f" AND job.enqueued_at = {attempt}.put_at LIMIT 1)"
        for place in ("table", "dead", "archive")
    )
    return f"coalesce({places}, false)"


class AttemptStatements(StatementSet):
    """The statements of the attempts that are kept."""

    @composed()
    def crash(self) -> str:
        """Give up a lease after a crash that did not end the worker; see `LEASE_HELD`."""
        return give_up(LATER)

    @composed()
    def find_attempts(self) -> str:
        """List the attempts of a job that still exists. This statement only reads."""
        return f"""
SELECT attempt, outcome, ended_at AT TIME ZONE 'UTC', worker, error_type, message, traceback
FROM {{attempts}} AS kept
WHERE job_id = :id::bigint AND {OF_QUEUE} AND {OF_PUT.replace("enqueued_at", "put_at")} AND {_job_of("kept")}
ORDER BY ended_at, token"""

    @composed(rows=False)
    def keep_crash(self) -> str:
        """Record a crash if the lease before this one ended without an outcome, unless the crash is recorded already.

        The caller holds the lease, so no other session keeps attempts of the job; see `keep_attempt`. The worker's name
        comes from the lists of the jobs that workers run.

        After a dead letter is retried, its attempts are numbered from 1 again. So the statement ignores crashes from
        before the retry: crashes with a number above the present number, and crashes that are followed by an attempt
        with the same or a smaller number.
        """
        return f"""
WITH job AS MATERIALIZED (
  SELECT id, q_name, enqueued_at FROM {{table}} WHERE id = :id::bigint AND {OF_QUEUE} AND num_nulls(dequeued_at) = 1
)
INSERT INTO {{attempts}} AS kept ({ATTEMPT_COLUMNS})
SELECT id, mod(:token::int, {MOST_ATTEMPTS}), q_name, enqueued_at, :token::int, :attempt::int, 'crashed',
  statement_timestamp(), (
    SELECT listed.host || ':' || listed.pid::text FROM {{workers}} AS listed
    WHERE listed.q_name = job.q_name
      AND listed.running::text LIKE '%[' || job.id::text || ', ' || :token::int::text || ', %'
    ORDER BY listed.seen_at DESC LIMIT 1
  ), :error_type::text, :message::text, NULL
FROM job
WHERE :crashes::int > (
  SELECT count(*) FROM {{attempts}} AS known
  WHERE known.job_id = job.id AND known.q_name = job.q_name AND known.put_at = job.enqueued_at
    AND known.outcome = 'crashed' AND known.attempt <= :attempt::int
    AND NOT EXISTS (
      SELECT FROM {{attempts}} AS later
      WHERE later.job_id = job.id AND later.q_name = job.q_name AND later.put_at = job.enqueued_at
        AND later.token > known.token AND (later.attempt <= known.attempt OR later.attempt > :attempt::int + 1)))
{NEW_ATTEMPT}
WHERE kept.token <> excluded.token OR kept.put_at <> excluded.put_at"""

    @composed()
    def sweep_attempts(self) -> str:
        """Delete the attempts of jobs that are gone, in a slice of the table.

        Return three values: the last job of the slice (NULL after the end of the table), the number of attempts in the
        slice, and the number of deleted attempts.

        A job moves from table to table in one statement. So in any snapshot, one of the tables has the job, unless the
        job is gone. Rows that another sweep has locked are skipped (SKIP LOCKED), so sweeps do not wait for each other.
        """
        return f"""
WITH slice AS (
  SELECT job_id FROM {{attempts}} WHERE job_id > :after::bigint ORDER BY job_id LIMIT {SLICE}
), gone AS (
  DELETE FROM {{attempts}} WHERE job_id = ANY (ARRAY(SELECT job_id FROM slice)) AND (job_id, place) IN (
    SELECT job_id, place FROM {{attempts}} AS kept
    WHERE job_id = ANY (ARRAY(SELECT job_id FROM slice)) AND NOT {_job_of("kept")}
    FOR UPDATE SKIP LOCKED
  ) RETURNING job_id
)
SELECT max(job_id), count(*), (SELECT count(*) FROM gone) FROM slice"""
