"""``pqcore doctor``: it reports faults with advice, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import queue
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from click.testing import CliRunner, Result

from pooler import pooler
from pqcore import PQ, tasks
from pqcore.cli.app import app
from pqcore.doctor import examine, server_checks
from pqcore.schema import sequences
from pqcore.schema.metadata import declared_tables
from pqcore.sql.identifiers import TableName
from pqcore.testing.harness import PATIENCE
from pqcore.worker import Worker

BACKENDS = ["psycopg2", "psycopg", "asyncpg"]
CHECKS = [
    "server", "durability", "connections", "clock", "listen", "notifications", "snapshots", "row_security",
    "schema", "privileges", "indexes", "sequences", "trigger", "put_function", "autovacuum",
    "bloat", "batches", "dependencies", "put_off", "backlog", "leases", "dead_letters", "expiry", "samples", "pauses",
    "ticks", "encodings", "plan",
]  # fmt: skip


NO_INDEX = ("indexscan", "indexonlyscan", "bitmapscan")


def doctor(dsn: str, *arguments: str) -> Result:
    variables = {"PQCORE_DSN": dsn, "PGCONNECT_TIMEOUT": "10", "PQCORE_BACKEND": None}
    done = CliRunner().invoke(app, ["doctor", *arguments], env=variables)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def findings(dsn: str, *arguments: str, code: int | None = None) -> dict[str, list[Any]]:
    """Return the findings by check; the exit code must be 1 if, and only if, one of them is a problem."""
    done = doctor(dsn, *arguments, "--json")
    found: dict[str, list[Any]] = {}
    for line in done.stdout.splitlines():
        one = json.loads(line)
        assert set(one) == {"check", "level", "message", "advice", "details"}
        found.setdefault(one["check"], []).append(one)
    assert found, done.output
    problem = any(one["level"] == "problem" for each in found.values() for one in each)
    assert done.exit_code == int(problem), done.output
    return found


def execute(dsn: str, *statements: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


class Role(NamedTuple):
    """A role without privileges, and a DSN with which it logs in."""

    name: str
    dsn: str


@pytest.fixture
def clerk(dsn: str) -> Iterator[Role]:
    name, parts = "clerk_" + dsn.rpartition("_")[2], urlsplit(dsn)
    execute(dsn, f"CREATE ROLE {name} LOGIN PASSWORD 'hush-hush'")
    yield Role(name, urlunsplit(parts._replace(netloc=f"{name}:hush-hush@{parts.hostname}:{parts.port}")))
    execute(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


@pytest.mark.parametrize("backend", BACKENDS)
def test_doctor_finds_no_problem_in_a_good_table(dsn: str, pq: PQ, backend: str) -> None:
    """A healthy table: `doctor` reports only the settings of the tests' server, and takes and changes nothing."""
    for name in ("a", "it's \\ %s"):
        pq[name].put_many(range(100))
        pq[name].put(1, schedule_at="1h", expected_at="2h")
    pq["a"].get_many(10)
    execute(dsn, "VACUUM ANALYZE queue")
    rows = "SELECT ctid, xmin, xmax, * FROM queue ORDER BY id"
    before = repr(execute(dsn, rows))
    found = findings(dsn, "--backend", backend)
    assert list(found) == CHECKS
    worse = {name: each for name, each in found.items() if any(one["level"] != "ok" for one in each)}
    worse.pop("durability", None)  # of the server of the tests
    worse.pop("clock", None)  # of a machine that is busy
    assert worse == {}
    assert found["plan"][0]["details"]["queues"] == ["it's \\ %s", "a"]
    assert found["server"][0]["details"]["backend"] == backend
    named = findings(dsn, "--backend", backend, "--queue", "none", "--queue", "a/pickle")
    assert named["plan"][0]["details"]["queues"] == ["none", "a"]
    text = doctor(dsn, "--backend", backend)
    assert all(name in text.stdout for name in CHECKS)
    assert repr(execute(dsn, rows)) == before


