"""What is around the run of a job: connections of Django's that are too old are closed, as around a request."""

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
    reset_queries()  # which are kept where DEBUG is on
    _close_old()


def _close_old() -> None:
    """Close what `close_old_connections` would, unless a job is run within a transaction, as in a test."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


@contextmanager
def renewed() -> Iterator[None]:
    """Around a call that is made in this thread."""
    _renew()
    try:
        yield
    finally:
        _close_old()


class Connections:
    """A plugin: for functions in threads in their thread, for coroutine functions where `sync_to_async` runs."""

    @hookimpl
    def pqcore_around_run(self, event: JobEvent) -> AbstractContextManager[None] | None:
        """Around a function in a thread."""
        return None if _in_a_loop() else renewed()

    @hookimpl
    def pqcore_job_started(self, event: JobEvent) -> Awaitable[None] | None:
        """Before a coroutine function."""
        return sync_to_async(_renew)() if _awaited(event) else None

    @hookimpl
    def pqcore_job_succeeded(self, event: JobEvent) -> Awaitable[None] | None:
        """After it."""
        return sync_to_async(_close_old)() if _awaited(event) else None

    @hookimpl
    def pqcore_job_failed(self, event: JobEvent) -> Awaitable[None] | None:
        """Likewise."""
        return sync_to_async(_close_old)() if _awaited(event) else None


def _awaited(event: JobEvent) -> bool:
    """Whether the job's function is a coroutine function, and awaited by a worker."""
    return _in_a_loop() and inspect.iscoroutinefunction(TaskDeclarations.handler_registry.get(event.task))


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


PLUGIN = Connections()
"""The plugin, which there is one of."""


def register() -> None:
    """Register the plugin, once a process."""
    if not plugins.manager.is_registered(PLUGIN):
        plugins.register(PLUGIN, "pqcore.integrations.django")
