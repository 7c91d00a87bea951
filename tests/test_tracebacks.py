"""What a worker logs and keeps of the exception of a function: the frames of the function, and none of pqcore's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pqcore
from pqcore import PQ
from pqcore.testing.commands import run

PACKAGE = str(Path(pqcore.__file__).parent)
APP = """
import asyncio, os
from pqcore import PQ

queue = PQ(os.environ["PQCORE_DSN"])["apples"]

def in_thread():
    raise LookupError("no Cox")

async def in_coroutine():
    raise LookupError("no Cox")

def in_process():
    try:
        {}["Cox"]
    except KeyError:
        raise LookupError("no Cox")

async def too_late():
    await asyncio.sleep(3600)

async def cancelled():
    raise asyncio.CancelledError

queue.task(max_retries=0)(in_thread)
queue.task(max_retries=0)(in_coroutine)
queue.task(max_retries=0, run_in="process")(in_process)
late = queue.task(max_retries=0, timeout="0.1s")(too_late)
queue.task(max_retries=0)(cancelled)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def put_call(dsn: str, function: str, *args: Any) -> int:
    data = {"function": f"app.{function}", "args": args, "kwargs": {}, "retried": 0, "max_retries": 0}
    with PQ(dsn) as pq:
        return int(pq["apples"].put(data))


@pytest.mark.parametrize("plugin", [(), ("--plugin", "logging")], ids=["plain", "instrument"])
@pytest.mark.parametrize(
    ("function", "args", "line", "shows"),
    [
        ("in_thread", (), "in in_thread", "LookupError: no Cox"),
        ("in_coroutine", (), "in in_coroutine", "LookupError: no Cox"),
        ("in_process", (), "in in_process", "LookupError: no Cox"),
        ("cancelled", (), "in cancelled", "JobCancelled: the function was cancelled from within"),
        ("in_thread", (1,), "", "TypeError: in_thread() takes 0 positional arguments but 1 was given"),
        ("in_coroutine", (1,), "", "TypeError: in_coroutine() takes 0 positional arguments but 1 was given"),
        ("in_process", (1,), "", "TypeError: in_process() takes 0 positional arguments but 1 was given"),
    ],
)
def test_traceback_of_a_failed_job_has_no_frames_of_pqcore(
    made_dsn: str, folder: Path, function: str, args: tuple[int, ...], line: str, shows: str, plugin: tuple[str, ...]
) -> None:
    job_id = put_call(made_dsn, function, *args)
    done = run("worker", "app:queue", "--burst", *plugin, dsn=made_dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    with PQ(made_dsn) as pq:
        letter = pq["apples"].dead.get(job_id)
    for text in (done.stderr, letter.error["traceback"]):
        assert line in text
        assert shows in text
        assert PACKAGE not in text
    assert "RemoteTraceback" not in letter.error["traceback"]


def test_traceback_of_a_timeout_has_no_frames_of_pqcore(made_dsn: str, folder: Path) -> None:
    command = [sys.executable, "-c", "import app; print(app.late())"]
    environment = {**os.environ, "PQCORE_DSN": made_dsn}
    job_id = int(subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True).stdout)
    done = run("worker", "app:queue", "--burst", dsn=made_dsn, folder=folder)
    with PQ(made_dsn) as pq:
        letter = pq["apples"].dead.get(job_id)
    for text in (done.stderr, letter.error["traceback"]):
        assert "in too_late" in text
        assert "JobTimeout: " in text
        assert PACKAGE not in text


@pytest.mark.parametrize(
    ("data", "shows"),
    [
        ({"to": "a secret"}, "InvalidCall: the data has no 'function', so it is not a call"),
        ({"function": "app.in_thread"}, "InvalidCall: the data has no 'args', so it is not a call"),
        (["a secret"], "InvalidCall: the data is a list, not a call"),
        (None, "InvalidCall: the data is a NoneType, not a call"),
    ],
)
def test_worker_says_of_a_job_that_is_no_call_what_its_data_lacks(
    made_dsn: str, folder: Path, data: Any, shows: str
) -> None:
    with PQ(made_dsn) as pq:
        job_id = pq["apples"].put(data)
        done = run("worker", "app:queue", "--burst", dsn=made_dsn, folder=folder)
        letter = pq["apples"].dead.get(job_id)
    kind, _, message = shows.partition(": ")
    assert f"job {job_id} of 'apples' is not a call of a function: {message}" in done.stderr
    assert (letter.error["type"], letter.reason) == (f"pqcore.errors.{kind}", "invalid")
    assert letter.error["message"].startswith(message)
    assert "Traceback" not in done.stderr
    assert "a secret" not in done.stderr + letter.error["message"]
