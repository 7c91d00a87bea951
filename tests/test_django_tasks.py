"""Django's own tasks, of Django 6 or of the package django-tasks: in workers, and their results."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django_project import fixtures  # imported first, because it sets Django up

# isort: split

import pytest
from django.core.management import call_command
from django.db import connections, transaction

from django_project.shop import background
from pqcore.integrations.django import queue
from pqcore.integrations.django.tasks import PQCoreBackend, TaskResultDoesNotExist, TaskResultStatus, signals
from pqcore.tasks import Dedup
from pqcore.testing.undo import Undo

work, manage = fixtures.work, fixtures.manage
dsn, project = fixtures.dsn, fixtures.project


def test_django_task_is_put_in_the_transaction_and_has_a_result(dsn: str) -> None:
    with suppress(Undo), transaction.atomic():
        gone = background.add.enqueue(1, 1)
        raise Undo
    with pytest.raises(TaskResultDoesNotExist):
        background.add.get_result(gone.id)
    made = background.add.enqueue(1, b=2)
    assert (made.status, made.args, made.kwargs) == (TaskResultStatus.READY, [1], {"b": 2})
    found = background.add.get_result(made.id)
    assert (found.status, found.args, found.kwargs, found.errors) == (TaskResultStatus.READY, [1], {"b": 2}, [])
    assert found.task == background.add
    assert found.enqueued_at.tzinfo is not None
    work("default")
    found.refresh()
    assert (found.status, found.return_value, found.is_finished) == (TaskResultStatus.SUCCESSFUL, 3, True)
    assert found.enqueued_at <= found.started_at <= found.finished_at
    assert found.attempts == 1


def test_worker_of_the_project_takes_the_queues_of_django_tasks_by_default(dsn: str) -> None:
    made = background.add.enqueue(1, b=2)
    call_command("pqcore", "worker", "--burst", "--log-level", "error")
    made.refresh()
    assert made.status == TaskResultStatus.SUCCESSFUL


def test_django_async_task_receives_its_context(dsn: str) -> None:
    async def scenario() -> Any:
        return await background.describe.aenqueue("Ann")

    made = asyncio.run(scenario())
    work("mails")
    connections.close_all()
    result = background.describe.get_result(made.id)
    assert result.return_value == {"who": "Ann", "attempt": 1, "id": made.id, "queue": "mails"}
    assert made.id.startswith("mails:")


def test_django_task_that_fails_is_retried_and_then_failed(dsn: str) -> None:
    told: list[str] = []

    def finished(sender: Any, task_result: Any, **_: Any) -> None:
        told.append(f"{sender.__name__} {task_result.status} {task_result.attempts}")
        raise Undo

    signals.task_finished.connect(finished)
    try:
        made = background.explode.enqueue()
        background.add.enqueue(1, 1)
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


@pytest.fixture
def told() -> Iterator[list[tuple[str, int]]]:
    """Record the status and the attempts of each result for which `task_finished` is sent."""
    found: list[tuple[str, int]] = []

    def finished(sender: Any, task_result: Any, **_: Any) -> None:
        found.append((str(task_result.status), task_result.attempts))

    signals.task_finished.connect(finished)
    yield found
    signals.task_finished.disconnect(finished)


@pytest.mark.parametrize(
    ("task", "how", "attempts"),
    [
        ("end", "exit", 1),
        ("end", "interrupt", 1),
        ("end", "cancel", 2),
        ("end", "error", 2),
        ("end", "discard", 0),
        ("aend", "exit", 1),
        ("aend", "cancel", 2),
        ("aend", "late", 2),
    ],
)
def test_task_finished_is_sent_for_each_job_that_fails_for_good(
    dsn: str, told: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, task: str, how: str, attempts: int
) -> None:
    made: Any = getattr(background, task)
    options = made.get_backend().call_options
    monkeypatch.setitem(options, "timeout", 0.2 if how == "late" else 30)
    result = made.enqueue(how)
    work("default")
    assert told == [(TaskResultStatus.FAILED, attempts)] * bool(attempts)
    if attempts:
        result.refresh()
        assert (result.status, result.attempts) == (TaskResultStatus.FAILED, attempts)


def test_task_finished_is_not_sent_for_a_returned_job(dsn: str, told: list[tuple[str, int]]) -> None:
    result = background.end.enqueue("exit")
    with pytest.raises(SystemExit):
        queue("default").work(burst=True)
    result.refresh()
    assert (told, result.status) == ([], TaskResultStatus.READY)


def test_django_task_result_is_not_that_of_a_newer_job_with_its_id(dsn: str) -> None:
    old = background.add.enqueue(1, 1)
    work("default")
    with connections["default"].cursor() as cursor:
        cursor.execute("DELETE FROM queue")
        first = old.id.partition(":")[2]
        cursor.execute("SELECT setval(pg_get_serial_sequence('queue', 'id'), %s, false)", [first])
    new = background.add.enqueue(2, 2)
    assert old.id == new.id
    work("default")
    with pytest.raises(TaskResultDoesNotExist):
        old.refresh()
    new.refresh()
    assert new.return_value == 4
    assert background.add.get_result(str(old.id)).return_value == 4


def test_django_task_with_a_non_json_result_runs_once_and_fails(dsn: str, tmp_path: Path) -> None:
    made = background.opaque.enqueue(str(tmp_path / "runs"))
    work("default")
    assert (tmp_path / "runs").read_text() == "run\n"
    made.refresh()
    assert made.status == TaskResultStatus.FAILED
    assert made.errors[0].exception_class_path.endswith("ResultNotJsonError")


def test_django_task_keeps_priority_queue_and_time(dsn: str) -> None:
    from datetime import timedelta

    from django.utils.timezone import now

    when = now() + timedelta(hours=1)
    later = background.add.using(run_after=when, priority=100).enqueue(0, 0)
    order = [background.add.using(priority=priority).enqueue(priority, 0).id for priority in (0, -100, 50, 100, 0, -1)]
    peeked = [f"default:{job.id}" for job in queue("default").peek(10)]
    assert peeked == [order[place] for place in (3, 2, 0, 4, 5, 1)]
    found = background.add.get_result(later.id)
    assert (found.task.priority, found.task.run_after, found.status) == (100, when, TaskResultStatus.READY)
    assert background.add.get_result(order[1]).task.priority == -100
    mail = background.add.using(queue_name="mails").enqueue(1, 1)
    assert queue("mails").count() == 1
    assert background.add.get_result(mail.id).task.queue_name == "mails"


@pytest.mark.parametrize(
    "result_id",
    ["", "7", "default:", "default:x", "default:999", "nowhere:1", "default:" + "9" * 30, "\0:1", "a/zz:1"],
)
def test_django_task_result_id_of_a_bad_value_finds_nothing(dsn: str, result_id: str) -> None:
    with pytest.raises(TaskResultDoesNotExist):
        background.add.get_result(result_id)


def test_django_row_can_name_tasks_only(dsn: str) -> None:
    call = background.add.get_backend()
    assert isinstance(call, PQCoreBackend)
    for path in ("django_project.shop.background.no_task", "os.getcwd"):
        made = background.add.enqueue(1, 1)
        job_id = int(made.id.partition(":")[2])
        [job] = queue("default").peek()
        queue("default").update(job_id, {**job.data, "kwargs": {**job.data["kwargs"], "task": path}})
        work("default")
        assert "only functions with @task are run" in queue("default").inspect(job_id).error["message"]


def test_django_task_result_ignores_other_jobs_of_the_queue(dsn: str) -> None:
    made = queue("default").put("something else", dedup=Dedup("key"))
    with pytest.raises(TaskResultDoesNotExist):
        background.add.get_result(f"default:{made}")


def test_django_task_check_reports_bad_options(dsn: str) -> None:
    assert list(background.add.get_backend().check()) == []
    for options, says in (
        ({"max_retries": -1}, "max_retries is -1"),
        ({"using": "nothing"}, "PQCORE has no 'nothing'"),
    ):
        [error] = PQCoreBackend("default", {"OPTIONS": options}).check()
        assert (error.id, says in error.msg) == ("pqcore.E004", True)
