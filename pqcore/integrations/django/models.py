"""Read-only, unmanaged models for jobs and dead letters of the table ``default``."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from django.db import models
from django.db.models import Case, F, Value, When
from django.db.models.functions import Coalesce, Greatest, Now

from pqcore.errors import ConfigurationError
from pqcore.integrations.django.configuration import configured
from pqcore.integrations.django.queues import DjangoQueue, pqs


def _table(suffix: str = "") -> str:
    return configured()["default"].names.related(suffix)  # the quoted name, which Django leaves unchanged


def _refuse(what: str) -> NoReturn:
    raise ConfigurationError(
        f"{what} is refused; change jobs through their queue: put(), cancel(), retry(), dead.retry(), dead.purge()"
    )


class StoredJSON(models.Field):
    """A column of PostgreSQL's type ``json``, which the driver decodes itself."""

    def db_type(self, connection: Any) -> str:
        return "json"


class Moment(models.DateTimeField):
    """A time; None if Python cannot express it, such as the end of a parked job's lease."""

    def select_format(self, compiler: Any, sql: str, params: Any) -> tuple[str, Any]:
        bounds = "BETWEEN timestamptz '0002-01-01 00:00+00' AND timestamptz '9999-12-30 00:00+00'"
        return f"CASE WHEN {sql} {bounds} THEN {sql} END", (*params, *params)


class ReadOnlyQuerySet(models.QuerySet):
    """A query set whose methods that write rows raise an error."""

    def update(self, **kwargs: Any) -> NoReturn:
        """Raise an error, because rows are read-only.

        Raises:
            ConfigurationError: Always raised; the other methods raise it, too.
        """
        _refuse("update()")

    def delete(self) -> NoReturn:
        """Raise an error, because rows are read-only."""
        _refuse("delete()")

    def bulk_create(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error, because rows are read-only."""
        _refuse("bulk_create()")


class RowManager(models.Manager.from_queryset(ReadOnlyQuerySet)):  # type: ignore[misc]
    """Rows with their ``attempts``, from the database that has the table, unless the caller names another database."""

    def get_queryset(self) -> Any:
        found = super().get_queryset()
        found = found if self._db is not None else found.using(configured()["default"].database)
        return found.annotate(attempts=Greatest(F("token") - Coalesce("excused", 0), 0))


class JobManager(RowManager):
    """Jobs with their ``state``, named as in `pqcore.Queue.jobs`."""

    def get_queryset(self) -> Any:
        due = Coalesce("schedule_at", "enqueued_at")
        state = Case(
            When(finished_at__isnull=False, then=Value("done")),
            When(parked_on__isnull=False, then=Value("parked")),
            When(leased_until__gt=Now(), then=Value("leased")),
            When(_due__gt=Now(), then=Value("scheduled")),
            default=Value("ready"),
            output_field=models.TextField(),
        )
        return super().get_queryset().alias(_due=due).annotate(state=state)


class Row(models.Model):
    """The common fields of the queue's table and the table of dead letters."""

    PERMISSIONS: ClassVar = ("view", "change", "delete")

    id = models.BigIntegerField(primary_key=True)
    queue_name = models.TextField("queue", db_column="q_name")
    enqueued_at = Moment("put")
    schedule_at = Moment("not before", null=True)
    expected_at = Moment("wanted by", null=True)
    data = StoredJSON(null=True)
    payload = models.BinaryField(null=True)
    serializer = models.TextField(null=True)
    headers = StoredJSON(null=True)
    token = models.IntegerField(db_column="attempts")
    excused = models.IntegerField(null=True)
    failures = models.IntegerField("failed", null=True)
    error = StoredJSON(null=True)

    class Meta:  # noqa: D106 - Django's
        abstract = True

    def __str__(self) -> str:
        return f"{self.pk} of {self.queue_name}"

    @property
    def queue(self) -> DjangoQueue:
        """Return the job's queue, through which the job can be changed."""
        return pqs["default"].queue(self.queue_name, serializer="json")

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error, because rows are read-only.

        Raises:
            ConfigurationError: Always raised; `delete` raises it, too.
        """
        _refuse("save()")

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error, because rows are read-only."""
        _refuse("delete()")


class Job(Row):
    """A job that is ready, scheduled, parked or leased, or a done job whose row is kept."""

    finished_at = Moment("finished", db_column="dequeued_at", null=True)
    leased_until = Moment(null=True)
    dedup_key = models.TextField(null=True)
    group_key = models.TextField("group", null=True)
    parked_on = models.TextField(null=True)

    objects = JobManager()

    class Meta:  # noqa: D106 - Django's
        managed = False
        db_table = _table()
        default_permissions = Row.PERMISSIONS
        ordering = ("-id",)


class DeadLetter(Row):
    """A job that failed for good."""

    reason = models.TextField()
    died_at = Moment("died")

    objects = RowManager()

    class Meta:  # noqa: D106 - Django's
        managed = False
        db_table = _table("_dead")
        default_permissions = Row.PERMISSIONS
        ordering = ("-died_at",)
