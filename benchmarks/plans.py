"""The number of pages that every statement reads, for any content of the table.

The program fills a table in many ways. It runs each statement under EXPLAIN (ANALYZE, BUFFERS) in a transaction that is
rolled back, and prints the plans. Custom plans are made for the values, and generic ones without them, as for a
prepared statement.

    python -m benchmarks.plans --markdown docs/plans.md

The program takes some minutes. It uses, and drops, its own schema in the given database.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, TypeAlias

import psycopg
from psycopg import sql

from pqcore import PQ
from pqcore.scan_position import ScanPosition
from pqcore.sql.dialect import Dialect
from pqcore.sql.fetch_statements import REACH
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Query
from pqcore_backends.embedded import EmbeddedServer

Connection: TypeAlias = "psycopg.Connection[tuple[object, ...]]"
Mode: TypeAlias = Literal["custom", "generic"]

NAMES = TableName("queue", "pqcore_plans")
TABLE, ARCHIVE = str(NAMES), NAMES.related("_archive")
DIALECT = Dialect(NAMES, "numeric_dollar")
MANY = 100
"""The number of rows of the larger takes, puts and acks."""
WHOLE = REACH + 3 * MANY + 100
"""The number of rows above which a scan or sort does not belong to a bounded set of candidates."""
TAKES = 10_000
"""The number of takes of one job each, before the dead rows that they left are counted."""
MEASURING = ("count", "stats", "clear", "purge")
"""Statements that report or remove any number of rows, and so read as many."""


# Situations


@dataclass(frozen=True)
class Fill:
    """Rows of one kind.

    Attributes:
        share: The number of rows as a fraction of ``--rows``; above 1, the number itself.
        columns: The columns that are set, in addition to the queue's name and the data.
        values: The values of these columns; ``n`` is the row's number.
        queues: The number of queues for the rows.
        table: The table of the rows.
    """

    share: float
    columns: str = "enqueued_at"
    values: str = "now() - interval '1 hour'"
    queues: int = 1
    table: str = TABLE

    def sql(self, rows: int) -> str:
        number = round(self.share * rows) if self.share <= 1 else int(self.share)
        name = "'jobs'" if self.queues == 1 else f"'jobs-' || n % {self.queues}"
        return (
            f"INSERT INTO {self.table} (q_name, data, {self.columns})"
            f" SELECT {name}, '{{}}', {self.values} FROM generate_series(1, {number}) AS n"
        )


def _finished(share: float) -> Fill:
    return Fill(share, "enqueued_at, dequeued_at, attempts", "now() - interval '1 hour', now() - interval '1 hour', 1")


def _archived(share: float) -> Fill:
    values = "-n, now() - interval '1 hour', now() - interval '1 hour', 1"
    return Fill(share, "id, enqueued_at, dequeued_at, attempts", values, table=ARCHIVE)


def _leased(share: float, until: str) -> Fill:
    return Fill(share, "leased_until, attempts", f"now() {until}, 1")


READY = Fill(1)
ONE = Fill(2)
FUTURE = Fill(1, "schedule_at", "now() + interval '1 day'")
FUTURE_EXPECTED = Fill(1, "schedule_at, expected_at", "now() + interval '1 day', now() + interval '2 days'")
URGENT = Fill(1, "enqueued_at, expected_at", "now() - interval '1 hour', now() + interval '1 hour'")
LEASED = _leased(1, "+ interval '1 day'")
EXPIRED = _leased(0.001, "- interval '1 minute'")
DUE = Fill(0.1, "schedule_at, expected_at", "now() - interval '1 minute', now() + interval '1 day'")


@dataclass(frozen=True)
class Situation:
    """A content of the table.

    Attributes:
        key: The heading of its column.
        title: The full description; ``{rows}`` is ``--rows``.
        fills: The rows, in the order in which they are put.
        queue: The queue that the statements use.
    """

    key: str
    title: str
    fills: tuple[Fill, ...]
    queue: str = "jobs"


def _depth(key: str, share: float, title: str) -> Situation:
    return Situation(key, title, (_finished(share), Fill(share), _archived(share)))


DEEP = _depth("1c", 1, "{rows} ready jobs, and as many finished and as many archived, all of equal times")
HELD = Situation("5b", "as 5a, and a thousandth of them expired", (_finished(1), LEASED, EXPIRED))
SITUATIONS = (
    _depth("1a", 200, "200 ready jobs, and as many finished and as many archived, all of equal times"),
    _depth("1b", 20_000, "as 1a, with 20,000"),
    DEEP,
    Situation("2a", "{rows} jobs scheduled for tomorrow, as many finished, and none ready", (_finished(1), FUTURE)),
    Situation("2b", "as 2a, and two ready", (_finished(1), FUTURE, ONE)),
    Situation("2c", "as 2a, but scheduled and expected", (_finished(1), FUTURE_EXPECTED)),
    Situation("2d", "as 2c, and two ready", (_finished(1), FUTURE_EXPECTED, ONE)),
    Situation("3", "{rows} ready jobs, spread over 1,000 queues", (Fill(1, queues=1000),), "jobs-7"),
    Situation("4", "{rows} jobs that are expected, as many finished", (_finished(1), URGENT)),
    Situation("5a", "{rows} leased jobs, as many finished", (_finished(1), LEASED)),
    HELD,
    Situation("5c", "as 1c, and a tenth as many scheduled, expected, and due", (_finished(1), READY, DUE)),
)


@dataclass(frozen=True)
class Start:
    """The contents of the table when a prepared statement got the plan that it keeps."""

    title: str
    fill: Fill | None
    emptied: bool = False


STARTS = (
    Start("new", None),
    Start("emptied", Fill(MANY), emptied=True),
    Start(f"{MANY} jobs", Fill(MANY)),
    Start("1,000 queues of 10 jobs", Fill(10_000, queues=1000)),
)


# Statements


@dataclass(frozen=True)
class Subject:
    """A statement with values.

    Attributes:
        name: The heading of its row.
        query: The statement.
        values: The parameters of the statement.
        before: Statements to run first in the same transaction.
    """

    name: str
    query: Query
    values: Mapping[str, object]
    before: tuple[str, ...] = ()

    @property
    def bounded(self) -> bool:
        return not self.name.startswith(MEASURING)

    def arguments(self) -> sql.Composable:
        if not self.query.order:
            return sql.SQL("")
        literals = [sql.Literal(value) for value in self.query.given(self.values)]
        return sql.SQL("({})").format(sql.SQL(", ").join(literals))


def _subjects(queue: str, ids: Sequence[int], attempts: Sequence[int]) -> Iterator[Subject]:
    """Return all statements of the dialect, those that change least first."""
    values: dict[str, object] = {
        "q_name": queue,
        "channel": queue,
        "id": ids[0],
        "token": attempts[0] + 1,
        "attempts": attempts[0],
        "enqueued_at": datetime.now(timezone.utc),
        "schedule_at": None,
        "schedule_in": 3600.0,
        "expected_at": None,
        "expected_in": 7200.0,
        "data": "{}",
        "payload": None,
        "serializer": "json",
        "lease": 3600.0,
        "delay": None,
        "age": 300.0,
        "after": 0,
        "bound": ScanPosition().value(),
    }
    several = {"items": json.dumps([{}] * MANY), "number": MANY, "fails": True}
    encoded = {"items": json.dumps(["{}"] * MANY), "number": MANY, "fails": True, "binary": False}
    lease = f"UPDATE {TABLE} SET leased_until = now() + interval '1 hour', attempts = attempts + 1 WHERE id IN ({{}})"
    removed = f"DELETE FROM {TABLE} WHERE id = {ids[0]}"
    archived = f"INSERT INTO {ARCHIVE} VALUES ({ids[0]}, 'jobs', now(), now(), NULL, NULL, '{{}}', 1)"
    before = {
        "nack": (lease.format(ids[0]),),
        "extend": (lease.format(ids[0]),),
        "restore_keep": (f"UPDATE {TABLE} SET dequeued_at = now(), leased_until = NULL WHERE id = {ids[0]}",),
        "restore_delete": (removed,),
        "restore_archive": (removed, archived),
    }
    fixed: dict[str, Query] = {}
    for value in vars(DIALECT).values():
        queries = value.values() if isinstance(value, dict) else [value]
        fixed.update({query.name: query for query in queries if isinstance(query, Query)})
    del fixed["ping"], fixed["replan"], fixed["discard_plans"]  # these statements read no table
    for name in [name for name in fixed if name.startswith("stats")]:
        yield Subject(name, fixed.pop(name), values)
    yield Subject("count", fixed.pop("count"), values)
    yield Subject("next_due_probe", fixed.pop("next_due_probe"), values)
    for n in (1, MANY):
        yield Subject(f"peek_{n}", DIALECT.peek(n), values)
    last = [Subject(name, fixed.pop(name), values) for name in [*fixed] if name.startswith(MEASURING)]
    for finish in ("keep", "delete", "archive", "lease"):
        for n in (1, MANY):
            for pick in ("ordered", "bounded", "unguarded", "merged"):
                query = DIALECT.fetch(pick, finish, n)
                yield Subject(query.name, query, values)
    for name, query in fixed.items():
        if name.startswith("ack"):
            for n in (1,) if name.startswith("ack_one") else (1, MANY):
                tokens = [number + 1 for number in attempts[:n]]
                setup = lease.format(", ".join(map(str, ids[:n])))
                yield Subject(
                    f"{name} of {n}",
                    query,
                    {**values, "id": ids[0], "token": tokens[0], "ids": [*ids[:n]], "tokens": tokens},
                    (setup,),
                )
        elif name in ("put_many", "put_many_encoded"):
            more = several if name == "put_many" else encoded
            yield Subject(f"{name} of {MANY}", query, {**values, **more})
        else:
            yield Subject(name, query, values, before.get(name, ()))
    yield from sorted(last, key=lambda subject: subject.name == "clear")


# Measuring


_SIGNS = {"S": f"Seq Scan {NAMES.table}", "B": f"Bitmap Heap Scan {NAMES.table}"}


@dataclass(frozen=True)
class Figure:
    """The cost of one run of a statement.

    Attributes:
        buffers: The number of shared pages, hit or read.
        rows: The number of returned rows.
        planning: The planning time in milliseconds.
        execution: The execution time in milliseconds.
        signs: The unbounded parts of the plan: ``S`` for a sequential scan, ``B`` for a bitmap scan, ``T`` for a sort,
            each of more than `WHOLE` rows of the queue's table.
        plan: The text of the plan.
    """

    buffers: int
    rows: float
    planning: float
    execution: float
    signs: str
    plan: str


_NODE = re.compile(
    r" *(?:-> +)?(?P<kind>[A-Z][A-Za-z ]*?)(?: using \S+)?(?: on (?P<table>\S+).*?)? +\("
    r".*?actual .*?rows=(?P<rows>[\d.]+) loops=(?P<loops>\d+)"
)
_REMOVED = re.compile(r" *Rows Removed by Filter: (\d+)")


def read_plan(lines: Sequence[str]) -> Figure:
    """Parse the text of EXPLAIN (ANALYZE, BUFFERS)."""
    signs: set[str] = set()
    buffers, returned, planned = 0, -1.0, False
    times = {"Planning Time": 0.0, "Execution Time": 0.0}
    kind = above = ""
    for line in lines:
        planned = planned or line.startswith("Planning:")
        if match := _NODE.match(line):
            above, kind = kind, f"{match['kind']} {match['table'] or ''}"
            rows = float(match["rows"]) * int(match["loops"])
            returned = rows if returned < 0 else returned
            if rows > WHOLE:
                signs |= {sign for sign, of in _SIGNS.items() if kind.endswith(of)}
                signs |= {"T"} if above.endswith("Sort ") else set()
        elif (match := _REMOVED.match(line)) and int(match[1]) > WHOLE:
            signs |= {"S"} if kind.endswith(_SIGNS["S"]) else set()
        elif "Buffers: shared" in line and not buffers and not planned:
            # A node's numbers include those of the nodes below it, so the topmost node that has numbers suffices.
            buffers = sum(map(int, re.findall(r"(?:hit|read)=(\d+)", re.split("local|temp", line)[0])))
        elif (name := line.partition(":")[0]) in times:
            times[name] = float(line.split()[2])
    planning, execution = times.values()
    return Figure(buffers, returned, planning, execution, "".join(sorted(signs)), "\n".join(lines))


def _run(connection: Connection, statement: str) -> None:
    connection.execute(statement.encode())


def _prepare(connection: Connection, subject: Subject, name: str) -> None:
    """Prepare a statement, and plan it once, so that the catalogue's pages are not counted."""
    _run(connection, f"PREPARE {name} AS {subject.query.numbered}")
    _explain(connection, subject, name, "")


