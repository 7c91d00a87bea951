"""PGMQ, through its Python client, over psycopg 3 or asyncpg, installed from its SQL file.

Each call is given a connection in autocommit mode, which PGMQ's guide to transactions allows, and which saves two round
trips. PGMQ has no worker.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import queue
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from .runner import BATCH, HELD_AT_ONCE, MANY, POOL, System, Taken, in_thread, main

NAME = "bench"


class Pgmq(System):
    """The common parts of both clients."""

    name = "PGMQ"
    how = {
        "memory": f"as for put_many, {HELD_AT_ONCE:,} messages",
        "put": "queue.send(name, message, conn=connection)",
        "put_many": f"queue.send_batch(name, {MANY:,} messages, conn=connection)",
        "get": "queue.pop(name, conn=connection)",
        "lease": "queue.read(name, conn=connection), queue.delete(name, id, conn=connection)",
        "get_many": f"queue.pop(name, qty={BATCH}, conn=connection)",
        "pickup": "enable_notify(throttle_interval_ms=0), NotificationListener, queue.pop()",
        "horizon": "queue.pop()",
        "concurrent_put": f"as for put, each with one of {POOL} connections that are passed round",
        "concurrent_get": "as for get, over the same connections",
        "concurrent_lease": "as for lease, over the same connections",
    }
    tables = (f"pgmq.q_{NAME}",)
    unfinished = f"SELECT count(*) FROM pgmq.q_{NAME}"

    def install(self, dsn: str) -> None:
        """Load the SQL file."""
        self.package: Any = importlib.import_module("pgmq")
        self.psycopg: Any = importlib.import_module("psycopg")
        release = self.package.get_embedded_sql_version()
        self.version = f"{release}, client {importlib.metadata.version('pgmq')}"
        self.package.install_pgmq_from_sql(dsn=dsn)
        self.options = {"conn_string": dsn, "init_extension": False}


class PgmqPsycopg(Pgmq):
    """The blocking client."""

    async def setup(self, dsn: str) -> None:
        self.install(dsn)
        self.queue = self.package.PGMQueue(**self.options)
        self.queue.create_queue(NAME)
        self.connection = self.psycopg.connect(dsn, autocommit=True)

    async def close(self) -> None:
        self.connection.close()
        self.queue.close()

    async def sql(self, statement: str) -> Any:
        cursor = self.connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None

    def send(self, number: int, connection: Any) -> None:
        self.queue.send(NAME, {"n": number}, conn=connection)

    def pop(self, connection: Any) -> int | None:
        message = self.queue.pop(NAME, conn=connection)
        return None if message is None else int(message.msg_id)

    def read(self, connection: Any) -> int | None:
        message = self.queue.read(NAME, conn=connection)
        if message is None:
            return None
        self.queue.delete(NAME, message.msg_id, conn=connection)
        return int(message.msg_id)

    async def shared(self) -> System:
        self.pooled = PooledPgmqPsycopg(self.queue)
        for _ in range(POOL):
            self.pooled.free.put(self.psycopg.connect(self.options["conn_string"], autocommit=True))
        return self.pooled

    async def unshare(self) -> None:
        for _ in range(POOL):
            self.pooled.free.get().close()

    async def put(self, number: int) -> None:
        self.send(number, self.connection)

    async def put_many(self, numbers: Sequence[int]) -> None:
        self.queue.send_batch(NAME, [{"n": number} for number in numbers], conn=self.connection)

    async def get(self) -> int | None:
        return self.pop(self.connection)

    async def lease(self) -> int | None:
        return self.read(self.connection)

    async def get_many(self, n: int) -> Sequence[int]:
        return [message.msg_id for message in self.queue.pop(NAME, qty=n, conn=self.connection)]

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        self.queue.enable_notify(NAME, throttle_interval_ms=0)
        try:
            await in_thread(partial(self._wait, taken, stop))
        finally:
            self.queue.disable_notify(NAME)

    def _wait(self, taken: Taken, stop: threading.Event) -> None:
        listener = importlib.import_module("pgmq.notify_listener").SyncNotificationListener(self.queue)
        with self.psycopg.connect(self.options["conn_string"], autocommit=True) as connection:

            def arrived(_: object) -> None:
                while self.queue.pop(NAME, conn=connection) is not None:
                    taken()
                if stop.is_set():
                    listener.stop()

            arrived(None)
            listener.listen(NAME, arrived)


class PooledPgmqPsycopg(PgmqPsycopg):
    """The blocking client, called by threads, each with a free connection."""

    threads = True

    def __init__(self, client: Any) -> None:
        self.queue = client
        self.free: queue.LifoQueue[Any] = queue.LifoQueue()

    async def put(self, number: int) -> None:
        with self._connection() as connection:
            self.send(number, connection)

    async def get(self) -> int | None:
        with self._connection() as connection:
            return self.pop(connection)

    async def lease(self) -> int | None:
        with self._connection() as connection:
            return self.read(connection)

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        connection = self.free.get()
        try:
            yield connection
        finally:
            self.free.put(connection)


class PgmqAsyncpg(Pgmq):
    """The asynchronous client."""

    async def setup(self, dsn: str) -> None:
        self.install(dsn)
        self.queue = self.package.AsyncPGMQueue(**self.options)
        await self.queue.init()
        await self.queue.create_queue(NAME)
        self.connection = await importlib.import_module("asyncpg").connect(dsn)
        self.taking = await importlib.import_module("asyncpg").connect(dsn)

    async def close(self) -> None:
        await self.connection.close()
        await self.taking.close()
        await self.queue.close()

    async def sql(self, statement: str) -> Any:
        return await self.connection.fetchval(statement)

    async def send(self, number: int, connection: Any) -> None:
        await self.queue.send(NAME, {"n": number}, conn=connection)

    async def pop(self, connection: Any) -> int | None:
        message = await self.queue.pop(NAME, conn=connection)
        return None if message is None else int(message.msg_id)

    async def read(self, connection: Any) -> int | None:
        message = await self.queue.read(NAME, conn=connection)
        if message is None:
            return None
        await self.queue.delete(NAME, message.msg_id, conn=connection)
        return int(message.msg_id)

    async def shared(self) -> System:
        self.pooled = PooledPgmqAsyncpg(self.queue)
        connect = importlib.import_module("asyncpg").connect
        for _ in range(POOL):
            self.pooled.free.put_nowait(await connect(self.options["conn_string"]))
        return self.pooled

    async def unshare(self) -> None:
        for _ in range(POOL):
            await self.pooled.free.get_nowait().close()

    async def put(self, number: int) -> None:
        await self.send(number, self.connection)

    async def put_many(self, numbers: Sequence[int]) -> None:
        await self.queue.send_batch(NAME, [{"n": number} for number in numbers], conn=self.connection)

    async def get(self) -> int | None:
        return await self.pop(self.connection)

    async def lease(self) -> int | None:
        return await self.read(self.connection)

    async def get_many(self, n: int) -> Sequence[int]:
        return [message.msg_id for message in await self.queue.pop(NAME, qty=n, conn=self.connection)]

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        await self.queue.enable_notify(NAME, throttle_interval_ms=0)
        listener = importlib.import_module("pgmq.notify_listener").AsyncNotificationListener(self.queue)

        async def arrived(_: object) -> None:
            while await self.queue.pop(NAME, conn=self.taking) is not None:
                taken()
            if stop.is_set():
                listener.stop()

        try:
            await arrived(None)
            await listener.listen(NAME, arrived)
        finally:
            await self.queue.disable_notify(NAME)


class PooledPgmqAsyncpg(PgmqAsyncpg):
    """The asynchronous client, called by tasks, each with a free connection."""

    def __init__(self, client: Any) -> None:
        self.queue = client
        self.free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()

    async def put(self, number: int) -> None:
        async with self._connection() as connection:
            await self.send(number, connection)

    async def get(self) -> int | None:
        async with self._connection() as connection:
            return await self.pop(connection)

    async def lease(self) -> int | None:
        async with self._connection() as connection:
            return await self.read(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        connection = await self.free.get()
        try:
            yield connection
        finally:
            self.free.put_nowait(connection)


if __name__ == "__main__":
    main({"psycopg": PgmqPsycopg, "asyncpg": PgmqAsyncpg}[sys.argv[1]]())
