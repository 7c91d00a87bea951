"""The MCP server as an SDK's client sees it: in a separate process, over a real table."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
import psycopg
import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult
from released_job import lease_after_release

from pqcore import PQ, Dedup, tasks
from pqcore.cli.app import app
from pqcore.errors import ConfigurationError
from pqcore.mcp.answers import Redactor
from pqcore.mcp.server import listening_address, mcp_server
from pqcore.runner import open_async
from pqcore.testing.commands import Command, environment, run
from pqcore.testing.harness import PATIENCE, patiently
from pqcore.worker import Worker

LOOKING = {
    "list_queues",
    "list_jobs",
    "show_job",
    "peek_jobs",
    "list_dead_letters",
    "list_workers",
    "list_rules",
    "list_limits",
}
LOOKING |= {"run_doctor", "explain_job"}
DESTROYING = {"cancel_job", "purge_finished", "purge_dead_letters"}
RULING = {"pause", "resume", "set_limit", "set_rate", "set_weight"}
CHANGING = DESTROYING | RULING | {"put_job", "retry_jobs", "retry_dead_letters", "move_jobs"}
SECRET = "hush-hush"


@pytest.fixture
def pq(dsn: str) -> Iterator[tasks.PQ]:
    with tasks.PQ(dsn, backend="psycopg", timeout=0) as made:
        made.create()
        yield made


@pytest.fixture
def secret_dsn(dsn: str) -> Iterator[str]:
    """The DSN of a role with a password."""
    parts = urlsplit(dsn)
    role = parts.path[1:] + "_role"
    host = parts.netloc.rpartition("@")[2]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{SECRET}'".encode())
        yield urlunsplit(parts._replace(netloc=f"{role}:{SECRET}@{host}"))
        connection.execute(f"DROP ROLE {role}".encode())


def parameters(dsn: str, *arguments: str, **variables: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=["-W", "error", "-m", "pqcore", "mcp", *arguments],
        env=environment(dsn, variables),
    )


def talk(server: Any, conversation: Callable[[Client], Awaitable[None]]) -> None:
    """Hold a conversation with a server; if ``server`` says how to start one, over its stdin and stdout."""

    async def connected() -> None:
        async with Client(server, read_timeout_seconds=PATIENCE) as client:
            await conversation(client)

    asyncio.run(connected())


def text(result: CallToolResult) -> str:
    return "\n".join(each.text for each in result.content if each.type == "text")


async def ask(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return the answer of a tool; its text form must be the same."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    assert SECRET not in text(result)
    assert result.structured_content is not None
    assert json.loads(text(result)) == result.structured_content
    answer: dict[str, Any] = result.structured_content
    return answer


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """Return the error of a failing tool."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, text(result)
    assert SECRET not in text(result)
    return text(result)


@dataclass
class Orchard:
    """A queue with a job in each state, and their ids."""

    queue: tasks.Queue
    ready: int
    scheduled: int
    parked: int
    leased: int
    done: int
    dead: int

    @property
    def by_state(self) -> dict[str, int]:
        states = ("ready", "scheduled", "parked", "leased", "done", "dead")
        return {state: getattr(self, state) for state in states}


@pytest.fixture
def orchard(pq: tasks.PQ, secret_dsn: str) -> Orchard:
    queue = pq["fruit"]

    @queue.task()
    def press(job_id: int, kind: str) -> None:
        if kind == "rotten":
            raise LookupError(f"a worm in the {kind}; connected to {secret_dsn}")

    done, dead = press("ripe"), press("rotten")
    queue.work(burst=True)
    queue.put("held", group="g")
    held = queue.lease(3600)
    assert held is not None
    parked = queue.put("in line", group="g", headers={"note": "n"})
    assert queue.lease(1) is None  # it is parked
    waiting = queue.put({"pear": [1, None], "where": f"password={SECRET}"}, dedup=Dedup("pear-1"))
    return Orchard(queue, waiting, queue.put("later", "1h"), parked, held.id, done, dead)


@contextmanager
def unchanged(dsn: str) -> Iterator[None]:
    """Check that no row changes in this block."""

    def rows() -> list[Any]:
        tables = ("queue", "queue_dead", "queue_archive", "queue_results", "queue_slots")
        with psycopg.connect(dsn) as connection:
            return [connection.execute(f"SELECT t::text FROM {each} AS t ORDER BY 1").fetchall() for each in tables]

    before = rows()
    yield
    assert rows() == before


