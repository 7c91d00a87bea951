"""What a report says of itself: which targets were met, and whether any job was lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Verdict: TypeAlias = Literal["pass", "FALLS SHORT", "failed", "not judged"]


WORKER = "worker"


def verdict(row: Mapping[str, Any], fail_under: float | None = None, *, judged: bool = True) -> Verdict:
    """Of one target.

    Args:
        row: As the report has it.
        fail_under: What every ratio to a bare loop is to be, in place of each backend's own targets.
        judged: Whether it is to be judged at all.
    """
    if "error" in row:
        return "failed"
    if not judged:
        return "not judged"
    return "pass" if row["ratio"]["median"] >= wanted(row, fail_under) else "FALLS SHORT"


def wanted(row: Mapping[str, Any], fail_under: float | None) -> float:
    """What a ratio is to be, at least; a worker's is to something else than a bare loop, and keeps its target."""
    own: float = row["target"]
    return own if fail_under is None or row["operation"] == WORKER else fail_under


def failures(report: Mapping[str, Any], fail_under: float | None = None, *, judged: bool = True) -> list[str]:
    """Why a run failed, each by name; nothing if it did not."""
    found = []
    for row in report["targets"]:
        name = f"{row['backend']}, {row['operation']}"
        said = verdict(row, fail_under, judged=judged)
        if said == "failed":
            found.append(f"{name}: {first_line(row)}")
        elif said == "FALLS SHORT":
            ratio, least = row["ratio"]["median"], wanted(row, fail_under)
            other = row["how"] if row["operation"] == WORKER else f"a bare loop ({row['how']})"
            doubt = f" (maybe: 95 % interval up to {row['ratio']['high']:.3f})" if row["ratio"]["high"] >= least else ""
            found.append(f"{name} FALLS SHORT: {ratio:.3f} of {other}, target {least:g}{doubt}")
    broken = [row for row in report["workloads"] if "error" in row]
    found += [f"{row['backend']}, {row['scenario']} {row['variant']}: {first_line(row)}" for row in broken]
    found += [f"LOST: {loss}" for loss in report["losses"]]
    return found


def first_line(row: Mapping[str, Any]) -> str:
    """Why there is no figure, shortly."""
    return str(row["error"]).partition("\n")[0]
