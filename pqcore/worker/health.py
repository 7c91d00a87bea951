"""The health of a worker, over HTTP: whether its event loop runs, and whether the database answers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeVar

from pqcore.errors import ConfigurationError, PQError
from pqcore.instruments.table_figures import TableFigures, read_table_figures
from pqcore.net import bracketed
from pqcore.operations.admin import QueueFigures
from pqcore.operations.readiness import check_readiness
from pqcore.worker.bridge import Bridge
from pqcore.worker.state import WorkerState

logger = logging.getLogger("pqcore.tasks")

T = TypeVar("T")

READY_TIMEOUT = 5.0
"""Seconds that the database has to answer a look. If it does not, the worker is not ready, and `/metrics` lacks the
figures of queues."""
REQUEST_TIMEOUT = 5.0
"""Seconds that a client has to send its request, and to read the answer."""
REQUEST_BYTES = 8_192
"""The largest size of a request, in bytes."""
CONNECTIONS = 32
"""The largest number of connections that are served concurrently; further connections are closed without an answer."""
FRESH = 1.0
"""Seconds for which the answer of a look at the table is reused."""
FIGURES_FRESH = 5.0
"""Seconds for which the figures of queues are reused, which is longer than `FRESH`, because counting takes longer."""
PATHS = "/live, /ready and /metrics"

_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]]+)):(\d{1,5})")


class Address(NamedTuple):
    """The address where a worker serves its health.

    Attributes:
        host: The host name or IP address of a network interface of this machine.
        port: The TCP port; 0 for any free port.
    """

    host: str
    port: int

    @classmethod
    def of(cls, given: str) -> Address:
        """Return the address that a text names: ``HOST:PORT``.

        Raises:
            ConfigurationError: The text is not an address.
        """
        match = _ADDRESS.fullmatch(given) if isinstance(given, str) else None
        if match is None or int(match[3]) > 65_535:
            msg = f"health is {given!r}; give HOST:PORT, as in '127.0.0.1:8081', '[::1]:8081' or '0.0.0.0:8081'"
            raise ConfigurationError(msg)
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


class Answer(NamedTuple):
    """An answer to an HTTP request.

    Attributes:
        status: The HTTP status.
        body: The text.
        content_type: The type of the text.
    """

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"

    @classmethod
    def of(cls, status: HTTPStatus, **fields: Any) -> Answer:
        """Return an answer whose content is a JSON object of the given fields."""
        return cls(status, json.dumps(fields).encode() + b"\n")

    def encoded(self, *, with_body: bool) -> bytes:
        """Return the bytes of the answer, after which the connection is closed."""
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode("ascii") + (self.body if with_body else b"")


class Look(Generic[T]):
    """Asks the database a question; clients that ask meanwhile, or soon afterwards, get the same answer.

    Args:
        ask: The function that asks the question.
        fresh: Seconds for which an answer is reused.
    """

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, T]], fresh: float) -> None:
        self._ask = ask
        self._fresh = fresh
        self._asking: asyncio.Task[T] | None = None
        self._ended = 0.0

    async def answer(self) -> T:
        """Return the answer.

        Raises:
            asyncio.TimeoutError: No answer came within `READY_TIMEOUT` seconds.
        """
        if self._asking is None or (self._asking.done() and time.monotonic() - self._ended >= self._fresh):
            self._asking = asyncio.create_task(self._run())
        done, _ = await asyncio.wait([self._asking], timeout=READY_TIMEOUT)
        if not done:
            raise asyncio.TimeoutError
        return self._asking.result()

    async def close(self) -> None:
        """Stop waiting for an answer."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _run(self) -> T:
        try:
            return await self._ask()
        finally:
            self._ended = time.monotonic()


