"""Log records for the events of jobs, through structlog or the standard library."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pqcore.errors import ConfigurationError
from pqcore.events import JobEvent, PutEvent
from pqcore.hookspecs import hookimpl
from pqcore.tasks.outcomes import job_logger

LEVELS: Mapping[str, int] = {
    "put": logging.DEBUG,
    "started": logging.INFO,
    "succeeded": logging.INFO,
    "failed": logging.WARNING,
    "retried": logging.INFO,
    "dead": logging.ERROR,
    "dropped": logging.INFO,
    "lost": logging.WARNING,
}
_bound: ContextVar[Mapping[str, Any]] = ContextVar("pqcore_bound", default={})  # noqa: B039 - never changed
_FIELDS = ("job_id", "queue", "task", "attempt")


class Logging:
    """A structured record for each event: ``job started``, ``succeeded``, ``failed``, ``retried``, ``dead``...

    A record has ``job_id``, ``queue``, ``task`` and ``attempt``, and more values of the event. With the standard
    library, these values are attributes of the record (``extra=``). The worker's own lines about failed jobs (the
    logger ``pqcore.tasks.jobs``) are turned off, because these records replace them.

    Args:
        structlog: Whether to use structlog; by default it is used if it has been configured before the first event.
        name: The logger's name.
        levels: The levels that differ from `LEVELS`, by event.
        traceback: Whether records of failures include the traceback.
        bind: Whether log records within a job's function get the job's fields, too: through structlog's context
            variables, or through a `JobFilter` of a handler.

    Raises:
        ConfigurationError: structlog is requested but not installed, or a level is for an unknown event.
    """

    def __init__(
        self,
        structlog: bool | None = None,
        name: str = "pqcore.jobs",
        levels: Mapping[str, int] | None = None,
        *,
        traceback: bool = True,
        bind: bool = True,
    ) -> None:
        if structlog:
            try:
                import structlog as _  # noqa: F401
            except ImportError as exc:
                raise ConfigurationError("structlog is not installed: pip install 'pqcore[structlog]'") from exc
        if unknown := set(levels or {}) - set(LEVELS):
            msg = f"levels has unknown events: {', '.join(sorted(unknown))}; choose among {', '.join(LEVELS)}"
            raise ConfigurationError(msg)
        self._structlog = structlog
        self._name = name
        self._levels = {**LEVELS, **(levels or {})}
        self._traceback = traceback
        self._bind = bind
        self._logger: Any = None
        job_logger.disabled = True

    @hookimpl
    def pqcore_job_put(self, event: PutEvent) -> None:
        if event.many:
            self._log("put", "jobs put", {"queue": event.queue, "count": len(event.ids)})
            return
        fields = {"job_id": event.ids[0], "queue": event.queue, "task": event.task or ""}
        self._log("put", "job put", fields)

    @hookimpl
    @contextmanager
    def pqcore_around_run(self, event: JobEvent) -> Iterator[None]:
        if not self._bind:
            yield
            return
        fields = _of(event)
        token = _bound.set(fields)
        try:
            if self._uses_structlog():
                from structlog.contextvars import bound_contextvars

                with bound_contextvars(**fields):
                    yield
            else:
                yield
        finally:
            _bound.reset(token)

    @hookimpl
    def pqcore_job_started(self, event: JobEvent) -> None:
        self._log("started", "job started", {**_of(event), "waited": round(event.waited, 6)})

    @hookimpl
    def pqcore_job_succeeded(self, event: JobEvent) -> None:
        self._log("succeeded", "job succeeded", {**_of(event), "duration": round(event.duration, 6)})

    @hookimpl
    def pqcore_job_failed(self, event: JobEvent) -> None:
        fields = {**_of(event), "duration": round(event.duration, 6), "error": _error(event)}
        self._log("failed", "job failed", fields, event.error if self._traceback else None)

    @hookimpl
    def pqcore_job_retried(self, event: JobEvent) -> None:
        self._log("retried", "job retried", {**_of(event), "delay": event.delay, "reason": event.reason})

    @hookimpl
    def pqcore_job_dead(self, event: JobEvent) -> None:
        self._log("dead", "job dead", {**_of(event), "reason": event.reason, "error": _error(event)})

    @hookimpl
    def pqcore_job_dropped(self, event: JobEvent) -> None:
        self._log("dropped", "job dropped", {**_of(event), "reason": event.reason})

    @hookimpl
    def pqcore_job_lost(self, event: JobEvent) -> None:
        self._log("lost", "job lost", _of(event))

    def _log(self, kind: str, event: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        level = self._levels[kind]
        if self._uses_structlog():
            if error is not None:
                fields["exc_info"] = error
            self._get().log(level, event, **fields)
            return
        logger: logging.Logger = self._get()
        if logger.isEnabledFor(level):
            text = " ".join(f"{name}={value}" for name, value in fields.items())
            logger.log(level, "%s %s", event, text, extra={"event": event, **fields}, exc_info=error)

    def _uses_structlog(self) -> bool:
        if self._structlog is None:  # decided late, because programs may configure structlog after this object is made
            module = sys.modules.get("structlog")
            self._structlog = module is not None and bool(module.is_configured())
        return self._structlog

    def _get(self) -> Any:
        if self._logger is None:
            if self._uses_structlog():
                import structlog

                self._logger = structlog.get_logger(self._name)
            else:
                self._logger = logging.getLogger(self._name)
        return self._logger


class JobFilter(logging.Filter):
    """A filter for handlers: records within a job's function get the job's fields; elsewhere the fields are None.

    So a format may include ``%(job_id)s``, ``%(queue)s``, ``%(task)s`` and ``%(attempt)s``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields that the record lacks; return True."""
        bound = _bound.get()
        for name in _FIELDS:
            if not hasattr(record, name):
                setattr(record, name, bound.get(name))
        return True


def _of(event: JobEvent) -> dict[str, Any]:
    return {"job_id": event.job.id, "queue": event.queue, "task": event.task, "attempt": event.attempt}


def _error(event: JobEvent) -> str | None:
    return None if event.error is None else f"{type(event.error).__name__}: {event.error}"
