"""FastAPI: a lifespan, queues as dependencies, a worker in the application, a session's transaction."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

import pqcore
from pqcore import AsyncQueue, Queue
from pqcore.errors import ConfigurationError, TableMissing
from pqcore.integrations.fastapi import get_pq, lifespan, queue
from pqcore.tasks import PQ, AsyncPQ
from pqcore.worker import Worker

AsyncEmails = Annotated[AsyncQueue, Depends(queue("emails"))]
Emails = Annotated[Queue, Depends(queue("emails"))]


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    """To look from outside."""
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def connections(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])
def test_fastapi_dependency_gives_an_async_queue(dsn: str, backend: str) -> None:
    app = FastAPI(lifespan=lifespan(AsyncPQ(dsn, backend=backend), create=True))

    @app.post("/")
    async def put(to: str, emails: AsyncEmails) -> int:
        return await emails.put(to)

    @app.get("/")
    async def take(emails: AsyncEmails) -> Any:
        job = await emails.get(timeout=10)
        return job and job.data

    for name in ("ann", "bob"):  # started twice, as tests do
        with TestClient(app) as client:
            assert client.post("/", params={"to": name}).status_code == 200
            assert client.get("/").json() == name
        wait_for(lambda: connections(dsn) == 0)  # the server may take a moment


@pytest.mark.parametrize("backend", ["psycopg", "psycopg2"])
def test_fastapi_dependency_gives_a_blocking_queue(dsn: str, backend: str) -> None:
    app = FastAPI(lifespan=lifespan(pqcore.PQ(dsn, backend=backend), create=True))

    @app.post("/")
    def put(to: str, emails: Emails) -> int:
        return emails.put(to)

    @app.get("/")
    def take(emails: Emails) -> Any:
        job = emails.get(timeout=10)
        return job and job.data

    for name in ("ann", "bob"):
        with TestClient(app) as client:
            assert client.post("/", params={"to": name}).status_code == 200
            assert client.get("/").json() == name
        wait_for(lambda: connections(dsn) == 0)  # a thread that listens ends by itself


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; the test's timeout bounds the wait."""
    while not condition():
        time.sleep(0.01)


def test_fastapi_lifespan_leaves_the_callers_connection_open(dsn: str, pq: PQ) -> None:
    connection = psycopg.connect(dsn)
    app = FastAPI(lifespan=lifespan(pqcore.PQ(connection)))
    with TestClient(app):
        pass
    assert not connection.closed
    connection.close()


def test_fastapi_lifespan_wraps_the_applications_own(dsn: str, pq: PQ) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        told.append("begun")
        yield {"colour": "red"}
        told.append("ended")

    sub = FastAPI()

    @sub.get("/")
    async def mounted(emails: AsyncEmails) -> str:
        return emails.name

    apq = AsyncPQ(dsn)
    app = FastAPI(lifespan=lifespan(apq, inner=own))
    app.mount("/sub", sub)

    @app.get("/")
    async def state(request: Request, found: Annotated[AsyncPQ, Depends(get_pq)]) -> list[Any]:
        return [request.state.colour, found is apq]

    @app.websocket("/ws")
    async def talk(socket: WebSocket, emails: AsyncEmails) -> None:
        await socket.accept()
        await socket.send_text(str(await emails.put("by websocket")))
        await socket.close()

    with TestClient(app) as client:
        assert told == ["begun"]
        assert client.get("/").json() == ["red", True]
        assert client.get("/sub/").json() == "emails"
        with client.websocket_connect("/ws") as socket:
            assert int(socket.receive_text()) == pq["emails"].peek()[0].id
    assert told == ["begun", "ended"]


def test_fastapi_dependency_without_the_lifespan_says_what_to_do(dsn: str) -> None:
    app = FastAPI(lifespan=lifespan(AsyncPQ(dsn)))

    @app.get("/")
    async def never(emails: AsyncEmails) -> None: ...

    with pytest.raises(ConfigurationError, match="with TestClient"):
        TestClient(app).get("/")


# A worker


def test_fastapi_worker_in_the_application_finishes_running_jobs(dsn: str, pq: PQ) -> None:
    apq = AsyncPQ(dsn)
    jobs = apq["jobs"]
    began, told = threading.Event(), []
    finish: asyncio.Event

    @jobs.task()
    async def slow(job_id: int) -> None:
        began.set()
        await finish.wait()
        told.append("finished")

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        nonlocal finish
        finish = asyncio.Event()
        yield
        told.append("own ended")

    app = FastAPI(lifespan=lifespan(apq, worker=Worker(jobs), inner=own))

    @app.post("/")
    async def put() -> None:
        await slow()

    @app.post("/soon")
    async def finish_once_told_to_stop() -> None:
        asyncio.get_running_loop().call_later(0.2, finish.set)

    for _ in range(2):
        began.clear()
        told.clear()
        with TestClient(app) as client:
            client.post("/")
            assert began.wait(10)
            client.post("/soon")
        assert told == ["finished", "own ended"]
        assert pq["jobs"].stats().leased == pq["jobs"].count() == 0
        wait_for(lambda: connections(dsn) == 1)  # that of `pq`


def test_fastapi_application_that_ends_during_startup_stops_its_worker(dsn: str, pq: PQ) -> None:
    apq = AsyncPQ(dsn)
    with TestClient(FastAPI(lifespan=lifespan(apq, worker=Worker(apq["jobs"])))):
        pass


def test_fastapi_worker_that_fails_is_reported(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    apq = AsyncPQ(dsn)
    app = FastAPI(lifespan=lifespan(apq, worker=Worker(apq["jobs"])))

    @app.get("/")
    async def answer() -> str:
        return "still here"

    def serve() -> None:
        with TestClient(app) as client:
            wait_for(lambda: "the worker in the application has failed" in caplog.text)
            assert client.get("/").json() == "still here"

    with pytest.raises(TableMissing):
        serve()


# A session's transaction


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_fastapi_put_joins_the_transaction_of_the_request(dsn: str, pq: PQ, driver: str) -> None:
    with pq["emails"] as cursor:
        cursor.execute("CREATE TABLE orders (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    engine = create_async_engine(f"postgresql+{driver}://" + dsn.partition("://")[2], poolclass=NullPool)

    async def begun() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session, session.begin():
            yield session

    app = FastAPI(lifespan=lifespan(AsyncPQ(dsn, backend=driver)))

    @app.post("/orders/{number}")
    async def order(
        number: int,
        emails: AsyncEmails,
        session: AsyncSession = Depends(begun, scope="function"),  # noqa: B008 - as FastAPI has it
        fail: str = "",
    ) -> None:
        await session.execute(text("INSERT INTO orders VALUES (:id)"), {"id": number})
        await emails.put({"order": number}, connection=session)
        await emails.put_many([{"copy": number}], connection=session)
        if fail == "http":
            raise HTTPException(409)
        if fail:
            raise ValueError(fail)

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/orders/1", params={"fail": "http"}).status_code == 409
        assert client.post("/orders/1", params={"fail": "yes"}).status_code == 500
        assert pq["emails"].count() == 0
        assert client.post("/orders/1").status_code == 200
        assert client.post("/orders/1").status_code == 500  # the commit fails, and the client gets an error
        assert [job.data for job in pq["emails"].get_many(9)] == [{"order": 1}, {"copy": 1}]
    with pq["emails"] as cursor:
        assert cursor.execute("SELECT id FROM orders").fetchall() == [(1,)]


def test_fastapi_is_not_imported_by_the_core() -> None:
    code = (
        "import sys, pqcore, pqcore.tasks, pqcore.async_queue; assert not {'fastapi', 'starlette'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
