"""Queues on Django's connections: transactions, threads, views, migrations, checks, models."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from django_project import fixtures  # imported first, because it sets Django up

# isort: split

import psycopg
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.core.management import call_command
from django.db import close_old_connections, connection, connections, transaction
from django.db.migrations.executor import MigrationExecutor
from django.test import AsyncClient, Client, override_settings
from psycopg.conninfo import conninfo_to_dict

from django_project.settings import TASKS_MODULE
from django_project.shop.models import Order
from pqcore import PQ, Dedup, Queue, schema
from pqcore.db.dsn import redact
from pqcore.errors import ConfigurationError, ConnectionLost, DuplicateJob, TableMissing, TransientError
from pqcore.integrations.django import pqs, queue
from pqcore.integrations.django.checks import check_settings, check_tables
from pqcore.integrations.django.models import DeadLetter, Job
from pqcore.integrations.django.operations import MigrateTables
from pqcore.testing.harness import PATIENCE
from pqcore.testing.undo import Undo

PQ_TABLE = """
CREATE TABLE queue (
  id bigserial PRIMARY KEY, enqueued_at timestamptz NOT NULL DEFAULT current_timestamp, dequeued_at timestamptz,
  expected_at timestamptz, schedule_at timestamptz, q_name text NOT NULL CHECK (length(q_name) > 0), data json NOT NULL
);
INSERT INTO queue (q_name, data) VALUES ('orders', '1'), ('orders', '2');
"""

DRIVER, dsn, point_to, project = fixtures.DRIVER, fixtures.dsn, fixtures.point_to, fixtures.project


@pytest.fixture
def outside(dsn: str) -> Iterator[Callable[[], list[Any]]]:
    """Return what another connection finds in the queue ``orders``."""
    with PQ(dsn, backend="psycopg2") as pq:
        yield lambda: [job.data for job in pq["orders"].peek(100)]


@contextmanager
def undone(**options: Any) -> Iterator[None]:
    """A transaction that is rolled back at the end."""
    with suppress(Undo), transaction.atomic(**options):
        yield
        raise Undo


def taken(of: Queue) -> Any:
    """Take the next job, and return its data."""
    job = of.get(timeout=0)
    assert job is not None
    return job.data


def pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


# In Django's transaction


def test_django_queue_uses_the_driver_of_django(dsn: str) -> None:
    assert queue("orders") is queue("orders")
    assert pqs["default"].backend == f"{DRIVER} (DjangoConnections lends its connections)"


@pytest.mark.parametrize("first", ["put", "write"])
def test_django_put_commits_and_rolls_back_with_the_models(outside: Callable[[], list[Any]], first: str) -> None:
    orders = queue("orders")

    def work(data: Any) -> None:
        for step in (["put", "write"], ["write", "put"])[first == "write"]:
            if step == "put":
                orders.put(data)
                orders.put_many([data, data])
            else:
                Order.objects.create(name=str(data))

    with undone():
        work(1)
    assert (outside(), Order.objects.count()) == ([], 0)
    with transaction.atomic():
        work(2)
        assert orders.count() == 3  # the transaction sees its own writes
        assert outside() == []
    assert (outside(), Order.objects.count()) == ([2, 2, 2], 1)
    orders.put(3)
    assert outside() == [2, 2, 2, 3]


def test_django_savepoint_rolls_back_its_puts_alone(outside: Callable[[], list[Any]]) -> None:
    with transaction.atomic():
        queue("orders").put(1)
        with undone():
            queue("orders").put(2)
            with transaction.atomic():
                queue("orders").put(3)
        queue("orders").put(4)
    assert outside() == [1, 4]


def test_django_put_without_autocommit_waits_for_the_commit(outside: Callable[[], list[Any]]) -> None:
    transaction.set_autocommit(False)
    try:
        queue("orders").put(1)
        transaction.rollback()
        queue("orders").put(2)
        assert outside() == []
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert outside() == [2]


def test_django_transaction_stays_usable_after_a_failed_operation(dsn: str, outside: Callable[[], list[Any]]) -> None:
    only = Dedup("key", on_conflict="error")
    locked = queue("others").put(1)
    with psycopg.connect(dsn) as other, transaction.atomic():
        other.execute("SELECT FROM queue WHERE id = %s FOR UPDATE", [locked])
        queue("orders").put(1, dedup=only)
        with pytest.raises(DuplicateJob):
            queue("orders").put(2, dedup=only)
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '20ms'")
        with pytest.raises(TransientError):  # a savepoint keeps the transaction usable
            queue("others").update(locked, 3)
        Order.objects.create(name="goes on")
    assert (outside(), Order.objects.count()) == ([1], 1)


def test_django_block_is_a_transaction_of_django(outside: Callable[[], list[Any]]) -> None:
    orders = queue("orders")
    told: list[str] = []
    with orders as cursor:
        cursor.execute("INSERT INTO shop_order (name, done) VALUES (%s, false)", ["by cursor"])
        orders.put(1)
        transaction.on_commit(partial(told.append, "committed"))
        with suppress(Undo), queue("others"):
            orders.put(2)
            transaction.on_commit(partial(told.append, "rolled back"))
            raise Undo
        assert (outside(), told) == ([], [])
    assert (outside(), Order.objects.count(), told) == ([1], 1, ["committed"])
    with suppress(Undo), orders:
        assert taken(orders) == 1
        raise Undo
    assert not connection.in_atomic_block
    assert outside() == [1]


def test_django_get_is_part_of_the_transaction(outside: Callable[[], list[Any]]) -> None:
    orders = queue("orders")
    orders.put_many([1, 2])
    with undone():
        assert [job.data for job in orders.get_many(5, block=False)] == [1, 2]
    with transaction.atomic():
        assert taken(orders) == 1
    leased = orders.lease("1m", block=False)
    assert leased is not None
    assert leased.data == 2
    with undone():
        leased.ack()
    with transaction.atomic():
        leased.ack()
    assert outside() == []
    assert orders.get(timeout=0.01) is None


def test_django_queue_options_come_from_the_settings(dsn: str) -> None:
    archived = queue("archived")
    archived.put(1)
    archived.get(timeout=0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT q_name FROM queue_archive")
        assert cursor.fetchall() == [("archived",)]
    queues = {"packed": {"serializer": "msgpack", "max_size": 9}}
    with override_settings(PQCORE={"default": {"OPTIONS": {"max_size": 99}, "QUEUES": queues}}):
        found = [(each.serializer_name, each.max_size) for each in map(queue, ("packed", "packed/json", "plain"))]
        assert found == [("msgpack", 9), ("json", 9), ("json", 99)]


# Threads, requests, lost connections


def test_django_view_puts_in_the_transaction_of_the_request(outside: Callable[[], list[Any]]) -> None:
    client = Client(raise_request_exception=False)
    assert client.get("/order?fail").status_code == 500
    assert outside() == []
    made = int(client.get("/order").content)
    assert outside() == [{"order": made}]

    async def scenario() -> None:
        asynchronous = AsyncClient(raise_request_exception=False)
        answers = await asyncio.gather(*[asynchronous.get("/order-async") for _ in range(5)])
        assert [answer.status_code for answer in answers] == [200] * 5
        assert (await asynchronous.get("/order-async", {"fail": 1})).status_code == 500
        with pytest.raises(SynchronousOnlyOperation):
            queue("orders").put("on the loop")

    asyncio.run(scenario())
    assert len(outside()) == 6


def test_django_threads_have_their_own_connections(outside: Callable[[], list[Any]]) -> None:
    barrier = threading.Barrier(4, timeout=PATIENCE)
    pids: set[int] = set()

    def work(number: int) -> None:
        try:
            with suppress(Undo), transaction.atomic():
                queue("orders").put(number)
                pids.add(pid())
                barrier.wait()  # all threads are inside a transaction
                if number % 2:
                    raise Undo
            with queue("orders") as cursor:
                cursor.execute("SELECT 1")
                barrier.wait()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(pids) == 4
    assert sorted(outside()) == [0, 2]


def test_django_connection_that_was_lost_is_replaced(dsn: str, outside: Callable[[], list[Any]]) -> None:
    orders = queue("orders")
    orders.put(1)
    with psycopg.connect(dsn, autocommit=True) as server:
        server.execute("SELECT pg_terminate_backend(%s, 5000)", [pid()])
        with pytest.raises(ConnectionLost):
            orders.put(2)
        orders.put(3)  # the driver knows that the connection is lost
        server.execute("SELECT pg_terminate_backend(%s, 5000)", [pid()])
        with suppress(Undo), transaction.atomic():
            with pytest.raises(ConnectionLost):
                orders.put(4)
            raise Undo
        connection.errors_occurred = False
        server.execute("SELECT pg_terminate_backend(%s, 5000)", [pid()])
        with pytest.raises(ConnectionLost):
            orders.count()
        assert connection.errors_occurred  # so Django checks the connection before the next request
        close_old_connections()
        orders.put(5)
    assert outside() == [1, 3, 5]


def test_django_unreachable_server_raises_connection_lost(dsn: str) -> None:
    try:
        point_to("postgresql://ann:very-secret@127.0.0.1:1/nothing")
        with pytest.raises(ConnectionLost, match="connect") as caught:
            queue("orders").put(1)
        assert "very-secret" not in str(caught.value)
    finally:
        point_to(dsn)


# Settings


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ([], "dictionary of dictionaries"),
        ({"default": None}, "dictionary of dictionaries"),
        ({"other": {}}, "has no 'default', only 'other'"),
        ({"default": {"TABEL": "q"}}, "has an unknown key 'TABEL'; choose among DATABASE, TABLE"),
        ({"default": {"TABLE": ""}}, "table name is empty"),
        ({"default": {"OPTIONS": ["keep"]}}, "'OPTIONS'] is ['keep']"),
        ({"default": {"OPTIONS": {"backend": "psycopg2"}}}, "has 'backend', which is not an option"),
        ({"default": {"OPTIONS": {"retention": "burn"}}}, "retention is 'burn'"),
        ({"default": {"QUEUES": "emails"}}, "'QUEUES'] is 'emails'"),
        ({"default": {"QUEUES": {"emails": {"retention": "burn"}}}}, "retention is 'burn'"),
        ({"default": {"PREPARED": "no"}}, "'PREPARED'] is 'no'"),
        ({"default": {"DATABASE": "lite"}}, "database 'lite' of DATABASES is sqlite"),
        ({"default": {"DATABASE": "nowhere"}}, "nowhere"),
    ],
)
def test_django_check_reports_wrong_settings(dsn: str, setting: Any, says: str) -> None:
    with override_settings(PQCORE=setting):
        [error] = check_settings()
        assert error.id == "pqcore.E001"
        assert says in error.msg
    assert check_settings() == []
    with pytest.raises(ConfigurationError, match="it has 'default': use one of these, or add"):
        queue("orders", using="nothing")


def test_django_worker_connects_with_the_settings_of_django(project: str) -> None:
    point_to("postgresql://u%20ser:p%40ss%2F%25%20w%27ord@db.example:5433/da%20ta")
    try:
        given = {"sslmode": "require", "keepalives": True, "assume_role": "app role", "isolation_level": 2}
        connections["default"].settings_dict["OPTIONS"] = {**given, "options": "-c search_path=shop"}
        made = pqs["default"].lender.dsn()
        assert conninfo_to_dict(made) == {
            "user": "u ser",
            "password": "p@ss/% w'ord",
            "host": "db.example",
            "port": "5433",
            "dbname": "da%20ta",
            "sslmode": "require",
            "keepalives": "1",
            "client_encoding": "UTF8",
            "options": "-c search_path=shop -c role=app\\ role",
        }
        for said in (f"cannot reach {made}", "wrong password p@ss/% w'ord"):
            assert "ord" not in redact(said, made).replace("password", "")
    finally:
        point_to(project)


# Migrations


@pytest.fixture
def empty(project: str, pqcore_server: str) -> Iterator[str]:
    """The DSN of a database without migrations, which Django uses until the test ends."""
    name = "empty_" + project.rpartition("/")[2]
    other = project.rpartition("/")[0] + "/" + name
    with psycopg.connect(pqcore_server, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        point_to(other)
        yield other
        point_to(project)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def said(*arguments: str, **options: Any) -> str:
    out = StringIO()
    call_command(*arguments, stdout=out, no_color=True, **options)
    return out.getvalue()


def migrate(target: str | None) -> None:
    """Migrate the app: to a migration, or back to the state before the first one."""
    MigrationExecutor(connection).migrate([("pqcore", target)])


def shape(where: str) -> list[Any]:
    with psycopg.connect(where) as server:
        return server.execute(
            "SELECT c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod),"
            " pg_get_indexdef(i.indexrelid) FROM pg_class AS c"
            " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0"
            " LEFT JOIN pg_index AS i ON i.indexrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace"
            " AND c.relname ~ '^(queue|pqcore)' ORDER BY c.relname, a.attnum"
        ).fetchall()


def test_django_migrations_reach_the_current_schema_version(project: str) -> None:
    loader = MigrationExecutor(connection).loader
    [leaf] = loader.graph.leaf_nodes("pqcore")
    versions = [step.version for step in loader.graph.nodes[leaf].operations if isinstance(step, MigrateTables)]
    assert versions == [schema.latest()]
    assert "No changes" in said("makemigrations", "--check", "--dry-run")


def test_django_migrations_create_and_drop_the_table(empty: str) -> None:
    script = said("sqlmigrate", "pqcore", "0001")
    assert shape(empty) == []
    migrate("0001_table")
    by_migration = shape(empty)
    assert queue("orders").put(1) == 1
    backwards = said("sqlmigrate", "pqcore", "0001", backwards=True)
    migrate(None)
    assert shape(empty) == []
    with pytest.raises(TableMissing):
        queue("orders").put(1)
    with psycopg.connect(empty, autocommit=True) as server:
        server.execute(script.encode())  # as a DBA would
        assert shape(empty) == by_migration
        server.execute(backwards.encode())
    assert [row for row in shape(empty) if not row[0].startswith("pqcore_migrations")] == []


def test_django_migration_adopts_a_pq_table_with_its_jobs(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as server:
        server.execute(PQ_TABLE.encode())
    assert [message.id for message in check_tables(databases=["default"])] == ["pqcore.W002"]
    migrate("0001_table")
    assert [job.data for job in queue("orders").get_many(5, block=False)] == [1, 2]


def test_django_atomic_migration_includes_the_table(empty: str) -> None:
    step = MigrateTables(version=1, creates=True)
    with suppress(Undo), connection.schema_editor(atomic=True) as editor:
        step.database_forwards("shop", editor, None, None)
        assert "queue" in connection.introspection.table_names()
        raise Undo
    assert shape(empty) == []
    with connection.schema_editor(atomic=False) as editor:
        MigrateTables(version=99).database_backwards("shop", editor, None, None)
        step.database_forwards("shop", editor, None, None)
    assert check_tables(databases=["default"]) == []


def test_django_tables_may_be_in_schemas_and_other_databases(empty: str) -> None:
    tables = {"default": {"SCHEMA": "farm", "TABLE": "jobs"}, "more": {"TABLE": "others"}}
    with override_settings(PQCORE=tables):
        assert [message.id for message in check_tables(databases=["default"])] == ["pqcore.W001"] * 2
        migrate("0001_table")
        assert check_tables(databases=["default"]) == []
        with transaction.atomic():
            queue("a").put(1)
            queue("a", using="more").put(2)
        assert (taken(queue("a")), taken(queue("a", using="more"))) == (1, 2)
        assert list(pqs) == ["default", "more"]
        assert '"farm"."jobs"' in said("sqlmigrate", "pqcore", "0001")
        migrate(None)
        assert len(check_tables(databases=["default"])) == 2


# Checks


def test_django_check_reports_a_missing_or_different_table(empty: str) -> None:
    assert check_tables() == []  # without --database, no other database is contacted
    [missing] = check_tables(databases=["default"])
    assert (missing.id, "migrate pqcore" in missing.hint) == ("pqcore.W001", True)
    assert check_tables(databases=["lite"]) == []
    migrate("0001_table")
    assert check_tables(databases=["default"]) == []
    with psycopg.connect(empty, autocommit=True) as server:
        server.execute("INSERT INTO pqcore_migrations VALUES ('queue', 99)")
        [new] = check_tables(databases=["default"])
        assert (new.id, new.hint) == ("pqcore.E003", "Upgrade pqcore.")
        server.execute("DELETE FROM pqcore_migrations WHERE version > 2")
        [old] = check_tables(databases=["default"])
        assert (old.id, "version 2; this version of pqcore needs" in old.msg) == ("pqcore.W002", True)
    point_to("postgresql://nobody@127.0.0.1:1/nothing")
    assert [message.id for message in check_tables(databases=["default"])] == ["pqcore.E002"]


# Models


def test_django_models_show_the_jobs_of_the_queue(dsn: str) -> None:
    orders = queue("orders")
    orders.put({"n": 1})
    orders.put("scheduled", schedule_at="1h")
    orders.put("expected", expected_at="1h")
    held = orders.lease_many(2, "1h", block=False)
    orders.put("lasts")
    orders.put("over")
    assert taken(orders) == "lasts"
    orders.put_many([1, 2], limits={"one": 1})
    while orders.lease_many(9, "1h", block=False):
        pass
    orders.put("ready")
    of_queue = {job.id: job.state for job in orders.jobs("ready", "scheduled", "leased", "parked", "done")}
    assert set(of_queue.values()) == {"ready", "scheduled", "leased", "parked", "done"}
    assert {row.pk: row.state for row in Job.objects.all()} == of_queue
    assert Job.objects.filter(state="scheduled").get().data == "scheduled"
    first = Job.objects.get(pk=held[0].id)
    assert first.queue.inspect(first.pk).state == "leased"
    assert str(first) == f"{first.pk} of orders"
    assert first.enqueued_at == held[0].enqueued_at
    assert DeadLetter.objects.count() == 0


def test_django_models_are_read_only(dsn: str) -> None:
    job_id = queue("orders").put(1)
    row = Job.objects.get(pk=job_id)
    for write in (
        row.save,
        row.delete,
        Job.objects.all().delete,
        partial(Job.objects.update, queue_name="b"),
        partial(Job.objects.create, queue_name="b"),
        partial(Job.objects.bulk_create, [row]),
        partial(Job.objects.bulk_update, [row], ["queue_name"]),
        partial(Job.objects.get_or_create, pk=7),
    ):
        with pytest.raises(ConfigurationError, match="is refused; change jobs through their queue"):
            write()
    assert list(Job.objects.values_list("pk", "queue_name")) == [(job_id, "orders")]


def test_django_tests_pass_on_psycopg2(pqcore_server: str) -> None:
    """Runs in another process, because Django chooses its driver only once."""
    here = Path(__file__).parent
    names = ["test_django.py", "test_django_worker.py", *(["test_django_tasks.py"] if TASKS_MODULE else [])]
    files = [str(here / name) for name in names]
    others = "not psycopg2 and not settings and not worker_runs and not commands_are"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", others, *files]
    variables = {"DJANGO_TEST_DRIVER": "psycopg2", "PQCORE_TEST_DSN": pqcore_server}
    done = subprocess.run(
        command,
        cwd=here.parent,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
