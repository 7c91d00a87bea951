"""The benchmarks: they measure installed backends, judge by name, and notice a lost job. No test asserts a time."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pqcore import hookimpl
from pqcore.backend import BackendSpec
from pqcore.benchmarks import (
    actions,
    admission_calls,
    admission_workloads,
    backends,
    bounds,
    colours,
    command,
    compare,
    concurrent_builds,
    concurrent_calls,
    environment,
    load_generators,
    machine,
    memory_calls,
    observer,
    operations,
    pgbench,
    pgbouncer,
    presets,
    run,
    statements,
    targets,
    text_tables,
    update_docs,
    verdicts,
    worker_target,
    workloads,
)
from pqcore.benchmarks import (
    html_report as page,
)
from pqcore.benchmarks import (
    measurement as turns,
)
from pqcore.benchmarks import (
    summary as figures,
)
from pqcore.benchmarks.coroutines import run_sync
from pqcore.cli.app import app
from pqcore.errors import ConfigurationError, UnknownBackend
from pqcore.plugins import plugins
from pqcore.sql.statement import Query
from pqcore_backends.asyncpg import AsyncpgBackend
from pqcore_backends.plugin import ASYNCPG, PSYCOPG, PSYCOPG2
from pqcore_backends.psycopg import PsycopgBackend, PsycopgSession
from pqcore_backends.psycopg2 import Psycopg2Backend

pytestmark = pytest.mark.timeout(600)  # a test runs many measurements, which take longer on a busy machine
TINY = dataclasses.replace(
    presets.QUICK,
    rounds=1,
    seconds=0.03,
    cell=0.03,
    batch=150,
    worked=150,
    paired_run=200,
    backlog=400,
    queues=(1, 20),
    consumers=(1, 2),
    later=500,
    finished=500,
    horizon=600,
    window=100,
    patience=20.0,
    soak=0.5,
    crowds=(6, 12),
    keys=3,
    workers=2,
    samples=1,
    limited=20,
    limited_horizon=0.3,
    shares=0.3,
    held=300,
    large=5,
    waited=5,
)
QUICKEST = ("put", "get", "get_many")
RULES = verdicts.Rules()
NOTHING = verdicts.Rules(targets=False, floors=False)


class Quiet:
    """A terminal that keeps what a run reports."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.steps: list[str] = []

    def begin(self, title: str, steps: int) -> None:
        self.parts.append(title)

    def step(self, what: str) -> None:
        self.steps.append(what)

    def end(self, part: str, rows: list[dict[str, Any]]) -> None:
        self.parts.append(part)


def measured(dsn: str, names: Sequence[str], chosen: Sequence[str] = (), **options: Any) -> dict[str, Any]:
    """Return the report of a run over backends with these names."""
    made = workloads.Options(TINY, **options)
    found = backends.contenders(names)
    report: dict[str, Any] = run.run(run.Request(found, made, chosen, None, dsn), Quiet())
    json.dumps(report, allow_nan=False)
    return report


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe the machine only for a moment, and count the traffic of few calls: no test here depends on more."""
    monkeypatch.setattr(machine, "WAIT", 0.02)
    monkeypatch.setattr(machine, "FLUSHES", 4)
    monkeypatch.setattr(targets, "COUNTED", {1: 8, operations.MANY: 4})
    monkeypatch.setattr(worker_target, "WORKED", 60)
    monkeypatch.setattr(worker_target, "RUNS", 1)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Register a backend with the process for the length of a test."""
    plugins.backend_specs()  # installed plugins are loaded only once
    monkeypatch.setattr(plugins, "_specs", dict(plugins._specs))
    registered: list[object] = []

    class Brings:
        def __init__(self, spec: BackendSpec) -> None:
            self._spec = spec

        @hookimpl
        def pqcore_register_backends(self, register: Callable[[BackendSpec], None]) -> None:
            register(self._spec)

    def add(
        name: str, like: BackendSpec, kind: type, targets: Mapping[str, object] | None = None, **changes: Any
    ) -> None:
        load = f"{__name__}:{kind.__name__}"
        if targets is not None:
            module, _, loop = like.bare_loop.partition(":")
            own = type(loop, (getattr(importlib.import_module(module), loop),), {"targets": targets})
            monkeypatch.setitem(globals(), f"{name}_loop", own)
            changes["bare_loop"] = f"{__name__}:{name}_loop"
        plugin = Brings(dataclasses.replace(like, name=name, load=load, connections=(), pools=(), **changes))
        plugins.register(plugin)
        registered.append(plugin)

    yield add
    for plugin in registered:
        plugins.manager.unregister(plugin)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, pqcore_server: str) -> Callable[..., Result]:
    """Run the command with tiny sizes, on the tests' server."""
    for name in presets.SCALES:
        monkeypatch.setitem(presets.SCALES, name, TINY)

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["bench", "--dsn", pqcore_server, *arguments])

    return command


# What is measured


@functools.cache
def documented() -> dict[str, str]:
    """The keys of a report that the documentation names, and their types."""
    text = (Path(__file__).parent.parent / "docs/reference/benchmark-json.md").read_text("utf-8")
    lines = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.MULTILINE)
    named, summary = [line for line in lines if line[0] not in SUMMARY], [line for line in lines if line[0] in SUMMARY]
    assert [key for key, _ in summary] == SUMMARY
    own = {"summary": summary, "figure": [*summary, ("values[]", "number")]}
    own["metric"] = [*own["figure"], ("unit", "string"), ("better", "string")]
    known: dict[str, str] = {}
    for key, kind in named:
        name = kind.partition(",")[0].strip()
        inner = own.get(name)
        known |= {f"{key}.{each}": of for each, of in inner} if inner else {key: kind}
    return known


