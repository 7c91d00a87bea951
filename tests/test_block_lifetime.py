"""How long a block lasts: until its ``with`` statement ends, or until the program calls ``__exit__``."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from types import FrameType
from typing import Any

import psycopg
import psycopg2
import pytest

from pqcore import PQ, AsyncPQ, AsyncQueue
from pqcore.errors import ConnectionLost, DatabaseError

BLOCKING = pytest.mark.parametrize("backend", ["psycopg", "psycopg2"])
AWAITED = pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])


class Undone(Exception):
    """Raised in a block, so that the block is rolled back."""


class Unit:
    """A unit of work that enters a queue's block, and keeps the method that leaves it.

    Args:
        queue: The queue.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._leave: Callable[..., Any]

    def __enter__(self) -> None:
        self._queue.__enter__()
        self._leave = self._queue.__exit__

    def __exit__(self, *raised: object) -> None:
        self._leave(*raised)

    async def __aenter__(self) -> None:
        await self._queue.__aenter__()
        self._leave = self._queue.__aexit__

    async def __aexit__(self, *raised: object) -> None:
        await self._leave(*raised)


class Stack(Unit):
    """A unit of work that enters a queue's block with an ExitStack."""

    async def __aenter__(self) -> None:
        await self._queue.__aenter__()
        stack = AsyncExitStack()
        stack.push_async_exit(self._queue)
        self._leave = stack.__aexit__


@BLOCKING
def test_unit_of_work_is_a_block_each_time_it_is_entered(dsn: str, backend: str) -> None:
    with PQ(dsn, backend=backend) as pq:
        pq.create()
        queue = pq["q"]
        unit = Unit(queue)
        for number in range(3):
            with suppress(Undone), unit:
                queue.put(number)
                raise Undone
        assert len(queue) == 0


@BLOCKING
def test_block_outlasts_the_exit_method_of_the_block_before(dsn: str, backend: str) -> None:
    with PQ(dsn, backend=backend) as pq:
        pq.create()
        queue = pq["q"]
        queue.__enter__()
        leave = queue.__exit__
        leave(None, None, None)
        queue.__enter__()
        leave = queue.__exit__
        queue.put(1)
        leave(Undone, Undone(), None)
        assert len(queue) == 0


@BLOCKING
def test_block_outlasts_the_exit_method_of_another_pqs_block(dsn: str, backend: str) -> None:
    with PQ(dsn, backend=backend) as pq, PQ(dsn, backend=backend) as other:
        pq.create()
        other["q"].__enter__()
        leave = other["q"].__exit__
        pq["q"].__enter__()
        leave(None, None, None)
        del leave
        pq["q"].put(1)
        pq["q"].__exit__(Undone, Undone(), None)
        assert len(pq["q"]) == 0


@BLOCKING
def test_block_outlasts_another_unit_of_work_that_looked_its_methods_up_before(dsn: str, backend: str) -> None:
    with PQ(dsn, backend=backend) as pq:
        pq.create()
        queue = pq["q"]

        def methods() -> tuple[Callable[..., Any], ...]:
            return queue.__enter__, queue.__exit__

        (enter, leave), others = methods(), methods()
        enter()
        del others
        queue.put(1)
        leave(Undone, Undone(), None)
        assert len(queue) == 0


@AWAITED
@pytest.mark.parametrize("make", [Unit, Stack])
def test_block_of_a_task_outlasts_a_unit_of_work_of_another_task(dsn: str, backend: str, make: type[Unit]) -> None:
    async def main() -> None:
        async with AsyncPQ(dsn, backend=backend) as pq:
            await pq.create()
            queue = pq["q"]
            first_is_in, second_is_in = asyncio.Event(), asyncio.Event()

            async def first() -> None:
                async with make(queue):
                    first_is_in.set()
                    await second_is_in.wait()

            task = asyncio.create_task(first())
            await first_is_in.wait()
            with suppress(Undone):
                async with make(queue):
                    second_is_in.set()
                    await task
                    del task
                    gc.collect()
                    await queue.put(1)
                    raise Undone
            assert await queue.count() == 0

    asyncio.run(main())


class Traced(AsyncQueue):
    """A queue with the same methods, so that a subclass may extend them."""

    async def __aenter__(self) -> Any:
        return await super().__aenter__()

    async def __aexit__(self, *raised: object) -> None:
        await super().__aexit__(*raised)


