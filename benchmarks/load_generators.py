"""Working consumers and producers: one, several threads or tasks, or several processes."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeAlias

from pqcore.errors import PQError

from .backends import Contender, Location, awaitable, closed
from .coroutines import run_sync

Kind: TypeAlias = Literal["one", "together", "processes"]
"""The kinds of load. ``one``: a single client. ``together``: threads of a blocking backend, or tasks of an asynchronous
one. ``processes``: processes."""
Go: TypeAlias = Callable[[], Awaitable[None]]
Act: TypeAlias = Callable[..., Awaitable["ClientReport"]]
"""The work of a client: a function of a module, so that its name can be sent to a process.

It is given its `Client` and a `Go`: it warms up, awaits the `Go`, and then does the measured work.
"""

clock = time.monotonic
"""The clock, which all processes share."""
PATIENCE = 600.0
"""Seconds without a message after which a process counts as stuck."""


@dataclass
class ClientReport:
    """The work of one client.

    Attributes:
        began, ended: When it started and ended, by `clock`.
        count: The number of operations.
        put: The ids of the jobs that it put.
        taken: The ids of the jobs that it took and finished.
        times: The times that it measured, in seconds.
        marks: The times at which it had done certain numbers of operations.
    """

    began: float = 0.0
    ended: float = 0.0
    count: int = 0
    put: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    marks: list[tuple[float, int]] = field(default_factory=list)


class Client:
    """The queues of one client.

    Attributes:
        pq: The client's `PQ` or `AsyncPQ`, which clients in the same process share.
        index: The index of the client.
        number: The number of clients.
    """

    def __init__(self, contender: Contender, pq: Any, index: int, number: int) -> None:
        self._contender = contender
        self.pq = pq
        self.index = index
        self.number = number

    @property
    def blocking(self) -> bool:
        return self._contender.blocking

    def queue(self, name: str = "jobs") -> Any:
        """Return a queue whose methods are awaited, for any backend."""
        return awaitable(self._contender, self.pq, name)


@dataclass(frozen=True)
class ClientRole:
    """A client's work, with its parameters."""

    act: Act
    parameters: Mapping[str, Any] = field(default_factory=dict)


class WorkFailed(PQError):
    """A client failed."""


# Clients in this process


def run_clients(
    contender: Contender, place: Location, parts: Sequence[ClientRole], **options: Any
) -> list[ClientReport]:
    """Let clients work concurrently, in threads or tasks of this process, over one `PQ`."""
    options = {"max_connections": len(parts) + 1, **options}
    if contender.blocking:
        return _threads(contender, place, parts, options)
    return asyncio.run(_tasks(contender, place, parts, options))


def _threads(
    contender: Contender, place: Location, parts: Sequence[ClientRole], options: dict[str, Any]
) -> list[ClientReport]:
    barrier = threading.Barrier(len(parts), _collect)
    pq = contender.open(place, **options)

    async def go() -> None:
        barrier.wait(PATIENCE)

    def work(index: int) -> ClientReport:
        try:
            return run_sync(_timed(parts[index], Client(contender, pq, index, len(parts)), go))
        except BaseException:
            barrier.abort()
            raise

    try:
        if len(parts) == 1:
            return [work(0)]
        with ThreadPoolExecutor(len(parts)) as pool:
            futures = [pool.submit(work, index) for index in range(len(parts))]
            errors = [error for future in futures if (error := future.exception()) is not None]
            for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
                raise error  # the error that first broke the barrier, not the errors that followed from it
            return [future.result() for future in futures]
    finally:
        pq.close()


async def _tasks(
    contender: Contender, place: Location, parts: Sequence[ClientRole], options: dict[str, Any]
) -> list[ClientReport]:
    waiting = len(parts)
    all_there = asyncio.Event()
    pq = contender.open(place, **options)

    async def go() -> None:
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            _collect()
            all_there.set()
        await all_there.wait()

    works = [
        asyncio.ensure_future(_timed(part, Client(contender, pq, index, len(parts)), go))
        for index, part in enumerate(parts)
    ]
    try:
        return list(await asyncio.gather(*works))
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        await pq.close()


