"""The list of workers: workers that died, roles that may not write to it, processes, and where it is shown."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from pqcore import tasks
from pqcore.db.dsn import with_options
from pqcore.operations import worker_registry
from pqcore.testing.commands import Command, eventually, invoke
from pqcore.worker import Worker, registration

APP = """
import os
from pqcore.tasks import PQ

queue = PQ(os.environ["PQCORE_DSN"])["apples"]

@queue.task()
def eat(job_id): ...
"""


@pytest.fixture
def dsn(made_dsn: str) -> str:
    return made_dsn


@pytest.fixture
def pq(dsn: str) -> Iterator[tasks.PQ]:
    with tasks.PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def set_back(dsn: str, interval: str) -> None:
    """Make the present workers look as if they were last seen some time ago."""
    execute(dsn, f"UPDATE queue_workers SET seen_at = seen_at - interval '{interval}'")


@pytest.mark.parametrize("backend", ["psycopg", "psycopg2", "asyncpg"])
def test_workers_connections_have_its_name_unless_they_are_named(
    dsn: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = tasks.AsyncPQ if backend == "asyncpg" else tasks.PQ

    def names() -> set[str]:
        with psycopg.connect(dsn, autocommit=True) as connection:
            return {
                name
                for (name,) in connection.execute(
                    "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
            }

    async def seen(dsn_of_worker: str, expected: str) -> None:
        queue = kind(dsn_of_worker, backend=backend)["apples"]
        running = asyncio.create_task(Worker(queue).run())
        await asyncio.to_thread(eventually, lambda: names() == {expected})
        running.cancel()
        await asyncio.wait([running])
        closed = queue.close()
        if backend == "asyncpg":
            await closed

    with tasks.PQ(dsn) as made:
        made.create()
    asyncio.run(seen(dsn, f"pqcore worker {socket.gethostname()}:{os.getpid()}"[:63]))
    asyncio.run(seen(with_options(dsn, application_name="mine"), "mine"))
    monkeypatch.setenv("PGAPPNAME", "theirs")
    asyncio.run(seen(dsn, "theirs"))


def test_worker_that_died_is_listed_for_an_hour_as_not_alive(
    dsn: str, pq: tasks.PQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.py").write_text(APP)
    with Command("worker", "app:queue", dsn=dsn, folder=tmp_path) as command:
        [died] = eventually(pq.workers)
        command.signal(signal.SIGKILL)
        command.wait()
    set_back(dsn, "50 s")
    assert [worker.alive for worker in pq.workers()] == [True]
    set_back(dsn, "11 s")
    assert [(worker.id, worker.alive) for worker in pq.workers()] == [(died.id, False)]
    monkeypatch.setattr(worker_registry, "RENEWAL", 0.02)
    monkeypatch.setattr(registration, "SWEEP_EVERY", 3)

    async def other() -> None:
        worker = Worker(pq["pears"])
        working = asyncio.create_task(worker.run())
        await asyncio.to_thread(eventually, lambda: len(pq.workers()) == 2)
        [renewed] = pq["pears"].workers()
        await asyncio.to_thread(
            eventually, lambda: (pq["pears"].workers()[0].seen_at - renewed.seen_at).total_seconds() > 0.2
        )
        assert len(pq.workers()) == 2
        set_back(dsn, "1 h")
        await asyncio.to_thread(eventually, lambda: [each.queues for each in pq.workers()] == [("pears",)])
        worker.stop()
        await working

    asyncio.run(other())
    assert pq.workers() == []


@contextmanager
def role_without_list(dsn: str) -> Iterator[str]:
    """The DSN of a role that may do everything except write to the list of workers."""
    name = f"app_{time.time_ns()}"
    execute(
        dsn,
        f"CREATE ROLE {name} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}",
        f"REVOKE INSERT, UPDATE, DELETE ON queue_workers FROM {name}",
    )
    parts = urlsplit(dsn)
    yield urlunsplit(parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}"))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {0}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP ROLE {0}").format(sql.Identifier(name)))


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg", "asyncpg"])
def test_worker_whose_role_may_not_be_listed_runs_jobs_and_warns_once(
    dsn: str, pq: tasks.PQ, backend: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_registry, "RENEWAL", 0.02)
    face = tasks.AsyncPQ if backend == "asyncpg" else tasks.PQ
    ran: list[int] = []

    async def main(dsn: str) -> None:
        theirs: Any = face(dsn, backend=backend)

        def note(job_id: int) -> None:
            ran.append(job_id)

        pq["q"].put({"function": theirs["q"].task()(note).task.path, "args": [], "kwargs": {}, "max_retries": 0})
        worker = Worker(theirs["q"])
        working = asyncio.create_task(worker.run())
        await asyncio.to_thread(eventually, lambda: ran)
        await asyncio.to_thread(eventually, lambda: "cannot write to the list of workers" in caplog.text)
        await asyncio.sleep(0.1)  # several renewals
        worker.stop()
        await working
        if (closing := theirs.close()) is not None:
            await closing

    with role_without_list(dsn) as theirs:
        asyncio.run(main(theirs))
    assert caplog.text.count("cannot write to the list of workers") == 1
    assert "permission denied" in caplog.text


def test_workers_command_lists_each_process_until_the_supervisor_ends(dsn: str, pq: tasks.PQ, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    assert invoke("workers", dsn=dsn).stdout == 'no worker is listed in table "queue"\n'
    with Command("worker", "app:queue", "--processes", "2", "--concurrency", "3", dsn=dsn, folder=tmp_path) as command:
        pids = {int(pid) for _, pid in command.expect(r"worker (\d) is process (\d+)", 2)}
        assert eventually(lambda: len(pq.workers()) == 2)
        found = [json.loads(line) for line in invoke("workers", "--json", dsn=dsn).stdout.splitlines()]
        assert {worker["pid"] for worker in found} == pids
        assert len({worker["id"] for worker in found}) == 2
        for worker in found:
            assert (worker["host"], worker["queues"], worker["alive"]) == (socket.gethostname(), ["apples"], True)
            assert (worker["tasks"], worker["concurrency"]) == (["app.eat"], 3)
        shown = invoke("workers", "--queue", "apples", dsn=dsn).stdout
        assert all(str(pid) in shown for pid in pids)
        assert "app.eat" in shown
        first = found[0]["id"]
        told = invoke("quiet", first, "nobody", dsn=dsn)
        assert told.returncode == 1
        assert told.stdout.splitlines() == [
            f"worker {first} takes no more jobs from its next renewal on",
            'no worker nobody is listed in table "queue"',
        ]
        assert {worker.id: worker.quiet for worker in pq.workers()} == {first: True, found[1]["id"]: False}
        assert " quiet " in invoke("workers", dsn=dsn).stdout
        assert json.loads(invoke("quiet", "--end", first, "--json", dsn=dsn).stdout) == {
            "id": first,
            "quiet": False,
            "listed": True,
        }
        assert not any(worker.quiet for worker in pq.workers())
        assert "no worker of 'pears' is listed" in invoke("workers", "--queue", "pears", dsn=dsn).stdout
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    assert pq.workers() == []
