"""A turn: one contender at one workload, once; with what the server counted, and whether a job was lost."""

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
    """What turns have in common.

    Attributes:
        server: A DSN, for connections that are not measured.
        dsn: The same, for those.
        schema: Holds all tables of the run.
        server_observer: Observes the server over a connection that is not measured.
        scale: How much is measured.
        clients: The processes of the clients.
        losses: What was lost, said for people; must stay empty.
        tables: How many tables were made.
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
    """A table of queues, seen by the observer."""

    def __init__(self, server_observer: Observer, place: Location) -> None:
        self.server_observer = server_observer
        self.place = place
        self.name = str(TableName(place.table, place.schema))

    def fill(self, rows: int, values: str = "", columns: str = "", queue: str = f"'{QUEUE}'") -> Sequence[int]:
        """Put jobs, in the server, without waking anybody; their ids.

        Args:
            rows: How many.
            values: Of further columns, in SQL; ``n`` is the number of the row, from 1.
            columns: Which.
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
        """The ids of the jobs that wait."""
        rows = self.server_observer.sql(f"SELECT id FROM {self.name} WHERE dequeued_at IS NULL {which}")
        return [int(row[0]) for row in rows]

    def count(self) -> int:
        """How many jobs wait."""
        return int(self.server_observer.one(f"SELECT count(*) FROM {self.name} WHERE dequeued_at IS NULL"))

    def empty(self) -> None:
        """Remove all rows, so that it is as when it was made: of some pages, all of them free."""
        self.server_observer.do(
            f"TRUNCATE {self.name}",
            f"INSERT INTO {self.name} (id, q_name, serializer, payload)"
            " SELECT -n, '-', 'none', convert_to(repeat('-', 1900), 'UTF8') FROM generate_series(1, 128) AS n",
            f"DELETE FROM {self.name}",
            f"VACUUM ANALYZE {self.name}",
        )

    def forget(self, which: str) -> None:
        """Remove some rows, and what is left of them."""
        self.server_observer.do(f"DELETE FROM {self.name} WHERE {which}", f"VACUUM ANALYZE {self.name}")

    def sizes(self) -> tuple[int, int, int]:
        """Bytes of the table, of its indexes, and dead rows."""
        [[table, indexes, dead]] = self.server_observer.sql(
            f"SELECT pg_table_size('{self.name}'), pg_indexes_size('{self.name}'),"
            f" pg_stat_get_dead_tuples('{self.name}'::regclass)"
        )
        return int(table), int(indexes), int(dead)

    def writes(self) -> int:
        """Rows that were inserted, updated or deleted in it, and in the tables that belong to it."""
        if self.server_observer.flushes:
            self.server_observer.sql("SELECT pg_stat_force_next_flush()")
        found = self.server_observer.one(
            "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables"
            f" WHERE schemaname = '{self.place.schema}' AND relname ~ '^{self.place.table}(_|$)'"
        )
        return int(found)

    def drop(self) -> None:
        """Drop it, with the tables that belong to it."""
        names = self.server_observer.sql(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            f" WHERE schemaname = '{self.place.schema}' AND tablename ~ '^{self.place.table}(_|$)'"
        )
        self.server_observer.do(f"DROP TABLE {', '.join(str(name) for [name] in names)}")


@dataclass(frozen=True)
class Measurement:
    """What came of a turn.

    Attributes:
        values: By metric.
        count: Operations.
        seconds: How long they took.
        wal: Bytes of write-ahead log an operation.
        commits: Transactions an operation.
        dead: Rows that were updated or deleted, an operation.
        left: Dead rows left in the table.
        lost, twice: Jobs.
        curve: Points, with what they are called.
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
    """Have work done, and see what the server counted, and that no job was lost.

    Args:
        table: Where.
        work: Does it.
        values: What came of it, by metric; operations a second, if not given.
        filled: Ids of the jobs that waited before.
        which: A condition in SQL; rows that do not meet it are left out.
        curve: Points of it.
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
    # What warms up counts too in the server.
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
    """How many jobs were lost, and how many were taken twice, or taken and left.

    Args:
        filled: Ids of the jobs that waited before.
        reports: What was put and taken.
        left: Ids of the jobs that wait now.
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
    """The same done by a number of one kind."""
    parts = [part] * number
    if kind == "processes":
        return lambda: bench.clients.work(contender, place, parts, **options)
    return lambda: run_clients(contender, place, parts, **options)


def schema_name(suffix: str) -> str:
    """The schema of a run."""
    return f"pqcore_bench_{suffix}"


def dropped(server_observer: Observer, schema: str) -> None:
    """Drop the schema of a run."""
    server_observer.do("SET client_min_messages = 'warning'", f"DROP SCHEMA IF EXISTS {quote(schema)} CASCADE")
