"""Dialects: how one is chosen, what it changes, and that rewritten statements keep their meaning."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from typing import Any, ClassVar

import psycopg
import pytest
from statement_snapshots import DIALECTS, UNPREPARED, difference, path, queries

from pqcore import PQ, NewJob
from pqcore.backend import Capability
from pqcore.errors import ConfigurationError, NotSupported, PluginError
from pqcore.hookspecs import hookimpl
from pqcore.plugins import Plugins, plugins
from pqcore.schema import migrations
from pqcore.sql.citus import Citus
from pqcore.sql.cockroachdb import CockroachDB
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.rewrite import Rewrite, replace, split, substitute
from pqcore.sql.statement import plain
from pqcore.sql.statement_set import read_statements
from pqcore.testing.harness import Harness
from pqcore.testing.suite import test_dedup, test_limits, test_results


class CitusHere(Citus):
    """Citus's dialect on PostgreSQL, without the statements that distribute tables."""

    name = "citus-here"

    def rewrite_migration(self, statement: str) -> Iterable[str]:
        return (each for each in super().rewrite_migration(statement) if "create_distributed_table" not in each)


class CockroachHere(CockroachDB):
    """CockroachDB's dialect on PostgreSQL, which takes ids from a sequence."""

    name = "cockroachdb-here"

    def rewrite_migration(self, statement: str) -> Iterable[str]:
        return (each for each in super().rewrite_migration(statement) if "serial_normalization" not in each)


class Shouting(Dialect):
    """Of another package."""

    name = "shouting"
    missing: ClassVar[Mapping[Capability, str]] = {Capability.LISTEN: "it is too loud"}

    def rewrite(self, name: str, template: str) -> str:
        return template + " /* LOUD */" if name == "put" else template


class Plugin:
    """Brings them."""

    @hookimpl
    def pqcore_register_dialects(self, register: Callable[[type[Dialect]], None]) -> None:
        for dialect in (CitusHere, CockroachHere, Shouting):
            register(dialect)


plugins.register(Plugin(), "dialects of the tests")
HERE = [CitusHere, CockroachHere]


def of(name: str) -> Dialect:
    return plugins.dialect(name)(TableName("queue"), "numeric_dollar")


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_statements_of_a_dialect_match_its_snapshot(dialect: type[Dialect]) -> None:
    changed = difference(dialect)
    assert not changed, f"the statements have changed; if that is meant: python -m tests.statement_snapshots\n{changed}"


def texts(dialect: type[Dialect]) -> dict[str, str]:
    return {name: query.sql for name, query in queries(dialect(TableName("queue"), "numeric_dollar")).items()}


def affected(dialect: type[Dialect], rewrites: Mapping[str, str | Rewrite]) -> list[str]:
    """Return the statements that these rewrites change, or the name of the one that is refused."""
    try:
        found = texts(type("Changed", (dialect,), {"rewrites": rewrites}))
    except PluginError as exc:
        return re.findall(r"in the statement '(\w+)'", str(exc))
    return [name for name, text in texts(dialect).items() if found[name] != text]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_dialect_rewrites_are_all_needed(dialect: type[Dialect]) -> None:
    for name in dialect.rewrites:
        assert affected(dialect, {other: dialect.rewrites[other] for other in dialect.rewrites if other != name}) == [
            name
        ]


def test_dialect_rewrite_that_matches_nothing_raises_an_error() -> None:
    class Misses(Dialect):
        name = "misses"
        rewrites: ClassVar[Mapping[str, str | Rewrite]] = {
            "nack": lambda template: replace(template, "now()", ""),
            "heartbeat": lambda template: substitute(template, "now[(]", ""),
            "take_tokens": lambda template: split(template, "now()")[0],
            "create_bucket": "SELECT 1",
        }

    sql = Misses(TableName("queue"), "numeric_dollar")
    with pytest.raises(PluginError, match=r"'misses' cannot rewrite the statement 'nack': 'now\(\)' does not occur"):
        _ = sql.nack
    with pytest.raises(PluginError, match="cannot rewrite the statement 'heartbeat'"):
        _ = sql.tasks.heartbeat
    with pytest.raises(PluginError, match="cannot rewrite the statement 'take_tokens'"):
        _ = sql.tasks.take_tokens
    assert sql.tasks.create_bucket.numbered.endswith("SELECT 1")
    assert sql.tasks.retry.sql == of("postgresql").tasks.retry.sql


def test_dialect_rewrite_of_an_unknown_statement_is_refused() -> None:
    with pytest.raises(PluginError, match="dialect 'typo' rewrites nakc: pqcore has no statement of this name"):
        type("Typo", (Dialect,), {"name": "typo", "rewrites": {"nakc": "SELECT 1"}})


