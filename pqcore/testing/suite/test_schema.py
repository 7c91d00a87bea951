"""The table: made, made again, migrated from pq 1.9.1's while in use; and the handling of finished rows."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Any

import pytest

from pqcore import schema
from pqcore.backend import Capability
from pqcore.errors import (
    ConfigurationError,
    ConnectionLost,
    InvalidTimeSpec,
    JobNotFound,
    PQError,
    SchemaError,
    SchemaOutdated,
    SchemaTooNew,
    TableMissing,
    TransientError,
)
from pqcore.put_options import Dedup
from pqcore.sql.identifiers import quote
from pqcore.testing.connections import Connection
from pqcore.testing.harness import INDEXES, PATIENCE, Harness, all_tables

OBJECT = {"when": datetime(2020, 2, 29, tzinfo=timezone.utc), "text": "…æøå!"}

# As in pq 1.9.1's create.sql, except for the schema of the function.
PQ_TABLE = (
    """
CREATE TABLE {table} (
  id          bigserial    PRIMARY KEY,
  enqueued_at timestamptz  NOT NULL DEFAULT current_timestamp,
  dequeued_at timestamptz,
  expected_at timestamptz,
  schedule_at timestamptz,
  q_name      text         NOT NULL CHECK (length(q_name) > 0),
  data        json         NOT NULL
)""",
    """
CREATE INDEX priority_idx_ ON {table}
      (schedule_at nulls first, expected_at nulls last, q_name)
    WHERE dequeued_at IS NULL
          AND q_name = ''""",
    """
CREATE INDEX priority_idx_no_ ON {table}
    (schedule_at nulls first, expected_at nulls last, q_name)
    WHERE dequeued_at IS NULL
          AND q_name != ''""",
    """
CREATE FUNCTION {schema}.pq_notify() RETURNS trigger AS $$ BEGIN
  PERFORM pg_notify(
    CASE length(new.q_name) > 63
      WHEN true THEN 'pq_' || md5(new.q_name)
      ELSE new.q_name
    END,
    ''
  );
  RETURN NULL;
END $$ LANGUAGE plpgsql""",
    """
CREATE TRIGGER pq_insert
AFTER INSERT ON {table}
FOR EACH ROW
EXECUTE PROCEDURE {schema}.pq_notify()""",
)
PQ_COLUMNS = "id, enqueued_at, dequeued_at, expected_at, schedule_at, q_name, data::text"
PQ_ROWS = (
    "(q_name, data) VALUES ('q', '{\"waiting\": 1}')",
    "(q_name, data, dequeued_at) VALUES ('q', '\"finished\"', now())",
    "(q_name, data, schedule_at) VALUES ('q', '\"scheduled\"', now() + interval '1 h')",
    "(q_name, data, schedule_at) VALUES ('q', '\"was scheduled\"', now() - interval '1 h')",
    "(q_name, data, expected_at) VALUES ('q', '\"expected later\"', now() + interval '2 h')",
    "(q_name, data, expected_at) VALUES ('q', '\"expected soon\"', now() - interval '2 h')",
    "(q_name, data) VALUES ('q', 'null')",
    "(q_name, data, schedule_at, expected_at) VALUES ('q', '\"both\"', now() - interval '1 m', now() + interval '1 m')",
    "(q_name, data, dequeued_at) VALUES ('other', '\"finished\"', now())",
    "(q_name, data) VALUES ('objects', '"
    + json.dumps(pickle.dumps(OBJECT, 0).decode("latin-1")).replace("'", "''")
    + "')",
)
IN_ORDER = ["expected soon", "both", "expected later", "was scheduled", {"waiting": 1}, None]

FIRST_INDEXES = next(number for number in range(1, schema.latest() + 1) if schema.builds_indexes(number))
"""The version that builds the indexes of pq's own columns."""


def make_pq_table(harness: Harness, *, rows: bool = True) -> list[tuple[Any, ...]]:
    """Make a table of pq 1.9.1, and return its content."""
    for statement in PQ_TABLE:
        harness.sql(statement.replace("{schema}", quote(harness.schema)), rows=False)
    for row in PQ_ROWS if rows else ():
        harness.sql(f"INSERT INTO {{table}} {row}", rows=False)
    return contents(harness)


def contents(harness: Harness) -> list[tuple[Any, ...]]:
    """Return the columns that pq has, of all rows."""
    return harness.sql(f"SELECT {PQ_COLUMNS} FROM {{table}} ORDER BY id")


