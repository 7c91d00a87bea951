"""Databases for users' tests: each test gets its own database within milliseconds.

After a test, its database is usually restored, which is faster than making a new one: rows that the test put into
tables are deleted, and sequences are reset. Another test gets the database only if nothing else changed: no foreign
connection is left, and the original rows are the same. The catalogue must also show that no table, column, index,
trigger, function, type or schema was made, changed or dropped. Otherwise the database is dropped, and the next test
gets a new copy of the template.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

from pqcore.db.asyncio_runtime import AsyncioRuntime
from pqcore.db.blocking_runtime import BlockingRuntime
from pqcore.db.dsn import with_database, with_options
from pqcore.db.engine import Engine
from pqcore.db.runtime import run_sync
from pqcore.errors import AccessDenied, BackendNotInstalled, ConfigurationError, PQError, UnknownBackend
from pqcore.operations import admin
from pqcore.sql.identifiers import TableName, quote
from pqcore.sql.statement import plain

if TYPE_CHECKING:
    from typing_extensions import Self

    from pqcore.backend import Row
    from pqcore.db.session import Session

logger = logging.getLogger("pqcore")

T = TypeVar("T")

OURS = "pqcore_test_own"
"""The application name of connections that end with their test."""
LARGEST = 32 * 2**20
"""The largest size of the tables, in bytes. A database with larger tables is dropped and copied again, not emptied."""
MOST_KEPT = 4 * 2**20
"""The largest size of the original rows, in bytes. A database with more is dropped, too, because the rows would have to
be compared after each test."""

_ALONE = f"""
SELECT coalesce(bool_and(application_name = '{OURS}'), true), count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
_CATALOGUES = (
    *("pg_class", "pg_attribute", "pg_attrdef", "pg_index", "pg_constraint", "pg_trigger", "pg_proc", "pg_type"),
    *("pg_namespace", "pg_extension", "pg_rewrite", "pg_policy", "pg_largeobject_metadata", "pg_db_role_setting"),
)
# VACUUM and ANALYZE change the catalogue's rows in place, so each row keeps the transaction id of its last real change.
_SHAPE = "concat_ws(' ', {})".format(
    ", ".join(f"(SELECT concat(count(*), ':', max(xmin::text::bigint)) FROM {name})" for name in _CATALOGUES)
)
_TABLES = """
SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY 1"""
_SEQUENCES = """
SELECT quote_literal(format('%I.%I', schemaname, sequencename)),
  coalesce(last_value, start_value), last_value IS NOT NULL
FROM pg_sequences"""
# Because of foreign keys, deleting the rows may need several rounds. Sequences are reset last, because they are not
# transactional.
_EMPTY = """
DO $do$ DECLARE
  name text;
  filled boolean;
  again boolean;
BEGIN
  FOR round IN 1..20 LOOP
    again := false;
    FOREACH name IN ARRAY {tables}::text[] LOOP
      EXECUTE format('SELECT EXISTS (SELECT FROM %s)', name) INTO filled;
      IF filled THEN
        again := true;
        BEGIN
          EXECUTE format('DELETE FROM %s', name);
        EXCEPTION WHEN foreign_key_violation THEN NULL;
        END;
      END IF;
    END LOOP;
    EXIT WHEN NOT again;
  END LOOP;
  IF again THEN RAISE EXCEPTION 'rows are left'; END IF;
  {sequences}
END $do$"""


