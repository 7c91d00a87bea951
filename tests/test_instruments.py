"""The events that plugins receive, and what instruments make of them: spans, metrics, errors and log records."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
import structlog
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from pqcore import PQ, hookimpl
from pqcore.errors import ConfigurationError, PluginError, SerializationError
from pqcore.events import JOB_HOOKS, JobEvent, PutEvent
from pqcore.instruments import instrument, instrument_names
from pqcore.instruments.logs import JobFilter, Logging
from pqcore.instruments.opentelemetry import OpenTelemetry
from pqcore.instruments.prometheus import PORT, Prometheus
from pqcore.instruments.sentry import Sentry
from pqcore.plugins import plugins
from pqcore.tasks import Discard, Snooze, current
from pqcore.tasks.outcomes import job_logger
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.portal import unwrapped
from pqcore.worker import Worker
from pqcore_backends.embedded_setup import free_port

Register = Callable[[Any], Any]
Function = Callable[..., Any]
ROOT = Path(__file__).parent.parent
numbers = itertools.count(1)


class Broken(Exception):
    """The exception that failing jobs of these tests raise."""


@pytest.fixture
def register() -> Iterator[Register]:
    """Registers plugins until the end of the test."""
    registered = []

    def add(plugin: Any) -> Any:
        plugins.register(plugin)
        registered.append(plugin)
        return plugin

    yield add
    for plugin in registered:
        plugins.manager.unregister(plugin)
    job_logger.disabled = False


def of_kind(kind: str, body: Callable[[], Any]) -> Function:
    """Return a job's function: a coroutine function, or a function for a thread."""

    async def coroutine(job_id: int) -> Any:
        await asyncio.sleep(0)
        return body()

    def thread(job_id: int) -> Any:
        return body()

    function: Function = {"coroutine": coroutine, "thread": thread}[kind]
    function.__qualname__ = f"function_{next(numbers)}"  # each function needs a unique path
    return function


def raising(error: BaseException) -> Callable[[], Any]:
    def body() -> None:
        raise error

    return body


both_kinds = pytest.mark.parametrize("kind", ["coroutine", "thread"])


# The events that plugins receive


