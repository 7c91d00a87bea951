"""Calls of hooks with events.

If no plugin implements a hook, the caller checks an empty list and makes no call (`Plugins.has_impl`).
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
    """Yield the value that each plugin returns; log an exception of a plugin, and continue with the next plugin."""
    for plugin in reversed(getattr(plugins.manager.hook, hook).get_hookimpls()):
        try:
            result = plugin.function(*[event for _ in plugin.argnames])
        except BaseException as exc:  # a plugin must not stop the code that it watches
            if is_from_outside(exc):
                raise
            logger.exception("plugin %s failed in %s", plugin.plugin_name, hook)
            continue
        if result is not None:
            yield result


class _Watched:
    """The exit of a plugin's context manager, wrapped so that the plugin cannot raise or suppress an exception."""

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
                logger.exception("a plugin failed when its context manager for %s exited", self._hook)


@contextmanager
def run_wrapped(hook: Literal["pqcore_around_put", "pqcore_around_run"], event: PutEvent | JobEvent) -> Iterator[None]:
    """Enter the context managers that plugins return; log and skip a context manager that raises as it is entered."""
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
    """Call a hook, and await the results that are awaitable. An exception of a plugin is only logged.

    Args:
        hook: The hook's name.
        event: The event to pass.
        blocking: Whether the calling coroutine must not suspend; awaitables then run in a new event loop.
    """
    for result in _each(hook, event):
        if not inspect.isawaitable(result):
            continue
        import asyncio  # asyncio takes long to import, and few hooks return awaitables

        try:
            if blocking:
                _run(result)
            else:
                await result
        except asyncio.CancelledError:
            raise  # the calling task was cancelled
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
    finally:  # if a loop was already running here, the coroutine was never started
        coroutine.close()
        if inspect.iscoroutine(awaitable):
            awaitable.close()
