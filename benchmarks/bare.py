"""Bare loops: what a good user of a driver writes who runs the statements without pqcore.

Each begins with the same Python data as pqcore's caller does and ends with the data decoded, on the
same table, with the same texts of SQL, prepared, and on the same connection: it matters much on which core
its server process happens to run.  ``put_many`` goes the fastest way that the driver has, found out at the
start of a run, and returns no ids.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from pqcore.statement import Query, plain

from .acts import DATA
from .contenders import Contender
from .statements import Statements, expect, names, values
from .turns import QUEUE

COLUMNS = "q_name, serializer, data"
BARE = {
    ("psycopg2", "blocking"): f"{__package__}.bare_psycopg2:BarePsycopg2",
    ("psycopg", "blocking"): f"{__package__}.bare_psycopg:BarePsycopg",
    ("psycopg", "async"): f"{__package__}.bare_psycopg:BareAsyncPsycopg",
    ("asyncpg", "async"): f"{__package__}.bare_asyncpg:BareAsyncpg",
}
"""Where the bare loops of a backend are; of one that is not here, its own session takes their place."""


class Parameters:
    """What the bare loops of all drivers have in common.

    Attributes:
        how: What they are, in the report.
        bulk: The ways to put many.
        chosen: That which is used.
        taken: Ids of the jobs that were taken.
    """

    how: str
    bulk: tuple[str, ...]

    def __init__(self, statements: Statements, batch: int) -> None:
        expect(statements.put, "q_name", "data", "payload", "serializer")
        expect(statements.get, "q_name")
        expect(statements.get_many, "q_name")
        expect(statements.ack, "ids", "tokens", "q_name")
        self.statements = statements
        self.batch = batch
        self.taken: list[int] = []
        self.queue = (QUEUE,)
        self.lease = values(statements.lease)
        self.copy = f"COPY {statements.table} ({COLUMNS}) FROM STDIN"
        self.chosen = self.bulk[0]

    def prepare(self) -> Any:
        """Prepare what is prepared ahead; what it returns is awaited over async drivers."""
        return None

    def enter(self, operation: str) -> Any:
        """Bring the connection into the mode that an operation wants; what it returns is awaited over async drivers."""
        return None

    def leave(self, operation: str) -> Any:
        """Bring it back into that in which pqcore keeps it."""
        return None

    def text(self) -> str:
        """The rows of a batch, as COPY reads them."""
        line = f"{QUEUE}\tjson\t"
        encoded = (json.dumps(DATA).replace("\\", "\\\\") for _ in range(self.batch))
        return "".join([f"{line}{data}\n" for data in encoded])

    def items(self) -> str:
        """A batch, as ``put_many`` takes it."""
        return f"[{','.join([json.dumps(DATA) for _ in range(self.batch)])}]"

    def keep(self, rows: Any) -> None:
        """Read what was taken."""
        for row in rows:
            self.taken.append(row[0])
            json.loads(row[1])


class SwitchesAutocommit:
    """Of drivers that have an attribute for it: a transaction begins by itself only where that is measured."""

    _connection: Any

    def enter(self, operation: str) -> None:
        self._connection.autocommit = operation != "transactional_get"

    def leave(self, operation: str) -> None:
        self._connection.autocommit = True


class BareSession(Parameters):
    """The session of a backend itself, for which nobody has written a bare loop."""

    how = "its own session in a loop"
    bulk = ("the statement",)

    def __init__(self, statements: Statements, batch: int, session: Any) -> None:
        super().__init__(statements, batch)
        self._session = session
        self._one = self.arguments(statements.get)
        self._many = self.arguments(statements.get_many)
        self._leased = self.arguments(statements.lease)

    def arguments(self, query: Query, **more: Any) -> tuple[Any, ...]:
        """Parameters as a session takes them: in the order of the placeholders of its paramstyle."""
        return query.bind(dict(zip(names(query), values(query, **more), strict=True)))

    def put(self) -> None:
        query = self.statements.put
        self._session.execute(query, self.arguments(query, data=json.dumps(DATA)))

    def put_many(self) -> None:
        query = self.statements.put_many
        self._session.execute(query, self.arguments(query, items=self.items()))

    def get(self) -> None:
        self.keep(self._session.execute(self.statements.get, self._one))

    def transactional_get(self) -> None:
        self._session.begin()
        self.keep(self._session.execute(self.statements.get, self._one))
        self._session.commit()

    def get_many(self) -> None:
        self.keep(self._session.execute(self.statements.get_many, self._many))

    def lease_ack(self) -> None:
        rows = self._session.execute(self.statements.lease, self._leased)
        self._session.execute(self.statements.ack, self._held(rows))
        self.keep(rows)

    def _held(self, rows: Any) -> tuple[Any, ...]:
        ids, tokens = [row[0] for row in rows], [row[4] for row in rows]
        return self.arguments(self.statements.ack, ids=ids, tokens=tokens)

    def replan(self) -> None:
        self._session.execute(DISCARD, ())


class BareAsyncSession(BareSession):
    """The same, awaited."""

    async def put(self) -> None:  # type: ignore[override]
        query = self.statements.put
        await self._session.execute(query, self.arguments(query, data=json.dumps(DATA)))

    async def put_many(self) -> None:  # type: ignore[override]
        query = self.statements.put_many
        await self._session.execute(query, self.arguments(query, items=self.items()))

    async def get(self) -> None:  # type: ignore[override]
        self.keep(await self._session.execute(self.statements.get, self._one))

    async def transactional_get(self) -> None:  # type: ignore[override]
        await self._session.begin()
        self.keep(await self._session.execute(self.statements.get, self._one))
        await self._session.commit()

    async def get_many(self) -> None:  # type: ignore[override]
        self.keep(await self._session.execute(self.statements.get_many, self._many))

    async def lease_ack(self) -> None:  # type: ignore[override]
        rows = await self._session.execute(self.statements.lease, self._leased)
        await self._session.execute(self.statements.ack, self._held(rows))
        self.keep(rows)

    async def replan(self) -> None:  # type: ignore[override]
        await self._session.execute(DISCARD, ())


DISCARD = plain("replan", "DISCARD PLANS", rows=False)


async def opened(contender: Contender, statements: Statements, batch: int, session: Any) -> Any:
    """The bare loops of a backend, over the connection of a session of it."""
    where = BARE.get((contender.name, contender.mode))
    if where is None:
        kind: Any = BareSession if contender.blocking else BareAsyncSession
        return kind(statements, batch, session)
    module, _, attribute = where.partition(":")
    made = getattr(importlib.import_module(module), attribute)(statements, batch, session.connection)
    if (preparing := made.prepare()) is not None:
        await preparing
    return made