def _collect() -> None:
    """Collect garbage before the measurement rather than during it; once for all clients, because it takes long."""
    gc.collect()


async def _timed(part: ClientRole, client: Client, go: Go) -> ClientReport:
    began = 0.0

    async def gone() -> None:
        nonlocal began
        await go()
        began = clock()

    done = await part.act(client, gone, **part.parameters)
    done.ended = done.ended or clock()
    done.began = began
    return done


# Clients in processes


class ClientProcesses:
    """Processes that are forked when first needed, and kept for the next turn.

    A server process that has imported everything forks them, so that another process costs little. They are not forked
    from this process, which has threads.
    """

    def __init__(self) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload([__name__, *DRIVERS])
        self._members: list[tuple[Any, Connection]] = []
        self._said: dict[int, ClientReport] = {}

    def work(
        self, contender: Contender, place: Location, parts: Sequence[ClientRole], **options: Any
    ) -> list[ClientReport]:
        """Let clients work concurrently, each in a process with its own `PQ`."""
        self.begin(contender, place, parts, **options)
        return self.end(len(parts))

    def begin(self, contender: Contender, place: Location, parts: Sequence[ClientRole], **options: Any) -> None:
        """Let the clients start after all are ready."""
        options = {"max_connections": 2, **options}
        while len(self._members) < len(parts):
            mine, theirs = self._context.Pipe()
            process = self._context.Process(target=serve_client, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, mine))
        for index, part in enumerate(parts):
            self._members[index][1].send((contender, place, part, index, len(parts), options))
        for index in range(len(parts)):
            self._hear(index, PATIENCE)
        for index in range(len(parts)):
            self._members[index][1].send("go")

    def over(self, number: int, seconds: float) -> bool:
        """Return whether the first ``number`` clients have all ended; wait at most ``seconds`` for that."""
        deadline = clock() + seconds
        for index in range(number):
            if index not in self._said and self._members[index][1].poll(max(deadline - clock(), 0)):
                self._said[index] = self._hear(index, 0)
        return len(self._said) == number

    def end(self, number: int, patience: float = PATIENCE) -> list[ClientReport]:
        """Wait for the first ``number`` clients to end; return their work."""
        said, self._said = self._said, {}
        return [said[index] if index in said else self._hear(index, patience) for index in range(number)]

    def _hear(self, index: int, patience: float) -> Any:
        process, pipe = self._members[index]
        try:
            if not pipe.poll(patience):
                msg = f"process {process.pid} has said nothing for {patience:.0f} seconds"
                raise WorkFailed(msg)
            kind, content = pipe.recv()
        except (EOFError, OSError) as exc:
            self.close()
            msg = f"process {process.pid} ended"
            raise WorkFailed(msg) from exc
        if kind == "failed":
            self.close()  # the others wait for something that will not come
            raise WorkFailed(content)
        return content

    def close(self) -> None:
        """End the processes."""
        members, self._members = self._members, []
        self._said = {}
        for process, pipe in members:
            pipe.close()
            process.kill()
        for process, _ in members:
            process.join()


DRIVERS: list[str] = []
"""Modules that are imported before processes are forked: those of the measured backends."""


def serve_client(pipe: Connection) -> None:
    """Execute the requests from the pipe, until it is closed."""
    while True:
        try:
            contender, place, part, index, number, options = pipe.recv()
        except EOFError:
            return
        answer: tuple[str, Any]
        try:
            answer = ("done", _alone(contender, place, part, index, number, pipe, options))
        except BaseException as exc:  # noqa: BLE001 - the waiting caller gets it
            answer = ("failed", f"{type(exc).__name__}: {exc}\n{traceback.format_exc()}")
        pipe.send(answer)


def _alone(
    contender: Contender,
    place: Location,
    part: ClientRole,
    index: int,
    number: int,
    pipe: Connection,
    options: dict[str, Any],
) -> ClientReport:
    async def go() -> None:
        _collect()
        pipe.send(("ready", None))
        pipe.recv()

    async def work() -> ClientReport:
        pq = contender.open(place, **options)
        try:
            return await _timed(part, Client(contender, pq, index, number), go)
        finally:
            await closed(contender, pq)

    return contender.run(work)
