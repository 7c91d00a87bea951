"""How often pqcore goes to the server, counted on the wire, for each built-in driver and face.

What the user runs by the driver's own means, through the block's cursor or its connection, is within the block.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg
import pytest

from pqcore import PQ, AsyncPQ, Dedup, NewJob
from pqcore.db.runtime import run_sync
from pqcore.testing.proxy import Proxy
from pqcore.testing.traffic import Traffic

DRIVERS = ("psycopg2", "psycopg", "psycopg-async", "asyncpg")
WARM = 8
"""Calls of an operation until its statements are prepared."""
CALLS = 5


class Boom(Exception):
    """A failure of the user's."""


@dataclass
class Wire:
    """A queue over one driver, through a proxy that counts messages; a blocking queue is called without awaiting.

    Attributes:
        driver: One of `DRIVERS`.
        dsn: The server's.
        proxy: Counts.
    """

    driver: str
    dsn: str
    proxy: Proxy

    @property
    def blocking(self) -> bool:
        return self.driver in ("psycopg2", "psycopg")

    def run(self, scenario: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        """Run a scenario with a queue."""

        async def ran() -> None:
            face: Any = PQ if self.blocking else AsyncPQ
            pq = face(self.proxy.dsn, backend=self.driver.partition("-")[0], retention="delete", max_connections=1)
            try:
                await done(pq.create())
                await scenario(pq["jobs"])
            finally:
                await done(pq.close())

        if self.blocking:
            run_sync(ran())
        else:
            asyncio.run(ran())

    @asynccontextmanager
    async def block(self, queue: Any) -> AsyncIterator[Any]:
        """Enter and leave ``with queue``, and return the object that the block gives to the user."""
        if self.blocking:
            with queue as handle:
                yield handle
        else:
            async with queue as handle:
                yield handle

    async def user(self, handle: Any, sql: str, by: str) -> None:
        """Run a statement by the driver's own means.

        Args:
            handle: The object that the block gave.
            sql: The statement.
            by: ``cursor``, ``connection``, or ``another cursor`` of the same connection.
        """
        if self.driver == "asyncpg":
            await (handle.execute(sql) if by == "cursor" else handle.fetch(sql))
        elif by == "cursor":
            await done(handle.execute(sql))
        elif by == "connection" and self.driver != "psycopg2":  # psycopg2's connections have no execute()
            await done(handle.connection.execute(sql))
        else:
            await done(handle.connection.cursor().execute(sql))

    async def counted(self, call: Callable[[], Awaitable[None]]) -> Traffic:
        """Return the messages of `CALLS` calls, after some calls that warm up."""
        for _ in range(WARM):
            await call()
        before = self.proxy.traffic()
        for _ in range(CALLS):
            await call()
        return self.proxy.traffic() - before


async def done(result: Any) -> Any:
    """Return a result, awaited if necessary."""
    return await result if inspect.isawaitable(result) else result


@pytest.fixture(params=DRIVERS)
def wire(request: pytest.FixtureRequest, dsn: str) -> Iterator[Wire]:
    proxy = Proxy(dsn)
    yield Wire(request.param, dsn, proxy)
    proxy.close()


def numbers(dsn: str) -> list[int]:
    """Return the content of the user's table as another session sees it."""
    with psycopg.connect(dsn) as connection:
        return [number for [number] in connection.execute("SELECT number FROM orders ORDER BY number")]


def orders(dsn: str) -> None:
    """Make the user's table."""
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE orders (number int)")


# Blocks of one or two statements: the round trips over each driver, and the statements, which are always the same.
BLOCKS = {
    "get": ({"psycopg2": 3, "psycopg": 2, "psycopg-async": 2, "asyncpg": 3}, 3),
    "put": ({"psycopg2": 3, "psycopg": 2, "psycopg-async": 2, "asyncpg": 4}, 4),
    "put, put": ({"psycopg2": 4, "psycopg": 3, "psycopg-async": 3, "asyncpg": 6}, 6),
    "user, put": ({"psycopg2": 4, "psycopg": 4, "psycopg-async": 4, "asyncpg": 5}, 5),
    "get, user": ({"psycopg2": 4, "psycopg": 3, "psycopg-async": 3, "asyncpg": 4}, 4),
}


@pytest.mark.parametrize("steps", BLOCKS)
def test_block_makes_as_few_round_trips_as_its_driver_allows(wire: Wire, steps: str) -> None:
    expected, statements = BLOCKS[steps]

    async def scenario(queue: Any) -> None:
        await done(queue.put_many([1] * 40))

        async def call() -> None:
            async with wire.block(queue) as handle:
                for step in steps.split(", "):
                    if step == "user":
                        await wire.user(handle, "SELECT 1", "cursor")
                    else:
                        await done(queue.put(1) if step == "put" else queue.get(block=False))

        found = await wire.counted(call)
        assert (found.round_trips, found.statements, found.commits) == (
            expected[wire.driver] * CALLS,
            statements * CALLS,
            CALLS,
        )

    wire.run(scenario)


@pytest.mark.parametrize("operation", ["put", "put_many", "get", "get_many"])
def test_operation_outside_of_a_block_is_one_round_trip(wire: Wire, operation: str) -> None:
    async def scenario(queue: Any) -> None:
        await done(queue.put_many([1] * 200))
        calls = {
            "put": lambda: queue.put(1),
            "put_many": lambda: queue.put_many([1] * 10),
            "get": lambda: queue.get(block=False),
            "get_many": lambda: queue.get_many(10),
        }

        async def call() -> None:
            await done(calls[operation]())

        found = await wire.counted(call)
        assert (found.round_trips, found.statements, found.commits) == (CALLS, CALLS, CALLS)

    wire.run(scenario)


OWN_OPTIONS = {"none": 1, "free": 7, "taken": 8, "replaced": 9}
"""Keys of jobs with options of their own, and the statements of one call, with BEGIN, SAVEPOINT, RELEASE and COMMIT."""


def test_jobs_with_own_options_take_a_fixed_number_of_statements(wire: Wire) -> None:
    places = count()

    def jobs(number: int, keys: str) -> list[NewJob]:
        def dedup(n: int) -> Dedup | None:
            key = str(next(places) if keys == "free" else n)
            return Dedup(f"{keys} {key}", ["1h", "finished"][n % 2], "replace" if keys == "replaced" else "keep")

        chosen = [None if keys == "none" else dedup(n) for n in range(number)]
        return [NewJob(n, "1h", priority=n, group=str(n), headers={"n": n}, dedup=key) for n, key in enumerate(chosen)]

    async def scenario(queue: Any) -> None:
        task = queue.task()(lambda n: None)
        for keys, expected in OWN_OPTIONS.items():
            await done(queue.put_many(jobs(300, keys)))
            for number in (10, 300):
                before = wire.proxy.traffic()
                await done(queue.put_many(jobs(number, keys)))
                assert (wire.proxy.traffic() - before).statements == expected
        for number in (10, 300):
            calls = [task.options(priority=n, group=str(n)).call(n) for n in range(number)]
            before = wire.proxy.traffic()
            await done(queue.put_calls(*calls))
            assert (wire.proxy.traffic() - before).statements == 3  # with BEGIN and COMMIT

    wire.run(scenario)


@pytest.mark.parametrize("by", ["cursor", "connection", "another cursor"])
@pytest.mark.parametrize("first", ["user", "put", "get"])
def test_statement_of_the_users_is_undone_with_its_block(wire: Wire, first: str, by: str) -> None:
    orders(wire.dsn)

    async def scenario(queue: Any) -> None:
        await done(queue.put_many([1, 2, 3]))
        for warm in range(3):
            with pytest.raises(Boom):  # noqa: PT012
                async with wire.block(queue) as handle:
                    if first != "user":
                        await done(queue.put(9) if first == "put" else queue.get(block=False))
                    await wire.user(handle, f"INSERT INTO orders VALUES ({warm})", by)
                    await done(queue.put(9))
                    raise Boom
        assert await done(queue.count()) == 3

    wire.run(scenario)
    assert numbers(wire.dsn) == []


def test_user_may_roll_back_a_transaction_that_a_put_began(wire: Wire) -> None:
    async def scenario(queue: Any) -> None:
        for _ in range(3):
            async with wire.block(queue) as handle:
                await done(queue.put(1))
                await wire.user(handle, "ROLLBACK", "cursor")
        assert await done(queue.count()) == 0

    wire.run(scenario)


def test_put_of_awkward_data_in_a_block_arrives_unchanged(wire: Wire) -> None:
    data = [
        "it's",
        "100% %s %(a)s",
        "$1 $2",
        'back\\slash "quoted"',
        "\u00e9\u4e2d\U0001f600",
        "a;b--c",
        {"k": [None, 1.5]},
    ]

    async def scenario(queue: Any) -> None:
        for _ in range(3):
            for each in data:
                async with wire.block(queue):
                    await done(queue.put(each))
            for each in data:
                async with wire.block(queue):
                    assert (await done(queue.get(block=False))).data == each

    wire.run(scenario)


def test_block_works_after_the_prepared_statements_are_gone(wire: Wire) -> None:
    # asyncpg still needs the statements that it prepared.
    gone = "DISCARD PLANS" if wire.driver == "asyncpg" else "DEALLOCATE ALL"

    async def scenario(queue: Any) -> None:
        for number in range(6):
            async with wire.block(queue):
                await done(queue.put(number))
            async with wire.block(queue):
                assert (await done(queue.get(block=False))).data == number
            async with wire.block(queue) as handle:
                await wire.user(handle, gone, "cursor")
        assert await done(queue.count()) == 0

    wire.run(scenario)


def test_proxy_delays_pipelined_messages_without_queueing_them(dsn: str) -> None:
    proxy = Proxy(dsn)
    proxy.delay(0.1)
    try:
        with psycopg.connect(proxy.dsn, autocommit=True) as connection:
            began = time.monotonic()
            connection.execute("SELECT 1")
            assert time.monotonic() - began >= 0.1
            before, began = proxy.traffic(), time.monotonic()
            with connection.pipeline():
                for _ in range(30):
                    connection.execute("SELECT 1")
            taken = time.monotonic() - began
            assert 0.1 <= taken < 2.0, "30 statements one after the other take 3 s"
            passed = proxy.traffic() - before
            assert (passed.statements, passed.commits) == (30, 1)
    finally:
        proxy.close()


def test_traffic_counts_committed_and_uncommitted_statements(dsn: str) -> None:
    proxy = Proxy(dsn)
    try:
        with psycopg.connect(proxy.dsn, autocommit=True) as connection:
            before = proxy.traffic()
            connection.execute("SELECT 1")
            connection.execute("BEGIN; SELECT 1; COMMIT")
            connection.execute("BEGIN; SELECT 1; ROLLBACK")
            with pytest.raises(psycopg.Error):
                connection.execute("SELECT 1 / 0")
            passed = proxy.traffic() - before
            assert (passed.round_trips, passed.statements, passed.commits) == (4, 8, 2)
            assert passed.sent > 0
            assert passed.received > 0
    finally:
        proxy.close()
