"""Finds the driver's connection inside of SQLAlchemy's and Django's objects, for ``put(connection=)``.

They are told by the names of their classes, so neither is imported.
"""

from __future__ import annotations

from typing import Any

from pqcore.hookspecs import hookimpl


@hookimpl(trylast=True)
def pqcore_unwrap(target: Any) -> Any:
    """What is inside of a session or connection of SQLAlchemy's or Django's."""
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(target).__mro__}
    if names & {"sqlalchemy.AsyncSession", "sqlalchemy.async_scoped_session"}:
        return target.connection()
    if "sqlalchemy.AsyncConnection" in names:
        return _begun_async(target)
    if names & {"sqlalchemy.Session", "sqlalchemy.scoped_session"}:
        return target.connection()
    if "sqlalchemy.Connection" in names:
        return target.connection.driver_connection
    if "django.BaseDatabaseWrapper" in names:
        # Opens the connection, and Django's transaction with it, if need be.
        target.ensure_connection()
        return target.connection
    if "django.ConnectionProxy" in names:
        return target._connections[target._alias]  # noqa: SLF001 - there is no public way
    return None


async def _begun_async(connection: Any) -> Any:
    # SQLAlchemy tells asyncpg to begin with the first statement that it sends itself. Ours
    # is sent past it, so an empty one goes first; in a transaction it costs one round trip.
    await connection.exec_driver_sql("SELECT 1")
    return (await connection.get_raw_connection()).driver_connection
