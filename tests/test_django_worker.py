"""``manage.py pqcore``, and workers of a Django project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django_project import fixtures  # imported first, because it sets Django up

# isort: split

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.test import override_settings

from django_project.shop import tasks
from django_project.shop.models import Order
from pqcore.integrations.django import queue
from pqcore.testing.harness import SIDE_TABLES
from pqcore.testing.undo import Undo

DRIVER, SECRET, dsn, point_to, project = (
    fixtures.DRIVER,
    fixtures.SECRET,
    fixtures.dsn,
    fixtures.point_to,
    fixtures.project,
)
manage, work = fixtures.manage, fixtures.work


# The command


def test_worker_runs_tasks_of_the_apps(dsn: str, tmp_path: Path) -> None:
    orders = [Order.objects.create(name="new") for _ in range(3)]
    tasks.ship(orders[0].pk, note="well")
    tasks.ship_async(orders[1].pk)
    tasks.ship_in_process(orders[2].pk)
    done = manage(
        dsn,
        tmp_path,
        "worker",
        "--queues",
        "orders",
        "--processes=2",
        "--burst",
        "--settings=django_project.settings",
    )
    assert done.returncode == 0, done.stderr
    names = list(Order.objects.order_by("id").values_list("name", flat=True))
    assert names[:2] == ["shipped well", "shipped in a coroutine"]
    assert names[2].startswith("shipped by ")
    assert [job.data for job in queue("others").get_many(5, block=False)] == ["followed"]
    assert SECRET not in done.stdout + done.stderr


def test_worker_runs_tasks_of_the_apps_without_django_tasks(dsn: str, tmp_path: Path) -> None:
    order = Order.objects.create(name="new")
    tasks.ship_in_process(order.pk)
    done = manage(
        dsn, tmp_path, "worker", "--burst", "--settings=django_project.settings", DJANGO_TEST_WITHOUT_TASKS="1"
    )
    assert done.returncode == 0, done.stderr
    order.refresh_from_db()
    assert order.name.startswith("shipped by ")


def test_commands_are_run_on_the_table_of_the_settings(dsn: str, tmp_path: Path) -> None:
    queue("orders").put_many([1, 2])
    done = manage(dsn, tmp_path, "stats", "--json")
    assert (done.returncode, json.loads(done.stdout)["ready"]) == (0, 2), done.stderr
    assert manage(dsn, tmp_path, "--using", "nothing", "stats").stderr.startswith(
        "CommandError: PQCORE has no 'nothing'"
    )
    lost = manage(dsn.replace("127.0.0.1:", "127.0.0.1:1"), tmp_path, "stats")
    assert lost.returncode == 1
    assert SECRET not in lost.stdout + lost.stderr


def test_call_command_runs_any_command_in_the_process(dsn: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PQCORE_DSN", "postgresql://nobody@127.0.0.1:1/elsewhere")
    environment = dict(os.environ)
    call_command("pqcore", "put", '{"n": 1}', "--queue", "orders")
    [made] = [job.id for job in queue("orders").peek()]
    with override_settings(PQCORE={"default": {}, "more": {"TABLE": "more"}}):
        call_command("pqcore", "--using=more", "create", "--json")
        call_command("pqcore", "stats", "--json", using="more")
    call_command("pqcore", "dead", "list", "--queue", "orders")
    call_command("pqcore", "show", str(made), "--json")
    out = capsys.readouterr().out
    assert '"table": "\\"more\\""' in out
    assert '"data": {"n": 1}' in out
    assert "no dead letters in 'orders'" in out
    assert dict(os.environ) == environment
    with pytest.raises(SystemExit) as wrong:
        call_command("pqcore", "dead", "show", "99", "--queue", "orders")
    assert wrong.value.code == 1
    with pytest.raises(SystemExit) as misused:
        call_command("pqcore", "worker", "--no-such-option")
    assert misused.value.code == 2
    with pytest.raises(CommandError, match="PQCORE has no 'nothing'"):
        call_command("pqcore", "stats", using="nothing")
    call_command("pqcore")
    assert "worker" in capsys.readouterr().out
    with connection.cursor() as cursor:
        for table in ("", *SIDE_TABLES):
            cursor.execute(f"DROP TABLE more{table}")
        cursor.execute("DROP FUNCTION more_notify; DELETE FROM pqcore_migrations WHERE table_name = 'more'")


def test_worker_takes_the_queues_of_the_settings_by_default(dsn: str, capsys: Any) -> None:
    for name in ("orders", "archived", "elsewhere"):
        queue(name).put_call(tasks.ship.call(1))
    call_command("pqcore", "worker", "--burst", "--log-level", "error")
    assert [queue(name).count() for name in ("orders", "archived", "elsewhere")] == [0, 0, 1]
    call_command("pqcore", "worker", "--queues=elsewhere", "--burst", "--log-level", "error")
    assert queue("elsewhere").count() == 0
    tasks.ship(1)
    call_command("pqcore", "worker", "django_project.shop.tasks:orders", "--burst", "--log-level", "error")
    assert queue("orders").count() == 0


def test_worker_takes_the_queues_on_which_tasks_are_declared_by_default(dsn: str) -> None:
    late = queue("declared late")
    seen: list[str] = []

    @late.task()
    def note(job_id: int, what: str) -> None:
        seen.append(what)

    note("a note")
    call_command("pqcore", "worker", "--burst", "--log-level", "error")
    assert (seen, late.count()) == (["a note"], 0)


def test_worker_warns_of_a_queue_that_nothing_in_the_project_names(dsn: str, tmp_path: Path) -> None:
    settings = "--settings=django_project.settings"
    done = manage(dsn, tmp_path, "worker", "--queues", "ordres,orders", "--burst", settings)
    assert done.returncode == 0, done.stderr
    assert "'ordres': no task is declared on this queue, but tasks are declared on " in done.stderr
    assert "'orders': no task" not in done.stderr


def test_worker_of_a_broken_module_of_tasks_ends_with_exit_code_2(dsn: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "tasks.py").write_text("raise RuntimeError('the sky fell')\n")
    (tmp_path / "broken_settings.py").write_text(
        "from django_project.settings import *\nINSTALLED_APPS = [*INSTALLED_APPS, 'broken']\n"
    )
    done = manage(dsn, tmp_path, "worker", "--burst", "--settings=broken_settings", PYTHONPATH=str(tmp_path))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "RuntimeError: the sky fell" in done.stderr


# Connections of jobs


def application_names(dsn: str) -> int:
    with psycopg.connect(dsn) as server:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return int(server.execute(sql).fetchone()[0])  # type: ignore[index]


@pytest.fixture
def kept_connections(dsn: str) -> Iterator[str]:
    """Django's connections stay open from job to job, as CONN_MAX_AGE says."""
    connections["default"].settings_dict["CONN_MAX_AGE"] = None
    yield dsn
    connections["default"].settings_dict["CONN_MAX_AGE"] = 0