class Listener:
    """A plugin that keeps all events."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.around: list[tuple[str, BaseException | None]] = []
        self.puts: list[PutEvent] = []
        self.ends: list[tuple[str, str, float | None]] = []
        for hook in JOB_HOOKS:
            setattr(self, hook, hookimpl(self._teller(hook)))

    def _teller(self, hook: str) -> Callable[[Any], None]:
        def tell(event: JobEvent) -> None:
            self.told.append((hook.removeprefix("pqcore_job_"), event))
            self.ends.append((hook.removeprefix("pqcore_job_"), event.reason, event.delay))

        return tell

    @hookimpl
    def pqcore_job_put(self, event: PutEvent) -> None:
        self.puts.append(event)

    @hookimpl
    @contextmanager
    def pqcore_around_run(self, event: JobEvent) -> Iterator[None]:
        try:
            yield
        except BaseException as exc:
            self.around.append((event.task, exc))
            raise
        self.around.append((event.task, None))

    def names(self) -> list[str]:
        return [name for name, _ in self.told]


@both_kinds
def test_job_events_of_a_run_come_in_order_with_one_event(harness: Harness, register: Register, kind: str) -> None:
    queue = harness.task_queue()
    task = queue.task()(of_kind(kind, lambda: 7))
    listener = register(Listener())
    job_id = task()
    harness.drain(queue)
    assert listener.names() == ["started", "succeeded"]
    assert len({id(event) for _, event in listener.told}) == 1
    event = listener.told[0][1]
    assert (event.queue, event.job.id, event.task, event.attempt, event.error) == ("q", job_id, task._path, 1, None)
    assert event.duration > 0
    [put] = listener.puts
    assert (put.queue, put.ids, put.task, put.many) == ("q", [job_id], task._path, False)


@both_kinds
@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (
            Broken,
            [("failed", "failed", 0), ("retried", "failed", 0), ("failed", "failed", None), ("dead", "failed", None)],
        ),
        (Snooze, [("retried", "snoozed", 0), ("retried", "snoozed", 0)]),
        (Discard, [("dropped", "discarded", None)]),
        (KeyError, [("dropped", "discarded", None)]),
    ],
)
def test_job_events_of_an_exception_match_its_outcome(
    harness: Harness, register: Register, kind: str, error: type[Exception], ends: list[Any]
) -> None:
    queue = harness.task_queue()
    raised: list[BaseException] = []

    def body() -> None:
        if error is not Snooze or len(raised) < 2:
            raised.append(error(0))
            raise raised[-1]

    task = queue.task(max_retries=1, retry_in=0, discard_on=(KeyError,))(of_kind(kind, body))
    listener = register(Listener())
    task()
    harness.drain(queue)
    last = [("succeeded", "", None)] if error is Snooze else []
    assert [end for end in listener.ends if end[0] != "started"] == [*ends, *last]
    assert [exc for _, exc in listener.around] == [*raised, None][: listener.names().count("started")]


def test_job_events_include_a_dead_letter_that_never_ran(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    task = queue.task(deadline="1h")(of_kind("thread", lambda: None))
    listener = register(Listener())
    expired = task()
    passed = "jsonb_set(headers::jsonb, '{run,deadline}', '1')::json"
    harness.sql(f"UPDATE {harness.table} SET headers = {passed}", rows=False)
    no_call = queue.put("no call")
    harness.drain(queue)
    found = {event.job.id: (name, event.reason, event.task) for name, event in listener.told}
    assert found == {expired: ("dead", "expired", task._path), no_call: ("dead", "invalid", "")}


def test_job_events_include_a_job_postponed_for_another_worker(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    listener = register(Listener())
    unknown = queue.put({"function": "nowhere.at.all", "args": [], "kwargs": {}})
    harness.sql(
        f"INSERT INTO {harness.table} (q_name, data, serializer) VALUES ('q', '1', 'of another deployment')", rows=False
    )
    harness.drain(queue)
    found = sorted((event.job.id, name, event.reason, event.task, event.delay) for name, event in listener.told)
    assert found == [
        (unknown, "retried", "unknown", "nowhere.at.all", 60),
        (unknown + 1, "retried", "unreadable", "", 60),
    ]


def test_job_events_report_a_cancelled_function_as_dropped(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    begun = threading.Event()

    async def endless(job_id: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = queue.task()(endless)
    listener = register(Listener())
    job_id = task()
    with harness.working(queue):
        assert begun.wait(PATIENCE)
        queue.cancel(job_id, running=True)
        harness.eventually(lambda: "dropped" in listener.names())
    assert listener.ends == [("started", "", None), ("dropped", "cancelled", None)]


def test_job_events_report_a_job_of_a_stopping_worker_as_retried(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    begun = threading.Event()

    async def endless(job_id: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = queue.task()(endless)
    listener = register(Listener())
    task()
    with harness.working(queue, grace=0):
        assert begun.wait(PATIENCE)
    assert listener.ends == [("started", "", None), ("retried", "shutdown", None)]


@both_kinds
def test_job_events_report_a_lost_lease(harness: Harness, register: Register, kind: str) -> None:
    queue = harness.task_queue()

    def thread(job_id: int) -> None:
        harness.sql("UPDATE {table} SET attempts = attempts + 1", rows=False)  # as another consumer's take does

    async def coroutine(job_id: int) -> None:
        await asyncio.to_thread(thread, job_id)

    task = queue.task()({"thread": thread, "coroutine": coroutine}[kind])
    listener = register(Listener())
    task()
    with harness.working(queue):
        harness.eventually(lambda: "lost" in listener.names())
    assert listener.names() == ["started", "lost"]


def test_job_events_report_a_lease_lost_during_the_run(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    begun = threading.Event()

    async def endless(job_id: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = queue.task()(endless)
    listener = register(Listener())
    task()
    with harness.working(queue, lease=1):
        assert begun.wait(PATIENCE)
        harness.sql(
            "UPDATE {table} SET attempts = attempts + 1, leased_until = now() + interval '1 h'", rows=False
        )  # as if another consumer had taken the job
        harness.eventually(lambda: "lost" in listener.names())
    assert listener.names() == ["started", "lost"]
    assert [type(raised) for _, raised in listener.around] == [asyncio.CancelledError]


def die(job_id: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_job_events_report_a_dead_process_as_a_failure(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    task = queue.task(run_in="process", max_crashes=1)(die)
    listener = register(Listener())
    task()
    with harness.working(queue):
        harness.eventually(lambda: "dead" in listener.names())
    assert [(name, reason) for name, reason, _ in listener.ends] == [
        ("started", ""),
        ("failed", "crashed"),
        ("retried", "crashed"),
        ("dead", "crashed"),
    ]
    assert len(listener.around) == 1


def test_job_events_of_calls_put_together_come_per_queue(harness: Harness, register: Register) -> None:
    pq = harness.tasks()
    first, second = pq["a"], pq["b"]
    a, b = first.task()(of_kind("thread", lambda: 1)), second.task()(of_kind("coroutine", lambda: 2))
    listener = register(Listener())
    ids = first.put_calls(a.call(), b.call(), a.call())
    assert [(put.queue, put.ids, put.many) for put in listener.puts] == [
        ("a", [ids[0], ids[2]], True),
        ("b", [ids[1]], True),
    ]
    head = first.chain(a.call(), a.call())
    assert (listener.puts[2].ids, listener.puts[2].many) == ([head], False)


@pytest.mark.only("blocking")
def test_job_events_come_without_a_worker_too(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    fine = queue.task()(of_kind("coroutine", lambda: None))
    bad = queue.task(max_retries=1, retry_in=0)(of_kind("thread", raising(Broken("always"))))
    listener = register(Listener())
    slowly: list[int] = []

    class Slow:
        @hookimpl
        async def pqcore_job_dead(self, event: JobEvent) -> None:
            await asyncio.sleep(0)
            slowly.append(event.job.id)

    register(Slow())
    fine(), bad()
    queue.work(burst=True)
    assert slowly == [2]
    assert listener.names() == ["started", "succeeded", "started", "failed", "retried", "started", "failed", "dead"]
    assert [event.duration > 0 for _, event in listener.told] == [True] * 8
    # Taken with get, it leaves no dead letter.
    listener.ends.clear()
    bad()
    for _ in range(2):
        queue.perform(queue.get())
    assert [end[:2] for end in listener.ends] == [
        ("started", ""),
        ("failed", "failed"),
        ("retried", "failed"),
        ("started", ""),
        ("failed", "failed"),
        ("dropped", "failed"),
    ]


class Awkward:
    """A plugin whose hooks all fail, or swallow exceptions."""

    def __init__(self, where: str) -> None:
        self.where = where
        for hook in (*JOB_HOOKS, "pqcore_job_put"):
            setattr(self, hook, hookimpl(lambda event: self._fail("told")))

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError("a plugin failed")

    @hookimpl
    def pqcore_around_put(self, event: PutEvent) -> Any:
        self._fail("called")
        return self

    @hookimpl
    def pqcore_around_run(self, event: JobEvent) -> Any:
        self._fail("called")
        return self

    def __enter__(self) -> None:
        self._fail("entered")

    def __exit__(self, *raised: object) -> bool:
        self._fail("left")
        return True


@both_kinds
@pytest.mark.parametrize("where", ["told", "called", "entered", "left", "nowhere"])
def test_plugin_that_raises_breaks_neither_jobs_nor_other_plugins(
    harness: Harness, register: Register, caplog: pytest.LogCaptureFixture, kind: str, where: str
) -> None:
    queue = harness.task_queue()
    fine = queue.task(keep_result="1h")(of_kind(kind, lambda: "done"))
    bad = queue.task()(of_kind(kind, raising(Broken("always"))))
    register(Awkward(where))
    listener = register(Listener())
    register(Awkward(where))
    done, failed = fine(), bad()
    queue.put_many([])
    harness.drain(queue)
    assert done.result(PATIENCE) == "done"
    assert queue.dead.get(failed).error["message"] == "always"
    assert Counter(listener.names()) == {"started": 2, "succeeded": 1, "failed": 1, "dead": 1}
    assert {type(raised) for _, raised in listener.around} == {type(None), Broken}
    assert ("a plugin failed" in caplog.text) == (where != "nowhere")


def test_hook_that_returns_a_coroutine_is_awaited(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    told = []

    class Slow:
        @hookimpl
        async def pqcore_job_put(self, event: PutEvent) -> None:
            await asyncio.sleep(0)
            told.append("put")

        @hookimpl
        async def pqcore_job_succeeded(self, event: JobEvent) -> None:
            await asyncio.sleep(0.3)  # a worker that did not wait would have ended by then
            told.append("succeeded")

    task = queue.task()(of_kind("thread", lambda: None))
    register(Slow())
    task()
    harness.drain(queue)
    assert told == ["put", "succeeded"]


@pytest.mark.only("blocking")
def test_hook_that_returns_a_coroutine_fails_in_a_blocked_event_loop(
    harness: Harness, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    queue = harness.task_queue()

    class Slow:
        @hookimpl
        async def pqcore_job_put(self, event: PutEvent) -> None:
            raise AssertionError

    async def put() -> Any:
        return queue.put("x")

    register(Slow())
    assert asyncio.run(put()) == queue.get(block=False).id
    assert "a plugin failed in pqcore_job_put" in caplog.text


mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nothing")


def test_job_does_not_see_context_variables_of_the_job_before(harness: Harness) -> None:
    queue = harness.task_queue()
    seen = []

    async def function(job_id: int) -> None:
        seen.append(mine.get())
        mine.set(f"of {job_id}")

    task = queue.task()(function)
    queue.put_calls(*(task.call() for _ in range(5)))
    harness.drain(queue, concurrency=1)
    assert seen == ["nothing"] * 5


def test_instrument_is_registered_once_by_name(register: Register) -> None:
    assert instrument_names() == ["logging", "opentelemetry", "prometheus", "sentry"]
    made = instrument("logging", name="mine")
    try:
        assert isinstance(made, Logging)
        assert plugins.manager.is_registered(made)
        assert instrument("logging") is made
        assert instrument("logging", name="mine") is made
        with pytest.raises(ConfigurationError, match=r"with other options: .*mine"):
            instrument("logging", name="another")
    finally:
        plugins.manager.unregister(made)
    with pytest.raises(PluginError, match="unknown instrument 'grafana'; installed: logging, opentelemetry"):
        instrument("grafana")


# OpenTelemetry

provider = TracerProvider()
exporter = InMemorySpanExporter()
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer("tests")
Spans = Callable[..., list[ReadableSpan]]


@pytest.fixture
def spans(register: Register) -> Spans:
    """Return the finished spans whose names begin with a text, in order."""
    exporter.clear()
    return lambda text="": sorted(
        (span for span in exporter.get_finished_spans() if span.name.startswith(text)),
        key=lambda span: span.start_time or 0,
    )


def ids(span: Any) -> tuple[int, int]:
    """Return the ids of a span, of a span's context or of a link."""
    found = getattr(span, "context", span)
    return found.trace_id, found.span_id