def catalogue(harness: Harness, table: str = "queue", within: str | None = None) -> dict[str, Any]:
    """Return the indexes and triggers of a table: their names and definitions."""
    found = f"'{quote(within or harness.schema)}.{quote(table)}'::regclass"
    indexes = harness.sql(
        "SELECT c.relname::text, i.indisvalid, c.oid::bigint FROM pg_index AS i"
        f" JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indrelid = {found}"
    )
    triggers = harness.sql(
        "SELECT t.tgname::text, (t.tgtype & 1) = 0 OR right(t.tgname::text, 6) = '_ended', t.oid::bigint"
        f" FROM pg_trigger AS t WHERE t.tgrelid = {found} AND NOT t.tgisinternal"
    )
    return {name: rest for name, *rest in indexes + triggers}


def complete(harness: Harness, table: str = "queue", within: str | None = None) -> bool:
    """Check that a table has its valid indexes, only its own triggers, and its related tables."""
    found = catalogue(harness, table, within)
    ours = {table + suffix for suffix in (*INDEXES, "_notify", "_ended")}
    return (
        ours == found.keys() - {"priority_idx_", "priority_idx_no_"}
        and all(sound for sound, _ in found.values())
        and all_tables(table) <= tables(harness, within)
    )


def tables(harness: Harness, name: str | None = None) -> set[str]:
    """Return the tables of a schema."""
    rows = harness.sql(f"SELECT tablename::text FROM pg_tables WHERE schemaname = '{name or harness.schema}'")
    return {table for [table] in rows}


def forget_versions(harness: Harness, above: int = 0) -> None:
    """Make the migrations above a version look unfinished."""
    harness.sql(f"DELETE FROM {quote(harness.schema)}.pqcore_migrations WHERE version > {above}", rows=False)


def attempts_beside(pq: Any) -> dict[str, Callable[[], Any]]:
    """Return every operation that uses only another table of the queue."""
    queue = pq["q"]
    return {
        "dead letters": lambda: queue.dead.list(),
        "number of dead letters": lambda: queue.dead.count(),
        "purge of dead letters": lambda: queue.dead.purge_all(),
    }


def attempts(pq: Any) -> dict[str, Callable[[], Any]]:
    """Return every operation that uses the table, or another table of the queue."""
    queue = pq["q"]

    def enter() -> None:
        with queue:
            pass

    return {
        "put": lambda: queue.put(1),
        "put_many": lambda: queue.put_many([1, 2]),
        "put with a key": lambda: queue.put(1, dedup="key"),
        "put with a key for a time": lambda: queue.put(1, dedup=Dedup("key", until=60)),
        "get": lambda: queue.get(block=False),
        "blocking get": lambda: queue.get(timeout=PATIENCE),
        "get_many": lambda: queue.get_many(2, block=False),
        "lease": lambda: queue.lease(block=False),
        "peek": lambda: queue.peek(),
        "count": lambda: queue.count(),
        "stats": lambda: queue.stats(),
        "stats of all": lambda: pq.stats(),
        "update": lambda: queue.update(1, 2),
        "cancel": lambda: queue.cancel(1),
        "clear": lambda: queue.clear(),
        "purge": lambda: queue.purge(0),
        "status": lambda: queue.status(1),
        "progress": lambda: queue.progress(1),
        "result": lambda: queue.result(1),
        "retry of dead letters": lambda: queue.dead.retry_all(),
        "with": enter,
        **attempts_beside(pq),
    }


