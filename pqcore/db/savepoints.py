"""Savepoints: of operations within a transaction, and of inner blocks."""

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
"""SQLSTATEs of a prepared statement whose result has got other types since, or that is not there any more."""
KEPT = 64
"""Savepoints of operations that a block keeps until its end.

To release one takes a round trip of its own. Each is a subtransaction, of which PostgreSQL keeps 64 at hand per
session (PGPROC_MAX_CACHED_SUBXIDS), released or not.
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
    """Run an operation of which a failure is undone to a savepoint, which is sent with its first statement.

    Args:
        session: Where.
        operation: What to do.
        block: The transaction of a ``with`` block, which keeps some of the savepoints until it ends; None for a
            transaction of the caller's. Each of those kept has a name of its own: ROLLBACK TO must not find an
            older one.
        again: Whether it is done again if a prepared statement of the session has become useless.
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
            # Refused, as a prepared statement's result has got other types: its session has forgotten it by now.
            if again and isinstance(exc, DatabaseError) and exc.sqlstate in FORGOTTEN:
                return await in_savepoint(session, operation, block, again=False)
        raise
    made, session.ahead = session.ahead is None, None
    if made and not kept:
        await session.execute(savepoint_query("RELEASE", name))
    return result


async def undo(session: Session, savepoint: str | None) -> None:
    """Roll back to a savepoint, which is released, or roll the transaction back.

    Args:
        session: Where; of an error it is only told.
        savepoint: The name of the savepoint; None for the transaction.
    """
    try:  # the user's exception is under way: it is not to be hidden by another
        if savepoint is None:
            session.owed = None
            await session.rollback()
        else:
            await session.execute(savepoint_query("ROLLBACK TO", savepoint))
            await session.execute(savepoint_query("RELEASE", savepoint))
    except PQError as exc:
        logger.warning("rolling back failed; the server does so when the connection ends: %s", exc)
