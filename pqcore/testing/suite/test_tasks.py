"""Tasks: functions as jobs, declared, put and run; retried, postponed, or given up."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import types
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest

from pqcore.errors import (
    ConfigurationError,
    DuplicateJob,
    InvalidTimeSpec,
    JobFailed,
    JobNotFound,
    PQError,
    ResultNotStored,
    SerializationError,
)
from pqcore.put_options import RESERVED
from pqcore.sql.identifiers import TableName
from pqcore.tasks import (
    Dedup,
    Discard,
    Exponential,
    Fixed,
    JobCancelled,
    JobContext,
    Retry,
    Snooze,
    TaskDeclarations,
    TaskOptions,
    current,
)
from pqcore.tasks.outcomes import UNKNOWN_PAUSE
from pqcore.testing.connections import statement
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.undo import Undo


class Broken(Exception):
    """The exception that tasks here raise."""


class Worse(Broken):
    """Another exception that tasks here raise."""


@pytest.fixture
def queue(harness: Harness) -> Any:
    return harness.task_queue()


def rows(harness: Harness, columns: str = "id, data::text") -> list[tuple[Any, ...]]:
    return harness.sql(f"SELECT {columns} FROM {{table}} WHERE dequeued_at IS NULL ORDER BY id")


def ahead(harness: Harness) -> float:
    """Return the seconds until the only waiting job is due."""
    [[left]] = rows(harness, "extract(epoch FROM schedule_at - clock_timestamp())::float8")
    return float(left)


def come_due(harness: Harness) -> None:
    """Let scheduled jobs become due."""
    harness.sql("UPDATE {table} SET schedule_at = clock_timestamp() WHERE schedule_at > clock_timestamp()", rows=False)


def raising(*errors: BaseException | type[BaseException] | None) -> tuple[Callable[..., str], list[int]]:
    """Return a function that raises these exceptions, one for each call, and then returns.

    And the attempts that it saw.
    """
    seen: list[int] = []

    def task(job_id: int) -> str:
        seen.append(current().attempt)
        error = errors[len(seen) - 1] if len(seen) <= len(errors) else None
        if error is not None:
            raise error
        return "done"

    return task, seen


# Declaring and putting


def test_task_call_puts_a_job(harness: Harness, queue: Any) -> None:
    @queue.task()
    def eat(job_id: int, kind: str, *, number: int = 1) -> None:
        """Eat."""

    job = eat("Cox", number=3)
    assert isinstance(job, int)
    [(job_id, data)] = rows(harness)
    assert job == job_id
    assert json.loads(data) == {
        "function": f"{__name__}.test_task_call_puts_a_job.<locals>.eat",
        "args": ["Cox"],
        "kwargs": {"number": 3},
        "retried": 0,
        "retry_in": "30s",
        "max_retries": 0,
    }
    made = unwrapped(eat)
    assert (made.__name__, made.__doc__, made.__module__) == ("eat", "Eat.", __name__)
    assert eat._path == eat.task.path == json.loads(data)["function"]
    assert eat.__wrapped__._path == eat._path
    assert unwrapped(queue).handler_registry[eat._path] is eat.__wrapped__


def test_task_function_receives_its_job_id_first(harness: Harness, queue: Any) -> None:
    calls = []

    @queue.task()
    def plain(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs, current().id, current().attempt))

    @queue.task()
    async def coroutine(*args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        calls.append((args, kwargs, current().id, current().attempt))

    first, second = plain(1, [2, "x"], key={"a": None}), coroutine("…", _other=3)
    harness.drain(queue, concurrency=1)
    assert calls == [((first, 1, [2, "x"]), {"key": {"a": None}}, first, 1), ((second, "…"), {"_other": 3}, second, 1)]
    assert rows(harness) == []


def test_task_decorator_without_parentheses_declares_the_function(harness: Harness, queue: Any) -> None:
    calls = []

    @queue.task
    def plain(job_id: int, number: int) -> None:
        calls.append((job_id, number))

    @queue.task
    async def coroutine(job_id: int, number: int) -> None:
        await asyncio.sleep(0)
        calls.append((job_id, number))

    ids = [plain(1), coroutine(2)]
    assert plain.task.options == TaskOptions()
    harness.drain(queue, concurrency=1)
    assert calls == [(ids[0], 1), (ids[1], 2)]


def test_periodic_decorator_without_parentheses_is_refused(queue: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"write @queue\.periodic"):

        @queue.periodic
        def nightly(job_id: int) -> None: ...


def test_task_arguments_are_encoded_by_the_queues_serializer(harness: Harness) -> None:
    queue = harness.tasks()["q/pickle"]
    calls = []

    @queue.task()
    def task(job_id: int, *args: Any, when: Any) -> None:
        calls.append((args, when))

    moment = datetime(2020, 2, 29, tzinfo=timezone.utc)
    task((1, 2), {3}, when=moment)
    harness.drain(queue)
    assert calls == [(((1, 2), {3}), moment)]


def test_task_call_with_arguments_that_cannot_be_encoded_puts_nothing(harness: Harness, queue: Any) -> None:
    task = queue.task()(lambda job_id, value: None)
    with pytest.raises(SerializationError):
        task(object())
    with pytest.raises(SerializationError):
        queue.put_calls(task.call(1), task.call(object()))
    assert rows(harness) == []


def test_task_times_of_a_declaration_and_of_a_call_are_used(harness: Harness, queue: Any) -> None:
    task = queue.task("1h", timedelta(hours=2))(lambda job_id: None)
    task()
    task(_schedule_at=None, _expected_at=None)  # as in pq, None changes nothing
    task(_schedule_at="3h", _expected_at="4h")
    found = rows(
        harness,
        "round(extract(epoch FROM schedule_at - enqueued_at) / 3600)::int,"
        " round(extract(epoch FROM expected_at - enqueued_at) / 3600)::int",
    )
    assert found == [(1, 2), (1, 2), (3, 4)]


def test_task_call_options_leave_the_declaration_unchanged(harness: Harness, queue: Any) -> None:
    task = queue.task(max_retries=1, retry_in="5s", headers={"a": 1}, timeout=5)(lambda job_id: None)
    task(_max_retries=7, _retry_in="9s", _headers={"b": 2}, _timeout="1m", _keep_result=timedelta(minutes=2))
    task()
    first, second = rows(harness, "data::text, headers::text")
    assert (json.loads(first[0])["max_retries"], json.loads(first[0])["retry_in"]) == (7, "9s")
    assert json.loads(first[1]) == {"b": 2, "run": {"timeout": 60.0}, "keep": 120.0}
    assert (json.loads(second[0])["max_retries"], json.loads(second[0])["retry_in"]) == (1, "5s")
    assert json.loads(second[1]) == {"a": 1, "run": {"timeout": 5.0}}


def test_task_option_may_be_a_function_of_the_calls_arguments(harness: Harness, queue: Any) -> None:
    task = queue.task(
        group=lambda name, n=0: f"g-{name}",
        dedup=lambda name, n=0: Dedup(f"d-{name}", on_conflict="replace") if n else None,
        limits=lambda name, n=0: {f"l-{name}": n} if n else None,
        limit=4,
    )(lambda job_id, name, n=0: None)
    first = task("a", n=2)
    assert task("a", n=2) == first
    task("b")
    found = rows(harness, "group_key, dedup_key, headers::text")
    assert [row[:2] for row in found] == [("g-a", "d-a"), ("g-b", None)]
    limits = [json.loads(row[2])["gate"]["limits"] for row in found]
    assert limits == [{"l-a": 2, f"task:{task._path}": 4}, {f"task:{task._path}": 4}]


@pytest.mark.parametrize("name", ["retry_on", "discard_on", "max_crashes", "run_in", "keep_errors", "limit"])
def test_task_call_refuses_options_of_declarations(harness: Harness, queue: Any, name: str) -> None:
    task = queue.task()(lambda job_id: None)
    with pytest.raises(ConfigurationError, match=name):
        task(**{f"_{name}": None})
    assert rows(harness) == []


WRONG: list[dict[str, Any]] = [
    {"schedule_at": "soon"},
    {"expected_at": 5},
    {"deadline": "x"},
    {"max_retries": -1},
    {"max_retries": "1"},
    {"max_retries": None},
    {"retry_in": "x"},
    {"retry_in": -1},
    {"retry": 5},
    {"retry": "5m"},
    {"retry_on": ValueError("x")},
    {"retry_on": (ValueError, "x")},
    {"discard_on": "ValueError"},
    {"timeout": "x"},
    {"keep_result": "x"},
    {"max_crashes": -1},
    {"max_crashes": 1.5},
    {"limit": 0},
    {"limit": "3"},
    {"run_in": "fiber"},
    {"keep_errors": "some"},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_task_options_of_bad_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, InvalidTimeSpec)):
        TaskOptions(**options)


def test_task_option_of_a_bad_value_is_refused_where_it_is_written(harness: Harness, queue: Any) -> None:
    with pytest.raises(ConfigurationError):
        queue.task(max_retries=-1)
    with pytest.raises(TypeError):
        queue.task(no_such_option=1)
    task = queue.task()(lambda job_id, **options: None)
    for options in WRONG:
        [(name, value)] = options.items()
        with pytest.raises((ConfigurationError, InvalidTimeSpec)):
            task(**{f"_{name}": value})
    for group in ("", 5, "\0"):
        with pytest.raises(ValueError):
            task(_group=group)
    assert rows(harness) == []


@pytest.mark.parametrize("name", RESERVED)
def test_headers_reserved_by_pqcore_are_refused(harness: Harness, queue: Any, name: str) -> None:
    headers = {name: "mine"}
    task = queue.task()(lambda job_id: None)
    for attempt in (
        partial(queue.put, 1, headers=headers),
        partial(queue.put_many, [1], headers=headers),
        partial(task, _headers=headers),
        partial(queue.put_calls, task.call(_headers=headers)),
    ):
        with pytest.raises(ConfigurationError, match=name):
            attempt()
    assert rows(harness) == []


def test_task_declared_twice_uses_the_last_declaration(harness: Harness, queue: Any) -> None:
    seen = []

    @queue.task()
    def task(job_id: int, text: str) -> None:
        seen.append(text)

    other = queue.task(expected_at="1h")(task)
    task("second")
    other("first")
    harness.drain(queue, concurrency=1)
    assert seen == ["first", "second"]


def test_task_call_joins_the_callers_transaction(harness: Harness, queue: Any) -> None:
    caller = harness.connect()
    task = queue.task()(lambda job_id, number: None)
    for end in (caller.rollback, caller.commit):
        caller.begin()
        task(1, _connection=caller.raw)
        assert rows(harness) == []
        end()
    assert len(rows(harness)) == 1


def test_task_call_in_a_block_is_undone_with_it(harness: Harness, queue: Any) -> None:
    task = queue.task()(lambda job_id: None)

    def undone() -> None:
        task()
        raise Undo

    with pytest.raises(Undo), queue:
        undone()
    assert rows(harness) == []
    with queue:
        task()
    assert len(rows(harness)) == 1


def test_put_calls_puts_calls_of_several_queues_in_order(harness: Harness) -> None:
    pq = harness.tasks()
    seen = []

    @pq["a"].task(max_retries=1)
    def task(job_id: int, number: int) -> None:
        seen.append((job_id, number))

    other = pq["b"].task(schedule_at="0s", group=lambda number: "g")(task)
    calls = [task.call(1), task.call(2), other.call(3), task.call(4), other.call(5), other.call(6)]
    ids = pq["a"].put_calls(*calls)
    assert ids == sorted(ids)
    assert [job.status() for job in ids[:2]] == ["ready"] * 2
    found = harness.sql("SELECT id, q_name, group_key, schedule_at IS NOT NULL FROM {table} ORDER BY id")
    assert [row[1:] for row in found] == [
        ("a", None, False) if number in (1, 2, 4) else ("b", "g", True) for number in range(1, 7)
    ]
    harness.drain(pq["a"], pq["b"])
    assert sorted(seen) == list(zip(ids, range(1, 7), strict=True))
    assert pq["a"].put_calls() == []


def test_put_calls_puts_all_or_none_in_the_callers_transaction(harness: Harness, queue: Any) -> None:
    task = queue.task()(lambda job_id, number: None)
    caller = harness.connect()
    caller.begin()
    queue.put_calls(*[task.call(number) for number in range(3)], connection=caller.raw)
    assert rows(harness) == []
    caller.rollback()
    assert rows(harness) == []
    idle = harness.connect()
    queue.put_calls(task.call(1), task.call(2, _schedule_at="1h"), connection=idle.raw)
    if idle.session.in_transaction():  # its driver began a transaction itself, which is the caller's
        idle.commit()
    assert len(rows(harness)) == 2


@pytest.mark.utf8
def test_put_calls_stores_calls_as_single_puts_with_their_options(harness: Harness) -> None:
    pq = harness.tasks()
    columns = "data::text, headers::jsonb, group_key, dedup_key, parked_on, priority, expected_at - enqueued_at"
    moment = datetime(2090, 1, 2, tzinfo=timezone.utc)
    rows_of = []
    for name in ("one", "many"):
        queue = pq[name]
        task = queue.task(
            name="work", limit=2, group=lambda number: f"g{number}", dedup=lambda number: f"key {number}", priority=3
        )(lambda job_id, number: None)
        options: list[dict[str, Any]] = [
            {},
            {"_schedule_at": moment, "_expected_at": "1h", "_headers": {"smile": "\U0001f600"}},
            {"_schedule_at": "0s", "_dedup": Dedup("key", "started"), "_tenant": "t", "_timeout": 5},
            {"_dedup": None, "_group": None, "_priority": 0, "_keep_result": "1h"},
        ]
        if name == "one":
            handles = [task(n, **own) for n, own in enumerate(options)]
        else:
            handles = queue.put_calls(*[task.call(n, **own) for n, own in enumerate(options)])
        found = harness.sql(
            f"SELECT id, schedule_at = '2090-01-02+00', schedule_at = enqueued_at, {columns}"
            f" FROM {{table}} WHERE q_name = '{name}' ORDER BY id"
        )
        assert [job_id for job_id, *_ in found] == list(map(int, handles))
        assert [job.status() for job in handles] == ["ready", "scheduled", "ready", "ready"]
        rows_of.append([others for _, *others in found])
    assert rows_of[0] == rows_of[1]
    assert pq["many"].lease(60, block=False) is not None


@pytest.mark.parametrize("until", ["finished", "started", "1h"])
def test_put_calls_of_taken_keys_returns_the_handles_of_the_holders(harness: Harness, until: str) -> None:
    pq = harness.tasks()
    queue, other = pq["q"], pq["other"]
    task = queue.task()(lambda job_id, number: None)
    elsewhere = other.task()(lambda job_id, number: None)
    key = Dedup("key", until)
    first = task(1, _dedup=key)
    a, b, c, d = queue.put_calls(
        task.options(dedup=key).call(2),
        elsewhere.options(dedup=key).call(3),
        task.call(4),
        elsewhere.options(dedup=Dedup("key", until, "replace")).call(5),
    )
    assert (a, a.put_at, d, d.put_at) == (first, first.put_at, b, b.put_at)
    assert [json.loads(data)["args"] for _, data in rows(harness)] == [[1], [5], [4]]
    with pytest.raises(DuplicateJob) as caught:
        queue.put_calls(task.call(6), task.options(dedup=Dedup("key", until, "error")).call(7))
    assert caught.value.job_id == first
    assert len(rows(harness)) == 3
    assert int(c) > int(b)


@pytest.mark.parametrize(
    "options",
    [{"_dedup": "key"}, {"_expected_at": "1h"}, {"_schedule_at": datetime(2020, 1, 1, tzinfo=timezone.utc)}],
    ids=str,
)
def test_task_call_in_a_chain_or_batch_refuses_single_call_options(
    harness: Harness, queue: Any, options: dict[str, Any]
) -> None:
    task = queue.task()(lambda job_id: None)
    for attempt in (queue.chain, queue.batch):
        with pytest.raises(ConfigurationError):
            attempt(task.call(), task.call(**options))
    assert rows(harness) == []


def test_task_call_among_others_refuses_a_connection_of_its_own(harness: Harness, queue: Any) -> None:
    call = queue.task()(lambda job_id: None).options(connection=harness.connect().raw).call()
    for attempt in (queue.put_calls, queue.chain, queue.batch):
        with pytest.raises(
            ConfigurationError, match=r"cannot have a connection; write \w+\(\.\.\., connection=\.\.\.\)"
        ):
            attempt(call)
    assert rows(harness) == []


# Functions that a row names


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Make an importable module with a function ``task`` that was never declared."""
    made = types.ModuleType("pqcore_test_module")
    made.seen = []  # type: ignore[attr-defined]
    made.task = lambda job_id, *args: made.seen.append((job_id, *args))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the tasks that a test declares before the next test."""
    for registry in ("handler_registry", "_tasks"):
        monkeypatch.setattr(TaskDeclarations, registry, dict(getattr(TaskDeclarations, registry)))


def put_as_pq_does(harness: Harness, function: str, *args: Any, **fields: Any) -> int:
    """Put a call with only the columns and keys that pq has."""
    data = {"function": function, "args": args, "kwargs": {}, "retried": 0, "retry_in": "30s", "max_retries": 0}
    text = json.dumps({**data, **fields})
    [[job]] = harness.sql(f"INSERT INTO {{table}} (q_name, data) VALUES ('q', '{text}') RETURNING id")
    return int(job)


def test_row_that_names_an_undeclared_function_does_not_run_it(harness: Harness, queue: Any, module: Any) -> None:
    for path in ("pqcore_test_module.task", "os.getpid", "nowhere.at.all", "", "task", f"{__name__}.json.dumps"):
        put_as_pq_does(harness, path)
    harness.drain(queue)
    assert module.seen == []
    assert queue.dead.count() == 0
    found = rows(harness, "attempts, failures, excused, schedule_at > now()")
    assert found == [(1, None, 1, True)] * 6


def test_job_of_an_unknown_function_waits_for_a_worker_that_knows_it(
    harness: Harness, queue: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = put_as_pq_does(harness, f"{__name__}.later", 5)
    for _ in range(8):  # more often than it may crash
        harness.drain(queue)
        assert UNKNOWN_PAUSE - PATIENCE < ahead(harness) <= UNKNOWN_PAUSE
        come_due(harness)
    assert "unknown function" in caplog.text
    seen = []

    def later(job_id: int, number: int) -> None:
        seen.append((job_id, number))

    later.__qualname__ = "later"
    queue.task()(later)
    harness.drain(queue)
    assert seen == [(job, 5)]


def test_trusted_module_is_imported_for_its_function(harness: Harness, queue: Any, module: Any) -> None:
    job = put_as_pq_does(harness, "pqcore_test_module.task", 1)
    queue.trusted_modules = ("pqcore_test",)  # a part of a name is not a module
    harness.drain(queue)
    assert module.seen == []
    queue.trusted_modules = ("pqcore_test_module",)
    come_due(harness)
    harness.drain(queue)
    assert module.seen == [(job, 1)]


def test_trusted_module_that_cannot_be_imported_loses_no_job(harness: Harness, queue: Any) -> None:
    queue.trusted_modules = ("pqcore_no_such_module",)
    put_as_pq_does(harness, "pqcore_no_such_module.task")
    harness.drain(queue)
    assert (queue.stats().scheduled, queue.dead.count()) == (1, 0)


def test_row_of_pq_is_run(harness: Harness, queue: Any) -> None:
    function, seen = raising(Broken, Broken)
    path = queue.task(max_retries=0)(function)._path
    job = put_as_pq_does(harness, path, max_retries=2, retry_in="1s", retried=0)
    harness.drain(queue)
    assert 1 - PATIENCE < ahead(harness) <= 1
    for _ in range(2):
        come_due(harness)
        harness.drain(queue)
    assert seen == [1, 2, 3]
    assert (rows(harness), queue.dead.count(), queue.status(job)) == ([], 0, "done")


def test_row_of_pq_that_was_retried_has_its_remaining_retries(harness: Harness, queue: Any) -> None:
    function, seen = raising(*[Broken] * 9)
    path = queue.task()(function)._path
    put_as_pq_does(harness, path, max_retries=3, retry_in="0s", retried=2)
    harness.drain(queue)
    assert seen == [1, 2]
    assert queue.dead.count() == 1


# Failing and retrying


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_failed_job_is_retried_max_retries_times(harness: Harness, queue: Any, retries: int) -> None:
    function, seen = raising(*[Broken] * 9)
    job = queue.task(max_retries=retries, retry_in=None)(function)()
    harness.drain(queue)
    assert seen == list(range(1, retries + 2))
    assert [letter.id for letter in queue.dead.list()] == [job]


def test_retried_job_keeps_its_id_and_its_error(harness: Harness, queue: Any) -> None:
    function, seen = raising(Broken("first"), Broken("second"))
    job = queue.task(max_retries=2, retry_in="1h", expected_at="2h", keep_result="1h")(function)()
    for failures, text in enumerate(["first", "second"], 1):
        harness.drain(queue)
        info = queue.inspect(job)
        assert (info.id, info.state, info.failures, info.attempts) == (job, "scheduled", failures, failures)
        assert info.error["message"] == text
        assert 3600 - PATIENCE < ahead(harness) <= 3600
        come_due(harness)
    harness.drain(queue)
    assert seen == [1, 2, 3]
    assert job.result(1) == "done"


PAUSES: dict[str, tuple[dict[str, Any], float]] = {
    "by default": ({}, 30),
    "text": ({"retry_in": "5m"}, 300),
    "a number": ({"retry_in": 90.5}, 90.5),
    "a timedelta": ({"retry_in": timedelta(minutes=2)}, 120),
    "a timedelta with a fraction": ({"retry_in": timedelta(seconds=100.5)}, 100.5),
    "Fixed": ({"retry": Fixed("10m")}, 600),
    "Exponential": ({"retry": Exponential(base=100, jitter=0)}, 100),
    "a function": ({"retry": lambda failures, error: 70 * failures}, 70),
    "a function that gives a timedelta": ({"retry": lambda failures, error: timedelta(hours=1)}, 3600),
    "a function that gives text": ({"retry": lambda failures, error: "1h"}, 3600),
    "a function that fails": ({"retry": lambda failures, error: 1 / 0}, 60),
    "a function that gives nonsense": ({"retry": lambda failures, error: "soon"}, 60),
    "the policy, not the time": ({"retry": Fixed(50), "retry_in": "1h"}, 50),
}


@pytest.mark.parametrize("name", PAUSES)
def test_retry_delay_follows_the_task_options(harness: Harness, queue: Any, name: str) -> None:
    options, pause = PAUSES[name]
    function, _ = raising(Broken)
    queue.task(max_retries=1, **options)(function)()
    harness.drain(queue)
    assert pause - PATIENCE < ahead(harness) <= pause


@pytest.mark.parametrize("name", ["text", "a number", "a timedelta", "Fixed", "Exponential"])
def test_retry_delay_follows_the_call_options(harness: Harness, queue: Any, name: str) -> None:
    options, pause = PAUSES[name]
    function, _ = raising(Broken)
    task = queue.task(max_retries=1, retry=Fixed(7200))(function)
    task(**{f"_{option}": value for option, value in options.items()})
    harness.drain(queue)
    assert pause - PATIENCE < ahead(harness) <= pause


def test_retry_policy_of_a_call_must_be_serializable(harness: Harness, queue: Any) -> None:
    task = queue.task(retry=lambda failures, error: 1)(lambda job_id: None)
    task()  # the policy of the declaration is not stored with the job
    with pytest.raises(ConfigurationError):
        task(_retry=lambda failures, error: 1)
    assert len(rows(harness)) == 1


def test_retry_policy_receives_the_failures_and_the_error(harness: Harness, queue: Any) -> None:
    told = []

    def policy(failures: int, error: BaseException) -> float | None:
        told.append((failures, str(error)))
        return None

    function, seen = raising(Broken("a"), Snooze(0), Broken("b"), Broken("c"))
    queue.task(max_retries=5, retry=policy)(function)()
    harness.drain(queue)
    assert told == [(1, "a"), (2, "b"), (3, "c")]
    assert seen == [1, 2, 2, 3, 4]  # a snoozed run does not count as an attempt


def test_retry_policy_may_discard_the_job(harness: Harness, queue: Any) -> None:
    def policy(failures: int, error: BaseException) -> float:
        if failures == 2:
            raise Discard("enough")
        return 0

    function, seen = raising(*[Broken] * 5)
    job = queue.task(max_retries=9, retry=policy, keep_result="1h")(function)()
    harness.drain(queue)
    assert seen == [1, 2]
    assert (rows(harness), queue.dead.count(), job.status()) == ([], 0, "discarded")


def test_exponential_backoff_grows_up_to_its_maximum() -> None:
    policy = Exponential(base="1s", factor=3, longest="1m", jitter=0)
    assert [policy(failures, Broken()) for failures in range(1, 7)] == [1, 3, 9, 27, 60, 60]
    assert Exponential(longest=timedelta(days=1), jitter=0)(10**9, Broken()) == 86_400
    jittered = Exponential(base=100, factor=1, jitter=0.25)
    pauses = [jittered(1, Broken()) for _ in range(200)]
    assert 75 <= min(pauses) < 80 < 95 < max(pauses) <= 100
    for wrong in ({"base": "x"}, {"base": -1}, {"factor": 0.5}, {"jitter": 1.5}, {"jitter": -1}, {"longest": None}):
        with pytest.raises(ValueError):
            Exponential(**wrong)
    with pytest.raises(ValueError):
        Fixed("x")


@pytest.mark.parametrize(("error", "again"), [(Broken, True), (Worse, True), (KeyError, True), (ValueError, False)])
def test_retry_on_retries_only_these_exceptions(
    harness: Harness, queue: Any, error: type[Exception], again: bool
) -> None:
    function, seen = raising(error)
    queue.task(max_retries=3, retry_in=None, retry_on=(Broken, KeyError))(function)()
    harness.drain(queue)
    assert len(seen) == (2 if again else 1)
    assert queue.dead.count() == (0 if again else 1)


@pytest.mark.parametrize("kinds", [Broken, (KeyError, Broken)])
def test_discard_on_discards_after_these_exceptions(harness: Harness, queue: Any, kinds: Any) -> None:
    function, seen = raising(Worse("because"))
    job = queue.task(max_retries=3, retry_in=None, discard_on=kinds, keep_result="1h")(function)()
    harness.drain(queue)
    assert (seen, rows(harness), queue.dead.count()) == ([1], [], 0)
    assert job.status() == "discarded"
    with pytest.raises(JobFailed, match="because"):
        job.result(1)


# Exceptions with which a function decides


@pytest.mark.parametrize("delay", [3600, "1h", timedelta(hours=1)])
def test_snooze_postpones_the_job_and_counts_no_attempt(harness: Harness, queue: Any, delay: Any) -> None:
    function, seen = raising(*[Snooze(delay)] * 3, Broken)
    job = queue.task()(function)()
    for number in range(1, 4):
        harness.drain(queue)
        assert 3600 - PATIENCE < ahead(harness) <= 3600
        assert rows(harness, "id, attempts, coalesce(failures, 0), excused") == [(job, number, 0, number)]
        come_due(harness)
    harness.drain(queue)
    assert seen == [1, 1, 1, 1]
    [letter] = queue.dead.list()
    assert (letter.failures, letter.not_counted_attempts) == (1, 3)


def test_snooze_of_none_keeps_the_jobs_position(harness: Harness, queue: Any) -> None:
    function, seen = raising(Snooze(None))
    queue.task()(function)()
    harness.drain(queue)
    assert seen == [1, 1]


@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_discard_ends_a_job_without_a_dead_letter(harness: Harness, retention: str) -> None:
    queue = harness.task_queue(retention=retention)
    function, seen = raising(Discard("not wanted"))
    job = queue.task(max_retries=3)(function)()
    harness.drain(queue)
    assert (seen, queue.dead.count(), harness.sql("SELECT 1 FROM {table}")) == ([1], 0, [])
    with pytest.raises(JobNotFound):
        job.status()


def test_retry_exception_is_a_failure_with_its_own_delay(harness: Harness, queue: Any) -> None:
    function, seen = raising(Retry("1h"), Retry(), Retry("1h"))
    queue.task(max_retries=2, retry_in="2h", retry_on=())(function)()
    harness.drain(queue)
    assert 3600 - PATIENCE < ahead(harness) <= 3600
    come_due(harness)
    harness.drain(queue)
    assert seen == [1, 2, 3]
    [letter] = queue.dead.list()
    assert (letter.failures, letter.error["type"]) == (3, "pqcore.tasks.retry.Retry")


@pytest.mark.parametrize("kind", [Snooze, Retry])
@pytest.mark.parametrize("delay", ["soon", -1, float("nan")])
def test_retry_delay_of_a_bad_value_is_refused(kind: type[Exception], delay: Any) -> None:
    with pytest.raises(InvalidTimeSpec):
        kind(delay)


# The context


def test_job_context_shows_the_job_inside_the_function(harness: Harness, queue: Any) -> None:
    seen: list[JobContext] = []

    @queue.task(headers={"a": 1}, schedule_at="0s")
    async def task(job_id: int) -> None:
        context = current()
        await asyncio.sleep(0)
        assert current() is context
        context.check()
        seen.append(context)

    job = task()
    harness.drain(queue)
    [context] = seen
    assert (context.id, context.attempt, context.previous, context.cancelled) == (job, 1, None, False)
    assert context.job.headers == {"a": 1}
    assert context.job.schedule_at is not None
    assert context.queue is unwrapped(queue)
    with pytest.raises(PQError, match="no job"):
        current()


def test_concurrent_jobs_have_separate_contexts(harness: Harness, queue: Any) -> None:
    together = threading.Barrier(4)
    seen: list[tuple[int, int]] = []

    def wait() -> None:
        together.wait(PATIENCE)

    @queue.task()
    async def coroutine(job_id: int) -> None:
        await asyncio.to_thread(wait)
        seen.append((job_id, current().id))

    @queue.task()
    def plain(job_id: int) -> None:
        wait()
        seen.append((job_id, current().id))

    ids = [int(task()) for task in (coroutine, plain, coroutine, plain)]
    harness.drain(queue)
    assert sorted(seen) == [(job, job) for job in ids]


def test_progress_must_be_json() -> None:
    context = JobContext(None, None)  # type: ignore[arg-type]
    for value in (object(), {1, 2}, float("nan"), b"x", [{1: 2, "1": 3}]):
        with pytest.raises(SerializationError):
            context.progress(value)
    assert context.take_progress() is None
    context.progress({"done": [1, "…", None]})
    assert json.loads(context.take_progress() or "") == {"done": [1, "…", None]}
    assert context.take_progress() is None


def test_job_context_tells_the_function_to_stop() -> None:
    context = JobContext(None, None)  # type: ignore[arg-type]
    context.check()
    assert context.wait(0) is False
    context.stop("cancelled")
    with pytest.raises(JobCancelled, match="cancelled"):
        context.check()
    assert (context.cancelled, context.wait(PATIENCE)) == (True, True)


# Finishing in the function's own transaction


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("way", ["block", "connection"])
def test_job_finished_by_its_function_commits_with_its_writes(
    harness: Harness, queue: Any, way: str, commits: bool
) -> None:
    core = unwrapped(queue)
    harness.sql(f"CREATE TABLE {TableName('written', harness.schema)} (job bigint)", rows=False)
    write = f"INSERT INTO {TableName('written', harness.schema)} VALUES"
    after = queue.task()(lambda job_id: seen.append(current().previous))
    seen: list[Any] = []

    @queue.task(keep_result="1h", max_retries=1, retry_in="1h")
    def blocking(job_id: int) -> str:
        with queue:
            harness.sql_within(queue, f"{write} ({job_id}) RETURNING job")
            current().finish("finished")
            if not commits:
                raise Undo
        return "returned"

    @queue.task(keep_result="1h", max_retries=1, retry_in="1h")
    async def asynchronous(job_id: int) -> str:
        async with core:
            await core.engine.run(lambda s: s.execute(statement(f"{write} ({job_id}) RETURNING job")), protect=False)
            await current().finish("finished")
            if not commits:
                raise Undo
        return "returned"

    @queue.task(keep_result="1h", max_retries=1, retry_in="1h")
    def by_connection(job_id: int) -> str:
        caller = harness.connect()
        caller.begin()
        caller.sql(f"{write} ({job_id}) RETURNING job")
        finish = partial(current().finish, "finished", connection=caller.raw)
        harness.wait_for(finish) if harness.mode == "async" else finish()
        if not commits:
            caller.rollback()
            raise Undo
        caller.commit()
        return "returned"

    task = by_connection if way == "connection" else blocking if harness.mode == "blocking" else asynchronous
    job = queue.chain(task.call(), after.call())
    harness.drain(queue)
    written = harness.sql(f"SELECT job FROM {TableName('written', harness.schema)}")
    if commits:
        assert (written, job.result(1), seen) == ([(int(job),)], "finished", ["finished"])
        assert rows(harness) == []
    else:
        assert (written, job.status(), seen) == ([], "scheduled", [])
        assert queue.inspect(job).error["type"].endswith("Undo")


# pq's methods: perform, fail, work


@pytest.mark.only("blocking")
@pytest.mark.parametrize("way", ["get", "lease"])
def test_perform_calls_the_function(harness: Harness, queue: Any, way: str) -> None:
    seen = []

    @queue.task()
    def plain(job_id: int, text: str) -> None:
        seen.append((job_id, text, current().id))

    @queue.task()
    async def coroutine(job_id: int, text: str) -> None:
        await asyncio.sleep(0)
        seen.append((job_id, text, current().id))

    ids = [int(task("x")) for task in (plain, coroutine)]
    for _ in ids:
        assert queue.perform(getattr(queue, way)()) is True
    assert seen == [(job, "x", job) for job in ids]
    assert rows(harness) == []
    with pytest.raises(PQError):
        current()


@pytest.mark.only("blocking")
def test_perform_retries_a_leased_job_as_a_worker_does(harness: Harness, queue: Any) -> None:
    function, seen = raising(Broken, Snooze("1h"), Broken, Broken)
    job = queue.task(max_retries=2, retry_in="1h")(function)()
    for state in ("scheduled", "scheduled", "scheduled", "dead"):
        assert queue.perform(queue.lease(block=False)) is False
        assert queue.status(job) == state
        come_due(harness)
    assert seen == [1, 2, 2, 3]


@pytest.mark.only("blocking")
def test_perform_puts_a_failed_popped_job_again(harness: Harness, queue: Any) -> None:
    function, seen = raising(*[Broken] * 9)
    task = queue.task(max_retries=2, retry_in="1h", expected_at="2h", headers={"a": 1}, timeout=7, group="g", limit=3)
    first = task(function)()
    [(_, data, headers, expected)] = rows(harness, "id, data::text, headers::text, expected_at")
    for retried in (1, 2):
        assert queue.perform(queue.get(block=False)) is False
        [(job, again, headers_again, expected_again, group)] = rows(
            harness, "id, data::text, headers::text, expected_at, group_key"
        )
        assert job > first
        assert json.loads(again) == {**json.loads(data), "retried": retried}
        assert (json.loads(headers_again), expected_again, group) == (json.loads(headers), expected, "g")
        assert 3600 - PATIENCE < ahead(harness) <= 3600
        come_due(harness)
    assert queue.perform(queue.get(block=False)) is False
    assert (rows(harness), len(seen), queue.dead.count()) == ([], 3, 0)


@pytest.mark.only("blocking")
def test_perform_snoozes_and_discards_a_popped_job(harness: Harness, queue: Any) -> None:
    function, seen = raising(Snooze("1h"), Discard())
    queue.task()(function)()
    assert queue.perform(queue.get(block=False)) is False
    assert 3600 - PATIENCE < ahead(harness) <= 3600
    come_due(harness)
    assert queue.perform(queue.get(block=False)) is False
    assert (rows(harness), len(seen), queue.dead.count()) == ([], 2, 0)


@pytest.mark.only("blocking")
def test_perform_puts_a_popped_job_of_an_unknown_function_again(harness: Harness, queue: Any) -> None:
    for number in range(1, 4):
        if number == 1:
            put_as_pq_does(harness, "nowhere.at.all", 1, 2)
        assert queue.perform(queue.get(block=False)) is False
        [(_, data)] = rows(harness)
        assert (json.loads(data)["args"], json.loads(data)["retried"]) == ([1, 2], 0)
        come_due(harness)


@pytest.mark.only("blocking")
def test_perform_of_a_popped_job_is_undone_with_its_block(harness: Harness, queue: Any) -> None:
    seen: list[int] = []
    job = queue.task()(lambda job_id: seen.append(job_id))()

    def undone() -> None:
        assert queue.perform(queue.get())
        raise Undo

    with pytest.raises(Undo), queue:
        undone()
    assert [row[0] for row in rows(harness)] == [job]
    assert seen == [job]


@pytest.mark.only("blocking")
def test_perform_of_a_popped_job_continues_its_chain_and_batch(harness: Harness, queue: Any) -> None:
    seen = []

    @queue.task(keep_result="1h")
    def add(job_id: int, a: int, b: int) -> int:
        return a + b

    @queue.task(keep_result="1h")
    def fails(job_id: int) -> None:
        raise Broken

    @queue.task()
    def after(job_id: int) -> None:
        seen.append(current().previous)

    first = queue.chain(add.call(1, 2), after.call())
    batch = queue.batch(add.call(3, 4), fails.call(), then=after.call())
    while (job := queue.get(block=False)) is not None:
        queue.perform(job)
    assert first.result(1) == 3
    assert batch.jobs[0].result(1) == 7
    with pytest.raises(JobFailed, match="Broken"):
        batch.jobs[1].result(1)
    assert seen == [3, {"batch": batch.id, "total": 2, "failed": 1}]


@pytest.mark.only("blocking")
@pytest.mark.parametrize("way", ["get", "lease"])
def test_perform_completes_a_job_whose_result_cannot_be_stored(harness: Harness, queue: Any, way: str) -> None:
    task = queue.task(keep_result="1h")(lambda job_id: object())
    job = task()
    assert queue.perform(getattr(queue, way)()) is True
    with pytest.raises(ResultNotStored, match="not JSON"):
        job.result(1)
    assert (job.status(), queue.dead.count()) == ("done", 0)


@pytest.mark.only("blocking")
def test_fail_can_be_called_by_a_consumer(harness: Harness, queue: Any) -> None:
    queue.task(max_retries=1, retry_in="1h")(lambda job_id: None)()
    job = queue.lease()
    assert queue.fail(job, job.data, Broken("by hand")) is False
    assert queue.inspect(job.id).error["message"] == "by hand"
    come_due(harness)
    job = queue.lease()
    assert queue.fail(job, job.data) is False
    assert queue.dead.get(job.id).reason == "failed"


@pytest.mark.only("blocking")
def test_work_burst_ends_when_the_queue_is_empty(harness: Harness) -> None:
    queue = harness.task_queue(timeout=0.05)
    function, seen = raising(Broken, Snooze(None), None, None)
    task = queue.task(max_retries=1, retry_in=None)(function)
    jobs = [task(), task()]
    task(_schedule_at="1h")
    queue.work(burst=True)
    assert (len(seen), len(rows(harness))) == (4, 1)
    assert [job.status() for job in jobs] == ["done", "done"]


@pytest.mark.only("blocking")
def test_perform_of_a_lost_lease_counts_no_failure(
    harness: Harness, queue: Any, caplog: pytest.LogCaptureFixture
) -> None:
    queue.task()(lambda job_id: None)()
    job = queue.lease()
    harness.expire()
    other = queue.lease()
    assert queue.perform(job) is True
    assert "this worker has lost the lease" in caplog.text
    other.ack()


# Functions that run long


def test_timeout_error_raised_by_a_function_is_an_ordinary_failure(harness: Harness, queue: Any) -> None:
    @queue.task(max_retries=3, retry_in=None, retry_on=(KeyError,))
    def impatient(job_id: int) -> None:
        raise TimeoutError

    job = impatient()
    harness.drain(queue)
    [letter] = queue.dead.list()
    assert (letter.id, letter.failures) == (job, 1)


def test_coroutine_past_its_timeout_is_cancelled(harness: Harness, queue: Any) -> None:
    cancelled = []

    @queue.task(timeout=0.02, max_retries=1, retry_in=None)
    async def slow(job_id: int) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(current().stop_reason)
            raise

    job = slow()
    harness.drain(queue)
    assert cancelled == ["timeout"] * 2
    [letter] = queue.dead.list()
    assert (letter.id, letter.error["type"], letter.failures) == (job, "pqcore.tasks.context.JobTimeout", 2)


def test_thread_function_past_its_timeout_sees_that_it_must_stop(harness: Harness, queue: Any) -> None:
    @queue.task(timeout=0.02)
    def slow(job_id: int) -> None:
        assert current().wait(PATIENCE)
        current().check()

    job = slow()
    harness.drain(queue)
    assert [(letter.id, letter.reason) for letter in queue.dead.list()] == [(job, "failed")]


# Periodic tasks, as declared


def test_periodic_declaration_of_a_bad_value_is_refused(harness: Harness, queue: Any) -> None:
    function = queue.task()(lambda job_id: None)
    for wrong in (("x",), ("* * *",), ("* * * * *", "Nowhere/Land"), ("* * * * *", "UTC", "sometimes")):
        with pytest.raises(ConfigurationError):
            queue.periodic(*wrong)(function)
    with pytest.raises(ConfigurationError, match="dedup"):
        queue.periodic("@daily")(queue.task(dedup="key")(lambda job_id: None))
    queue.periodic("@daily")(function)
    with pytest.raises(ConfigurationError, match="name"):
        queue.periodic("@hourly")(function)
    queue.periodic("@hourly", name="other")(function)
    assert [periodic.name for periodic in queue.periodics] == [function._path, "other"]
    assert function() == 1  # it can still be called


# Functions whose call runs nothing


def generator(job_id: int) -> Any:
    yield job_id


async def agenerator(job_id: int) -> Any:
    yield job_id


class YieldingObject:
    """An object that is called like a generator function."""

    def __init__(self) -> None:
        self.__qualname__ = "YieldingObject"  # as functools.update_wrapper sets it

    def __call__(self, job_id: int) -> Any:
        yield job_id


@pytest.mark.parametrize(
    "function",
    [generator, agenerator, partial(generator), partial(partial(agenerator)), YieldingObject()],
    ids=["generator", "asynchronous generator", "partial", "nested partial", "object"],
)
def test_task_declaration_of_a_generator_function_is_refused(harness: Harness, queue: Any, function: Any) -> None:
    if isinstance(function, partial):
        function.__module__, function.__qualname__ = __name__, "partial"  # type: ignore[attr-defined]
    for declare in (queue.task(), queue.periodic("0 3 * * *")):
        with pytest.raises(ConfigurationError, match=r"generator function, and cannot be a task: .* remove its yield"):
            declare(function)
    assert rows(harness) == []


def test_task_declaration_without_a_name_is_refused(queue: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"a partial cannot be a task.*declare a function that calls it"):
        queue.task()(partial(generator, 1))


class Asynchronous:
    """An object whose call returns an awaitable."""

    def __init__(self) -> None:
        self.__qualname__ = "Asynchronous"  # as functools.update_wrapper sets it

    async def __call__(self, job_id: int) -> str:
        await asyncio.sleep(0)
        return "awaited"


def test_task_object_with_an_async_call_is_awaited(harness: Harness, queue: Any) -> None:
    job_id = queue.task(keep_result="1h")(Asynchronous())()
    harness.drain(queue)
    assert queue.result(job_id, timeout=PATIENCE) == "awaited"


@pytest.mark.parametrize("make", [generator, agenerator], ids=["generator", "asynchronous generator"])
def test_task_that_returns_a_generator_fails(harness: Harness, queue: Any, make: Any) -> None:
    @queue.task()
    def lazy(job_id: int) -> Any:
        return make(job_id)

    lazy()
    harness.drain(queue)
    [dead] = queue.dead.list()
    assert dead.error["type"] == "pqcore.errors.ConfigurationError"
    assert "the function returned a generator" in dead.error["message"]


@pytest.mark.only("blocking")
@pytest.mark.parametrize("make", [generator, agenerator], ids=["generator", "asynchronous generator"])
def test_work_fails_a_function_that_returns_a_generator(queue: Any, make: Any) -> None:
    @queue.task()
    def lazy(job_id: int) -> Any:
        return make(job_id)

    lazy()
    queue.work(burst=True)
    assert "the function returned a generator" in queue.dead.list()[0].error["message"]


def test_task_that_returns_an_awaitable_is_awaited(harness: Harness, queue: Any) -> None:
    async def later() -> str:
        await asyncio.sleep(0)
        return "awaited"

    @queue.task(keep_result="1h")
    def plain(job_id: int) -> Any:
        return later()

    job_id = plain()
    harness.drain(queue)
    assert queue.result(job_id, timeout=PATIENCE) == "awaited"
