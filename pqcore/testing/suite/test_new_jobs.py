"""Putting many jobs of which each has its own options: all or none."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import (
    ConfigurationError,
    DuplicateJob,
    InvalidCall,
    InvalidTimeSpec,
    NotStored,
    PQError,
    SerializationError,
    TransientError,
)
from pqcore.operations import put_many
from pqcore.put_options import Dedup, NewJob
from pqcore.sql.identifiers import TableName, quote
from pqcore.testing.harness import PATIENCE, Harness

UNTIL = ["finished", "started", "1h"]
MOMENT = datetime(2090, 1, 2, 3, 4, 5, 678, timezone.utc)
TIME = "CASE WHEN {0} >= '2090-01-01' THEN ({0} AT TIME ZONE 'UTC')::text ELSE ({0} - enqueued_at)::text END"
COLUMNS = (
    "data::text, payload, serializer, headers::text, group_key, dedup_key, parked_on, leased_until::text, priority,"
    f" attempts, failures, excused, {TIME.format('schedule_at')}, {TIME.format('expected_at')}"
)


class Boom(Exception):
    """A failure of the user's code."""


class Bytes:
    """A serializer whose output is not text."""

    name = "bytes"
    binary = True

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value).encode("utf-16")

    def loads(self, raw: Any) -> Any:
        return json.loads(bytes(raw).decode("utf-16"))


