"""Standbys: their figures are marked as old, and they refuse puts and takes."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pqcore import PQ, AsyncPQ
from pqcore.errors import DatabaseError
from pqcore.testing.commands import invoke
from pqcore.testing.harness import PATIENCE
from pqcore_backends.embedded import EmbeddedServer

BACKENDS = ["psycopg2", "psycopg"]


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """A primary, whose commits return when they are visible on the standby, and the standby."""
    folder = tmp_path_factory.mktemp("cluster")
    for parent in (folder, *folder.parents):  # the server's user must be able to reach the data
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    data = [folder / "primary", folder / "standby"]
    with EmbeddedServer(data_dir=data[0]) as server, PQ(server.dsn()) as pq:
        pq.create()
        pq["fruit"].put({"n": 1})
    shutil.copytree(data[0], data[1])
    (data[1] / "standby.signal").touch()
    with (
        EmbeddedServer(
            data_dir=data[0],
            settings={"wal_level": "replica", "synchronous_standby_names": "*", "synchronous_commit": "remote_apply"},
        ) as primary,
        EmbeddedServer(data_dir=data[1]) as standby,
    ):
        yield primary, standby


@pytest.fixture(scope="module")
def unfollowing(cluster: tuple[EmbeddedServer, EmbeddedServer]) -> EmbeddedServer:
    """The standby, before it follows its primary."""
    with PQ(cluster[1].dsn()) as pq:
        stats = pq["fruit"].stats()
    assert stats.ready == 1
    assert stats.stale is not None, "it has replayed no commit since it was started"
    assert 0 <= stats.stale < PATIENCE
    return cluster[1]


@pytest.fixture(scope="module")
def dsns(cluster: tuple[EmbeddedServer, EmbeddedServer], unfollowing: EmbeddedServer) -> tuple[str, str]:
    """The addresses of the primary and of its standby."""
    primary, standby = cluster
    follow = f"host={primary.host} port={primary.port} user=postgres"
    execute(standby.dsn(), f"ALTER SYSTEM SET primary_conninfo = '{follow}'")
    execute(standby.dsn(), "SELECT pg_reload_conf()")
    execute(primary.dsn(), "CREATE TABLE follows ()")  # waits until it does
    return primary.dsn(), standby.dsn()


@pytest.mark.parametrize("backend", BACKENDS)
def test_standby_stats_say_how_old_they_may_be(dsns: tuple[str, str], backend: str) -> None:
    with PQ(dsns[0], backend=backend) as primary, PQ(dsns[1], backend=backend) as standby:
        primary["q"].clear()
        primary["q"].put_many([1, 2, 3])
        found = standby.stats()
        assert found["q"].ready == 3
        assert found["q"].stale is not None
        assert 0 <= found["q"].stale < PATIENCE
        assert primary.stats()["q"].stale is primary["q"].stats().stale is primary["nothing"].stats().stale is None
        assert standby["nothing"].stats().stale is not None
        assert standby.stats().keys() == primary.stats().keys()


def test_standby_that_lags_reports_the_age_of_its_data(dsns: tuple[str, str]) -> None:
    with PQ(dsns[0]) as primary, PQ(dsns[1]) as standby:
        primary["lags"].put(1)
        execute(dsns[1], "SELECT pg_wal_replay_pause()")
        try:
            with psycopg.connect(dsns[0], autocommit=True) as connection:
                connection.execute("SET synchronous_commit = local")
                primary["lags"].put(2, connection=connection)
            one, other = standby["lags"].stats(), standby["lags"].stats()
        finally:
            execute(dsns[1], "SELECT pg_wal_replay_resume()")
        assert (one.ready, other.ready, primary["lags"].stats().ready) == (1, 1, 2)
        assert one.stale is not None
        assert other.stale is not None
        assert 0 < one.stale < other.stale


@pytest.mark.parametrize("backend", BACKENDS)
def test_standby_refuses_puts_and_gets(dsns: tuple[str, str], backend: str) -> None:
    with PQ(dsns[0], backend=backend) as primary, PQ(dsns[1], backend=backend) as standby:
        primary["refused"].put(1)
        queue = standby["refused"]
        attempts: list[Callable[[], object]] = [
            lambda: queue.put(2),
            lambda: queue.put_many([2, 3]),
            lambda: queue.get(block=False),
            lambda: queue.get(timeout=PATIENCE),
            lambda: queue.lease(block=False),
            queue.clear,
        ]
        for attempt in attempts:
            with pytest.raises(DatabaseError, match=r"to the primary.*target_session_attrs=read-write") as raised:
                attempt()
            assert raised.value.sqlstate == "25006"
        assert [job.data for job in primary["refused"].get_many(2, block=False)] == [1]


def test_standby_refuses_puts_and_gets_of_asyncpg(dsns: tuple[str, str]) -> None:
    async def main() -> None:
        async with AsyncPQ(dsns[1], backend="asyncpg") as standby:
            stats = await standby["asynchronous"].stats()
            assert stats.stale is not None
            with pytest.raises(DatabaseError, match="connect to the primary"):
                await standby["asynchronous"].put(1)
            with pytest.raises(DatabaseError, match="connect to the primary"):
                await standby["asynchronous"].get(timeout=PATIENCE)

    asyncio.run(main())


def test_dsn_with_target_session_attrs_reaches_the_primary(
    cluster: tuple[EmbeddedServer, EmbeddedServer], dsns: object
) -> None:
    hosts = ",".join(f"{server.host}:{server.port}" for server in reversed(cluster))
    with PQ(f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write") as pq:
        pq["found"].put(1)
        assert pq["found"].stats().stale is None


def test_commands_report_a_standby(dsns: tuple[str, str]) -> None:
    with PQ(dsns[0]) as primary:
        primary["told"].put(1)
    done = invoke("stats", "--queue", "told", "--dsn", dsns[1])
    assert "the server is a standby: the last commit that it knows is " in done.stdout, done.stderr
    assert json.loads(invoke("stats", "--queue", "told", "--json", "--dsn", dsns[1]).stdout)["stale"] >= 0
    assert "a standby" not in invoke("stats", "--dsn", dsns[0]).stdout
    done = invoke("put", "--queue", "told", "1", "--dsn", dsns[1])
    assert done.returncode != 0
    assert "connect to the primary" in done.stderr
    assert "Traceback" not in done.stderr
    with PQ(dsns[0], table="empty") as primary:
        primary.create()
    done = invoke("stats", "--table", "empty", "--dsn", dsns[1])
    assert "nothing waits" in done.stdout
    assert "a standby: " in done.stdout
