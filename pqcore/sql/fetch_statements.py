"""The statements that fetch jobs: each finds due rows, and removes them from the waiting rows.

The table's waiting rows form three classes. Each class has a partial index whose last column is the id, so that a
statement finds a row by reading a bounded number of pages:

``ready``
    Rows without ``expected_at`` and without a lease, ordered by the time when they become due. One range scan returns
    the due rows; rows scheduled for later are behind them in the index, and are not read.
``urgent``
    Rows with ``expected_at`` that were never scheduled, and so are always due, ordered by ``expected_at``.
``hidden``
    Leased rows, and rows that are both scheduled *and* expected. A hidden row *comes out* when its lease ends, or when
    its job becomes due; the rows are ordered by that time. One probe shows whether any row has come out. Usually no
    hidden row has come out, and a fetch reads only the two other classes; otherwise the fetch uses the slower
    ``merged`` pick.

A row with ``expected_at`` comes before a row without it, so ``urgent`` comes before ``ready``. A finished row is in
none of the three classes.

`pqcore.sql.dialect` explains why several sessions can fetch concurrently.

A *pick* is the part of a statement that chooses rows and locks them. The statement then finds the picked rows by
``id = ANY (ARRAY(...))``, for which the planner uses the primary key, whatever the table's statistics are.
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
"""The numbers of rows for which preparing the statement is worthwhile; a caller that can choose the number takes one of
these."""
REACH = 1_000
"""The largest number of due rows of the class ``hidden`` that one statement considers; the rows that have been due
longest come first."""
NOT_PAUSED = (
    " AND NOT EXISTS (SELECT FROM {rules} WHERE q_name = :q_name::text AND kind = 'pause'"
    " AND (name = 'queue' OR left(name, 5) = 'task:') AND coalesce(until > statement_timestamp(), true))"
)
"""False while the queue or a task is paused."""
_PLACE = "id, priority, expected_at, schedule_at, enqueued_at"


def _head(condition: str, order: str, n: int, suffix: str = "", most: str = "", columns: str = "id") -> str:
    # The constant inner LIMIT tells the planner that few rows are wanted; the planner cannot know the outer LIMIT. So
    # the planner prefers the index, which returns rows immediately, to a sort. A sort is cheap only while the table has
    # few rows, and a prepared statement keeps its plan when the table has grown to a million rows.
    return (
        f"SELECT * FROM (SELECT {columns} FROM {{table}} WHERE {condition}"
        f" ORDER BY {order} LIMIT {n}{suffix}) AS head LIMIT {most or f'(SELECT {n})'}"
    )


def _usual(n: int, most: str, first: str = "", urgent: str = "", ready: str = "") -> str:
    """Return CTEs that pick rows of the two usual classes: urgent jobs, then ready ones.

    Args:
        n: The largest number of rows.
        most: The largest number of rows, as an SQL expression.
        first: A CTE before the others.
        urgent: An additional condition on urgent jobs.
        ready: An additional condition on ready jobs.
    """
    # If urgent jobs suffice, the outer limit is 0, so the second scan reads and locks no row.
    rest = f"{most} - (SELECT count(*) FROM urgent)"
    return f"""
