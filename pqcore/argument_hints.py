"""Hints in messages: which argument to give instead of one that pqcore does not accept.

Classes of libraries are recognized by their names, so that no library is imported. No message repeats a value, which
might contain a password.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pqcore.db.dsn import dsn_text

_ENGINE = "use pq_for_engine(engine) of pqcore.integrations.sqlalchemy"
_IN_ITS_TRANSACTION = f"{_ENGINE}, and put in its transaction with queue.put(..., connection=...)"
_DJANGO = "use pqcore.integrations.django.pq, or put in its transaction with queue.put(..., connection=connection)"
_FOR_PQ: Mapping[str, str] = {
    "sqlalchemy.Engine": _ENGINE,
    "sqlalchemy.AsyncEngine": _ENGINE,
    "sqlalchemy.Pool": f"{_ENGINE}, with the engine that has the pool",
    "sqlalchemy.PoolProxiedConnection": _IN_ITS_TRANSACTION,
    "sqlalchemy.Connection": _IN_ITS_TRANSACTION,
    "sqlalchemy.AsyncConnection": _IN_ITS_TRANSACTION,
    "sqlalchemy.Session": _IN_ITS_TRANSACTION,
    "sqlalchemy.AsyncSession": _IN_ITS_TRANSACTION,
    "sqlalchemy.scoped_session": _IN_ITS_TRANSACTION,
    "sqlalchemy.async_scoped_session": _IN_ITS_TRANSACTION,
    "sqlalchemy.sessionmaker": _IN_ITS_TRANSACTION,
    "sqlalchemy.async_sessionmaker": _IN_ITS_TRANSACTION,
    "flask_sqlalchemy.SQLAlchemy": "use pq_for_engine(db.engine) of pqcore.integrations.sqlalchemy",
    "django.BaseDatabaseWrapper": _DJANGO,
    "django.ConnectionProxy": _DJANGO,
    "django.BaseConnectionHandler": _DJANGO,
}
_BEGIN = "write with engine.begin() as connection: queue.put(..., connection=connection)"
_OF_POOL = "take a connection from the pool, and give this connection"
_FOR_CONNECTION: Mapping[str, str] = {
    "sqlalchemy.Engine": _BEGIN,
    "sqlalchemy.AsyncEngine": f"{_BEGIN}, with async and await",
    "sqlalchemy.Pool": _OF_POOL,
    "sqlalchemy.PoolProxiedConnection": "give an open connection; from an AsyncEngine, give its connect() or a session",
    "sqlalchemy.sessionmaker": "call it, and give the session",
    "sqlalchemy.async_sessionmaker": "call it, and give the session",
    "flask_sqlalchemy.SQLAlchemy": "write connection=db.session",
    "django.BaseConnectionHandler": "write connection=connections['default']",
}


def instead_of_target(given: object) -> str:
    """Return the argument to give `PQ` in place of an object that is neither a DSN nor a connection nor a pool.

    Args:
        given: The object.
    """
    if isinstance(given, (bytes, bytearray)):
        return "give text: dsn.decode()"
    if isinstance(given, PurePath):
        return "a Path drops a slash of the URL: give text; a socket's folder is written postgresql:///app?host=/folder"
    if isinstance(given, Mapping) and "ENGINE" in given:
        return f"give the URL that the settings were made from, or, in a Django project, {_DJANGO}"
    if isinstance(given, Mapping):
        return "give text: psycopg.conninfo.make_conninfo(**options), or 'host=... dbname=...'"
    return _of_any(given, _FOR_PQ) or "give text, postgresql://user@host/database, or a driver's connection or pool"


def instead_of_connection(given: object, *, pool: bool) -> str:
    """Return what to give as ``connection=`` instead of an object that holds no driver's connection.

    Args:
        given: The object.
        pool: Whether a backend recognizes the object as a pool.
    """
    if pool:
        return _OF_POOL
    if dsn_text(given) is not None and not _classes(given) & set(_FOR_CONNECTION):
        return "a DSN is for PQ: give the connection whose transaction the job belongs to, or leave connection= out"
    return (
        _of_any(given, _FOR_CONNECTION)
        or "give a driver's connection, or a session or connection of SQLAlchemy or Django"
    )


def kind_of(given: object) -> str:
    """Return the name of an object's kind for a message: the dotted name of its class.

    Args:
        given: The object.
    """
    return f"{type(given).__module__}.{type(given).__qualname__}"


def _of_any(given: object, told: Mapping[str, str]) -> str | None:
    for name in _classes(given):
        if name in told:
            return told[name]
    if inspect.isawaitable(given):
        return "await it first, and give the result"
    if callable(given):
        return "call it, and give the result"
    return None


def _classes(given: Any) -> set[str]:
    """Return the names of an object's classes, each with the package that defines the class."""
    return {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(given).__mro__}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that an unknown name resembles most; None if it resembles no known name."""
    from difflib import get_close_matches  # imported late: only wrong names need it

    return next(iter(get_close_matches(name, [*known], 1)), None)


def instead_of_option(name: str, known: Sequence[str]) -> str:
    """Return a hint for an unknown option: the option that it resembles, or else all options."""
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"the options are {', '.join(known)}"
