"""``manage.py pqcore``, workers of a Django project, and Django's own tasks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django_project import fixtures  # first, as it sets Django up

# isort: split

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.test import override_settings

from django_project.shop import tasks
from django_project.shop.models import Order
from pqcore.integrations.django import queue
from pqcore.integrations.django.tasks import PQCoreBackend, TaskResultDoesNotExist, TaskResultStatus, signals
from pqcore.tasks import Dedup
from pqcore.worker import Worker

MANAGE = Path(__file__).parent / "django_project" / "manage.py"
SECRET = "s3cr%t w/rd"

DRIVER, dsn, point_to, project = fixtures.DRIVER, fixtures.dsn, fixtures.point_to, fixtures.project


class Undo(Exception):
    """What rolls transactions of these tests back."""


def work(*names: str, **options: Any) -> None:
    """Have a worker do what there is to do, in this process."""
    asyncio.run(Worker(*map(queue, names), burst=True, **options).run())


def manage(dsn: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``manage.py pqcore``, from another folder, as a deployment would."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PQCORE_", "DJANGO_"))}
    secret = dsn.replace("postgres@", f"postgres:{SECRET.replace('%', '%25').replace(' ', '%20').replace('/', '%2F')}@")
    return subprocess.run(
        [sys.executable, str(MANAGE), "pqcore", *arguments],
        cwd=folder,
        env={**kept, "DJANGO_TEST_DSN": secret, "PQCORE_DSN": "postgresql://nobody@127.0.0.1:1/elsewhere"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The command


def test_a_worker_runs_what_the_apps_declare(dsn: str, tmp_path: Path) -> None:
    orders = [Order.objects.create(name="new") for _ in range(3)]
    tasks.ship(orders[0].pk, note="well")
    tasks.ship_async(orders[1].pk)
    tasks.ship_in_process(orders[2].pk)
    added = tasks.add.enqueue(2, 3)
    done = manage(
        dsn,
        tmp_path,
        "worker",
        "--queues",
        "orders,default",
        "--processes=2",
        "--burst",
        "--settings=django_project.settings",
    )
    assert done.returncode == 0, done.stderr
    names = list(Order.objects.order_by("id").values_list("name", flat=True))
    assert names[:2] == ["shipped well", "shipped in a coroutine"]
    assert names[2].startswith("shipped by ")
    assert [job.data for job in queue("others").get_many(5, block=False)] == ["followed"]
    added.refresh()
    assert added.return_value == 5
    assert SECRET not in done.stdout + done.stderr


def test_commands_are_on_the_table_of_the_settings(dsn: str, tmp_path: Path) -> None:
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
        for table in ("", "_archive", "_slots", "_dead", "_results", "_batches", "_ticks", "_rates", "_dedup"):
            cursor.execute(f"DROP TABLE more{table}")
        cursor.execute("DROP FUNCTION more_notify; DELETE FROM pqcore_migrations WHERE table_name = 'more'")


def test_a_worker_takes_the_queues_of_the_settings_unless_told(dsn: str, capsys: Any) -> None:
    for name in ("orders", "archived", "elsewhere"):
        queue(name).put_call(tasks.ship.call(1))
    call_command("pqcore", "worker", "--burst", "--log-level", "error")
    assert [queue(name).count() for name in ("orders", "archived", "elsewhere")] == [0, 0, 1]
    call_command("pqcore", "worker", "--queues=elsewhere", "--burst", "--log-level", "error")
    assert queue("elsewhere").count() == 0
    tasks.ship(1)
    call_command("pqcore", "worker", "django_project.shop.tasks:orders", "--burst", "--log-level", "error")
    assert queue("orders").count() == 0


# Connections of jobs


def application_names(dsn: str) -> int:
    with psycopg.connect(dsn) as server:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return int(server.execute(sql).fetchone()[0])  # type: ignore[index]


@pytest.fixture
def kept_connections(dsn: str) -> Iterator[str]:
    """Connections of Django's are kept from job to job, as CONN_MAX_AGE says."""
    connections["default"].settings_dict["CONN_MAX_AGE"] = None
    yield dsn
    connections["default"].settings_dict["CONN_MAX_AGE"] = 0


def test_connections_are_closed_after_each_job(dsn: str) -> None:
    connections.close_all()
    for _ in range(3):
        tasks.pids()
    connections.close_all()
    work("orders", concurrency=1)
    assert len(set(Order.objects.values_list("name", flat=True))) == 3
    connections.close_all()
    assert application_names(dsn) == 0


def test_or_kept_and_replaced_when_they_are_lost(kept_connections: str) -> None:
    for task in (tasks.pids, tasks.pids, tasks.lose, tasks.pids, tasks.pids, tasks.part):
        task()
    work("orders", concurrency=1)
    first, second, third, fourth = Order.objects.order_by("id").values_list("name", flat=True)
    assert first == second
    assert third == fourth != first
    assert [letter.error["type"] for letter in queue("orders").dead.list()] == ["django.db.utils.OperationalError"]


def test_a_job_that_lost_its_lease_writes_nothing(dsn: str) -> None:
    """It finishes in the transaction of what it writes: on Django's connection, under the worker's lease."""
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