def test_dialect_statement_with_an_unsupported_word_is_not_sent(dsn: str) -> None:
    class Forgetful(Dialect):
        name = "forgetful"
        unknown_words = ("pg_notify", "fillfactor")

    sql = Forgetful(TableName("queue"), "numeric_dollar")
    with pytest.raises(PluginError, match="dialect 'forgetful' leaves 'pg_notify' in the statement 'nack'"):
        _ = sql.nack
    assert sql.put.name == "put"
    with pytest.raises(PluginError, match="dialect 'forgetful' leaves 'pg_notify' in the migration"):
        [each for version in migrations() for statement in version for each in sql.migration(statement)]


def test_statements_of_sql_files_are_declared_and_explained() -> None:
    files = [file for file in resources.files("pqcore.sql").iterdir() if file.name.endswith(".sql")]
    assert len(files) > 6
    for file in files:
        heads = re.findall(r"(?m)^-- name: (\w+)\n(.*)", file.read_text("utf-8"))
        assert [name for name, line in heads if not line.startswith("-- ")] == []
        assert {name for name, _ in heads} == read_statements(file.name).keys() <= set(Dialect.all_names()), file.name


def test_statement_snapshot_of_postgresql_can_be_run_by_psql(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(path(Dialect).read_bytes())
        [prepared] = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchall()
        assert prepared == (len(queries(of("postgresql"))) - len(UNPREPARED),)


def test_dialect_is_chosen_by_name_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PQCORE_DIALECT", raising=False)
    dsn = "postgresql://nowhere/app"
    assert PQ(dsn).engine.dialect is Dialect
    assert PQ(dsn, dialect="citus").engine.dialect is Citus
    monkeypatch.setenv("PQCORE_DIALECT", "cockroachdb")
    assert PQ(dsn).engine.dialect is CockroachDB
    assert PQ(dsn, dialect="postgresql").engine.dialect is Dialect
    assert PQ(dsn).engine.clone_for_worker(1, 1.0).dialect is CockroachDB
    with pytest.raises(ConfigurationError, match=r"unknown dialect 'oracle'; installed: .*citus.*cockroachdb"):
        PQ(dsn, dialect="oracle")


def test_dialect_of_another_package_is_used(dsn: str) -> None:
    with PQ(dsn, dialect="shouting") as pq:
        pq.create()
        queue = pq["q"]
        queue.put(1)
        assert queue.engine._opener(queue.engine.spec).sql.put.sql.endswith("/* LOUD */")
        assert not pq.engine.offers(Capability.LISTEN)
        assert queue.get(timeout=0.2) is not None
        assert queue.get(timeout=0.2) is None, "it polls"
        with psycopg.connect(dsn) as connection:
            listening = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^LISTEN' AND datname = current_database()"
            assert connection.execute(listening).fetchone() == (0,)


def test_dialect_of_a_taken_name_or_other_plugin_api_is_refused() -> None:
    class Other(Dialect):
        name = "shouting"

    class Old(Dialect):
        name = "old"
        api = 99

    class Brings:
        def __init__(self, *dialects: type[Dialect]) -> None:
            self.dialects = dialects

        @hookimpl
        def pqcore_register_dialects(self, register: Callable[[type[Dialect]], None]) -> None:
            for dialect in self.dialects:
                register(dialect)

    fresh = Plugins()
    with pytest.raises(PluginError, match="two plugins bring a dialect 'shouting'"):
        fresh.register(Brings(Shouting, Other))
    with pytest.raises(PluginError, match="dialect 'old' was made for plugin API 99"):
        fresh.register(Brings(Old))


def test_citus_statements_assign_no_volatile_value_on_conflict() -> None:
    # Citus refuses functions in DO UPDATE SET that are not immutable.
    for name, query in queries(of("citus")).items():
        for assigned in re.findall(r"DO UPDATE SET(.*?)(?:WHERE|RETURNING|$)", query.sql, re.DOTALL):
            assert "_timestamp()" not in assigned, name


@pytest.mark.parametrize("name", ["citus", "cockroachdb"])
def test_dialect_statements_avoid_what_the_engine_lacks(name: str) -> None:
    dialect = of(name)
    texts = {name: query.sql for name, query in queries(dialect).items()}
    assert len(texts) > 110
    assert [each for each, text in texts.items() if "pg_notify" in text] == []
    ddl = [each for version in migrations() for statement in version for each in dialect.migration(statement)]
    assert [each for each in ddl if "TRIGGER" in each or "pg_notify" in each] == []
    if name == "cockroachdb":
        unknown = ("advisory", "hashtext", "DISCARD", "pg_is_in_recovery", "pg_control", "pg_listening", "set_config")
        assert [(each, word) for each, text in texts.items() for word in unknown if word in text] == []
        assert [each for each in ddl for word in (*unknown, "DO $", "autovacuum", "plpgsql") if word in each] == []
        # Citus refuses a statement that changes a table in two ways.
        for each, text in texts.items():
            assert max(text.count(f"{verb}{{}}".format('"queue"')) for verb in ("UPDATE ", "DELETE FROM ")) <= 1, each


def test_dialect_marks_statements_that_must_run_on_the_primary() -> None:
    """Pgpool-II sends a statement to the primary if it begins with this comment, or if it writes."""
    sign = "/*NO LOAD BALANCE*/ "
    found = queries(of("postgresql")).values()
    reading = [query for query in found if not any(verb in query.sql for verb in ("INSERT", "UPDATE", "DELETE"))]
    assert {"find_duplicate", "find_held", "find_result", "find_job", "next_due_probe"} <= {
        query.name for query in reading
    }
    for query in found:
        assert query.sql.startswith(sign) == (query in reading and query.rows), query.name
        assert query.prepare("it").startswith(f"{sign}PREPARE it AS SELECT") == query.sql.startswith(f"{sign}SELECT")
    assert plain("looks", "SELECT 1").sql == f"{sign}SELECT 1"
    assert plain("changes", "CREATE TABLE x ()", rows=False).sql == "CREATE TABLE x ()"


@pytest.fixture(params=HERE, ids=lambda dialect: dialect.name)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Dialect]:
    monkeypatch.setenv("PQCORE_DIALECT", request.param.name)
    return request.param  # type: ignore[no-any-return]


