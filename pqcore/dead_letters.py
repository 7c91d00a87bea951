"""Dead letters: jobs that failed for good, kept with their last error."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from pqcore.db.runtime import run_sync
from pqcore.job import BaseJob
from pqcore.operations import dead_letters
from pqcore.operations.error_details import read_error
from pqcore.times import UtcDatetime

if TYPE_CHECKING:
    from pqcore.db.engine import Engine
    from pqcore.rows import DeadLetterRow
    from pqcore.settings import QueueSettings


class DeadLetter(BaseJob):
    """A job that failed for good.

    Attributes:
        error: The last exception, as ``type``, ``message`` and ``traceback``; empty if no exception was raised.
        reason: Why the job is dead. ``failed``: no retries were left. ``crashed``: running the job killed its workers.
            ``expired``: the deadline had passed. ``invalid``: the data is damaged, or does not call a function.
            ``unreadable``: no worker had the serializer or key of the data in time. ``parent``: this job waited for
            another job, which failed.
        died_at: When the job became a dead letter.
    """

    __slots__ = ("died_at", "error", "reason")

    def __init__(self, queue: QueueSettings, row: DeadLetterRow) -> None:
        super().__init__(queue, row.job)
        self.error: dict[str, str] = read_error(row.error)
        self.reason: str = row.reason
        self.died_at: UtcDatetime = cast(UtcDatetime, UtcDatetime.of(row.died_at))

    @property
    def crashes(self) -> int:
        """How often a lease of the job ran out, because its worker died or lost its connection."""
        return max(self.attempts - self.failures, 0)  # a dead letter has no running attempt

    @property
    def data(self) -> Any:
        """The data that was put.

        Raises:
            DeserializationError: The queue cannot read the row's data.
        """
        return self.decode()


class DeadLetters:
    """The dead letters of a `Queue`: ``queue.dead``."""

    def __init__(self, engine: Engine, queue: QueueSettings) -> None:
        self._engine = engine
        self._queue = queue

    def list(self, n: int = 100) -> list[DeadLetter]:
        """Return up to ``n`` dead letters, the latest first."""
        return [
            DeadLetter(self._queue, row) for row in run_sync(dead_letters.list_latest(self._engine, self._queue, n))
        ]

    def get(self, job_id: int) -> DeadLetter:
        """Return the dead letter with a job's id.

        Raises:
            JobNotFound: No dead letter has this id.
        """
        return DeadLetter(self._queue, run_sync(dead_letters.find(self._engine, self._queue, job_id)))

    def count(self, reason: str | None = None) -> int:
        """Return the number of dead letters.

        Args:
            reason: Count only dead letters with this reason; see `DeadLetter.reason`.

        Raises:
            ConfigurationError: The reason is unknown.
        """
        return run_sync(dead_letters.count(self._engine, self._queue, reason))

    def retry(self, *job_ids: int) -> int:
        """Turn dead letters into jobs again, with the same ids, due immediately, and with no failures.

        Returns:
            The number of dead letters that became jobs.
        """
        return run_sync(dead_letters.revive(self._engine, self._queue, job_ids))

    def retry_all(self, reason: str | None = None) -> int:
        """Turn all dead letters into jobs, and return their number.

        Args:
            reason: Only dead letters with this reason, such as ``unreadable``; see `DeadLetter.reason`.

        Raises:
            ConfigurationError: The reason is unknown.
        """
        return run_sync(dead_letters.revive(self._engine, self._queue, None, reason))

    def purge(self, *job_ids: int) -> int:
        """Delete dead letters permanently.

        Returns:
            The number of deleted dead letters.
        """
        return run_sync(dead_letters.purge(self._engine, self._queue, job_ids, 0))

    def purge_all(self, older_than: str | float | timedelta = 0) -> int:
        """Delete all dead letters permanently.

        Args:
            older_than: Only dead letters of jobs that died at least this long ago: seconds, ``'14d'`` or a timedelta.

        Returns:
            The number of deleted dead letters.
        """
        return run_sync(dead_letters.purge(self._engine, self._queue, None, older_than))


class AsyncDeadLetters:
    """The dead letters of an `AsyncQueue`; see `DeadLetters`."""

    def __init__(self, engine: Engine, queue: QueueSettings) -> None:
        self._engine = engine
        self._queue = queue

    async def list(self, n: int = 100) -> list[DeadLetter]:
        """Return up to ``n`` dead letters, the latest first."""
        return [DeadLetter(self._queue, row) for row in await dead_letters.list_latest(self._engine, self._queue, n)]

    async def get(self, job_id: int) -> DeadLetter:
        """Return the dead letter with a job's id; see `DeadLetters.get`."""
        return DeadLetter(self._queue, await dead_letters.find(self._engine, self._queue, job_id))

    async def count(self, reason: str | None = None) -> int:
        """Return the number of dead letters; see `DeadLetters.count`."""
        return await dead_letters.count(self._engine, self._queue, reason)

    async def retry(self, *job_ids: int) -> int:
        """Turn dead letters into jobs again; see `DeadLetters.retry`."""
        return await dead_letters.revive(self._engine, self._queue, job_ids)

    async def retry_all(self, reason: str | None = None) -> int:
        """Turn all dead letters into jobs; see `DeadLetters.retry_all`."""
        return await dead_letters.revive(self._engine, self._queue, None, reason)

    async def purge(self, *job_ids: int) -> int:
        """Delete dead letters permanently; see `DeadLetters.purge`."""
        return await dead_letters.purge(self._engine, self._queue, job_ids, 0)

    async def purge_all(self, older_than: str | float | timedelta = 0) -> int:
        """Delete all dead letters permanently; see `DeadLetters.purge_all`."""
        return await dead_letters.purge(self._engine, self._queue, None, older_than)
