"""Savepoints of operations within a transaction, and of inner blocks."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TypeVar

from pqcore.db.blocks import OpenTransaction
from pqcore.db.session import Session
from pqcore.errors import DatabaseError, PQError
from pqcore.sql.statement import Query, plain

logger = logging.getLogger("pqcore")

T = TypeVar("T")

FORGOTTEN = ("0A000", "26000")
"""The SQLSTATEs of a prepared statement whose result types have changed, or that no longer exists."""
KEPT = 64
"""The largest number of operations' savepoints that a block keeps until its end.

Releasing a savepoint takes another round trip. Each savepoint is a subtransaction, of which PostgreSQL caches 64 for
each session (PGPROC_MAX_CACHED_SUBXIDS), released or not.
"""


@lru_cache(maxsize=4 * KEPT)
def savepoint_query(verb: str, name: str) -> Query:
    """Return a statement about a savepoint, such as ``RELEASE pq_1``."""
    sql = f"{verb} {name}"
    return plain(sql.lower(), sql, rows=False)


async def in_savepoint(
    session: Session,
    operation: Callable[[Session], Awaitable[T]],
    block: OpenTransaction | None = None,
    *,
    again: bool = True,
) -> T:
    """Run an operation whose failure is rolled back to a savepoint.

    The savepoint is sent with the operation's first statement.

    Args:
        session: The session.
        operation: The operation to run.
        block: The transaction of a ``with`` block, which keeps some of the savepoints until it ends; None for a
            caller's transaction. Each kept savepoint has its own name, because ROLLBACK TO must not find an older one.
        again: Whether to repeat the operation if a prepared statement of the session has become invalid.
    """
    name, kept = "pq_op", False
    if block is not None and block.savepoints < KEPT:
        name, kept = f"pq_op_{block.savepoints}", True
        block.savepoints += 1
    ahead = savepoint_query("SAVEPOINT", name)
    try:
        session.ahead = ahead
        result = await operation(session)
    except BaseException as exc:
        made, session.ahead = session.ahead is None, None
        if made and session.usable():
            await undo(session, name)
            # The server refused a prepared statement because its result types have changed; the session has forgotten
            # the statement by now.
            if again and isinstance(exc, DatabaseError) and exc.sqlstate in FORGOTTEN:
                return await in_savepoint(session, operation, block, again=False)
        raise
    made, session.ahead = session.ahead is None, None
    if made and not kept:
        await session.execute(savepoint_query("RELEASE", name))
    return result


async def undo(session: Session, savepoint: str | None) -> None:
    """Roll back to a savepoint and release it, or roll the transaction back; if this fails, only log the error.

    Args:
        session: The session; its errors are only logged.
        savepoint: The name of the savepoint; None for the whole transaction.
    """
    try:  # the user's exception is propagating, and an error here must not replace it
        if savepoint is None:
            await session.rollback()
        else:
            await session.execute(savepoint_query("ROLLBACK TO", savepoint))
            await session.execute(savepoint_query("RELEASE", savepoint))
    except PQError as exc:
        logger.warning("cannot roll back; the server rolls back when the connection ends: %s", exc)
