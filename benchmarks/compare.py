"""The comparison of two reports: which figures changed by more than chance, and whether that fails a gate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pqcore.errors import ConfigurationError

from .pgbench import LABEL
from .run import FORMAT, TARGETS
from .summary import FEWEST, Ratio
from .verdicts import Failure, first_line

Key: TypeAlias = tuple[str, str, str, str]
Kind: TypeAlias = Literal["better", "worse", "the same", "undecided"]
Verdict: TypeAlias = Literal["pass", "FALLS SHORT", "undecided", "not judged"]


@dataclass(frozen=True)
class Change:
    """A figure of both reports.

    Attributes:
        scenario, variant, backend, metric: The identity of the figure.
        unit: The unit of the figure.
        before, after: The medians.
        ratio: How many times better it has become; below 1 it is worse.
        low, high: A 95 % interval of the ratio.
        rounds: How often it was measured, in the report with fewer rounds.
        yardstick: The measurement next to it in each round, which removes the speed of the machine from the ratio; ""
            if there is none, and so no verdict.
    """

    scenario: str
    variant: str
    backend: str
    metric: str
    unit: str
    before: float
    after: float
    ratio: float
    low: float
    high: float
    rounds: int
    yardstick: str

    @property
    def name(self) -> str:
        """The backend, and the name of the figure."""
        return _name(self.backend, self.scenario, self.variant)

    @property
    def kind(self) -> Kind:
        """Whether the figure changed by more than chance."""
        if self.rounds < FEWEST:
            return "undecided"
        if self.low > 1:
            return "better"
        return "worse" if self.high < 1 else "the same"

    def verdict(self, least: float) -> Verdict:
        """Return whether the figure has become worse than ``least`` times as good: its whole interval is below it."""
        if not self.yardstick:
            return "not judged"
        if self.rounds < FEWEST:
            return "undecided"
        if self.ratio >= least:
            return "pass"
        return "FALLS SHORT" if self.high < least else "undecided"


@dataclass(frozen=True)
class Comparison:
    """The differences between two reports.

    Attributes:
        changes: The changes of figures in both reports.
        new: The names of figures that only the second report has.
        differences: The differences of the environments.
        broken: Parts of the second report that failed, are missing, or lost jobs.
    """

    changes: list[Change]
    new: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    broken: list[Failure] = field(default_factory=list)

    def failures(self, least: float) -> list[Failure]:
        """Return why a gate fails: broken parts, and figures worse than ``least`` times as good."""
        return self.broken + [
            Failure(
                change.name,
                f"{change.name} FALLS SHORT: {change.ratio:.3f} times as good as it was (95 % interval up to"
                f" {change.high:.3f}), at least {least:g} is wanted",
            )
            for change in self.changes
            if change.verdict(least) == "FALLS SHORT"
        ]

    def undecided(self, least: float) -> list[str]:
        """Return why a figure with a yardstick has no verdict."""
        found = []
        for change in self.changes:
            if change.verdict(least) != "undecided":
                continue
            if change.rounds < FEWEST:
                few = f"{change.rounds} of the {FEWEST} rounds that a 95 % interval needs"
                why = f"{few}; measure with --rounds {FEWEST}"
            else:
                why = f"{change.ratio:.3f}, 95 % interval {change.low:.3f} to {change.high:.3f}; measure more rounds"
            found.append(f"{change.name} is undecided: {why}")
        return found


def load(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        ConfigurationError: The file cannot be read, is not a report, or has another format than `FORMAT`.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["format"] != FORMAT:
            msg = f"{path} has format {report['format']!r}, and this pqcore reads format {FORMAT}: measure it again"
            raise ConfigurationError(msg)
        _ = report["backends"], report["targets"], report["workloads"], report["environment"], report["losses"]
    except OSError as exc:
        msg = f"{path} cannot be read: {exc.strerror}"
        raise ConfigurationError(msg) from exc
    except (ValueError, KeyError, TypeError) as exc:
        if isinstance(exc, ConfigurationError):
            raise
        msg = f"{path} is no report of the benchmarks"
        raise ConfigurationError(msg) from exc
    made: dict[str, Any] = report
    return made


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compare two reports."""
    old, new = dict(_figures(before)), dict(_figures(after))
    changes = [_change(key, old[key], new[key]) for key in old if key in new]
    come = [_name(backend, scenario, variant) for scenario, variant, backend, _ in new.keys() - old.keys()]
    return Comparison(changes, sorted(set(come)), [*_differences(before, after)], [*_broken(old, after)])


