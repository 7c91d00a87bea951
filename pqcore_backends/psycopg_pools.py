"""Support for the pools of psycopg_pool, which need not be installed."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pqcore.backend import POOL_CLOSED, POOL_EXHAUSTED, connect_timeout_default, session_over
from pqcore.errors import Closed, PoolTimeout

try:
    import psycopg_pool
except ImportError:  # without psycopg_pool, there are no pools to accept
    POOL_ERRORS: tuple[type[Exception], ...] = ()
else:
    POOL_ERRORS = (psycopg_pool.PoolClosed, psycopg_pool.PoolTimeout)


class Pooled:
    """A mixin that keeps the session of a pool's connection on the connection itself."""

    errors = (psycopg.Error, UnicodeError)

    def __init__(self, *, prepared: bool = True) -> None:
        self._prepares = prepared

    def _session(self, connection: Any) -> Any:
        session = getattr(connection, "_pqcore_session", None)
        if session is None or session.prepared is not self._prepares:
            session = connection._pqcore_session = session_over(self.wrap, connection)
        session.lent = connection
        return session

    def wrap(self, connection: Any) -> Any:
        raise NotImplementedError


def listening(conninfo: str | None, kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Return a pool's arguments, adapted for a connection that listens."""
    said = {**conninfo_to_dict(conninfo or ""), **(kwargs or {})}
    return {**(kwargs or {}), **connect_timeout_default(said), "autocommit": True}


def pool_error(exc: Exception) -> Exception:
    """Return pqcore's error for an error of a pool."""
    if isinstance(exc, psycopg_pool.PoolClosed):
        return Closed(f"{POOL_CLOSED} ({exc})")
    return PoolTimeout(f"{POOL_EXHAUSTED} ({exc})")
