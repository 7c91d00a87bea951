"""Several statements that take effect together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from pqcore.db.session import Session
from pqcore.errors import IdTaken

T = TypeVar("T")
DRAWS = 20
"""How often new ids are drawn where those that were drawn are taken, before that is told."""


async def with_free_ids(attempt: Callable[[], Awaitable[T]]) -> T:
    """Do something that draws ids again while these are taken: each attempt draws those that follow.

    Raises:
        IdTaken: So they were, `DRAWS` times.
    """
    for _ in range(DRAWS - 1):
        with suppress(IdTaken):
            return await attempt()
    return await attempt()


@asynccontextmanager
async def atomic(s: Session) -> AsyncIterator[None]:
    """A transaction of our own, at READ COMMITTED, unless the session is in one: then the block is part of that.

    An idle connection of the caller's may be one whose driver begins with the first
    statement, whatever it is: then the transaction is the caller's, to be committed by the caller.
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