def test_doctor_names_batches_whose_jobs_are_gone(dsn: str) -> None:
    with tasks.PQ(dsn, backend="psycopg") as pq:
        pq.create()
        part = pq["q"].task()(lambda job_id: None)
        gone, alive = (pq["q"].batch(part.call(_schedule_at="1h"), part.call(_schedule_at="1h")) for _ in range(2))
        elsewhere = pq["q"].batch(part.call())
        pq["q"].move("another", [int(elsewhere.jobs[0])])
    execute(dsn, f"DELETE FROM queue WHERE id = {int(gone.jobs[0])} OR id = {int(alive.jobs[0])}")
    assert findings(dsn)["batches"][0]["level"] == "ok"
    execute(dsn, f"DELETE FROM queue WHERE id = {int(gone.jobs[1])}")
    [found] = findings(dsn)["batches"]
    assert (found["level"], found["details"]["lost"]) == (
        "warning",
        [{"batch": gone.id, "queue": "q", "pending": 2}],
    )
    assert "worker" in found["advice"]


def test_doctor_names_jobs_whose_parents_are_gone(dsn: str, pq: PQ) -> None:
    parent = pq["q"].put("parent")
    child, other = pq["q"].put("child", after=parent), pq["q"].put("other", after=pq["q"].put("alive"))
    assert findings(dsn)["dependencies"][0]["message"] == "2 jobs wait for other jobs, and none of those is gone"
    pq["q"].cancel(other)
    assert findings(dsn)["dependencies"][0]["message"] == "1 job waits for other jobs, and none of those is gone"
    execute(dsn, "SET session_replication_role = replica", f"DELETE FROM queue WHERE id = {parent}")
    [found] = findings(dsn)["dependencies"]
    message = (
        "1 job waits for jobs whose end was not recorded, or that are gone; the first is job {}, which waits for job"
    )
    assert (found["level"], found["message"]) == ("warning", f"{message.format(child)} {parent}")
    assert found["advice"] == f"pqcore retry {child}, or pqcore cancel {child}"
    done = CliRunner().invoke(app, ["retry", str(child)], env={"PQCORE_DSN": dsn})
    assert done.output == f"job {child} of 'q' was scheduled, and is due now\n"
    [found] = findings(dsn)["dependencies"]
    assert (found["level"], found["details"]) == ("ok", {"waiting": {}, "lost": []})


def test_doctor_names_jobs_that_wait_for_another_deployment(dsn: str, pq: PQ) -> None:
    with tasks.PQ(dsn, backend="psycopg") as declared:
        queue = declared["q"]
        declared["q/pickle"].put({1})
        queue.put({"function": "nowhere.at.all", "args": [], "kwargs": {}})
        assert findings(dsn)["put_off"][0]["level"] == "ok"
        asyncio.run(Worker(queue, burst=True).run())
    [found] = findings(dsn)["put_off"]
    assert found["level"] == "warning"
    jobs = {job["reason"]: (job["queue"], job["number"]) for job in found["details"]["jobs"]}
    assert jobs == {"unknown": ("q", 1), "unreadable": ("q", 1)}
    assert "deploy workers" in found["advice"]


def test_doctor_names_jobs_that_no_worker_runs(dsn: str, pq: PQ) -> None:
    assert [findings(dsn)[check][0]["level"] for check in ("backlog", "leases", "dead_letters")] == ["ok"] * 3
    pq["a"].put_many([1, 2])
    held = pq["b"].put(1)
    leased = pq["b"].lease(1)
    assert leased is not None
    pq["c"].put(1)
    lost = pq["c"].get()
    assert lost is not None
    lost.bury("rotten")
    execute(
        dsn,
        "UPDATE queue SET enqueued_at = enqueued_at - interval '10 min' WHERE q_name = 'a'",
        f"UPDATE queue SET leased_until = leased_until - interval '2 min' WHERE id = {held}",
    )
    found = findings(dsn)
    [backlog] = found["backlog"]
    assert re.match(
        r"2 jobs of queue 'a' are ready, the first for 60\d s, and no worker of the queue", backlog["message"]
    )
    [leases] = found["leases"]
    assert re.match(r"1 leases of queue 'b' have run out, the first 1\d\d s ago", leases["message"])
    [dead] = found["dead_letters"]
    assert dead["message"] == "1 job failed for good, 1 of them in queue 'c'"
    assert {one["level"] for one in (backlog, leases, dead)} == {"warning"}
    execute(
        dsn,
        "INSERT INTO queue_workers (q_name, id, host, pid, version, tasks, concurrency, started_at, seen_at, quiet)"
        " VALUES ('a', 'w', 'h', 1, '1', '[]', 1, now(), now(), true)",
    )
    [backlog] = findings(dsn)["backlog"]
    assert "and all workers of the queue were told to take no more jobs" in backlog["message"]


