"""Schedules as rows: they are made, changed, paused, triggered and removed while workers run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from pqcore.errors import ConfigurationError, InvalidCall, InvalidName, ScheduleNotFound
from pqcore.operations import periodic, schedules
from pqcore.operations.schedules import ScheduledCall
from pqcore.serializers import SignedPickle
from pqcore.sql.identifiers import TableName
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.probes import Notes
from pqcore.testing.suite.test_worker_periodic import counts, hour_ago, ticks_table

EACH_SECOND = "* * * * * *"
NEVER_SOON = "0 0 29 2 *"


class Undo(Exception):
    """What rolls a block back."""


def names(queue: Any) -> list[str]:
    return [schedule.name for schedule in queue.schedules()]


def stored(harness: Harness) -> tuple[int, int]:
    """Return the numbers of rows of schedules and of ticks."""
    table = TableName("queue", harness.schema).related("_schedules")
    [row] = harness.sql(f"SELECT (SELECT count(*) FROM {table}), (SELECT count(*) FROM {ticks_table(harness)})")
    return row[0], row[1]


def noting(queue: Any, seen: Notes) -> Any:
    """Declare a task that notes its argument."""

    @queue.task(name="note")
    async def note(job_id: int, word: str = "") -> None:
        seen.add(word)

    return note


def set_last_tick(harness: Harness, name: str, tick: str) -> None:
    harness.sql(f"UPDATE {ticks_table(harness)} SET tick = {tick} WHERE name = '{name}'", rows=False)


def test_schedule_puts_one_job_for_each_tick_under_several_workers(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    queues = [queue] + [harness.tasks(create=False)["q"] for _ in range(3)]
    for each in queues:
        noting(each, seen)
    queue.schedule("greet", "note", EACH_SECOND, args=["hello"], missed="all", priority=5)
    with ExitStack() as stack:
        for each in queues:
            stack.enter_context(harness.working(each))
        harness.eventually(lambda: len(counts(harness)) >= 4)
    found = counts(harness)
    assert [number for _, number in found] == [1] * len(found)
    assert all(later - earlier == timedelta(seconds=1) for (earlier, _), (later, _) in pairwise(found))
    assert set(seen.items) == {"hello"}
    assert harness.sql("SELECT DISTINCT priority FROM {table}") == [(5,)]


def test_schedule_is_listed_as_it_was_made(harness: Harness) -> None:
    queue = harness.task_queue()
    note = noting(queue, Notes())
    made = queue.schedule("b", note, "@daily", kwargs={"word": "x"}, tz="Europe/Berlin", missed="skip")
    assert (made.queue, made.name, made.task, made.cron, made.tz) == ("q", "b", "note", "@daily", "Europe/Berlin")
    assert (made.args, made.kwargs, made.missed, made.paused) == ((), {"word": "x"}, "skip", False)
    assert made.created_at == made.updated_at
    assert queue.schedules() == [made]
    queue.schedule("a", unwrapped(note).call("y"), "@hourly")
    harness.pq(create=False)["other"].schedule("c", "unknown.task", "@hourly")
    assert names(queue) == ["a", "b"]
    again = queue.schedule("b", note, "@daily", args=("z",))
    assert (again.args, again.created_at, again.missed) == (("z",), made.created_at, "latest")
    assert again.updated_at > made.updated_at
    engine = unwrapped(queue).engine
    everywhere = harness.wait_for(lambda: schedules.list_schedules(engine))
    assert [(each.queue, each.name) for each in everywhere] == [("other", "c"), ("q", "a"), ("q", "b")]
    assert everywhere[1].args == ("y",)


def test_schedule_of_a_transaction_is_committed_or_rolled_back_with_it(harness: Harness) -> None:
    queue = harness.task_queue()
    noting(queue, Notes())
    queue.schedule("kept", "note", "@daily")
    [kept] = queue.schedules()
    connection = harness.connect()

    def change() -> None:
        connection.begin()
        queue.schedule("new", "note", "@daily", connection=connection.raw)
        queue.schedule("kept", "note", "@hourly", connection=connection.raw)
        queue.pause_schedule("kept", connection=connection.raw)
        queue.trigger("new", connection=connection.raw)
        queue.unschedule("new", connection=connection.raw)
        queue.schedule("newer", "note", "@daily", connection=connection.raw)

    change()
    assert names(queue) == ["kept"]
    connection.rollback()
    assert queue.schedules() == [kept]
    assert stored(harness) == (1, 1)
    assert harness.sql("SELECT id FROM {table}") == []
    change()
    connection.commit()
    first, second = queue.schedules()
    assert (first.name, first.cron, first.paused, second.name) == ("kept", "@hourly", True, "newer")
    assert stored(harness) == (2, 2)
    assert len(harness.sql("SELECT id FROM {table}")) == 1
    with suppress(Undo), queue:
        queue.resume_schedule("kept")
        queue.unschedule("newer")
        raise Undo
    assert queue.schedules() == [first, second]


def test_schedule_is_made_changed_paused_and_removed_while_a_worker_runs(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    noting(queue, seen)
    with harness.working(queue):
        queue.schedule("live", "note", EACH_SECOND, args=["first"])
        seen.wait(1)
        queue.schedule("live", "note", EACH_SECOND, args=["second"])
        harness.eventually(lambda: seen.items[-1] == "second")
        queue.schedule("live", "note", NEVER_SOON, args=["never"])
        queue.schedule("other", "note", EACH_SECOND, args=["other"])
        harness.eventually(lambda: seen.items[-2:] == ["other"] * 2)
        queue.pause_schedule("other")
        [[paused_at]] = harness.sql("SELECT clock_timestamp()")
        queue.schedule("third", "note", EACH_SECOND, args=["third"])
        harness.eventually(lambda: seen.items[-3:] == ["third"] * 3)
        queue.resume_schedule("other")
        [[resumed_at]] = harness.sql("SELECT clock_timestamp()")
        harness.eventually(lambda: seen.items[-1] == "other")
        queue.unschedule("other")
        queue.unschedule("third")
        [[removed_at]] = harness.sql("SELECT clock_timestamp()")
        queue.schedule("last", "note", EACH_SECOND, args=["last"])
        harness.eventually(lambda: seen.items[-3:] == ["last"] * 3)
    assert "never" not in seen.items
    due = "SELECT count(*) FROM {table} WHERE data->'args'->>0 = '%s' AND schedule_at > '%s' AND schedule_at < '%s'"
    assert harness.sql(due % ("other", paused_at, resumed_at)) == [(0,)]
    assert harness.sql(due % ("other", removed_at, "infinity")) == [(0,)]
    assert harness.sql(due % ("third", removed_at, "infinity")) == [(0,)]


def test_schedule_missed_ticks_follow_its_option(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    noting(queue, seen)
    [[minute]] = harness.sql("SELECT extract(minute FROM now() + interval '30 min')::int")
    jobs = {"latest": 1, "all": 5, "skip": 0}
    for missed in jobs:
        queue.schedule(missed, "note", f"{minute} * * * *", args=[missed], missed=missed)
        # The last tick before now was half an hour ago; the last stored tick was five hours earlier.
        set_last_tick(harness, missed, "date_trunc('minute', now() - interval '30 min') - interval '5 h'")
    queue.schedule("each second", "note", EACH_SECOND, args=["each second"])
    with harness.working(queue):
        harness.eventually(lambda: len([word for word in seen.items if word in jobs]) == sum(jobs.values()))
        harness.eventually(lambda: seen.items.count("each second") >= 2)
    with harness.working(queue):
        harness.eventually(lambda: seen.items.count("each second") >= 4)
    assert {word: seen.items.count(word) for word in jobs} == jobs


def test_schedule_with_a_changed_expression_counts_from_the_change(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    noting(queue, seen)
    past = hour_ago(harness)
    for name, before, after in (("new", None, past), ("same", past, past), ("edited", "@yearly", past)):
        if before is not None:
            queue.schedule(name, "note", before)
            set_last_tick(harness, name, "now() - interval '3 d'")
        queue.schedule(name, "note", after, args=[name])
    for name in ("resumed", "removed"):
        queue.schedule(name, "note", past, args=[name])
        set_last_tick(harness, name, "now() - interval '3 d'")
        queue.pause_schedule(name)
    queue.resume_schedule("resumed")
    assert queue.unschedule("removed")
    queue.schedule("removed", "note", past, args=["removed"])
    queue.schedule("each second", "note", EACH_SECOND, args=["each second"])
    with harness.working(queue):
        harness.eventually(lambda: seen.items.count("each second") >= 2)
    assert {*seen.items} == {"same", "each second"}


def test_schedule_ticks_continue_after_a_clock_ran_ahead(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    queue, seen = harness.task_queue(), Notes()
    noting(queue, seen)
    queue.schedule("ahead", "note", EACH_SECOND, args=["ahead"])
    set_last_tick(harness, "ahead", "now() + interval '3 h'")
    with harness.working(queue):
        seen.wait(2)
    assert caplog.text.count("last tick of ahead:") == 1


def test_trigger_puts_one_job_now_and_leaves_the_ticks(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    noting(queue, seen)
    queue.schedule("rare", "note", NEVER_SOON, args=["now"], keep_result="1h")
    before = harness.sql(f"SELECT * FROM {ticks_table(harness)}")
    handle = queue.trigger("rare")
    assert handle.status() == "ready"
    queue.pause_schedule("rare")
    again = queue.trigger("rare")
    harness.drain(queue)
    assert (handle.result(1), again.result(1)) == (None, None)
    assert seen.items == ["now", "now"]
    assert harness.sql(f"SELECT * FROM {ticks_table(harness)}") == before
    for change in (queue.trigger, queue.pause_schedule, queue.resume_schedule):
        with pytest.raises(ScheduleNotFound, match="no schedule 'typo'"):
            change("typo")
    assert queue.unschedule("typo") is False


def test_schedule_of_an_unknown_task_puts_jobs_that_wait_for_a_worker_that_knows_it(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    path = f"deployed later {uuid4()}"  # the tasks of all queues of the process are known to each
    queue.schedule("early", path, EACH_SECOND, args=["early"])
    with harness.working(queue):
        harness.eventually(lambda: harness.sql("SELECT 1 FROM {table} WHERE error->>'type' = 'unknown'"))
    queue.pause_schedule("early")

    @queue.task(name=path)
    async def note(job_id: int, word: str) -> None:
        seen.add(word)

    harness.sql("UPDATE {table} SET schedule_at = now()", rows=False)
    harness.drain(queue)
    assert set(seen.items) == {"early"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cron": "61 * * * *"}, ConfigurationError, "cron expression '61 "),
        ({"tz": "Mars/Olympus"}, ConfigurationError, "time zone"),
        ({"missed": "perhaps"}, ConfigurationError, "missed"),
        ({"args": [1, 2, 3]}, InvalidCall, "too many positional"),
        ({"kwargs": {"sentence": 1}}, InvalidCall, "sentence"),
        ({"args": "text"}, ConfigurationError, "args is 'text'"),
        ({"name": ""}, InvalidName, "empty"),
        ({"name": "x" * 501}, InvalidName, "501 bytes"),
        ({"task": 7}, ConfigurationError, "task of a schedule is 7"),
        ({"priority": "high"}, ConfigurationError, "priority"),
        ({"dedup": "key"}, ConfigurationError, "'dedup' is not an option of a schedule"),
        ({"timeout": "soon"}, ValueError, "soon"),
    ],
)
def test_schedule_with_a_bad_value_is_refused_and_nothing_is_written(
    harness: Harness, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    queue = harness.task_queue()
    noting(queue, Notes())
    given: dict[str, Any] = {"name": "s", "task": "note", "cron": "@daily", **arguments}
    with pytest.raises(error, match=message):
        queue.schedule(**given)
    assert stored(harness) == (0, 0)


def test_schedule_with_the_name_of_a_declared_periodic_task_is_refused(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    queue, other, seen = harness.task_queue(), harness.tasks(create=False)["q"], Notes()
    other.schedule("first", "note", NEVER_SOON, args=["row"])
    note = noting(queue, seen)
    queue.periodic(EACH_SECOND, name="nightly", args=("declared",))(note)
    queue.periodic(EACH_SECOND, name="first", args=("declared first",))(note)
    for refused, more in ((queue.schedule, (note, "@daily")), (queue.unschedule, ())):
        with pytest.raises(ConfigurationError, match="'nightly' is the name of a periodic task that this program"):
            refused("nightly", *more)
    with harness.working(queue):
        harness.eventually(lambda: {*seen.items} == {"declared", "declared first"})
    assert "the schedule first puts no jobs: a periodic task of this name is declared" in caplog.text
    with pytest.raises(ConfigurationError, match=r"declared in code on queue 'q'.*unschedule\('nightly'\)"):
        other.schedule("nightly", "note", "@daily")
    assert other.unschedule("nightly") is True
    assert other.schedule("nightly", "note", "@daily").name == "nightly"


def test_worker_waits_for_no_transaction_that_changes_a_schedule(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    noting(queue, seen)
    for name in ("changed", "removed", "paused", "free"):
        queue.schedule(name, "note", EACH_SECOND, args=[name])
    connection = harness.connect()
    connection.begin()
    queue.schedule("changed", "note", EACH_SECOND, args=["changed later"], connection=connection.raw)
    queue.unschedule("removed", connection=connection.raw)
    queue.pause_schedule("paused", connection=connection.raw)
    with harness.working(queue):
        harness.eventually(lambda: seen.items.count("free") >= 3)
        assert {*seen.items} == {"free"}
        connection.commit()
        harness.eventually(lambda: "changed later" in seen.items)
    assert {*seen.items} == {"free", "changed later"}
    assert stored(harness) == (3, 3)


@pytest.mark.parametrize("change", ["schedule", "pause", "unschedule", "resume"])
def test_tick_of_a_schedule_that_has_changed_since_it_was_read_puts_nothing(harness: Harness, change: str) -> None:
    queue = harness.task_queue()
    note = noting(queue, Notes())
    changes: dict[str, Callable[[], Any]] = {
        "schedule": lambda: queue.schedule("s", note, EACH_SECOND),
        "pause": lambda: queue.pause_schedule("s"),
        "unschedule": lambda: queue.unschedule("s"),
        "resume": lambda: (queue.pause_schedule("s"), queue.resume_schedule("s")),
    }
    queue.schedule("s", note, EACH_SECOND)
    engine, settings = unwrapped(queue).engine, unwrapped(queue)
    [found] = harness.wait_for(lambda: schedules.find_timetables(engine, settings))
    call = harness.wait_for(lambda: schedules.find_calls(engine, settings, ["s"]))["s"]
    assert isinstance(call, ScheduledCall)
    row = call.job().values()
    set_last_tick(harness, "s", "now() - interval '1 h'")
    [[moment]] = harness.sql("SELECT date_trunc('second', now())")

    def put() -> Any:
        return harness.wait_for(lambda: periodic.put(engine, settings, "s", moment, row, found.version))

    changes[change]()
    assert put() is None
    assert harness.sql("SELECT id FROM {table}") == []
    if change != "unschedule":
        queue.schedule("s", note, EACH_SECOND)
        queue.resume_schedule("s")
        set_last_tick(harness, "s", "now() - interval '1 h'")
        [found] = harness.wait_for(lambda: schedules.find_timetables(engine, settings))
        assert put() is not None
        assert put() is None, "the tick was put"
    else:
        assert stored(harness) == (0, 0)


def test_schedule_without_a_stored_tick_counts_from_its_worker(harness: Harness) -> None:
    queue, seen = harness.task_queue(), Notes()
    noting(queue, seen)
    queue.schedule("truncated", "note", EACH_SECOND, missed="all")
    harness.sql(f"DELETE FROM {ticks_table(harness)}", rows=False)
    with harness.working(queue):
        seen.wait(2)
    assert harness.sql(f"SELECT name, cron, tz FROM {ticks_table(harness)}") == [("truncated", EACH_SECOND, "UTC")]


def test_schedule_that_a_worker_cannot_read_stops_no_other(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    queue, seen = harness.task_queue(), Notes()
    noting(queue, seen)
    table = TableName("queue", harness.schema).related("_schedules")
    for name in ("cron", "tz", "call", "good"):
        queue.schedule(name, "note", EACH_SECOND, args=[name])
    harness.sql(f"UPDATE {table} SET cron = 'every day' WHERE name = 'cron'", rows=False)
    harness.sql(f"UPDATE {table} SET tz = 'Mars/Olympus' WHERE name = 'tz'", rows=False)
    harness.sql(f"UPDATE {table} SET call = '[]' WHERE name = 'call'", rows=False)
    with harness.working(queue):
        harness.eventually(lambda: seen.items.count("good") >= 3)
        queue.schedule("cron", "note", EACH_SECOND, args=["mended"])
        harness.eventually(lambda: "mended" in seen.items)
    assert {*seen.items} == {"good", "mended"}
    for name in ("cron", "tz", "call"):
        assert caplog.text.count(f"the schedule {name} puts no jobs") == 1
    listed = {schedule.name: schedule.args for schedule in queue.schedules()}
    assert listed == {"call": None, "cron": ("mended",), "good": ("good",), "tz": ("tz",)}


def test_schedule_deadline_counts_from_each_put(harness: Harness) -> None:
    queue = harness.task_queue()
    noting(queue, Notes())
    queue.schedule("s", "note", NEVER_SOON, deadline="1h", timeout="5m")
    queue.trigger("s")
    [[left, timeout]] = harness.sql(
        "SELECT (run->>'deadline')::float8 - extract(epoch FROM now())::float8, run->>'timeout'"
        " FROM {table}, LATERAL (SELECT headers->'run' AS run) AS header"
    )
    assert 3_590 < left < 3_610
    assert float(timeout) == 300


def test_schedule_jobs_have_the_options_of_the_declaration_and_of_the_call(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(name="limited", max_retries=7, limit=2, tenant=lambda word: word)
    def limited(job_id: int, word: str) -> None: ...

    queue.schedule("s", unwrapped(limited).options(priority=3, group="g"), NEVER_SOON, args=["ann"])
    queue.trigger("s")
    [[retries, gate]] = harness.sql("SELECT data->>'max_retries', (headers->'gate')::text FROM {table}")
    assert retries == "7"
    for part in ('"limits":{"task:limited":2}', '"share":"ann"', '"priority":3', '"group":"g"'):
        assert part in gate


def test_schedule_arguments_are_encoded_as_the_data_of_jobs(harness: Harness) -> None:
    queue = harness.tasks().queue("q", serializer=SignedPickle(keys=["a key of thirty-two bytes or more"]))
    seen = Notes()
    noting(queue, seen)
    queue.schedule("s", "note", NEVER_SOON, args=["told"])
    table = TableName("queue", harness.schema).related("_schedules")
    [[call]] = harness.sql(f"SELECT call::text FROM {table}")
    assert "told" not in call
    assert queue.schedules()[0].args == ("told",)
    other = harness.pq(create=False)["q"]  # a program that has no key
    assert other.schedules()[0].args is None
    other.trigger("s")
    harness.drain(queue)
    assert seen.items == ["told"]
