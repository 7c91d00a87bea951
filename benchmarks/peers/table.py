"""The report for people: a table of each system and workload, and of pqcore's ratios to its peers."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from .measuring import trouble
from .runner import CONCURRENT, MEMORY

PQ = "pq, psycopg2"
NONE = "-"
FAILED = "failed"

Report = Mapping[str, Any]


def figure(report: Report, title: str, key: str) -> Mapping[str, Any] | None:
    """Return the figures of a system; None if there are none.

    If a system does a workload in the same way as another, it has the figures of the other.
    """
    system = next(system for system in report["systems"] if system["title"] == title)
    key = system.get("alike", {}).get(key, key)
    found: Mapping[str, Any] | None = report["figures"].get(key, {}).get(title)
    return found if found is not None and "figure" in found else None


def best_peer(report: Report, workload: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the fastest peer, and its figure."""
    found = {
        system["title"]: figure(report, system["title"], workload["key"])["figure"]  # type: ignore[index]
        for system in report["systems"]
        if not system["ours"] and figure(report, system["title"], workload["key"]) is not None
    }
    if not found:
        return None
    best = (max if workload["unit"] == "/s" else min)(found, key=lambda title: found[title])
    return best, found[best]


def ratio(report: Report, workload: Mapping[str, Any], title: str, other: str | None) -> float | None:
    """Return how many times as fast a system is as another, or as the best peer; None if one has no figure.

    It is the median of the ratios of measurements made one after the other, which may differ from the ratio of the
    medians.
    """
    mine = figure(report, title, workload["key"])
    best = best_peer(report, workload)
    if other is None:
        other = best[0] if best else title
    theirs = figure(report, other, workload["key"]) if any(s["title"] == other for s in report["systems"]) else None
    if mine is None or theirs is None or other == title:
        return None
    quotient = statistics.median(one / another for one, another in _pairs(mine, theirs))
    return quotient if workload["unit"] == "/s" else 1 / quotient


