"""Sentry: transactions for jobs, which continue the trace of their puts, and the exceptions of failed jobs.

https://docs.sentry.io/platforms/python/tracing/instrumentation/custom-instrumentation/queues-module/
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import sentry_sdk
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.scope import use_isolation_scope
from sentry_sdk.utils import event_from_exception

from pqcore.errors import ConfigurationError
from pqcore.events import JobEvent, PutEvent
from pqcore.hookspecs import hookimpl
from pqcore.instruments.outcome import Verdict, verdict
from pqcore.tasks.outcomes import job_logger

ORIGIN = "auto.queue.pqcore"
_STATUS: dict[Verdict, str] = {
    "succeeded": "ok",
    "failed": "internal_error",
    "timeout": "deadline_exceeded",
    "cancelled": "cancelled",
}


@dataclass
class _Kept:
    """The data that is kept to report a run's failure after the run."""

    scope: sentry_sdk.Scope
    trace: dict[str, Any]
    reported: BaseException | None = None


class Sentry:
    """Transactions and exceptions of jobs, each in its own isolation scope.

    The instrument uses the SDK as configured: call `sentry_sdk.init` before jobs run. Arguments of users' functions are
    not sent.

    Args:
        failures: Which exceptions are sent: ``"final"`` for those after which a job is not retried, or ``"each"``.

    Raises:
        ConfigurationError: ``failures`` has another value.
    """

    def __init__(self, failures: Literal["final", "each"] = "final") -> None:
        if failures not in ("final", "each"):
            msg = f"failures is {failures!r}; choose 'final' or 'each'"
            raise ConfigurationError(msg)
        self._each = failures == "each"
        ignore_logger(job_logger.name)  # the SDK makes events of log records, so each failure would be sent twice

    @hookimpl
    @contextmanager
    def pqcore_around_put(self, event: PutEvent) -> Iterator[None]:
        # without a transaction, a span could not be added to anything
        within = sentry_sdk.get_current_span() is not None
        name = event.task or event.queue
        with sentry_sdk.start_span(op="queue.publish", name=name, origin=ORIGIN) if within else nullcontext() as span:
            _inject(event.headers)
            yield
            if span is not None:
                span.set_data("messaging.system", "pqcore")
                span.set_data("messaging.destination.name", event.queue)
                if event.many:
                    span.set_data("messaging.batch.message_count", len(event.ids))
                elif event.ids:
                    span.set_data("messaging.message.id", str(event.ids[0]))

    @hookimpl
    @contextmanager
    def pqcore_around_run(self, event: JobEvent) -> Iterator[None]:
        job = event.job
        with sentry_sdk.isolation_scope() as scope:
            _mark(scope, event)
            transaction = sentry_sdk.continue_trace(
                job.headers if job.raw_headers is not None else {},
                op="queue.process",
                name=event.task or event.queue,
                source="task",
                origin=ORIGIN,
            )
            span = sentry_sdk.start_transaction(
                transaction, custom_sampling_context={"pqcore_job": {"queue": event.queue, "task": event.task}}
            )
            span.set_data("messaging.system", "pqcore")
            span.set_data("messaging.message.id", str(job.id))
            span.set_data("messaging.destination.name", event.queue)
            span.set_data("messaging.message.body.size", job.size)
            span.set_data("messaging.message.receive.latency", round(event.waited * 1000, 3))
            span.set_data("messaging.message.retry.count", event.attempt - 1)
            event.notes["sentry"] = _Kept(scope, span.get_trace_context())
            span.__enter__()
            try:
                yield
            except BaseException as exc:
                span.set_status(_STATUS.get(verdict(event, exc), "aborted"))
                raise
            else:
                span.set_status(_STATUS["succeeded"])
            finally:
                span.__exit__(None, None, None)  # a span takes any exception for an error, even a Snooze

    @hookimpl
    def pqcore_job_failed(self, event: JobEvent) -> None:
        if self._each:
            _capture(event)

    @hookimpl
    def pqcore_job_dead(self, event: JobEvent) -> None:
        _capture(event)

    @hookimpl
    def pqcore_job_dropped(self, event: JobEvent) -> None:
        if event.reason == "failed":  # a job taken with `get`, which is not retried
            _capture(event)


def _inject(headers: dict[str, Any]) -> None:
    if "sentry-trace" in headers or not sentry_sdk.is_initialized():
        return
    traceparent, baggage = sentry_sdk.get_traceparent(), sentry_sdk.get_baggage()
    if traceparent:
        headers["sentry-trace"] = traceparent
        if baggage:  # other code may have put its own baggage into this header
            headers["baggage"] = f"{headers['baggage']},{baggage}" if headers.get("baggage") else baggage


def _mark(scope: sentry_sdk.Scope, event: JobEvent) -> None:
    scope.clear_breadcrumbs()
    scope.set_tag("queue", event.queue)
    scope.set_tag("task", event.task)
    scope.set_tag("job_id", str(event.job.id))
    scope.set_context("pqcore", {"attempt": event.attempt, "failures": event.job.failures, "waited": event.waited})


def _capture(event: JobEvent) -> None:
    """Send the exception of a job in the scope of its run; send a message if the job died without an exception."""
    kept = event.notes.get("sentry")
    if kept is None:  # the job was not run
        with sentry_sdk.isolation_scope() as scope:
            _mark(scope, event)
            sentry_sdk.capture_message(f"job {event.job.id} of {event.queue!r} is dead: {event.reason}", "error")
        return
    if event.error is None or kept.reported is event.error:
        return
    kept.reported = event.error
    with use_isolation_scope(kept.scope):
        sent, hint = event_from_exception(
            event.error,
            client_options=sentry_sdk.get_client().options,
            mechanism={"type": "pqcore", "handled": False},
        )
        sent["contexts"] = {"trace": kept.trace}
        sent["transaction"] = event.task or event.queue
        sentry_sdk.capture_event(sent, hint=hint)


__all__ = ["Sentry"]
