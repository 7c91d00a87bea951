"""The jobs of a table, as an operation puts or takes them: their number, and whether one was lost."""

from __future__ import annotations

from collections.abc import Sequence

from .measurement import Table
from .operations import OPERATIONS

ROOM = 20_000
"""The smallest number of jobs that are put before the table is emptied."""


class Stock:
    """The jobs of a table.

    Args:
        table: The table, which is empty at first.
        operation: A key of `OPERATIONS`, except that of a worker.
        backlog: The number of jobs to put for an operation that takes them one by one; five times as many for other
            operations.
    """

    def __init__(self, table: Table, operation: str, backlog: int) -> None:
        self._table = table
        self._name = operation
        self._operation = OPERATIONS[operation]
        self._more = backlog * (1 if self._operation.jobs == 1 else 5)
        self._put = 0  # put by the operation, or before it
        self._there = 0
        self._missing: list[str] = []

    def prepare(self, calls: int) -> bool:
        """Make sure that there are jobs for some calls, or room for their jobs.

        Args:
            calls: The number of calls.

        Returns:
            Whether the table was changed for that.
        """
        jobs = calls * self._operation.jobs
        if self._operation.takes and self._there < jobs:
            more = max(jobs, self._more)
            self._put += len(self._table.fill(more))
            self._there += more
        elif not self._operation.takes and self._put > max(ROOM, 10 * self._operation.jobs):
            self._check()
            self._table.empty()
            self._put = 0
        else:
            return False
        return True

    def use(self, calls: int) -> None:
        """Record that some calls are made."""
        jobs = calls * self._operation.jobs
        if self._operation.takes:
            self._there -= jobs
        else:
            self._put += jobs

    def losses(self, taken: Sequence[int]) -> tuple[int, int]:
        """Return how many jobs were lost, and how many were given twice.

        Args:
            taken: The ids of the jobs that were taken.
        """
        if not self._operation.takes:
            self._check()
            return 0, 0
        distinct = len(set(taken))
        return self._put - distinct - self._table.count(), len(taken) - distinct

    def take_missing(self) -> list[str]:
        """Return the losses since the last call, as text."""
        missing, self._missing = self._missing, []
        return missing

    def _check(self) -> None:
        """Check that all jobs that were put are in the table."""
        if (there := self._table.count()) != self._put:
            self._missing.append(f"{self._name}: {self._put:,} jobs were put, {there:,} are there")