def test_worker_closes_djangos_connections_after_each_job(dsn: str) -> None:
    connections.close_all()
    for _ in range(3):
        tasks.pids()
    connections.close_all()
    work("orders", concurrency=1)
    assert len(set(Order.objects.values_list("name", flat=True))) == 3
    connections.close_all()
    assert application_names(dsn) == 0


def test_worker_keeps_or_replaces_persistent_connections(kept_connections: str) -> None:
    for task in (tasks.pids, tasks.pids, tasks.lose, tasks.pids, tasks.pids, tasks.part):
        task()
    work("orders", concurrency=1)
    first, second, third, fourth = Order.objects.order_by("id").values_list("name", flat=True)
    assert first == second
    assert third == fourth != first
    assert [letter.error["type"] for letter in queue("orders").dead.list()] == ["django.db.utils.OperationalError"]


def test_job_that_lost_its_lease_writes_nothing(dsn: str) -> None:
    """The task finishes its job in the transaction of its writes: on Django's connection, under the worker's lease."""
    order = Order.objects.create(name="new")
    job_id = int(tasks.ship(order.pk))
    job = queue("orders").lease(0.001, block=False)
    again = queue("orders").lease("1m")
    assert job is not None
    assert again is not None
    assert (job.id, again.id) == (job_id, job_id)
    assert not queue("orders").perform(job)
    order.refresh_from_db()
    assert order.name == "new"
    assert queue("orders").perform(again)
    order.refresh_from_db()
    assert order.done


def test_worker_runs_jobs_within_the_transaction_of_a_test(dsn: str) -> None:
    with suppress(Undo), transaction.atomic():
        order = Order.objects.create(name="new")
        tasks.ship(order.pk)
        tasks.fail()
        queue("orders").work(burst=True)
        assert Order.objects.get().done
        assert queue("orders").dead.count() == 1
        raise Undo
    assert not connection.in_atomic_block
    assert (Order.objects.count(), queue("orders").dead.count()) == (0, 0)


def test_tasks_backend_without_django_tasks_says_what_it_needs() -> None:
    program = (
        "import sys; sys.modules['django.tasks'] = sys.modules['django_tasks'] = None\n"
        "import django.conf; django.conf.settings.configure()\n"
        "from pqcore.integrations.django.tasks import PQCoreBackend\n"
        "PQCoreBackend('default', {})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "ImportError: the tasks backend needs Django 6, or django-tasks before" in done.stderr


def test_worker_tests_run_on_the_driver_of_django() -> None:
    assert connections["default"].Database.__name__ == DRIVER