def within(span_name: str, work: Callable[[], Any]) -> Any:
    with tracer.start_as_current_span(span_name):
        return work()


def sent_within(harness: Harness, span_name: str, call: Any) -> None:
    """Make a call that puts a job, within a span of the caller."""
    call = unwrapped(call)
    if harness.mode == "blocking":
        within(span_name, call)
        return

    async def put() -> None:
        with tracer.start_as_current_span(span_name):
            await call()

    harness.in_loop(put)


@both_kinds
def test_opentelemetry_put_and_run_are_one_trace(harness: Harness, register: Register, spans: Spans, kind: str) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    task = queue.task()(of_kind(kind, lambda: within("inner", lambda: None)))
    sent_within(harness, "request", task)
    harness.drain(queue)
    [request], [send], [process], [inner] = spans("request"), spans("send q"), spans("process q"), spans("inner")
    assert len(exporter.get_finished_spans()) == 4
    assert {span.context.trace_id for span in (send, process, inner)} == {request.context.trace_id}
    assert ids(send.parent) == ids(request)
    assert ids(process.parent) == ids(send)
    assert [ids(link) for link in process.links] == [ids(send)]
    assert ids(inner.parent) == ids(process)
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(send.attributes or {}) == {
        "messaging.system": "pqcore",
        "messaging.destination.name": "q",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.message.id": "1",
        "code.function.name": task._path,
    }
    attributes: dict[str, Any] = dict(process.attributes or {})
    assert attributes.pop("messaging.message.body.size") > 0
    assert attributes.pop("pqcore.job.waited") >= 0
    assert attributes == {
        "messaging.system": "pqcore",
        "messaging.destination.name": "q",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": "1",
        "code.function.name": task._path,
        "pqcore.job.attempt": 1,
        "pqcore.job.outcome": "succeeded",
    }
    assert (send.status.status_code, process.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)