def test_jobs_are_run_within_the_transaction_of_a_test(dsn: str) -> None:
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


# Django's own tasks


def test_a_task_is_put_in_the_transaction_and_its_result_is_found(dsn: str) -> None:
    with suppress(Undo), transaction.atomic():
        gone = tasks.add.enqueue(1, 1)
        raise Undo
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result(gone.id)
    made = tasks.add.enqueue(1, b=2)
    assert (made.status, made.args, made.kwargs) == (TaskResultStatus.READY, [1], {"b": 2})
    found = tasks.add.get_result(made.id)
    assert (found.status, found.args, found.kwargs, found.errors) == (TaskResultStatus.READY, [1], {"b": 2}, [])
    assert found.task == tasks.add
    assert found.enqueued_at.tzinfo is not None
    work("default")
    found.refresh()
    assert (found.status, found.return_value, found.is_finished) == (TaskResultStatus.SUCCESSFUL, 3, True)
    assert found.enqueued_at <= found.started_at <= found.finished_at
    assert found.attempts == 1


def test_an_asynchronous_task_is_told_of_itself(dsn: str) -> None:
    async def scenario() -> Any:
        return await tasks.describe.aenqueue("Ann")

    made = asyncio.run(scenario())
    work("mails")
    connections.close_all()
    result = tasks.describe.get_result(made.id)
    assert result.return_value == {"who": "Ann", "attempt": 1, "id": made.id, "queue": "mails"}
    assert made.id.startswith("mails:")


def test_a_task_that_fails_is_tried_again_and_then_failed(dsn: str) -> None:
    told: list[str] = []

    def finished(sender: Any, task_result: Any, **_: Any) -> None:
        told.append(f"{sender.__name__} {task_result.status} {task_result.attempts}")
        raise Undo

    signals.task_finished.connect(finished)
    try:
        made = tasks.explode.enqueue()
        tasks.add.enqueue(1, 1)
        work("default")
    finally:
        signals.task_finished.disconnect(finished)
    assert sorted(told) == ["PQCoreBackend FAILED 2", "PQCoreBackend SUCCESSFUL 1"]
    made.refresh()
    assert made.status == TaskResultStatus.FAILED
    assert made.attempts == 2
    [error] = made.errors
    assert error.exception_class is LookupError
    assert "LookupError: exploded" in error.traceback
    with pytest.raises(ValueError, match="failed"):
        _ = made.return_value


def test_priorities_queues_and_times_are_kept(dsn: str) -> None:
    from datetime import timedelta

    from django.utils.timezone import now

    when = now() + timedelta(hours=1)
    later = tasks.add.using(run_after=when, priority=100).enqueue(0, 0)
    order = [tasks.add.using(priority=priority).enqueue(priority, 0).id for priority in (0, -100, 50, 100, 0, -1)]
    peeked = [f"default:{job.id}" for job in queue("default").peek(10)]
    assert peeked == [order[place] for place in (3, 2, 0, 4, 5, 1)]
    found = tasks.add.get_result(later.id)
    assert (found.task.priority, found.task.run_after, found.status) == (100, when, TaskResultStatus.READY)
    assert tasks.add.get_result(order[1]).task.priority == -100
    mail = tasks.add.using(queue_name="mails").enqueue(1, 1)
    assert queue("mails").count() == 1
    assert tasks.add.get_result(mail.id).task.queue_name == "mails"


@pytest.mark.parametrize(
    "result_id",
    ["", "7", "default:", "default:x", "default:999", "nowhere:1", "default:" + "9" * 30, "\0:1", "a/zz:1"],
)
def test_an_id_that_is_none_finds_nothing(dsn: str, result_id: str) -> None:
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result(result_id)


def test_a_row_names_tasks_only(dsn: str) -> None:
    call = tasks.add.get_backend()
    assert isinstance(call, PQCoreBackend)
    for path in ("django_project.shop.tasks.no_task", "os.getcwd"):
        made = tasks.add.enqueue(1, 1)
        job_id = int(made.id.partition(":")[2])
        [job] = queue("default").peek()
        queue("default").update(job_id, {**job.data, "kwargs": {**job.data["kwargs"], "task": path}})
        work("default")
        assert "only functions with @task are run" in queue("default").inspect(job_id).error["message"]


def test_other_jobs_of_the_queue_are_no_tasks(dsn: str) -> None:
    made = queue("default").put("something else", dedup=Dedup("key"))
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result(f"default:{made}")


def test_the_check_tells_of_bad_options(dsn: str) -> None:
    assert list(tasks.add.get_backend().check()) == []
    for options, says in (
        ({"max_retries": -1}, "max_retries is -1"),
        ({"using": "nothing"}, "PQCORE has no 'nothing'"),
    ):
        [error] = PQCoreBackend("default", {"OPTIONS": options}).check()
        assert (error.id, says in error.msg) == ("pqcore.E004", True)


def test_it_is_on_the_driver_that_django_chose() -> None:
    assert connections["default"].Database.__name__ == DRIVER
