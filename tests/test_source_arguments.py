"""Arguments in place of a DSN, a connection or a pool: they are accepted, or the error says what to write."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse, urlsplit

import httpx
import psycopg
import psycopg_pool
import pydantic
import pytest
import sqlalchemy
from click.testing import CliRunner
from flask import Flask
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from starlette.datastructures import URL, Secret

from pqcore import PQ, AsyncPQ, tasks
from pqcore.cli.app import app
from pqcore.errors import ConfigurationError, PQError
from pqcore.integrations.flask import PQCore
from pqcore.integrations.sqlalchemy import pq_for_engine

PASSWORD = "s3cr3t%2Fw0rd"
NOWHERE = f"postgresql+psycopg://somebody:{PASSWORD}@127.0.0.1:1/nowhere"
SECRETS = ("s3cr3t", "w0rd")

URLS: dict[str, Callable[[str], Any]] = {
    "sqlalchemy": sqlalchemy.make_url,
    "pydantic": pydantic.PostgresDsn,
    "pydantic, of any kind": pydantic.AnyUrl,
    "pydantic's secret": pydantic.SecretStr,
    "pydantic's secret URL": lambda url: pydantic.Secret[pydantic.PostgresDsn](pydantic.PostgresDsn(url)),
    "urlsplit": urlsplit,
    "urlparse": urlparse,
    "httpx": httpx.URL,
    "starlette": URL,
    "starlette's secret": Secret,
    "a kind of str": type("Dsn", (str,), {}),
    "with a newline": lambda url: f"{url}\n",
    "in capitals": lambda url: url.replace("postgresql", "POSTGRESQL", 1),
}


@pytest.fixture(scope="module")
def place(pqcore_server: str) -> Iterator[str]:
    """A database with a table for all these tests; the DSN has a password that the server does not ask for."""
    name = f"test_handed_over_{os.getpid()}"
    with psycopg.connect(pqcore_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        parts = urlsplit(pqcore_server)
        host = parts.netloc.rpartition("@")[2]
        made = f"postgresql://{parts.username or 'postgres'}:{PASSWORD}@{host}/{name}"
        with PQ(made) as pq:
            pq.create()
        yield made
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def queued(place: str) -> Iterator[Callable[[], int]]:
    """Return the number of jobs, and take them."""
    with PQ(place) as pq:
        pq["q"].clear()
        yield lambda: len(pq["q"].get_many(10, block=False))


@pytest.mark.parametrize("driver", ["", "+psycopg2", "+psycopg"])
@pytest.mark.parametrize("kind", URLS)
def test_url_object_of_a_library_is_accepted_as_dsn(
    place: str, queued: Callable[[], int], kind: str, driver: str
) -> None:
    given = URLS[kind](place.replace("postgresql", f"postgresql{driver}", 1))
    with PQ(given) as pq:
        pq["q"].put(1)
        assert pq.backend.startswith(driver.removeprefix("+"))
    assert queued() == 1


@pytest.mark.parametrize("driver", ["", "+asyncpg", "+psycopg", "+psycopg_async"])
@pytest.mark.parametrize("kind", URLS)
def test_url_object_of_a_library_is_accepted_as_dsn_by_the_async_face(
    place: str, queued: Callable[[], int], kind: str, driver: str
) -> None:
    async def main() -> None:
        text = place.replace("postgresql", f"postgresql{driver}", 1)
        # RFC 3986 allows no underscore in a scheme, so some parsers find no scheme here.
        given = text if "_" in driver and kind not in ("sqlalchemy", "in capitals") else URLS[kind](text)
        async with AsyncPQ(given) as pq:
            await pq["q"].put(1)

    asyncio.run(main())
    assert queued() == 1


def test_worker_opens_connections_from_a_url_object(place: str) -> None:
    with tasks.PQ(sqlalchemy.make_url(place)) as pq:
        queue = pq["worked"]
        queue.put(1)
        queue.put(2)
        clone = queue.engine.clone_for_worker(2, 5.0)
        assert clone.spec == queue.engine.spec
        queue.clear()


def test_command_line_takes_the_dsns_of_both_faces(place: str) -> None:
    for driver in ("+asyncpg", "+psycopg", "+psycopg_async", "+psycopg2", ""):
        for scheme in ("postgresql", "POSTGRES"):
            dsn = place.replace("postgresql", scheme + driver, 1)
            done = CliRunner().invoke(app, ["peek", "--dsn", dsn, "--queue", "empty"])
            assert "no job of 'empty' is due" in done.output
    done = CliRunner().invoke(app, ["peek", "--dsn", place.replace("postgresql", "mysql", 1), "--queue", "q"])
    assert done.exit_code == 2
    assert "the URL begins with mysql://, and pqcore works on PostgreSQL" in done.output
    assert not any(secret in done.output for secret in SECRETS)


def test_flask_accepts_a_url_object_as_dsn(place: str) -> None:
    flask = Flask("test")
    flask.config["PQCORE_DSN"] = pydantic.PostgresDsn(place)
    pq = PQCore(flask)
    with flask.app_context():
        pq["flask"].put(1)
        pq["flask"].clear()
        pq.close()
    wrong = Flask("wrong")
    wrong.config["PQCORE_DSN"] = {"password": PASSWORD}
    with pytest.raises(ConfigurationError, match="PQCORE_DSN of the application 'wrong' is a dict; give a DSN"):
        PQCore(wrong)


@pytest.mark.parametrize("scheme", ["mysql", "sqlite", "http", "mysql+psycopg", "postgresqll"])
@pytest.mark.parametrize("backend", [None, "psycopg"])
def test_url_of_another_server_is_refused(scheme: str, backend: str | None) -> None:
    for face in (PQ, AsyncPQ):
        with pytest.raises(ConfigurationError, match="pqcore works on PostgreSQL: write postgresql://") as caught:
            face(NOWHERE.replace("postgresql+psycopg", scheme, 1), backend=backend)
        assert not any(secret in str(caught.value) for secret in SECRETS)


ENGINE = sqlalchemy.create_engine(NOWHERE)
ASYNC_ENGINE = create_async_engine(NOWHERE)


async def connect() -> None: ...


class Masked:
    """A URL whose text hides its password."""

    def __str__(self) -> str:
        return NOWHERE.replace(PASSWORD, "***")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "engine": (lambda: ENGINE, "use pq_for_engine(engine)"),
    "async engine": (lambda: ASYNC_ENGINE, "use pq_for_engine(engine)"),
    "pool": (
        lambda: ENGINE.pool,
        "use pq_for_engine(engine) of pqcore.integrations.sqlalchemy, with the engine that has",
    ),
    "null pool": (
        lambda: sqlalchemy.create_engine(NOWHERE, poolclass=sqlalchemy.NullPool).pool,
        "pq_for_engine(engine)",
    ),
    "session": (lambda: Session(ENGINE), "put in its transaction with queue.put(..., connection=...)"),
    "async session": (lambda: AsyncSession(ASYNC_ENGINE), "put in its transaction with"),
    "sessionmaker": (lambda: sessionmaker(ENGINE), "put in its transaction with"),
    "async_sessionmaker": (lambda: async_sessionmaker(ASYNC_ENGINE), "put in its transaction with"),
    "bytes": (NOWHERE.encode, "give text: dsn.decode()"),
    "path": (lambda: Path(NOWHERE), "a Path drops a slash of the URL: give text"),
    "arguments": (lambda: {"host": "127.0.0.1", "password": PASSWORD}, "psycopg.conninfo.make_conninfo(**options)"),
    "dj-database-url": (
        lambda: {"ENGINE": "django.db.backends.postgresql", "PASSWORD": PASSWORD},
        "give the URL that the settings were made from, or, in a Django project, use pqcore.integrations.django.pq",
    ),
    "function": (lambda: psycopg.connect, "call it, and give the result"),
    "class": (lambda: psycopg.Connection, "call it, and give the result"),
    "masked": (Masked, "give text, postgresql://user@host/database, or a driver's connection or pool"),
    "number": (lambda: 5432, "give text, postgresql://user@host/database"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_target_that_is_no_dsn_raises_an_error_with_advice(kind: str) -> None:
    make, says = REFUSED[kind]
    given = make()
    for face in (PQ, AsyncPQ):
        for backend in (None, "psycopg"):
            with pytest.raises(ConfigurationError) as caught:
                face(given, backend=backend)
            assert says in str(caught.value)
            assert type(given).__qualname__ in str(caught.value)
            assert not any(secret in str(caught.value) for secret in SECRETS)
            assert "\n" not in str(caught.value)


def test_target_of_none_or_a_coroutine_raises_an_error_with_advice() -> None:
    for face in (PQ, AsyncPQ):
        with pytest.raises(ConfigurationError, match="it was given None; is a setting or a variable missing"):
            face(os.environ.get("NOT_SET_ANYWHERE"))
        coroutine = connect()
        with pytest.raises(ConfigurationError, match="coroutine; await it first"):
            face(coroutine)
        coroutine.close()


def test_target_that_is_a_sqlalchemy_connection_raises_an_error_with_advice(place: str) -> None:
    engine = sqlalchemy.create_engine(place.replace("postgresql", "postgresql+psycopg", 1))
    raw = engine.raw_connection()
    with engine.connect() as connection:
        for given in (raw, connection):
            with pytest.raises(ConfigurationError, match=r"put in its transaction with queue.put\(..., connection"):
                PQ(given)
    raw.close()
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_put_on_a_raw_connection_joins_its_transaction(place: str, queued: Callable[[], int], driver: str) -> None:
    engine = sqlalchemy.create_engine(place.replace("postgresql", f"postgresql+{driver}", 1))
    with PQ(place) as pq:
        raw = engine.raw_connection()
        pq["q"].put("undone", connection=raw)
        raw.rollback()
        pq["q"].put("kept", connection=raw)
        assert queued() == 0
        raw.commit()
        raw.close()
        assert queued() == 1
        with pytest.raises(ConfigurationError, match="give an open connection"):
            pq["q"].put(1, connection=raw)
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_raw_connection_of_an_async_engine_is_refused(place: str, driver: str) -> None:
    async def main() -> None:
        engine = create_async_engine(place.replace("postgresql", f"postgresql+{driver}", 1))
        async with AsyncPQ(place) as pq, engine.connect() as connection:
            raw = await connection.get_raw_connection()
            with pytest.raises(ConfigurationError, match=r"from an AsyncEngine, give its connect\(\) or a session"):
                await pq["q"].put(1, connection=raw)
        await engine.dispose()

    asyncio.run(main())


def test_connection_argument_of_a_bad_type_raises_an_error_with_advice(place: str) -> None:
    told: list[tuple[Any, str]] = [
        (
            NOWHERE,
            "a DSN is for PQ: give the connection whose transaction the job belongs to, or leave connection= out",
        ),
        (sqlalchemy.make_url(NOWHERE), "a DSN is for PQ"),
        (pydantic.PostgresDsn(NOWHERE), "a DSN is for PQ"),
        (ENGINE, "write with engine.begin() as connection: queue.put(..., connection=connection)"),
        (ASYNC_ENGINE, "with async and await"),
        (ENGINE.pool, "take a connection from the pool, and give this connection"),
        (sessionmaker(ENGINE), "call it, and give the session"),
        (psycopg.connect, "call it, and give the result"),
        ({"password": PASSWORD}, "give a driver's connection, or a session or connection of SQLAlchemy or Django"),
    ]

    async def put(given: Any) -> None:
        async with AsyncPQ(place) as pq:
            await pq["q"].put(1, connection=given)

    with PQ(place) as pq:
        for given, says in told:
            for attempt in (lambda: pq["q"].put(1, connection=given), lambda: asyncio.run(put(given))):  # noqa: B023
                with pytest.raises(ConfigurationError) as caught:
                    attempt()
                assert says in str(caught.value)
                assert not any(secret in str(caught.value) for secret in SECRETS)
        pool = psycopg_pool.ConnectionPool(place, min_size=1, open=False)
        with pytest.raises(ConfigurationError, match="take a connection from the pool"):
            pq["q"].put(1, connection=pool)
        assert len(pq["q"]) == 0


def test_pq_for_engine_refuses_objects_that_are_not_engines() -> None:
    for given, says in (
        (sqlalchemy.make_url(NOWHERE), r"a sqlalchemy.engine.url.URL, not an engine of SQLAlchemy; give PQ\(url\)"),
        (NOWHERE, r"a builtins.str, not an engine of SQLAlchemy; give PQ\(url\)"),
        (Session(ENGINE), "a sqlalchemy.orm.session.Session, not an engine of SQLAlchemy; give its engine"),
        (None, "not an engine of SQLAlchemy"),
    ):
        with pytest.raises(ConfigurationError, match=says) as caught:
            pq_for_engine(given)  # type: ignore[call-overload]
        assert not any(secret in str(caught.value) for secret in SECRETS)


def test_password_of_a_url_object_is_not_in_errors(place: str) -> None:
    for kind in URLS:
        for face in ("psycopg", "psycopg2"):
            with PQ(URLS[kind](NOWHERE), backend=face) as pq, pytest.raises(PQError) as caught:
                pq["q"].put(1)
            text = f"{caught.value!r} {pq!r} {pq.backend}"
            with suppress(AttributeError):
                text += str(caught.value.__cause__)
            assert not any(secret in text for secret in SECRETS)
