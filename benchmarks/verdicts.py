"""The verdicts of a report: which targets were met, and whether any job was lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Verdict: TypeAlias = Literal["pass", "FALLS SHORT", "undecided", "failed", "not judged"]

WORKER = "worker"
BUSY = 0.5
"""The part of a target that the ratio must reach on a busy machine.

Other load changes a ratio of alternating turns by some tenths. A backend that takes twice the time is still detected.
"""


@dataclass(frozen=True)
class Rules:
    """The rules by which a run is judged.

    Attributes:
        targets: Whether ratios to bare loops are judged.
        floors: Whether shares of pgbench's rate are judged.
        fail_under: The lowest allowed ratio to a bare loop, in place of each backend's own targets; None to use those.
    """

    targets: bool = True
    floors: bool = True
    fail_under: float | None = None

    @classmethod
    def chosen(cls, scale: str, judged: bool | None, fail_under: float | None) -> Rules:
        """Return the rules that a command line asks for.

        Args:
            scale: The name of the scale. The quick scale is too short for a verdict on a ratio to a bare loop.
            judged: Whether ``--targets`` or ``--no-targets`` was given; None for neither.
            fail_under: The value on the command line.
        """
        targets = judged if judged is not None else scale != "quick" or fail_under is not None
        return cls(targets, judged is not False, fail_under)


@dataclass(frozen=True)
class Failure:
    """A reason why a run, or a comparison, fails.

    Attributes:
        name: The backend, and the name of the figure.
        text: The name, and the reason.
    """

    name: str
    text: str

    def __str__(self) -> str:
        return self.text


def named(failures: Iterable[Failure]) -> str:
    """Return one line that names everything that failed."""
    names = list(dict.fromkeys(failure.name for failure in failures))
    return f"{len(names)} failed: {'; '.join(names)}"


def verdict(row: Mapping[str, Any], rules: Rules) -> Verdict:
    """Return the verdict on one target: the worst of those on traffic, CPU time and wall time.

    A ratio misses its target only if its whole 95 % interval does. A row without a bare loop is judged only by its
    share of pgbench's rate.

    Args:
        row: The row of the report.
        rules: The rules by which it is judged.
    """
    if "error" in row:
        return "failed"
    if below_floor(row, rules):
        return "FALLS SHORT"
    if not rules.targets or "ratio" not in row:
        return "not judged"
    found = [verdict for verdict, _ in judgements(row, rules)]
    return "FALLS SHORT" if "FALLS SHORT" in found else "undecided" if "undecided" in found else "pass"


def judgements(row: Mapping[str, Any], rules: Rules) -> list[tuple[Verdict, str]]:
    """Return the verdicts on the parts of a target, with the name of each part.

    Args:
        row: The row of the report, with a ratio.
        rules: The rules by which it is judged.
    """
    return [*_of_wire(row), *_of_cpu(row), _of_wall(row, rules)]


def _of_wire(row: Mapping[str, Any]) -> list[tuple[Verdict, str]]:
    """Judge the traffic per call, which is counted, and so needs no interval."""
    if "wire_bound" not in row:  # TLS, or a Unix socket
        return []
    found: list[tuple[Verdict, str]] = []
    for name, ours in row["wire"].items():
        most = row["bare_wire"][name] + row["wire_bound"]
        said: Verdict = "pass" if ours <= most else "FALLS SHORT"
        per = "job" if row["operation"] == WORKER else "call"
        found.append((said, f"{ours:g} {name.replace('_', ' ')} per {per}, at most {most:g}"))
    return found


def _of_cpu(row: Mapping[str, Any]) -> list[tuple[Verdict, str]]:
    """Judge the CPU time of the client."""
    if "cpu_ratio" not in row:
        return []
    ratio, most = row["cpu_ratio"], row["cpu_bound"]
    said: Verdict = "pass" if ratio["median"] <= most else "FALLS SHORT" if ratio["low"] > most else "undecided"
    text = f"{ratio['median']:.3g} times the CPU time of a bare loop ({row['how']}), at most {most:g}"
    return [(said, f"{text}, 95 % interval from {ratio['low']:.3g}" if said == "undecided" else text)]


def _of_wall(row: Mapping[str, Any], rules: Rules) -> tuple[Verdict, str]:
    """Judge the wall time: on a quiet machine by the target, and otherwise by half of it."""
    ratio, least = row["ratio"], wanted(row, rules)
    text = f"{ratio['median']:.3f} of a bare loop ({row['how']}), target {least:g}"
    if ratio["median"] >= least:
        return "pass", text
    noise = noise_of(row)
    if noise:
        if ratio["high"] < least * BUSY:
            return "FALLS SHORT", f"{text}, of which half is wanted on a busy machine"
        if rules.fail_under is not None and row["operation"] != WORKER:  # the caller asked for the ratio itself
            return "undecided", f"{text}, on a busy machine: {noise}"
        return "pass", f"{text}, not judged on a busy machine: {noise}"
    if ratio["high"] < least:
        return "FALLS SHORT", text
    return "undecided", f"{text}, 95 % interval up to {ratio['high']:.3f}"


def noise_of(row: Mapping[str, Any]) -> str:
    """Return why wall times are not judged by their targets; "" if the machine was quiet."""
    return str(row.get("machine", {}).get("noise", ""))


def below_floor(row: Mapping[str, Any], rules: Rules) -> bool:
    """Return whether a row is below its lowest share of pgbench's rate."""
    return rules.floors and "of_pgbench" in row and row["of_pgbench"] < row["floor"]


def wanted(row: Mapping[str, Any], rules: Rules) -> float:
    """Return the lowest allowed ratio of a row; a worker's ratio is not that of one operation, and keeps its target."""
    own: float = row["target"]
    return own if rules.fail_under is None or row["operation"] == WORKER else rules.fail_under


def failures(report: Mapping[str, Any], rules: Rules) -> list[Failure]:
    """Return why a run failed; nothing if it did not."""
    found = [
        Failure(row["label"], f"{row['label']} failed: {first_line(row)}")
        for row in report["backends"]
        if "error" in row
    ]
    for row in report["targets"]:
        name = f"{row['backend']}, {row['operation']}"
        said = verdict(row, rules)
        if said == "failed":
            found.append(Failure(name, f"{name}: {first_line(row)}"))
        elif said == "FALLS SHORT":
            found.append(Failure(name, f"{name} FALLS SHORT: {_shortfall(row, rules)}"))
    for row in report["workloads"]:
        if "error" in row:
            name = f"{row['backend']}, {row['scenario']} {row['variant']}".strip()
            found.append(Failure(name, f"{name}: {first_line(row)}"))
    found += [Failure(loss.partition(":")[0], f"LOST: {loss}") for loss in report["losses"]]
    return found


def _shortfall(row: Mapping[str, Any], rules: Rules) -> str:
    if below_floor(row, rules):
        return f"{row['of_pgbench']:.3f} of pgbench's rate, floor {row['floor']:g}"
    return "; ".join(text for said, text in judgements(row, rules) if said == "FALLS SHORT")


def undecided(report: Mapping[str, Any], rules: Rules) -> list[str]:
    """Return the targets without a verdict: a median misses its bound, but the interval reaches it."""
    return [
        f"{row['backend']}, {row['operation']} is undecided: "
        + "; ".join(text for said, text in judgements(row, rules) if said == "undecided")
        + "; measure again, on a quieter machine"
        for row in report["targets"]
        if verdict(row, rules) == "undecided"
    ]


def first_line(row: Mapping[str, Any]) -> str:
    """Return briefly why there is no figure."""
    return str(row["error"]).partition("\n")[0]
