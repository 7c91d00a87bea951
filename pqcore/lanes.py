"""Lanes: each lane holds the jobs that wait for the same keys.

A job may need places under *keys* (limits, and at most one group). It may also have a *share* and a priority. Jobs with
the same keys, share and priority form one *lane*: if the first job of a lane may not run, no job of the lane may run. A
lane's text is JSON, ``[priority, share, key...]``, in the column ``parked_on`` of each job that waits on the lane.

A consumer that leases jobs looks at lanes, not at single jobs; `pqcore.lane_book` is a queue object's memory of lanes.
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
"""The largest length, in bytes, of a lane that is written out; a longer lane is written as a digest. An index entry can
have at most 2,700 bytes."""
_MARK = '"gate"'
_NEED = re.compile(r"(.*)=([0-9]{1,10})", re.DOTALL)


class Lane(NamedTuple):
    """The keys, share and priority that a group of jobs has in common.

    Attributes:
        text: The stored text.
        priority: The priority of the jobs; higher priorities are served first.
        share: The share of the jobs; empty for none.
        needs: The keys, each with its number of places.
        group: The group among the keys; None if there is none.
    """

    text: str
    priority: int
    share: str
    needs: tuple[tuple[str, int], ...]
    group: str | None

    @property
    def limit(self) -> str | None:
        """Return the only key of the lane's jobs, if that key is a limit."""
        return self.needs[0][0] if len(self.needs) == 1 and self.needs[0][0].startswith(LIMIT) else None


def has_lane(headers: str | None) -> bool:
    """Return whether a job with these headers may have a lane; statements search the headers for the same text."""
    return headers is not None and _MARK in headers


def lane_of(headers: str | None) -> Lane | None:
    """Return the lane of a job with these headers, as ``put`` wrote it; None if the job has no lane."""
    if not has_lane(headers):
        return None
    return lane_of_gate(read_headers(headers)[0].get("gate"))


def lane_of_gate(gate: Mapping[str, Any] | None) -> Lane | None:
    """Return the lane of a job from the ``gate`` in its headers.

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
    """Return the values of a job's lane to store, in the form for the statements."""
    return {"lane": None, "priority": 0} if lane is None else {"lane": lane.text, "priority": lane.priority}


def write_lane(priority: object, share: object, needs: Iterable[tuple[str, int]]) -> str:
    """Return the text of a lane, of any length."""
    return json.dumps(
        [priority, share, *(f"{key}={number}" for key, number in needs)], ensure_ascii=False, separators=(",", ":")
    )


def read_lane(text: str) -> Lane | None:
    """Return the lane that a text names; None if only the headers of its jobs define the lane."""
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
