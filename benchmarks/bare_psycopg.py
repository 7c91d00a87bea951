"""The bare loops for psycopg 3, blocking and asynchronous."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from .baseline import BareLoop, SwitchesAutocommit
from .operations import DATA, QUEUE
from .statements import Statements, values


class _Encoded(BareLoop):
    """Statements in the form for psycopg's raw cursors."""

    bulk = ("COPY", "COPY by rows", "the statement")

    def __init__(self, statements: Statements, batch: int, connection: Any) -> None:
        super().__init__(statements, batch, connection)
        self._put, self._put_many, self._get, self._get_many, self._lease, self._ack = (
            getattr(statements, name).encoded for name in ("put", "put_many", "get", "get_many", "lease", "ack")
        )
        self._copy = self.copy.encode()


class BarePsycopg(SwitchesAutocommit, _Encoded):
    """The bare loop with a raw cursor in autocommit mode and prepared statements."""

    how = "psycopg, a raw cursor, prepared"

    def __init__(self, statements: Statements, batch: int, connection: Any) -> None:
        super().__init__(statements, batch, connection)
        self._cursor = psycopg.RawCursor(connection)

    def put(self) -> None:
        self._cursor.execute(self._put, (QUEUE, json.dumps(DATA)), prepare=True).fetchone()

    def put_many(self) -> None:
        if self.chosen == "the statement":
            self._cursor.execute(
                self._put_many, values(self.statements.put_many, items=self.items()), prepare=True
            ).fetchall()
            return
        with self._cursor.copy(self._copy) as copy:
            if self.chosen == "COPY":
                copy.write(self.text())
            else:
                for _ in range(self.batch):
                    copy.write_row((QUEUE, "json", json.dumps(DATA)))

    def get(self) -> None:
        self.keep([self._cursor.execute(self._get, self.queue, prepare=True).fetchone()])

    def transactional_get(self) -> None:
        self.keep([self._cursor.execute(self._get, self.queue, prepare=True).fetchone()])
        self.connection.commit()

    def get_many(self) -> None:
        self.keep(self._cursor.execute(self._get_many, self.queue, prepare=True).fetchall())

    def lease_ack(self) -> None:
        rows = self._cursor.execute(self._lease, self.lease, prepare=True).fetchall()
        self._cursor.execute(self._ack, self.held(rows), prepare=True).fetchall()
        self.keep(rows)

    def replan(self) -> None:
        self._cursor.execute(b"DISCARD PLANS")


class BareAsyncPsycopg(_Encoded):
    """The asynchronous bare loop with a raw cursor in autocommit mode and prepared statements."""

    how = "psycopg, a raw cursor awaited, prepared"

    def __init__(self, statements: Statements, batch: int, connection: Any) -> None:
        super().__init__(statements, batch, connection)
        self._cursor = psycopg.AsyncRawCursor(connection)

    async def enter(self, operation: str) -> None:
        await self.connection.set_autocommit(operation != "transactional_get")

    async def leave(self, operation: str) -> None:
        await self.connection.set_autocommit(True)

    async def put(self) -> None:
        await self._cursor.execute(self._put, (QUEUE, json.dumps(DATA)), prepare=True)
        await self._cursor.fetchone()

    async def put_many(self) -> None:
        if self.chosen == "the statement":
            await self._cursor.execute(
                self._put_many, values(self.statements.put_many, items=self.items()), prepare=True
            )
            await self._cursor.fetchall()
            return
        async with self._cursor.copy(self._copy) as copy:
            if self.chosen == "COPY":
                await copy.write(self.text())
            else:
                for _ in range(self.batch):
                    await copy.write_row((QUEUE, "json", json.dumps(DATA)))

    async def get(self) -> None:
        await self._cursor.execute(self._get, self.queue, prepare=True)
        self.keep([await self._cursor.fetchone()])

    async def transactional_get(self) -> None:
        await self._cursor.execute(self._get, self.queue, prepare=True)
        self.keep([await self._cursor.fetchone()])
        await self.connection.commit()

    async def get_many(self) -> None:
        await self._cursor.execute(self._get_many, self.queue, prepare=True)
        self.keep(await self._cursor.fetchall())

    async def lease_ack(self) -> None:
        await self._cursor.execute(self._lease, self.lease, prepare=True)
        rows = await self._cursor.fetchall()
        await self._cursor.execute(self._ack, self.held(rows), prepare=True)
        await self._cursor.fetchall()
        self.keep(rows)

    async def replan(self) -> None:
        await self._cursor.execute(b"DISCARD PLANS")
