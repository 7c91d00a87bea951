"""The statements that fetch jobs: each finds the rows due, and has them leave the waiting ones.

The table's waiting rows fall into three classes, each with a partial index that
ends in the id, so that a row is found by reading a bounded number of pages:

``ready``
    No expectation, no lease; ordered by the time due.  One range scan gives
    those due; those scheduled for later lie behind them and cost nothing.
``urgent``
    With an expectation, never scheduled: always due; ordered by expectation.
``hidden``
    Leased, or scheduled *and* expected: ordered by when they come out.  One
    probe tells whether any is out.  Usually none is, and the two other
    classes are the whole truth; else the slower ``merged`` pick is used.

An expectation precedes none, so ``urgent`` comes before ``ready``.  A finished
row is in none of the three.

`pqcore.sql.dialect` says why it is safe that several sessions fetch concurrently.

After a pick, ``id = ANY (ARRAY(...))`` looks the rows up by primary key whatever
the statistics say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from pqcore.rows import JOB
from pqcore.sql.fragments import (
    AFTER_WAY,
    COLUMNS,
    DUE_AT,
    FIRST_DEFERRED,
    FIRST_WAITING,
    HIDDEN_ORDER,
    IS_FREE,
    LEASED,
    MADE_WAY,
    NEXT_ATTEMPT,
    OF_QUEUE,
    ORDER,
    QUEUE_URGENT,
    QUEUE_WAITING,
    READY_NOW,
    READY_ORDER,
    URGENT_ORDER,
    VISIBLE_AT,
    VISIBLE_NOW,
    WAITING_ORDER,
)

Pick: TypeAlias = Literal["ordered", "idle", "bounded", "unguarded", "merged"]
Finish: TypeAlias = Literal["keep", "delete", "archive", "lease"]

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
"""Numbers of rows for which the statement is worth being prepared; a caller that is free to choose takes one."""
REACH = 1_000
"""Rows: the most jobs that came out of hiding which one statement considers, the longest due first."""
NOT_PAUSED = (
    " AND NOT EXISTS (SELECT FROM {rules} WHERE q_name = :q_name::text AND kind = 'pause'"
    " AND (name = 'queue' OR left(name, 5) = 'task:') AND coalesce(until > statement_timestamp(), true))"
)
"""Is false while the queue or a task is paused."""
_PLACE = "id, priority, expected_at, schedule_at, enqueued_at"


def _head(condition: str, order: str, n: int, suffix: str = "", most: str = "", columns: str = "id") -> str:
    # The inner LIMIT, a constant, tells the planner that few rows are wanted.  The outer one, which it
    # cannot know, has it prefer what gives rows immediately, the index, to what gives all of a few cheaply,
    # a sort: a prepared statement keeps its plan when the few have become a million.
    return (
        f"SELECT * FROM (SELECT {columns} FROM {{table}} WHERE {condition}"
        f" ORDER BY {order} LIMIT {n}{suffix}) AS head LIMIT {most or f'(SELECT {n})'}"
    )


def _usual(n: int, most: str, first: str = "", urgent: str = "", ready: str = "") -> str:
    """Pick of the two usual classes: urgent jobs, then ready ones.

    Args:
        n: Rows, at most.
        most: Rows, at most: an expression.
        first: A CTE before these.
        urgent: A further condition on urgent jobs.
        ready: A further condition on ready jobs.
    """
    # The outer limit of the second stops pulling, and so locking, once urgent ones fill the order.
    rest = f"{most} - (SELECT count(*) FROM urgent)"
    return f"""
WITH {first}urgent AS (
  {_head(QUEUE_URGENT + urgent, URGENT_ORDER, n, " FOR UPDATE SKIP LOCKED", f"(SELECT {most})")}
), ready AS (
  {_head(READY_NOW + ready, READY_ORDER, n, " FOR UPDATE SKIP LOCKED", rest)}
), picked AS (SELECT id FROM urgent UNION ALL SELECT id FROM ready)"""


def _candidates(near: int, reach: int, columns: str, *, waiting: bool) -> str:
    """The first rows of each class, without locking them.

    Args:
        near: Rows, at most, of each class.
        reach: Rows, at most, that came out of hiding.
        columns: The SELECT list.
        waiting: Whether jobs that wait to be admitted count, as for a get, which asks for no admission.
    """
    # A range with two ends: the planner expects fewer rows of it, and takes the index where the table is small, too.
    out = f"{VISIBLE_NOW} AND {VISIBLE_AT} >= '-infinity' AND parked_on IS NULL"
    classes = f"""
  ({_head(QUEUE_URGENT, URGENT_ORDER, near, columns=columns)})
  UNION ALL ({_head(READY_NOW, READY_ORDER, near, columns=columns)})
  UNION ALL ({_head(out, HIDDEN_ORDER, reach, columns=columns)})"""
    if not waiting:
        return classes
    return f"{classes}\n  UNION ALL ({_head(QUEUE_WAITING, WAITING_ORDER, near, columns=columns)})"


def _merged(n: int, most: str, *, waiting: bool) -> str:
    """Pick of all classes.

    Looks without locking at the heads of the classes, then goes through them in the order of the whole and locks the
    first n free ones.  Every condition stands again beside FOR UPDATE, where it is checked against the row as locked.
    """
    return f"""