def at_once(harness: Harness, *works: Callable[[], Any]) -> None:
    """Run functions in threads that start together."""
    barrier = threading.Barrier(len(works))

    def waiting(work: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (barrier.wait(PATIENCE), work())

    with ExitStack() as stack:
        for join in [stack.enter_context(harness.thread(waiting(work))) for work in works]:
            join()


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Run a transaction of the user, which ends at the latest when a test fails, because others would wait for it."""
    connection.begin()
    try:
        yield
    finally:
        if connection.session.in_transaction():
            connection.rollback()


@contextmanager
def dropped(harness: Harness, name: str) -> Iterator[str]:
    """Drop a schema at the end."""
    try:
        yield name
    finally:
        harness.sql(f"DROP SCHEMA IF EXISTS {quote(name)} CASCADE", rows=False)


# Making the table


@pytest.mark.unpartitioned
def test_create_makes_the_complete_schema(harness: Harness) -> None:
    harness.pq()
    assert tables(harness) == all_tables("queue")
    assert complete(harness)


def test_create_again_changes_nothing(harness: Harness) -> None:
    pq = harness.pq()
    pq["q"].put(1)
    before = catalogue(harness), contents(harness)
    pq.create()
    harness.pq().create()
    assert (catalogue(harness), contents(harness)) == before
    assert pq["q"].get().data == 1


def test_create_makes_a_missing_schema(harness: Harness) -> None:
    with dropped(harness, harness.schema + "_new") as name:
        queue = harness.queue(schema=name)
        queue.put(1)
        assert queue.get().data == 1
        assert "queue" in tables(harness, name)
        assert tables(harness) == set()


def test_tables_keep_their_indexes_and_triggers_when_others_are_made(harness: Harness) -> None:
    with dropped(harness, harness.schema + "_other") as other:
        places = [("queue", harness.schema), ("second", harness.schema), ("queue", other), ("third", other)]
        queues = [harness.queue(table=table, schema=within) for table, within in places]
        for table, within in places:
            assert complete(harness, table, within), (table, within)
        for number, queue in enumerate(queues):
            queue.put(number)
        assert [queue.get().data for queue in queues] == [0, 1, 2, 3]


@pytest.mark.requires(Capability.LISTEN)
def test_tables_in_one_schema_all_notify(harness: Harness) -> None:
    queues = [harness.queue(table=table) for table in ("queue", "second", "third")]
    session = harness.connect().session
    harness.wait_for(lambda: session.listen("q"))
    for queue in queues:
        for put in (partial(queue.put, 1), partial(queue.put_many, [1, 2])):
            with queue:
                harness.sql_within(queue, "SELECT set_config('pqcore.notify', 'always', true)")  # nobody waits
                put()
            heard = harness.eventually(lambda: harness.wait_for(lambda: session.notifications()))
            assert heard == ["q"]  # once for each statement


def test_create_by_several_clients_concurrently_succeeds(harness: Harness) -> None:
    pqs = [harness.pq(create=False) for _ in range(3)]
    at_once(harness, *[pq.create for pq in pqs], pqs[0].create)
    assert complete(harness)
    pqs[0]["q"].put(1)
    assert pqs[-1]["q"].get().data == 1


# A table that is missing, outdated or too new


def expect_missing(pq: Any) -> None:
    """Check that all operations report the missing table, and that all work after it is made."""
    for name, attempt in attempts(pq).items():
        with pytest.raises(TableMissing, match=r"create\(\)") as caught:
            attempt()
        assert isinstance(caught.value, SchemaError), name
        assert isinstance(caught.value, LookupError), name
    pq.create()
    pq["q"].put(1)
    for name, attempt in attempts(pq).items():
        if name not in ("blocking get", "update", "status", "progress", "result"):
            attempt()
    pq["q"].put(2)
    assert pq["q"].get().data == 2


def test_missing_table_raises_table_missing_for_every_operation(harness: Harness) -> None:
    expect_missing(harness.pq(create=False))


def test_missing_table_raises_table_missing_on_the_callers_connection(harness: Harness) -> None:
    expect_missing(harness.pq(harness.connect().raw, create=False))


@pytest.mark.requires(Capability.POOL)
def test_missing_table_raises_table_missing_on_the_callers_pool(harness: Harness) -> None:
    expect_missing(harness.pq(pool=harness.pool(), create=False))


def test_table_created_by_another_pq_is_found(harness: Harness) -> None:
    pq = harness.pq(create=False)
    with pytest.raises(TableMissing):
        pq["q"].put(1)
    harness.pq()
    pq["q"].put(2)
    assert pq["q"].get().data == 2


def test_dropped_table_raises_table_missing(harness: Harness) -> None:
    pq = harness.pq()
    for number in range(10):  # until a driver that prepares statements has done so
        pq["q"].put(number)
        pq["q"].get()
    harness.sql("DROP TABLE {table}", rows=False)
    for name, attempt in attempts(pq).items():
        if name not in ("with", *attempts_beside(pq)):  # the block sends no statement of its own
            with pytest.raises(TableMissing, match=r"create\(\)"):
                attempt()
    pq.create()
    pq["q"].put("new")
    assert pq["q"].get().data == "new"
    assert complete(harness)


def test_newer_table_is_refused_and_left_unchanged(harness: Harness) -> None:
    harness.pq()["q"].put("untouched")
    record = f"{quote(harness.schema)}.pqcore_migrations"
    harness.sql(f"INSERT INTO {record} (table_name, version) VALUES ('queue', 999)", rows=False)
    before = harness.sql("SELECT xmin::text, * FROM {table}"), harness.sql(f"SELECT xmin::text, * FROM {record}")
    pq = harness.pq(create=False)
    for name, attempt in {**attempts(pq), "create": pq.create}.items():
        with pytest.raises(SchemaTooNew, match="999") as caught:
            attempt()
        assert isinstance(caught.value, SchemaError), name
    after = harness.sql("SELECT xmin::text, * FROM {table}"), harness.sql(f"SELECT xmin::text, * FROM {record}")
    assert after == before
    forget_versions(harness, above=998)
    assert pq["q"].get().data == "untouched"


def test_newer_table_names_the_oldest_version_that_can_use_it(harness: Harness) -> None:
    harness.pq()["q"].put("first")
    record = f"{quote(harness.schema)}.pqcore_migrations"
    latest = schema.latest()
    harness.sql(
        f"INSERT INTO {record} (table_name, version, needs) VALUES"
        f" ('queue', 998, {latest}), ('queue', 999, {latest - 1})",
        rows=False,
    )
    before = harness.sql(f"SELECT xmin::text, * FROM {record}")
    pq = harness.pq()  # create accepts the existing table
    assert harness.sql(f"SELECT xmin::text, * FROM {record}") == before
    assert pq["q"].get().data == "first"
    harness.sql(f"UPDATE {record} SET needs = {latest + 1} WHERE version = 998", rows=False)
    pq = harness.pq(create=False)
    with pytest.raises(SchemaTooNew, match="999"):
        pq["q"].put(1)
    with pytest.raises(SchemaTooNew, match="999"):
        pq.create()


def test_schema_version_of_another_table_is_ignored(harness: Harness) -> None:
    pq = harness.pq()
    record = f"{quote(harness.schema)}.pqcore_migrations"
    harness.sql(f"INSERT INTO {record} (table_name, version) VALUES ('second', 999)", rows=False)
    harness.pq(create=False)["q"].put(1)
    assert pq["q"].get().data == 1
    with pytest.raises(TableMissing):
        harness.pq(table="second", create=False)["q"].put(1)


# pq's table


def test_pq_table_raises_schema_outdated_before_create(harness: Harness) -> None:
    before = make_pq_table(harness)
    pq = harness.pq(create=False)
    for name, attempt in attempts(pq).items():
        with pytest.raises(SchemaOutdated, match=r"a table of pq.*create\(\)") as caught:
            attempt()
        assert isinstance(caught.value, SchemaError), name
    assert contents(harness) == before
    pq.create()
    assert pq["q"].get().data == IN_ORDER[0]


@pytest.mark.unpartitioned
def test_pq_table_is_migrated_in_place(harness: Harness) -> None:
    before = make_pq_table(harness)
    [[oid]] = harness.sql("SELECT '{table}'::regclass::oid::bigint")
    pq = harness.pq()
    assert contents(harness) == before
    assert harness.sql("SELECT '{table}'::regclass::oid::bigint") == [(oid,)]
    assert complete(harness)
    assert pq["q"].stats().scheduled == 1
    assert pq["q"].count() == len(IN_ORDER)
    assert [job.data for job in pq["q"].peek(9)] == IN_ORDER
    new = pq["q"].put("new")
    assert new == before[-1][0] + 1
    assert [job.data for job in pq["q"].get_many(9)] == [*IN_ORDER, "new"]
    assert pq["q"].get(block=False) is None
    job = pq["objects/pickle"].get()
    assert (job.data, job.serializer, job.attempts) == (OBJECT, None, 1)
    assert pq["other"].get(block=False) is None
    assert pq["other"].purge(0) == 1


@pytest.mark.unpartitioned
def test_pq_jobs_can_be_leased_and_updated(harness: Harness) -> None:
    make_pq_table(harness)
    pq = harness.pq(retention="archive")
    job = pq["q"].lease()
    assert job.data == "expected soon"
    job.data = "changed"
    job.nack()
    job = pq["q"].lease()
    assert (job.data, job.attempts) == ("changed", 2)
    job.ack()
    archive = f"{quote(harness.schema)}.queue_archive"
    assert harness.sql(f"SELECT id, data::text, attempts FROM {archive}") == [(job.id, '"changed"', 2)]


@pytest.mark.unpartitioned
def test_pq_table_without_rows_is_migrated(harness: Harness) -> None:
    make_pq_table(harness, rows=False)
    pq = harness.pq()
    assert complete(harness)
    assert pq["q"].put(1) == 1
    assert pq["q"].get().data == 1


@pytest.mark.unpartitioned
def test_pq_table_without_its_trigger_is_migrated(harness: Harness) -> None:
    before = make_pq_table(harness)  # pq's create() for a second table takes the trigger and indexes of the first
    harness.sql(f"DROP FUNCTION {quote(harness.schema)}.pq_notify() CASCADE", rows=False)
    harness.sql(f"DROP INDEX {quote(harness.schema)}.priority_idx_no_", rows=False)
    harness.pq()
    assert contents(harness) == before
    assert complete(harness)


@pytest.mark.unpartitioned
def test_pq_clients_continue_after_the_migration(harness: Harness) -> None:
    make_pq_table(harness)
    queue = harness.queue("new", timeout=PATIENCE)
    insert = "INSERT INTO {table} (q_name, data, schedule_at, expected_at) VALUES ('new', '\"%s\"', NULL, NULL)"
    with harness.thread(queue.get) as join:
        harness.sql(insert % "by an old writer", rows=False)
        job = join()
    assert (job.data, job.serializer, job.attempts) == ("by an old writer", None, 1)
    harness.sql(insert % "for an old reader", rows=False)
    harness.sql("UPDATE {table} SET dequeued_at = current_timestamp WHERE dequeued_at IS NULL", rows=False)
    assert queue.get(block=False) is None
    assert queue.count() == 0
    assert queue.put("the next") == job.id + 2


@pytest.mark.unpartitioned
def test_row_without_data_is_refused(harness: Harness) -> None:
    make_pq_table(harness)
    harness.pq()
    with pytest.raises(PQError, match="queue_has_data"):
        harness.sql("INSERT INTO {table} (q_name) VALUES ('q')", rows=False)


def test_pq_table_is_migrated_once_by_concurrent_creates(harness: Harness) -> None:
    before = make_pq_table(harness)
    pqs = [harness.pq(create=False) for _ in range(4)]
    at_once(harness, *[pq.create for pq in pqs])
    assert complete(harness)
    assert contents(harness) == before
    assert [pq["q"].get().data for pq in pqs] == IN_ORDER[:4]


@pytest.mark.unpartitioned
def test_pq_table_in_use_is_migrated(harness: Harness) -> None:
    make_pq_table(harness)
    written = threading.Event()
    stop = threading.Event()

    def write() -> int:
        connection = harness.connect()
        number = 0
        while not stop.is_set():
            connection.sql(f"INSERT INTO {harness.table} (q_name, data) VALUES ('busy', '{number}')", rows=False)
            number += 1
            written.set()
        return number

    with harness.thread(write) as join:
        assert written.wait(PATIENCE)
        try:
            pq = harness.pq()
            now = pq["busy"].count()
            harness.eventually(lambda: pq["busy"].count() > now)
        finally:
            stop.set()
        number = join()
    assert complete(harness)
    assert [job.data for job in pq["busy"].get_many(100_000)] == list(range(number))


# Migrations that fail


def invalidate(harness: Harness) -> None:
    """Leave an index as a concurrent build leaves it that fails; the table needs a row, which is divided by zero."""
    harness.sql(f"DROP INDEX {quote(harness.schema)}.queue_ready", rows=False)
    with pytest.raises(PQError):
        harness.sql("CREATE INDEX CONCURRENTLY queue_ready ON {table} ((1 / (id - id)))", rows=False)
    assert catalogue(harness)["queue_ready"][0] is False


@pytest.mark.unpartitioned
@pytest.mark.parametrize("above", range(schema.latest()))
def test_interrupted_migration_is_completed(harness: Harness, above: int) -> None:
    make_pq_table(harness)
    harness.pq()["q"].put("new")
    before = contents(harness)
    forget_versions(harness, above)
    left = "".join(statement for version in schema.migrations()[above:] for statement in version)
    if "TABLE IF NOT EXISTS {dead}" in left:
        harness.sql(f"DROP TABLE {quote(harness.schema)}.queue_dead", rows=False)
    function = f"{quote(harness.schema)}.queue_notify"
    [before_function] = harness.sql(f"SELECT prosrc FROM pg_proc WHERE oid = '{function}'::regproc")
    if "FUNCTION {notify}" in left:
        harness.sql(
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            rows=False,
        )
    if above < FIRST_INDEXES:
        invalidate(harness)
    pq = harness.pq(create=False)
    with pytest.raises(SchemaOutdated):
        pq["q"].get()
    pq.create()
    assert complete(harness)
    assert harness.sql(f"SELECT prosrc FROM pg_proc WHERE oid = '{function}'::regproc") == [before_function]
    assert contents(harness) == before
    assert [job.data for job in pq["q"].get_many(9)] == [*IN_ORDER, "new"]


@pytest.mark.unpartitioned
def test_interrupted_migration_is_completed_on_an_empty_table(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("for the build that fails")
    forget_versions(harness)
    invalidate(harness)
    harness.sql("DELETE FROM {table}", rows=False)
    pq = harness.pq()
    assert complete(harness)
    pq["q"].put(1)
    assert pq["q"].get().data == 1


@pytest.mark.unpartitioned
def test_interrupted_migration_is_completed_in_a_transaction(harness: Harness) -> None:
    make_pq_table(harness)
    harness.pq()
    forget_versions(harness)
    invalidate(harness)
    connection = harness.connect()
    with transaction(connection):
        pq = harness.pq(connection.raw)
        connection.commit()
    assert complete(harness)
    assert pq["q"].get().data == IN_ORDER[0]


@pytest.mark.unpartitioned
def test_interrupted_index_build_is_repeated(harness: Harness) -> None:
    harness.needs_sessions()
    make_pq_table(harness)
    harness.pq()
    forget_versions(harness, above=FIRST_INDEXES - 1)
    harness.sql(f"DROP INDEX {quote(harness.schema)}.queue_urgent", rows=False)
    writer = harness.connect()
    pq = harness.pq(create=False)
    building = (
        f"FROM pg_stat_activity WHERE application_name = '{harness.application}'"
        " AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'"
    )

    def refuse() -> None:
        with pytest.raises(ConnectionLost):
            pq.create()

    with transaction(writer):
        writer.sql(f"INSERT INTO {harness.table} (q_name, data) VALUES ('q', '\"open\"')", rows=False)
        with harness.thread(refuse) as join:
            harness.eventually(lambda: harness.sql(f"SELECT {building}"))
            harness.sql(f"SELECT pg_terminate_backend(pid) {building}")
            join()
        writer.commit()
    assert catalogue(harness)["queue_urgent"][0] is False
    pq.create()
    assert complete(harness)
    assert [job.data for job in pq["q"].get_many(9)] == [*IN_ORDER, "open"]


@pytest.mark.parametrize("mode", ["ACCESS SHARE", "ROW EXCLUSIVE", "ACCESS EXCLUSIVE"])
def test_blocked_migration_raises_transient_error_and_succeeds_later(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", 0.05)
    before = make_pq_table(harness)
    blocker = harness.connect()
    pq = harness.pq(create=False)

    def attempt() -> None:
        with pytest.raises(TransientError) as caught:
            pq.create()
        assert caught.value.sqlstate == "55P03"

    with transaction(blocker):
        blocker.sql(f"LOCK TABLE {harness.table} IN {mode} MODE", rows=False)
        with harness.thread(attempt) as join:
            try:
                join()
            finally:
                blocker.rollback()
    assert contents(harness) == before
    with pytest.raises(SchemaOutdated):
        pq["q"].put(1)
    with harness.thread(harness.pq(create=False).create) as join:  # nothing is left locked
        join()
    assert complete(harness)
    assert pq["q"].get().data == IN_ORDER[0]


# Migrations in a caller's transaction


def test_create_is_part_of_the_callers_transaction(harness: Harness) -> None:
    connection = harness.connect()
    pq = harness.pq(connection.raw, create=False)
    with transaction(connection):
        pq.create()
        pq["q"].put(1)
    assert tables(harness) == set()
    with pytest.raises(TableMissing):
        pq["q"].put(2)
    with transaction(connection):
        pq.create()
        pq["q"].put(3)
        assert tables(harness) == set()
        connection.commit()
    assert complete(harness)
    assert pq["q"].get().data == 3


def test_migration_is_part_of_the_callers_transaction(harness: Harness) -> None:
    before = make_pq_table(harness)
    found = catalogue(harness)
    connection = harness.connect()
    pq = harness.pq(connection.raw, create=False)
    with transaction(connection):
        pq.create()
        assert pq["q"].get().data == IN_ORDER[0]
    assert catalogue(harness) == found
    assert contents(harness) == before
    with pytest.raises(SchemaOutdated):
        pq["q"].get()
    with transaction(connection):
        pq.create()
        connection.commit()
    assert complete(harness)
    assert pq["q"].get().data == IN_ORDER[0]


# Finished rows

FINISH: dict[str, Callable[[Any], Any]] = {
    "get": lambda queue: queue.get(),
    "get_many": lambda queue: queue.get_many(3),
    "ack": lambda queue: queue.ack(queue.lease()),
    "ack_many": lambda queue: queue.ack_many(queue.lease_many(3)),
}
ROW = (
    "id, q_name, enqueued_at, schedule_at, expected_at, data::text, serializer, encode(payload, 'hex'),"
    " headers::text, failures, excused, error::text"
)


@pytest.mark.parametrize("way", FINISH)
@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_finished_rows_are_kept_archived_or_deleted_by_retention(harness: Harness, retention: str, way: str) -> None:
    queue = harness.queue("q/pickle", retention=retention)
    queue.put(OBJECT, schedule_at="0s", expected_at="1h", headers={"a": 1}, dedup="key", group="group")
    harness.sql('UPDATE {table} SET failures = 2, excused = 1, error = \'{"type": "E"}\'', rows=False)
    [row] = harness.sql(f"SELECT {ROW} FROM {{table}}")
    FINISH[way](queue)
    finished = f"SELECT {ROW}, attempts, dequeued_at BETWEEN enqueued_at AND now() FROM "
    kept = harness.sql(f"{finished} {{table}}")
    archived = harness.sql(f"{finished} {quote(harness.schema)}.queue_archive")
    assert kept == ([(*row, 1, True)] if retention == "keep" else [])
    assert archived == ([(*row, 1, True)] if retention == "archive" else [])
    assert harness.sql("SELECT 1 FROM {table} WHERE leased_until IS NOT NULL") == []
    assert queue.get(block=False) is None


@pytest.mark.parametrize("retention", ["delete", "archive"])
def test_leased_row_stays_until_the_job_is_finished(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    queue.put(1)
    job = queue.lease()
    assert harness.sql("SELECT dequeued_at FROM {table}") == [(None,)]
    job.nack()
    assert queue.get().attempts == 2
    assert contents(harness) == []


@pytest.mark.parametrize("retention", ["delete", "archive"])
def test_rolled_back_get_restores_the_row(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    queue.put(1)

    def fail() -> None:
        with queue:
            queue.get()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert harness.sql(f"SELECT 1 FROM {quote(harness.schema)}.queue_archive") == []
    assert queue.get().attempts == 1


def test_queue_may_have_its_own_retention(harness: Harness) -> None:
    pq = harness.pq(retention="delete")
    queues = [pq["a"], pq.queue("b", retention="archive"), pq.queue("c", retention="keep")]
    for queue in queues:
        queue.put(1)
        queue.get()
    assert harness.sql("SELECT q_name FROM {table}") == [("c",)]
    assert harness.sql(f"SELECT q_name FROM {quote(harness.schema)}.queue_archive") == [("b",)]


def test_purge_deletes_old_finished_rows_of_its_queue_only(harness: Harness) -> None:
    pq = harness.pq()
    archive = f"{quote(harness.schema)}.queue_archive"
    for name in ("q", "other"):
        archiving = pq.queue(name, retention="archive")
        for data in ("old", "old", "new"):
            pq[name].put(data)
            pq[name].get()
            archiving.put(data)
            archiving.get()
        pq[name].put("leased")
        pq[name].lease()
        pq[name].put("waiting")
        pq[name].put("scheduled", "1h")
    old = "SET {} = now() - interval '61 m' WHERE data::text <> '\"new\"'"
    harness.sql(f"UPDATE {{table}} {old.format('dequeued_at')} AND dequeued_at IS NOT NULL", rows=False)
    harness.sql(f"UPDATE {{table}} {old.format('enqueued_at')}", rows=False)
    harness.sql(f"UPDATE {archive} {old.format('dequeued_at')}", rows=False)
    others = harness.sql("SELECT * FROM {table} WHERE q_name = 'other' ORDER BY id")
    assert pq["q"].purge("62m") == 0
    assert pq["q"].purge("1h") == 4
    kept = harness.sql("SELECT data::text FROM {table} WHERE q_name = 'q' ORDER BY id")
    assert kept == [('"new"',), ('"leased"',), ('"waiting"',), ('"scheduled"',)]
    assert harness.sql(f"SELECT data::text FROM {archive} WHERE q_name = 'q'") == [('"new"',)]
    assert pq["q"].purge(0) == 2
    assert len(harness.sql("SELECT 1 FROM {table} WHERE q_name = 'q'")) == 3
    assert harness.sql("SELECT * FROM {table} WHERE q_name = 'other' ORDER BY id") == others
    assert len(harness.sql(f"SELECT 1 FROM {archive} WHERE q_name = 'other'")) == 3


def test_purge_deletes_from_large_tables_in_slices(harness: Harness) -> None:
    queue = harness.queue()
    series = "now(), '1' FROM generate_series(1, 10100) AS n"
    harness.sql(f"INSERT INTO {{table}} (q_name, dequeued_at, data) SELECT 'other', {series}", rows=False)
    harness.sql(
        "INSERT INTO {table} (q_name, dequeued_at, data) SELECT 'q', now(), '1' FROM generate_series(1, 5)", rows=False
    )
    archive = f"{quote(harness.schema)}.queue_archive"
    columns = "id, q_name, enqueued_at, attempts, dequeued_at, data"
    harness.sql(f"INSERT INTO {archive} ({columns}) SELECT n, 'q', now(), 1, {series}", rows=False)
    assert queue.purge(0) == 10_105
    assert harness.sql("SELECT count(*) FROM {table}") == [(10_100,)]
    assert harness.sql(f"SELECT 1 FROM {archive}") == []


@pytest.mark.parametrize(
    "older_than", [-1, "-1s", "yesterday", None, float("nan"), datetime(2020, 1, 1, tzinfo=timezone.utc)]
)
def test_purge_refuses_a_bad_duration(harness: Harness, older_than: Any) -> None:
    queue = harness.queue()
    queue.put(1)
    queue.get()
    with pytest.raises(InvalidTimeSpec):
        queue.purge(older_than)
    assert len(contents(harness)) == 1


@pytest.mark.parametrize("retention", ["delete", "archive"])
def test_job_data_cannot_be_set_after_its_row_was_deleted(harness: Harness, retention: str) -> None:
    queue = harness.queue(retention=retention)
    queue.put("old")
    job = queue.get()
    with pytest.raises(JobNotFound, match=f"retention='{retention}'") as caught:
        job.data = "new"
    assert isinstance(caught.value, LookupError)
    assert job.data == "old"


def test_job_data_cannot_be_set_for_an_unknown_job(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq["q"]
    with pytest.raises(JobNotFound, match="no row 12345"):
        queue.update(12345, 1)
    job_id = pq["other"].put("kept")
    with pytest.raises(JobNotFound):
        queue.update(job_id, "new")
    assert pq["other"].get().data == "kept"


@pytest.mark.parametrize(
    "options",
    [
        {"retention": "forever"},
        {"retention": None},
        {"retention": ""},
        {"poll_interval": -1},
        {"poll_interval": "5"},
        {"poll_interval": float("nan")},
        {"timeout": -0.1},
        {"timeout": "1s"},
        {"timeout": None},
        {"max_size": -1},
        {"max_size": "1 MB"},
        {"max_size": None},
        {"max_connections": 0},
        {"max_connections": "many"},
        {"name": "q"},
        {"serializer_name": "pickle"},
        {"engine": None},
        {"_popped": None},
    ],
    ids=str,
)
def test_pq_refuses_bad_options(harness: Harness, options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ConfigurationError, match=name) as caught:
        harness.pq(create=False, **options)
    assert isinstance(caught.value, ValueError)
    assert harness.connections() == 0


def test_queue_refuses_bad_options(harness: Harness) -> None:
    pq = harness.pq(create=False)
    with pytest.raises(ConfigurationError, match="retention"):
        pq.queue("q", retention="forever")
    assert pq.queue("q", retention="delete").retention == "delete"
