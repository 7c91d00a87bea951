"""The table's schema: numbered migrations, applied in order and recorded in the database.

Each file ``000N_subject.sql`` is one version. A statement starts at a line with ``---`` and a short reason. Versions
are recorded in ``pqcore_migrations``, one table in each schema. A queue's table without such a record was made by pq
1.9.1, and counts as version 0.

On a new or empty table, everything is one transaction. A table with rows is migrated in place, while other sessions put
and get. A short transaction with a ``lock_timeout`` adds columns, and is retried a few times; indexes are built
CONCURRENTLY. The next `create` continues an interrupted migration, because each statement can be run again.

A file may begin with ``-- needs N``: code that knows version N can use the migrated table. So processes of the
previous release can go on, and more of them can start. If a version only adds objects, N is the version before it or an
older one. A version may remove only objects that no code since version N uses. N is recorded in the database with
the version, so that older code, which lacks the file, can read N.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pqcore.errors import ConfigurationError, NotSupported, SchemaOutdated, SchemaTooNew, TableMissing, TransientError
from pqcore.schema import security
from pqcore.schema.partitions import Partitions
from pqcore.schema.scripts import RECORD, builds_indexes, latest, migrations, needs
from pqcore.sql.identifiers import PUT_ARGUMENTS, literal, unquoted
from pqcore.sql.statement import Query, compile_query, plain

if TYPE_CHECKING:
    from pqcore.db.session import Session
    from pqcore.sql.identifiers import TableName

__all__ = [
    "ATTEMPTS",
    "LOCK_TIMEOUT",
    "builds_indexes",
    "check_version",
    "create",
    "drop",
    "forget",
    "in_short_transactions",
    "latest",
    "migrations",
    "needs",
    "version",
]

T = TypeVar("T")
_LOCK_NOT_AVAILABLE = "55P03"

LOCK_TIMEOUT = 2.0
"""Seconds for which a migration waits for its lock on the table; other sessions that need the table wait meanwhile.

