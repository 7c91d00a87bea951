"""The benchmarks: that they measure what is there, judge by name, and notice a lost job.  No test asserts a time."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pqcore import hookimpl
from pqcore.backend import TARGETS, BackendSpec
from pqcore.bench import (
    acts,
    bare,
    compare,
    contenders,
    crew,
    environment,
    eyes,
    figures,
    page,
    pgbench,
    run,
    scales,
    statements,
    tables,
    targets,
    turns,
    verdicts,
    workloads,
)
from pqcore.cli.app import app
from pqcore.errors import ConfigurationError, UnknownBackend
from pqcore.plugins import plugins
from pqcore.statement import Query
from pqcore_backends.asyncpg import AsyncpgBackend
from pqcore_backends.plugin import ASYNCPG, PSYCOPG, PSYCOPG2
from pqcore_backends.psycopg import PsycopgBackend, PsycopgSession
from pqcore_backends.psycopg2 import Psycopg2Backend

TINY = dataclasses.replace(
    scales.QUICK,
    rounds=1,
    seconds=0.03,
    cell=0.03,
    batch=150,
    worked=150,
    duel=200,
    backlog=400,
    queues=(1, 20),
    consumers=(1, 2),
    later=500,
    finished=500,
    horizon=600,
    window=100,
    patience=20.0,
    soak=0.5,
)
QUICKEST = ("put", "get", "get_many")


class Quiet:
    """Hears how a run goes, and keeps it."""

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
    """The report of a run over backends of these names."""
    made = workloads.Options(TINY, **options)
    found = contenders.contenders(names)
    report: dict[str, Any] = run.run(run.Request(found, made, chosen, None, dsn), Quiet())
    json.dumps(report, allow_nan=False)
    return report


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Registers a backend with the process for the length of a test."""
    monkeypatch.setattr(plugins, "_specs", dict(plugins._specs))
    registered: list[object] = []

    class Brings:
        def __init__(self, spec: BackendSpec) -> None:
            self._spec = spec

        @hookimpl
        def pqcore_register_backends(self, register: Callable[[BackendSpec], None]) -> None:
            register(self._spec)

    def add(name: str, like: BackendSpec, kind: type, **changes: Any) -> None:
        load = f"{__name__}:{kind.__name__}"
        plugin = Brings(dataclasses.replace(like, name=name, load=load, connections=(), pools=(), **changes))
        plugins.register(plugin)
        registered.append(plugin)

    yield add
    for plugin in registered:
        plugins.manager.unregister(plugin)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, pqcore_server: str) -> Callable[..., Result]:
    """The command, with tiny sizes, on the tests' server."""
    for name in scales.SCALES:
        monkeypatch.setitem(scales.SCALES, name, TINY)

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["bench", "--dsn", pqcore_server, *arguments])

    return command


# What is measured


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
    for row in report["targets"]:
        assert "error" not in row, row
        assert row["backend"] in labels
        ratio = row["ratio"]
        assert 0 < ratio["least"] <= ratio["q1"] <= ratio["median"] <= ratio["q3"] <= ratio["most"]
        assert ratio["low"] <= ratio["median"] <= ratio["high"]
        assert ratio["rounds"] == len(ratio["values"]) >= 3
        assert (row["lost"], row["twice"]) == (0, 0)
    for row in report["workloads"]:
        assert "error" not in row, row
        assert row["backend"] in {*labels, pgbench.LABEL}
        assert row["metrics"]
        for figure in row["metrics"].values():
            assert 0 <= figure["least"] <= figure["median"] <= figure["most"]
        assert row["operations"] > 0
        assert row["per_operation"].keys() == {"wal_bytes", "commits", "dead_rows"}
        assert row["per_operation"]["wal_bytes"] > 0
        assert (row["lost"], row["taken_twice"]) == (0, 0)


