"""The table's schema: numbered migrations, applied in order and recorded in the database.

Each file ``000N_subject.sql`` is one version.  A statement starts at a line with
``---`` and a word on why.  Versions are recorded in ``pqcore_migrations``, one
table a schema.  A table with no record is pq 1.9.1's, or none: version 0.

On a new or empty table everything is one transaction.  A table with rows is
migrated in place: columns in a short transaction under a ``lock_timeout``,
indexes CONCURRENTLY, while others put and get.  What was interrupted is taken up
by the next `create`: each statement may be run again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from pqcore.errors import SchemaOutdated, SchemaTooNew, TableMissing
from pqcore.statement import Query, compile_query, plain

if TYPE_CHECKING:
    from pqcore.identifiers import TableName
    from pqcore.sessions import CoreSession

INDEXES = 2
"""The version whose indexes are built without holding up a table in use."""
LOCK_TIMEOUT = "5s"
"""How long a migration waits for the table before it gives up, and can be tried again."""
RECORD = (
    "CREATE TABLE IF NOT EXISTS {migrations} (table_name text, version integer,"
    " applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (table_name, version))"
)
"""The table in which versions are recorded, as a template."""


@lru_cache(maxsize=1)
def migrations() -> tuple[tuple[str, ...], ...]:
    """The statements of each version, as templates."""
    folder = resources.files(__name__)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple(_statements((folder / name).read_text("utf-8")) for name in names)


def latest() -> int:
    """The version that this pqcore makes and needs."""
    return len(migrations())


def _statements(script: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"(?m)^(?:---.*\n)+", script)[1:])


def _query(names: TableName, name: str, template: str, *, rows: bool = True, concurrently: bool = False) -> Query:
    substitutions = names.substitutions() | {"concurrently": "CONCURRENTLY" if concurrently else ""}
    if not rows:
        # DDL has no parameters, and may hold what looks like one.
        sql = template.format_map(substitutions)
        return plain(name, sql, rows=False)
    return compile_query(name, template, substitutions, "numeric_dollar")


def _literal(text: str) -> str:
    """A string constant, for the few statements that are built before a table is known to exist."""
    return "'" + text.replace("'", "''") + "'" if "\\" not in text else " E'" + _escaped(text) + "'"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


async def version(session: CoreSession, names: TableName) -> int | None:
    """The version of the table; 0 for one of pq's, None if there is none."""
    table, recorded = _literal(str(names)), _literal(names.beside("pqcore_migrations"))
    [[exists, has_record]] = await session.execute(
        plain("find_table", f"SELECT to_regclass({table}) IS NOT NULL, to_regclass({recorded}) IS NOT NULL")
    )
    if not exists:
        return None
    if not has_record:
        return 0
    sql = f"SELECT coalesce(max(version), 0) FROM {names.beside('pqcore_migrations')} WHERE table_name = "
    [[number]] = await session.execute(plain("read_version", sql + _literal(names.table)))
    return int(number)


async def check_version(session: CoreSession, names: TableName) -> None:
    """Refuse a table that this pqcore cannot work with.

    Raises:
        TableMissing, SchemaOutdated, SchemaTooNew: See there.
    """
    found = await version(session, names)
    if found is None:
        msg = f"table {names} does not exist: call create() once to make it, or run pqcore create"
        raise TableMissing(msg)
    if found > latest():
        msg = f"table {names} is of schema version {found}, this pqcore knows {latest()}: upgrade pqcore"
        raise SchemaTooNew(msg)
    if found < latest():
        of = f"schema version {found}" if found else "pq's, or made by hand"
        msg = f"table {names} is {of}; this pqcore needs version {latest()}: call create() to migrate it in place"
        raise SchemaOutdated(msg)


async def create(session: CoreSession, names: TableName, sleep: Callable[[float], Awaitable[None]]) -> None:
    """Make the table, or bring it up to the latest version; does nothing if it is there.

    Inside of a transaction of the caller's it is part of that; then indexes of a
    table with rows are built while it is locked.

    Raises:
        SchemaTooNew: The table was made by a newer pqcore.
        TransientError: The table was in use for too long; call it again.
    """
    if await version(session, names) == latest():
        return
    if session.in_transaction():
        await _apply_all(session, names)
        return
    # For the session, as concurrent index builds span transactions. Asked for again and again
    # rather than waited for: a build waits for all statements that run, such as one that waits.
    lock = f"hashtextextended({_literal('pqcore ' + str(names))}, 0)"
    while (await session.execute(plain("lock_migrations", f"SELECT pg_try_advisory_lock({lock})")))[0][0] is not True:
        await sleep(0.05)
    try:
        found = await version(session, names) or 0
        if found > latest():
            await check_version(session, names)
        in_use = found > 0 or await version(session, names) is not None
        if in_use:
            async with _transaction(session):  # as looking may have to wait for a lock
                [[in_use]] = await session.execute(plain("has_rows", f"SELECT EXISTS (SELECT FROM {names})"))
        if not in_use:
            async with _transaction(session):
                await _apply_all(session, names)
            return
        for number in range(found + 1, latest() + 1):
            if number == INDEXES:
                await _build_indexes(session, names)
            else:
                async with _transaction(session):
                    await _apply(session, names, number)
    finally:
        if session.usable():
            await session.execute(plain("unlock_migrations", f"SELECT pg_advisory_unlock({lock})"))


