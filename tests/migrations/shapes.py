"""The description of a schema in the catalogues: two tables are the same if their descriptions are equal."""

from __future__ import annotations

from typing import Any

import psycopg

PQS = {"priority_idx_", "priority_idx_no_", "pq_notify"}
"""What pq made, and is left for its processes."""

_QUERIES = {
    "columns": "SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,"
    " a.attidentity, a.attgenerated, a.attstorage, pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute AS a"
    " JOIN pg_class AS c ON c.oid = a.attrelid LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum"
    " WHERE c.relnamespace = {schema}::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped"
    " ORDER BY 1, 2",
    "relations": "SELECT relname, relkind, reloptions, relpersistence, relrowsecurity FROM pg_class"
    " WHERE relnamespace = {schema}::regnamespace ORDER BY 1",
    "indexes": "SELECT c.relname, pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready, i.indisunique"
    " FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
    " WHERE c.relnamespace = {schema}::regnamespace ORDER BY 1",
    "constraints": "SELECT conname, conrelid::regclass::text, contype, convalidated, pg_get_constraintdef(oid)"
    " FROM pg_constraint WHERE connamespace = {schema}::regnamespace ORDER BY 1, 2",
    "triggers": "SELECT t.tgname, t.tgenabled, pg_get_triggerdef(t.oid) FROM pg_trigger AS t"
    " JOIN pg_class AS c ON c.oid = t.tgrelid"
    " WHERE c.relnamespace = {schema}::regnamespace AND NOT t.tgisinternal ORDER BY 1",
    "functions": "SELECT proname, pg_get_functiondef(oid) FROM pg_proc"
    " WHERE pronamespace = {schema}::regnamespace ORDER BY 1",
    "sequences": "SELECT sequencename, data_type::text, start_value, increment_by, cycle FROM pg_sequences"
    " WHERE schemaname = {schema} ORDER BY 1",
    "owned": "SELECT d.objid::regclass::text, d.refobjid::regclass::text, d.refobjsubid FROM pg_depend AS d"
    " JOIN pg_class AS c ON c.oid = d.objid WHERE c.relkind = 'S' AND d.deptype = 'a'"
    " AND c.relnamespace = {schema}::regnamespace ORDER BY 1",
}


def shape(connection: psycopg.Connection[Any], schema: str, *, of_pq: bool = False) -> dict[str, Any]:
    """All that there is in a schema, without its name.

    Args:
        connection: Its search path is the schema.
        schema: The schema's name, of letters and digits.
        of_pq: Whether what pq made must exist; it is left out.
    """
    found: dict[str, Any] = {}
    pqs = set()
    for kind, query in _QUERIES.items():
        rows = connection.execute(query.replace("{schema}", f"'{schema}'").encode()).fetchall()
        pqs |= {row[0] for row in rows} & PQS
        found[kind] = [
            tuple(each.replace(f"{schema}.", "") if isinstance(each, str) else each for each in row)
            for row in rows
            if row[0] not in PQS
        ]
    if found["columns"]:
        record = (
            "SELECT table_name, version, to_jsonb(pqcore_migrations) -> 'needs' FROM pqcore_migrations ORDER BY 1, 2"
        )
        has_record = connection.execute("SELECT to_regclass('pqcore_migrations') IS NOT NULL").fetchone() == (True,)
        found["record"] = connection.execute(record).fetchall() if has_record else None
    assert pqs == (PQS if of_pq else set())
    return found


def rows(connection: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    """All rows of all tables of the search path, but for the record of migrations: by table and place, and as JSON."""
    tables = connection.execute(
        "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema() AND tablename <> 'pqcore_migrations'"
    ).fetchall()
    return {
        f"{table} {where}": row
        for (table,) in tables
        for where, row in connection.execute(f"SELECT ctid::text, to_jsonb(t) FROM {table} AS t".encode())
    }


def kept(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> bool:
    """Whether all rows are there, and no others, none rewritten; there may be columns more, which say nothing yet."""
    said = {
        key: {
            name: value
            for name, value in row.items()
            if name in before.get(key, row)
            or (value is not None and (name, value) not in (("attempts", 0), ("priority", 0)))
        }
        for key, row in after.items()
    }
    return said == before