This is longer than the server's ``deadlock_timeout``, after which the server cancels an autovacuum that holds a
conflicting lock.
"""
ATTEMPTS = 5
"""The number of attempts of a migration to lock the table, with pauses of `LOCK_TIMEOUT` seconds between them."""


def _query(names: TableName, name: str, template: str, *, rows: bool = True, concurrently: bool = False) -> Query:
    substitutions = names.substitutions() | {"concurrently": "CONCURRENTLY" if concurrently else ""}
    if not rows:
        # DDL has no parameters, but may contain text that looks like a parameter.
        sql = template.format_map(substitutions)
        return plain(name, sql, rows=False)
    return compile_query(name, template, substitutions, "numeric_dollar")


async def version(session: Session, names: TableName) -> int | None:
    """Return the version of the table; 0 for a table that pq made, None if there is no table.

    Raises:
        AccessDenied: Row-level security hides the record of versions.
    """
    return (await _look(session, names))[0]


async def _look(session: Session, names: TableName) -> tuple[int | None, bool]:
    """Return the version of the table, and whether row-level security applies to the role."""
    table, recorded = literal(str(names)), literal(names.qualified("pqcore_migrations"))
    # This is the first query on a connection, so it also asks for the default isolation level.
    [[exists, has_record, isolation]] = await session.execute(
        plain(
            "find_table",
            f"SELECT to_regclass({table}) IS NOT NULL, to_regclass({recorded}) IS NOT NULL,"
            " current_setting('default_transaction_isolation')",
        )
    )
    session.defaults.learn(isolation)
    if not exists:
        return None, False
    if not has_record:
        return 0, False
    record, binds = names.qualified("pqcore_migrations"), security.binds(session, str(names))
    sql = f"SELECT coalesce(max(version), 0), {binds} FROM {record} WHERE table_name = "
    [[number, bound]] = await session.execute(plain("read_version", sql + literal(names.table)))
    if not number and (hidden := await security.look(session, record)) is not None:
        hidden.refuse()
    return int(number), bool(bound)


async def check_version(session: Session, names: TableName) -> security.Security | None:
    """Raise if this pqcore cannot use the table.

    Returns:
        The effect of row-level security on the table; None if there is none.

    Raises:
        AccessDenied: Row-level security hides all rows of the table, or the record of versions.
        TableMissing, SchemaOutdated, SchemaTooNew: The version of the table does not fit; see these errors.
    """
    found, bound = await _look(session, names)
    await _check(session, names, found)
    secured = await security.look(session, str(names)) if bound else None
    if secured is not None:
        secured.refuse()
    return secured


async def _check(session: Session, names: TableName, found: int | None) -> None:
    if found is None:
        msg = f"table {names} does not exist: call create() once to make it, or run pqcore create"
        raise TableMissing(msg)
    if found > latest() and await _needed(session, names) > latest():
        msg = f"table {names} has schema version {found}, and this version of pqcore knows {latest()}: upgrade pqcore"
        raise SchemaTooNew(msg)
    if found < latest():
        of = f"schema version {found}" if found else "a table of pq, or one made by hand"
        needed = f"this version of pqcore needs schema version {latest()}"
        msg = f"table {names} is {of}; {needed}: call create() to migrate it in place"
        raise SchemaOutdated(msg)


async def _needed(session: Session, names: TableName) -> int:
    """Return ``needs``: the lowest schema version that code must know to use a table that is newer than this code."""
    sql = f"SELECT max(coalesce(needs, version)) FROM {names.qualified('pqcore_migrations')} WHERE table_name = "
    [[number]] = await session.execute(
        plain("read_needs", f"{sql}{literal(names.table)} AND version > {latest()}"),
    )
    return int(number)


async def create(
    session: Session,
    names: TableName,
    sleep: Callable[[float], Awaitable[None]],
    partitions: int | None = None,
) -> int | None:
    """Make the table, or migrate it to the latest version; do nothing if it is up to date.

    If the caller has opened a transaction, all statements run in this transaction. Then the indexes of a table with
    rows are built while the table is locked.

    Args:
        session: The session.
        names: The table.
        sleep: The function that waits.
        partitions: The number of partitions of a new table; None for a table without partitions, or for an existing
            table.

    Returns:
        The version that the table had; 0 for a table that pq made, None if there was no table.

    Raises:
        ConfigurationError: The table exists, and has another number of partitions.
        NotSupported: The dialect has no partitions.
        SchemaTooNew: A newer pqcore made the table, and recorded that this version cannot use it.
        TransientError: The table was in use for too long; call this again.
    """
    if partitions is not None and (reason := session.sql.unsupported.get("partitions")):
        raise NotSupported(f"{session.sql.name} makes no table in partitions: {reason}")
    wanted = Partitions((), made=False) if partitions is None else Partitions.new(names, partitions)
    found = await version(session, names)
    if found is not None and partitions is not None:
        await _check_partitions(session, names, partitions)
    if found is not None and found >= latest():
        await _check(session, names, found)
        return found
    if session.in_transaction():
        await _apply_all(session, names, wanted)
        return found
    if not await session.direct():  # behind a pooler, a session-level lock may stay with another client's session
        await in_short_transactions(session, names, sleep, partial(_apply_all, session, names, wanted))
        return found
    # The lock is at session level, because CREATE INDEX CONCURRENTLY spans transactions. Sessions poll the lock,
    # because CREATE INDEX CONCURRENTLY would wait for a running statement that waits for the lock.
    key = literal(f"pqcore {names}")
    locking = session.sql.schema_statement("lock_migrations", key=key)
    while True:
        [[locked]] = await session.execute(locking)
        if locked is True:
            break
        await sleep(0.05)
    try:
        await _migrate(session, names, sleep, wanted)
    finally:
        if session.usable():
            await session.execute(session.sql.schema_statement("unlock_migrations", key=key))
    return found


async def _migrate(
    session: Session, names: TableName, sleep: Callable[[float], Awaitable[None]], partitions: Partitions
) -> None:
    """Make or migrate the table outside a caller's transaction; a lock makes other migrations wait."""

    async def has_rows() -> bool:
        [[found]] = await session.execute(plain("has_rows", f"SELECT EXISTS (SELECT FROM {names})"))
        return bool(found)

    async def short(work: Callable[[], Awaitable[T]]) -> T:
        return await in_short_transactions(session, names, sleep, work)

    in_use = await version(session, names) is not None and await short(has_rows)  # this check may wait for a lock
    if not in_use:
        await short(partial(_apply_all, session, names, partitions))
        return
    found = await version(session, names) or 0
    if found > latest():
        await _check(session, names, found)
    for number in range(found + 1, latest() + 1):
        if builds_indexes(number):
            await _build_indexes(session, names, number)
        else:
            await short(partial(_apply_alone, session, names, number))


