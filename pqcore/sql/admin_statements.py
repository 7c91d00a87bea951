"""Statements of operators, composed of fragments: listing jobs, running them again, moving them.

`admin_statements.sql` has the statements that need no fragments. `pqcore.sql.dialect` explains why statements are safe
under concurrency. A statement that lists jobs takes no lock. Most others skip rows that another session has locked.
"""

from __future__ import annotations

from pqcore.sql.fragments import (
    AFTER_WAY,
    ATTEMPTS,
    COLUMNS,
    COMES_OUT,
    DUE_AT,
    EXPRESSIBLE,
    HIDDEN_ORDER,
    IS_READY,
    IS_URGENT,
    MADE_WAY,
    NO_END,
    OF_PUT,
    OF_QUEUE,
    ORDER,
    READY_ORDER,
    UNFINISHED,
    URGENT_ORDER,
    VISIBLE_AT,
    come_back,
    job_state,
    lane_room,
)
from pqcore.sql.overview_statements import HEAD, SLICE, OverviewStatements
from pqcore.sql.statement_set import composed, family, from_file

_NOW = "statement_timestamp()"
# The stored JSON may contain the wanted text unchanged (``search``), or with escapes (``written``).
_SEARCHED = " OR ".join(
    f"strpos({column}::text, {text}::text) > 0" for column in ("data", "headers") for text in (":search", ":written")
)


def _filters(*keys: str) -> str:
    """Return the conditions for the filters with which a user lists jobs.

    Args:
        *keys: The columns of the table in which a text is searched, in addition to the data and the headers.
    """
    searched = "".join(f" OR strpos({key}, :search::text) > 0" for key in keys)
    return (
        f" AND (:task::text IS NULL OR left(data::text, {HEAD}) ~ :task::text)"
        f" AND (:age::float8 IS NULL OR enqueued_at <= {_NOW} - :age::float8 * interval '1 second')"
        " AND (:failed::int = 0 OR coalesce(failures, 0) > 0)"
        f" AND (:search::text IS NULL OR {_SEARCHED}{searched})"
    )


_FILTERS, _FILTERS_OF_TABLE = _filters(), _filters("dedup_key", "group_key")
# The job is under no lease, or its lease has run out.
_FREE = f"(leased_until IS NULL OR leased_until <= {_NOW})"
_DONE, _DEAD = "'done'", "'dead'"
_PARKED = f"parked_on IS NOT NULL AND {UNFINISHED}"
_PARKED_ORDER = f"parked_on, {ORDER}"
# Each class returns enough jobs for this page and all pages before it; the query then picks the jobs of this page.
_AS_MANY = "(:n::bigint + :skip::bigint)"
_PAGE = "LIMIT :n::bigint OFFSET :skip::bigint"


def _time(column: str) -> str:
    return f"CASE WHEN {column} IS NOT NULL THEN {EXPRESSIBLE.format(column)} END"


def _columns(
    state: str, *, finished: str = "dequeued_at", reason: str = "NULL::text", table: bool = True, whole: bool = False
) -> str:
    """Return the columns of `pqcore.rows.StoredJobRow`, in the order of its fields; ``whole`` adds more columns."""
    lease = _time("leased_until") if table else "NULL::timestamp"
    columns = [
        "id",
        "q_name",
        state,
        "serializer",
        ATTEMPTS,
        "coalesce(failures, 0)",
        "error::text",
        reason,
        _time("enqueued_at"),
        _time("schedule_at"),
        _time("expected_at"),
        _time(finished),
        f"CASE WHEN {'parked_on' if table else 'NULL::text'} IS NULL THEN {lease} END",
        "parked_on" if table else "NULL::text",
        f"left(data::text, {HEAD})",
    ]
    if whole:
        columns += [
            "left(data::text, coalesce(:most::int, 2147483647))",
            "substr(payload, 1, coalesce(:most::int, 2147483647))",
            "headers::text",
            "group_key" if table else "headers #>> '{{gate,group}}'",
            "dedup_key" if table else "NULL::text",
            "coalesce(octet_length(payload), octet_length(data::text))",
        ]
    return ", ".join(columns)


