"""Operations on a blocking or an asynchronous engine, for callers that accept either."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pqcore import PQ, AsyncPQ
from pqcore.db.engine import Engine
from pqcore.errors import PQError, SchemaError
from pqcore.operations import admin
from pqcore.runner import BlockingRunner, PQRunner, Runner, call_sync, open_async, open_blocking


@pytest.fixture(params=["psycopg2", "asyncpg"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend with a blocking face alone, and one with an asynchronous face alone."""
    return str(request.param)


@pytest.mark.parametrize("opened", [open_async, open_blocking])
def test_opening_takes_the_face_that_the_backend_has(dsn: str, backend: str, opened: Callable[..., Any]) -> None:
    assert type(opened(dsn, backend=backend)) is {"psycopg2": PQ, "asyncpg": AsyncPQ}[backend]


@pytest.mark.parametrize(("opened", "face"), [(open_async, AsyncPQ), (open_blocking, PQ)])
def test_opening_prefers_the_face_of_its_name(dsn: str, opened: Callable[..., Any], face: type) -> None:
    assert type(opened(dsn, backend="psycopg")) is face


def test_runner_returns_what_an_operation_returns_on_either_engine(dsn: str, backend: str) -> None:
    async def use() -> None:
        runner = PQRunner(open_async(dsn, backend=backend))
        with pytest.raises(SchemaError):
            await runner.call(admin.stats, None)
        await runner.call(admin.create)
        assert await runner.call(admin.stats, None) == {}
        assert await runner.call(admin.count, runner.queue("q")) == 0
        assert await runner.run(runner.engine.execute, "ping", {}) is not None
        await runner.close()
        with pytest.raises(PQError, match="closed"):
            await runner.call(admin.stats, None)

    asyncio.run(use())


def test_runner_keeps_the_event_loop_free_of_blocking_operations(dsn: str, backend: str) -> None:
    async def where(engine: Engine) -> bool:
        return threading.current_thread() is threading.main_thread()

    async def use() -> bool:
        runner = Runner(open_async(dsn, backend=backend).engine)
        return await runner.call(where)

    assert asyncio.run(use()) is (backend == "asyncpg")


def test_blocking_runner_returns_what_an_operation_returns_on_either_engine(dsn: str, backend: str) -> None:
    runner = BlockingRunner(open_blocking(dsn, backend=backend).engine)
    with pytest.raises(SchemaError):
        runner.call(admin.stats, None)
    runner.call(admin.create)
    assert runner.call(admin.stats, None) == {}
    runner.close()


def test_interrupted_operation_does_not_go_on_when_the_runner_is_used_again(dsn: str) -> None:
    steps: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def operation(engine: Engine) -> None:
        steps.append("began")
        asyncio.get_running_loop().call_soon(interrupt)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        steps.append("went on")

    runner = BlockingRunner(open_async(dsn, backend="asyncpg").engine)
    with pytest.raises(KeyboardInterrupt):
        runner.call(operation)
    runner.call(admin.create)
    runner.close()
    assert steps == ["began"]


def test_call_sync_refuses_a_coroutine_that_suspends() -> None:
    with pytest.raises(PQError, match="suspended"):
        call_sync(asyncio.sleep, 0)
