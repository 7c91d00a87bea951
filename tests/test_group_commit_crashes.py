"""Crashes in the middle of concurrent calls, which travel in groups: of the client's process, and of the server."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pqcore import PQ
from pqcore_backends.embedded import EmbeddedServer

PROGRAM = Path(__file__).with_name("group_commit_process.py")
CALLERS = 64
"""Of the program."""
ENOUGH = 700
"""Calls that were acknowledged before the crash."""
BACKENDS = [("psycopg2", "blocking"), ("psycopg", "blocking"), ("psycopg", "async"), ("asyncpg", "async")]
IDS = [f"{backend}-{mode}" for backend, mode in BACKENDS]
each_backend = pytest.mark.parametrize(("backend", "mode"), BACKENDS, ids=IDS)
PATIENCE = 60.0
"""Seconds after which a process is killed."""


class Told:
    """Return the answers that callers in a process got: ids by data for `acked` and `leased`, data for the others."""

    def __init__(self) -> None:
        self.acked: dict[str, int] = {}
        self.leased: dict[str, int] = {}
        self.others: dict[str, set[str]] = defaultdict(set)
        self.number: Counter[str] = Counter()

    def add(self, line: str) -> None:
        what, *words = line.split()
        self.number[what] += 1
        if what in ("acked", "leased"):
            job, data = words
            getattr(self, what)[data] = int(job)
        else:
            self.others[what].add(words[0])


@contextmanager
def running(act: str, backend: str, mode: str, dsn: str) -> Iterator[tuple[subprocess.Popen[str], Told]]:
    """Start the program; yield its process, and its callers' answers as soon as `ENOUGH` calls were acknowledged."""
    command = [sys.executable, str(PROGRAM), act, backend, mode, dsn]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = Told()
            for line in process.stdout:
                told.add(line)
                if told.number["acked"] == ENOUGH:
                    break
            assert told.number["acked"] == ENOUGH, f"the process ended: {told.others}"
            yield process, told
        finally:
            process.kill()


def heard_until_its_end(process: subprocess.Popen[str], told: Told) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        told.add(line)
    process.wait(PATIENCE)


def rows_of(dsn: str, settled: str = "") -> dict[int, str]:
    """Return the data of all jobs in the table by id, once no session of the program is left."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchone():
            connection.execute("SELECT pg_sleep(0.01)")
        return dict(connection.execute(f"SELECT id, data #>> '{{}}' FROM queue WHERE dequeued_at IS NULL {settled}"))


@each_backend
def test_acknowledged_puts_of_a_killed_process_are_there_once(dsn: str, backend: str, mode: str) -> None:
    with PQ(dsn) as pq:
        pq.create()
    with running("put", backend, mode, dsn) as (process, told):
        process.kill()
        heard_until_its_end(process, told)
    found = rows_of(dsn)
    assert len(set(found.values())) == len(found), "no job is there twice"
    assert {data: job for job, data in found.items() if data in told.acked} == told.acked
    unheard = Counter(data.partition("-")[0] for data in found.values() if data not in told.acked)
    assert all(number == 1 for number in unheard.values()), "each caller waited for one answer"


@each_backend
def test_acknowledged_puts_are_there_once_after_a_crash_of_the_server(backend: str, mode: str) -> None:
    with EmbeddedServer() as server:
        with PQ(server.dsn()) as pq:
            pq.create()
        with running("put", backend, mode, server.dsn()) as (process, told):
            server.kill()
            heard_until_its_end(process, told)
            assert process.returncode == 0
        server.start()
        found = rows_of(server.dsn())
    assert len(set(found.values())) == len(found), "no job is there twice"
    assert {data: job for job, data in found.items() if data in told.acked} == told.acked
    assert set(found.values()) - set(told.acked) <= told.others["unknown"]
    assert told.number["unknown"] + told.number["refused"] == CALLERS, "each caller has an answer"


def fill(dsn: str) -> dict[int, str]:
    with PQ(dsn) as pq:
        pq.create()
        data = [f"job-{number}" for number in range(4 * ENOUGH)]
        return dict(zip(map(int, pq["q"].put_many(data)), data, strict=True))


@each_backend
def test_killed_process_loses_at_most_one_job_of_each_caller_that_gets(dsn: str, backend: str, mode: str) -> None:
    jobs = fill(dsn)
    with running("get", backend, mode, dsn) as (process, told):
        process.kill()
        heard_until_its_end(process, told)
    left = rows_of(dsn)
    assert len(told.acked) == told.number["acked"], "no job was given twice"
    assert all(jobs[job] == data for data, job in told.acked.items())
    assert not left.keys() & {*told.acked.values()}
    assert len(jobs) - len(left) - len(told.acked) <= CALLERS


@each_backend
def test_killed_process_loses_no_job_that_it_leases(dsn: str, backend: str, mode: str) -> None:
    jobs = fill(dsn)
    with running("lease", backend, mode, dsn) as (process, told):
        process.kill()
        heard_until_its_end(process, told)
    left = rows_of(dsn)
    assert len(told.leased) == told.number["leased"], "no job was given twice"
    assert len(told.acked) == told.number["acked"]
    assert all(jobs[job] == data for data, job in told.acked.items())
    gone = jobs.keys() - left.keys()
    assert {*told.acked.values()} <= gone <= {*told.leased.values()}
    assert len(gone) - len(told.acked) <= CALLERS
    leased = rows_of(dsn, "AND leased_until > now()")
    assert {*told.leased.values()} - gone <= leased.keys()
    assert len(leased) - len({*told.leased.values()} - gone) <= CALLERS
