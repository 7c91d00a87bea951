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
        error: The last exception: ``type``, ``message`` and ``traceback``; empty if there was none.
        reason: ``failed``: it had no retries left; ``crashed``: its workers died of it;
            ``expired``: its deadline had passed; ``invalid``: its data is no call of a function, or damaged;
            ``unreadable``: no program with the serializer or key for its data took it in time.
        died_at: When it was given up.
    """

    __slots__ = ("died_at", "error", "reason")

    def __init__(self, queue: QueueSettings, row: DeadLetterRow) -> None:
        super().__init__(queue, row.job)
        self.error: dict[str, str] = read_error(row.error)
        self.reason: str = row.reason
        self.died_at: UtcDatetime = cast(UtcDatetime, UtcDatetime.of(row.died_at))

    @property
    def crashes(self) -> int:
        """How often a lease of it ran out: its worker died, or was cut off."""
        return max(self.attempts - self.failures, 0)  # no attempt is under way

    @property
    def data(self) -> Any:
        """The data that was put.

        Raises:
            DeserializationError: The row holds something that this queue cannot read.
        """
        return self.decode()


class DeadLetters:
    """The dead letters of a `Queue`: ``queue.dead``."""

    def __init__(self, engine: Engine, queue: QueueSettings) -> None:
        self._engine = engine
        self._queue = queue

    def list(self, n: int = 100) -> list[DeadLetter]:
        """The latest ``n``, the latest first."""
        return [
            DeadLetter(self._queue, row) for row in run_sync(dead_letters.list_latest(self._engine, self._queue, n))
        ]

    def get(self, job_id: int) -> DeadLetter:
        """One, by the job's id.

        Raises:
            JobNotFound: There is none.
        """
        return DeadLetter(self._queue, run_sync(dead_letters.find(self._engine, self._queue, job_id)))

    def count(self, reason: str | None = None) -> int:
        """Return how many there are.

        Args:
            reason: Count only those that died for this reason; see `DeadLetter.reason`.

        Raises:
            ConfigurationError: There is no such reason.
        """
        return run_sync(dead_letters.count(self._engine, self._queue, reason))

    def retry(self, *job_ids: int) -> int:
        """Make jobs of them again: same id, due immediately, with a clean record.

        Returns:
            How many there were.
        """
        return run_sync(dead_letters.revive(self._engine, self._queue, job_ids))

    def retry_all(self, reason: str | None = None) -> int:
        """Make jobs of all that are there, and return how many.

        Args:
            reason: Only those that died for this reason, such as ``unreadable``; see `DeadLetter.reason`.

        Raises:
            ConfigurationError: There is no such reason.
        """
        return run_sync(dead_letters.revive(self._engine, self._queue, None, reason))

    def purge(self, *job_ids: int) -> int:
        """Delete them for good.

        Returns:
            How many there were.
        """
        return run_sync(dead_letters.purge(self._engine, self._queue, job_ids, 0))

    def purge_all(self, older_than: str | float | timedelta = 0) -> int:
        """Delete all that are there for good.

        Args:
            older_than: Only those that died so long ago: seconds, ``'14d'`` or a timedelta.

        Returns:
            How many there were.
        """
        return run_sync(dead_letters.purge(self._engine, self._queue, None, older_than))


class AsyncDeadLetters:
    """The dead letters of an `AsyncQueue`; see `DeadLetters`."""

    def __init__(self, engine: Engine, queue: QueueSettings) -> None:
        self._engine = engine
        self._queue = queue

    async def list(self, n: int = 100) -> list[DeadLetter]:
        """The latest ``n``, the latest first."""
        return [DeadLetter(self._queue, row) for row in await dead_letters.list_latest(self._engine, self._queue, n)]

    async def get(self, job_id: int) -> DeadLetter:
        """One, by the job's id; see `DeadLetters.get`."""
        return DeadLetter(self._queue, await dead_letters.find(self._engine, self._queue, job_id))

    async def count(self, reason: str | None = None) -> int:
        """Return how many there are; see `DeadLetters.count`."""
        return await dead_letters.count(self._engine, self._queue, reason)

    async def retry(self, *job_ids: int) -> int:
        """Make jobs of them again; see `DeadLetters.retry`."""
        return await dead_letters.revive(self._engine, self._queue, job_ids)

    async def retry_all(self, reason: str | None = None) -> int:
        """Make jobs of all that are there; see `DeadLetters.retry_all`."""
        return await dead_letters.revive(self._engine, self._queue, None, reason)

    async def purge(self, *job_ids: int) -> int:
        """Delete them for good; see `DeadLetters.purge`."""
        return await dead_letters.purge(self._engine, self._queue, job_ids, 0)

    async def purge_all(self, older_than: str | float | timedelta = 0) -> int:
        """Delete all that are there for good; see `DeadLetters.purge_all`."""
        return await dead_letters.purge(self._engine, self._queue, None, older_than)
