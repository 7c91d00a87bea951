"""The benchmark of peers: the protocol, with pqcore as the system; reports of lost jobs; the table. No peer is run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:  # the same modules, where types are known
    from benchmarks.peers import environments, measuring, runner, table
    from benchmarks.peers.__main__ import main
    from benchmarks.peers.runner import CONCURRENT, WORKLOADS, Measuring, Ran, Seen, System, Taken, clock
    from benchmarks.peers.systems import OURS, PEERS, Contender, Running
else:
    from pqcore.benchmarks.peers import environments, measuring, runner, table
    from pqcore.benchmarks.peers.__main__ import main
    from pqcore.benchmarks.peers.runner import CONCURRENT, WORKLOADS, Measuring, Ran, Seen, System, Taken, clock
    from pqcore.benchmarks.peers.systems import OURS, PEERS, Contender, Running

SLICED = [workload.key for workload in WORKLOADS if workload.sliced]
TINY = measuring.Plan(rounds=1, seconds=0.03, samples=2, dead=100)


class Memory(System):
    """A queue in memory, which loses and repeats jobs if told to."""

    name = "memory"
    how = {workload.key: "by itself" for workload in WORKLOADS}
    tables = ()
    unfinished = ""
    least = 50

    def __init__(self, loses: int | None = None, repeats: int | None = None) -> None:
        self.jobs: deque[int] = deque()
        self.loses = loses
        self.repeats = repeats
        self.number = 0
        self.came = asyncio.Event()
        self.keyed: deque[tuple[int, str]] = deque()

    async def setup(self, dsn: str) -> None: ...

    async def close(self) -> None: ...

    async def sql(self, statement: str) -> Any: ...

    async def reset(self) -> None:
        self.jobs.clear()
        self.keyed.clear()

    async def settle(self) -> None: ...

    async def count(self) -> int:
        return len(self.jobs) + len(self.keyed)

    async def put(self, number: int) -> None:
        await self.put_many([number])

    async def put_many(self, numbers: Sequence[int]) -> None:
        for _ in numbers:
            self.number += 1
            if self.number != self.loses:
                self.jobs.append(self.number)
        self.came.set()
        await asyncio.sleep(0)

    async def get(self) -> int | None:
        found = await self.get_many(1)
        return found[0] if found else None

    async def lease(self) -> int | None:
        return await self.get()

    async def get_many(self, n: int) -> Sequence[int]:
        await asyncio.sleep(0)
        found = [self.jobs.popleft() for _ in range(min(n, len(self.jobs)))]
        if self.repeats in found:
            self.jobs.appendleft(found[-1])
            self.repeats = None
        return found

    async def work(self, seen: Seen) -> float:
        while found := await self.get_many(10):
            for job in found:
                seen.ran(job)
        return clock()

    async def wait(self, taken: Taken, stop: threading.Event) -> None:
        while not stop.is_set():
            self.came.clear()
            if await self.get() is None:
                await self.came.wait()
            else:
                taken()

    async def serve(self, taken: Taken) -> None:
        await self.wait(taken, threading.Event())

    async def put_keyed(self, key: str, number: int, seconds: float) -> None:
        for _ in range(number):
            self.number += 1
            self.keyed.append((self.number, key))
        self.came.set()

    async def serve_keyed(self, ran: Ran) -> None:
        while True:
            self.came.clear()
            while self.keyed:
                number, key = self.keyed.popleft()
                if number == self.loses:
                    self.keyed.append((number, key))  # it never runs
                    await asyncio.sleep(0)
                    continue
                ran(key)
                if number == self.repeats:
                    ran(key)
            await self.came.wait()


async def measured(system: System, key: str) -> dict[str, Any]:
    """Return the result of a workload, in two slices or in one."""
    measuring = Measuring(system)
    if key.startswith("horizon"):
        await measuring.age(200)
    if key not in SLICED:
        return await measuring.measure(key, 0.02, samples=3)
    await measuring.begin(key, 0.02)
    parts = [await measuring.slice(0.01), await measuring.slice(0.01)]
    ended = await measuring.end()
    return {**ended, "operations": sum(part["operations"] for part in parts)}


@pytest.mark.parametrize("key", [workload.key for workload in WORKLOADS])
def test_peers_report_no_loss_for_a_system_that_loses_nothing(key: str) -> None:
    async def run() -> dict[str, Any]:
        return await measured(Memory(), key)

    found = asyncio.run(run())
    assert found["operations"] > 0
    assert (found["lost"], found["repeated"]) == (0, 0)


@pytest.mark.parametrize("key", ["put", "put_many", "get", "lease", "get_many", *CONCURRENT])
def test_peers_report_a_lost_job(key: str) -> None:
    async def run() -> dict[str, Any]:
        return await measured(Memory(loses=1), key)

    assert asyncio.run(run())["lost"] == 1


def test_peers_report_a_job_that_a_worker_never_runs() -> None:
    async def run() -> dict[str, Any]:
        return await measured(Memory(loses=1), "worker")

    found = asyncio.run(run())
    assert (found["lost"], found["repeated"]) == (1, 0)


@pytest.mark.parametrize("key", ["get", "lease", "get_many", "worker", "concurrent_get", "concurrent_lease"])
def test_peers_report_a_job_taken_twice(key: str) -> None:
    async def run() -> dict[str, Any]:
        return await measured(Memory(repeats=3), key)

    assert asyncio.run(run())["repeated"] == 1


def test_peers_report_a_job_of_a_key_that_ran_twice() -> None:
    async def run() -> dict[str, Any]:
        return await measured(Memory(repeats=3), "limited")

    found = asyncio.run(run())
    assert (found["lost"], found["repeated"]) == (0, 1)


def test_peers_measure_the_jobs_of_a_key_that_ran_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "KEYED_PATIENCE", 0.2)

    async def run() -> dict[str, Any]:
        return await measured(Memory(loses=1), "limited")

    found = asyncio.run(run())
    assert found["operations"] == 19
    assert found["lost"] == 0, "it may come yet"


def test_peers_raise_an_error_when_no_job_of_another_key_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "KEYED_PATIENCE", 0.2)

    class OneKey(Memory):
        async def put_keyed(self, key: str, number: int, seconds: float) -> None:
            if key == "crowd":
                await super().put_keyed(key, number, seconds)

    async def run() -> None:
        await measured(OneKey(), "tenant")

    with pytest.raises(Exception, match="the job of the other key did not start within 0 s"):
        asyncio.run(run())


def test_peers_end_a_worker_of_keys_that_fails() -> None:
    class Broken(Memory):
        async def serve_keyed(self, ran: Ran) -> None:
            raise RuntimeError("no more")

    async def run() -> None:
        await measured(Broken(), "limited")

    with pytest.raises(RuntimeError, match="no more"):
        asyncio.run(run())


def test_peers_end_a_consumer_that_swallows_its_cancellation() -> None:
    class Stubborn(Memory):
        refusals = 2

        async def serve(self, taken: Taken) -> None:
            while True:
                try:
                    return await super().serve(taken)
                except asyncio.CancelledError:
                    if self.refusals == 0:
                        raise
                    self.refusals -= 1

    async def run() -> int:
        system = Stubborn()
        await measured(system, "serve")
        return system.refusals

    assert asyncio.run(run()) == 0


def test_peers_raise_an_error_when_a_consumer_ends() -> None:
    class Broken(Memory):
        async def wait(self, taken: Taken, stop: threading.Event) -> None:
            raise RuntimeError("no more")

    async def run() -> None:
        await measured(Broken(), "pickup")

    with pytest.raises(RuntimeError, match="no more"):
        asyncio.run(run())


@pytest.mark.parametrize("without", [(), ("get_many",)])
def test_peers_measure_a_worker_beside_an_old_snapshot_by_its_own_jobs(without: tuple[str, ...]) -> None:
    class Partial(Memory):
        how = {key: said for key, said in Memory.how.items() if key not in without}

    async def run() -> tuple[list[int], int]:
        system = Partial()
        measuring = Measuring(system)
        await measuring.age(200)
        before = system.number
        await measuring.begin("horizon", 0.02)
        await measuring.slice(0.0)
        await measuring.end()
        waiting = [*system.jobs]
        found = await measuring.measure("horizon_worker", 0.02, samples=3)
        assert (found["lost"], found["repeated"]) == (0, 0)
        return waiting, before

    assert asyncio.run(run()) == ([], 200)


def test_peers_raise_an_error_for_jobs_not_found_again() -> None:
    class Forgetful(Memory):
        async def get_many(self, n: int) -> Sequence[int]:
            self.jobs.clear()
            return []

    async def run() -> None:
        await measured(Forgetful(), "horizon")

    with pytest.raises(Exception, match="200 jobs that were put were not found"):
        asyncio.run(run())


# Processes


@dataclass
class Heard:
    """What a run said."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> None:
        self.lines.append(text)


