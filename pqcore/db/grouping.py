"""Which calls of an engine travel with others; see `pqcore.db.group_commit`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from pqcore.db.group_commit import Lines
from pqcore.db.pool import Pool
from pqcore.db.runtime import Kept
from pqcore.db.session import Session
from pqcore.db.sources import AdoptedPool, Loan
from pqcore.db.waiting import Waiting
from pqcore.errors import ConfigurationError

T = TypeVar("T")


class Grouping(Waiting):
    """The lines of an engine's concurrent calls."""

    _groups: bool
    _lines: Kept[Lines]

    @abstractmethod
    async def _run_alone(self, loan: Loan, operation: Callable[[Session], Awaitable[T]], *, protect: bool) -> T:
        """Run an operation by itself; see `pqcore.db.engine.Engine`."""

    def _group(self, wanted: bool | None) -> None:
        """Have concurrent calls travel together, or not.

        Args:
            wanted: As for `pqcore.db.engine.Engine`.

        Raises:
            ConfigurationError: They cannot.
        """
        if wanted not in (None, True, False):
            msg = f"group_commit is {wanted!r}; give True, False, or None"
            raise ConfigurationError(msg)
        if wanted and not isinstance(self.source, (Pool, AdoptedPool)):
            msg = "group_commit=True needs connections that several callers do not share: give PQ a DSN or a pool"
            raise ConfigurationError(msg)
        self._groups = isinstance(self.source, Pool) if wanted is None else wanted
        self._lines = self.runtime.kept(lambda: Lines(partial(self.runtime.line, self._run_alone)))

    def lines(self) -> Lines | None:
        """Return the lines of concurrent calls; None if calls of the running thread or task do not travel with others.

        They do not where the connections are not our own, unless that was asked for, nor in a transaction block.
        """
        if not self._groups or (self._open and self._current() is not None):
            return None
        return self._lines.get()

    def run_outside(self, operation: Callable[[Session], Awaitable[T]]) -> Coroutine[Any, Any, T]:
        """Run an operation as `run` does, where `lines` has said that no block is open here."""
        return self._run_alone(Loan(), operation, protect=True)