@pytest.fixture
def chunks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make put_many send a statement every two rows."""
    monkeypatch.setattr(put_many, "CHUNK_ROWS", 2)


small_chunks = pytest.mark.usefixtures("chunks_of_two")


def contents(harness: Harness, column: str = "data") -> list[tuple[int, Any]]:
    """Return the id and a JSON column of each row, as others see it."""
    found = harness.sql(f"SELECT id, {column}::text FROM {{table}} ORDER BY id")
    return [(job_id, None if text is None else json.loads(text)) for job_id, text in found]


def held(harness: Harness) -> list[tuple[Any, ...]]:
    """Return the keys that are held for a time."""
    keys = TableName("queue", harness.schema).related("_dedup")
    return harness.sql(f"SELECT dedup_key, job_id FROM {keys} ORDER BY dedup_key")


def options_of(some: random.Random, number: int) -> dict[str, Any]:
    """Return options of a job, at random, some of which are missing."""
    until: Any = some.choice([*UNTIL, 3600.0, timedelta(days=2)])
    choices: dict[str, list[Any]] = {
        "schedule_at": ["1h", timedelta(seconds=-5), MOMENT, MOMENT.replace(tzinfo=None)],
        "expected_at": ["2d", timedelta(microseconds=7), MOMENT],
        "dedup": [f"key {number} ü\\\" '", Dedup(f"key {number}", until, some.choice(["keep", "replace", "error"]))],
        "group": ["g", "Gruppe 'ü\" 😀"],
        "limits": [{"a": 1}, {"b": 2, "c": 3}],
        "headers": [{"x": [1, None, "\u2028 ü"]}, {"a": {"b": 'c"\\'}}],
        "tenant": ["t", "\\\" '%s"],
        "priority": [-7, 5, 1_000_000],
    }
    return {name: some.choice(values) for name, values in choices.items() if some.random() < 0.4}


@pytest.mark.parametrize("serializer", [None, Bytes()], ids=["text", "bytes"])
def test_new_jobs_are_stored_as_single_puts_with_the_same_options(harness: Harness, serializer: Any) -> None:
    pq = harness.pq()
    one, many = (pq.queue(name, serializer=serializer) for name in ("one", "many"))
    some = random.Random(18)
    jobs: list[tuple[Any, dict[str, Any]]] = [(None, {}), ({"a": None}, {"limits": {"a": 1}, "schedule_at": "1h"})]
    jobs += [(f'data {number} ü\\"\u0000', options_of(some, number)) for number in range(50)]
    first = [one.put(data, **options) for data, options in jobs]
    second = many.put_many([NewJob(data, **options) for data, options in jobs])
    assert second == sorted(set(second))
    rows = [harness.sql(f"SELECT {COLUMNS} FROM {{table}} WHERE q_name = '{q}' ORDER BY id") for q in ("one", "many")]
    assert rows[0] == rows[1]
    keys = held(harness)
    assert len(keys) >= 2
    assert {(key, first.index(job)) for key, job in keys if job in first} == {
        (key, second.index(job)) for key, job in keys if job in second
    }
    times = harness.sql("SELECT enqueued_at FROM {table} WHERE q_name = 'many' ORDER BY id")
    assert times == sorted(set(times))


def test_options_of_a_new_job_precede_those_of_the_call(harness: Harness) -> None:
    queue = harness.queue()
    queue.put_many(
        [
            NewJob(1),
            NewJob(2, "2h", group="b", limits={}, headers={"x": 2, "y": 2}, tenant="u", priority=0),
            NewJob(3, None, MOMENT, dedup=Dedup("key", "started")),
        ],
        "1h",
        "5h",
        group="a",
        limits={"l": 1},
        headers={"x": 1, "z": 1},
        tenant="t",
        priority=3,
    )
    common = {"group": "a", "limits": {"l": 1}, "share": "t", "priority": 3}
    assert [headers for _, headers in contents(harness, "headers")] == [
        {"x": 1, "z": 1, "gate": common},
        {"x": 2, "y": 2, "z": 1, "gate": {"group": "b", "share": "u"}},
        {"x": 1, "z": 1, "gate": {**common, "dedup": "started"}},
    ]
    found = harness.sql(f"SELECT {TIME.format('schedule_at')}, {TIME.format('expected_at')} FROM {{table}} ORDER BY id")
    assert found == [("01:00:00", "05:00:00"), ("02:00:00", "05:00:00"), ("01:00:00", "2090-01-02 03:04:05.000678")]


@small_chunks
@pytest.mark.parametrize("until", UNTIL)
def test_new_job_whose_key_is_taken_gets_the_id_of_the_holder(harness: Harness, until: str) -> None:
    queue = harness.queue()
    key = Dedup("key", until)
    first = queue.put("a", dedup=key)
    new = Dedup("new", until)
    jobs = [NewJob("b"), NewJob("c", dedup=key), NewJob("d", dedup=new), NewJob("e", dedup=new), NewJob("f", dedup=new)]
    ids = queue.put_many(jobs)
    assert ids == [ids[0], first, ids[2], ids[2], ids[2]]
    assert contents(harness) == [(first, "a"), (ids[0], "b"), (ids[2], "d")]
    assert held(harness) == ([("key", first), ("new", ids[2])] if until == "1h" else [])
    queue.get_many(9)
    again = queue.put_many(jobs)
    assert (again[1], again[2]) == (first, ids[2]) if until == "1h" else min(again) > ids[2]


@pytest.mark.parametrize("until", UNTIL)
def test_new_job_replaces_a_job_that_waits_and_leaves_one_that_runs(harness: Harness, until: str) -> None:
    queue = harness.queue()
    runs, waits = (queue.put(name, dedup=Dedup(name, until)) for name in ("runs", "waits"))
    job = queue.lease(60)
    assert job.id == runs
    ids = queue.put_many(
        NewJob(f"{name} {number}", "1h", dedup=Dedup(name, until, "replace"), headers={"n": number}, priority=number)
        for number in (1, 2)
        for name in ("waits", "new", "runs")
    )
    again = runs if until != "started" else ids[2]  # a job that has started has given up its key
    assert ids == [waits, ids[1], again] * 2
    assert contents(harness) == [
        (runs, "runs"),
        (waits, "waits 2"),
        (ids[1], "new 2"),
        *([(again, "runs 2")] if until == "started" else []),
    ]
    assert (queue.stats().scheduled, queue.stats().ready) == (3 if until == "started" else 2, 0)
    found = harness.sql("SELECT (headers->>'n')::int, priority FROM {table} WHERE leased_until IS NULL")
    assert {*found} == {(2, 2)}
    job.ack()


@pytest.mark.requires(Capability.LISTEN)
def test_replace_by_a_new_job_wakes_a_waiter(harness: Harness) -> None:
    queue = harness.queue(poll_interval=3600)
    dedup = Dedup("key", on_conflict="replace")
    first = queue.put("a", "30d", dedup=dedup)
    with harness.thread(lambda: queue.get(timeout=3600)) as got:
        harness.eventually(harness.listening)
        assert queue.put_many([NewJob("b", dedup=dedup)]) == [first]
        assert (got().id, queue.get(block=False)) == (first, None)


@small_chunks
@pytest.mark.parametrize("within", [False, True], ids=["held", "in the call"])
@pytest.mark.parametrize("until", UNTIL)
def test_new_job_with_a_duplicate_key_and_error_stores_nothing(harness: Harness, until: str, within: bool) -> None:
    queue, caller = harness.queue(), harness.connect()
    first = queue.put("a", dedup=Dedup("key", until))
    key = Dedup("other" if within else "key", until, "error")
    jobs = [NewJob(0), NewJob(1, dedup=Dedup("other", until)), NewJob(2), NewJob(3), NewJob(4, dedup=key), NewJob(5)]

    def refused(**options: Any) -> None:
        with pytest.raises(
            DuplicateJob, match="item 4 has.*as item 1 has" if within else "has the dedup key"
        ) as caught:
            queue.put_many(iter(jobs), **options)
        assert (caught.value.job_id, caught.value.item) == ((None, 1) if within else (first, None))

    refused()
    with queue:
        before = queue.put("before")
        refused()
    refused(connection=caller.raw)
    if caller.session.in_transaction():
        caller.commit()
    caller.begin()
    refused(connection=caller.raw)
    [after] = queue.put_many([NewJob("after")], connection=caller.raw)
    caller.commit()
    assert contents(harness) == [(first, "a"), (before, "before"), (after, "after")]
    assert held(harness) == ([("key", first)] if until == "1h" else [])


@small_chunks
@pytest.mark.parametrize("wrong", ["generator", "unencodable", "priority", "time", "header", "data", "duplicate"])
def test_new_jobs_are_not_stored_when_one_of_them_is_wrong(harness: Harness, wrong: str) -> None:
    queue, caller = harness.queue(), harness.connect()
    error = Boom("mine")

    def items(after: int) -> Iterator[Any]:
        yield from (NewJob(number, dedup=f"key {number}") for number in range(after))
        if wrong == "generator":
            raise error
        made: dict[str, Callable[[], Any]] = {
            "unencodable": lambda: NewJob(object()),
            "priority": lambda: NewJob(1, priority=1.5),  # type: ignore[arg-type]
            "time": lambda: NewJob(1, "soon"),
            "header": lambda: NewJob(1, headers={"gate": 1}),
            "data": lambda: "no job",
            "duplicate": lambda: NewJob(1, dedup=Dedup(f"key {after - 1}", on_conflict="error")),
        }
        yield made[wrong]()
        yield NewJob("never asked for")

    kinds: dict[str, type[Exception]] = {
        "generator": Boom,
        "unencodable": SerializationError,
        "priority": ConfigurationError,
        "time": InvalidTimeSpec,
        "header": ConfigurationError,
        "data": InvalidCall,
        "duplicate": DuplicateJob,
    }
    for after in (1, 2, 5):
        with pytest.raises(kinds[wrong], match=f"item {after} " if wrong == "data" else None) as caught:
            queue.put_many(items(after))
        assert (isinstance(caught.value, PQError), wrong != "generator") in ((True, True), (False, False))
        with queue:
            queue.put("before")
            with pytest.raises(kinds[wrong]):
                queue.put_many(items(after))
            assert queue.count() == 1
            queue.clear()
        caller.begin()
        with pytest.raises(kinds[wrong]):
            queue.put_many(items(after), connection=caller.raw)
        caller.commit()
        assert contents(harness) == []
    assert len(queue.put_many(itertools.islice(items(9), 9))) == 9


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_new_job_among_data_is_refused(harness: Harness, serializer: str) -> None:
    queue = harness.queue(serializer=serializer)
    with pytest.raises(InvalidCall, match="item 2 of put_many is a NewJob"):
        queue.put_many([1, 2, NewJob(3)])
    with pytest.raises(InvalidCall, match=r"item 2 of put_many is a builtins\.int"):
        queue.put_many([NewJob(1), NewJob(2), 3])
    with pytest.raises(InvalidCall, match="give NewJob objects to put_many"):
        queue.put(NewJob(1))
    assert contents(harness) == []
    assert queue.put_many([]) == queue.put_many(iter(())) == []


def test_new_jobs_of_a_group_run_in_their_order(harness: Harness) -> None:
    queue = harness.queue()
    jobs = [NewJob(number, group=f"g{number % 2}", dedup=f"key {9 - number}", priority=number) for number in range(10)]
    ids = queue.put_many(jobs)
    assert ids == sorted(ids)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(5):
        leased = queue.lease_many(10, 60, block=False)
        assert sorted(job.data % 2 for job in leased) == [0, 1]
        for job in leased:
            seen[job.data % 2].append(job.data)
        assert queue.ack_many(leased) == []
    assert seen == {0: [0, 2, 4, 6, 8], 1: [1, 3, 5, 7, 9]}


@small_chunks
def test_new_jobs_with_connection_argument_end_with_its_transaction(harness: Harness) -> None:
    queue, caller = harness.queue(), harness.connect()
    jobs = [NewJob(number, dedup=f"key {number}") for number in range(5)]
    caller.begin()
    queue.put_many(jobs, connection=caller.raw)
    assert contents(harness) == []
    caller.rollback()
    assert contents(harness) == []
    caller.begin()
    ids = queue.put_many(jobs, connection=caller.raw)
    caller.commit()
    assert contents(harness) == list(zip(ids, range(5), strict=True))


def change_rows(harness: Harness, change: str) -> None:
    """Make a trigger that changes each row that is put, or drops it."""
    schema = quote(harness.schema)
    harness.sql(
        f"CREATE FUNCTION {schema}.change_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change};"
        " RETURN NEW; END $$",
        rows=False,
    )
    harness.sql(
        f"CREATE TRIGGER changes_row BEFORE INSERT ON {{table}} FOR EACH ROW EXECUTE FUNCTION {schema}.change_row()",
        rows=False,
    )


@pytest.mark.parametrize(
    "change",
    ["NEW.id := 1000000 - NEW.id", "NEW.id := NEW.id # 1", "NEW.enqueued_at := NEW.enqueued_at - interval '1 day'"],
)
def test_put_many_returns_each_new_jobs_own_id_whatever_triggers_change(harness: Harness, change: str) -> None:
    queue = harness.queue()
    first = queue.put("held", dedup="key 3")
    change_rows(harness, change)
    jobs = [NewJob(number, priority=number, dedup=f"key {number}" if number % 2 else None) for number in range(9)]
    if "enqueued_at" in change:  # with a row less, the numbers of the others are not known
        with pytest.raises(NotStored, match="changes enqueued_at"):
            queue.put_many(jobs)
        assert contents(harness) == [(first, "held")]
        del jobs[3]
    ids = queue.put_many(jobs)
    stored = {job.data: job_id for job, job_id in zip(jobs, ids, strict=True) if job_id != first}
    assert len(stored) == 8
    assert {(job_id, data) for data, job_id in stored.items()} | {(first, "held")} == {*contents(harness)}


@pytest.mark.parametrize("dedup", [None, "key", Dedup("key", "1h")], ids=["no key", "key", "for a time"])
def test_new_jobs_of_which_a_trigger_drops_one_are_not_stored(harness: Harness, dedup: Any) -> None:
    queue = harness.queue()
    change_rows(harness, "IF NEW.data::text = '2' THEN RETURN NULL; END IF")
    jobs = [NewJob(1, priority=1), NewJob(2, dedup=dedup), NewJob(3, dedup="other")]
    with pytest.raises(NotStored, match="changes_row"):
        queue.put_many(jobs)
    with queue:
        queue.put("before")
        with pytest.raises(NotStored, match="changes_row"):
            queue.put_many(jobs)
    assert [data for _, data in contents(harness)] == ["before"]
    assert held(harness) == []


@pytest.mark.only("blocking")  # a generator that waits would stop the event loop
@pytest.mark.parametrize("block", [False, True], ids=["alone", "block"])
def test_put_many_calls_with_crossing_keys_end(harness: Harness, monkeypatch: pytest.MonkeyPatch, block: bool) -> None:
    monkeypatch.setattr(put_many, "CHUNK_ROWS", 1)
    queue = harness.queue(max_connections=2)
    both = threading.Barrier(2)

    def jobs(first: str, second: str) -> Iterator[NewJob]:
        yield NewJob(f"plain {first}")
        yield NewJob(first, dedup=first)
        yield NewJob(first, "1h")
        both.wait(PATIENCE)  # the first keys of both are put
        yield NewJob(first, dedup=second)

    def put(first: str, second: str) -> Any:
        try:
            if not block:
                return queue.put_many(jobs(first, second))
            with queue:
                return queue.put_many(jobs(first, second))
        except TransientError as exc:
            return exc

    found = harness.at_once(lambda: put("a", "b"), lambda: put("b", "a"))
    failed = [each for each in found if isinstance(each, TransientError)]
    if block:
        assert [exc.sqlstate for exc in failed] == ["40P01"]
        assert len(contents(harness)) == 4
        return
    assert failed == []
    (plain_a, a, timed_a, b), (plain_b, b_too, timed_b, a_too) = found
    assert (a, b) == (a_too, b_too)
    assert sorted(job_id for job_id, _ in contents(harness)) == sorted({plain_a, plain_b, a, b, timed_a, timed_b})


def test_concurrent_put_many_calls_and_gets_lose_no_key(harness: Harness) -> None:
    queue = harness.queue(max_connections=6)
    seen: set[int] = set()
    over = threading.Event()

    def consume() -> None:
        while True:
            last = over.is_set()
            jobs = queue.get_many(7, block=False)
            seen.update(job.id for job in jobs)
            if not jobs and last:
                return

    def produce() -> list[int]:
        jobs = [NewJob(n, dedup=Dedup(f"key {n}", "started" if n % 2 else "finished")) for n in range(6)]
        return [job_id for _ in range(5) for job_id in queue.put_many(jobs)]

    with harness.thread(consume) as consumed:
        try:
            produced = harness.at_once(*[produce] * 2)
        finally:
            over.set()
        consumed()
    assert {job for ids in produced for job in ids} == seen
