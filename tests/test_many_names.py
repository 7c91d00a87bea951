"""Names of queues without end: what a `PQ` keeps of them."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from pqcore import PQ, AsyncPQ, settings, tasks


@pytest.fixture(params=[PQ, AsyncPQ, tasks.PQ, tasks.AsyncPQ], ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def pq(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `PQ` of each kind, which keeps 20 queues; nothing is connected."""
    monkeypatch.setattr("pqcore.queue.KEPT_QUEUES", 20)
    monkeypatch.setattr("pqcore.aio.KEPT_QUEUES", 20)
    backend = "asyncpg" if issubclass(request.param, AsyncPQ) else "psycopg"
    return request.param("postgresql://127.0.0.1:1/nowhere", backend=backend)


def use_names(pq: Any, number: int = 500) -> None:
    for name in range(number):
        assert pq[f"made-up-{name}"].name == f"made-up-{name}"


def test_a_pq_keeps_a_bounded_number_of_queues(pq: Any) -> None:
    use_names(pq)
    gc.collect()
    assert len(pq._queues) <= 20
    assert len(pq._forgotten) == 0


def test_a_queue_that_is_used_elsewhere_stays_the_same(pq: Any) -> None:
    queue = pq["orders"]
    use_names(pq)
    assert pq["orders"] is queue
    use_names(pq)
    assert pq["orders"] is queue


def test_a_queue_that_was_changed_stays(pq: Any) -> None:
    pq["slow"].poll_interval = 30
    use_names(pq)
    assert pq["slow"].poll_interval == 30


def test_a_queue_with_a_serializer_of_its_name_is_forgotten_too(pq: Any) -> None:
    for name in range(500):
        assert pq[f"made-up-{name}/msgpack"].serializer_name == "msgpack"
    assert len(pq._queues) <= 20


def test_a_pq_keeps_a_thousand_queues_by_default() -> None:
    assert settings.KEPT_QUEUES == 1_000
