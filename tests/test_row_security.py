"""Row-level security that hides rows from a role, without an error of the server."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from pqcore import PQ, AsyncPQ, tasks
from pqcore.errors import AccessDenied, NotStored
from pqcore.testing.commands import invoke
from pqcore.testing.harness import PATIENCE, SIDE_TABLES
from pqcore.worker import Worker, maintenance

FACES = [("psycopg2", PQ), ("psycopg", PQ), ("psycopg", AsyncPQ), ("asyncpg", AsyncPQ)]
PARTS = ["", *SIDE_TABLES]


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def role(dsn: str) -> Iterator[str]:
    """A role that may do everything with the tables, and owns none."""
    name = f"app_{time.time_ns()}"
    with PQ(dsn) as pq:
        pq.create()
        pq["q"].put(1)
    execute(
        dsn,
        f"CREATE ROLE {name} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
    yield name
    execute(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.fixture
def theirs(dsn: str, role: str) -> str:
    """The DSN with which the role connects."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


async def maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_row_security_that_hides_rows_raises_an_error_naming_the_table(
    dsn: str, role: str, theirs: str, backend: str, face: Any
) -> None:
    async def main() -> None:
        pq = face(theirs, backend=backend)
        queue = pq["q"]
        acts = {
            "get": lambda: queue.get(block=False),
            "lease": lambda: queue.lease(5, block=False),
            "count": queue.count,
            "put": lambda: queue.put(2),
        }

        async def refused(table: str, *those: str) -> None:
            for name in those:
                with pytest.raises(AccessDenied, match=f'row-level security hides .*"{table}" from role .*{role}'):
                    await maybe(acts[name]())

        execute(dsn, "ALTER TABLE pqcore_migrations ENABLE ROW LEVEL SECURITY")
        await refused("pqcore_migrations", *acts)
        execute(dsn, "ALTER TABLE pqcore_migrations DISABLE ROW LEVEL SECURITY")
        execute(dsn, "ALTER TABLE queue ENABLE ROW LEVEL SECURITY")
        await refused("queue", *acts)
        execute(dsn, f"CREATE POLICY one ON queue FOR SELECT TO {role} USING (true)")
        assert await maybe(queue.count()) == 1
        await refused("queue", "get", "lease")
        execute(dsn, f"CREATE POLICY two ON queue FOR UPDATE TO {role} USING (true)")
        assert await maybe(acts["get"]()) is not None
        deleting = pq.queue("q", retention="delete")
        with pytest.raises(AccessDenied, match="no policy for INSERT, DELETE"):
            await maybe(deleting.get(block=False))
        await maybe(pq.close())

    asyncio.run(main())


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_row_security_that_hides_the_holder_of_a_dedup_key_raises_an_error(
    dsn: str, role: str, theirs: str, backend: str, face: Any
) -> None:
    with PQ(dsn) as pq:
        pq["q"].put("theirs", dedup="key")
    execute(
        dsn,
        "ALTER TABLE queue ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY own ON queue TO {role} USING (data::text <> '\"theirs\"')",
    )

    async def main() -> None:
        pq = face(theirs, backend=backend)
        queue = pq["q"]
        with pytest.raises(NotStored, match=f"no job with this key is visible: row-level security hides rows.*{role}"):
            await maybe(queue.put(2, dedup="key"))
        assert await maybe(queue.put(2, dedup="another")) > 0
        await maybe(pq.close())

    asyncio.run(main())


def test_row_security_that_begins_later_is_logged_by_a_worker(
    dsn: str, role: str, theirs: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_INTERVAL", 0.1)
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        pq: Any = tasks.AsyncPQ(theirs, backend="psycopg")
        worker = Worker(pq["q2"], poll_interval=0.05)
        working = asyncio.create_task(worker.run())
        await asyncio.to_thread(execute, dsn, "ALTER TABLE queue ENABLE ROW LEVEL SECURITY")
        deadline = time.monotonic() + PATIENCE
        while "cannot take jobs" not in caplog.text:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        worker.stop()
        await working
        await pq.close()

    asyncio.run(main())
    assert 'row-level security hides all rows of table "queue"' in caplog.text


def test_doctor_names_tables_whose_rows_row_security_hides(dsn: str, role: str, theirs: str) -> None:
    execute(dsn, *(f"ALTER TABLE queue{part} ENABLE ROW LEVEL SECURITY" for part in PARTS))
    said = invoke("doctor", "--dsn", theirs)
    assert said.returncode == 1
    for part in PARTS:
        assert f'problem  row_security row-level security hides all rows of table "queue{part}"' in said.stdout
    execute(dsn, *(f"CREATE POLICY all_of_it ON queue{part} TO {role} USING (true)" for part in PARTS))
    said = invoke("doctor", "--dsn", theirs)
    assert "ok       row_security row-level security binds role" in said.stdout
    assert "row-level security hides nothing" in invoke("doctor", "--dsn", dsn).stdout


def test_doctor_names_tables_that_row_security_leaves_open(dsn: str, role: str, theirs: str) -> None:
    secured = [part for part in PARTS if part not in ("_attempts", "_samples")]
    for part in secured:
        policy = f"CREATE POLICY all_of_it ON queue{part} TO {role} USING (true)"
        execute(dsn, f"ALTER TABLE queue{part} ENABLE ROW LEVEL SECURITY", policy)
    for each in (theirs, dsn):
        said = invoke("doctor", "--dsn", each).stdout
        assert 'warning  row_security row-level security is on for table "queue", but not for "queue_attempts",' in said
        assert 'ALTER TABLE "queue_samples" ENABLE ROW LEVEL SECURITY' in said
