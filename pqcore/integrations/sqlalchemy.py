"""SQLAlchemy: a `PQ` from an engine, and pqcore's tables in a MetaData.

A put in the transaction of a session needs nothing of this module: ``queue.put(data, connection=session)``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard, overload

try:
    import sqlalchemy
except ImportError as exc:
    msg = f"pqcore.integrations.sqlalchemy needs {exc.name}: pip install 'pqcore[sqlalchemy]'"
    raise ImportError(msg) from exc
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import BLANK_SCHEMA, CreateSchema, conv

from pqcore.argument_hints import kind_of
from pqcore.db.dsn import dsn_text, url_of
from pqcore.errors import ConfigurationError
from pqcore.integrations.sqlalchemy_schema import create, create_anew, run_on
from pqcore.schema import drop
from pqcore.schema.metadata import DeclaredColumn, DeclaredTable, declared_tables
from pqcore.sql.identifiers import TableName, fit
from pqcore.tasks import PQ, AsyncPQ

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

# A PQ for an engine

_NOT_OF_THE_SERVER = frozenset(
    {
        "async_fallback",
        "autocommit",
        "command_timeout",
        "connection_class",
        "connection_factory",
        "context",
        "cursor_factory",
        "loop",
        "max_cached_statement_lifetime",
        "max_cacheable_statement_size",
        "prepare_threshold",
        "prepared_statement_cache_size",
        "prepared_statement_name_func",
        "record_class",
        "row_factory",
        "statement_cache_size",
        "timeout",
    }
)
"""Drivers' arguments that affect the use of a connection, but not its destination."""
_ASYNCPG_DSN = ("host", "port", "user", "password", "database", "ssl", "server_settings")


@overload
def pq_for_engine(engine: AsyncEngine, **options: Any) -> AsyncPQ: ...
@overload
def pq_for_engine(engine: sqlalchemy.Engine, **options: Any) -> PQ: ...
def pq_for_engine(engine: sqlalchemy.Engine | AsyncEngine, **options: Any) -> PQ | AsyncPQ:
    """Return a `pqcore.tasks.PQ`, or for an AsyncEngine an `AsyncPQ`, for the database and driver of an engine.

    The PQ opens its own connections when needed, with the engine's arguments. These arguments come from the URL, from
    ``connect_args``, and from handlers of ``do_connect``, which are called only now.

    Args:
        engine: The engine.
        **options: Options of `pqcore.PQ`.

    Raises:
        ConfigurationError: The argument is not an engine. Or the engine is not for PostgreSQL, pqcore has no backend
            for its driver, it opens connections with its own function (``creator``), or one of its arguments cannot be
            passed on.
    """
    if not isinstance(engine, sqlalchemy.Engine) and not _is_async(engine):
        found = "its engine" if dsn_text(engine) is None else "PQ(url)"
        raise ConfigurationError(f"engine is a {kind_of(engine)}, not an engine of SQLAlchemy; give {found}")
    asynchronous = _is_async(engine)
    plain = engine if isinstance(engine, sqlalchemy.Engine) else engine.sync_engine
    if plain.dialect.name != "postgresql":
        raise ConfigurationError(f"the engine is for {plain.dialect.name}; pqcore works on PostgreSQL")
    driver = plain.dialect.driver.removesuffix("_async")
    if driver not in _DSN:
        msg = (
            f"the engine's driver is {driver!r}, not {', '.join(_DSN)}: give PQ a DSN, and put with connection=session"
        )
        raise ConfigurationError(msg)
    arguments = _arguments(plain)
    unprepared = ("statement_cache_size", 0) in arguments.items() or ("prepare_threshold", None) in arguments.items()
    options = {"prepared": False if unprepared else None, "backend": driver, **options}
    dsn = _DSN[driver](arguments)
    return AsyncPQ(dsn, **options) if asynchronous else PQ(dsn, **options)


def _is_async(engine: object) -> TypeGuard[AsyncEngine]:
    """Return whether an object is an AsyncEngine, without importing this class, which may need greenlet."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return module is not None and isinstance(engine, module.AsyncEngine)


class _ToldError(Exception):
    """An error that stops SQLAlchemy before it connects; the error has the arguments for the connection."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments


