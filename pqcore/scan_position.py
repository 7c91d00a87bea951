"""The position at which a consumer begins to look, after it has taken many jobs in succession.

Taken rows leave dead entries at the head of the index. While another session holds an old snapshot, VACUUM cannot
remove these entries. Every look from the head steps over all of them, so each get is slower than the last. So a
consumer that takes many jobs in succession begins where its last take ended.

A job can appear before that position: if it is put with an earlier time, if its take is rolled back, or if its lease
runs out. The consumer finds such a job a little later: every `FULL_LOOK` seconds, and whenever a look finds nothing,
the next look begins at the head. Later looks continue from the job that the look from the head took. Consumers that
take fewer than a thousand jobs in succession always look from the head, unless such looks are costly.

A look from the head takes longer the more dead entries there are. Between two looks from the head, the consumer waits
at least `SPARING` times as long as the first of them took. So such looks take at most about a fiftieth of
a consumer's time. If they take more, the consumer uses the position as soon as such looks have exceeded this share by a
second, even if it has taken few jobs. Otherwise, a consumer that starts while there are millions of dead entries would
need minutes for its first thousand jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from time import monotonic

from pqcore.backend import Row
from pqcore.rows import JobRow, expected_at_of

FULL_LOOK = 1.0
"""Seconds after which a look begins at the head again; until then, a job before the position may stay unseen."""
SPARING = 50
"""The shortest time between two looks from the head, as a multiple of the duration of the first look."""
COSTLY = 1.0
"""Seconds by which looks from the head must exceed a fiftieth of the consumer's time, to count as costly."""
QUICK = 0.02
"""Seconds within which a look from the head must end, so that looks do not count as costly, however many there are."""
LONGEST_PAUSE = 30.0
"""The largest number of seconds between two looks from the head."""
SUCCESSION = 1_000
"""The number of jobs taken in succession, with no pause of `FULL_LOOK` seconds, after which the position is used."""
STRIDE = 16
"""The number of jobs after which the position advances: stepping over this number of dead entries is cheaper than
writing the position for each job."""

_BEFORE_URGENT = "-infinity -infinity -1"
_BEFORE_READY = "-infinity -1"


class FullLooks:
    """The times of looks from the head: when the last one ended, and when the next one is due.

    Attributes:
        pause: Seconds from the end of the last look from the head to the beginning of the next.
        rest: The same, if the next look is urgent: 0 after a quick look, and ``pause`` after a slow one.
        are_costly: Whether these looks recently took much more than a fiftieth of the consumer's time.
    """

    __slots__ = ("_ended", "_spent", "are_costly", "pause", "rest")

    def __init__(self) -> None:
        self._ended = float("-inf")
        self._spent = 0.0  # seconds that these looks took, minus a fiftieth of the time that passed
        self.pause, self.rest, self.are_costly = FULL_LOOK, 0.0, False

    def note(self, now: float, took: float) -> None:
        """Record that a look from the head has ended.

        Args:
            now: The present time by the monotonic clock, in seconds.
            took: The duration of the look, in seconds.
        """
        self._spent = max(self._spent - (now - took - self._ended) / SPARING, 0.0) + took
        self.are_costly = self._spent >= COSTLY and took > QUICK
        self._ended = now
        self.pause = min(max(FULL_LOOK, SPARING * took), LONGEST_PAUSE)
        self.rest = self.pause if self.pause > FULL_LOOK else 0.0

    def due_in(self, now: float, *, missed: bool = False) -> float:
        """Return the seconds until the next look from the head is due.

        Args:
            now: The present time by the monotonic clock, in seconds.
            missed: Whether the last look was not from the head and found nothing, so that the next one is urgent.
        """
        return max(self._ended + (self.rest if missed else self.pause) - now, 0.0)

    def is_due(self, now: float, taken: int, last: float, *, missed: bool = False) -> bool:
        """Return whether the next look must begin at the head.

        Args:
            now: The present time by the monotonic clock, in seconds.
            taken: The number of jobs that were taken in succession.
            last: When the last of them was taken, by the same clock.
            missed: See `due_in`.
        """
        in_succession = taken >= SUCCESSION and now - last < FULL_LOOK
        return not (in_succession or self.are_costly) or self.due_in(now, missed=missed) == 0.0


class ScanPosition:
    """The last keys that a queue object took, for each class of waiting rows.

    Threads may share the object: it always holds the keys of rows that one of the threads took.

    Attributes:
        missed: Whether the last look found nothing, and did not begin at the head.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._last = float("-inf")
        self._full_looks = FullLooks()
        self.missed = False
        self._urgent: tuple[datetime, datetime, int] | None = None
        self._ready: Row | None = None
        self._value = ""
        self._moves_at = 0

    @property
    def spares_looks(self) -> bool:
        """Return whether looks from the head are costly, and there is a position from which a look may begin."""
        return self._full_looks.are_costly and (self._ready is not None or self._urgent is not None)

    def usable(self) -> bool:
        """Return whether the next look may begin at the position."""
        if self._taken < SUCCESSION and not self.spares_looks:
            return False
        return not self._full_looks.is_due(monotonic(), self._taken, self._last)

    def note_miss(self) -> float:
        """Record that a look from the position found nothing; return the seconds until the next look from the head."""
        pause = self._full_looks.due_in(monotonic(), missed=True) if self.spares_looks else 0.0
        self.missed = pause > 0.0
        return pause

    def look_fully(self) -> None:
        """Let the next look begin at the head."""
        self._full_looks, self._taken, self.missed = FullLooks(), 0, False

    def value(self) -> str:
        """Return the position as one text of keys, for the statement that begins there."""
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

    def advance(self, rows: Sequence[Row], now: float, *, full_since: float | None) -> None:
        """Record rows that were taken, in their order; an empty list resets the position.

        Args:
            rows: The rows.
            now: When the look ended, by the monotonic clock, in seconds.
            full_since: When the look began, if it began at the head; None otherwise.
        """
        began = now if full_since is None else full_since
        goes_on = rows and began - self._last < FULL_LOOK
        self._taken = self._taken + len(rows) if goes_on else len(rows)
        self._last = now
        if full_since is not None:
            self._full_looks.note(now, now - full_since)
            self.missed = False
        if full_since is not None or not goes_on:
            self._moves_at = 0  # the look from the head may have found a job before the position
        if not rows or (self._taken < SUCCESSION // 2 and not self._full_looks.are_costly):
            # The consumer has taken too few jobs in succession to use the position soon.
            return
        last = rows[-1]
        if expected_at_of(last) is None:
            self._ready = last
            if len(rows) == 1:
                return
        for job_id, _, _, _, _, enqueued_at, schedule_at, expected_at, *_ in reversed(rows):
            if expected_at is not None and schedule_at is None:
                self._urgent = expected_at, enqueued_at, job_id
                break


def _text(moment: datetime) -> str:
    return f"{moment.isoformat()}+00"