def _dead_columns(*, whole: bool = False) -> str:
    return _columns(_DEAD, finished="died_at", reason="reason", table=False, whole=whole)


def _some(condition: str, order: str) -> str:
    chosen = f"{OF_QUEUE} AND {condition}{_FILTERS_OF_TABLE}"
    return f"(SELECT * FROM {{table}} AS job WHERE {chosen} ORDER BY {order} LIMIT {_AS_MANY})"


def _of_lanes(room: str) -> str:
    """Return a query of waiting jobs, lane by lane: each lookup in the index leads from one lane to the next.

    Args:
        room: A query of the jobs of one lane: ``of_lane.lane`` has its text, ``number`` how many jobs may be admitted
            now, ``group_key`` the group, and ``head`` the first job of the group.
    """
    of_queue = f"SELECT min(parked_on) FROM {{table}} WHERE {OF_QUEUE} AND parked_on"
    return f"""
(WITH RECURSIVE lanes (lane, place) AS (
  SELECT ({of_queue} IS NOT NULL), 1
  UNION ALL
  SELECT ({of_queue} > lanes.lane), place + 1 FROM lanes WHERE lane IS NOT NULL AND place < 1000
), known AS (
  SELECT lane, {lane_room("lane", ":q_name::text")} AS number, (
    SELECT group_key FROM {{table}} WHERE {OF_QUEUE} AND parked_on = lane ORDER BY {ORDER} LIMIT 1
  ) AS group_key FROM lanes WHERE lane IS NOT NULL
), of_lane AS (
  SELECT known.*, (
    SELECT id FROM {{table}} WHERE {OF_QUEUE} AND group_key = known.group_key AND dequeued_at IS NULL
    ORDER BY id LIMIT 1
  ) AS head FROM known
)
SELECT job.* FROM of_lane CROSS JOIN LATERAL ({room}
) AS job LIMIT {{most}})"""


# The rows of a subquery keep its order, so there is no second ORDER BY: a sort would read all of a lane. Within the
# subquery, the planner might sort if it expected few rows in a lane. But the planner does not know the value of the
# LIMIT, which is a parameter, and so reads the index.
_OF_LANE = f"SELECT * FROM {{table}} WHERE {OF_QUEUE} AND parked_on = of_lane.lane AND {UNFINISHED}"
_NEXT_OF_LANES = _of_lanes(f"""
  (SELECT * FROM (
    {_OF_LANE} AND of_lane.group_key IS NULL ORDER BY {ORDER} LIMIT of_lane.number
  ) AS job WHERE true{_FILTERS_OF_TABLE} LIMIT {_AS_MANY})
  UNION ALL
  ({_OF_LANE} AND id = of_lane.head AND of_lane.number > 0{_FILTERS_OF_TABLE})""").replace("{most}", "ALL")
# The rows come in the order of lanes, so a page needs only the first rows.
_BEHIND_THESE = _of_lanes(f"""
  SELECT * FROM (
    {_OF_LANE} AND of_lane.number < {NO_END} ORDER BY {ORDER}
    LIMIT (SELECT {NO_END}) OFFSET CASE WHEN of_lane.group_key IS NULL THEN of_lane.number ELSE 0 END
  ) AS job WHERE (of_lane.number = 0 OR id IS DISTINCT FROM of_lane.head){_FILTERS_OF_TABLE} LIMIT {_AS_MANY}
""").replace("{most}", _AS_MANY)


def _listed(state: str, order: str, *parts: tuple[str, str], more: str = "") -> str:
    # Each class is read through its own index, so that rows in other states are not read; then the classes are merged.
    union = " UNION ALL ".join([*(_some(*part) for part in parts), *filter(None, [more])])
    return f"SELECT {_columns(repr(state))} FROM ({union}) AS job ORDER BY {order} {_PAGE}"


