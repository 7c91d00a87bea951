"""The function that puts jobs from SQL: who may call it, what its names mean, and what makes and drops it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from pqcore import PQ, schema
from pqcore.cli.app import app
from pqcore.db.runtime import run_sync
from pqcore.errors import AccessDenied
from pqcore.schema.scripts import migrations
from pqcore.sql.identifiers import PUT_ARGUMENTS, TableName
from pqcore.sql.put_statements import CONFLICT, HOLDER, IS_WAITING, PUT_COLUMNS, PUT_VALUES, REPLACED
from pqcore.sql.statement_set import read_statements

FUNCTIONS = "SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1"


@pytest.fixture
def owner(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the superuser that owns the tables."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def clerk(made_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of a role that has the rights of a producer, and no others."""
    arguments = ["create", "--roles", "--role-prefix", "put_function"]
    done = CliRunner().invoke(app, arguments, env={"PQCORE_DSN": made_dsn, "PQCORE_BACKEND": None})
    assert done.exit_code == 0, done.output
    with psycopg.connect(made_dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE clerk LOGIN IN ROLE put_function_producer")
        connection.execute("CREATE SCHEMA desk AUTHORIZATION clerk")
        try:
            connection.execute("SET SESSION AUTHORIZATION clerk")
            yield connection
        finally:
            connection.execute("RESET SESSION AUTHORIZATION")
            for role in ("clerk", *(f"put_function_{kind}" for kind in ("producer", "consumer", "admin"))):
                connection.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(sql.Identifier(role)))


def doctor(dsn: str, *arguments: str) -> tuple[str, str, str]:
    """Return the level, the message and the advice of the finding about the function."""
    done = CliRunner().invoke(app, ["doctor", "--json", *arguments], env={"PQCORE_DSN": dsn, "PQCORE_BACKEND": None})
    [one] = [one for one in map(json.loads, done.stdout.splitlines()) if one["check"] == "put_function"]
    return one["level"], one["message"], one["advice"]


def words(text: str) -> str:
    """Return a text with one space for any white space."""
    return " ".join(text.split())


def test_put_function_consists_of_the_statements_of_put() -> None:
    """If this fails, a statement of put was changed: write a migration that replaces the function."""
    made = [each for version in migrations() for each in version if "{put_name}" in each]
    body = words(made[-1])
    file = read_statements("put_statements.sql")
    for template in (
        f"INSERT INTO {{table}} ({PUT_COLUMNS}) VALUES ({PUT_VALUES}) {CONFLICT} DO NOTHING RETURNING id",
        f"FROM {{table}} WHERE {HOLDER}",
        f"UPDATE {{table}} AS held SET {REPLACED} WHERE id = :id::bigint AND q_name = :q_name::text AND {IS_WAITING}",
        file["claim_key"].replace("RETURNING job_id", ""),
        file["set_key_holder"],
        "FROM {dedup} AS held WHERE q_name = :q_name::text AND dedup_key = :dedup_key::text",
    ):
        wanted = re.sub(r":([a-z_]+)::", r"item.\1::", template)
        wanted = re.sub(r"\{(table|dedup)\}", r"<\1>", wanted)
        assert re.sub(r"\( ", "(", words(wanted)) in re.sub(r"\( ", "(", body), wanted
    assert (
        words(PUT_ARGUMENTS)
        == words(re.sub(r"'\s*\|\| '", "", body.partition("arguments text := '")[2])).partition("';")[0]
    )


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("queue", "pqcore_put"),
        ("jobs", "pqcore_put_jobs"),
        ("Jobs; \"x'%s", "pqcore_put_Jobs; \"x'%s"),
        ("x" * 63, "pqcore_put_" + "x" * 39 + "_9c644bc97760"),
    ],
)
def test_put_function_is_named_after_its_table(dsn: str, table: str, name: str) -> None:
    with PQ(dsn, table=table) as pq, psycopg.connect(dsn, autocommit=True) as connection:
        pq.create()
        assert (name,) in connection.execute(FUNCTIONS).fetchall()
        call = sql.SQL("SELECT {}('q', '1')").format(sql.Identifier(name)).as_string(connection)
        [[job]] = connection.execute(call.replace("%", "%%").encode(), []).fetchall()
        taken = pq["q"].get(block=False)
        assert taken is not None
        assert taken.id == job


