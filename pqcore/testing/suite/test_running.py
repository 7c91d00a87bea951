"""A job runs in the same way in a worker, in `Queue.work` and `Queue.perform`, and in the test kit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, NamedTuple

import pytest

from pqcore import hookimpl
from pqcore.db.runtime import run_sync
from pqcore.errors import PQError
from pqcore.events import JobEvent
from pqcore.plugins import plugins
from pqcore.tasks import Discard, JobCancelled, Retry, Snooze, current
from pqcore.testing import inline
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.workers import INTERRUPTS


class Call(NamedTuple):
    """The observation of a plugin when one of its hooks was called.

    Attributes:
        hook: The name of the hook; for ``pqcore_around_run``, one of its two ends.
        error: The class name of ``event.error``, or of the exception that left the function.
        reason: ``event.reason``.
        delay: ``event.delay``.
        job: ``leased`` while the outcome is not stored; then ``returned`` to the queue, ``done`` or ``gone``.
        is_current: Whether ``current()`` returns the job.
    """

    hook: str
    error: str = ""
    reason: str = ""
    delay: float | None = None
    job: str = "leased"
    is_current: bool = False


class Recorder:
    """A plugin that records its calls for the jobs of one queue."""

    def __init__(self, harness: Harness, queue: str) -> None:
        self._harness = harness
        self._queue = queue
        self.calls: list[Call] = []
        self._events: set[int] = set()

    async def record(self, hook: str, event: JobEvent) -> None:
        if event.queue != self._queue:
            return
        self._events.add(id(event))
        assert len(self._events) == 1  # one object for all hooks
        assert (event.duration > 0) == (hook not in ("started", "enter") and bool(self.calls))
        job = await look(
            self._harness,
            "SELECT CASE WHEN leased_until IS NOT NULL THEN 'leased' WHEN dequeued_at IS NULL THEN 'returned'"
            f" ELSE 'done' END FROM {{table}} WHERE id = {event.job.id}",
        )
        self.calls.append(
            Call(hook, name_of(event.error), event.reason, event.delay, job[0][0] if job else "gone", is_current(event))
        )

    @hookimpl
    async def pqcore_job_started(self, event: JobEvent) -> None:
        await self.record("started", event)

    @hookimpl
    @contextmanager
    def pqcore_around_run(self, event: JobEvent) -> Iterator[None]:
        if event.queue != self._queue:
            yield
            return
        self.calls.append(Call("enter", is_current=is_current(event)))
        error: BaseException | None = None
        try:
            yield
        except BaseException as exc:
            error = exc
            raise
        finally:
            self.calls.append(Call("exit", name_of(error), is_current=is_current(event)))

    @hookimpl
    async def pqcore_job_succeeded(self, event: JobEvent) -> None:
        await self.record("succeeded", event)

    @hookimpl
    async def pqcore_job_failed(self, event: JobEvent) -> None:
        await self.record("failed", event)

    @hookimpl
    async def pqcore_job_retried(self, event: JobEvent) -> None:
        await self.record("retried", event)

    @hookimpl
    async def pqcore_job_dead(self, event: JobEvent) -> None:
        await self.record("dead", event)

    @hookimpl
    async def pqcore_job_dropped(self, event: JobEvent) -> None:
        await self.record("dropped", event)

    @hookimpl
    async def pqcore_job_lost(self, event: JobEvent) -> None:
        await self.record("lost", event)


def name_of(error: BaseException | None) -> str:
    return "" if error is None else type(error).__name__


def is_current(event: JobEvent) -> bool:
    try:
        return current().job is event.job
    except PQError:
        return False


async def look(harness: Harness, text: str) -> Any:
    """Run a statement on the test's own connection, while a job runs."""
    if harness.mode == "blocking":
        return harness.sql(text)
    return await asyncio.to_thread(harness.sql, text)


# The ways to run jobs


def in_a_worker(harness: Harness, queue: Any) -> None:
    harness.drain(queue, concurrency=1)