# Looking


@pytest.mark.parametrize("backend", ["psycopg", "asyncpg", "psycopg2"])
def test_mcp_server_reads_and_changes_nothing_by_default(
    dsn: str, secret_dsn: str, orchard: Orchard, backend: str
) -> None:
    async def conversation(client: Client) -> None:
        assert {tool.name for tool in (await client.list_tools()).tools} == LOOKING
        assert "No tool changes anything" in (client.instructions or "")
        figures = {"ready": 1, "scheduled": 1, "leased": 1, "parked": 1, "dead": 1}
        [queue] = (await ask(client, "list_queues"))["queues"]
        assert queue.items() >= {"queue": "fruit", **figures}.items()
        [empty] = (await ask(client, "list_queues", queue="empty"))["queues"]
        assert empty["ready"] == 0
        for state, job_id in orchard.by_state.items():
            listed = await ask(client, "list_jobs", queue="fruit", states=[state])
            assert [job["id"] for job in listed["jobs"]] == [job_id]
            assert listed["more"] is False
            assert (await ask(client, "show_job", job_id=job_id))["state"] == state
        unfinished = await ask(client, "list_jobs", queue="fruit", limit=2)
        assert (len(unfinished["jobs"]), unfinished["more"]) == (2, True)
        failed = await ask(client, "list_jobs", queue="fruit", states=["dead", "done"], failed=True, older_than="0s")
        assert [job["id"] for job in failed["jobs"]] == [orchard.dead]
        assert failed["jobs"][0]["task"].endswith("press")

        [_, peeked] = (await ask(client, "peek_jobs", queue="fruit"))["jobs"]
        assert peeked["data"] == {"pear": [1, None], "where": "password=***"}
        letters = await ask(client, "list_dead_letters", queue="fruit")
        assert letters["total"] == 1
        [letter] = letters["dead_letters"]
        assert (letter["id"], letter["reason"], letter["error"]["type"]) == (
            orchard.dead,
            "failed",
            "builtins.LookupError",
        )
        assert "a worm in the rotten; connected to ***" in letter["error"]["message"]
        assert "raise LookupError" in letter["error"]["traceback"]
        for tool in ("show_job", "explain_job"):
            [attempt] = (await ask(client, tool, job_id=orchard.dead))["past_attempts"]
            assert (attempt["attempt"], attempt["outcome"], attempt["worker"].rpartition(":")[2]) == (
                1,
                "failed",
                str(os.getpid()),
            )
            assert attempt["error"] == {
                "type": "builtins.LookupError",
                "message": "a worm in the rotten; connected to ***",
            }
        parked = await ask(client, "show_job", job_id=orchard.parked, queue="fruit")
        assert (parked["group"], parked["headers"]["note"], parked["data"]) == ("g", "n", "in line")
        assert datetime.fromisoformat(parked["enqueued_at"]).tzinfo is not None

        findings = (await ask(client, "run_doctor", queues=["fruit"]))["findings"]
        assert {"server", "schema", "indexes", "plan"} <= {each["check"] for each in findings}
        assert {each["level"] for each in findings} <= {"ok", "warning", "problem"}

    with unchanged(dsn):
        talk(parameters(secret_dsn, "--backend", backend), conversation)


def test_mcp_tools_show_the_runs_of_a_job_as_its_attempts(secret_dsn: str, pq: tasks.PQ) -> None:
    async def conversation(client: Client) -> None:
        assert (await ask(client, "show_job", job_id=job_id))["attempts"] == 1
        [job] = (await ask(client, "list_jobs", queue="a"))["jobs"]
        assert job["attempts"] == 1

    job_id = lease_after_release(pq["a"]).id
    talk(in_process(secret_dsn), conversation)


def test_mcp_failure_is_a_tool_error(secret_dsn: str, orchard: Orchard) -> None:
    async def conversation(client: Client) -> None:
        assert "queue 'other' has no job" in await refused(client, "show_job", job_id=orchard.ready, queue="other")
        assert "has no job 4711: it was never put" in await refused(client, "show_job", job_id=4711)
        assert "unknown serializer 'nothing'" in await refused(client, "peek_jobs", queue="fruit/nothing")
        assert "queue name is empty" in await refused(client, "list_queues", queue="")
        assert "not a time: 'long'" in await refused(client, "list_jobs", queue="fruit", older_than="long")
        assert "less than or equal to 500" in await refused(client, "list_jobs", queue="fruit", limit=501)
        assert "Input should be" in await refused(client, "list_jobs", queue="fruit", states=["lost"])
        for tool in CHANGING:
            assert f"Unknown tool: {tool}" in await refused(client, tool, queue="fruit", job_id=orchard.ready)

    talk(in_process(secret_dsn), conversation)


