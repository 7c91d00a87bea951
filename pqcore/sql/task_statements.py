"""Statements of tasks and workers, composed of fragments: retries, dead letters, results, batches, ticks.

`task_statements.sql` has the statements without fragments. `pqcore.sql.dialect` explains why statements are
safe under concurrency.
"""

from __future__ import annotations

from pqcore.rows import DEAD_LETTER
from pqcore.sql.admission_statements import AdmissionStatements
from pqcore.sql.attempt_statements import LATER, give_up, keep_attempt
from pqcore.sql.fragments import (
    AFTER_WAY,
    ATTEMPTS,
    AWAITED,
    COLUMNS,
    EXPRESSIBLE,
    FREE_ANYWHERE,
    HELD_ANYWHERE,
    HELD_ONE,
    HELD_ONES,
    IS_DEFERRED,
    IS_READY,
    IS_URGENT,
    MADE_WAY,
    OF_PUT,
    OF_QUEUE,
    ONE_MORE,
    come_back,
    job_state,
)
from pqcore.sql.put_statements import PutStatements
from pqcore.sql.statement import RETENTIONS, Retention
from pqcore.sql.statement_set import composed, family, from_file
from pqcore.sql.tick_fragments import COUNT_AGAIN, put_of_tick

_NOW = "statement_timestamp()"
_IN = "{} + :{}::float8 * interval '1 second'"
_DEAD_COLUMNS = COLUMNS.replace("dequeued_at, ", "")
# The row of a job that was deleted when the job was fetched, built from the values that the fetcher has.
_TAKEN = f"""SELECT :id::bigint AS id, :q_name::text AS q_name, :enqueued_at::timestamptz AS enqueued_at,
    :expected_at::timestamptz AS expected_at, :schedule_at::timestamptz AS schedule_at, :data::text::json AS data,
    :token::int AS attempts, :serializer::text AS serializer, :payload::bytea AS payload,
    :stored_headers::text::json AS headers, :failures::int AS failures, :excused::int AS excused
  WHERE NOT EXISTS (SELECT FROM {{table}} WHERE id = :id::bigint AND {OF_QUEUE})
    AND NOT EXISTS (
      SELECT FROM {{dead}} WHERE id = :id::bigint AND {OF_QUEUE} AND enqueued_at = :enqueued_at::timestamptz)"""


# Whether the row of results belongs to another job: ids repeat (see MADE_WAY), so the time of the put distinguishes
# jobs with the same id. Older code leaves that time NULL; then a row that is older than the put belongs to another job.
_OF_ANOTHER = "coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at)"
# A time that is never before the job's put, even if the server's clock was set back.
_WRITTEN = f"greatest({_NOW}, :put_at::timestamptz)"
_TOLD = "RETURNING id, pg_notify(:channel::text, '')::text"


def buried(gone: str) -> str:
    """Return a statement that turns a row into a dead letter. The statement returns the id of the dead letter.

    If the parameter ``failed`` is 0, the job did not run, so its lease does not count as an attempt.

    Args:
        gone: The CTE that removes the row from its table.
    """
    columns = (
        _DEAD_COLUMNS.replace(" headers", " coalesce(:headers::text::json, headers)")
        .replace("failures", "least(coalesce(failures, 0), 2147483646) + :failed::int")
        .replace("excused", "least(coalesce(excused, 0), 2147483646) + 1 - :failed::int")
        .replace("error", ":error::text::json")
    )
    return f"""
WITH gone AS ({gone}){MADE_WAY["dead"]}, buried AS (
  INSERT INTO {{dead}} ({_DEAD_COLUMNS}, reason) SELECT {columns}, :reason::text FROM gone{AFTER_WAY}
), {keep_attempt("gone")}
SELECT id FROM gone"""


