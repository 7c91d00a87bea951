"""PGMQ by its Python client, over psycopg 3 or asyncpg, from the SQL file that comes with it.

Each call is given a connection that commits by itself, which its guide to transactions allows for and which spares it
two round trips.  It has no worker.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from .runner import BATCH, MANY, System, Taken, in_thread, main

NAME = "bench"


class Pgmq(System):
    """What both clients have in common."""

    name = "PGMQ"
    how = {
        "put": "queue.send(name, message, conn=connection)",
        "put_many": f"queue.send_batch(name, {MANY:,} messages, conn=connection)",
        "get": "queue.pop(name, conn=connection)",
        "lease": "queue.read(name, conn=connection), queue.delete(name, id, conn=connection)",
        "get_many": f"queue.pop(name, qty={BATCH}, conn=connection)",
        "pickup": "enable_notify(throttle_interval_ms=0), NotificationListener, queue.pop()",
        "horizon": "queue.pop()",
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
    """Its blocking client."""

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

    async def put(self, number: int) -> None:
        self.queue.send(NAME, {"n": number}, conn=self.connection)

    async def put_many(self, numbers: Sequence[int]) -> None:
        self.queue.send_batch(NAME, [{"n": number} for number in numbers], conn=self.connection)

    async def get(self) -> int | None:
        message = self.queue.pop(NAME, conn=self.connection)
        return None if message is None else int(message.msg_id)

    async def lease(self) -> int | None:
        message = self.queue.read(NAME, conn=self.connection)
        if message is None:
            return None
        self.queue.delete(NAME, message.msg_id, conn=self.connection)
        return int(message.msg_id)

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


class PgmqAsyncpg(Pgmq):
    """Its asynchronous client."""

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

    async def put(self, number: int) -> None:
        await self.queue.send(NAME, {"n": number}, conn=self.connection)

    async def put_many(self, numbers: Sequence[int]) -> None:
        await self.queue.send_batch(NAME, [{"n": number} for number in numbers], conn=self.connection)

    async def get(self) -> int | None:
        message = await self.queue.pop(NAME, conn=self.connection)
        return None if message is None else int(message.msg_id)

    async def lease(self) -> int | None:
        message = await self.queue.read(NAME, conn=self.connection)
        if message is None:
            return None
        await self.queue.delete(NAME, message.msg_id, conn=self.connection)
        return int(message.msg_id)

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


if __name__ == "__main__":
    main({"psycopg": PgmqPsycopg, "asyncpg": PgmqAsyncpg}[sys.argv[1]]())
