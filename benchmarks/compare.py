"""Two reports beside one another: what changed by more than the rounds of each differ among themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pqcore.errors import ConfigurationError

from .run import FORMAT

Key: TypeAlias = tuple[str, str, str, str]
Kind: TypeAlias = Literal["better", "worse", "within the spread"]


@dataclass(frozen=True)
class Change:
    """One number in both.

    Attributes:
        scenario, variant, backend, metric: Which.
        unit: Of what.
        before, after: The medians.
        ratio: How much better it has become; below 1 it is worse.
        kind: Whether that is more than the spread of the two.
    """

    scenario: str
    variant: str
    backend: str
    metric: str
    unit: str
    before: float
    after: float
    ratio: float
    kind: Kind


@dataclass(frozen=True)
class Comparison:
    """What changed.

    Attributes:
        changes: Of what is in both.
        only: What is in one alone: the name, and in which.
        differences: Of the environments.
    """

    changes: list[Change]
    only: list[tuple[str, str]]
    differences: list[str]

    def below(self, ratio: float) -> list[Change]:
        """What has become worse than ``ratio`` times what it was, by more than the spread."""
        return [change for change in self.changes if change.kind == "worse" and change.ratio < ratio]


def load(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["format"] != FORMAT:
            msg = f"{path} is of format {report['format']}; this pqcore knows {FORMAT}"
            raise ConfigurationError(msg)
        _ = report["targets"], report["workloads"], report["environment"]
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
    only = [(" ".join(filter(None, key)), "the first") for key in old if key not in new]
    only += [(" ".join(filter(None, key)), "the second") for key in new if key not in old]
    return Comparison(changes, only, [*_differences(before, after)])


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
    for row in report["targets"]:
        if "ratio" in row:
            figure = {"unit": "of a bare loop", "better": "higher", **row["ratio"]}
            yield ("targets", row["operation"], row["backend"], "ratio"), figure
    for row in report["workloads"]:
        for metric, figure in row.get("metrics", {}).items():
            yield (row["scenario"], row["variant"], row["backend"], metric), figure


def _change(key: Key, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    higher = old["better"] == "higher"
    one, other = (new["median"], old["median"]) if higher else (old["median"], new["median"])
    kind: Kind = "within the spread"
    if new["low"] > old["high"]:
        kind = "better" if higher else "worse"
    elif new["high"] < old["low"]:
        kind = "worse" if higher else "better"
    scenario, variant, backend, metric = key
    return Change(
        scenario,
        variant,
        backend,
        metric,
        old["unit"],
        old["median"],
        new["median"],
        one / other if other else 1.0,
        kind,
    )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What was not the same, so that the figures are hardly to be compared."""
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
