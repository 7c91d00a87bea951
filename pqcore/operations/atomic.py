"""Transactions in which several statements take effect together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from pqcore.db.session import Session
from pqcore.errors import IdTaken

T = TypeVar("T")
DRAWS = 20
"""How often ids are drawn from the sequence before a conflict of ids becomes an error."""


async def with_free_ids(attempt: Callable[[], Awaitable[T]]) -> T:
    """Call a function that draws ids; if other rows already have these ids, repeat the call, which draws the next ids.

    Raises:
        IdTaken: The ids were taken in all `DRAWS` attempts.
    """
    for _ in range(DRAWS - 1):
        with suppress(IdTaken):
            return await attempt()
    return await attempt()


@asynccontextmanager
async def atomic(s: Session) -> AsyncIterator[None]:
    """Open a transaction at READ COMMITTED; if the session already has one, run the block in that transaction.

    On an idle connection of the caller, the driver may begin a transaction with the first statement. Then the caller
    must commit this transaction.
    """
    if s.caller_owned and not s.in_transaction():
        await s.execute(s.sql.ping)
    if s.in_transaction():
        yield
        return
    await s.begin_own()
    try:
        yield
    except BaseException:
        if s.usable():
            await s.rollback()
        raise
    await s.commit()