def run(dsn: str, contenders: Sequence[Contender], plan: measuring.Plan, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = asyncio.run(measuring.run(dsn, contenders, plan, folder, Heard()))
    assert json.loads(json.dumps(found)) == found  # as --json writes it
    return found


def test_peers_measure_pqcore_over_each_backend(pqcore_server: str, tmp_path: Path) -> None:
    report = run(pqcore_server, OURS, TINY, tmp_path)
    assert measuring.trouble(report) == []
    assert [system["not_measured"] for system in report["systems"]] == [None] * len(OURS)
    for workload in WORKLOADS:
        for contender in OURS:
            found = report["figures"][workload.key][contender.title]
            assert found["failed"] is None, (workload.key, contender.title)
            assert found["figure"] > 0
            assert len(found["rounds"]) == 1
    assert report["environment"]["server"]["server_version"]
    with psycopg.connect(pqcore_server) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'pqcore_peers%'").fetchall()
    assert left == []
    shown = table.render(report, how=True)
    assert all(contender.title in shown for contender in OURS)


def test_peers_skip_a_system_that_cannot_be_installed(
    pqcore_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # without a network
    nothing = environments.Environment("nothing", ("pqcore-no-such-peer==1.0",))
    peer = Contender("nothing, at all", "run_pq", (), nothing)
    plan = measuring.Plan(rounds=1, seconds=0.02, workloads=("put",))
    report = run(pqcore_server, [OURS[0], peer], plan, tmp_path)
    ours, theirs = report["systems"]
    assert ours["not_measured"] is None
    assert theirs["not_measured"].startswith("pip: ")
    assert "pqcore-no-such-peer" in theirs["not_measured"]
    assert "nothing, at all: not measured: pip: " in table.render(report)
    assert report["figures"]["put"].keys() == {OURS[0].title}


def test_peers_skip_a_system_whose_process_ends(pqcore_server: str, tmp_path: Path) -> None:
    missing = Contender("missing, driver", "run_nothing", (), environments.Environment("empty", ()))
    silent = Contender("silent, driver", "environments", (), environments.Environment("empty", ()))
    plan = measuring.Plan(rounds=1, seconds=0.02, workloads=("put",))
    report = run(pqcore_server, [missing, silent, OURS[0]], plan, tmp_path)
    reasons = [system["not_measured"] for system in report["systems"]]
    assert reasons[0].startswith("its process ended: ")
    assert "run_nothing" in reasons[0]
    assert reasons[1:] == ["its process ended: it said nothing", None]


def test_peers_continue_after_a_failed_workload(
    pqcore_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Running.ask

    async def asked(self: Any, request: dict[str, Any]) -> Any:
        return await ask(self, {**request, "workload": "none"} if request.get("workload") == "worker" else request)

    monkeypatch.setattr(Running, "ask", asked)
    plan = measuring.Plan(rounds=1, seconds=0.02, workloads=("get", "worker"))
    report = run(pqcore_server, [OURS[0]], plan, tmp_path)
    title = OURS[0].title
    assert report["figures"]["worker"][title]["failed"] == "KeyError: 'none'"
    assert report["figures"]["get"][title]["figure"] > 0
    assert f"{title}, worker: failed: KeyError: 'none'" in table.render(report)


def test_peers_continue_after_a_process_died(
    pqcore_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Running.ask

    async def asked(self: Any, request: dict[str, Any]) -> Any:
        if request["do"] == "slice" and self.contender == OURS[0]:
            self._process.kill()
        return await ask(self, request)

    monkeypatch.setattr(Running, "ask", asked)
    plan = measuring.Plan(rounds=1, seconds=0.02, workloads=("put", "get"))
    report = run(pqcore_server, OURS[:2], plan, tmp_path)
    for key in plan.workloads:
        assert report["figures"][key][OURS[0].title]["failed"] == "its process ended: it said nothing"
        assert report["figures"][key][OURS[1].title]["figure"] > 0


def test_peers_measure_a_slow_workload_once(
    pqcore_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "SLOW", 0.0)
    report = run(pqcore_server, [OURS[0]], measuring.Plan(rounds=3, seconds=0.02, workloads=("put",)), tmp_path)
    assert len(report["figures"]["put"][OURS[0].title]["rounds"]) == 1  # the warm-up


def test_peers_rounds_end_when_time_is_over(pqcore_server: str, tmp_path: Path) -> None:
    plan = measuring.Plan(rounds=3, seconds=0.02, limit=0, workloads=("put",))
    report = run(pqcore_server, [OURS[0]], plan, tmp_path)
    assert report["plan"]["rounds"] == 1
    assert len(report["figures"]["put"][OURS[0].title]["rounds"]) == 1


def test_peers_give_every_system_a_turn_in_each_round() -> None:
    systems: list[Any] = [(name, "") for name in "abcdefg"]
    orders = [measuring._turned(systems, number) for number in range(6)]
    assert all(sorted(order) == systems for order in orders)
    assert len({tuple(order) for order in orders}) == 6


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://me@here:1234/old", "postgresql://me@here:1234/new"),
        ("postgresql://me:p%40ss@here/old?sslmode=disable", "postgresql://me:p%40ss@here/new?sslmode=disable"),
        ("host=/var/run/postgresql user=me", "postgresql://me@/new?host=%2Fvar%2Frun%2Fpostgresql"),
        ("dbname=old", "postgresql:///new"),
    ],
)
def test_peers_url_names_another_database(dsn: str, expected: str) -> None:
    assert measuring.url(dsn, "new") == expected
    found = psycopg.conninfo.conninfo_to_dict(expected)
    assert {**psycopg.conninfo.conninfo_to_dict(dsn), "dbname": "new"} == found


# Environments


def test_peers_environment_is_reused_once_it_is_complete(tmp_path: Path) -> None:
    empty = environments.Environment("empty", ())
    program = environments.prepare(empty, tmp_path)
    code = "import sys; print(sys.prefix)"
    prefix = subprocess.run([program, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert Path(prefix) == program.parents[1]
    trace = program.parents[1] / "trace"
    trace.touch()
    assert environments.prepare(empty, tmp_path) == program
    assert trace.exists()
    (program.parents[1] / "made.json").unlink()
    assert environments.prepare(empty, tmp_path) == program
    assert not trace.exists()


def test_peers_environment_is_separate_per_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[str]] = []

    def note(command: Sequence[str], what: str) -> None:
        ran.append(command)
        if what == "venv":
            Path(command[-1]).mkdir(parents=True)

    monkeypatch.setattr(environments, "_run", note)
    places = {
        environments.prepare(environments.Environment("peer", (f"peer=={version}",), ("psycopg",)), tmp_path)
        for version in (1, 2)
    }
    assert len(places) == 2
    [ours] = [word for word in ran[1] if word.startswith("psycopg==")]
    assert ours == f"psycopg=={psycopg.__version__}"


def test_peers_skip_a_system_of_node_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    peer = environments.Environment("peer", ("peer@1",), node=True)
    with pytest.raises(environments.NotMeasured, match="needs npm, and none was found on PATH"):
        environments.prepare(peer, tmp_path)


def test_peers_environment_of_node_has_a_node_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text('#!/bin/sh\nmkdir -p "$3/node_modules/node/bin" && echo "$@" > "$3/node_modules/node/bin/node"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    made = environments.prepare(environments.Environment("peer", ("peer@1", "node@2"), node=True), tmp_path)
    said = made.read_text().split()
    assert said[:3] == ["install", "--prefix", str(made.parents[3])]
    assert said[-2:] == ["peer@1", "node@2"]


def test_peers_find_a_python_that_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments.find_python((3, 10)) == sys.executable
    with pytest.raises(environments.NotMeasured, match=r"needs Python 3\.99 or newer, and none was found"):
        environments.find_python((3, 99))
    newer = tmp_path / "versions" / "3.19.1" / "bin" / "python"
    newer.parent.mkdir(parents=True)
    newer.write_text("#!/bin/sh\necho 3 19\n")
    newer.chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert environments.find_python((3, 19)) == str(newer)


def test_peers_skip_a_python_that_cannot_make_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "versions" / "3.19.2" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(environments.NotMeasured):
        environments.find_python((3, 19))


def test_peers_environments_are_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environments.cache_folder() == tmp_path / "pqcore-bench" / "peers"
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path / "elsewhere"))
    assert environments.cache_folder() == tmp_path / "elsewhere"


def test_peers_have_pinned_versions() -> None:
    assert PEERS
    for peer in PEERS:
        assert peer.environment is not None
        pin = "@" if peer.environment.node else "=="
        assert all(pin in requirement for requirement in peer.environment.requirements)
        assert ", " in peer.title


# The table


def system(title: str, **about: Any) -> dict[str, Any]:
    ours = title.startswith("pqcore")
    return {"title": title, "ours": ours, "not_measured": None, "version": "1.2", "how": {}, "alike": {}, **about}


def rate(*figures: float, **more: Any) -> dict[str, Any]:
    middle = sorted(figures)[len(figures) // 2]
    found = {
        "figure": middle,
        "least": min(figures),
        "most": max(figures),
        "rounds": [{"figure": figure} for figure in figures],
    }
    return {**found, "failed": None, "lost": 0, "repeated": 0, **more}


REPORT: dict[str, Any] = {
    "environment": {
        "server": {
            "server_version": "18.6",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
        },
        "cores": 2,
        "load": [0.5, 0.4, 0.3],
        "commit_ms": 0.25,
    },
    "plan": {"rounds": 3, "dead": 3_000},
    "seconds": 100,
    "workloads": [
        {"key": "put", "title": "put 1", "unit": "/s", "what": "one job a call"},
        {"key": "get", "title": "get 1", "unit": "/s", "what": "one job"},
        {"key": "pickup", "title": "pickup", "unit": "ms", "what": "the time"},
        {"key": "horizon", "title": "get 1, old", "unit": "/s", "what": "under a snapshot, after jobs"},
    ],
    "systems": [
        system("pqcore, psycopg2"),
        system("pq, psycopg2"),
        system("Fast, Rust", alike={"get": "lease"}),
        system("Gone, psycopg", not_measured="needs Python 3.12"),
    ],
    "figures": {
        "put": {
            "pqcore, psycopg2": rate(900, 1_000, 1_100),
            "pq, psycopg2": rate(500, 500, 500),
            "Fast, Rust": rate(2_000, 2_000, 2_000),
        },
        "get": {"pqcore, psycopg2": rate(3_000), "pq, psycopg2": rate(1_000)},
        "lease": {"Fast, Rust": rate(600)},
        "pickup": {"pqcore, psycopg2": rate(1.5, p95=2.5), "pq, psycopg2": rate(3, p95=9)},
        "horizon": {
            "pqcore, psycopg2": rate(800),
            "pq, psycopg2": {"failed": "too slow", "rounds": []},
            "Fast, Rust": rate(100),
        },
    },
}


def test_peers_ratios_compare_with_the_best_peer() -> None:
    assert table.ratios(REPORT) == {
        "best peer": {"pqcore, psycopg2": {"put": 0.5, "get": 3.0, "pickup": 2.0, "horizon": 8.0}},
        "pq": {"pqcore, psycopg2": {"put": 2.0, "get": 3.0, "pickup": 2.0}},
    }


def test_peers_ratios_compare_measurements_of_the_same_round() -> None:
    ours = {"figure": 300, "slices": [100, 200]}
    figures = {
        "pqcore, psycopg2": rate(150, 2_000, rounds=[{**ours, "figure": 150}, {"figure": 2_000, "slices": [2_000]}]),
        "pq, psycopg2": rate(
            75, 1_000, rounds=[{"figure": 75, "slices": [50, 100]}, {"figure": 1, "slices": [1_000, 1]}]
        ),
    }
    report = {**REPORT, "figures": {"put": figures}}
    assert table.ratio(report, REPORT["workloads"][0], "pqcore, psycopg2", "pq, psycopg2") == 2.0


def test_peers_table_shows_figures_and_ratios() -> None:
    heading, *lines = table.render(REPORT).splitlines()
    assert heading == (
        "PostgreSQL 18.6, fsync on, synchronous_commit on; 2 cores, load 0.5 at the end; a commit takes 0.25 ms; "
        "medians of 3 rounds, in 100 s"
    )
    assert lines == [
        "",
        "|                           |      put 1 |  get 1 |    pickup, ms | get 1, old |",
        "| ------------------------- | ---------: | -----: | ------------: | ---------: |",
        "| pqcore, psycopg2          | 1,000 ±10% |  3,000 | 1.50, p95 2.5 |        800 |",
        "| pq 1.2, psycopg2          |    500 ±0% |  1,000 | 3.00, p95 9.0 |     failed |",
        "| Fast 1.2, Rust            |  2,000 ±0% |    600 |             - |        100 |",
        "| psycopg2 to the best peer |     0.50 x | 3.00 x |        2.00 x |     8.00 x |",
        "| psycopg2 to pq            |     2.00 x | 3.00 x |        2.00 x |          - |",
        "",
        "put 1: one job a call; best peer: Fast, Rust, 2,000/s",
        "get 1: one job; best peer: pq, psycopg2, 1,000/s",
        "pickup: the time; best peer: pq, psycopg2, 3.00 ms",
        "get 1, old: under a snapshot, after jobs, 3,000 of them; best peer: Fast, Rust, 100/s",
        "",
        "Gone, psycopg: not measured: needs Python 3.12",
        "pq, psycopg2, horizon: failed: too slow",
        "lost jobs: none; taken twice: none",
    ]


def test_peers_document_has_jobs_under_limits_in_a_place_of_their_own() -> None:
    limited = {"key": "limited", "title": "worker, limited", "unit": "/s", "what": "jobs of one key"}
    both = {"put": "queue.put()", "limited": "limits="}
    systems = [
        system("pqcore, psycopg2", how=both),
        system("pq, psycopg2", how={"put": "queue.put()"}),
        system("Keyed, Node", how={"limited": "a limit"}),
        system("Gone, psycopg", not_measured="needs Python 3.12"),
    ]
    figures = {
        "put": {"pqcore, psycopg2": rate(100), "pq, psycopg2": rate(200)},
        "limited": {"pqcore, psycopg2": rate(4.25), "Keyed, Node": {"failed": "too slow", "rounds": []}},
    }
    report = {**REPORT, "workloads": [REPORT["workloads"][0], limited], "systems": systems, "figures": figures}
    found = table.blocks(report)
    assert found.keys() == {"peers", "limited peers"}
    assert "Keyed" not in found["peers"]
    assert "pq 1.2, psycopg2" in found["peers"]
    assert "| pqcore, psycopg2 |             4.2 |" in found["limited peers"]
    assert "Keyed, Node, limited: failed: too slow" in found["limited peers"]
    assert "pq 1.2" not in found["limited peers"]
    assert table.blocks({**report, "workloads": report["workloads"][:1]}).keys() == {"peers"}


def test_peers_memory_is_better_the_less_it_is() -> None:
    workload = {"key": "memory", "title": "memory", "unit": "MB", "what": "the most"}
    systems = [system("pqcore, psycopg2", how={"memory": ""}), system("pq, psycopg2", how={"memory": ""})]
    systems.append(system("Lean, Rust", how={"memory": ""}))
    figures = {"memory": {"pqcore, psycopg2": rate(5), "pq, psycopg2": rate(40), "Lean, Rust": rate(10)}}
    report = {**REPORT, "workloads": [workload], "systems": systems, "figures": figures}
    assert table.ratios(report)["best peer"] == {"pqcore, psycopg2": {"memory": 2.0}}
    [shown] = table.blocks(report).values()
    assert "memory, MB |" in shown
    assert "best peer: Lean, Rust, 10.00 MB" in shown


def test_peers_table_reports_lost_jobs_and_a_server_that_is_not_durable() -> None:
    environment = {**REPORT["environment"], "server": {**REPORT["environment"]["server"], "fsync": "off"}}
    figures = {**REPORT["figures"], "put": {"pqcore, psycopg2": rate(1, lost=2, repeated=3)}}
    report = {**REPORT, "environment": environment, "figures": figures}
    shown = table.render(report)
    assert "fsync is off: what was committed may be lost" in shown
    assert "pqcore, psycopg2, put: 2 jobs lost" in shown
    assert "pqcore, psycopg2, put: 3 jobs repeated" in shown
    assert "lost jobs: none" not in shown


def test_peers_table_without_peers_shows_no_ratios() -> None:
    report = {**REPORT, "systems": REPORT["systems"][:1]}
    assert table.ratios(report)["best peer"] == {"pqcore, psycopg2": {}}
    assert " x " not in table.render(report)


def test_peers_command_shows_a_stored_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT))
    assert main(["--show", str(path)]) == 0
    assert capsys.readouterr().out == table.render(REPORT) + "\n"


def test_peers_command_measures_and_writes_a_report(
    pqcore_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    none = ["--only", "no such peer", "--cache", str(tmp_path)]
    assert main(["--quick", "--dsn", pqcore_server, "--workload", "put", "--json", str(path), *none]) == 0
    shown = capsys.readouterr().out
    assert "lost jobs: none" in shown
    assert shown == table.render(json.loads(path.read_text())) + "\n"


def test_peers_command_reports_an_unreachable_server_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--dsn", "postgresql://127.0.0.1:1/none", "--only", "no such peer", "--cache", str(tmp_path)])
    assert stopped.value.code == 2
    assert "python -m benchmarks.peers: " in capsys.readouterr().err
