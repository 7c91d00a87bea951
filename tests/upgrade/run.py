"""The two upgrades: from an older build of pqcore, and from pq 1.9.1; each goes to this build, and back."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pqcore.db.dsn import with_database

from . import tables
from .processes import Build, Client, Crew
from .verdict import Event, Phase, Waits, losses, waits

THIS = Build("this build")
EXPECTED = re.compile("the row of job [0-9]+ is locked by another transaction")
"""A warning of workers, which then store the outcome again: the admission of older builds locks rows."""
DRAIN = 60.0
"""Seconds that the jobs of the run may take until they are finished, after the last put."""


@dataclass
class Report:
    """The result of an upgrade.

    Attributes:
        title: From where it went.
        waits: The longest waits, by phase.
        wrong: What was lost, and what failed; empty if nothing.
        steps: The lengths of the steps, such as the migration, in seconds.
        again: The number of jobs that ran more than once.
        locked: How often a worker had to store an outcome again, because another one had locked the job's row.
        facts: The size of the table, and the server's version.
    """

    title: str
    waits: list[Waits] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    steps: dict[str, float] = field(default_factory=dict)
    again: int = 0
    locked: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class Upgrade:
    """One upgrade.

    Args:
        title: The title of its report.
        server: The DSN of the server, as a superuser.
        folder: An empty folder for logs.
        rows: The number of rows that the table begins with.
        seconds: The length of each phase.
        most: The number of seconds that no program may wait.
        tell: Called with the progress.
    """

    DATABASE = "upgrade"

    def __init__(
        self,
        title: str,
        server: str,
        folder: Path,
        rows: int,
        seconds: float,
        most: float,
        tell: Callable[[str], object],
    ) -> None:
        self.report = Report(title)
        self._server = server
        database = with_database(server, self.DATABASE)
        self.owner, self.shop, self.mailer = (as_user(database, name) for name in ("owner", "shop", "mailer"))
        self.crew = Crew(folder)
        self.rows, self.seconds, self._most, self.tell = rows, seconds, most, tell
        self._phases: list[Phase] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step that waits for nobody."""
        self.tell(name)
        began = time.monotonic()
        yield
        self.report.steps[name] = round(time.monotonic() - began, 1)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the waits during a block, and for some seconds after it."""
        self.tell(name)
        began = time.time()
        yield
        time.sleep(self.seconds)
        self._phases.append(Phase(name, began, time.time()))

    def start(self, build: Build, *jobs: tuple[str, str, str]) -> list[Client]:
        """Start processes, and wait until they have begun.

        Args:
            build: The build that they run.
            *jobs: What each does, its queue, and its backend.
        """
        started = [
            self.crew.start(build, self.shop if job.startswith(("put", "call")) else self.mailer, job, queue, backend)
            for job, queue, backend in jobs
        ]
        self.crew.wait_begun(started)
        return started

    def wait_until_drained(self, *queues: str) -> None:
        """Wait until all jobs of the run in some queues are finished."""
        deadline = time.monotonic() + DRAIN
        while (left := tables.unfinished(self.owner, self.rows, queues)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            self.report.wrong.append(f"{left} jobs are not finished {DRAIN:g} seconds after the last put")

    def run(self, script: Callable[[Upgrade], None], *, of_pq: bool) -> Report:
        """Run the steps of a script; return the report."""
        tables.make_logins(self._server, self.DATABASE)
        try:
            script(self)
            self._judge(of_pq=of_pq)
        finally:
            self.crew.kill()
            tables.drop_logins(self._server, self.DATABASE)
        return self.report

    def _judge(self, *, of_pq: bool) -> None:
        self.tell("the logs are compared with the table")
        events: list[Event] = [event for client in self.crew.everybody for event in client.events()]
        report = self.report
        report.waits = waits(self._phases, events)
        report.wrong += losses(events, tables.jobs_of_run(self.owner, self.rows, dead=True))
        report.again = sum(number > 1 for number in Counter(e.job for e in events if e.what == "ran").values())
        taken = {event.job for event in events if event.what == "got" and event.job.startswith("row-")}
        finished = tables.finished_rows(self.owner, self.rows)
        if taken != finished:
            report.wrong.append(f"rows of the table: {len(taken)} were taken, and {len(finished)} are finished")
        for client in self.crew.everybody:
            if not any(event.client == client.name and event.what != "begun" for event in events):
                report.wrong.append(f"{client.name} did nothing")
            for line in client.complaints.read_text("utf-8", "replace").splitlines():
                if EXPECTED.search(line):
                    report.locked += 1
                else:
                    report.wrong.append(f"{client.name} wrote: {line}")
        for each in report.waits:
            for name in ("put", "take", "delivery"):
                if (longest := getattr(each, name)) > self._most:
                    report.wrong.append(f"{each.phase.name}: the longest {name} took {longest:.2f} s")
        report.facts = tables.facts(self.owner)

    def check_rows(self, before: tables.Filled, when: str) -> None:
        """Compare the rows that the table began with to what they were."""
        found = tables.look(self.owner, self.rows, dead=True)
        if (found.rows, found.digest) != (before.rows, before.digest):
            self.report.wrong.append(f"{when}: of {before.rows:,} rows there are {found.rows:,}, or some changed")


def from_older(old: Build) -> Callable[[Upgrade], None]:
    """Return the script of an upgrade from an older build of pqcore."""

    def script(upgrade: Upgrade) -> None:
        owner = upgrade.owner
        with upgrade.step("the old build makes the table and its roles"):
            old.command(owner, "create", "--roles")
            tables.grant_roles(owner)
        with upgrade.step("the table is filled"):
            tables.fill(owner, upgrade.rows, of_pq=False, tell=upgrade.tell)
            before = tables.look(owner, upgrade.rows, dead=True)
        with upgrade.phase("only the old build"):
            old_workers = upgrade.start(old, *OLD_WORKERS)
            old_producers = upgrade.start(old, *PRODUCERS)
        with upgrade.phase("the migration"), upgrade.step("the migration"):
            THIS.command(owner, "migrate")
        with upgrade.phase("new workers next to old ones"):
            new_workers = upgrade.start(THIS, *NEW_WORKERS)
        with upgrade.phase("new producers, too"):
            new_producers = upgrade.start(THIS, *PRODUCERS)
        with upgrade.phase("old workers stop"):
            upgrade.crew.stop(old_workers)
        with upgrade.phase("old producers stop: only this build"):
            upgrade.crew.stop(old_producers)
            new_producers += upgrade.start(THIS, ("call-modern", "calls", "psycopg"))
        with upgrade.step("the rows are read"):
            upgrade.check_rows(before, "after the upgrade")
            THIS.command(owner, "dead", "retry", "--queue", "backlog", "996")
        with upgrade.phase("back: old workers and producers start"):
            old_workers = upgrade.start(old, *OLD_WORKERS)
            old_producers = upgrade.start(old, *PRODUCERS)
        with upgrade.phase("back: new producers and workers stop"):
            upgrade.crew.stop(new_producers)
            upgrade.crew.stop(new_workers)
            tables.release_parked(owner)
        with upgrade.phase("only the old build again"):
            old.command(owner, "dead", "retry", "--queue", "backlog", "997")
        with upgrade.phase("again: the migration, which has nothing to do, and new workers"):
            THIS.command(owner, "migrate")
            upgrade.start(THIS, *NEW_WORKERS)
        upgrade.crew.stop(old_producers)
        upgrade.wait_until_drained("jobs", "leases", "calls")
        upgrade.crew.stop(upgrade.crew.running())
        upgrade.check_rows(before, "at the end")
        if still := tables.dead_letters(owner, (996, 997)):
            upgrade.report.wrong.append(f"dead letters {still} were retried, and are still dead")

    return script


def from_pq(upgrade: Upgrade) -> None:
    """Upgrade from pq 1.9.1, and go back to it."""
    owner, pq = upgrade.owner, Build("pq")
    with upgrade.step("pq makes the table"):
        make_pqs(owner)
        tables.grant_pq(owner)
    with upgrade.step("the table is filled"):
        tables.fill(owner, upgrade.rows, of_pq=True, tell=upgrade.tell)
        before = tables.look(owner, upgrade.rows, dead=False)
    with upgrade.phase("only pq"):
        pqs = upgrade.start(pq, *PQ_CONSUMERS)
        pq_producers = upgrade.start(pq, *PQ_PRODUCERS)
    with upgrade.phase("the migration"), upgrade.step("the migration"):
        THIS.command(owner, "adopt")
    with upgrade.step("roles are made"):
        THIS.command(owner, "create", "--roles")
        tables.grant_roles(owner)
    with upgrade.phase("consumers of this build next to pq's"):
        consumers = upgrade.start(THIS, *PLAIN_CONSUMERS)
    with upgrade.phase("producers of this build, too"):
        producers = upgrade.start(THIS, *PLAIN_PRODUCERS)
    with upgrade.phase("pq stops: only this build"):
        upgrade.crew.stop([*pqs, *pq_producers])
        workers = upgrade.start(THIS, *WORKERS)
        callers = upgrade.start(THIS, ("put", "leases", "psycopg"), ("call-modern", "calls", "psycopg"))
    with upgrade.step("the rows are read"):
        upgrade.check_rows(before, "after the upgrade")
    with upgrade.phase("back: no leases any more, and pq starts"):
        upgrade.crew.stop(callers)
        upgrade.wait_until_drained("leases", "calls")
        upgrade.crew.stop(workers)
        upgrade.start(pq, *PQ_CONSUMERS)
        pq_producers = upgrade.start(pq, *PQ_PRODUCERS)
    with upgrade.phase("only pq again"):
        upgrade.crew.stop([*producers, *consumers])
    upgrade.crew.stop(pq_producers)
    upgrade.wait_until_drained("jobs")
    upgrade.crew.stop(upgrade.crew.running())
    upgrade.check_rows(before, "at the end")


def as_user(dsn: str, name: str) -> str:
    """Return a DSN with another role."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}"))


