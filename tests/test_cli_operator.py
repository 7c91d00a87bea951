"""The commands of operators: the table, jobs, figures, installed plugins."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner, Result
from released_job import lease_after_failure, lease_after_release

from pqcore import PQ, json_views, schema, tasks
from pqcore.cli.app import app
from pqcore.testing.commands import environment, eventually, run
from pqcore.testing.harness import PATIENCE

PQ_TABLE = """
CREATE TABLE queue (
  id bigserial PRIMARY KEY, enqueued_at timestamptz NOT NULL DEFAULT current_timestamp, dequeued_at timestamptz,
  expected_at timestamptz, schedule_at timestamptz, q_name text NOT NULL CHECK (length(q_name) > 0), data json NOT NULL
);
CREATE INDEX priority_idx_ ON queue (schedule_at nulls first, expected_at nulls last, q_name)
  WHERE dequeued_at IS NULL AND q_name = '';
CREATE FUNCTION pq_notify() RETURNS trigger AS $$ BEGIN RETURN NULL; END $$ LANGUAGE plpgsql;
CREATE TRIGGER pq_insert AFTER INSERT ON queue FOR EACH ROW EXECUTE PROCEDURE pq_notify();
INSERT INTO queue (q_name, data, dequeued_at) VALUES ('a', '1', now()), ('a', '2', NULL), ('b', '3', NULL);
"""
BACKENDS = ["psycopg2", "psycopg", "asyncpg"]


def call(*arguments: str, dsn: str | None, given: str | bytes | None = None) -> Result:
    """Run a command in this process; exceptions other than error messages are raised."""
    variables = {"PQCORE_DSN": dsn, "PGCONNECT_TIMEOUT": "10", "PQCORE_BACKEND": None}
    done = CliRunner().invoke(app, arguments, input=given, env=variables)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def objects(*arguments: str, dsn: str, code: int = 0, given: str | None = None) -> list[Any]:
    done = call(*arguments, "--json", dsn=dsn, given=given)
    assert done.exit_code == code, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def line(done: Result, code: int) -> str:
    """Return the only line of the error output."""
    assert done.exit_code == code, done.output
    said = [text for text in done.stderr.splitlines() if text]
    assert said, done.output
    assert "Traceback" not in done.stderr
    return said[-1] if said[0].startswith("Usage:") else "\n".join(said)


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def execute(dsn: str, *statements: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def shape(dsn: str) -> list[Any]:
    """Return what the system catalogues say about the table and its related objects."""
    return execute(
        dsn,
        "SELECT c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, i.indisvalid,"
        " pg_get_indexdef(i.indexrelid), c.reloptions FROM pg_class AS c"
        " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0"
        " LEFT JOIN pg_index AS i ON i.indexrelid = c.oid"
        " WHERE c.relnamespace = 'public'::regnamespace ORDER BY c.relname, a.attnum",
    )


# The table


@pytest.mark.parametrize("backend", BACKENDS)
def test_create_and_migrate_commands_make_and_check_the_table(dsn: str, backend: str) -> None:
    where = ("--backend", backend)
    latest = schema.latest()
    [missing] = objects("migrate", "--check", *where, dsn=dsn, code=1)
    assert missing == {"table": '"queue"', "found": None, "version": latest, "current": False}
    assert "pqcore create makes it" in line(call("migrate", *where, dsn=dsn), 1)
    [made] = objects("create", *where, dsn=dsn)
    assert made == {"table": '"queue"', "found": None, "version": latest, "changed": True}
    assert objects("create", *where, dsn=dsn)[0]["changed"] is False
    assert objects("migrate", *where, dsn=dsn)[0]["changed"] is False
    assert objects("migrate", "--check", *where, dsn=dsn)[0]["current"] is True
    assert "up to date" in call("create", *where, dsn=dsn).stdout
    execute(dsn, f"INSERT INTO pqcore_migrations VALUES ('queue', {latest + 1})")
    for command in (("create",), ("migrate",), ("create", "--sql"), ("migrate", "--check"), ("adopt",)):
        assert f"schema version {latest + 1}" in line(call(*command, *where, dsn=dsn), 1)


@pytest.mark.parametrize("start", ["", "CREATE SCHEMA orchard", PQ_TABLE])
def test_commands_print_statements_for_a_dba_and_change_nothing(dsn: str, start: str) -> None:
    """The printed statements, run by hand, make the same objects as create()."""
    execute(dsn, start or "SELECT")
    where = ("--schema", "orchard") if "orchard" in start else ()
    before = shape(dsn)
    [script] = objects("create", "--sql", *where, dsn=dsn)
    text = call("create", "--sql", *where, dsn=dsn)
    assert text.exit_code == 0
    assert all(statement in text.stdout for statement in script["statements"])
    assert shape(dsn) == before
    assert call("migrate", "--check", *where, dsn=dsn).exit_code == 1
    if start == PQ_TABLE:  # it has rows, and is in use
        assert any("CONCURRENTLY" in statement for statement in script["statements"])
    execute(dsn, *script["statements"])
    assert call("migrate", "--check", *where, dsn=dsn).exit_code == 0
    by_hand = shape(dsn)
    assert objects("create", "--sql", *where, dsn=dsn)[0]["statements"] == []
    if not where:
        execute(dsn, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public", start or "SELECT")
        assert call("create", dsn=dsn).exit_code == 0
        assert shape(dsn) == by_hand


@pytest.mark.parametrize("command", ["create", "migrate"])
def test_migrate_command_sets_sequences_if_asked(dsn: str, pq: PQ, command: str) -> None:
    insert = "INSERT INTO queue_dead (id, q_name, enqueued_at, attempts, reason) VALUES ({}, 'a', now(), 1, 'failed')"
    execute(dsn, insert.format(50))
    assert "sequences" not in objects(command, dsn=dsn)[0]
    assert pq["a"].put(1) == 1
    written = call(command, "--set-sequences", "--sql", dsn=dsn)
    assert "SELECT setval('queue_id_seq', 50);" in written.stdout
    assert pq["a"].put(1) == 2
    assert objects(command, "--set-sequences", dsn=dsn)[0]["sequences"] == {"queue_id_seq": 50}
    assert pq["a"].put(1) == 51
    execute(dsn, insert.format(70))
    said = call(command, "--set-sequences", dsn=dsn).stdout
    assert "sequence queue_id_seq is set to 70: the next id would have been 52" in said
    assert pq["a"].put(1) == 71
    assert "no sequence is behind" in call(command, "--set-sequences", dsn=dsn).stdout
    assert pq["a"].put(1) == 72
    assert "set" not in call(command, "--set-sequences", "--sql", dsn=dsn).stdout.replace("--set-sequences", "")


def test_migrate_command_refuses_check_with_set_sequences(dsn: str, pq: PQ) -> None:
    assert "pqcore doctor checks sequences" in line(call("migrate", "--check", "--set-sequences", dsn=dsn), 2)


def test_migrate_and_adopt_commands_take_over_a_pq_table(dsn: str) -> None:
    assert "does not exist" in line(call("adopt", dsn=dsn), 1)
    execute(dsn, PQ_TABLE)
    before = shape(dsn)
    [found] = objects("adopt", "--check", dsn=dsn)
    expected = {"rows": 3, "unfinished": 2, "queues": 2, "more": False, "trigger": True, "adopted": False}
    assert found.items() >= expected.items()
    assert found["indexes"] == ["priority_idx_", "queue_pkey"]
    assert shape(dsn) == before
    done = call("adopt", dsn=dsn)
    assert done.exit_code == 0
    assert "3 rows, 2 of them unfinished, in 2 queues" in done.stdout
    assert call("migrate", "--check", dsn=dsn).exit_code == 0
    assert "is already a table of pqcore" in line(call("adopt", dsn=dsn), 1)
    assert call("get", "--queue", "b", dsn=dsn).stdout == "3\n"


def test_adopt_command_refuses_a_foreign_table(dsn: str) -> None:
    execute(dsn, "CREATE TABLE queue (id uuid PRIMARY KEY, data jsonb)")
    before = shape(dsn)
    said = line(call("adopt", dsn=dsn), 1)
    assert "not a table of pq (id is uuid, " in said
    assert shape(dsn) == before


# Putting and taking


def test_put_command_takes_json_from_its_argument_or_stdin(dsn: str, pq: PQ) -> None:
    assert call("put", '{"n": 1}', "--queue", "a", dsn=dsn).stdout == "1\n"
    assert objects("put", "--queue", "a", dsn=dsn, given='{"n": 2}') == [{"id": 2, "queue": "a"}]
    assert objects("put", "-", "--queue", "a", dsn=dsn, given="[3]") == [{"id": 3, "queue": "a"}]
    assert call("put", "--lines", "--queue", "a", dsn=dsn, given='4\n\n"5"\n').stdout == "4\n5\n"
    assert [job.data for job in pq["a"].get_many(10)] == [{"n": 1}, {"n": 2}, [3], 4, "5"]


def test_put_command_has_the_options_of_the_library(dsn: str, pq: PQ) -> None:
    options = ("--dedup", "key", "--group", "g", "--limit", "reports=3", "--header", "who=ann")
    times = ("--schedule-at", "1h", "--expected-at", "2040-01-31T12:00Z")
    [first] = objects("put", "1", "--queue", "a", *options, *times, dsn=dsn)
    assert objects("put", "2", "--queue", "a", "--dedup", "key", dsn=dsn) == [{**first, "put": False}]
    [job] = objects("show", str(first["id"]), dsn=dsn)
    assert job["headers"] == {"who": "ann", "gate": {"group": "g", "limits": {"reports": 3}}}
    assert (job["dedup_key"], job["group"], job["data"], job["state"]) == ("key", "g", 1, "scheduled")
    assert job["expected_at"] == "2040-01-31T12:00:00+00:00"


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        (["put", "--queue", "a"], None, "the data is empty: give JSON"),
        (["put", "  ", "--queue", "a"], None, "the data is empty: give JSON"),
        (["put", "{", "--queue", "a"], None, "the data is not JSON: Expecting property name"),
        (["put", "NaN", "--queue", "a"], None, "the data is not JSON: NaN"),
        (["put", "--queue", "a"], b"\xff", "standard input is not text"),
        (["put", "--queue", "a", "--lines"], b"", "standard input has no lines"),
        (["put", "--queue", "a", "--lines"], b"1\n{\n2", "line 2 is not JSON"),
        (["put", "1", "--queue", "a", "--lines"], b"1", "--lines reads standard input"),
        (["put", "--queue", "a", "--lines", "--dedup", "k"], b"1", "--dedup is for a single job"),
        (["put", "1", "--queue", "a", "--schedule-at", "soon"], None, "'soon' is not a time"),
        (["put", "1", "--queue", "a", "--limit", "n=0"], None, "n=0: write a number of jobs"),
        (["put", "1", "--queue", "a", "--header", "n"], None, "'n': write a name and a value"),
        (["put", "1", "--queue", "a", "--header", "gate=1"], None, "header 'gate' is pqcore's own"),
        (["put", '"\\u0000\\ud800"', "--queue", "a/nothing"], None, "unknown serializer 'nothing'"),
        (["put", "1"], None, "Missing option '--queue'"),
        (["put", "1", "--queue", ""], None, "queue name is empty"),
        (["get", "--queue", "a", "-n", "0"], None, "0 is not in the range"),
        (["list", "--queue", "a", "--state", "lost"], None, "'lost' is not one of"),
        (["list", "--queue", "a", "--older-than", "x"], None, "'x' is not a time"),
        (["show", "x"], None, "'x' is not the id of a job: write a whole number"),
        (["show", str(2**63)], None, "'9223372036854775808' is not the id of a job"),
        (["status", str(2**63), "--queue", "a"], None, "is not the id of a job"),
        (["cancel", "0", "--queue", "a"], None, "is not the id of a job"),
        (["retry", "1", str(2**63), "--queue", "a"], None, "is not the id of a job"),
        (["move", str(2**63), "--queue", "a", "--to", "b"], None, "is not the id of a job"),
        (["dead", "retry", str(2**63), "--queue", "a"], None, "is not the id of a job"),
        (["show"], None, "Missing argument 'ID'"),
        (["retry", "--queue", "a"], None, "Missing argument 'ID..."),
        (["purge", "--queue", "a"], None, "Missing option '--older-than'"),
        (["purge", "--queue", "a", "--older-than", "1d"], None, "There is no terminal to ask on: give --yes"),
        (["move", "--queue", "a", "--all"], None, "no target is given"),
        (["move", "--queue", "a", "--to", "b"], None, "give IDs, or --all"),
        (["move", "1", "--queue", "a", "--to", "b", "--all"], None, "give IDs, or --all"),
        (["move", "1", "--queue", "a", "--to", "b", "--limit", "1"], None, "--limit is only for --all"),
        (["move", "--queue", "a", "--to", "b", "--all"], None, "There is no terminal to ask on: give --yes"),
        (["move", "--queue", "a", "--to", "a", "--all", "--yes"], None, "'a' is the queue that the jobs are in"),
        (["move", "--queue", "a", "--to-archive", "--all"], None, "--to-archive moves finished rows"),
        (["migrate", "--sql", "--check"], None, "--sql and --check are both given: give one of them"),
        (["doctor", "--backend", "nothing"], None, "unknown backend 'nothing'"),
        (["conformance", "--backend", "nothing"], None, "unknown backend 'nothing'"),
        (["conformance"], None, "Missing option '--backend'"),
        (["conformance", "--backend", "psycopg", "--dsn", "password=hush"], None, "give a URL, postgresql://user@host/database"),
        (["top", "--interval", "x"], None, "'x' is not a time"),
    ],
)  # fmt: skip
def test_commands_refuse_bad_input_in_one_line(
    dsn: str, pq: PQ, arguments: list[str], given: bytes | None, says: str
) -> None:
    said = line(call(*arguments, dsn=dsn, given=given), 2)
    assert says in said
    assert "\n" not in said
    assert "hush" not in said
    assert execute(dsn, "SELECT count(*) FROM queue") == [(0,)]


def test_put_command_without_data_at_a_terminal_fails(dsn: str, pq: PQ) -> None:
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "pqcore", "put", "--queue", "a"],
        env=environment(dsn), stdin=theirs, capture_output=True, text=True, timeout=3 * PATIENCE, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert "no data: give it as an argument" in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_peek_and_get_commands_show_and_take_jobs(dsn: str, pq: PQ, backend: str) -> None:
    where = ("--queue", "a", "--backend", backend)
    assert "no job of 'a' is due" in line(call("get", *where, dsn=dsn), 1)
    assert "no job of 'a' is due" in line(call("peek", *where, dsn=dsn), 1)
    ids = pq["a"].put_many([{"n": 1}, "\u00a0\x1b", [3]])
    peeked = objects("peek", "-n", "5", *where, dsn=dsn)
    assert [(job["id"], job["data"], job["payload"]) for job in peeked] == [
        (ids[0], {"n": 1}, None), (ids[1], "\u00a0\x1b", None), (ids[2], [3], None)
    ]  # fmt: skip
    assert pq["a"].count() == 3
    assert call("get", *where, dsn=dsn).stdout == '{"n": 1}\n'
    text = call("get", *where, "--retention", "delete", dsn=dsn).stdout
    assert json.loads(text) == "\u00a0\x1b"
    assert text.isascii()
    assert text.count("\n") == 1
    [job] = objects("get", *where, "-n", "9", "--wait", "1h", "--retention", "archive", dsn=dsn)
    assert (job["id"], job["data"], job["attempts"]) == (ids[2], [3], 1)
    assert [pq["a"].status(job_id) for job_id in (ids[0], ids[2])] == ["done", "done"]
    assert execute(dsn, "SELECT id FROM queue UNION ALL SELECT id FROM queue_archive") == [(ids[0],), (ids[2],)]


def test_peek_and_get_commands_show_other_serializers_undecoded(dsn: str, pq: PQ) -> None:
    pq["a/pickle"].put({1, 2})
    pq.queue("a", serializer="pickle", retention="keep")
    [job] = objects("peek", "--queue", "a", dsn=dsn)
    assert job["serializer"] == "pickle"
    assert isinstance(job["data"], str)
    execute(dsn, "UPDATE queue SET data = NULL, payload = '\\x00ff', serializer = 'other'")
    assert objects("peek", "--queue", "a", dsn=dsn)[0]["payload"] == "AP8="
    assert call("get", "--queue", "a", dsn=dsn).stdout == "AP8=\n"


def test_peek_command_shows_deeply_nested_json_undecoded() -> None:
    deep = "[" * 500_000 + "]" * 500_000
    assert json_views.data(deep, None) == {"serializer": "json", "data": None, "payload": None}


def test_get_command_returns_a_job_whose_data_cannot_be_written(dsn: str, pq: PQ) -> None:
    job_id = pq["a"].put("x" * 100_000)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pqcore", "get", "--queue", "a"],
            env=environment(dsn), stdout=full, stderr=subprocess.PIPE, timeout=3 * PATIENCE, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"Error: the output cannot be written: No space left on device\n")
    assert pq["a"].status(job_id) == "ready"


# Looking


def fill(pq: PQ) -> dict[str, int]:
    """A job in each state, in queue ``a``, and others in ``b``."""
    queue = pq["a"]
    call_of = {"function": "app.eat", "args": [], "kwargs": {}}
    ids = {"archived": pq.queue("a", retention="archive").put(1)}
    assert pq.queue("a", retention="archive").get()
    ids["done"] = queue.put(2)
    assert queue.get()
    ids["leased"] = queue.put(call_of)
    assert queue.lease(3600)
    for job in (queue.put(3, group="g"), queue.put(4, group="g")):
        ids["parked"] = job
    assert queue.lease(3600)
    assert queue.lease(0.1, block=False) is None
    ids["ready"] = queue.put({**call_of, "function": "app.eat_more"})
    ids["urgent"] = queue.put(call_of, expected_at="1h")
    ids["scheduled"] = queue.put(5, schedule_at="1h")
    ids["both"] = queue.put(6, schedule_at="2h", expected_at="3h")
    pq["b"].put_many(range(3))
    pq["b"].get()
    return ids


@pytest.mark.parametrize("backend", BACKENDS)
def test_jobs_are_listed_by_state(dsn: str, pq: PQ, backend: str) -> None:
    ids = fill(pq)
    execute(
        dsn,
        "INSERT INTO queue_dead (id, q_name, enqueued_at, data, attempts, reason, failures, error)"
        " VALUES (777, 'a', now() - interval '1 day', '1', 3, 'failed', 2, '{\"type\": \"E\", \"message\": \"no\"}')",
    )
    found = objects("list", "--queue", "a", "--state", "all", "--backend", backend, dsn=dsn)
    by_state = {state: [job["id"] for job in found if job["state"] == state] for state in {j["state"] for j in found}}
    assert by_state == {
        "leased": [ids["leased"], ids["parked"] - 1],
        "ready": [ids["urgent"], ids["ready"]],
        "scheduled": [ids["scheduled"], ids["both"]],
        "parked": [ids["parked"]],
        "done": [ids["done"], ids["archived"]],
        "dead": [777],
    }
    for state, expected in by_state.items():
        listed = objects("list", "--queue", "a", "--state", state, "--backend", backend, dsn=dsn)
        assert [job["id"] for job in listed] == expected
    jobs = {job["id"]: job for job in found}
    assert jobs[ids["parked"]]["parked_on"] == "group:g"
    assert jobs[ids["parked"]]["leased_until"] is None
    assert jobs[ids["leased"]]["leased_until"] is not None
    assert jobs[ids["leased"]]["task"] == "app.eat"
    assert jobs[ids["done"]]["finished_at"] is not None
    assert jobs[777]["error"] == {"type": "E", "message": "no"}
    assert jobs[777]["reason"] == "failed"


@pytest.mark.parametrize("backend", BACKENDS)
def test_commands_show_the_runs_of_a_job_as_its_attempts(dsn: str, pq: PQ, backend: str) -> None:
    job_id = lease_after_release(pq["a"]).id
    where = ("--backend", backend)
    for command in (("list", "--queue", "a"), ("show", str(job_id)), ("status", str(job_id), "--queue", "a")):
        [job] = objects(*command, *where, dsn=dsn)
        assert (job["attempts"], job["state"]) == (1, "leased"), command
        assert "taken" not in call(*command, *where, dsn=dsn).stdout
    assert re.search(r"^ *attempts: +1, failed 0$", call("show", str(job_id), *where, dsn=dsn).stdout, re.MULTILINE)
    execute(dsn, "UPDATE queue SET leased_until = now()")
    job = pq["a"].lease()
    assert job is not None
    job.bury("it is of no use")
    for command in (("dead", "list"), ("dead", "show", str(job_id))):
        [letter] = objects(*command, "--queue", "a", *where, dsn=dsn)
        assert letter["attempts"] == 2, command


def test_list_command_filters_and_limits(dsn: str, pq: PQ) -> None:
    ids = fill(pq)

    def listed(*arguments: str) -> list[int]:
        return [job["id"] for job in objects("list", "--queue", "a", *arguments, dsn=dsn)]

    assert listed("--task", "app.eat") == [ids["leased"], ids["urgent"]]
    assert listed("--task", "app.ea.") == []
    assert listed("--limit", "2") == [ids["leased"], ids["parked"] - 1]
    assert listed("--failed") == []
    execute(dsn, f"UPDATE queue SET failures = 1 WHERE id = {ids['scheduled']}")
    assert listed("--failed") == [ids["scheduled"]]
    execute(dsn, f"UPDATE queue SET enqueued_at = now() - interval '2 h' WHERE id = {ids['done']}")
    assert listed("--older-than", "1h", "--state", "all") == [ids["done"]]
    done = call("list", "--queue", "a", "--limit", "1", dsn=dsn)
    assert "only the first 1 jobs are listed; --limit N lists more" in done.stdout
    assert call("list", "--queue", "none", dsn=dsn).stdout == "no such jobs in 'none'\n"


def test_list_command_finds_finished_rows_in_slices(dsn: str, pq: PQ) -> None:
    """The two rows are more than one slice apart, with rows of another queue between them."""
    execute(
        dsn,
        "INSERT INTO queue (id, q_name, data, dequeued_at) VALUES (1, 'a', '1', now())",
        "INSERT INTO queue (id, q_name, data, dequeued_at)"
        " SELECT n, 'other', '1', now() FROM generate_series(2, 10100) AS n",
        "INSERT INTO queue (id, q_name, data, dequeued_at) VALUES (10101, 'a', '1', now() + interval '1 s')",
    )
    assert [job["id"] for job in objects("list", "--queue", "a", "--state", "done", dsn=dsn)] == [10101, 1]
    assert objects("move", "--to-archive", "--queue", "a", dsn=dsn) == [{"queue": "a", "archived": 1}]
    assert execute(dsn, "SELECT id FROM queue_archive") == [(1,)]  # the other one is not finished yet


@pytest.mark.parametrize("backend", BACKENDS)
def test_show_command_shows_a_job_in_any_table(dsn: str, pq: PQ, backend: str) -> None:
    ids = fill(pq)
    error = {"type": "E", "message": "no", "traceback": "Traceback: \x1b[31m"}
    execute(
        dsn,
        "INSERT INTO queue_dead (id, q_name, enqueued_at, data, attempts, reason, error, headers) VALUES"
        f" (777, 'a', now(), '{{\"n\": 1}}', 3, 'failed', '{json.dumps(error)}', '{{\"gate\": {{\"group\": \"g\"}}}}')",
    )
    where = ("--backend", backend)
    states = {name: objects("show", str(job_id), *where, dsn=dsn)[0] for name, job_id in {**ids, "dead": 777}.items()}
    assert {name: (job["state"], job["place"]) for name, job in states.items()} == {
        "archived": ("done", "archive"),
        "done": ("done", "table"),
        "leased": ("leased", "table"),
        "parked": ("parked", "table"),
        "ready": ("ready", "table"),
        "urgent": ("ready", "table"),
        "scheduled": ("scheduled", "table"),
        "both": ("scheduled", "table"),
        "dead": ("dead", "dead"),
    }
    assert (states["dead"]["error"], states["dead"]["data"], states["dead"]["group"]) == (error, {"n": 1}, "g")
    text = call("show", "777", *where, dsn=dsn)
    assert "job 777 of 'a': dead" in text.stdout
    assert "Traceback: \\x1b[31m" in text.stdout
    assert f"queue 'b' has no job {ids['done']}" in line(call("show", str(ids["done"]), "--queue", "b", dsn=dsn), 1)
    assert 'table "queue" has no job 999999' in line(call("show", "999999", dsn=dsn), 1)


def test_show_command_shows_past_attempts_and_the_worker_of_a_job(dsn: str, pq: PQ) -> None:
    job = lease_after_failure(dsn, pq["a"], "\x1b no")
    job_id = job.id
    [shown] = objects("show", str(job_id), dsn=dsn)
    assert (shown["runs"]["worker"], shown["runs"]["host"], shown["runs"]["pid"]) == ("w", "h", 7)
    [attempt] = shown["past_attempts"]
    assert (attempt["attempt"], attempt["outcome"]) == (1, "failed")
    assert attempt["error"]["message"] == "\x1b no"
    text = call("show", str(job_id), dsn=dsn).stdout
    assert "runs on:    h:7 since " in text
    assert re.search(r"1 +failed .*ValueError: \\x1b no", text)
    [explained] = objects("explain", str(job_id), dsn=dsn)
    assert explained["past_attempts"] == [{**attempt, "error": {"type": "builtins.ValueError", "message": "\x1b no"}}]
    text = call("explain", str(job_id), dsn=dsn).stdout
    assert f"Job {job_id} runs on h:7 since " in text
    assert re.search(r"1 +failed .*ValueError: \\x1b no", text)
    [worker] = objects("workers", dsn=dsn)
    assert [(job["id"], job["token"]) for job in worker["running"]] == [(job_id, job.token)]
    assert f" {job_id} since " in call("workers", dsn=dsn).stdout


# Changing


def states(pq: PQ, *ids: int, queue: str = "a") -> list[str]:
    return [pq[queue].status(job_id) for job_id in ids]


@pytest.mark.parametrize("backend", BACKENDS)
def test_explain_command_tells_why_a_job_does_not_run(dsn: str, pq: PQ, backend: str) -> None:
    first, job_id = (pq["a"].put(number, limits={"x": 1}) for number in range(2))
    assert pq["a"].lease(60, block=False)
    [found] = objects("explain", str(job_id), "--backend", backend, dsn=dsn)
    assert (found["id"], found["queue"], found["state"], found["position"]) == (job_id, "a", "parked", 0)
    assert [(cause["code"], cause["jobs"]) for cause in found["causes"]] == [("limit_full", [first]), ("no_worker", [])]
    said = call("explain", str(job_id), "--queue", "a", "--backend", backend, dsn=dsn).stdout.splitlines()
    assert said[:2] == [f"job {job_id} of 'a': parked", f"  1. {found['causes'][0]['text']}"]
    assert said[2] == f"     {found['causes'][0]['action']}  [limit_full]"
    [missing] = objects("explain", "4711", "--backend", backend, dsn=dsn)
    assert (missing["queue"], missing["causes"][0]["code"]) == (None, "unknown_id")


@pytest.mark.parametrize("backend", BACKENDS)
def test_retry_command_runs_jobs_of_every_state_again(dsn: str, pq: PQ, backend: str) -> None:
    ids = fill(pq)
    execute(
        dsn,
        "INSERT INTO queue_dead (id, q_name, enqueued_at, data, attempts, failures, reason)"
        " VALUES (999, 'a', now(), '1', 3, 3, 'failed')",
        "INSERT INTO queue_results (job_id, q_name, state) VALUES (999, 'a', 'failed')",
        f"INSERT INTO queue_results (job_id, q_name, state) VALUES ({ids['done']}, 'a', 'done')",
        f"UPDATE queue SET failures = 1, dedup_key = 'k' WHERE id IN ({ids['done']})",
    )
    again = [999, ids["done"], ids["archived"], ids["scheduled"], ids["both"]]
    left = [ids["leased"], ids["parked"], ids["ready"], 12345]
    found = objects(
        "retry", *map(str, [*again, *left]), "--queue", "a", "--backend", backend, dsn=dsn, code=1
    )  # fmt: skip
    assert [(job["was"], job["retried"]) for job in found] == [
        ("dead", True), ("done", True), ("done", True), ("scheduled", True), ("scheduled", True),
        ("leased", False), ("parked", False), ("ready", False), ("none", False),
    ]  # fmt: skip
    assert states(pq, *again) == ["ready"] * 5
    assert execute(dsn, "SELECT count(*) FROM queue_results") == [(0,)]
    assert execute(dsn, "SELECT count(*) FROM queue_archive") == [(0,)]
    taken = {job.id: job for job in pq["a"].lease_many(10)}
    assert set(taken) == {*again, ids["ready"], ids["urgent"]}
    assert all(job.failures == 0 and job.crashes == 0 for job in taken.values())
    assert objects("retry", str(ids["ready"]), "--queue", "b", dsn=dsn, code=1)[0]["was"] == "none"


def test_retry_command_removes_a_finished_job_from_its_batch(dsn: str, pq: PQ) -> None:
    job_id = pq["a"].put(1)
    link = {"queue": "b", "serializer": "json", "data": "1", "payload": None, "headers": {"batch": 7, "who": "ann"}}
    execute(
        dsn,
        f"UPDATE queue SET dequeued_at = now(), headers = '{json.dumps({'batch': 7, 'then': [link], 'x': 1})}'",
    )
    assert objects("retry", str(job_id), "--queue", "a", dsn=dsn)[0]["retried"]
    [job] = objects("show", str(job_id), dsn=dsn)
    assert job["headers"] == {"then": [{**link, "headers": {"who": "ann"}}], "x": 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_move_command_moves_waiting_jobs(dsn: str, pq: PQ, backend: str) -> None:
    ids = fill(pq)
    expired = pq["a"].put("expired")
    execute(dsn, f"UPDATE queue SET leased_until = now() - interval '1 h', attempts = 1 WHERE id = {expired}")
    execute(dsn, f"INSERT INTO queue_results (job_id, q_name, state) VALUES ({ids['both']}, 'a', 'running')")
    where = ("--queue", "a", "--to", "c", "--backend", backend, "--yes")
    assert objects("move", "--all", *where, dsn=dsn) == [{"queue": "a", "to": "c", "moved": 6}]
    moved = [ids[name] for name in ("urgent", "ready", "parked", "scheduled", "both")]
    assert states(pq, *moved, expired, queue="c") == ["ready"] * 3 + ["scheduled"] * 2 + ["ready"]
    assert states(pq, ids["leased"], ids["done"], ids["archived"]) == ["leased", "done", "done"]
    assert execute(dsn, "SELECT q_name FROM queue_results") == [("c",)]
    leased = [job.id for _ in range(2) for job in pq["c"].lease_many(10, wait=0)]  # one job is put on its lane first
    assert sorted(leased) == sorted([ids["urgent"], ids["parked"], ids["ready"], expired])
    assert objects("move", "--all", *where, dsn=dsn)[0]["moved"] == 0


def test_move_command_moves_single_jobs_and_keeps_limits(dsn: str, pq: PQ) -> None:
    first, second, third, fourth = pq["a"].put_many(range(4))
    assert objects("move", str(third), "--queue", "a", "--to", "b", dsn=dsn)[0]["moved"] == 1
    done = call("move", str(third), str(fourth), "--queue", "a", "--to", "b", dsn=dsn)
    assert "1 of the 2 given jobs is not waiting in 'a'" in line(done, 1)
    assert objects("move", "--all", "--limit", "1", "--queue", "a", "--to", "b", "--yes", dsn=dsn)[0]["moved"] == 1
    assert states(pq, first, third, fourth, queue="b") == ["ready"] * 3
    assert states(pq, second) == ["ready"]


def test_move_command_gives_the_slot_of_a_moved_job_to_the_next(dsn: str, pq: PQ) -> None:
    first, second, third = (pq["a"].put(number, limits={"one": 1}) for number in range(3))
    job = pq["a"].lease()
    assert job is not None
    assert job.id == first
    assert pq["a"].lease(block=False) is None  # the others are parked
    job.ack()  # its place goes to the second, which is due again
    assert states(pq, second, third) == ["ready", "parked"]
    assert objects("move", str(second), "--queue", "a", "--to", "b", dsn=dsn)[0]["moved"] == 1
    assert states(pq, third) == ["ready"]
    for queue, job_id in (("a", third), ("b", second)):  # the limit belongs to the queue
        taken = pq[queue].lease(block=False)
        assert taken is not None
        assert taken.id == job_id


def test_move_command_leaves_a_job_whose_dedup_key_is_taken(dsn: str, pq: PQ) -> None:
    taken = pq["b"].put(1, dedup="k")
    mine, other = pq["a"].put(2, dedup="k"), pq["a"].put(3, dedup="l")
    assert objects("move", "--all", "--queue", "a", "--to", "b", "--yes", dsn=dsn)[0]["moved"] == 1
    assert states(pq, mine) == ["ready"]
    assert states(pq, taken, other, queue="b") == ["ready"] * 2
    assert pq["b"].put(4, dedup="l") == other


def test_move_command_wakes_waiters_of_the_other_queue(dsn: str, pq: PQ) -> None:
    pq["a"].put(1)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("LISTEN b")
        assert objects("move", "--all", "--queue", "a", "--to", "b", "--yes", dsn=dsn)[0]["moved"] == 1
        assert [told.channel for told in connection.notifies(timeout=PATIENCE, stop_after=1)] == ["b"]


def test_move_command_leaves_jobs_put_meanwhile(dsn: str, pq: PQ) -> None:
    pq["a"].put(1)
    execute(
        dsn,
        """
        CREATE FUNCTION go_on() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF (SELECT count(*) FROM queue) < 10 THEN INSERT INTO queue (q_name, data) VALUES ('a', '2'); END IF;
          RETURN NULL;
        END $$""",
        "CREATE TRIGGER go_on AFTER UPDATE OF q_name ON queue FOR EACH ROW EXECUTE FUNCTION go_on()",
    )
    assert objects("move", "--all", "--queue", "a", "--to", "b", "--yes", dsn=dsn)[0]["moved"] == 1


def test_move_command_leaves_a_job_that_is_being_worked_on(dsn: str, pq: PQ) -> None:
    job_id = pq["a"].put(1)
    with pq["a"]:
        assert pq["a"].get() is not None
        assert objects("move", "--all", "--queue", "a", "--to", "b", "--yes", dsn=dsn)[0]["moved"] == 0
    assert states(pq, job_id) == ["done"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_archive_and_purge_commands_handle_finished_rows(dsn: str, pq: PQ, backend: str) -> None:
    ids = fill(pq)
    where = ("--queue", "a", "--backend", backend)
    assert objects("move", "--to-archive", "--older-than", "1h", *where, dsn=dsn)[0]["archived"] == 0
    assert objects("move", "--to-archive", *where, dsn=dsn) == [{"queue": "a", "archived": 1}]
    assert execute(dsn, "SELECT id FROM queue_archive ORDER BY id") == [(ids["archived"],), (ids["done"],)]
    assert objects("purge", "--older-than", "1d", "--yes", *where, dsn=dsn) == [{"queue": "a", "purged": 0}]
    assert objects("purge", "--older-than", "0", "--yes", *where, dsn=dsn) == [{"queue": "a", "purged": 2}]
    assert execute(dsn, "SELECT count(*) FROM queue WHERE q_name = 'b' AND dequeued_at IS NOT NULL") == [(1,)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rule_commands_change_rules_while_all_runs(dsn: str, pq: PQ, backend: str) -> None:
    queue, where = pq["q"], ("--queue", "q", "--backend", backend)
    queue.put("job")
    assert objects("pause", *where, dsn=dsn) == [
        {"queue": "q", "task": None, "limit": None, "group": None, "paused": True}
    ]
    assert queue.get(timeout=0) is None
    assert "no job of 'q' is due" in line(call("get", *where, dsn=dsn), 1)
    [rule] = objects("rules", *where, dsn=dsn)
    assert rule.items() >= {"queue": "q", "kind": "pause", "name": "queue", "number": None, "until": None}.items()
    assert objects("resume", *where, dsn=dsn)[0]["resumed"] is True
    job = queue.get(timeout=0)
    assert job is not None
    assert "was not paused" in line(call("resume", *where, dsn=dsn), 1)
    assert call("rules", *where, dsn=dsn).output == "no rules are set for 'q'\n"
    for arguments in (
        ("pause", "--task", "app.send", "--until", "1h"),
        ("pause", "--limit", "x", "--until", "2099-01-31T12:00Z"),
        ("pause", "--group", "g"),
        ("limit", "x", "5"),
        ("rate", "x", "600/min"),
        ("weight", "tenant-42", "2.5"),
    ):
        assert call(*arguments, *where, dsn=dsn).exit_code == 0
    assert {
        (rule["kind"], rule["name"], rule["number"], rule["period"]) for rule in objects("rules", *where, dsn=dsn)
    } == {
        ("pause", "task:app.send", None, None),
        ("pause", "limit:x", None, None),
        ("pause", "group:g", None, None),
        ("limit", "x", 5, None),
        ("rate", "x", 600, 60),
        ("weight", "tenant-42", 2.5, None),
    }
    shown = call("rules", *where, dsn=dsn).stdout
    assert re.search(r"rate +x +600/60s", shown)
    assert "2099-01-31 12:00:00" in shown
    for kind, name in (("limit", "x"), ("rate", "x"), ("weight", "tenant-42")):
        assert f"the {kind} of '{name}' of 'q' is removed" in call(kind, name, "none", *where, dsn=dsn).stdout
    assert call("resume", "--group", "g", *where, dsn=dsn).stdout == "group 'g' of 'q' is resumed\n"
    assert {rule.name for rule in queue.rules()} == {"task:app.send", "limit:x"}


def test_limits_command_lists_limits_in_use(dsn: str, pq: PQ) -> None:
    queue = pq["q"]
    assert "no limits or groups of 'q' are in use" in call("limits", "--queue", "q", dsn=dsn).stdout
    queue.put_many([1, 2], limits={"x": 1})
    job = queue.lease(60)
    assert job is not None
    queue.pause(group="g")
    [limit, group] = objects("limits", "--queue", "q", dsn=dsn)
    assert limit == {
        "queue": "q", "kind": "limit", "name": "x", "places": 1, "newest": 1, "rule": None, "rate": None,
        "paused": False, "running": [job.id], "waiting": 1,
    }  # fmt: skip
    assert (group["kind"], group["name"], group["paused"]) == ("group", "g", True)
    assert re.search(r"group +g +paused", call("limits", "--queue", "q", dsn=dsn).stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("limit", "x", "0"), "give a number of jobs from 1"),
        (("limit", "x", "many"), "'many' is not a number"),
        (("limit", "", "1"), "limit is empty"),
        (("rate", "x", "fast"), "the rate of 'x' is 'fast'"),
        (("weight", "x", "nan"), "give a number above 0"),
        (("pause", "--task", "a", "--group", "b"), "a call pauses one thing"),
        (("pause", "--until", "soon"), "is not a time"),
        (("pause", "--until", "2001-01-01T00:00Z"), "has passed"),
        (("resume", "--group", ""), "group is empty"),
    ],
)
def test_rule_commands_refuse_invalid_rules(dsn: str, pq: PQ, arguments: tuple[str, ...], said: str) -> None:
    assert said in line(call(*arguments, "--queue", "q", dsn=dsn), 2)
    assert pq["q"].rules() == []


# Ctrl-C


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "arguments",
    [
        ("put", "--lines", "--queue", "a"),
        ("get", "--queue", "a"),
        ("dead", "retry", "--all", "--queue", "a", "--yes"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_interrupted_command_changes_all_or_nothing(dsn: str, pq: PQ, arguments: tuple[str, ...], backend: str) -> None:
    pq["a"].put_many([1, 2])
    rows = "SELECT n, 'a', now(), 1, 'failed', '1' FROM generate_series(8, 9) AS n"
    execute(dsn, f"INSERT INTO queue_dead (id, q_name, enqueued_at, attempts, reason, data) {rows}")
    before, after = (2, 2), {"put": (5, 2), "retry": (4, 0)}
    count = "SELECT (SELECT count(*) FROM queue WHERE dequeued_at IS NULL), (SELECT count(*) FROM queue_dead)"
    waits = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(dsn) as blocker:
        blocker.execute("LOCK TABLE queue, queue_dead IN EXCLUSIVE MODE")
        with subprocess.Popen(
            [sys.executable, "-m", "pqcore", *arguments, "--backend", backend],
            env=environment(dsn), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stderr is not None
            try:
                process.stdin.write(b"3\n4\n5\n")
                process.stdin.close()
                eventually(lambda: execute(dsn, waits))
                process.send_signal(signal.SIGINT)
                if backend == "psycopg2":  # waits in C, where Python handles no signal
                    blocker.rollback()
                assert process.wait(PATIENCE) == 1
                assert process.stderr.read().splitlines()[-1] == b"Aborted!"
            finally:
                process.kill()
        if backend != "psycopg2":
            eventually(lambda: not execute(dsn, waits))
    assert execute(dsn, count)[0] in (before, after.get(arguments[0]), after.get(arguments[1]))


# Figures


@pytest.mark.parametrize("backend", BACKENDS)
def test_stats_command_shows_counts_and_rates(dsn: str, pq: PQ, backend: str) -> None:
    fill(pq)
    execute(
        dsn,
        "INSERT INTO queue_dead (id, q_name, enqueued_at, attempts, reason) VALUES (777, 'dead', now(), 3, 'failed')",
    )
    found = {each["queue"]: each for each in objects("stats", "--backend", backend, dsn=dsn)}
    oldest = found["a"].pop("oldest")
    assert oldest >= 0
    assert found["a"] == {
        "queue": "a",
        "ready": 2,
        "scheduled": 2,
        "leased": 2,
        "parked": 1,
        "blocked": 0,
        "dead": 0,
        "stale": None,
    }
    assert found["dead"]["dead"] == 1
    assert found["b"]["ready"] == 2
    assert [each["queue"] for each in objects("stats", "--queue", "b", "--backend", backend, dsn=dsn)] == ["b"]
    assert re.search(r"^ +a +2 +2 +2 +1 +0 ", call("stats", "--backend", backend, dsn=dsn).stdout, re.MULTILINE)
    [frame] = objects("top", "--once", "--backend", backend, dsn=dsn)
    assert {each["queue"] for each in frame["queues"]} == {"a", "b", "dead"}
    assert frame["connections"] >= 1
    assert frame["puts_per_second"] is None
    assert "dead rows" in call("top", "--once", "--queue", "a", "--backend", backend, dsn=dsn).stdout


def test_top_command_repeats_until_stopped(dsn: str, pq: PQ) -> None:
    pq["a"].put(1)
    command = [sys.executable, "-m", "pqcore", "top", "--json", "--interval", "0.1"]
    with subprocess.Popen(command, env=environment(dsn), stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        frames = [json.loads(top.stdout.readline()) for _ in range(3)]
        top.send_signal(signal.SIGINT)
        top.stdout.read()
        assert top.wait(PATIENCE) == 0
    assert frames[0]["puts_per_second"] is None
    assert frames[2]["puts_per_second"] is not None


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "apples é日"), ("latin-1", "apples é\\u65e5")])
def test_top_command_redraws_a_terminal(dsn: str, pq: PQ, encoding: str, shown: str) -> None:
    pq["apples é日"].put(1)
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "pqcore", "top", "--interval", "0.1"]
    with subprocess.Popen(
        command,
        env={**environment(dsn), "TERM": "xterm", "COLUMNS": "100", "LINES": "30", "PYTHONIOENCODING": encoding},
        stdout=theirs,
    ) as top:
        os.close(theirs)
        seen = b""
        while seen.count(shown.encode(encoding)) < 2:
            seen += os.read(ours, 65_536)
        top.send_signal(signal.SIGTERM)
        with suppress(OSError):  # the terminal's end
            while True:
                seen += os.read(ours, 65_536)
        assert top.wait(PATIENCE) == 0
    os.close(ours)
    assert b"\x1b[?1049h" in seen  # the alternate screen, entered and then left
    assert b"\x1b[?1049l" in seen


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_commands_escape_characters_that_the_terminal_lacks(dsn: str, pq: PQ, encoding: str) -> None:
    name, data = "größe 日", {"é": "日🍎\x1b"}

    def write(*arguments: str) -> str:
        done = CliRunner(charset=encoding).invoke(app, arguments, env={"PQCORE_DSN": dsn})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done.output

    with tasks.PQ(dsn, backend="psycopg") as other:

        @other[name].task(max_retries=0)
        def fail(job_id: int) -> None:
            raise ValueError(name)

        fail()
        other[name].work(burst=True)
    expected = name.encode(encoding, "backslashreplace").decode(encoding)
    assert expected in write("stats")
    assert expected in write("top", "--once")
    assert f"ValueError: {expected}" in write("dead", "list", "--queue", name)
    queue = pq.queue("coded", serializer="orjson")  # orjson does not escape letters
    queue.put(data)
    assert json.loads(write("peek", "--queue", "coded")) == data
    assert json.loads(write("get", "--queue", "coded")) == data
    assert queue.count() == 0


# What is installed


def test_backends_command_lists_backends(pqcore_server: str) -> None:
    found = objects("backends", dsn=pqcore_server)
    assert {(each["name"], each["mode"]) for each in found} >= {
        ("psycopg2", "blocking"), ("psycopg", "blocking"), ("psycopg", "async"), ("asyncpg", "async")
    }  # fmt: skip
    psycopg3 = next(each for each in found if (each["name"], each["mode"]) == ("psycopg", "async"))
    assert psycopg3["usable"]
    assert psycopg3["drivers"] == {"psycopg": psycopg.__version__}
    assert "LISTEN" in psycopg3["capabilities"]
    assert "asyncpg" in call("backends", dsn=pqcore_server).stdout


def test_plugins_command_reports_broken_plugins_and_lists_the_rest(pqcore_server: str, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text("raise RuntimeError('the sky fell')\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "fine.py").write_text("")
    (tmp_path / "declares.py").write_text(
        "import pqcore\nfrom pqcore.backend import BackendSpec, Capability\n"
        "@pqcore.hookimpl\ndef pqcore_register_backends(register):\n"
        "    register(BackendSpec(name='absent', mode='blocking', load='declares:No', requires=('not_there',),\n"
        "        install='pip install it', paramstyle='format', capabilities=frozenset(Capability)))\n"
    )
    metadata = tmp_path / "others-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.5\n")
    (metadata / "entry_points.txt").write_text(
        "[pqcore.backends]\nbad = raises\nabsent = declares\n[pqcore.serializers]\nworse = nowhere\nidle = fine\n"
        "[pqcore.plugins]\nbroken = raises\ngood = fine\n[pqcore.instruments]\ngone = leaves:Meter\nnone = fine:Meter\n"
    )
    done = run("plugins", "--json", dsn=pqcore_server, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {
        (each["group"].removeprefix("pqcore."), each["name"]): each
        for each in map(json.loads, done.stdout.splitlines())
    }
    assert {key: each["ok"] for key, each in found.items() if each["distribution"] == "others"} == {
        ("backends", "bad"): False,
        ("backends", "absent"): False,
        ("serializers", "worse"): False,
        ("serializers", "idle"): False,
        ("plugins", "broken"): False,
        ("plugins", "good"): True,
        ("instruments", "gone"): False,
        ("instruments", "none"): False,
    }
    assert "the sky fell" in found["backends", "bad"]["error"]
    assert "pip install it" in found["backends", "absent"]["error"]
    assert "the sky fell" in found["plugins", "broken"]["error"]
    assert "SystemExit" in found["instruments", "gone"]["error"]
    assert found["plugins", "good"]["version"] == "1.5"
    assert found["backends", "psycopg"]["ok"]
    assert "LISTEN" in found["backends", "psycopg"]["capabilities"]
    listed = run("backends", "--json", dsn=pqcore_server, folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    usable = {each["name"]: each["usable"] for each in map(json.loads, listed.stdout.splitlines())}
    assert (usable["bad"], usable["absent"], usable["psycopg"]) == (False, False, True)
    text = run("plugins", dsn=pqcore_server, folder=tmp_path)
    assert text.returncode == 0
    assert "others 1.5" in text.stdout


def test_conformance_command_runs_the_suite(dsn: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    variables = {"PQCORE_TEST_DSN": dsn}
    arguments = ("conformance", "--backend", "psycopg", "--report", str(report), "--json", "--", "-k")
    done = run(*arguments, "test_put_data_are_returned_by_get", folder=tmp_path, variables=variables)
    if "no such test" in done.stderr or "deselected" not in done.stderr:
        pytest.fail(done.stderr)
    found = json.loads(done.stdout)
    assert found["complete"] is False
    assert set(found["backends"]) == {"psycopg", "psycopg-async"}
    assert report.with_suffix(".md").exists()
    wrong = run("conformance", "--backend", "psycopg", "--", "--nonsense", folder=tmp_path, variables=variables)
    assert wrong.returncode == 2


# Where the database is


@pytest.mark.parametrize("backend", BACKENDS)
def test_commands_read_a_service_file(dsn: str, pq: PQ, tmp_path: Path, backend: str) -> None:
    pq["apples"].put(1)
    parts = urlsplit(dsn)
    file = tmp_path / "services"
    file.write_text(
        f"[orchard]\nhost={parts.hostname}\nport={parts.port}\nuser={parts.username}\ndbname={parts.path[1:]}\n"
        + (f"password={parts.password}\n" if parts.password else "")
    )
    variables = {"PGSERVICEFILE": str(file), "PGSERVICE": "orchard"}
    done = run("stats", "--backend", backend, variables=variables)
    assert done.returncode == 0, done.stderr
    assert "apples" in done.stdout
    named = run("stats", "--backend", backend, "--dsn", "postgresql://?service=orchard", variables=variables)
    assert named.returncode == 0, named.stderr


@pytest.mark.parametrize(
    "dsn", ["postgresql://ann:hush-hush@127.0.0.1:1/orchard", "host=127.0.0.1 port=1 password=hush"]
)
@pytest.mark.parametrize(
    "command",
    ["create", "create --sql", "migrate --check", "adopt", "put 1 --queue a", "get --queue a", "peek --queue a",
     "list --queue a", "show 1", "retry 1 --queue a", "purge --queue a --older-than 1 --yes",
     "move --all --queue a --to b --yes", "stats", "top --once", "doctor", "doctor --json"],
)  # fmt: skip
def test_commands_never_show_a_password(dsn: str, command: str) -> None:
    for backend in ("psycopg", "asyncpg"):
        done = call(*command.split(), "--dsn", dsn, "--backend", backend, dsn=None)
        assert done.exit_code == 1
        assert done.output
        assert "hush" not in done.output
        assert "Traceback" not in done.output


def test_schedule_commands_make_change_run_and_remove_a_schedule(dsn: str, pq: PQ) -> None:
    of = ("--queue", "apples")
    made = call("schedule", "add", "nightly", "app.report", "0 3 * * *", '["ann"]', *of, "--priority", "5", dsn=dsn)
    assert "'nightly' of 'apples'" in made.stdout
    [schedule] = pq["apples"].schedules()
    assert (schedule.task, schedule.cron, schedule.args) == ("app.report", "0 3 * * *", ("ann",))
    call("schedule", "pause", "nightly", *of, dsn=dsn)
    listed = json.loads(call("schedule", "list", "--json", dsn=dsn).stdout)
    assert (listed["queue"], listed["name"], listed["paused"], listed["args"]) == ("apples", "nightly", True, ["ann"])
    assert "paused" in call("schedule", "list", *of, dsn=dsn).stdout
    job_id = json.loads(call("schedule", "run", "nightly", *of, "--json", dsn=dsn).stdout)["id"]
    assert [(job.id, job.task) for job in pq["apples"].jobs("ready")] == [(job_id, "app.report")]
    call("schedule", "resume", "nightly", *of, dsn=dsn)
    assert not pq["apples"].schedules()[0].paused
    call("schedule", "remove", "nightly", *of, dsn=dsn)
    assert call("schedule", "list", dsn=dsn).stdout == "no schedules\n"
