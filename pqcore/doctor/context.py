"""What each check of ``pqcore doctor`` receives: the table to examine, and a session to the database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.doctor.findings import Finding
from pqcore.operations.activity import STORED
from pqcore.operations.schema_info import ask

# For a partitioned table, the query adds up the figures of the partitions. The query returns the storage options of the
# partition that has the fewest options.
_FIGURES = f"""
WITH stored AS (
  SELECT c.oid, c.reloptions, c.relpages FROM pg_class AS c WHERE c.oid IN {STORED}
)
SELECT current_setting('autovacuum'), current_setting('track_counts'),
  (SELECT reloptions FROM stored ORDER BY coalesce(cardinality(reloptions), 0) LIMIT 1),
  sum(s.n_live_tup)::bigint, sum(s.n_dead_tup)::bigint, sum(s.n_mod_since_analyze)::bigint,
  extract(epoch FROM clock_timestamp() - max(greatest(s.last_vacuum, s.last_autovacuum)))::float8,
  extract(epoch FROM clock_timestamp() - max(greatest(s.last_analyze, s.last_autoanalyze)))::float8,
  sum(s.vacuum_count + s.autovacuum_count)::bigint,
  sum(pg_relation_size(c.oid))::bigint, sum(pg_table_size(c.oid))::bigint, sum(pg_indexes_size(c.oid))::bigint,
  sum(c.relpages)::bigint
FROM stored AS c LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid"""


class TableRow(NamedTuple):
    """A row of the statement that describes the table; for a partitioned table, the figures of all partitions together.

    Attributes:
        autovacuum: The server's setting ``autovacuum``.
        track_counts: The server's setting ``track_counts``.
        options: The storage options of the table, each as ``name=value``.
        live: The number of live rows, by the server's statistics.
        dead: The number of dead rows.
        changed: The number of rows that changed since the last ANALYZE.
        vacuumed: Seconds since the last VACUUM; None if there was none.
        analyzed: Seconds since the last ANALYZE; None if there was none.
        vacuums: The number of times the table was vacuumed.
        main_size: The size of the table itself, in bytes.
        table_size: The size of the table with its out-of-line values (TOAST), in bytes.
        index_size: The size of the indexes, in bytes.
        pages: The number of pages that the planner assumes.
    """

    autovacuum: str
    track_counts: str
    options: list[str] | None
    live: int | None
    dead: int | None
    changed: int | None
    vacuumed: float | None
    analyzed: float | None
    vacuums: int | None
    main_size: int
    table_size: int
    index_size: int
    pages: int


@dataclass
class CheckContext:
    """What each check receives: the table to examine, and a session to the database.

    Attributes:
        engine: The engine.
        s: A session without an open transaction.
        queues: The queues whose takes are explained; empty for those with the most jobs.
        read_only: Whether no notification may be sent.
    """

    engine: Engine
    s: Session
    queues: Sequence[str]
    read_only: bool = False
    _table: TableRow | None = None

    async def table(self) -> TableRow:
        """Return the description of the table; only the first call reads it from the database."""
        if self._table is None:
            [row] = await self.ask("table", _FIGURES)
            self._table = TableRow._make(row)
        return self._table

    async def ask(self, name: str, template: str, **values: object) -> Sequence[Row]:
        """Insert the tables' names into a statement that only reads, and run the statement; see `schema_info.ask`."""
        return await ask(self.engine, self.s, name, template, **values)

    def bare(self, name: str) -> str:
        """Return an identifier as PostgreSQL's catalogues store it: without quotes and without the schema."""
        quoted = self.engine.names.substitutions()[name]
        prefix = "" if self.engine.names.schema is None else self.engine.names.qualified("x")[: -len('"x"')]
        return quoted.removeprefix(prefix)[1:-1].replace('""', '"')


Check: TypeAlias = Callable[[CheckContext], Awaitable[Sequence[Finding]]]
"""A check, which returns its findings."""
