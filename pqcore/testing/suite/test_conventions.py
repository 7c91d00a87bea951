"""The calling conventions: `pqcore.PQ` gives functions their arguments, `pqcore.tasks.PQ` the job's id before them."""

from __future__ import annotations

import functools
import json
import types
from typing import Annotated, Any, Optional

import pytest

from pqcore import AsyncJob, Job
from pqcore.errors import ConfigurationError
from pqcore.job import BaseJob
from pqcore.tasks import Discard, Exponential, current
from pqcore.testing import workers
from pqcore.testing.harness import PATIENCE, Harness


class Broken(Exception):
    """The exception that the functions raise."""


def rows(harness: Harness) -> list[tuple[Any, ...]]:
    """Return the data and headers of all unfinished rows."""
    return harness.sql("SELECT data::text, headers::text FROM {table} WHERE dequeued_at IS NULL ORDER BY id")


def ahead(harness: Harness) -> float:
    """Return the seconds until the only row is due, by the server's clock."""
    [[seconds]] = harness.sql(
        "SELECT extract(epoch FROM schedule_at - clock_timestamp())::float8 FROM {table} WHERE dequeued_at IS NULL"
    )
    return float(seconds)


def come_due(harness: Harness) -> None:
    harness.sql("UPDATE {table} SET schedule_at = now() WHERE dequeued_at IS NULL", rows=False)


# The first argument


def test_front_door_gives_a_function_its_arguments_alone(harness: Harness) -> None:
    queue = harness.queue()
    seen: list[Any] = []

    @queue.task
    def plain(word: str, *, number: int = 0) -> None:
        seen.append((word, number, current().id))

    @queue.task()
    async def coroutine(word) -> None:  # type: ignore[no-untyped-def]
        seen.append((word, current().id))

    @queue.task()
    def nothing() -> None:
        seen.append(current().id)

    ids = [int(plain("a", number=1)), int(coroutine("b")), int(nothing())]
    harness.drain(queue)
    assert sorted(map(str, seen)) == sorted(map(str, [("a", 1, ids[0]), ("b", ids[1]), ids[2]]))
    assert queue.dead.count() == 0


JOB_ANNOTATIONS: list[Any] = [
    Job,
    AsyncJob,
    BaseJob,
    "Job",
    "AsyncJob",
    "'Job'",
    "pqcore.Job",
    "Job | None",
    Optional[Job],  # noqa: UP045 - one of the ways to write it
    Optional["Job"],
    Annotated[Job, "the job"],
]


@pytest.mark.parametrize("annotation", JOB_ANNOTATIONS, ids=str)
def test_front_door_gives_the_job_to_a_function_whose_first_parameter_is_annotated_so(
    harness: Harness, annotation: Any
) -> None:
    queue = harness.queue()
    seen: list[Any] = []

    def plain(job: Any, word: str) -> None:
        seen.append((job, word))

    async def coroutine(job: Any, word: str) -> None:
        seen.append((job, word))

    for function in (plain, coroutine):
        function.__annotations__["job"] = annotation
    ids = [int(queue.task()(function)("x")) for function in (plain, coroutine)]
    harness.drain(queue)
    kind = Job if harness.mode == "blocking" else AsyncJob
    assert sorted((type(job) is kind, job.id, job.data["args"], word) for job, word in seen) == [
        (True, job_id, ["x"], "x") for job_id in ids
    ]


def test_front_door_looks_at_the_first_parameter_of_what_is_called_in_the_end(harness: Harness) -> None:
    queue = harness.queue()
    seen: list[Any] = []

    class Callables:
        def __call__(self, job: Job, word: str) -> None:
            seen.append((job.id, word))

    def inner(first: str, job: Job, word: str) -> None:
        seen.append((job.id, first + word))

    def decorated(job: Job, word: str) -> None:
        seen.append((job.id, word))

    @functools.wraps(decorated)
    def wrapper(*args: Any) -> None:
        decorated(*args)

    partial: Any = functools.partial(inner, "w")
    instance: Any = Callables()
    for function in (partial, instance):
        function.__module__, function.__qualname__ = __name__, f"a {type(function).__name__}"
    jobs = [queue.task()(function)("x") for function in (wrapper, partial, instance)]
    harness.drain(queue)
    assert sorted(seen) == list(zip(map(int, jobs), ["x", "wx", "x"], strict=True))


