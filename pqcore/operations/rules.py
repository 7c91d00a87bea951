"""Rules that operators set while the system runs: limits and rates of keys, weights of shares, and pauses."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, InvalidTimeSpec
from pqcore.settings import QueueSettings
from pqcore.sql.identifiers import MAX_KEY, check_text, control_channel
from pqcore.times import TimeSpec, UtcDatetime, parse, parse_rate

Rate: TypeAlias = str | tuple[int, Any]
"""``"10/s"``, ``"100/5m"``, or a number of jobs and a duration: ``(100, "5m")``."""

MOST_PLACES = 2**31 - 1
"""The highest number of a limit or rate: the server stores places in four bytes."""
MOST_WEIGHT = 1_000_000
"""The highest weight; the lowest weight is one divided by this number."""
_LIMIT = "limit:"


@dataclass(frozen=True)
class Rule:
    """A rule that is in force.

    Attributes:
        kind: ``limit``, ``rate``, ``weight`` or ``pause``.
        name: For a limit or rate, the name of the limit; for a weight, the share. For a pause, the paused object:
            ``queue``, or ``task:``, ``limit:`` or ``group:`` and a name.
        number: The places of a limit, the jobs of a rate, or the weight; None for a pause.
        period: For a rate, the seconds in which this number of jobs may begin.
        until: When a pause ends; None if only `resume` ends it.
        changed_at: When the rule was set.
    """

    kind: str
    name: str
    number: float | None
    period: float | None
    until: UtcDatetime | None
    changed_at: UtcDatetime

    @property
    def value(self) -> str:
        """Return the number as text, for a rate with its period; empty for a pause."""
        if self.number is None:
            return ""
        return f"{self.number:g}" if self.period is None else f"{self.number:g}/{self.period:g}s"


# Changing rules


async def set_limit(
    engine: Engine, queue: QueueSettings, name: str, places: int | None, connection: object = None
) -> None:
    """Set how many jobs of a limit may run concurrently. Without the rule, the number in the newest put counts."""
    key = _LIMIT + check_text(name, "limit", MAX_KEY)
    if places is not None:
        _check_number(f"limit {name!r}", places, "to run none, call pause(limit=...)")
    await _change(engine, queue, "limit", key, connection, number=places)


async def set_rate(
    engine: Engine, queue: QueueSettings, name: str, rate: Rate | None, connection: object = None
) -> None:
    """Set how many jobs of a limit may begin in a period, or remove the rule."""
    key = _LIMIT + check_text(name, "limit", MAX_KEY)
    number, period = (None, None) if rate is None else parse_rate(rate, f"the rate of {name!r}")
    if number is not None:
        _check_number(f"the rate of {name!r}", number, "to start none, call pause(limit=...)")
    await _change(engine, queue, "rate", key, connection, number=number, period=period)


async def set_weight(
    engine: Engine, queue: QueueSettings, share: str, weight: float | None, connection: object = None
) -> None:
    """Set the weight of a share, or reset it to 1."""
    if share != "":  # the empty name stands for the share of jobs without a tenant
        check_text(share, "share", MAX_KEY)
    if weight is not None and (
        not isinstance(weight, (int, float))
        or isinstance(weight, bool)
        or not 1 / MOST_WEIGHT <= weight <= MOST_WEIGHT  # this comparison also refuses NaN
    ):
        msg = f"the weight of {share!r} is {weight!r}; give a number above 0, at most {MOST_WEIGHT:,}"
        raise ConfigurationError(msg)
    await _change(engine, queue, "weight", share, connection, number=weight)


async def pause(
    engine: Engine,
    queue: QueueSettings,
    until: TimeSpec = None,
    connection: object = None,
    *,
    task: object = None,
    limit: str | None = None,
    group: str | None = None,
) -> None:
    """Pause a queue, a task or a key; see `pqcore.Queue.pause`."""
    name = _paused_name(task, limit, group)
    moment = parse(until)
    refusal = f"until is {until!r}, which has passed; give a future time, as in '5m', or None to pause until resume()"
    if isinstance(moment, timedelta) and moment <= timedelta():
        raise InvalidTimeSpec(refusal)
    if not await _change(engine, queue, "pause", name, connection, pauses=True, until=moment):
        raise InvalidTimeSpec(refusal)


async def resume(
    engine: Engine,
    queue: QueueSettings,
    connection: object = None,
    *,
    task: object = None,
    limit: str | None = None,
    group: str | None = None,
) -> bool:
    """End a pause; return whether the pause was in force."""
    return await _change(engine, queue, "pause", _paused_name(task, limit, group), connection)


async def _change(
    engine: Engine,
    queue: QueueSettings,
    kind: str,
    name: str,
    connection: object,
    *,
    number: float | None = None,
    period: float | None = None,
    pauses: bool = False,
    until: datetime | timedelta | None = None,
) -> bool:
    """Set a rule; remove the rule if no number is given and the rule is not a pause.

    Returns:
        Whether a rule was set, or a rule in force was removed.
    """
    values: dict[str, object] = {
        "q_name": queue.name,
        "kind": kind,
        "name": name,
        "number": None if number is None else float(number),
        "period": period,
        "until_at": until if isinstance(until, datetime) else None,
        "until_in": until.total_seconds() if isinstance(until, timedelta) else None,
        "channel": queue.channel,
        "control": control_channel(queue.name),
    }
    sets = pauses or number is not None

    async def work(s: Session) -> bool:
        query = s.sql.rules.set_rule if sets else s.sql.rules.remove_rule
        rows = await s.execute(query, query.bind(values))
        queue.rule_cache.forget(now=time.monotonic(), in_transaction=s.in_transaction())
        return any(sets or held for held, *_ in rows)

    changed = await engine.run(work, connection=connection)
    engine.wake_unlistened(queue.channel)
    return changed


def _check_number(what: str, number: object, instead: str) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_PLACES:
        msg = f"{what} is {number!r}; give a number of jobs from 1 to {MOST_PLACES:,}; {instead}"
        raise ConfigurationError(msg)


def _paused_name(task: object, limit: object, group: object) -> str:
    """Return the name in the row of a pause, which is ``queue``, or the kind and name of a task, limit or group.

    Raises:
        ConfigurationError: More than one object is given.
        InvalidName: The object cannot have this name.
    """
    given = {"task": task, "limit": limit, "group": group}
    named = {kind: name for kind, name in given.items() if name is not None}
    if not named:
        return "queue"
    if len(named) > 1:
        listed = " and ".join(f"{kind}={name!r}" for kind, name in named.items())
        raise ConfigurationError(f"a call pauses one thing, and {listed} are given; pause each with its own call")
    [(kind, name)] = named.items()
    path = getattr(name, "_path", name)  # a function that was declared as a task has its path in `_path`
    return f"{kind}:{check_text(path, kind, MAX_KEY)}"


# Reading rules


async def list_rules(engine: Engine, queue: QueueSettings) -> list[Rule]:
    """Return the rules of a queue that are in force, by kind and name."""
    rows = await engine.execute("rules.list_rules", {"q_name": queue.name}, protect=False)
    return [
        Rule(
            kind,
            name if kind == "pause" else name.removeprefix(_LIMIT) if kind != "weight" else name,
            number,
            period,
            UtcDatetime.of(until),
            UtcDatetime.of(changed_at),  # type: ignore[arg-type]  # a row has it
        )
        for kind, name, number, period, until, changed_at in rows
    ]


async def list_paused_queues(engine: Engine) -> list[str]:
    """Return the names of the queues that are paused as a whole, in order."""
    rows = await engine.execute("admin.paused_queues", {}, protect=False)
    return [name for (name,) in rows]
