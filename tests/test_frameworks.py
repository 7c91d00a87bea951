"""Puts in the transactions of SQLAlchemy's sessions and Django's connections."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pqcore import PQ, AsyncPQ
from pqcore.errors import ConfigurationError, TransactionAborted
from pqcore.testing.undo import Undo

NOTE = sqlalchemy.text("INSERT INTO notes VALUES ('written')")


def url(dsn: str, driver: str) -> str:
    return f"postgresql+{driver}://" + dsn.partition("://")[2]


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        with made["q"] as cursor:
            cursor.execute("CREATE TABLE notes (note text)")
        yield made


def notes(pq: PQ) -> int:
    with pq["q"] as cursor:
        return int(cursor.execute("SELECT count(*) FROM notes").fetchone()[0])


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("kind", ["session", "scoped_session", "connection"])
def test_sqlalchemy_commits_and_rolls_back_the_job(pq: PQ, dsn: str, driver: str, kind: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, driver), poolclass=sqlalchemy.NullPool)
    makers: dict[str, Any] = {
        "session": lambda: Session(engine),
        "scoped_session": scoped_session(sessionmaker(engine)),
        "connection": engine.connect,
    }
    target = makers[kind]()
    queue = pq["q"]
    queue.put("rolled back", connection=target)
    target.execute(NOTE)
    target.rollback()
    assert (queue.count(), notes(pq)) == (0, 0)
    queue.put("committed", connection=target)
    queue.put_many(["and", "more"], connection=target)
    target.execute(NOTE)
    assert queue.count() == 0
    target.commit()
    assert notes(pq) == 1
    assert [job.data for job in queue.get_many(10)] == ["committed", "and", "more"]
    target.close()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("kind", ["session", "scoped_session", "connection"])
def test_sqlalchemy_async_commits_and_rolls_back_the_job(pq: PQ, dsn: str, driver: str, kind: str) -> None:
    async def scenario() -> None:
        engine = create_async_engine(url(dsn, driver), poolclass=sqlalchemy.NullPool)
        target: Any = AsyncSession(engine)
        if kind == "scoped_session":
            target = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        if kind == "connection":
            target = await engine.connect()
        async with AsyncPQ(dsn, backend=driver) as apq:
            queue = apq["q"]
            await queue.put("rolled back", connection=target)
            await target.execute(NOTE)
            await target.rollback()
            assert await queue.count() == 0
            await queue.put("committed", connection=target)
            await target.execute(NOTE)
            assert await queue.count() == 0
            await target.commit()
            job = await queue.get()
            assert job is not None
            assert job.data == "committed"
        await target.close()
        await engine.dispose()

    asyncio.run(scenario())
    assert notes(pq) == 1


SYNC_TARGETS: dict[str, Callable[[sqlalchemy.Engine], Any]] = {
    "connection": lambda engine: engine.connect(),
    "connection_with_options": lambda engine: engine.connect().execution_options(isolation_level="REPEATABLE READ"),
    "session": Session,
    "scoped_session": lambda engine: scoped_session(sessionmaker(engine)),
    "session_on_connection": lambda engine: Session(engine.connect()),
}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("kind", SYNC_TARGETS)
def test_put_as_first_statement_follows_sqlalchemys_commit_and_rollback(
    pq: PQ, dsn: str, driver: str, kind: str
) -> None:
    engine = sqlalchemy.create_engine(url(dsn, driver), poolclass=sqlalchemy.NullPool)
    target = SYNC_TARGETS[kind](engine)
    queue = pq["q"]
    try:
        queue.put("rolled back", connection=target)
        target.rollback()
        target.execute(NOTE)
        target.commit()
        assert (queue.count(), notes(pq)) == (0, 1)
        queue.put("first", connection=target)
        assert queue.count() == 0
        target.commit()
        assert queue.count() == 1
        queue.put_many(["second", "third"], connection=target)
        target.commit()
        assert queue.count() == 3
        queue.put("closed", connection=target)
    finally:
        target.close()
        engine.dispose()
    assert [job.data for job in queue.get_many(10)] == ["first", "second", "third"]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_ack_as_first_statement_follows_sqlalchemys_commit_and_rollback(pq: PQ, dsn: str, driver: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, driver), poolclass=sqlalchemy.NullPool)
    queue = pq["q"]
    queue.put_many([1, 2, 3])
    jobs = queue.lease_many(3, 60)
    with engine.connect() as connection:
        queue.ack(jobs[0], connection=connection)
        connection.rollback()
        assert queue.stats().leased == 3
        queue.ack(jobs[0], connection=connection)
        connection.commit()
        assert queue.stats().leased == 2
        queue.ack_many(jobs[1:], connection=connection)
        connection.commit()
    assert queue.stats().leased == 0


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_put_as_first_statement_ends_with_every_sqlalchemy_block(pq: PQ, dsn: str, driver: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, driver), poolclass=sqlalchemy.NullPool)
    queue = pq["q"]
    with engine.begin() as connection:
        queue.put("engine.begin", connection=connection)
    with engine.connect() as connection, connection.begin():
        queue.put("connection.begin", connection=connection)
    with engine.connect() as connection:
        with connection.begin_nested():
            queue.put("savepoint", connection=connection)
        with suppress(ZeroDivisionError), connection.begin_nested():
            queue.put("savepoint rolled back", connection=connection)
            raise ZeroDivisionError
        connection.commit()
    with engine.connect() as connection:
        queue.put("before begin", connection=connection)
        with connection.begin():
            queue.put("after begin", connection=connection)
            with pytest.raises(sqlalchemy.exc.InvalidRequestError):
                connection.begin()
        with connection.begin():
            queue.put("second block", connection=connection)
    with engine.connect() as connection:
        queue.put("taken over and rolled back", connection=connection)
        with suppress(ZeroDivisionError), connection.begin():
            raise ZeroDivisionError
        queue.put("rolled back by hand", connection=connection)
        connection.rollback()
        with connection.begin():
            connection.execute(NOTE)
    expected = ["engine.begin", "connection.begin", "savepoint", "before begin", "after begin", "second block"]
    assert [job.data for job in queue.get_many(10)] == expected
    assert notes(pq) == 1
    with engine.connect() as connection, connection.begin() as ended:
        ended.rollback()
        with pytest.raises(sqlalchemy.exc.InvalidRequestError):
            queue.put("after the end of its block", connection=connection)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_put_on_a_sqlalchemy_engine_at_autocommit_commits_by_itself(pq: PQ, dsn: str, driver: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, driver), isolation_level="AUTOCOMMIT")
    queue = pq["q"]
    with engine.connect() as connection:
        queue.put("kept", connection=connection)
        assert queue.count() == 1
        connection.rollback()
    with Session(engine) as session:
        queue.put("kept too", connection=session)
    engine.dispose()
    assert queue.count() == 2


def test_unclosed_sqlalchemy_connection_returns_to_its_pool_after_a_put(pq: PQ, dsn: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"), poolclass=sqlalchemy.QueuePool)
    connection = engine.connect()
    pq["q"].put("dropped", connection=connection)
    connection.rollback()
    gc.disable()
    try:
        del connection
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    finally:
        gc.enable()
        engine.dispose()


ASYNC_TARGETS: dict[str, Callable[[AsyncEngine], Any]] = {
    "connection": lambda engine: engine.connect(),
    "session": AsyncSession,
    "scoped_session": lambda engine: async_scoped_session(async_sessionmaker(engine), asyncio.current_task),
}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("kind", ASYNC_TARGETS)
def test_async_put_as_first_statement_follows_sqlalchemys_commit_and_rollback(
    pq: PQ, dsn: str, driver: str, kind: str
) -> None:
    async def scenario() -> None:
        engine = create_async_engine(url(dsn, driver), poolclass=sqlalchemy.NullPool)
        target = ASYNC_TARGETS[kind](engine)
        if kind == "connection":
            await target.start()
        async with AsyncPQ(dsn, backend=driver) as apq:
            queue = apq["q"]
            await queue.put("rolled back", connection=target)
            await target.rollback()
            await target.execute(NOTE)
            await target.commit()
            assert await queue.count() == 0
            await queue.put("leased", connection=target)
            await queue.put_many(["second", "third"], connection=target)
            assert await queue.count() == 0
            await target.commit()
            job = await queue.lease(60)
            assert job is not None
            await queue.ack(job, connection=target)
            await target.rollback()
            assert (await queue.stats()).leased == 1
            await queue.ack(job, connection=target)
            await target.commit()
            assert (await queue.stats()).leased == 0
            async with target.begin_nested():
                await queue.put("savepoint", connection=target)
            await target.commit()
            if kind == "connection":
                await queue.put("before begin", connection=target)
                async with target.begin():
                    await queue.put("after begin", connection=target)
            await queue.put("closed", connection=target)
        await target.close()
        await engine.dispose()

    asyncio.run(scenario())
    more = ["before begin", "after begin"] if kind == "connection" else []
    assert [job.data for job in pq["q"].get_many(10)] == ["second", "third", "savepoint", *more]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_async_put_on_a_sqlalchemy_engine_at_autocommit_commits_by_itself(pq: PQ, dsn: str, driver: str) -> None:
    async def scenario() -> None:
        engine = create_async_engine(url(dsn, driver), isolation_level="AUTOCOMMIT")
        async with AsyncPQ(dsn, backend=driver) as apq, engine.connect() as connection:
            await apq["q"].put("kept", connection=connection)
            assert await apq["q"].count() == 1
            await connection.rollback()
        await engine.dispose()

    asyncio.run(scenario())
    assert pq["q"].count() == 1


def test_django_commits_and_rolls_back_the_job(pq: PQ, dsn: str) -> None:
    from django.conf import settings
    from django.db import connections, transaction

    parts = urlsplit(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": parts.username,
        "PASSWORD": parts.password or "",
        "HOST": parts.hostname,
        "PORT": parts.port,
    }
    if not settings.configured:
        settings.configure(DATABASES={"default": database})
    connections.settings["default"] = connections.configure_settings({"default": database})["default"]
    connection = connections["default"]
    queue = pq["q"]

    try:
        with suppress(Undo), transaction.atomic():
            queue.put("rolled back", connection=connection)
            raise Undo
        assert queue.count() == 0
        with transaction.atomic():
            queue.put("committed", connection=connection)
            assert queue.count() == 0
        queue.put("by itself", connection=connection)
        with transaction.atomic():
            transaction.set_rollback(True)
            with pytest.raises(TransactionAborted, match="set_rollback"):
                queue.put("in a block that Django rolls back", connection=connection)
        assert [job.data for job in queue.get_many(10)] == ["committed", "by itself"]
    finally:
        connection.close()


def test_target_of_an_unknown_type_is_refused(pq: PQ) -> None:
    with pytest.raises(ConfigurationError, match=r"builtins\.object"):
        pq["q"].put(1, connection=object())
    assert pq["q"].count() == 0
