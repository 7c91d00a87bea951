"""Putting in the transaction of SQLAlchemy's sessions and Django's connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pqcore import PQ, AsyncPQ
from pqcore.errors import ConfigurationError

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

    class Undo(Exception):
        pass

    try:
        with suppress(Undo), transaction.atomic():
            queue.put("rolled back", connection=connection)
            raise Undo
        assert queue.count() == 0
        with transaction.atomic():
            queue.put("committed", connection=connection)
            assert queue.count() == 0
        queue.put("by itself", connection=connection)
        assert [job.data for job in queue.get_many(10)] == ["committed", "by itself"]
    finally:
        connection.close()


def test_an_unknown_target_is_refused(pq: PQ) -> None:
    with pytest.raises(ConfigurationError, match=r"builtins\.object"):
        pq["q"].put(1, connection=object())
    assert pq["q"].count() == 0