def _arguments(engine: sqlalchemy.Engine) -> dict[str, Any]:
    """Return the arguments with which the engine would connect.

    SQLAlchemy passes the complete arguments only to the driver's ``connect``. So pqcore makes the engine connect, and
    stops it just before it calls ``connect``.
    """
    asking = threading.get_ident()

    def tell(dialect: Any, record: Any, positional: list[Any], named: dict[str, Any]) -> None:
        if threading.get_ident() == asking:
            raise _ToldError(dict(named))

    event.listen(engine, "do_connect", tell)
    try:
        engine.pool.recreate().connect().invalidate()
    except _ToldError as told:
        arguments = dict(told.arguments)
    except Exception as exc:  # any exception of a user's function
        raise ConfigurationError(_CREATOR) from exc
    else:
        raise ConfigurationError(_CREATOR)
    finally:
        event.remove(engine, "do_connect", tell)
    if "async_creator_fn" in arguments:
        raise ConfigurationError(_CREATOR)
    return arguments


_CREATOR = "the engine opens connections with its own function (creator, or a do_connect handler): give PQ a DSN"


def _of_libpq(make: Callable[..., str], arguments: Mapping[str, Any]) -> str:
    wanted = {name: value for name, value in arguments.items() if name not in _NOT_OF_THE_SERVER and value is not None}
    odd = {name: value for name, value in wanted.items() if not isinstance(value, (str, int))}
    if odd:
        raise _cannot_pass(odd)
    try:
        return make(**wanted)
    except Exception as exc:  # noqa: BLE001 - the driver's, for what libpq does not know
        raise ConfigurationError(f"the driver refuses an argument of the engine's connections: {exc}") from None


def _psycopg_dsn(arguments: Mapping[str, Any]) -> str:
    from psycopg.conninfo import make_conninfo

    return _of_libpq(make_conninfo, arguments)


def _psycopg2_dsn(arguments: Mapping[str, Any]) -> str:
    from psycopg2.extensions import make_dsn, parse_dsn

    def make(**named: Any) -> str:
        dsn: str = make_dsn(**named)
        parse_dsn(dsn)
        return dsn

    return _of_libpq(make, arguments)


def _asyncpg_dsn(arguments: Mapping[str, Any]) -> str:
    given = {name: value for name, value in arguments.items() if name not in _NOT_OF_THE_SERVER and value is not None}
    odd = {name: value for name, value in given.items() if name not in _ASYNCPG_DSN}
    query = dict(given.get("server_settings", {}))
    if "ssl" in given:
        if isinstance(given["ssl"], str):
            query["sslmode"] = given["ssl"]
        elif isinstance(given["ssl"], bool):
            query["sslmode"] = "require" if given["ssl"] else "disable"
        else:
            odd["ssl"] = given["ssl"]
    if odd:
        raise _cannot_pass(odd)
    for name in ("host", "port", "user", "password", "database"):
        if name in given:
            value = given[name]
            query["dbname" if name == "database" else name] = (
                ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            )
    return url_of(query)


def _cannot_pass(arguments: Mapping[str, Any]) -> ConfigurationError:
    named = ", ".join(f"{name} (a {type(value).__name__})" for name, value in arguments.items())
    return ConfigurationError(
        f"the engine connects with {named}, which a DSN cannot hold: give PQ a pool of the driver"
    )


_DSN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "psycopg": _psycopg_dsn,
    "psycopg2": _psycopg2_dsn,
    "asyncpg": _asyncpg_dsn,
}

# Tables in a MetaData

_TYPES: dict[str, Callable[[], Any]] = {
    "bigserial": sqlalchemy.BigInteger,
    "bigint": sqlalchemy.BigInteger,
    "bigint[]": lambda: postgresql.ARRAY(sqlalchemy.BigInteger),
    "integer": sqlalchemy.Integer,
    "double precision": postgresql.DOUBLE_PRECISION,
    "boolean": sqlalchemy.Boolean,
    "text": sqlalchemy.Text,
    "json": postgresql.JSON,
    "bytea": postgresql.BYTEA,
    "timestamptz": lambda: postgresql.TIMESTAMP(timezone=True),
}


