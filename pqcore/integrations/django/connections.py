"""Django's connections, lent to pqcore, and the DSN for the same database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from django.db import Error, connections

from pqcore.backend import bare
from pqcore.db.driver_errors import translate
from pqcore.db.dsn import url_of
from pqcore.db.session import Session
from pqcore.db.sources import ConnectionProvider
from pqcore.errors import ConfigurationError
from pqcore.integrations.unwrap import refuse_broken_atomic

_DRIVERS = {"autocommit", "connection_factory", "context", "cursor_factory", "prepare_threshold", "row_factory"}
"""Parameters of a driver's ``connect`` that do not belong to libpq."""


class DjangoConnections(ConnectionProvider):
    """The connections of a Django database: one for each thread, in the transaction that Django has open there.

    Args:
        alias: The alias of the database, in ``DATABASES``.

    Raises:
        ConfigurationError: The database does not exist, or is not PostgreSQL.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()
        if alias not in connections:
            raise ConfigurationError(f"DATABASES has no {alias!r}; it has {', '.join(map(repr, connections))}")
        vendor = connections[alias].vendor
        if vendor != "postgresql":
            raise ConfigurationError(f"database {alias!r} of DATABASES is {vendor}; pqcore needs PostgreSQL")
        from django.db.backends.postgresql.psycopg_any import is_psycopg3

        self.backend = "psycopg" if is_psycopg3 else "psycopg2"

    @property
    def behind_a_pooler(self) -> bool:
        """Return whether the settings are those that Django requires behind a pooler in transaction mode."""
        return bool(connections[self.alias].settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"))

    def lend(self, wrap: Callable[[object], Session]) -> Session:
        connection = connections[self.alias]
        if connection.connection is not None and connection.connection.closed and not connection.in_atomic_block:
            connection.close()  # the connection is lost, but Django has not noticed, and would continue to use it
        try:
            connection.ensure_connection()
        except Error as exc:
            raise translate(exc.__cause__ or exc, "connect", lost=True) from exc
        refuse_broken_atomic(connection)
        session = self._sessions.get(connection)
        if session is None or session.driver.connection is not bare(connection.connection):
            session = self._sessions[connection] = wrap(connection.connection)
        session.caller_owned = not connection.get_autocommit()
        return session

    def failed(self, session: Session) -> None:
        connection = connections[self.alias]
        connection.errors_occurred = True  # makes Django check the connection before the next request
        if session.read_only and not connection.in_atomic_block:
            connection.close()  # a new connection may lead to the server that takes writes

    def dsn(self) -> str:
        connection = connections[self.alias]
        parameters = {
            name: str(int(value)) if isinstance(value, bool) else str(value)
            for name, value in connection.get_connection_params().items()
            if name not in _DRIVERS and isinstance(value, (str, int, float))
        }
        if role := connection.settings_dict["OPTIONS"].get("assume_role"):
            escaped = str(role).replace("\\", "\\\\").replace(" ", "\\ ")
            parameters["options"] = f"{parameters.get('options', '')} -c role={escaped}".strip()
        return url_of(parameters)
