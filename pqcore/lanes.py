"""Lanes: which jobs wait for the same keys.

A job may name *keys* that it needs a place under, limits and at most one group, a *share* that it is counted to, and a
priority. Jobs that name the same are of one *lane*: if the first of a lane may not run, none may. A lane is written as
JSON, ``[priority, share, key...]``, in the column ``parked_on`` of each job that waits on it.

A take of a lease looks at lanes, not at jobs; `pqcore.lane_book` is what a queue object knows of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from pqcore.headers import read_headers

GROUP = "group:"
LIMIT = "limit:"
LONGEST = 500
"""Bytes of a lane that is written out; of a longer one, a digest. An entry of an index has 2,700 bytes at most."""
_MARK = '"gate"'
_NEED = re.compile(r"(.*)=([0-9]{1,10})", re.DOTALL)


class Lane(NamedTuple):
    """A lane.

    Attributes:
        text: As it is stored.
        priority: Of its jobs; higher first.
        share: What its jobs are counted to; empty for none.
        needs: The keys, each with its number of places.
        group: The group among them; None without.
    """

    text: str
    priority: int
    share: str
    needs: tuple[tuple[str, int], ...]
    group: str | None

    @property
    def limit(self) -> str | None:
        """The only key of its jobs, if that is a limit."""
        return self.needs[0][0] if len(self.needs) == 1 and self.needs[0][0].startswith(LIMIT) else None


def has_lane(headers: str | None) -> bool:
    """Return whether a job with these headers may have a lane: statements tell by the same text."""
    return headers is not None and _MARK in headers


def lane_of(headers: str | None) -> Lane | None:
    """Return the lane of a job with these headers, as ``put`` wrote them; None without any."""
    if not has_lane(headers):
        return None
    return lane_of_gate(read_headers(headers)[0].get("gate"))


def lane_of_gate(gate: Mapping[str, Any] | None) -> Lane | None:
    """Return the lane of a job by what its headers say of it.

    Args:
        gate: ``limits``, ``group``, ``share``, ``priority`` and ``dedup``, each of which may be missing.
    """
    if not gate:
        return None
    needs = {LIMIT + key: int(places) for key, places in gate.get("limits", {}).items()}
    group = gate.get("group")
    if group is not None:
        needs[GROUP + group] = 1
    priority, share = gate.get("priority", 0), gate.get("share", "")
    ordered = tuple(sorted(needs.items()))
    text = write_lane(priority, share, ordered)
    if len(text.encode()) > LONGEST:
        digest = sha256(text.encode()).hexdigest()
        text = f'[{priority},"","#{digest}"]'
    return Lane(text, priority, share, ordered, group)


def lane_values(lane: Lane | None) -> dict[str, object]:
    """Return what is stored of a job's lane, as the statements take it."""
    return {"lane": None, "priority": 0} if lane is None else {"lane": lane.text, "priority": lane.priority}


def write_lane(priority: object, share: object, needs: Iterable[tuple[str, int]]) -> str:
    """Return the text of a lane, however long it is."""
    return json.dumps(
        [priority, share, *(f"{key}={number}" for key, number in needs)], ensure_ascii=False, separators=(",", ":")
    )


def read_lane(text: str) -> Lane | None:
    """Return the lane that a text names; None if only the headers of its jobs tell."""
    try:
        priority, share, *needs = json.loads(text)
        found = [_NEED.fullmatch(need) for need in needs]
        if not text.startswith("[") or None in found or not isinstance(share, str) or type(priority) is not int:
            return None
        ordered = tuple((each[1], int(each[2])) for each in found if each is not None)
    except (ValueError, TypeError):
        return None
    group = next((key.removeprefix(GROUP) for key, _ in ordered if key.startswith(GROUP)), None)
    return Lane(text, priority, share, ordered, group)
