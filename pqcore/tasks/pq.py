"""pq's names: `PQ` and `Queue`, and the same awaited, with the conventions of pq 1.9.1.

A function gets the job's id first, and is not tried again unless its declaration says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pqcore import async_queue, queue
from pqcore.tasks.conventions import OF_PQ

if TYPE_CHECKING:
    from typing import Any

    from pqcore.serializers import Serializer


class Queue(queue.Queue):
    """A `pqcore.Queue` with pq's conventions: functions get the job's id first, and have no retries by default."""

    conventions = OF_PQ
    performs_taken = True


class AsyncQueue(async_queue.AsyncQueue):
    """A `pqcore.AsyncQueue` with pq's conventions; see `Queue`."""

    conventions = OF_PQ


class PQ(queue.PQ):
    """A `pqcore.PQ` whose queues have pq's conventions; see `Queue`."""

    queue_class: type[queue.Queue] = Queue

    if TYPE_CHECKING:

        def queue(self, name: str, *, serializer: Serializer | str | None = None, **options: Any) -> Queue: ...

        def __getitem__(self, name: str) -> Queue: ...


class AsyncPQ(async_queue.AsyncPQ):
    """A `pqcore.AsyncPQ` whose queues have pq's conventions; see `Queue`."""

    queue_class: type[async_queue.AsyncQueue] = AsyncQueue

    if TYPE_CHECKING:

        def queue(self, name: str, *, serializer: Serializer | str | None = None, **options: Any) -> AsyncQueue: ...

        def __getitem__(self, name: str) -> AsyncQueue: ...
