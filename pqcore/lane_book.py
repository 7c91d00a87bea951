"""What a queue object remembers from take to take: lanes that have waiting jobs, and the virtual time of each share.

Shares are served by start-time fair queueing: each job that is taken moves its share's virtual time on by one over the
share's weight, and the share that is furthest behind has the next turn. A share that had nothing to do begins at the
present virtual time, so that it has saved up no turns.
See P. Goyal, H. M. Vin and H. Cheng, "Start-time Fair Queueing" (IEEE/ACM Transactions on Networking, 1997).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pqcore.lanes import Lane, read_lane
from pqcore.sql.admission_statements import PLAIN_SHARE

T = TypeVar("T")

FIND = 0.02
"""Seconds after which a take looks for lanes in which jobs arrived, while no lane is known."""
FIND_MORE = 0.005
"""The same while some are known: then a look costs little beside the take."""
SCAN = 0.5
"""Seconds after which a take looks through more of the lanes that are there."""
SCAN_IDLE = 0.05
"""The same after a take that found nothing."""
LATE = 1_000
"""Ids below the highest that was seen in which a look finds jobs whose puts were committed late."""
KNOWN = 20_000
"""Lanes that are remembered, at most."""
DUE = -1
"""The number that a look gives in place of a lane where jobs came due that name one."""
DUE_MARGIN = 0.2
"""Seconds before the last look from which a look finds jobs that came due: clocks, and commits, may lag."""
LONGEST_AGO = 3_600.0
"""Seconds from which the first look of a queue object finds jobs that came due."""
ASIDE = 0.25
"""Seconds for which no lane is looked at after an admission that ended the connection."""
MOST = 150
"""Lanes that one take considers, at most."""
NARROW = 40
"""The same while more than `MOST` are known and takes find jobs; or eight for each job that is wanted."""
SUCCESSION = 1_000
"""Jobs taken from a lane in succession, after which a take begins behind the last; see `pqcore.scan_position`."""
FULL_LOOK = 1.0
"""Seconds after which a take looks at a lane from its beginning again."""
PATIENCE = 1.0
"""Seconds that a job under several keys waits before its keys are kept for it."""


class KnownLane:
    """What is remembered of a lane that has waiting jobs.

    Attributes:
        lane: The lane.
        newest: The highest id that was seen in it.
        blocked_since: When it first gave no job, by the monotonic clock, since it last gave one; None if it gives jobs.
        last: The place of the job that was taken last, as `take_lanes` takes it; None before the first.
        taken: How many jobs were taken in succession.
        full_look: When it was last looked at from its beginning.
    """

    __slots__ = ("blocked_since", "full_look", "lane", "last", "last_at", "newest", "taken")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.newest = -1
        self.blocked_since: float | None = None
        self.last: str | None = None
        self.last_at = self.full_look = float("-inf")
        self.taken = 0

    def after(self, now: float) -> str | None:
        """Return behind which job the next look begins; None for a look from the beginning."""
        if self.taken >= SUCCESSION and now - self.full_look < FULL_LOOK and now - self.last_at < FULL_LOOK:
            return self.last
        self.full_look = now
        return None


class LaneBook:
    """The lanes of a queue that have waiting jobs, as far as one queue object knows, and the turns of shares.

    Threads may share it: what one of them misses another look finds.

    Attributes:
        lanes: The lanes, by their texts.
        adopted: How many jobs were put on their lanes that came due, or had none.
        is_narrow: Whether the last take considered fewer lanes than it might: another one considers more, if it was in
            vain.
        left_none: Whether the last take of a lease left no job that was due, on a lane or on none.
    """

    def __init__(self) -> None:
        self.lanes: dict[str, KnownLane] = {}
        self._cursor = ""
        self._newest = -1
        self._found = self._scanned = self._aside_until = float("-inf")
        self._hurries = True
        self.left_none = False
        self._turns: dict[str, float] = {}
        self._now = 0.0
        self._shares: dict[str, dict[str, KnownLane]] = {}
        self._fresh: dict[str, KnownLane] = {}
        self._seen: set[str] = set()
        self._rotations: dict[str | None, int] = {}
        self.adopted = 0
        self.is_narrow = False
        self._wide = False
        self.weights: Mapping[str, float] = {}

    def set_aside(self, now: float) -> None:
        """Look at no lanes for some time, as an admission ended the connection: others must not wait for that."""
        self._aside_until = now + ASIDE

    def aside_for(self, now: float) -> float:
        """Return for how many seconds lanes are still set aside; the time is by the monotonic clock."""
        return max(self._aside_until - now, 0.0)

    @property
    def has_shares(self) -> bool:
        """Whether jobs of a tenant wait, who takes turns with others."""
        return any(self._shares)

    # Finding.

    def must_find(self, now: float, *, ends: bool = False) -> bool:
        """Return whether it is time to look for lanes.

        Args:
            now: The time by the monotonic clock, in seconds.
            ends: Whether jobs end in the same statement, which must not wait for many looks.
        """
        return now - self._found >= (FIND_MORE if self.lanes and not ends else FIND)

    def hurry(self) -> None:
        """Have the next looks go through all lanes."""
        self._found, self._hurries = float("-inf"), True

    def question(self, now: float, *, idle: bool = False) -> dict[str, object]:
        """Return the parameters of the next look for lanes.

        Args:
            now: The time by the monotonic clock, in seconds.
            idle: Whether a take has just found nothing.
        """
        since, self._found = now - self._found, now
        scans = self._hurries or now - self._scanned >= (SCAN_IDLE if idle else SCAN) or not self.lanes
        if len(self.lanes) >= KNOWN:
            scans = False  # enough to do; it goes on where it stands when some of these lanes are empty
        return {
            "newest": max(self._newest - LATE, -1),
            "after": self._cursor if scans else None,
            "since": min(since + DUE_MARGIN, LONGEST_AGO),
        }

    def learn(
        self, asked: Mapping[str, object], rows: Iterable[Sequence[Any]], now: float, most: int
    ) -> tuple[bool, list[str]]:
        """Take note of what a look found.

        Args:
            asked: The parameters of the look.
            rows: Of each lane: its text, the highest id that arrived, or None; and a number.
            now: The time by the monotonic clock, in seconds.
            most: How many lanes, or arrivals, a look finds.

        Returns:
            Whether there is a lane, or a job, that no look found before; and the texts of lanes that only headers of
            jobs tell about.
        """
        found: dict[str, int] = {}
        scanned: list[str] = []
        unknown: list[str] = []
        arrived = 0
        for text, newest, number in rows:
            if number == DUE:
                unknown.append(text)
            elif newest is None:
                scanned.append(text)
            else:
                arrived += number
                found[text] = newest
        news = False
        for text in [*found, *scanned]:
            known = self.lanes.get(text)
            if known is None:
                if len(self.lanes) >= KNOWN:
                    continue
                news = True
                lane = read_lane(text)
                if lane is None:
                    unknown.append(text)
                    continue
                known = self.add(lane)
            if found.get(text, -1) > known.newest:
                known.newest = found[text]
                self._fresh[text] = known
                news = True
        self._seen.update(found, scanned)
        if asked["after"] is not None:
            self._scanned = now
            self._cursor = scanned[-1] if len(scanned) >= most else ""
            if not self._cursor:  # the round is over: a lane that it did not come upon is empty
                self._hurries = False
                seen, self._seen = self._seen, set()
                for text, known in list(self.lanes.items()):
                    if text not in seen:
                        self._drop(text, known)
        if arrived >= most and min(found.values()) > self._newest >= 0:
            self._hurries = True  # there may be others that were not seen
        self._newest = max([self._newest, *found.values()])
        return news, list(dict.fromkeys(unknown))

    def add(self, lane: Lane) -> KnownLane:
        """Add a lane that has a waiting job."""
        known = self.lanes.get(lane.text)
        if known is None:
            known = self.lanes[lane.text] = self._fresh[lane.text] = KnownLane(lane)
            self._shares.setdefault(lane.share, {})[lane.text] = known
            self._seen.add(lane.text)
        return known

    def _drop(self, text: str, known: KnownLane) -> None:
        for lanes in (self.lanes, self._fresh, share := self._shares.get(known.lane.share, {})):
            lanes.pop(text, None)
        if not share:
            self._shares.pop(known.lane.share, None)
            self._rotations.pop(known.lane.share, None)

    # Turns.

    def choose(self, n: int, now: float) -> Choice:
        """Choose lanes for a take of up to ``n`` jobs.

        Args:
            n: Jobs.
            now: The time by the monotonic clock, in seconds.
        """
        self.is_narrow = len(self.lanes) > MOST and not self._wide and 8 * n < MOST
        considered = max(NARROW, 8 * n) if self.is_narrow else MOST
        fresh = list(self._fresh.values())[: considered // 2]  # jobs came, which no take has considered
        for known in fresh:
            self._fresh.pop(known.lane.text, None)
        lanes = dict.fromkeys(fresh)
        shares_of_lanes = self._rotate(None, list(self._shares.items()), considered)
        most = max(considered // max(len(shares_of_lanes), 1), 1)
        for share, of_share in shares_of_lanes:
            lanes.update(dict.fromkeys(self._rotate(share, list(of_share.values()), most)))
        chosen = list(lanes)[:considered]
        quota = n if len(chosen) <= 8 else max(-(-4 * n // len(chosen)), 1)
        shares = {"": PLAIN_SHARE}
        for known in chosen:
            shares.setdefault(known.lane.share, len(shares) + 1)
        starts = {share: max(self._turns.get(share, 0.0), self._now) for share in shares}
        return Choice(chosen, shares, starts, quota, now, self.weights)

    def _rotate(self, key: str | None, items: list[T], most: int) -> list[T]:
        """Return up to ``most`` items, beginning where the last call for the key ended."""
        if len(items) <= most:
            return items
        start = self._rotations.get(key, 0) % len(items)
        self._rotations[key] = start + most
        return [*items[start : start + most], *items[: max(start + most - len(items), 0)]]

    def took(self, choice: Choice, rows: Sequence[tuple[Any, int]], now: float) -> None:
        """Take note of what a take gave.

        Args:
            choice: What was asked for.
            rows: The rows, each with the place of its lane in the choice; 0 for a job without a lane.
            now: The time by the monotonic clock, in seconds.
        """
        self._wide = not rows
        taken: dict[int, int] = {}
        for row, place in rows:
            taken[place] = taken.get(place, 0) + 1
            if place:
                known = choice.lanes[place - 1]
                known.taken = known.taken + 1 if now - known.last_at < FULL_LOOK else 1
                known.last_at = now
                if row.expected_at is None or known.lane.group is not None:
                    known.last = f"{row.due_at.isoformat()}+00 {row.id}"
                known.newest = max(known.newest, row.id)
        used: dict[str, int] = {}
        for place, number in taken.items():
            share = choice.lanes[place - 1].lane.share if place else ""
            used[share] = used.get(share, 0) + number
        for place, known in enumerate(choice.lanes, 1):
            if place in taken:
                known.blocked_since = None
            elif len(self.lanes) >= KNOWN:
                self._drop(known.lane.text, known)  # a scan comes upon it again
            elif known.blocked_since is None:
                known.blocked_since = now
        for share, number in used.items():
            begun = max(choice.starts[share], self._turns.get(share, 0.0))  # another thread may have taken meanwhile
            self._turns[share] = begun + number / self.weights.get(share, 1.0)
        if used:  # the virtual time is that of the share that was furthest behind, of those that had something to give
            self._now = max(self._now, min(choice.starts[share] for share in used))
        if len(self._turns) > 10_000:
            self._turns = {share: turn for share, turn in list(self._turns.items()) if turn > self._now}


class Choice(NamedTuple):
    """What a take asks for.

    Attributes:
        lanes: The lanes, whose places begin at 1.
        shares: The number of each share.
        starts: The virtual time of each share.
        quota: Jobs, at most, of one lane.
        now: The time by the monotonic clock, in seconds.
        weights: Of shares; 1 for others.
    """

    lanes: list[KnownLane]
    shares: dict[str, int]
    starts: dict[str, float]
    quota: int
    now: float
    weights: Mapping[str, float]

    def without(self, keys: Collection[str]) -> Choice:
        """Return the same without lanes that need one of some keys."""
        return self._replace(
            lanes=[known for known in self.lanes if not any(key in keys for key, _ in known.lane.needs)]
        )

    def patient(self, now: float) -> list[KnownLane]:
        """Return the lanes under several keys that have given no job for long: their keys are to be kept for them."""
        return [
            known
            for known in self.lanes
            if known.blocked_since is not None and len(known.lane.needs) > 1 and now - known.blocked_since >= PATIENCE
        ]

    def needs(self) -> list[dict[str, object]]:
        """Return the keys of the lanes, as the statements take them."""
        return [
            {"place": place, "key": key, "number": number, "newest": known.newest}
            for place, known in enumerate(self.lanes, 1)
            for key, number in known.lane.needs
        ]

    def values(self, times: int = 1) -> dict[str, object]:
        """Return the parameters of the statement that takes jobs, but for those of the queue and the lease.

        Args:
            times: How many jobs of a lane under one limit may be given for a place.
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
                "times": times if known.lane.limit is not None else 1,
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
            "needs": json.dumps(self.needs()),
            "shares": json.dumps(shares),
        }