_MOVABLE: dict[str, tuple[str, str]] = {
    "ready": (IS_READY, READY_ORDER),
    "urgent": (IS_URGENT, URGENT_ORDER),
    # Jobs that wait for admission are excluded here, because they belong to the class ``parked``.
    "hidden": (f"{COMES_OUT} AND {_FREE}", HIDDEN_ORDER),
    "parked": (_PARKED, _PARKED_ORDER),
    # Here, num_nulls() replaces IS NULL, so that the planner looks up the ids, and does not use a partial index.
    "ids": (f"id = ANY (:ids::bigint[]) AND num_nulls(dequeued_at) = 1 AND ({_FREE} OR {_PARKED})", "id"),
}
KINDS = ("ready", "urgent", "hidden", "parked")
"""The classes of jobs that can be moved, each read through its own index; ``ids`` are jobs that the caller names."""


def _picked(kind: str, columns: str = "id") -> str:
    condition, order = _MOVABLE[kind]
    # Without statistics, the planner estimates that IS NOT TRUE matches half the rows, and ``<>`` nearly all rows.
    single = "num_nulls(job.awaited) <> 0 AND job.schedule_at IS DISTINCT FROM 'infinity'"
    last = "" if kind == "ids" else " AND id <= :last::bigint"
    return (
        f"SELECT {columns} FROM {{table}} AS job WHERE {OF_QUEUE} AND {condition}{last} AND NOT EXISTS ("
        "SELECT FROM {table} AS other WHERE other.q_name = :target::text AND other.dedup_key = job.dedup_key"
        f" AND other.dequeued_at IS NULL) AND {single} ORDER BY {order} LIMIT :n::bigint"
    )


def _forgotten(again: str) -> str:
    """Return the end of a statement that runs jobs again: it deletes the old results, and notifies waiters.

    Args:
        again: The CTE that has the ids of the jobs.
    """
    return f""", forgotten AS (
  DELETE FROM {{results}} WHERE job_id = ANY (ARRAY(SELECT id FROM {again})) AND q_name = :q_name::text
)
SELECT id, pg_notify(:channel::text, '')::text FROM {again}"""


