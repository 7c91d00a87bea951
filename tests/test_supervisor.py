"""Several worker processes under a supervisor: replaced when they die, told to stop, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pqcore import PQ
from pqcore.testing.commands import Command, alive, environment, eventually, run
from pqcore.testing.harness import PATIENCE

APP = """
import os, re, threading
import pqcore
from pqcore.tasks import PQ

DSN = os.environ["PQCORE_DSN"]
queue = PQ(DSN)["apples"]
plain = pqcore.PQ(DSN)

def tell(*words):
    plain["seen"].put(list(words))

@queue.task()
def eat(job_id, kind):
    tell("ate", os.getpid())

@queue.task()
def hold(job_id):
    tell("holds", os.getpid())
    while not plain["go"].get(timeout=1):
        pass
    tell("ended", os.getpid())

@queue.task()
def stick(job_id):
    tell("sticks", os.getpid())
    threading.Event().wait()

@queue.task()
def spin(job_id):
    # Never gives back the interpreter's lock: no other thread of the process gets its turn.
    tell("spins", os.getpid())
    re.match("(a+)+b", "a" * 64)
"""
WORKERS = r"worker (\d) is process (\d+)"


def call(function: str, *args: Any) -> dict[str, Any]:
    """A job as pq stores it."""
    return {"function": f"app.{function}", "args": args, "kwargs": {}, "retried": 0, "retry_in": None, "max_retries": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def dsn(made_dsn: str) -> str:
    return made_dsn


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def seen(pq: PQ) -> list[Any]:
    """Return the next message that a function wrote."""
    job = pq["seen"].get(timeout=PATIENCE)
    assert job is not None, "no function told anything"
    data: list[Any] = job.data
    return data


def workers(command: Command, number: int = 2) -> list[int]:
    """Return the processes of the workers once they have started, the oldest first."""
    command.expect("worker starts: ", number)
    return [int(pid) for _, pid in command.expect(WORKERS, number)]


def gone(*pids: int) -> None:
    """Wait until none of the processes runs."""
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_supervisor_replaces_a_killed_worker_and_its_job_runs_again(dsn: str, pq: PQ, folder: Path) -> None:
    job_id = pq["apples"].put(call("hold"))
    options = ("--processes", "2", "--lease", "1")
    with Command("worker", "app:queue", *options, dsn=dsn, folder=folder) as supervisor:
        both = workers(supervisor)
        _, first = seen(pq)
        assert first in both
        os.kill(first, signal.SIGKILL)
        supervisor.expect(rf"worker \d \(process {first}\) was killed by SIGKILL; another worker takes its place")
        assert len(workers(supervisor, 3)) == 3
        _, second = seen(pq)
        assert second != first
        pq["go"].put(1)
        assert seen(pq) == ["ended", second]
        supervisor.signal(signal.SIGTERM)
        assert supervisor.wait() == 0
        assert "told to stop: 2 workers must end after their jobs" in supervisor.log
    assert pq["apples"].status(job_id) == "done"


def test_supervisor_replaces_a_worker_that_was_told_to_stop(dsn: str, pq: PQ, folder: Path) -> None:
    pq["apples"].put(call("hold"))
    with Command("worker", "app:queue", "--processes", "2", dsn=dsn, folder=folder) as supervisor:
        workers(supervisor)
        _, first = seen(pq)
        for _ in range(3):  # a repeated signal does not hurry a process
            os.kill(first, signal.SIGTERM)
        pq["go"].put(1)
        assert seen(pq) == ["ended", first]
        supervisor.expect(rf"\(process {first}\) ended with exit code 0; another worker takes its place")
        workers(supervisor, 3)
        supervisor.signal(signal.SIGINT)
        assert supervisor.wait() == 0


@pytest.mark.parametrize("run_in", ["thread", "process"])
def test_supervisor_and_workers_finish_running_jobs_after_a_signal_to_all(
    dsn: str, pq: PQ, folder: Path, run_in: str
) -> None:
    """Send the signal to all processes, as systemd does by default, and as a terminal does."""
    pq["apples"].put(call("hold"))
    options = ("--processes", "2", "--run-in", run_in)
    with Command("worker", "app:queue", *options, dsn=dsn, folder=folder) as supervisor:
        both = workers(supervisor)
        _, runner = seen(pq)
        assert (runner in both) == (run_in == "thread")
        for number in (signal.SIGTERM, signal.SIGINT):
            for pid in {runner, *both}:
                os.kill(pid, number)
        supervisor.signal(signal.SIGTERM)
        supervisor.expect("told to stop")
        pq["go"].put(1)
        assert seen(pq) == ["ended", runner]
        assert supervisor.wait() == 0
        gone(runner, *both)


def test_supervisor_ends_immediately_after_a_second_signal(dsn: str, pq: PQ, folder: Path) -> None:
    job_id = pq["apples"].put(call("stick"))
    options = ("--processes", "2", "--grace", "1h")
    with Command("worker", "app:queue", *options, dsn=dsn, folder=folder) as supervisor:
        workers(supervisor)
        _, holder = seen(pq)
        supervisor.signal(signal.SIGTERM)
        supervisor.expect(r"worker \d \(process \d+\) ended with exit code 0")  # the idle worker
        assert alive(holder)
        supervisor.signal(signal.SIGTERM)
        assert supervisor.wait() == 0
        assert "told to stop: 1 workers must end immediately" in supervisor.log
        gone(holder)
    assert pq["apples"].status(job_id) == "ready"


@pytest.mark.parametrize("function", ["stick", "spin"])
@pytest.mark.parametrize("run_in", ["thread", "process"])
def test_supervisor_that_is_killed_leaves_no_worker(dsn: str, pq: PQ, folder: Path, function: str, run_in: str) -> None:
    pq["apples"].put(call(function))
    options = ("--processes", "2", "--run-in", run_in)
    with Command("worker", "app:queue", *options, dsn=dsn, folder=folder) as supervisor:
        both = workers(supervisor)
        _, runner = seen(pq)
        supervisor.signal(signal.SIGKILL)
        assert supervisor.wait() == -signal.SIGKILL
        gone(runner, *both)


def test_supervisor_that_is_killed_during_startup_leaves_no_worker(dsn: str, pq: PQ, folder: Path) -> None:
    with Command("worker", "app:queue", "--processes", "2", dsn=dsn, folder=folder) as supervisor:
        pids = [int(pid) for _, pid in supervisor.expect(WORKERS, 2)]
        supervisor.signal(signal.SIGKILL)
        assert supervisor.wait() == -signal.SIGKILL
        gone(*pids)


def test_supervisor_pipe_at_its_end_kills_the_worker(tmp_path: Path) -> None:
    """As on systems without PR_SET_PDEATHSIG."""
    program = (
        "import sys, threading\n"
        "from pqcore.worker.parent_death import end_with_parent\n"
        "sys.platform = 'elsewhere'\n"
        "end_with_parent(int(sys.argv[1]))\n"
        "print('here', flush=True)\n"
        "threading.Event().wait()\n"
    )
    theirs, ours = os.pipe()
    command = [sys.executable, "-c", program, str(theirs)]
    with subprocess.Popen(command, pass_fds=[theirs], stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            os.close(ours)
            assert process.wait(PATIENCE) == -signal.SIGKILL
        finally:
            process.terminate()


def test_supervisor_does_not_repeat_a_command_that_cannot_work(dsn: str, pq: PQ, folder: Path) -> None:
    done = run("worker", "app:nothing", "--processes", "2", dsn=dsn, folder=folder)
    assert done.returncode == 2
    assert "app:nothing: module 'app' has no 'nothing'" in done.stderr
    assert "ended with exit code 2: the command line is wrong" in done.stderr
    assert "takes its place" not in done.stderr


def test_supervisor_repeats_a_worker_that_fails(empty_dsn: str, folder: Path) -> None:
    with Command("worker", "app:queue", "--processes", "2", dsn=empty_dsn, folder=folder) as supervisor:
        supervisor.expect('Error: table "queue" does not exist', 3)
        supervisor.expect("ended with exit code 1; another worker takes its place", 3)
        with PQ(empty_dsn) as pq:
            pq.create()
            workers(supervisor, 2)
            pq["apples"].put(call("eat", "Cox"))
            assert seen(pq)[0] == "ate"
            supervisor.signal(signal.SIGTERM)
            assert supervisor.wait() == 0


def test_supervisor_burst_of_several_workers_ends(dsn: str, pq: PQ, folder: Path) -> None:
    for _ in range(20):
        pq["apples"].put(call("eat", "Cox"))
    options = ("--processes", "2", "--burst", "--concurrency", "1", "--lease", "1m", "--log-level", "info")
    done = run("worker", "app:queue", *options, dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert pq["seen"].count() == 20
    assert done.stderr.count("worker starts: 'apples', concurrency 1") == 2


# A supervisor of programs other than the worker

SUPERVISOR = """
import logging, sys
from pqcore.worker.supervisor import Supervisor
logging.basicConfig(level="INFO", format="%(message)s")
patience, haste, *command = sys.argv[1:]
command.insert(0, sys.executable)
times = {"stop_timeout": float(patience), "stop_now_timeout": float(haste)}
sys.exit(Supervisor(lambda number: command, 2, **times).run())
"""
STUBBORN = """
import os, signal, subprocess, sys, threading
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
os.write(2, f"stubborn {os.getpid()} {child.pid}\\n".encode())
threading.Event().wait()
"""


@pytest.mark.parametrize(("patience", "haste", "signals"), [("0.1", "1e6", 1), ("1e6", "0.1", 2), ("1e6", "1e6", 3)])
def test_supervisor_kills_a_worker_that_does_not_end_with_its_children(
    tmp_path: Path, patience: str, haste: str, signals: int
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    arguments = (patience, haste, "stubborn.py")
    with Command(*arguments, dsn=None, folder=tmp_path, program=("-c", SUPERVISOR)) as supervisor:
        pids = [int(pid) for pair in supervisor.expect(r"stubborn (\d+) (\d+)", 2) for pid in pair]
        for number in range(signals):
            supervisor.signal(signal.SIGTERM)
            supervisor.expect("told to stop", number + 1)
        assert supervisor.wait() == 1
        assert supervisor.log.count("because it does not end") == 2
        gone(*pids)


def test_supervisor_pauses_grow_while_a_worker_fails_at_startup(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import sys; sys.exit(3)")
    arguments = ("1", "1", "dying.py")
    with Command(*arguments, dsn=None, folder=tmp_path, program=("-c", SUPERVISOR)) as supervisor:
        pauses = supervisor.expect(
            r"worker 1 \(process \d+\) ended with exit code 3; another worker takes its place in (\S+) s", 3
        )
        assert 0.3 < float(pauses[0]) < 0.7
        assert 0.7 < float(pauses[1]) < 1.3
        assert 1.4 < float(pauses[2]) < 2.6
        supervisor.signal(signal.SIGTERM)  # no worker runs, or one that is about to end
        assert supervisor.wait() in (0, 1)


def test_supervisor_passes_the_interpreters_options(dsn: str, pq: PQ, folder: Path) -> None:
    (folder / "app.py").write_text(APP + "\nimport sys\nsys.stderr.write(f'optimized {sys.flags.optimize}\\n')\n")
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "pqcore", "worker", "app:queue", "--processes", "2", "--burst"],
        cwd=folder,
        env=environment(dsn),
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("optimized 2") == 2