def test_doctor_sends_no_notification_where_told_so(dsn: str, pq: PQ) -> None:
    [one] = findings(dsn, "--read-only")["listen"]
    assert (one["level"], one["message"]) == ("ok", "no notification was sent, because of --read-only")
    assert one["details"] == {"heard": False, "seconds": None, "pooler": False}


def test_doctor_goes_on_where_a_check_waits_for_a_lock(dsn: str, pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "LIMIT", 1.0)
    with psycopg.connect(dsn) as other:
        other.execute("LOCK queue_dead")
        found = findings(dsn)
    [one] = found["dead_letters"]
    assert one["level"] == "warning"
    assert "took longer than 1 s, and was cancelled" in one["message"]
    assert "pg_blocking_pids" in one["advice"]
    assert [one["level"] for one in found["pauses"]] == ["ok"]


def test_doctor_names_pauses_in_force(dsn: str, pq: PQ) -> None:
    assert findings(dsn)["pauses"][0]["level"] == "ok"
    pq["q"].pause("1h", task="app.send")
    [found] = findings(dsn)["pauses"]
    assert found["level"] == "warning"
    assert "no job of task 'app.send' of queue 'q' starts for 3" in found["message"]
    assert "pqcore resume --queue q --task app.send" in found["advice"]
    execute(dsn, "UPDATE queue_rules SET until = now()")
    assert findings(dsn)["pauses"][0]["level"] == "ok"
    pq["q"].pause()
    [found] = findings(dsn)["pauses"]
    assert "no job of queue 'q' starts until it is resumed" in found["message"]
    assert [pause["name"] for pause in found["details"]["pauses"]] == ["queue"]


def test_doctor_names_periodic_tasks_that_are_late(dsn: str, pq: PQ) -> None:
    values = "('q', '{}', now() - interval '{}', '{}', 'UTC')"
    insert = f"INSERT INTO queue_ticks (q_name, name, tick, cron, tz) VALUES {values}"
    execute(dsn, insert.format("in time", "1 s", "0 0 1 1 *"), insert.format("unreadable", "1 day", "whenever"))
    assert findings(dsn)["ticks"][0]["level"] == "ok"
    execute(dsn, insert.format("nightly", "1 hour", "* * * * *"), insert.format("it''s", "2 hours", "* * * * *"))
    [found] = findings(dsn)["ticks"]
    assert found["level"] == "warning"
    assert "2 periodic tasks are late; the latest is \"it's\" of queue 'q', by 7" in found["message"]
    assert [each["name"] for each in found["details"]["late"]] == ["it's", "nightly"]
    program, *command = shlex.split(found["advice"].partition("no longer wanted: ")[2])
    assert program == "pqcore"
    done = CliRunner().invoke(app, command, env={"PQCORE_DSN": dsn})
    assert done.exit_code == 0, done.output
    assert "1 periodic task is late: 'nightly' of queue 'q'" in findings(dsn)["ticks"][0]["message"]


def test_doctor_names_ticks_ahead_of_the_clock(dsn: str, pq: PQ) -> None:
    insert = "INSERT INTO queue_ticks (q_name, name, tick) VALUES ('q', 'nightly', now() {} interval '1 h')"
    execute(dsn, insert.format("-"))
    assert findings(dsn)["ticks"][0]["level"] == "ok"
    execute(dsn, "DELETE FROM queue_ticks", insert.format("+"))
    [found] = findings(dsn)["ticks"]
    assert found["level"] == "warning"
    assert "'nightly' in queue 'q' is 3" in found["message"]


def test_doctor_reports_fsync(dsn: str, pq: PQ) -> None:
    [[fsync]] = execute(dsn, "SHOW fsync")
    [one] = findings(dsn)["durability"]
    assert one["level"] == ("problem" if fsync == "off" else "ok")
    assert one["details"]["fsync"] == fsync


