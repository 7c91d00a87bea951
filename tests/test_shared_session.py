"""A server whose clients all share one session, such as PGlite, is recognized by what its ``version()`` returns.

The server of these tests has a session for each connection. Only its ``version()`` is replaced, so these tests show
what pqcore does and leaves out there. `tests.matrix` runs pqcore over PGlite itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import psycopg
import pytest

from pqcore.backend import BackendSpec
from pqcore.db.dsn import with_options
from pqcore.db.shared_session import SHARED, shares_session
from pqcore.errors import ConfigurationError, PoolTimeout
from pqcore.plugins import plugins
from pqcore.testing.harness import Harness

SPECS = {
    spec.name if spec.mode == "blocking" else f"{spec.name}-async": spec
    for spec in plugins.backend_specs()
    if spec.name in ("psycopg2", "psycopg", "asyncpg")
}
PGLITE = (
    "PostgreSQL 18.6 (PGlite 0.5.14) on wasm32-unknown-emscripten, compiled by emcc (Emscripten gcc/clang-like), 32-bit"
)
SOLE = "sole"


@pytest.fixture
def pretended(dsn: str) -> str:
    """The DSN of a database in which ``version()`` returns what PGlite's returns; connections have a name."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA pretended")
        connection.execute(f"CREATE FUNCTION pretended.version() RETURNS text RETURN '{PGLITE}'".encode())
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET search_path = pretended, pg_catalog, public".encode()
        )
    return with_options(dsn, application_name=SOLE)


@pytest.fixture
def harness(request: pytest.FixtureRequest, dsn: str, pretended: str) -> Iterator[Harness]:
    spec: BackendSpec = SPECS[request.param]
    made = Harness(spec, dsn)
    made.pq()
    yield made
    made.close()


every = pytest.mark.parametrize("harness", SPECS, indirect=True)


def connections(harness: Harness) -> int:
    [[number]] = harness.sql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{SOLE}'")
    return int(number)


@every
def test_server_with_a_shared_session_gets_one_connection_that_changes_nothing(
    harness: Harness, pretended: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = harness.pq(pretended, create=False, prepared=None, pool_timeout=0.5)["a"]
    harness.at_once(*[partial(queue.put, number) for number in range(8)])
    for _ in range(8):
        with queue:
            assert queue.get() is not None
    with queue:
        assert harness.sql_within(queue, "SELECT count(*) FROM pg_prepared_statements") == [(0,)]
        changed = "SELECT name FROM pg_settings WHERE name IN ('jit', 'client_connection_check_interval')"
        assert harness.sql_within(queue, f"{changed} AND source = 'session'") == []
        with pytest.raises(PoolTimeout, match="only one client at a time is safe"):
            harness.at_once(queue.count)
    with harness.thread(lambda: queue.get(timeout=20)) as join:
        harness.queue("a", create=False).put("late")
        assert join().data == "late"
    assert harness.waiting() == []
    assert connections(harness) == 1
    assert [record.message for record in caplog.records] == [SHARED]


@every
def test_shared_session_is_recognized_although_nothing_may_be_prepared(
    harness: Harness, pretended: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = harness.pq(pretended, create=False, prepared=False)["a"]
    harness.at_once(*[partial(queue.put, number) for number in range(8)])
    assert connections(harness) == 1
    assert [record.message for record in caplog.records] == [SHARED]


@every
@pytest.mark.parametrize("known", [True, False], ids=["known before", "found by the worker"])
def test_worker_on_a_shared_session_uses_the_connection_of_its_queue(
    harness: Harness, pretended: str, known: bool
) -> None:
    tasks = harness.tasks(pretended, create=False, prepared=None)["a"]
    ran: list[int] = []

    @tasks.task  # type: ignore[untyped-decorator]
    async def counted(job_id: int) -> None:
        ran.append(job_id)

    if known:
        counted()
    with harness.working(tasks, poll_interval=0.05):
        counted()
        harness.eventually(lambda: len(ran) == 1 + known)
        assert connections(harness) == 1
    counted()  # the worker has left the connection open
    assert connections(harness) == 1


@pytest.mark.parametrize("harness", ["asyncpg-async"], indirect=True)
def test_asyncpg_pool_of_several_connections_is_refused_on_a_shared_session(harness: Harness, pretended: str) -> None:
    queue = harness.pq(pool=harness.pool(2, pretended), create=False, prepared=None)["a"]
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"may open 2 connections.* at most 1 connection"):
            queue.put(1)
    sole = harness.pq(pool=harness.pool(1, pretended), create=False, prepared=None)["a"]
    sole.put(1)
    assert sole.get().data == 1


@pytest.mark.parametrize(
    ("version", "shares"),
    [
        (PGLITE, True),
        ("PostgreSQL 16.4 on x86_64-pc-linux-gnu, compiled by emcc (Emscripten gcc/clang-like) 3.1.72, 32-bit", True),
        ("PostgreSQL 18.6 on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0-14) 12.2.0, 64-bit", False),
        ("", False),
    ],
)
def test_shared_session_is_known_by_the_text_of_the_version(version: str, shares: bool) -> None:
    assert shares_session(version) is shares
