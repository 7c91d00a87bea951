"""The statements of operators: listing jobs, running them again, moving them.

As those of `pqcore.sql.dialect`, and under the same rules.  None is on the way of a job that
is put and taken, so they are compiled when the first of them is used.  What lists
jobs takes no lock.  What changes them changes a slice of rows a statement, and skips
those that somebody has locked: who holds one is working on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pqcore.sql.fragments import (
    AFTER_WAY,
    COLUMNS,
    DUE_AT,
    EXPRESSIBLE,
    HIDDEN_ORDER,
    IS_DEFERRED,
    IS_READY,
    IS_URGENT,
    MADE_WAY,
    OF_PUT,
    OF_QUEUE,
    ORDER,
    READY_ORDER,
    URGENT_ORDER,
    VISIBLE_AT,
    come_back,
)

if TYPE_CHECKING:
    from pqcore.sql.statement import Compile

SLICE = 10_000
"""Rows that one statement looks at where no index leads to those that are wanted."""
HEAD = 2_000
"""Characters of JSON in which the path of a function stands, if the job is a call."""

_NOW = "statement_timestamp()"
_FILTERS = (
    f" AND (:task::text IS NULL OR left(data::text, {HEAD}) ~ :task::text)"
    f" AND (:age::float8 IS NULL OR enqueued_at <= {_NOW} - :age::float8 * interval '1 second')"
    " AND (:failed::int = 0 OR coalesce(failures, 0) > 0)"
)
# Not under a lease, or under one that has run out.
_FREE = f"(leased_until IS NULL OR leased_until <= {_NOW})"
_DONE, _DEAD = "'done'", "'dead'"
_PARKED = "parked_on IS NOT NULL"
_PARKED_ORDER = f"parked_on, {ORDER}"


def _time(column: str) -> str:
    return f"CASE WHEN {column} IS NOT NULL THEN {EXPRESSIBLE.format(column)} END"


def _columns(
    state: str, *, finished: str = "dequeued_at", reason: str = "NULL::text", table: bool = True, whole: bool = False
) -> str:
    """The columns of a `pqcore.rows.StoredJobRow`, in its order; of a whole job, further ones after these."""
    lease = _time("leased_until") if table else "NULL::timestamp"
    columns = [
        "id",
        "q_name",
        state,
        "serializer",
        "attempts",
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


def _some(condition: str, order: str) -> str:
    return f"(SELECT * FROM {{table}} WHERE {OF_QUEUE} AND {condition}{_FILTERS} ORDER BY {order} LIMIT :n::bigint)"


def _listed(state: str, order: str, *parts: tuple[str, str]) -> str:
    # Each class through its own index, so that what has other states is not read; then merged.
    union = " UNION ALL ".join(_some(*part) for part in parts)
    return f"SELECT {_columns(repr(state))} FROM ({union}) AS job ORDER BY {order} LIMIT :n::bigint"


_MOVABLE: dict[str, tuple[str, str]] = {
    "ready": (IS_READY, READY_ORDER),
    "urgent": (IS_URGENT, URGENT_ORDER),
    # Not the parked ones: they are leased for ever, and would all be read in vain.
    "hidden": (f"{IS_DEFERRED} AND {VISIBLE_AT} < 'infinity' AND {_FREE}", HIDDEN_ORDER),
    "parked": (_PARKED, _PARKED_ORDER),
    # num_nulls() is IS NULL in words that no partial index answers to: the planner is to look up the ids.
    "ids": (f"id = ANY (:ids::bigint[]) AND num_nulls(dequeued_at) = 1 AND ({_FREE} OR {_PARKED})", "id"),
}
KINDS = ("ready", "urgent", "hidden", "parked")
"""The classes of jobs that can be moved, each through its own index; ``ids`` are those that are named."""


def _picked(kind: str, columns: str = "id") -> str:
    condition, order = _MOVABLE[kind]
    last = "" if kind == "ids" else " AND id <= :last::bigint"
    return (
        f"SELECT {columns} FROM {{table}} AS job WHERE {OF_QUEUE} AND {condition}{last} AND NOT EXISTS ("
        "SELECT FROM {table} AS other WHERE other.q_name = :target::text AND other.dedup_key = job.dedup_key"
        f" AND other.dequeued_at IS NULL) ORDER BY {order} LIMIT :n::bigint"
    )


class UpkeepStatements:
    """The statements, in one driver's paramstyle.

    Args:
        compiled: Compiles a template.
    """

    def __init__(self, compiled: Compile) -> None:
        # Listing. A filter is applied to what an index gives in order, so one that fits few jobs reads many.
        due, out = f"{DUE_AT} <= {_NOW}", f"{VISIBLE_AT} <= {_NOW}"
        self.list_ready = compiled(
            "list_ready",
            _listed(
                "ready",
                ORDER,
                (IS_URGENT, URGENT_ORDER),
                (f"{IS_READY} AND {due}", READY_ORDER),
                (f"{IS_DEFERRED} AND {out} AND {due}", HIDDEN_ORDER),
            ),
        )
        self.list_scheduled = compiled(
            "list_scheduled",
            _listed(
                "scheduled",
                f"{DUE_AT}, id",
                (f"{IS_READY} AND {DUE_AT} > {_NOW}", READY_ORDER),
                (f"{IS_DEFERRED} AND {VISIBLE_AT} < 'infinity' AND {_FREE} AND {DUE_AT} > {_NOW}", HIDDEN_ORDER),
            ),
        )
        self.list_leased = compiled(
            "list_leased",
            _listed(
                "leased",
                "leased_until, id",
                (
                    f"{IS_DEFERRED} AND {VISIBLE_AT} > {_NOW} AND {VISIBLE_AT} < 'infinity' AND leased_until > {_NOW}",
                    HIDDEN_ORDER,
                ),
            ),
        )
        self.list_parked = compiled("list_parked", _listed("parked", _PARKED_ORDER, (_PARKED, _PARKED_ORDER)))
        # Finished rows are in no index but that of the ids: a slice of those is read, from the last put on.
        self.list_finished = compiled(
            "list_finished",
            f"""