@pytest.mark.parametrize(
    ("how", "check", "level", "says", "advice"),
    [
        ("DROP INDEX queue_ready", "indexes", "problem", "queue_ready is missing", "CREATE INDEX CONCURRENTLY"),
        ("DROP INDEX queue_ready", "plan", "warning", "because an index is missing", "repair the indexes"),
        ("DROP INDEX queue_dead_age", "indexes", "problem", "queue_dead_age is missing", "CREATE INDEX"),
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'queue_hidden'::regclass", "indexes", "problem",
         "queue_hidden is invalid", 'DROP INDEX CONCURRENTLY "queue_hidden"; CREATE INDEX CONCURRENTLY'),
        ("ALTER TABLE queue DROP CONSTRAINT queue_pkey", "indexes", "problem", "primary key", "ADD PRIMARY KEY"),
        ("DROP TRIGGER queue_notify ON queue", "trigger", "problem", "queue_notify is missing", "CREATE TRIGGER"),
        ("ALTER TABLE queue DISABLE TRIGGER queue_notify", "trigger", "problem", "is disabled", "ENABLE TRIGGER"),
        ("CREATE TRIGGER pq_insert AFTER INSERT ON queue EXECUTE FUNCTION queue_notify()", "trigger", "warning",
         "once per row", "DROP TRIGGER pq_insert"),
        ("ALTER TABLE queue SET (autovacuum_enabled = off)", "autovacuum", "problem", "off for the table", "RESET"),
        ("ALTER TABLE queue RESET (vacuum_index_cleanup)", "autovacuum", "warning", "lacks the settings", "SET ("),
        ("ALTER DATABASE {name} SET pqcore.notify = off", "trigger", "warning", "pqcore.notify is off", "RESET"),
        ("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'", "isolation", "warning",
         "serializable", "read committed"),
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", "writable", "problem", "read-only", "RESET"),
        ("ALTER DATABASE {name} SET enable_indexscan = off", "plan", "problem", "", "enable_indexscan"),
        ("DELETE FROM pqcore_migrations WHERE version > 2", "schema", "problem", "version 2", "pqcore migrate"),
        ("INSERT INTO pqcore_migrations VALUES ('queue', 99)", "schema", "problem", "version 99", "upgrade pqcore"),
        ("DROP TABLE queue CASCADE", "schema", "problem", "does not exist", "pqcore create"),
        ("DROP TABLE pqcore_migrations", "schema", "problem", "version 0", "pqcore adopt"),
        ("ALTER DATABASE {name} CONNECTION LIMIT 3", "connections", "problem", "of 3 connections of the database",
         "pooler"),
    ],
)  # fmt: skip
def test_doctor_names_each_problem_with_advice(
    dsn: str, pq: PQ, how: str, check: str, level: str, says: str, advice: str
) -> None:
    pq["a"].put_many(range(1_000))
    pq["a"].get_many(400)
    execute(dsn, "VACUUM ANALYZE queue", how.replace("{name}", dsn.rpartition("/")[2]))
    with ExitStack() as held:
        if "LIMIT 3" in how:
            held.enter_context(psycopg.connect(dsn))
        found = findings(dsn)[check]
    worse = [one for one in found if one["level"] == level and says in one["message"] and advice in one["advice"]]
    assert worse, found
    if check == "schema":  # another table with this name is not examined further
        assert "indexes" not in findings(dsn)


def test_doctor_advice_repairs_indexes_and_trigger(dsn: str, pq: PQ) -> None:
    execute(
        dsn,
        "DROP INDEX queue_ready",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'queue_parked'::regclass",
        "DROP TRIGGER queue_notify ON queue",
    )
    found = findings(dsn)
    for one in (*found["indexes"], *found["trigger"]):
        assert one["level"] == "problem"
        execute(dsn, *one["advice"].split("; "))
    found = findings(dsn)
    assert [one["level"] for one in (*found["indexes"], *found["trigger"])] == ["ok", "ok"]


def test_doctor_accepts_a_table_with_few_jobs(dsn: str, pq: PQ) -> None:
    """A bitmap scan of few index entries with a sort is allowed; of many entries it is not."""
    pq["a"].put(1)
    pq["a"].put(2, schedule_at="1h")
    execute(dsn, "ANALYZE queue")
    assert [one["level"] for one in findings(dsn)["plan"]] == ["ok"]
    pq["a"].put_many(range(1_000))
    execute(dsn, "ANALYZE queue", f"ALTER DATABASE {dsn.rpartition('/')[2]} SET enable_indexscan = off")
    execute(dsn, f"ALTER DATABASE {dsn.rpartition('/')[2]} SET enable_seqscan = off")
    found = findings(dsn)["plan"]
    assert any("does not go through queue_ready" in one["message"] and one["level"] == "problem" for one in found)


