"""``pqcore dev``: a server, the table, a worker and the page from one command."""

from __future__ import annotations

import signal
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import psycopg
import pytest

from pqcore import PQ
from pqcore.cli.dev import _make_tables
from pqcore.cli.errors import UsageError
from pqcore.db.dsn import with_database
from pqcore.testing.commands import Command
from pqcore.testing.harness import PATIENCE

APP = """
import os
from pqcore import PQ

queue = PQ(os.environ["PQCORE_DSN"])["hello"]

@queue.task()
def greet(name):
    print(f"Hello, {name}!")
"""


def test_dev_runs_a_server_the_table_a_worker_and_the_page(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(APP)
    with Command("dev", "hello:queue", "--port", "0", dsn=None, folder=tmp_path) as command:
        [dsn] = command.expect(r"export PQCORE_DSN=(postgresql://\S+)")
        [page] = command.expect(r"The page: http://(127\.0\.0\.1:\d+)/")
        with PQ(dsn) as pq:
            call = {"function": "hello.greet", "args": ["Ann"], "kwargs": {}, "retried": 0, "retry_in": None}
            job_id = pq["hello"].put(call)
            command.expect(rf"job {job_id} of 'hello' \(hello\.greet\): done, \d")
        with closing(HTTPConnection(page, timeout=PATIENCE)) as connection:
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert (answer.status, b"hello" in answer.read()) == (200, True)
        command.signal(signal.SIGINT)
        assert command.wait() == 0, command.log
    assert "Traceback" not in command.log
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(dsn)


def test_dev_refuses_a_queue_of_another_server(dsn: str) -> None:
    with (
        PQ(dsn) as pq,
        pytest.raises(UsageError, match=r"the queues are in database .*PQ\(os.environ\['PQCORE_DSN'\]\)"),
    ):
        _make_tables([pq["hello"]], with_database(dsn, "postgres"))


def test_dev_makes_the_table_of_each_queue(dsn: str) -> None:
    with PQ(dsn) as pq, PQ(dsn, table="trees") as others:
        _make_tables([pq["hello"], pq["more"], others["apples"]], dsn)
        assert others["apples"].put(1) == pq["hello"].put(1) == 1