WITH slice AS (
  SELECT id FROM {{table}} WHERE id < :before::bigint ORDER BY id DESC LIMIT {SLICE}
), found AS (
  SELECT {_columns(_DONE)} FROM {{table}} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND {OF_QUEUE}
    AND num_nulls(dequeued_at) = 0{_FILTERS} ORDER BY id DESC LIMIT :n::bigint
)
SELECT edge.id, found.* FROM (SELECT min(id) AS id FROM slice) AS edge LEFT JOIN found ON true
ORDER BY found.id DESC""",
        )
        self.list_archived = compiled(
            "list_archived",
            f"SELECT {_columns(_DONE, table=False)} FROM {{archive}} WHERE {OF_QUEUE}{_FILTERS}"
            " ORDER BY dequeued_at DESC LIMIT :n::bigint",
        )
        of_dead: dict[str, Any] = {"finished": "died_at", "reason": "reason", "table": False}
        self.list_dead = compiled(
            "list_dead",
            f"SELECT {_columns(_DEAD, **of_dead)} FROM {{dead}}"
            f" WHERE {OF_QUEUE}{_FILTERS} ORDER BY died_at DESC, id DESC LIMIT :n::bigint",
        )
        # All of one job, wherever it is; of the three tables at most one has it.
        state = (
            f"CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NOT NULL THEN 'parked'"
            f" WHEN leased_until > {_NOW} THEN 'leased' WHEN {DUE_AT} > {_NOW} THEN 'scheduled' ELSE 'ready' END"
        )
        wanted = f"WHERE id = :id::bigint AND (:q_name::text IS NULL OR q_name = :q_name::text) AND {OF_PUT}"
        self.find_row = compiled(
            "find_row",
            f"""
SELECT {_columns(state, whole=True)}, 'table' FROM {{table}} {wanted}
UNION ALL
SELECT {_columns(_DEAD, whole=True, **of_dead)}, 'dead' FROM {{dead}} {wanted}
UNION ALL
SELECT {_columns(_DONE, table=False, whole=True)}, 'archive' FROM {{archive}} {wanted}
LIMIT 1""",
        )
        self.dead_by_queue = compiled(
            "dead_by_queue", "SELECT q_name, count(*) FROM {dead} GROUP BY q_name ORDER BY q_name"
        )
        # No index leads to what was finished last: of the jobs that were put last, so many are looked at.
        took = f"(extract(epoch FROM dequeued_at) - extract(epoch FROM {DUE_AT}))::float8"
        lately = "count(*) FILTER (WHERE dequeued_at > {} - interval '{}')"
        last = f"SELECT q_name, dequeued_at, schedule_at, enqueued_at FROM {{}} ORDER BY id DESC LIMIT {SLICE}"
        self.recent_completions = compiled(
            "recent_completions",
            f"""
WITH slice AS (
  ({last.format("{table}")}) UNION ALL ({last.format("{archive}")})
), finished AS (
  SELECT q_name, dequeued_at, {took} AS took, dequeued_at > {_NOW} - interval '1 minute' AS just FROM slice
  WHERE dequeued_at > {_NOW} - interval '1 hour'
)
SELECT q_name, {lately.format(_NOW, "1 minute")}, {lately.format(_NOW, "1 hour")},
  percentile_disc(0.5) WITHIN GROUP (ORDER BY took) FILTER (WHERE just),
  percentile_disc(0.95) WITHIN GROUP (ORDER BY took) FILTER (WHERE just)
