"""Schemas with a queue's empty tables, which tests use one after the other.

Making the tables takes 79 statements, and the server needs as long to drop the tables as to make them. One statement
empties the tables. The next test cannot tell such tables from new ones: ids begin at 1, and the planner knows nothing
of the rows that were there. A schema in which a test made, changed or dropped anything else is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pqcore.backend import BackendSpec
from pqcore.plugins import plugins
from pqcore.schema.scripts import statements_naming
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName, literal, quote
from pqcore.testing.connections import Observer
from pqcore.testing.databases import prepared
from pqcore.testing.server import partitions

Sql = Callable[..., list[tuple[Any, ...]]]
"""A function that runs a statement on the server, such as `Harness.sql`."""

GROWTH = 2**20
"""The largest growth of the tables by deleted rows, in bytes; after more growth, the schema is dropped."""

_CATALOGUES = {
    "pg_depend": "refclassid = 'pg_namespace'::regclass AND refobjid = {schema}",
    "pg_proc": "pronamespace = {schema}",
    "pg_type": "typnamespace = {schema}",
    "pg_constraint": "connamespace = {schema}",
    "pg_default_acl": "defaclnamespace = {schema}",
    **{
        catalogue: f"{column} IN (SELECT oid FROM pg_class WHERE relnamespace = {{schema}})"
        for catalogue, column in (
            ("pg_attribute", "attrelid"),
            ("pg_attrdef", "adrelid"),
            ("pg_index", "indrelid"),
            ("pg_inherits", "inhparent"),
            ("pg_policy", "polrelid"),
            ("pg_publication_rel", "prrelid"),
            ("pg_rewrite", "ev_class"),
            ("pg_sequence", "seqrelid"),
            ("pg_trigger", "tgrelid"),
        )
    },
}
# A row of the catalogue keeps the transaction id of its last real change. VACUUM, ANALYZE and TRUNCATE change only rows
# of pg_class, whose columns are compared instead.
_OBJECTS = "SELECT concat_ws(' ', {}, {}, {}, {})".format(
    ", ".join(
        f"(SELECT concat(count(*), ':', max(xmin::text::bigint)) FROM {catalogue} WHERE {of})"
        for catalogue, of in _CATALOGUES.items()
    ),
    "(SELECT concat(nspowner, nspacl::text) FROM pg_namespace WHERE oid = {schema})",
    "(SELECT concat(sum(relpages), ' ', sum(reltuples), ' ', sum(relallvisible)) FROM pg_class"
    " WHERE relnamespace = {schema} AND relkind = 'r')",
    "(SELECT md5(string_agg(ROW(oid, relname, relkind, relowner, relacl, reloptions, relrowsecurity,"
    " relforcerowsecurity, relpersistence, reltablespace, relreplident, relchecks, relhastriggers, relhasrules)::text,"
    " ' ' ORDER BY oid)) FROM pg_class WHERE relnamespace = {schema})",
)
_SIZE = (
    "SELECT sum(pg_relation_size(oid))::bigint FROM pg_class WHERE relnamespace = {schema} AND relkind IN ('r', 'i')"
)
_TABLES = """
SELECT relname::text, pg_relation_size(oid) > 0 FROM pg_class WHERE relnamespace = {schema} AND relkind = 'r'
ORDER BY relname"""
_SEQUENCES = """
SELECT c.relname::text, s.seqstart FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid
WHERE c.relnamespace = {schema}"""
_ROWS = "SELECT coalesce(json_agg(kept ORDER BY ctid)::text, '[]') FROM {table} AS kept"
# The lock waits for the transactions of other sessions that write. Sequences are not transactional, so they come last.
_RESTORE = """
DO $do$ DECLARE place regclass; BEGIN
  LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE;
  IF ({objects}) IS DISTINCT FROM {expected} OR ({size}) > {largest} THEN
    RAISE EXCEPTION 'the schema was changed';
  END IF;
  FOREACH place IN ARRAY ARRAY[{empty}]::regclass[] LOOP
    IF pg_relation_size(place) > 0 THEN
      EXECUTE 'TRUNCATE ' || place;
    END IF;
  END LOOP;
  {changes}
