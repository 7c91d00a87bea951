"""The actions of a page: their fields, the counts that a page shows before it asks, and their effects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pqcore.errors import ConfigurationError, ScheduleNotFound
from pqcore.operations import (
    admin,
    dead_groups,
    dead_letters,
    expiry,
    move,
    periodic,
    purge_counts,
    retry,
    rules,
    schedules,
    worker_registry,
)
from pqcore.settings import AS_IT_IS, QueueSettings
from pqcore.tasks.periodic import latest_tick
from pqcore.times import typed
from pqcore.web.rendering import count
from pqcore.web.target import Target
from pqcore.web.time_limits import ANSWER

PAUSED = ("queue", "task", "limit", "group")
"""The kinds of things that can be paused."""
KEPT_OF = ("this queue", "all queues without times of their own")
"""The scopes for which the time to keep rows can be set."""


@dataclass(frozen=True)
class Field:
    """A field of the form before an action.

    Attributes:
        name: The field's name in the form.
        label: The text before the field.
        note: The text after the field, which says what may be written.
        default: The text in the field at first.
        choices: The values to choose from; empty if the visitor writes the value.
        required: Whether the field must have a value.
        fixed: Whether the link to the question gives the value, so that the form does not ask for it.
    """

    name: str
    label: str
    note: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()
    required: bool = True
    fixed: bool = False


@dataclass(frozen=True)
class ActionRequest:
    """The queue, the job and the fields of an action that a visitor requests.

    Attributes:
        queue: The queue.
        id: The id of the job; 0 if the action is about the queue.
        fields: The values of the action's fields; the keys are their names.
    """

    queue: QueueSettings
    id: int
    fields: Mapping[str, str]


class Count(NamedTuple):
    """The number of rows that an action would change.

    Attributes:
        number: The number of rows counted.
        noun: The noun for one of the rows.
        complete: Whether all rows were counted.
    """

    number: int
    noun: str
    complete: bool = True

    def __str__(self) -> str:
        noun = self.noun if self.number == 1 and self.complete else f"{self.noun}s"
        return f"{'' if self.complete else 'at least '}{count(self.number)} {noun}"


@dataclass(frozen=True)
class Action:
    """An action on one job, on the jobs of a queue, or on its rules.

    Attributes:
        label: The text of the button.
        question: The question before the action; ``{id}``, ``{queue}`` and ``{count}`` are filled in.
        consequence: The text below the question; the fields are filled in.
        said: The message after the action; ``{n}`` is filled in.
        do: The function that makes the change, and returns how many jobs or rules it changed.
        of_job: Whether the action is about one job.
        dangerous: Whether the action deletes something for good.
        fields: The fields of the form.
        counts: The function that counts the rows that the action would change; None if the action changes one thing.
        then: The page that is shown after the action.
    """

    label: str
    question: str
    consequence: str
    said: str
    do: Callable[[Target, ActionRequest], Awaitable[int]]
    of_job: bool = True
    dangerous: bool = False
    fields: tuple[Field, ...] = ()
    counts: Callable[[Target, ActionRequest], Awaitable[Count]] | None = None
    then: str = "queue"


async def quiet_worker(target: Target, wanted: ActionRequest) -> int:
    """Tell a worker to take no more jobs."""
    return await _set_quiet(target, wanted, quiet=True)


async def wake_worker(target: Target, wanted: ActionRequest) -> int:
    """Tell a worker to take jobs again."""
    return await _set_quiet(target, wanted, quiet=False)


async def _set_quiet(target: Target, wanted: ActionRequest, *, quiet: bool) -> int:
    worker = wanted.fields["worker"]
    if not await target.call(worker_registry.set_quiet, worker, quiet=quiet):
        raise ConfigurationError(
            f"worker {worker!r} is no longer listed: it has stopped, or has another id now; reload the page"
        )
    return 1


async def retry_job(target: Target, wanted: ActionRequest) -> int:
    """Make a job due now; return 1 if that changed the job, otherwise 0."""
    return int((await target.call(retry.retry, wanted.queue, wanted.id)).done)


async def cancel_job(target: Target, wanted: ActionRequest) -> int:
    """Delete a waiting job, or ask a running job to stop; return 1 if there was such a job, otherwise 0."""
    return int(await target.call(admin.cancel, wanted.queue, wanted.id, running=True))


async def purge_letter(target: Target, wanted: ActionRequest) -> int:
    """Delete a dead letter; return how many were deleted."""
    return await target.call(dead_letters.purge, wanted.queue, [wanted.id], 0)


async def retry_dead(target: Target, wanted: ActionRequest) -> int:
    """Turn all dead letters into jobs again; return their number."""
    return await target.call(dead_letters.revive, wanted.queue, None)


async def retry_unreadable(target: Target, wanted: ActionRequest) -> int:
    """Turn the unreadable dead letters into jobs again; return their number."""
    return await target.call(dead_letters.revive, wanted.queue, None, "unreadable")


async def retry_group(target: Target, wanted: ActionRequest) -> int:
    """Turn the dead letters of a group into jobs again; return their number."""
    return await target.call(dead_groups.revive_group, wanted.queue, *_group(wanted))


def _group(wanted: ActionRequest) -> tuple[str, str, str]:
    """Return the key of a group of dead letters: task, error and reason."""
    return wanted.fields["task"], wanted.fields["error"], wanted.fields["reason"]


def counting_dead(reason: str | None) -> Callable[[Target, ActionRequest], Awaitable[Count]]:
    """Return a function that counts the dead letters with a reason, or all dead letters."""

    async def counts(target: Target, wanted: ActionRequest) -> Count:
        return Count(await target.read(dead_letters.count, wanted.queue, reason), "dead letter")

    return counts


async def count_group(target: Target, wanted: ActionRequest) -> Count:
    """Count the dead letters of a group."""
    ids = await target.read(dead_groups.list_group_ids, wanted.queue, *_group(wanted))
    return Count(len(ids), "dead letter")


async def count_old_dead(target: Target, wanted: ActionRequest) -> Count:
    """Count the dead letters that a purge would delete."""
    number = await target.read(purge_counts.count_old_dead, wanted.queue, wanted.fields["older_than"])
    return Count(number, "dead letter")


async def count_old_finished(target: Target, wanted: ActionRequest) -> Count:
    """Count the finished rows that a purge would delete; the count stops after `ANSWER` seconds."""
    older_than = wanted.fields["older_than"]
    found = await target.read(purge_counts.count_old_finished, wanted.queue, older_than, ANSWER)
    return Count(found[0], "finished job", found[1])


async def purge_dead(target: Target, wanted: ActionRequest) -> int:
    """Delete old dead letters; return their number."""
    return await target.call(dead_letters.purge, wanted.queue, None, wanted.fields["older_than"])


async def purge_done(target: Target, wanted: ActionRequest) -> int:
    """Delete old finished rows; return their number."""
    return await target.call(admin.purge, wanted.queue, wanted.fields["older_than"])


async def count_movable(target: Target, wanted: ActionRequest) -> Count:
    """Count the jobs that a move would move; jobs that are put or taken before the move change this number."""
    figures = (await target.read(admin.count_queues, wanted.queue))[wanted.queue.name]
    return Count(figures.ready + figures.scheduled + figures.parked, "waiting job")


async def move_jobs(target: Target, wanted: ActionRequest) -> int:
    """Move the waiting jobs to another queue; return their number."""
    return await target.call(move.move, wanted.queue, target.queue(wanted.fields["to"]))


async def pause(target: Target, wanted: ActionRequest) -> int:
    """Pause a queue, a task or a key."""
    until = typed(wanted.fields["until"] or None)
    await target.call(rules.pause, wanted.queue, until, **_paused(wanted.fields))
    return 1


async def resume(target: Target, wanted: ActionRequest) -> int:
    """End a pause; return how many pauses ended."""
    return int(await target.call(rules.resume, wanted.queue, **_paused(wanted.fields)))


def _paused(fields: Mapping[str, str]) -> dict[str, str]:
    """Return what is paused, as an argument of the operations: a queue, task, limit or group."""
    what, name = fields["what"], fields["name"]
    if what not in PAUSED:
        raise ConfigurationError(f"{what[:40]!r} cannot be paused; choose one of {', '.join(PAUSED)}")
    if what == "queue":
        if name:
            raise ConfigurationError(f"a pause of a whole queue has no name, but name is {name[:40]!r}; omit name")
        return {}
    return {what: name}


async def set_limit(target: Target, wanted: ActionRequest) -> int:
    """Set a limit, or remove it."""
    places = wanted.fields["places"]
    await target.call(rules.set_limit, wanted.queue, wanted.fields["name"], _number(places, int))
    return 1


async def set_rate(target: Target, wanted: ActionRequest) -> int:
    """Set a rate, or remove it."""
    await target.call(rules.set_rate, wanted.queue, wanted.fields["name"], wanted.fields["rate"] or None)
    return 1


async def set_weight(target: Target, wanted: ActionRequest) -> int:
    """Set the weight of a share, or remove it."""
    weight = wanted.fields["weight"]
    await target.call(rules.set_weight, wanted.queue, wanted.fields["name"], _number(weight, float))
    return 1


async def set_expiry(target: Target, wanted: ActionRequest) -> int:
    """Set how long rows are kept."""
    of, given = wanted.fields["of"], {kind: wanted.fields[kind] for kind in ("finished", "dead")}
    if of not in KEPT_OF:
        raise ConfigurationError(f"{of[:40]!r} has no expiry times; choose one of {', '.join(KEPT_OF)}")
    if not any(given.values()):
        raise ConfigurationError("no time is given; write how long finished rows or dead letters are kept")
    periods = {kind: None if text == "none" else text or AS_IT_IS for kind, text in given.items()}
    await target.call(expiry.set_expiry, wanted.queue.name if of == KEPT_OF[0] else None, **periods)
    return 1


async def run_now(target: Target, wanted: ActionRequest) -> int:
    """Put the job of a schedule, or tell a worker to put the job of a periodic task that is declared in code."""
    name = wanted.fields["name"]
    with suppress(ScheduleNotFound):
        await target.call(schedules.trigger, wanted.queue, name)
        return 1
    found = await target.read(periodic.last_tick, wanted.queue, name)
    if found.line is None:
        raise ConfigurationError(
            f"the cron expression of {name[:40]!r} is not known; start a worker that declares the task"
        )
    moment = latest_tick(found.line.cron, found.line.tz, found.now)
    if moment is None:
        raise ConfigurationError(f"{name[:40]!r} had no tick in the last five years; put a job of the task instead")
    if not await target.call(periodic.repeat_tick, wanted.queue, name, moment):
        raise ConfigurationError(f"a worker has just put a job of {name[:40]!r}; see the page Workers")
    return 1


async def pause_schedule(target: Target, wanted: ActionRequest) -> int:
    """Pause a schedule."""
    await target.call(schedules.pause_schedule, wanted.queue, wanted.fields["name"])
    return 1


async def resume_schedule(target: Target, wanted: ActionRequest) -> int:
    """Resume a schedule."""
    await target.call(schedules.resume_schedule, wanted.queue, wanted.fields["name"])
    return 1


def _number(text: str, kind: type[int | float]) -> Any:
    """Return the number in a text; None if the text is empty."""
    try:
        return kind(text) if text else None
    except ValueError:
        raise ConfigurationError(f"{text[:40]!r} is not a number; leave the field empty to remove the rule") from None
