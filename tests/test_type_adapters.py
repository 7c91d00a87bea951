"""Connections and processes whose applications register type adapters, typecasters or codecs of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg2 import extensions

from pqcore import PQ, AsyncPQ, tasks
from pqcore.worker import Worker

WHEN = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
DATA = {"a": [1, "é", None]}


def use(pq: PQ) -> None:
    """Send and read a value of every type."""
    pq.create()
    queue = pq["q"]
    job_id = queue.put(DATA, schedule_at="0s", expected_at=WHEN)
    assert type(int(job_id)) is int
    assert [job.data for job in queue.peek()] == [DATA]
    job = queue.get(block=False)
    assert job is not None
    assert (job.id, job.data, job.expected_at) == (job_id, DATA, WHEN)
    assert all(type(int(each)) is int for each in queue.put_many([1, 2, 3]))
    leased = queue.lease_many(2, 60)
    leased[0].nack()
    queue.ack_many(leased[1:])
    assert (queue.count(), queue.stats().ready) == (2, 2)
    again = queue.lease(60)
    assert again is not None
    again.extend(60)
    again.ack()
    with queue:
        last = queue.get(block=False)
    assert last is not None
    assert last.data == 3
    coded = pq.queue("coded", serializer="msgpack")  # bytes
    coded.put(DATA)
    assert [job.data for job in coded.get_many(1)] == [DATA]
    assert queue.inspect(job_id).expected_at == WHEN
    assert queue.get(timeout=0.01) is None


async def use_async(pq: AsyncPQ) -> None:
    """`use`, awaited."""
    await pq.create()
    queue = pq["q"]
    job_id = await queue.put(DATA, schedule_at="0s", expected_at=WHEN)
    assert type(int(job_id)) is int
    job = await queue.get(block=False)
    assert job is not None
    assert (job.id, job.data, job.expected_at) == (job_id, DATA, WHEN)
    await queue.put_many([1, 2, 3])
    leased = await queue.lease_many(2, 60)
    await leased[0].nack()
    await queue.ack_many(leased[1:])
    assert (await queue.count(), (await queue.stats()).ready) == (2, 2)
    again = await queue.lease(60)
    assert again is not None
    await again.extend(60)
    await again.ack()
    async with queue:
        last = await queue.get(block=False)
    assert last is not None
    assert last.data == 3
    assert (await queue.inspect(job_id)).expected_at == WHEN


def run_tasks(dsn: str, backend: str) -> list[int]:
    """Run tasks in a worker with its own connections; return the arguments of their calls."""
    seen: list[int] = []
    pq = tasks.PQ(dsn, backend=backend)
    pq.create()
    queue = pq["tasks"]

    @queue.task(keep_result="1h")
    def note(job_id: int, number: int) -> int:
        seen.append(number)
        return number + 1

    with pq:
        ids = [note(number) for number in range(3)]
        asyncio.run(Worker(queue, burst=True).run())
        assert [queue.result(each, timeout=0) for each in ids] == [1, 2, 3]
        assert queue.stats().leased == 0
    return sorted(seen)


# psycopg

READ = (
    "int8",
    "int4",
    "text",
    "timestamptz",
    "timestamp",
    "float8",
    "bool",
    "json",
    "jsonb",
    "bytea",
    "varchar",
    "name",
)


class AsBytes(Loader):
    """Returns every type as the server sent it."""

    def load(self, data: Any) -> bytes:
        return bytes(data)


class Shouting(Dumper):
    """Sends a value in capitals."""

    oid = 25

    def dump(self, obj: Any) -> bytes:
        return str(obj).upper().encode()


class Jsonb(Dumper):
    """Sends a value as JSON."""

    oid = 3802

    def dump(self, obj: Any) -> bytes:
        return json.dumps(obj, default=str).encode()


def disturb_psycopg(adapters: AdaptersMap) -> None:
    """Register an adapter for every type that can be read or sent."""
    for kind in READ:
        adapters.register_loader(kind, AsBytes)
    for text in (str, bytes):
        adapters.register_dumper(text, Shouting)
    for other in (dict, list, int, float, datetime, bool):
        adapters.register_dumper(other, Jsonb)


def test_adapters_of_a_psycopg_connection_change_no_job(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        disturb_psycopg(connection.adapters)
        use(PQ(connection))
        with tasks.PQ(dsn) as pq:
            pq["q"].put("lent", connection=connection)
            assert connection.execute("SELECT 1::int8").fetchone() == (b"1",)  # theirs, still


def test_adapters_of_an_async_psycopg_connection_change_no_job(dsn: str) -> None:
    async def scenario() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            disturb_psycopg(connection.adapters)
            await use_async(AsyncPQ(connection))

    asyncio.run(scenario())


@contextmanager
def kept_psycopg() -> Iterator[None]:
    """Put psycopg's process-wide adapters back."""
    kept = AdaptersMap(psycopg.adapters)
    try:
        yield
    finally:
        for name in ("_dumpers", "_dumpers_by_oid", "_loaders"):
            setattr(psycopg.adapters, name, getattr(kept, name))