def _name(backend: str, scenario: str, variant: str) -> str:
    if scenario == TARGETS:
        return f"{backend}, {TARGETS}:{variant}"
    if not scenario:
        return f"{backend}, {variant}"
    return f"{backend}, {scenario} {variant}".strip()


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the figures of a report, without those of pgbench, which is the yardstick."""
    for row in report[TARGETS]:
        key = (TARGETS, row["operation"], row["backend"])
        if "ratio" in row:
            yardstick = (f"the bare loop: {row['how']}", row["ratio"])
            yield (*key, "ratio"), {"unit": "of a bare loop", "beside": yardstick, **row["ratio"]}
        elif "pqcore" in row:
            yield (*key, "rate"), {"unit": "/s", **row["pqcore"]}
    for row in report["workloads"]:
        if row["backend"] == LABEL:
            continue
        for metric, figure in row.get("metrics", {}).items():
            share = {"beside": (LABEL, row["of_pgbench"])} if metric == "rate" and "of_pgbench" in row else {}
            yield (row["scenario"], row["variant"], row["backend"], metric), {**figure, **share}


def _change(key: Key, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    one, other, yardstick = new, old, ""
    before, after = old.get("beside", ("", None)), new.get("beside", ("", None))
    if before[0] == after[0] != "":  # a bare loop that puts many jobs in another way is another yardstick
        yardstick, one, other = after[0], after[1], before[1]
    higher = old.get("better", "higher") == "higher"
    ratio = Ratio.of(one, other) if higher else Ratio.of(other, one)
    return Change(
        *key,
        old["unit"],
        old["median"],
        new["median"],
        ratio.value,
        ratio.low,
        ratio.high,
        min(one["rounds"], other["rounds"]),
        yardstick,
    )


def _broken(old: Mapping[Key, Any], report: Mapping[str, Any]) -> Iterator[Failure]:
    """Return the parts of the second report that failed, are missing, or lost jobs."""
    stopped = {row["label"] for row in report["backends"] if "error" in row}
    for row in report["backends"]:
        if "error" in row:
            yield Failure(row["label"], f"{row['label']} failed: {first_line(row)}")
    seen = set()
    for section, variant in ((TARGETS, "operation"), ("workloads", "variant")):
        for row in report[section]:
            place = (row.get("scenario", TARGETS), row[variant], row["backend"])
            name = _name(place[2], place[0], place[1])
            if "error" in row:
                seen.add(place)
                if row["backend"] != LABEL:
                    yield Failure(name, f"{name} failed: {first_line(row)}")
            elif jobs := row["lost"] + row.get("twice", 0) + row.get("taken_twice", 0):
                yield Failure(name, f"{name} LOST: {jobs:,} jobs were lost, or taken twice")
    for loss in report["losses"]:
        yield Failure(loss.partition(":")[0], f"LOST: {loss}")
    new = {key for key, _ in _figures(report)}
    for scenario, variant, backend, metric in sorted(old.keys() - new):
        if (scenario, variant, backend) in seen or backend in stopped:
            continue
        name = _name(backend, scenario, variant)
        yield Failure(name, f"{name} is missing: its {metric} is in the first report, and not in the second")


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Return differences that make the figures hard to compare."""
    old, new = before["environment"], after["environment"]
    for name in ("processor", "cpus", "platform", "python"):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)}, then {new.get(name)}"
    if old["server"]["version"] != new["server"]["version"]:
        yield f"server: {old['server']['version']}, then {new['server']['version']}"
    for name, value in old["server"]["settings"].items():
        if (now := new["server"]["settings"].get(name)) != value:
            yield f"{name}: {value}, then {now}"
    for name, version in old["drivers"].items():
        if name in new["drivers"] and new["drivers"][name] != version:
            yield f"{name}: {version}, then {new['drivers'][name]}"
    if before["scale"] != after["scale"]:
        yield f"scale: {before['scale']}, then {after['scale']}"
