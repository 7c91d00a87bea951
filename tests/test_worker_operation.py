"""The operation of a worker: its log, its health over HTTP, and replaced processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from pqcore import tasks
from pqcore.errors import ConfigurationError
from pqcore.tasks import PQ
from pqcore.testing.commands import Command, alive, eventually
from pqcore.testing.harness import PATIENCE
from pqcore.testing.proxy import Proxy
from pqcore.worker import Worker, health
from pqcore.worker.recycling import parse_size
from pqcore_backends.embedded_setup import free_port

HELD: list[bytes] = []
MEGABYTE = 2**20


def hold(job_id: int, megabytes: int) -> int:
    """Allocate memory and keep it; return the process id."""
    HELD.append(b"x" * (megabytes * MEGABYTE))
    return os.getpid()


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


@asynccontextmanager
async def running(*queues: Any, **options: Any) -> AsyncIterator[Worker]:
    """A worker that runs until the test ends."""
    worker = Worker(*queues, **options)
    run = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(run, PATIENCE)


# Processes that are replaced


def pids(pq: PQ, megabytes: list[int], **options: Any) -> list[int]:
    """Run jobs in a process, one after another; return the process id of each."""
    queue = pq["jobs"]
    task = queue.task(run_in="process", keep_result="1h")(hold)
    handles = [task(each) for each in megabytes]

    async def work() -> list[int]:
        async with running(queue, concurrency=1, **options):
            found = [await asyncio.to_thread(handle.result, timeout=PATIENCE) for handle in handles]
            for replaced in {*found} - {found[-1]}:
                await asyncio.to_thread(eventually, partial(is_gone, replaced))
            return found

    return asyncio.run(work())


def is_gone(pid: int) -> bool:
    return not alive(pid)


def test_process_is_replaced_after_max_jobs(pq: PQ) -> None:
    first, second, third, fourth = pids(pq, [0] * 4, max_jobs=2)
    assert first == second != third == fourth


def test_process_is_replaced_when_it_holds_more_than_max_memory(pq: PQ, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pqcore.tasks"):
        first, second, third, fourth = pids(pq, [0, 0, 400, 0], max_memory="400MB")
    assert first == second == third != fourth
    assert re.search(rf"process {first} is replaced: it holds \d+ MB of memory", caplog.text)


def test_worker_warns_of_max_jobs_if_no_function_runs_in_a_process(
    pq: PQ, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqcore.tasks.registry.TaskDeclarations._tasks", {})
    asyncio.run(Worker(pq["jobs"], burst=True, max_jobs=1).run())
    assert "no function runs in a process: give run_in='process'" in caplog.text


@pytest.mark.parametrize(
    ("text", "number"), [(1_000, 1_000), ("1000", 1_000), ("512MB", 512 * MEGABYTE), ("1.5 GiB", 1536 * MEGABYTE)]
)
def test_parse_size_reads_bytes_and_units(text: int | str, number: int) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_jobs": 0}, "max_jobs is 0; give a number of at least 1"),
        ({"max_memory": "much"}, "max_memory is 'much'; give bytes, or a number and a unit"),
        ({"max_memory": 0}, "max_memory is 0; give bytes"),
        ({"health": "8081"}, "health is '8081'; give HOST:PORT, as in '127.0.0.1:8081'"),
        ({"health": "127.0.0.1:99999"}, "health is '127.0.0.1:99999'; give HOST:PORT"),
    ],
)
def test_worker_refuses_bad_arguments(pq: PQ, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        Worker(pq["jobs"], **options)


# The log


@pytest.mark.parametrize("backend", ["psycopg", "psycopg2", "asyncpg"])
def test_worker_names_its_database_and_server_in_its_first_line(
    dsn: str, backend: str, pq: PQ, caplog: pytest.LogCaptureFixture
) -> None:
    face: Any = tasks.AsyncPQ if backend == "asyncpg" else PQ
    server = urlsplit(dsn)

    async def work() -> None:
        queue = face(dsn, backend=backend)["jobs"]
        await Worker(queue, burst=True, concurrency=3).run()
        if backend == "asyncpg":
            await queue.close()
        else:
            queue.close()

    with caplog.at_level(logging.INFO, "pqcore.tasks"):
        asyncio.run(work())
    place = rf"database '{server.path[1:]}' of 127\.0\.0\.1:{server.port}, PostgreSQL \d+"
    assert re.match(rf"worker starts: 'jobs', concurrency 3; {place}", caplog.messages[0])


def test_worker_starts_though_its_server_cannot_be_named(
    dsn: str, pq: PQ, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqcore.worker.worker.DESCRIBE_TIMEOUT", 0.1)
    ran = asyncio.Event()

    async def scenario(queue: tasks.Queue, proxy: Proxy) -> None:
        @queue.task()
        async def run(job_id: int) -> None:
            ran.set()

        run()
        proxy.stall(new=True)
        async with running(queue, stall_timeout=0.5):
            await asyncio.to_thread(eventually, lambda: "its server has not answered" in caplog.text)
            proxy.resume()
            await asyncio.wait_for(ran.wait(), PATIENCE)

    caplog.set_level(logging.INFO, "pqcore.tasks")
    with closing(Proxy(dsn)) as proxy, PQ(proxy.dsn, backend="psycopg") as behind:
        asyncio.run(scenario(behind["jobs"], proxy))


def test_log_jobs_writes_a_line_for_each_attempt(pq: PQ, caplog: pytest.LogCaptureFixture) -> None:
    queue = pq["jobs"]

    @queue.task(max_retries=1, retry_in=0)
    def fail(job_id: int) -> None:
        raise RuntimeError

    @queue.task()
    async def sleep(job_id: int) -> None:
        await asyncio.sleep(0.05)

    failed, done = int(fail()), int(sleep())
    caplog.set_level(logging.INFO, "pqcore.worker.jobs")
    asyncio.run(Worker(queue, burst=True).run())
    lines = [record.getMessage() for record in caplog.records if record.name == "pqcore.worker.jobs"]
    assert lines == []
    again = int(fail())
    later = int(sleep())
    asyncio.run(Worker(queue, burst=True, log_jobs=True).run())
    lines = sorted(record.getMessage() for record in caplog.records if record.name == "pqcore.worker.jobs")
    name = re.escape("test_log_jobs_writes_a_line_for_each_attempt.<locals>")
    assert len(lines) == 3, lines
    assert failed < done < again < later
    assert re.match(rf"job {again} of 'jobs' \(.*{name}\.fail\): dead, failed, \d\.\d{{3}} s$", lines[0])
    assert re.match(rf"job {again} of 'jobs' \(.*{name}\.fail\): failed, again in 0\.0 s, \d\.\d{{3}} s$", lines[1])
    slept = re.match(rf"job {later} of 'jobs' \(.*{name}\.sleep\): done, (\d\.\d{{3}}) s$", lines[2])
    assert slept
    assert float(slept[1]) >= 0.05


# Health


def ask(address: str, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    """Send an HTTP request; return the status and the body."""
    with closing(HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else {}


async def asked(worker: Worker, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    address = await asyncio.to_thread(eventually, lambda: worker.health_address)
    return await asyncio.to_thread(ask, address, path, method)


def test_worker_tells_whether_it_lives_and_is_ready(pq: PQ, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FRESH", 0.0)

    async def scenario() -> None:
        async with running(pq["jobs"], health="127.0.0.1:0") as worker:
            assert await asked(worker, "/live") == (200, {"live": True})
            assert await asked(worker, "/ready?verbose") == (200, {"ready": True})
            assert await asked(worker, "/ready", "HEAD") == (200, {})
            assert (await asked(worker, "/ready", "POST"))[0] == 405
            assert (await asked(worker, "/"))[0] == 404
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("DELETE FROM pqcore_migrations WHERE version > 5")
            status, found = await asked(worker, "/ready")
            assert (status, found["ready"]) == (503, False)
            assert "schema version 5; this version of pqcore needs schema version" in found["reason"]
            assert await asked(worker, "/live") == (200, {"live": True})
        assert worker.health_address is None

    asyncio.run(scenario())


def test_worker_is_not_ready_while_its_database_does_not_answer(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FRESH", 0.0)
    monkeypatch.setattr(health, "READY_TIMEOUT", 0.2)

    async def scenario(queue: Any, proxy: Proxy) -> None:
        async with running(queue, health="127.0.0.1:0", stall_timeout=1.0) as worker:
            assert (await asked(worker, "/ready"))[0] == 200
            proxy.stall(new=True)
            began = time.monotonic()
            answers = await asyncio.gather(*(asked(worker, "/ready") for _ in range(8)))
            assert time.monotonic() - began < PATIENCE
            assert {status for status, _ in answers} == {503}
            assert await asked(worker, "/live") == (200, {"live": True})
            proxy.resume()

    with closing(Proxy(dsn)) as proxy, PQ(proxy.dsn, backend="psycopg") as behind:
        behind.create()
        asyncio.run(scenario(behind["jobs"], proxy))


def test_worker_that_stops_is_not_ready_and_lives(pq: PQ) -> None:
    queue = pq["jobs"]
    going, go = asyncio.Event(), asyncio.Event()

    @queue.task()
    async def wait(job_id: int) -> None:
        going.set()
        await go.wait()

    wait()

    async def scenario() -> None:
        async with running(queue, health="127.0.0.1:0") as worker:
            await going.wait()
            worker.stop()
            await asyncio.sleep(0)
            assert await asked(worker, "/ready") == (503, {"ready": False, "reason": "the worker stops"})
            assert await asked(worker, "/live") == (200, {"live": True})
            go.set()

    asyncio.run(scenario())


def test_health_closes_a_connection_that_sends_no_request(pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REQUEST_TIMEOUT", 0.1)

    def idle(address: str, data: bytes) -> bytes:
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            connection.sendall(data)
            return connection.recv(1)

    async def scenario() -> None:
        async with running(pq["jobs"], health="127.0.0.1:0") as worker:
            await asked(worker, "/live")
            assert worker.health_address is not None
            for data in (b"", b"GET /live", b"\r\n\r\n"):
                assert await asyncio.to_thread(idle, worker.health_address, data) == b""

    asyncio.run(scenario())


def test_worker_fails_before_it_takes_jobs_if_the_address_of_its_health_is_taken(pq: PQ) -> None:
    queue = pq["jobs"]
    queue.put("one")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"health cannot be served on {address}: .*; give another address"):
            asyncio.run(Worker(queue, burst=True, health=address).run())
    assert queue.count() == 1


def test_processes_of_a_worker_command_serve_health_on_ports_in_a_row(dsn: str, pq: PQ, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import os\nfrom pqcore.tasks import PQ\nqueue = PQ(os.environ['PQCORE_DSN'])['apples']\n"
        "@queue.task()\ndef eat(job_id): ...\n"
    )
    port = free_port(2)
    options = ("--processes=2", f"--health=127.0.0.1:{port}", "--log-jobs", "--max-jobs=5", "--max-memory=1GB")
    with Command("worker", "app:queue", *options, "--log-level=error", dsn=dsn, folder=tmp_path) as command:
        pq["apples"].put({"function": "app.eat", "args": (), "kwargs": {}, "retried": 0, "retry_in": None})
        command.expect(r"INFO .*job 1 of 'apples' \(app\.eat\): done, \d")
        for each in (port, port + 1):
            assert eventually(partial(lives, f"127.0.0.1:{each}"))
        command.signal(15)
        assert command.wait() == 0


def lives(address: str) -> bool:
    try:
        return ask(address, "/live")[0] == 200
    except OSError:
        return False
