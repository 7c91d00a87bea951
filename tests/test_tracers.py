"""Connections and pools inside proxies, as tracers make them: pqcore accepts every proxy that the driver accepts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg
import psycopg2
import psycopg2.pool
import psycopg_pool
import pytest
import sqlalchemy
import wrapt
from django.utils.functional import SimpleLazyObject
from sqlalchemy.orm import Session
from werkzeug.local import LocalProxy

from pqcore import PQ, AsyncPQ
from pqcore.backend import PROXIES, bare
from pqcore.errors import ConfigurationError, UnknownBackend

TRIAL = Path(__file__).with_name("traced_process.py")
BLOCKING = ("psycopg2 connection=", "psycopg2 given", "psycopg connection=", "psycopg given")
EVERYWHERE = (*BLOCKING, "psycopg2 pool", "psycopg pool", "psycopg async connection=", "psycopg async pool")
SEEN: dict[str, tuple[str, ...]] = {
    "datadog": (*EVERYWHERE, "asyncpg connection=", "asyncpg pool"),
    "xray": (),
    "elastic": (),
    "dbapi": BLOCKING,  # it wraps what psycopg.connect() returns, and no other connection
    "opentelemetry": (),  # its cursors are not of a class of pqcore's
    "proxies": EVERYWHERE,
}
"""Where each tracer records pqcore's statements, for tracers that can be asked."""


class Forgetful:
    """A proxy that forwards every read of an attribute, but no assignment."""

    def __init__(self, inner: Any) -> None:
        self.__wrapped__ = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


ObjectProxy: Any = wrapt.ObjectProxy  # generic since wrapt 2


class Stingy(ObjectProxy):  # type: ignore[misc]
    """A proxy whose cursors cannot be chosen."""

    def cursor(self) -> Any:
        return self.__wrapped__.cursor()


class Counting(ObjectProxy):  # type: ignore[misc]
    """A proxy around a pool whose connections are proxies, too: a new one each time."""

    def getconn(self) -> Any:
        return wrapt.ObjectProxy(self.__wrapped__.getconn())

    def putconn(self, connection: Any, **options: Any) -> None:
        assert isinstance(connection, wrapt.ObjectProxy)
        self.__wrapped__.putconn(bare(connection), **options)


PROXIED: dict[str, Callable[[Any], Any]] = {
    "wrapt": wrapt.ObjectProxy,
    "nested": lambda inner: wrapt.ObjectProxy(Forgetful(wrapt.ObjectProxy(inner))),
    "forgetful": Forgetful,
    "stingy": Stingy,
    "LocalProxy": lambda inner: LocalProxy(lambda: inner),
    "SimpleLazyObject": lambda inner: SimpleLazyObject(lambda: inner),
}