class TaskStatements(AdmissionStatements, PutStatements):
    """The statements of tasks and workers, including those of admission, and of puts with options."""

    file = "task_statements.sql"

    # Leases; `LEASE_HELD` explains why each statement is safe.

    @composed()
    def retry(self) -> str:
        """Give up a lease after a failure, and count the failure."""
        return give_up(
            f"failures = {ONE_MORE.format('failures')}, error = :error::text::json, cancelling = NULL, {LATER}"
        )

    @composed()
    def snooze(self) -> str:
        """Give up a lease, and excuse the attempt."""
        return give_up(f"excused = {ONE_MORE.format('excused')}, {LATER}")

    @composed()
    def put_off(self) -> str:
        """Give up a lease as `snooze` does; store in the row why, and since when, the job has been postponed.

        If the job was postponed for the same cause for longer than the given patience, the row is not changed.
        """
        now = "extract(epoch FROM statement_timestamp())"
        known = "CASE WHEN error->>'type' = :error::text::json->>'type' THEN (error->>'since')::float8 END"
        since = f"coalesce({known}, {now})"
        return (
            f"UPDATE {{table}} SET leased_until = NULL, excused = {ONE_MORE.format('excused')},"
            f" schedule_at = {_IN.format(_NOW, 'delay')},"
            f" error = (:error::text::jsonb || jsonb_build_object('since', {since}))::json"
            f" WHERE {HELD_ONE} AND (:patience::float8 IS NULL OR {since} > {now} - :patience::float8) {_TOLD}"
        )

    @composed()
    def release(self) -> str:
        """Give up leases; the attempts do not count."""
        return f"UPDATE {{table}} SET leased_until = NULL, excused = {ONE_MORE.format('excused')}{HELD_ONES} {_TOLD}"

    @composed(hot=True)
    def heartbeat(self) -> str:
        """Extend leases in any queues, skip locked rows, and return which jobs were asked to stop."""
        return (
            f"UPDATE {{table}} SET leased_until = {_IN.format(_NOW, 'lease')}{FREE_ANYWHERE}"
            " RETURNING id, attempts, coalesce(cancelling, false)"
        )

    @composed()
    def find_held_leases(self) -> str:
        """Return which leases are held, including rows that other sessions have locked. This statement only reads."""
        return f"SELECT id, attempts FROM {{table}}{HELD_ANYWHERE}"

    @composed()
    def lock_held(self) -> str:
        """Lock the rows of held leases that no other session has locked."""
        return f"SELECT id, attempts FROM {{table}}{HELD_ONES} FOR UPDATE SKIP LOCKED"

    find_leases = from_file()

    @composed()
    def drop(self) -> str:
        """Delete a leased job."""
        return f"DELETE FROM {{table}} WHERE {HELD_ONE} RETURNING id, {AWAITED}"

    @composed()
    def find_headers(self) -> str:
        """Return the headers of an unfinished job, and whether other jobs wait for it. This statement only reads."""
        return (
            f"SELECT headers::text, {AWAITED} FROM {{table}} WHERE id = :id::bigint AND q_name = :q_name::text"
            f" AND num_nulls(dequeued_at) = 1 AND {OF_PUT}"
        )

    request_stop = from_file()
    find_stop_requests = from_file()

    # Dead letters.

    @composed()
    def bury(self) -> str:
        """Make a dead letter of a leased job: the row moves in one statement, if the lease is held (`LEASE_HELD`)."""
        return buried(f"DELETE FROM {{table}} WHERE {HELD_ONE} RETURNING *")

    @family("bury_taken_{}", RETENTIONS)
    def bury_taken(self, retention: Retention) -> str:
        """Make a dead letter of a job that was taken with `get`.

        A finished row changes only when it is put again or purged. The DELETE locks the row, and checks that the row is
        unchanged since the fetch. If the fetch deleted the row, only the fetcher still has the job. Then the statement
        inserts the job's values, unless one of the tables has a job with this id.
        """
        if retention == "delete":
            return buried(_TAKEN)
        taken = f"id = :id::bigint AND attempts = :token::int AND {OF_QUEUE}"
        if retention == "archive":
            return buried(f"DELETE FROM {{archive}} WHERE {taken} RETURNING *")
        return buried(f"DELETE FROM {{table}} WHERE {taken} AND num_nulls(dequeued_at) = 0 RETURNING *")

    @composed()
    def dead_letters(self) -> str:
        """List dead letters, the latest first. This statement only reads."""
        return (
            f"SELECT {DEAD_LETTER} FROM {{dead}} WHERE q_name = :q_name::text"
            " ORDER BY died_at DESC, id DESC LIMIT :n::bigint"
        )

    @composed()
    def dead_letter(self) -> str:
        """Find a dead letter. This statement only reads."""
        return f"SELECT {DEAD_LETTER} FROM {{dead}} WHERE q_name = :q_name::text AND id = :id::bigint"

    count_dead = from_file()

    @composed()
    def revive(self) -> str:
        """Turn dead letters into due jobs without failures; return the numbers of letters taken and of jobs put.

        Locked rows are skipped (SKIP LOCKED); each row moves from one table to the other in one statement.
        """
        return f"""
WITH picked AS (
  SELECT id FROM {{dead}} WHERE q_name = :q_name::text AND (:ids::bigint[] IS NULL OR id = ANY (:ids::bigint[]))
    AND (:reason::text IS NULL OR reason = :reason::text)
  ORDER BY died_at LIMIT 1000 FOR UPDATE SKIP LOCKED
), risen AS (
  DELETE FROM {{dead}} WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE} RETURNING *
), {come_back("risen")}, forgotten AS (
  DELETE FROM {{results}} WHERE job_id = ANY (ARRAY(SELECT id FROM same)) AND {OF_QUEUE}
)
SELECT (SELECT count(*) FROM risen), (SELECT count(*) FROM same) + (SELECT count(*) FROM renumbered)"""

    purge_dead = from_file()

    # Results and progress: the primary key decides, and the locked row is changed (ON CONFLICT DO UPDATE).

    @composed()
    def keep_result(self) -> str:
        """Store a result, and notify its waiters."""
        return (
            "INSERT INTO {results} AS kept (job_id, q_name, state, data, payload, serializer, error, put_at,"
            " updated_at, expires_at) VALUES (:id::bigint, :q_name::text, :state::text, :data::text::json,"
            " :payload::bytea, :serializer::text, :error::text::json, :put_at::timestamptz,"
            f" {_WRITTEN}, {_IN.format(_NOW, 'keep')})"
            " ON CONFLICT (job_id) DO UPDATE SET q_name = excluded.q_name, state = excluded.state,"
            f" data = excluded.data, progress = CASE WHEN {_OF_ANOTHER} THEN NULL ELSE kept.progress END,"
            " payload = excluded.payload, serializer = excluded.serializer, error = excluded.error,"
            " put_at = excluded.put_at, updated_at = excluded.updated_at, expires_at = excluded.expires_at"
            " RETURNING pg_notify(:channel::text, '')::text"
        )

    @composed()
    def report_progress(self) -> str:
        """Store the progress of a job in the row that may also hold the result of its last run."""
        kept = "".join(
            f" {column} = CASE WHEN {_OF_ANOTHER} THEN NULL ELSE kept.{column} END,"
            for column in ("data", "payload", "serializer", "error")
        )
        return (
            "INSERT INTO {results} AS kept (job_id, q_name, state, progress, put_at, updated_at, expires_at)"
            f" VALUES (:id::bigint, :q_name::text, 'running', :progress::text::json, :put_at::timestamptz, {_WRITTEN},"
            f" {_IN.format(_NOW, 'keep')})"
            " ON CONFLICT (job_id) DO UPDATE SET q_name = excluded.q_name, progress = excluded.progress,"
            f" state = CASE WHEN {_OF_ANOTHER} THEN excluded.state ELSE kept.state END,{kept}"
            " put_at = excluded.put_at, updated_at = excluded.updated_at, expires_at = greatest(CASE WHEN NOT"
            f" {_OF_ANOTHER} THEN kept.expires_at END, excluded.expires_at)"
            " RETURNING pg_notify(:channel::text, '')::text"
        )

    find_result = from_file()
    find_progress = from_file()
    sweep_results = from_file(rows=False)

    @composed()
    def find_job(self) -> str:
        """Return the table and state of a job. This statement only reads; at most one table has the job unfinished."""
        times = ", ".join(
            f"CASE WHEN {column} IS NOT NULL THEN {EXPRESSIBLE.format(column)} END"
            for column in ("enqueued_at", "schedule_at", "expected_at")
        )
        found = f"error::text, {ATTEMPTS}, headers::text, coalesce(failures, 0), {times}"
        wanted = f"WHERE id = :id::bigint AND q_name = :q_name::text AND {OF_PUT}"
        return f"""
SELECT {job_state(":q_name::text")}, {found} FROM {{table}} AS job {wanted}
UNION ALL SELECT 'dead', {found} FROM {{dead}} {wanted}
UNION ALL SELECT 'done', {found} FROM {{archive}} {wanted}
LIMIT 1"""

    # Batches.

    open_batch = from_file()
    batch_progress = from_file()
    hold_batch = from_file(rows=False)
    open_batches = from_file()
    held_batches = from_file()

    @composed()
    def live_batches(self) -> str:
        """Return those of the given batches that have an unfinished job. This statement only reads: see `open_batches`.

        Each term reads one class of waiting rows through its index. Any text that looks like a batch's number counts as
        the number, even in a forged row: such a row can keep a batch open, but cannot end it.
        """
        classes = " UNION ALL ".join(
            f"SELECT headers::text AS headers FROM {{table}} WHERE {kind} AND headers::text LIKE '%\"batch\"%'"
            for kind in (IS_READY, IS_URGENT, IS_DEFERRED)
        )
        return (
            "SELECT DISTINCT found.number FROM (SELECT (regexp_matches(headers, '\"batch\": *([0-9]{{1,18}})', 'g'))[1]"
            f"::bigint AS number FROM ({classes}) AS unfinished) AS found WHERE found.number = ANY (:ids::bigint[])"
        )

    end_lost_batch = from_file()
    close_batch = from_file(rows=False)

    # Periodic tasks.

    @composed()
    def tick(self) -> str:
        """Put the job of a tick; see `put_of_tick`."""
        return put_of_tick()

    @composed()
    def register_periodic(self) -> str:
        """Store a periodic task, or its new expression; its tick is then set to now; see `COUNT_AGAIN`."""
        return (
            "INSERT INTO {ticks} AS last (q_name, name, tick, cron, tz) VALUES (:q_name::text, :name::text,"
            f" :tick::timestamptz, :cron::text, :tz::text) {COUNT_AGAIN} RETURNING name"
        )

    set_tick_back = from_file()
    last_tick = from_file()

    # Rate limits.

    take_tokens = from_file()
    create_bucket = from_file(rows=False)
    return_tokens = from_file(rows=False)
