"""Jobs and dead letters in Django's admin."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from django_project import fixtures  # imported first, because it sets Django up

# isort: split

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from released_job import lease_after_release

from django_project.shop import tasks
from pqcore.integrations.django import queue
from pqcore.integrations.django.models import Job
from pqcore.worker import Worker

JOBS, DEAD = "/admin/pqcore/job/", "/admin/pqcore/deadletter/"

dsn, project = fixtures.dsn, fixtures.project


@pytest.fixture(scope="module")
def users(project: str) -> dict[str, User]:
    """Users who may do everything, only look, operate, or remove."""
    made = {"root": User.objects.create_superuser("root")}
    for name in ("view", "change", "delete"):
        made[name] = User.objects.create_user(name, is_staff=True)
        for verb in {"view", name}:
            permissions = Permission.objects.filter(content_type__app_label="pqcore", codename__startswith=verb)
            assert permissions.count() == 2
            made[name].user_permissions.add(*permissions)
    return made


@pytest.fixture
def root(users: dict[str, User], dsn: str) -> Client:
    """A client of a user who may do everything."""
    return client(users["root"])


def client(user: User) -> Client:
    made = Client()
    made.force_login(user)
    return made


def page(of: Client, path: str) -> str:
    answer = of.get(path)
    assert answer.status_code == 200, answer.status_code
    return str(answer.content.decode())


def act(of: Client, path: str, action: str, *ids: int) -> str:
    answer = of.post(path, {"action": action, "_selected_action": ids}, follow=True)
    assert answer.status_code == 200
    return str(answer.content.decode())


def ids(text: str, model: str) -> list[int]:
    """Return the ids in a list, in order."""
    return [int(found) for found in re.findall(rf'href="/admin/pqcore/{model}/(\d+)/change/', text)]


def bury() -> int:
    """Make a dead letter."""
    made = int(tasks.fail())
    asyncio.run(Worker(queue("orders"), burst=True, concurrency=1).run())
    assert queue("orders").dead.count() == 1
    return made


def test_admin_list_shows_and_filters_states_and_functions(root: Client) -> None:
    orders = queue("orders")
    waiting = int(tasks.ship(1))
    scheduled = orders.put("later", schedule_at="1h")
    other = queue("others").put("elsewhere")
    done = orders.put("done", expected_at="1m")
    assert [job.id for job in orders.get_many(1, block=False)] == [done]
    text = page(root, JOBS)
    assert ids(text, "job") == [done, other, scheduled, waiting]
    assert "django_project.shop.tasks.ship" in text
    for state, found in (("ready", [other, waiting]), ("scheduled", [scheduled]), ("done", [done]), ("leased", [])):
        assert ids(page(root, f"{JOBS}?state={state}"), "job") == found
    assert ids(page(root, f"{JOBS}?queue=others"), "job") == [other]
    assert '?queue=others"' in text
    assert ids(page(root, f"{JOBS}?q={scheduled}"), "job") == [scheduled]
    for nothing in ("999", "no number", "9" * 30, "-1"):
        assert ids(page(root, f"{JOBS}?q={nothing}"), "job") == []
    for column in range(1, 10):
        page(root, f"{JOBS}?o={column}")


def test_admin_tells_jobs_that_could_be_admitted_from_those_that_cannot(root: Client) -> None:
    orders = queue("orders")
    orders.put_many([1, 2], limits={"one": 1})
    assert re.findall(r'field-state">(\w+)<', page(root, JOBS)) == ["parked", "ready"]
    orders.lease(60)
    assert re.findall(r'field-state">(\w+)<', page(root, JOBS)) == ["parked", "leased"]


def test_admin_shows_every_field_of_a_job(root: Client) -> None:
    made = queue("orders").put({"name": "<b>Ann</b>"}, headers={"trace": 7}, schedule_at="1h", group="g")
    text = page(root, f"{JOBS}{made}/change/")
    assert "&lt;b&gt;Ann&lt;/b&gt;" in text
    assert "<b>Ann</b>" not in text
    assert "scheduled" in text
    assert "&quot;trace&quot;: 7" in text
    assert 'name="_save"' not in text
    binary = queue("orders/msgpack").put([1, 2])
    assert "3 bytes of msgpack" in page(root, f"{JOBS}{binary}/change/")


def test_admin_shows_a_dead_letter_with_its_traceback(root: Client) -> None:
    made = bury()
    assert ids(page(root, DEAD), "deadletter") == [made]
    assert ids(page(root, f"{DEAD}?reason=crashed"), "deadletter") == []
    assert ids(page(root, f"{DEAD}?queue=orders&reason=failed"), "deadletter") == [made]
    for listed in (page(root, DEAD), page(root, f"{DEAD}?o=5")):
        assert re.search(r'field-short_error">(builtins\.)?RuntimeError: the &lt;b&gt;reason&lt;/b&gt;<', listed)
    text = page(root, f"{DEAD}{made}/change/")
    assert "Traceback (most recent call last)" in text
    assert "RuntimeError: the &lt;b&gt;reason&lt;/b&gt;" in text
    assert "django_project.shop.tasks.fail" in text


def test_admin_shows_the_runs_of_a_job_as_its_attempts(root: Client) -> None:
    job = lease_after_release(queue("orders"))
    assert re.search(r'field-attempts">1</td>', page(root, f"{JOBS}?q={job.id}"))
    assert Job.objects.get(pk=job.id).attempts == Job.objects.get(attempts=1, token=2).attempts == 1
    job.bury("it is of no use")
    assert re.search(r'field-attempts">1</td>', page(root, DEAD))


def test_admin_actions_retry_and_cancel_jobs(root: Client) -> None:
    orders = queue("orders")
    scheduled, waiting = orders.put("later", schedule_at="1h"), orders.put("now")
    text = act(root, JOBS, "retry", scheduled, waiting)
    assert "1 made due now" in text
    assert "1 was left unchanged: its state does not allow this, or has changed" in text
    assert orders.status(scheduled) == "ready"
    [leased] = orders.lease_many(1, "1h", block=False)
    text = act(root, JOBS, "cancel", scheduled, waiting)
    assert "2 cancelled" in text  # one of them by asking its worker to stop
    assert [job.id for job in orders.jobs()] == [leased.id]
    entries = LogEntry.objects.filter(content_type__app_label="pqcore")
    assert sorted(entry.change_message for entry in entries) == ["cancelled", "cancelled", "made due now"]


def test_admin_actions_retry_and_delete_dead_letters(root: Client) -> None:
    made = bury()
    assert "1 put again" in act(root, DEAD, "revive", made)
    assert queue("orders").status(made) == "ready"
    queue("orders").clear()
    made = bury()
    assert "1 deleted" in act(root, DEAD, "purge", made)
    assert queue("orders").dead.count() == 0


def test_admin_actions_need_their_permissions(users: dict[str, User], dsn: str) -> None:
    offered = {
        "view": [],
        "change": ["retry", "revive"],
        "delete": ["cancel", "purge"],
    }
    orders = queue("orders")
    dead = bury()
    job = orders.put("later", schedule_at="1h")
    for name, may in offered.items():
        of = client(users[name])
        texts = {path: page(of, path) for path in (JOBS, DEAD)}
        for path, action, job_id in (
            (JOBS, "retry", job),
            (JOBS, "cancel", job),
            (DEAD, "revive", dead),
            (DEAD, "purge", dead),
        ):
            assert (f'value="{action}"' in texts[path]) == (action in may)
            if action not in may:
                act(of, path, action, job_id)
        assert (orders.status(job), orders.dead.count()) == ("scheduled", 1)
    nobody = client(User.objects.create_user("staff", is_staff=True))
    assert nobody.get(JOBS).status_code == 403


@pytest.mark.parametrize("path", [JOBS, DEAD])
def test_admin_refuses_to_add_change_and_delete_rows(root: Client, path: str) -> None:
    job_id = bury() if path == DEAD else queue("orders").put("stays", schedule_at="1h")
    changes: dict[str, Any] = {"queue_name": "stolen", "id": job_id}
    for place in (f"{path}add/", f"{path}{job_id}/change/", f"{path}{job_id}/delete/"):
        assert root.post(place, {**changes, "post": "yes"}).status_code == 403, place
    assert 'value="delete_selected"' not in page(root, path)
    assert queue("orders").status(job_id) in ("scheduled", "dead")
