"""All errors that pqcore raises, under one root.

An error also derives from the built-in exception that fits, such as ``ValueError`` for a bad argument. So existing
``except`` clauses keep working. The driver's exception is always chained as ``__cause__``.
"""

from __future__ import annotations

from typing import Any

LONGEST_MESSAGE = 2_000
"""The largest number of characters in a message: it may show a value of any size."""


class PQError(Exception):
    """The root of all of pqcore's errors.

    The middle of a very long message is left out: the beginning says what is wrong, and the end what to do.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*[_bounded(arg) for arg in args])


def _bounded(arg: Any) -> Any:
    if not isinstance(arg, str) or len(arg) <= LONGEST_MESSAGE:
        return arg
    kept = LONGEST_MESSAGE // 2 - 50
    return f"{arg[:kept]} ... ({len(arg) - 2 * kept:,} characters left out) ... {arg[-kept:]}"


# Arguments


class ConfigurationError(PQError, ValueError):
    """The arguments of a queue, a backend or a plugin do not fit together."""


class InvalidCall(PQError, TypeError):
    """A task was called with arguments that its function does not accept, or a method was used with a wrong object."""


class UnknownBackend(ConfigurationError):
    """No installed backend has this name, URL scheme or connection type."""


class UnknownSerializer(ConfigurationError, KeyError):
    """No installed serializer has this name."""

    __str__ = Exception.__str__  # without this, a KeyError would show the repr of the message


class BackendNotInstalled(PQError, ImportError):
    """The backend is known, but its driver cannot be imported."""


class SerializerNotInstalled(PQError, ImportError):
    """The serializer is known, but the library that it needs cannot be imported."""


class PluginError(PQError):
    """A plugin is broken, installed twice, or made for another version of the plugin API."""


class InvalidName(PQError, ValueError):
    """A queue, table or schema name that PostgreSQL cannot hold."""


class InvalidTimeSpec(PQError, ValueError, TypeError):
    """The value is not a time: neither ``'5m'``, nor a timedelta, nor a datetime."""


class SerializationError(PQError, TypeError, ValueError):
    """The job's data cannot be encoded; nothing was written."""


class PayloadTooLarge(PQError, ValueError):
    """The encoded job is larger than the queue accepts; nothing was written."""


class DuplicateJob(PQError, ValueError):
    """Another job has this dedup key; nothing was written.

    Attributes:
        job_id: The id of the other job; None if an earlier item of the same call has the key.
        item: The number of that item in its call, from 0; None if the other job was put before the call.
    """

    def __init__(self, message: str, job_id: int | None = None, item: int | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.item = item


class UnknownTask(PQError, LookupError):
    """No function is declared under the path in a row, and the path's module is not trusted."""


# Content of rows


class DeserializationError(PQError, ValueError):
    """The queue cannot decode the row's data.

    Attributes:
        job: The job with the data; ``job.raw`` is the stored data. None for a result.
    """

    job: Any = None


class Unreadable(DeserializationError):
    """This program cannot read the row, but a program with the right serializer, ``accept`` or key can.

    Workers postpone the job, as they do for a function that they do not know. A serializer may raise this error in
    ``loads``.
    """


class KeyNotHeld(Unreadable):
    """None of this program's keys decrypts the row or verifies its signature; serializers raise this error."""


class UnsafeSerializer(Unreadable):
    """The row names a serializer that is not in this queue's ``accept``."""


class JobNotFound(PQError, LookupError):
    """The job has no row: it was finished and deleted, was cancelled, or never existed."""


class ScheduleNotFound(PQError, LookupError):
    """The queue has no schedule of this name."""


class LeaseLost(PQError):
    """Another consumer got the job after the lease had run out, or the job is gone.

    The next holder of the lease may repeat the work that was done under this lease.
    """


class JobFailed(PQError):
    """The awaited job failed permanently, or was cancelled.

    Attributes:
        error: The exception, as ``type``, ``message`` and ``traceback``; empty if the job was cancelled.
    """

    def __init__(self, message: str, error: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.error = error or {}


class ResultNotStored(PQError):
    """The job is done, but the result that its function returned could not be stored.

    Attributes:
        error: The cause, as ``type``, ``message`` and ``traceback``.
    """

    def __init__(self, message: str, error: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.error = error or {}


class ResultTimeout(PQError, TimeoutError):
    """The result did not arrive in time; the job may still be waiting or running."""


# Schema


class SchemaError(PQError):
    """The table does not have the form that this version of pqcore needs."""


class TableMissing(SchemaError, LookupError):
    """The queue's table does not exist: call ``create()``."""


class SchemaOutdated(SchemaError):
    """The table is of an older version, or was made by pq: call ``create()``."""


class SchemaTooNew(SchemaError):
    """A newer pqcore made the table; upgrade the pqcore that this program uses."""


# Server


class DatabaseError(PQError):
    """The server refused a statement.

    Attributes:
        sqlstate: The server's five-letter code, or None if the server gave none.
    """

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class TransactionAborted(DatabaseError):
    """An earlier statement failed, so the owner of the transaction must roll it back."""


class TransientError(DatabaseError):
    """The statement failed by a deadlock, a serialization failure or a lock timeout: try again."""


class StatementCancelled(DatabaseError, TimeoutError):
    """The server cancelled the statement, because of ``statement_timeout`` or a cancel request."""


class AccessDenied(DatabaseError, PermissionError):
    """The database role lacks a privilege."""


class InvalidData(DatabaseError, ValueError):
    """The server cannot store this value."""


class IdTaken(DatabaseError):
    """A new row got an id that another row has, because a sequence is behind the existing ids; nothing was written.

    Logical replication, ``TRUNCATE ... RESTART IDENTITY`` or a restore of rows alone can leave a sequence behind.
    ``pqcore doctor`` names the sequence, and ``create(set_sequences=True)`` corrects it.
    """


class NotStored(DatabaseError):
    """The server stored nothing and reported no error: a trigger dropped the row, or row-level security hides it."""


class ConnectionLost(DatabaseError, ConnectionError):
    """The connection broke, or the server cannot be reached; an open transaction was rolled back."""


class OutcomeUnknown(ConnectionLost):
    """The connection broke during a commit, or during a statement that commits by itself.

    The change may or may not have taken effect. Check before repeating the call, or make the repetition harmless, as a
    dedup key does.
    """


class PoolTimeout(PQError, TimeoutError):
    """No connection of the pool became free in time."""


class Closed(PQError):
    """The PQ, or the connection or pool that it was given, is closed."""


class TransactionOrderError(PQError):
    """Transaction blocks did not end in the reverse order of their beginning."""


class NotSupported(PQError, NotImplementedError):
    """The backend, or the isolation level of the transaction, does not support this call."""


class EmbeddedServerError(PQError):
    """The embedded PostgreSQL is not installed, or did not start."""
