"""How the demonstration is shown: lines, or a live table where there are a terminal and rich."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

EVERY = 1.0
"""Seconds between lines on the progress, at least."""


@dataclass
class Tally:
    """How far it is.

    Attributes:
        jobs: How many must be moved.
        drivers: Their names.
        put, done, alive, killed: Jobs and workers, by driver.
        began: When the workers were told to go, by the monotonic clock.
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
        """Jobs done a second, by one driver or all."""
        if self.began is None:
            return 0.0
        done = self.done.total() if driver is None else self.done[driver]
        return done / max((self.ended or time.monotonic()) - self.began, 1e-3)


@dataclass(frozen=True)
class Sheet:
    """A table to show: text to the left, numbers to the right.

    Attributes:
        title: Above it.
        columns: Their names.
        rows: As many cells in each.
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
        """Within this context the board shows the tally's changes by itself, if it can."""
        return nullcontext()

    def note(self, text: str) -> None:
        """Say that something happened."""
        print(text, flush=True)

    def refresh(self) -> None:
        """Say how far it is, if that was not said just now."""
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
        """Write a picture of what was shown, if it was asked for before."""

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