def test_put_functions_of_tables_in_one_schema_do_not_collide(dsn: str, owner: psycopg.Connection[Any]) -> None:
    tables = ("queue", "put", "pqcore", "queue_put", "pqcore_put")
    for table in tables:
        with PQ(dsn, table=table) as pq:
            pq.create()
    for table in tables:
        call = sql.SQL("SELECT {}('q', to_jsonb({}::text))")
        owner.execute(call.format(sql.Identifier(TableName(table).put_function), table))
        found = owner.execute(sql.SQL("SELECT data::text FROM {}").format(sql.Identifier(table))).fetchall()
        assert found == [(f'"{table}"',)]


def test_put_function_is_dropped_with_its_table(dsn: str, owner: psycopg.Connection[Any]) -> None:
    for table in ("queue", "other"):
        with PQ(dsn, table=table) as pq:
            pq.create()
    owner.execute("CREATE FUNCTION pqcore_put(text) RETURNS text LANGUAGE sql AS 'SELECT $1'")
    for table in ("queue", "other"):
        with PQ(dsn, table=table) as pq:
            run_sync(pq.engine.migrate(partial(schema.drop, names=TableName(table))))
    assert owner.execute(FUNCTIONS).fetchall() == [("pqcore_put",)], "only the function of somebody else is left"
    assert owner.execute("SELECT pqcore_put('x')").fetchall() == [("x",)]


