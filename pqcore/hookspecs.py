"""The hooks, all of them.  A plugin implements those that it likes; see docs/plugins.md.

Hooks find things and tell of events.  None is called for each statement.  A hook that
is told of an event may return something to await; what it raises is logged.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pqcore.backend import BackendSpec
    from pqcore.events import JobEvent, PutEvent, ServerEvent
    from pqcore.serializers.protocol import Serializer
    from pqcore.sql.dialect import Dialect

hookspec = pluggy.HookspecMarker("pqcore")
hookimpl = pluggy.HookimplMarker("pqcore")
"""Marks a function of a plugin as the implementation of a hook."""


@hookspec(historic=True)
def pqcore_register_backends(register: Callable[[BackendSpec], None]) -> None:
    """Call ``register(spec)`` for each backend that the plugin brings.

    Called once a plugin, when it is loaded.  Import no driver here.
    """


@hookspec(historic=True)
def pqcore_register_serializers(register: Callable[[Serializer | type[Serializer]], None]) -> None:
    """Call ``register(serializer)`` for each serializer that the plugin brings.

    Or with a class, which is constructed each time that it is chosen: that can fail, for want of
    a library or a key, and be tried again.  A `pqcore.serializers.Wrapper` is always a class.
    Called once a plugin, when it is loaded.  Import no library here.
    """


@hookspec(historic=True)
def pqcore_register_dialects(register: Callable[[type[Dialect]], None]) -> None:
    """Call ``register(dialect)`` for each subclass of `pqcore.sql.dialect.Dialect` that the plugin brings.

    Called once a plugin, when it is loaded.
    """


@hookspec(firstresult=True)
def pqcore_unwrap(target: Any) -> Any:
    """Return the driver's connection inside of ``target``, or None if it is not yours.

    Called for ``put(..., connection=target)`` when no backend knows the type:
    an ORM's session, for instance.  May return another wrapper; it is
    called again until a backend knows the result.  Stops at the first result
    that is not None.
    """


@hookspec
def pqcore_around_put(event: PutEvent) -> AbstractContextManager[object]:
    """Return a context manager, entered before jobs are encoded and left once they are put.

    What it adds to ``event.headers`` travels with the jobs.  ``event.ids`` is set when it is
    left.  It is left with the exception if the put fails.
    """
    raise NotImplementedError


@hookspec
def pqcore_job_put(event: PutEvent) -> Awaitable[None] | None:
    """Jobs were put; ``event.ids`` has their ids.  Within a transaction, it is not committed yet."""


@hookspec
def pqcore_around_run(event: JobEvent) -> AbstractContextManager[object]:
    """Return a context manager, entered around the function of a job.

    In the thread that runs it, or in its asyncio task; around a function that runs in a
    process of its own, in the worker.  Left with the exception if the function raises.
    """
    raise NotImplementedError


@hookspec
def pqcore_job_started(event: JobEvent) -> Awaitable[None] | None:
    """A worker starts to run a job."""


@hookspec
def pqcore_job_succeeded(event: JobEvent) -> Awaitable[None] | None:
    """The function returned, and the job is finished in the database."""


@hookspec
def pqcore_job_failed(event: JobEvent) -> Awaitable[None] | None:
    """The function raised ``event.error``, or its process died; then it is told to be retried, dead or dropped.

    Not told of `Snooze` and `Discard`, nor of functions that were cancelled.
    """


@hookspec
def pqcore_job_retried(event: JobEvent) -> Awaitable[None] | None:
    """The job goes back to the queue, for ``event.delay`` seconds; ``event.reason`` says why."""


@hookspec
def pqcore_job_dead(event: JobEvent) -> Awaitable[None] | None:
    """The job is a dead letter now, for ``event.reason``; maybe without having been started."""


@hookspec
def pqcore_job_dropped(event: JobEvent) -> Awaitable[None] | None:
    """The job was discarded, cancelled while it ran, or, taken with `get`, failed: ``event.reason`` says which."""


@hookspec
def pqcore_job_lost(event: JobEvent) -> Awaitable[None] | None:
    """The job was started, and its lease was lost before its end was stored: another runs it, or did."""


@hookspec
def pqcore_server_seen(event: ServerEvent) -> Awaitable[None] | None:
    """A worker looked at its server: every half minute, more or less, for each of its queues."""
