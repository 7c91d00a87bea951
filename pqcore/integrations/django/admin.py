"""Jobs and dead letters in Django's admin: rows are read-only, except for actions that call pqcore's operations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import admin, messages
from django.contrib.auth import get_permission_codename
from django.db.models import TextField
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast, Left
from django.utils.html import format_html

from pqcore.db.runtime import run_sync
from pqcore.errors import JobNotFound
from pqcore.integrations.django.models import DeadLetter, Job
from pqcore.integrations.django.queues import DjangoQueue, pqs
from pqcore.operations.admin import count_queues
from pqcore.operations.attempts import PastAttempt, read_attempts
from pqcore.operations.list_jobs import UNFINISHED, path_in

HEAD = 300
"""The number of characters of the data in which a list searches for the path of a function."""
ERROR_HEAD = 200
"""The largest number of characters of an error's message that a list shows."""
LONGEST = 100_000
"""The largest number of characters of data that are shown."""


class QueueFilter(admin.SimpleListFilter):
    """A filter by queue, for queues with waiting jobs or dead letters."""

    title = "queue"
    parameter_name = "queue"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        names = run_sync(count_queues(pqs["default"].engine))
        return [(name, name) for name in names]

    def queryset(self, request: Any, queryset: Any) -> Any:
        return queryset if self.value() is None else queryset.filter(queue_name=self.value())


class StateFilter(admin.SimpleListFilter):
    """A filter by state."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(state, state) for state in (*UNFINISHED, "done")]

    def queryset(self, request: Any, queryset: Any) -> Any:
        return queryset if self.value() is None else queryset.filter(state=self.value())


class RowAdmin(admin.ModelAdmin):
    """The common part of both admin classes: only the actions can change or delete rows, and users cannot add rows."""

    search_fields = ("id",)
    search_help_text = "A job's id."
    show_full_result_count = False
    list_per_page = 50

    def get_queryset(self, request: Any) -> Any:
        head = Left(Cast("data", TextField()), HEAD)
        error_type, message = KeyTextTransform("type", "error"), KeyTextTransform("message", "error")
        rows = super().get_queryset(request).defer("data", "payload", "headers", "error")
        return rows.annotate(head=head, error_type=error_type, error_head=Left(message, ERROR_HEAD))

    def get_search_results(self, request: Any, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        number = int(term) if term.isdecimal() and len(term) < 19 else -1
        return queryset.filter(id=number), False

    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: Any, obj: Any = None) -> bool:
        return self._may(request, "view") or self._may(request, "change")

    def has_operate_permission(self, request: Any) -> bool:
        """Return whether the user may run jobs again."""
        return self._may(request, "change")

    def has_remove_permission(self, request: Any) -> bool:
        """Return whether the user may delete jobs."""
        return self._may(request, "delete")

    def _may(self, request: Any, verb: str) -> bool:
        return bool(request.user.has_perm(f"{self.opts.app_label}.{get_permission_codename(verb, self.opts)}"))

    @admin.display(description="attempts", ordering="attempts")
    def attempts(self, row: Any) -> int:
        """Return how often the job was run."""
        return int(row.attempts)

    @admin.display(description="function")
    def task(self, row: Any) -> str:
        """Return the path of the function that the job calls, or an empty string if the job is not a call."""
        return path_in(row.head) or ""

    @admin.display(description="error", ordering="error_type")
    def short_error(self, row: Any) -> str:
        """Return the type and the message of the last exception."""
        return ": ".join(filter(None, (row.error_type, row.error_head)))

    @admin.display(description="data")
    def stored(self, row: Any) -> Any:
        """Return the job's data if it is JSON; for other serializers, a description."""
        if row.payload is not None:
            return f"{len(row.payload):,} bytes of {row.serializer}"
        return _block(json.dumps(row.data, indent=2, ensure_ascii=False))

    @admin.display(description="headers")
    def shown_headers(self, row: Any) -> Any:
        """Return the job's headers."""
        return _block(json.dumps(row.headers, indent=2, ensure_ascii=False)) if row.headers else ""

    @admin.display(description="last error")
    def last_error(self, row: Any) -> Any:
        """Return the last exception, with its traceback."""
        error = row.error or {}
        return _block(error.get("traceback") or ": ".join(filter(None, map(error.get, ("type", "message")))))

    @admin.display(description="past attempts")
    def past_attempts(self, row: Any) -> Any:
        """Return the attempts that failed, crashed or were snoozed, one on each line."""
        found = run_sync(read_attempts(pqs["default"].engine, row.queue_name, row.pk))
        return _block("\n".join(map(_line, found)))

    def _each(
        self, request: Any, rows: Iterable[Any], done: str, operation: Callable[[DjangoQueue, int], object]
    ) -> None:
        """Apply a function to each row, report the number of rows, and record it in the admin's log."""
        changed = left = 0
        for row in rows:
            if operation(row.queue, row.pk):
                changed += 1
                self.log_change(request, row, done)
            else:
                left += 1
        self.message_user(request, f"{changed} {done}", messages.SUCCESS if changed else messages.WARNING)
        if left:
            was, whose = ("was", "its") if left == 1 else ("were", "their")
            told = f"{left} {was} left unchanged: {whose} state does not allow this, or has changed"
            self.message_user(request, told, messages.WARNING)


