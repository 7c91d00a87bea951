"""Tables in partitions by the queue's name: their creation, the partitions that statements read, and refusals."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pqcore import PQ, AsyncPQ
from pqcore.errors import ConfigurationError
from pqcore.scan_position import ScanPosition
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Query
from pqcore.testing.commands import invoke

NUMBER = 4
QUEUES = [f"queue {n}" for n in range(12)]
SQL = Dialect(TableName("queue"), "numeric_dollar")


def rows(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn) as made:
        made.create(partitions=NUMBER)
        yield made


def test_partitioned_queue_is_in_one_partition(pq: PQ, dsn: str) -> None:
    for name in QUEUES:
        pq[name].put_many(range(3))
    found = rows(dsn, "SELECT q_name, count(DISTINCT tableoid), count(*) FROM queue GROUP BY 1")
    assert sorted(found) == [(name, 1, 3) for name in sorted(QUEUES)]
    used = {row[0] for row in rows(dsn, "SELECT DISTINCT tableoid::regclass::text FROM queue")}
    assert used <= {f"queue_p{place}" for place in range(NUMBER)}
    assert len(used) > 1
    options = rows(dsn, "SELECT DISTINCT reloptions FROM pg_class WHERE relname ~ '^queue_p[0-9]$'")
    assert ["vacuum_index_cleanup=on" in each for [each] in options] == [True]
    assert rows(dsn, "SELECT count(*) FROM pg_class WHERE relname ~ '^queue_p[0-9]$' AND relkind = 'r'") == [(NUMBER,)]


def statements() -> Iterator[Query]:
    for n in (1, 100):
        for finish in ("keep", "delete", "archive", "lease"):
            for pick in ("ordered", "unguarded", "bounded", "merged"):
                yield SQL.fetch(pick, finish, n)
    tasks = SQL.tasks
    yield from (*SQL.ack.values(), *SQL.restore.values())
    yield from (SQL.peek(1), SQL.next_due_probe, SQL.nack, SQL.extend, SQL.update, SQL.cancel, SQL.count, SQL.stats)
    yield from (tasks.put, tasks.put_replacing, tasks.find_duplicate, tasks.replace)
    yield from (tasks.retry, tasks.snooze)
    yield from (tasks.release, tasks.drop, tasks.find_headers, tasks.request_stop, tasks.bury, tasks.find_job)
    yield from (
        tasks.revive,
        tasks.find_lanes,
        tasks.find_unnamed,
        tasks.find_unadopted,
        tasks.set_lanes,
        tasks.reserve,
        tasks.create_keys,
    )
    yield from (tasks.admitted_headers, tasks.sweep_keys, SQL.take_lanes(1))
    yield from (*SQL.ack_and_tell.values(), *(SQL.end_and_take(retention, 1) for retention in SQL.ack))
    admin = SQL.admin
    yield from (admin.list_ready, admin.list_scheduled, admin.list_leased, admin.list_parked)
    yield from (admin.rerun_finished, admin.rerun_archived, admin.run_now)


VALUES: dict[str, Any] = dict.fromkeys(
    (
        "payload",
        "delay",
        "schedule_at",
        "schedule_in",
        "expected_at",
        "expected_in",
        "headers",
        "group_key",
        "put_at",
        "task",
        "age",
        "search",
        "written",
    )
)
VALUES |= {"attempt": 1, "outcome": "failed", "worker": "host:1", "error_type": "E", "message": "", "traceback": ""}
VALUES |= {"channel": "jobs", "data": "{}", "serializer": "json", "id": 1, "token": 7, "ids": [1], "tokens": [7]}
VALUES |= {
    "lease": 60.0,
    "places": 1,
    "failed": 1,
    "key": "limit:7",
    "keys": ["limit:7"],
    "group": "7",
    "groups": ["7"],
}
VALUES |= {
    "started": [1],
    "excuses": [1],
    "delay": 1.0,
    "priority": 0,
    "newest": 1,
    "after": "",
    "since": 1.0,
    "table": "queue",
}
VALUES |= {"lane": '[0,"","limit:x=2"]', "lanes": "[]", "wanted": "[]", "needs": "[]", "shares": "[]"}
VALUES |= {
    "spare": 0,
    "out_within": None,
    "skip": 0,
    "ahead": 1.0,
    "own": [1],
    "own_tokens": [7],
    "gone": "done",
    "parents": "[]",
}
VALUES |= {"reason": "failed", "error": "{}", "attempts": 1, "n": 5, "dedup_key": "k", "failures": 0, "excused": 0}
VALUES |= {"enqueued_at": "2026-01-01 00:00Z", "bound": ScanPosition().value()}


def test_partitioned_statements_read_one_partition(pq: PQ, dsn: str) -> None:
    for name in QUEUES:
        pq[name].put(1)
    [(partition,)] = rows(dsn, f"SELECT tableoid::regclass::text FROM queue WHERE q_name = '{QUEUES[0]}'")
    looked_at: dict[str, set[str]] = {}
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        for query in statements():
            connection.execute(f"PREPARE one AS {query.numbered}".encode())
            values = {**VALUES, "q_name": QUEUES[0]}
            given = sql.SQL(", ").join(sql.Literal(value) for value in query.given(values))
            [[plan]] = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE one({})").format(given))
            connection.execute("DEALLOCATE one")
            looked_at[query.name] = set(re.findall(r'"Relation Name": "(queue_p\d)"', json.dumps(plan)))
    assert len(looked_at) > 60
    # A plan of INSERT alone does not say where the row goes.
    elsewhere = {name: found for name, found in looked_at.items() if found not in ({partition}, set())}
    assert elsewhere == {}
    assert {name for name, found in looked_at.items() if not found} <= {
        *("put_keyed", "put_replacing", "restore_delete", "restore_archive", "revive", "rerun_archived")
    }


def test_partition_number_is_fixed_at_creation(pq: PQ, dsn: str) -> None:
    pq.create(partitions=NUMBER)
    pq.create()
    with pytest.raises(ConfigurationError, match='table "queue" exists, with 4 partitions, not 3'):
        pq.create(partitions=3)
    with PQ(dsn, table="whole") as other:
        other.create()
        with pytest.raises(ConfigurationError, match="with no partitions, not 4"):
            other.create(partitions=NUMBER)


@pytest.mark.parametrize("number", [0, -1, 1_001, True, 1.5, "4"])
def test_partition_number_of_a_bad_value_is_refused(dsn: str, number: Any) -> None:
    with PQ(dsn) as pq, pytest.raises(ConfigurationError, match="give a number from 1 to 1,000"):
        pq.create(partitions=number)
    assert rows(dsn, "SELECT to_regclass('queue')") == [(None,)]


def test_partitions_are_created_by_the_async_face_with_odd_names(dsn: str) -> None:
    async def main() -> None:
        async with AsyncPQ(dsn, table='fruit.of {a} "tree"', schema="orchard's") as pq:
            await pq.create(partitions=2)
            await pq["q"].put(1)
            job = await pq["q"].get(timeout=0)
            assert job is not None
            assert job.data == 1

    asyncio.run(main())
    assert rows(dsn, "SELECT count(*) FROM pg_inherits WHERE inhparent::regclass::text ~ 'tree\"+$'") == [(2,)]


def test_partitioned_ids_come_from_one_sequence_in_order(pq: PQ) -> None:
    ids = [pq[name].put(place) for place, name in enumerate(QUEUES)]
    assert ids == sorted(set(ids))
    queue = pq["ordered"]
    queue.put_many(range(100))
    assert [job.data for job in queue.get_many(100)] == list(range(100))


def test_partitioned_jobs_move_between_partitions(pq: PQ, dsn: str) -> None:
    pq[QUEUES[0]].put_many(range(50))
    for target in QUEUES[1:4]:
        assert pq[QUEUES[0]].move(target, most=10) == 10
    held = pq[QUEUES[1]].lease()
    assert held is not None
    assert pq[QUEUES[1]].move(QUEUES[5]) == 9
    held.ack()
    assert [len(pq[name]) for name in (*QUEUES[:4], QUEUES[5])] == [20, 0, 10, 10, 9]
    assert rows(dsn, "SELECT count(*), count(DISTINCT id) FROM queue") == [(50, 50)]


def test_partitioned_data_are_reencoded_in_all_partitions(pq: PQ) -> None:
    for name in QUEUES:
        pq[name].put_many(range(3))
    done = pq.reencode(*[pq.queue(name, serializer="msgpack", accept=("json",)) for name in QUEUES], step=2)
    assert (done.rewritten, done.left) == (3 * len(QUEUES), [])
    for name in QUEUES:
        assert [job.data for job in pq.queue(name, serializer="msgpack").get_many(3)] == [0, 1, 2]


def test_partitioned_table_made_by_hand_is_adopted(dsn: str) -> None:
    rows(
        dsn,
        """
