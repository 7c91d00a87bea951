"""Query plans: a statement reads a bounded number of pages, whatever the table contains and the planner knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pqcore import PQ
from pqcore.scan_position import ScanPosition
from pqcore.sql.dialect import Dialect
from pqcore.sql.encoding_statements import SLICE
from pqcore.sql.explain_statements import MOST_LOOKED_AT
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import RETENTIONS, Query

ROWS = 50_000
MOST_ROWS = 1_500
"""The most rows that one scan may return: a thousand hidden rows, and a hundred more than those wanted."""
LEASES = 10_000
"""A statement looks for jobs that name keys among this number of leases."""
SQL = Dialect(TableName("queue"), "numeric_dollar")

FINISHED = ("enqueued_at, dequeued_at", "now() - interval '1 hour', now()")
READY = ("enqueued_at", "now() - interval '1 hour'")
FUTURE = ("schedule_at", "now() + interval '1 day'")
LEASED = ("leased_until, attempts", "now() + interval '1 day', 1")
FUTURE_EXPECTED = ("schedule_at, expected_at", "now() + interval '1 day', now() + interval '2 days'")
DUE_EXPECTED = ("schedule_at, expected_at", "now() - interval '1 hour', now() + interval '2 days'")
URGENT = ("enqueued_at, expected_at", "now() - interval '1 hour', now() + interval '1 hour'")
# Jobs that older code parked.
PARKED = (
    "leased_until, attempts, parked_on, group_key",
    "'infinity', 1, CASE n % 3 WHEN 0 THEN 'group:' ELSE 'limit:' END || n % 10, n % 10",
)
# Half of them wait in one lane, a quarter in a lane of a hundred each, the others in the lanes of ten groups.
_LANES = (
    "CASE n % 4 WHEN 0 THEN '[0,\"\",\"group:' || n / 4 % 10 || '=1\"]'"
    " WHEN 1 THEN '[0,\"' || n / 400 || '\",\"limit:' || n / 400 || '=2\"]' ELSE '[0,\"\",\"limit:x=2\"]' END"
)
WAITING = (
    "leased_until, parked_on, group_key, headers",
    f"'infinity', {_LANES}, CASE n % 4 WHEN 0 THEN (n / 4 % 10)::text END, '{{\"gate\": {{}}}}'",
)
KEYED = ("dedup_key, group_key", "'key ' || n, 'group ' || n % 10")

SCHEDULES = 2_000
"""The number of schedules of each of two queues."""

Kind = tuple[str, str]
NOTHING = (
    "payload",
    "delay",
    "schedule_at",
    "expected_at",
    "expected_in",
    "headers",
    "group_key",
    "dedup_key",
    "lane",
    "put_at",
)
"""Parameters that are null."""


@dataclass(frozen=True)
class Case:
    """A statement, the job that it is about, and the most pages that it may touch.

    A descent of an index is three or four pages, and a statement makes up to ten of them a job.
    """

    query: Query
    pages: int
    rows: int = MOST_ROWS
    leased: int = 0  # this many jobs are leased first
    running: int = 0  # the number that run under a limit
    values: tuple[tuple[str, Any], ...] = ()


def cases() -> Iterator[Case]:
    for n, pages in ((1, 60), (100, 2_700)):
        for finish in ("keep", "delete", "archive", "lease"):
            yield Case(SQL.fetch("ordered", finish, n), pages)
            yield Case(SQL.fetch("idle", finish, n), pages)
            yield Case(SQL.fetch("unguarded", finish, n), pages)
            yield Case(SQL.fetch("bounded", finish, n), pages, values=(("bound", ScanPosition().value()),))
            # Looks up a hundred jobs of each class more than those wanted, and a thousand hidden ones.
            yield Case(SQL.fetch("merged", finish, n), pages + 7_000)
        yield Case(SQL.peek(n), pages + 7_000)
        for ack in SQL.ack.values():
            yield Case(ack, pages, leased=n)
    yield Case(SQL.next_due_probe, 60)
    for n, pages in ((1, 60), (100, 2_700)):  # a probe of each index for each name
        yield Case(SQL.ready_queues, pages, values=(("names", ["jobs", *map("queue {}".format, range(n - 1))]),))
    yield Case(SQL.put, 60)
    for query in (SQL.put_json, SQL.put_timed, SQL.put_call, SQL.put_call_json, SQL.put_call_timed):
        yield Case(query, 60)
    yield Case(SQL.put_many, 2_500, values=(("items", json.dumps([{}] * 100)), ("number", 100), ("fails", True)))
    strings = json.dumps(["{}"] * 100)
    yield Case(
        SQL.put_many_encoded, 2_500, values=(("items", strings), ("number", 100), ("fails", True), ("binary", False))
    )
    for ack in SQL.ack_one.values():
        yield Case(ack, 60, leased=1)
    yield Case(SQL.nack, 60, leased=1)
    yield Case(SQL.extend, 60, leased=1)
    yield Case(SQL.update, 60)
    yield Case(SQL.cancel, 60)
    yield from task_cases()


def task_cases() -> Iterator[Case]:
    tasks = SQL.tasks
    for key in ("key 7", "new"):
        dedup = (("dedup_key", key),)
        for query in (tasks.put, tasks.put_replacing, tasks.find_duplicate, tasks.claim_key, tasks.tick):
            yield Case(query, 60, values=dedup)
        yield Case(tasks.set_key_holder, 60, values=dedup)
    yield from cases_of_many()
    for query in (tasks.replace, tasks.find_headers):
        yield Case(query, 60)
    yield from admission_cases()
    attempts = SQL.attempts
    for query in (tasks.retry, tasks.snooze, tasks.drop, tasks.bury, tasks.request_stop, attempts.crash):
        yield Case(query, 60, leased=1)
    yield Case(attempts.keep_crash, 60, leased=1)
    schedules = SQL.schedules
    for query in (schedules.set_schedule, schedules.pause_schedule, schedules.resume_schedule):
        yield Case(query, 60, values=(("name", "schedule 7"),))
    for query in (schedules.remove_schedule, schedules.find_schedule, schedules.tick_schedule):
        yield Case(query, 60, values=(("name", "schedule 7"),))
    yield Case(schedules.register_schedule, 60, values=(("name", "schedule 7"),))
    dependencies = SQL.dependencies
    parents = json.dumps([{"id": n, "on_failure": "dead", "polled": False} for n in range(100)])
    behind = (("parents", parents), ("gone", "deleted"), ("names", ["jobs", "others"]), ("n", 10))
    for query in (dependencies.put_blocked, dependencies.await_parents, dependencies.find_parents):
        yield Case(query, 4_000, leased=100, values=behind)
    edges = json.dumps([{"id": n, "on_failure": "dead", "polled": False} for n in range(10)])
    jobs = json.dumps([{"id": n, "gone": "deleted", "parents": edges} for n in range(50)])
    yield Case(dependencies.block, 10_000, values=(("items", jobs),))
    for query in (dependencies.mark_polled, dependencies.find_candidates, dependencies.queues_with_ended_parents):
        yield Case(query, 20_000, values=behind)
    for query in (dependencies.lock_blocked, dependencies.find_failed_parents, dependencies.release_blocked):
        yield Case(query, 4_000, leased=100, values=behind)
    for query in (dependencies.find_blocked, dependencies.bury_blocked, dependencies.mark_deleted):
        yield Case(query, 60)
    yield Case(dependencies.open_parents, 60, values=behind)
    for n, pages in ((1, 60), (100, 2_700)):
        for query in (tasks.release, tasks.heartbeat, tasks.find_stop_requests):
            yield Case(query, pages, leased=n)


def cases_of_many() -> Iterator[Case]:
    """A hundred jobs, each with its own options."""
    tasks, keys = SQL.tasks, [f"key {n}" for n in range(0, 500, 5)]
    items = json.dumps(
        [
            {"id": n, "q_name": "jobs", "data": "{}", "dedup_key": key, "priority": 0, "period": 60}
            for n, key in enumerate(keys)
        ]
    )
    given = (("items", items), ("dedup_keys", keys), ("number", 100), ("unkeyed", 0), ("fails", True))
    for query in (tasks.put_each, tasks.find_duplicates, tasks.find_all_held, tasks.claim_keys, tasks.set_key_holders):
        yield Case(query, 3_500, values=given)
    yield Case(tasks.replace_each, 5_000, values=(*given, ("ids", [*range(100)])))


def admission_cases() -> Iterator[Case]:
    tasks = SQL.tasks
    one, *many = lanes = [("", "limit:x", 2), *((str(n), f"limit:{n}", 2) for n in range(140)), *GROUPS]
    for n, pages in ((1, 300), (20, 1_200)):
        yield Case(SQL.take_lanes(n), pages, running=2, values=wanted([one], n, spare=20))
        yield Case(SQL.take_lanes(n), 5_000, running=2, values=wanted(lanes, n))
        for retention in RETENTIONS:
            yield Case(SQL.end_and_take(retention, n), pages, leased=1, running=2, values=wanted([one], n))
            ahead = wanted([one], n, times=50)
            yield Case(SQL.end_and_take(retention, n), pages + 500, leased=50, running=2, values=ahead)
    for ack in SQL.ack_and_tell.values():
        yield Case(ack, 60, leased=1, running=2)
    yield Case(tasks.find_lanes, 1_000, values=(("after", ""), ("newest", -1), ("since", 60.0)))
    yield Case(tasks.find_lanes, 60, values=(("after", None), ("newest", 2**62), ("since", 1.0)))
    new = json.dumps([{"key": f"limit:new {n}", "number": 2, "newest": 1} for n in range(150)])
    yield Case(tasks.create_keys, 15_000, LEASES, values=(("needs", new), ("table", "queue")))
    held = json.dumps([{"key": key, "ids": [1, 2, 3]} for _, key, _ in many])
    yield Case(tasks.add_running, 4_000, running=2, values=(("needs", held),))
    yield Case(tasks.find_unnamed, 60, values=(("lane", "?"),))
    yield Case(tasks.find_unadopted, 2_500)
    yield Case(tasks.admitted_headers, 11_000, LEASES)
    lane = text_of(one)
    yield Case(tasks.reserve, 100, running=2, values=(*wanted([one], 1), ("lane", lane)))
    yield Case(tasks.set_lanes, 2_500, leased=0, values=(("lanes", LATER),))


def explain_cases() -> Iterator[Case]:
    explain, most = SQL.explain, MOST_LOOKED_AT + 1
    lane = ("", "limit:x", 2)
    needs = json.dumps([{"place": 1, "key": "limit:x", "number": 2, "newest": 9}])
    yield Case(explain.explain_job, 60)
    yield Case(explain.explain_before, 25_000, most)
    yield Case(explain.explain_before_in_lane, 8_000, values=(("lane", text_of(lane)),))
    yield Case(explain.explain_leased, 25_000, most, values=(("names", ["jobs"]), ("n", 20)))
    yield Case(explain.explain_group, 8_000)
    yield Case(explain.explain_lock, 60, values=(("xmax", "1234"),))
    yield Case(explain.explain_key_locks, 60, values=(("keys", ["limit:x"]), ("table", "queue")))
    yield Case(explain.explain_pauses, 60, values=(("names", ["queue"]),))
    yield Case(SQL.tasks.explain_keys, 100, running=2, values=(("needs", needs),))


def text_of(lane: tuple[str, str, int]) -> str:
    share, key, places = lane
    return f'[0,"{share}","{key}={places}"]'


def wanted(lanes: list[tuple[str, str, int]], n: int, spare: int = 0, times: int = 1) -> tuple[tuple[str, Any], ...]:
    """Return the parameters of a take from some lanes, each with a share and a key."""
    placed = list(enumerate(lanes, 1))
    shares = {share: number for number, share in enumerate(dict.fromkeys(("", *(share for share, *_ in lanes))), 1)}
    rows = [
        {
            "place": place,
            "lane": text_of(lane),
            "group_key": lane[1].removeprefix("group:") if lane[1].startswith("group:") else None,
            "share": shares[lane[0]],
            "priority": 0,
            "quota": n,
            "after": None,
        }
        for place, lane in placed
    ]
    needs = [
        {"place": place, "key": key, "number": number, "newest": 9, "times": times}
        for place, (_, key, number) in placed
    ]
    turns = [{"share": number, "start": 0.0, "weight": 1.0} for number in shares.values()]
    texts = {"wanted": rows, "needs": needs, "shares": turns}
    given = [(name, json.dumps(value)) for name, value in texts.items()]
    return (*given, ("spare", spare), ("out_within", None))


GROUPS = [("", f"group:{n}", 1) for n in range(9)]
LATER = json.dumps([{"id": n, "lane": '[0,""]', "priority": 0} for n in range(100)])
CASES = list(cases())
COLD = [
    Case(SQL.tasks.find_job, 60),
    Case(SQL.tasks.sweep_keys, 200),
    Case(SQL.attempts.find_attempts, 60),
    Case(SQL.attempts.sweep_attempts, 20_000, values=(("after", -1),)),
    Case(SQL.samples.last_sample, 60),
    Case(SQL.samples.age_of_sample, 60),
    Case(SQL.samples.find_samples, 200, values=(("seconds", 900.0),)),
    Case(SQL.samples.prune_samples, 60),
    Case(SQL.schedules.find_timetables, 12_000, rows=SCHEDULES),
    Case(SQL.schedules.find_scheduled_calls, 400, values=(("names", [f"schedule {n}" for n in range(100)]),)),
    *explain_cases(),
]
"""Statements that the server plans each time."""


class Server:
    """A connection to a database with an empty queue."""

    def __init__(self, dsn: str) -> None:
        # The driver must not prepare statements: it would deallocate the test's prepared statements.
        self.connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
        self.run("SET pqcore.notify = off")
        PQ(self.connection).create()
        self.run("ALTER TABLE queue SET (autovacuum_enabled = off)")
        self.run("ALTER TABLE queue_keys SET (autovacuum_enabled = off)")
        self.run(
            "INSERT INTO queue_keys (q_name, key, version, places, running)"
            " SELECT 'jobs', kind || name, 7, 2, '{}' FROM unnest(ARRAY['limit:', 'group:']) AS kind,"
            " unnest(ARRAY['x'] || ARRAY(SELECT n::text FROM generate_series(0, 139) AS n)) AS name"
        )

        self.run(
            "INSERT INTO queue_attempts (job_id, place, q_name, put_at, token, attempt, outcome, ended_at)"
            " SELECT n, 1, 'jobs', now(), 1, 1, 'failed', now() FROM generate_series(1, 3000) AS n"
        )
        self.run(
            "INSERT INTO queue_samples (at, q_name, ready)"
            " SELECT now() - n * interval '1 minute', CASE part WHEN 0 THEN '' ELSE 'jobs ' || part END, 0"
            " FROM generate_series(0, 1439) AS n, generate_series(0, 50) AS part"
        )
        self.run("ANALYZE queue_samples")

        self.run(
            "INSERT INTO queue_schedules (q_name, name, task, cron, tz, missed, call, created_at, updated_at)"
            " SELECT q_name, 'schedule ' || n, 't', '@daily', 'UTC', 'latest', '{}', now(), '2030-01-01Z'"
            f" FROM unnest(ARRAY['jobs', 'others']) AS q_name, generate_series(1, {SCHEDULES}) AS n"
        )
        self.run(
            "INSERT INTO queue_dependencies (job_id, parent_id, q_name, on_failure, polled, gone, outcome)"
            " SELECT -n, -n % 100, 'jobs', 'dead', n % 500 = 0, 'done', CASE n % 1000 WHEN 1 THEN 'done' END"
            " FROM generate_series(1, 50000) AS n"
        )
        self.run(
            "INSERT INTO queue_blocked (job_id, q_name, put_at)"
            " SELECT -n, 'jobs', now() FROM generate_series(1, 50000) AS n"
        )
        self.run(
            "INSERT INTO queue_ticks (q_name, name, tick, cron, tz)"
            " SELECT q_name, name, '2020-01-01Z', cron, tz FROM queue_schedules"
        )

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def fill(self, *kinds: Kind, rows: int = ROWS, queues: int = 1) -> None:
        name = "'jobs'" if queues == 1 else f"'jobs-' || n % {queues}"
        for columns, values in kinds:
            self.run(
                f"INSERT INTO queue (q_name, data, {columns})"
                f" SELECT {name}, '{{}}', {values} FROM generate_series(1, {rows}) AS n"
            )

    def prepare(self, mode: str, case: Case, name: str = "tried") -> None:
        self.run(f"SET plan_cache_mode = force_{mode}_plan")
        self.run(f"PREPARE {name} AS {case.query.numbered}")

    def explain(self, case: Case, ids: list[int], name: str = "tried", options: str = "") -> Any:
        values: dict[str, Any] = dict.fromkeys(NOTHING)
        values |= {"q_name": "jobs", "channel": "jobs", "data": "{}", "serializer": "json"}
        values |= {"id": ids[0], "token": 7, "ids": ids[: case.leased], "tokens": [7] * case.leased}
        values |= {"lease": 3600.0, "schedule_in": 3600.0, "period": 3600.0, "places": 1, "failed": 1}
        values |= {"ahead": 1.0, "priority": 0, "own": ids[: case.leased], "own_tokens": [7] * case.leased}
        values |= {"task": "t", "cron": "@daily", "tz": "UTC", "missed": "latest", "call": "{}", "deadline_in": None}
        values |= {"version": datetime(2030, 1, 1, tzinfo=timezone.utc), "control": "jobs"}
        values |= {"attempt": 1, "outcome": "failed", "worker": "host:1", "crashes": 1}
        values |= dict.fromkeys(("error_type", "message", "traceback"), "no")
        values |= {"key": "limit:7", "group": "7", "groups": ["7"], "name": "tick", "table_name": "queue"}
        values |= {"tick": datetime.now(timezone.utc), "reason": "failed", "error": "{}", **dict(case.values)}
        literals = [sql.Literal(value) for value in case.query.given(values)]
        given = sql.SQL("({})").format(sql.SQL(", ").join(literals)) if literals else sql.SQL("")
        command = sql.SQL("EXPLAIN ({}) EXECUTE {} {}").format(
            sql.SQL(f"{options}FORMAT JSON"), sql.Identifier(name), given
        )
        [(found,)] = self.connection.execute(command).fetchall()
        return found[0]["Plan"]

    def offence(self, case: Case, name: str = "tried") -> str | None:
        """Return the faults of a statement's plan."""
        waiting = self.run("SELECT id FROM queue WHERE dequeued_at IS NULL ORDER BY id DESC LIMIT 100")
        ids = sorted(row[0] for row in waiting)
        self.explain(case, ids, name)  # once before, so that the catalogue's pages are not counted
        self.run("BEGIN")
        if case.running:  # the jobs have ended, and their places are free
            some = ", ".join(map(str, ids[: case.running]))
            self.run(f"UPDATE queue_keys SET running = ARRAY[{some}] WHERE key = 'limit:x'")
        if case.leased:
            some = ", ".join(map(str, ids[: case.leased]))
            self.run(f"UPDATE queue SET leased_until = now() + interval '1 h', attempts = 7 WHERE id IN ({some})")
        plan = self.explain(case, ids, name, "ANALYZE, BUFFERS, ")
        self.run("ROLLBACK")
        pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        found = [f"{pages} pages"] if pages > case.pages else []
        for node in scans(plan):
            rows = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            # The planner may read a small table of dependencies whole, after autovacuum has looked at it.
            is_whole = node["Node Type"] == "Seq Scan" and (rows > 0 or node["Relation Name"] == "queue")
            if is_whole or rows > case.rows:
                found.append(f"{node['Node Type']} of {rows} rows")
        return f"{case.query.name}: {', '.join(found)}" if found else None


