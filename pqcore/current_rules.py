"""The rules of a queue that its consumers cache for a short time: pauses of the queue and of tasks, and weights.

Consumers must obey a changed rule soon, but reading the rules before every take would cost too much. So each queue
object caches the rules that it read. If the queue is not paused, the queue object uses the cached rules for `KEPT`
seconds, or for half of the queue's poll interval if that is shorter.
While the queue is paused, each take reads the rules, so that a waiter woken by `Queue.resume` takes a job immediately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

KEPT = 0.5
"""The largest number of seconds for which rules are cached."""
UNSETTLED = 60.0
"""Seconds after a change of rules in an open transaction during which rules that are read in a transaction are not
cached."""


@dataclass(frozen=True)
class CurrentRules:
    """The rules in force at the time when they were read. Times are of the monotonic clock.

    Attributes:
        paused_until: The end of the queue's pause: infinity if only `Queue.resume` ends it; None if the queue is not
            paused.
        paused_tasks: The paths of the paused tasks, each with the end of its pause.
        weights: The weights of shares, by name; other shares have a weight of 1.
    """

    paused_until: float | None = None
    paused_tasks: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def paused(self) -> bool:
        """Return whether the queue is paused."""
        return self.paused_until is not None

    def seconds_paused(self, now: float) -> float | None:
        """Return for how many seconds the queue stays paused; None if only `Queue.resume` ends the pause."""
        if self.paused_until is None or math.isinf(self.paused_until):
            return None
        return max(self.paused_until - now, 0.001)


class RuleCache:
    """A cache of the rules, for one queue object. Threads may share the cache.

    Attributes:
        rules: The rules that were read last.
        expires_at: The time until which the cache is valid, by the monotonic clock.
        changes: How often this program has learned of a change of the rules.
    """

    def __init__(self) -> None:
        self.rules = CurrentRules()
        self.expires_at = -math.inf
        self.changes = 0
        self._unsettled_until = -math.inf

    def keep(self, rules: CurrentRules, expires_at: float, *, changes: int, now: float, in_transaction: bool) -> None:
        """Store rules that were read.

        Args:
            rules: The rules.
            expires_at: The time until which the rules may be used.
            changes: The value of ``changes`` before the rules were read.
            now: The present time.
            in_transaction: Whether the rules were read in a transaction that is still open, and may have changed them
                itself.
        """
        settled = changes == self.changes and (not in_transaction or now >= self._unsettled_until)
        self.rules = rules
        self.expires_at = expires_at if settled and not rules.paused else -math.inf

    def forget(self, *, now: float, in_transaction: bool) -> None:
        """Make the next take read the rules, because they were changed.

        Args:
            now: The present time.
            in_transaction: Whether the change belongs to an open transaction, which may be rolled back.
        """
        self.changes += 1
        self.expires_at = -math.inf
        if in_transaction:
            self._unsettled_until = now + UNSETTLED
