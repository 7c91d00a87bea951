"""The actions on jobs that a page offers, each after a question; only if the page allows changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pqcore.operations import admin, dead_letters, retry
from pqcore.settings import QueueSettings
from pqcore.web.target import Target


@dataclass(frozen=True)
class ActionRequest:
    """The jobs that a visitor wants an action on.

    Attributes:
        queue: The queue.
        id: The job; 0 if the action is about the queue.
        older_than: The least age of the jobs, as in ``14d``; without meaning for an action that is not ``timed``.
    """

    queue: QueueSettings
    id: int
    older_than: str


@dataclass(frozen=True)
class Action:
    """An action on one job or on the jobs of a queue.

    Attributes:
        label: The text of its button.
        question: The question before it; ``{id}``, ``{queue}`` and ``{n}`` are filled in.
        consequence: The text below the question.
        said: The message after it; ``{n}`` is filled in.
        do: Does it, and returns how many jobs were changed.
        of_job: Whether it is about one job.
        dangerous: Whether it deletes something for good.
        timed: Whether the page asks for an age.
    """

    label: str
    question: str
    consequence: str
    said: str
    do: Callable[[Target, ActionRequest], Awaitable[int]]
    of_job: bool = True
    dangerous: bool = False
    timed: bool = False


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
    return await target.call(dead_letters.purge, wanted.queue, None, wanted.older_than)


async def _purge_done(target: Target, wanted: ActionRequest) -> int:
    return await target.call(admin.purge, wanted.queue, wanted.older_than)


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
        timed=True,
    ),
    "purge-done": Action(
        "Purge finished jobs",
        "Delete the rows of finished jobs of {queue} for good?",
        "Those that are kept in the table, and those that are archived.",
        "{n} finished jobs are deleted.",
        _purge_done,
        of_job=False,
        dangerous=True,
        timed=True,
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
