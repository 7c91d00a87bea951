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

All of it runs at READ COMMITTED or above.  ``FOR UPDATE SKIP LOCKED`` makes a
row the taker's own until its transaction ends; a row that another session
changed between this statement's snapshot and the lock is checked again by
PostgreSQL against the whole WHERE clause (EvalPlanQual), so a job taken a moment
ago is not taken twice.  ``statement_timestamp()`` is the server's clock at the
statement, not at the start of a long transaction.

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
    HIDDEN_ORDER,
    IS_GATED,
    MADE_WAY,
    NEXT_ATTEMPT,
    OF_QUEUE,
    ONE_MORE,
    ORDER,
    QUEUE_URGENT,
    READY_NOW,
    READY_ORDER,
    URGENT_ORDER,
    VISIBLE_NOW,
)

Pick: TypeAlias = Literal["ordered", "bounded", "unguarded", "merged"]
Finish: TypeAlias = Literal["keep", "delete", "archive", "lease"]

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
"""Rows: for so many the statement is worth being prepared; who may choose a number chooses one of these."""
ADMISSION = 10
"""Seconds for which a gated job is leased until it is admitted: if that fails, it comes again after no longer."""
REACH = 1_000
"""Rows: of the jobs that came out of hiding, so many are considered, the longest due first."""


def _head(condition: str, order: str, n: int, suffix: str = "", most: str = "", columns: str = "id") -> str:
    # The inner LIMIT, a constant, tells the planner that few rows are wanted.  The outer one, which it
    # cannot know, has it prefer what gives rows at once, the index, to what gives all of a few cheaply,
    # a sort: a prepared statement keeps its plan when the few have become a million.
    return (
        f"SELECT * FROM (SELECT {columns} FROM {{table}} WHERE {condition}"
        f" ORDER BY {order} LIMIT {n}{suffix}) AS head LIMIT {most or f'(SELECT {n})'}"
    )


def _ordered(n: int, first: str = "", guard: str = "", urgent: str = "", ready: str = "") -> str:
    # The outer limit of the second stops pulling, and so locking, once urgent ones fill the order.
    rest = f"{n} - (SELECT count(*) FROM urgent)"
    return f"""
WITH {first}urgent AS (
  {_head(QUEUE_URGENT + guard + urgent, URGENT_ORDER, n, " FOR UPDATE SKIP LOCKED")}
), ready AS (
  {_head(READY_NOW + guard + ready, READY_ORDER, n, " FOR UPDATE SKIP LOCKED", rest)}
), picked AS (SELECT id FROM urgent UNION ALL SELECT id FROM ready)"""


def _candidates(near: int, reach: int, columns: str) -> str:
    return f"""
  ({_head(QUEUE_URGENT, URGENT_ORDER, near, columns=columns)})
  UNION ALL ({_head(READY_NOW, READY_ORDER, near, columns=columns)})
  UNION ALL ({_head(VISIBLE_NOW, HIDDEN_ORDER, reach, columns=columns)})"""


def _merged(n: int) -> str:
    # Looks without locking at the heads of all three classes, then goes through them in the order of
    # the whole and locks the first n free ones; every condition stands again beside FOR UPDATE, where
    # it is checked against the row as it is once locked.
    return f"""
WITH picked AS (
  SELECT free.id FROM (
    SELECT id FROM ({_candidates(n + 100, max(n, REACH), "id, expected_at, schedule_at, enqueued_at")}
    ) AS candidates ORDER BY {ORDER}
  ) AS candidate CROSS JOIN LATERAL (
    SELECT id FROM {{table}} WHERE id = candidate.id AND {OF_QUEUE}
      AND dequeued_at IS NULL AND {DUE_AT} <= statement_timestamp()
      AND (leased_until IS NULL OR leased_until <= statement_timestamp())
    FOR UPDATE SKIP LOCKED
  ) AS free LIMIT {n}
)"""


# The five parts of a bound in one text: a driver takes longer over each parameter than the server over splitting one.
_AFTER = "(string_to_array(:bound::text, ' '))"
_PICKS: dict[Pick, Callable[[int], str]] = {
    "ordered": lambda n: _ordered(
        n,
        f"hidden AS ({FIRST_DEFERRED}), ",
        " AND NOT EXISTS (SELECT FROM hidden WHERE out_at <= statement_timestamp())",
    ),
    # Begins where the last one left off: what lies before is not looked at (see pqcore.scan_position).
    "bounded": lambda n: _ordered(
        n,
        urgent=f" AND (expected_at, enqueued_at, id) > ({_AFTER}[1]::timestamptz, {_AFTER}[2]::timestamptz,"
        f" {_AFTER}[3]::bigint)",
        ready=f" AND ({DUE_AT}, id) > ({_AFTER}[4]::timestamptz, {_AFTER}[5]::bigint)",
    ),
    "unguarded": _ordered,
    "merged": _merged,
}

# How a picked row leaves the waiting ones.  Each is one statement with the pick,
# so there is no moment at which a job is neither waiting nor taken.
_PICKED = f"id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE}"
_FINISHES: dict[Finish, str] = {
    "keep": f"""
UPDATE {{table}} SET dequeued_at = statement_timestamp(), attempts = {NEXT_ATTEMPT}, leased_until = NULL
WHERE {_PICKED} RETURNING {JOB}""",
    "delete": f"""
DELETE FROM {{table}} WHERE {_PICKED} RETURNING {JOB.replace("attempts", NEXT_ATTEMPT)}""",
    "archive": f""", gone AS (DELETE FROM {{table}} WHERE {_PICKED} RETURNING *){MADE_WAY["archive"]}, kept AS (
  INSERT INTO {{archive}} ({COLUMNS})
  SELECT {COLUMNS.replace("dequeued_at", "statement_timestamp()").replace("attempts", NEXT_ATTEMPT)}
  FROM gone{AFTER_WAY}
)
SELECT {JOB.replace("attempts", NEXT_ATTEMPT)} FROM gone""",
    "lease": f"""
UPDATE {{table}} SET attempts = {NEXT_ATTEMPT},
  leased_until = statement_timestamp()
    + least(:lease::float8, CASE WHEN {IS_GATED} THEN {ADMISSION} END) * interval '1 second',
  excused = CASE WHEN {IS_GATED} THEN {ONE_MORE.format("excused")} ELSE excused END
WHERE {_PICKED} RETURNING {JOB}""",
}


def fetch_template(pick: Pick, finish: Finish, n: int) -> str:
    """The template of the statement that fetches up to ``n`` rows.

    Args:
        pick: ``ordered`` gives nothing when a hidden row came out; ``bounded`` and
            ``unguarded`` do not look, and the former begins at a bound; ``merged`` fetches hidden rows too.
        finish: What becomes of the rows.
        n: Rows, at most.
    """
    return _PICKS[pick](n) + _FINISHES[finish]


def peek_template(n: int) -> str:
    """The template of the statement that reads the next ``n`` rows due, locking nothing."""
    return (
        f"SELECT {JOB} FROM ({_candidates(n, max(n, REACH), '*')}) AS candidates"
        f" WHERE {DUE_AT} <= statement_timestamp() ORDER BY {ORDER} LIMIT {n}"
    )
