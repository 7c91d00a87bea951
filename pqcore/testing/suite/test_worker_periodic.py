"""Periodic tasks: one job a tick however many workers, and what becomes of ticks that were missed."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from pqcore.identifiers import TableName
from pqcore.testing.harness import Harness
from pqcore.testing.notes import Notes

WORKERS = 8
TICKS = 5


def ticks_table(harness: Harness) -> str:
    return TableName("queue", harness.schema).related("_ticks")


def counts(harness: Harness) -> list[tuple[Any, int]]:
    """The ticks for which there are jobs, and how many each has."""
    rows = harness.sql("SELECT schedule_at AT TIME ZONE 'UTC', count(*) FROM {table} GROUP BY 1 ORDER BY 1")
    return [(row[0], row[1]) for row in rows]


def test_each_tick_gives_one_job_however_many_workers_there_are(harness: Harness) -> None:
    queues = [harness.task_queue()] + [harness.tasks(create=False)["q"] for _ in range(WORKERS - 1)]
    seen = Notes()
    for queue in queues:

        @queue.periodic("* * * * * *", missed="all", args=(7,))
        @queue.task(deadline="2s")
        async def tick(job_id: int, number: int) -> None:
            seen.add(number)

    with ExitStack() as stack:
        for queue in queues:
            stack.enter_context(harness.working(queue))
        harness.eventually(lambda: len(counts(harness)) >= TICKS)
    found = counts(harness)
    assert [number for _, number in found] == [1] * len(found)
    moments = [moment for moment, _ in found]
    assert all(later - earlier == timedelta(seconds=1) for earlier, later in pairwise(moments))
    assert all(moment.microsecond == 0 for moment in moments)
    seen.wait(TICKS - 1)
    assert set(seen.items) == {7}
    assert queues[0].dead.count() == 0, "a deadline counts from the tick"
    late = harness.sql("SELECT extract(epoch FROM min(enqueued_at - schedule_at))::float8 FROM {table}")
    assert late[0][0] >= 0, "none is put before its time"


@pytest.mark.parametrize(("missed", "jobs"), [("latest", 1), ("all", 5), ("skip", 0)])
def test_missed_ticks(harness: Harness, missed: str, jobs: int) -> None:
    queue = harness.task_queue()
    seen = Notes()
    [[minute]] = harness.sql("SELECT extract(minute FROM now() + interval '30 min')::int")

    @queue.periodic(f"{minute} * * * *", missed=missed, name="hourly")
    @queue.task()
    async def hourly(job_id: int) -> None:
        seen.add(job_id)

    @queue.periodic("* * * * * *", name="each second")
    @queue.task()
    async def each_second(job_id: int) -> None:
        seen.add("second")

    # The last tick before this moment was half an hour ago; the last that is remembered, five hours before that.
    harness.sql(
        f"INSERT INTO {ticks_table(harness)} (q_name, name, tick) SELECT 'q', 'hourly',"
        " date_trunc('minute', now() - interval '30 min') - interval '5 h'",
        rows=False,
    )
    with harness.working(queue):
        harness.eventually(lambda: seen.items.count("second") >= 1)
        harness.eventually(lambda: len([item for item in seen.items if item != "second"]) >= jobs)
    with harness.working(queue):  # it is remembered what was made up for
        harness.eventually(lambda: seen.items.count("second") >= 2)
    done = harness.sql(
        "SELECT (schedule_at AT TIME ZONE 'UTC')::text FROM {table}"
        " WHERE data->>'function' LIKE '%.hourly' ORDER BY schedule_at"
    )
    assert len(done) == jobs
    assert all(moment.endswith(f":{minute:02}:00") for [moment] in done)
    if jobs:
        [[tick]] = harness.sql(
            f"SELECT (tick AT TIME ZONE 'UTC')::text FROM {ticks_table(harness)} WHERE name = 'hourly'"
        )
        assert done[-1] == (tick,)


def test_counting_begins_with_the_first_worker(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = Notes()

    @queue.periodic("* * * * * *", missed="all")
    @queue.task()
    async def tick(job_id: int) -> None:
        seen.add(job_id)

    [[before]] = harness.sql("SELECT now() AT TIME ZONE 'UTC'")
    with harness.working(queue):
        seen.wait(1)
    [(first, _), *_] = counts(harness)
    assert before < first
