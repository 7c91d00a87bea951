"""Rows that a producer writes in its own SQL: no content stops a consumer, and the next job is done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pqcore import PQError, json_views, tasks
from pqcore.cli.app import app
from pqcore.db.runtime import run_sync
from pqcore.operations import list_jobs
from pqcore.worker import Worker

CALL: dict[str, Any] = {"function": "hostile.work", "args": [], "kwargs": {}}
LINK: dict[str, Any] = {"queue": "q", "serializer": "json", "data": "1", "payload": None, "headers": {}}
ODD: list[dict[str, Any]] = [
    {"gate": 1},
    {"gate": []},
    {"gate": {"group": 5}},
    {"gate": {"group": "\0"}},
    {"gate": {"group": "\ud800"}},
    {"gate": {"group": "x" * 9_000}},
    {"gate": {"limits": [1]}},
    {"gate": {"limits": {"a": "b"}}},
    {"gate": {"limits": {"a": 0}}},
    {"gate": {"limits": {"a": 2**70}}},
    {"gate": {"limits": {"a": None}}},
    {"run": 1},
    {"run": {"retry": 1}},
    {"run": {"retry": {"exponential": [1]}}},
    {"run": {"timeout": "x"}},
    {"run": {"deadline": "x"}},
    {"keep": 10**400},
    {"keep": -1e300},
    {"keep": 1e300},
    {"keep": "x"},
    {"batch": 2**70},
    {"batch": True},
    {"batch": "x", "then": [LINK]},
    {"batch": 1, "then": [1]},
    {"then": 1},
    {"then": [{}]},
    {"then": [{**LINK, "queue": ""}]},
    {"then": [{**LINK, "queue": "\0"}]},
    {"then": [{**LINK, "more": 1}]},
    {"then": [{**LINK, "data": None, "payload": "a"}]},
    {"then": [{**LINK, "data": "{"}]},
    {"then": [{**LINK, "delay": 1e300}]},
    {"then": [{**LINK, "headers": {"gate": 1}}]},
    {"then": [{**LINK, "headers": {"then": [1]}}]},
    {"previous": 1},
]
HEADERS = [
    "1",
    "[]",
    "null",
    '"gate"',
    "[" * 900 + '"gate"' + "]" * 900,
    '{"a": ' + "[" * 3_000 + "]" * 3_000 + ', "gate": {}}',
    f'{{"gate": {"9" * 5_000}}}',
    '{"\\ud800": 1}',
    '{"a": "\\u0000", "gate": {}}',
    '{"a": "\\u0000", "gate": {"dedup": "started", "limits": {"x": 1}}}',
    '{"a": "\\ud800", "gate": {"dedup": "started", "limits": {"y": 1, "\\u0000": 1}, "group": "g"}}',
    *map(json.dumps, ODD),
    '{"keep": 1e400}',
    '{"run": {"timeout": 1e400, "deadline": -1e400}}',
]
DATA = [
    "1",
    "null",
    "[" * 3_000 + "]" * 3_000,
    "9" * 5_000,
    '"\\u0000"',
    '"\\ud800"',
    "1e400",
    '{"function": 1, "args": [], "kwargs": {}}',
    '{"function": [], "args": [], "kwargs": {}}',
    '{"function": "\\ud800", "args": [], "kwargs": {}}',
    '{"function": "hostile.work", "args": 1, "kwargs": []}',
    '{"function": "hostile.work", "args": [], "kwargs": {"\\ud800": 1}}',
    '{"function": "hostile.work", "args": [], "kwargs": {}, "max_retries": 1e400}',
    '{"function": "hostile.work", "args": [], "kwargs": {}, "retried": "x"}',
    '{"function": "hostile.work", "args": [1], "kwargs": {}, "max_retries": 3, "retry_in": 1e300}',
]
TIMES = [None, "-infinity", "infinity", "4000-01-01 BC", "20000-01-01", "2020-01-01"]
TEXTS = st.sampled_from([None, "", "x", "\U0010ffff" * 100, "'; DROP TABLE queue; --"])


class Producer:
    """A producer that puts hostile rows, with a role that may only put."""

    def __init__(self, dsn: str, name: str) -> None:
        self.dsn = dsn
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute(f"CREATE ROLE {name} LOGIN")
            owner.execute(f"GRANT hostile_producer TO {name}")
        parts = urlsplit(dsn)
        netloc = f"{name}@{parts.netloc.rpartition('@')[2]}"
        self.connection = psycopg.connect(urlunsplit(parts._replace(netloc=netloc)), autocommit=True)

    def put(self, **values: Any) -> None:
        row = {"q_name": "q", "data": json.dumps(CALL), **values}
        names = ", ".join(row)
        with suppress(psycopg.DataError, psycopg.OperationalError, psycopg.IntegrityError):  # the server's own limits
            self.connection.execute(
                f"INSERT INTO hostile ({names}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values())
            )


@pytest.fixture
def producer(dsn: str) -> Iterator[Producer]:
    done = CliRunner().invoke(app, ["create", "--roles", "--table", "hostile"], env={"PQCORE_DSN": dsn})
    assert done.exit_code == 0, done.output
    name = f"hostile_{dsn.rpartition('/')[2]}"
    made = Producer(dsn, name)
    yield made
    made.connection.close()
    with psycopg.connect(dsn) as owner:
        for role in (name, "hostile_producer", "hostile_consumer", "hostile_admin"):
            owner.execute(f"DROP OWNED BY {role}")
            owner.execute(f"DROP ROLE {role}")


@contextmanager
def open_queue(dsn: str, ran: list[int], **options: Any) -> Iterator[Any]:
    def work(job_id: int) -> None:
        ran.append(job_id)

    work.__module__, work.__qualname__ = "hostile", "work"
    with tasks.PQ(dsn, table="hostile", backend="psycopg", **options) as pq:
        queue: Any = pq["q"]
        queue.task()(work)
        yield queue


def look(queue: Any, dsn: str) -> None:
    """Call everything that shows jobs; a call may refuse one of these rows, but no other row."""
    for job in queue.jobs(*list_jobs.STATES):
        found: Any = list_jobs.get_full_job(queue.engine, job.id)
        json.dumps(json_views.whole(run_sync(found)), default=str)
        with suppress(PQError):
            queue.inspect(job.id)
    for letter in queue.dead.list():
        json.dumps(json_views.whole_letter(letter, "q"), default=str)
    for command in (["jobs", "q"], ["dead", "list", "q"], ["peek", "q"], ["stats"]):
        for form in ([], ["--json"]):
            done = CliRunner().invoke(app, [*command, *form, "--table", "hostile"], env={"PQCORE_DSN": dsn})
            assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)


def work_off(queue: Any, ran: list[int]) -> None:
    """Run a worker over all rows; the good job, which was put last, must be done."""
    good = queue.put(CALL)
    asyncio.run(asyncio.wait_for(Worker(queue, burst=True).run(), 60))
    assert good in ran


def test_worker_survives_hostile_rows_of_a_producer(producer: Producer) -> None:
    ran: list[int] = []
    with open_queue(producer.dsn, ran) as queue:
        for headers in HEADERS:
            producer.put(headers=headers)
        for data in DATA:
            producer.put(data=data)
        for when in TIMES:
            producer.put(enqueued_at=when or "now")
            producer.put(schedule_at=when, expected_at="-infinity")
        look(queue, producer.dsn)
        work_off(queue, ran)
        look(queue, producer.dsn)
        assert {letter.reason for letter in queue.dead.list(1_000)} <= {"invalid", "failed"}
        assert not queue.jobs("leased")
        assert queue.dead.retry_all() > len(HEADERS) // 2
        work_off(queue, ran)


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_get_and_lease_survive_hostile_rows(producer: Producer, retention: Any) -> None:
    with open_queue(producer.dsn, [], retention=retention) as queue:
        for leased in (False, True):
            for headers in HEADERS:
                producer.put(headers=headers)
            for data in DATA:
                producer.put(data=data)
            found = 0
            while (job := queue.lease(60, block=False) if leased else queue.get(block=False)) is not None:
                found += 1
                assert isinstance(job.headers, dict)
                with suppress(PQError):
                    _ = job.data
                if leased and found % 2:
                    job.nack(3_600)
                elif leased:
                    job.ack()
            assert found > len(HEADERS) // 2
            assert not queue.jobs("leased")


def test_worker_survives_any_batch_callback(producer: Producer) -> None:
    ran: list[int] = []
    with open_queue(producer.dsn, ran) as queue:
        for callback in ("1", "{}", json.dumps({**LINK, "queue": ""}), "[" * 3_000 + "]" * 3_000):
            with suppress(psycopg.OperationalError):
                [batch] = producer.connection.execute(
                    "INSERT INTO hostile_batches (q_name, total, pending, callback)"
                    " VALUES ('q', 1, 1, %s) RETURNING id",
                    [callback],
                ).fetchone() or [0]
                producer.put(headers=json.dumps({"batch": batch}))
        work_off(queue, ran)
        assert not queue.jobs("leased")


def test_worker_survives_ids_at_the_ends_of_the_range(producer: Producer) -> None:
    ran: list[int] = []
    with open_queue(producer.dsn, ran) as queue:
        with psycopg.connect(producer.dsn, autocommit=True) as owner:  # a producer must not choose an id
            for job_id in (-(2**63), -5, 2**63 - 1):
                owner.execute("INSERT INTO hostile (id, q_name, data) VALUES (%s, 'q', '1')", [job_id])
        work_off(queue, ran)
        assert sorted(letter.id for letter in queue.dead.list()) == [-(2**63), -5, 2**63 - 1]


WORDS = ["gate", "run", "keep", "then", "batch", "previous", "group", "limits", "retry", "fixed", "timeout", *LINK]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(), each, max_size=4),
    max_leaves=12,
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "data": st.one_of(JSON, st.fixed_dictionaries(dict.fromkeys(CALL, JSON))).map(json.dumps),
        "payload": st.binary(),
        "serializer": TEXTS,
        "headers": (st.dictionaries(st.sampled_from(WORDS), JSON, max_size=3) | JSON).map(json.dumps),
        "group_key": TEXTS,
        "dedup_key": TEXTS,
        "enqueued_at": st.sampled_from(TIMES[1:]),
        "schedule_at": st.sampled_from(TIMES),
        "expected_at": st.sampled_from(TIMES),
    },
)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate, Phase.explicit],
)
@given(rows=st.lists(ROWS, min_size=15, max_size=40))
def test_worker_survives_any_row(producer: Producer, rows: list[dict[str, Any]]) -> None:
    ran: list[int] = []
    with open_queue(producer.dsn, ran) as queue:
        for row in rows:
            producer.put(**row)
        work_off(queue, ran)
        assert not queue.jobs("leased")