def test_everything_is_measured_over_both_faces_of_a_backend(pqcore_server: str) -> None:
    report = measured(pqcore_server, ["psycopg"])
    check_structure(report, {"psycopg", "psycopg-async"})
    found = {(row["backend"], row["operation"]) for row in report["targets"]}
    assert found == {(label, name) for label in ("psycopg", "psycopg-async") for name in TARGETS}
    everything = tables.by_scenario(report["workloads"])
    assert [run.TARGETS, *everything] == list(run.scenarios())
    assert {row["variant"] for row in everything["queues"]} == {"1 queue", "20 queues"}
    assert {(row["consumers"], row["kind"]) for row in everything["scaling"]} == {
        (1, "together"),
        (2, "together"),
        (2, "processes"),
    }
    assert all(row["metrics"]["rate"]["rounds"] == TINY.rounds for row in everything["get"])
    assert everything["pickup"][0]["metrics"].keys() == {"p50", "p99"}
    [horizon] = everything["horizon"]
    assert horizon["operations"] == TINY.horizon
    assert horizon["curve"]["taken"][-1] == TINY.horizon
    [soak] = everything["soak"]
    assert len({len(points) for points in soak["curve"].values()}) == 1
    assert soak["curve"].keys() == {"seconds", "table (MB)", "indexes (MB)", "dead rows"}
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


def test_simple_workloads_are_done_by_as_many_as_wanted(pqcore_server: str) -> None:
    report = measured(pqcore_server, ["psycopg"], ["put"], together=(2,), processes=(3,))
    check_structure(report, {"psycopg", "psycopg-async"})
    found = {(row["backend"], row["variant"], row["consumers"]) for row in report["workloads"]} - {("pgbench", "", 1)}
    variants = [("", 1), ("2 threads or tasks", 2), ("3 processes", 3)]
    assert found == {(label, *variant) for label in ("psycopg", "psycopg-async") for variant in variants}


@pytest.mark.parametrize("name", ["psycopg2", "asyncpg"])
def test_other_backends_are_measured_too(pqcore_server: str, name: str) -> None:
    chosen = ("targets", "put", "transactional_get", "lease_ack", "worker", "pickup", "horizon")
    report = measured(pqcore_server, [name], chosen)
    check_structure(report, {name})
    assert {row["operation"] for row in report["targets"]} == set(TARGETS)
    [bulk] = (row["how"] for row in report["targets"] if row["operation"] == "put_many")
    assert bulk.partition(", ")[2] in {"COPY", "COPY of text", "COPY by rows", "the statement", "execute_values"}


def test_contenders_take_turns_and_none_is_always_last(pqcore_server: str) -> None:
    heard = Quiet()
    options = workloads.Options(TINY)
    request = run.Request(contenders.contenders(["psycopg"]), options, ["put_many"], 2, pqcore_server)
    run.run(request, heard)
    turns = [step.partition(": ")[2] for step in heard.steps if step.startswith("round")]
    assert turns == ["psycopg", "psycopg-async", "psycopg-async", "psycopg"]


def test_nothing_is_left_in_the_database(pqcore_server: str) -> None:
    measured(pqcore_server, ["psycopg2"], ["put"])
    [contender] = contenders.contenders(["psycopg2"])
    looking = eyes.Eyes(contender, pqcore_server)
    try:
        assert looking.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pqcore_bench%'") == []
    finally:
        looking.close()


# Backends of others


class ForeignBackend(Psycopg2Backend):
    """A backend of which the benchmarks know nothing."""


class ForeignAsyncBackend(AsyncpgBackend):
    """Another."""


