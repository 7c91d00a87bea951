"""The choice of the calls that share statements, for one engine; see `pqcore.db.group_commit`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Hashable
from time import monotonic
from typing import TypeVar

from pqcore.db.group_commit import Line, Lines, Together
from pqcore.db.pool import Pool
from pqcore.db.session import Session
from pqcore.db.sources import AdoptedPool, Loan
from pqcore.db.waiting import Waiting
from pqcore.errors import ConfigurationError

T = TypeVar("T")


class Grouping(Waiting):
    """The lines of an engine's concurrent calls."""

    _groups: bool

    @abstractmethod
    async def run_alone(
        self,
        operation: Callable[[Session], Awaitable[T]],
        line: Line | None = None,
        *,
        protect: bool = True,
        loan: Loan | None = None,
    ) -> T:
        """Run an operation by itself; see `pqcore.db.engine.Engine`."""

    async def run_settled(
        self,
        operation: Callable[[Session], Awaitable[T]],
        undo: Callable[[T], Awaitable[None]],
        line: Line | None = None,
        *,
        protect: bool = True,
    ) -> T:
        """Run an operation by itself, as `run_alone` does; if the caller is cancelled meanwhile, undo its result."""
        loan = Loan()
        try:
            if not self.source.lend(loan, monotonic()):
                await self.source.acquire(loan)  # a cancellation during this call closes the connection
            work = self.run_alone(operation, line, protect=protect, loan=loan)
            return await self.runtime.shield(work, undo, loan.abort, own_task=loan[-1].cancels_task)
        except BaseException as exc:
            await self._failed(loan, exc)
            raise

    def _group(self, wanted: bool | None) -> None:
        """Turn group commit on or off.

        Args:
            wanted: The argument ``group_commit`` of `pqcore.db.engine.Engine`.

        Raises:
            ConfigurationError: Group commit is not possible.
        """
        if wanted not in (None, True, False):
            msg = f"group_commit is {wanted!r}; give True, False, or None"
            raise ConfigurationError(msg)
        if wanted and not isinstance(self.source, (Pool, AdoptedPool)):
            msg = "group_commit=True needs more than one connection: give PQ a DSN or a pool"
            raise ConfigurationError(msg)
        if reason := self.dialect.unsupported.get("group commit"):
            if wanted:
                msg = f"group_commit=True is not supported by the dialect {self.dialect.name!r}: {reason}"
                raise ConfigurationError(msg)
            wanted = False
        self._groups = isinstance(self.source, Pool) if wanted is None else wanted

    def line(self, lines: Lines, key: Hashable, together: Callable[..., Together], *args: object) -> Line | None:
        """Return the line of concurrent calls for a call; None if the call shares no statement.

        Calls in a transaction block never share statements. Calls on connections that the engine did not open share
        statements only if the caller asked for group commit.

        Args:
            lines: The lines of a queue.
            key: The values that the calls have in common.
            together: A function that returns the operation that the calls ask for.
            args: The arguments of ``together``.
        """
        if not self._groups or (self._open and self._current() is not None):
            return None
        line = lines.get(key)
        # A free line of threads has no running statement and no waiting calls, so any process can use it. A forked
        # child checks a line only if the line is busy.
        if line is None or ((line.since or self.runtime.suspends) and not line.is_here()):
            line = lines.add(key, self.runtime.line(self.run_alone, together(*args)))
        return line
