"""Which database an engine connects to, and whether pqcore can use the table there now."""

from __future__ import annotations

from typing import NamedTuple

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.db.sources import lent
from pqcore.net import bracketed
from pqcore.schema import check_version


class Place(NamedTuple):
    """The database that a session is connected to.

    Attributes:
        database: The name of the database.
        server: The server's address and port, as in ``10.0.0.5:5432``; None for a Unix socket.
        version: The version of PostgreSQL.
    """

    database: str
    server: str | None
    version: str


async def read_place(engine: Engine) -> Place:
    """Return the database and the server to which the engine connects; do not read the table.

    Raises:
        PQError: The server cannot be reached.
    """

    async def work(s: Session) -> Place:
        [[name, address, port, version]] = await s.execute(s.sql.identify)
        return Place(name, address and f"{bracketed(address)}:{port}", str(version).split()[0])

    return await lent(engine.source, work)


async def describe_database(engine: Engine) -> str:
    """Return the database and the server as text, for example ``database 'app' of 10.0.0.5:5432, PostgreSQL 18.1``.

    Raises:
        PQError: The server cannot be reached.
    """
    place = await read_place(engine)
    return f"database {place.database!r} of {place.server or 'a Unix socket'}, PostgreSQL {place.version}"


async def check_readiness(engine: Engine) -> None:
    """Check that the server answers, and that the table is as this pqcore needs it.

    Raises:
        SchemaError: The table is missing, or of another version.
        PQError: The server cannot be reached, or refuses the statement.
    """
    await lent(engine.source, lambda s: check_version(s, engine.names))