@AWAITED
@pytest.mark.parametrize("queue_class", [AsyncQueue, Traced])
def test_block_outlasts_the_error_of_the_block_before(dsn: str, backend: str, queue_class: type[AsyncQueue]) -> None:
    async def enter(queue: AsyncQueue) -> Any:
        return await queue.__aenter__()

    async def leave(queue: AsyncQueue, *raised: object) -> None:
        await queue.__aexit__(*(raised or [None] * 3))

    async def main() -> None:
        async with AsyncPQ(dsn, backend=backend, queue_class=queue_class) as pq:
            await pq.create()
            queue = pq["q"]
            cursor = await enter(queue)
            await cursor.execute("CREATE TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            await leave(queue)
            cursor = await enter(queue)
            await cursor.execute("INSERT INTO once VALUES (1), (1)")
            errors = []
            try:
                await leave(queue)  # the commit fails
            except DatabaseError as exc:
                errors.append(exc)  # its traceback keeps what the call had
            assert errors
            await enter(queue)
            errors.clear()
            gc.collect()
            await queue.put(1)
            await leave(queue, Undone, Undone(), None)
            assert await queue.count() == 0

    asyncio.run(main())


@AWAITED
def test_block_of_a_with_statement_outlasts_the_error_of_a_block_before(dsn: str, backend: str) -> None:
    async def main() -> None:
        async with AsyncPQ(dsn, backend=backend, queue_class=Traced) as pq:
            await pq.create()
            queue = pq["q"]
            errors = []
            async with queue as cursor:
                await cursor.execute("CREATE TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            try:
                async with queue as cursor:
                    await cursor.execute("INSERT INTO once VALUES (1), (1)")
            except DatabaseError as exc:
                errors.append(exc)
            assert errors
            with suppress(Undone):
                async with queue:
                    errors.clear()
                    gc.collect()
                    await queue.put(1)
                    raise Undone
            assert await queue.count() == 0

    asyncio.run(main())


# Interrupted before the block is left


class TimeLimit(Exception):
    """Raised by the handler of a signal."""


def interrupt(act: Callable[[], object]) -> None:
    """Run code that ends a block, and interrupt it just before the first line that does so."""

    def trace(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_name == "_leave" and frame.f_globals["__name__"].startswith("pqcore."):
            sys.settrace(before)
            raise TimeLimit

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(TimeLimit):
            act()
    finally:
        sys.settrace(before)
    gc.collect()  # a task and the traceback of its exception refer to each other


def in_with(queue: Any) -> None:
    with queue:
        queue.put(1)


def in_transaction(queue: Any) -> None:
    with queue.transaction():
        queue.put(1)


def in_stack(queue: Any) -> None:
    with ExitStack() as stack:
        stack.enter_context(queue)
        queue.put(1)


async def in_async_with(queue: Any) -> None:
    async with queue:
        await queue.put(1)


async def in_async_transaction(queue: Any) -> None:
    async with queue.transaction():
        await queue.put(1)


async def in_async_stack(queue: Any) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(queue)
        await queue.put(1)


@BLOCKING
@pytest.mark.parametrize("act", [in_with, in_transaction, in_stack])
def test_block_ends_with_a_statement_that_is_interrupted(dsn: str, backend: str, act: Callable[[Any], None]) -> None:
    with PQ(dsn, backend=backend, max_connections=1, pool_timeout=1) as pq:
        pq.create()
        interrupt(lambda: act(pq["q"]))
        with PQ(dsn, backend=backend) as other:
            assert len(other["q"]) == 0
            pq["q"].put(2)
            assert len(other["q"]) == 1


@AWAITED
@pytest.mark.parametrize("act", [in_async_with, in_async_transaction, in_async_stack])
def test_block_ends_with_a_statement_of_a_task_that_is_interrupted(
    dsn: str, backend: str, act: Callable[[Any], Awaitable[None]]
) -> None:
    loop = asyncio.new_event_loop()
    pq = AsyncPQ(dsn, backend=backend, max_connections=1, pool_timeout=1)
    try:
        loop.run_until_complete(pq.create())
        interrupt(lambda: loop.run_until_complete(act(pq["q"])))
        assert loop.run_until_complete(pq["q"].count()) == 0  # over its only connection, which the block no longer uses
    finally:
        loop.run_until_complete(pq.close())
        loop.close()


class ClosesAsItIsRead(Mapping[str, Any]):
    """Options for a cursor; when they are read, the connection is closed, as a watchdog may do at any moment."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[str]:
        self._connection.close()
        return iter(())


@pytest.mark.parametrize("driver", [psycopg2, psycopg], ids=["psycopg2", "psycopg"])
def test_block_whose_connection_is_closed_as_it_begins_raises_connection_lost(dsn: str, driver: Any) -> None:
    connection = driver.connect(dsn)
    pq = PQ(connection)
    pq.create()
    queue = pq["q"]
    queue.cursor_kwargs = ClosesAsItIsRead(connection)
    with pytest.raises(ConnectionLost), queue:
        pass