def _line(attempt: PastAttempt) -> str:
    """Return an attempt as a line of text."""
    where = f" on {attempt.worker}" if attempt.worker else ""
    error = ": ".join(filter(None, map(attempt.error.get, ("type", "message"))))
    return f"{attempt.attempt}. {attempt.outcome} {attempt.ended_at:%Y-%m-%d %H:%M:%S} UTC{where} {error}".rstrip()


def _block(text: str) -> Any:
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}\n... and {len(text) - LONGEST:,} characters more"
    return format_html('<pre style="white-space: pre-wrap">{}</pre>', text) if text else ""


@admin.register(Job)
class JobAdmin(RowAdmin):
    """Jobs that are not dead."""

    list_display = (
        "id",
        "queue_name",
        "state",
        "task",
        "short_error",
        "attempts",
        "failures",
        "enqueued_at",
        "schedule_at",
    )
    list_filter = (StateFilter, QueueFilter)
    fields = (
        *("id", "queue_name", "state", "task", "attempts", "failures", "enqueued_at", "schedule_at", "expected_at"),
        *("leased_until", "finished_at", "parked_on", "dedup_key", "group_key", "stored", "shown_headers"),
        *("past_attempts", "last_error"),
    )
    readonly_fields = ("state", "attempts", "task", "stored", "shown_headers", "past_attempts", "last_error")
    actions = ("retry", "cancel")

    @admin.display(description="state", ordering="state")
    def state(self, row: Any) -> str:
        """Return the job's state.

        For a job that waits for admission, the keys show whether it could be admitted now.
        """
        if row.state != "parked":
            return str(row.state)
        try:
            return str(row.queue.status(row.pk))
        except JobNotFound:  # the job has ended meanwhile
            return "done"

    @admin.action(description="Run selected jobs now: scheduled ones, and done ones again", permissions=["operate"])
    def retry(self, request: Any, rows: Any) -> None:
        """Make jobs due now."""
        self._each(request, rows, "made due now", lambda queue, job_id: queue.retry(job_id))

    @admin.action(
        description="Cancel selected jobs: delete those that wait, stop those that run", permissions=["remove"]
    )
    def cancel(self, request: Any, rows: Any) -> None:
        """Delete waiting jobs, and ask workers to stop running ones."""
        self._each(request, rows, "cancelled", lambda queue, job_id: queue.cancel(job_id, running=True))


@admin.register(DeadLetter)
class DeadLetterAdmin(RowAdmin):
    """Jobs that failed for good."""

    list_display = ("id", "queue_name", "reason", "task", "short_error", "attempts", "failures", "died_at")
    list_filter = (QueueFilter, "reason")
    fields = (
        *("id", "queue_name", "reason", "task", "attempts", "failures", "died_at", "enqueued_at", "schedule_at"),
        *("expected_at", "stored", "shown_headers", "past_attempts", "last_error"),
    )
    readonly_fields = ("attempts", "task", "stored", "shown_headers", "past_attempts", "last_error")
    actions = ("revive", "purge")

    @admin.action(description="Run selected jobs again, with a clean record", permissions=["operate"])
    def revive(self, request: Any, rows: Any) -> None:
        """Turn dead letters into jobs again."""
        self._each(request, rows, "put again", lambda queue, job_id: queue.dead.retry(job_id))

    @admin.action(description="Delete selected dead letters for good", permissions=["remove"])
    def purge(self, request: Any, rows: Any) -> None:
        """Delete dead letters."""
        self._each(request, rows, "deleted", lambda queue, job_id: queue.dead.purge(job_id))
