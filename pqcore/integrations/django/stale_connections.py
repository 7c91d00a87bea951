"""Closing Django's old connections before and after each run of a job, as Django does before and after a request."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Iterator
from contextlib import AbstractContextManager, contextmanager

from asgiref.sync import sync_to_async
from django.db import connections, reset_queries

from pqcore.events import JobEvent
from pqcore.hookspecs import hookimpl
from pqcore.plugins import plugins
from pqcore.tasks import TaskDeclarations


def _renew() -> None:
    reset_queries()  # Django keeps all queries in memory if DEBUG is on
    _close_old()


def _close_old() -> None:
    """Close the connections that `close_old_connections` closes, unless a job runs in a transaction, as in a test."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


@contextmanager
def renewed() -> Iterator[None]:
    """Close this thread's old connections before and after the ``with`` block."""
    _renew()
    try:
        yield
    finally:
        _close_old()


class Connections:
    """A plugin that closes old connections in the function's thread.

    For a coroutine function, the plugin closes the connections of the thread in which `sync_to_async` runs code.
    """

    @hookimpl
    def pqcore_around_run(self, event: JobEvent) -> AbstractContextManager[None] | None:
        """Close old connections around a function in a thread."""
        return None if _in_a_loop() else renewed()

    @hookimpl
    def pqcore_job_started(self, event: JobEvent) -> Awaitable[None] | None:
        """Close old connections before a coroutine function."""
        return sync_to_async(_renew)() if _awaited(event) else None

    @hookimpl
    def pqcore_job_succeeded(self, event: JobEvent) -> Awaitable[None] | None:
        """Close old connections after the coroutine function."""
        return sync_to_async(_close_old)() if _awaited(event) else None

    @hookimpl
    def pqcore_job_failed(self, event: JobEvent) -> Awaitable[None] | None:
        """Close old connections after the coroutine function."""
        return sync_to_async(_close_old)() if _awaited(event) else None


def _awaited(event: JobEvent) -> bool:
    """Return whether the job's function is a coroutine function that a worker awaits."""
    return _in_a_loop() and inspect.iscoroutinefunction(TaskDeclarations.handler_registry.get(event.task))


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


PLUGIN = Connections()
"""The only instance of the plugin."""


def register() -> None:
    """Register the plugin, once in each process."""
    if not plugins.manager.is_registered(PLUGIN):
        plugins.register(PLUGIN, "pqcore.integrations.django")
