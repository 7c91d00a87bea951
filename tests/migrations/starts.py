"""What a migration starts from: pq's table, made by pq 1.9.1 itself, and those of pqcore's own versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import pq as pq_1_9_1
import psycopg2
import pytest

from pqcore import Dedup, Job, schema, tasks
from pqcore.schema import scripts
from pqcore.worker import Worker

RECORD_BEFORE_6 = (
    "CREATE TABLE IF NOT EXISTS {migrations} (table_name text, version integer,"
    " applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (table_name, version))"
)
"""The record of migrations as versions 1 to 5 made it."""


@contextmanager
def knowing(version: int) -> Iterator[None]:
    """Have pqcore know the versions up to this one only, as the code of that time did."""
    known = schema.migrations()[:version]
    with pytest.MonkeyPatch.context() as patch:
        for module in (schema, scripts):  # each has the name
            patch.setattr(module, "migrations", lambda: known)
        if version < 6:
            patch.setattr(schema, "RECORD", RECORD_BEFORE_6)
        yield


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
    """What was under way when the table was migrated.

    Attributes:
        leases: Jobs under a lease.
        ids: Of others, by what they are.
    """

    leases: list[Job] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)


class Broken(Exception):
    """What a task raises."""


def make(dsn: str, version: int) -> None:
    """Make the table of a version."""
    with knowing(version), tasks.PQ(dsn, backend="psycopg") as pq:
        pq.create()


def make_with_rows(dsn: str, version: int) -> None:
    """The same, with a job in it."""
    make(dsn, version)
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO queue (q_name, data) VALUES ('q', '1')")
    connection.close()


def fly(pq: tasks.PQ, version: int) -> Flight:
    """Have jobs in each state that the tables of a version can hold."""
    queue, flight = pq["q"], Flight()
    queue.put("finished")
    queue.get()
    queue.put("archived")
    pq.queue("q", retention="archive").get()
    for number in range(2):
        queue.put(f"leased {number}")
    queue.put("nacked")
    *flight.leases, nacked = queue.lease_many(3, "1h")
    nacked.nack("1h")
    flight.ids["scheduled"] = queue.put("scheduled", "1h")
    flight.ids["expected"] = queue.put("expected", expected_at="1h")
    flight.ids["bytes"] = pq["bytes/pickle"].put({"an object"})
    if version >= 2:  # there is the index of keys
        flight.ids["keyed"] = queue.put("keyed", dedup="key")
    if version >= 4:  # there are all the tables
        _fly_high(pq, flight, version)
    flight.ids["waiting"] = queue.put("waiting")
    return flight


def _fly_high(pq: tasks.PQ, flight: Flight, version: int) -> None:
    queue = pq["grouped"]
    for text in ("first", "second"):
        flight.ids[text] = queue.put(text, group="g")
    flight.leases += queue.lease_many(2, "1h")
    flight.ids["held"] = queue.put("held", "1h", dedup=Dedup("held", until=3600))

    @pq["tasks"].task(keep_result="1h" if version >= 7 else None)  # today's code writes what version 7 has
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
    if version < 7:
        with pq["tasks"] as cursor:
            cursor.execute(
                "INSERT INTO queue_results (job_id, q_name, state, data, serializer, expires_at)"
                " VALUES (%s, 'tasks', 'done', '3', 'json', now() + interval '1 hour')",
                [flight.ids["done"]],
            )


def land(pq: tasks.PQ, flight: Flight, older: tasks.PQ) -> None:
    """All that was under way goes on, by code of either version, and means what it did.

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
    [lease] = flight.leases[2:]  # of the first; the second was parked when it was looked at
    assert (queue.status(ids["first"]), queue.status(ids["second"])) == ("leased", "parked")
    queue.ack(lease)
    assert queue.status(ids["second"]) == "ready"
    assert [job.data for job in older["grouped"].get_many(9)] == ["second"]
    for each in (queue, older["grouped"]):
        assert each.put("again", dedup=Dedup("held", until=3600)) == ids["held"]
    assert older["tasks"].result(ids["done"]) == pq["tasks"].result(ids["done"]) == 3
    assert (pq["tasks"].status(ids["retried"]), pq["tasks"].inspect(ids["retried"]).failures) == ("scheduled", 1)
    [letter] = pq["tasks"].dead.list()
    assert (letter.id, letter.failures, letter.reason) == (ids["dead"], 1, "failed")
    assert older["tasks"].dead.retry(letter.id) == 1
    assert pq["tasks"].status(letter.id) == "ready"
