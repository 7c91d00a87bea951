"""Where to begin to look, for a consumer that takes many jobs in succession.

Rows that were taken leave dead entries at the head of the index.  While another
session holds an old snapshot they cannot be removed, and every look from the head steps over all
of them: a get slows down in proportion to what was taken before.  So a consumer that
takes one after the other begins where it left off.

What lies before that is found too, a little later: a job put with an earlier time, one
that was rolled back, one whose lease ran out.  Every `FULL_LOOK` seconds, and whenever nothing is
found, a look is a full one; and from what a full look takes, the next ones go on.
Consumers that do not take a thousand in succession always look fully.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pqcore.backend import Row
from pqcore.rows import JobRow, expected_at_of

FULL_LOOK = 1.0
"""Seconds after which a look is a full one: so long may a job stay unseen that came in before the bound."""
SUCCESSION = 1_000
"""Jobs taken in succession, with no pause of `FULL_LOOK`, after which the bound is used."""
STRIDE = 16
"""Jobs after which the bound moves on: stepping over so many dead entries costs less than writing it out for each."""

_BEFORE_URGENT = "-infinity -infinity -1"
_BEFORE_READY = "-infinity -1"


class ScanPosition:
    """The last keys that a queue object took, by class of rows.

    Threads may share it: whatever they leave in it is the key of a row that one of them took.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._last = self._full = float("-inf")
        self._urgent: tuple[datetime, datetime, int] | None = None
        self._ready: Row | None = None
        self._value = ""
        self._moves_at = 0

    def usable(self, now: float) -> bool:
        """Whether the next look may begin at the bound.

        Args:
            now: The time by the monotonic clock, in seconds.
        """
        return self._taken >= SUCCESSION and now - self._full < FULL_LOOK and now - self._last < FULL_LOOK

    def value(self) -> str:
        """Where the next look is to begin, for the statement that begins there: the keys in one text."""
        if self._taken < self._moves_at:
            return self._value
        first, second = _BEFORE_URGENT, _BEFORE_READY
        if self._urgent is not None:
            expected_at, enqueued_at, job_id = self._urgent
            first = f"{_text(expected_at)} {_text(enqueued_at)} {job_id}"
        if self._ready is not None:
            ready = JobRow._make(self._ready)
            second = f"{_text(ready.due_at)} {ready.id}"
        self._value, self._moves_at = f"{first} {second}", self._taken + STRIDE
        return self._value

    def advance(self, rows: Sequence[Row], now: float, *, full: bool) -> None:
        """Take note of rows that were taken, in their order; none: there are none, and it begins again."""
        self._taken = self._taken + len(rows) if rows and now - self._last < FULL_LOOK else len(rows)
        self._last = now
        if full:
            self._full = now
            self._moves_at = 0  # it may have found what lies before
        if self._taken < SUCCESSION // 2:  # not to be used soon
            return
        last = rows[-1]
        if expected_at_of(last) is None:
            self._ready = last
            if len(rows) == 1:
                return
        for job_id, _, _, _, _, enqueued_at, schedule_at, expected_at, _, _, _ in reversed(rows):
            if expected_at is not None and schedule_at is None:
                self._urgent = expected_at, enqueued_at, job_id
                break


def _text(moment: datetime) -> str:
    return f"{moment.isoformat()}+00"
