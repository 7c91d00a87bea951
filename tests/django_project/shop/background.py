"""Tasks of Django's own kind."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

from django_project.settings import TASKS_MODULE
from pqcore.tasks import Discard

ENDS: dict[str, type[BaseException]] = {
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
    "cancel": asyncio.CancelledError,
    "error": LookupError,
    "discard": Discard,
}

framework: Any = importlib.import_module(TASKS_MODULE)


@framework.task
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@framework.task(queue_name="mails", takes_context=True)
async def describe(context: Any, who: str) -> dict[str, Any]:
    """Return what a task can learn about itself."""
    result = context.task_result
    return {"who": who, "attempt": context.attempt, "id": result.id, "queue": result.task.queue_name}


@framework.task
def explode() -> None:
    """Fail."""
    raise LookupError("exploded")


@framework.task
def end(how: str) -> None:
    """Raise an exception that is no `Exception`, or one that is not a failure."""
    raise ENDS[how]("ended")


@framework.task
async def aend(how: str) -> None:
    """Do the same, awaited."""
    if how == "late":
        await asyncio.sleep(60)
    raise ENDS[how]("ended")


@framework.task
def opaque(path: str) -> object:
    """Note that it ran, and return what JSON cannot hold."""
    with Path(path).open("a") as file:
        file.write("run\n")
    return object()


def no_task() -> None:
    """Do something that no row may cause."""
    raise AssertionError