@pytest.mark.parametrize(("like", "kind"), [(PSYCOPG2, ForeignBackend), (ASYNCPG, ForeignAsyncBackend)])
def test_a_backend_without_a_bare_loop_is_measured_beside_its_own_session(
    pqcore_server: str, register: Callable[..., None], like: BackendSpec, kind: type
) -> None:
    register("foreign", like, kind, targets={"put": 7.5})
    report = measured(pqcore_server, ["foreign"], ["targets", "get"])
    check_structure(report, {"foreign"})
    for row in report["targets"]:
        assert row["operation"] == "worker" or row["how"].startswith("its own session")
    wanted = {row["operation"]: row["target"] for row in report["targets"]}
    assert wanted == {**TARGETS, "put": 7.5}
    [short] = [name for name in verdicts.failures(report) if "put FALLS SHORT" in name]
    assert short.startswith("foreign, put FALLS SHORT: ")
    assert short.endswith("target 7.5")


def test_a_target_for_what_is_not_measured_is_refused(pqcore_server: str, register: Callable[..., None]) -> None:
    register("foreign", PSYCOPG2, ForeignBackend, targets={"putt": 0.9})
    with pytest.raises(ConfigurationError, match="putt"):
        measured(pqcore_server, ["foreign"], ["put"])


class SluggishSession(PsycopgSession):
    """Takes its time for every statement."""

    def execute(self, query: Query, parameters: Sequence[object]) -> Any:
        time.sleep(0.002)
        return super().execute(query, parameters)


class SluggishBackend(PsycopgBackend):
    """Over sluggish sessions."""

    def wrap(self, connection: Any) -> SluggishSession:
        return SluggishSession(connection, prepared=self._prepares)