@both_kinds
def test_opentelemetry_span_around_the_worker_stays_the_parent(
    harness: Harness, register: Register, spans: Spans, kind: str
) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    task = queue.task()(of_kind(kind, lambda: None))
    task()

    async def work() -> None:
        with tracer.start_as_current_span("ambient"):
            await Worker(unwrapped(queue), burst=True).run()

    harness.in_loop(work)
    [send], [process], [ambient] = spans("send"), spans("process"), spans("ambient")
    assert ids(process.parent) == ids(ambient)
    assert [ids(link) for link in process.links] == [ids(send)]


@both_kinds
def test_opentelemetry_run_can_be_linked_instead_of_a_child(
    harness: Harness, register: Register, spans: Spans, kind: str
) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider, relation="link"))
    task = queue.task()(of_kind(kind, lambda: within("inner", lambda: None)))
    task()
    harness.drain(queue)
    [send], [process], [inner] = spans("send"), spans("process"), spans("inner")
    assert process.parent is None
    assert process.context.trace_id != send.context.trace_id
    assert [ids(link) for link in process.links] == [ids(send)]
    assert ids(inner.parent) == ids(process)


@both_kinds
@pytest.mark.parametrize(
    ("error", "outcome", "kind_of_error"),
    [
        (Broken("no"), "failed", "Broken"),
        (Snooze(3600), "snoozed", None),
        (Discard("no use"), "discarded", None),
        (KeyError("declared"), "discarded", None),
    ],
    ids=["failure", "snooze", "discard", "discard_on"],
)
def test_opentelemetry_span_is_an_error_only_for_failures(
    harness: Harness,
    register: Register,
    spans: Spans,
    kind: str,
    error: Exception,
    outcome: str,
    kind_of_error: str | None,
) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    queue.task(discard_on=(KeyError,))(of_kind(kind, raising(error)))()
    harness.drain(queue)
    [process] = spans("process")
    assert process.attributes is not None
    assert process.attributes["pqcore.job.outcome"] == outcome
    if kind_of_error is None:
        assert process.status.status_code is StatusCode.UNSET
        assert "error.type" not in process.attributes
        assert not process.events
    else:
        assert process.status.status_code is StatusCode.ERROR
        assert process.attributes["error.type"] == f"{__name__}.{kind_of_error}"
        [recorded] = process.events
        assert recorded.attributes is not None
        assert recorded.attributes["exception.message"] == str(error)