FROM finished GROUP BY q_name""",
        )
        self.list_ticks = compiled(
            "list_ticks", f"SELECT q_name, name, {_time('tick')} FROM {{ticks}} ORDER BY q_name, name LIMIT :n::bigint"
        )

        # Running again. A finished row is changed by nobody but a purge: the UPDATE waits for that, and finds it
        # gone; of two that come at once the second finds it unfinished.
        forgotten = """, forgotten AS (
  DELETE FROM {{results}} WHERE job_id = ANY (ARRAY(SELECT id FROM {again})) AND q_name = :q_name::text
)
SELECT id, pg_notify(:channel::text, '')::text FROM {again}"""
        self.rerun_finished = compiled(
            "rerun_finished",
            f"""
WITH again AS (
  UPDATE {{table}} SET dequeued_at = NULL, leased_until = NULL, schedule_at = {_NOW}, failures = NULL,
    excused = attempts, error = NULL, cancelling = NULL, dedup_key = NULL,
    headers = coalesce(:headers::text::json, headers)
  WHERE id = :id::bigint AND {OF_QUEUE} AND num_nulls(dequeued_at) = 0 RETURNING id
){forgotten.format(again="again")}""",
        )
        # It goes from one table to the other in one statement; whose DELETE finds it has it.
        self.rerun_archived = compiled(
            "rerun_archived",
            f"""
WITH gone AS (
  DELETE FROM {{archive}} WHERE id = :id::bigint AND {OF_QUEUE} RETURNING *
), risen AS (
  SELECT {COLUMNS.replace("headers", "coalesce(:headers::text::json, headers) AS headers")} FROM gone
), {come_back("risen")}{forgotten.format(again="same")}
UNION ALL SELECT id, pg_notify(:channel::text, '')::text FROM renumbered""",
        )
        # One that is scheduled, or waits for its next attempt.
        self.hasten = compiled(
            "hasten",
            f"""
WITH free AS (
  SELECT id FROM {{table}} WHERE id = :id::bigint AND {OF_QUEUE} AND num_nulls(dequeued_at) = 1
    AND {_FREE} AND {DUE_AT} > {_NOW} FOR UPDATE SKIP LOCKED
)
UPDATE {{table}} SET schedule_at = {_NOW} WHERE id = ANY (ARRAY(SELECT id FROM free)) AND {OF_QUEUE}
RETURNING id, pg_notify(:channel::text, '')::text""",
        )

        # Moving. What waits is locked, and is in the other queue at the end of the statement: there is no moment at
        # which it is in neither, or in both. One whose dedup key is taken there stays; if the key is taken at
        # this moment, the unique index has the statement fail, and it is run again.
        self.last_id = compiled("last_id", "SELECT max(id) FROM {table}")
        self.gates = {
            kind: compiled(
                f"gates_of_{kind}",
                f"SELECT DISTINCT headers::text FROM ({_picked(kind, 'headers')}) AS picked"
                " WHERE headers::text LIKE '%\"gate\"%'",
            )
            for kind in _MOVABLE
        }
        self.move = {
            kind: compiled(
                f"move_{kind}",
                f"""
WITH picked AS (
  {_picked(kind)} FOR UPDATE SKIP LOCKED
), moved AS (
  UPDATE {{table}} SET q_name = :target::text, parked_on = NULL,
    leased_until = CASE WHEN parked_on IS NULL THEN leased_until END
  WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE} RETURNING id, headers
), told AS (
  UPDATE {{results}} SET q_name = :target::text WHERE job_id = ANY (ARRAY(SELECT id FROM moved)) AND {OF_QUEUE}
)
SELECT id, headers::text, pg_notify(:channel::text, '')::text FROM moved""",
            )
            for kind in _MOVABLE
        }
        # A slice of ids a statement, as purge_kept.
        self.archive_kept = compiled(
            "archive_kept",
            f"""
WITH slice AS (
  SELECT id FROM {{table}} WHERE id > :after::bigint ORDER BY id LIMIT {SLICE}
), gone AS (
  DELETE FROM {{table}} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND {OF_QUEUE}
    AND dequeued_at <= {_NOW} - :age::float8 * interval '1 second'
  RETURNING *
){MADE_WAY["archive"]}, kept AS (
  INSERT INTO {{archive}} ({COLUMNS}) SELECT {COLUMNS} FROM gone{AFTER_WAY}
)
SELECT max(id), (SELECT count(*) FROM gone) FROM slice""",
        )
