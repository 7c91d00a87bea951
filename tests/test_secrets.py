"""No repr, error, log line or output shows a DSN's password, whatever fails; the tests of serializers cover keys."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit, urlunsplit

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.traceback import Traceback

from pqcore import PQ, AsyncPQ
from pqcore.cli.app import app
from pqcore.errors import PQError
from pqcore.testing.proxy import Proxy

SECRET = "s3cr3t w0rd?"
SPELLINGS = ("s3cr3t", "w0rd")


def in_url(parts: SplitResult) -> str:
    return urlunsplit(parts._replace(netloc=f"postgres:{quote(SECRET)}@{parts.hostname}:{parts.port}"))


def behind_it(parts: SplitResult) -> str:
    said = urlencode({"user": "postgres", "password": SECRET}, quote_via=quote)
    return urlunsplit(parts._replace(netloc=f"{parts.hostname}:{parts.port}", query=said))


def in_words(parts: SplitResult) -> str:
    return (
        f"host={parts.hostname} port={parts.port} user=postgres dbname={parts.path.strip('/')}"
        f" password='{SECRET}' connect_timeout=5"
    )


FORMS: dict[str, Callable[[SplitResult], str]] = {"URL": in_url, "query": behind_it, "words": in_words}
DRIVERS = ("psycopg2", "psycopg", "psycopg-async", "asyncpg")


def use(driver: str, dsn: str, then: Callable[[], object] = lambda: None) -> list[str]:
    """Work with a table, before and after an event; return what all objects involved say about themselves."""
    backend, _, awaited = driver.partition("-")
    if backend != "asyncpg" and not awaited:
        with PQ(dsn, backend=backend, pool_timeout=5) as pq:
            pq.create()
            queue = pq["q"]
            queue.put(1)
            then()
            queue.put(2)
            return said_by(pq, queue, queue.get(block=False))

    async def work() -> list[str]:
        async with AsyncPQ(dsn, backend=backend, pool_timeout=5) as pq:
            await pq.create()
            queue = pq["q"]
            await queue.put(1)
            then()
            await queue.put(2)
            return said_by(pq, queue, await queue.get(block=False))

    return asyncio.run(work())


def said_by(pq: Any, queue: Any, job: Any) -> list[str]:
    engine = pq.engine
    things = [pq, queue, job, engine, engine.source, engine.listener, engine.spec, *engine._openers.values()]
    things += [session for opener in engine._openers.values() for session in opener.sessions()]
    things += [session.driver for opener in engine._openers.values() for session in opener.sessions()]
    return [text for thing in things for text in (repr(thing), str(thing), f"{thing}")]


def clean(*texts: str) -> None:
    for text in texts:
        for spelling in SPELLINGS:
            assert spelling not in text


def told(exc: BaseException) -> Iterator[str]:
    """Return an exception as Python and rich print it."""
    yield "".join(traceback.format_exception(exc))
    output = io.StringIO()
    Console(file=output, width=200).print(Traceback.from_exception(type(exc), exc, exc.__traceback__))
    yield output.getvalue()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    for name in ("pqcore", "psycopg", "psycopg.pool", "asyncio", "asyncpg"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("form", FORMS)
def test_password_is_not_shown_while_all_operations_succeed(
    dsn: str, driver: str, form: str, log: pytest.LogCaptureFixture
) -> None:
    texts = use(driver, FORMS[form](urlsplit(dsn)))
    assert len(texts) > 20
    clean(*texts, log.text)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("form", FORMS)
def test_password_is_not_shown_when_the_server_cannot_be_reached(
    dsn: str, driver: str, form: str, log: pytest.LogCaptureFixture
) -> None:
    parts = urlsplit(dsn)
    for wrong in (parts._replace(netloc="127.0.0.1:1"), parts._replace(path="/there_is_none")):
        with pytest.raises(PQError) as caught:
            use(driver, FORMS[form](wrong))
        clean(*told(caught.value), log.text)


@pytest.mark.parametrize("driver", DRIVERS)
def test_password_is_not_shown_when_the_connection_is_lost(
    dsn: str, driver: str, log: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(dsn)
    try:
        with pytest.raises(PQError) as caught:
            use(driver, in_url(urlsplit(proxy.dsn)), lambda: proxy.cut_at("", answered=True))
    finally:
        proxy.close()
    clean(*told(caught.value), log.text)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://postgres:{SECRET}@127.0.0.1:port/app",
        f"postgresql://postgres:{SECRET}@host@127.0.0.1/app",
        f"host=127.0.0.1 password='{SECRET}",
        f"host=127.0.0.1 password={SECRET}",
        f"postgresql://127.0.0.1/app?password={SECRET}&nonsense=1",
        f"postgresql://postgres:%zz{SECRET}@127.0.0.1/app",
    ],
)
def test_password_is_not_shown_when_the_dsn_is_wrong(driver: str, dsn: str, log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PQError) as caught:
        use(driver, dsn)
    clean(*told(caught.value), log.text)


@pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("form", ["URL", "words"])
@pytest.mark.parametrize("where", ["there", "elsewhere"])
def test_password_is_not_shown_by_commands(dsn: str, backend: str, form: str, where: str) -> None:
    with PQ(dsn) as pq:
        pq.create()
    parts = urlsplit(dsn) if where == "there" else urlsplit(dsn)._replace(netloc="127.0.0.1:1")
    environment = {"PQCORE_DSN": FORMS[form](parts), "PQCORE_BACKEND": backend}
    for command in (["stats"], ["stats", "--json"], ["doctor", "--json"], ["create"], ["put", "q", "1"]):
        done = CliRunner().invoke(app, command, env=environment)
        assert where == "there" or done.exit_code
        clean(done.output, *([] if done.exception is None else told(done.exception)))
