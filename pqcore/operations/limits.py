"""The limits and groups that jobs of a queue use.

A `LimitUsage` says how many jobs may run under a limit or group, which jobs run, and how many jobs wait.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pqcore.db.engine import Engine
from pqcore.lanes import GROUP, LIMIT, Lane, lane_of, read_lane
from pqcore.operations.rules import Rule, list_rules
from pqcore.settings import QueueSettings

_KINDS = {"limit": LIMIT, "group": GROUP}


@dataclass(frozen=True)
class LimitUsage:
    """A limit or group under which jobs run or wait, or for which a rule is set.

    Attributes:
        kind: ``limit`` or ``group``.
        name: The name that jobs were put with.
        places: How many jobs may run concurrently: ``rule``, or else ``newest``, or else the highest number of a
            waiting job. None if there is no such number.
        newest: The number of the newest put that a take has seen; None if no take has seen one.
        rule: The number that an operator has set, which takes precedence; None if none is set.
        rate: How many jobs may begin in a period by an operator's rule, such as ``"10/1s"``; None without a rule.
        paused: Whether the key is paused.
        running: The ids of the jobs that run under the key.
        waiting: The number of jobs that wait for the key, including jobs that also wait for other keys.
    """

    kind: str
    name: str
    places: int | None
    newest: int | None
    rule: int | None
    rate: str | None
    paused: bool
    running: tuple[int, ...]
    waiting: int


async def list_limits(engine: Engine, queue: QueueSettings) -> list[LimitUsage]:
    """Return the limits and groups of a queue that are in use, by kind and name.

    The operation counts all waiting jobs, so it takes as long as `Queue.stats`.
    """
    values = {"q_name": queue.name}
    kept = await engine.execute("rules.key_states", values, protect=False, patient=True)
    lanes = await engine.execute("rules.waiting_lanes", values, protect=False, patient=True)
    rules = {(rule.kind, rule.name): rule for rule in await list_rules(engine, queue)}
    newest: dict[str, int | None] = {}
    running: dict[str, tuple[int, ...]] = {}
    for key, places, ids in kept:
        newest[key], running[key] = places, tuple(json.loads(ids))
    waiting: dict[str, int] = {}
    put: dict[str, int] = {}
    for text, number, headers in lanes:
        lane: Lane | None = read_lane(text) or lane_of(headers)
        for key, places in () if lane is None else lane.needs:
            waiting[key] = waiting.get(key, 0) + int(number)
            put[key] = max(put.get(key, 0), places)
    named = {LIMIT + name for kind, name in rules if kind in ("limit", "rate")}
    named |= {name for kind, name in rules if kind == "pause"}
    used = {key for key, jobs in running.items() if jobs} | waiting.keys() | named
    found = []
    for kind, prefix in _KINDS.items():
        for key in sorted(key for key in used if key.startswith(prefix)):
            name = key.removeprefix(prefix)
            rule = _number(rules.get(("limit", name))) if kind == "limit" else None
            rate = rules.get(("rate", name)) if kind == "limit" else None
            found.append(
                LimitUsage(
                    kind,
                    name,
                    next((each for each in (rule, newest.get(key), put.get(key)) if each is not None), None),
                    newest.get(key),
                    rule,
                    None if rate is None else rate.value,
                    ("pause", key) in rules,
                    running.get(key, ()),
                    waiting.get(key, 0),
                )
            )
    return found


def _number(rule: Rule | None) -> int | None:
    return None if rule is None or rule.number is None else int(rule.number)