async def in_short_transactions(
    session: Session,
    names: TableName,
    sleep: Callable[[float], Awaitable[None]],
    work: Callable[[], Awaitable[T]],
) -> T:
    """Call ``work`` in a transaction that waits for each lock for a limited time; after a timeout, try again.

    Between attempts, sessions that waited for this transaction's locks can continue.

    Raises:
        TransientError: No attempt could get its locks.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with _transaction(session):
                return await work()
        except TransientError as exc:
            if exc.sqlstate != _LOCK_NOT_AVAILABLE:
                raise
            if attempt == ATTEMPTS:
                msg = (
                    f"table {names} was not migrated, because other sessions hold locks on it ({ATTEMPTS} attempts of"
                    f" {LOCK_TIMEOUT:g} seconds); nothing is left locked. Call create() again when their transactions"
                    f" have ended; pqcore doctor shows long ones ({exc})"
                )
                raise TransientError(msg, exc.sqlstate) from exc
        await sleep(LOCK_TIMEOUT)
    raise AssertionError  # never reached: the last attempt has returned or raised


@asynccontextmanager
async def _transaction(session: Session) -> AsyncIterator[None]:
    """Open a transaction that waits for locks for a limited time."""
    await session.begin_own()
    try:
        timeout = f"SET LOCAL lock_timeout = '{round(LOCK_TIMEOUT * 1000)}ms'"
        await session.execute(plain("lock_timeout", timeout, rows=False))
        yield
    except BaseException:
        if session.usable():
            await session.rollback()
        raise
    await session.commit()


async def _apply_all(session: Session, names: TableName, partitions: Partitions) -> None:
    await _lock_schema(session, names)
    found = await version(session, names)
    if found is not None:
        partitions = await _partitions(session, names)
    if found is not None and found > latest():
        await _check(session, names, found)
    for number in range((found or 0) + 1, latest() + 1):
        await _apply(session, names, number, partitions)


async def _lock_schema(session: Session, names: TableName) -> None:
    """Keep other transactions from migrating a table of the schema until this transaction ends.

    If two transactions concurrently create an object IF NOT EXISTS, one fails. The lock is for the whole schema,
    because all its tables share the record of versions.
    """
    key = literal("pqcore " + names.qualified("pqcore_migrations"))
    await session.execute(session.sql.schema_statement("lock_schema", key=key))


async def _apply_alone(session: Session, names: TableName, number: int) -> None:
    await _lock_schema(session, names)
    await _apply(session, names, number, await _partitions(session, names))


async def _partitions(session: Session, names: TableName) -> Partitions:
    """Return the partitions of an existing table; without names if the table is not partitioned."""
    found = await session.execute(session.sql.schema_statement("partitions", table_name=literal(str(names))))
    return Partitions(tuple(name for (name,) in found), made=True)


async def _check_partitions(session: Session, names: TableName, wanted: int) -> None:
    number = len((await _partitions(session, names)).names)
    if number != wanted:
        msg = (
            f"table {names} exists, with {number or 'no'} partitions, not {wanted}: partitions cannot be changed later;"
            " create another table, and move the waiting jobs to it"
        )
        raise ConfigurationError(msg)


async def _apply(session: Session, names: TableName, number: int, partitions: Partitions) -> None:
    if number == 1 and names.schema is not None:
        schema = literal(names.schema)
        [[exists]] = await session.execute(
            plain("find_schema", f"SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = {schema})")
        )
        if not exists:
            quoted = names.qualified("x").rpartition(".")[0]
            await session.execute(plain("create_schema", f"CREATE SCHEMA IF NOT EXISTS {quoted}", rows=False))
    if builds_indexes(number):
        await _drop_invalid(session, names, number)
    for statement in migrations()[number - 1]:
        for each in (each for part in partitions.statements(statement) for each in session.sql.migration(part)):
            await session.execute(_query(names, f"migration {number}", each, rows=False))
    await _record(session, names, number)


async def _build_indexes(session: Session, names: TableName, number: int) -> None:
    """Build the indexes of a version without blocking users of the table."""
    await _drop_invalid(session, names, number, "CONCURRENTLY")
    alone = not (await _partitions(session, names)).names  # CREATE INDEX CONCURRENTLY refuses a partitioned table
    for statement in migrations()[number - 1]:
        await session.execute(_query(names, f"migration {number}", statement, rows=False, concurrently=alone))
    await _record(session, names, number)


async def _drop_invalid(session: Session, names: TableName, number: int, how: str = "") -> None:
    """Drop invalid indexes of an interrupted build, which IF NOT EXISTS would accept.

    Other invalid indexes than pqcore's own are not dropped, because another session may still be building them.
    """
    table = literal(str(names))
    places = names.substitutions()
    made = [re.findall(r"IF NOT EXISTS \{(\w+)\}", statement) for statement in migrations()[number - 1]]
    ours = ", ".join(literal(unquoted(places[place])) for [place] in made)
    invalid = await session.execute(
        plain(
            "invalid_indexes",
            f"SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_index AS i"
            f" JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            f" WHERE i.indrelid = to_regclass({table}) AND NOT i.indisvalid AND c.relname IN ({ours})",
        )
    )
    for [index] in invalid:
        await session.execute(plain("drop_invalid", f"DROP INDEX {how} IF EXISTS {index}", rows=False))


async def _record(session: Session, names: TableName, number: int) -> None:
    record, table, least = names.qualified("pqcore_migrations"), literal(names.table), needs(number)
    # Files of the first versions have no ``needs``; a record of versions that older code made lacks this column.
    columns, values = ("", "") if least is None else (", needs", f", {least}")
    sql = f"INSERT INTO {record} (table_name, version{columns}) VALUES ({table}, {number}{values})"
    await session.execute(_query(names, "create_record", RECORD, rows=False))
    await session.execute(plain("record", f"{sql} ON CONFLICT DO NOTHING", rows=False))


async def drop(session: Session, names: TableName) -> None:
    """Drop the table with everything that `create` made for it, including jobs; call this in a transaction."""
    places = names.substitutions()
    made = re.compile(r"CREATE TABLE IF NOT EXISTS \{(\w+)\}")
    tables = [found[1] for version in migrations() for each in version if (found := made.match(each))]
    for place in reversed(tables):
        await session.execute(plain("drop_table", f"DROP TABLE IF EXISTS {places[place]}", rows=False))
    for name, arguments in (("notify", "()"), ("ended", "()"), ("put_function", PUT_ARGUMENTS)):
        await session.execute(plain(f"drop_{name}", f"DROP FUNCTION IF EXISTS {places[name]}{arguments}", rows=False))
    await forget(session, names)


async def forget(session: Session, names: TableName) -> None:
    """Delete the record of the table's version, for a table that is gone.

    Drop the record table if no other table uses it.
    """
    record = names.qualified("pqcore_migrations")
    [[found]] = await session.execute(plain("find_record", f"SELECT to_regclass({literal(record)}) IS NOT NULL"))
    if found:
        sql = f"DELETE FROM {record} WHERE table_name = {literal(names.table)}"
        await session.execute(plain("forget", sql, rows=False))
        [[of_others]] = await session.execute(plain("record_is_used", f"SELECT EXISTS (SELECT FROM {record})"))
        if not of_others:
            await session.execute(plain("drop_record", f"DROP TABLE {record}", rows=False))
