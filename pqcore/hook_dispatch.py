"""Calls hooks with events.

With no plugin that implements a hook, the caller looks at an empty list and calls nothing (`Plugins.has_impl`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any, Literal

from pqcore.db.interrupts import is_from_outside
from pqcore.events import JobEvent, PutEvent, ServerEvent
from pqcore.plugins import plugins

logger = logging.getLogger("pqcore")


def _each(hook: str, event: PutEvent | JobEvent | ServerEvent) -> Iterator[Any]:
    """What plugins return, one after the other; one that raises is logged, and stands in no other's way."""
    for plugin in reversed(getattr(plugins.manager.hook, hook).get_hookimpls()):
        try:
            result = plugin.function(*[event for _ in plugin.argnames])
        except BaseException as exc:  # a plugin is not to stop what it watches
            if is_from_outside(exc):
                raise
            logger.exception("plugin %s failed in %s", plugin.plugin_name, hook)
            continue
        if result is not None:
            yield result


class _Watched:
    """The end of a plugin's context manager, which can neither raise nor swallow an exception."""

    def __init__(self, hook: str, manager: AbstractContextManager[object]) -> None:
        self._hook = hook
        self._manager = manager

    def __call__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._manager.__exit__(kind, raised, traceback)
        except BaseException as exc:
            if is_from_outside(exc) and exc is not raised:
                raise
            if exc is not raised:
                logger.exception("a plugin failed at the end of %s", self._hook)


@contextmanager
def run_wrapped(hook: Literal["pqcore_around_put", "pqcore_around_run"], event: PutEvent | JobEvent) -> Iterator[None]:
    """Enter the context managers that plugins give; one that fails to open is logged, and left out."""
    with ExitStack() as stack:
        for manager in _each(hook, event):
            try:
                manager.__enter__()
            except BaseException as exc:
                if is_from_outside(exc):
                    raise
                logger.exception("a plugin failed in %s", hook)
            else:
                stack.push(_Watched(hook, manager))
        yield


async def call_hook(hook: str, event: PutEvent | JobEvent | ServerEvent, *, blocking: bool = False) -> None:
    """Call a hook; what it returns is awaited if it can be.  A plugin's exception is logged, and no more.

    Args:
        hook: Its name.
        event: What it is told.
        blocking: Whether it is told by a coroutine that must not suspend: an event loop is made then.
    """
    for result in _each(hook, event):
        if not inspect.isawaitable(result):
            continue
        import asyncio  # takes long to import, and few hooks return awaitables

        try:
            if blocking:
                _run(result)
            else:
                await result
        except asyncio.CancelledError:
            raise  # of the task that tells
        except BaseException as exc:
            if is_from_outside(exc):
                raise
            logger.exception("a plugin failed in %s", hook)


def _run(awaitable: Any) -> None:
    import asyncio

    async def wait() -> None:
        await awaitable

    coroutine = wait()
    try:
        asyncio.run(coroutine)
    finally:  # in a running loop it was not even begun
        coroutine.close()
        if inspect.iscoroutine(awaitable):
            awaitable.close()