WITH picked AS (
  SELECT free.id FROM (
    SELECT id FROM ({_candidates(n + 100, max(n, REACH), _PLACE, waiting=waiting)}
    ) AS candidates ORDER BY priority DESC, {ORDER}
  ) AS candidate CROSS JOIN LATERAL (
    SELECT id FROM {{table}} WHERE id = candidate.id AND {OF_QUEUE}
      AND dequeued_at IS NULL AND {DUE_AT} <= statement_timestamp()
      AND {IS_FREE}{"" if waiting else " AND parked_on IS NULL"}
    FOR UPDATE SKIP LOCKED
  ) AS free LIMIT {most}
)"""


def _ordered(n: int, most: str, *, waiting: bool, guard: str = "") -> str:
    """Pick of the two usual classes, unless a row of another class is due: then nothing, and `_merged` is needed.

    Args:
        n: Rows, at most.
        most: As for `_usual`.
        waiting: Whether a job that waits to be admitted is such a row.
        guard: A further condition.
    """
    first = f"hidden AS ({FIRST_DEFERRED}), "
    guard = f" AND NOT EXISTS (SELECT FROM hidden WHERE out_at <= statement_timestamp()){guard}"
    if waiting:
        first += f"waiting AS ({FIRST_WAITING}), "
        guard += " AND NOT EXISTS (SELECT FROM waiting)"
    return _usual(n, most, first, guard, guard)


def _bounded(n: int, most: str) -> str:
    """Pick from where the last look left off: what lies before is not looked at (see `pqcore.scan_position`)."""
    # The five parts of a bound are one text: a driver takes longer over each parameter than the server over splitting.
    part = "(string_to_array(:bound::text, ' '))"
    return _usual(
        n,
        most,
        urgent=f" AND (expected_at, enqueued_at, id) > ({part}[1]::timestamptz, {part}[2]::timestamptz,"
        f" {part}[3]::bigint)",
        ready=f" AND ({DUE_AT}, id) > ({part}[4]::timestamptz, {part}[5]::bigint)",
    )


# How a picked row leaves the waiting ones.  Each is one statement with the pick,
# so there is no moment at which a job is neither waiting nor fetched.
_PICKED = f"id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE}"
_KEEP = f"""
UPDATE {{table}} SET dequeued_at = statement_timestamp(), attempts = {NEXT_ATTEMPT}, leased_until = NULL,
  parked_on = NULL
WHERE {_PICKED} RETURNING {JOB}"""
_DELETE = f"""
DELETE FROM {{table}} WHERE {_PICKED} RETURNING {JOB.replace("attempts", NEXT_ATTEMPT)}"""
_ARCHIVE = f""", gone AS (DELETE FROM {{table}} WHERE {_PICKED} RETURNING *){MADE_WAY["archive"]}, kept AS (
  INSERT INTO {{archive}} ({COLUMNS})
  SELECT {COLUMNS.replace("dequeued_at", "statement_timestamp()").replace("attempts", NEXT_ATTEMPT)}
  FROM gone{AFTER_WAY}
)
SELECT {JOB.replace("attempts", NEXT_ATTEMPT)} FROM gone"""
_LEASE = f"""
UPDATE {{table}} SET {LEASED} WHERE {_PICKED} RETURNING {JOB}"""
_FINISHES: dict[Finish, str] = {"keep": _KEEP, "delete": _DELETE, "archive": _ARCHIVE, "lease": _LEASE}


def fetch_template(pick: Pick, finish: Finish, n: int, *, most: bool = False) -> str:
    """Return the template of the statement that fetches up to ``n`` rows.

    Jobs that wait to be admitted are fetched for good as any, and leased by `admission_statements` alone.

    Args:
        pick: ``ordered`` gives nothing when a hidden row came out; ``idle`` neither, nor when a job waits to be
            admitted, or the queue or a task is paused; ``bounded`` and ``unguarded`` do not look, and the former begins
            at a bound; ``merged`` fetches hidden rows too.
        finish: What becomes of the rows.
        n: Rows, at most.
        most: Whether a parameter ``most`` says how many rows, at most, are fetched of those.
    """
    number = ":most::int" if most else str(n)
    waiting = finish != "lease"
    picks: dict[Pick, Callable[[], str]] = {
        "ordered": lambda: _ordered(n, number, waiting=waiting),
        "idle": lambda: _ordered(n, number, waiting=True, guard=NOT_PAUSED),
        "bounded": lambda: _bounded(n, number),
        "unguarded": lambda: _usual(n, number),
        "merged": lambda: _merged(n, number, waiting=waiting),
    }
    return picks[pick]() + _FINISHES[finish]


def plain_template(n: int) -> str:
    """Return the statement that gives the first ``n`` jobs due that need no admission, without locking them."""
    columns = "id, expected_at, schedule_at, enqueued_at"
    return f"""
    SELECT {columns} FROM ({_candidates(n + 20, max(n, REACH), columns, waiting=False)}
    ) AS candidates WHERE {DUE_AT} <= statement_timestamp() ORDER BY {ORDER} LIMIT {n + 20}"""


def peek_template(n: int) -> str:
    """Return the template of the statement that reads the next ``n`` rows due, locking nothing."""
    return (
        f"SELECT {JOB} FROM ({_candidates(n, max(n, REACH), '*', waiting=True)}) AS candidates"
        f" WHERE {DUE_AT} <= statement_timestamp() ORDER BY priority DESC, {ORDER} LIMIT {n}"
    )
