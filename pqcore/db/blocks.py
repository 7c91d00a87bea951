"""``with`` blocks: the state of each block, and how pqcore notices the end of a block.

A block ends with its ``with`` statement, even after an interrupt: see `Leaving`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import Any, TypeAlias
from weakref import ref

from pqcore.db.runtime import Lock
from pqcore.db.session import Session
from pqcore.db.sources import Loan


@dataclass(eq=False, slots=True)
class OpenTransaction:
    """A transaction that a ``with`` block began or joined."""

    loan: Loan
    # A lock for tasks that share the transaction; None for threads, which never share a transaction.
    lock: Lock | None
    # The task that began the transaction, if tasks are used. The reference is weak, because a task keeps the traceback
    # of its error.
    task: ref[object] | None
    blocks: list[Block] = field(default_factory=list)
    abort_only: bool = False  # whether the transaction must be rolled back: it took a job for a caller that is gone
    process: int = field(default_factory=os.getpid)
    savepoints: int = 0  # the number of operations' savepoints that are kept until the block ends

    @property
    def session(self) -> Session:
        return self.loan.session

    def is_of(self, task: object) -> bool:
        """Return whether the given asyncio task began the transaction; None stands for no task."""
        return task is (None if self.task is None else self.task())


AtEnd: TypeAlias = "Callable[[Session | None], Awaitable[None]]"
"""A function that is called when a block ends. Before a commit, its argument is the session; after a rollback, None."""


@dataclass(eq=False, slots=True)
class Block:
    """One ``with`` block; inner blocks are savepoints.

    Attributes:
        transaction: The transaction of the block.
        savepoint: The name of the block's savepoint; None if the block began the transaction.
        first: Whether the block is the outermost one.
        at_end: Functions to call as the block ends.
        statement: A weak reference that dies with the ``with`` statement, however the statement ends. None if the
            statement is unknown.
    """

    transaction: OpenTransaction
    savepoint: str | None
    first: bool
    statement: ref[object] | None = None
    at_end: list[AtEnd] = field(default_factory=list)


_entering = threading.local()
"""The last `_Lookup` of a thread, until a block begins or ends."""


@dataclass(eq=False, slots=True)
class _Lookup:
    """A lookup of a queue's ``__exit__``, which a ``with`` statement makes right before the block begins.

    A program that calls the methods itself may look ``__exit__`` up at any time, and keep it. A reference that a
    program keeps must not control when a block ends. So a block uses a lookup only if the function that made the lookup
    is also the function that now calls ``__enter__``.

    Attributes:
        statement: An object that lives as long as the ``with`` statement.
        engine: The engine of the queue; None if unknown.
        frame: The id of the function's frame. A reference to the frame would keep the program's variables alive.
        code: The code of that frame, because ids are reused.
        instruction: The instruction that made the lookup.
    """

    statement: ref[object]
    engine: ref[object] | None
    frame: int
    code: CodeType
    instruction: int

    def statement_of(self, engine: object) -> object:
        """Return the ``with`` statement, if the statement begins a block of this engine here."""
        statement = self.statement()
        if statement is None or (self.engine is not None and self.engine() is not engine):
            return None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and (id(frame) != self.frame or frame.f_code is not self.code):
            frame = frame.f_back
        return None if frame is None or frame.f_lasti < self.instruction else statement


class Leaving:
    """The ``__exit__`` or ``__aexit__`` of a queue, which a ``with`` statement calls to leave the block.

    An interrupt may come after the body and before the first line of ``__exit__``; then Python does not call
    ``__exit__`` again. But the ``with`` statement keeps a reference to ``__exit__`` until the statement is over. So
    each statement gets its own object, and the block lasts as long as the object. The object is not a function, because
    tracebacks keep functions alive.

    Args:
        leave: A function that leaves a block; its arguments are the engine, the object for the statement, and the
            arguments of ``__exit__``.
        awaited: Whether ``leave`` is a coroutine function. An ``async with`` statement drops its reference before it
            awaits the coroutine.
    """

    def __init__(self, leave: Callable[..., Any], *, awaited: bool = False) -> None:
        self._leave = leave
        self._awaited = awaited

    def __get__(self, queue: Any, owner: type) -> Callable[..., Any]:
        statement = _Statement() if self._awaited else None
        leaving = (
            # for contextlib.ExitStack, which passes the queue as an argument
            partial(_leave_of, self._leave, statement)
            if queue is None
            else partial(self._leave, queue.engine, statement)
        )
        engine = None if queue is None else ref(queue.engine)
        # Take the caller's frame: this function's own frame would refer to itself, and so keep the statement alive.
        frame = sys._getframe(1)
        _entering.lookup = _Lookup(ref(statement or leaving), engine, id(frame), frame.f_code, frame.f_lasti)
        return leaving


class _Statement:
    """A stand-in for an ``async with`` statement; the coroutine that leaves the block keeps this object alive."""

    __slots__ = ("__weakref__",)


def entered(engine: object) -> object:
    """Return the object for the ``with`` statement that begins a block here; None if there is no such statement.

    Args:
        engine: The engine of the block.
    """
    lookup: _Lookup | None = getattr(_entering, "lookup", None)
    _entering.lookup = None
    return None if lookup is None else lookup.statement_of(engine)


def leaves() -> None:
    """Forget the last lookup of ``__exit__``: the program itself called the method, without a ``with`` statement."""
    _entering.lookup = None


def _leave_of(leave: Callable[..., Any], statement: object, queue: Any, *called: object) -> Any:
    return leave(queue.engine, statement, *called)