def test_mcp_tools_report_a_missing_table_or_server(secret_dsn: str) -> None:
    async def no_table(client: Client) -> None:
        assert "create()" in await refused(client, "list_queues")

    async def no_server(client: Client) -> None:
        assert "connect" in (await refused(client, "list_queues")).lower()
        [finding] = (await ask(client, "run_doctor"))["findings"]
        assert (finding["check"], finding["level"]) == ("connection", "problem")

    talk(in_process(secret_dsn), no_table)
    talk(in_process(f"postgresql://ann:{SECRET}@127.0.0.1:1/nowhere"), no_server)


def test_mcp_lists_workers(dsn: str, pq: tasks.PQ) -> None:
    async def conversation(client: Client) -> None:
        assert await ask(client, "list_workers") == {"workers": []}
        worker = Worker(pq["fruit"], concurrency=3)
        working = asyncio.create_task(worker.run())
        for _ in patiently("the worker is listed"):
            if found := (await ask(client, "list_workers", queue="fruit"))["workers"]:
                break
        [shown] = found
        assert (shown["pid"], shown["queues"], shown["concurrency"]) == (os.getpid(), ["fruit"], 3)
        assert shown["alive"] is True
        assert (await ask(client, "list_workers", queue="other"))["workers"] == []
        worker.stop()
        await working

    talk(in_process(dsn), conversation)


def test_mcp_explains_why_a_job_does_not_run(dsn: str, pq: tasks.PQ) -> None:
    queue = pq["fruit"]
    first, job_id = (queue.put(number, limits={"secret name": 1}) for number in range(2))
    assert queue.lease(60, block=False)

    async def conversation(client: Client) -> None:
        shown = await ask(client, "explain_job", job_id=job_id)
        [full, *_] = shown["causes"]
        assert (shown["state"], full["code"], full["jobs"]) == ("parked", "limit_full", [first])
        assert "secret name" in full["text"]

    async def hidden(client: Client) -> None:
        shown = await ask(client, "explain_job", job_id=job_id, queue="fruit")
        assert shown["causes"][0]["code"] == "limit_full"
        assert "secret name" not in json.dumps(shown)

    talk(in_process(dsn), conversation)
    talk(in_process(dsn, hide_data=True), hidden)


# Data


def in_process(dsn: str, *, changes: bool = False, **options: Any) -> Any:
    return mcp_server(open_async(dsn), changes=changes, **options)


def test_mcp_answers_hide_data_if_asked(secret_dsn: str, orchard: Orchard) -> None:
    async def conversation(client: Client) -> None:
        whole = [await ask(client, "show_job", job_id=each) for each in orchard.by_state.values()]
        peeked = (await ask(client, "peek_jobs", queue="fruit"))["jobs"]
        listed = (await ask(client, "list_jobs", queue="fruit", states=[*orchard.by_state]))["jobs"]
        dead = (await ask(client, "list_dead_letters", queue="fruit"))["dead_letters"]
        jobs = [*whole, *peeked, *listed, *dead]
        assert len(jobs) == 15
        for job in jobs:
            assert not {"data", "payload", "headers", "group", "dedup_key"} & job.keys()
        assert {json.dumps(job["error"]) for job in jobs if job.get("error")} == {'{"type": "builtins.LookupError"}'}
        assert {job.get("parked_on") for job in jobs} == {None, "group"}
        explained = await ask(client, "explain_job", job_id=orchard.dead)
        assert [each["error"] for each in explained["past_attempts"]] == [{"type": "builtins.LookupError"}]
        everything = json.dumps([*jobs, *explained["past_attempts"]])
        for word in ("pear", "in line", "rotten", "note", "worm", "raise"):
            assert word not in everything

    talk(parameters(secret_dsn, "--no-data"), conversation)


