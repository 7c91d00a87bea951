"""Two-phase commit: a transaction with a put can be prepared if the put does not notify."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pqcore import PQ
from pqcore.queue import Queue
from pqcore_backends.embedded import EmbeddedServer

WAITERS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted"


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    with EmbeddedServer(settings={"max_prepared_transactions": "5", "fsync": "off"}) as server:
        yield server.dsn()


@pytest.fixture
def queue(dsn: str) -> Iterator[Queue]:
    with PQ(dsn, backend="psycopg") as pq:
        pq.create()
        pq["jobs"].clear()
        yield pq["jobs"]


def prepared_put(queue: Queue, dsn: str, notify: str | None) -> None:
    with psycopg.connect(dsn) as connection:
        connection.tpc_begin("order-7")
        if notify is not None:
            connection.execute(f"SET LOCAL pqcore.notify = '{notify}'")
        queue.put("job", connection=connection)
        connection.tpc_prepare()
        assert queue.count() == 0
        connection.tpc_commit()


def test_put_without_waiters_can_be_prepared_for_two_phase_commit(queue: Queue, dsn: str) -> None:
    prepared_put(queue, dsn, None)
    assert queue.count() == 1


def test_put_that_notifies_cannot_be_prepared_for_two_phase_commit(queue: Queue, dsn: str) -> None:
    with ThreadPoolExecutor() as pool, psycopg.connect(dsn, autocommit=True) as eyes:
        waiter = pool.submit(queue.get, timeout=30)
        while eyes.execute(WAITERS).fetchone() == (0,):
            assert not waiter.done()
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            prepared_put(queue, dsn, None)
        prepared_put(queue, dsn, "off")
        job = waiter.result(20)
    assert job is not None
    assert job.data == "job"
