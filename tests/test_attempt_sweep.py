"""How workers delete the attempts of jobs that are gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from pqcore import PQ
from pqcore.db.runtime import run_sync
from pqcore.operations.attempts import RESTS, AttemptSweep

ATTEMPT = (
    "INSERT INTO queue_attempts (job_id, place, q_name, put_at, token, attempt, outcome, ended_at)"
    " SELECT id, 1, q_name, enqueued_at, 1, 1, 'failed', now() FROM queue"
)


@pytest.fixture
def eyes(dsn: str) -> Iterator[psycopg.Connection]:
    with PQ(dsn) as pq:
        pq.create()
        pq["acme"].put_many([1, 2])
        pq["other"].put(1)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ATTEMPT)
        yield connection


def test_attempt_sweep_rests_after_a_pass_that_found_little(dsn: str, eyes: psycopg.Connection) -> None:
    with PQ(dsn) as pq:
        sweep = AttemptSweep("acme")

        def run() -> int:
            return run_sync(sweep.run(pq.engine))

        assert run() == 0
        eyes.execute("DELETE FROM queue")
        assert [run() for _ in range(RESTS + 1)] == [0] * RESTS + [3]
        eyes.execute("INSERT INTO queue_attempts VALUES (7, 1, 'q', now(), 1, 1, 'failed', now())")
        assert run() == 1


@pytest.mark.parametrize("separated", [False, True])
def test_attempt_sweep_leaves_attempts_of_jobs_that_row_security_hides(
    dsn: str, eyes: psycopg.Connection, separated: bool
) -> None:
    parts = urlsplit(dsn)
    role = f"acme_{time.time_ns()}"
    eyes.execute(f"CREATE ROLE {role} LOGIN".encode())
    eyes.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}".encode())
    for table in ("queue", "queue_dead", "queue_archive", "queue_attempts")[: 4 if separated else 3]:
        eyes.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
        eyes.execute(f"CREATE POLICY acme ON {table} USING (q_name = 'acme')".encode())
    eyes.execute("DELETE FROM queue WHERE id = 1")
    try:
        with PQ(urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))) as pq:
            assert pq["acme"].count() == 1
            assert run_sync(AttemptSweep("acme").run(pq.engine)) == int(separated)
        left = eyes.execute("SELECT job_id FROM queue_attempts ORDER BY job_id").fetchall()
        assert left == ([(2,), (3,)] if separated else [(1,), (2,), (3,)])
    finally:
        eyes.execute(f"DROP OWNED BY {role}".encode())
        eyes.execute(f"DROP ROLE {role}".encode())
