"""The starting tables of migrations: pq's table, made by pq 1.9.1 itself, and the tables of pqcore's versions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pq as pq_1_9_1
import psycopg2
import pytest

from pqcore import Dedup, Job, schema, tasks
from pqcore.current_rules import CurrentRules
from pqcore.db.engine import Engine
from pqcore.operations import fetch, worker_registry
from pqcore.operations.samples import Sampling
from pqcore.operations.schedules import FoundTimetable
from pqcore.operations.worker_registry import RunningWorker
from pqcore.schema import scripts
from pqcore.settings import QueueSettings
from pqcore.sql import attempt_statements, queue_statements, task_statements
from pqcore.worker import Worker, heartbeat
from pqcore.worker import schedules as worker_schedules
from pqcore.worker.maintenance import Maintenance

RECORD_BEFORE_6 = (
    "CREATE TABLE IF NOT EXISTS {migrations} (table_name text, version integer,"
    " applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (table_name, version))"
)
"""The record of migrations as versions 1 to 5 made it."""


@contextmanager
def knowing(version: int) -> Iterator[None]:
    """Make pqcore know only the versions up to this one, as the code of that time did."""
    known = schema.migrations()[:version]
    with pytest.MonkeyPatch.context() as patch:
        for module in (schema, scripts):  # each has the name
            patch.setattr(module, "migrations", lambda: known)
        if version < 6:
            patch.setattr(schema, "RECORD", RECORD_BEFORE_6)
        if version < 8:  # it asked for no rules
            patch.setattr(fetch, "read_current_rules", _no_rules)
            patch.setattr(heartbeat, "current_rules", _no_rules)
        if version < 11:  # it kept no attempts, and did not tell which jobs a worker runs
            for module in (attempt_statements, task_statements):
                patch.setattr(module, "keep_attempt", lambda source: f"noted AS (SELECT FROM {source})")
            patch.setattr(worker_registry, "announce", _announce_before_11)
        if version < 12:  # it kept no samples
            patch.setattr(Sampling, "run", _keep_no_sample)
        if version < 13:  # it put no jobs of schedules
            patch.setattr(worker_schedules, "find_timetables", _no_timetables)
        if version < 15:  # it had no jobs that wait for other jobs
            patch.setattr(queue_statements, "ENDED_PARENT", "false")
            patch.setattr(queue_statements, "tell_deleted", lambda _: "")
            for module in (queue_statements, task_statements):
                patch.setattr(module, "AWAITED", "false")
            patch.setattr(Maintenance, "_release", _release_nothing)
        yield


async def _release_nothing(*_: object) -> None: ...


async def _no_timetables(engine: Engine, queue: QueueSettings) -> list[FoundTimetable]:
    return []


async def _announce_before_11(engine: Engine, worker: RunningWorker, *_: object) -> list[str]:
    """Do nothing: a worker of an older version is listed without the jobs that it runs."""
    return []


async def _keep_no_sample(*_: object) -> int:
    return 0


async def _no_rules(engine: Engine, queue: QueueSettings) -> CurrentRules:
    return CurrentRules()


def make_pqs(dsn: str) -> None:
    """Have pq 1.9.1 make its table and put jobs of each kind."""
    connection = psycopg2.connect(dsn)
    try:
        made = pq_1_9_1.PQ(connection)
        made.create()
        queue = made["q"]
        now = datetime.now(timezone.utc)
        queue.put("finished")
        assert queue.get(block=False).data == "finished"
        queue.put({"waiting": 1})
        queue.put("due", schedule_at=now - timedelta(hours=1))
        queue.put("scheduled", schedule_at=now + timedelta(hours=1))
        queue.put("expected", expected_at=now + timedelta(hours=1))
        made["objects/pickle"].put({"an object"})
    finally:
        connection.close()


IN_ORDER_OF_PQS = ["expected", "due", {"waiting": 1}]
"""What is due of what `make_pqs` puts, in order."""


@dataclass
class Flight:
    """The work in progress when the table was migrated.

    Attributes:
        leases: The jobs under a lease.
        ids: The ids of other jobs, by their kind.
    """

    leases: list[Job] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)


class Broken(Exception):
    """What a task raises."""


def make(dsn: str, version: int) -> None:
    """Make the table of a version."""
    with knowing(version), tasks.PQ(dsn, backend="psycopg") as pq:
        pq.create(keep_finished=None, keep_dead=None)  # for which older versions have no table


def make_with_rows(dsn: str, version: int) -> None:
    """The same, with a job in it."""
    make(dsn, version)
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO queue (q_name, data) VALUES ('q', '1')")
    connection.close()


def fly(pq: tasks.PQ, version: int) -> Flight:
    """Have jobs in each state that the tables of a version can hold."""
    queue, flight = pq["q"], Flight()
    finished, archived = queue.put("finished"), queue.put("archived")
    if version >= 8:
        queue.get()
        pq.queue("q", retention="archive").get()
    else:  # today's code orders what it gets by a column of version 8, so they are finished as code of then did
        with queue as cursor:
            taken = "dequeued_at = statement_timestamp(), attempts = attempts + 1"
            cursor.execute(f"UPDATE queue SET {taken} WHERE id = %s", [finished])
            cursor.execute(
                "WITH gone AS (DELETE FROM queue WHERE id = %s RETURNING *)"
                " INSERT INTO queue_archive (id, q_name, enqueued_at, dequeued_at, data, attempts, serializer)"
                " SELECT id, q_name, enqueued_at, statement_timestamp(), data, attempts + 1, serializer FROM gone",
                [archived],
            )
    for number in range(2):
        queue.put(f"leased {number}")
    queue.put("nacked")
    *flight.leases, nacked = queue.lease_many(3, "1h")
    nacked.nack("1h")
    flight.ids["scheduled"] = queue.put("scheduled", "1h")
    flight.ids["expected"] = queue.put("expected", expected_at="1h")
    flight.ids["bytes"] = pq["bytes/pickle"].put({"an object"})
    if version >= 8:
        flight.ids["keyed"] = queue.put("keyed", dedup="key")
        _fly_high(pq, flight)
    elif version >= 2:  # today's code needs columns of version 8 for these, so they are written as code of then did
        with queue as cursor:
            flight.ids["keyed"] = _insert(cursor, "q", "keyed", dedup_key="key")
        if version >= 4:  # there are all the tables
            _fly_as_then(pq, flight)
    flight.ids["waiting"] = queue.put("waiting")
    return flight


def _fly_high(pq: tasks.PQ, flight: Flight) -> None:
    queue = pq["grouped"]
    for text in ("first", "second"):
        flight.ids[text] = queue.put(text, group="g")
    flight.leases += queue.lease_many(2, "1h")
    flight.ids["held"] = queue.put("held", "1h", dedup=Dedup("held", until=3600))

    @pq["tasks"].task(keep_result="1h")
    def add(job_id: int, a: int, b: int) -> int:
        return a + b

    @pq["tasks"].task(max_retries=0)
    def fail(job_id: int) -> None:
        raise Broken

    @pq["tasks"].task(max_retries=3, retry_in="1h")
    def fail_again(job_id: int) -> None:
        raise Broken

    flight.ids |= {"done": int(add(1, 2)), "dead": int(fail()), "retried": int(fail_again())}

    async def work() -> None:
        await Worker(pq["tasks"], burst=True).run()

    asyncio.run(work())


def _insert(cursor: Any, queue: str, data: object, **values: object) -> int:
    """Write a row of the table as code of an older version did; return its id."""
    columns = {"q_name": queue, "data": json.dumps(data), "serializer": "json", **values}
    places = ", ".join(["%s"] * len(columns))
    cursor.execute(f"INSERT INTO queue ({', '.join(columns)}) VALUES ({places}) RETURNING id", list(columns.values()))
    return int(cursor.fetchone()[0])


def _fly_as_then(pq: tasks.PQ, flight: Flight) -> None:
    """Write what `_fly_high` puts as code of versions 4 to 7 did, which gave slots, and parked without an end."""
    queue, ids = pq["grouped"], flight.ids
    ids["first"] = queue.put("first")
    flight.leases += queue.lease_many(1, "1h")
    grouped: dict[str, object] = {"headers": '{"gate": {"group": "g"}}', "group_key": "g"}
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    with queue as cursor:
        cursor.execute(
            "UPDATE queue SET headers = %s, group_key = %s WHERE id = %s RETURNING id",
            [*grouped.values(), ids["first"]],
        )
        cursor.execute(
            "INSERT INTO queue_slots (q_name, key, job_id) VALUES ('grouped', 'group:g', %s)", [ids["first"]]
        )
        ids["second"] = _insert(
            cursor, "grouped", "second", attempts=1, excused=1, parked_on="group:g", leased_until="infinity", **grouped
        )
        ids["held"] = _insert(cursor, "grouped", "held", schedule_at=later)
        cursor.execute(
            "INSERT INTO queue_dedup (q_name, dedup_key, job_id, until) VALUES ('grouped', 'held', %s, %s)",
            [ids["held"], later],
        )
        ids["done"] = _insert(cursor, "tasks", {}, attempts=1, dequeued_at=datetime.now(timezone.utc))
        cursor.execute(
            "INSERT INTO queue_results (job_id, q_name, state, data, serializer, expires_at)"
            " VALUES (%s, 'tasks', 'done', '3', 'json', %s)",
            [ids["done"], later],
        )
        ids["retried"] = _insert(cursor, "tasks", {}, attempts=1, failures=1, schedule_at=later)
        ids["dead"] = _insert(cursor, "tasks", {}, attempts=1, failures=1)
        cursor.execute(
            "WITH gone AS (DELETE FROM queue WHERE id = %s RETURNING *)"
            " INSERT INTO queue_dead (id, q_name, enqueued_at, data, attempts, serializer, failures, reason)"
            " SELECT id, q_name, enqueued_at, data, attempts, serializer, failures, 'failed' FROM gone",
            [ids["dead"]],
        )


def land(pq: tasks.PQ, flight: Flight, older: tasks.PQ) -> None:
    """Check that all work in progress goes on, with code of either version, and has kept its meaning.

    Args:
        pq: Over the table as it is now.
        flight: What `fly` gave.
        older: That which `fly` was given.
    """
    queue, ids = pq["q"], flight.ids
    first, second = flight.leases[:2]
    older["q"].ack(first)
    assert queue.ack_many([second]) == []
    assert [queue.status(job.id) for job in (first, second)] == ["done", "done"]
    if "done" in ids:
        _land_from_high(pq, flight, older)
    keyed = ["keyed"] if "keyed" in ids else []
    for each in (queue, older["q"]) if keyed else ():
        assert each.put("again", dedup="key") == ids["keyed"]
    assert pq["bytes/pickle"].get().data == {"an object"}  # type: ignore[union-attr]
    assert [job.data for job in queue.get_many(1)] == ["expected"]
    assert [job.data for job in older["q"].get_many(9)] == [*keyed, "waiting"]
    assert (queue.get(block=False), queue.stats().scheduled) == (None, 2)


def _land_from_high(pq: tasks.PQ, flight: Flight, older: tasks.PQ) -> None:
    queue, ids = pq["grouped"], flight.ids
    [lease] = flight.leases[2:]  # of the first
    assert (queue.status(ids["first"]), queue.status(ids["second"])) == ("leased", "parked")
    queue.ack(lease)
    assert queue.status(ids["second"]) == "ready"
    [second] = queue.lease_many(9)
    assert (second.data, second.attempts) == ("second", 1)
    second.ack()
    for each in (queue, older["grouped"]):
        assert each.put("again", dedup=Dedup("held", until=3600)) == ids["held"]
    assert older["tasks"].result(ids["done"]) == pq["tasks"].result(ids["done"]) == 3
    assert (pq["tasks"].status(ids["retried"]), pq["tasks"].inspect(ids["retried"]).failures) == ("scheduled", 1)
    [letter] = pq["tasks"].dead.list()
    assert (letter.id, letter.failures, letter.reason) == (ids["dead"], 1, "failed")
    assert older["tasks"].dead.retry(letter.id) == 1
    assert pq["tasks"].status(letter.id) == "ready"
