"""The state of a table according to the server's catalogues, and the statements that would create or migrate it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pqcore import schema
from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import SchemaError, SchemaOutdated, TableMissing
from pqcore.schema import sequences
from pqcore.sql.statement import Query, compile_query, plain

PQ_COLUMNS = {
    "id": "bigint",
    "enqueued_at": "timestamp with time zone",
    "dequeued_at": "timestamp with time zone",
    "expected_at": "timestamp with time zone",
    "schedule_at": "timestamp with time zone",
    "q_name": "text",
    "data": "json",
}
"""The columns of a table of pq 1.9.1."""
ADMISSION = 8
"""The first schema version in which leases count the jobs under limits in the table of keys."""
COUNTED = 100_000
"""The largest number of rows of a table that are counted; for a larger table, only "more" is reported."""


async def ask(engine: Engine, s: Session, name: str, template: str, **values: object) -> Sequence[Row]:
    """Run a statement that only reads; ``:table_name`` stands for the table's quoted name."""
    query = compile_query(name, template, engine.names.substitutions(), engine.spec.paramstyle)
    return await s.execute(query, query.bind({"table_name": str(engine.names), **values}))


async def version(engine: Engine) -> int | None:
    """Return the schema version of the table; 0 for a table that pq made, None if there is no table."""
    return await engine.migrate(lambda s: schema.version(s, engine.names))


async def is_current(engine: Engine) -> bool:
    """Return whether this pqcore can use the table without a migration.

    Raises:
        SchemaTooNew: A newer pqcore made the table, and recorded that this version cannot use it.
    """
    try:
        await engine.migrate(lambda s: schema.check_version(s, engine.names))
    except (TableMissing, SchemaOutdated):
        return False
    return True


async def needs_workers_stopped(engine: Engine) -> bool:
    """Return whether workers of older versions must be stopped after the migration, because the table has jobs.

    Call this function before the migration. Workers of older versions and of this version do not count each other's
    jobs under limits.
    """

    async def work(s: Session) -> bool:
        found = await schema.version(s, engine.names)
        if not found or found >= ADMISSION:
            return False
        [[has_jobs]] = await ask(engine, s, "has_jobs", "SELECT EXISTS (SELECT FROM {table} WHERE dequeued_at IS NULL)")
        return bool(has_jobs)

    return await engine.migrate(work)


@dataclass(frozen=True)
class PQTable:
    """The properties of a table that pqcore did not make.

    Attributes:
        rows: The number of rows, up to `COUNTED`.
        unfinished: The number of unfinished rows among them.
        queues: The number of queues among them.
        more: Whether the table has more than `COUNTED` rows.
        trigger: Whether the table has pq's own trigger, which notifies waiters for each row.
        indexes: The names of the table's indexes.
    """

    rows: int
    unfinished: int
    queues: int
    more: bool
    trigger: bool
    indexes: tuple[str, ...]


async def read_pq_table(engine: Engine) -> PQTable:
    """Look at a table that pqcore did not make, before `create` adopts it.

    Raises:
        TableMissing: The table does not exist.
        SchemaError: The table was not made by pq; nothing was changed.
    """

    async def work(s: Session) -> PQTable:
        if await schema.version(s, engine.names) is None:
            raise TableMissing(f"table {engine.names} does not exist: there is nothing to adopt")
        columns = {
            str(column): str(kind)
            for column, kind in await ask(
                engine,
                s,
                "columns",
                "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute"
                " WHERE attrelid = to_regclass(:table_name::text) AND attnum > 0 AND NOT attisdropped",
            )
        }
        wrong = [
            f"{name} is {columns.get(name, 'missing')}"
            for name, kind in PQ_COLUMNS.items()
            if columns.get(name) != kind
        ]
        if wrong:
            raise SchemaError(f"table {engine.names} is not a table of pq ({', '.join(wrong)}): nothing was changed")
        [[rows, unfinished, queues]] = await ask(
            engine,
            s,
            "head",
            "SELECT count(*), count(*) FILTER (WHERE dequeued_at IS NULL), count(DISTINCT q_name)"
            f" FROM (SELECT dequeued_at, q_name FROM {{table}} LIMIT {COUNTED + 1}) AS head",
        )
        trigger = await ask(
            engine,
            s,
            "pqs_trigger",
            "SELECT tgname::text FROM pg_trigger"
            " WHERE tgrelid = to_regclass(:table_name::text) AND tgname = 'pq_insert'",
        )
        indexes = await ask(
            engine,
            s,
            "indexes",
            "SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = to_regclass(:table_name::text) ORDER BY 1",
        )
        return PQTable(
            min(int(rows), COUNTED),
            int(unfinished),
            int(queues),
            int(rows) > COUNTED,
            bool(trigger),
            tuple(name for (name,) in indexes),
        )

    return await engine.migrate(work)


class _Recorder:
    """A session that runs statements that only read, and records all other statements instead of running them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.sql = session.sql
        self.defaults = session.defaults
        self.statements: list[str] = []

    async def execute(self, query: Query, parameters: Sequence[object] = ()) -> Any:
        if query.name in ("lock_migrations", "unlock_migrations", "lock_schema"):
            return [[True]]
        if query.rows:
            return await self._session.execute(query, parameters)
        self.statements.append(query.numbered)
        return ()

    async def begin_own(self) -> None:
        self.statements.append("BEGIN")

    async def commit(self) -> None:
        if self.statements[-2:-1] == ["BEGIN"] and self.statements[-1].startswith("SET LOCAL"):
            del self.statements[-2:]  # the transaction only read, and reads are not recorded
        else:
            self.statements.append("COMMIT")

    async def rollback(self) -> None:
        """Do nothing: a statement failed, so the recorded statements are not used."""

    def in_transaction(self) -> bool:
        return False

    async def direct(self) -> bool:
        return True  # psql, which runs the recorded statements, is assumed to connect without a pooler

    def usable(self) -> bool:
        return self._session.usable()


async def script(
    engine: Engine, *, missing: bool = True, partitions: int | None = None, set_sequences: bool = False
) -> list[str]:
    """Return the statements that `PQ.create` would run on the table in its present state; run none of them.

    The operation queries the server in a read-only transaction, and rolls it back.

    Args:
        engine: The engine.
        missing: Whether the table may be missing.
        partitions: The number of partitions; see `PQ.create`.
        set_sequences: Whether to set sequences; see `PQ.create`.

    Raises:
        TableMissing: The table is missing, and ``missing`` is false.
        SchemaTooNew: A newer pqcore made the table.
    """

    async def work(s: Session) -> list[str]:
        await s.begin_own()
        try:
            await s.execute(plain("read_only", "SET TRANSACTION READ ONLY", rows=False))
            behind = await sequences.look(s, engine.names) if set_sequences else []
            remedies = [one.remedy for one in behind if one.behind]
            try:
                await schema.check_version(s, engine.names)
            except TableMissing:
                if not missing:
                    raise
            except SchemaOutdated:
                pass
            else:
                return remedies
            recorder = _Recorder(s)
            await schema.create(cast("Session", recorder), engine.names, engine.runtime.sleep, partitions)
            return recorder.statements + remedies
        finally:
            await s.rollback()

    return await engine.migrate(work)
