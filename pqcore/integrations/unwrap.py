"""Finding the driver's connection inside objects of SQLAlchemy and Django, for ``put(connection=)``.

The objects are recognized by the names of their classes, so neither library is imported.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import ref

from pqcore.errors import TransactionAborted
from pqcore.hookspecs import hookimpl


@hookimpl(trylast=True)
def pqcore_unwrap(target: Any) -> Any:
    """Return the object inside a session or connection of SQLAlchemy, including pooled ones, or of Django."""
    claimed = target.__class__.__mro__  # the class that a proxy claims to have, such as Werkzeug's LocalProxy
    names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in (*type(target).__mro__, *claimed)}
    if names & {"sqlalchemy.AsyncSession", "sqlalchemy.async_scoped_session"}:
        return target.connection()
    if "sqlalchemy.AsyncConnection" in names:
        return _begun_async(target)
    if names & {"sqlalchemy.Session", "sqlalchemy.scoped_session"}:
        return target.connection()
    if "sqlalchemy.Connection" in names:
        if not target.in_transaction():
            target.begin()
            _hand_over(target)
        return target.connection.driver_connection
    if "sqlalchemy.PoolProxiedConnection" in names:
        # An asynchronous engine begins transactions itself: until then, the driver's connection is in no transaction.
        return target.driver_connection if target.dbapi_connection is target.driver_connection else None
    # Django's caches use the class ConnectionProxy, too.
    if "django.BaseDatabaseWrapper" in names or (
        "django.ConnectionProxy" in names and hasattr(target, "ensure_connection")
    ):
        # This opens the connection, and if necessary Django's transaction.
        target.ensure_connection()
        refuse_broken_atomic(target)
        return target.connection
    return None


def refuse_broken_atomic(connection: Any) -> None:
    """Raise if a Django connection's atomic block can only be rolled back: Django refuses queries in such a block.

    Raises:
        TransactionAborted: Django will roll the block back at its end, even if the server could commit it.
    """
    if connection.needs_rollback:
        msg = (
            "Django rolls this atomic block back, because of an earlier error or set_rollback(True);"
            " put after the block, or wrap the part that may fail in its own atomic()"
        )
        raise TransactionAborted(msg)


def _hand_over(connection: Any) -> None:
    """Let the caller's next ``begin()`` take over the transaction that was begun for pqcore's statement.

    SQLAlchemy begins a transaction before each of its statements, so that ``commit()`` and ``rollback()`` end it. A
    statement that bypasses SQLAlchemy needs such a transaction, too. But SQLAlchemy refuses ``begin()`` in a
    transaction, and a caller that has run nothing on the connection does not expect this refusal.
    """
    # a weak reference, because a reference cycle would delay freeing an unclosed connection
    connection.begin = partial(_begin, ref(connection))


def _begin(held: ref[Any]) -> Any:
    connection: Any = held()  # not None, because this is a call of the connection's own method
    del connection.begin
    transaction = connection.get_transaction()
    return connection.begin() if transaction is None else transaction


async def _begun_async(connection: Any) -> Any:
    if not connection.in_transaction():
        await connection.begin()
        _hand_over(connection.sync_connection)
    driver = (await connection.get_raw_connection()).driver_connection
    if connection.dialect.driver == "asyncpg" and not driver.is_in_transaction():
        # SQLAlchemy makes asyncpg begin a transaction with the first statement that SQLAlchemy itself sends. pqcore's
        # statement bypasses SQLAlchemy, so an empty one goes first; it costs one round trip per transaction.
        await connection.exec_driver_sql("SELECT 1")
    return driver