def test_doctor_accepts_that_takes_read_a_small_table_as_a_whole(dsn: str, pq: PQ) -> None:
    pq["a"].put(1)
    database = dsn.rpartition("/")[2]
    execute(dsn, "VACUUM FULL queue", *(f"ALTER DATABASE {database} SET enable_{each} = off" for each in NO_INDEX))
    [found] = findings(dsn)["plan"]
    assert (found["level"], found["advice"]) == ("ok", "")
    assert "some takes read the table as a whole, because it is small" in found["message"]
    assert len(found["details"]["statements"]) == 6


def test_doctor_names_the_holder_of_an_old_snapshot(dsn: str, pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "LONG", 0.0)
    with psycopg.connect(dsn, application_name="the report") as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT FROM queue")
        [one] = findings(dsn)["snapshots"]
        assert one["level"] == "warning"
        assert one["details"]["id"] == str(other.info.backend_pid)
        assert one["details"]["application_name"] == "the report"
        assert one["details"]["state"] == "idle in transaction"
        assert f"pg_terminate_backend({other.info.backend_pid})" in one["advice"]
        monkeypatch.setattr(server_checks, "TOO_LONG", 0.0)
        assert findings(dsn)["snapshots"][0]["level"] == "problem"
        monkeypatch.undo()
        assert findings(dsn)["snapshots"][0]["level"] == "ok"
    with psycopg.connect(dsn) as writer:  # without a snapshot, but with a transaction id
        writer.execute("INSERT INTO queue (q_name, data) VALUES ('a', '1')")
        monkeypatch.setattr(server_checks, "LONG", 0.0)
        [one] = findings(dsn)["snapshots"]
        assert one["details"]["id"] == str(writer.info.backend_pid)
        assert one["details"]["transactions"] >= 0


def test_doctor_reports_snapshots_of_replication_slots_and_prepared_transactions() -> None:
    forgotten = server_checks._holder("prepared transaction", "order-7", "", "prepared", "shop", "ann", 5e3, 99, True)
    assert (forgotten.level, "ROLLBACK PREPARED 'order-7'" in forgotten.advice) == ("problem", True)
    unused = server_checks._holder("replication slot", "standby_2", "", "physical", "", "", None, 10_000, False)
    assert (unused.level, "pg_drop_replication_slot('standby_2')" in unused.advice) == ("problem", True)
    used = server_checks._holder("replication slot", "standby_1", "", "physical", "", "", None, 10, True)
    assert used.level == "ok"


def test_doctor_reports_a_role_with_few_privileges(dsn: str, pq: PQ, clerk: Role) -> None:
    execute(dsn, f"GRANT SELECT, INSERT ON queue, queue_dead TO {clerk.name}")
    with psycopg.connect(dsn):
        found = findings(clerk.dsn)
    [one] = found["privileges"]
    assert one["level"] == "problem"
    assert 'GRANT UPDATE, DELETE ON "queue"' in one["advice"]
    assert 'GRANT SELECT, INSERT, UPDATE, DELETE ON "queue_slots"' in one["advice"]
    assert f"GRANT USAGE ON SEQUENCE public.queue_id_seq TO {clerk.name}" in one["advice"]
    assert "pg_monitor" not in found["schema"][0]["advice"] + found["batches"][0]["advice"]
    execute(dsn, *one["advice"].split("; "))
    after = findings(clerk.dsn)
    assert [one["level"] for one in after["privileges"]] == ["ok"]
    assert [each["message"] for each in chain(*after.values()) if "could not be" in each["message"]] == []
    with PQ(clerk.dsn) as their:
        queue = their["a"]
        queue.put(1)
        assert queue.get(block=False) is not None
        with queue:
            queue.put(2, limits={"one": 1}, dedup="key", group="together")
        queue.pause()
        assert [each.name for each in queue.rules()] == ["queue"]
    assert "cannot be seen" in found["snapshots"][-1]["message"]
    assert "pg_monitor" in found["snapshots"][-1]["advice"]
    execute(dsn, f"REVOKE ALL ON pqcore_migrations FROM {clerk.name}")
    [one] = findings(clerk.dsn)["schema"]
    assert one["level"] == "warning"
    assert "could not be checked" in one["message"]
    assert "hush" not in doctor(clerk.dsn).output


