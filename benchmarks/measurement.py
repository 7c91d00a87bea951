"""A turn: one contender runs one workload once; with the server's counters, and a check for lost jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pqcore.sql.identifiers import TableName, quote

from .backends import Contender, Location, closed
from .load_generators import ClientProcesses, ClientReport, ClientRole, Kind, run_clients
from .observer import Counters, Observer
from .operations import QUEUE
from .presets import Scale


@dataclass
class Bench:
    """The common objects of all turns.

    Attributes:
        server: A DSN for connections that are not measured.
        dsn: A DSN for measured connections.
        schema: The schema with all tables of the run.
        server_observer: Observes the server over a connection that is not measured.
        scale: The amount of measurement.
        clients: The processes of the clients.
        losses: The lost jobs, in words; this must stay empty.
        tables: The number of tables made.
    """

    server: str
    dsn: str
    schema: str
    server_observer: Observer
    scale: Scale
    clients: ClientProcesses
    losses: list[str] = field(default_factory=list)
    tables: int = 0

    def table(self, contender: Contender) -> Table:
        """Make a table, over a contender."""
        self.tables += 1
        place = Location(self.dsn, self.schema, f"t{self.tables}")

        async def create() -> None:
            pq = contender.open(place)
            try:
                if contender.blocking:
                    pq.create()
                else:
                    await pq.create()
            finally:
                await closed(contender, pq)

        contender.run(create)
        return Table(self.server_observer, place)


class Table:
    """A table of queues, as the observer sees it."""

    def __init__(self, server_observer: Observer, place: Location) -> None:
        self.server_observer = server_observer
        self.place = place
        self.name = str(TableName(place.table, place.schema))

    def fill(self, rows: int, values: str = "", columns: str = "", queue: str = f"'{QUEUE}'") -> Sequence[int]:
        """Put jobs on the server, without waking a waiter; return their ids.

        Args:
            rows: The number of jobs.
            values: The values of additional columns, in SQL; ``n`` is the number of the row, from 1.
            columns: The names of these columns.
            queue: The queue's name, in SQL.
        """
        data = '{"order": 12345, "to": "ann@example.com"}'
        more = (f", {columns}", f", {values}") if columns else ("", "")
        self.server_observer.do(f"ALTER TABLE {self.name} DISABLE TRIGGER USER")
        [[first, last, number]] = self.server_observer.sql(
            f"WITH put AS (INSERT INTO {self.name} (q_name, serializer, data, enqueued_at{more[0]})"
            f" SELECT {queue}, 'json', '{data}', clock_timestamp(){more[1]}"
            f" FROM generate_series(1, {rows}) AS n RETURNING id) SELECT min(id), max(id), count(*) FROM put"
        )
        self.server_observer.do(f"ALTER TABLE {self.name} ENABLE TRIGGER USER", f"VACUUM ANALYZE {self.name}")
        assert last - first + 1 == number == rows, "nobody else draws ids"
        return range(first, last + 1)

    def waiting(self, which: str = "") -> list[int]:
        """Return the ids of the waiting jobs."""
        rows = self.server_observer.sql(f"SELECT id FROM {self.name} WHERE dequeued_at IS NULL {which}")
        return [int(row[0]) for row in rows]

    def count(self) -> int:
        """Return the number of waiting jobs."""
        return int(self.server_observer.one(f"SELECT count(*) FROM {self.name} WHERE dequeued_at IS NULL"))

    def empty(self) -> None:
        """Remove all rows, so that the table is as new: with some pages, all of them free."""
        self.server_observer.do(
            f"TRUNCATE {self.name}",
            f"INSERT INTO {self.name} (id, q_name, serializer, payload)"
            " SELECT -n, '-', 'none', convert_to(repeat('-', 1900), 'UTF8') FROM generate_series(1, 128) AS n",
            f"DELETE FROM {self.name}",
            f"VACUUM ANALYZE {self.name}",
        )

    def forget(self, which: str) -> None:
        """Remove some rows, and the dead rows that remain of them."""
        self.server_observer.do(f"DELETE FROM {self.name} WHERE {which}", f"VACUUM ANALYZE {self.name}")

    def sizes(self) -> tuple[int, int, int]:
        """Return the bytes of the table and of its indexes, and the number of dead rows."""
        [[table, indexes, dead]] = self.server_observer.sql(
            f"SELECT pg_table_size('{self.name}'), pg_indexes_size('{self.name}'),"
            f" pg_stat_get_dead_tuples('{self.name}'::regclass)"
        )
        return int(table), int(indexes), int(dead)

    def writes(self) -> int:
        """Return the number of rows inserted, updated or deleted in the table and in the tables that belong to it."""
        if self.server_observer.flushes:
            self.server_observer.sql("SELECT pg_stat_force_next_flush()::text")
        found = self.server_observer.one(
            "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables"
            f" WHERE schemaname = '{self.place.schema}' AND relname ~ '^{self.place.table}(_|$)'"
        )
        return int(found)

    def drop(self) -> None:
        """Drop the table, with the tables that belong to it."""
        names = self.server_observer.sql(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            f" WHERE schemaname = '{self.place.schema}' AND tablename ~ '^{self.place.table}(_|$)'"
        )
        self.server_observer.do(f"DROP TABLE {', '.join(str(name) for [name] in names)}")


@dataclass(frozen=True)
class Measurement:
    """The result of a turn.

    Attributes:
        values: The values by metric.
        count: The number of operations.
        seconds: The seconds that the operations took.
        wal: The bytes of write-ahead log per operation.
        commits: The number of transactions per operation.
        dead: The number of rows updated or deleted per operation.
        left: The number of dead rows left in the table.
        lost, twice: The number of jobs that were lost, or taken twice.
        curve: The points of a curve, with their names.
        notes: Remarks for the report.
    """

    values: dict[str, float]
    count: int
    seconds: float
    wal: float = 0.0
    commits: float = 0.0
    dead: float = 0.0
    left: int = 0
    lost: int = 0
    twice: int = 0
    curve: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def observe(
    table: Table,
    work: Callable[[], Sequence[ClientReport]],
    values: Callable[[Sequence[ClientReport]], dict[str, float]] | None = None,
    *,
    filled: Iterable[int] = (),
    which: str = "",
    curve: Callable[[Sequence[ClientReport]], dict[str, list[float]]] | None = None,
) -> Measurement:
    """Run some work, read the server's counters, and check that no job was lost.

    Args:
        table: The table.
        work: The function that does the work.
        values: The results by metric; operations per second by default.
        filled: The ids of the jobs that waited before.
        which: A condition in SQL; rows that do not meet it are ignored.
        curve: The points of the curve.
    """
    server_observer = table.server_observer
    server_observer.alone()
    before = Counters.read(server_observer, table.name)
    reports = work()
    server_observer.alone()
    after = Counters.read(server_observer, table.name)
    count = sum(done.count for done in reports)
    seconds = max(done.ended for done in reports) - min(done.began for done in reports)
    lost, twice = losses(filled, reports, table.waiting(which))
    # The server also counts the operations of the warm-up.
    operations = max(count, len({*_all(reports, "put")}), len(_all(reports, "taken")), 1)
    return Measurement(
        values(reports) if values is not None else {"rate": count / seconds},
        count,
        seconds,
        wal=(after.wal - before.wal) / operations,
        commits=(after.commits - before.commits) / operations,
        dead=(after.dead - before.dead) / operations,
        left=after.left,
        lost=lost,
        twice=twice,
        curve={} if curve is None else curve(reports),
    )


def losses(filled: Iterable[int], reports: Sequence[ClientReport], left: Iterable[int]) -> tuple[int, int]:
    """Return how many jobs were lost, and how many were taken twice, or taken but left.

    Args:
        filled: The ids of the jobs that waited before.
        reports: The clients' reports of jobs put and taken.
        left: The ids of the jobs that wait now.
    """
    there = {*filled, *_all(reports, "put")}
    taken = _all(reports, "taken")
    waiting = {*left}
    gone = there - {*taken} - waiting
    return len(gone), len(taken) - len({*taken}) + len(waiting & {*taken})


def _all(reports: Sequence[ClientReport], name: str) -> list[int]:
    return [job for done in reports for job in getattr(done, name)]


def at_work(
    bench: Bench, contender: Contender, place: Location, kind: Kind, number: int, part: ClientRole, **options: Any
) -> Callable[[], list[ClientReport]]:
    """Return the description of the work of a number of clients of one kind."""
    parts = [part] * number
    if kind == "processes":
        return lambda: bench.clients.work(contender, place, parts, **options)
    return lambda: run_clients(contender, place, parts, **options)


def schema_name(suffix: str) -> str:
    """Return the name of the schema of a run."""
    return f"pqcore_bench_{suffix}"


def dropped(server_observer: Observer, schema: str) -> None:
    """Drop the schema of a run."""
    server_observer.do("SET client_min_messages = 'warning'", f"DROP SCHEMA IF EXISTS {quote(schema)} CASCADE")