def test_front_door_gives_no_job_for_other_annotations(harness: Harness) -> None:
    queue = harness.queue()
    seen: list[Any] = []

    def own(job: Job, word: str) -> None:
        seen.append((job, word))

    own = types.FunctionType(own.__code__, {"Job": dict}, "own", None, own.__closure__)  # a class of the user
    own.__annotations__["job"] = "Job"

    def second(word: str, job: BaseJob) -> None:
        seen.append((word, job))

    def unknown(job: nowhere.Thing, word: str) -> None:  # type: ignore[name-defined]  # noqa: F821 - on purpose
        seen.append((job, word))

    def keyword(*, job: BaseJob, word: str) -> None:
        seen.append((job, word))

    for function in (own, second, unknown):
        queue.task()(function)("x", "y")
    queue.task()(keyword)(job="x", word="y")
    harness.drain(queue)
    assert seen == [("x", "y")] * 4


def test_front_door_refuses_an_annotation_that_may_be_a_job_and_cannot_be_read(harness: Harness) -> None:
    queue = harness.queue()

    def function(job: nowhere.Job) -> None:  # type: ignore[name-defined]  # noqa: F821 - on purpose
        pass

    with pytest.raises(ConfigurationError, match=r"'nowhere\.Job' of its first parameter cannot be read"):
        queue.task()(function)


def test_tasks_of_pq_get_the_id_first_whatever_the_annotation(harness: Harness) -> None:
    queue = harness.task_queue()
    seen: list[Any] = []

    @queue.task()
    def plain(job: Job, word: str) -> None:
        seen.append((job, word))

    @queue.task()
    def bare(job: int, word: str) -> None:
        seen.append((job, word))

    ids = [int(plain("a")), int(bare("b"))]
    harness.drain(queue)
    assert sorted(seen) == [(ids[0], "a"), (ids[1], "b")]


def test_function_in_a_process_gets_what_its_convention_says(harness: Harness) -> None:
    queue, pqs = harness.queue(), harness.task_queue("pqs")
    job = queue.task(run_in="process", keep_result="1h")(workers.describe_job)("x")
    alone = queue.task(run_in="process", keep_result="1h")(workers.repeat_word)("x", times=2)
    harness.drain(queue)
    by_id = pqs.task(run_in="process", keep_result="1h")(workers.describe_id)("x")
    harness.drain(pqs)
    kind = "Job" if harness.mode == "blocking" else "AsyncJob"
    assert job.result(PATIENCE) == [kind, int(job), 1, "x"]
    assert alone.result(PATIENCE) == "xx"
    assert by_id.result(PATIENCE) == [int(by_id), "x"]


# Retries


def test_front_door_retries_three_times_with_growing_pauses(harness: Harness) -> None:
    queue = harness.queue()
    attempts = []

    @queue.task()
    def fails() -> None:
        attempts.append(current().attempt)
        raise Broken

    job = fails()
    for pause in (1, 2, 4):
        harness.drain(queue)
        assert (job.status(), ahead(harness) <= pause) == ("scheduled", True)
        assert ahead(harness) > pause / 2 - PATIENCE
        come_due(harness)
    harness.drain(queue)
    assert (job.status(), attempts) == ("dead", [1, 2, 3, 4])
    declared = queue.find_task(fails.task.path).options
    assert (declared.max_retries, declared.retry) == (3, Exponential())


def test_tasks_of_pq_are_not_retried(harness: Harness) -> None:
    queue = harness.task_queue()

    @queue.task()
    def fails(job_id: int) -> None:
        raise Broken

    job = fails()
    harness.drain(queue)
    assert (job.status(), fails.task.options.retry) == ("dead", None)


@pytest.mark.parametrize("convention", ["queue", "task_queue"])
def test_declared_retries_hold_in_both_conventions(harness: Harness, convention: str) -> None:
    queue = getattr(harness, convention)()

    def fails(*_: Any) -> None:
        raise Broken

    never = queue.task(max_retries=0)(fails)()
    harness.drain(queue)
    assert never.status() == "dead"
    queue.dead.purge(0)
    fixed = queue.task(max_retries=1, retry_in="1h")(fails)()
    harness.drain(queue)
    assert 3600 - PATIENCE < ahead(harness) <= 3600
    assert queue.cancel(fixed)
    called = queue.task(max_retries=1)(fails)(_retry_in="2h")
    harness.drain(queue)
    assert 7200 - PATIENCE < ahead(harness) <= 7200
    assert queue.cancel(called)
    policy = queue.task(max_retries=1, retry=lambda failures, error: 10_800.0)(fails)
    policy()
    harness.drain(queue)
    assert 10_800 - PATIENCE < ahead(harness) <= 10_800