CREATE TABLE queue (
  id bigserial, enqueued_at timestamptz NOT NULL DEFAULT current_timestamp, dequeued_at timestamptz,
  expected_at timestamptz, schedule_at timestamptz, q_name text NOT NULL CHECK (length(q_name) > 0), data json,
  PRIMARY KEY (id, q_name)
) PARTITION BY LIST (q_name);
CREATE TABLE queue_mails PARTITION OF queue FOR VALUES IN ('mails');
CREATE TABLE queue_others PARTITION OF queue DEFAULT;
INSERT INTO queue (q_name, data) VALUES ('mails', '1'), ('reports', '2')""",
    )
    with PQ(dsn) as pq:
        pq.create()
        pq["mails"].put(3)
        assert [job.data for job in pq["mails"].get_many(2)] == [1, 3]
        assert [job.data for job in pq["reports"].get_many(2)] == [2]
        pq.create(partitions=2)
    assert rows(dsn, "SELECT count(*) FROM queue_mails") == [(2,)]
    options = rows(
        dsn,
        "SELECT 'vacuum_truncate=off' = ANY (reloptions) FROM pg_class"
        " WHERE relname IN ('queue_mails', 'queue_others')",
    )
    assert options == [(True,), (True,)]


def test_commands_support_partitions(dsn: str) -> None:
    script = invoke("create", "--sql", "--partitions", "2", "--table", "written", "--dsn", dsn).stdout
    assert "PARTITION BY HASH (q_name)" in script
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script.encode())
    with PQ(dsn, table="written") as pq:
        pq.create(partitions=2)
        assert pq["q"].put(1) == 1
    made = invoke("create", "--partitions", "3", "--dsn", dsn)
    assert "was made" in made.stdout, made.stderr
    assert "is up to date" in invoke("create", "--partitions", "3", "--dsn", dsn).stdout
    refused = invoke("create", "--partitions", "2", "--dsn", dsn)
    assert refused.returncode != 0
    assert "with 3 partitions, not 2" in refused.stderr
    with PQ(dsn) as pq:
        for name in QUEUES:
            pq[name].put_many(range(10))
    findings = [json.loads(line) for line in invoke("doctor", "--json", "--dsn", dsn).stdout.splitlines()]
    of_table = {"schema", "indexes", "trigger", "autovacuum", "bloat", "plan"}
    assert {each["check"]: each["level"] for each in findings if each["check"] in of_table} == dict.fromkeys(
        of_table, "ok"
    )