WITH {first}urgent AS (
  {_head(QUEUE_URGENT + urgent, URGENT_ORDER, n, " FOR UPDATE SKIP LOCKED", f"(SELECT {most})")}
), ready AS (
  {_head(READY_NOW + ready, READY_ORDER, n, " FOR UPDATE SKIP LOCKED", rest)}
), picked AS (SELECT id FROM urgent UNION ALL SELECT id FROM ready)"""


def _candidates(near: int, reach: int, columns: str, *, waiting: bool, out_since: str = "'-infinity'") -> str:
    """Return the query that reads the first rows of each class, and locks no row.

    Args:
        near: The largest number of rows of each class.
        reach: The largest number of rows of the hidden class.
        columns: The SELECT list.
        waiting: Whether to include jobs that wait for admission: a get takes them, a lease does not.
        out_since: The earliest time, as an SQL expression, at which the considered hidden rows came out.
    """
    # With two bounds, the planner expects fewer rows, and uses the index even if the table is small.
    out = f"{VISIBLE_NOW} AND {VISIBLE_AT} >= {out_since} AND parked_on IS NULL"
    classes = f"""
  ({_head(QUEUE_URGENT, URGENT_ORDER, near, columns=columns)})
  UNION ALL ({_head(READY_NOW, READY_ORDER, near, columns=columns)})
  UNION ALL ({_head(out, HIDDEN_ORDER, reach, columns=columns)})"""
    if not waiting:
        return classes
    return f"{classes}\n  UNION ALL ({_head(QUEUE_WAITING, WAITING_ORDER, near, columns=columns)})"


def _merged(n: int, most: str, *, waiting: bool) -> str:
    """Return a CTE that picks rows of all classes.

    The statement reads the heads of the classes without locking. Then it goes through the rows in their common order,
    and locks the first n free ones. Every condition is repeated next to FOR UPDATE, where it is checked against the
    locked row.
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
    """Return CTEs that pick rows of the two usual classes.

    If a row of another class is due, the CTEs find nothing, and the caller must use `_merged`.

    Args:
        n: The largest number of rows.
        most: The largest number of rows, as an SQL expression.
        waiting: Whether a job that waits for admission counts as a row of another class.
        guard: An additional condition.
    """
    first = f"hidden AS ({FIRST_DEFERRED}), "
    guard = f" AND NOT EXISTS (SELECT FROM hidden WHERE out_at <= statement_timestamp()){guard}"
    if waiting:
        first += f"waiting AS ({FIRST_WAITING}), "
        guard += " AND NOT EXISTS (SELECT FROM waiting)"
    return _usual(n, most, first, guard, guard)


def _bounded(n: int, most: str) -> str:
    """Return a pick that begins at the position of the last look, and reads no row before it."""
    # The five parts of a position are one text: each additional parameter costs the driver more time than splitting the
    # text costs the server.
    part = "(string_to_array(:bound::text, ' '))"
    return _usual(
        n,
        most,
        urgent=f" AND (expected_at, enqueued_at, id) > ({part}[1]::timestamptz, {part}[2]::timestamptz,"
        f" {part}[3]::bigint)",
        ready=f" AND ({DUE_AT}, id) > ({part}[4]::timestamptz, {part}[5]::bigint)",
    )


# The ways in which a picked row leaves the waiting rows. The same statement picks the row and removes it, so a job is
# always either waiting or fetched.
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

    `get` can take a job that waits for admission, like any other job; only the statements of admission can lease such a
    job.

    Args:
        pick: The rows to consider. ``ordered`` returns nothing if a hidden row came out. ``idle`` also returns nothing
            if a job waits for admission, or the queue or a task is paused. ``bounded`` and ``unguarded`` do not check
            for hidden rows; ``bounded`` begins at a position. ``merged`` fetches hidden rows, too.
        finish: What happens to the rows.
        n: The largest number of rows.
        most: Whether a parameter ``most`` reduces that number.
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
    """Return the query of the first ``n`` due jobs that need no admission; the query locks no row.

    With the parameter ``out_within``, the query leaves out hidden jobs that came out more than this number of seconds
    ago. If the parameter is NULL, the query also steps over the index entries of all ended leases that VACUUM has not
    removed yet.
    """
    columns = "id, expected_at, schedule_at, enqueued_at"
    since = "coalesce(statement_timestamp() - :out_within::float8 * interval '1 second', '-infinity')"
    return f"""
    SELECT {columns} FROM ({_candidates(n + 20, max(n, REACH), columns, waiting=False, out_since=since)}
    ) AS candidates WHERE {DUE_AT} <= statement_timestamp() ORDER BY {ORDER} LIMIT {n + 20}"""


def peek_template(n: int) -> str:
    """Return the template of the statement that reads the next ``n`` due rows without locking them."""
    return (
        f"SELECT {JOB} FROM ({_candidates(n, max(n, REACH), '*', waiting=True)}) AS candidates"
        f" WHERE {DUE_AT} <= statement_timestamp() ORDER BY priority DESC, {ORDER} LIMIT {n}"
    )
