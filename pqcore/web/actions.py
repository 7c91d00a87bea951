"""What can be done to jobs from the page, each after a question; only where changes are allowed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pqcore.operations import admin, dead_letters, retry
from pqcore.settings import QueueSettings
from pqcore.web.target import Target


@dataclass(frozen=True)
class Wish:
    """What is to be changed.

    Attributes:
        queue: Of which queue.
        id: Which job; 0 if it is about the queue.
        older_than: Only what is so old, as in ``14d``; of no meaning where no age is asked for.
    """

    queue: QueueSettings
    id: int
    older_than: str


@dataclass(frozen=True)
class Change:
    """A kind of change.

    Attributes:
        label: What it is called, on a button.
        question: What is asked before; ``{id}``, ``{queue}`` and ``{n}`` are filled in.
        consequence: What comes of it.
        said: What is said after it; ``{n}`` is filled in.
        of_job: Whether it is about one job.
        dangerous: Whether it takes something away for good.
        timed: Whether an age is asked for.
        do: Does it; how many jobs were changed.
    """

    label: str
    question: str
    consequence: str
    said: str
    do: Callable[[Target, Wish], Awaitable[int]]
    of_job: bool = True
    dangerous: bool = False
    timed: bool = False


async def _retry(target: Target, wish: Wish) -> int:
    return int((await target.call(retry.retry, wish.queue, wish.id)).done)


async def _cancel(target: Target, wish: Wish) -> int:
    return int(await target.call(admin.cancel, wish.queue, wish.id, running=True))


async def _purge(target: Target, wish: Wish) -> int:
    return await target.call(dead_letters.purge, wish.queue, [wish.id], 0)


async def _retry_dead(target: Target, wish: Wish) -> int:
    return await target.call(dead_letters.revive, wish.queue, None)


async def _retry_unreadable(target: Target, wish: Wish) -> int:
    return await target.call(dead_letters.revive, wish.queue, None, "unreadable")


async def _purge_dead(target: Target, wish: Wish) -> int:
    return await target.call(dead_letters.purge, wish.queue, None, wish.older_than)


async def _purge_done(target: Target, wish: Wish) -> int:
    return await target.call(admin.purge, wish.queue, wish.older_than)


CHANGES: dict[str, Change] = {
    "retry": Change(
        "Retry",
        "Run job {id} of {queue} again?",
        "It is due at once, with the same id. One that was dead or done begins with a clean record.",
        "The job is due now.",
        _retry,
    ),
    "cancel": Change(
        "Cancel",
        "Cancel job {id} of {queue}?",
        "One that waits is deleted. One that runs is asked to stop: a worker cancels a coroutine; a function in a"
        " thread has to look whether it is to stop.",
        "The job is cancelled, or was asked to stop.",
        _cancel,
        dangerous=True,
    ),
    "purge": Change(
        "Purge",
        "Delete dead letter {id} of {queue} for good?",
        "Nothing of it is kept.",
        "The dead letter is deleted.",
        _purge,
        dangerous=True,
    ),
    "retry-dead": Change(
        "Retry all dead letters",
        "Run all dead letters of {queue} again?",
        "Each is due at once, with the same id and a clean record.",
        "{n} dead letters are due now.",
        _retry_dead,
        of_job=False,
    ),
    "retry-unreadable": Change(
        "Retry unreadable ones",
        "Run all unreadable dead letters of {queue} again?",
        "Each is due immediately, with the same id and a clean record. Deploy workers that can read them first.",
        "{n} dead letters are due now.",
        _retry_unreadable,
        of_job=False,
    ),
    "purge-dead": Change(
        "Purge dead letters",
        "Delete dead letters of {queue} for good?",
        "Nothing of them is kept.",
        "{n} dead letters are deleted.",
        _purge_dead,
        of_job=False,
        dangerous=True,
        timed=True,
    ),
    "purge-done": Change(
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
"""All kinds of changes, by the name that requests have."""

_POSSIBLE = {
    "dead": ("retry", "purge"),
    "done": ("retry",),
    "scheduled": ("retry", "cancel"),
    "ready": ("cancel",),
    "parked": ("cancel",),
    "leased": ("cancel",),
}


def possible(state: str) -> tuple[str, ...]:
    """What can be done to a job in this state."""
    return _POSSIBLE[state]
