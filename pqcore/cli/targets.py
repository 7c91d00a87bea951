"""Targets: ``module:attribute``, with which the command line names queues."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Any

import pqcore
from pqcore.async_queue import AsyncPQ
from pqcore.cli.errors import UsageError
from pqcore.queue import PQ
from pqcore.tasks import AsyncEnqueuer, Enqueuer
from pqcore.tasks.registry import TaskDeclarations


def look_here() -> None:
    """Put the current directory first in ``sys.path``, as ``python -m`` does, unless ``sys.path`` has it already."""
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - a string is wanted
        sys.path.insert(0, here)


def load_queues(targets: Sequence[str], names: Sequence[str], modules: Sequence[str]) -> list[Any]:
    """Return the queues that the command line names.

    Args:
        targets: The targets, each ``module:attribute``.
        names: The names of the queues to use if a target is a `PQ`; without names, those on which tasks are declared.
        modules: More modules to import.

    Raises:
        UsageError: A target does not exist, or is not a queue.
    """
    import_modules(modules)
    queues: list[Any] = []
    used = False
    for target in targets:
        found = _find(target)
        if isinstance(found, (PQ, AsyncPQ)):
            used = True
            chosen = [found[name] for name in names] or found.queues_with_tasks()
            if not chosen:
                raise UsageError(
                    f"{target} is a {type(found).__name__}, and no task is declared on its queues:"
                    " give the names of queues, as in --queues a,b"
                )
            queues += [_queue(queue, target) for queue in chosen]
        else:
            queues.append(_queue(found, target))
    if names and not used:
        raise UsageError("--queues needs a target that is a PQ, but all targets are queues: " + ", ".join(targets))
    return list({id(queue): queue for queue in queues}.values())


def import_modules(modules: Sequence[str]) -> None:
    """Import the modules that ``--import`` names.

    Raises:
        UsageError: A module does not exist, or cannot be imported.
    """
    if modules:
        look_here()
    for module in modules:
        _import(module, f"--import {module}")


def _find(target: str) -> Any:
    module, colon, path = target.partition(":")
    if not colon or not module or not path:
        raise UsageError(f"{target!r} is not a target: write module:queue, as in app.tasks:queue")
    found = _import(module, target)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UsageError(f"{target}: {_named(found)} has no {name!r}") from None
    known = (TaskDeclarations, PQ, AsyncPQ, Enqueuer, AsyncEnqueuer)
    if isinstance(found, known) or not callable(found):
        return found
    try:
        return found()
    except (Exception, SystemExit) as exc:
        if isinstance(exc, TypeError) and exc.__traceback__ is not None and exc.__traceback__.tb_next is None:
            # the call itself raised the error, not the body of the function
            raise UsageError(f"{target} cannot be called without arguments: {exc}") from None
        raise UsageError(f"{target} failed: {_told(exc)}") from exc


def _queue(found: Any, target: str) -> Any:
    if isinstance(found, TaskDeclarations):
        return found
    if isinstance(found, (Enqueuer, AsyncEnqueuer)):
        raise UsageError(f"{target} is a task: give the queue of the task")
    raise UsageError(
        f"{target} is a {type(found).__module__}.{type(found).__qualname__}: name a queue or PQ of pqcore, "
        "or a function that returns one"
    )


def _import(module: str, where: str) -> Any:
    if module.endswith(".py") or "/" in module:
        raise UsageError(
            f"{where}: write the module's name, not its path: {module.removesuffix('.py').replace('/', '.')}"
        )
    if not module.strip(".") or module.startswith("."):  # importlib would read such a name as a relative import
        raise UsageError(f"{where}: {module!r} is not the name of a module")
    try:
        return importlib.import_module(module)
    except SystemExit as exc:  # with another exit code, a supervisor or systemd would start the command again
        raise UsageError(f"{where}: module {module!r} ends the process when it is imported: {_told(exc)}") from exc
    except Exception as exc:
        if isinstance(exc, ModuleNotFoundError) and exc.name is not None and f"{module}.".startswith(f"{exc.name}."):
            raise UsageError(f"{where}: there is no module {exc.name!r} in {os.getcwd()} or on sys.path") from None  # noqa: PTH109
        raise UsageError(f"{where}: module {module!r} cannot be imported: {_told(exc)}") from exc


_NOT_THEIRS = ("<frozen", importlib.__file__, f"{Path(pqcore.__file__).parent}{os.sep}")
"""The beginnings of the names of files that are not the user's. An error in such a file is shown at the user's line
that led to it."""


def _told(error: BaseException) -> str:
    """Return the message of an error in the user's code, and the line that raised it."""
    text = f"{type(error).__name__}: {error}"
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THEIRS)]
    if isinstance(error, SyntaxError) or not frames:  # such an error names its line, or is pqcore's
        return text
    last = frames[-1]
    return f"{text}\n  {last.filename}:{last.lineno}, in {last.name}: {last.line or ''}".rstrip(": ")


def _named(found: Any) -> str:
    return f"module {found.__name__!r}" if isinstance(found, type(sys)) else repr(found)
