"""Isolation levels that a driver, a framework or a pooler sets: pqcore's own statements are READ COMMITTED."""

from __future__ import annotations

import queue as queues
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy

from pooler import pooler
from pqcore import PQ


class Witness:
    """Record the isolation levels at which a queue's table is changed."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE seen (level text)")
        connection.execute(
            "CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO seen VALUES (current_setting('transaction_isolation')); RETURN NULL; END $$"
        )
        for table in ("queue", "queue_slots"):
            connection.execute(
                f"CREATE TRIGGER witness AFTER INSERT OR UPDATE OR DELETE ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION witness()"
            )

    def seen(self) -> set[str]:
        """Return the levels since the last call."""
        return {level for [level] in self._connection.execute("DELETE FROM seen RETURNING level")}


@pytest.fixture
def witness(dsn: str) -> Iterator[Witness]:
    with PQ(dsn) as pq:
        pq.create()
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield Witness(connection)


def use(pq: PQ) -> None:
    """Do some of each."""
    queue = pq["jobs"]
    queue.put("first")
    queue.put_many(["second", "third"], limits={"one": 1})
    assert queue.get(timeout=0) is not None
    for _ in range(2):
        queue.ack(queue.lease(60, wait=0))  # type: ignore[arg-type]
    assert queue.reencode(every=True).left == []


def over_psycopg(dsn: str, autocommit: bool) -> Any:
    connection = psycopg.connect(dsn, autocommit=autocommit)
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    return connection


def over_psycopg2(dsn: str, autocommit: bool) -> Any:
    connection = psycopg2.connect(dsn)
    connection.set_session(isolation_level="SERIALIZABLE", autocommit=autocommit)
    return connection


@pytest.mark.parametrize("autocommit", [False, True], ids=["transactions", "autocommit"])
@pytest.mark.parametrize("connect", [over_psycopg, over_psycopg2])
def test_isolation_of_a_drivers_serializable_connection_is_kept_for_blocks(
    dsn: str, witness: Witness, connect: Callable[..., Any], autocommit: bool
) -> None:
    pq = PQ(connect(dsn, autocommit))
    use(pq)
    assert witness.seen() == {"read committed"}
    with pq["jobs"] as cursor:
        cursor.execute("SHOW transaction_isolation")
        assert cursor.fetchone() == ("serializable",)
        pq["jobs"].put(1)
    assert witness.seen() == {"serializable"}
    use(pq)
    assert witness.seen() == {"read committed"}
    pq.close()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_isolation_of_a_sqlalchemy_transaction_is_kept(dsn: str, witness: Witness, driver: str) -> None:
    engine = sqlalchemy.create_engine(
        dsn.replace("postgresql://", f"postgresql+{driver}://"), isolation_level="REPEATABLE READ"
    )
    with PQ(dsn) as pq, engine.connect() as connection:
        queue = pq["jobs"]
        queue.put("limited", limits={"one": 1})
        job = queue.lease(60, wait=0)
        assert job is not None
        queue.put("waits", limits={"one": 1})
        witness.seen()
        queue.put("plain", connection=connection)
        queue.ack(job, connection=connection)
        connection.commit()
        assert witness.seen() == {"repeatable read"}
        leased = [job.data for _ in range(2) for job in queue.lease_many(9, 60, wait=0)]
        assert sorted(leased) == ["plain", "waits"]
    engine.dispose()


@pytest.mark.parametrize("backend", ["psycopg", "psycopg2"])
def test_isolation_behind_a_pooler_is_read_committed_for_own_statements(
    dsn: str, witness: Witness, backend: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET default_transaction_isolation = 'serializable'"
        )
    with pooler(dsn, queues.LifoQueue) as through:
        pq = PQ(through, backend=backend)
        use(pq)
        assert witness.seen() == {"read committed"}
        with pq["jobs"] as cursor:
            cursor.execute("SHOW transaction_isolation")
            assert cursor.fetchone() == ("serializable",)
        pq.close()