@pytest.mark.parametrize("dsn", ["postgresql://ann:s%40fe@h/app", "host=h user=ann password=s@fe", "postgresql://"])
def test_mcp_answers_contain_no_password(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "from the environment")
    redactor = Redactor(PQ(dsn).engine)
    fields = {"queue": "s@fe", "data": {"a": [f"at {dsn} as s@fe, from the environment"]}, "headers": {"s@fe": 1}}
    shown = redactor.document(fields)
    assert shown["queue"] == "s@fe"  # unmasked, because clients use the name
    if dsn != "postgresql://":
        assert shown["data"] == {"a": ["at *** as ***, ***"]}
        assert shown["headers"] == {"***": 1}
    else:
        assert shown["data"] == {"a": ["at postgresql:// as s@fe, ***"]}


@pytest.mark.parametrize("limit", [0, -1, "9", True, 1.5])
def test_mcp_limit_of_a_bad_value_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"limit is .*give a number of characters"):
        Redactor(PQ("postgresql://nowhere").engine, limit=limit)


def test_mcp_answers_cut_long_values_and_say_so(secret_dsn: str, pq: tasks.PQ) -> None:
    async def conversation(client: Client) -> None:
        short = await ask(client, "show_job", job_id=ids["short"])
        assert (short["data"], short["size"]) == ("é" * 40, 242)
        assert "cut" not in short
        shown = await ask(client, "show_job", job_id=ids["long"])
        assert shown["cut"] == ["data", "headers"]
        assert (shown["data"], shown["headers"]) == ('["' + "a" * 48, '{"h": "' + "h" * 43)
        huge = await ask(client, "show_job", job_id=ids["huge"])
        assert (huge["cut"], huge["size"]) == (["data"], 3_000_004)
        assert huge["data"] == '["' + "b" * 48
        packed = await ask(client, "show_job", job_id=ids["bytes"])
        assert (packed["data"], packed["serializer"], packed["cut"]) == (None, "msgpack", ["payload"])
        # No part of a secret is shown if the text is cut within the secret.
        secret = await ask(client, "show_job", job_id=ids["secret"])
        assert secret["data"] == '["' + "c" * 40 + "***" + "d" * 5
        [letter] = (await ask(client, "list_dead_letters", queue="q"))["dead_letters"]
        assert (len(letter["error"]["message"]), len(letter["error"]["traceback"])) == (50, 50)
        assert letter["error"]["traceback"].endswith("eee\n")
        assert letter["cut"] == ["error"]

    @pq["q"].task()
    def fail(job_id: int) -> None:
        raise ValueError("e" * 100)

    fail()
    pq["q"].work(burst=True)
    queue = pq["q"]
    ids = {
        "short": queue.put("é" * 40),
        "long": queue.put(["a" * 100], headers={"h": "h" * 100}),
        "huge": queue.put(["b" * 3_000_000]),
        "bytes": pq["q/msgpack"].put({"a": "b" * 100}),
        "secret": queue.put(["c" * 40 + SECRET + "d" * 100]),
    }
    talk(in_process(secret_dsn, limit=50), conversation)


# Changing


def test_mcp_lists_limits_in_use(secret_dsn: str, pq: tasks.PQ) -> None:
    queue = pq["fruit"]
    queue.put_many(["apple", "pear"], limits={"press": 1})
    [running] = queue.lease_many(2)

    async def conversation(client: Client) -> None:
        [found] = (await ask(client, "list_limits", queue="fruit"))["limits"]
        assert (found["kind"], found["name"], found["places"]) == ("limit", "press", 1)
        assert (found["running"], found["waiting"]) == ([running.id], 1)

    talk(in_process(secret_dsn), conversation)


