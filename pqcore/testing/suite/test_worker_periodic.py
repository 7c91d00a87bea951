"""Periodic tasks: one job for each tick however many workers run, and the handling of missed ticks."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from pqcore.operations import periodic
from pqcore.sql.identifiers import TableName
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.probes import Notes

WORKERS = 8
TICKS = 3


def ticks_table(harness: Harness) -> str:
    return TableName("queue", harness.schema).related("_ticks")


def counts(harness: Harness) -> list[tuple[Any, int]]:
    """Return the ticks for which there are jobs, with the number of jobs."""
    rows = harness.sql("SELECT schedule_at AT TIME ZONE 'UTC', count(*) FROM {table} GROUP BY 1 ORDER BY 1")
    return [(row[0], row[1]) for row in rows]


def test_periodic_tick_puts_one_job_under_several_workers(harness: Harness) -> None:
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


def test_periodic_missed_ticks_follow_each_tasks_option(harness: Harness) -> None:
    queue = harness.task_queue()
    seen: dict[str, Notes] = {"each second": Notes()}
    jobs = {"latest": 1, "all": 5, "skip": 0}
    [[minute]] = harness.sql("SELECT extract(minute FROM now() + interval '30 min')::int")

    @queue.task()
    async def note(job_id: int, name: str) -> None:
        seen[name].add(job_id)

    queue.periodic("* * * * * *", name="each second", args=("each second",))(note)
    for missed in jobs:
        seen[missed] = Notes()
        queue.periodic(f"{minute} * * * *", missed=missed, name=missed, args=(missed,))(note)
        # The last tick before now was half an hour ago; the last stored tick was five hours earlier.
        harness.sql(
            f"INSERT INTO {ticks_table(harness)} (q_name, name, tick) SELECT 'q', '{missed}',"
            " date_trunc('minute', now() - interval '30 min') - interval '5 h'",
            rows=False,
        )
    with harness.working(queue):
        seen["each second"].wait(1)
        for missed, number in jobs.items():
            seen[missed].wait(number)
    with harness.working(queue):  # the ticks that were caught up are stored
        seen["each second"].wait(2)
    for missed, number in jobs.items():
        done = harness.sql(
            "SELECT (schedule_at AT TIME ZONE 'UTC')::text FROM {table}"
            f" WHERE data->'args'->>0 = '{missed}' ORDER BY schedule_at"
        )
        assert len(done) == number, missed
        assert all(moment.endswith(f":{minute:02}:00") for [moment] in done)
        if number:
            [[tick]] = harness.sql(
                f"SELECT (tick AT TIME ZONE 'UTC')::text FROM {ticks_table(harness)} WHERE name = '{missed}'"
            )
            assert done[-1] == (tick,)


LONG_AGO = "now() - interval '3 d'"


def remember(harness: Harness, name: str, tick: str, cron: str | None, tz: str | None = "UTC") -> None:
    """Set the last tick of a task as a worker would that knew this expression."""
    values = ", ".join("NULL" if value is None else f"'{value}'" for value in (cron, tz if cron else None))
    harness.sql(
        f"INSERT INTO {ticks_table(harness)} (q_name, name, tick, cron, tz) VALUES ('q', '{name}', {tick}, {values})",
        rows=False,
    )


def hour_ago(harness: Harness) -> str:
    """Return an expression whose last tick was half an hour ago."""
    [[minute, hour]] = harness.sql(
        "SELECT extract(minute FROM past)::int, extract(hour FROM past)::int"
        " FROM (SELECT (now() - interval '30 min') AT TIME ZONE 'UTC' AS past) AS past"
    )
    return f"{minute} {hour} * * *"


def test_periodic_expression_that_was_edited_counts_from_its_first_worker(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = Notes()
    edited = hour_ago(harness)
    remembered = {"cron": ("0 0 1 1 *", "UTC"), "time zone": (edited, "Europe/Berlin")}

    @queue.task()
    async def note(job_id: int, name: str) -> None:
        seen.add(name)

    queue.periodic("* * * * * *", name="each second", args=("each second",))(note)
    for what, (cron, tz) in remembered.items():
        for missed in ("latest", "all"):
            name = f"{what}, {missed}"
            remember(harness, name, LONG_AGO, cron, tz)
            queue.periodic(edited, missed=missed, name=name, args=(name,))(note)

    def lines() -> set[tuple[Any, ...]]:
        return set(
            harness.sql(
                f"SELECT cron, tz, tick > now() - interval '1 min' FROM {ticks_table(harness)}"
                " WHERE name <> 'each second'"
            )
        )

    with harness.working(queue):
        harness.eventually(lambda: lines() == {(edited, "UTC", True)})
    with harness.working(queue):
        seen.wait(len(seen.items) + 2)
    assert lines() == {(edited, "UTC", True)}
    assert set(seen.items) == {"each second"}
    assert harness.sql("SELECT id FROM {table} WHERE schedule_at < now() - interval '10 min'") == []


def test_periodic_ticks_recorded_by_older_code_are_made_up_for(harness: Harness) -> None:
    """Older code stores no expression: the expression of a newer worker is taken for the same."""
    queue = harness.task_queue()
    seen = Notes()
    remember(harness, "known", LONG_AGO, None)

    @queue.periodic(hour_ago(harness), name="known")
    @queue.task()
    async def note(job_id: int) -> None:
        seen.add(job_id)

    with harness.working(queue):
        seen.wait(1)
    assert harness.sql(f"SELECT tz FROM {ticks_table(harness)}") == [("UTC",)]


def test_periodic_workers_of_two_versions_put_separate_ticks(harness: Harness) -> None:
    """During a rollout, the expression of the worker that started last is stored, and the other continues."""
    crons = ("*/2 * * * * *", "1-59/2 * * * * *")
    queues = [harness.task_queue(), harness.tasks(create=False)["q"]]
    for cron, queue in zip(crons, queues):  # noqa: B905 - Python 3.10 has it, and they are two

        @queue.periodic(cron, name="rolled out")
        @queue.task()
        async def note(job_id: int) -> None: ...

    def put(odd: int) -> int:
        return len([moment for moment, _ in counts(harness) if moment.second % 2 == odd])

    def remembered() -> list[tuple[Any, ...]]:
        return harness.sql(f"SELECT cron FROM {ticks_table(harness)}")

    with harness.working(queues[0]):
        harness.eventually(lambda: put(0) >= 1)
        with harness.working(queues[1]):
            harness.eventually(lambda: remembered() == [(crons[1],)])
            before = put(0), put(1)
            harness.eventually(lambda: put(0) > before[0] and put(1) > before[1])
            assert remembered() == [(crons[1],)]
    assert {number for _, number in counts(harness)} == {1}


def test_periodic_ticks_continue_after_a_clock_ran_ahead(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    queue = harness.task_queue()
    seen = Notes()

    @queue.periodic("* * * * * *", name="ahead")
    @queue.periodic("* * * * * *", name="failed over")
    @queue.task()
    async def note(job_id: int) -> None:
        seen.add(job_id)

    remember(harness, "ahead", "now() + interval '3 h'", "* * * * * *")
    remember(harness, "failed over", "date_trunc('second', now() + interval '2 s')", "* * * * * *")
    [[kept]] = harness.sql(f"SELECT tick FROM {ticks_table(harness)} WHERE name = 'failed over'")
    with harness.working(queue):
        seen.wait(1)
        harness.sql(f"UPDATE {ticks_table(harness)} SET tick = now() + interval '1 h' WHERE name = 'ahead'", rows=False)
        harness.eventually(lambda: caplog.text.count("clock ran ahead") == 2)
        seen.wait(len(seen.items) + 1)
        set_back = f"SELECT 1 FROM {ticks_table(harness)} WHERE name = 'failed over' AND tick < '{kept}'"
        assert harness.sql(set_back) == []
        harness.eventually(lambda: harness.sql(f"SELECT 1 FROM {ticks_table(harness)} WHERE tick > now()") == [])
    assert harness.sql(set_back) == []
    assert caplog.text.count("last tick of ahead:") == 2


def test_periodic_tick_is_not_put_after_the_clock_was_set_back(
    harness: Harness,
) -> None:
    queue = harness.task_queue()

    @queue.task()
    async def note(job_id: int) -> None: ...

    def put(tick: str) -> int | None:
        [[moment]] = harness.sql(f"SELECT {tick}")
        row = unwrapped(note).call().stored().values()
        put_at: int | None = harness.wait_for(
            lambda: periodic.put(unwrapped(queue).engine, unwrapped(queue), "each hour", moment, row)
        )
        return put_at

    job = put("date_trunc('second', now())")
    assert put("now() + interval '3 h'") is None
    assert harness.sql("SELECT id FROM {table}") == [(job,)]
    assert harness.sql(f"SELECT 1 FROM {ticks_table(harness)} WHERE tick > now()") == []


def test_periodic_ticks_are_counted_from_the_first_worker(harness: Harness) -> None:
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
