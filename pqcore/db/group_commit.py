"""Group commit in the client: concurrent calls of one process travel together.

The flush of a commit to disk is the price of a small operation, and concurrent callers would each pay it.  A *line* has
the calls of one operation, with the same queue and options, of one process or event loop.  While no statement of the
line is under way, a call goes by itself, immediately.  While one is under way, calls wait in the line; when it ends,
those that wait go together, in one statement and one commit, and each gets its own answer.

Nobody waits for company, and nobody waits long for another's trouble: a statement may wait for a lock, or for a slow
trigger.  After `PATIENCE` the next group goes on another connection.

What a group does is the operation's affair: it gets the values of the calls, and gives an answer for each.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from pqcore.errors import ConnectionLost, OutcomeUnknown, PoolTimeout, PQError

T = TypeVar("T")

PATIENCE = 0.01
"""Seconds that calls wait for a statement of their line that is under way.

Longer than the flush of a usual disk takes, and so short that nobody minds when it is in vain.
"""
MOST_CALLS = 100
"""Calls that travel together, at most: what more bring is little, and a crash of the client can lose all of a group."""
MOST_SIZE = 2**20
"""Characters that calls which travel together carry, at most."""
LARGE = 2**16
"""Characters: a call that carries so much goes by itself, so that others do not wait for it."""

NOT_YET = float("inf")
"""As the time at which a statement began whose connection is still waited for: the patience does not end meanwhile."""
CROWDED = 1e-9
"""As the time at which a statement began: none is under way, and several calls travelled together in the last one.

Its callers call again now, in this line or another: the first of them takes along those that are ready to run.
"""
REFUSED = 3
"""Groups that are refused, one after the other, before the calls of a line go by themselves."""
RESTING = 10.0
"""Seconds for which they do."""
KEPT_LINES = 100
"""Lines that a queue keeps, at most: leases of so many lengths, for example."""


class Alone:
    """The answer to a call that has to go by itself; there is one, `ALONE`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ALONE"


ALONE: Final = Alone()


@dataclass(frozen=True, eq=False)
class Together:
    """What several calls ask for.

    Attributes:
        run: Does it in one statement: given a session and the values of the calls, it returns their answers in order.
        undo: Undoes what it did for callers that are gone, called with their answers; None if that cannot be undone.
        most: What the values of calls that travel together may add up to in length.
    """

    run: Callable[[Any, list[Any]], Awaitable[Sequence[Any]]]
    undo: Callable[..., Awaitable[None]] | None = None
    most: int = MOST_SIZE


class Runner(Protocol):
    """Runs an operation by itself, with the session of a loan; see `pqcore.db.engine.Engine`."""

    async def __call__(self, loan: Any, operation: Callable[[Any], Awaitable[T]], *, protect: bool) -> T: ...


class Line(Protocol):
    """The calls of one operation, of one process or event loop.

    Attributes:
        since: When the statement of the line began that is under way, by the monotonic clock; 0.0 if there is none. A
            call that goes by itself sets it.
    """

    since: float

    def is_here(self) -> bool:
        """Whether it is of this process, and of the running event loop."""

    def end(self, began: float) -> None:
        """Take note that a statement is over, and have the calls that wait go together.

        Args:
            began: The time that ``since`` was set to as the statement began.
        """

    def join(self, value: Any) -> Awaitable[Any]:
        """Have a call travel with others.

        Args:
            value: What the call carries, for `Together`; it has a length.

        Returns:
            What gives the answer: that of `Together`, or `ALONE`.

        Raises:
            OutcomeUnknown: The connection was lost while the statement was under way.
            PoolTimeout: No connection was free.
        """


class Lines:
    """The lines of a queue, by what their calls have in common: those that were used last, in whatever event loop.

    Attributes:
        get: Returns the line of a key; None if there is none.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, Line] = {}
        self.get = self._lines.get

    def __iter__(self) -> Iterator[Line]:
        return iter(list(self._lines.values()))

    def add(self, key: Hashable, line: Line) -> Line:
        """Keep a line, in place of others if there are too many."""
        if len(self._lines) >= KEPT_LINES:
            self._lines.clear()  # those that are used go on, and end
        self._lines[key] = line
        return line


class Rest:
    """Has the calls of a line go by themselves for a while, if groups are refused one after the other.

    A trigger or a rule may stand in the way of all of them, and a group that is refused is work done twice.
    """

    __slots__ = ("_refused", "_until")

    def __init__(self) -> None:
        self._refused = 0
        self._until = 0.0

    def is_on(self) -> bool:
        """Whether calls are to go by themselves."""
        return self._refused >= REFUSED and time.monotonic() < self._until

    def note(self, *, refused: bool) -> None:
        """Take note of what became of a group."""
        self._refused = self._refused + 1 if refused else 0
        self._until = time.monotonic() + RESTING


def error_for_each(exc: BaseException | None, *, claimed: bool) -> Callable[[], PQError] | None:
    """Return what makes the error of each call of a group that failed; None if each is to go by itself.

    Args:
        exc: What the group failed with; None if it was interrupted.
        claimed: Whether the calls were part of the statement already.
    """
    if not isinstance(exc, PQError):  # a cancellation or an interrupt, of what ran the statement
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
    "what sent the statement of several calls was interrupted: it may have taken effect, or not: look before you do it"
    " again"
)


def _caused_by(error: PQError, cause: BaseException | None) -> PQError:
    error.__cause__ = cause
    return error
