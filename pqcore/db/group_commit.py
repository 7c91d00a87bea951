"""Group commit in the client: concurrent calls of one process share a statement.

The flush of a commit to disk dominates the cost of a small operation, and without groups, each caller would wait for a
flush of its own. A *line* holds the calls of one operation with the same queue and options, from one process or event
loop. While no statement of the line is running, a call runs by itself, immediately. While a statement is running, calls
wait in the line. When the statement ends, pqcore runs all waiting calls in one statement and one commit, and each call
gets its own answer.

No call waits only so that others can join it. No call waits long for a slow statement, which may wait for a lock or a
trigger. After `PATIENCE` seconds, the next group uses another connection.

The operation of a line gets the values of a group's calls, and returns an answer for each call.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from pqcore.errors import ConnectionLost, OutcomeUnknown, PoolTimeout, PQError

T = TypeVar("T")

PATIENCE = 0.01
"""Seconds that calls wait for a running statement of their line.

This is longer than a usual disk takes to flush, and short enough to go unnoticed if the wait was in vain.
"""
MOST_CALLS = 100
"""The largest number of calls in a group. Larger groups save little more, and a crash of the client loses its group."""
MOST_SIZE = 2**20
"""The largest number of characters in the calls of a group."""
LARGE = 2**16
"""A call with this many characters or more runs by itself, so that other calls do not wait for it."""

NOT_YET = float("inf")
"""The start time of a statement that still waits for a connection: meanwhile, `PATIENCE` does not run out."""
CROWDED = 1e-9
"""The start time that marks a line without a running statement whose last statement served several calls.

The callers that this statement served are about to call again, in this line or another. So pqcore sends the next call
not immediately, but in the next turn of the event loop, together with all calls made in this turn.
"""
REFUSED = 3
"""After this many refused groups in succession, the calls of a line run separately for `RESTING` seconds."""
RESTING = 10.0
"""Seconds for which the calls of a line run separately after `REFUSED` refused groups."""
KEPT_LINES = 100
"""The largest number of lines that a queue keeps. For example, a queue has one line for each length of leases."""


class Alone:
    """The answer for a call that must run by itself; the only instance is `ALONE`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ALONE"


ALONE: Final = Alone()


@dataclass(frozen=True, eq=False)
class Together:
    """The operation that several calls ask for.

    Attributes:
        run: A function that runs one statement: given a session and the values of the calls, it returns their answers
            in order.
        undo: A function that undoes the effects for callers that are gone, given their answers; None if they cannot be
            undone.
        most: The largest total length of the values in a group.
    """

    run: Callable[[Any, list[Any]], Awaitable[Sequence[Any]]]
    undo: Callable[..., Awaitable[None]] | None = None
    most: int = MOST_SIZE


class Runner(Protocol):
    """A function that runs an operation by itself; see `pqcore.db.engine.Engine.run_alone`."""

    async def __call__(self, operation: Callable[[Any], Awaitable[T]]) -> T: ...


class Line(Protocol):
    """The concurrent calls of one operation, in one process or event loop.

    Attributes:
        since: When the running statement of the line began, by the monotonic clock; 0.0 if no statement is running. A
            call that runs by itself sets this time.
    """

    since: float

    def is_here(self) -> bool:
        """Return whether the line belongs to this process, and to the running event loop."""

    def pass_on(self) -> None:
        """Have the waiting calls run in one statement, after a statement has ended; if no call waits, free the line."""

    def join(self, value: Any) -> Awaitable[Any]:
        """Add a call to a group.

        Args:
            value: The value of the call, for `Together`; it must have a length.

        Returns:
            An awaitable that returns the answer from `Together`, or `ALONE`.

        Raises:
            OutcomeUnknown: The connection was lost while the statement was running.
            PoolTimeout: No connection became free.
        """


class Lines:
    """The lines of a queue, each under a key: the values that its calls have in common.

    At most `KEPT_LINES` lines are kept, for all event loops together.

    Attributes:
        get: A function that returns the line of a key; None if there is none.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, Line] = {}
        self.get = self._lines.get

    def __iter__(self) -> Iterator[Line]:
        return iter(list(self._lines.values()))

    def add(self, key: Hashable, line: Line) -> Line:
        """Keep a line; if there are too many lines, drop all others."""
        if len(self._lines) >= KEPT_LINES:
            self._lines.clear()  # the calls of a dropped line still get their answers
        self._lines[key] = line
        return line


class Rest:
    """A switch that makes the calls of a line run separately for a while, after several groups were refused.

    A trigger or a rule of the database may refuse every group. After a refusal, each call of the group runs again by
    itself, so the work is done twice.
    """

    __slots__ = ("_refused", "_until")

    def __init__(self) -> None:
        self._refused = 0
        self._until = 0.0

    def is_on(self) -> bool:
        """Return whether calls run separately now."""
        return self._refused >= REFUSED and time.monotonic() < self._until

    def note(self, *, refused: bool) -> None:
        """Record whether a group succeeded."""
        self._refused = self._refused + 1 if refused else 0
        self._until = time.monotonic() + RESTING


def error_for_each(exc: BaseException | None, *, claimed: bool) -> Callable[[], PQError] | None:
    """Return a function that makes the error for each call of a failed group; None if each call must run by itself.

    Args:
        exc: The exception of the group; None if the group was interrupted.
        claimed: Whether the calls were already part of the statement.
    """
    if not isinstance(exc, PQError):  # a cancellation or an interrupt of the statement's runner
        if not claimed:
            return None
        return lambda: _caused_by(OutcomeUnknown(_INTERRUPTED), exc)
    if isinstance(exc, ConnectionLost):
        kind, text, sqlstate = type(exc), str(exc), getattr(exc, "sqlstate", None)
        return (lambda: _caused_by(kind(text, sqlstate), exc.__cause__)) if claimed else None
    if isinstance(exc, PoolTimeout) and not claimed:
        return lambda: PoolTimeout(str(exc))
    return None


_INTERRUPTED = (
    "the thread that sent this call together with others was interrupted: the call may have taken effect, or not:"
    " check before you repeat it"
)


def _caused_by(error: PQError, cause: BaseException | None) -> PQError:
    error.__cause__ = cause
    return error
