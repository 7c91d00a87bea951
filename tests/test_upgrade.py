"""A short run of `tests.upgrade`, from each start; the checker finds forged losses and waits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from upgrade.processes import ROOT, Build, Failed, unpack
from upgrade.run import Upgrade, from_older, from_pq
from upgrade.verdict import Event, Phase, losses, waits

from pqcore_backends.embedded import EmbeddedServer

COMMIT = "a8d5c0c"
MOST = 20.0
"""Seconds that no call may take: a machine that runs other tests meanwhile may be slow."""


@pytest.fixture
def upgrade(tmp_path: Path) -> Any:
    with EmbeddedServer() as server:
        yield Upgrade("a short run", server.dsn(), tmp_path, 1000, 0.5, MOST, print)


def older_build(folder: Path) -> Build:
    """Return a build of schema version 6; in a clone without its history, this build."""
    try:
        return unpack(COMMIT, folder)
    except Failed:
        return Build("this build, too", ROOT)


@pytest.mark.timeout(400)
def test_upgrade_from_an_older_build_and_back_loses_no_job(
    upgrade: Upgrade, tmp_path_factory: pytest.TempPathFactory
) -> None:
    report = upgrade.run(from_older(older_build(tmp_path_factory.mktemp("older"))), of_pq=False)
    assert report.wrong == []
    assert len(report.waits) == 10
    assert all(each.puts and each.takes for each in report.waits)


@pytest.mark.timeout(400)
def test_upgrade_from_pq_and_back_loses_no_job(upgrade: Upgrade) -> None:
    report = upgrade.run(from_pq, of_pq=True)
    assert report.wrong == []
    assert len(report.waits) == 7
    assert all(each.puts and each.takes for each in report.waits)


PUT, GOT = Event("p", "put", 10.0, 0.5, "p-1"), Event("g", "got", 11.0, 0.25, "p-1")
RAN = Event("w", "ran", 11.0, 0.0, "p-1")
FINISHED = {"p-1": ["finished"]}


@pytest.mark.parametrize(
    ("events", "states", "found"),
    [
        ([PUT, GOT], FINISHED, []),
        ([PUT, RAN, RAN], FINISHED, []),  # at least once
        ([PUT, GOT, Event("g", "got", 12.0, 0.1, "row-5")], FINISHED, []),
        ([PUT, GOT], {}, ["p-1 was put, and its rows are missing"]),
        ([PUT], {"p-1": ["dead"]}, ["p-1 was put, and its rows are ['dead']"]),
        ([PUT, GOT], {"p-1": ["finished"] * 2}, ["p-1 was put, and its rows are ['finished', 'finished']"]),
        ([PUT], FINISHED, ["p-1 is finished, and no client took it"]),
        ([PUT, GOT, GOT], FINISHED, ["p-1 was taken 2 times: {'got': 2}"]),
        ([PUT, GOT, replace(GOT, what="acked")], FINISHED, ["p-1 was taken 2 times: {'got': 1, 'acked': 1}"]),
        ([PUT, GOT, RAN], FINISHED, ["p-1 was taken 1 times: {'got': 1}"]),
        (
            [GOT],
            FINISHED,
            [
                "p-1 was taken, and no put of it was recorded",
                "p-1 is in the table, and no put of it was recorded",
            ],
        ),
        ([PUT, GOT, Event("g", "error", 12.0, 0.1, "got: no")], FINISHED, ["g had an error: got: no"]),
    ],
)
def test_checker_finds_each_kind_of_loss(events: list[Event], states: dict[str, list[str]], found: list[str]) -> None:
    assert losses(events, states) == found


def test_checker_finds_the_longest_waits_of_each_phase() -> None:
    later = Event("p", "put later", 20.0, 0.2, "p-2")  # due at 20.8
    keyed = Event("p", "put keyed", 20.0, 0.3, "p-3")
    events = [
        *(PUT, later, keyed, GOT),
        *(replace(GOT, job="p-2", at=22.0), replace(RAN, job="p-3", at=25.0)),
        *(Event("g", "looked", 23.0, 1.5, ""), Event("g", "got waiting", 24.0, 9.0, "row-1")),
    ]
    first, second = waits([Phase("a", 0.0, 20.0), Phase("b", 20.0, 30.0)], events)
    assert (first.puts, first.put, first.takes, first.take, first.delivery) == (1, 0.5, 1, 0.25, 1.0)
    assert (second.puts, second.put, second.takes, second.take) == (2, 0.3, 3, 1.5)
    assert [round(second.delivery, 3), second.keyed] == [1.2, 5.0]
    assert second.slowest == "p-2, by g"
    assert second.by_client == {"p": 0.3, "g": 1.5}