def test_a_slow_backend_falls_short_by_name(
    invoke: Callable[..., Result], register: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register("sluggish", PSYCOPG, SluggishBackend)
    monkeypatch.setitem(bare.BARE, ("sluggish", "blocking"), bare.BARE["psycopg", "blocking"])
    file = tmp_path / "sluggish.json"
    arguments = ["--backend", "sluggish", "--scenario", "targets:get", "--json", str(file)]
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "sluggish, get FALLS SHORT" in result.output
    [row] = json.loads(file.read_text())["targets"]
    assert verdicts.verdict(row) == "FALLS SHORT"
    result = invoke(*arguments, "--no-targets")
    assert result.exit_code == 0
    assert "FALLS SHORT" not in result.output


class GreedySession(PsycopgSession):
    """Keeps the last job of many to itself, and gives another twice."""

    def execute(self, query: Query, parameters: Sequence[object]) -> Any:
        rows = super().execute(query, parameters)
        return [*rows[:-1], rows[0]] if query.name.startswith("delete_100") and len(rows) > 1 else rows


class GreedyBackend(PsycopgBackend):
    """Over greedy sessions."""

    def wrap(self, connection: Any) -> GreedySession:
        return GreedySession(connection, prepared=self._prepares)


def test_jobs_that_are_lost_or_come_twice_fail_the_run(
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
    found = verdicts.failures(report, judged=False)
    assert any(text.startswith("LOST: greedy, get_many: ") and text.endswith("jobs lost") for text in found)
    assert any(text.endswith("taken twice") for text in found)
    assert "LOST: greedy, get_many" in result.output


def test_losses_are_counted_by_id() -> None:
    def losses(filled: Sequence[int], put: list[int], taken: list[int], left: Sequence[int]) -> tuple[int, int]:
        found: tuple[int, int] = turns.losses(filled, [crew.Done(put=put, taken=taken)], left)
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


def test_what_fails_is_told_and_the_rest_is_measured(pqcore_server: str, register: Callable[..., None]) -> None:
    register("refusing", PSYCOPG, RefusingBackend)
    report = measured(pqcore_server, ["refusing"], ["targets:lease_ack", "lease_ack", "put"])
    [target] = report["targets"]
    assert verdicts.verdict(target, judged=False) == "failed"
    found = {row["scenario"]: row for row in report["workloads"] if row["backend"] == "refusing"}
    assert "metrics" in found["put"]
    assert "metrics" not in found["lease_ack"]
    failed = verdicts.failures(report, judged=False)
    assert len(failed) == 2
    assert all("no leases" in text for text in failed)
    made = page.page(report)
    assert "<b>no leases" not in made
    assert "&lt;b&gt;no leases" in made


# Verdicts


def target(ratio: float, wanted: float = 0.9, operation: str = "put", backend: str = "acme") -> dict[str, Any]:
    """A row of a report."""
    figure = figures.Figure.of([ratio * 0.99, ratio, ratio * 1.01]).as_json()
    rates = {"pqcore": figures.Figure.of([1.0]).as_json(), "bare": figures.Figure.of([1.0]).as_json()}
    return {
        "backend": backend,
        "operation": operation,
        "title": operation,
        "target": wanted,
        "ratio": figure,
        "how": "a loop",
        "lost": 0,
        "twice": 0,
        **rates,
    }


def report_of(*rows: dict[str, Any], workloads: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A report with these rows."""
    server = {"origin": "given", "version": "18", "settings": dict(environment.DURABLE), "file_system": None}
    about = {"pqcore": "0", "commit": None, "python": "3", "platform": "x", "processor": "x", "cpus": 1, "load": [0]}
    return {
        "format": run.FORMAT,
        "scale": "quick",
        "started": "",
        "environment": {**about, "drivers": {}, "server": server},
        "doubts": [],
        "targets": list(rows),
        "workloads": list(workloads),
        "losses": [],
        "seconds": 1.0,
    }


def test_a_verdict_is_by_the_median_and_the_backends_own_target() -> None:
    assert verdicts.verdict(target(0.9)) == "pass"
    assert verdicts.verdict(target(0.8999)) == "FALLS SHORT"
    assert verdicts.verdict(target(0.7, wanted=0.6)) == "pass"
    assert verdicts.verdict(target(0.1), judged=False) == "not judged"
    report = report_of(target(0.95), target(0.84, operation="get", backend="slow"))
    assert verdicts.failures(report) == ["slow, get FALLS SHORT: 0.840 of a bare loop (a loop), target 0.9"]
    assert verdicts.failures(report, judged=False) == []


def test_fail_under_takes_the_place_of_targets_but_for_workers() -> None:
    assert verdicts.verdict(target(0.7), 0.6) == "pass"
    assert verdicts.verdict(target(0.92), 0.95) == "FALLS SHORT"
    worker = target(0.55, wanted=0.5, operation="worker")
    assert verdicts.verdict(worker, 0.95) == "pass"


def test_a_server_that_is_not_durable_is_told_of() -> None:
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


def test_the_terminal_warns_of_it_loudly(invoke: Callable[..., Result], tmp_path: Path) -> None:
    file, html = tmp_path / "new" / "report.json", tmp_path / "new" / "report.html"
    arguments = ["--backend", "psycopg2", "--scenario", "put_many", "--json", str(file), "--html", str(html)]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert ("NOT DURABLE" in result.output) == bool(report["doubts"])
    assert all(doubt in html.read_text() for doubt in report["doubts"])


def test_a_document_is_filled_where_it_has_marks(invoke: Callable[..., Result], tmp_path: Path) -> None:
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


def test_each_mark_of_the_page_on_performance_is_filled() -> None:
    text = (Path(__file__).parent.parent / "docs" / "performance.md").read_text()
    names = re.findall(r"<!-- measured: ([\w ]+) -->\n(.*?)<!-- /measured -->", text, re.DOTALL)
    known = {"environment", "peers", *run.scenarios()}
    for name, block in names:
        assert name.removesuffix(" chart") in known
        assert block.strip(), name


def test_figures_say_how_far_rounds_lie_apart() -> None:
    one = figures.Figure.of([5.0])
    assert (one.median, one.least, one.most, one.low, one.high) == (5, 5, 5, 5, 5)
    few = figures.Figure.of([3.0, 1.0, 2.0])
    assert (few.low, few.median, few.high, few.values) == (1, 2, 3, (3, 1, 2))
    many = figures.Figure.of([float(number) for number in range(101)])
    assert (many.q1, many.median, many.q3) == (25, 50, 75)
    assert 35 < many.low < 45 < 55 < many.high < 65
    assert figures.percentile([3.0, 1.0, 2.0], 0.5) == 2
    assert figures.percentile([3.0, 1.0, 2.0], 0.99) == 3


def test_tables_leave_columns_out_where_there_is_no_room() -> None:
    grid = tables.targets([target(0.5)])
    assert grid.within(300) == dataclasses.replace(grid, spare=())
    narrow = grid.within(20)
    assert set(grid.columns) - set(narrow.columns) == {"bare loop is", ">95 %", ">target"}
    assert [len(row) for row in narrow.rows] == [len(narrow.columns)]
    assert narrow.bad == {0}


# Comparing


def workload_row(values: Sequence[float], better: str = "higher", backend: str = "acme") -> dict[str, Any]:
    """A row of a report."""
    metrics = {"rate": {"unit": "/s", "better": better, **figures.Figure.of(values).as_json()}}
    return {
        "scenario": "put",
        "title": "put one",
        "backend": backend,
        "variant": "",
        "consumers": 1,
        "kind": "one",
        "metrics": metrics,
        "per_operation": {"wal_bytes": 1.0, "commits": 1.0, "dead_rows": 0.0},
        "operations": 1,
        "lost": 0,
        "taken_twice": 0,
    }


def change(old: Sequence[float], new: Sequence[float], better: str = "higher") -> Any:
    """What is said of two rows."""
    found = compare.compare(
        report_of(workloads=[workload_row(old, better)]), report_of(workloads=[workload_row(new, better)])
    )
    [only] = found.changes
    return only


def test_a_change_is_one_that_is_more_than_the_spread() -> None:
    worse = change([100, 110, 120], [70, 75, 80])
    assert (worse.kind, round(worse.ratio, 3)) == ("worse", round(75 / 110, 3))
    assert change([100, 110, 120], [130, 140, 150]).kind == "better"
    assert change([100, 110, 120], [60, 75, 105]).kind == "within the spread"
    slower = change([1.0, 1.1, 1.2], [2.0, 2.2, 2.4], better="lower")
    assert (slower.kind, slower.ratio) == ("worse", 0.5)
    assert change([2.0, 2.2, 2.4], [1.0, 1.1, 1.2], better="lower").kind == "better"


def test_what_is_in_one_report_only_is_told_and_what_else_differs() -> None:
    old = report_of(target(0.9), workloads=[workload_row([1.0], backend="gone")])
    new = report_of(target(0.9), workloads=[workload_row([1.0], backend="come")])
    new["environment"]["server"]["settings"]["fsync"] = "off"
    new["environment"]["cpus"] = 64
    found = compare.compare(old, new)
    assert [change.scenario for change in found.changes] == ["targets"]
    assert found.only == [("put gone rate", "the first"), ("put come rate", "the second")]
    assert found.differences == ["cpus: 1, then 64", "fsync: on, then off"]


def test_compare_fails_under_a_ratio_and_only_beyond_the_spread(invoke: Callable[..., Result], tmp_path: Path) -> None:
    reports = {
        "old": report_of(workloads=[workload_row([100, 110, 120])]),
        "slow": report_of(workloads=[workload_row([70, 75, 80])]),
        "noisy": report_of(workloads=[workload_row([60, 75, 105])]),
    }
    files = {name: str(tmp_path / f"{name}.json") for name in reports}
    for name, report in reports.items():
        Path(files[name]).write_text(json.dumps(report))

    def code(*arguments: str) -> int:
        result = invoke("--compare", *arguments)
        assert "what changed" in result.output
        return result.exit_code

    assert code(files["old"], files["slow"]) == 0
    assert code(files["old"], files["slow"], "--fail-under", "0.9") == 1
    assert code(files["old"], files["slow"], "--fail-under", "0.5") == 0
    assert code(files["old"], files["noisy"], "--fail-under", "0.9") == 0
    assert code(files["slow"], files["old"], "--fail-under", "0.9") == 0


@pytest.mark.parametrize("content", ["no JSON", "{}", "[]", '{"format": 99}'])
def test_what_is_no_report_is_not_compared(invoke: Callable[..., Result], tmp_path: Path, content: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(content)
    result = invoke("--compare", str(file), str(file))
    assert result.exit_code == 2
    assert str(file) in result.output


# The page


class References(HTMLParser):
    """Finds what a page would fetch, and its text outside of scripts."""

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


def test_the_page_needs_no_network_and_has_charts(pqcore_server: str) -> None:
    chosen = ("targets:put", "get", "scaling", "horizon")
    report = measured(pqcore_server, ["psycopg2"], chosen)
    report["targets"].append(target(0.5, backend="<script>alert(1)</script>"))
    made = page.page(report)
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


# pgbench


def test_pgbench_runs_the_very_statements(pqcore_server: str) -> None:
    if pgbench.find() is None:
        pytest.skip("there is no pgbench")
    place = contenders.Place("", "s", "t")
    made = statements.Statements(place, "numeric_dollar")
    script = pgbench.SCRIPTS["get"].text(made)
    assert script == made.get.sql.replace("$1", ":q_name") + ";\n"
    assert pgbench.SCRIPTS["transactional_get"].text(made) == f"BEGIN;\n{script}COMMIT;\n"
    assert "NULL::bytea" in pgbench.SCRIPTS["put"].text(made)
    report = measured(pqcore_server, ["psycopg2"], QUICKEST)
    check_structure(report, {"psycopg2"})
    for rows in tables.by_scenario(report["workloads"]).values():
        assert {row["backend"]: "beside_pgbench" in row for row in rows} == {"pgbench": False, "psycopg2": True}


# Those who work


async def failing(desk: Any, go: Any) -> Any:
    """An act that fails."""
    msg = f"number {desk.index} fails"
    raise ValueError(msg)


@pytest.mark.parametrize("name", ["psycopg2", "asyncpg"])
def test_a_failure_at_work_is_told(pqcore_server: str, name: str) -> None:
    [contender] = contenders.contenders([name])
    place = contenders.Place(eyes.named(pqcore_server), "public", "nowhere")
    with pytest.raises(ValueError, match=r"number . fails"):
        crew.together(contender, place, [crew.Part(failing)] * 2)
    members = crew.Crew()
    try:
        with pytest.raises(crew.WorkFailed, match="TableMissing"):
            members.work(contender, place, [crew.Part(acts.put, {"seconds": 0.01})] * 2)
    finally:
        members.close()


# The command line


def test_the_command_is_found_wherever_it_is_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pqcore", "bench", "--list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in (*run.scenarios(), *TARGETS, "asyncpg", "psycopg-async"):
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
def test_what_cannot_be_is_refused(invoke: Callable[..., Result], arguments: list[str], said: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_page_without_plotly_is_refused_before_anything_is_measured(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "plotly" else object())
    result = invoke("--backend", "psycopg2", "--html", str(tmp_path / "page.html"))
    assert result.exit_code == 2
    assert "pqcore[bench]" in result.output


def test_an_unknown_backend_is_told_as_elsewhere() -> None:
    with pytest.raises(UnknownBackend):
        contenders.contenders(["nothing"])


def test_the_targets_of_the_built_in_backends_are_the_default() -> None:
    for contender in contenders.contenders():
        assert targets.targets_of(contender) == TARGETS == dict.fromkeys(targets.OPERATIONS) | dict(TARGETS)


def test_reports_are_the_same_once_written_and_read(tmp_path: Path) -> None:
    report = report_of(target(0.9), workloads=[workload_row([1.0, 2.0])])
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    found = compare.compare(copy.deepcopy(report), compare.load(file))
    assert [change.kind for change in found.changes] == ["within the spread"] * 2
    assert not found.differences
    assert not found.only
