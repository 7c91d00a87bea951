"""The rules of a queue that its consumers remember for a moment: pauses of the queue and of tasks, and weights.

A rule that is changed must be heeded soon, and a take must not ask for the rules each time. So each queue object
remembers what it read. It remembers for `KEPT` seconds, or for half of the queue's poll interval, that the queue is
not paused. While the queue is paused, it asks before each take: so a waiter that `Queue.resume` wakes takes
immediately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

KEPT = 0.5
"""Seconds for which rules are remembered, at most."""
UNSETTLED = 60.0
"""Seconds after a change in an open transaction in which rules that are read in a transaction are not remembered."""


@dataclass(frozen=True)
class CurrentRules:
    """The rules that were in force when they were read. Times are of the monotonic clock.

    Attributes:
        paused_until: Until when the queue is paused: infinity until it is resumed; None if it is not paused.
        paused_tasks: The paths of the tasks that are paused, with the time until which each is.
        weights: The weights of shares, by name; other shares have a weight of 1.
    """

    paused_until: float | None = None
    paused_tasks: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def paused(self) -> bool:
        """Whether the queue is paused."""
        return self.paused_until is not None

    def seconds_paused(self, now: float) -> float | None:
        """Return for how many seconds the queue stays paused; None until it is resumed."""
        if self.paused_until is None or math.isinf(self.paused_until):
            return None
        return max(self.paused_until - now, 0.001)


class RuleCache:
    """What a queue object remembers of the rules. Threads may share it.

    Attributes:
        rules: The rules that were read last.
        expires_at: Until when they count, by the monotonic clock.
        changes: How often this program learned that they have changed.
    """

    def __init__(self) -> None:
        self.rules = CurrentRules()
        self.expires_at = -math.inf
        self.changes = 0
        self._unsettled_until = -math.inf

    def keep(self, rules: CurrentRules, expires_at: float, *, changes: int, now: float, in_transaction: bool) -> None:
        """Remember rules that were read.

        Args:
            rules: The rules.
            expires_at: Until when they count.
            changes: What ``changes`` was before they were read.
            now: The time.
            in_transaction: Whether they were read in a transaction that goes on, and may have changed them itself.
        """
        settled = changes == self.changes and (not in_transaction or now >= self._unsettled_until)
        self.rules = rules
        self.expires_at = expires_at if settled and not rules.paused else -math.inf

    def forget(self, *, now: float, in_transaction: bool) -> None:
        """Have the next take read the rules, as they were changed.

        Args:
            now: The time.
            in_transaction: Whether the change is part of a transaction, which may yet be rolled back.
        """
        self.changes += 1
        self.expires_at = -math.inf
        if in_transaction:
            self._unsettled_until = now + UNSETTLED
