"""What a queue object remembers of keys that other transactions have locked, so that admission waits for none of them.

See `pqcore.operations.concurrency_limits`.
"""

from __future__ import annotations

import time

from pqcore.db.runtime import backoff

PROBE = 0.25
"""Seconds for which a job is postponed whose key is locked by another transaction."""
WAITS = (0.002, 0.01, 0.04)
"""Seconds between attempts to lock a key: admission by another worker takes no longer than a few round trips."""
PAUSE = 1.0
"""Seconds without such attempts after some that were in vain."""
ASIDE = 2.0
"""Seconds for which jobs are set aside that could not be admitted, at most."""
_MOST = 1_000


class Contention:
    """The keys of a queue that were found locked lately.  Threads may share it."""

    def __init__(self) -> None:
        self._probed: dict[str, float] = {}
        self._in_vain = float("-inf")
        self._until = float("-inf")
        self._refusals = 0

    def postponed(self, seconds: float = PROBE) -> None:
        """Remember that jobs were postponed."""
        self._until = max(self._until, time.monotonic() + 2 * seconds)

    def admitted(self) -> None:
        """Remember that an admission did not fail."""
        self._refusals = 0

    def refused(self) -> float | None:
        """Count an admission that failed; return the seconds to set its jobs aside for, None after the first of a row.

        The first one may be a deadlock or the like.  Further ones may last, and others must not wait for them.
        """
        self._refusals += 1
        pause = min(backoff(self._refusals), ASIDE) if self._refusals > 1 else None
        self.postponed(PROBE if pause is None else pause)
        return pause

    def pending(self) -> bool:
        """Return whether jobs that were postponed may still have to come."""
        return time.monotonic() < self._until

    def may_wait(self) -> bool:
        """Return whether it is worth trying for some milliseconds to lock keys."""
        return time.monotonic() - self._in_vain > PAUSE

    def waited_in_vain(self) -> None:
        """Remember that a key stayed locked."""
        self._in_vain = time.monotonic()

    def found_free(self) -> None:
        """Remember that keys were free: other workers lock keys for a moment only."""
        self._in_vain = float("-inf")

    def probes(self, key: str) -> bool:
        """Return whether the next job of a locked key should be postponed: one for each `PROBE` seconds."""
        now = time.monotonic()
        if now - self._probed.get(key, float("-inf")) < PROBE * 0.8:
            return False
        if len(self._probed) >= _MOST:
            self._probed = {key: at for key, at in self._probed.copy().items() if now - at < PROBE}
        self._probed[key] = now
        return True
