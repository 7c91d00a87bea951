"""A `PQ` that meets ever more queue names keeps little for each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest

from pqcore import PQ, AsyncPQ, settings, tasks
from pqcore.db import channels as registered
from pqcore.db import shared_poll as shared_look
from pqcore.sql.identifiers import channel
from pqcore.testing.harness import PATIENCE, patiently


@pytest.fixture(params=[PQ, AsyncPQ, tasks.PQ, tasks.AsyncPQ], ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def pq(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `PQ` of each face, which keeps 20 queues, and never connects."""
    monkeypatch.setattr("pqcore.base_pq.KEPT_QUEUES", 20)
    backend = "asyncpg" if issubclass(request.param, AsyncPQ) else "psycopg"
    return request.param("postgresql://127.0.0.1:1/nowhere", backend=backend)


def use_names(pq: Any, number: int = 500) -> None:
    for name in range(number):
        assert pq[f"made-up-{name}"].name == f"made-up-{name}"


def test_pq_keeps_a_bounded_number_of_queues(pq: Any) -> None:
    use_names(pq)
    gc.collect()
    assert len(pq._queues) <= 20
    assert len(pq._forgotten) == 0


def test_queue_that_is_used_elsewhere_is_kept(pq: Any) -> None:
    queue = pq["orders"]
    use_names(pq)
    assert pq["orders"] is queue
    use_names(pq)
    assert pq["orders"] is queue


def test_queue_whose_attributes_were_changed_is_kept(pq: Any) -> None:
    pq["slow"].poll_interval = 30
    use_names(pq)
    assert pq["slow"].poll_interval == 30


def test_queue_with_a_serializer_suffix_is_forgotten(pq: Any) -> None:
    for name in range(500):
        assert pq[f"made-up-{name}/msgpack"].serializer_name == "msgpack"
    assert len(pq._queues) <= 20


def test_pq_keeps_1000_queues_by_default() -> None:
    assert settings.KEPT_QUEUES == 1_000


@pytest.mark.parametrize("channels", [0, 50])
def test_put_to_any_of_many_queues_wakes_its_waiter(dsn: str, monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    """Queues beyond the number of channels share a look, in statements of bounded length; nothing is kept."""
    monkeypatch.setattr(shared_look, "CHUNK", 100)
    monkeypatch.setattr(shared_look, "OWN_LOOK", 3600.0)
    monkeypatch.setattr(registered, "MOST", channels or 20)
    number = 300
    asked: list[int] = []

    async def scenario() -> None:
        async with AsyncPQ(dsn, backend="psycopg", poll_interval=3600, prepared=None if channels else False) as pq:
            await pq.create()
            engine = pq["q0"].engine
            look = engine._ready_queues
            listener: Any = engine.listener

            async def noted(names: Sequence[str]) -> Sequence[str]:
                asked.append(len(names))
                return await look(names)

            monkeypatch.setattr(engine, "_ready_queues", noted)
            waits = [asyncio.ensure_future(pq[f"q{name}"].get(timeout=3600)) for name in range(number)]
            rounds = patiently("all queues are asked for")
            while sum(asked[-3:]) != number - channels:
                next(rounds)
                await engine.runtime.sleep(0.01)
            for name in (0, 7, 150, 299):
                await pq[f"q{name}"].put(name)
                job = await asyncio.wait_for(waits[name], PATIENCE)
                assert job is not None
                assert job.data == name
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            assert listener._waiters == {}
            assert not listener._shared._sharers
            monkeypatch.setattr(registered, "LINGER", 0.0)
            listener._trimmed = 0.0
            assert await pq["another"].get(timeout=0.01) is None
            assert set(listener._paused) <= {channel("another")}

    asyncio.run(scenario())
    assert max(asked) <= 100
