"""Which database an engine leads to, and whether its table can be worked on now."""

from __future__ import annotations

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.db.sources import lent
from pqcore.schema import check_version


async def describe_database(engine: Engine) -> str:
    """Return the database and the server that answers, as in ``database 'app' of 10.0.0.5:5432, PostgreSQL 18.1``.

    The table is not looked at.

    Raises:
        PQError: The server cannot be reached.
    """

    async def work(s: Session) -> str:
        [[name, address, port, version]] = await s.execute(s.sql.identify)
        place = "a Unix socket" if address is None else f"{f'[{address}]' if ':' in address else address}:{port}"
        return f"database {name!r} of {place}, PostgreSQL {str(version).split()[0]}"

    return await lent(engine.source, work)


async def check_readiness(engine: Engine) -> None:
    """Check that the server answers, and that the table is as this pqcore needs it.

    Raises:
        SchemaError: The table is missing, or of another version.
        PQError: The server cannot be reached, or refuses the statement.
    """
    await lent(engine.source, lambda s: check_version(s, engine.names))
