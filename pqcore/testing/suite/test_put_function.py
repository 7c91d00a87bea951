"""The function that puts jobs from SQL: it stores the same rows as `Queue.put`, and refuses the same values."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any

import pytest

from pqcore.errors import DatabaseError, DuplicateJob, PQError
from pqcore.put_options import Dedup
from pqcore.sql.identifiers import TableName, literal
from pqcore.testing.harness import Harness
from pqcore.testing.undo import Undo

SETS = 200
TOLERANCE = timedelta(minutes=5)
"""The largest difference between two times that were put as the same time from now."""
PIECES = (
    "a",
    "B ",
    "'",
    '"',
    "\\",
    "\n",
    "\x01",
    "%s",
    "$1",
    "{x}",
    "=3",
    "/",
    "é",
    "\U0001f34e",
    "\u2028",
    "x" * 40,
    "ü" * 100,
)
DATA: tuple[Any, ...] = (None, 1, -2.5, True, "ü\n", [], [1, [2]], {}, {"a": {"b": [None, "'\\\""]}}, 10**20, 1e-7)
NOW = datetime.now(timezone.utc)


def name_of(harness: Harness) -> str:
    """Return the qualified name of the function; skip the scenario if the engine has no such function."""
    harness.needs_put_function()
    names = TableName("queue", harness.schema)
    return names.qualified(names.put_function)


def text_of(value: Any) -> str:
    """Return an argument in SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, (str, int)):
        return literal(value) if isinstance(value, str) else str(value)
    if isinstance(value, timedelta):
        return f"interval '{value.total_seconds()} seconds'"
    return f"timestamptz '{value.isoformat()}'"


def put(harness: Harness, queue: str = "q", data: Any = None, **options: Any) -> int:
    """Put a job by the function; return its id.

    Args:
        harness: The harness.
        queue: The name of the queue.
        data: JSON text.
        **options: The other arguments of the function.
    """
    named = "".join(f", {name} => {text_of(value)}" for name, value in options.items())
    arguments = f"{text_of(queue)}, {text_of(data)}{named}"
    [[job]] = harness.sql(f"SELECT {name_of(harness)}({arguments})")
    return int(job)


def word(random: Random) -> str:
    text = "".join(random.choice(PIECES) for _ in range(random.randint(1, 4)))
    return text.encode()[:500].decode(errors="ignore")


