"""The bare loops for asyncpg."""

from __future__ import annotations

import io
import json
from typing import Any

from .baseline import COLUMNS, BareLoop
from .operations import DATA, QUEUE
from .statements import Statements, values


class BareAsyncpg(BareLoop):
    """The bare loop with prepared statements and fetch."""

    how = "asyncpg, prepared statements"
    bulk = ("COPY", "COPY of text", "the statement")

    def __init__(self, statements: Statements, batch: int, connection: Any) -> None:
        super().__init__(statements, batch, connection)
        self._columns = COLUMNS.split(", ")

    async def prepare(self) -> None:
        names = ("put", "put_many", "get", "get_many", "lease", "ack")
        prepared = [await self.connection.prepare(getattr(self.statements, name).sql) for name in names]
        self._put, self._put_many, self._get, self._get_many, self._lease, self._ack = prepared
        # asyncpg's prepare sends Flush and no Sync, so the statement's transaction holds its locks until the next Sync.
        await self.connection.execute("SELECT 1")

    async def put(self) -> None:
        await self._put.fetchval(QUEUE, json.dumps(DATA))

    async def put_many(self) -> None:
        place = self.statements.place
        if self.chosen == "the statement":
            await self._put_many.fetch(*values(self.statements.put_many, items=self.items()))
        elif self.chosen == "COPY":
            rows = [(QUEUE, "json", json.dumps(DATA)) for _ in range(self.batch)]
            await self.connection.copy_records_to_table(
                place.table, schema_name=place.schema, columns=self._columns, records=rows
            )
        else:
            await self.connection.copy_to_table(
                place.table,
                schema_name=place.schema,
                columns=self._columns,
                source=io.BytesIO(self.text().encode()),
            )

    async def get(self) -> None:
        self.keep([await self._get.fetchrow(QUEUE)])

    async def transactional_get(self) -> None:
        async with self.connection.transaction():
            self.keep([await self._get.fetchrow(QUEUE)])

    async def get_many(self) -> None:
        self.keep(await self._get_many.fetch(QUEUE))

    async def lease_ack(self) -> None:
        rows = await self._lease.fetch(*self.lease)
        await self._ack.fetch(*self.held(rows))
        self.keep(rows)

    async def replan(self) -> None:
        await self.connection.execute("DISCARD PLANS")
