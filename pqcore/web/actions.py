"""The actions on jobs and rules that a page offers, each after a question; only if the page allows changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pqcore.errors import ConfigurationError
from pqcore.operations import admin, dead_letters, retry, rules
from pqcore.operations.rules import Rule
from pqcore.settings import QueueSettings
from pqcore.times import typed
from pqcore.web.target import Target


@dataclass(frozen=True)
class Field:
    """What the page asks for before an action.

    Attributes:
        name: What the form calls it.
        label: The text before it.
        note: The text after it: what may be written.
        default: What stands in it at first.
        choices: What may be chosen; empty if it is written.
        required: Whether it may not be left empty.
    """

    name: str
    label: str
    note: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True)
class ActionRequest:
    """What a visitor wants an action on.

    Attributes:
        queue: The queue.
        id: The job; 0 if the action is about the queue.
        fields: What was written into the fields of the action, by their names.
    """

    queue: QueueSettings
    id: int
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Action:
    """An action on one job, on the jobs of a queue, or on its rules.

    Attributes:
        label: The text of its button.
        question: The question before it; ``{id}``, ``{queue}`` and ``{n}`` are filled in.
        consequence: The text below the question.
        said: The message after it; ``{n}`` is filled in.
        do: Does it, and returns how many jobs or rules were changed.
        of_job: Whether it is about one job.
        dangerous: Whether it deletes something for good.
        fields: What the page asks for.
    """

    label: str
    question: str
    consequence: str
    said: str
    do: Callable[[Target, ActionRequest], Awaitable[int]]
    of_job: bool = True
    dangerous: bool = False
    fields: tuple[Field, ...] = ()


async def _retry(target: Target, wanted: ActionRequest) -> int:
    return int((await target.call(retry.retry, wanted.queue, wanted.id)).done)


async def _cancel(target: Target, wanted: ActionRequest) -> int:
    return int(await target.call(admin.cancel, wanted.queue, wanted.id, running=True))


async def _purge(target: Target, wanted: ActionRequest) -> int:
    return await target.call(dead_letters.purge, wanted.queue, [wanted.id], 0)


async def _retry_dead(target: Target, wanted: ActionRequest) -> int:
    return await target.call(dead_letters.revive, wanted.queue, None)


async def _retry_unreadable(target: Target, wanted: ActionRequest) -> int:
    return await target.call(dead_letters.revive, wanted.queue, None, "unreadable")


async def _purge_dead(target: Target, wanted: ActionRequest) -> int:
    return await target.call(dead_letters.purge, wanted.queue, None, wanted.fields["older_than"])


async def _purge_done(target: Target, wanted: ActionRequest) -> int:
    return await target.call(admin.purge, wanted.queue, wanted.fields["older_than"])


async def _pause(target: Target, wanted: ActionRequest) -> int:
    until = typed(wanted.fields["until"] or None)
    await target.call(rules.pause, wanted.queue, until, **_paused(wanted.fields))
    return 1


async def _resume(target: Target, wanted: ActionRequest) -> int:
    return int(await target.call(rules.resume, wanted.queue, **_paused(wanted.fields)))


def _paused(fields: Mapping[str, str]) -> dict[str, str]:
    """What a pause is of, as the operations take it."""
    what, name = fields["what"], fields["name"]
    if what not in _PAUSED:
        raise ConfigurationError(f"{what[:40]!r} cannot be paused; choose of {', '.join(_PAUSED)}")
    if what == "queue":
        if name:
            raise ConfigurationError(f"the name is {name[:40]!r}, and a whole queue is paused without one")
        return {}
    return {what: name}


async def _set_limit(target: Target, wanted: ActionRequest) -> int:
    places = wanted.fields["places"]
    await target.call(rules.set_limit, wanted.queue, wanted.fields["name"], _number(places, int))
    return 1


async def _set_rate(target: Target, wanted: ActionRequest) -> int:
    await target.call(rules.set_rate, wanted.queue, wanted.fields["name"], wanted.fields["rate"] or None)
    return 1


async def _set_weight(target: Target, wanted: ActionRequest) -> int:
    weight = wanted.fields["weight"]
    await target.call(rules.set_weight, wanted.queue, wanted.fields["name"], _number(weight, float))
    return 1


def _number(text: str, kind: type[int | float]) -> Any:
    """The number that was written; None if nothing was."""
    try:
        return kind(text) if text else None
    except ValueError:
        raise ConfigurationError(f"{text[:40]!r} is not a number; write one, or nothing to remove the rule") from None


_AGE = Field("older_than", "Only those older than", "as in 30s, 2h or 14d; 0s for all", "14d")
_PAUSED = ("queue", "task", "limit", "group")
_WHAT = (
    Field("what", "What", "", "queue", choices=_PAUSED),
    Field("name", "Its name", "of a task, as in app.emails.send; none for the queue", required=False),
)
_LIMIT = Field("name", "Limit", "the name that jobs were put under")

ACTIONS: dict[str, Action] = {
    "retry": Action(
        "Retry",
        "Run job {id} of {queue} again?",
        "It is due immediately, with the same id. One that was dead or done begins with a clean record.",
        "The job is due now.",
        _retry,
    ),
    "cancel": Action(
        "Cancel",
        "Cancel job {id} of {queue}?",
        "One that waits is deleted. One that runs is asked to stop: a worker cancels a coroutine; a function in a"
        " thread has to check whether it should stop.",
        "The job is cancelled, or was asked to stop.",
        _cancel,
        dangerous=True,
    ),
    "purge": Action(
        "Purge",
        "Delete dead letter {id} of {queue} for good?",
        "Nothing of it is kept.",
        "The dead letter is deleted.",
        _purge,
        dangerous=True,
    ),
    "retry-dead": Action(
        "Retry all dead letters",
        "Run all dead letters of {queue} again?",
        "Each is due immediately, with the same id and a clean record.",
        "{n} dead letters are due now.",
        _retry_dead,
        of_job=False,
    ),
    "retry-unreadable": Action(
        "Retry unreadable ones",
        "Run all unreadable dead letters of {queue} again?",
        "Each is due immediately, with the same id and a clean record. Deploy workers that can read them first.",
        "{n} dead letters are due now.",
        _retry_unreadable,
        of_job=False,
    ),
    "purge-dead": Action(
        "Purge dead letters",
        "Delete dead letters of {queue} for good?",
        "Nothing of them is kept.",
        "{n} dead letters are deleted.",
        _purge_dead,
        of_job=False,
        dangerous=True,
        fields=(_AGE,),
    ),
    "purge-done": Action(
        "Purge finished jobs",
        "Delete the rows of finished jobs of {queue} for good?",
        "Those that are kept in the table, and those that are archived.",
        "{n} finished jobs are deleted.",
        _purge_done,
        of_job=False,
        dangerous=True,
        fields=(_AGE,),
    ),
    "pause": Action(
        "Pause",
        "Pause {queue}, or a part of it?",
        "Within a second no more of its jobs begin. Those that run go on, and jobs can be put.",
        "It is paused.",
        _pause,
        of_job=False,
        fields=(*_WHAT, Field("until", "Until", "as in 30m or 2030-01-31T12:00Z; else it is resumed", required=False)),
    ),
    "resume": Action(
        "Resume",
        "Resume {queue}, or a part of it?",
        "Its jobs begin again immediately.",
        "Pauses that ended: {n}.",
        _resume,
        of_job=False,
        fields=_WHAT,
    ),
    "limit": Action(
        "Set a limit",
        "Set a limit of {queue}?",
        "This many jobs run concurrently under the limit, whatever number they were put with.",
        "The limit is changed.",
        _set_limit,
        of_job=False,
        fields=(_LIMIT, Field("places", "Jobs", "a number; nothing removes the rule", required=False)),
    ),
    "rate": Action(
        "Set a rate",
        "Set a rate of {queue}?",
        "This many jobs under the limit begin in a time.",
        "The rate is changed.",
        _set_rate,
        of_job=False,
        fields=(_LIMIT, Field("rate", "Rate", "as in 10/s, 600/min or 100/5m; nothing removes it", required=False)),
    ),
    "weight": Action(
        "Set a weight",
        "Set the weight of a share of {queue}?",
        "While other shares have jobs too, this share gets that many times the jobs of a share of weight 1.",
        "The weight is changed.",
        _set_weight,
        of_job=False,
        fields=(
            Field("name", "Share", "nothing is that of jobs which name none", required=False),
            Field("weight", "Weight", "a number above 0; nothing is 1", required=False),
        ),
    ),
}
"""All actions, by the name that requests have."""

_POSSIBLE = {
    "dead": ("retry", "purge"),
    "done": ("retry",),
    "scheduled": ("retry", "cancel"),
    "ready": ("cancel",),
    "parked": ("cancel",),
    "leased": ("cancel",),
}


def possible(state: str) -> tuple[str, ...]:
    """Return the names of the actions on a job in this state."""
    return _POSSIBLE[state]


def change_of_rule(rule: Rule) -> dict[str, str]:
    """Return what a link to the change of a rule asks for: the action, and its fields."""
    if rule.kind == "pause":
        what, _, name = rule.name.partition(":")
        return {"do": "resume", "what": what, "name": name}
    value = {"limit": "places"}.get(rule.kind, rule.kind)
    return {"do": rule.kind, "name": rule.name, value: rule.value}
