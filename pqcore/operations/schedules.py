"""Schedules: periodic tasks as rows, which programs and operators make, change, pause and trigger at run time.

As for tasks declared in code, workers put the job of each tick by the operations of `pqcore.operations.periodic`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, cast

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, PQError, ScheduleNotFound
from pqcore.headers import check_link
from pqcore.job import Identity
from pqcore.operations.batches import put_all
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.periodic import LastTick
from pqcore.settings import QueueSettings
from pqcore.sql.identifiers import MAX_KEY, check_text, control_channel
from pqcore.times import UtcDatetime

MOST = 10_000
"""The largest number of schedules that are listed."""


@dataclass(frozen=True)
class Schedule:
    """A schedule: a task whose job a worker puts at each tick of a cron expression.

    Attributes:
        queue: The name of the queue that jobs are put into.
        name: The name of the schedule, which is unique in a queue.
        task: The path of the task.
        cron: The cron expression.
        tz: The time zone of the expression.
        missed: Which ticks are put later, if they were missed because no worker ran; see `pqcore.tasks.Periodic`.
        args: The positional arguments of the task; None if this program cannot decode them.
        kwargs: The keyword arguments of the task; None if this program cannot decode them.
        paused_at: When the schedule was paused; None if it is not paused.
        created_at: When the schedule was made.
        updated_at: When the schedule was made, changed, paused or resumed last.
    """

    queue: str
    name: str
    task: str
    cron: str
    tz: str
    missed: str
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any] | None
    paused_at: UtcDatetime | None
    created_at: UtcDatetime
    updated_at: UtcDatetime

    @property
    def paused(self) -> bool:
        """Whether the schedule is paused."""
        return self.paused_at is not None


@dataclass(frozen=True)
class NewSchedule:
    """The values of a schedule that is made or replaced; its expression and its call are valid.

    Attributes:
        name: The name of the schedule.
        task: The path of the task.
        cron: The cron expression.
        tz: The time zone of the expression.
        missed: Which missed ticks are put later.
        args: The positional arguments of the task.
        kwargs: The keyword arguments of the task.
        call: The job that each tick puts, without a relative deadline.
        deadline_in: Seconds from the put of a job until its deadline; None for no deadline, or for one in ``call``.
    """

    name: str
    task: str
    cron: str
    tz: str
    missed: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: StoredPut
    deadline_in: float | None = None


@dataclass(frozen=True)
class ScheduledCall:
    """The job that each tick of a schedule puts.

    Attributes:
        task: The path of the task.
        call: The job, without a relative deadline.
        deadline_in: Seconds from the put of a job until its deadline.
        version: When the row of the schedule was changed last.
    """

    task: str
    call: StoredPut
    deadline_in: float | None
    version: datetime

    def job(self) -> StoredPut:
        """Return the job that the schedule puts now."""
        return _due_now(self.call, self.deadline_in)


@dataclass(frozen=True)
class FoundTimetable:
    """A schedule that is not paused, as a worker needs it to find ticks that are due.

    Attributes:
        name: The name of the schedule.
        cron: The cron expression.
        tz: The time zone of the expression.
        missed: Which missed ticks are put later.
        version: When the row of the schedule was changed last.
        last: The stored state of its ticks, and the time by the server's clock.
    """

    name: str
    cron: str
    tz: str
    missed: str
    version: datetime
    last: LastTick


# Changing schedules


async def set_schedule(engine: Engine, queue: QueueSettings, new: NewSchedule, connection: object = None) -> Schedule:
    """Make a schedule, or replace the schedule of this name; a paused schedule stays paused.

    Raises:
        ConfigurationError: A periodic task that is declared in code has the name.
    """
    values: dict[str, object] = {
        "name": new.name,
        "task": new.task,
        "cron": new.cron,
        "tz": new.tz,
        "missed": new.missed,
        "call": json.dumps(new.call.to_json(), separators=(",", ":")),
        "deadline_in": new.deadline_in,
    }
    rows = await _change(engine, queue, "set_schedule", values, connection)
    if not rows:
        msg = (
            f"{new.name!r} is the name of a periodic task that was declared in code on queue {queue.name!r}; choose"
            f" another name, or, if no code declares it any more, call unschedule({new.name!r}) first"
        )
        raise ConfigurationError(msg)
    [[paused_at, created_at, updated_at, *_]] = rows
    times = UtcDatetime.of(paused_at), _moment(created_at), _moment(updated_at)
    return Schedule(queue.name, new.name, new.task, new.cron, new.tz, new.missed, new.args, new.kwargs, *times)


async def remove_schedule(engine: Engine, queue: QueueSettings, name: str, connection: object = None) -> bool:
    """Remove a schedule; return whether it existed. Jobs that the schedule has put stay in the queue."""
    return bool(await _change(engine, queue, "remove_schedule", {"name": check_name(name)}, connection))


async def pause_schedule(engine: Engine, queue: QueueSettings, name: str, connection: object = None) -> None:
    """Stop workers from putting jobs for the ticks of a schedule.

    Raises:
        ScheduleNotFound: The queue has no schedule of this name.
    """
    if not await _change(engine, queue, "pause_schedule", {"name": check_name(name)}, connection):
        raise _not_found(queue, name)


async def resume_schedule(engine: Engine, queue: QueueSettings, name: str, connection: object = None) -> None:
    """Let workers put jobs for the ticks of a paused schedule again, from now on.

    Raises:
        ScheduleNotFound: The queue has no schedule of this name.
    """
    if not await _change(engine, queue, "resume_schedule", {"name": check_name(name)}, connection):
        raise _not_found(queue, name)


async def trigger(engine: Engine, queue: QueueSettings, name: str, connection: object = None) -> Identity:
    """Put the job of a schedule now, even if the schedule is paused; the times of its ticks do not change.

    Raises:
        ScheduleNotFound: The queue has no schedule of this name.
    """
    values = {"q_name": queue.name, "name": check_name(name)}

    async def find(s: Session) -> Sequence[Any]:
        query = s.sql.schedules.find_schedule
        return await s.execute(query, query.bind(values))

    rows = await engine.run(find, connection=connection)
    if not rows:
        raise _not_found(queue, name)
    [[call, deadline_in]] = rows
    [identity] = await put_all(engine, [_due_now(_read_call(name, call), deadline_in)], connection)
    return identity


async def _change(
    engine: Engine, queue: QueueSettings, statement: str, values: dict[str, object], connection: object
) -> Sequence[Any]:
    bound = {**values, "q_name": queue.name, "control": control_channel(queue.name)}

    async def work(s: Session) -> Sequence[Any]:
        query = getattr(s.sql.schedules, statement)
        return await s.execute(query, query.bind(bound))

    return await engine.run(work, connection=connection)


def check_name(name: str) -> str:
    """Return the name of a schedule.

    Raises:
        InvalidName: A schedule cannot have this name.
    """
    return check_text(name, "schedule", MAX_KEY)


def _not_found(queue: QueueSettings, name: str) -> ScheduleNotFound:
    return ScheduleNotFound(f"queue {queue.name!r} has no schedule {name!r}; schedules() lists its schedules")


# Reading schedules


async def list_schedules(engine: Engine, queue: QueueSettings | None = None) -> list[Schedule]:
    """List the schedules of a queue, sorted by name, or the schedules of all queues, sorted by queue and name.

    Args:
        engine: The engine.
        queue: The queue, whose serializers decode the arguments; None for all queues, whose arguments are decoded only
            if they are JSON.
    """
    name = None if queue is None else queue.name
    rows = await engine.execute("schedules.list_schedules", {"q_name": name, "n": MOST}, protect=False)
    found = []
    for q_name, name, task, cron, tz, missed, call, _, paused_at, created_at, updated_at in rows:
        reader = QueueSettings(q_name, engine.names, "json", {}) if queue is None else queue
        args, kwargs = _arguments(reader, name, call)
        times = UtcDatetime.of(paused_at), _moment(created_at), _moment(updated_at)
        found.append(Schedule(q_name, name, task, cron, tz, missed, args, kwargs, *times))
    return found


def _arguments(
    queue: QueueSettings, name: str, text: str
) -> tuple[tuple[Any, ...], dict[str, Any]] | tuple[None, None]:
    """Return the arguments of the stored call; None if they cannot be decoded here."""
    try:
        data = decoded(queue, _read_call(name, text))
        return tuple(data["args"]), dict(data["kwargs"])
    except (PQError, TypeError, ValueError, LookupError):
        return None, None


def decoded(queue: QueueSettings, call: StoredPut) -> Any:
    """Return the data of a stored call.

    Raises:
        UnsafeSerializer: The queue does not accept the data's serializer.
        DeserializationError: The queue cannot decode the data.
    """
    return StoredPut.read_previous(queue, 0, call.to_json())


async def find_timetables(engine: Engine, queue: QueueSettings) -> list[FoundTimetable]:
    """Return the schedules of a queue that are not paused, with the state of their ticks."""
    rows = await engine.execute("schedules.find_timetables", {"q_name": queue.name}, protect=False)
    return [
        FoundTimetable(name, cron, tz, missed, updated_at.replace(tzinfo=timezone.utc), LastTick.of(name, last))
        for name, cron, tz, missed, updated_at, *last in rows
    ]


async def find_calls(
    engine: Engine, queue: QueueSettings, names: Sequence[str]
) -> dict[str, ScheduledCall | ConfigurationError]:
    """Return the job that each schedule puts, by the schedule's name; for a job that is invalid, return the error."""
    values = {"q_name": queue.name, "names": list(names)}
    rows = await engine.execute("schedules.find_scheduled_calls", values, protect=False)
    found: dict[str, ScheduledCall | ConfigurationError] = {}
    for name, task, call, deadline_in, updated_at in rows:
        try:
            version = updated_at.replace(tzinfo=timezone.utc)
            found[name] = ScheduledCall(task, _read_call(name, call), deadline_in, version)
        except ConfigurationError as exc:
            found[name] = exc
    return found


def _read_call(name: str, text: str) -> StoredPut:
    """Read the stored call of a schedule.

    Raises:
        ConfigurationError: The call is not as `set_schedule` stored it.
    """
    try:
        stored = json.loads(text)
        check_link(stored)
        return StoredPut.from_json(stored)
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as exc:
        msg = f"the stored call of schedule {name!r} is not valid, and was not written by pqcore: {exc}"
        raise ConfigurationError(msg) from exc


def _due_now(call: StoredPut, deadline_in: float | None) -> StoredPut:
    """Return the call with a deadline in its headers: the time ``deadline_in`` seconds from now."""
    if deadline_in is None:
        return call
    run = {**call.headers.get("run", {}), "deadline": time.time() + deadline_in}
    return replace(call, headers={**call.headers, "run": run})


def _moment(value: datetime) -> UtcDatetime:
    """Return a time in UTC, from a column that is never NULL."""
    return cast("UtcDatetime", UtcDatetime.of(value))