def test_mcp_sets_rules_when_allowed(secret_dsn: str, pq: tasks.PQ) -> None:
    queue = pq["fruit"]

    async def conversation(client: Client) -> None:
        assert await ask(client, "list_rules", queue="fruit") == {"rules": []}
        await ask(client, "set_limit", queue="fruit", name="press", places=3)
        await ask(client, "set_rate", queue="fruit", name="press", rate="10/s")
        await ask(client, "set_weight", queue="fruit", share="ann", weight=2.5)
        await ask(client, "pause", queue="fruit", task="app.press", until="1h")
        paused = await ask(client, "pause", queue="fruit", group="ann")
        assert paused == {"queue": "fruit", "task": None, "limit": None, "group": "ann", "paused": True}
        listed = (await ask(client, "list_rules", queue="fruit"))["rules"]
        assert {(rule["kind"], rule["name"], rule["number"], rule["period"]) for rule in listed} == {
            ("limit", "press", 3, None),
            ("rate", "press", 10, 1),
            ("weight", "ann", 2.5, None),
            ("pause", "task:app.press", None, None),
            ("pause", "group:ann", None, None),
        }
        assert (await ask(client, "resume", queue="fruit", group="ann"))["resumed"] is True
        assert (await ask(client, "resume", queue="fruit", group="ann"))["resumed"] is False
        await ask(client, "set_limit", queue="fruit", name="press", places=None)
        await ask(client, "set_rate", queue="fruit", name="press", rate=None)
        await ask(client, "set_weight", queue="fruit", share="ann", weight=None)
        assert [rule.name for rule in queue.rules()] == ["task:app.press"]
        assert "give a number of jobs from 1" in await refused(client, "set_limit", queue="fruit", name="x", places=0)
        assert "give a number of jobs and a time" in await refused(
            client, "set_rate", queue="fruit", name="x", rate="fast"
        )
        assert "a call pauses one thing" in await refused(client, "pause", queue="fruit", task="a", limit="b")
        assert "is not a time" in await refused(client, "pause", queue="fruit", until="soon")
        assert [rule.name for rule in queue.rules()] == ["task:app.press"]

    talk(in_process(secret_dsn, changes=True), conversation)


def test_mcp_hides_names_of_rules_with_the_data(secret_dsn: str, pq: tasks.PQ) -> None:
    queue = pq["fruit"]
    queue.set_limit("ann@example.com", 1)
    queue.pause(group="ann@example.com")
    queue.pause(task="app.press")

    async def conversation(client: Client) -> None:
        rules = (await ask(client, "list_rules", queue="fruit"))["rules"]
        assert [(rule["kind"], rule["name"]) for rule in rules] == [
            ("limit", None),
            ("pause", "group"),
            ("pause", "task:app.press"),
        ]

    talk(in_process(secret_dsn, hide_data=True), conversation)