def _explain(connection: Connection, subject: Subject, name: str, options: str) -> list[str]:
    command = sql.SQL(f"EXPLAIN {options} EXECUTE {name}") + subject.arguments()
    return [str(line) for (line,) in connection.execute(command)]


def _measure(connection: Connection, subject: Subject, name: str) -> Figure:
    _run(connection, "BEGIN")
    try:
        for statement in subject.before:
            _run(connection, statement)
        return read_plan(_explain(connection, subject, name, "(ANALYZE, BUFFERS)"))
    finally:
        _run(connection, "ROLLBACK")


def _create(connection: Connection) -> None:
    _run(connection, f"DROP SCHEMA IF EXISTS {NAMES.schema} CASCADE")
    PQ(connection, table=NAMES.table, schema=NAMES.schema).create()
    for table in (TABLE, ARCHIVE):
        _run(connection, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")


def _vacuum(connection: Connection, options: str = "") -> None:
    for table in (TABLE, ARCHIVE):
        _run(connection, f"VACUUM {options} {table}")


def _waiting(connection: Connection, queue: str) -> tuple[list[int], list[int]]:
    """Return the ids and attempts of some waiting jobs."""
    found = connection.execute(
        f"SELECT id, attempts FROM {TABLE} WHERE q_name = %s AND dequeued_at IS NULL ORDER BY id LIMIT {MANY}".encode(),
        [queue],
    ).fetchall()
    return [int(str(row[0])) for row in found], [int(str(row[1])) for row in found]


@dataclass
class Findings:
    """All figures.

    Attributes:
        rows: The value of ``--rows``.
        server: The version of the server.
        settled: The costs by statement, situation, whether the table was analyzed, and mode.
        kept: The costs of plans that were made at the start, by statement, start and situation.
        dead: The costs of a take of one job, by what happened before.
    """

    rows: int
    server: str
    settled: dict[tuple[str, str, bool, Mode], Figure] = field(default_factory=dict)
    kept: dict[tuple[str, str, str], Figure] = field(default_factory=dict)
    dead: dict[str, Figure] = field(default_factory=dict)
    bounded: dict[str, bool] = field(default_factory=dict)

    def report(self, heading: str, subject: Subject, figure: Figure) -> None:
        self.bounded[subject.name] = subject.bounded
        times = f"{figure.execution} ms, planned in {figure.planning} ms"
        print(
            f"\n## {heading}, {subject.name}: {figure.buffers} buffers, {figure.rows:.0f} rows, {times} {figure.signs}"
        )
        print(figure.plan, flush=True)


def _settled(connection: Connection, findings: Findings) -> None:
    """Measure every statement in every situation, with and without statistics."""
    for situation in SITUATIONS:
        _create(connection)
        for fill in situation.fills:
            _run(connection, fill.sql(findings.rows))
        jobs = _waiting(connection, situation.queue)
        for analyzed in (False, True):
            _vacuum(connection, "ANALYZE" if analyzed else "")
            for subject in _subjects(situation.queue, *jobs):
                mode: Mode
                for mode in ("custom", "generic"):
                    _run(connection, f"SET plan_cache_mode = force_{mode}_plan")
                    _prepare(connection, subject, "subject")
                    figure = _measure(connection, subject, "subject")
                    _run(connection, "DEALLOCATE subject")
                    # Rows that were rolled back do not belong to the situation.
                    _run(connection, f"VACUUM (INDEX_CLEANUP ON) {TABLE}")
                    findings.settled[subject.name, situation.key, analyzed, mode] = figure
                    state = "analyzed" if analyzed else "never analyzed"
                    findings.report(f"{situation.key}, {state}, {mode} plan", subject, figure)


def _kept(connection: Connection, other: Connection, findings: Findings) -> None:
    """Measure prepared statements that got their plan before the table was filled."""
    _run(connection, "SET plan_cache_mode = force_generic_plan")
    for start in STARTS:
        for situation in (DEEP, HELD):
            _create(connection)
            if start.fill is not None:
                _run(connection, start.fill.sql(findings.rows))
                _run(connection, f"DELETE FROM {TABLE} WHERE {start.emptied}")
                _vacuum(connection, "ANALYZE")
            some = range(1, MANY + 1)
            names: dict[str, str] = {}
            for subject in _subjects(situation.queue, some, some):
                if subject.bounded:
                    names[subject.name] = f"subject_{len(names)}"
                    _prepare(connection, subject, names[subject.name])
            for fill in situation.fills:
                _run(other, fill.sql(findings.rows))
            for subject in _subjects(situation.queue, *_waiting(other, situation.queue)):
                if subject.bounded:
                    figure = _measure(connection, subject, names[subject.name])
                    findings.kept[subject.name, start.title, situation.key] = figure
                    findings.report(f"{situation.key}, planned when the table was: {start.title}", subject, figure)
            _run(connection, "DEALLOCATE ALL")


def _dead(connection: Connection, other: Connection, findings: Findings) -> None:
    """Measure a take after many others without VACUUM, also while an older transaction is open."""
    _create(connection)
    for fill in DEEP.fills:
        _run(connection, fill.sql(max(findings.rows, 4 * TAKES)))
    _vacuum(connection, "ANALYZE")
    _run(connection, "SET plan_cache_mode = force_generic_plan")
    query = DIALECT.fetch("ordered", "keep", 1)
    subject = Subject(query.name, query, {"q_name": DEEP.queue})
    _prepare(connection, subject, "subject")

    def look(after: str) -> None:
        findings.dead[after] = figure = _measure(connection, subject, "subject")
        findings.report(after, subject, figure)

    def take() -> None:
        for _ in range(TAKES):
            _run(connection, f"EXECUTE subject ('{DEEP.queue}')")

    look("nothing")
    take()
    look(f"{TAKES:,} takes")
    look("the same, once more")
    _run(connection, f"VACUUM {TABLE}")
    look("VACUUM")
    _run(other, "BEGIN ISOLATION LEVEL REPEATABLE READ")
    _run(other, f"SELECT FROM {TABLE} LIMIT 1")
    take()
    look(f"{TAKES:,} takes during an older open transaction")
    look("the same, again")
    _run(other, "COMMIT")
    look("its end")
    look("its end, again")


# Writing


def _pages(figures: Iterable[Figure]) -> str:
    """Return the largest number of pages, marked if any plan is unbounded."""
    figures = list(figures)
    most = max(figures, key=lambda figure: figure.buffers)
    signs = "".join(sorted(set().union(*(figure.signs for figure in figures))))
    return f"{most.buffers:,}{signs and ' ' + signs}"


def _table(rows: Iterable[Sequence[str]]) -> str:
    heading, *others = rows
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _settled_table(findings: Findings) -> str:
    def cell(name: str, key: str) -> str:
        custom, generic = (_pages([findings.settled[name, key, True, mode]]) for mode in ("custom", "generic"))
        return custom if custom == generic else f"{custom} / {generic}"

    keys = [situation.key for situation in SITUATIONS]
    names = sorted(findings.bounded, key=lambda name: not findings.bounded[name])
    names = [name for name in names if (name, keys[0], True, "custom") in findings.settled]
    return _table([["", *keys], *([f"`{name}`", *(cell(name, key) for key in keys)] for name in names)])


def _most_table(findings: Findings) -> str:
    def settled(name: str, wanted: bool) -> str:
        return _pages(
            figure for (of, _, analyzed, _), figure in findings.settled.items() if (of, analyzed) == (name, wanted)
        )

    def kept(name: str, start: Start) -> str:
        return _pages(figure for (of, title, _), figure in findings.kept.items() if (of, title) == (name, start.title))

    names = [name for name, bounded in findings.bounded.items() if bounded]
    heading = ["", "analyzed", "never analyzed", *(f"planned when: {start.title}" for start in STARTS)]
    rows = (
        [f"`{name}`", settled(name, True), settled(name, False), *(kept(name, start) for start in STARTS)]
        for name in names
    )
    return _table([heading, *rows])


def _sample(findings: Findings, name: str, key: str) -> str:
    return f"### `{name}` in {key}\n\n```text\n{findings.settled[name, key, True, 'generic'].plan}\n```\n"


SAMPLES = (
    ("keep_1_ordered", "1c"),
    ("keep_1_ordered", "2c"),
    ("keep_1_ordered", "3"),
    ("keep_1_merged", "5c"),
    ("next_due_probe", "2c"),
)


def _document(findings: Findings) -> str:
    def most(*names: str) -> str:
        figures = [(key[0], figure) for key, figure in [*findings.settled.items(), *findings.kept.items()]]
        return f"{max(figure.buffers for name, figure in figures if name in names):,}"

    finishes = ("keep", "delete", "archive", "lease")
    usual = most(*(f"{finish}_1_{pick}" for finish in finishes for pick in ("ordered", "unguarded")))
    merged = most(*(f"{finish}_1_merged" for finish in finishes))
    held = most("nack", "extend", *(f"ack_{kept} of 1" for kept in finishes))
    situations = "\n".join(f"- **{each.key}**: {each.title.format(rows=f'{findings.rows:,}')}" for each in SITUATIONS)
    dead = [[after, f"{figure.buffers:,}", f"{figure.execution:.2f}"] for after, figure in findings.dead.items()]
    samples = "\n".join(_sample(findings, *sample) for sample in SAMPLES).rstrip()
    return f"""# What the statements read

This page shows how many pages each statement reads, by `EXPLAIN (ANALYZE, BUFFERS)` on {findings.server}. `make
plans` measures all statements again, on an embedded server, and writes this page. `python -m benchmarks.plans
--dsn DSN` uses another server. Both commands print all plans.

A figure is the number of pages (8 kB; shared buffers hit or read) that one run of a statement touched. Pages
say more than times: they do not depend on the machine, and a statement that reads more in a larger table is
easy to see.

The largest numbers of pages in all situations below:

- {usual} for a take of one job, and {merged} while jobs have come out of hiding (up to {REACH:,} of them are compared)
- {most("next_due_probe")} to find out why a take found no job, {most("peek_1")} for a peek
- {most("put", "put_timed")} for a put, {most("update")} for an update, {most("cancel")} for a cancel
- {held} for an ack, nack or extend

The situations:

{situations}

`keep_{MANY}_ordered` takes {MANY} jobs, in the usual order, and keeps the finished rows.
`pqcore/sql/fetch_statements.py` explains the other names. S, B and T mark a sequential scan, a bitmap scan and
a sort of more than {WHOLE:,} rows. Only the last statements of the first table may have these marks, because
they count or delete any number of rows.

## Custom and generic plans

The tables were vacuumed and analyzed. The first figure is that of the custom plan, which is made for the
values; the second is that of the generic plan, which is made without them. A single figure stands for both.

{_settled_table(findings)}

## Plans from outdated statistics

The largest number of pages in all situations: after ANALYZE; after VACUUM without statistics; and with older
generic plans. A prepared statement got such a plan while the table had another content. Then the table was
filled as in {DEEP.key} or {HELD.key}, without ANALYZE, and the statement kept its plan. *Emptied* is a table
that was used, emptied, vacuumed and analyzed.

{_most_table(findings)}

## Dead rows

The index entry of a taken row stays until VACUUM. A scan that finds the entry reads the row. If no transaction
can see the row any more, the scan marks the entry, and later scans skip it: they read only the pages of the
index. But an older transaction, anywhere in the database, prevents the mark. Then each take reads all rows that
were taken since that transaction began. Rows that were put one after the other share pages, so in this table
the time says more than the pages. Keep transactions short.

{_table([["a take of one job, after", "pages", "ms"], *dead])}

## Some plans

These are generic plans, of analyzed tables.

{samples}
"""


@contextmanager
def _server(dsn: str | None) -> Iterator[str]:
    if dsn is not None:
        yield dsn
        return
    with EmbeddedServer(settings={"fsync": "off", "max_wal_size": "4GB"}) as server:
        yield server.dsn()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dsn", help="the database (default: that of an embedded server)")
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="jobs of the large situations (default: %(default)s)"
    )
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write a page with the figures")
    options = parser.parse_args(arguments)
    with (
        _server(options.dsn) as dsn,
        # The driver must prepare nothing itself, because it would deallocate the statements prepared here.
        psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection,
        psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as other,
    ):
        for each in (connection, other):
            _run(each, "SET synchronous_commit = off")
            _run(each, "SET pqcore.notify = 'off'")
        version = connection.execute("SHOW server_version").fetchone() or ("",)
        findings = Findings(options.rows, f"PostgreSQL {str(version[0]).split()[0]}")
        try:
            _settled(connection, findings)
            _kept(connection, other, findings)
            _dead(connection, other, findings)
        finally:
            _run(connection, f"DROP SCHEMA IF EXISTS {NAMES.schema} CASCADE")
    unbounded = sorted(
        {key[0] for key, figure in findings.settled.items() if figure.signs and findings.bounded[key[0]]}
        | {key[0] for key, figure in findings.kept.items() if figure.signs}
    )
    if options.markdown is not None:
        options.markdown.write_text(_document(findings), "utf-8")
    if unbounded:
        sys.exit(f"not bounded: {', '.join(unbounded)}")


if __name__ == "__main__":
    main()