@pytest.mark.parametrize("mode", ["custom", "generic"])
def test_encodings_statement_reads_slice_by_slice(server: Server, mode: str) -> None:
    server.fill(FINISHED, READY, FUTURE)
    server.run("VACUUM ANALYZE queue")
    middle = (("after", ROWS), ("last", ROWS + SLICE), ("names", ["jobs"]), ("linked", False))
    encodings = SQL.encodings
    for query in (encodings.count["table"], encodings.list["table"], encodings.headers["table"]):
        server.prepare(mode, case := Case(query, 0, values=middle))
        plan = server.explain(case, [ROWS], options="ANALYZE, BUFFERS, ")
        for node in scans(plan):
            assert node["Node Type"] == "Index Scan", query.name
            assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= SLICE, query.name
        server.run("DEALLOCATE tried")
    old = [(f"old_{name}", None) for name in ("data", "payload", "serializer", "headers")]
    for query in (encodings.read["table"], encodings.write["table"]):
        server.prepare(mode, case := Case(query, 60, leased=1, values=(*middle, *old)))
        assert server.offence(case) is None
        server.run("DEALLOCATE tried")


def scans(plan: Any) -> Iterator[Any]:
    """Yield the nodes that read the queue's table, the table of keys, or that of dependencies."""
    if plan.get("Relation Name") in ("queue", "queue_keys", "queue_dependencies"):
        yield plan
    for below in plan.get("Plans", ()):
        yield from scans(below)


