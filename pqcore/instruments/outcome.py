"""The end of a run as seen by the code around it, before the worker has decided the outcome."""

from __future__ import annotations

import asyncio
from typing import Literal, TypeAlias

from pqcore.errors import PQError
from pqcore.events import JobEvent
from pqcore.tasks.context import JobCancelled, current
from pqcore.tasks.registry import TaskDeclarations
from pqcore.tasks.retry import Discard, Snooze

Verdict: TypeAlias = Literal["succeeded", "failed", "timeout", "snoozed", "discarded", "cancelled", "shutdown", "lost"]


def verdict(event: JobEvent, error: BaseException) -> Verdict:
    """Return the meaning of an exception of a job's function; only ``failed`` and ``timeout`` are errors."""
    if isinstance(error, (asyncio.CancelledError, JobCancelled)):
        return _stopped()
    if isinstance(error, Snooze):
        return "snoozed"
    if isinstance(error, (Discard, *_discard_on(event.task))):
        return "discarded"
    return "failed"


def is_error(found: Verdict) -> bool:
    """Return whether a verdict counts as an error."""
    return found in ("failed", "timeout")


def declared(path: str) -> bool:
    """Return whether a path belongs to a declared task; paths in rows may be anything, but declared tasks are few."""
    return TaskDeclarations.declared_task(path) is not None


def _discard_on(path: str) -> tuple[type[BaseException], ...]:
    task = TaskDeclarations.declared_task(path)
    return () if task is None else task.options.discard_on


def _stopped() -> Verdict:
    try:
        reason = current().stop_reason
    except PQError:
        return "failed"
    for known in _STOPPED:
        if reason == known:
            return known
    return "failed"  # cancelled from within


_STOPPED: tuple[Verdict, ...] = ("timeout", "cancelled", "shutdown", "lost")
