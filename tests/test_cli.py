"""The command line, in separate processes."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import psycopg
import pytest

from pqcore import PQ, tasks
from pqcore.cli.app import app as root
from pqcore.errors import Unreadable, UnsafeSerializer
from pqcore.testing.commands import Command, environment, invoke, run
from pqcore.testing.harness import PATIENCE

ROOT = Path(__file__).parent.parent
SCRIPT = Path(sys.executable).parent / "pqcore"

APP = """
import asyncio, os, threading
import pqcore
from pqcore.tasks import PQ, AsyncPQ, current

DSN = os.environ["PQCORE_DSN"]
pq = AsyncPQ(DSN) if os.environ.get("FACE") == "async" else PQ(DSN)
queue = pq["apples"]
plain = pqcore.PQ(DSN, backend="psycopg")
front = plain["front"]
bare = pqcore.PQ(DSN, backend="psycopg")

class Place:
    inner = queue

def make():
    return queue

def make_nothing():
    return None

def make_with(something):
    return queue

def make_raising():
    raise RuntimeError("the sky fell")

def tell(*words):
    plain["seen"].put(list(words))

@queue.task()
def eat(job_id, kind):
    tell(kind, os.getpid(), os.environ["PGCONNECT_TIMEOUT"])

@front.task()
def greet(job: pqcore.Job, name):
    tell("greets", name, type(job).__name__, job.id)

@queue.task()
async def drink(job_id, kind):
    tell(kind, os.getpid())

@queue.task()
def fail(job_id, kind):
    raise RuntimeError(f"no {kind} \\x1b[31m[bold]\\nand no more")

@queue.task()
def hold(job_id):
    tell("holds", os.getpid())
    while not plain["go"].get(timeout=1):
        pass
    tell("ended")

@queue.task()
def stick(job_id):
    tell("sticks", current().attempt)
    threading.Event().wait()

@queue.task()
async def raise_in_a_task(job_id, kind):
    async def sub():
        raise {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit}[kind]

    await asyncio.gather(sub())

@queue.task()
async def raise_in_a_callback(job_id, kind):
    def callback():
        over.set_result(None)
        raise {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit}[kind]

    over = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(callback)
    await over

@queue.task()
async def delegate(job_id):
    tell("delegates")
    await asyncio.to_thread(threading.Event().wait)

@queue.task()
async def refuse(job_id):
    tell("refuses")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
"""
LATE = """
import app

@app.queue.task()
def come_late(job_id):
    app.tell("late")