def test_dialect_statements_can_be_prepared(here: type[Dialect], dsn: str) -> None:
    with PQ(dsn) as pq, psycopg.connect(dsn, autocommit=True) as connection:
        pq.create()
        pq.create()
        for query in queries(of(here.name)).values():
            if query.name not in UNPREPARED:
                connection.execute(f"PREPARE it AS {query.numbered}".encode())
                connection.execute("DEALLOCATE it")
        if here is CitusHere:
            keys = connection.execute(
                "SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid WHERE i.indisprimary"
                " AND c.relname ~ '^queue' AND NOT EXISTS (SELECT FROM pg_attribute AS a"
                " WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey) AND a.attname = 'q_name')"
            ).fetchall()
            assert keys == []


def test_dialect_names_operations_that_it_does_not_support(here: type[Dialect], dsn: str) -> None:
    with PQ(dsn) as pq:
        with pytest.raises(NotSupported, match="makes no table in partitions"):
            pq.create(partitions=2)
        pq.create()
        parent = pq["q"].put(1)
        call = pq["q"].task()(lambda: None).options(after=parent).call()
        for put in (
            lambda: pq["q"].put(2, after=parent),
            lambda: pq["q"].put_many([NewJob(2), NewJob(3, after=parent)]),
            lambda: pq["q"].put_calls(call, call),
        ):
            with pytest.raises(NotSupported, match=f"{here.name} has no jobs that wait for other jobs: "):
                put()
        assert pq["q"].count() == 1
        if "move" in here.unsupported:
            with pytest.raises(NotSupported, match=r"cannot move jobs from queue to queue: .*distributed by"):
                pq["q"].move("other")
        else:
            assert pq["q"].move("other") == 1
    assert PQ("postgresql://nowhere", dialect=here.name).engine.dialect.missing[Capability.LISTEN]


REWRITTEN = {CitusHere: (test_dedup, test_results), CockroachHere: (test_limits,)}
"""The modules of the suite that use a dialect's rewritten statements most."""
UNLIKE = {
    "test_job_parked_while_its_limit_key_was_locked_is_unparked_later",
    "test_worker_does_not_wait_for_a_transaction_that_locks_a_limit_key",
    "test_limit_keys_are_locked_few_at_a_time",
}
"""Scenarios in which PostgreSQL tries an advisory lock; CockroachDB's dialect waits for a row instead."""


def scenarios() -> Iterator[Any]:
    """Return the scenarios of these modules that need no fixture other than the harness."""
    for dialect, modules in REWRITTEN.items():
        for module in modules:
            for name, scenario in vars(module).items():
                if (
                    name.startswith("test_")
                    and name not in UNLIKE
                    and [*inspect.signature(scenario).parameters] == ["harness"]
                ):
                    marks = {mark.name for mark in getattr(scenario, "pytestmark", [])}
                    if not marks & {"requires", "only"}:
                        yield pytest.param(dialect, scenario, id=f"{dialect.name}-{name}")


@pytest.mark.parametrize(("dialect", "scenario"), list(scenarios()))
def test_dialect_statements_pass_scenarios_of_the_suite(
    dialect: type[Dialect],
    scenario: Callable[[Harness], None],
    pqcore_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PQCORE_DIALECT", dialect.name)
    harness = Harness(plugins.backend_spec("psycopg", "blocking"), pqcore_server)
    try:
        scenario(harness)
    finally:
        harness.close()