def by_work(harness: Harness, queue: Any) -> None:
    queue.work(burst=True)


def by_perform(harness: Harness, queue: Any) -> None:
    while (job := queue.lease(block=False)) is not None:
        queue.perform(job)


def in_the_test_kit(harness: Harness, queue: Any) -> None:
    drain = inline.drain([unwrapped(queue)], raise_errors=False, at_most=9, suspends=harness.mode == "async")
    harness.wait_for(lambda: drain) if harness.mode == "async" else run_sync(drain)


def in_the_test_kits_loop(harness: Harness, queue: Any) -> None:
    asyncio.run(inline.drain([queue], raise_errors=False, at_most=9, suspends=True))


Way = Callable[[Harness, Any], None]


def ways(harness: Harness) -> list[Way]:
    """Return all ways to run the jobs of a queue of the harness."""
    if harness.mode == "async":
        return [in_a_worker, in_the_test_kit]
    return [in_a_worker, by_work, by_perform, in_the_test_kit, in_the_test_kits_loop]


def record(harness: Harness, queue: Any, way: Way) -> list[Call]:
    """Run the jobs of a queue, and return the calls of a plugin's hooks."""
    recorder = Recorder(harness, queue.name)
    plugins.register(recorder)
    try:
        way(harness, queue)
    finally:
        plugins.manager.unregister(recorder)
    return recorder.calls


# What a function does, and the hooks that are called then

STARTED = [Call("started", is_current=True), Call("enter", is_current=True)]


def left(error: str = "") -> list[Call]:
    """Return the calls until the function is left."""
    return [*STARTED, Call("exit", error, is_current=True)]


def failed(error: str, left_by: str = "") -> list[Call]:
    """Return the calls for a failure without retries left: the outcome is stored after the first call."""
    return [*left(left_by or error), Call("failed", error, "failed"), Call("dead", error, "failed", job="gone")]


class Broken(Exception):
    """The exception of a failing function."""


class Unexpected(BaseException):
    """An exception that is no `Exception`."""


