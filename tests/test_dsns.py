"""DSNs: each driver reaches the server that libpq's rules name, whatever characters and encoding the names have."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import psycopg
import pytest
from psycopg import sql

from pqcore import PQ, AsyncPQ, tasks
from pqcore.errors import AccessDenied, ConfigurationError, ConnectionLost, InvalidData
from pqcore.worker import Worker
from pqcore_backends.embedded import EmbeddedServer

USER = "Zoë d'Arc %@:/\"\\ 用"
PASSWORD = "%40@:/?#&'= \\\"+é 🔑"
DATABASE = 'Möbel "50%" ?/#\\ +\''
DRIVERS = ("psycopg2", "psycopg", "psycopg-async", "asyncpg")


@dataclass(frozen=True)
class Place:
    """The address of a server that asks all TCP clients for a password."""

    server: EmbeddedServer
    port: int
    folder: str
    """Of its Unix socket."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with EmbeddedServer() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:

            def ask(statement: str) -> str:
                row = connection.execute(statement.encode()).fetchone()
                assert row is not None
                return str(row[0])

            rules, folder, port = ask("SHOW hba_file"), ask("SHOW unix_socket_directories"), ask("SHOW port")
            user, database = sql.Identifier(USER), sql.Identifier(DATABASE)
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, sql.Literal(PASSWORD)))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, user))
            for encoding in ("SQL_ASCII", "LATIN1", "EUC_JP"):
                name = sql.Identifier(encoding.lower())
                made = "CREATE DATABASE {} ENCODING {} LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
                connection.execute(sql.SQL(made).format(name, sql.Literal(encoding)))
            Path(rules).write_text(
                "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            )
            connection.execute("SELECT pg_reload_conf()")
        yield Place(server, int(port), folder)


def put(driver: str, dsn: str, name: str = "q", data: Any = 1, table: str = "queue") -> Any:
    """Make the table, put a job, take it, and return its data."""
    backend, _, awaited = driver.partition("-")
    if backend != "asyncpg" and not awaited:
        with PQ(dsn, backend=backend, table=table) as pq:
            pq.create()
            pq[name].put(data)
            job = pq[name].get(block=False)
            assert job is not None
            return job.data

    async def work() -> Any:
        async with AsyncPQ(dsn, backend=backend, table=table) as pq:
            await pq.create()
            await pq[name].put(data)
            job = await pq[name].get(block=False)
            assert job is not None
            return job.data

    return asyncio.run(work())


def word(value: object) -> str:
    """Quote a value for a keyword string."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def words(**said: object) -> str:
    return " ".join(f"{name} = {word(value)}" for name, value in said.items())


FORMS: dict[str, Callable[[Place], str]] = {
    "URL": lambda place: (
        f"postgresql://{quote(USER, '')}:{quote(PASSWORD, '')}@127.0.0.1:{place.port}/{quote(DATABASE, '')}"
    ),
    "URL, all behind the question mark": lambda place: (
        "postgresql://?"
        + urlencode(
            {"host": "127.0.0.1", "port": place.port, "user": USER, "password": PASSWORD, "dbname": DATABASE},
            quote_via=quote,
        )
    ),
    "words": lambda place: words(host="127.0.0.1", port=place.port, user=USER, password=PASSWORD, dbname=DATABASE),
    "words, an address": lambda place: words(
        hostaddr="127.0.0.1", port=place.port, user=USER, password=PASSWORD, dbname=DATABASE, connect_timeout=20
    ),
    "a socket": lambda place: (
        f"postgresql://{quote(USER, '')}@/{quote(DATABASE, '')}?host={quote(place.folder, '')}&port={place.port}"
    ),
    "words, a socket": lambda place: words(host=place.folder, port=place.port, user=USER, dbname=DATABASE),
    "two hosts, of which one is there": lambda place: (
        f"postgresql://{quote(USER, '')}:{quote(PASSWORD, '')}@127.0.0.1:1,127.0.0.1:{place.port}"
        f"/{quote(DATABASE, '')}?target_session_attrs=read-write"
    ),
    "with settings": lambda place: (
        FORMS["URL"](place) + "?" + urlencode({"application_name": "a b", "options": "-c geqo=off"}, quote_via=quote)
    ),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("form", FORMS)
def test_dsn_of_every_form_reaches_the_server(place: Place, driver: str, form: str) -> None:
    assert put(driver, FORMS[form](place)) == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_dsn_without_settings_uses_the_environment(place: Place, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"HOST": "127.0.0.1", "PORT": place.port, "USER": USER, "PASSWORD": PASSWORD, "DATABASE": DATABASE}
    for name, value in said.items():
        monkeypatch.setenv(f"PG{name}", str(value))
    assert put(driver, "postgresql://") == 1


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("form", ["URL", "words"])
def test_dsn_with_a_wrong_password_raises_an_error_without_it(place: Place, driver: str, form: str) -> None:
    dsn = FORMS[form](place)
    for right, wrong in ((quote(PASSWORD, ""), "s3cr3t%20%3F"), (word(PASSWORD), "'s3cr3t ?'")):
        dsn = dsn.replace(right, wrong)
    with pytest.raises((AccessDenied, ConnectionLost)) as caught:  # libpq does not say which host
        put(driver, dsn)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "s3cr3t" not in str(chain) + repr(chain)
        chain = chain.__cause__ or chain.__context__


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:s3cr3t@host@127.0.0.1/db",
        "host=127.0.0.1 password=s3cr3t nonsense",
    ],
)
def test_dsn_that_cannot_be_parsed_raises_an_error_without_its_password(driver: str, dsn: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        put(driver, dsn)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None or "s3cr3t" not in str(caught.value.__cause__)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("encoding", ["sql_ascii", "latin1", "euc_jp"])
def test_database_of_another_encoding_is_supported(place: Place, driver: str, encoding: str) -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{place.port}/{encoding}"
    assert urlsplit(dsn).port == place.port
    data = {"any text": "é 用 🔑"}  # is escaped in JSON
    assert put(driver, dsn, data=data) == data
    if encoding == "euc_jp":
        with pytest.raises(InvalidData):
            put(driver, dsn, "🔑")
    else:
        assert put(driver, dsn, "é", data) == data


@pytest.mark.parametrize("driver", DRIVERS)
def test_error_of_a_job_is_escaped_if_the_encoding_lacks_its_characters(place: Place, driver: str) -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{place.port}/latin1"
    backend, _, awaited = driver.partition("-")
    blocking = backend != "asyncpg" and not awaited

    async def work() -> None:
        made = tasks.PQ if blocking else tasks.AsyncPQ
        pq: Any = made(dsn, backend=backend, table=f"errors of {driver}")

        async def done(result: Any) -> Any:
            return await result if inspect.isawaitable(result) else result

        await done(pq.create())
        queue = pq["q"]

        @queue.task(max_retries=1, retry_in=None)  # type: ignore[untyped-decorator]
        def fails(job_id: int) -> None:
            raise ValueError("é 🔑")

        job = await done(fails())
        await Worker(queue, burst=True).run()
        [letter] = await done(queue.dead.list())
        assert (letter.id, letter.failures, letter.error["message"]) == (int(job), 2, "\\xe9 \\U0001f511")
        assert "ValueError: \\xe9 \\U0001f511" in letter.error["traceback"]
        await done(pq.close())

    asyncio.run(work())


@pytest.mark.parametrize("driver", DRIVERS)
def test_server_with_nonstandard_string_settings_is_supported(place: Place, driver: str) -> None:
    words = ("standard_conforming_strings=off", "escape_string_warning=off", "IntervalStyle=iso_8601")
    settings = " ".join(f"-c {setting}" for setting in words)
    dsn = f"postgresql://postgres@127.0.0.1:{place.port}/postgres?" + urlencode({"options": settings}, quote_via=quote)
    data = {"\\": "\\' -- \\n"}
    assert put(driver, dsn, "\\'; DROP TABLE \\", data, table="\\'; DROP \\") == data
