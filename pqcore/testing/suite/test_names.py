"""Names of queues, tables and schemas: whatever characters they contain, they are treated as names and nothing else."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.db.listener import Listener
from pqcore.errors import InvalidName, UnknownSerializer
from pqcore.put_options import Dedup
from pqcore.sql.identifiers import MAX_KEY
from pqcore.testing.harness import INDEXES, PATIENCE, Harness, all_tables

_letters = random.Random(1)
LONGEST = "".join(_letters.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=2_000))  # an index cannot compress it

NASTY = {
    "spaces": " two  words ",
    "single quotes": "it's ''quoted''",
    "double quotes": 'say "hi" "',
    "percent s": "100%s of %d",
    "percent mapping": "%(x)s %%",
    "dollar": "$1 $$ $q$",
    "colon": ":name ::text",
    "question mark": "? ?? @>",
    "braces": "{table} {0} {} {{",
    "backslash": "a\\b\\'\\\"\\",
    "control characters": "a\nb\r\nc\td\x01\x7f",
    "injection": "q'; DROP TABLE queue CASCADE; --",
    "injection between double quotes": 'q"; DROP TABLE queue CASCADE; --',
    "upper case": "UPPER Case",
    "reserved": "select",
    "user": "user",
    "null": "NULL",
    "emoji": "🍎🧑‍🌾",
    "right to left": "\u202e\u05ea\u05e4\u05d5\u05d7 \u062a\u0641\u0627\u062d",
    "combining": "e\u0301\u0327",
}
QUEUES = {
    **NASTY,
    "63 bytes": "a" * 63,
    "64 bytes": "a" * 64,
    "80 bytes of é": "é" * 40,
    "1,000 bytes": "é" * 500,
    "2,000 bytes": LONGEST,
}
TABLES = {**NASTY, "63 bytes": "t" * 63, "62 bytes of é": "é" * 31, "two dots": "a.b.c", "digits": "1"}

each_table = pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=key, marks=[pytest.mark.utf8] * (max(name) > "\xff")) for key, name in TABLES.items()],
)


def quoted(name: str) -> str:
    """Return an identifier for the harness, which takes `{table}` for a placeholder."""
    return 'U&"' + name.replace("\\", "\\\\").replace('"', '""').replace("{", "\\007B") + '"'


def names(harness: Harness, column: str = "q_name") -> list[str]:
    """Return the names in the rows."""
    return [row[0] for row in harness.sql(f"SELECT {column} FROM {{table}} ORDER BY id")]


def tables(harness: Harness, schema: str | None = None) -> set[str]:
    """Return the names of the tables in a schema."""
    rows = harness.sql(
        "SELECT n.nspname::text, c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
    )
    return {table for found, table in rows if found == (schema or harness.schema)}


@contextmanager
def dropped(harness: Harness, schema: str) -> Iterator[None]:
    """Drop a schema at the end; a schema that existed before belongs to others, and stays."""
    assert (schema,) not in harness.sql("SELECT nspname::text FROM pg_namespace")
    try:
        yield
    finally:
        harness.sql(f"DROP SCHEMA IF EXISTS {quoted(schema)} CASCADE", rows=False)


# Queues


@pytest.mark.utf8
def test_queue_name_may_be_any_text(harness: Harness) -> None:
    pq = harness.pq()
    pq["q"].put("another's")
    for name in QUEUES.values():
        check_queue(harness, pq, name)


def check_queue(harness: Harness, pq: Any, name: str) -> None:
    """Use every operation on a queue with a name, which is empty before and after."""
    queue = pq[name]
    assert queue.name == name
    first, second = queue.put(1), queue.put(2, expected_at="1h")
    third, *_ = queue.put_many([3, 4])
    assert names(harness) == ["q", *[name] * 4]
    assert [job.id for job in queue.peek(9)] == [second, first, third, third + 1]
    assert queue.count() == queue.stats().ready == 4
    assert set(pq.stats()) == {name, "q"}
    assert queue.get().data == 2
    assert queue.cancel(first) is True
    queue.update(third, "three")
    job = queue.lease()
    assert job.data == "three"
    job.nack()
    job = queue.lease()
    job.extend(60)
    job.ack()
    assert pq[name].get().data == 4
    assert queue.purge(0) == 3
    queue.put(5)
    queue.clear()
    assert names(harness) == ["q"]
    assert name in repr(queue) or repr(name) in repr(queue)


@pytest.mark.utf8
@pytest.mark.requires(Capability.LISTEN)
def test_queue_of_any_name_wakes_its_waiter(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, wait = threading.Event(), Listener.wait

    async def noticed(*arguments: Any, **more: Any) -> None:
        waiting.set()
        await wait(*arguments, **more)

    monkeypatch.setattr(Listener, "wait", noticed)
    pq = harness.pq(timeout=2 * PATIENCE, poll_interval=2 * PATIENCE)
    for name in QUEUES.values():
        queue = pq[name]
        waiting.clear()
        began = time.monotonic()
        with harness.thread(queue.get) as join:
            assert waiting.wait(PATIENCE)
            queue.put("wake up")
            assert join().data == "wake up", name
        assert time.monotonic() - began < PATIENCE, name  # woken, and not because it was time to look


def test_queue_name_with_injected_sql_is_not_run(harness: Harness) -> None:
    pq = harness.pq(retention="archive")
    table = pq["q"].table
    for name in (
        f"'; DROP TABLE {table}; --",
        f'"; DROP TABLE {table}; --',
        f"$1; DROP TABLE {table}; --",
        f"\\'; DROP TABLE {table}; --",
        f"'); DELETE FROM {table}; --",
        "' OR true; --",
        "%s'; SELECT pg_terminate_backend(pg_backend_pid()); --",
    ):
        queue = pq[name]
        assert queue.put(name) > 0
        assert queue.get().data == name
        queue.put_many([name])
        queue.clear()
    assert tables(harness) == all_tables("queue")
    assert names(harness) == []


@pytest.mark.utf8
def test_queue_names_that_look_alike_are_different_queues(harness: Harness) -> None:
    pq = harness.pq()
    alike = ["\u00e9", "e\u0301", "\u00c5", "\u212b", "A\u030a", "%", "_"]
    alike += ["apple", "Apple", "apple ", " apple", "\uff41pple", "apple\u200b", "\u0430pple"]
    alike += ["a" * 64, "a" * 65, "é" * 40, "é" * 39 + "e\u0301", "apple\n"]
    for number, name in enumerate(alike):
        pq[name].put(number)
    assert pq.stats().keys() == set(alike)
    for number, name in reversed(list(enumerate(alike))):
        assert pq[name].get(block=False).data == number
        assert pq[name].get(block=False) is None


def test_queue_name_suffix_after_the_last_slash_names_the_serializer(harness: Harness) -> None:
    pq = harness.pq()
    assert pq["a/json"].name == "a"
    assert pq["a/b/json"].name == "a/b"
    assert pq["/json/json"].name == "/json"
    pq["a/b/json"].put(1)
    pq["a/b/pickle"].put({2})
    assert names(harness) == ["a/b", "a/b"]
    assert names(harness, "serializer") == ["json", "pickle"]
    with pytest.raises(UnknownSerializer):
        pq["a/b"]


def test_queue_name_keeps_an_escaped_slash(harness: Harness) -> None:
    pq = harness.pq()
    for written, name in [("a\\/b", "a/b"), ("a\\/b/json", "a/b"), ("\\/", "/"), ("a\\/b\\/c/pickle", "a/b/c")]:
        assert pq[written].name == name
        pq[written].put(written)
        assert pq.queue(name, serializer="pickle").get().data == written
    assert names(harness) == ["a/b", "a/b", "/", "a/b/c"]


def test_queue_name_is_taken_literally_with_a_serializer_argument(harness: Harness) -> None:
    pq = harness.pq()
    for name in ("a/b", "a/json", "a\\/b", "/", "json/"):
        queue = pq.queue(name, serializer="json")
        assert queue.name == name
        queue.put(name)
        assert queue.get().data == name
    assert names(harness) == ["a/b", "a/json", "a\\/b", "/", "json/"]


@pytest.mark.parametrize("retention", ["keep", "archive"])
def test_queue_name_of_maximum_length_fits_all_indexes(harness: Harness, retention: str) -> None:
    queue = harness.queue(LONGEST, retention=retention)
    queue.put(1, "1h", "1h")
    queue.put(2, expected_at="1h")
    queue.put(3)
    assert queue.get().data == 2
    job = queue.lease()
    job.ack()
    assert queue.purge(0) == 2
    assert queue.stats().scheduled == 1
    key = LONGEST[-MAX_KEY:]
    first = queue.put(4, dedup=key, group=key, limits={key: 1})
    assert queue.put(5, dedup=key) == first
    assert queue.put(6, dedup=Dedup(key, until=60)) != first
    for gate in ({"group": key}, {"limits": {key: 1}}):
        queue.put(7, **gate)
    leased = [job.data for _ in range(2) for job in queue.lease_many(9, wait=0)]  # a job is put on its lane first
    assert sorted(leased) == [4, 6]
    assert queue.stats().parked == 2


def test_queue_name_of_maximum_length_may_have_a_serializer_suffix(harness: Harness) -> None:
    assert harness.pq(create=False)[LONGEST + "/pickle"].name == LONGEST


@pytest.mark.parametrize(
    "name",
    ["", "\0", "a\0b", "\ud800", "a\udfffb", "x" * 2_001, "é" * 1_001, None, 5, b"bytes", ("a",), "/json", "\0/json"],
    ids=repr,
)
def test_queue_name_of_a_bad_value_is_refused_before_connecting(harness: Harness, name: Any) -> None:
    pq = harness.pq(create=False)
    with pytest.raises(InvalidName, match="queue name") as caught:
        pq[name]
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 200
    if name != "/json":
        with pytest.raises(InvalidName):
            pq.queue(name, serializer="json")
    assert harness.connections() == 0


# Tables and schemas


@each_table
def test_table_name_may_be_any_text(harness: Harness, name: str) -> None:
    pq = harness.pq(table=name, retention="archive")
    pq.create()
    queue = pq["q"]
    queue.put(1)
    queue.put(2, expected_at="1h")
    queue.put(3, "1h", "1h")
    assert queue.stats().scheduled == 1
    assert queue.get().data == 2
    job = queue.lease()
    job.ack()
    assert queue.purge(0) == 2
    assert queue.count() == 0
    assert tables(harness) == all_tables(name)
    assert harness.sql(f"SELECT data::text FROM {quoted(harness.schema)}.{quoted(name)}") == [("3",)]


@pytest.mark.parametrize("retention", ["keep", "delete"])
def test_table_name_with_injected_sql_leaves_other_tables_unchanged(harness: Harness, retention: str) -> None:
    neighbour = harness.queue()
    neighbour.put("untouched")
    for name in ('queue"; DROP TABLE queue; --', "queue; DELETE FROM queue", "queue AS q", "queue --", "queue*"):
        queue = harness.queue(table=name, retention=retention)
        queue.put(1)
        assert queue.get().data == 1
        queue.clear()
    assert neighbour.get().data == "untouched"


@each_table
def test_schema_name_may_be_any_text(harness: Harness, name: str) -> None:
    with dropped(harness, name):
        pq = harness.pq(schema=name)
        pq.create()
        queue = pq["q"]
        queue.put(1)
        assert queue.get().data == 1
        assert tables(harness, name) == all_tables("queue")
        assert tables(harness) == set()


def test_table_and_schema_names_may_both_need_quoting(harness: Harness) -> None:
    for name, schema in [('"."', harness.schema + '"."'), ("it's", harness.schema + " it's \\ {table} %s")]:
        with dropped(harness, schema):
            queue = harness.queue(table=name, schema=schema)
            queue.put(1)
            assert queue.get().data == 1
            assert name in tables(harness, schema)


def test_table_name_may_be_qualified_with_a_schema(harness: Harness) -> None:
    queue = harness.queue(table=f"{harness.schema}.apples", schema=None)
    queue.put(1)
    assert queue.get().data == 1
    assert "apples" in tables(harness)
    assert harness.pq(table="apples", create=False)["q"].stats().ready == 0  # the same table


def test_table_name_keeps_its_dot_with_a_schema_argument(harness: Harness) -> None:
    queue = harness.queue(table="green.apples")
    queue.put(1)
    assert queue.get().data == 1
    assert "green.apples" in tables(harness)


@pytest.mark.parametrize(
    "name", ["", "\0", "a\0b", "\ud800", "t" * 64, "é" * 32, 5, b"bytes", "{table}" * 10], ids=repr
)
def test_table_and_schema_names_of_bad_values_are_refused(harness: Harness, name: Any) -> None:
    with pytest.raises(InvalidName, match="table name") as caught:
        harness.pq(table=name, create=False)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InvalidName, match="schema name"):
        harness.pq(schema=name, create=False)
    assert harness.connections() == 0


@pytest.mark.parametrize("name", [".", "a.", ".a", f"{'s' * 64}.a", f"a.{'t' * 64}"])
def test_table_name_with_a_bad_qualification_is_refused(harness: Harness, name: str) -> None:
    with pytest.raises(InvalidName):
        harness.pq(table=name, schema=None, create=False)


def test_table_names_equal_in_their_first_60_bytes_are_separate_tables(harness: Harness) -> None:
    alike = ["t" * 60 + end for end in ("aaa", "bbb", "é", "")]
    queues = {name: harness.queue(table=name, retention="archive") for name in alike}
    for name, queue in queues.items():
        queue.put_many([name, name])
        assert queue.get().data == name
    functions: set[tuple[str]] = set()
    for name, queue in queues.items():
        found = f"{quoted(harness.schema)}.{quoted(name)}"
        assert harness.sql(f"SELECT data::text FROM {found}") == [(json.dumps(name),)]
        indexes = harness.sql(
            "SELECT i.indexrelid::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid"
            f" WHERE c.relname = '{name}' AND c.relnamespace = '{harness.schema}'::regnamespace AND i.indisvalid"
        )
        assert len(indexes) == len(INDEXES)
        triggers = harness.sql(
            "SELECT t.tgfoid::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid"
            f" WHERE c.relname = '{name}' AND c.relnamespace = '{harness.schema}'::regnamespace"
        )
        assert triggers
        assert functions.isdisjoint(triggers), "each table has its own functions"
        functions.update(triggers)
        assert queue.purge(0) == 1
    of_schema = f"FROM pg_proc WHERE pronamespace = '{harness.schema}'::regnamespace"
    assert harness.sql(f"SELECT count(*) {of_schema} AND prorettype = 'trigger'::regtype") == [(len(functions),)]
    assert len(functions) == len(triggers) * len(alike)
    [(others,)] = harness.sql(f"SELECT count(*) {of_schema} AND prorettype <> 'trigger'::regtype")
    assert others in (0, len(alike)), "each table has its own function that puts jobs, unless the dialect has none"
    assert tables(harness) == all_tables(*alike)


# Data


def test_data_with_sql_syntax_come_back_unchanged(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq["q"]
    data = list(QUEUES.values())
    items = [*data, *({text: [text]} for text in data)]
    for item in items:
        queue.put(item)
        assert queue.get().data == item
    queue.put_many(items)
    assert [job.data for job in queue.get_many(len(items))] == items
    pickled = pq["q/pickle"]
    pickled.put_many(items)
    assert [job.data for job in pickled.get_many(len(items))] == items
    job_id = queue.put(None)
    for item in items:
        queue.update(job_id, item)
        assert queue.peek()[0].data == item
    assert harness.sql("SELECT count(*) FROM {table}") == [(3 * len(items) + 1,)]