def test_process_wide_adapters_of_psycopg_change_no_job(dsn: str) -> None:
    with kept_psycopg():
        disturb_psycopg(psycopg.adapters)
        with PQ(dsn, backend="psycopg") as pq:
            use(pq)
        assert run_tasks(dsn, "psycopg") == [0, 1, 2]


# psycopg2

TYPECASTERS = (20, 23, 21, 25, 19, 1043, 1184, 1114, 701, 16, 17, 114, 1016, 1007, 1009)


class Quoted:
    """Sends a value in capitals."""

    def __init__(self, value: object) -> None:
        self.value = value

    def getquoted(self) -> bytes:
        return ("'" + str(self.value).replace("'", "''").upper() + "'").encode()


def as_text(value: Any, cursor: object) -> Any:
    return value


def test_typecasters_of_a_psycopg2_connection_change_no_job(dsn: str) -> None:
    connection = psycopg2.connect(dsn)
    extensions.register_type(extensions.new_type(TYPECASTERS, "TEXT", as_text), connection)
    try:
        use(PQ(connection))
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1::int8")
            assert cursor.fetchone() == ("1",)  # theirs, still
    finally:
        connection.close()


@contextmanager
def kept_psycopg2() -> Iterator[None]:
    """Put psycopg2's process-wide adapters and typecasters back."""
    registries: tuple[Any, ...] = (extensions.adapters, extensions.string_types)
    kept = [dict(registry) for registry in registries]
    try:
        yield
    finally:
        for registry, before in zip(registries, kept, strict=True):
            registry.clear()
            registry.update(before)


@pytest.mark.parametrize("adapter", [Quoted, psycopg2.extensions.AsIs])
def test_process_wide_adapters_of_psycopg2_change_no_job(dsn: str, adapter: Callable[[Any], Any]) -> None:
    with kept_psycopg2(), PQ(dsn, backend="psycopg2") as pq:
        pq.create()  # some adapters are registered after the first statement
        extensions.register_type(extensions.new_type(TYPECASTERS, "TEXT", as_text))
        for kind in (dict, list, str, int, float, datetime, bool, bytes):
            extensions.register_adapter(kind, adapter)
        use(pq)
        assert run_tasks(dsn, "psycopg2") == [0, 1, 2]


# asyncpg


def test_codecs_of_an_asyncpg_connection_change_no_job(dsn: str) -> None:
    async def scenario() -> None:
        connection = await asyncpg.connect(dsn)
        for kind in READ:
            await connection.set_type_codec(
                kind,
                schema="pg_catalog",
                encoder=lambda value: str(value).upper(),
                decoder=bytes.fromhex,
                format="text",
            )
        try:
            await use_async(AsyncPQ(connection))
        finally:
            await connection.close()

    asyncio.run(scenario())


def test_codecs_of_an_asyncpg_connection_keep_ids_distinct(dsn: str) -> None:
    async def scenario() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.set_type_codec("int8", schema="pg_catalog", encoder=str, decoder=repr, format="text")
        pq = AsyncPQ(connection)
        await pq.create()
        await connection.execute("ALTER SEQUENCE queue_id_seq INCREMENT BY 2")
        try:
            ids = await pq["q"].put_many([1, 2, 3])
            assert [type(each) for each in ids] == [int, int, int]
            assert ids == [ids[0], ids[0] + 2, ids[0] + 4]
        finally:
            await connection.close()

    asyncio.run(scenario())


def test_codecs_of_an_asyncpg_pool_change_no_job(dsn: str) -> None:
    async def prepare(connection: Any) -> None:
        for kind in READ:
            await connection.set_type_codec(kind, schema="pg_catalog", encoder=repr, decoder=repr, format="text")

    async def scenario() -> None:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=2, init=prepare) as pool, AsyncPQ(pool=pool) as pq:
            await use_async(pq)
            async with pool.acquire() as connection:
                await pq["q"].put(1, connection=connection)
                assert await connection.fetchval("SELECT 1::int8") == "'1'"  # theirs, still

    asyncio.run(scenario())


def refuse(value: Any) -> Any:
    """Encode or decode nothing."""
    raise AssertionError(value)


def test_codecs_of_an_asyncpg_pool_change_no_array_of_numbers(dsn: str) -> None:
    async def prepare(connection: Any) -> None:
        for kind in ("int8", "int4", "bool"):
            await connection.set_type_codec(kind, schema="pg_catalog", encoder=refuse, decoder=refuse, format="text")

    async def scenario() -> None:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=12, init=prepare) as pool:
            pq = tasks.AsyncPQ(pool=pool)
            await pq.create()
            queue, other = pq["q"], pq["other"]

            @queue.task(limit=2, group=lambda number: f"group {number % 2}")
            async def note(job_id: int, number: int) -> int:
                assert number < 6, "the job fails"
                return number

            batch = await queue.batch(*(note.call(number) for number in range(6)), then=note.call(0))
            letter = await note(6)
            await Worker(queue, burst=True).run()
            assert [await job.status() for job in batch.jobs] == ["done"] * 6
            assert await queue.dead.retry(letter) == 1
            assert await queue.move(other, [letter]) == 1
            jobs = await other.lease_many(5, 60)
            assert await other.ack_many(jobs) == []

    asyncio.run(scenario())
