"""``with`` blocks: what is known of each, and when one ends.

A block ends with its ``with`` statement, however that ends: see `Leaving`.
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
    lock: Lock | None  # where tasks may share it; a thread has its own
    task: ref[object] | None  # that began it, where there are tasks; weak, as a task keeps the traceback of its error
    blocks: list[Block] = field(default_factory=list)
    abort_only: bool = False  # a job was taken in it for nobody: the block can only be rolled back
    process: int = field(default_factory=os.getpid)
    savepoints: int = 0  # of operations, that are kept until it ends

    @property
    def session(self) -> Session:
        return self.loan.session

    def is_of(self, task: object) -> bool:
        """Return whether a task began it."""
        return task is (None if self.task is None else self.task())


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
"""The last `_Lookup` of a thread, until a block begins or ends."""


@dataclass(eq=False, slots=True)
class _Lookup:
    """A lookup of the ``__exit__`` of a queue, as a ``with`` statement makes it right before the block begins.

    A program that calls the methods itself may look ``__exit__`` up at any time, and keep it. No block may end with
    what such a program keeps. So a block is tied to a lookup only if the lookup comes earlier in a function that calls
    ``__enter__`` now.

    Attributes:
        statement: What lasts as long as the ``with`` statement.
        engine: The engine of the queue; None if that is not known.
        frame: The id of the function's frame. The frame itself would keep variables of the program's.
        code: The code of that frame: an id comes again.
        instruction: The instruction of the lookup.
    """

    statement: ref[object]
    engine: ref[object] | None
    frame: int
    code: CodeType
    instruction: int

    def statement_of(self, engine: object) -> object:
        """Return the ``with`` statement, if it begins a block of this engine here."""
        statement = self.statement()
        if statement is None or (self.engine is not None and self.engine() is not engine):
            return None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and (id(frame) != self.frame or frame.f_code is not self.code):
            frame = frame.f_back
        return None if frame is None or frame.f_lasti < self.instruction else statement


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
        engine = None if queue is None else ref(queue.engine)
        frame = sys._getframe(1)  # not its own, which would refer to itself, and keep the statement
        _entering.lookup = _Lookup(ref(statement or leaving), engine, id(frame), frame.f_code, frame.f_lasti)
        return leaving


class _Statement:
    """Stands for an ``async with`` statement: kept by the coroutine that leaves the block."""

    __slots__ = ("__weakref__",)


def entered(engine: object) -> object:
    """Return what stands for the ``with`` statement that begins a block here; None if no such statement does.

    Args:
        engine: The engine of the block.
    """
    lookup: _Lookup | None = getattr(_entering, "lookup", None)
    _entering.lookup = None
    return None if lookup is None else lookup.statement_of(engine)


def leaves() -> None:
    """Forget what was looked up: a program that leaves a block itself has looked up the method for that."""
    _entering.lookup = None


def _leave_of(leave: Callable[..., Any], statement: object, queue: Any, *called: object) -> Any:
    return leave(queue.engine, statement, *called)