def make_pqs(owner: str) -> None:
    """Let pq make its table."""
    import pq
    import psycopg2

    connection = psycopg2.connect(owner)
    try:
        pq.PQ(connection).create()
    finally:
        connection.close()


WORKERS = (
    ("lease", "leases", "psycopg2"),
    ("lease", "leases", "psycopg"),
    ("work", "calls", "psycopg"),
    ("work", "calls", "asyncpg"),
)
PLAIN_CONSUMERS = (("get", "jobs", "psycopg2"), ("wait", "jobs", "psycopg"), ("drain", "backlog", "psycopg"))
OLD_WORKERS = NEW_WORKERS = (*PLAIN_CONSUMERS, *WORKERS)
PRODUCERS = (
    ("put", "jobs", "psycopg"),
    ("put", "leases", "psycopg2"),
    ("call", "calls", "psycopg"),
    ("call-keyed", "calls", "psycopg2"),
)
PLAIN_PRODUCERS = (("put", "jobs", "psycopg"), ("put", "jobs", "psycopg2"))
PQ_CONSUMERS = (("get", "jobs", "pq"), ("get", "jobs", "pq"), ("get", "backlog", "pq"))
PQ_PRODUCERS = (("put", "jobs", "pq"), ("put", "jobs", "pq"))
