"""``with`` blocks: what is known of each, and when one ends.

A block ends with its ``with`` statement, however that ends: see `Leaving`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from weakref import ref

from pqcore.db.runtime import Lock
from pqcore.db.session import Session
from pqcore.db.sources import Loan


@dataclass(eq=False, slots=True)
class OpenTransaction:
    """A transaction that a ``with`` block began or joined."""

    loan: Loan
    lock: Lock | None  # where tasks may share it; a thread has its own
    task: object  # that began it, where there are tasks
    blocks: list[Block] = field(default_factory=list)
    abort_only: bool = False  # a job was taken in it for nobody: the block can only be rolled back
    process: int = field(default_factory=os.getpid)

    @property
    def session(self) -> Session:
        return self.loan.session


AtEnd: TypeAlias = "Callable[[Session | None], Awaitable[None]]"
"""Called as a block ends, before its commit: with the session, or with None if the block is undone."""


@dataclass(eq=False, slots=True)
class Block:
    """One ``with`` block; the inner ones are savepoints.

    Attributes:
        transaction: Its transaction.
        savepoint: The name of its savepoint; None if the transaction is its own.
        first: Whether it is the outermost.
        at_end: What is done as it ends.
        statement: Gone as soon as the ``with`` statement is, however that ended. None if that is not known.
    """

    transaction: OpenTransaction
    savepoint: str | None
    first: bool
    statement: ref[object] | None = None
    at_end: list[AtEnd] = field(default_factory=list)


_entering = threading.local()
"""The ``with`` statement of a thread that is about to begin a block."""


class Leaving:
    """The ``__exit__`` of a queue, or its ``__aexit__``: what a ``with`` statement calls to leave the block.

    An interrupt may come after the body and before the first line of ``__exit__``, which is not called again then.
    But until it is over, the ``with`` statement holds on to what it would call; then Python lets go of that. So it is
    made for each statement, and the block lasts as long as it does. It is no function, as tracebacks keep functions.

    Args:
        leave: Leaves a block; called with the engine, what stands for the statement, and what ``__exit__`` is called
            with.
        awaited: Whether it is a coroutine function. An ``async with`` lets go of it before it awaits the coroutine.
    """

    def __init__(self, leave: Callable[..., Any], *, awaited: bool = False) -> None:
        self._leave = leave
        self._awaited = awaited

    def __get__(self, queue: Any, owner: type) -> Callable[..., Any]:
        statement = _Statement() if self._awaited else None
        leaving = (
            partial(_leave_of, self._leave, statement)  # for contextlib.ExitStack, which calls it with the queue
            if queue is None
            else partial(self._leave, queue.engine, statement)
        )
        _entering.statement = ref(statement or leaving)
        return leaving


class _Statement:
    """Stands for an ``async with`` statement: kept by the coroutine that leaves the block."""

    __slots__ = ("__weakref__",)


def entered() -> object:
    """Return what stands for the ``with`` statement that the running thread is about to enter, if that is known."""
    known: ref[object] | None = getattr(_entering, "statement", None)
    _entering.statement = None
    return None if known is None else known()


def _leave_of(leave: Callable[..., Any], statement: object, queue: Any, *called: object) -> Any:
    return leave(queue.engine, statement, *called)