"""


def call(function: str, *args: Any) -> dict[str, Any]:
    """A job as pq stores it: put by a process that does not know the function."""
    return {"function": function, "args": args, "kwargs": {}, "retried": 0, "retry_in": None, "max_retries": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "late.py").write_text(LATE)
    (tmp_path / "broken.py").write_text("import app\nimport not_there_at_all\n")
    (tmp_path / "wrong.py").write_text("def no(:\n")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit('set the variable FRUIT')\n")
    (tmp_path / "unset.py").write_text("from pqcore import PQ\npq = PQ(None)\n")
    (tmp_path / "raising.py").write_text("raise RuntimeError('the sky fell')\n")
    return tmp_path


@pytest.fixture
def dsn(made_dsn: str) -> str:
    return made_dsn


@pytest.fixture
def pq(dsn: str) -> Iterator[tasks.PQ]:
    with tasks.PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def seen(pq: PQ) -> list[Any]:
    """Return the next message that a function wrote."""
    job = pq["seen"].get(timeout=PATIENCE)
    assert job is not None, "no function told anything"
    data: list[Any] = job.data
    return data


def dead_letters(
    dsn: str, folder: Path, pq: PQ, kinds: Sequence[str], variables: dict[str, str] | None = None
) -> list[int]:
    ids = [pq["apples"].put(call("app.fail", kind)) for kind in kinds]
    done = run("worker", "app:queue", "--burst", dsn=dsn, folder=folder, variables=variables)
    assert done.returncode == 0, done.stderr
    return ids


# The worker


@pytest.mark.parametrize(
    ("backend", "face"), [("psycopg2", "blocking"), ("psycopg", "blocking"), ("psycopg", "async"), ("asyncpg", "async")]
)
def test_worker_command_runs_jobs_put_by_another_process(
    dsn: str, pq: tasks.PQ, folder: Path, backend: str, face: str
) -> None:
    with Command(
        "worker", "app:queue", dsn=dsn, folder=folder, variables={"PQCORE_BACKEND": backend, "FACE": face}
    ) as worker:
        worker.expect("worker starts: 'apples', concurrency 20")
        pq["apples"].put(call("app.eat", "Cox"))
        assert seen(pq) == ["Cox", worker.process.pid, "10"]
        pq["apples"].put(call("app.drink", "cider"))
        assert seen(pq) == ["cider", worker.process.pid]
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert re.search(
            rf"^\d{{4}}-\d\d-\d\d \S+ INFO +{worker.process.pid} pqcore.*: worker stopped$", worker.log, re.MULTILINE
        )


def test_worker_runs_tasks_of_the_front_door_and_of_pq_by_their_own_conventions(
    dsn: str, pq: tasks.PQ, folder: Path
) -> None:
    pq["apples"].put(call("app.drink", "cider"))
    job = pq["front"].put(call("app.greet", "Ann"))
    pq["plain"].put(call("app.greet", "Bob"))
    done = run("worker", "app:queue", "app:front", "--burst", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert sorted([seen(pq), seen(pq)])[1] == ["greets", "Ann", "Job", job]
    done = run("worker", "app:plain", "--queues", "plain", "--burst", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert seen(pq)[:2] == ["greets", "Bob"]


def test_worker_command_keeps_the_users_connect_timeout(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    pq["apples"].put(call("app.eat", "Cox"))
    done = run("worker", "app:queue", "--burst", dsn=dsn, folder=folder, variables={"PGCONNECT_TIMEOUT": "3"})
    assert done.returncode == 0, done.stderr
    assert seen(pq)[2] == "3"


@pytest.mark.parametrize("queues", [("--queues", "apples,pears"), ("--queues", "apples", "--queues", "pears")])
def test_worker_command_runs_the_named_queues_of_a_pq(
    dsn: str, pq: tasks.PQ, folder: Path, queues: Sequence[str]
) -> None:
    for name in ("apples", "pears", "plums"):
        pq[name].put(call("app.eat", name))
    done = run("worker", "app:pq", *queues, "--burst", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert sorted([seen(pq)[0], seen(pq)[0]]) == ["apples", "pears"]
    assert pq["plums"].count() == 1


def test_worker_command_runs_the_queues_of_a_pq_on_which_tasks_are_declared(
    dsn: str, pq: tasks.PQ, folder: Path
) -> None:
    pq["apples"].put(call("app.eat", "Cox"))
    pq["pears"].put(call("app.eat", "Abate"))
    done = run("worker", "app:pq", "--burst", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "worker starts: 'apples', concurrency 20" in done.stderr
    assert (seen(pq)[0], pq["pears"].count()) == ("Cox", 1)


@pytest.mark.parametrize("target", ["app:make", "app:Place.inner"])
def test_worker_command_target_may_be_a_function_or_an_attribute(
    dsn: str, pq: tasks.PQ, folder: Path, target: str
) -> None:
    pq["apples"].put(call("app.eat", "Cox"))
    done = run("worker", target, "app:queue", "--burst", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert seen(pq)[0] == "Cox"
    assert "worker starts: 'apples', concurrency 20" in done.stderr  # one worker, although the queue is named twice


def test_worker_command_warns_of_a_queue_on_which_no_task_is_declared(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    done = run("worker", "app:pq", "--queues", "appels,apples", "--burst", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    told = re.findall(
        r"(\S+): no task is declared on this queue, but tasks are declared on ('apples', .*): is the queue's name",
        done.stderr,
    )
    assert [queue for queue, _ in told] == ["'appels'"]


def test_worker_command_logs_the_traceback_of_the_function_alone(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    pq["apples"].put(call("app.fail", "Cox"))
    done = run("worker", "app:queue", "--burst", dsn=dsn, folder=folder)
    _, _, trace = done.stderr.partition("Traceback (most recent call last)")
    assert "in fail" in trace
    assert f"{Path('pqcore', 'tasks')}{os.sep}" not in trace


def test_worker_command_imports_modules_that_declare_tasks(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    pq["apples"].put(call("late.come_late"))
    done = run("worker", "app:queue", "--import", "late", "--burst", "--log-level", "warning", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert seen(pq) == ["late"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere:queue"], "nowhere:queue: there is no module 'nowhere' in "),
        (["app.tasks:queue"], "app.tasks:queue: there is no module 'app.tasks'|is not a package"),
        (["app:nothing"], "app:nothing: module 'app' has no 'nothing'"),
        (["app:Place.nothing"], "app:Place.nothing: .* has no 'nothing'"),
        (["app"], "'app' is not a target: write module:queue"),
        (["app.py:queue"], "write the module's name, not its path: app"),
        (["app:bare"], "app:bare is a PQ, and no task is declared on its queues: give the names of queues"),
        (["app:queue", "--queues", "apples"], "--queues needs a target that is a PQ"),
        (["app:eat"], "app:eat is a task: give the queue"),
        (["app:DSN"], "app:DSN is a builtins.str"),
        (["app:make_nothing"], "app:make_nothing is a builtins.NoneType"),
        (["app:make_with"], "app:make_with cannot be called without arguments"),
        (["broken:queue"], "module 'broken' cannot be imported: .*not_there_at_all"),
        (
            ["unset:queue"],
            r"module 'unset' cannot be imported: ConfigurationError: give PQ .*\n  \S*unset.py:2, in <module>: pq = ",
        ),
        (["wrong:queue"], r"module 'wrong' cannot be imported: SyntaxError: .*\(wrong.py, line 1\)"),
        (["quits:queue"], "module 'quits' ends the process when it is imported: SystemExit: set the variable FRUIT"),
        (["quits:queue", "--processes", "2"], "SystemExit: set the variable FRUIT\n  .*quits.py:2, in <module>"),
        (["app:queue", "--import", "nowhere"], "--import nowhere: there is no module 'nowhere'"),
        (["app:queue", "--lease", "soon"], "'soon' is not a time"),
        (["app:queue", "--lease", "0"], "lease duration is 0"),
        (["app:queue", "--plugin", "nothing"], "--plugin nothing: unknown instrument 'nothing'; installed: "),
        (["app:queue", "--concurrency", "0"], "--concurrency"),
        (["app:queue", "--max-jobs", "0"], "--max-jobs"),
        (["app:queue", "--max-memory", "much"], "'much' is not a size: give bytes, or a number and a unit"),
        (["app:queue", "--health", "8081"], "health is '8081'; give HOST:PORT"),
        (["app:queue", "--health", "8081", "--processes", "2"], "health is '8081'; give HOST:PORT"),
        ([], "Missing argument 'MODULE:QUEUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_worker_command_refuses_bad_arguments_with_exit_code_2(
    pqcore_server: str, folder: Path, arguments: list[str], says: str
) -> None:
    done = run("worker", *arguments, dsn=pqcore_server, folder=folder)
    assert done.returncode == 2, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("target", ["raising:queue", "app:make_raising"])
def test_worker_command_shows_the_line_of_a_module_that_raises(pqcore_server: str, folder: Path, target: str) -> None:
    done = run("worker", target, dsn=pqcore_server, folder=folder)
    assert done.returncode == 2  # a restart by a service manager would not help
    assert "Traceback" not in done.stderr
    assert "RuntimeError: the sky fell" in done.stderr
    assert re.search(r"  .*\.py:\d+, in .*: raise RuntimeError", done.stderr)


def test_worker_command_without_its_table_fails(empty_dsn: str, folder: Path) -> None:
    done = run("worker", "app:queue", dsn=empty_dsn, folder=folder)
    assert done.returncode == 1
    assert 'Error: table "queue" does not exist' in done.stderr
    assert "run pqcore create" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_command_finishes_running_jobs_after_a_signal(dsn: str, pq: tasks.PQ, folder: Path, number: int) -> None:
    job_id = pq["apples"].put(call("app.hold"))
    with Command("worker", "app:queue", dsn=dsn, folder=folder) as worker:
        assert seen(pq)[0] == "holds"
        worker.signal(number)
        worker.expect("told to stop: no more jobs")
        later = pq["apples"].put(call("app.eat", "Cox"))
        pq["go"].put(1)
        assert seen(pq) == ["ended"]
        assert worker.wait() == 0
    assert pq["apples"].status(job_id) == "done"
    assert pq["apples"].status(later) == "ready"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_command_ends_immediately_after_a_second_signal(
    dsn: str, pq: tasks.PQ, folder: Path, number: int
) -> None:
    job_id = pq["apples"].put(call("app.stick"))
    with Command("worker", "app:queue", "--grace", "1h", dsn=dsn, folder=folder) as worker:
        assert seen(pq) == ["sticks", 1]
        worker.signal(number)
        worker.expect("told to stop: no more jobs")
        worker.signal(number)
        assert worker.wait() == 0
        assert "told to stop immediately" in worker.log
        assert "functions are still running in threads pqcore-job" in worker.log
    assert pq["apples"].status(job_id) == "ready"  # the worker gave the job back, before the lease ran out


@pytest.mark.parametrize(("backend", "face"), [("psycopg2", "blocking"), ("psycopg", "async"), ("asyncpg", "async")])
def test_worker_command_survives_exceptions_in_tasks_that_jobs_start(
    dsn: str, pq: tasks.PQ, folder: Path, backend: str, face: str
) -> None:
    functions = ("app.raise_in_a_task", "app.raise_in_a_callback")
    ids = [pq["apples"].put(call(each, kind)) for each in functions for kind in ("KeyboardInterrupt", "SystemExit")]
    pq["apples"].put(call("app.drink", "cider"))
    variables = {"PQCORE_BACKEND": backend, "FACE": face}
    done = run("worker", "app:queue", "--burst", dsn=dsn, folder=folder, variables=variables)
    assert done.returncode == 0, done.stderr
    assert seen(pq)[0] == "cider"
    assert [pq["apples"].status(job_id) for job_id in ids] == ["dead", "dead", "done", "done"]


def test_worker_command_ends_despite_functions_that_do_not(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    for function in ("stick", "delegate", "refuse"):
        pq["apples"].put(call(f"app.{function}"))
    options = ("--grace", "0", "--stall-timeout", "0.5")
    with Command("worker", "app:queue", *options, dsn=dsn, folder=folder) as worker:
        assert sorted(seen(pq)[0] for _ in range(3)) == ["delegates", "refuses", "sticks"]
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_worker_command_uses_uvloop_if_asked(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    pq["apples"].put(call("app.drink", "cider"))
    done = run("worker", "app:queue", "--uvloop", "--burst", dsn=dsn, folder=folder)
    if importlib.util.find_spec("uvloop") is None:
        assert done.returncode == 2
        assert "pip install uvloop" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert seen(pq)[0] == "cider"


# Instruments


def instrument(folder: Path) -> None:
    """Install a distribution with instruments into a folder."""
    (folder / "meters.py").write_text(
        "import pqcore\n"
        "import app\n"
        "class Meter:\n"
        "    @pqcore.hookimpl\n"
        "    def pqcore_job_succeeded(self, event):\n"
        "        app.tell('measured', event.task)\n"
        "def broken():\n"
        "    raise ImportError('no gauge to be had')\n"
    )
    metadata = folder / "meters-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: meters\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[pqcore.instruments]\nmeter = meters:Meter\nleaky = meters:broken\n")


def test_worker_command_turns_on_instruments_by_name(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    instrument(folder)
    pq["apples"].put(call("app.drink", "cider"))
    done = run("worker", "app:queue", "--plugin", "meter", "--burst", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert [seen(pq)[0], seen(pq)] == ["cider", ["measured", "app.drink"]]


def test_worker_command_names_missing_and_broken_instruments(pqcore_server: str, folder: Path) -> None:
    instrument(folder)
    for name, says in (
        ("nothing", "unknown instrument 'nothing'; installed: .*leaky.*meter"),
        ("leaky", "no gauge to be had"),
    ):
        done = run("worker", "app:queue", "--plugin", name, dsn=pqcore_server, folder=folder)
        assert done.returncode == 2
        assert re.search(f"--plugin {name}: .*{says}", done.stderr), done.stderr


# Dead letters


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg", "asyncpg"])
def test_dead_command_prints_json(dsn: str, pq: tasks.PQ, folder: Path, backend: str) -> None:
    face = "async" if backend == "asyncpg" else "blocking"
    first, second, third = dead_letters(
        dsn, folder, pq, ["Cox", "Gala", "Boskop"], variables={"PQCORE_BACKEND": backend, "FACE": face}
    )

    def dead(*arguments: str, code: int = 0) -> list[Any]:
        done = invoke("dead", *arguments, "--queue", "apples", "--json", "--backend", backend, dsn=dsn)
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    listed = dead("list")
    assert sorted(letter["id"] for letter in listed) == [first, second, third]
    [letter] = [letter for letter in listed if letter["id"] == first]
    stored = pq["apples"].dead.get(first)
    assert letter == {
        "id": first,
        "queue": "apples",
        "task": "app.fail",
        "reason": "failed",
        "died_at": stored.died_at.isoformat(),
        "enqueued_at": stored.enqueued_at.isoformat(),
        "attempts": 1,
        "failures": 1,
        "error": {"type": "builtins.RuntimeError", "message": "no Cox \x1b[31m[bold]\nand no more"},
    }
    assert dead("list", "--limit", "1") == [max(listed, key=lambda letter: (letter["died_at"], letter["id"]))]
    [shown] = dead("show", str(first))
    assert shown.pop("error")["traceback"] == stored.error["traceback"]
    assert {
        name: shown[name] for name in ("data", "payload", "serializer", "headers", "schedule_at", "expected_at")
    } == {
        "data": stored.data,
        "payload": None,
        "serializer": "json",
        "headers": {},
        "schedule_at": None,
        "expected_at": None,
    }
    assert dead("retry", str(first)) == [{"queue": "apples", "retried": 1}]
    assert pq["apples"].status(first) == "ready"
    assert dead("retry", str(first), str(second), code=1) == [{"queue": "apples", "retried": 1}]
    assert dead("purge", "--all", "--older-than", "1d", "--yes") == [{"queue": "apples", "purged": 0}]
    assert dead("purge", str(third), "--yes") == [{"queue": "apples", "purged": 1}]
    assert dead("purge", str(third), "--yes", code=1) == [{"queue": "apples", "purged": 0}]
    assert dead("list") == []
    assert dead("show", str(third), code=1) == []


def test_dead_command_prints_text(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    [job_id, other] = dead_letters(dsn, folder, pq, ["Cox", "Gala"])
    listed = invoke("dead", "list", "--queue", "apples", dsn=dsn)
    assert listed.returncode == 0, listed.stderr
    assert re.search(
        rf"^ +{job_id} .* failed +1 +app.fail +RuntimeError: no Cox \\x1b\[31m\[bold\] *$", listed.stdout, re.MULTILINE
    )
    shown = invoke("dead", "show", str(job_id), "--queue", "apples", dsn=dsn)
    assert shown.returncode == 0, shown.stderr
    assert f"job {job_id} of 'apples': failed" in shown.stdout
    assert "Traceback (most recent call last)" in shown.stdout
    assert 'data:       {"function": "app.fail", "args": ["Cox"]' in shown.stdout
    assert "\x1b" not in listed.stdout + shown.stdout
    assert (
        "1 of 2 dead letters are listed; --limit N"
        in invoke("dead", "list", "--queue", "apples", "--limit", "1", dsn=dsn).stdout
    )
    assert invoke("dead", "retry", str(other), "--queue", "apples", dsn=dsn).stdout == "retried 1\n"
    assert invoke("dead", "purge", "--all", "--queue", "apples", "--yes", dsn=dsn).stdout == "purged 1\n"
    assert invoke("dead", "list", "--queue", "apples", dsn=dsn).stdout == "no dead letters in 'apples'\n"


def test_dead_command_shows_other_data_undecoded(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    job_id = pq["apples/pickle"].put(call("app.fail", "Cox"))
    done = run("worker", "app:queue", "--burst", dsn=dsn, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "postponed for 60 seconds" in done.stderr
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE queue SET schedule_at = now()")
    job = pq["apples"].lease()
    assert job is not None
    with pytest.raises(UnsafeSerializer) as refused:
        job.data  # noqa: B018
    job.bury(refused.value)
    [shown] = invoke("dead", "show", str(job_id), "--queue", "apples", "--json", dsn=dsn).stdout.splitlines()
    letter = json.loads(shown)
    assert (letter["reason"], letter["serializer"], letter["task"]) == ("unreadable", "pickle", None)
    assert letter["data"] or letter["payload"]
    assert invoke("dead", "list", "--queue", "apples", dsn=dsn).returncode == 0


def test_dead_command_retries_letters_of_one_reason(dsn: str, pq: tasks.PQ) -> None:
    queue = pq["apples"]
    for error in (None, Unreadable("key 5 is not held"), None):
        queue.put(1)
        queue.bury(queue.get(), error)  # type: ignore[arg-type]

    def retried(*arguments: str) -> str:
        done = invoke("dead", "retry", *arguments, "--queue", "apples", "--yes", dsn=dsn)
        return done.stdout or done.stderr

    assert "give IDs, or --all" in retried()
    assert "give IDs, or --all" in retried("1", "--reason", "failed")
    assert "'nonsense' is not one of" in retried("--reason", "nonsense")
    assert retried("--reason", "crashed") == "retried 0\n"
    assert retried("--reason", "unreadable") == "retried 1\n"
    assert retried("--all", "--reason", "failed") == "retried 2\n"


def test_commands_find_the_queue_of_an_id(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    [dead_id] = dead_letters(dsn, folder, pq, ["Cox"])
    pears = pq["pears"]
    ready, later = pears.put(1), pears.put(2, schedule_at="1h")
    pears.put(3, expected_at="1s")
    rotten = pears.get()
    assert rotten is not None
    rotten.bury("rotten")
    assert invoke("status", str(ready), dsn=dsn).stdout.startswith(f"job {ready} of 'pears': ready")
    assert invoke("retry", str(later), dsn=dsn).stdout == f"job {later} of 'pears' was scheduled, and is due now\n"
    assert invoke("cancel", str(ready), dsn=dsn).stdout == f"job {ready} of 'pears' was deleted\n"
    assert "is dead: pqcore dead purge deletes it" in invoke("cancel", str(rotten.id), dsn=dsn).stderr
    gone = invoke("cancel", str(ready), dsn=dsn)
    assert gone.returncode == 1
    assert f"has no job {ready}" in gone.stderr
    mixed = invoke("retry", str(ready), str(later), dsn=dsn)
    assert (mixed.returncode, mixed.stdout.count("\n")) == (1, 2)
    assert mixed.stderr == "Error: 2 of the 2 given jobs are unchanged\n"
    assert invoke("retry", str(ready), dsn=dsn).stderr == "Error: the given job is unchanged\n"
    listed = [json.loads(line) for line in invoke("dead", "list", "--json", dsn=dsn).stdout.splitlines()]
    assert [letter["queue"] for letter in listed] == ["pears", "apples"]  # the latest first
    text = invoke("dead", "list", "--limit", "1", dsn=dsn).stdout
    assert "pears" in text
    assert "1 of 2 dead letters are listed; --limit N lists more" in text
    assert invoke("dead", "show", str(dead_id), dsn=dsn).stdout.startswith(f"job {dead_id} of 'apples': failed")
    assert "give --queue" in invoke("dead", "retry", "--all", "--yes", dsn=dsn).stderr
    assert invoke("dead", "retry", str(dead_id), dsn=dsn).stdout == "retried 1\n"
    assert invoke("dead", "purge", str(listed[0]["id"]), "--yes", dsn=dsn).stdout == "purged 1\n"
    assert invoke("dead", "list", dsn=dsn).stdout == "no dead letters\n"


def test_commands_say_which_of_the_given_jobs_are_not_as_wanted(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    [letter] = dead_letters(dsn, folder, pq, ["Cox"])
    waiting = pq["apples"].put(1)
    one = invoke("dead", "retry", str(waiting), dsn=dsn)
    assert one.stderr == "Error: the given job is not among the dead letters of 'apples'\n"
    some = invoke("dead", "purge", str(letter), str(waiting), "--yes", dsn=dsn)
    assert some.stderr == "Error: 1 of the 2 given jobs is not among the dead letters of 'apples'\n"
    all_ = invoke("dead", "purge", str(letter), str(waiting), "--queue", "apples", "--yes", dsn=dsn)
    assert all_.stderr == "Error: 2 of the 2 given jobs are not among the dead letters of 'apples'\n"
    asked = invoke("dead", "purge", str(waiting), dsn=dsn)
    assert "Delete 1 dead letter of 'apples' for good?" in asked.stderr


def test_commands_take_the_negative_id_of_a_dead_letter_that_made_way(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    dead_letters(dsn, folder, pq, ["Cox", "Gala"])
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE queue_dead SET id = -id")
        [[first], [second]] = connection.execute("SELECT id FROM queue_dead ORDER BY id DESC").fetchall()
    assert invoke("dead", "show", str(first), dsn=dsn).stdout.startswith(f"job {first} of 'apples': failed")
    assert invoke("show", str(first), dsn=dsn).stdout.startswith(f"job {first} of 'apples': dead")
    assert invoke("dead", "purge", str(first), "--yes", dsn=dsn).stdout == "purged 1\n"
    assert "was dead, and is due now" in invoke("retry", str(second), dsn=dsn).stdout
    assert "No such option" in invoke("show", "1", "--jsno", dsn=dsn).stderr


@pytest.mark.parametrize(
    "command",
    [
        ("list",), ("peek",), ("get",), ("dead", "list"), ("pause",), ("resume",), ("limit", "api", "3"),
        ("rate", "api", "3/s"), ("weight", "ann", "3"), ("weight", "ann", "none"), ("rules",), ("limits",),
    ],
)  # fmt: skip
def test_commands_name_the_queue_that_resembles_a_misspelled_one(
    dsn: str, pq: tasks.PQ, command: tuple[str, ...]
) -> None:
    pq["apples"].put(1, schedule_at="1h")
    misspelled = invoke(*command, "--queue", "appels", dsn=dsn)
    assert "did you mean 'apples'?" in misspelled.stdout + misspelled.stderr
    for name in ("apples", "pears"):
        done = invoke(*command, "--queue", name, dsn=dsn)
        assert "did you mean" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["pause", "resume", "remove", "run"])
def test_schedule_command_with_an_unknown_name_says_where_names_are_shown(dsn: str, pq: tasks.PQ, command: str) -> None:
    done = invoke("schedule", command, "unknown", "--queue", "apples", dsn=dsn)
    said = "queue 'apples' has no schedule 'unknown'; pqcore schedule list shows the schedules of all queues"
    assert (done.returncode, done.stderr) == (1, f"Error: {said}\n")


def test_cancel_command_says_in_which_state_a_job_is_that_it_leaves(dsn: str, pq: tasks.PQ) -> None:
    with tasks.PQ(dsn, retention="keep") as keeping:
        taken, held = keeping["apples"].put(1), keeping["apples"].put(2)
        assert keeping["apples"].get() is not None
        assert keeping["apples"].lease() is not None
    done, running = (invoke("cancel", str(each), dsn=dsn) for each in (taken, held))
    assert (done.returncode, "is done: there is nothing to cancel" in done.stderr) == (1, True)
    assert (running.returncode, "is running: give --running to stop it" in running.stderr) == (1, True)


@pytest.mark.parametrize("command", ["retry", "purge"])
def test_help_of_dead_commands_says_when_a_queue_is_needed(command: str) -> None:
    assert "required, unless IDs are given" in " ".join(invoke("dead", command, "--help", dsn="").stdout.split())


def test_show_command_writes_data_in_the_letters_that_it_means(dsn: str, pq: tasks.PQ) -> None:
    job_id = pq["äpfel"].put({"sort": "Gravensteiner für Ärzte 🍎", "line": "a\nb"}, headers={"wer": "Jürgen"})
    shown = invoke("show", str(job_id), dsn=dsn).stdout
    assert '"Gravensteiner für Ärzte 🍎", "line": "a\\nb"' in shown
    assert "Jürgen" in shown
    letter = pq["äpfel"].get()
    assert letter is not None
    letter.bury("faul")
    assert "Gravensteiner für Ärzte 🍎" in invoke("dead", "show", str(job_id), dsn=dsn).stdout


def test_expiry_command_shows_and_sets_how_long_rows_are_kept(empty_dsn: str) -> None:
    made = invoke("create", "--keep-finished", "none", "--keep-dead", "30d", dsn=empty_dsn)
    assert made.returncode == 0, made.stderr
    shown = invoke("expiry", "--json", dsn=empty_dsn).stdout
    assert json.loads(shown) == {"queue": None, "kind": "dead", "seconds": 30 * 86400.0, "deleted": 0}
    text = invoke("expiry", "--queue", "audit", "--finished", "1d", "--dead", "none", dsn=empty_dsn).stdout
    assert re.search(r"^ *all others +dead +30d +0 *$", text, re.MULTILINE), text
    assert re.search(r"^ *audit +finished +1d +0 *$", text, re.MULTILINE), text
    assert re.search(r"^ *audit +dead +no limit +0 *$", text, re.MULTILINE), text
    wrong = invoke("expiry", "--finished", "soon", dsn=empty_dsn)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "'soon' is not a time" in wrong.stderr


def test_put_command_says_when_a_dedup_key_is_taken(dsn: str, pq: tasks.PQ) -> None:
    put = ("put", "1", "--queue", "apples", "--dedup", "once")
    first = invoke(*put, dsn=dsn)
    again = invoke(*put, dsn=dsn)
    assert (first.returncode, first.stderr) == (again.returncode, "") == (0, "")
    assert again.stdout == first.stdout
    assert "has the dedup key 'once'; nothing was put" in again.stderr
    assert json.loads(invoke(*put, "--json", dsn=dsn).stdout) == {
        "id": int(first.stdout),
        "queue": "apples",
        "put": False,
    }


def test_help_lists_every_command_under_a_heading() -> None:
    text = invoke("--help", dsn="").stdout
    listed = re.findall(r"^  ([a-z][a-z-]+) {2,}\S", text, re.MULTILINE)
    assert sorted(listed) == sorted(root.commands)
    assert re.findall(r"^([A-Z][a-z ]+):$", text, re.MULTILINE)[1:] == [
        "Tables", "Queues", "Jobs", "Workers", "Limits and pauses", "Servers", "Drivers and plugins",
    ]  # fmt: skip


def test_help_shows_the_first_line_of_each_command_whole() -> None:
    groups = [root, *(command for command in root.commands.values() if isinstance(command, click.Group))]
    for group in groups:
        text = click.Context(group, terminal_width=80).get_help()
        assert [line for line in text.splitlines() if line.startswith("  ") and line.endswith("...")] == []


def test_commands_take_a_table_and_a_schema(empty_dsn: str, folder: Path) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA orchard")
    with PQ(empty_dsn, table="trees", schema="orchard") as pq:
        pq.create()
        job_id = pq["apples"].put(1)
        where = ("--queue", "apples", "--table", "trees", "--schema", "orchard")
        assert invoke("status", str(job_id), *where, dsn=empty_dsn).returncode == 0
        assert invoke("dead", "list", *where, dsn=empty_dsn).returncode == 0
        assert invoke("dead", "list", "--queue", "apples", dsn=empty_dsn).returncode == 1


def test_dead_command_retry_all_ends_though_the_jobs_fail_again(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    [first, _] = dead_letters(dsn, folder, pq, ["Cox", "Gala"])
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("""
            CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              DELETE FROM queue WHERE id = NEW.id;
              INSERT INTO queue_dead (id, q_name, enqueued_at, data, attempts, reason)
              VALUES (NEW.id, NEW.q_name, now(), NEW.data, 1, 'failed');
              RETURN NULL;
            END $$;
            CREATE TRIGGER die AFTER INSERT ON queue
              FOR EACH ROW WHEN (NEW.q_name = 'apples') EXECUTE FUNCTION die()""")
    assert invoke("dead", "retry", "--all", "--queue", "apples", "--yes", dsn=dsn).stdout == "retried 2\n"
    assert invoke("dead", "retry", str(first), "--queue", "apples", dsn=dsn).stdout == "retried 1\n"
    assert pq["apples"].dead.count() == 2


@pytest.mark.parametrize("command", ["purge", "retry"])
@pytest.mark.parametrize("ids", [[], ["1", "--all"]])
def test_dead_command_needs_ids_or_all(dsn: str, pq: tasks.PQ, command: str, ids: list[str]) -> None:
    done = invoke("dead", command, *ids, "--queue", "apples", "--yes", dsn=dsn)
    assert done.returncode == 2
    assert "give IDs, or --all" in done.stderr


@pytest.mark.parametrize("arguments", [("purge", "--all"), ("purge", "ID"), ("retry", "--all")])
def test_destructive_command_asks_for_confirmation(
    dsn: str, pq: tasks.PQ, folder: Path, arguments: tuple[str, str]
) -> None:
    [job_id] = dead_letters(dsn, folder, pq, ["Cox"])
    command = ["dead", *(str(job_id) if word == "ID" else word for word in arguments), "--queue", "apples"]
    nobody = run(*command, dsn=dsn)
    assert nobody.returncode == 2
    assert "There is no terminal to ask on: give --yes" in nobody.stderr
    for answer, left in (("n", 1), ("y", 0)):
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode() + b"\n")
        done = subprocess.run(
            [sys.executable, "-m", "pqcore", *command],
            env=environment(dsn),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )
        for end in (ours, theirs):
            os.close(end)
        assert done.returncode == left, done.stderr  # 1: aborted
        assert re.search(r"(Delete|Retry) .*1 dead letter of 'apples'", done.stderr)
        assert pq["apples"].dead.count() == left


# Single jobs


def test_status_command_shows_a_job(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    job_id = pq["apples"].put(1, schedule_at="1h")
    known = invoke("status", str(job_id), "--queue", "apples", "--json", dsn=dsn)
    assert known.returncode == 0, known.stderr
    info = pq["apples"].inspect(job_id)
    assert info.schedule_at is not None
    assert json.loads(known.stdout) == {
        "id": job_id,
        "queue": "apples",
        "state": "scheduled",
        "attempts": 0,
        "failures": 0,
        "error": {},
        "progress": None,
        "headers": {},
        "enqueued_at": info.enqueued_at.isoformat() if info.enqueued_at else None,
        "schedule_at": info.schedule_at.isoformat(),
        "expected_at": None,
    }
    assert f"job {job_id} of 'apples': scheduled" in invoke("status", str(job_id), "--queue", "apples", dsn=dsn).stdout
    unknown = invoke("status", str(job_id), "--queue", "pears", dsn=dsn)
    assert unknown.returncode == 1
    assert f"has no record of job {job_id}" in unknown.stderr


def test_cancel_command_cancels_a_job(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    def cancel(job_id: int, *arguments: str) -> tuple[int, str]:
        done = invoke("cancel", str(job_id), "--queue", "apples", "--json", *arguments, dsn=dsn)
        fields = json.loads(done.stdout)
        assert (fields.pop("id"), fields.pop("queue")) == (job_id, "apples")
        return done.returncode, fields["outcome"]

    waiting = pq["apples"].put(1)
    assert cancel(waiting) == (0, "deleted")
    assert cancel(waiting, "--running") == (1, "none")
    running = pq["apples"].put(call("app.stick"))
    with Command("worker", "app:queue", "--grace", "0", dsn=dsn, folder=folder) as worker:
        assert seen(pq)[0] == "sticks"
        assert cancel(running) == (1, "none")
        assert cancel(running, "--running") == (0, "asked")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


# The address of the database, and secrets


def test_commands_without_a_dsn_use_libpqs_variables(dsn: str, pq: tasks.PQ) -> None:
    job_id = pq["apples"].put(1)
    parts = urlsplit(dsn)
    given = {"PGHOST": parts.hostname, "PGPORT": parts.port, "PGUSER": parts.username, "PGDATABASE": parts.path[1:]}
    variables = {name: str(value) for name, value in given.items() if value is not None}
    if parts.password:
        variables["PGPASSWORD"] = parts.password
    for backend in ("psycopg2", "psycopg", "asyncpg"):
        done = invoke("status", str(job_id), "--queue", "apples", "--backend", backend, variables=variables)
        assert done.returncode == 0, done.stderr


def test_commands_without_a_dsn_say_so_when_the_server_is_unreachable() -> None:
    variables = {"PGHOST": "127.0.0.1", "PGPORT": "1"}
    told = "Neither --dsn nor PQCORE_DSN is set"
    done = invoke("stats", variables=variables)
    assert (done.returncode, told in done.stderr) == (1, True), done.stderr
    done = invoke("stats", "--dsn", "postgresql://127.0.0.1:1/app", variables=variables)
    assert (done.returncode, told in done.stderr) == (1, False), done.stderr


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg", "asyncpg"])
@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ann:hush-hush@127.0.0.1:1/orchard",
        "postgresql://ann:hush-hush@127.0.0.1:1/orchard?sslmode=nonsense",
        "postgresql://ann:hush-hush@127.0.0.1:port/orchard",
        "host=127.0.0.1 port=1 password=hush-hush nonsense",
        "postgresql://ann@127.0.0.1:1/orchard?password=hush-hush&nonsense=1",
    ],
)
def test_commands_never_show_a_password(backend: str, dsn: str) -> None:
    given = invoke("dead", "list", "--queue", "apples", "--backend", backend, "--dsn", dsn)
    inherited = invoke("dead", "list", "--queue", "apples", "--backend", backend, dsn=dsn)
    for done in (given, inherited):
        assert done.returncode in (1, 2)
        assert done.stderr.startswith("Error: ")
        assert "hush" not in done.stdout + done.stderr
    assert given.stderr == inherited.stderr


# The script


def test_shell_completion_knows_commands_and_options() -> None:
    source = subprocess.run(
        [SCRIPT], env={**os.environ, "_PQCORE_COMPLETE": "bash_source"}, capture_output=True, text=True, check=False
    )
    assert "_pqcore_completion()" in source.stdout
    for words, expected in (
        ("pqcore dead ", {"list", "show", "retry", "purge"}),
        ("pqcore dead list --backend ", {"psycopg", "psycopg2", "asyncpg"}),
        ("pqcore worker --gr", {"--grace"}),
    ):
        variables = {
            "_PQCORE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        found = subprocess.run([SCRIPT], env={**os.environ, **variables}, capture_output=True, text=True, check=True)
        assert {line.partition(",")[2] for line in found.stdout.splitlines()} >= expected


def test_script_finds_modules_in_the_current_directory(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    done = subprocess.run(
        [SCRIPT, "worker", "app:queue", "--burst"],
        cwd=folder,
        env=environment(dsn),
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_command_line_without_its_extra_says_how_to_install_it(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from pqcore.cli import main; sys.exit(main(['--version']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'pqcore[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


# The documents


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


def documentation() -> str:
    pages = [ROOT / "docs/command-line.md", *sorted((ROOT / "docs/command-line").glob("*.md"))]
    assert len(pages) > 1
    return "\n".join(page.read_text() for page in pages)


def test_commands_and_options_are_all_documented() -> None:
    text = documentation()
    sections = {
        title: body
        for title, body in re.findall(r"^#+ (.*)\n((?:(?!^#).*\n)*)", text, re.MULTILINE)
        if title.startswith("pqcore ")
    }
    common = re.search(r"^## Where the database is\n((?:(?!^#).*\n)*)", text, re.MULTILINE)
    assert common is not None
    shared = {"--dsn", "--backend", "--table", "--schema"}
    assert all(f"`{option}" in common[1] for option in shared)
    found = dict(commands(root))
    assert len(found) >= 7
    assert set(sections) == {f"pqcore {name}" for name in found}
    for name, command in found.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                for option in {*parameter.opts} - shared:
                    assert f"`{option}" in sections[f"pqcore {name}"], f"{name} {option}"


def test_json_fields_are_documented(dsn: str, pq: tasks.PQ, folder: Path) -> None:
    [job_id] = dead_letters(dsn, folder, pq, ["Cox"])
    text = documentation()
    for command in ("dead list", f"dead show {job_id}", f"status {job_id}", f"dead retry {job_id}"):
        done = invoke(*command.split(), "--queue", "apples", "--json", dsn=dsn)
        for field in json.loads(done.stdout):
            assert f"`{field}`" in text, field
