"""When periodic tasks are due: ticks that were missed, and clocks that change."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, cast, get_args
from zoneinfo import ZoneInfo

import pytest

from pqcore.errors import ConfigurationError
from pqcore.tasks import PQ, Call
from pqcore.tasks.periodic import MOST_MISSED, Missed, Periodic, make_periodic

UTC = timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")


def call() -> Call:
    queue = PQ("postgresql://nowhere/", backend="psycopg")["q"]

    @queue.task()
    def function(job_id: int) -> None: ...

    return function.call()


def periodic(cron: str, tz: str = "UTC", missed: Missed = "latest") -> Periodic:
    return make_periodic(call(), cron, tz, missed, None)


def at(text: str, zone: Any = UTC) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def due(task: Periodic, last: str, now: str) -> list[str]:
    return [f"{tick.astimezone(UTC):%m-%d %H:%M:%S}" for tick in task.due(at(last), at(now))]


# Ticks that were missed


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("latest", ["01-01 03:00:00"]),
        ("all", ["01-01 01:00:00", "01-01 02:00:00", "01-01 03:00:00"]),
        ("skip", []),
    ],
)
def test_periodic_missed_ticks_follow_the_option(missed: Missed, expected: list[str]) -> None:
    assert due(periodic("0 * * * *", missed=missed), "2026-01-01T00:00:00", "2026-01-01T03:40:00") == expected


def test_periodic_tick_on_time_is_not_missed() -> None:
    for missed in get_args(Missed):
        task = periodic("0 * * * *", missed=missed)
        assert due(task, "2026-01-01T00:00:00", "2026-01-01T00:59:59") == []
        assert due(task, "2026-01-01T00:00:00", "2026-01-01T01:00:00") == ["01-01 01:00:00"]
        assert due(task, "2026-01-01T00:00:00", "2026-01-01T01:00:05") == ["01-01 01:00:00"]
        assert due(task, "2026-01-01T01:00:00", "2026-01-01T01:00:05") == []


def test_periodic_task_that_skips_missed_ticks_keeps_punctual_ticks() -> None:
    task = periodic("*/10 * * * * *", missed="skip")
    assert due(task, "2026-01-01T00:00:00", "2026-01-01T00:05:01") == ["01-01 00:05:00"]
    assert due(periodic("0 0 * * *", missed="skip"), "2025-12-01T00:00:00", "2026-01-01T00:00:20") == ["01-01 00:00:00"]


def test_periodic_task_makes_up_for_a_limited_number_of_ticks() -> None:
    ticks = periodic("* * * * *", missed="all").due(at("2026-01-01T00:00:00"), at("2026-01-03T00:00:00"))
    assert len(ticks) == MOST_MISSED
    assert ticks[-1] == at("2026-01-03T00:00:00")
    assert ticks == sorted(ticks)


def test_periodic_next_after_returns_the_next_tick() -> None:
    assert periodic("@daily").next_after(at("2026-01-01T00:00:00")) == at("2026-01-02T00:00:00")
    assert periodic("*/5 * * * * *").next_after(at("2026-01-01T00:00:07.5")) == at("2026-01-01T00:00:10")
    assert periodic("@hourly").next_after(at("2026-01-01T00:59:59.999")) == at("2026-01-01T01:00:00")


# Clocks that change.  In Berlin in 2026: on 29 March 02:00 becomes 03:00, on 25 October 03:00 becomes 02:00.


def local(task: Periodic, start: str, number: int) -> list[str]:
    ticks = task.ticks_after(at(start, BERLIN))
    return [f"{next(ticks).astimezone(BERLIN):%d. %H:%M %z}" for _ in range(number)]


def test_periodic_tick_in_a_skipped_hour_comes_when_the_hour_is_over() -> None:
    nightly = periodic("30 2 * * *", "Europe/Berlin")
    assert local(nightly, "2026-03-27T12:00", 4) == [
        "28. 02:30 +0100",
        "29. 03:00 +0200",  # as soon as the hour that was left out is over
        "30. 02:30 +0200",
        "31. 02:30 +0200",
    ]


def test_periodic_tick_in_a_repeated_hour_comes_once() -> None:
    nightly = periodic("30 2 * * *", "Europe/Berlin")
    assert local(nightly, "2026-10-24T00:00", 3) == ["24. 02:30 +0200", "25. 02:30 +0200", "26. 02:30 +0100"]


def test_periodic_tick_by_elapsed_time_continues_when_clocks_change() -> None:
    often = periodic("*/30 * * * *", "Europe/Berlin", missed="all")
    for day in ("2026-03-29", "2026-10-25"):
        ticks = often.due(at(f"{day}T00:00:00", BERLIN), at(f"{day}T06:00:00", BERLIN))
        steps = {later.astimezone(UTC) - earlier.astimezone(UTC) for earlier, later in zip(ticks, ticks[1:])}  # noqa: B905, RUF007
        assert steps == {timedelta(minutes=30)}
        assert len(ticks) == (10 if day.startswith("2026-03") else 14)


def test_periodic_daily_tick_comes_once_on_short_and_long_days() -> None:
    daily = periodic("@daily", "Europe/Berlin", missed="all")
    for first, last in (("2026-03-27", "2026-04-02"), ("2026-10-22", "2026-10-29")):
        ticks = daily.due(at(f"{first}T12:00:00", BERLIN), at(f"{last}T12:00:00", BERLIN))
        days = [tick.astimezone(BERLIN) for tick in ticks]
        assert [day.hour for day in days] == [0] * len(days)
        assert len({day.date() for day in days}) == len(days) == (at(last) - at(first)).days


def test_periodic_tick_in_a_repeated_hour_is_put_once_when_asked_in_between() -> None:
    nightly = periodic("30 2 * * *", "Europe/Berlin", missed="all")
    first, second = "2026-10-25T00:30:00", "2026-10-25T01:30:00"  # both are 02:30
    assert due(nightly, "2026-10-24T12:00:00", first) == ["10-25 00:30:00"]
    assert due(nightly, first, second) == []
    assert due(nightly, first, "2026-10-26T12:00:00") == ["10-26 01:30:00"]


SPRING = ("2026-03-27T12:00:00", "2026-03-31T00:00:00")
AUTUMN = ("2026-10-23T12:00:00", "2026-10-27T00:00:00")
"""Three nights in UTC; the clock changes in the second."""


@pytest.mark.parametrize("seconds", ["0", "20", "20,40", "*/30"])
def test_periodic_expression_with_seconds_runs_once_on_nights_of_clock_changes(seconds: str) -> None:
    """A daily run: after an hour that the clock skips, and only once in an hour that the clock repeats."""
    parsed = {"20,40": ["20", "40"], "*/30": ["00", "30"]}.get(seconds, [seconds.zfill(2)])
    for nights, minutes in (
        (SPRING, ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        (AUTUMN, ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
    ):
        ticks = due(periodic(f"{seconds} 30 2 * * *", "Europe/Berlin", missed="all"), *nights)
        assert ticks == [f"{minute}:{second}" for minute in minutes for second in parsed]
    both = periodic("5 0,30 2 * * *", "Europe/Berlin", missed="all")
    assert due(both, "2026-03-29T00:00:00", "2026-03-29T12:00:00") == ["03-29 01:00:05"]
    assert due(both, "2026-10-25T00:00:00", "2026-10-25T12:00:00") == ["10-25 00:00:05", "10-25 00:30:05"]


def test_periodic_seconds_continue_by_elapsed_time_when_clocks_change() -> None:
    for cron, number in (("*/20 * * * * *", 540), ("0 */30 * * * *", 6), ("30 0 * * * *", 3)):
        for moment in ("2026-03-29T00:00:00", "2026-10-25T00:00:00"):
            start = at(moment) - timedelta(seconds=1)
            ticks = periodic(cron, "Europe/Berlin", missed="all").due(start, start + timedelta(hours=3))
            assert len(ticks) == number
            assert len({later - earlier for earlier, later in zip(ticks, ticks[1:])}) == 1  # noqa: B905, RUF007


CHANGES = [
    ("Europe/Berlin", "2026-10-25T00:00:00"),
    ("America/New_York", "2026-11-01T05:00:00"),
    ("America/Havana", "2026-11-01T04:00:00"),
    ("Australia/Lord_Howe", "2026-04-04T14:30:00"),
    ("Pacific/Chatham", "2026-04-04T13:45:00"),
]
"""Time zones, and the beginning of the hour that the clock repeats."""


@pytest.mark.parametrize(("tz", "change"), CHANGES)
@pytest.mark.parametrize("cron", ["{minute} {hour} * * *", "0,15,30,45 0-23 * * *", "7 {minute} {hour} * * *"])
def test_periodic_next_tick_in_a_repeated_hour_comes_later(tz: str, change: str, cron: str) -> None:
    first = at(change) + timedelta(minutes=10)
    local_first = first.astimezone(ZoneInfo(tz))
    task = periodic(cron.format(minute=local_first.minute, hour=local_first.hour), tz, missed="all")
    for minutes in range(-30, 240, 3):
        now = first + timedelta(minutes=minutes, seconds=1)
        coming = task.next_after(now)
        assert coming is not None
        assert now < coming <= now + timedelta(days=1, hours=2)
        assert task.due(now, now) == []
    ticks = task.due(first - timedelta(days=2, minutes=-1), first + timedelta(days=2, hours=12))
    assert ticks == sorted(set(ticks))
    local_days = [tick.astimezone(ZoneInfo(tz)).date() for tick in ticks]
    if cron.startswith(("{", "7")):
        assert len(local_days) == len(set(local_days)) == 4


def test_periodic_ticks_are_in_utc() -> None:
    """If a time is added in another zone, the result is one hour off after a clock change."""
    for cron in ("30 2 * * *", "0 30 2 * * *", "*/5 * * * *"):
        ticks = periodic(cron, "Europe/Berlin", missed="all").due(at("2026-03-28T00:00:00"), at("2026-03-30T00:00:00"))
        assert {tick.tzinfo for tick in ticks} == {UTC}


# What cannot be


@pytest.mark.parametrize("cron", ["", "* * * *", "61 * * * *", "@never", "0 0 31 2 *", "a b c d e"])
def test_periodic_expression_of_a_bad_value_is_refused(cron: str) -> None:
    with pytest.raises(ConfigurationError, match="cron expression"):
        periodic(cron)


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc/passwd"])
def test_periodic_time_zone_of_a_bad_value_is_refused(tz: str) -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        periodic("* * * * *", tz)


def test_periodic_missed_option_of_a_bad_value_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="missed"):
        periodic("* * * * *", missed=cast(Missed, "perhaps"))


def test_periodic_name_is_unique_in_a_queue() -> None:
    queue = PQ("postgresql://nowhere/", backend="psycopg")["q"]

    @queue.periodic("@daily")
    @queue.task()
    def function(job_id: int) -> None: ...

    with pytest.raises(ConfigurationError, match="name"):
        queue.periodic("@hourly")(function)
    queue.periodic("@hourly", name="another")(function)
    assert [each.name for each in queue.periodics] == [function.task.path, "another"]
