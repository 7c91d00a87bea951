"""FastAPI: a lifespan that manages a PQ, and queues as dependencies.

pq = AsyncPQ("postgresql://localhost/app")
app = FastAPI(lifespan=lifespan(pq))
Emails = Annotated[AsyncQueue, Depends(queue("emails"))]

@app.post("/welcome")
async def welcome(to: str, emails: Emails): ...
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

try:
    from fastapi import FastAPI
    from fastapi.requests import HTTPConnection
except ImportError as exc:
    msg = f"pqcore.integrations.fastapi needs {exc.name}: pip install 'pqcore[fastapi]'"
    raise ImportError(msg) from exc

from pqcore.async_queue import AsyncPQ
from pqcore.db.engine import Engine
from pqcore.errors import ConfigurationError
from pqcore.operations import admin
from pqcore.queue import PQ
from pqcore.runner import Runner
from pqcore.worker import Worker

logger = logging.getLogger("pqcore")

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]


def lifespan(
    pq: AsyncPQ | PQ, *, worker: Worker | None = None, create: bool = False, inner: Lifespan | None = None
) -> Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """Return a lifespan for ``FastAPI(lifespan=...)``.

    The lifespan provides the PQ to `queue`. At its end, it closes the connections that the PQ opened itself, but not a
    connection or pool that the PQ was given. The
    application can be started again, as tests do.

    Args:
        pq: The PQ whose queues the application uses.
        worker: A worker to run in the application's process and event loop, from start to end. At the end the worker
            takes no more jobs, and running jobs get the worker's ``grace`` to finish.
        create: Whether to make or migrate the table when the application starts.
        inner: Another lifespan to run inside this one. The worker can use what the inner lifespan opens. The value that
            the inner lifespan yields becomes the application's state.

    Raises:
        Exception: (at the end) The error with which the worker ended early, such as a missing table. The error was
            logged when it happened.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with AsyncExitStack() as stack:
            runner = Runner(pq.engine)
            stack.push_async_callback(runner.call, Engine.close_idle)
            if create:
                await runner.call(admin.create)
            state = None if inner is None else await stack.enter_async_context(inner(app))
            if worker is not None:
                await stack.enter_async_context(_running(worker))
            yield {**(state or {}), "pqcore": pq}

    return run


def get_pq(connection: HTTPConnection) -> Any:
    """Return the application's `AsyncPQ` or `PQ`; a dependency.

    Raises:
        ConfigurationError: The application does not run within `lifespan`.
    """
    pq = getattr(connection.state, "pqcore", None)
    if pq is None:
        msg = (
            "the application does not run within pqcore's lifespan: write FastAPI(lifespan=lifespan(pq)), and start it"
        )
        raise ConfigurationError(msg + " (in tests: with TestClient(app) as client)")
    return pq


def queue(name: str) -> Callable[[HTTPConnection], Any]:
    """Return a dependency: the queue with this name, of the application's PQ.

    ``Annotated[AsyncQueue, Depends(queue("emails"))]``; a `Queue` if the lifespan has a blocking `PQ`.

    Args:
        name: See ``pq[name]``.
    """

    def dependency(connection: HTTPConnection) -> Any:
        return get_pq(connection)[name]

    return dependency


@asynccontextmanager
async def _running(worker: Worker) -> AsyncIterator[None]:
    running = asyncio.create_task(worker.run(), name="pqcore-worker")
    running.add_done_callback(_log_failure)
    await asyncio.sleep(0)  # the worker has started, and can be stopped
    try:
        yield
    finally:
        worker.stop()
        await running


def _log_failure(running: asyncio.Task[None]) -> None:
    if not running.cancelled() and (error := running.exception()) is not None:
        logger.error("the worker in the application has failed: %s", error, exc_info=error)