END $do$"""
_REFILL = """
  IF ({rows}) <> {expected} THEN
    TRUNCATE {table};
    INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, {expected});
  END IF;"""


@dataclass(frozen=True)
class Tables:
    """The state of the tables of a schema right after the tables were made.

    Attributes:
        schema: The oid of the schema.
        objects: A digest of the objects in the schema.
        size: The size of the tables and indexes, in bytes.
        rows: The rows of each table, as JSON; None for tables without a page. `PQ.create` makes some tables with pages
            and no rows, which are emptied by DELETE, so that they keep their pages.
        sequences: The first value of each sequence.
    """

    schema: str
    objects: str
    size: int
    rows: Mapping[str, str | None]
    sequences: Mapping[str, int]

    @classmethod
    def look(cls, sql: Sql, names: TableName) -> Tables:
        """Return the tables that were just made.

        Args:
            sql: A function that runs a statement.
            names: A table in the schema.
        """
        [[oid]] = sql(f"SELECT oid::text FROM pg_namespace WHERE nspname = {literal(names.schema or '')}")
        schema = f"{oid}::oid"
        rows: dict[str, str | None] = {}
        for name, paged in sql(_TABLES.format(schema=schema)):
            rows[name] = None
            if paged:
                [[rows[name]]] = sql(_ROWS.format(table=names.qualified(name)))
        sequences: dict[str, int] = dict(sql(_SEQUENCES.format(schema=schema)))
        [[objects, size]] = sql(f"SELECT ({_OBJECTS.format(schema=schema)}), ({_SIZE.format(schema=schema)})")
        return cls(schema, objects, size, rows, sequences)

    def restore(self, sql: Sql, names: TableName) -> None:
        """Delete all rows, except for those that the tables had when they were made.

        Args:
            sql: A function that runs a statement.
            names: A table in the schema, whose name may be another one now.

        Raises:
            PQError: Something else was changed, or the tables have become too large.
        """
        changes = []
        for name, rows in self.rows.items():
            table = names.qualified(name)
            if rows == "[]":
                changes.append(f"DELETE FROM {table};")
            elif rows is not None:
                changes.append(_REFILL.format(rows=_ROWS.format(table=table), expected=literal(rows), table=table))
        for name, first in self.sequences.items():
            changes.append(f"PERFORM setval({literal(names.qualified(name))}, {first}, false);")
        text = _RESTORE.format(
            tables=", ".join(map(names.qualified, self.rows)),
            objects=_OBJECTS.format(schema=self.schema),
            expected=literal(self.objects),
            size=_SIZE.format(schema=self.schema),
            largest=self.size + GROWTH,
            empty=", ".join(literal(names.qualified(name)) for name, rows in self.rows.items() if rows is None),
            changes="\n  ".join(changes),
        )
        sql(text, rows=False)


class Schemas:
    """The schemas that are free for the next test, and the connections that observe the database."""

    def __init__(self) -> None:
        self._free: list[tuple[TableName, Tables]] = []
        self._observers: list[Observer] = []

    @classmethod
    def of_run(cls) -> Schemas | None:
        """Return an object for a run of the suite.

        Return None for partitioned tables, and for other engines than PostgreSQL, because their catalogues and
        statements differ.
        """
        return cls() if plugins.dialect() is Dialect and partitions() is None else None

    def __len__(self) -> int:
        return len(self._free)

    def take(self, sql: Sql, names: TableName) -> Tables | None:
        """Give a schema that no test uses a new name.

        Args:
            sql: A function that runs a statement.
            names: The queue's table, in a schema of the new name.

        Returns:
            The tables in the schema; None if no schema is free.
        """
        if not self._free:
            return None
        free, tables = self._free.pop()
        sql(f"ALTER SCHEMA {_schema(free)} RENAME TO {_schema(names)}", rows=False)
        # The function that puts jobs from SQL has the schema's name in its body, so the function is replaced.
        for statement in statements_naming("put_name", names.substitutions()):
            sql(statement, rows=False)
        [[objects]] = sql(f"SELECT ({_OBJECTS.format(schema=tables.schema)})")
        return replace(tables, objects=objects)

    def put_back(self, names: TableName, tables: Tables) -> None:
        """Keep a schema, whose tables were restored, for another test."""
        self._free.append((names, tables))

    def observer(self, spec: BackendSpec, dsn: str) -> Observer:
        """Return a connection that observes the database: one that an earlier test left, or else a new one."""
        for observer in self._observers:
            if observer.of == (spec, dsn):
                self._observers.remove(observer)
                return observer
        return Observer(spec, dsn)

    def keep(self, observer: Observer) -> None:
        """Keep a connection for another test, or close it if the test may have changed its state."""
        if prepared() and observer.unchanged():
            self._observers.append(observer)
        else:
            observer.close()

    def drop(self, sql: Sql) -> None:
        """Drop all schemas, and close all connections."""
        while self._free:
            names, _ = self._free.pop()
            sql(f"DROP SCHEMA {_schema(names)} CASCADE", rows=False)
        while self._observers:
            self._observers.pop().close()


def _schema(names: TableName) -> str:
    return quote(names.schema or "")