def raising(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    def function(job_id: int) -> None:
        raise error

    return function


def generate() -> Iterator[int]:
    yield 1


OUTCOMES: dict[str, tuple[dict[str, Any], Callable[..., Any], list[Call]]] = {
    "returns": ({}, lambda job_id: 7, [*left(), Call("succeeded", job="done")]),
    "raises": ({}, raising(Broken), failed("Broken")),
    "is retried": (
        {"max_retries": 1, "retry_in": "1h"},
        raising(Broken),
        [
            *left("Broken"),
            Call("failed", "Broken", "failed", 3600.0),
            Call("retried", "Broken", "failed", 3600.0, "returned"),
        ],
    ),
    "asks for a retry": (
        {"max_retries": 1},
        raising(Retry("2h")),
        [
            *left("Retry"),
            Call("failed", "Retry", "failed", 7200.0),
            Call("retried", "Retry", "failed", 7200.0, "returned"),
        ],
    ),
    "snoozes": (
        {},
        raising(Snooze("3h")),
        [*left("Snooze"), Call("retried", "Snooze", "snoozed", 10800.0, "returned")],
    ),
    "discards": ({}, raising(Discard("why")), [*left("Discard"), Call("dropped", "Discard", "discarded", job="gone")]),
    "raises what discards": (
        {"discard_on": (Broken,)},
        raising(Broken),
        [*left("Broken"), Call("dropped", "Broken", "discarded", job="gone")],
    ),
    "has a policy that fails": (
        {"max_retries": 1, "retry": lambda failures, error: 1 / 0},
        raising(Broken),
        [
            *left("Broken"),
            Call("failed", "Broken", "failed", 60.0),
            Call("retried", "Broken", "failed", 60.0, "returned"),
        ],
    ),
    "cancels itself": ({}, raising(asyncio.CancelledError), failed("JobCancelled", "CancelledError")),
    "raises JobCancelled": ({}, raising(JobCancelled("by itself")), failed("JobCancelled")),
    "raises GeneratorExit": ({}, raising(GeneratorExit), failed("GeneratorExit")),
    "raises no Exception": ({}, raising(Unexpected), failed("Unexpected")),
    "returns a generator": ({}, lambda job_id: generate(), failed("ConfigurationError", "none")),
    "returns what cannot be stored": (
        {"keep_result": "1h"},
        lambda job_id: object(),
        [*left(), Call("succeeded", job="done")],
    ),
}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_hooks_are_called_in_the_same_order_wherever_a_job_runs(harness: Harness, kind: str) -> None:
    options, function, expected = OUTCOMES[kind]
    expected = [call._replace(error="") if call.error == "none" else call for call in expected]
    pq = harness.tasks(timeout=0.01)
    found = {}
    for way in ways(harness):
        queue = pq[way.__name__]
        queue.task(**options)(function)()
        found[way.__name__] = record(harness, queue, way)
    assert found == {way.__name__: expected for way in ways(harness)}


def test_coroutine_functions_fail_in_the_same_way_wherever_they_run(harness: Harness) -> None:
    async def function(job_id: int) -> None:
        await asyncio.sleep(0)
        raise Unexpected

    pq = harness.tasks(timeout=0.01)
    for way in ways(harness):
        queue = pq[way.__name__]
        queue.task()(function)()
        assert record(harness, queue, way) == failed("Unexpected"), way


def test_job_events_of_a_job_that_is_not_run_are_the_same_in_every_runner(harness: Harness) -> None:
    expected = {
        "unknown": [Call("retried", "", "unknown", 60.0, "returned")],
        "invalid": [Call("dead", "", "invalid", job="gone")],
        "expired": [Call("dead", "", "expired", job="gone")],
    }
    pq = harness.tasks(timeout=0.01)
    for way in ways(harness):
        for kind, calls in expected.items():
            queue = pq[f"{way.__name__} {kind}"]
            if kind == "expired":
                queue.task(deadline=datetime(2000, 1, 1, tzinfo=timezone.utc))(lambda job_id: None)()
            else:
                queue.put({"function": "nowhere.function", "args": [], "kwargs": {}} if kind == "unknown" else 7)
            assert record(harness, queue, way) == calls, (way, kind)


def test_job_events_of_a_lost_job_are_the_same_in_every_runner(harness: Harness) -> None:
    async def lose(job_id: int) -> None:
        await look(harness, f"UPDATE {{table}} SET attempts = attempts + 1 WHERE id = {int(job_id)} RETURNING id")

    pq = harness.tasks(timeout=0.01)
    for way in ways(harness):
        queue = pq[way.__name__]
        queue.task()(lose)()
        assert record(harness, queue, way) == [*left(), Call("lost")], way
        harness.sql(f"DELETE FROM {{table}} WHERE q_name = '{way.__name__}'", rows=False)


@pytest.mark.only("blocking")
@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "SystemExit"])
def test_interrupt_in_a_job_ends_every_runner_but_workers_and_returns_the_job(harness: Harness, kind: str) -> None:
    given_back = [*left(kind), Call("retried", kind, "shutdown", None, "returned")]
    pq = harness.tasks(timeout=0.01)
    for way in ways(harness):
        queue = pq[way.__name__]
        queue.task()(raising(INTERRUPTS[kind]))()
        if way is in_a_worker:  # in a thread of the worker
            assert record(harness, queue, way) == failed(kind)
            continue
        recorder = Recorder(harness, queue.name)
        plugins.register(recorder)
        try:
            with pytest.raises(INTERRUPTS[kind]):
                way(harness, queue)
        finally:
            plugins.manager.unregister(recorder)
        assert recorder.calls == given_back, way
        [counts] = harness.sql(
            f"SELECT attempts, excused, coalesce(failures, 0) FROM {{table}} WHERE q_name = '{queue.name}'"
        )
        assert tuple(counts) == (1, 1, 0), way
