"""What a queue object remembers of keys that other transactions have locked, so that admission waits for none of them.

See `pqcore.operations.gating`.
"""

from __future__ import annotations

import time

PROBE = 0.25
"""Seconds for which a job is postponed whose key is locked by another transaction."""
WAITS = (0.002, 0.01, 0.04)
"""Seconds between attempts to lock a key: admission by another worker takes no longer than a few round trips."""
PAUSE = 1.0
"""Seconds without such attempts after some that were in vain."""
_MOST = 1_000


class Contention:
    """The keys of a queue that were found locked lately.  Threads may share it."""

    def __init__(self) -> None:
        self._probed: dict[str, float] = {}
        self._in_vain = float("-inf")
        self._until = float("-inf")

    def postponed(self) -> None:
        """Remember that jobs were postponed."""
        self._until = time.monotonic() + 2 * PROBE

    def pending(self) -> bool:
        """Return whether jobs that were postponed may still have to come."""
        return time.monotonic() < self._until

    def may_wait(self) -> bool:
        """Return whether it is worth trying for some milliseconds to lock keys."""
        return time.monotonic() - self._in_vain > PAUSE

    def waited_in_vain(self) -> None:
        """Remember that a key stayed locked."""
        self._in_vain = time.monotonic()

    def probes(self, key: str) -> bool:
        """Return whether the next job of a locked key should be postponed: one for each `PROBE` seconds."""
        now = time.monotonic()
        if now - self._probed.get(key, float("-inf")) < PROBE * 0.8:
            return False
        if len(self._probed) >= _MOST:
            self._probed = {key: at for key, at in self._probed.copy().items() if now - at < PROBE}
        self._probed[key] = now
        return True
