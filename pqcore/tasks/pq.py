"""pq's names: `PQ` and `Queue`, and their asynchronous counterparts, with the conventions of pq 1.9.1.

A function gets the job's id as its first argument, and has no retries unless its declaration says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from pqcore import async_queue, queue
from pqcore.tasks.conventions import OF_PQ

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from datetime import timedelta
    from typing import Any, TypeVar

    from typing_extensions import Unpack

    from pqcore.serializers import Serializer
    from pqcore.tasks.async_queue import AsyncEnqueuer, DeclareAsyncAsPq
    from pqcore.tasks.declaring import DeclarationOptions
    from pqcore.tasks.periodic import Missed
    from pqcore.tasks.queue import DeclareAsPq, Enqueuer
    from pqcore.times import TimeSpec

    R = TypeVar("R")


class Queue(queue.Queue):
    """A `pqcore.Queue` with pq's conventions: functions get the job's id first, and have no retries by default."""

    conventions = OF_PQ
    performs_taken = True

    # a call also takes options with an underscore, which type checkers cannot distinguish from arguments
    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def task(self, function: Callable[..., Coroutine[Any, Any, R]], /) -> Enqueuer[..., R]: ...
        @overload
        def task(self, function: Callable[..., R], /) -> Enqueuer[..., R]: ...
        @overload
        def task(
            self,
            schedule_at: TimeSpec = None,
            expected_at: TimeSpec = None,
            max_retries: int = 0,
            retry_in: str | float | timedelta | None = "30s",
            *,
            name: str | None = None,
            aliases: Sequence[str] = (),
            **options: Unpack[DeclarationOptions],
        ) -> DeclareAsPq: ...
        def task(self, *arguments: Any, **options: Any) -> Any: ...

        def periodic(  # type: ignore[override]
            self,
            cron: str,
            tz: str = "UTC",
            missed: Missed = "latest",
            name: str | None = None,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> DeclareAsPq: ...


class AsyncQueue(async_queue.AsyncQueue):
    """A `pqcore.AsyncQueue` with pq's conventions; see `Queue`."""

    conventions = OF_PQ

    # a call also takes options with an underscore, which type checkers cannot distinguish from arguments
    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def task(self, function: Callable[..., Coroutine[Any, Any, R]], /) -> AsyncEnqueuer[..., R]: ...
        @overload
        def task(self, function: Callable[..., R], /) -> AsyncEnqueuer[..., R]: ...
        @overload
        def task(
            self,
            schedule_at: TimeSpec = None,
            expected_at: TimeSpec = None,
            max_retries: int = 0,
            retry_in: str | float | timedelta | None = "30s",
            *,
            name: str | None = None,
            aliases: Sequence[str] = (),
            **options: Unpack[DeclarationOptions],
        ) -> DeclareAsyncAsPq: ...
        def task(self, *arguments: Any, **options: Any) -> Any: ...

        def periodic(  # type: ignore[override]
            self,
            cron: str,
            tz: str = "UTC",
            missed: Missed = "latest",
            name: str | None = None,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> DeclareAsyncAsPq: ...


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