# The origin of a convention


def test_rows_are_the_same_in_both_conventions(harness: Harness) -> None:
    def function(*_: Any, number: int) -> None:
        pass

    options: dict[str, Any] = {"max_retries": 2, "retry_in": "5s", "timeout": 7, "group": "g", "headers": {"a": 1}}
    for queue in (harness.queue(), harness.task_queue()):
        queue.task(**options)(function)("x", number=1)
    front, of_pq = rows(harness)
    assert front == of_pq
    assert json.loads(front[0]) == {
        "function": function._path,  # type: ignore[attr-defined]
        "args": ["x"],
        "kwargs": {"number": 1},
        "retried": 0,
        "retry_in": "5s",
        "max_retries": 2,
    }


def test_convention_is_that_of_the_declaration_whichever_queue_is_worked_on(harness: Harness) -> None:
    front, of_pq = harness.queue(), harness.task_queue()
    seen: list[Any] = []

    @front.task()
    def by_front(*args: Any) -> None:
        seen.append(args)

    @of_pq.task()
    def by_pq(*args: Any) -> None:
        seen.append(args)

    for queue in (front, of_pq):
        by_front("x"), by_pq("y")
        harness.drain(queue)
    assert sorted(map(len, seen)) == [1, 1, 2, 2]
    assert {args[-1]: len(args) for args in seen} == {"x": 1, "y": 2}


def test_worker_takes_queues_of_both_conventions(harness: Harness) -> None:
    front, of_pq = harness.queue("front"), harness.task_queue("of-pq")
    seen: list[Any] = []

    @front.task()
    def by_front(*args: Any) -> None:
        seen.append(args)

    @of_pq.task()
    def by_pq(*args: Any) -> None:
        seen.append(args)

    by_front("a")
    job = by_pq("b")
    harness.drain(front, of_pq)
    assert sorted(seen, key=len) == [("a",), (int(job), "b")]


def test_chains_batches_and_options_of_calls_work_at_the_front_door(harness: Harness) -> None:
    queue = harness.queue()
    seen: list[Any] = []

    @queue.task(keep_result="1h")
    def add(a: int, b: int) -> int:
        return a + b

    @queue.task()
    def discards() -> None:
        raise Discard

    @queue.task()
    async def after(job: Job, word: str) -> None:
        seen.append((word, current().previous, isinstance(job, BaseJob)))

    queue.chain(add.call(1, 2), after.call("chain"))
    batch = queue.batch(add.call(3, 4), discards.call(), then=after.call("batch"))
    later = add(5, 6, _schedule_at="1h")
    harness.drain(queue)
    told = {"batch": batch.id, "total": 2, "failed": 1}
    assert sorted(seen, key=str) == sorted([("chain", 3, True), ("batch", told, True)], key=str)
    assert (batch.jobs[0].result(PATIENCE), later.status()) == (7, "scheduled")


def test_periodic_task_of_the_front_door_gets_its_arguments(harness: Harness) -> None:
    queue = harness.queue()
    seen: list[Any] = []

    @queue.periodic("@yearly", args=("x",), kwargs={"number": 1})
    def tick(word: str, number: int) -> None:
        seen.append((word, number))

    queue.put_call(queue.periodics[0].call)
    harness.drain(queue)
    assert seen == [("x", 1)]


# Jobs taken with get


@pytest.mark.only("blocking")
def test_chain_waits_for_perform_where_tasks_are_declared_alone(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq["q"]
    seen: list[Any] = []

    @queue.task()
    def add(a: int, b: int) -> int:
        return a + b

    @queue.task()
    def after(job: Job) -> None:
        seen.append((job.id, current().previous))

    queue.chain(add.call(1, 2), after.call())
    job = queue.get(block=False)
    assert rows(harness) == []
    assert queue.perform(job)
    job = queue.get(block=False)
    assert queue.perform(job)
    assert seen == [(job.id, 3)]

    queue.chain(add.call(1, 2), after.call())
    held = pq.queue("q").get(block=False)
    [(_, headers)] = rows(harness)
    assert "then" not in json.loads(headers)
    assert pq.queue("q").perform(held)
    assert len(rows(harness)) == 1