def test_opentelemetry_attempts_are_spans_with_the_same_link(
    harness: Harness, register: Register, spans: Spans
) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    queue.task(max_retries=2, retry_in=0)(of_kind("coroutine", raising(Broken("no"))))()
    harness.drain(queue)
    [send], attempts = spans("send"), spans("process")
    assert [(span.attributes or {})["pqcore.job.attempt"] for span in attempts] == [1, 2, 3]
    assert [[ids(link) for link in span.links] for span in attempts] == [[ids(send)]] * 3


def test_opentelemetry_timeout_of_a_function_is_an_error(harness: Harness, register: Register, spans: Spans) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))

    async def endless(job_id: int) -> None:
        await asyncio.Event().wait()

    def patient(job_id: int) -> None:
        assert current().wait(PATIENCE)
        current().check()

    queue.task(timeout=0.01)(endless)()
    queue.task(timeout=0.01)(patient)()
    harness.drain(queue)
    for span in spans("process"):
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "timeout"
    assert len(spans("process")) == 2


def test_opentelemetry_span_of_several_puts_is_one(harness: Harness, register: Register, spans: Spans) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    task = queue.task()(of_kind("coroutine", lambda: None))
    queue.put_calls(task.call(), task.call())
    queue.put_many({"function": task._path, "args": [], "kwargs": {}} for _ in range(3))
    harness.drain(queue)
    calls, many = spans("send")
    assert [(span.attributes or {})["messaging.batch.message_count"] for span in (calls, many)] == [2, 3]
    assert Counter(ids(span.links[0]) for span in spans("process")) == {ids(calls): 2, ids(many): 3}


def test_opentelemetry_chain_and_batch_belong_to_the_same_trace(
    harness: Harness, register: Register, spans: Spans
) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    task = queue.task()(of_kind("thread", lambda: None))
    queue.chain(task.call(), task.call(), task.call())
    queue.batch(task.call(), (task.call(), task.call()), then=task.call())
    harness.drain(queue)
    chain, batch = spans("send")
    assert Counter(ids(span.parent) for span in spans("process")) == {ids(chain): 3, ids(batch): 4}


def test_opentelemetry_context_of_the_caller_is_kept(harness: Harness, register: Register, spans: Spans) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    task = queue.task()(of_kind("thread", lambda: None))
    given = (0x11111111111111111111111111111111, 0x2222222222222222)
    task(_headers={"traceparent": f"00-{given[0]:032x}-{given[1]:016x}-01", "mine": "too"})
    harness.drain(queue)
    [send], [process] = spans("send"), spans("process")
    assert send.kind is SpanKind.CLIENT
    assert [ids(link) for link in send.links] == [given]
    assert ids(process.parent) == given


@both_kinds
def test_opentelemetry_baggage_reaches_the_run(harness: Harness, register: Register, spans: Spans, kind: str) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    found = []
    task = queue.task()(of_kind(kind, lambda: found.append(baggage.get_baggage("tenant"))))

    async def put() -> None:
        token = context.attach(baggage.set_baggage("tenant", "7"))
        put = unwrapped(task)()
        if harness.mode == "async":
            await put
        context.detach(token)

    harness.in_loop(put)
    harness.drain(queue)
    assert found == ["7"]
    assert trace.get_current_span().get_span_context().is_valid is False


def test_opentelemetry_put_that_fails_is_an_error(harness: Harness, register: Register, spans: Spans) -> None:
    queue = harness.task_queue()
    register(OpenTelemetry(tracer_provider=provider))
    with pytest.raises(SerializationError):
        queue.put(object())
    [send] = spans("send")
    assert send.status.status_code is StatusCode.ERROR
    assert (send.attributes or {})["error.type"] == "pqcore.errors.SerializationError"


# Prometheus


def test_prometheus_counts_and_times_jobs(harness: Harness, register: Register) -> None:
    registry = CollectorRegistry()
    register(Prometheus(registry=registry))
    queue = harness.task_queue()
    queue.trusted_modules = ("builtins",)
    begun, go = threading.Event(), threading.Event()

    def value(name: str, task: str | None = None, **labels: str) -> float | None:
        labels = {"queue": "q", **({} if task is None else {"task": task}), **labels}
        return registry.get_sample_value(name, labels)

    def body() -> None:
        begun.set()
        assert go.wait(PATIENCE)

    held = queue.task()(of_kind("thread", body))
    other = queue.task(max_retries=1, retry_in=0)(of_kind("coroutine", raising(Broken("no"))))
    assert held._path != other._path
    held(), other()
    undeclared = queue.put({"function": "builtins.str", "args": [], "kwargs": {}})
    queue.put_many(["no call"] * 2)
    with harness.working(queue):
        assert begun.wait(PATIENCE)
        assert value("pqcore_jobs_running", held._path) == 1
        go.set()
        harness.eventually(lambda: len(queue.dead.list()) == 3 and queue.count() == 0)
        harness.eventually(lambda: value("pqcore_jobs_finished_total", held._path, outcome="succeeded"))
        harness.eventually(lambda: value("pqcore_jobs_finished_total", "other", outcome="succeeded"))
    assert value("pqcore_jobs_running", held._path) == 0
    assert value("pqcore_jobs_put_total") == 5
    assert [value("pqcore_jobs_started_total", path) for path in (held._path, other._path, "other")] == [1, 2, 1]
    assert value("pqcore_jobs_finished_total", other._path, outcome="retried") == 1
    assert value("pqcore_jobs_finished_total", other._path, outcome="dead") == 1
    assert value("pqcore_jobs_finished_total", "other", outcome="dead") == 2
    for path, runs in ((held._path, 1), (other._path, 2), ("other", 1)):
        assert value("pqcore_job_duration_seconds_count", path) == runs
        assert value("pqcore_job_waiting_seconds_count", path) == runs
    tasks = {
        sample.labels["task"] for metric in registry.collect() for sample in metric.samples if "task" in sample.labels
    }
    assert tasks == {held._path, other._path, "other"}
    assert undeclared
    assert (value("pqcore_job_duration_seconds_sum", held._path) or 0) > 0