@pytest.fixture
def server(dsn: str) -> Iterator[Server]:
    made = Server(dsn)
    yield made
    made.connection.close()


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param((FINISHED, READY, FUTURE), id="ready"),
        pytest.param((FINISHED, LEASED, FUTURE_EXPECTED), id="hidden"),
        pytest.param((FINISHED, URGENT, DUE_EXPECTED), id="hidden and out"),
        pytest.param((FINISHED, PARKED, KEYED), id="parked and keyed"),
        pytest.param((FINISHED, WAITING), id="waiting"),
    ],
)
def test_query_plans_do_not_depend_on_the_depth_of_the_queue(server: Server, kinds: tuple[Kind, ...]) -> None:
    server.fill(*kinds)
    offences = []
    for known in ("VACUUM", "VACUUM ANALYZE"):
        for mode in ("custom", "generic"):
            server.run(f"{known} queue")  # a rollback leaves dead rows
            for case in (*CASES, *COLD):
                server.prepare(mode, case)
                if offence := server.offence(case):
                    offences.append(f"after {known}, {mode}: {offence}")
                server.run("DEALLOCATE tried")
    assert not offences


@pytest.mark.parametrize("start", ["new", "emptied", "a hundred jobs", "a thousand queues of ten"])
def test_prepared_statement_keeps_a_good_plan_when_the_table_changes(server: Server, start: str) -> None:
    if start == "a thousand queues of ten":
        server.fill(READY, rows=10_000, queues=1_000)
    elif start != "new":
        server.fill(READY, rows=100)
    if start == "emptied":
        server.run("DELETE FROM queue")
    if start != "new":
        server.run("VACUUM ANALYZE queue")
    for number, case in enumerate(CASES):
        server.prepare("generic", case, f"case_{number}")
        server.explain(case, list(range(1, 101)), f"case_{number}")
    server.fill(FINISHED, READY, LEASED, PARKED, KEYED, WAITING, rows=20_000)  # and autovacuum does not analyze it
    assert [offence for number, case in enumerate(CASES) if (offence := server.offence(case, f"case_{number}"))] == []