@pytest.fixture(scope="module")
def dsn(pqcore_server: str) -> Iterator[str]:
    """The DSN of a database for all these tests."""
    name = f"test_tracers_{os.getpid()}"
    with psycopg.connect(pqcore_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        made = urlunsplit(urlsplit(pqcore_server)._replace(path=f"/{name}"))
        with PQ(made) as pq:
            pq.create()
        yield made
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made["q"].clear()
        yield made


@pytest.mark.parametrize("tracer", SEEN)
def test_put_and_get_work_on_traced_connections_and_pools(pq: PQ, dsn: str, tracer: str) -> None:
    done = subprocess.run(
        [sys.executable, str(TRIAL), tracer, dsn], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    wrong, statements = json.loads(done.stdout.splitlines()[-1])
    assert wrong == []
    unseen = [name for name in SEEN[tracer] if not any("INSERT INTO" in each for each in statements[name])]
    assert unseen == []


@pytest.mark.parametrize("kind", PROXIED)
@pytest.mark.parametrize("driver", [psycopg, psycopg2])
def test_put_on_a_proxied_connection_joins_its_transaction(pq: PQ, dsn: str, driver: Any, kind: str) -> None:
    inner = driver.connect(dsn)
    proxy, queue = PROXIED[kind](inner), pq["q"]
    queue.put("undone", connection=proxy)
    inner.rollback()
    queue.put("kept", connection=proxy)
    assert len(queue) == 0
    inner.commit()
    job = queue.get()
    assert job is not None
    assert job.data == "kept"
    inner.close()


@pytest.mark.parametrize("kind", PROXIED)
@pytest.mark.parametrize("driver", [psycopg, psycopg2])
def test_queue_on_a_proxied_connection_commits_and_leaves_it_unchanged(
    pq: PQ, dsn: str, driver: Any, kind: str
) -> None:
    inner = driver.connect(dsn)
    queue = PQ(PROXIED[kind](inner))["q"]
    queue.put(1)
    with queue as cursor:
        cursor.execute("SELECT 2")
        assert cursor.fetchone() == (2,)
    assert len(pq["q"]) == 1
    assert not inner.autocommit
    job = queue.get(timeout=0.05)
    assert job is not None
    inner.close()


@pytest.mark.parametrize("kind", PROXIED)
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_put_on_a_proxied_connection_joins_its_transaction(pq: PQ, dsn: str, driver: str, kind: str) -> None:
    async def main() -> None:
        inner: Any = await (asyncpg.connect(dsn) if driver == "asyncpg" else psycopg.AsyncConnection.connect(dsn))
        proxy = PROXIED[kind](inner)
        async with AsyncPQ(dsn) as other:
            await inner.execute("BEGIN")
            await other["q"].put("undone", connection=proxy)
            await inner.execute("ROLLBACK")
            await inner.execute("BEGIN")
            await other["q"].put("kept", connection=proxy)
            assert len(pq["q"]) == 0
            await inner.execute("COMMIT")
        job = await AsyncPQ(proxy)["q"].get()
        assert job is not None
        assert job.data == "kept"
        await inner.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [wrapt.ObjectProxy, Counting])
def test_proxied_pool_is_accepted(pq: PQ, dsn: str, kind: Callable[[Any], Any]) -> None:
    plain = psycopg2.pool.ThreadedConnectionPool(1, 2, dsn)
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=2, open=True) as pool:
        for given in (pool, plain):
            queue = PQ(kind(given))["q"]
            for number in range(3):
                queue.put(number)
                job = queue.get(timeout=0.05)
                assert job is not None
            assert queue.get(timeout=0.05) is None  # listens on a connection outside of the pool
            assert queue.engine.listener._session is not None  # type: ignore[union-attr]
        assert pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"]
    assert plain.getconn() is not plain.getconn()  # both are back
    plain.closeall()


def test_proxied_async_pool_is_accepted(pq: PQ, dsn: str) -> None:
    async def main() -> None:
        for proxy in (wrapt.ObjectProxy, Forgetful):
            pool = proxy(asyncpg.create_pool(dsn, min_size=1, max_size=2))
            other = AsyncPQ(pool)
            await other["q"].put(1)
            assert await other["q"].get(timeout=0.05) is not None
            assert await other["q"].get(timeout=0.05) is None
            await other.close()

    asyncio.run(main())


def test_proxied_sqlalchemy_session_is_accepted(pq: PQ, dsn: str) -> None:
    engine = sqlalchemy.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"), poolclass=sqlalchemy.NullPool)
    with Session(engine) as session:
        for kind in ("wrapt", "LocalProxy"):
            pq["q"].put(kind, connection=PROXIED[kind](session))
        session.commit()
    assert [job.data for job in pq["q"].get_many(3)] == ["wrapt", "LocalProxy"]


def test_proxy_of_an_unknown_type_is_refused(pq: PQ) -> None:
    endless = Forgetful(None)
    endless.__wrapped__ = endless
    for target in (wrapt.ObjectProxy(object()), LocalProxy(lambda: 1), endless):
        with pytest.raises(ConfigurationError, match="not a connection"):
            pq["q"].put(1, connection=target)
        with pytest.raises(ConfigurationError, match="not a DSN"):
            PQ(target)
    assert len(pq["q"]) == 0


def test_proxy_of_a_connection_of_the_other_face_is_refused(dsn: str) -> None:
    with psycopg.connect(dsn) as connection, pytest.raises(UnknownBackend, match="is blocking: give it to PQ"):
        AsyncPQ(wrapt.ObjectProxy(connection))


def test_proxy_nesting_is_bounded() -> None:
    target: Any = object()
    inner = target
    for _ in range(PROXIES):
        target = Forgetful(target)
    assert bare(target) is inner
    assert bare(Forgetful(target)) is not inner