def test_mcp_changes_are_made_when_allowed(dsn: str, secret_dsn: str, pq: tasks.PQ, orchard: Orchard) -> None:
    async def conversation(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == LOOKING | CHANGING
        put = await ask(client, "put_job", queue="fruit", data='{"plum": [1]}', schedule_at="1h", dedup="plum")
        again = await ask(client, "put_job", queue="fruit", data="2", dedup="plum")
        assert again == put
        job = await ask(client, "show_job", job_id=put["id"])
        assert (job["data"], job["state"], job["dedup_key"]) == ({"plum": [1]}, "scheduled", "plum")
        text_ = await ask(client, "put_job", queue="words", data='"[1]"', expected_at="2040-01-31T12:00Z")
        assert (await ask(client, "show_job", job_id=text_["id"]))["data"] == "[1]"

        ids = [orchard.dead, orchard.done, put["id"], orchard.leased, 4711]
        retried = (await ask(client, "retry_jobs", queue="fruit", job_ids=ids))["jobs"]
        outcomes = [("dead", True), ("done", True), ("scheduled", True), ("leased", False), ("none", False)]
        assert [(each["was"], each["retried"]) for each in retried] == outcomes

        of_reason = {"queue": "fruit", "reason": "unreadable"}
        assert await ask(client, "retry_dead_letters", **of_reason) == {**of_reason, "retried": 0}

        assert (await ask(client, "cancel_job", queue="fruit", job_id=put["id"]))["outcome"] == "deleted"
        assert (await ask(client, "cancel_job", queue="fruit", job_id=orchard.leased))["outcome"] == "none"
        asked = await ask(client, "cancel_job", queue="fruit", job_id=orchard.leased, running=True)
        assert asked["outcome"] == "asked"

        moved = await ask(client, "move_jobs", queue="fruit", to="basket", job_ids=[orchard.ready])
        assert moved == {"queue": "fruit", "to": "basket", "moved": 1}
        assert (await ask(client, "move_jobs", queue="fruit", to="basket", all_jobs=True, limit=2))["moved"] == 2
        same = await refused(client, "move_jobs", queue="fruit", to="fruit", all_jobs=True)
        assert "is the queue that the jobs are in" in same

        for data in ("{", "NaN", ""):
            assert "data is not JSON" in await refused(client, "put_job", queue="fruit", data=data)
        late = await refused(client, "put_job", queue="fruit", data="1", schedule_at="soon")
        assert "'soon' is not a time" in late
        assert "Field required" in await refused(client, "purge_finished", queue="fruit")

    talk(parameters(secret_dsn, "--allow-changes"), conversation)
    basket = {job.id for job in pq["basket"].jobs()}
    assert orchard.ready in basket
    assert len(basket) == 3
    assert basket | {job.id for job in orchard.queue.jobs()} == set(orchard.by_state.values())
    assert orchard.queue.jobs("done", "dead") == []
    assert [job.data for job in pq["words"].peek(9)] == ["[1]"]


def test_mcp_purge_tools_delete_jobs(secret_dsn: str, orchard: Orchard) -> None:
    async def conversation(client: Client) -> None:
        assert (await ask(client, "purge_finished", queue="fruit", older_than="1d"))["purged"] == 0
        assert (await ask(client, "purge_dead_letters", queue="fruit", older_than="1d", all_jobs=True))["purged"] == 0
        others = await ask(client, "purge_dead_letters", queue="fruit", older_than="0s", job_ids=[orchard.done])
        assert others["purged"] == 0
        assert (await ask(client, "purge_finished", queue="fruit", older_than="0s"))["purged"] == 1
        assert (await ask(client, "purge_dead_letters", queue="fruit", older_than="0s", all_jobs=True))["purged"] == 1

    talk(in_process(secret_dsn, changes=True), conversation)
    assert orchard.queue.jobs("done", "dead") == []
    assert len(orchard.queue.jobs()) == 4


def test_mcp_tool_refuses_misspelt_arguments(secret_dsn: str, orchard: Orchard) -> None:
    async def conversation(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == LOOKING | CHANGING
        for tool in tools:
            assert tool.input_schema["additionalProperties"] is False
            said = await refused(client, tool.name, job_idz=[1])
            assert "unknown argument 'job_idz'; nothing was done; this tool takes " in said
            assert set(tool.input_schema["properties"]) <= set(re.findall(r"\w+", said))
        misspelt: list[tuple[str, dict[str, Any]]] = [
            ("purge_dead_letters", {"older_than": "0s", "job_id": [1]}),
            ("purge_dead_letters", {"older_than": "0s", "all_jobs": True, "job_id": [1]}),
            ("purge_finished", {"older_than": "0s", "task": "app.send"}),
            ("move_jobs", {"to": "basket", "ids": [402]}),
            ("put_job", {"data": "1", "scheduled_at": "1h"}),
            ("cancel_job", {"job_id": orchard.ready, "only": "scheduled"}),
        ]
        for name, arguments in misspelt:
            assert "unknown argument" in await refused(client, name, queue="fruit", **arguments)

    before = orchard.queue.jobs(*orchard.by_state)
    talk(in_process(secret_dsn, changes=True), conversation)
    assert [job.id for job in orchard.queue.jobs(*orchard.by_state)] == [job.id for job in before]


def test_mcp_tool_changes_all_jobs_only_when_asked(secret_dsn: str, orchard: Orchard) -> None:
    async def conversation(client: Client) -> None:
        for more in ({}, {"all_jobs": False}, {"all_jobs": True, "job_ids": [orchard.dead, orchard.ready]}):
            purge = await refused(client, "purge_dead_letters", queue="fruit", older_than="0s", **more)
            move = await refused(client, "move_jobs", queue="fruit", to="basket", **more)
            assert "give the ids of jobs, or set all_jobs to true" in purge
            assert "give the ids of jobs, or set all_jobs to true" in move
        ids = [orchard.ready]
        assert "limit is only for all_jobs" in await refused(
            client, "move_jobs", queue="fruit", to="basket", job_ids=ids, limit=1
        )

    before = orchard.queue.jobs(*orchard.by_state)
    talk(in_process(secret_dsn, changes=True), conversation)
    assert [job.id for job in orchard.queue.jobs(*orchard.by_state)] == [job.id for job in before]


def test_mcp_tools_describe_themselves(secret_dsn: str) -> None:
    async def conversation(client: Client) -> None:
        for tool in (await client.list_tools()).tools:
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint is (tool.name in LOOKING)
            assert tool.annotations.destructive_hint is (tool.name in DESTROYING)
            assert tool.annotations.open_world_hint is False
            assert tool.title
            assert tool.description
            for name, schema in tool.input_schema["properties"].items():
                assert "description" in json.dumps(schema), f"{tool.name} {name}"

    talk(in_process(secret_dsn, changes=True), conversation)


# Over HTTP


@contextmanager
def serving(dsn: str, folder: Path, *arguments: str, **variables: str) -> Iterator[str]:
    """A server over HTTP; return its URL."""
    arguments = ("mcp", "--http", "127.0.0.1:0", *arguments)
    with Command(*arguments, dsn=dsn, folder=folder, variables=variables) as command:
        [port] = command.expect(r"running on http://127\.0\.0\.1:(\d+)")
        yield f"http://127.0.0.1:{port}/mcp"
        command.signal(signal.SIGTERM)
        assert command.wait() == -signal.SIGTERM, command.log  # as uvicorn ends
        assert SECRET not in command.log
        assert "Traceback" not in command.log


def test_mcp_over_http_needs_the_token(secret_dsn: str, orchard: Orchard, tmp_path: Path) -> None:
    async def conversation(client: Client) -> None:
        [queue] = (await ask(client, "list_queues"))["queues"]
        assert queue["dead"] == 1

    async def come(url: str, token: str | None) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(headers=headers, timeout=PATIENCE) as http:
            status = (await http.post(url, json={})).status_code
            if status != 401:
                async with Client(streamable_http_client(url, http_client=http)) as client:
                    await conversation(client)
        return status

    with serving(secret_dsn, tmp_path, PQCORE_MCP_TOKEN="open sesame, please") as url:
        tokens = (None, "open sesame", "open sesame, please")
        assert [asyncio.run(come(url, token)) for token in tokens] == [401, 401, 400]
    with serving(secret_dsn, tmp_path) as url:
        talk(url, conversation)
        for headers, status in (({"Host": "evil.example"}, 421), ({"Origin": "http://evil.example"}, 403)):
            assert httpx2.post(url, json={}, headers=headers).status_code == status


@pytest.mark.parametrize("address", ["8100", ":8100", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", ""])
def test_mcp_address_of_a_bad_value_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an address"):
        listening_address(address, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "db.example"])
def test_mcp_address_reachable_by_others_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigurationError, match="can be reached from other machines: set a token"):
        listening_address(f"{host}:8100", None)
    assert listening_address(f"{host}:8100", "sesame") == (host.strip("[]"), 8100)


def test_mcp_token_that_is_too_short_is_refused(dsn: str) -> None:
    with PQ(dsn) as pq, pytest.raises(ConfigurationError, match="the token has 11 characters; give at least 16"):
        mcp_server(pq, token="open sesame")


def test_mcp_answers_cut_deeply_nested_data(dsn: str) -> None:
    with tasks.PQ(dsn) as pq:
        pq.create()
    with psycopg.connect(dsn) as connection:
        deep = "[" * 900 + "]" * 900
        connection.execute("INSERT INTO queue (q_name, data) VALUES ('deep', %s)", [deep])

    async def conversation(client: Client) -> None:
        [job] = (await ask(client, "peek_jobs", queue="deep"))["jobs"]
        assert "nested too deeply to be shown" in json.dumps(job)

    talk(in_process(dsn), conversation)


def test_mcp_loopback_address_needs_no_token() -> None:
    for address in ("127.0.0.1:1", "127.0.0.9:1", "localhost:1", "LOCALHOST:1", "[::1]:1"):
        assert listening_address(address, None)[1] == 1


# The command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--http", "0.0.0.0:8100"], "can be reached from other machines"),
        (["--backend", "nothing"], "unknown backend 'nothing'"),
        (["--data-limit", "0"], "0 is not in the range"),
        (["--table", ""], "table name is empty"),
    ],
)
def test_mcp_command_refuses_bad_arguments(arguments: list[str], says: str) -> None:
    variables = {"PQCORE_DSN": "postgresql://nowhere", "PQCORE_MCP_TOKEN": None, "PGCONNECT_TIMEOUT": "10"}
    done = CliRunner().invoke(app, ["mcp", *arguments], env=variables)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr


def test_mcp_command_without_its_extra_says_how_to_install_it() -> None:
    program = "import sys; sys.modules['mcp'] = None; from pqcore.cli import main; sys.exit(main(['mcp']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'pqcore[mcp]'" in done.stderr


def test_mcp_command_ends_with_its_input() -> None:
    done = run("mcp", dsn="postgresql://nowhere")  # the server's stdin is closed
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mcp_command_ends_when_interrupted() -> None:
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    greeting = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
    with subprocess.Popen(
        [sys.executable, "-m", "pqcore", "mcp"],
        env=environment("postgresql://nowhere"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(greeting) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["result"]["serverInfo"]["name"] == "pqcore"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == -signal.SIGINT
