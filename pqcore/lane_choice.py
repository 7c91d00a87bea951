"""The lanes and shares that one take considers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pqcore.lanes import Lane
from pqcore.scan_position import FullLooks

PATIENCE = 1.0
"""Seconds that a job under several keys waits before its keys are reserved for it."""


class KnownLane:
    """A lane with waiting jobs, and what a queue object remembers of it.

    Attributes:
        lane: The lane.
        newest: The highest id seen in the lane.
        blocked_since: The time, by the monotonic clock, since which takes have found no job in the lane that may run;
            None if the last take found such a job.
        last: The position of the job that was taken last, in the form for `take_lanes`; None before the first.
        taken: How many jobs were taken in succession.
        full_looks: The takes that scanned the lane from its beginning.
        is_full: Whether the present take scans the lane from its beginning.
    """

    __slots__ = ("blocked_since", "full_looks", "is_full", "lane", "last", "last_at", "newest", "taken")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.newest = -1
        self.blocked_since: float | None = None
        self.last: str | None = None
        self.last_at = float("-inf")
        self.full_looks = FullLooks()
        self.is_full = False
        self.taken = 0

    def look_fully(self) -> None:
        """Let the next look begin at the head of the lane."""
        self.full_looks, self.taken = FullLooks(), 0

    def after(self, now: float) -> str | None:
        """Return the job after which the next look begins; None for a look from the beginning."""
        self.is_full = self.full_looks.is_due(now, self.taken, self.last_at) or self.last is None
        return None if self.is_full else self.last


class Choice(NamedTuple):
    """The lanes and shares that a take must consider.

    Attributes:
        lanes: The lanes; their positions begin at 1.
        shares: The number of each share.
        starts: The virtual time of each share.
        quota: The largest number of jobs from one lane.
        now: The time by the monotonic clock, in seconds.
        weights: The weights of shares; shares that are not named have weight 1.
    """

    lanes: list[KnownLane]
    shares: dict[str, int]
    starts: dict[str, float]
    quota: int
    now: float
    weights: Mapping[str, float]

    def without(self, keys: Collection[str]) -> Choice:
        """Return the same choice without the lanes that need any of the given keys."""
        return self._replace(
            lanes=[known for known in self.lanes if not any(key in keys for key, _ in known.lane.needs)]
        )

    def patient(self, now: float) -> list[KnownLane]:
        """Return the lanes with several keys that were blocked for a long time; pqcore then reserves the keys."""
        return [
            known
            for known in self.lanes
            if known.blocked_since is not None and len(known.lane.needs) > 1 and now - known.blocked_since >= PATIENCE
        ]

    def needs(self, times: int = 1) -> list[dict[str, object]]:
        """Return the keys of the lanes, in the form for the statements.

        Args:
            times: How many jobs may be leased for each place under a limit that only one lane has, without other keys.
        """
        lanes_with = Counter(key for known in self.lanes for key, _ in known.lane.needs) if times > 1 else {}
        return [
            {
                "place": place,
                "key": key,
                "number": number,
                "newest": known.newest,
                "times": times if lanes_with.get(key) == 1 and known.lane.limit == key else 1,
            }
            for place, known in enumerate(self.lanes, 1)
            for key, number in known.lane.needs
        ]

    def values(self, times: int = 1) -> dict[str, object]:
        """Return the parameters of the statement that takes jobs, without those of the queue and the lease.

        Args:
            times: See `needs`.
        """
        wanted = [
            {
                "place": place,
                "lane": known.lane.text,
                "group_key": known.lane.group,
                "share": self.shares[known.lane.share],
                "priority": known.lane.priority,
                "quota": self.quota,
                "after": known.after(self.now),
            }
            for place, known in enumerate(self.lanes, 1)
        ]
        base = min(self.starts.values())
        shares = [
            {"share": number, "start": self.starts[share] - base, "weight": self.weights.get(share, 1.0)}
            for share, number in self.shares.items()
        ]
        return {
            "wanted": json.dumps(wanted),
            "needs": json.dumps(self.needs(times)),
            "shares": json.dumps(shares),
        }
