"""The output of the demonstration: lines, or a live table on a terminal if rich is installed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

EVERY = 1.0
"""The shortest time between lines about the progress, in seconds."""


@dataclass
class Tally:
    """The progress of the demonstration.

    Attributes:
        jobs: The number of jobs to move.
        drivers: The names of the drivers.
        put, done, alive, killed: The numbers of jobs and workers, by driver.
        began: When the workers were told to start, by the monotonic clock.
        ended: When the last job was done.
    """

    jobs: int
    drivers: Sequence[str]
    put: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    alive: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    began: float | None = None
    ended: float | None = None

    def rate(self, driver: str | None = None) -> float:
        """Return how many jobs per second were done, over one driver or over all."""
        if self.began is None:
            return 0.0
        done = self.done.total() if driver is None else self.done[driver]
        return done / max((self.ended or time.monotonic()) - self.began, 1e-3)


@dataclass(frozen=True)
class Sheet:
    """A table to show: text is left-aligned, numbers are right-aligned.

    Attributes:
        title: The title above the table.
        columns: The names of the columns.
        rows: The rows, each with one cell for each column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int]]


class PlainBoard:
    """Lines of text."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._next = 0.0

    def live(self) -> AbstractContextManager[object]:
        """Return a context in which a live board shows changes of the tally by itself."""
        return nullcontext()

    def note(self, text: str) -> None:
        """Report an event."""
        print(text, flush=True)

    def refresh(self) -> None:
        """Report the progress, unless it was reported just before."""
        tally, now = self.tally, time.monotonic()
        if tally.began is None or now < self._next:
            return
        self._next = now + EVERY
        done = ", ".join(f"{driver} {tally.done[driver]}" for driver in tally.drivers)
        self.note(
            f"{now - tally.began:5.1f} s: {tally.put.total()} put, {tally.done.total()} of {tally.jobs} done"
            f" ({done}), {tally.rate():.0f} a second, {tally.alive.total()} workers"
        )

    def paint(self, file: Path) -> None:
        """Write a picture of the output, if one was requested at the start."""

    def show(self, sheet: Sheet) -> None:
        """Show a table."""
        rows = [sheet.columns, *sheet.rows]
        widths = [max(len(str(row[place])) for row in rows) for place in range(len(sheet.columns))]
        self.note(f"\n{sheet.title}")
        for row in rows:
            cells = (_aligned(cell, width) for cell, width in zip(row, widths, strict=True))
            self.note("  " + "  ".join(cells).rstrip())


def _aligned(cell: str | int, width: int) -> str:
    return f"{cell:<{width}}" if isinstance(cell, str) else f"{cell:>{width}}"