def options_of(random: Random, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a set of options for `Queue.put`, and the same options for the function."""
    put: dict[str, Any] = {}
    sql: dict[str, Any] = {}

    def choose(probability: float) -> bool:
        return random.random() < probability

    if choose(0.3):
        when: Any = random.choice([timedelta(hours=3), timedelta(seconds=-0.5), NOW + timedelta(days=400), NOW])
        put["schedule_at"] = when
        sql["delay" if isinstance(when, timedelta) else "schedule_at"] = when
    if choose(0.2):
        put["expected_at"] = sql["expected_at"] = NOW + timedelta(hours=random.randint(-5, 5))
    if choose(0.3):
        put["group"] = sql["group_key"] = word(random)
    if choose(0.3):
        put["limits"] = {word(random): random.choice([1, 7, 2**31 - 1]) for _ in range(random.randint(0, 4))}
        sql["limits"] = json.dumps(put["limits"])
    if choose(0.2):
        put["tenant"] = sql["tenant"] = word(random)
    if choose(0.3):
        put["priority"] = sql["priority"] = random.choice([0, 1, -1_000_000, 1_000_000])
    if choose(0.3):
        put["headers"] = {word(random): random.choice(DATA) for _ in range(random.randint(0, 3))}
        sql["headers"] = json.dumps(put["headers"])
    if choose(0.4):
        until = random.choice(["finished", "started", "30m", "2d"])
        sql["dedup_key"] = f"{word(random)[:80]}{number}"
        sql["dedup_until"] = until
        sql["on_conflict"] = random.choice(["keep", "replace", "error"])
        put["dedup"] = Dedup(sql["dedup_key"], until, sql["on_conflict"])
    return put, sql


def rows(harness: Harness) -> list[dict[str, Any]]:
    """Return the stored rows in the order of their puts, with all columns."""
    return [json.loads(text) for (text,) in harness.sql("SELECT to_jsonb(t)::text FROM {table} AS t ORDER BY id")]


def keys(harness: Harness) -> list[tuple[str, timedelta]]:
    """Return the keys that are held for a time, each with the time that is left."""
    dedup = TableName("queue", harness.schema).related("_dedup")
    return harness.sql(f"SELECT dedup_key, until - clock_timestamp() FROM {dedup} ORDER BY job_id")


def clear(harness: Harness) -> None:
    for suffix in ("", "_dedup"):
        harness.sql(f"DELETE FROM {TableName('queue', harness.schema).related(suffix)}", rows=False)


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that two rows are equal, except for their ids and for times within the tolerance."""
    assert one.keys() == other.keys()
    for column in one.keys() - {"id"}:
        mine, others = one[column], other[column]
        if column in ("enqueued_at", "schedule_at", "expected_at") and mine is not None and others is not None:
            assert abs(datetime.fromisoformat(mine) - datetime.fromisoformat(others)) < TOLERANCE, column
        else:
            assert mine == others, column


@pytest.mark.utf8
def test_put_function_stores_the_same_rows_as_put(harness: Harness) -> None:
    queue = harness.queue()
    function = name_of(harness)
    random = Random(20261130)
    sets = [(random.choice(DATA), *options_of(random, number)) for number in range(SETS)]
    for data, options, _ in sets:
        queue.put(data, **options)
    by_python, keys_by_python = rows(harness), keys(harness)
    clear(harness)
    for data, _, options in sets:
        put(harness, "q", json.dumps(data), **options)
    by_sql, keys_by_sql = rows(harness), keys(harness)
    assert len(by_python) == len(by_sql) == SETS, function
    for one, other in zip(by_python, by_sql, strict=True):
        compare(one, other)
    assert len(keys_by_python) > 10
    for (key, left), (other_key, other_left) in zip(keys_by_python, keys_by_sql, strict=True):
        assert key == other_key
        assert abs(left - other_left) < TOLERANCE


def test_put_function_stores_a_gate_as_put_does(harness: Harness) -> None:
    """Statements look for parts of this text, if JSON functions of the server cannot read the other headers."""
    queue = harness.queue()
    queue.put(1, group="g", priority=2, tenant="t", dedup=Dedup("k", "started"))
    put(harness, "q", "1", group_key="g", priority=2, tenant="t", dedup_key="other", dedup_until="started")
    [[one], [other]] = harness.sql("SELECT headers::text FROM {table}")
    assert one == other


def test_put_function_stores_calls_as_tasks_do(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(name="ship", max_retries=7)
    def ship(job_id: int, *args: Any, **kwargs: Any) -> None: ...

    deadline = NOW + timedelta(days=1)
    ship(1, "ü", to={"a": []}, _timeout="90s", _deadline=deadline, _keep_result="1h", _headers={"x": 1}, _group="g")
    put(
        harness,
        task="ship",
        args=json.dumps([1, "ü"]),
        kwargs=json.dumps({"to": {"a": []}}),
        max_retries=7,
        timeout=timedelta(seconds=90),
        deadline=deadline,
        keep_result=timedelta(hours=1),
        headers='{"x": 1}',
        group_key="g",
    )
    one, other = rows(harness)
    assert one["data"].pop("retry_in") == "30s"
    compare(one, other)
    assert [job.task for job in queue.jobs(task="ship")] == ["ship", "ship"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"queue": ""}, "queue is empty"),
    ({"queue": None}, "queue is empty"),
    ({"queue": "é" * 1001}, "has 2002 bytes; give at most 2000"),
    ({"data": None}, "data is NULL; give JSON"),
    ({"task": "t"}, "data and task are both given"),
    ({"data": None, "task": " \t\v"}, "give the name of a task"),
    ({"args": "[]"}, "give task, too"),
    ({"timeout": timedelta(1)}, "give task, too"),
    ({"data": None, "task": "t", "args": "{}"}, "args is {}; give an array"),
    ({"data": None, "task": "t", "kwargs": "null"}, "kwargs is null; give an object"),
    ({"data": None, "task": "t", "max_retries": -1}, "max_retries is -1"),
    ({"data": None, "task": "t", "timeout": timedelta(-1)}, "timeout is -86400 s"),
    ({"data": None, "task": "t", "keep_result": timedelta(days=400_000)}, "keep_result is 34560000000 s"),
    ({"schedule_at": NOW, "delay": timedelta(1)}, "schedule_at and delay are both given"),
    ({"delay": timedelta(days=-400_000)}, "delay is -34560000000 s; give a time from"),
    ({"expected_at": "infinity"}, "expected_at is infinity; give a nearer time"),
    ({"schedule_at": "0300-01-01 BC"}, "schedule_at is 0300-01-01"),
    ({"priority": 1_000_001}, "priority is 1000001; give a whole number"),
    ({"priority": -(2**31)}, "priority is -2147483648; give a whole number"),
    ({"group_key": ""}, "group_key is empty"),
    ({"tenant": ""}, "tenant is empty"),
    ({"tenant": "é" * 251}, "has 502 bytes; give at most 500"),
    ({"dedup_key": ""}, "dedup_key is empty"),
    ({"dedup_key": "x" * 501}, "dedup_key 'x"),
    ({"limits": "[]"}, "limits is []; give an object"),
    ({"limits": '{"": 1}'}, "limit is empty"),
    ({"limits": '{"a": 0}'}, "limit 'a' is 0; give the number"),
    ({"limits": '{"a": 1.5}'}, "limit 'a' is 1.5"),
    ({"limits": '{"a": true}'}, "limit 'a' is true"),
    ({"limits": '{"a": 2147483648}'}, "limit 'a' is 2147483648"),
    ({"headers": "1"}, "headers is 1; give an object"),
    ({"headers": '{"gate": {}}'}, "header 'gate' is pqcore's own"),
    ({"on_conflict": "ignore"}, "on_conflict is 'ignore'; choose"),
    ({"on_conflict": None}, "on_conflict is NULL; choose"),
    ({"dedup_until": "soon"}, "dedup_until is 'soon'; give"),
    ({"dedup_until": "-5 minutes"}, "dedup_until is -300 s"),
    ({"dedup_until": None}, "dedup_until is NULL"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_put_function_refuses_values_that_put_refuses(harness: Harness, options: dict[str, Any], says: str) -> None:
    harness.pq()
    with pytest.raises(DatabaseError) as caught:
        put(harness, **{"data": "1", **options})
    assert says in str(caught.value)
    assert caught.value.sqlstate == "22023"
    assert rows(harness) == []


def test_put_function_takes_null_as_an_argument_that_is_not_given(harness: Harness) -> None:
    queue = harness.queue()
    queue.put(1)
    names = "schedule_at expected_at delay task args kwargs max_retries timeout deadline keep_result priority tenant"
    not_given = dict.fromkeys([*names.split(), "group_key", "limits", "dedup_key", "headers"])
    put(harness, "q", "1", **not_given, dedup_until="5 minutes", on_conflict="error")
    compare(*rows(harness))
    assert keys(harness) == []
    assert put(harness, task="v") > 0


@pytest.mark.parametrize("until", ["finished", "started", "1h"])
def test_put_function_and_put_share_dedup_keys(harness: Harness, until: str) -> None:
    queue = harness.queue()
    first = queue.put("first", dedup=Dedup("k", until))

    def again(on_conflict: str) -> int:
        return put(harness, "q", '"new"', dedup_key="k", dedup_until=until, on_conflict=on_conflict)

    assert again("keep") == first
    with pytest.raises(PQError, match=f"job {first} of queue 'q' has the dedup key 'k'; nothing was put") as caught:
        again("error")
    assert getattr(caught.value, "sqlstate", None) == "23505"
    assert [row["data"] for row in rows(harness)] == ["first"]
    assert again("replace") == first
    [job] = queue.lease_many(1, 60)
    assert (job.id, job.data) == (first, "new")
    if until == "started":
        assert again("keep") != first
        return
    assert again("replace") == first, "a running job is not changed"
    job.ack()
    second = again("keep")
    assert (second == first) == (until == "1h")
    with pytest.raises(DuplicateJob) as refused:
        queue.put("third", dedup=Dedup("k", until, "error"))
    assert refused.value.job_id == second


@pytest.mark.parametrize("on_conflict", ["keep", "replace", "error"])
@pytest.mark.parametrize("until", ["finished", "started", "1h"])
def test_concurrent_calls_of_the_put_function_store_one_job(harness: Harness, until: str, on_conflict: str) -> None:
    queue = harness.pq(harness.committed_dsn(), max_connections=8)["q"]
    options = f"dedup_key => 'k', dedup_until => '{until}', on_conflict => '{on_conflict}'"

    def call() -> int | str | None:
        try:
            [[job]] = harness.sql_within(queue, f"SELECT {function}('q', '1', {options})")
        except DatabaseError as exc:
            return exc.sqlstate
        return int(job)

    function = name_of(harness)
    found = harness.at_once(*[call] * 8)
    [row] = rows(harness)
    refused = 7 if on_conflict == "error" else 0
    assert sorted(map(str, found)) == sorted([str(row["id"])] * (8 - refused) + ["23505"] * refused)


def test_put_function_is_part_of_the_transaction(harness: Harness) -> None:
    queue = harness.queue()
    function = name_of(harness)
    with suppress(Undo), queue:
        harness.sql_within(queue, f"SELECT {function}('q', '1')")
        assert queue.count() == 1
        raise Undo
    assert queue.count() == 0


def test_put_function_keeps_ids_in_order_and_wakes_a_waiter(harness: Harness) -> None:
    queue = harness.queue()
    function = name_of(harness)
    with harness.thread(lambda: queue.get(timeout=30)) as join:
        ids = [job for (job,) in harness.sql(f"SELECT {function}('q', to_jsonb(n)) FROM generate_series(1, 3) AS n")]
        assert join().data == 1
    assert ids == sorted(ids)
    assert [job.data for job in queue.get_many(9)] == [2, 3]


def test_worker_runs_calls_that_the_function_put(harness: Harness) -> None:
    queue = harness.task_queue()
    seen: list[tuple[int, str]] = []

    @queue.task(name="note_of_function")
    def note(job_id: int, number: int, text: str) -> int:
        seen.append((number, text))
        return number

    ids = [
        put(
            harness,
            task="note_of_function",
            args=f"[{number}]",
            kwargs='{"text": "ü"}',
            group_key="g",
            limits='{"task:note_of_function": 1}',
            keep_result=timedelta(hours=1),
        )
        for number in range(3)
    ]
    [job] = queue.lease_many(3, 60)
    assert job.id == ids[0], "the other jobs wait for their turn"
    queue.nack(job)
    harness.drain(queue)
    assert seen == [(number, "ü") for number in range(3)]
    assert [queue.result(job_id, timeout=0) for job_id in ids] == [0, 1, 2]


def test_worker_retries_a_call_of_the_function_as_its_task_declares(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task(name="fail", max_retries=1, retry_in="1h")
    def fail(job_id: int) -> None:
        raise ValueError("no")

    declared, chosen = put(harness, task="fail"), put(harness, task="fail", max_retries=0)
    harness.drain(queue)
    assert [queue.status(job_id) for job_id in (declared, chosen)] == ["scheduled", "dead"]
    [job] = queue.jobs("scheduled")
    assert job.schedule_at - datetime.now(timezone.utc) > timedelta(minutes=30)
