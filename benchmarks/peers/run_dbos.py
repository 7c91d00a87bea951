"""DBOS: durable workflows on a queue that is partitioned by key, with a limit for each partition.

Only its limits are measured.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from typing import Any

from .runner import PLACES, PLACES_OF_WORKER, Ran, System, main

POLL = 0.1
"""Seconds between two looks of its worker, which nothing wakes; 1 by default."""


class Dbos(System):
    """The system DBOS Transact 3."""

    name = "DBOS, psycopg"
    how = {
        "limited": f"register_queue(partition_concurrency={PLACES}, polling_interval_sec={POLL}); DBOSClient's"
        " enqueue_in_transaction() with queue_partition_key=key",
        "tenant": "as for limited",
    }
    tables = ("dbos.workflow_status",)
    unfinished = "SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')"

    async def setup(self, dsn: str) -> None:
        self.version = importlib.metadata.version("dbos")
        self.module: Any = importlib.import_module("dbos")
        sqlalchemy: Any = importlib.import_module("sqlalchemy")
        self.text = sqlalchemy.text
        url = dsn.replace("postgresql://", "postgresql+psycopg://", 1)
        self.engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        self.bulk = sqlalchemy.create_engine(url)
        self.config = {"name": "bench", "system_database_url": dsn, "log_level": "ERROR", "run_admin_server": False}
        self.key_ran: Ran = lambda _: None

        async def keyed(key: str, seconds: float) -> None:
            self.key_ran(key)
            await asyncio.sleep(seconds)

        self.module.DBOS.workflow(name="keyed")(keyed)
        await asyncio.to_thread(self._launch)  # makes the tables
        await asyncio.to_thread(self.module.DBOS.destroy)
        self.client = await asyncio.to_thread(lambda: self.module.DBOSClient(system_database_url=dsn))

    def _launch(self) -> None:
        self.module.DBOS(config=self.config)
        self.module.DBOS.launch()
        self.module.DBOS.register_queue(
            "bench",
            worker_concurrency=PLACES_OF_WORKER,
            partition_concurrency=PLACES,
            polling_interval_sec=POLL,
            on_conflict="always_update",
        )

    async def close(self) -> None:
        await asyncio.to_thread(self.client.destroy)
        self.engine.dispose()
        self.bulk.dispose()

    async def sql(self, statement: str) -> Any:
        def run() -> Any:
            with self.engine.connect() as connection:
                found = connection.execute(self.text(statement))
                return found.scalar() if found.returns_rows else None

        return await asyncio.to_thread(run)

    async def put_keyed(self, key: str, number: int, seconds: float) -> None:
        options = {"queue_name": "bench", "workflow_name": "keyed", "queue_partition_key": key}

        def put() -> None:
            with self.bulk.begin() as connection:
                for _ in range(number):
                    self.client.enqueue_in_transaction(connection, options, key, seconds)

        await asyncio.to_thread(put)

    async def serve_keyed(self, ran: Ran) -> None:
        self.key_ran = ran
        await asyncio.to_thread(self._launch)
        try:
            await asyncio.Event().wait()
        finally:
            self.module.DBOS.destroy()


if __name__ == "__main__":
    main(Dbos())
