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

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar

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
KEPT_LINES = 1_000
"""Lines that are kept, about: those that nobody uses are made again when they are needed."""


class Alone:
    """The answer to a call that has to go by itself; there is one, `ALONE`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ALONE"


ALONE: Final = Alone()
Together: TypeAlias = Callable[[Any, list[Any]], Awaitable[Sequence[Any]]]
"""Does what several calls ask for, in one statement. Given a session and their values, it returns an answer for each,
in order."""


class Runner(Protocol):
    """Runs an operation by itself, with the session of a loan; see `pqcore.db.engine.Engine`."""

    async def __call__(self, loan: Any, operation: Callable[[Any], Awaitable[T]], *, protect: bool) -> T: ...


class Line(Protocol):
    """The calls of one operation, of one process or event loop.

    Attributes:
        since: When the statement of the line began that is under way, by the monotonic clock; 0.0 if there is none.
    """

    since: float

    def begin(self) -> float:
        """Have a call go by itself, as no statement of the line is under way; what is given to `end`."""

    def end(self, began: float) -> None:
        """Take note that the statement of the call is over, and have those that wait go together."""

    def join(self, value: Any) -> Awaitable[Any]:
        """Have a call travel with others.

        Args:
            value: What the call carries: for `Together`.

        Returns:
            What gives the answer: that of `Together`, or `ALONE`.

        Raises:
            OutcomeUnknown: The connection was lost while the statement was under way.
            PoolTimeout: No connection was free.
        """


class Lines(dict[Hashable, Line]):
    """The lines of one process or event loop, by what their calls have in common.

    Args:
        make_line: Makes a line of what does its calls together.
    """

    def __init__(self, make_line: Callable[[Together], Line]) -> None:
        super().__init__()
        self._make_line = make_line

    def make(self, key: Hashable, together: Together) -> Line:
        """Return the line of these calls, which has just been looked for in vain."""
        if len(self) >= KEPT_LINES:
            for other in list(self):
                if not self[other].since:
                    self.pop(other, None)
        return self.setdefault(key, self._make_line(together))


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
