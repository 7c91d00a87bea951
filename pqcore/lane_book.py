"""The memory of a queue object between takes: lanes with waiting jobs, and the virtual time of each share.

Shares are served by start-time fair queueing. Each taken job advances its share's virtual time by one over the share's
weight. The share with the lowest virtual time has the next turn. A share that was idle begins at the present virtual
time, so that it cannot save up turns. A share may have no job to give only because its jobs wait for places, which
become free when the outcomes of earlier jobs are stored. So a share that gave a job a moment ago keeps a few turns. See
P. Goyal, H. M. Vin and H. Cheng, "Start-time Fair Queueing" (IEEE/ACM Transactions on Networking, 1997).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pqcore.lane_choice import Choice, KnownLane
from pqcore.lanes import Lane, read_lane
from pqcore.scan_position import FULL_LOOK, FullLooks
from pqcore.sql.admission_statements import PLAIN_SHARE

T = TypeVar("T")

FIND = 0.02
"""Seconds between looks for lanes with new jobs, while no lane is known."""
FIND_MORE = 0.005
"""Seconds between looks for lanes with new jobs, while some lanes are known: a look then costs less than a take."""
SCAN = 0.5
"""Seconds after which a take scans more of the existing lanes."""
SCAN_IDLE = 0.05
"""Seconds after which a take scans more of the existing lanes, if the last take found nothing."""
LATE = 1_000
"""How many ids below the highest seen id a look searches, too, because their puts may have been committed late."""
KNOWN = 20_000
"""The largest number of lanes that are remembered."""
DUE = -1
"""The number in a row of a look that reports, instead of a lane, that jobs with lanes of their own came due."""
DUE_MARGIN = 0.2
"""Seconds by which a look for jobs that came due overlaps the last look, because clocks and commits may lag."""
LONGEST_AGO = 3_600.0
"""Seconds back from which the first look of a queue object searches for jobs that came due."""
ASIDE = 0.25
"""Seconds for which no lane is looked at after an admission closed the connection."""
MOST = 150
"""The largest number of lanes that one take considers."""
NARROW = 40
"""The largest number of lanes that one take considers while more than `MOST` lanes are known and takes find jobs; or
eight lanes for each wanted job, if that is more."""
SERVED = 0.25
"""Seconds after its last job during which a share without a job to give keeps some of its turns."""


class LaneBook:
    """The lanes with waiting jobs that one queue object knows, and the turns of shares.

    Threads may share the book: a lane that one thread misses is found by a later look.

    Attributes:
        lanes: The lanes, by their texts.
        adopted: The number of jobs that came due, or had no lane, and were put on their lanes.
        is_narrow: Whether the last take considered only some of the lanes; if it found nothing, the next take considers
            more.
        left_none: Whether the last lease left no due job, neither on a lane nor without a lane.
        missed: Whether the last take found nothing, and left out hidden jobs, or jobs at the head of a lane.
        probes: The times at which a take that found nothing asked when the next job is due.
    """

    def __init__(self) -> None:
        self.lanes: dict[str, KnownLane] = {}
        self._cursor = ""
        self._newest = -1
        self._found = self._scanned = self._aside_until = float("-inf")
        self._scans, self._hidden_looks, self.probes = FullLooks(), FullLooks(), FullLooks()
        self._none_hidden_at = self._last = float("-inf")
        self._taken = 0  # jobs taken in succession
        self.missed = False
        self._hurries = True
        self.left_none = False
        self._turns: dict[str, float] = {}
        self._served: dict[str, float] = {}
        self._last_served: Collection[str] = ()  # the shares that got jobs from the last take that found any
        self._now = 0.0
        self._shares: dict[str, dict[str, KnownLane]] = {}
        self._fresh: dict[str, dict[str, KnownLane]] = {}  # lanes with new jobs, by share
        self._seen: set[str] = set()
        self._rotations: dict[str | None, int] = {}
        self.adopted = 0
        self.is_narrow = False
        self._wide = False
        self.weights: Mapping[str, float] = {}

    def set_aside(self, now: float) -> None:
        """Look at no lanes for a short time, because an admission has failed and its connection was closed."""
        self._aside_until = now + ASIDE

    def aside_for(self, now: float) -> float:
        """Return the number of seconds until takes look at lanes again; ``now`` is a time of the monotonic clock."""
        return max(self._aside_until - now, 0.0)

    @property
    def has_shares(self) -> bool:
        """Return whether jobs of tenants wait, so that shares take turns."""
        return any(self._shares)

    def furthest(self, shares: Sequence[str]) -> int:
        """Return the position of the share with the highest virtual time, in a list of shares that just got jobs."""
        return max(range(len(shares)), key=lambda number: (self._turns.get(shares[number], 0.0), number))

    def has_newcomer(self, share: str, now: float) -> bool:
        """Return whether a share that the last take did not consider should have got the slot of the given share's job.

        Args:
            share: The share that got the job.
            now: The time by the monotonic clock, in seconds.
        """
        begun = self._turns.get(share, 0.0) - 1 / self.weights.get(share, 1.0)
        return any(
            other != share and other not in self._last_served and self._start_of(other, 0, now) <= begun
            for other in list(self._fresh)
        )

    # Finding lanes

    def must_find(self, now: float, *, ends: bool = False) -> bool:
        """Return whether a look for lanes is due.

        Args:
            now: The time by the monotonic clock, in seconds.
            ends: Whether the statement also finishes jobs. Such a statement looks less often, so that ends do not wait.
        """
        return now - self._found >= (FIND_MORE if self.lanes and not ends else FIND)

    def hurry(self) -> None:
        """Make the next looks go through all lanes."""
        self._found, self._hurries = float("-inf"), True

    def look_fully(self) -> None:
        """Make the next take consider all lanes and all hidden jobs."""
        self.hurry()
        self._scans, self._hidden_looks = FullLooks(), FullLooks()
        self._taken, self.missed = 0, False
        for known in list(self.lanes.values()):
            known.look_fully()

    def question(self, now: float, *, idle: bool = False) -> dict[str, object]:
        """Return the parameters of the next look for lanes.

        Args:
            now: The time by the monotonic clock, in seconds.
            idle: Whether a take has just found nothing.
        """
        since, self._found = now - self._found, now
        scans = self._hurries or now - self._scanned >= (SCAN_IDLE if idle else SCAN) or not self.lanes
        if not self._is_due(self._scans, now):
            scans = False  # a scan may step over many dead entries
        if len(self.lanes) >= KNOWN:
            scans = False  # enough lanes are known; the scan continues from its position when some of them are empty
        return {
            "newest": max(self._newest - LATE, -1),
            "after": self._cursor if scans else None,
            "since": min(since + DUE_MARGIN, LONGEST_AGO),
        }

    def learn(
        self, asked: Mapping[str, object], rows: Iterable[Sequence[Any]], now: float, most: int, ended: float
    ) -> tuple[bool, list[str]]:
        """Record the lanes that a look found.

        Args:
            asked: The parameters of the look.
            rows: The rows that the look returned. Each has the text of a lane; the highest id of the lane's new jobs,
                or None without new jobs; and the number of new jobs, or `DUE`.
            now: When the look began, by the monotonic clock, in seconds.
            most: The largest number of lanes, or arrivals, that a look finds.
            ended: When the look ended, by the same clock.

        Returns:
            Whether the look found a new lane or job; and the texts of lanes that only the headers of their jobs define.
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
                self._fresh.setdefault(known.lane.share, {})[text] = known
                news = True
        self._seen.update(found, scanned)
        if asked["after"] is not None:
            self._scanned = now
            self._scans.note(ended, ended - now)
            self._cursor = scanned[-1] if len(scanned) >= most else ""
            if not self._cursor:  # the scan is complete: a lane that it did not meet is empty
                self._hurries = False
                seen, self._seen = self._seen, set()
                for text, known in list(self.lanes.items()):
                    if text not in seen:
                        self._drop(text, known)
        if arrived >= most and min(found.values()) > self._newest >= 0:
            self._hurries = True  # there may be unseen lanes
        self._newest = max([self._newest, *found.values()])
        return news, list(dict.fromkeys(unknown))

    def add(self, lane: Lane) -> KnownLane:
        """Add a lane with a waiting job."""
        known = self.lanes.get(lane.text)
        if known is None:
            known = self.lanes[lane.text] = KnownLane(lane)
            for of_shares in (self._shares, self._fresh):
                of_shares.setdefault(lane.share, {})[lane.text] = known
            self._seen.add(lane.text)
        return known

    def _drop(self, text: str, known: KnownLane) -> None:
        share = known.lane.share
        self.lanes.pop(text, None)
        for of_shares in (self._shares, self._fresh):
            lanes = of_shares.get(share, {})
            lanes.pop(text, None)
            if not lanes:
                of_shares.pop(share, None)
        if share not in self._shares:
            self._rotations.pop(share, None)

    # Hidden jobs

    def out_within(self, now: float) -> float | None:
        """Return how many seconds back a look must search for hidden jobs that became due; None to search for all.

        A hidden job has both a ``schedule_at`` and an ``expected_at``, or its lease ran out. An earlier look
        found the hidden jobs that became due before that look. As with the position of `pqcore.scan_position`,
        a consumer that takes many jobs in succession rarely looks for all hidden jobs.
        """
        if self._is_due(self._hidden_looks, now):
            return None
        return now - self._none_hidden_at + DUE_MARGIN

    def looked_for_hidden(self, out_within: float | None, began: float, ended: float, *, found: bool) -> None:
        """Record a look for hidden jobs.

        Args:
            out_within: Which hidden jobs the look considered; see the method of this name.
            began: When the look began, by the monotonic clock, in seconds.
            ended: When the look ended, by the same clock.
            found: Whether the look may have left a hidden job.
        """
        if not found:
            self._none_hidden_at = began
            if out_within is None:
                self.missed = False
                self._hidden_looks.note(ended, ended - began)

    def note_miss(self) -> None:
        """Record that a take found no job, but did not look at hidden jobs, or at the head of a lane."""
        self.missed = True

    def hidden_look_in(self, now: float) -> float:
        """Return the seconds until a take considers all hidden jobs, after a take that found nothing."""
        return 0.0 if self._is_due(self._hidden_looks, now) else self._hidden_looks.due_in(now, missed=True)

    def _is_due(self, looks: FullLooks, now: float) -> bool:
        """Return whether the next look must be a full one; if not, it may leave out what earlier looks saw."""
        return looks.is_due(now, self._taken, self._last, missed=self.missed)

    # Turns of shares

    def choose(self, n: int, now: float) -> Choice:
        """Choose lanes for a take of up to ``n`` jobs.

        Args:
            n: The number of jobs.
            now: The time by the monotonic clock, in seconds.
        """
        self.is_narrow = len(self.lanes) > MOST and not self._wide and 8 * n < MOST
        considered = max(NARROW, 8 * n) if self.is_narrow else MOST
        names = list(self._fresh)[: considered // 2]  # shares with new jobs that no take has considered
        names += [share for share, _ in self._rotate(None, list(self._shares.items()), considered)]
        shares_of_lanes = [(share, self._shares.get(share, {})) for share in list(dict.fromkeys(names))[:considered]]
        # The smallest shares come first, because the next ones get what a small share does not use.
        shares_of_lanes.sort(key=lambda each: len(each[1]))
        chosen: list[KnownLane] = []
        for left, (share, of_share) in zip(range(len(shares_of_lanes), 0, -1), shares_of_lanes, strict=True):
            chosen += self._lanes_of(share, list(of_share.values()), (considered - len(chosen)) // left)
        quota = n if len(chosen) <= 8 else max(-(-4 * n // len(chosen)), 1)
        shares = {"": PLAIN_SHARE}
        for known in chosen:
            shares.setdefault(known.lane.share, len(shares) + 1)
        starts = {share: self._start_of(share, n, now) for share in shares}
        return Choice(chosen, shares, starts, quota, now, self.weights)

    def _start_of(self, share: str, n: int, now: float) -> float:
        """Return a share's virtual time; a share that just gave a job keeps the unused turns of up to two takes."""
        turn, is_served = self._turns.get(share, 0.0), now - self._served.get(share, float("-inf")) < SERVED
        return max(turn, self._now - 2 * n / self.weights.get(share, 1.0) if is_served else self._now)

    def _lanes_of(self, share: str, lanes: list[KnownLane], most: int) -> list[KnownLane]:
        """Return up to ``most`` lanes of a share: up to half of them have new jobs, and the others come in turn."""
        fresh = self._fresh.pop(share, {})
        first = list(fresh.values())[: (most + 1) // 2]
        for known in first:
            fresh.pop(known.lane.text, None)
        if fresh:
            self._fresh[share] = fresh  # the share moves behind the other shares
        return list(dict.fromkeys([*first, *self._rotate(share, lanes, most - len(first))]))

    def _rotate(self, key: str | None, items: list[T], most: int) -> list[T]:
        """Return up to ``most`` items, beginning after the last item of the previous call for the key."""
        if len(items) <= most:
            return items
        start = self._rotations.get(key, 0) % len(items)
        self._rotations[key] = start + most
        return [*items[start : start + most], *items[: max(start + most - len(items), 0)]]

    def took(self, choice: Choice, rows: Sequence[tuple[Any, int]], ended: float) -> None:
        """Record the jobs that a take returned.

        Args:
            choice: The choice that the take was given.
            rows: The rows, each with the position of its lane in the choice; 0 for a job without a lane.
            ended: When the take ended, by the monotonic clock, in seconds.
        """
        now = choice.now
        if rows:
            self.missed = False
            self._taken = self._taken + len(rows) if now - self._last < FULL_LOOK else len(rows)
            self._last = ended
        for known in choice.lanes:
            if known.is_full:
                known.full_looks.note(ended, ended - now)
        self._wide = not rows
        taken: dict[int, int] = {}
        for row, place in rows:
            taken[place] = taken.get(place, 0) + 1
            if place:
                known = choice.lanes[place - 1]
                known.taken = known.taken + 1 if now - known.last_at < FULL_LOOK else 1
                known.last_at = ended
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
                self._drop(known.lane.text, known)  # a later scan finds the lane again
            elif known.blocked_since is None:
                known.blocked_since = now
        for share, number in used.items():
            # Another thread may have taken jobs meanwhile.
            begun = max(choice.starts[share], self._turns.get(share, 0.0))
            self._turns[share] = begun + number / self.weights.get(share, 1.0)
            self._served[share] = now
        if used:  # the book's virtual time follows the lowest virtual time of the shares that gave jobs
            self._now = max(self._now, min(choice.starts[share] for share in used))
            self._last_served = used
        if len(self._turns) > 10_000:
            self._turns = {share: turn for share, turn in list(self._turns.items()) if turn > self._now}
            self._served = {share: at for share, at in list(self._served.items()) if share in self._turns}