@pytest.mark.parametrize(
    ("error", "outcome"), [(Snooze(3600), "snoozed"), (Discard(), "discarded"), (None, "succeeded")], ids=str
)
def test_prometheus_labels_are_outcomes(
    harness: Harness, register: Register, error: Exception | None, outcome: str
) -> None:
    registry = CollectorRegistry()
    register(Prometheus(registry=registry))
    queue = harness.task_queue()
    task = queue.task()(of_kind("coroutine", raising(error) if error else lambda: None))
    task()
    harness.drain(queue)
    labels = {"queue": "q", "task": task._path, "outcome": outcome}
    assert registry.get_sample_value("pqcore_jobs_finished_total", labels) == 1


def test_prometheus_metrics_are_served() -> None:
    registry = CollectorRegistry()
    prometheus = Prometheus(port=0, address="127.0.0.1", registry=registry)
    try:
        prometheus.pqcore_job_put(PutEvent("q", None, None, {}, [1, 2]))
        with urllib.request.urlopen(f"http://127.0.0.1:{prometheus.port}/metrics") as answer:
            assert b'pqcore_jobs_put_total{queue="q"} 2.0' in answer.read()
        with pytest.raises(ConfigurationError, match=f"cannot serve metrics on 127.0.0.1:{prometheus.port}"):
            Prometheus(port=prometheus.port, address="127.0.0.1", registry=CollectorRegistry())
    finally:
        prometheus.close()
    assert list(registry.collect()) == []


def test_prometheus_port_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv(PORT, str(port))
    prometheus = Prometheus(address="127.0.0.1", registry=CollectorRegistry())
    try:
        assert prometheus.port == port
    finally:
        prometheus.close()
    monkeypatch.setenv(PORT, "http")
    with pytest.raises(ConfigurationError, match="port is 'http'"):
        Prometheus(registry=CollectorRegistry())


# Sentry

sent: list[Envelope] = []


class Memory(Transport):
    """A transport that keeps everything it would send."""

    def capture_envelope(self, envelope: Envelope) -> None:
        sent.append(envelope)


@pytest.fixture
def sentry() -> Iterator[None]:
    sent.clear()
    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=Memory,
        traces_sample_rate=1.0,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[LoggingIntegration(), DedupeIntegration()],
    )
    yield
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def events(kind: str) -> list[Any]:
    """Return the transactions that were sent, or the errors (``event``)."""
    found = [item.payload.json for envelope in sent for item in envelope.items if item.type == kind]
    return [event for event in found if event is not None]


@both_kinds
def test_sentry_transaction_continues_the_trace_of_the_put(
    harness: Harness, register: Register, sentry: None, kind: str
) -> None:
    queue = harness.task_queue()
    register(Sentry())

    def body() -> None:
        with sentry_sdk.start_span(op="inner", name="inner"):
            pass

    task = queue.task()(of_kind(kind, body))

    async def put() -> None:
        with sentry_sdk.start_transaction(op="test", name="request"):
            made = unwrapped(task)()
            if harness.mode == "async":
                await made

    harness.in_loop(put)
    harness.drain(queue)
    request, process = events("transaction")
    [publish], [inner] = request["spans"], process["spans"]
    assert (publish["op"], publish["description"]) == ("queue.publish", task._path)
    assert publish["data"]["messaging.message.id"] == "1"
    assert publish["data"]["messaging.destination.name"] == "q"
    context = process["contexts"]["trace"]
    assert process["transaction"] == task._path
    assert (context["op"], context["status"], context["trace_id"]) == ("queue.process", "ok", publish["trace_id"])
    assert context["parent_span_id"] == publish["span_id"]
    assert (inner["parent_span_id"], inner["trace_id"]) == (context["span_id"], context["trace_id"])
    data = context["data"]
    assert (data["messaging.message.id"], data["messaging.destination.name"]) == ("1", "q")
    assert data["messaging.message.retry.count"] == 0
    assert data["messaging.message.receive.latency"] >= 0
    assert process["tags"] == {"queue": "q", "task": task._path, "job_id": "1"}


