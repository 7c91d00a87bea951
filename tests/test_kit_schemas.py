"""Schemas that one test of the suite leaves to the next: they are as new, or they are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pqcore.plugins import plugins
from pqcore.sql.identifiers import quote
from pqcore.testing.harness import SIDE_TABLES, Harness
from pqcore.testing.schemas import GROWTH, Schemas

SPECS = [spec for spec in plugins.backend_specs() if spec.name in ("psycopg2", "psycopg", "asyncpg")]
OID = "SELECT oid::bigint FROM pg_namespace WHERE nspname = '{}'"
CHANGES = (
    "ALTER TABLE {table} ADD COLUMN more integer",
    "ALTER TABLE {table} ALTER COLUMN attempts SET DEFAULT 1",
    "ALTER TABLE {table} SET (fillfactor = 50)",
    "ALTER TABLE {table} DISABLE TRIGGER queue_notify",
    "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
    "ALTER SEQUENCE {schema}.queue_id_seq INCREMENT 2",
    "CREATE INDEX ON {table} (attempts)",
    "CREATE POLICY own ON {table}",
    "CREATE TABLE {schema}.orders (id bigint)",
    "CREATE FUNCTION {schema}.one() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION {schema}.queue_notify() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "DROP TABLE {schema}.queue_dead",
    "DROP INDEX {schema}.queue_ready",
    "GRANT SELECT ON {table} TO PUBLIC",
    "GRANT UPDATE (data) ON {table} TO PUBLIC",
    "GRANT USAGE ON SCHEMA {schema} TO PUBLIC",
    "ANALYZE {table}",
)


@pytest.fixture
def schemas(pqcore_server: str) -> Iterator[Schemas]:
    made = Schemas()
    yield made
    harness = Harness(SPECS[0], pqcore_server)
    made.drop(harness.sql)
    harness.close()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}-{spec.mode}")
def test_schema_of_a_test_is_as_new_for_the_next_test(schemas: Schemas, pqcore_server: str, spec: Any) -> None:
    def tables(harness: Harness) -> list[Any]:
        quoted = [f"{quote(harness.schema)}.{quote('queue' + suffix)}" for suffix in ("", *SIDE_TABLES)]
        quoted.append(f"{quote(harness.schema)}.pqcore_migrations")
        rows = [harness.sql(f"SELECT kept::text FROM {name} AS kept") for name in quoted]
        sizes = [harness.sql(f"SELECT pg_relation_size('{name}')") for name in quoted if "_keys" not in name]
        return [rows, sizes[1:]]

    first = Harness(spec, pqcore_server, schemas=schemas)
    queue = first.task_queue()
    new = tables(first)
    [oid] = first.sql(OID.format(first.schema))
    queue.put_many([*range(100)])
    queue.set_expiry(finished="1h")
    for suffix, row in (
        ("slots", "('q', 'key', 1)"),
        ("ticks", "('q', 'tick', now())"),
        ("keys", "('q', 'key', 1, 1, 1, ARRAY[1])"),
    ):
        first.sql(f"INSERT INTO {first.schema}.queue_{suffix} VALUES {row}", rows=False)
    drawn = "SELECT nextval('{}.queue_batches_id_seq')"
    assert first.sql(drawn.format(first.schema)) == [(1,)]
    first.sql(f"INSERT INTO {first.schema}.pqcore_migrations VALUES ('other', 1)", rows=False)
    first.close()
    assert len(schemas) == 1

    second = Harness(spec, pqcore_server, schemas=schemas)
    queue = second.task_queue()
    assert second.sql(OID.format(second.schema)) == [oid]
    assert second.schema != first.schema
    assert tables(second) == new
    assert [int(job) for job in queue.put_many([*range(3)])] == [1, 2, 3]
    assert second.sql(drawn.format(second.schema)) == [(1,)]
    second.close()


@pytest.mark.parametrize("change", CHANGES)
def test_schema_that_a_test_changed_is_dropped(schemas: Schemas, pqcore_server: str, change: str) -> None:
    harness = Harness(SPECS[0], pqcore_server, schemas=schemas)
    harness.queue()
    harness.sql(change.replace("{schema}", harness.schema), rows=False)
    harness.close()
    assert len(schemas) == 0


def test_schema_of_a_test_that_makes_no_table_is_empty(schemas: Schemas, pqcore_server: str) -> None:
    first = Harness(SPECS[0], pqcore_server, schemas=schemas)
    first.queue()
    first.close()
    second = Harness(SPECS[0], pqcore_server, schemas=schemas)
    assert second.sql(f"SELECT FROM pg_class WHERE relnamespace = '{second.schema}'::regnamespace") == []
    second.close()
    assert len(schemas) == 1


def test_schema_whose_tables_have_grown_is_dropped(schemas: Schemas, pqcore_server: str) -> None:
    harness = Harness(SPECS[0], pqcore_server, schemas=schemas)
    harness.queue().put_many(["x" * 1_000] * (GROWTH // 1_000))
    harness.close()
    assert len(schemas) == 0