@asynccontextmanager
async def _transaction(session: CoreSession) -> AsyncIterator[None]:
    """A transaction that waits for locks for a limited time."""
    await session.begin()
    try:
        await session.execute(plain("lock_timeout", f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'", rows=False))
        yield
    except BaseException:
        await session.rollback()
        raise
    await session.commit()


async def _apply_all(session: CoreSession, names: TableName) -> None:
    found = await version(session, names) or 0
    if found > latest():
        await check_version(session, names)
    for number in range(found + 1, latest() + 1):
        await _apply(session, names, number)


async def _apply(session: CoreSession, names: TableName, number: int) -> None:
    if number == 1 and names.schema is not None:
        schema = _literal(names.schema)
        [[exists]] = await session.execute(
            plain("find_schema", f"SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = {schema})")
        )
        if not exists:
            quoted = names.beside("x").rpartition(".")[0]
            await session.execute(plain("create_schema", f"CREATE SCHEMA IF NOT EXISTS {quoted}", rows=False))
    if number == INDEXES:
        await _drop_invalid(session, names)
    for statement in migrations()[number - 1]:
        await session.execute(_query(names, f"migration {number}", statement, rows=False))
    await _record(session, names, number)


async def _build_indexes(session: CoreSession, names: TableName) -> None:
    await _drop_invalid(session, names, "CONCURRENTLY")
    for statement in migrations()[INDEXES - 1]:
        await session.execute(_query(names, f"migration {INDEXES}", statement, rows=False, concurrently=True))
    await _record(session, names, INDEXES)


async def _drop_invalid(session: CoreSession, names: TableName, how: str = "") -> None:
    """Drop what an interrupted build left behind, and IF NOT EXISTS would take for done."""
    table = _literal(str(names))
    invalid = await session.execute(
        plain(
            "invalid_indexes",
            f"SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_index AS i"
            f" JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            f" WHERE i.indrelid = to_regclass({table}) AND NOT i.indisvalid",
        )
    )
    for [index] in invalid:
        await session.execute(plain("drop_invalid", f"DROP INDEX {how} IF EXISTS {index}", rows=False))


async def _record(session: CoreSession, names: TableName, number: int) -> None:
    record = names.beside("pqcore_migrations")
    await session.execute(_query(names, "create_record", RECORD, rows=False))
    await session.execute(
        plain(
            "record",
            f"INSERT INTO {record} VALUES ({_literal(names.table)}, {number}) ON CONFLICT DO NOTHING",
            rows=False,
        )
    )


async def drop(session: CoreSession, names: TableName) -> None:
    """Drop the table with all that `create` made for it, jobs included; to be called in a transaction."""
    places = names.substitutions()
    made = re.compile(r"CREATE TABLE IF NOT EXISTS \{(\w+)\}")
    tables = [found[1] for version in migrations() for each in version if (found := made.match(each))]
    for place in reversed(tables):
        await session.execute(plain("drop_table", f"DROP TABLE IF EXISTS {places[place]}", rows=False))
    await session.execute(plain("drop_notify", f"DROP FUNCTION IF EXISTS {places['notify']}()", rows=False))
    await forget(session, names)


async def forget(session: CoreSession, names: TableName) -> None:
    """Forget which version the table is of, as where it is gone; with it the record, if it was of no other table."""
    record = names.beside("pqcore_migrations")
    [[found]] = await session.execute(plain("find_record", f"SELECT to_regclass({_literal(record)}) IS NOT NULL"))
    if found:
        sql = f"DELETE FROM {record} WHERE table_name = {_literal(names.table)}"
        await session.execute(plain("forget", sql, rows=False))
        [[of_others]] = await session.execute(plain("record_is_used", f"SELECT EXISTS (SELECT FROM {record})"))
        if not of_others:
            await session.execute(plain("drop_record", f"DROP TABLE {record}", rows=False))