@both_kinds
@pytest.mark.parametrize("failures", ["final", "each"])
def test_sentry_sends_each_failure_or_only_the_final(
    harness: Harness, register: Register, sentry: None, kind: str, failures: Any
) -> None:
    queue = harness.task_queue()
    register(Sentry(failures=failures))

    def body() -> None:
        sentry_sdk.set_tag("mine", "yes")
        raise Broken(f"attempt {current().attempt}")

    task = queue.task(max_retries=1, retry_in=0)(of_kind(kind, body))
    task()
    harness.drain(queue)
    errors = events("event")
    attempts = [error["exception"]["values"][0]["value"] for error in errors]
    assert attempts == (["attempt 2"] if failures == "final" else ["attempt 1", "attempt 2"])
    last = errors[-1]
    assert last["tags"] == {"queue": "q", "task": task._path, "job_id": "1", "mine": "yes"}
    assert last["exception"]["values"][0]["mechanism"] == {"type": "pqcore", "handled": False}
    transactions = events("transaction")
    assert [each["contexts"]["trace"]["status"] for each in transactions] == ["internal_error"] * 2
    assert last["contexts"]["trace"]["span_id"] == transactions[-1]["contexts"]["trace"]["span_id"]
    assert last["transaction"] == task._path


@both_kinds
@pytest.mark.parametrize("error", [Snooze(3600), Discard("no use")], ids=["snooze", "discard"])
def test_sentry_does_not_send_outcomes_that_are_no_failures(
    harness: Harness, register: Register, sentry: None, kind: str, error: Exception
) -> None:
    queue = harness.task_queue()
    register(Sentry(failures="each"))
    queue.task()(of_kind(kind, raising(error)))()
    harness.drain(queue)
    assert events("event") == []
    [transaction] = events("transaction")
    assert transaction["contexts"]["trace"]["status"] == "aborted"


@both_kinds
def test_sentry_scopes_are_separate_per_job(harness: Harness, register: Register, sentry: None, kind: str) -> None:
    queue = harness.task_queue()
    register(Sentry())
    barrier = threading.Barrier(2)

    async def coroutine(job_id: int) -> None:
        sentry_sdk.set_tag(f"job {job_id}", "1")
        await asyncio.to_thread(barrier.wait, PATIENCE)

    def thread(job_id: int) -> None:
        sentry_sdk.set_tag(f"job {job_id}", "1")
        barrier.wait(PATIENCE)

    task = queue.task()({"coroutine": coroutine, "thread": thread}[kind])
    queue.put_calls(task.call(), task.call())
    harness.drain(queue)
    tags = [{tag for tag in each["tags"] if tag.startswith("job ")} for each in events("transaction")]
    assert sorted(map(sorted, tags)) == [["job 1"], ["job 2"]]
    assert [set(each["tags"]) - {"queue", "task", "job_id"} for each in events("transaction")] == tags


def test_sentry_sends_a_message_for_a_dead_letter_that_never_ran(
    harness: Harness, register: Register, sentry: None
) -> None:
    queue = harness.task_queue()
    register(Sentry())
    job_id = queue.put("no call")
    harness.drain(queue)
    [event] = events("event")
    assert (event["message"], event["level"]) == (f"job {job_id} of 'q' is dead: invalid", "error")
    assert event["tags"]["job_id"] == str(job_id)


# Logs


class Records(logging.Handler):
    """A handler that keeps all records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The records of a logger for this test alone, and of its functions."""
    handler = Records()
    handler.addFilter(JobFilter())
    logger = logging.getLogger("tests.instruments")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler.records
    logger.removeHandler(handler)