class Health:
    """A small HTTP server on the worker's event loop.

    ``/live`` answers 200 while the event loop runs. ``/ready`` answers 200 if the worker takes jobs, and each of its
    tables exists and has the right version; otherwise 503, with the reason. ``/metrics`` answers in Prometheus' text
    format.

    Args:
        address: The address on which the server listens.
        worker_state: The state that the worker's parts share.
        bridges: The bridges that run operations, one for each table.
    """

    def __init__(self, address: Address, worker_state: WorkerState, bridges: Sequence[Bridge]) -> None:
        self._wanted = address
        self._worker_state = worker_state
        self._bridges = bridges
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()
        self._ready = Look(self._look_at_tables, FRESH)
        self._figures = Look(self._count, FIGURES_FRESH)

    @property
    def address(self) -> str | None:
        """The address on which the server listens, as ``HOST:PORT``; None if it does not listen."""
        if self._server is None or not self._server.sockets:
            return None
        return str(self._wanted._replace(port=self._server.sockets[0].getsockname()[1]))

    async def start(self) -> None:
        """Start listening.

        Raises:
            ConfigurationError: The server cannot listen on the address.
        """
        try:
            self._server = await asyncio.start_server(self._serve, *self._wanted, limit=REQUEST_BYTES)
        except OSError as exc:
            msg = f"health cannot be served on {self._wanted}: {exc.strerror or exc}; give another address or port"
            raise ConfigurationError(msg) from exc
        logger.info("health checks are answered on http://%s: %s", self.address, PATHS)

    async def close(self) -> None:
        """Stop listening, and end the connections."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._ready.close(), self._figures.close(), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        try:
            if len(self._serving) < CONNECTIONS:
                self._serving.add(task)
                with suppress(OSError, EOFError, ValueError, asyncio.TimeoutError, asyncio.LimitOverrunError):
                    request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_TIMEOUT)
                    method, path = request.split(b" ", 2)[:2]
                    answer = await self._answer(method, path.partition(b"?")[0].decode("ascii"))
                    writer.write(answer.encoded(with_body=method != b"HEAD"))
                    await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT)
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, method: bytes, path: str) -> Answer:
        if method not in (b"GET", b"HEAD"):
            return Answer.of(HTTPStatus.METHOD_NOT_ALLOWED, error="use GET")
        if path == "/live":
            return Answer.of(HTTPStatus.OK, live=True)
        if path == "/ready":
            reason = await self._why_not_ready()
            if reason is None:
                return Answer.of(HTTPStatus.OK, ready=True)
            return Answer.of(HTTPStatus.SERVICE_UNAVAILABLE, ready=False, reason=reason)
        if path == "/metrics":
            return await self._metrics()
        return Answer.of(HTTPStatus.NOT_FOUND, error=f"ask for {PATHS}")

    async def _why_not_ready(self) -> str | None:
        """Return why the worker takes no jobs; None if it takes jobs."""
        if self._worker_state.draining.is_set():
            return "the worker stops"
        if all(queue_state.quiet for queue_state in self._worker_state.queue_states):
            return "the worker was told to take no more jobs"
        try:
            return await self._ready.answer()
        except asyncio.TimeoutError:
            return f"the database has not answered for {READY_TIMEOUT:.0f} s"

    async def _look_at_tables(self) -> str | None:
        try:
            for bridge in self._bridges:
                await bridge.call(check_readiness)
        except PQError as exc:
            return str(exc)
        return None

    async def _metrics(self) -> Answer:
        try:
            from pqcore.instruments.queue_metrics import exposition
        except ImportError as exc:
            if exc.name is None or exc.name.partition(".")[0] != "prometheus_client":
                raise
            error = "metrics need prometheus_client: pip install 'pqcore[prometheus]'"
            return Answer.of(HTTPStatus.NOT_FOUND, error=error)
        figures = None
        with suppress(asyncio.TimeoutError):
            figures = await self._figures.answer()
        text = await asyncio.to_thread(exposition, figures)  # a user's collector may take long
        return Answer(HTTPStatus.OK, text, "text/plain; version=0.0.4; charset=utf-8")

    async def _count(self) -> TableFigures | None:
        """Return the figures of the worker's tables; None if the database refuses, or cannot be reached."""
        late: dict[tuple[str, str], float] = {}
        queues = {state.queue.name: QueueFigures(0, 0, 0, None) for state in self._worker_state.queue_states}
        try:
            for bridge in self._bridges:
                found = await bridge.call(read_table_figures)
                queues |= found.queues
                late |= found.late
        except PQError as exc:
            logger.warning("the metrics of queues are left out, because they cannot be read: %s", exc)
            return None
        return TableFigures(queues, late)