def include_in(metadata: sqlalchemy.MetaData, table: str = "queue", schema: str | None = None) -> sqlalchemy.Table:
    """Add a queue's tables to a MetaData, as `pqcore.PQ.create` makes them.

    So Alembic's autogenerate finds the tables unchanged, and neither drops nor changes them. ``create_all`` makes the
    whole queue, including triggers, and ``drop_all`` drops all of it.

    Args:
        metadata: The MetaData; a declarative base's is ``Base.metadata``.
        table: See `pqcore.PQ`.
        schema: See `pqcore.PQ`; None means the search path, even if the MetaData has a schema.

    Returns:
        The queue's own table, for your queries.

    Raises:
        ConfigurationError: The MetaData already has a table with one of these names.
    """
    names = TableName(table, schema)
    declared = declared_tables(names)
    prefix = "" if names.schema is None else names.schema + "."
    record = prefix + declared[-1].name  # all queues of a schema share this table
    taken = [each.name for each in declared if prefix + each.name in metadata.tables and prefix + each.name != record]
    if taken:
        raise ConfigurationError(
            f"the MetaData has a table {taken[0]!r} already: include each queue once, or give the queue another table"
        )
    made = [_table(metadata, names, each) for each in declared if prefix + each.name not in metadata.tables]
    keys = frozenset(each.key for each in made)
    event.listen(metadata, "before_create", partial(_make_schema, names, keys))
    event.listen(metadata, "after_create", partial(_complete, names, keys, made[0].key))
    event.listen(metadata, "after_drop", partial(_clear_away, names, made[0].key))
    return made[0]


def leave_out(
    table: str = "queue", schema: str | None = None, also: Callable[..., bool] | None = None
) -> Callable[..., bool]:
    """Return a filter with which Alembic ignores the tables of a queue that `pqcore.PQ.create` manages.

    Args:
        table: See `pqcore.PQ`.
        schema: See `pqcore.PQ`.
        also: Your own filter, which is called for all other names.

    Returns:
        The ``include_name`` of Alembic's ``context.configure``.
    """
    names = TableName(table, schema)
    ours = {each.name for each in declared_tables(names)}

    def include_name(name: str | None, kind: str, parents: Mapping[str, str | None]) -> bool:
        if kind == "table" and parents.get("schema_name") == names.schema and name in ours:
            return False
        return also is None or also(name, kind, parents)

    return include_name


def _table(metadata: sqlalchemy.MetaData, names: TableName, declared: DeclaredTable) -> sqlalchemy.Table:
    indexes = [
        sqlalchemy.Index(
            conv(index.name),
            *(each if each.isidentifier() else sqlalchemy.text(each) for each in index.expressions),
            unique=index.unique,
            postgresql_where=None if index.where is None else sqlalchemy.text(index.where),
        )
        for index in declared.indexes
    ]
    checks = [
        sqlalchemy.CheckConstraint(each.check, name=conv(fit(f"{declared.name}_{each.name}_check")))
        for each in declared.columns
        if each.check is not None
    ]
    return sqlalchemy.Table(
        declared.name,
        metadata,
        *(_column(each) for each in declared.columns),
        sqlalchemy.PrimaryKeyConstraint(*declared.primary_key, name=conv(fit(declared.name + "_pkey"))),
        *checks,
        *indexes,
        schema=BLANK_SCHEMA if names.schema is None else names.schema,
    )


def _column(declared: DeclaredColumn) -> sqlalchemy.Column[Any]:
    return sqlalchemy.Column(
        declared.name,
        _TYPES[declared.type](),
        nullable=declared.nullable,
        server_default=None if declared.default is None else sqlalchemy.text(declared.default),
        autoincrement=declared.type == "bigserial",
    )


def _keys(tables: Any) -> set[str]:
    return {each.key for each in tables}


def _make_schema(
    names: TableName, keys: frozenset[str], target: Any, connection: sqlalchemy.Connection, tables: Any = (), **_: Any
) -> None:
    if names.schema is not None and _keys(tables) & keys:
        connection.execute(CreateSchema(names.schema, if_not_exists=True))


def _complete(
    names: TableName,
    keys: frozenset[str],
    key: str,
    target: Any,
    connection: sqlalchemy.Connection,
    tables: Any = (),
    **_: Any,
) -> None:
    """Let pqcore make what the MetaData does not describe: triggers, storage parameters, the record of versions."""
    created = _keys(tables)
    if created & keys:
        run_on(connection, create_anew if key in created else create, names)


def _clear_away(
    names: TableName, key: str, target: Any, connection: sqlalchemy.Connection, tables: Any = (), **_: Any
) -> None:
    if key in _keys(tables):
        run_on(connection, drop, names)