@both_kinds
def test_logging_records_of_the_standard_library_have_job_fields(
    harness: Harness, register: Register, records: list[Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = harness.task_queue()
    register(Logging(structlog=False, name="tests.instruments.jobs"))
    logger = logging.getLogger("tests.instruments.functions")

    def body() -> None:
        logger.info("at work")
        if current().attempt < 3:
            raise Broken("not yet")

    task = queue.task(max_retries=1, retry_in=0)(of_kind(kind, body))
    job_id = task()
    harness.drain(queue)
    found = [record for record in records if record.name.endswith("jobs")]
    assert [record.event for record in found] == [
        "job put",
        *("job started", "job failed", "job retried"),
        *("job started", "job failed", "job dead"),
    ]
    assert {(record.job_id, record.queue, record.task) for record in found} == {(job_id, "q", task._path)}
    assert [record.attempt for record in found[1:]] == [1, 1, 1, 2, 2, 2]
    _, _, failed, retried, _, _, dead = found
    assert failed.duration > 0
    assert failed.exc_info[0] is Broken
    assert (retried.delay, retried.reason, dead.reason, dead.error) == (0, "failed", "failed", "Broken: not yet")
    assert found[0].levelno == logging.DEBUG
    assert f"job retried job_id={job_id} queue=q task={task._path} attempt=1 delay=0.0" in retried.getMessage()
    functions = [record for record in records if record.name.endswith("functions")]
    assert [(record.job_id, record.queue, record.attempt) for record in functions] == [
        (job_id, "q", 1),
        (job_id, "q", 2),
    ]
    logger.info("outside")
    assert records[-1].job_id is None
    assert "pqcore.tasks.jobs" not in {record.name for record in caplog.records}  # said once


@both_kinds
def test_logging_records_of_structlog_have_job_fields(harness: Harness, register: Register, kind: str) -> None:
    queue = harness.task_queue()
    found: list[dict[str, Any]] = []

    def keep(logger: Any, name: str, event: Any) -> Any:
        found.append({"level": name, **event})
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    try:
        register(Logging())
        task = queue.task()(of_kind(kind, lambda: structlog.get_logger().info("at work", step=1)))
        job_id = task()
        harness.drain(queue)
    finally:
        structlog.reset_defaults()
    fields = {"job_id": job_id, "queue": "q", "task": task._path, "attempt": 1}
    assert found[0] == {"level": "debug", "event": "job put", "job_id": job_id, "queue": "q", "task": task._path}
    assert found[1].pop("waited") >= 0
    assert found[3].pop("duration") > 0
    assert found[1:] == [
        {"level": "info", "event": "job started", **fields},
        {"level": "info", "event": "at work", "step": 1, **fields},
        {"level": "info", "event": "job succeeded", **fields},
    ]
    assert structlog.contextvars.get_contextvars() == {}


def test_logging_levels_can_be_chosen(register: Register) -> None:
    with pytest.raises(ConfigurationError, match="levels has unknown events: begun"):
        Logging(levels={"begun": logging.INFO})


# Together


def test_job_events_include_the_put_of_a_periodic_tick(harness: Harness, register: Register) -> None:
    queue = harness.task_queue()
    task = queue.periodic("* * * * * *")(of_kind("coroutine", lambda: None))
    listener = register(Listener())
    with harness.working(queue):
        harness.eventually(lambda: "succeeded" in listener.names())
    put = listener.puts[0]
    assert (put.queue, put.task, put.ids) == ("q", task._path, [listener.told[0][1].job.id])


def in_process(code: str, folder: Path, **environment: str) -> str:
    """Return what code prints in a fresh process that can import modules from a folder."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_instruments_import_no_library_before_use(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')")
    assert in_process(
        """
        import sys, pqcore.tasks, pqcore.worker, pqcore.instruments as instruments
        from pqcore.errors import PluginError
        print({"opentelemetry", "prometheus_client", "sentry_sdk", "structlog"}.intersection(sys.modules))
        try:
            instruments.instrument("prometheus")
        except PluginError as exc:
            print(exc)
        """,
        tmp_path,
    ).splitlines() == [
        "set()",
        "instrument 'prometheus' cannot be imported: not here; is it installed? pip install 'pqcore[prometheus]'",
    ]


def test_prometheus_serves_all_processes_from_one(tmp_path: Path) -> None:
    # The folder also holds the counts of another process.
    begin = """
        from prometheus_client import CollectorRegistry
        from pqcore.events import PutEvent
        from pqcore.instruments.prometheus import Prometheus
        def make(port):
            made = Prometheus(port, "127.0.0.1", CollectorRegistry())
            made.pqcore_job_put(PutEvent("q", None, None, {}, [1, 2]))
            return made
    """
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        second = textwrap.dedent(begin) + f"print(make({taken.getsockname()[1]}).port)"
        assert in_process(second, tmp_path, **variables) == "None\n"
    first = textwrap.dedent(begin) + textwrap.dedent("""
        import urllib.request
        print(urllib.request.urlopen(f"http://127.0.0.1:{make(0).port}/metrics").read().decode())
    """)
    assert 'pqcore_jobs_put_total{queue="q"} 4.0' in in_process(first, tmp_path, **variables)


EXAMPLES = [
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/instruments.md").read_text(), re.DOTALL)
    if "@queue.task" in block
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.findall(r'instrument\("(\w+)"', text)[0])
def test_instrument_examples_run(dsn: str, tmp_path: Path, example: str) -> None:
    for written, here in {
        "postgresql://localhost/app": dsn,
        "port=9000": "port=0",
        "https://key@sentry.example.com/1": "http://key@127.0.0.1:1/1",
    }.items():
        example = example.replace(written, here)
    (tmp_path / "app.py").write_text(example)
    with PQ(dsn, backend="psycopg") as pq:
        pq.create()
    code = """
        import asyncio, app
        from pqcore.worker import Worker
        app.send("ann@example.com")
        asyncio.run(Worker(app.queue, burst=True).run())
        print("left:", app.queue.count(), app.queue.dead.count())
    """
    assert "left: 0 0" in in_process(code, tmp_path)


def test_instruments_all_have_an_example() -> None:
    assert sorted(re.findall(r'instrument\("(\w+)"', "".join(EXAMPLES))) == instrument_names()
