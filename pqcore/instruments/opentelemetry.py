"""Spans around puts and runs, by OpenTelemetry's conventions for messaging.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from pqcore.errors import ConfigurationError
from pqcore.events import JobEvent, PutEvent
from pqcore.hookspecs import hookimpl
from pqcore.instruments.outcome import is_error, verdict

SCHEMA = "https://opentelemetry.io/schemas/1.33.0"


class OpenTelemetry:
    """A producer span around each put, and a consumer span around each run.

    The headers of a job carry the context from the put's span to the run's span.

    Args:
        tracer_provider: The provider of the spans; by default the global one, which may be set before or after this
            object is made.
        propagator: The propagator that writes the context into a job's headers and reads it; by default the global one.
        relation: The relation of a run's span to the put's span; a link between them exists in any case. ``"child"``:
            the run's span is a child of the put's span, so that both are in one trace; if there is a span around the
            worker, that span is the parent. ``"link"``: only the link, with a separate trace for the run. The
            conventions allow ``"child"`` for spans of a single message, as pqcore's spans always are.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        propagator: TextMapPropagator | None = None,
        relation: Literal["child", "link"] = "child",
    ) -> None:
        if relation not in ("child", "link"):
            msg = f"relation is {relation!r}; choose 'child' or 'link'"
            raise ConfigurationError(msg)
        self._tracer = trace.get_tracer("pqcore", tracer_provider=tracer_provider, schema_url=SCHEMA)
        self._propagator = propagator
        self._child = relation == "child"

    @hookimpl(tryfirst=True)  # runs before plugins that add to the same header, such as baggage
    @contextmanager
    def pqcore_around_put(self, event: PutEvent) -> Iterator[None]:
        propagator = self._propagator or propagate.get_global_textmap()
        attributes: dict[str, AttributeValue] = {
            "messaging.system": "pqcore",
            "messaging.destination.name": event.queue,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
        }
        if event.task:
            attributes["code.function.name"] = event.task
        # A context that the caller gave belongs to the job: the span links to it, and does not replace it.
        given = _span_context(propagator.extract(event.headers, context.Context()))
        kind = SpanKind.PRODUCER if given is None else SpanKind.CLIENT
        links = [] if given is None else [Link(given)]
        with self._tracer.start_as_current_span(
            f"send {event.queue}", kind=kind, attributes=attributes, links=links
        ) as span:
            if given is None:
                propagator.inject(event.headers)
            try:
                yield
            except Exception as exc:
                span.set_attribute("error.type", _name(exc))
                raise
            if event.many:
                span.set_attribute("messaging.batch.message_count", len(event.ids))
            elif event.ids:
                span.set_attribute("messaging.message.id", str(event.ids[0]))

    @hookimpl
    @contextmanager
    def pqcore_around_run(self, event: JobEvent) -> Iterator[None]:
        job = event.job
        ambient = context.get_current()
        attributes: dict[str, AttributeValue] = {
            "messaging.system": "pqcore",
            "messaging.destination.name": event.queue,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.message.id": str(job.id),
            "messaging.message.body.size": job.size,
            "pqcore.job.attempt": event.attempt,
            "pqcore.job.waited": event.waited,
        }
        if event.task:
            attributes["code.function.name"] = event.task
        links = []
        if job.raw_headers is not None:
            propagator = self._propagator or propagate.get_global_textmap()
            around = trace.get_current_span(ambient)
            sent = propagator.extract(job.headers, ambient)  # including its baggage
            creation = trace.get_current_span(sent)
            if creation is not around and creation.get_span_context().is_valid:
                links.append(Link(creation.get_span_context()))
                if not self._child or around.get_span_context().is_valid:
                    sent = trace.set_span_in_context(around, sent)
            ambient = sent
        span = self._tracer.start_span(
            f"process {event.queue}", ambient, kind=SpanKind.CONSUMER, attributes=attributes, links=links
        )
        token = context.attach(trace.set_span_in_context(span, ambient))
        try:
            yield
        except BaseException as exc:
            _judge(span, event, exc)
            raise
        else:
            span.set_attribute("pqcore.job.outcome", "succeeded")
        finally:
            context.detach(token)
            span.end()


def _judge(span: Span, event: JobEvent, error: BaseException) -> None:
    found = verdict(event, error)
    span.set_attribute("pqcore.job.outcome", found)
    if is_error(found):
        span.set_attribute("error.type", "timeout" if found == "timeout" else _name(error))
        span.record_exception(error, escaped=True)
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def _span_context(found: context.Context) -> trace.SpanContext | None:
    span = trace.get_current_span(found).get_span_context()
    return span if span.is_valid else None


def _name(error: BaseException) -> str:
    kind: type[Any] = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