class Connection:
    """A blocking connection, over any installed backend.

    Args:
        dsn: The DSN of the database.
        names: The table whose statements the connection can run.
    """

    def __init__(self, dsn: str, names: TableName) -> None:
        self._portal: Any = None
        try:
            self.engine = Engine("blocking", BlockingRuntime(), names, dsn, None, max_connections=1)
        except (BackendNotInstalled, UnknownBackend):  # only asyncpg is installed or chosen
            from pqcore.testing.portal import Portal

            self._portal = Portal()
            self.engine = self._portal.call(lambda: _made(dsn, names))

    def call(self, operation: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run an operation of the core; this method adds the first argument, the engine."""
        if self._portal is None:
            return run_sync(operation(self.engine, *arguments))  # type: ignore[arg-type]
        result: T = self._portal.call(lambda: operation(self.engine, *arguments))
        return result

    def run(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Call a function with a session, even if the table does not exist."""

        async def operation(engine: Engine) -> T:
            return await engine.migrate(work)

        return self.call(operation)

    def sql(self, text: str, *, rows: bool = True) -> Sequence[Row]:
        """Run a statement, and return its rows."""
        query = plain("test", text, rows=rows)
        return self.run(lambda session: session.execute(query))

    def close(self) -> None:
        """Close the connection."""

        async def close(engine: Engine) -> None:
            await engine.close()

        self.call(close)
        if self._portal is not None:
            self._portal.close()


async def _made(dsn: str, names: TableName) -> Engine:
    return Engine("async", AsyncioRuntime(), names, dsn, None, max_connections=1)


@cache
def prepared() -> bool:
    """Return whether the tested code may prepare statements and LISTEN: not over a pooler that shares connections.

    ``PQCORE_TEST_PREPARED`` may be ``yes`` or ``no``; otherwise this function checks whether ``PQCORE_TEST_DSN`` leads
    to a pooler.
    """
    said = os.environ.get("PQCORE_TEST_PREPARED", "")
    if said not in ("", "yes", "no"):
        msg = f"PQCORE_TEST_PREPARED is {said!r}; give yes or no"
        raise ConfigurationError(msg)
    dsn = os.environ.get("PQCORE_TEST_DSN", "")
    if said or "://" not in dsn:
        return said != "no"
    try:
        connection = Connection(dsn, TableName("queue"))
        try:
            connection.sql("SELECT 1")
            return not connection.engine._opener(connection.engine.spec).alternates
        finally:
            connection.close()
    except PQError:  # the first test reports the error
        return True


class Snapshot:
    """The state that a database must have when a test gets it.

    Args:
        connection: A connection to the database.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sequences: dict[str, str] = {}
        self._empty: list[str] = []
        self._kept: list[str] = []
        self._hashes: list[str] = []
        tables = self._tables()
        if tables:
            filled = [f"SELECT {_literal(name)} WHERE EXISTS (SELECT FROM {name})" for name in tables]
            self._kept = sorted(str(name) for (name,) in connection.sql(" UNION ALL ".join(filled)))
            self._empty = [name for name in tables if name not in self._kept]
        [[kept]] = connection.sql(f"SELECT {_sizes(self._kept)}")
        self.good = kept <= MOST_KEPT
        self._look()

    def untouched(self) -> bool:
        """Return whether no object was made, changed or dropped."""
        return self.good and self._now()[0] == self._shape

    def grow(self) -> None:
        """Add a new table of pqcore, which has no rows, to the snapshot."""
        for name in self._tables():
            if name not in self._kept and name not in self._empty:
                (self._kept if name.rstrip('"').endswith("pqcore_migrations") else self._empty).append(name)
        self._look()

    def restore(self) -> bool:
        """Delete what was put, and reset sequences; return whether the database is in its original state."""
        if not self.good:
            return False
        sequences = "".join(f"PERFORM {change};" for change in self._sequences.values())
        tables = ", ".join(map(_literal, self._empty))
        self._connection.sql(_EMPTY.format(tables=f"ARRAY[{tables}]", sequences=sequences), rows=False)
        shape, hashes, size = self._now()
        return (shape, hashes) == (self._shape, self._hashes) and size <= LARGEST

    def _look(self) -> None:
        self._shape, self._hashes, _ = self._now()
        for name, value, called in self._connection.sql(_SEQUENCES):
            self._sequences.setdefault(str(name), f"setval({name}, {value}, {str(called).lower()})")

    def _now(self) -> tuple[str, list[str], int]:
        hashes = [
            f"(SELECT md5(string_agg(kept::text, ' ' ORDER BY kept::text)) FROM {name} AS kept)" for name in self._kept
        ]
        [[shape, found, size]] = self._connection.sql(
            f"SELECT {_SHAPE}, ARRAY[{', '.join(hashes)}]::text[], {_sizes(self._empty)}"
        )
        return str(shape), list(found), int(size)

    def _tables(self) -> list[str]:
        return [str(name) for (name,) in self._connection.sql(_TABLES)]


def _sizes(tables: Sequence[str]) -> str:
    return " + ".join(["0::bigint", *(f"pg_relation_size({_literal(name)})" for name in tables)])


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@dataclass(eq=False)
class Database:
    """A database for the use of one test.

    Attributes:
        name: The name of the database.
        dsn: The DSN of the database.
        connection: A connection to the database.
        tables: The quoted names of the queues' tables in the database.
        snapshot: The original state of the database.
    """

    name: str
    dsn: str
    connection: Connection
    tables: set[str]
    snapshot: Snapshot


class Databases:
    """The databases of one run of tests, on one server.

    Args:
        server: A DSN, as a URL, of a role that may create databases.
        prepare: A function that makes more tables in the template; it is called once, with the template's DSN.
    """

    def __init__(self, server: str, prepare: Callable[[str], object] | None = None) -> None:
        self._server = server
        self._prepare = prepare
        self._pid = os.getpid()  # a forked child leaves everything here to its parent.
        # The mark of this run differs from the marks of other runs, which may use the same server concurrently.
        self.mark = f"pqcore_test_{os.getpid()}_{token_hex(4)}"
        self._admin = Connection(with_options(server, application_name=self.mark), TableName("queue"))
        self._numbers = count(1)
        self._template = f"{self.mark}_0"
        self._wanted = {str(name): name for name in [TableName("queue")]}
        self._has: set[str] | None = None
        self._strategy = ""
        self._free: list[Database] = []
        self._lent: list[Database] = []
        self._doomed: list[str] = []
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def lend(self) -> Database:
        """Return a database with an empty table ``queue``, to be given back later."""
        with self._lock:
            database = self._free.pop() if self._free else self._copy()
            self._lent.append(database)
            return database

    def give_back(self, database: Database) -> None:
        """Restore or drop a database that a test returns; a forked child leaves this to its parent."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._lent.remove(database)
            try:
                good = self._as_it_was(database)
            except PQError as exc:
                logger.debug("database %s cannot be restored for another test: %s", database.name, exc)
                good = False
            if good:
                self._free.append(database)
            else:
                self._discard(database)

    def make(self, database: Database, names: TableName) -> None:
        """Make the table of a queue in a database, and in databases that are made later."""
        with self._lock:
            if str(names) in database.tables:
                return
            self._wanted.setdefault(str(names), names)
            untouched = database.snapshot.untouched()
            _create(database.dsn, names)
            database.tables.add(str(names))
            if untouched:
                database.snapshot.grow()

    def close(self) -> None:
        """Drop everything that was made; a forked child drops nothing."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            for database in (*self._free, *self._lent):
                self._discard(database)
            self._free, self._lent = [], []
            self._drop_doomed()
            if self._has is not None:
                self._drop(self._template)
            self._admin.close()

    # Internal methods

    def _as_it_was(self, database: Database) -> bool:
        [[alone, _]] = database.connection.sql(_ALONE)
        return bool(alone) and database.snapshot.restore()

    def _copy(self) -> Database:
        self._bring_up_template()
        name = f"{self.mark}_{next(self._numbers)}"
        self._admin.sql(f"CREATE DATABASE {quote(name)} TEMPLATE {quote(self._template)}{self._strategy}", rows=False)
        dsn = with_database(self._server, name)
        connection = Connection(with_options(dsn, application_name=OURS), TableName("queue"))
        return Database(name, dsn, connection, set(self._has or ()), Snapshot(connection))

    def _bring_up_template(self) -> None:
        """Make the template, with all tables that were asked for."""
        dsn = with_database(self._server, self._template)
        if self._has is None:
            self._sweep()
            [[version, fsync]] = self._admin.sql(
                "SELECT current_setting('server_version_num')::int, current_setting('fsync')"
            )
            # Copying files is the faster way, but needs checkpoints, which are slow on a server with fsync.
            self._strategy = " STRATEGY FILE_COPY" if version >= 150000 and fsync == "off" else ""
            try:
                self._admin.sql(f"CREATE DATABASE {quote(self._template)}", rows=False)
            except AccessDenied as exc:
                msg = "the role that the tests use may not create databases: ALTER ROLE ... CREATEDB"
                raise ConfigurationError(msg) from exc
            self._has = set()
            if self._prepare is not None:
                self._prepare(dsn)
        missing = [names for key, names in self._wanted.items() if key not in self._has]
        if not missing:
            return
        for names in missing:
            _create(dsn, names)
            self._has.add(str(names))
        # Connections that `prepare` left open would block each copy.
        self._admin.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._template}'")

    def _sweep(self) -> None:
        """Drop the databases of killed test runs: no session has the mark of such a run as its application name."""
        left = self._admin.sql(
            r"SELECT d.datname FROM pg_database AS d WHERE d.datname ~ '^pqcore_test_\d+_[0-9a-f]{8}_\d+$'"
            r" AND NOT EXISTS (SELECT FROM pg_stat_activity"
            r" WHERE application_name = regexp_replace(d.datname, '_\d+$', ''))"
        )
        for [name] in left:
            self._drop(str(name))

    def _discard(self, database: Database) -> None:
        # Sessions take a moment to end, and DROP DATABASE waits a tenth of a second if it finds a session. So databases
        # are dropped later.
        self._drop_doomed()
        try:
            database.connection.close()
        except PQError as exc:
            logger.debug("cannot close the connection to %s: %s", database.name, exc)
        self._doomed.append(database.name)

    def _drop_doomed(self) -> None:
        doomed, self._doomed = self._doomed, []
        for name in doomed:
            self._drop(name)

    def _drop(self, name: str) -> None:
        try:
            self._admin.sql(f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)", rows=False)
        except PQError as exc:
            logger.warning("the tests' database %s cannot be dropped: %s", name, exc)


def _create(dsn: str, names: TableName) -> None:
    connection = Connection(with_options(dsn, application_name=OURS), names)
    try:
        # The table gets no expiry times: restoring the database between tests would delete them, and a test that
        # moves the time expects that no row expires.
        connection.call(partial(admin.create, keep_finished=None, keep_dead=None))
    finally:
        connection.close()