def test_producer_role_puts_jobs_by_the_function_and_does_no_more(clerk: psycopg.Connection[Any]) -> None:
    def put(arguments: str) -> int:
        [[job]] = clerk.execute(f"SELECT pqcore_put('q', {arguments})".encode()).fetchall()
        return int(job)

    first = put("'1', group_key => 'g', limits => '{\"a\": 1}', headers => '{\"x\": 1}', dedup_key => 'k'")
    assert put("'2', dedup_key => 'k'") == first
    held = put("'3', dedup_key => 'held', dedup_until => '1 hour'")
    assert put("'4', dedup_key => 'held', dedup_until => '1 hour'") == held
    with pytest.raises(psycopg.errors.UniqueViolation):
        put("'5', dedup_key => 'k', on_conflict => 'error'")
    for forbidden in (
        "SELECT pqcore_put('q', '6', dedup_key => 'k', on_conflict => 'replace')",  # as by Python
        "SELECT data FROM queue",
        "UPDATE queue SET priority = 1",
        "DELETE FROM queue",
        "INSERT INTO queue (id, q_name, data) VALUES (1, 'q', '1')",
        "ALTER FUNCTION pqcore_put RENAME TO x",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            clerk.execute(forbidden.encode())


def test_put_function_may_be_called_by_producers_only(clerk: psycopg.Connection[Any]) -> None:
    clerk.execute("RESET SESSION AUTHORIZATION")
    clerk.execute("CREATE ROLE stranger")
    try:
        clerk.execute("GRANT INSERT, SELECT ON queue TO stranger")
        clerk.execute("SET SESSION AUTHORIZATION stranger")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for function pqcore_put"):
            clerk.execute("SELECT pqcore_put('q', '1')")
    finally:
        clerk.execute("RESET SESSION AUTHORIZATION")
        clerk.execute("DROP OWNED BY stranger; DROP ROLE stranger")
    [definition] = clerk.execute(
        "SELECT prosecdef, proconfig FROM pg_proc WHERE oid = 'pqcore_put'::regproc"
    ).fetchall()
    assert definition == (False, ["search_path=pg_catalog, pg_temp"])


def test_hostile_search_path_changes_nothing_in_the_put_function(clerk: psycopg.Connection[Any]) -> None:
    clerk.execute("CREATE TEMP TABLE queue (id bigserial, q_name text, data json)")
    clerk.execute("RESET SESSION AUTHORIZATION")
    for table in ("queue", "queue_dedup"):
        clerk.execute(f"CREATE TABLE desk.{table} (LIKE public.{table} INCLUDING ALL)".encode())
        clerk.execute(f"ALTER TABLE desk.{table} OWNER TO clerk".encode())
    clerk.execute("SET SESSION AUTHORIZATION clerk")
    body = "LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$"
    for function in (
        "btrim(text, text) RETURNS text",
        "octet_length(bytea) RETURNS int",
        "convert_to(text, name) RETURNS bytea",
        "statement_timestamp() RETURNS timestamptz",
        "clock_timestamp() RETURNS timestamptz",
        "date_part(text, interval) RETURNS float8",
        "to_json(text) RETURNS json",
        "jsonb_typeof(jsonb) RETURNS text",
        "same(text, text) RETURNS bool",
    ):
        clerk.execute(f"CREATE FUNCTION desk.{function} {body}".encode())
    for operator in ("=", "<>", "||"):
        clerk.execute(
            f"CREATE OPERATOR desk.{operator} (LEFTARG = text, RIGHTARG = text, FUNCTION = desk.same)".encode()
        )
    clerk.execute("SET search_path = pg_temp, desk, public, pg_catalog")
    options = "group_key => 'g', limits => '{\"a\": 1}', dedup_key => 'k', dedup_until => '1 hour', delay => '1 hour'"
    clerk.execute(f"SELECT public.pqcore_put('q', '1', {options})".encode())
    clerk.execute("RESET SESSION AUTHORIZATION")
    clerk.execute("SET search_path = pg_catalog")
    for table, number in (("public.queue", 1), ("desk.queue", 0), ("pg_temp.queue", 0), ("desk.queue_dedup", 0)):
        assert clerk.execute(f"SELECT count(*) FROM {table}".encode()).fetchall() == [(number,)], table


def test_create_says_that_the_role_may_make_no_function(dsn: str, owner: psycopg.Connection[Any]) -> None:
    with PQ(dsn) as pq:
        pq.create()
    owner.execute("DELETE FROM pqcore_migrations WHERE version >= 14; DROP FUNCTION pqcore_put")
    owner.execute("DROP FUNCTION queue_ended CASCADE")
    owner.execute("CREATE ROLE builder LOGIN")
    try:
        tables = owner.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            owner.execute(sql.SQL("ALTER TABLE {} OWNER TO builder").format(sql.Identifier(table)))
        with PQ(re.sub("//[^@]*@", "//builder@", dsn)) as pq:
            with pytest.raises(AccessDenied) as caught:
                pq.create()
            said = str(caught.value)
            assert 'role builder may not make the function public."pqcore_put"' in said
            assert "GRANT CREATE ON SCHEMA public TO builder" in said
            owner.execute("GRANT CREATE ON SCHEMA public TO builder")
            pq.create()
        assert owner.execute("SELECT pqcore_put('q', '1')").rowcount == 1
    finally:
        owner.execute("DROP OWNED BY builder CASCADE; DROP ROLE builder")


def test_doctor_advice_repairs_the_put_function(made_dsn: str) -> None:
    with psycopg.connect(made_dsn, autocommit=True) as connection:
        level, message, _ = doctor(made_dsn)
        assert (level, message) == ("ok", "function pqcore_put puts jobs from SQL; the role may call it")
        connection.execute("DROP FUNCTION pqcore_put")
        level, message, advice = doctor(made_dsn)
        assert (level, message) == ("warning", "function pqcore_put, which puts jobs from SQL, is missing")
        connection.execute(advice.encode())
        connection.execute("ALTER SCHEMA public RENAME TO moved")
        level, message, advice = doctor(made_dsn, "--schema", "moved")
        assert (level, "another schema than its own" in message) == ("problem", True)
        connection.execute(advice.encode())
        assert doctor(made_dsn, "--schema", "moved")[0] == "ok"
        assert connection.execute("SELECT moved.pqcore_put('q', '1')").rowcount == 1