def test_doctor_prints_the_grants_of_a_role_that_may_not_use_the_schema(dsn: str, clerk: Role) -> None:
    execute(dsn, 'CREATE SCHEMA "far Öff"')
    try:
        with PQ(dsn, schema="far Öff") as pq:
            pq.create()
        for _ in range(2):  # the sequences are found once the schema may be used
            [one] = findings(clerk.dsn, "--schema", "far Öff")["privileges"]
            assert one["level"] == "problem"
            execute(dsn, *one["advice"].split("; "))
        assert [one["level"] for one in findings(clerk.dsn, "--schema", "far Öff")["privileges"]] == ["ok"]
        with PQ(clerk.dsn, schema="far Öff") as their:
            their["a"].put(1)
            assert their["a"].get(block=False) is not None
    finally:
        execute(dsn, 'DROP SCHEMA "far Öff" CASCADE')


def test_doctor_names_the_session_that_may_keep_notifications(
    dsn: str, pq: PQ, clerk: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue counts as full from the first notification, because filling it takes gigabytes."""
    monkeypatch.setattr(server_checks, "MUCH_UNREAD", 0.0)
    execute(dsn, f"GRANT SELECT ON pqcore_migrations TO {clerk.name}")
    with psycopg.connect(dsn, autocommit=True, application_name="forgotten") as listener:
        listener.execute("LISTEN something")
        listener.execute("BEGIN")
        [owner], [few] = findings(dsn)["notifications"], findings(clerk.dsn)["notifications"]
        assert few["level"] == "warning"
        assert "GRANT pg_monitor TO" in few["advice"]
        assert "pg_terminate_backend(" in owner["advice"]
        assert "GRANT pg_monitor" not in owner["advice"]


@pytest.mark.parametrize("kind", ["producer", "consumer"])
def test_doctor_accepts_the_roles_of_the_table(dsn: str, kind: str) -> None:
    number = dsn.rpartition("_")[2]
    name, table = f"clerk_{number}", f"orders_{number}"
    parts = urlsplit(dsn)
    clerk = urlunsplit(parts._replace(netloc=f"{name}:hush-hush@{parts.hostname}:{parts.port}"))
    made = CliRunner().invoke(app, ["create", "--roles", "--table", table, "--dsn", dsn])
    assert made.exit_code == 0, made.output
    roles = [f"{table}_{each}" for each in ("producer", "consumer", "admin")]
    try:
        execute(dsn, f"CREATE ROLE {name} LOGIN PASSWORD 'hush-hush' IN ROLE {table}_{kind}")
        [one] = findings(clerk, "--table", table)["privileges"]
        assert (one["level"], one["message"]) == (
            "ok",
            f"the role is a member of {table}_{kind}, and has no further privileges",
        )
        execute(dsn, f"REVOKE ALL ON {table}_samples FROM {table}_consumer")
        [one] = findings(clerk, "--table", table)["privileges"]
        assert one["level"] == ("ok" if kind == "producer" else "problem")
        if kind == "consumer":
            assert f'lacks privileges on "{table}_samples"' in one["message"]
            assert "pqcore create --roles" in one["advice"]
    finally:
        execute(
            dsn, f"DROP ROLE IF EXISTS {name}", f"DROP OWNED BY {', '.join(roles)}", f"DROP ROLE {', '.join(roles)}"
        )


def test_doctor_reports_an_unreachable_server(dsn: str) -> None:
    found = findings("postgresql://ann:hush-hush@127.0.0.1:1/orchard")
    [one] = found["connection"]
    assert one["level"] == "problem"
    assert "hush" not in json.dumps(found)
    unread = doctor("host=127.0.0.1 port=1 password=hush-hush nonsense", "--json")
    assert (unread.exit_code, unread.stdout) == (2, "")
    assert "hush" not in unread.stderr


# Behind a pooler


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [queue.Queue, queue.LifoQueue])
def test_doctor_reports_a_pooler_in_transaction_mode(
    dsn: str, pq: PQ, backend: str, order: type[queue.Queue[Any]]
) -> None:
    pq["a"].put(1)
    with pooler(dsn, order) as through:
        found = findings(through, "--backend", backend)
    [one] = found["listen"]
    assert one["level"] == "ok"  # this set-up is valid
    assert one["details"]["pooler"]
    assert "a pooler in transaction mode" in one["message"]
    assert "prepared=False" in one["advice"]
    assert [one["level"] for one in found["plan"]] == ["ok"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_doctor_warns_of_a_server_whose_clients_share_one_session(dsn: str, pq: PQ, backend: str) -> None:
    execute(
        dsn,
        "CREATE SCHEMA pretended",
        "CREATE FUNCTION pretended.version() RETURNS text RETURN 'PostgreSQL 18.6 (PGlite 0.5.14) on wasm32'",
        f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET search_path = pretended, pg_catalog, public",
    )
    [one] = findings(dsn, "--backend", backend)["listen"]
    assert one["level"] == "warning"
    assert "only one client at a time is safe" in one["message"]


def test_doctor_reports_a_lost_notification(dsn: str, pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "LISTEN_PATIENCE", 0.0)
    [one] = findings(dsn)["listen"]
    assert (one["level"], one["details"]["heard"]) == ("problem", False)
    monkeypatch.setattr(server_checks, "LISTEN_PATIENCE", 3 * PATIENCE)
    [one] = findings(dsn)["listen"]
    assert (one["level"], one["details"]["heard"]) == ("ok", True)


def test_doctor_reports_a_clock_that_differs(dsn: str, pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pqcore.doctor.server_checks.time.time", lambda: 1_000_000_000.0)
    [one] = findings(dsn)["clock"]
    assert one["level"] == "warning"
    assert "seconds ahead of this one's" in one["message"]


def test_doctor_reports_a_sequence_that_is_behind_with_advice(dsn: str, pq: PQ) -> None:
    pq["a"].put_many([1, 2, 3])
    execute(
        dsn,
        "INSERT INTO queue_dead (id, q_name, enqueued_at, attempts, reason) VALUES (50, 'a', now(), 1, 'failed')",
        "INSERT INTO queue_dedup (q_name, dedup_key, job_id, until) VALUES ('a', 'k', 70, now())",
        "INSERT INTO queue_batches (id, q_name, total, pending) VALUES (9, 'a', 1, 1)",
    )
    found = findings(dsn)["sequences"]
    assert [one["level"] for one in found] == ["problem", "problem"]
    assert [one["details"]["next"] for one in found] == [4, 1]
    assert found[0]["details"]["highest"] == {'"queue"': 3, '"queue_dead"': 50, '"queue_dedup"': 70}
    assert '"queue_dead" has 50' in found[0]["message"]
    execute(dsn, *(one["advice"] for one in found))
    assert [one["level"] for one in findings(dsn)["sequences"]] == ["ok", "ok"]
    assert pq["a"].put(4) == 71


def test_doctor_reports_a_sequence_that_the_role_may_not_read(dsn: str, pq: PQ, clerk: Role) -> None:
    """Its value is NULL for the role, which does not mean that it has given no id: setval would set it back."""
    pq["a"].put_many([1, 2, 3])
    execute(dsn, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {clerk.name}")
    found = findings(clerk.dsn)["sequences"]
    assert [(one["level"], one["details"]["next"]) for one in found] == [("warning", None), ("warning", None)]
    assert "the role may not read sequence queue_id_seq" in found[0]["message"]
    execute(dsn, *(one["advice"] for one in found))
    found = findings(clerk.dsn)["sequences"]
    assert [(one["level"], one["details"]["next"]) for one in found] == [("ok", 4), ("ok", 1)]


def test_doctor_finds_a_sequence_that_no_column_owns(dsn: str, pq: PQ) -> None:
    pq["a"].put_many([1, 2])
    execute(dsn, "ALTER SEQUENCE queue_id_seq OWNED BY NONE", 'ALTER SEQUENCE queue_id_seq RENAME TO "its Own"')
    execute(dsn, """SELECT setval('"its Own"', 1, false)""")
    [one] = [each for each in findings(dsn)["sequences"] if each["level"] == "problem"]
    assert one["advice"] == """SELECT setval('"its Own"', 2)"""
    execute(dsn, one["advice"])
    assert pq["a"].put(3) == 3


def test_sequence_check_covers_every_table_with_ids() -> None:
    names = TableName("queue")
    drawn, held = {}, set()
    for table in declared_tables(names):
        for column in table.columns:
            if column.type == "bigserial":
                drawn[table.name] = column.name
            elif column.name in ("id", "job_id") and column.type == "bigint":
                held.add((table.name, column.name))
    places = {place: quoted.strip('"') for place, quoted in names.substitutions().items()}
    assert {places[owner]: "id" for owner in sequences.HOLDERS} == drawn
    looked = {(places[place], column) for holders in sequences.HOLDERS.values() for place, column in holders}
    assert looked == held | set(drawn.items())