class AdminStatements(OverviewStatements):
    """The statements of operators, including the statements of an overview."""

    file = "admin_statements.sql"

    # Listing jobs: these statements only read. A filter that matches few jobs makes them read many rows.

    @composed()
    def list_ready(self) -> str:
        """List due jobs."""
        due = f"{DUE_AT} <= {_NOW}"
        return _listed(
            "ready",
            ORDER,
            (IS_URGENT, URGENT_ORDER),
            (f"{IS_READY} AND {due}", READY_ORDER),
            (f"{COMES_OUT} AND {VISIBLE_AT} <= {_NOW} AND {due}", HIDDEN_ORDER),
            more=_NEXT_OF_LANES,
        )

    @composed()
    def list_scheduled(self) -> str:
        """List the jobs that are due later."""
        later = f"{DUE_AT} > {_NOW}"
        return _listed(
            "scheduled",
            READY_ORDER,
            (f"{IS_READY} AND {later}", READY_ORDER),
            (f"{COMES_OUT} AND {_FREE} AND {later}", HIDDEN_ORDER),
        )

    @composed()
    def list_leased(self) -> str:
        """List the jobs under a lease."""
        leased = f"{COMES_OUT} AND {VISIBLE_AT} > {_NOW} AND leased_until > {_NOW}"
        return _listed("leased", "leased_until, id", (leased, HIDDEN_ORDER))

    @composed()
    def list_parked(self) -> str:
        """List the jobs that wait and could not be admitted now."""
        return _listed("parked", _PARKED_ORDER, more=_BEHIND_THESE)

    @composed()
    def list_finished(self) -> str:
        """List finished jobs in a slice of ids, newest first; only the primary key's index contains finished rows."""
        return f"""
WITH slice AS (
  SELECT id FROM {{table}} WHERE id < :before::bigint ORDER BY id DESC LIMIT {SLICE}
), found AS (
  SELECT {_columns(_DONE)} FROM {{table}} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND {OF_QUEUE}
    AND num_nulls(dequeued_at) = 0{_FILTERS_OF_TABLE} ORDER BY id DESC LIMIT :n::bigint
)
SELECT edge.id, found.* FROM (SELECT min(id) AS id FROM slice) AS edge LEFT JOIN found ON true
ORDER BY found.id DESC"""

    @composed()
    def list_archived(self) -> str:
        """List archived jobs, the latest first."""
        return (
            f"SELECT {_columns(_DONE, table=False)} FROM {{archive}} WHERE {OF_QUEUE}{_FILTERS}"
            " ORDER BY dequeued_at DESC LIMIT :n::bigint"
        )

    @composed()
    def list_dead(self) -> str:
        """List dead letters, the latest first."""
        return (
            f"SELECT {_dead_columns()} FROM {{dead}} WHERE {OF_QUEUE}{_FILTERS} ORDER BY died_at DESC, id DESC {_PAGE}"
        )

    @composed()
    def find_row(self) -> str:
        """Return all columns of one job, from the queue's table, the archive or the dead letters."""
        wanted = f"WHERE id = :id::bigint AND (:q_name::text IS NULL OR q_name = :q_name::text) AND {OF_PUT}"
        return f"""
SELECT {_columns(job_state("job.q_name"), whole=True)}, 'table' FROM {{table}} AS job {wanted}
UNION ALL
SELECT {_dead_columns(whole=True)}, 'dead' FROM {{dead}} {wanted}
UNION ALL
SELECT {_columns(_DONE, table=False, whole=True)}, 'archive' FROM {{archive}} {wanted}
LIMIT 1"""

    dead_by_queue = from_file()

    @composed()
    def recent_completions(self) -> str:
        """Return how many jobs were finished lately, and how long they took.

        No index orders jobs by the time of their end, so the statement looks at a slice of the jobs that were put last.
        """
        took = f"(extract(epoch FROM dequeued_at) - extract(epoch FROM {DUE_AT}))::float8"
        lately = f"count(*) FILTER (WHERE dequeued_at > {_NOW} - interval '{{}}')"
        last = f"SELECT q_name, dequeued_at, schedule_at, enqueued_at FROM {{}} ORDER BY id DESC LIMIT {SLICE}"
        return f"""
WITH slice AS (
  ({last.format("{table}")}) UNION ALL ({last.format("{archive}")})
), finished AS (
  SELECT q_name, dequeued_at, {took} AS took, dequeued_at > {_NOW} - interval '1 minute' AS just FROM slice
  WHERE dequeued_at > {_NOW} - interval '1 hour'
)
SELECT q_name, {lately.format("1 minute")}, {lately.format("1 hour")},
  percentile_disc(0.5) WITHIN GROUP (ORDER BY took) FILTER (WHERE just),
  percentile_disc(0.95) WITHIN GROUP (ORDER BY took) FILTER (WHERE just)
FROM finished GROUP BY q_name"""

    @composed()
    def list_ticks(self) -> str:
        """List the last ticks of periodic tasks and schedules, with the server's time.

        Each row says whether it belongs to a schedule, and whether this schedule is paused.
        """
        return f"""
SELECT last.q_name, last.name, {_time("tick")}, last.cron, last.tz, made.name IS NOT NULL, paused_at IS NOT NULL,
  {_time(_NOW)}
FROM {{ticks}} AS last LEFT JOIN {{schedules}} AS made ON made.q_name = last.q_name AND made.name = last.name
ORDER BY last.q_name, last.name LIMIT :n::bigint"""

    # Running jobs again. Apart from these statements, only a purge changes a finished row. An UPDATE waits for a purge
    # that has locked the row, and then finds the row gone. If two sessions run a job again concurrently, the second
    # finds the job unfinished.

    @composed()
    def rerun_finished(self) -> str:
        """Make a finished job due again."""
        return f"""
WITH again AS (
  UPDATE {{table}} SET dequeued_at = NULL, leased_until = NULL, parked_on = NULL, schedule_at = {_NOW}, failures = NULL,
    excused = attempts, error = NULL, cancelling = NULL, dedup_key = NULL,
    headers = coalesce(:headers::text::json, headers)
  WHERE id = :id::bigint AND {OF_QUEUE} AND num_nulls(dequeued_at) = 0 RETURNING id
){_forgotten("again")}"""

    @composed()
    def rerun_archived(self) -> str:
        """Make an archived job due again.

        The job moves in one statement. Of two concurrent sessions, only one finds the row, and moves the job.
        """
        return f"""
WITH gone AS (
  DELETE FROM {{archive}} WHERE id = :id::bigint AND {OF_QUEUE} RETURNING *
), risen AS (
  SELECT {COLUMNS.replace("headers", "coalesce(:headers::text::json, headers) AS headers")} FROM gone
), {come_back("risen")}{_forgotten("same")}
UNION ALL SELECT id, pg_notify(:channel::text, '')::text FROM renumbered"""

    @composed()
    def run_now(self) -> str:
        """Make a scheduled job, or a job that waits for its next attempt, due now. A locked row is skipped."""
        return f"""
WITH free AS (
  SELECT id FROM {{table}} WHERE id = :id::bigint AND {OF_QUEUE} AND num_nulls(dequeued_at) = 1
    AND {_FREE} AND {DUE_AT} > {_NOW} FOR UPDATE SKIP LOCKED
)
UPDATE {{table}} SET schedule_at = {_NOW} WHERE id = ANY (ARRAY(SELECT id FROM free)) AND {OF_QUEUE}
RETURNING id, pg_notify(:channel::text, '')::text"""

    # Moving jobs.

    last_id = from_file()

    @family("move_{}", _MOVABLE)
    def move(self, kind: str) -> str:
        """Move waiting jobs to another queue.

        One statement locks and changes each job, so the job is always in exactly one of the two queues. A job stays if
        the other queue has a job with its dedup key. If another session takes the key concurrently, the unique index
        makes the statement fail, and the caller runs the statement again.
        """
        return f"""
WITH picked AS (
  {_picked(kind)} FOR UPDATE SKIP LOCKED
), moved AS (
  UPDATE {{table}} SET q_name = :target::text, parked_on = NULL,
    leased_until = CASE WHEN parked_on IS NULL THEN leased_until END
  WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE} RETURNING id
), told AS (
  UPDATE {{results}} SET q_name = :target::text WHERE job_id = ANY (ARRAY(SELECT id FROM moved)) AND {OF_QUEUE}
), noted AS (
  UPDATE {{attempts}} SET q_name = :target::text WHERE job_id = ANY (ARRAY(SELECT id FROM moved)) AND {OF_QUEUE}
)
SELECT id, pg_notify(:channel::text, '')::text FROM moved"""

    @composed()
    def archive_kept(self) -> str:
        """Move finished jobs to the archive, in a slice of ids like that of `purge_kept`."""
        return f"""
WITH slice AS (
  SELECT id FROM {{table}} WHERE id > :after::bigint ORDER BY id LIMIT {SLICE}
), gone AS (
  DELETE FROM {{table}} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND {OF_QUEUE}
    AND dequeued_at <= {_NOW} - :age::float8 * interval '1 second'
  RETURNING *
){MADE_WAY["archive"]}, kept AS (
  INSERT INTO {{archive}} ({COLUMNS}) SELECT {COLUMNS} FROM gone{AFTER_WAY}
)
SELECT max(id), (SELECT count(*) FROM gone) FROM slice"""
