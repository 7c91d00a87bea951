"""Every error that pqcore raises, under one root.

An error also derives from the built-in that Python users expect in its place
(``ValueError`` for a bad argument, ``ImportError`` for a missing driver), so
that code written for plain Python keeps working.  What the driver raised is
always chained as ``__cause__``.
"""

from __future__ import annotations

from typing import Any


class PQError(Exception):
    """The root of all of pqcore's errors."""


# What the caller passed in


class ConfigurationError(PQError, ValueError):
    """The arguments of a queue, a backend or a plugin do not fit together."""


class InvalidCall(PQError, TypeError):
    """A task was called with arguments that its function does not take; or an object was used as another kind is."""


class UnknownBackend(ConfigurationError):
    """No installed backend has this name, URL scheme or connection type."""


class UnknownSerializer(ConfigurationError, KeyError):
    """No installed serializer has this name."""

    __str__ = Exception.__str__  # a KeyError would show the message's repr


class BackendNotInstalled(PQError, ImportError):
    """The backend is known, but its driver cannot be imported."""


class SerializerNotInstalled(PQError, ImportError):
    """The serializer is known, but the library that it needs cannot be imported."""


class PluginError(PQError):
    """A plugin is broken, doubled, or made for another plugin API version."""


class InvalidName(PQError, ValueError):
    """A queue, table or schema name that PostgreSQL cannot hold."""


class InvalidTimeSpec(PQError, ValueError, TypeError):
    """Not a time: neither ``'5m'``, nor a timedelta, nor a datetime."""


class SerializationError(PQError, TypeError, ValueError):
    """The job's data cannot be encoded; nothing was written."""


class PayloadTooLarge(PQError, ValueError):
    """The encoded job is larger than the queue accepts; nothing was written."""


class DuplicateJob(PQError, ValueError):
    """A job with this dedup key is there already; nothing was written.

    Attributes:
        job_id: The id of that job.
    """

    def __init__(self, message: str, job_id: int = 0) -> None:
        super().__init__(message)
        self.job_id = job_id


class UnknownTask(PQError, LookupError):
    """No function is declared under the path that a row names, and its module is not trusted."""


# What a row holds


class DeserializationError(PQError, ValueError):
    """The row's data cannot be decoded by this queue.

    Attributes:
        job: The job whose data it is; ``job.raw`` has what is stored. None for a result.
    """

    job: Any = None


class Unreadable(DeserializationError):
    """This program cannot read the row; a program with the right serializer, ``accept`` or key can.

    Workers put the job off, as they do with a function that they do not know. A serializer may raise it in ``loads``.
    """


class KeyNotHeld(Unreadable):
    """No key that this program holds decrypts the row, or verifies its signature; for serializers to raise."""


class UnsafeSerializer(Unreadable):
    """The row names a serializer that this queue was not told to accept."""


class JobNotFound(PQError, LookupError):
    """No such row: the job is finished and gone, cancelled, or never was."""


class LeaseLost(PQError):
    """The lease ran out and the job was given to somebody else, or is gone.

    Whatever was done under the lease may be done again by its next holder.
    """


class JobFailed(PQError):
    """The job whose result was asked for failed for good, or was cancelled.

    Attributes:
        error: What it raised: ``type``, ``message`` and ``traceback``; empty if it was cancelled.
    """

    def __init__(self, message: str, error: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.error = error or {}


class ResultNotStored(PQError):
    """The job was done, and the result that its function returned could not be stored.

    Attributes:
        error: Why: ``type``, ``message`` and ``traceback``.
    """

    def __init__(self, message: str, error: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.error = error or {}


class ResultTimeout(PQError, TimeoutError):
    """The result was not there in time; the job may still be waiting or running."""


# The table


class SchemaError(PQError):
    """The table is not as this version of pqcore needs it."""


class TableMissing(SchemaError, LookupError):
    """The queue's table does not exist: call ``create()``."""


class SchemaOutdated(SchemaError):
    """The table is of an older version, or pq's own: call ``create()``."""


class SchemaTooNew(SchemaError):
    """The table was made by a newer pqcore: upgrade this one."""


# The server


class DatabaseError(PQError):
    """The server refused a statement.

    Attributes:
        sqlstate: The server's five-letter code, or None where there is none.
    """

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class TransactionAborted(DatabaseError):
    """An earlier statement failed; the owner must roll the transaction back."""


class TransientError(DatabaseError):
    """A deadlock, serialization failure or lock timeout: try it again."""


class StatementCancelled(DatabaseError, TimeoutError):
    """The server cancelled the statement (``statement_timeout``, or asked to)."""


class AccessDenied(DatabaseError, PermissionError):
    """The database role may not do this."""


class InvalidData(DatabaseError, ValueError):
    """The server cannot store this value."""


class IdTaken(DatabaseError):
    """A new row was given an id that is taken: a sequence is behind the ids that are there; nothing was written.

    It is behind after logical replication, ``TRUNCATE ... RESTART IDENTITY`` or a restore of rows alone.
    ``pqcore doctor`` names it, and ``create(set_sequences=True)`` sets it.
    """


class NotStored(DatabaseError):
    """The server stored nothing, and reported no error: a trigger left the row out, or row-level security hides it."""


class ConnectionLost(DatabaseError, ConnectionError):
    """The connection broke, or the server cannot be reached; a transaction that was open is undone."""


class OutcomeUnknown(ConnectionLost):
    """The connection broke while a commit, or a statement that commits by itself, was under way.

    It took effect, or it did not. Look before it is done again, or make doing it again harmless, as a dedup key does.
    """


class PoolTimeout(PQError, TimeoutError):
    """No connection of the pool became free in time."""


class Closed(PQError):
    """The PQ, or the connection or pool it was given, has been closed."""


class TransactionOrderError(PQError):
    """Transaction blocks ended in another order than they began."""


class NotSupported(PQError, NotImplementedError):
    """The chosen backend, or the isolation level of the transaction, does not allow this."""


class EmbeddedServerError(PQError):
    """The embedded PostgreSQL is missing or did not start."""
