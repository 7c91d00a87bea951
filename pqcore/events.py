"""What plugins are told of: jobs put, started, and how they ended.

With no plugin that listens, all of it costs a look at an empty list.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pqcore.plugins import plugins
from pqcore.settings import logger

if TYPE_CHECKING:
    from pqcore.job import BaseJob

JobHook: TypeAlias = Literal[
    "pqcore_job_started",
    "pqcore_job_succeeded",
    "pqcore_job_failed",
    "pqcore_job_retried",
    "pqcore_job_dead",
    "pqcore_job_dropped",
]


@dataclass
class PutEvent:
    """Jobs that are put, together.

    Attributes:
        queue: The queue's name.
        data: The data of the job; of `put_many`, the iterable that it was given.
        task: The path of the function, if the job is a call of one.
        headers: The headers of the jobs; what a plugin adds travels with them.
        ids: Their ids, once they are put; maybe not yet committed, if within a transaction.
    """

    queue: str
    data: Any
    task: str | None
    headers: dict[str, Any]
    ids: list[int] = field(default_factory=list)


@dataclass
class JobEvent:
    """A job that a worker runs, or has run.

    Attributes:
        queue: The queue's name.
        job: The job.
        task: The path of its function; empty if the job is not a call.
        waited: Seconds from when it was due until it was taken, by this machine's clock.
        duration: Seconds that the function took; 0 before.
        error: What it raised, if it failed.
        delay: Seconds until it is tried again, if it was retried; None for at once.
        reason: Why it is a dead letter, or was dropped.
    """

    queue: str
    job: BaseJob
    task: str
    waited: float = 0.0
    duration: float = 0.0
    error: BaseException | None = None
    delay: float | None = None
    reason: str = ""


def heard(*hooks: str) -> bool:
    """Whether any plugin implements one of the hooks."""
    plugins.load_others()
    return any(getattr(plugins.manager.hook, hook).get_hookimpls() for hook in hooks)


@contextmanager
def around(hook: Literal["pqcore_around_put", "pqcore_around_run"], event: PutEvent | JobEvent) -> Iterator[None]:
    """Enter the context managers that plugins give; one that fails to open is logged, and left out."""
    with ExitStack() as stack:
        try:
            for manager in getattr(plugins.manager.hook, hook)(event=event):
                stack.enter_context(manager)
        except Exception:  # noqa: BLE001 - a plugin is not to stop what it watches
            logger.exception("a plugin failed in %s", hook)
        yield


async def tell(hook: str, event: PutEvent | JobEvent) -> None:
    """Call a hook; what it returns is awaited if it can be.  A plugin's exception is logged, and no more."""
    try:
        for result in getattr(plugins.manager.hook, hook)(event=event):
            if inspect.isawaitable(result):
                await result
    except Exception:  # noqa: BLE001 - likewise
        logger.exception("a plugin failed in %s", hook)