def _pairs(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """Such measurements are close in time, so a disturbance of the machine affects both."""
    for one, another in zip(mine["rounds"], theirs["rounds"], strict=False):
        parts = (each.get("slices", [each["figure"]]) for each in (one, another))
        yield from zip(*parts, strict=False)


def part(report: Report, keys: Collection[str]) -> Report | None:
    """Return the report of some workloads, and of the systems that have any of them; None if none was measured."""
    workloads = [workload for workload in report["workloads"] if workload["key"] in keys]
    systems = [each for each in report["systems"] if "how" not in each or {*each["how"], *each["alike"]} & {*keys}]
    figures = {key: found for key, found in report["figures"].items() if key in keys}
    return {**report, "workloads": workloads, "systems": systems, "figures": figures} if workloads else None


def blocks(report: Report) -> dict[str, str]:
    """Return the content for the places of a document.

    Jobs under limits, concurrent callers and memory have their own.
    """
    every = {workload["key"] for workload in report["workloads"]}
    parts = {
        "peers": part(report, every - KEYED - {*CONCURRENT, MEMORY}),
        "limited peers": part(report, every & KEYED),
        "concurrent peers": part(report, every & {*CONCURRENT}),
        "memory peers": part(report, every & {MEMORY}),
    }
    return {name: render(found) for name, found in parts.items() if found is not None}


KEYED = frozenset({"limited", "tenant"})
"""The workloads of jobs under limits."""


def ratios(report: Report) -> dict[str, dict[str, dict[str, float]]]:
    """Return all ratios of pqcore, by the other system, the system, and the workload."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, other in (("best peer", None), ("pq", PQ)):
        for system in report["systems"]:
            if system["ours"]:
                each = {w["key"]: ratio(report, w, system["title"], other) for w in report["workloads"]}
                found.setdefault(name, {})[system["title"]] = {k: v for k, v in each.items() if v is not None}
    return found


def render(report: Report, *, how: bool = False) -> str:
    """Return the report as text."""
    parts = [_heading(report), _table(report), _legend(report), _notes(report)]
    if how:
        parts.append(_how(report))
    return "\n\n".join(part for part in parts if part)


def _heading(report: Report) -> str:
    environment, plan = report["environment"], report["plan"]
    server = environment["server"]
    return (
        f"PostgreSQL {server['server_version']}, fsync {server['fsync']}, "
        f"synchronous_commit {server['synchronous_commit']}; {environment['cores']} cores, "
        f"load {environment['load'][0]:.1f} at the end; a commit takes {environment['commit_ms']:.2f} ms; "
        f"medians of {plan['rounds']} rounds, in {report['seconds']:.0f} s"
    )


def _table(report: Report) -> str:
    workloads = report["workloads"]
    rows = [["", *(w["title"] + ("" if w["unit"] == "/s" else f", {w['unit']}") for w in workloads)]]
    measured = [system for system in report["systems"] if system["not_measured"] is None]
    rows += [[_name(system), *(_cell(report, system, w) for w in workloads)] for system in measured]
    for name, systems in ratios(report).items():
        for title, each in systems.items():
            if each:
                driver = title.partition(", ")[2]
                cells = (f"{each[w['key']]:.2f} x" if w["key"] in each else NONE for w in workloads)
                rows.append([f"{driver} to {'the best peer' if name == 'best peer' else name}", *cells])
    return _aligned(rows)


def _name(system: Mapping[str, Any]) -> str:
    title: str = system["title"]
    if system["ours"]:
        return title
    name, _, driver = title.partition(", ")
    return f"{name} {system['version'].partition(',')[0]}, {driver}"


def _cell(report: Report, system: Mapping[str, Any], workload: Mapping[str, Any]) -> str:
    key = system["alike"].get(workload["key"], workload["key"])
    found = figure(report, system["title"], workload["key"])
    if found is None:
        return FAILED if report["figures"].get(key, {}).get(system["title"], {}).get("failed") else NONE
    if workload["unit"] == "ms":
        return f"{found['figure']:.2f}, p95 {found['p95']:.1f}"
    spread = (found["most"] - found["least"]) / 2 / found["figure"]
    rate = f"{found['figure']:,.0f}" if found["figure"] >= 10 else f"{found['figure']:.2g}"
    return rate + (f" ±{spread:.0%}" if len(found["rounds"]) > 1 else "")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def _legend(report: Report) -> str:
    lines = []
    for workload in report["workloads"]:
        best = best_peer(report, workload)
        unit, digits = ("/s", 0) if workload["unit"] == "/s" else (f" {workload['unit']}", 2)
        told = "" if best is None else f"; best peer: {best[0]}, {best[1]:,.{digits}f}{unit}"
        dead = f", {report['plan']['dead']:,} of them" if workload["key"].startswith("horizon") else ""
        lines.append(f"{workload['title']}: {workload['what']}{dead}{told}")
    return "\n".join(lines)


def _notes(report: Report) -> str:
    notes = [
        f"{system['title']}: not measured: {system['not_measured']}"
        for system in report["systems"]
        if system["not_measured"] is not None
    ]
    notes += [
        f"{title}, {key}: failed: {found['failed']}"
        for key, systems in report["figures"].items()
        for title, found in systems.items()
        if found["failed"]
    ]
    server = report["environment"]["server"]
    notes += [f"{name} is {server[name]}: what was committed may be lost" for name in _DURABLE if server[name] == "off"]
    return "\n".join([*notes, *(trouble(report) or ["lost jobs: none; taken twice: none"])])


def _language(system: Mapping[str, Any]) -> str:
    return f"Node {system['node']}" if "node" in system else f"Python {system['python']}"


_DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


def _how(report: Report) -> str:
    lines = []
    for system in report["systems"]:
        if system["not_measured"] is None:
            lines.append(f"{_name(system)}, on {_language(system)}")
            lines += [f"    {key}: {text}" for key, text in system["how"].items()]
            lines += [f"    {key}: as {other}" for key, other in system["alike"].items()]
    return "\n".join(lines)
