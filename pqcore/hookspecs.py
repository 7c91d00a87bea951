"""All hooks. A plugin implements any of the hooks; see docs/plugins.md and docs/reference/event-hooks.md.

Some hooks register backends, serializers or dialects, or unwrap objects; other hooks report events. No hook is called
for each statement. A hook that reports an event may return an awaitable; an exception of the hook is logged.
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
"""The marker for functions of a plugin that implement a hook."""


@hookspec(historic=True)
def pqcore_register_backends(register: Callable[[BackendSpec], None]) -> None:
    """Call ``register(spec)`` for each backend of the plugin.

    This hook is called once for each plugin, when the plugin is loaded. Do not import the driver here.
    """


@hookspec(historic=True)
def pqcore_register_serializers(register: Callable[[Serializer | type[Serializer]], None]) -> None:
    """Call ``register(serializer)`` for each serializer of the plugin.

    ``register`` also accepts a class. pqcore constructs the class each time a queue chooses the serializer: if a
    library or key was missing at first, a later construction can succeed. A `pqcore.serializers.Wrapper` is always
    registered as a class. This hook is called once for each plugin, when the plugin is loaded. Do not import the
    serializer's library here.
    """


@hookspec(historic=True)
def pqcore_register_dialects(register: Callable[[type[Dialect]], None]) -> None:
    """Call ``register(dialect)`` for each subclass of `pqcore.sql.dialect.Dialect` in the plugin.

    This hook is called once for each plugin, when the plugin is loaded.
    """


@hookspec(firstresult=True)
def pqcore_unwrap(target: Any) -> Any:
    """Return the driver's connection inside ``target``, or None if the plugin does not know ``target``.

    pqcore calls this hook for ``put(..., connection=target)`` if no backend knows the type of ``target``, such as an
    ORM's session. pqcore calls the plugins in turn, until one of them returns a result other than None. The result may
    be another wrapper; pqcore then calls the hook for this wrapper, until a backend knows the result.
    """


@hookspec
def pqcore_around_put(event: PutEvent) -> AbstractContextManager[object]:
    """Return a context manager that is entered before jobs are encoded, and left after they are put.

    Values added to ``event.headers`` are stored with the jobs. ``event.ids`` is set when the context manager is left.
    If the put fails, the context manager receives the exception.
    """
    raise NotImplementedError


@hookspec
def pqcore_job_put(event: PutEvent) -> Awaitable[None] | None:
    """Report that jobs were put; ``event.ids`` has their ids. Within a transaction, the put is not committed yet."""


@hookspec
def pqcore_around_run(event: JobEvent) -> AbstractContextManager[object]:
    """Return a context manager to enter around a job's function.

    The context manager is entered in the function's thread or asyncio task; for a function in another process, in the
    worker. If the function raises, the context manager receives the exception.
    """
    raise NotImplementedError


@hookspec
def pqcore_job_started(event: JobEvent) -> Awaitable[None] | None:
    """Report that a worker starts to run a job."""


@hookspec
def pqcore_job_succeeded(event: JobEvent) -> Awaitable[None] | None:
    """Report that a job's function returned, and that the job is finished in the database."""


@hookspec
def pqcore_job_failed(event: JobEvent) -> Awaitable[None] | None:
    """Report that a job's function raised ``event.error``, or that its process died.

    After this hook, pqcore calls `pqcore_job_retried`, `pqcore_job_dead` or `pqcore_job_dropped`.

    This hook is not called for `Snooze` and `Discard`, nor for cancelled functions.
    """


@hookspec
def pqcore_job_retried(event: JobEvent) -> Awaitable[None] | None:
    """Report that a job returns to the queue, and is due in ``event.delay`` seconds; ``event.reason`` has the cause."""


@hookspec
def pqcore_job_dead(event: JobEvent) -> Awaitable[None] | None:
    """Report that a job became a dead letter for ``event.reason``, possibly without having started."""


@hookspec
def pqcore_job_dropped(event: JobEvent) -> Awaitable[None] | None:
    """Report that a job was discarded, was cancelled while running, or failed after `get`.

    ``event.reason`` says which of these happened.
    """


@hookspec
def pqcore_job_lost(event: JobEvent) -> Awaitable[None] | None:
    """Report that a job lost its lease before its outcome was stored; another consumer runs or ran the job."""


@hookspec
def pqcore_server_seen(event: ServerEvent) -> Awaitable[None] | None:
    """Report that a worker checked its server, about every 30 s for each of its queues."""