SUMMARY = ["median", "least", "most", "q1", "q3", "low", "high", "rounds"]
ANY_NAME = ("environment.drivers", "environment.server.settings", "workloads[].metrics", "workloads[].curve")
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "number or null": (int, float, type(None)),
    "string or null": (str, type(None)),
    "any": object,
}


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all scalars of a report, as the documentation writes them; check their documented types."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = "*" if path in (*ANY_NAME, "workloads[].notes") else key
            yield from paths(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{path}[]")
    else:
        kind = documented()[path].partition(",")[0].strip()
        assert isinstance(value, TYPES[kind]), f"{path} is {value!r}, and is documented as {kind}"
        yield path


def check_structure(report: dict[str, Any], labels: set[str]) -> None:
    """What any report holds."""
    assert report["format"] == run.FORMAT
    assert {row["label"] for row in report["backends"]} == labels
    about = report["environment"]
    assert {"pqcore", "python", "platform", "cpus", "commit", "drivers"} <= about.keys()
    settings = about["server"]["settings"]
    wanted = {"fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_connections", "wal_level"}
    assert wanted <= settings.keys()
    assert about["server"]["version"]
    assert len(report["doubts"]) >= sum(settings[name] == "off" for name in environment.DURABLE)
    assert report["losses"] == []
    found = set(paths(report))
    assert found <= documented().keys(), "each key is documented"
    for row in report["targets"]:
        assert "error" not in row, row
        assert row["backend"] in labels
        assert ("of_pgbench" in row) == (pgbench.find() is not None)
        assert ("bare" in row) == ("ratio" in row) == bool(row["how"])
        assert row["pqcore"]["rounds"] >= figures.FEWEST
        assert (row["lost"], row["twice"]) == (0, 0)
        assert row["cpu"]["median"] > 0
        assert {row["machine"]["quiet"], not row["machine"]["noise"]} in ({True}, {False})
        assert row["wire"].keys() == {"round_trips", "statements", "commits"}
        if "ratio" not in row:
            continue
        assert row["wire_bound"] == bounds.WIRE[row["operation"]]
        assert row["bare_wire"]["round_trips"] > 0
        ratio = row["ratio"]
        assert 0 < ratio["least"] <= ratio["q1"] <= ratio["median"] <= ratio["q3"] <= ratio["most"]
        assert ratio["low"] <= ratio["median"] <= ratio["high"]
        assert ratio["rounds"] == len(ratio["values"]) >= figures.FEWEST
    for row in report["workloads"]:
        assert "error" not in row, row
        assert row["backend"] in {*labels, pgbench.LABEL}
        assert row["metrics"]
        for figure in row["metrics"].values():
            assert 0 <= figure["least"] <= figure["median"] <= figure["most"]
        assert row["operations"] > 0
        assert row["per_operation"].keys() == {"wal_bytes", "commits", "dead_rows"}
        assert row["per_operation"]["wal_bytes"] > 0 or row["scenario"] in ("memory", "network")
        assert (row["lost"], row["taken_twice"]) == (0, 0)


def test_bench_measures_every_scenario_over_both_faces(pqcore_server: str) -> None:
    report = measured(pqcore_server, ["psycopg"])
    check_structure(report, {"psycopg", "psycopg-async"})
    found = {(row["backend"], row["operation"]) for row in report["targets"]}
    assert found == {(label, name) for label in ("psycopg", "psycopg-async") for name in bounds.TARGETS}
    everything = text_tables.by_scenario(report["workloads"])
    assert [run.TARGETS, *everything] == list(run.scenarios())
    assert {row["variant"] for row in everything["queues"]} == {"1 queue", "20 queues"}
    assert {(row["consumers"], row["kind"]) for row in everything["scaling"]} == {
        (1, "together"),
        (2, "together"),
        (2, "processes"),
    }
    assert all(row["metrics"]["rate"]["rounds"] == TINY.rounds for row in everything["get"])
    assert everything["pickup"][0]["metrics"].keys() == {"p50", "p99"}
    for operation in concurrent_calls.CALLS:
        rows = everything[f"concurrent_{operation}"]
        assert sorted(row["consumers"] for row in rows) == sorted(concurrent_calls.CALLERS * 2)
        assert all(row["metrics"].keys() == {"rate", "p50", "p99"} for row in rows)
    [horizon] = everything["horizon"]
    assert horizon["operations"] == TINY.horizon
    assert horizon["curve"]["taken"][-1] == TINY.horizon
    beside = {(row["backend"], row["variant"]) for row in everything["other_tenant"]}
    few, many = TINY.crowds
    jobs = f"{few} and {many} jobs"
    assert beside == {
        ("psycopg", f"{jobs}, 1 key, 1 worker of 20"),
        ("psycopg-async", f"{jobs}, 1 key, 1 worker of 20"),
        ("psycopg", f"{jobs}, 1 key, 1 worker of 4"),
        ("psycopg", f"{jobs}, 1 key, 2 workers of 20"),
        ("psycopg", f"{jobs}, 3 keys, 1 worker of 20"),
        ("psycopg", f"{jobs}, 3 keys, 2 workers of 20"),
    }
    limited = {row["variant"]: row["metrics"] for row in everything["limited"] if row["backend"] == "psycopg"}
    assert any("PgBouncer" in variant for variant in limited) == (pgbouncer.find() is not None)
    bound = limited["20 ms jobs, 2 places"]
    assert bound["rate"]["median"] < bound["unlimited"]["median"]
    assert bound["of bound"]["median"] == pytest.approx(bound["rate"]["median"] / 100, rel=0.01)
    for row in everything["limited_horizon"]:
        assert row["curve"].keys() == {"seconds", "rate (/s)"}
        assert row["metrics"]["taken"]["median"] == row["operations"]
    for row in everything["shares"]:
        parts = [row["metrics"][tenant]["median"] for tenant in ("light", "middling", "heavy")]
        assert sum(parts) == pytest.approx(1, abs=0.001)
    memory = {(row["backend"], row["variant"]): row["metrics"] for row in everything["memory"]}
    assert memory.keys() == {
        *((label, "put_many of 300 from a generator") for label in ("psycopg", "psycopg-async")),
        *((label, "get_many of 300, 10,000 at a time") for label in ("psycopg", "psycopg-async")),
        *((label, "a worker, 5 jobs of 100 KB") for label in ("psycopg", "psycopg-async")),
        ("psycopg-async", "5 queues waited on"),
    }
    for metrics in memory.values():
        assert 0 <= metrics["over"]["median"] < metrics["peak"]["median"] < 1_000
    [soak] = everything["soak"]
    assert len({len(points) for points in soak["curve"].values()}) == 1
    assert soak["curve"].keys() == {"seconds", "table (MB)", "indexes (MB)", "dead rows"}
    rare = {"backends[].error", "targets[].error", "workloads[].error", "losses[]", "doubts[]", "workloads[].notes.*"}
    assert documented().keys() - set(paths(report)) <= rare
    if int(report["environment"]["server"]["version"].partition(".")[0]) < 15:
        return  # it counts some time later
    # A get deletes a row and a lease and its acknowledgement change it twice, in a commit for a hundred.
    [get, many, lease] = (
        next(row["per_operation"] for row in everything[name] if row["backend"] == "psycopg")
        for name in ("get", "get_many", "lease_ack")
    )
    assert round(get["dead_rows"]) == round(many["dead_rows"]) == 1
    assert round(lease["dead_rows"]) == 2
    assert many["commits"] < 0.5 < get["commits"]


def test_bench_simple_workloads_run_with_the_wanted_number_of_clients(pqcore_server: str) -> None:
    report = measured(pqcore_server, ["psycopg"], ["put"], together=(2,), processes=(3,))
    check_structure(report, {"psycopg", "psycopg-async"})
    found = {(row["backend"], row["variant"], row["consumers"]) for row in report["workloads"]} - {("pgbench", "", 1)}
    variants = [("", 1), ("2 threads or tasks", 2), ("3 processes", 3)]
    assert found == {(label, *variant) for label in ("psycopg", "psycopg-async") for variant in variants}


@pytest.mark.parametrize("name", ["psycopg2", "asyncpg"])
def test_bench_measures_other_backends(pqcore_server: str, name: str) -> None:
    chosen = ("targets", "put", "transactional_get", "lease_ack", "worker", "pickup", "horizon")
    report = measured(pqcore_server, [name], chosen)
    check_structure(report, {name})
    assert {row["operation"] for row in report["targets"]} == set(bounds.TARGETS)
    [bulk] = (row["how"] for row in report["targets"] if row["operation"] == "put_many")
    assert bulk.partition(", ")[2] in {"COPY", "COPY of text", "COPY by rows", "the statement", "execute_values"}


def test_bench_contenders_alternate_in_each_round(pqcore_server: str) -> None:
    heard = Quiet()
    options = workloads.Options(TINY)
    request = run.Request(backends.contenders(["psycopg"]), options, ["put_many"], 2, pqcore_server)
    run.run(request, heard)
    turns = [step.partition(": ")[2] for step in heard.steps if step.startswith("round")]
    assert turns == ["psycopg", "psycopg-async", "psycopg-async", "psycopg"]


def test_bench_leaves_no_schema_in_the_database(pqcore_server: str) -> None:
    measured(pqcore_server, ["psycopg2"], ["put"])
    [contender] = backends.contenders(["psycopg2"])
    looking = observer.Observer(contender, pqcore_server)
    try:
        assert looking.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pqcore_bench%'") == []
    finally:
        looking.close()


# Backends of others


class ForeignBackend(Psycopg2Backend):
    """A backend that the benchmarks do not know."""


class ForeignAsyncBackend(AsyncpgBackend):
    """Another."""


@pytest.mark.parametrize(("like", "kind"), [(PSYCOPG2, ForeignBackend), (ASYNCPG, ForeignAsyncBackend)])
def test_bench_compares_a_backend_without_a_bare_loop_with_pgbench(
    pqcore_server: str, register: Callable[..., None], like: BackendSpec, kind: type
) -> None:
    register("foreign", like, kind, bare_loop="")
    report = measured(pqcore_server, ["foreign"], ["targets", "get"])
    check_structure(report, {"foreign"})
    assert all("ratio" not in row for row in report["targets"])
    wanted = {row["operation"]: row["target"] for row in report["targets"]}
    assert wanted == bounds.TARGETS
    [put] = [row for row in report["targets"] if row["operation"] == "put"]
    assert verdicts.verdict({**put, "of_pgbench": put["floor"]}, RULES) == "not judged"
    low = {**put, "of_pgbench": put["floor"] * 0.99}
    assert verdicts.verdict(low, RULES) == "FALLS SHORT"
    [short] = verdicts.failures(report_of(low), RULES)
    assert short.name == "foreign, put"
    assert str(short).startswith("foreign, put FALLS SHORT: ")
    assert str(short).endswith(f" of pgbench's rate, floor {put['floor']:g}")


def test_bench_judges_a_ratio_by_the_backends_own_targets(pqcore_server: str, register: Callable[..., None]) -> None:
    register("foreign", PSYCOPG2, ForeignBackend, targets={"put": 750.0})
    report = measured(pqcore_server, ["foreign"], ["targets:put"])
    [short] = verdicts.failures(report, verdicts.Rules(floors=False))
    assert str(short).startswith("foreign, put FALLS SHORT: ")
    assert "target 750" in str(short)


@pytest.mark.parametrize("own", [{"puts": 0.8}, {"put": "fast"}, {"put": 0}, 0.8], ids=repr)
def test_targets_of_a_bare_loop_that_are_none_are_told(
    pqcore_server: str, register: Callable[..., None], own: Any
) -> None:
    register("foreign", PSYCOPG2, ForeignBackend, targets=own)
    report = measured(pqcore_server, ["foreign"], ["targets:put"])
    [failure] = verdicts.failures(report, RULES)
    assert f"the targets of its bare loop are {own!r}; give numbers above 0 for put, get, " in str(failure)


@pytest.mark.parametrize("where", ["pqcore.benchmarks.nowhere:Loop", "pqcore.benchmarks.baseline:Nothing"])
def test_bench_reports_a_bare_loop_that_cannot_be_imported(
    pqcore_server: str, register: Callable[..., None], where: str
) -> None:
    register("foreign", PSYCOPG2, ForeignBackend, bare_loop=where)
    report = measured(pqcore_server, ["foreign"], ["targets:put"])
    [failure] = verdicts.failures(report, RULES)
    assert f"names '{where}' as its bare loop, which cannot be imported" in str(failure)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> BackendSpec:
    """Return the declaration of the example backend."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples" / "pqcore-pg8000"))
    spec: BackendSpec = importlib.import_module("pqcore_pg8000.plugin").SPEC
    return spec


class ExampleBackend:
    """The backend of the example, with sessions that sleep before every statement."""

    seconds = 0.0

    def __new__(cls, *, prepared: bool) -> Any:
        own = importlib.import_module("pqcore_pg8000.backend")

        class Session(own.Pg8000Session):  # type: ignore[misc,name-defined]
            @contextmanager
            def _talking(self) -> Iterator[Any]:
                time.sleep(cls.seconds)
                with super()._talking() as connection:
                    yield connection

        class Backend(own.Pg8000Backend):  # type: ignore[misc,name-defined]
            def wrap(self, connection: Any) -> Any:
                return Session(connection, prepared=self._prepared)

        return Backend(prepared=prepared)


class SlowedBackend(ExampleBackend):
    """Sleeps longer than the noise of a busy machine lasts."""

    seconds = 0.02


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use few calls to warm up, and enough turns that one disturbed turn does not matter."""
    monkeypatch.setitem(globals(), "TINY", dataclasses.replace(TINY, cell=0.9, paired_run=60))
    monkeypatch.setattr(targets, "WARM", 3)
    monkeypatch.setattr(targets, "AHEAD", 1)
    monkeypatch.setattr(targets, "CLOSE", 1)
    monkeypatch.setattr(worker_target, "WORKER_TARGET", 0.5)


def test_bench_fails_a_slowed_copy_of_the_example_at_every_operation(
    pqcore_server: str, register: Callable[..., None], example: BackendSpec, sure: None
) -> None:
    # On a busy machine, a worker waits for its threads in each turn; a bare loop has no threads.
    register("honest", example, ExampleBackend, targets={**dict.fromkeys(bounds.TARGETS, 0.2), "worker": 0.05})
    register("slowed", example, SlowedBackend, targets=dict.fromkeys(bounds.TARGETS, 0.8))
    report = measured(pqcore_server, ["honest", "slowed"], ["targets"])
    check_structure(report, {"honest", "slowed"})
    rules = verdicts.Rules(floors=False)  # targets far from both figures, because the machine may be busy
    found = {(row["backend"], row["operation"]): verdicts._of_wall(row, rules)[0] for row in report["targets"]}
    short = {name for name, said in found.items() if said == "FALLS SHORT"}
    assert short == {("slowed", name) for name in bounds.TARGETS}
    assert all(found["honest", name] in ("pass", "undecided") for name in bounds.TARGETS)


@pytest.mark.skipif(pgbench.find() is None, reason="there is no pgbench")
def test_bench_fails_a_slowed_copy_without_a_bare_loop_at_every_floor(
    pqcore_server: str, register: Callable[..., None], example: BackendSpec, sure: None
) -> None:
    register("slowed", example, SlowedBackend, bare_loop="")
    report = measured(pqcore_server, ["slowed"], ["targets"])
    said = [(failure.name, str(failure)) for failure in verdicts.failures(report, RULES)]
    assert [name for name, _ in said] == [f"slowed, {name}" for name in bounds.TARGETS]
    assert all("of pgbench's rate" in text for _, text in said)


class SluggishSession(PsycopgSession):
    """Sleeps before every statement, for longer than the noise of a busy machine."""

    def execute(self, query: Query, parameters: Sequence[object]) -> Any:
        time.sleep(0.02)
        return super().execute(query, parameters)


class SluggishBackend(PsycopgBackend):
    """Over sluggish sessions."""

    def wrap(self, connection: Any) -> SluggishSession:
        return SluggishSession(connection, prepared=self._prepares)


def test_bench_names_a_slow_backend(
    invoke: Callable[..., Result], register: Callable[..., None], tmp_path: Path
) -> None:
    register("sluggish", PSYCOPG, SluggishBackend)
    file = tmp_path / "sluggish.json"
    arguments = ["--backend", "sluggish", "--scenario", "targets:get", "--json", str(file)]
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "sluggish, get FALLS SHORT" in result.output
    assert result.output.splitlines()[-1] == "Error: 1 failed: sluggish, get"
    [row] = json.loads(file.read_text())["targets"]
    assert verdicts.verdict(row, RULES) == "FALLS SHORT"
    result = invoke(*arguments, "--no-targets")
    assert result.exit_code == 0, result.output
    assert "FALLS SHORT" not in result.output


class TalkativeSession(PsycopgSession):
    """Makes one additional round trip per statement."""

    def execute(self, query: Query, parameters: Sequence[object]) -> Any:
        if query.rows:
            self._plain.execute(b"SELECT 1")
        return super().execute(query, parameters)


class TalkativeBackend(PsycopgBackend):
    """Over such sessions."""

    def wrap(self, connection: Any) -> TalkativeSession:
        return TalkativeSession(connection, prepared=self._prepares)


def test_bench_fails_a_backend_with_one_round_trip_more_at_every_operation(
    pqcore_server: str, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of many calls, because some have more traffic on a busy machine.
    monkeypatch.setattr(targets, "COUNTED", {1: 30, operations.MANY: 20})
    monkeypatch.setattr(worker_target, "WORKED", 400)
    monkeypatch.setattr(worker_target, "RUNS", 5)
    register("talkative", PSYCOPG, TalkativeBackend)

    def short(row: Any) -> list[str]:
        return [text for said, text in verdicts._of_wire(row) if said == "FALLS SHORT"]

    report = measured(pqcore_server, ["talkative", "psycopg"], ["targets"])
    rules = verdicts.Rules(floors=False)
    passed, round_trips = set(), {}
    for row in report["targets"]:
        round_trips[row["backend"], row["operation"]] = row["wire"]["round_trips"]
        if row["backend"].startswith("talkative"):
            assert short(row), row
            assert verdicts.verdict(row, rules) == "FALLS SHORT"
        elif not short(row):
            passed.add((row["backend"], row["operation"]))
    # On a busy machine, the jobs of a worker end in smaller groups, which takes more statements.
    assert passed >= {
        (each, name) for each in ("psycopg", "psycopg-async") for name in bounds.TARGETS if name != "worker"
    }
    assert round_trips["talkative", "worker"] > round_trips["psycopg", "worker"]


def test_bench_exit_code_says_that_a_target_is_undecided(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_of_wall", lambda row, rules: ("undecided", "a ratio"))
    monkeypatch.setattr(verdicts, "_of_cpu", lambda row: [])
    arguments = ["--backend", "psycopg2", "--scenario", "targets:put"]
    result = invoke(*arguments)
    assert "psycopg2, put is undecided: a ratio; measure again" in result.output
    assert (result.exit_code, result.output.splitlines()[-1]) == (3, "Error: 1 of 1 targets undecided, none missed")
    assert invoke(*arguments, "--no-targets").exit_code == 0
    assert invoke(*arguments, "--quick").exit_code == 0, "whose turns are too few"


BUSY = {"noise": "50% of the processors' time goes to other programs", "quiet": False}


def test_bench_judges_wall_time_by_half_of_the_target_on_a_busy_machine() -> None:
    busy = {**target(0.7), "machine": BUSY}
    assert verdicts.verdict({**busy, "machine": {"noise": "", "quiet": True}}, RULES) == "FALLS SHORT"
    assert verdicts.verdict(busy, RULES) == "pass"
    assert verdicts.verdict({**target(0.4), "machine": BUSY}, RULES) == "FALLS SHORT"
    assert verdicts.verdict(busy, verdicts.Rules(fail_under=0.95)) == "undecided", "the ratio itself was asked for"


@pytest.mark.parametrize("noise", ["", "other programs"])
def test_bench_verdict_counts_round_trips_and_cpu_time_whatever_the_machine(noise: str) -> None:
    row = {**target(0.95), "machine": {"noise": noise}, "wire_bound": 0.0, "cpu_bound": 2.0}
    row["wire"] = row["bare_wire"] = {"round_trips": 2.0, "statements": 3.0, "commits": 1.0}
    row["cpu_ratio"] = {"median": 1.5, "low": 1.4, "high": 1.6}
    assert verdicts.verdict(row, RULES) == "pass"
    for name in row["wire"]:
        more = {**row, "wire": {**row["wire"], name: row["wire"][name] + 1}}
        assert verdicts.verdict(more, RULES) == "FALLS SHORT"
        [failure] = verdicts.failures(report_of(more), RULES)
        assert f"{name.replace('_', ' ')} per call, at most" in str(failure)
    assert verdicts.verdict({**row, "cpu_ratio": {"median": 2.1, "low": 1.9, "high": 2.3}}, RULES) == "undecided"
    assert verdicts.verdict({**row, "cpu_ratio": {"median": 2.3, "low": 2.1, "high": 2.5}}, RULES) == "FALLS SHORT"


def test_bench_finds_a_machine_quiet_by_its_processors_a_loop_and_its_commits() -> None:
    quiet = machine.Probe(idle=0.98, steal=0.0, loop=1.05, flush=1.2, flush_ms=0.5)
    assert quiet.noise() == ""
    assert machine.Probe(None, None, 1.05).noise() == "", "where the system tells nothing of its processors"
    for change, noise in (
        ({"idle": 0.5}, "50% of the processors' time goes to other programs"),
        ({"steal": 0.2}, "20% of the processors' time is stolen by other machines"),
        ({"loop": 1.5}, "the same loop takes 1.50 times as long now and then"),
        ({"flush": 3.0}, "a commit takes 3.0 times as long now and then"),
    ):
        found = dataclasses.replace(quiet, **change)
        assert found.noise() == noise
        assert machine.worse(quiet, found) is machine.worse(found, quiet) is found


def test_bench_reads_the_shares_of_idle_and_stolen_time() -> None:
    ticks = iter([[10, 0, 10, 100, 0, 0, 0, 0, 0, 0], [20, 0, 20, 170, 0, 0, 0, 10, 5, 0]])
    assert machine._shares(lambda: next(ticks), 0) == (0.7, 0.1)
    assert machine._shares(list, 0) == (None, None)


def test_bench_network_prints_round_trips_over_a_delay(pqcore_server: str) -> None:
    report = measured(pqcore_server, ["psycopg2", "psycopg"], ["network"])
    found = {(row["backend"], row["variant"]): row["metrics"] for row in report["workloads"] if "error" not in row}
    assert {backend for backend, _ in found} == {"psycopg2", "psycopg", "psycopg-async"}
    for (_, variant), metrics in found.items():
        round_trip = float(variant.rpartition(", ")[2].removesuffix(" ms"))
        for side in ("", "bare_"):
            assert metrics[f"{side}p50"]["median"] >= metrics[f"{side}round_trips"]["median"] * round_trip
    trips = {backend: found[backend, "transactional_get, 1 ms"]["round_trips"]["median"] for backend, _ in found}
    assert trips == {"psycopg2": 3, "psycopg": 2, "psycopg-async": 2}


def test_bench_quick_run_judges_no_ratio_by_default() -> None:
    quick = verdicts.Rules.chosen("quick", None, None)
    assert verdicts.verdict(target(0.1), quick) == "not judged"
    assert verdicts.verdict({**target(0.1), "of_pgbench": 0.1}, quick) == "FALLS SHORT"
    for rules in (verdicts.Rules.chosen("quick", True, None), verdicts.Rules.chosen("quick", None, 0.8)):
        assert verdicts.verdict(target(0.1), rules) == "FALLS SHORT"
    off = verdicts.Rules.chosen("default", False, 0.8)
    assert verdicts.verdict({**target(0.1), "of_pgbench": 0.1}, off) == "not judged"
    assert verdicts.Rules.chosen("default", None, None) == RULES


class GreedySession(PsycopgSession):
    """Loses the last job of a batch, and returns another job twice."""

    def execute(self, query: Query, parameters: Sequence[object]) -> Any:
        rows = super().execute(query, parameters)
        return [*rows[:-1], rows[0]] if query.name.startswith("delete_100") and len(rows) > 1 else rows


class GreedyBackend(PsycopgBackend):
    """Over greedy sessions."""

    def wrap(self, connection: Any) -> GreedySession:
        return GreedySession(connection, prepared=self._prepares)


def test_bench_run_fails_when_jobs_are_lost_or_repeated(
    invoke: Callable[..., Result], register: Callable[..., None], tmp_path: Path
) -> None:
    register("greedy", PSYCOPG, GreedyBackend)
    file = tmp_path / "greedy.json"
    chosen = ["--scenario", "get_many", "--scenario", "targets:get_many"]
    result = invoke("--backend", "greedy", *chosen, "--no-targets", "--json", str(file))
    assert result.exit_code == 1
    report = json.loads(file.read_text())
    [row] = [row for row in report["workloads"] if row["backend"] == "greedy"]
    assert row["lost"] == row["taken_twice"] > 0
    [target] = report["targets"]
    assert target["twice"] > 0
    found = [str(failure) for failure in verdicts.failures(report, NOTHING)]
    assert any(text.startswith("LOST: greedy, get_many: ") and text.endswith("jobs lost") for text in found)
    assert any(text.endswith("taken twice") for text in found)
    assert "LOST: greedy, get_many" in result.output


def test_bench_fails_when_a_limit_is_not_kept(pqcore_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_workloads, "limits_of", lambda places, keys: lambda seconds, mark: {})
    report = measured(pqcore_server, ["psycopg2"], ["limited"])
    errors = {row["variant"]: row.get("error", "") for row in report["workloads"]}
    assert errors["20 ms jobs, 2 places"] == "LimitNotKept: 10 jobs ran together, though 2 may"
    assert not errors[f"{TINY.limited} no-op jobs, one group"], "which are in a group, and under no limit"


def test_bench_reports_jobs_under_a_limit_that_do_not_end(pqcore_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_workloads, "PATIENCE", 0.3)
    monkeypatch.setattr(admission_workloads, "HELD_SHORTLY", 1.0)
    report = measured(pqcore_server, ["psycopg2"], ["limited"])
    errors = [row.get("error", "") for row in report["workloads"] if row["variant"].startswith("1000 ms jobs")]
    assert errors
    assert all(" jobs ended within 0 s" in error for error in errors)


def test_bench_other_tenant_counts_from_a_free_slot() -> None:
    load = admission_calls.Load(slots=1)
    load.begin(1, "")
    load.watch()
    assert load.freed == math.inf
    load.end()
    freed = load.freed
    assert freed <= load_generators.clock()
    load.begin(2, "")
    load.end()
    assert (load.freed, load.most, load.taken) == (freed, 1, [1, 2])
    load.watch()
    assert freed <= load.freed < math.inf


def test_bench_shares_are_parts_of_the_jobs_that_began_in_time() -> None:
    load = admission_calls.Load(times=[0.0, 1.0, 2.0, 9.0], marks=["a", "b", "a", "b"])
    assert admission_calls.parts_of(load, ["a", "b"], 3.0) == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}


def test_bench_without_pgbouncer_measures_no_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgbouncer, "find", lambda: None)
    variants = admission_workloads.Limited().variants(workloads.Options(TINY))
    assert not any("PgBouncer" in variant.label for variant in variants)
    with pytest.raises(ConfigurationError, match="PgBouncer cannot be put before postgresql://me@here/it; install it"):
        pgbouncer.pooled("postgresql://me@here/it").__enter__()


def test_bench_counts_losses_by_id() -> None:
    def losses(filled: Sequence[int], put: list[int], taken: list[int], left: Sequence[int]) -> tuple[int, int]:
        found: tuple[int, int] = turns.losses(filled, [load_generators.ClientReport(put=put, taken=taken)], left)
        return found

    assert losses([1, 2], [3], [1, 3], [2]) == (0, 0)
    assert losses([1, 2], [3], [1], [2]) == (1, 0)
    assert losses([1, 2], [], [1, 1], []) == (1, 1)
    assert losses([1, 2], [], [1, 2], [2]) == (0, 1), "taken, and waiting still"


class RefusingSession(PsycopgSession):
    """Does not lease."""

    def execute(self, query: Query, parameters: Sequence[object]) -> Any:
        if query.name.startswith("lease"):
            msg = "<b>no leases & none</b>"
            raise RuntimeError(msg)
        return super().execute(query, parameters)


class RefusingBackend(PsycopgBackend):
    """Over such sessions."""

    def wrap(self, connection: Any) -> RefusingSession:
        return RefusingSession(connection, prepared=self._prepares)


def test_bench_reports_failures_and_measures_the_rest(pqcore_server: str, register: Callable[..., None]) -> None:
    register("refusing", PSYCOPG, RefusingBackend)
    report = measured(pqcore_server, ["refusing"], ["targets:lease_ack", "lease_ack", "put"])
    [target] = report["targets"]
    assert verdicts.verdict(target, NOTHING) == "failed"
    found = {row["scenario"]: row for row in report["workloads"] if row["backend"] == "refusing"}
    assert "metrics" in found["put"]
    assert "metrics" not in found["lease_ack"]
    failed = verdicts.failures(report, NOTHING)
    assert [failure.name for failure in failed] == ["refusing, lease_ack", "refusing, lease_ack"]
    assert all("no leases" in str(failure) for failure in failed)
    made = page.html_page(report, RULES)
    assert "<b>no leases" not in made
    assert "&lt;b&gt;no leases" in made


class BarredBackend(PsycopgBackend):
    """Cannot connect."""

    def connect(self, dsn: str) -> Any:
        msg = "no way <in>"
        raise RuntimeError(msg)


class PoorSession(PsycopgSession):
    """Cannot create a table."""

    def execute(self, query: Query, parameters: Sequence[object]) -> Any:
        if "CREATE TABLE" in query.sql:
            msg = "no room"
            raise RuntimeError(msg)
        return super().execute(query, parameters)


class PoorBackend(PsycopgBackend):
    """Over such sessions."""

    def wrap(self, connection: Any) -> PoorSession:
        return PoorSession(connection, prepared=self._prepares)


class BrokenBackend:
    """Cannot even be made."""

    def __init__(self, *, prepared: bool) -> None:
        msg = "no backend at all"
        raise RuntimeError(msg)


def test_bench_continues_when_a_backend_cannot_start(
    invoke: Callable[..., Result], register: Callable[..., None], tmp_path: Path
) -> None:
    kinds = {"aaa-poor": PoorBackend, "barred": BarredBackend, "broken": BrokenBackend}
    for name, kind in kinds.items():
        register(name, PSYCOPG, kind)
    json_file, html = tmp_path / "report.json", tmp_path / "report.html"
    names = [*kinds, "psycopg2"]
    arguments = [part for name in names for part in ("--backend", name)]
    arguments += ["--scenario", "targets:put", "--scenario", "put_many", "--no-targets"]
    result = invoke(*arguments, "--json", str(json_file), "--html", str(html))
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "Error: 3 failed: aaa-poor; barred; broken"
    report = json.loads(json_file.read_text())
    reasons = {row["label"]: row.get("error", "") for row in report["backends"]}
    for name, reason in (("aaa-poor", "no room"), ("barred", "no way"), ("broken", "all")):
        assert reason in reasons[name]
        assert reason in next(line for line in result.output.splitlines() if name in line and "failed: " in line)
    assert reasons["psycopg2"] == ""
    assert set(paths(report)) <= documented().keys()
    measured_ones = {row["backend"] for row in report["targets"] + report["workloads"]}
    assert measured_ones == {"psycopg2"}
    assert all("error" not in row for row in report["targets"] + report["workloads"])
    assert "no way &lt;in&gt;" in html.read_text()
    alone = invoke("--backend", "barred", "--scenario", "put")
    assert alone.exit_code == 2
    assert "no backend can be measured: barred: RuntimeError: no way" in alone.output


# Verdicts


def target(ratio: float, wanted: float = 0.9, operation: str = "put", backend: str = "acme") -> dict[str, Any]:
    """Return a row of a report."""
    figure = figures.Figure.of([ratio * 0.99, ratio, ratio * 1.01]).as_json()
    rates = {"pqcore": figures.Figure.of([1.0]).as_json(), "bare": figures.Figure.of([1.0]).as_json()}
    return {
        "backend": backend,
        "operation": operation,
        "title": operation,
        "target": wanted,
        "floor": 0.2,
        "ratio": figure,
        "how": "a loop",
        "lost": 0,
        "twice": 0,
        **rates,
    }


def report_of(*rows: dict[str, Any], workloads: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return a report with these rows."""
    server = {"origin": "given", "version": "18", "settings": dict(environment.DURABLE), "file_system": None}
    about = {"pqcore": "0", "commit": None, "python": "3", "platform": "x", "processor": "x", "cpus": 1, "load": [0]}
    return {
        "format": run.FORMAT,
        "scale": "quick",
        "started": "",
        "environment": {**about, "drivers": {}, "server": server},
        "doubts": [],
        "backends": [],
        "targets": list(rows),
        "workloads": list(workloads),
        "losses": [],
        "seconds": 1.0,
    }


def test_bench_verdict_depends_on_the_interval_and_the_backends_target() -> None:
    assert verdicts.verdict(target(0.9), RULES) == "pass"
    assert verdicts.verdict(target(0.899), RULES) == "undecided", "the interval reaches to 0.908"
    assert verdicts.verdict(target(0.89), RULES) == "FALLS SHORT"
    assert verdicts.verdict(target(0.7, wanted=0.6), RULES) == "pass"
    assert verdicts.verdict(target(0.1), NOTHING) == "not judged"
    assert verdicts.verdict({**target(0.95), "of_pgbench": 0.19}, RULES) == "FALLS SHORT", "whatever its bare loop says"
    report = report_of(target(0.95), target(0.899), target(0.84, operation="get", backend="slow"))
    [failure] = verdicts.failures(report, RULES)
    assert failure.name == "slow, get"
    assert str(failure) == "slow, get FALLS SHORT: 0.840 of a bare loop (a loop), target 0.9"
    [unclear] = verdicts.undecided(report, RULES)
    assert unclear.startswith("acme, put is undecided: 0.899 of a bare loop")
    assert verdicts.failures(report, NOTHING) == verdicts.undecided(report, NOTHING) == []


def test_bench_fail_under_replaces_targets_except_of_workers() -> None:
    assert verdicts.verdict(target(0.7), verdicts.Rules(fail_under=0.6)) == "pass"
    assert verdicts.verdict(target(0.92), verdicts.Rules(fail_under=0.95)) == "FALLS SHORT"
    worker = target(0.55, wanted=0.5, operation="worker")
    assert verdicts.verdict(worker, verdicts.Rules(fail_under=0.95)) == "pass"


def test_bench_doubts_a_server_that_is_not_durable() -> None:
    about = report_of()["environment"]
    assert environment.doubts(about) == []
    for name in environment.DURABLE:
        about["server"]["settings"] = {**environment.DURABLE, name: "off"}
        [doubt] = environment.doubts(about)
        assert doubt.startswith(f"{name} is off")
    about["server"]["settings"] = {**environment.DURABLE, "synchronous_commit": "remote_write"}
    assert environment.doubts(about) == []
    about["server"]["file_system"] = "tmpfs"
    [doubt] = environment.doubts(about)
    assert "memory" in doubt


def test_bench_terminal_and_page_show_the_doubts(invoke: Callable[..., Result], tmp_path: Path) -> None:
    file, html = tmp_path / "new" / "report.json", tmp_path / "new" / "report.html"
    arguments = ["--backend", "psycopg2", "--scenario", "put_many", "--json", str(file), "--html", str(html)]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert ("NOT DURABLE" in result.output) == bool(report["doubts"])
    assert all(doubt in html.read_text() for doubt in report["doubts"])


def test_bench_fills_the_marks_of_a_document(invoke: Callable[..., Result], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marks = "before\n<!-- measured: {} -->\nstale figures\n<!-- /measured -->\nafter\n"
    page.write_text("".join(map(marks.format, ("put_many", "horizon chart", "peers"))))
    result = invoke("--backend", "psycopg2", "--scenario", "put_many", "--scenario", "horizon", "--markdown", str(page))
    assert result.exit_code == 0, result.output
    bulk, chart, peers, rest = page.read_text().split("after\n")
    assert rest == ""
    assert "| psycopg2 |" in bulk
    assert "stale figures" not in bulk + chart
    assert chart.count("\n  line [") == 1
    assert peers == marks.format("peers").removesuffix("after\n")


def test_bench_fills_the_marks_of_all_documents_in_a_folder(tmp_path: Path) -> None:
    marks = "<!-- measured: {} -->\nstale figures\n<!-- /measured -->\n"
    pages = [tmp_path / "page.md", tmp_path / "below" / "other.md"]
    pages[1].parent.mkdir()
    pages[0].write_text(marks.format("get"))
    pages[1].write_text(marks.format("put") + marks.format("peers"))
    update_docs.fill(tmp_path, {"get": "taken", "put": "sent"})
    assert pages[0].read_text() == "<!-- measured: get -->\n\ntaken\n\n<!-- /measured -->\n"
    assert pages[1].read_text() == "<!-- measured: put -->\n\nsent\n\n<!-- /measured -->\n" + marks.format("peers")


def test_bench_fills_every_mark_of_the_performance_pages() -> None:
    docs = Path(__file__).parent.parent / "docs"
    text = "".join(path.read_text("utf-8") for path in docs.glob("**/*.md"))
    places = re.findall(r"<!-- measured: ([\w ]+) -->\n(.*?)<!-- /measured -->", text, re.DOTALL)
    known = {"environment", "targets", "peers", "limited peers", "concurrent peers", *run.scenarios()}
    names = [name for name, _ in places]
    assert {"environment", "targets", "peers"} < set(names)
    assert len(names) == len(set(names)), "a figure stands in one place"
    for name, block in places:
        assert name.removesuffix(" chart") in known
        assert block.strip(), name


def test_bench_figures_show_the_spread_of_rounds() -> None:
    one = figures.Figure.of([5.0])
    assert (one.median, one.least, one.most, one.low, one.high) == (5, 5, 5, 5, 5)
    few = figures.Figure.of([3.0, 1.0, 2.0])
    assert (few.low, few.median, few.high, few.values) == (1, 2, 3, (3, 1, 2))
    many = figures.Figure.of([float(number) for number in range(101)])
    assert (many.q1, many.median, many.q3) == (25, 50, 75)
    assert 35 < many.low < 45 < 55 < many.high < 65


@pytest.mark.parametrize(("number", "rank"), [(5, 1), (6, 1), (8, 1), (9, 2), (20, 6), (100, 40), (1000, 470)])
def test_bench_median_interval_follows_the_binomial_distribution(number: int, rank: int) -> None:
    figure = figures.Figure.of([float(value) for value in range(1, number + 1)])
    assert (figure.low, figure.high) == pytest.approx((rank, number + 1 - rank), abs=number // 500)


def test_bench_ratio_of_medians_has_an_interval() -> None:
    def figure(median: float, low: float, high: float) -> dict[str, float]:
        return {"median": median, "low": low, "high": high}

    ratio = figures.Ratio.of(figure(90, 81, 100), figure(100, 90, 110))
    assert ratio.value == pytest.approx(0.9)
    assert 81 / 110 < ratio.low < 0.81 < 1 < ratio.high < 100 / 90
    sure = figures.Ratio.of(figure(90, 90, 90), figure(100, 100, 100))
    assert (sure.low, sure.high) == pytest.approx((0.9, 0.9))
    assert figures.Ratio.of(figure(0, 0, 0), figure(0, 0, 0)).high == math.inf


def test_bench_percentiles_are_measured_values() -> None:
    assert figures.percentile([3.0, 1.0, 2.0], 0.5) == 2
    assert figures.percentile([3.0, 1.0, 2.0], 0.99) == 3


def test_bench_tables_omit_columns_without_room() -> None:
    grid = text_tables.targets([target(0.5)], RULES)
    assert grid.within(300) == dataclasses.replace(grid, spare=())
    narrow = grid.within(20)
    assert set(grid.columns) - set(narrow.columns) == set(grid.spare)
    assert [len(row) for row in narrow.rows] == [len(narrow.columns)]
    assert narrow.bad == {0}


# Comparing


def workload_row(
    values: Sequence[float], better: str = "higher", backend: str = "acme", beside: float | None = 1000.0, **more: Any
) -> dict[str, Any]:
    """Return a row of a report; ``beside`` is pgbench's rate in each round."""
    metrics = {"rate": {"unit": "/s", "better": better, **figures.Figure.of(values).as_json()}}
    share = {} if beside is None else {"of_pgbench": figures.Figure.of([value / beside for value in values]).as_json()}
    return {
        "scenario": "put",
        "title": "put one",
        "backend": backend,
        "variant": "",
        "consumers": 1,
        "kind": "one",
        "metrics": metrics,
        **share,
        "per_operation": {"wal_bytes": 1.0, "commits": 1.0, "dead_rows": 0.0},
        "operations": 1,
        "lost": 0,
        "taken_twice": 0,
        **more,
    }


STEADY = [100.0, 101.0, 102.0, 103.0, 104.0, 105.0]


def times(factor: float, values: Sequence[float] = STEADY) -> list[float]:
    """Return the values, multiplied by a factor."""
    return [factor * value for value in values]


def change(old: dict[str, Any], new: dict[str, Any]) -> Any:
    """Return the verdict on two rows."""
    [only] = compare.compare(report_of(workloads=[old]), report_of(workloads=[new])).changes
    return only


def test_bench_change_must_exceed_chance() -> None:
    worse = change(workload_row(STEADY), workload_row(times(0.8)))
    assert (worse.kind, worse.verdict(0.95), round(worse.ratio, 3)) == ("worse", "FALLS SHORT", 0.8)
    assert worse.verdict(0.7) == "pass"
    assert change(workload_row(STEADY), workload_row(times(1.2))).kind == "better"
    noisy = change(workload_row(STEADY), workload_row([50.0, 60.0, 80.0, 90.0, 110.0, 130.0]))
    assert (noisy.kind, noisy.verdict(0.95)) == ("the same", "undecided")
    slower = change(workload_row(STEADY, "lower", beside=None), workload_row(times(2), "lower", beside=None))
    assert (slower.kind, slower.ratio, slower.verdict(0.95)) == ("worse", pytest.approx(0.5), "not judged")


def test_bench_gives_no_verdict_from_too_few_rounds() -> None:
    few = change(workload_row(STEADY), workload_row(times(0.5)[1:]))
    assert (few.rounds, few.kind, few.verdict(0.95)) == (5, "undecided", "undecided")
    found = compare.Comparison([few])
    assert found.failures(0.95) == []
    [said] = found.undecided(0.95)
    assert said.startswith("acme, put is undecided: 5 of the 6 rounds that a 95 % interval needs;")


def test_bench_comparison_cancels_the_speed_of_the_machine() -> None:
    """A machine of half the speed also halves pgbench's rate."""
    same = change(workload_row(STEADY), workload_row(times(0.5), beside=500.0))
    assert (same.yardstick, same.ratio, same.verdict(0.95)) == ("pgbench", 1.0, "pass")
    slow = change(workload_row(STEADY), workload_row(times(0.45), beside=500.0))
    assert slow.verdict(0.95) == "FALLS SHORT"
    alone = change(workload_row(STEADY, beside=None), workload_row(times(0.5), beside=None))
    assert (alone.yardstick, alone.verdict(0.95)) == ("", "not judged")
    assert change(workload_row(STEADY), workload_row(times(0.5), beside=None)).verdict(0.95) == "not judged"


def test_bench_comparison_judges_nothing_between_different_bare_loops() -> None:
    def said(**more: Any) -> str:
        [only] = compare.compare(report_of(steady_target(1.0)), report_of(steady_target(0.5, **more))).changes
        verdict: str = only.verdict(0.95)
        return verdict

    assert (said(), said(how="a driver, COPY")) == ("FALLS SHORT", "not judged")


def test_bench_comparison_lists_new_scenarios_and_differences() -> None:
    old = report_of(target(0.9))
    new = report_of(target(0.9), workloads=[workload_row([1.0], backend="come")])
    new["environment"]["server"]["settings"]["fsync"] = "off"
    new["environment"]["cpus"] = 64
    found = compare.compare(old, new)
    assert [change.scenario for change in found.changes] == ["targets"]
    assert found.new == ["come, put"]
    assert found.broken == []
    assert found.differences == ["cpus: 1, then 64", "fsync: on, then off"]


def steady_target(ratio: float, **more: Any) -> dict[str, Any]:
    """Return a row of a report with enough turns for an interval."""
    return {**target(ratio), "ratio": figures.Figure.of(times(ratio / 102.5)).as_json(), **more}


GOOD = [steady_target(1.0)], [workload_row(STEADY)]
PGBENCH = workload_row(STEADY, backend=pgbench.LABEL, beside=None)


@pytest.mark.parametrize(
    ("targets", "workloads", "more", "last"),
    [
        (*GOOD, {}, None),
        (GOOD[0], [workload_row(times(0.8))], {}, "1 failed: acme, put"),
        ([steady_target(0.9)], GOOD[1], {}, "1 failed: acme, targets:put"),
        ([steady_target(0.97)], [workload_row(times(0.97))], {}, None),
        (GOOD[0], [workload_row(times(0.8)[:5])], {}, None),
        (GOOD[0], [*GOOD[1], {**PGBENCH, **workload_row(times(0.1), backend=pgbench.LABEL, beside=None)}], {}, None),
        (GOOD[0], [], {}, "1 failed: acme, put"),
        ([], [], {}, "2 failed: acme, put; acme, targets:put"),
        ([{"backend": "acme", "operation": "put", "error": "E: x"}], GOOD[1], {}, "1 failed: acme, targets:put"),
        (GOOD[0], [workload_row(STEADY, error="E: x")], {}, "1 failed: acme, put"),
        (GOOD[0], [workload_row(STEADY, lost=3)], {}, "1 failed: acme, put"),
        (GOOD[0], [workload_row(STEADY, taken_twice=1)], {}, "1 failed: acme, put"),
        ([steady_target(1.0, twice=1)], GOOD[1], {}, "1 failed: acme, targets:put"),
        (*GOOD, {"losses": ["acme, put: 2 jobs were put, 1 are there"]}, "1 failed: acme, put"),
        ([], [], {"backends": [{"label": "acme", "mode": "async", "error": "E: x"}]}, "1 failed: acme"),
    ],
)
def test_bench_compare_names_what_became_slower(
    invoke: Callable[..., Result],
    tmp_path: Path,
    targets: list[dict[str, Any]],
    workloads: list[dict[str, Any]],
    more: dict[str, Any],
    last: str | None,
) -> None:
    files = [str(tmp_path / name) for name in ("old.json", "new.json")]
    old, new = report_of(*GOOD[0], workloads=[*GOOD[1], PGBENCH]), {**report_of(*targets, workloads=workloads), **more}
    for file, report in zip(files, (old, new), strict=True):
        Path(file).write_text(json.dumps(report))
    result = invoke("--compare", *files, "--fail-under", "0.95")
    assert "what changed" in result.output
    if last is None:
        assert result.exit_code == 0
        assert result.output.splitlines()[-1].endswith("none failed")
    else:
        assert result.exit_code == 1
        assert result.output.splitlines()[-1] == f"Error: {last}"
    assert invoke("--compare", *files).exit_code == 0, "without a ratio nothing is judged"


ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("seconds", "last"), [(0.0, "none failed"), (0.02, "Error: 1 failed: psycopg2, put")])
def test_bench_against_compares_two_builds(tmp_path: Path, pqcore_server: str, seconds: float, last: str) -> None:
    """Compare the checkout with a copy whose puts are slower."""
    shutil.copytree(ROOT / "pqcore", tmp_path / "pqcore", ignore=shutil.ignore_patterns("__pycache__"))
    slower = f"import time\n_put = Queue.put\nQueue.put = lambda *a, **k: (time.sleep({seconds}), _put(*a, **k))[1]\n"
    if seconds:
        with (tmp_path / "pqcore" / "queue.py").open("a") as file:
            file.write(slower)
    command = [sys.executable, "-m", "pqcore", "bench", "--against", str(ROOT), "--dsn", pqcore_server]
    command += ["--backend", "psycopg2", "--scenario", "put", "--scenario", "lease_ack", "--rounds", "6"]
    done = subprocess.run(
        [*command, "--quick", "--fail-under", "0.5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    said = done.stdout + done.stderr
    assert f"before: {ROOT / 'pqcore' / '__init__.py'}" in said
    assert f"after: {tmp_path / 'pqcore' / '__init__.py'}" in said
    assert (done.returncode, said.splitlines()[-1].endswith(last)) == (1 if seconds else 0, True), said
    [contender] = backends.contenders(["psycopg2"])
    looking = observer.Observer(contender, pqcore_server)
    try:
        assert looking.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pqcore_bench%'") == []
    finally:
        looking.close()


def test_bench_against_measures_jobs_under_a_limit_where_they_are_named(invoke: Callable[..., Result]) -> None:
    arguments = ["--against", str(ROOT), "--backend", "psycopg2", "--quick", "--rounds", "1"]
    result = invoke(*arguments, "--scenario", "limited_worker")
    assert result.exit_code == 0, result.output
    assert "limited_worker" in result.output
    assert "limited_worker" not in command._operations(())


def test_bench_against_measures_concurrent_callers(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrent_builds, "TURNS", 1)
    arguments = ["--against", str(ROOT), "--backend", "psycopg", "--quick", "--rounds", "1"]
    result = invoke(*arguments, "--scenario", "concurrent:put", "--scenario", "concurrent:lease")
    assert result.exit_code == 0, result.output
    assert re.search(r"a commit of one row takes \d+\.\d\d ms", result.output)
    rows = [line.split()[:3] for line in result.output.splitlines() if "not judged" in line]
    assert rows == [
        [operation, callers, label]
        for label in ("psycopg", "psycopg-async")
        for operation in ("put", "lease")
        for callers in ("1", "8", "64")
    ]


def ratios_of(*ratios: float, callers: int = 64, p99: float = 1.0) -> concurrent_builds.Cell:
    """Return a result of puts by async callers, with rates some times as high as the other build's."""
    cell = concurrent_builds.Cell("asyncpg", "async", "put", callers)
    cell.rounds += [
        concurrent_builds.Round(100, 100 * each, each, 10, (0.001, 0.001), (0.01, 0.01 * p99)) for each in ratios
    ]
    return cell


def test_bench_concurrent_verdict_depends_on_the_interval() -> None:
    assert ratios_of(*[10.0] * 6).verdict() == "pass"
    assert ratios_of(*[9.0] * 6).verdict() == "FALLS SHORT"
    assert ratios_of(*[9.0] * 4, 11.0, 11.0).verdict() == "undecided"
    assert ratios_of(*[9.0] * 5).verdict() == "undecided", "too few rounds"
    assert ratios_of(*[2.0] * 6, callers=8).verdict() == "pass"
    assert ratios_of(*[0.97] * 6, callers=1).verdict() == "FALLS SHORT"


def test_bench_concurrent_failures_name_what_falls_short() -> None:
    slow, late = ratios_of(*[9.0] * 6), ratios_of(*[10.0] * 6, p99=1.5)
    lossy, broken = ratios_of(*[10.0] * 6), ratios_of()
    lossy.lost, broken.error = 2, "it ended"
    found = concurrent_builds.Found([slow, late, lossy, broken], ["before", "after"], [0.001])
    said = [failure.text for failure in found.failures(judged=True)]
    name = "asyncpg, concurrent put by 64"
    assert said == [
        f"{name} FALLS SHORT: 9.00 times the other build's rate (95 % interval up to 9.00), target 10",
        f"{name} FALLS SHORT: its p99 is longer than the other build's",
        f"{name} LOST: 2 jobs were lost, or came twice",
        f"{name} failed: it ended",
    ]
    assert [failure.text for failure in found.failures(judged=False)] == said[2:]
    assert concurrent_builds.grid(found, judged=True).bad == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("operation", "mode", "callers", "target"),
    [
        ("put", "async", 64, 10),
        ("put", "blocking", 64, 5),
        ("get", "async", 64, 5),
        ("lease", "blocking", 64, 3),
        ("get", "async", 8, 2),
        ("lease", "blocking", 8, 1.3),
        ("put", "blocking", 1, 0.98),
    ],
)
def test_bench_concurrent_targets_depend_on_the_callers(operation: str, mode: str, callers: int, target: float) -> None:
    assert concurrent_builds.target_of(operation, mode, callers) == target


@pytest.mark.parametrize("operation", concurrent_calls.CALLS)
def test_bench_concurrent_callers_count_lost_and_repeated_jobs(pqcore_server: str, operation: str) -> None:
    [contender] = backends.contenders(["psycopg2"])
    looking = observer.Observer(contender, pqcore_server)
    schema = turns.schema_name("counted")
    try:
        bench = turns.Bench(pqcore_server, pqcore_server, schema, looking, TINY, load_generators.ClientProcesses())
        table = bench.table(contender)
        jobs = concurrent_builds._Jobs(table, operation, 10)
        jobs.prepare()
        pq = contender.open(table.place)
        turn = run_sync(concurrent_calls.Callers(contender, pq, operation, 3).turn(0.01))
        pq.close()
        assert len(turn.jobs) == len(turn.times) > 0
        assert jobs.lost(turn.jobs) == 0
        assert jobs.lost([*turn.jobs, turn.jobs[0]]) == 1
        assert jobs.lost(turn.jobs[1:]) == 1
    finally:
        turns.dropped(looking, schema)
        looking.close()


def test_bench_against_measures_memory_where_it_is_named(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.SCALES, "quick", TINY)
    result = invoke(
        *("--against", str(ROOT), "--backend", "asyncpg", "--quick", "--rounds", "1", "--scenario", "memory")
    )
    assert result.exit_code == 0, result.output
    for what in ("put_many of 300", "get_many of 300", "a worker, 5 jobs", "5 queues"):
        assert f"memory: {what}" in result.output
    assert "memory" not in command._operations(())


def test_memory_of_a_process_is_what_it_had_at_most() -> None:
    before = memory_calls.held()
    memory_calls.forget_peak()
    text = "x" * 50_000_000
    del text
    assert 40 < memory_calls.peak() - before < 80


def test_bench_against_refuses_a_bad_build(invoke: Callable[..., Result], tmp_path: Path) -> None:
    result = invoke("--against", str(tmp_path), "--scenario", "put")
    assert result.exit_code == 2
    assert "is no Python interpreter, no virtual environment and no checkout" in result.output
    result = invoke("--against", "/bin/true", "--scenario", "put")
    assert result.exit_code == 2
    assert "the build of /bin/true cannot be measured" in result.output
    result = invoke("--against", str(ROOT), "--scenario", "soak")
    assert result.exit_code == 2
    assert "--against measures put, get" in result.output


@pytest.mark.parametrize("content", ["no JSON", "{}", "[]", '{"format": 99}'])
def test_bench_compare_refuses_a_file_that_is_no_report(
    invoke: Callable[..., Result], tmp_path: Path, content: str
) -> None:
    file = tmp_path / "report.json"
    file.write_text(content)
    result = invoke("--compare", str(file), str(file))
    assert result.exit_code == 2
    assert str(file) in result.output


# The page


class References(HTMLParser):
    """Finds the addresses that a page would load, and its text outside of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text: list[str] = []
        self._script = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._script = tag in ("script", "style")
        names = ("src", "href", "data", "action", "srcset", "poster")
        self.found += [f"{tag} {name}={value}" for name, value in attributes if name in names]
        self.found += [f"{tag}"] if tag in ("link", "iframe", "base", "object", "embed") else []

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if not self._script:
            self.text.append(data)


def test_bench_page_needs_no_network_and_has_charts(pqcore_server: str) -> None:
    chosen = ("targets:put", "get", "scaling", "horizon")
    report = measured(pqcore_server, ["psycopg2"], chosen)
    report["targets"].append(target(0.5, backend="<script>alert(1)</script>"))
    made = page.html_page(report, RULES)
    parser = References()
    parser.feed(made)
    assert parser.found == []
    assert "@import" not in made.partition("<script>")[0]
    text = " ".join(parser.text)
    for wanted in ("psycopg2", "FALLS SHORT", "scaling", "fsync", "<script>alert(1)</script>"):
        assert wanted in text
    charts = made.count("Plotly.newPlot(")
    assert charts > len(chosen), "and the curve of the horizon"
    assert "<script>alert(1)" not in made.replace(r"\u003cscript", "")


def test_bench_backend_has_one_colour_in_all_charts(pqcore_server: str) -> None:
    report = measured(pqcore_server, ["psycopg2", "asyncpg"], ("targets:put", "put_many", "scaling", "soak"))
    for name in ("targets", "workloads"):
        report[name] += [{**row, "backend": "acme"} for row in report[name] if row["backend"] == "asyncpg"]
    palette = colours.of_report(report)
    assert len(set(palette.values())) == len(palette)
    drawn = set()
    for text in re.findall(
        r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{\"", page.html_page(report, RULES), re.DOTALL
    ):
        for trace in json.loads(text):
            style = {**trace.get("marker", {}), **trace.get("line", {})}
            drawn.add((trace["name"].partition(",")[0], style["color"]))
    assert {(name, colour) for name, colour in drawn if name in palette} == set(palette.items())
    charts = "\n".join(update_docs.blocks(report, RULES).values())
    wanted = [palette[name] for name in dict.fromkeys(row["backend"] for row in report["workloads"]) if name in palette]
    assert f'"plotColorPalette": "{", ".join(wanted)}"' in charts


def test_bench_colour_depends_on_the_name_and_is_unique() -> None:
    alone = colours.colours(["acme"])["acme"]
    assert colours.colours(["psycopg", "acme"]) == {"psycopg": colours.KNOWN["psycopg"], "acme": alone}
    many = colours.colours([*colours.KNOWN, *(f"backend-{number}" for number in range(60))])
    assert len(set(many.values())) == len(many) == 65


# pgbench


def test_bench_pgbench_runs_the_statements_of_pqcore(pqcore_server: str) -> None:
    if pgbench.find() is None:
        pytest.skip("there is no pgbench")
    place = backends.Location("", "s", "t")
    made = statements.Statements(place, "numeric_dollar")
    script = pgbench.SCRIPTS["get"].text(made)
    assert script == made.get.sql.replace("$1", ":q_name") + ";\n"
    assert pgbench.SCRIPTS["transactional_get"].text(made) == f"BEGIN;\n{script}COMMIT;\n"
    assert ":data::text" in pgbench.SCRIPTS["put"].text(made)
    assert ":items::text" in pgbench.SCRIPTS["put_many"].text(made)
    lease, ack = pgbench.SCRIPTS["lease_ack"].text(made).split("\\gset\n")
    assert made.lease.sql.replace("$1", ":q_name").replace("$2", ":lease") in lease
    assert "(:ids::text::bigint[])" in ack
    report = measured(pqcore_server, ["psycopg2"], QUICKEST)
    check_structure(report, {"psycopg2"})
    for rows in text_tables.by_scenario(report["workloads"]).values():
        assert {row["backend"]: "of_pgbench" in row for row in rows} == {"pgbench": False, "psycopg2": True}


# Those who work


async def failing(client: Any, go: Any) -> Any:
    """An act that fails."""
    msg = f"number {client.index} fails"
    raise ValueError(msg)


@pytest.mark.parametrize("name", ["psycopg2", "asyncpg"])
def test_bench_reports_a_failure_of_a_load_generator(pqcore_server: str, name: str) -> None:
    [contender] = backends.contenders([name])
    place = backends.Location(observer.named(pqcore_server), "public", "nowhere")
    with pytest.raises(ValueError, match=r"number . fails"):
        load_generators.run_clients(contender, place, [load_generators.ClientRole(failing)] * 2)
    members = load_generators.ClientProcesses()
    try:
        with pytest.raises(load_generators.WorkFailed, match="TableMissing"):
            members.work(contender, place, [load_generators.ClientRole(actions.put, {"seconds": 0.01})] * 2)
    finally:
        members.close()


# The command line


def test_bench_command_runs_in_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pqcore", "bench", "--list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in (*run.scenarios(), *bounds.TARGETS, "asyncpg", "psycopg-async"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scenario", "nothing"], "unknown scenario nothing"),
        (["--backend", "nothing"], "unknown backend 'nothing'"),
        (["--dsn", "dbname=x"], "URL"),
        (["--concurrency", "many"], "give numbers"),
        (["--compare", "nowhere.json", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bench_refuses_bad_arguments(invoke: Callable[..., Result], arguments: list[str], said: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_bench_page_without_plotly_is_refused_before_measuring(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "plotly" else object())
    result = invoke("--backend", "psycopg2", "--html", str(tmp_path / "page.html"))
    assert result.exit_code == 2
    assert "pqcore[bench]" in result.output


def test_bench_refuses_an_unknown_backend() -> None:
    with pytest.raises(UnknownBackend):
        backends.contenders(["nothing"])


def test_bench_targets_of_built_in_backends_are_the_default() -> None:
    for contender in backends.contenders():
        assert (
            bounds.targets_of(contender)
            == bounds.TARGETS
            == dict.fromkeys(operations.OPERATIONS) | dict(bounds.TARGETS)
        )


def test_bench_reports_are_equal_after_a_round_trip(tmp_path: Path) -> None:
    report = report_of(target(0.9), workloads=[workload_row([1.0, 2.0])])
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    found = compare.compare(copy.deepcopy(report), compare.load(file))
    assert [change.ratio for change in found.changes] == [1.0, 1.0]
    assert not found.broken
    assert not found.differences
    assert not found.new
