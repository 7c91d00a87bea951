"""The order of jobs, the time when a job is due, and the ways to write a time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest

from pqcore.errors import InvalidTimeSpec
from pqcore.testing.harness import PATIENCE, Harness

FIRST, SECOND, THIRD = (datetime(2020, 1, day, tzinfo=timezone.utc) for day in (1, 2, 3))
INDIA = timezone(timedelta(hours=5, minutes=30))
WEST = timezone(timedelta(hours=-8))


def drained(queue: Any) -> list[Any]:
    """Take all due jobs one by one, and return their data."""
    return list(iter(lambda: getattr(queue.get(block=False), "data", None), None))


def in_past(harness: Harness, *ids: int, seconds: float = 1) -> None:
    """Schedule jobs for a time that has passed."""
    chosen = ", ".join(map(str, ids))
    sql = f"UPDATE {{table}} SET schedule_at = now() - interval '{seconds} s' WHERE id IN ({chosen})"
    harness.sql(sql, rows=False)


def put_before(harness: Harness, *ids: int, seconds: float) -> None:
    """Move the puts of jobs into the past."""
    chosen = ", ".join(map(str, ids))
    sql = f"UPDATE {{table}} SET enqueued_at = now() - interval '{seconds} s' WHERE id IN ({chosen})"
    harness.sql(sql, rows=False)


def rows(harness: Harness) -> int:
    [[number]] = harness.sql("SELECT count(*) FROM {table}")
    return int(number)


# Ways to take all due jobs, in order

Taking = Callable[[Any], list[int]]


def by_get(queue: Any) -> list[int]:
    return list(iter(lambda: getattr(queue.get(block=False), "id", None), None))


def by_get_many(queue: Any) -> list[int]:
    return [job.id for part in iter(lambda: queue.get_many(7, block=False), []) for job in part]


def by_lease(queue: Any) -> list[int]:
    return list(iter(lambda: getattr(queue.lease(block=False), "id", None), None))


def by_lease_many(queue: Any) -> list[int]:
    return [job.id for part in iter(lambda: queue.lease_many(7, block=False), []) for job in part]


def by_peek(queue: Any) -> list[int]:
    return [job.id for job in queue.peek(1000)]


def by_get_in_a_transaction(queue: Any) -> list[int]:
    with queue:
        return by_get(queue)


def by_get_many_in_a_transaction(queue: Any) -> list[int]:
    with queue:
        return by_get_many(queue)


def by_get_many_at_once(queue: Any) -> list[int]:
    return [job.id for job in queue.get_many(1000, block=False)]


every_way = pytest.mark.parametrize(
    "taken",
    [
        by_get,
        by_get_many,
        by_get_many_at_once,
        by_lease,
        by_lease_many,
        by_peek,
        by_get_in_a_transaction,
        by_get_many_in_a_transaction,
    ],
)


# The order


@every_way
def test_plain_jobs_are_taken_in_the_order_of_puts(harness: Harness, taken: Taking) -> None:
    queue = harness.queue()
    ids = [queue.put(number) for number in range(9)]
    assert taken(queue) == ids


def test_expected_at_orders_jobs_before_plain_jobs(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("none")
    queue.put("late", expected_at="2h")
    queue.put("soon", expected_at="1h")
    queue.put("overdue", expected_at=timedelta(hours=-1))
    assert drained(queue) == ["overdue", "soon", "late", "none"]


def test_scheduled_job_that_is_due_goes_before_a_plain_job(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("now")
    queue.put("due for an hour", timedelta(hours=-1))
    assert queue.get().data == "due for an hour"


def test_scheduled_jobs_do_not_starve_an_older_waiting_job(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("due for a minute", timedelta(minutes=-1))
    waiting = queue.put("put an hour ago")
    put_before(harness, waiting, seconds=3600)
    assert queue.get().data == "put an hour ago"


def test_expected_at_goes_before_schedule_at(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("due for a day", timedelta(days=-1))
    queue.put("expected in a year", expected_at="365d")
    queue.put("expected in two years, due for a day", timedelta(days=-1), "730d")
    assert drained(queue) == [
        "expected in a year",
        "expected in two years, due for a day",
        "due for a day",
    ]


def test_equal_expected_at_is_ordered_by_due_time(harness: Harness) -> None:
    queue = harness.queue()
    put = {
        "now": queue.put("now", None, SECOND),
        "a minute": queue.put("a minute", timedelta(minutes=-1), SECOND),
        "an hour": queue.put("an hour", None, SECOND),
        "a day": queue.put("a day", timedelta(days=-1), SECOND),
    }
    put_before(harness, put["an hour"], seconds=3600)
    assert drained(queue) == ["a day", "an hour", "a minute", "now"]


@every_way
def test_jobs_of_equal_order_are_taken_by_id(harness: Harness, taken: Taking) -> None:
    pq = harness.pq()
    ids = {
        "ready": pq["ready"].put_many(range(8), SECOND),
        "urgent": pq["urgent"].put_many(range(8), None, FIRST),
        "hidden": pq["hidden"].put_many(range(8), SECOND, FIRST),
        "lapsed": pq["lapsed"].put_many(range(8), SECOND),
        "urgent, then hidden": pq["mix"].put_many(range(4), None, FIRST) + pq["mix"].put_many(range(4), SECOND, FIRST),
        "hidden, then urgent": pq["xim"].put_many(range(4), SECOND, FIRST) + pq["xim"].put_many(range(4), None, FIRST),
    }
    harness.sql(f"UPDATE {{table}} SET enqueued_at = '{SECOND.isoformat()}'", rows=False)
    harness.sql(
        "UPDATE {table} SET leased_until = now() - interval '1 s', attempts = 1 WHERE q_name = 'lapsed'", rows=False
    )
    for place in reversed(range(8)):  # so that the rows are stored in another order
        chosen = ", ".join(str(group[place]) for group in ids.values())
        harness.sql(f"UPDATE {{table}} SET attempts = attempts WHERE id IN ({chosen})", rows=False)
    names = {"urgent, then hidden": "mix", "hidden, then urgent": "xim"}
    assert {kind: taken(pq[names.get(kind, kind)]) for kind in ids} == ids


def test_scheduled_job_with_expected_at_joins_the_order_when_due(harness: Harness) -> None:
    queue = harness.queue()
    first = queue.put("first", "1h", FIRST)
    queue.put("second", None, SECOND)
    third = queue.put("third", "1h", THIRD)
    queue.put("fourth")
    assert [job.data for job in queue.peek(9)] == ["second", "fourth"]
    in_past(harness, first, third)
    assert [job.data for job in queue.peek(9)] == ["first", "second", "third", "fourth"]
    assert drained(queue) == ["first", "second", "third", "fourth"]


def test_expired_lease_returns_its_job_to_the_order(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("second", expected_at=SECOND)
    queue.put("fourth")
    assert queue.lease().data == "second"
    assert queue.lease().data == "fourth"
    queue.put("first", expected_at=FIRST)
    queue.put("third", expected_at=THIRD)
    queue.put("fifth")
    assert [job.data for job in queue.peek(9)] == ["first", "third", "fifth"]
    harness.sql("UPDATE {table} SET leased_until = now() WHERE leased_until IS NOT NULL", rows=False)
    assert [job.data for job in queue.peek(9)] == ["first", "second", "third", "fourth", "fifth"]
    assert drained(queue) == ["first", "second", "third", "fourth", "fifth"]


@pytest.mark.parametrize("taken", [by_get, by_get_many, by_get_many_at_once])
def test_order_does_not_depend_on_the_order_of_puts(harness: Harness, taken: Taking) -> None:
    pq = harness.pq()
    hour = timedelta(hours=-1)
    kinds: list[tuple[Any, Any]] = [(None, FIRST), (hour, SECOND), (hour, None), (None, None)]
    for number, order in enumerate(itertools.permutations(range(4))):
        queue = pq[f"queue {number}"]
        ids = {kind: queue.put(kind, *kinds[kind]) for kind in order}
        assert taken(queue) == [ids[kind] for kind in range(4)], order


@every_way
def test_mixed_jobs_are_taken_in_order(harness: Harness, taken: Taking) -> None:
    seed = 1009
    dice = random.Random(seed)
    queue = harness.queue()
    [[now]] = harness.sql("SELECT statement_timestamp() AT TIME ZONE 'UTC'")
    past = [now - timedelta(minutes=minutes) for minutes in range(10, 60, 10)]
    model: list[tuple[tuple[Any, ...], int]] = []
    for number in range(60):
        schedule = dice.choice([None, None, *past, now + timedelta(hours=1)])
        expected = dice.choice([None, None, *past, now + timedelta(days=1)])
        enqueued = dice.choice(past)
        state = dice.choice(["waiting", "waiting", "waiting", "lapsed", "held", "finished"])
        job_id = queue.put(number, schedule, expected)
        changes = [f"enqueued_at = '{enqueued}+00'"]
        changes += {
            "waiting": [],
            "lapsed": [f"leased_until = '{dice.choice(past)}+00'", "attempts = 1"],
            "held": ["leased_until = now() + interval '1 h'", "attempts = 1"],
            "finished": ["dequeued_at = now()", "attempts = 1"],
        }[state]
        harness.sql(f"UPDATE {{table}} SET {', '.join(changes)} WHERE id = {job_id}", rows=False)
        due = schedule or enqueued
        if due <= now and state in ("waiting", "lapsed"):
            model.append(((expected is None, expected or due, due, job_id), job_id))
    assert taken(queue) == [job_id for _, job_id in sorted(model)]
    assert len(model) > 25


@every_way
def test_scheduled_leased_and_finished_jobs_are_never_taken(harness: Harness, taken: Taking) -> None:
    queue = harness.queue()
    queue.put("scheduled", "1h")
    queue.put("scheduled and expected", "1h", FIRST)
    queue.put("expected, and in hand", None, FIRST)
    assert queue.lease(3600).data == "expected, and in hand"
    queue.put("finished", None, FIRST)
    assert queue.get().data == "finished"
    assert taken(queue) == []
    due = queue.put("due")
    assert taken(queue) == [due]


def test_order_is_separate_per_queue(harness: Harness) -> None:
    pq = harness.pq()
    for number in range(3):
        pq["a"].put(number, expected_at=FIRST)
        pq["b"].put(number, timedelta(hours=-1), THIRD)
        pq["c"].put(number, timedelta(hours=-1))
    [job] = pq["b"].lease_many(1)
    assert job.data == 0
    harness.sql("UPDATE {table} SET leased_until = now() WHERE leased_until IS NOT NULL", rows=False)
    for name in "cba":
        assert [job.data for job in pq[name].peek(9)] == [0, 1, 2]
        assert [job.data for job in pq[name].get_many(9)] == [0, 1, 2]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("expected", [None, FIRST])
def test_get_finds_a_job_behind_many_that_others_hold(
    harness: Harness, expected: datetime | None, hidden: bool
) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    queue.put_many(range(300), None, expected)
    if hidden:
        queue.put_many(range(3), timedelta(hours=-1), FIRST)
    last = queue.put("last", None, expected and SECOND)
    held = 303 if hidden else 300
    with queue:
        assert len(queue.get_many(held)) == held
        assert other.get(block=False).id == last
        assert other.get(block=False) is None


# Times


DISTANCES: list[tuple[Any, timedelta]] = [
    ("0s", timedelta(0)),
    ("5s", timedelta(seconds=5)),
    ("2m", timedelta(minutes=2)),
    ("3h", timedelta(hours=3)),
    ("1d", timedelta(days=1)),
    ("007d", timedelta(days=7)),
    ("0.5s", timedelta(seconds=0.5)),
    ("1.5h", timedelta(hours=1.5)),
    ("90s", timedelta(seconds=90)),
    (timedelta(0), timedelta(0)),
    (timedelta(seconds=1.5), timedelta(seconds=1.5)),
    (timedelta(microseconds=1), timedelta(microseconds=1)),
    (timedelta(days=2, hours=-1), timedelta(days=2, hours=-1)),
    (timedelta(days=-3, seconds=1), timedelta(days=-3, seconds=1)),
]


def test_relative_time_is_added_to_the_servers_clock(harness: Harness) -> None:
    # A client's clock could not agree to the microsecond with the server's, which sets enqueued_at.
    queue = harness.queue()
    model: list[tuple[Any, Any]] = []
    for spec, distance in DISTANCES:
        queue.put("scheduled", spec)
        queue.put("expected", None, spec)
        queue.put("both", spec, spec)
        queue.put_many(["many", "many"], spec, spec)
        model += [(distance, None), (None, distance), *[(distance, distance)] * 3]
    distances = ", ".join(
        f"extract(epoch FROM {column} - enqueued_at)::float8" for column in ("schedule_at", "expected_at")
    )
    assert harness.sql(f"SELECT {distances} FROM {{table}} ORDER BY id") == [
        tuple(None if distance is None else distance.total_seconds() for distance in pair) for pair in model
    ]
    [[age]] = harness.sql("SELECT extract(epoch FROM clock_timestamp() - min(enqueued_at))::float8 FROM {table}")
    assert 0 <= age <= PATIENCE


MOMENTS = [
    (datetime(2030, 1, 2, 3, 4, 5, 678), "2030-01-02 03:04:05.000678"),
    (datetime(2030, 1, 2, 3, 4, 5, 678, timezone.utc), "2030-01-02 03:04:05.000678"),
    (datetime(2030, 1, 2, 3, 4, 5, tzinfo=INDIA), "2030-01-01 21:34:05"),
    (datetime(2030, 1, 2, 20, 4, 5, tzinfo=WEST), "2030-01-03 04:04:05"),
    (datetime(1960, 2, 29, 23, 59, 59, 999999, INDIA), "1960-02-29 18:29:59.999999"),
    (datetime(1, 1, 2, tzinfo=timezone.utc), "0001-01-02 00:00:00"),
    (datetime(9999, 12, 30, tzinfo=timezone.utc), "9999-12-30 00:00:00"),
]


def test_absolute_time_is_stored_unchanged_and_naive_means_utc(harness: Harness) -> None:
    queue = harness.queue()
    for moment, _ in MOMENTS:
        queue.put("scheduled", moment)
        queue.put("expected", None, moment)
        queue.put_many(["both"], moment, moment)
    found = harness.sql(
        "SELECT (schedule_at AT TIME ZONE 'UTC')::text, (expected_at AT TIME ZONE 'UTC')::text FROM {table} ORDER BY id"
    )
    assert found == [times for _, utc in MOMENTS for times in ((utc, None), (None, utc), (utc, utc))]
    jobs = queue.get_many(99, block=False)
    got = {job.expected_at.isoformat(" ") for job in jobs if job.data == "expected"}
    assert got == {utc + "+00:00" for _, utc in MOMENTS}


@pytest.mark.parametrize("moment", [datetime.min, datetime.max])
def test_extreme_datetimes_stay_finite_or_are_refused(harness: Harness, moment: datetime) -> None:
    # Some drivers take these for the server's -infinity and infinity, which other drivers cannot read.
    queue = harness.queue()
    try:
        queue.put("expected", None, moment)
    except InvalidTimeSpec:
        assert rows(harness) == 0
        return
    assert harness.sql("SELECT isfinite(expected_at) FROM {table}") == [(True,)]
    assert queue.get(block=False).expected_at.year == moment.year


def test_schedule_at_in_the_past_is_due_immediately(harness: Harness) -> None:
    queue = harness.queue()
    specs = ["0s", timedelta(0), timedelta(days=-1), timedelta(microseconds=-1), FIRST]
    for place, spec in enumerate(specs):
        queue.put(place, spec)
        queue.put(place, spec, spec)
        assert len(queue) == 2, spec
        assert [job.data for job in queue.get_many(9, block=False)] == [place, place]


def test_servers_clock_decides_whether_a_job_is_due(harness: Harness) -> None:
    queue = harness.queue()
    [[now]] = harness.sql("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
    queue.put("due", now)
    queue.put("in an hour", now + timedelta(hours=1))
    queue.put("in an hour, expected", now + timedelta(hours=1), now)
    assert drained(queue) == ["due"]


def test_day_has_24_hours_in_any_session_time_zone(harness: Harness) -> None:
    # In any season, Berlin's clocks change within one of these.
    distances = [timedelta(days=days) for days in (91, 182, 273)]
    queue = harness.queue()
    with queue:
        harness.sql_within(queue, "SET LOCAL TIME ZONE 'Europe/Berlin'", rows=False)
        for distance in distances:
            queue.put(1, distance, distance)
            queue.put_many([2], f"{distance.days}d", f"{distance.days}d")
    found = harness.sql(
        "SELECT extract(epoch FROM schedule_at - enqueued_at)::float8,"
        " extract(epoch FROM expected_at - enqueued_at)::float8 FROM {table} ORDER BY id"
    )
    assert found == [(distance.total_seconds(),) * 2 for distance in distances for _ in range(2)]


@pytest.mark.parametrize("distance", [timedelta(days=-800_000), timedelta(days=-366 * 5_000)])
def test_time_before_the_first_datetime_is_refused_or_keeps_the_job(harness: Harness, distance: timedelta) -> None:
    queue = harness.queue()
    try:
        queue.put("expected", None, distance)
        queue.put("scheduled", distance)
    except InvalidTimeSpec:
        assert rows(harness) == 0
        return
    assert drained(queue) == ["expected", "scheduled"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("-infinity", None), (None, "-infinity"), (None, "infinity"), ("4000-01-01 BC", None), (None, "20000-01-01")],
)
def test_time_outside_datetimes_range_keeps_the_job(
    harness: Harness, schedule: str | None, expected: str | None
) -> None:
    # Another program wrote this, which the server can hold.
    queue = harness.queue()
    queue.put("job")
    harness.sql(
        "UPDATE {table} SET"
        f" schedule_at = {'NULL' if schedule is None else repr(schedule)},"
        f" expected_at = {'NULL' if expected is None else repr(expected)}",
        rows=False,
    )
    assert queue.stats().ready == len(queue) == 1
    assert queue.peek()[0].data == "job"
    assert drained(queue) == ["job"]


@pytest.mark.parametrize("expected", [None, FIRST])
def test_schedule_at_infinity_leaves_other_jobs_unaffected(harness: Harness, expected: datetime | None) -> None:
    # Servers before PostgreSQL 17 cannot compute the time until infinity.
    queue = harness.queue()
    queue.put("parked", "1h", expected)
    harness.sql("UPDATE {table} SET schedule_at = 'infinity'", rows=False)
    assert queue.get(block=False) is None
    assert queue.get(timeout=0.01) is None
    assert (queue.stats().ready, queue.stats().scheduled, len(queue)) == (0, 1, 0)
    queue.put("due")
    assert drained(queue) == ["due"]


BAD = [
    "10m garbage",
    "1.5.5h",
    ".5h",
    "1.h",
    "90",
    "5w",
    "-5s",
    "+5s",
    "5 m",
    "5M",
    "",
    "m5",
    " 5s",
    "5s\n",
    "5s5m",
    "٣s",
    "soon",
    "2030-01-02T03:04:05",
    3,
    1.5,
    True,
    b"5s",
    ("5s",),
    date(2030, 1, 2),
    timedelta.max,
    timedelta.min,
    "99999999999999d",
    "9" * 5_000 + "s",
    datetime.max.replace(tzinfo=WEST),
    datetime.min.replace(tzinfo=INDIA),
]


def test_time_of_a_bad_value_is_refused_and_writes_nothing(harness: Harness) -> None:
    queue = harness.queue()
    for spec in BAD:
        for put, data in ((queue.put, 1), (queue.put_many, [1, 2])):
            for times in ((spec, None), (None, spec), ("5s", spec), (spec, "5s")):
                with pytest.raises(ValueError, match="time") as caught:
                    put(data, *times)
                assert isinstance(caught.value, InvalidTimeSpec), spec
    with queue:
        with pytest.raises(InvalidTimeSpec):
            queue.put(1, "5 m")
        queue.put("kept")
    assert rows(harness) == 1


def test_time_of_a_bad_value_is_refused_before_items_are_read(harness: Harness) -> None:
    queue = harness.queue()
    items = iter([1, 2])
    with pytest.raises(InvalidTimeSpec):
        queue.put_many(items, "5 m")
    assert list(items) == [1, 2]
    assert rows(harness) == 0
